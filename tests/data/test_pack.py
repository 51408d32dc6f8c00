"""Rows: every token is in one place, no segment shares an id with another, and all come back in order."""

import itertools
import random

import pytest
import torch

from hf_async_mtl.data.collator import pack, pack_rows
from hf_async_mtl.modeling.packing import ragged_from_rows

SEEDS = range(6)


def random_segments(seed: int, count: int = 17, longest: int = 12) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(1, 99) for _ in range(generator.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("seed", SEEDS)
def test_segments_do_not_overlap(seed: int) -> None:
    """Two segments shared a place, or one ran over the end of its row."""
    lengths = [len(segment) for segment in random_segments(seed)]
    taken: set[tuple[int, int]] = set()
    for (row, start), length in zip(pack_rows(lengths, 16), lengths, strict=True):
        places = {(row, place) for place in range(start, start + length)}
        assert not places & taken
        assert start >= 0
        assert start + length <= 16
        taken |= places
    rows = {row for row, _ in taken}
    assert rows == set(range(len(rows)))
    assert len(taken) == sum(lengths)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_are_few(seed: int) -> None:
    """Packing opened a row where another had room: more than 11/9 of the least number and 6/9 (Dósa, 2007)."""
    lengths = [len(segment) for segment in random_segments(seed, count=60)]
    rows = 1 + max(row for row, _ in pack_rows(lengths, 32))
    assert rows <= 11 / 9 * -(-sum(lengths) // 32) + 6 / 9 + 1


def test_a_segment_longer_than_a_row_is_refused() -> None:
    """It would have run over into the next row, and its tokens into another's."""
    with pytest.raises(ValueError, match=r"must fit into a row of 5 tokens; found one of 6"):
        pack_rows([2, 6], 5)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_token_comes_back(seed: int) -> None:
    """A segment was read from another's place: the batch's order is not the rows' order."""
    segments = random_segments(seed)
    types = [[index % 2] * len(segment) for index, segment in enumerate(segments)]
    rows = pack(segments, types, row_length=16, pad_token_id=0)
    assert rows.token_type_ids is not None
    for found, expected in ((rows.input_ids, segments), (rows.token_type_ids, types)):
        states = found.unsqueeze(-1).float()
        counts = torch.tensor([5, 12])
        ragged = ragged_from_rows(states, rows, counts)
        assert ragged.states.flatten().int().tolist() == list(itertools.chain(*expected))
        assert ragged.layout.tokens.diff().tolist() == [len(segment) for segment in segments]
        assert ragged.layout.segments.tolist() == [0, 5, 17]
    used = rows.segment_ids > 0
    assert (rows.input_ids[~used] == 0).all()
    assert int(used.sum()) == sum(map(len, segments))
    # No column is empty: a row is as wide as the fullest of them.
    assert used.any(0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_positions_restart_and_ids_differ(seed: int) -> None:
    """A second segment counted its positions from the first one's, or shared its id and was seen by it."""
    segments = random_segments(seed)
    rows = pack(segments, None, row_length=16, pad_token_id=0)
    assert rows.token_type_ids is None
    seen = set()
    for start, length in zip(rows.segment_starts.tolist(), rows.segment_lengths.tolist(), strict=True):
        places = slice(start, start + length)
        assert rows.position_ids.flatten()[places].tolist() == list(range(length))
        ids = set(rows.segment_ids.flatten()[places].tolist())
        assert len(ids) == 1
        seen.add((start // rows.input_ids.shape[1], *ids))
    assert len(seen) == len(segments)
    assert 0 not in {identity for _, identity in seen}


def test_padding_fills_with_the_pad_token() -> None:
    """Rows were padded with 0, which is a word in another vocabulary."""
    rows = pack([[5, 6, 7], [8, 9]], None, row_length=4, pad_token_id=1)
    assert sorted(rows.input_ids.tolist()) == [[5, 6, 7], [8, 9, 1]]
