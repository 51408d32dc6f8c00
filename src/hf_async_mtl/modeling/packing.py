"""Examples to rows and back: several short sequences share a row, and no head ever sees it.

A *segment* is one encoded sequence. An example has one, or several (choices, windows). Segments are packed into rows
with a block-diagonal attention mask and positions that restart, as in Krell et al., "Efficient Sequence Packing without
Cross-contamination" (2021). An encoder that takes no such mask is run on *length groups* instead: the same segments,
sorted and cut, padded in several smaller forwards. Both ways, and a plain padded call, end in the same ragged states.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Layout",
    "PackedRows",
    "Ragged",
    "block_mask",
    "length_groups",
    "offsets_of",
    "pack",
    "pack_rows",
    "ragged_from_mask",
    "ragged_from_rows",
    "segment_tokens",
    "sliding_block_mask",
]


class Layout(NamedTuple):
    """Which tokens belong to which segment, and which segments to which example.

    ``tokens`` has shape ``[S + 1]``: segment ``s`` holds the tokens ``tokens[s]:tokens[s + 1]``. ``segments`` has shape
    ``[B + 1]``: example ``b`` holds the segments ``segments[b]:segments[b + 1]``.
    """

    tokens: Tensor
    segments: Tensor

    @property
    def example_tokens(self) -> Tensor:
        """``[B + 1]``: example ``b`` holds the tokens ``example_tokens[b]:example_tokens[b + 1]``."""
        return self.tokens[self.segments]


class Ragged(NamedTuple):
    """Token states without padding: ``states`` ``[T, H]``, and their layout."""

    states: Tensor
    layout: Layout


class PackedRows(NamedTuple):
    """Segments in rows. All tensors are int64.

    ``input_ids``, ``position_ids``, ``segment_ids`` (0 is padding, the segments of a row count from 1) and, where the
    tokenizer makes them, ``token_type_ids``: ``[R, L]``. ``segment_starts`` (of the first token in the flattened rows)
    and ``segment_lengths``: ``[S]``.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    segment_starts: Tensor
    segment_lengths: Tensor
    token_type_ids: Tensor | None


def offsets_of(lengths: Tensor) -> Tensor:
    """``[N]`` lengths to ``[N + 1]`` offsets.

    Examples:
        >>> offsets_of(torch.tensor([2, 3]))
        tensor([0, 2, 5])
    """
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def pack_rows(lengths: Sequence[int], row_length: int) -> list[tuple[int, int]]:
    """Place segments in as few rows as best-fit-decreasing finds (at most 11/9 of the optimum, and 6/9 of a row).

    Args:
        lengths: Length of each segment, at most ``row_length``.
        row_length: Tokens in a row.

    Returns:
        For each segment its row and the place of its first token in it. The same lengths always give the same places.

    Examples:
        >>> pack_rows([3, 5, 2], row_length=5)
        [(1, 0), (0, 0), (1, 3)]
    """
    filled: list[int] = []
    places: list[tuple[int, int]] = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > row_length:
            raise ValueError(f"A segment must fit into a row of {row_length} tokens; found one of {length}.")
        fitting = [row for row, used in enumerate(filled) if used + length <= row_length]
        if not fitting:
            filled.append(0)
            fitting = [len(filled) - 1]
        row = max(fitting, key=lambda r: filled[r])
        places[index] = (row, filled[row])
        filled[row] += length
    return places


def pack(
    segments: Sequence[Sequence[int]],
    token_types: Sequence[Sequence[int]] | None,
    row_length: int,
    pad_token_id: int,
) -> PackedRows:
    """Pack encoded segments into rows.

    Args:
        segments: Token ids of each segment.
        token_types: Their token types, where the tokenizer makes them.
        row_length: The longest row. Rows are as wide as the fullest of them.
        pad_token_id: What fills a row.
    """
    sizes = [len(segment) for segment in segments]
    places = pack_rows(sizes, row_length)
    rows = max(row for row, _ in places) + 1
    width = max(start + size for (_, start), size in zip(places, sizes, strict=True))
    numbers, in_row = [0] * len(places), [0] * rows
    # In the order of their places, so that the ids of a row's segments count up from left to right.
    for index in sorted(range(len(places)), key=lambda i: places[i]):
        in_row[places[index][0]] += 1
        numbers[index] = in_row[places[index][0]]

    lengths = torch.tensor(sizes)
    starts = torch.tensor([row * width + start for row, start in places])
    tokens = segment_tokens(starts, lengths)

    def fill(values: Tensor, padding: int = 0) -> Tensor:
        flat = torch.full((rows * width,), padding)
        flat[tokens] = values
        return flat.view(rows, width)

    return PackedRows(
        input_ids=fill(_flatten(segments), pad_token_id),
        position_ids=fill(segment_tokens(torch.zeros_like(lengths), lengths)),
        segment_ids=fill(torch.tensor(numbers).repeat_interleave(lengths)),
        segment_starts=starts,
        segment_lengths=lengths,
        token_type_ids=None if token_types is None else fill(_flatten(token_types)),
    )


def _flatten(segments: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([token for segment in segments for token in segment])


def block_mask(segment_ids: Tensor) -> Tensor:
    """The block-diagonal mask of packed rows: True where a token may see another.

    Padding sees padding: a row of a mask without a single True would give NaN in the softmax.

    Args:
        segment_ids: ``[R, L]``.

    Returns:
        Boolean, ``[R, 1, L, L]``.
    """
    return (segment_ids[:, :, None] == segment_ids[:, None, :]).unsqueeze(1)


def sliding_block_mask(mask: Tensor, window: int) -> Tensor:
    """A block mask for layers with local attention: tokens at most ``window`` places apart, inside their block."""
    place = torch.arange(mask.shape[-1], device=mask.device)
    return mask & ((place[:, None] - place[None, :]).abs() <= window)


def segment_tokens(starts: Tensor, lengths: Tensor) -> Tensor:
    """The places of all tokens, segment by segment: ``[T]``, from starts and lengths of shape ``[S]``.

    Examples:
        >>> segment_tokens(torch.tensor([4, 0]), torch.tensor([2, 3]))
        tensor([4, 5, 0, 1, 2])
    """
    offsets = offsets_of(lengths)
    total = int(offsets[-1])
    shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
    return torch.arange(total, device=starts.device) + shift


def length_groups(lengths: Sequence[int], groups: int = 4) -> list[list[int]]:
    """Sort segments by length and cut them where padding costs the least.

    Args:
        lengths: Length of each segment.
        groups: The most groups.

    Returns:
        Indices of the segments of each group, longest group first. The number of padded tokens is the least that
        ``groups`` groups allow (dynamic programming over the cuts, quadratic in the number of different lengths).

    Examples:
        >>> length_groups([2, 9, 2, 8], groups=2)
        [[1, 3], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    # Only where the length changes is a cut of use.
    cuts = [i for i in range(1, len(order)) if lengths[order[i]] < lengths[order[i - 1]]]
    ends = [*cuts, len(order)]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(min(groups, len(ends))):
        extended = dict(best)
        for start, (cost, path) in best.items():
            if start == len(order):
                continue
            for end in ends:
                if end > start:
                    total = cost + lengths[order[start]] * (end - start)
                    if end not in extended or total < extended[end][0]:
                        extended[end] = (total, [*path, end])
        best = extended
    bounds = [0, *best[len(order)][1]]
    return [order[start:end] for start, end in pairwise(bounds)]


def ragged_from_rows(hidden: Tensor, starts: Tensor, lengths: Tensor, segment_counts: Tensor) -> Ragged:
    """Take the token states of packed rows out of them: ``hidden`` ``[R, L, H]``, ``segment_counts`` ``[B]``."""
    states = hidden.flatten(0, 1).index_select(0, segment_tokens(starts, lengths))
    return Ragged(states, Layout(offsets_of(lengths), offsets_of(segment_counts)))


def ragged_from_mask(hidden: Tensor, attention_mask: Tensor, segments_per_example: int = 1) -> Ragged:
    """Take the token states out of padded sequences: ``hidden`` ``[S, L, H]``, ``attention_mask`` ``[S, L]``."""
    mask = attention_mask.bool()
    segments = torch.arange(0, len(mask) + 1, segments_per_example, device=mask.device)
    return Ragged(hidden[mask], Layout(offsets_of(mask.sum(1)), segments))
