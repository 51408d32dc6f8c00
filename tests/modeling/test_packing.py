"""Masks, length groups and ragged states."""

import itertools
import random

import pytest
import torch

from hf_async_mtl.modeling.packing import (
    Layout,
    block_mask,
    length_groups,
    offsets_of,
    ragged_from_mask,
    segment_tokens,
    sliding_block_mask,
)

SEEDS = range(6)


def random_segments(seed: int, count: int = 17, longest: int = 12) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(1, 99) for _ in range(generator.randint(1, longest))] for _ in range(count)]


def test_block_mask() -> None:
    """A token saw another segment, or padding saw nothing and its softmax was NaN."""
    mask = block_mask(torch.tensor([[1, 1, 2, 0, 0]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]


def test_sliding_block_mask() -> None:
    """Local attention reached into the next segment, or over the whole of its own."""
    mask = sliding_block_mask(block_mask(torch.tensor([[1, 1, 1, 1, 2, 2]])), window=1)
    assert mask[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]


def test_segment_tokens_is_a_loop() -> None:
    """Places of tokens were wrong behind a segment that is not in the order of its row."""
    starts, lengths = torch.tensor([7, 0, 4]), torch.tensor([3, 2, 1])
    expected = [s + i for s, n in zip(starts.tolist(), lengths.tolist(), strict=True) for i in range(n)]
    assert segment_tokens(starts, lengths).tolist() == expected
    assert segment_tokens(starts[:0], lengths[:0]).tolist() == []


def padded_tokens(lengths: list[int], groups: list[list[int]]) -> int:
    return sum(max(lengths[i] for i in group) * len(group) for group in groups)


def least_padded_tokens(lengths: list[int], count: int) -> int:
    """By trying all cuts of the sorted lengths."""
    ordered = sorted(lengths, reverse=True)
    least = len(ordered) * ordered[0]
    for cuts in range(1, count):
        for inner in itertools.combinations(range(1, len(ordered)), cuts):
            bounds = [0, *inner, len(ordered)]
            cost = sum(ordered[a] * (b - a) for a, b in itertools.pairwise(bounds))
            least = min(least, cost)
    return least


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_length_groups_pad_the_least(seed: int, count: int) -> None:
    """A segment was lost or run twice, or the cuts were not the best ones."""
    lengths = [len(segment) for segment in random_segments(seed, count=9)]
    groups = length_groups(lengths, count)
    assert sorted(itertools.chain(*groups)) == list(range(9))
    assert len(groups) <= count
    assert padded_tokens(lengths, groups) == least_padded_tokens(lengths, count)
    longest = [max(lengths[i] for i in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


def test_length_groups_of_equal_lengths_is_one() -> None:
    """A batch without any padding was cut in four, for nothing."""
    assert length_groups([7] * 5) == [[0, 1, 2, 3, 4]]


def test_ragged_from_mask() -> None:
    """Left padding was read as text, or a choice was given to the next example."""
    hidden = torch.arange(4 * 3 * 2).view(4, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0]])
    ragged = ragged_from_mask(hidden, mask, segments_per_example=2)
    expected = [hidden[s, t].tolist() for s in range(4) for t in range(3) if mask[s, t]]
    assert ragged.states.tolist() == expected
    assert ragged.layout.tokens.tolist() == [0, 2, 4, 7, 8]
    assert ragged.layout.segments.tolist() == [0, 2, 4]
    assert ragged.layout.example_tokens.tolist() == [0, 4, 8]


def test_offsets_and_padding_of_segments() -> None:
    """The last segment was left out, or short rows were filled with another's tokens."""
    layout = Layout(offsets_of(torch.tensor([2, 1, 3])), offsets_of(torch.tensor([1, 2])))
    assert layout.example_tokens.tolist() == [0, 2, 6]
