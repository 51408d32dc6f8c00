"""Run an encoder on segments that share rows, and take their token states out of the rows again.

A *segment* is one encoded sequence. An example has one, or several (choices, windows). A packed row holds several of
them, with a block-diagonal attention mask and positions that restart (Krell et al., "Efficient Sequence Packing without
Cross-contamination", 2021). An encoder that does not take such a mask is run on *length groups*: the same segments,
sorted by length and padded in a few smaller forwards. Both ways, and a padded call, end in the same ragged states.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Errors of encoders that were not written for a 4-D mask: a shape that does not fit, or a refusal.
_UNPACKABLE = (ValueError, RuntimeError, TypeError, LookupError, AttributeError, AssertionError)


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


class HostBatch:
    """What the host must know of a packed batch, as Python integers: to read them from a GPU is to wait for it.

    It is neither a tensor nor a collection, so that accelerate and wrappers of the model leave it where it is.
    """

    def __init__(
        self,
        task_ids: Sequence[int],  # ``[B]``, ascending
        segment_counts: Sequence[int],  # ``[B]``
        segment_lengths: Sequence[int],  # ``[S]``
        example_ids: Sequence[int] = (),  # ``[B]``; empty where nobody asks for them
    ) -> None:
        self.task_ids, self.segment_counts = task_ids, segment_counts
        self.segment_lengths, self.example_ids = segment_lengths, example_ids

    def slices(self, tasks: int) -> list[tuple[slice, slice, slice]]:
        """Return the examples, the segments and the tokens of each task; ``tasks`` is their number.

        Raises:
            ValueError: The examples are not in the order of their tasks.

        Examples:
            >>> HostBatch([0, 2], [1, 2], [5, 2, 4]).slices(3)[2]
            (slice(1, 2, None), slice(1, 3, None), slice(5, 11, None))
        """
        ids = list(self.task_ids)
        if ids != sorted(ids):
            raise ValueError(f"The examples of a packed batch must be in the order of their tasks; found {ids}.")
        segments, tokens = [0, *accumulate(self.segment_counts)], [0, *accumulate(self.segment_lengths)]
        found, start = [], 0
        for task in range(tasks):
            stop = start + ids.count(task)
            first, last = segments[start], segments[stop]
            found.append((slice(start, stop), slice(first, last), slice(tokens[first], tokens[last])))
            start = stop
        if start != len(ids):
            raise ValueError(f"The tasks of a packed batch must be ids below {tasks}; found {ids[-1]}.")
        return found

    def layouts(self, slices: Sequence[tuple[slice, slice, slice]], device: torch.device) -> list[Layout]:
        """Return the layout of each task's part, whose offsets begin at 0, from what `slices` returned: one copy."""
        offsets: list[list[int]] = []
        for examples, segments, _ in slices:
            offsets.append([*accumulate(self.segment_lengths[segments], initial=0)])
            offsets.append([*accumulate(self.segment_counts[examples], initial=0)])
        flat = to_device(torch.tensor([*chain.from_iterable(offsets)]), device)
        views = iter(flat.split([len(part) for part in offsets]))
        return [Layout(*pair) for pair in zip(views, views, strict=True)]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device without waiting for the device."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class Ragged(NamedTuple):
    """Token states without padding: ``states`` ``[T, H]``, and their layout.

    ``vectors`` ``[S, H]`` are the pooled segments, where several heads share them.
    """

    states: Tensor
    layout: Layout
    vectors: Tensor | None = None


class PackedRows(NamedTuple):
    """Segments in rows. All tensors are int64.

    ``input_ids``, ``position_ids`` (from 0 in each segment), ``segment_ids`` (0 is padding; the segments of a row count
    from 1) and, if the tokenizer returns them, ``token_type_ids``: ``[R, L]``. ``segment_starts`` (index of the first
    token in the flattened rows) and ``segment_lengths``: ``[S]``.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    segment_starts: Tensor
    segment_lengths: Tensor
    token_type_ids: Tensor | None


def offsets_of(lengths: Tensor) -> Tensor:
    """Return the offsets ``[N + 1]`` of ``[N]`` lengths: [0, 2, 5] of [2, 3]."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def segment_tokens(starts: Tensor, lengths: Tensor, total: int | None = None) -> Tensor:
    """Return the indices of all tokens, segment by segment: ``[T]``, from starts and lengths of shape ``[S]``.

    ``total`` is T, where the host knows it; otherwise it is read from ``lengths``.

    Examples:
        >>> segment_tokens(torch.tensor([4, 0]), torch.tensor([2, 3]))
        tensor([4, 5, 0, 1, 2])
    """
    offsets = offsets_of(lengths)
    total = int(offsets[-1]) if total is None else total
    shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
    return torch.arange(total, device=starts.device) + shift


@torch.compiler.disable
def ragged_from_rows(
    hidden: Tensor, rows: PackedRows, segment_counts: Tensor, sizes: Sequence[int] | None = None
) -> Ragged:
    """Return the token states of packed rows ``[R, L, H]``; ``segment_counts`` is ``[B]``, ``sizes`` is ``[S]``."""
    total = None if sizes is None else sum(sizes)
    states = hidden.flatten(0, 1).index_select(0, segment_tokens(rows.segment_starts, rows.segment_lengths, total))
    return Ragged(states, Layout(offsets_of(rows.segment_lengths), offsets_of(segment_counts)))


def ragged_from_mask(hidden: Tensor, attention_mask: Tensor, segments_per_example: int = 1) -> Ragged:
    """Return the token states of padded sequences: ``hidden`` ``[S, L, H]``, ``attention_mask`` ``[S, L]``."""
    mask = attention_mask.bool()
    segments = torch.arange(0, len(mask) + 1, segments_per_example, device=mask.device)
    return Ragged(hidden[mask], Layout(offsets_of(mask.sum(1)), segments))


def forward_arguments(model_class: type[PreTrainedModel]) -> frozenset[str]:
    """Return the names of the arguments of a model's ``forward``."""
    return frozenset(inspect.signature(model_class.forward).parameters)


def padding_id(encoder: Any) -> int:
    """Return the id with which an encoder is padded; 0 if its configuration has none. It is masked."""
    return getattr(encoder.config, "pad_token_id", None) or 0


def encode(encoder: Any, **inputs: Any) -> Tensor:
    """Return the last hidden states ``[N, L, H]``. Inputs that are None or unknown to the encoder are dropped."""
    known, inputs = forward_arguments(type(encoder)), {**inputs, "use_cache": False}
    return encoder(**{name: x for name, x in inputs.items() if x is not None and name in known}).last_hidden_state


def encode_rows(encoder: Any, rows: PackedRows, position_offset: int) -> Tensor:
    """Return the states ``[R, L, H]`` of packed rows, from one forward; see also `probe_packing`."""
    return encode(
        encoder,
        input_ids=rows.input_ids,
        attention_mask=attention_mask(encoder, rows.segment_ids),
        position_ids=rows.position_ids + position_offset,
        token_type_ids=rows.token_type_ids,
    )


def block_mask(segment_ids: Tensor) -> Tensor:
    """Return the block-diagonal mask of ``segment_ids`` ``[R, L]``: boolean, ``[R, 1, L, L]``.

    Padding attends to padding: a row of the mask without a True would give NaN in the softmax.
    """
    return (segment_ids[:, :, None] == segment_ids[:, None, :]).unsqueeze(1)


def sliding_block_mask(mask: Tensor, window: int) -> Tensor:
    """Return a block mask for layers with local attention: tokens of one block, at most ``window`` positions apart."""
    position = torch.arange(mask.shape[-1], device=mask.device)
    return mask & ((position[:, None] - position[None, :]).abs() <= window)


def attention_mask(encoder: Any, segment_ids: Tensor) -> Any:
    """Return the mask of packed rows in the form that an encoder takes: one, or one per type of layer."""
    mask = block_mask(segment_ids)
    if "sliding_attention" not in (getattr(encoder.config, "layer_types", None) or ()):
        return _attention_bias(encoder, mask)
    # A single mask would replace local attention.
    local = sliding_block_mask(mask, encoder.config.sliding_window)
    return {"full_attention": _attention_bias(encoder, mask), "sliding_attention": _attention_bias(encoder, local)}


def _attention_bias(encoder: Any, mask: Tensor) -> Tensor:
    if encoder.config._attn_implementation != "eager":
        return mask
    # Eager attention adds its mask to the scores.
    device = mask.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else encoder.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


@torch.compiler.disable
def encode_length_groups(
    encoder: Any, rows: PackedRows, segment_counts: Tensor, groups: int | None = 4, sizes: Sequence[int] | None = None
) -> Ragged:
    """Encode the segments of packed rows in at most ``groups`` padded forwards.

    None: one forward per length, so that a segment's padding does not depend on the batch. Those of less than 8 tokens
    are padded to 8: Funnel cannot pool two. ``sizes`` are the lengths of the segments, where the host knows them.
    """
    starts, lengths, types = rows.segment_starts, rows.segment_lengths, rows.token_type_ids
    sizes = lengths.tolist() if sizes is None else sizes
    widths = sizes if groups is not None else [max(size, 8) for size in sizes]
    cut = length_groups(widths, groups or len(widths))
    places, end = [0] * len(widths), 0
    for group in cut:
        for i in group:
            places[i], end = end, end + widths[group[0]]
    pad, device = padding_id(encoder), starts.device
    order, padded_starts = to_device(torch.tensor([[i for group in cut for i in group], places]), device)
    padded = []
    for group, members in zip(cut, order.split([len(group) for group in cut]), strict=True):
        column = torch.arange(widths[group[0]], device=device)
        mask = column < lengths[members, None]
        tokens = torch.where(mask, starts[members, None] + column, 0)
        hidden = encode(
            encoder,
            input_ids=rows.input_ids.flatten()[tokens].where(mask, pad),
            attention_mask=mask.long(),
            token_type_ids=None if types is None else types.flatten()[tokens].where(mask, 0),
        )
        padded.append(hidden.flatten(0, 1))
    states = torch.cat(padded).index_select(0, segment_tokens(padded_starts, lengths, sum(sizes)))
    return Ragged(states, Layout(offsets_of(lengths), offsets_of(segment_counts)))


def length_groups(lengths: Sequence[int], groups: int = 4) -> list[list[int]]:
    """Sort segments by length and cut them into at most ``groups`` groups, longest first: the indices of each.

    The number of padded tokens is the minimum over all cuts (dynamic programming, quadratic in the number of different
    lengths).

    >>> length_groups([2, 9, 2, 8], groups=2)
    [[1, 3], [0, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    # A cut helps only where the length changes.
    cuts = [i for i in range(1, len(order)) if lengths[order[i]] < lengths[order[i - 1]]]
    ends = [*cuts, len(order)]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(min(groups, len(ends))):
        extended = dict(best)
        for start, (cost, path) in best.items():
            for end in ends if start < len(order) else ():
                if end > start:
                    total = cost + lengths[order[start]] * (end - start)
                    if end not in extended or total < extended[end][0]:
                        extended[end] = (total, [*path, end])
        best = extended
    bounds = [0, *best[len(order)][1]]
    return [order[start:end] for start, end in pairwise(bounds)]


def probe_packing(encoder: Any) -> int | None:
    """Run an encoder on a few random tokens, packed and padded, and compare the states; None if it does not pack.

    If it does, return the number that it gives to the first position (RoBERTa and similar: ``pad_token_id + 1``). The
    global random state and the modes of all modules stay unchanged.
    """
    if "position_ids" not in forward_arguments(type(encoder)):
        return None
    if encoder.config._attn_implementation not in ("sdpa", "eager"):
        return None
    with trial(encoder):
        offsets = sorted({0, padding_id(encoder) + 1})
        return next((offset for offset in offsets if _packed_equals_padded(encoder, offset)), None)


@contextmanager
def trial(encoder: Any) -> Iterator[None]:
    """Run a block in evaluation mode, without gradients and autocast; the modes of all modules are restored."""
    # Per module: some may be frozen in evaluation mode while the rest trains.
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad(), torch.autocast(encoder.device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _packed_equals_padded(encoder: Any, position_offset: int) -> bool:
    rows = random_row(encoder)
    counts = torch.ones_like(rows.segment_lengths)
    try:
        packed = ragged_from_rows(encode_rows(encoder, rows, position_offset), rows, counts).states
    except _UNPACKABLE:
        return False
    return _are_close(packed, encode_length_groups(encoder, rows, counts, groups=1).states)


def padding_changes_states(encoder: Any) -> bool:
    """Return whether the states of a segment depend on padding, as with convolutions (ConvBERT) or no mask (FNet)."""
    with trial(encoder):
        rows = random_row(encoder)
        counts = torch.ones_like(rows.segment_lengths)
        padded, alone = (encode_length_groups(encoder, rows, counts, groups).states for groups in (1, 3))
    return not _are_close(padded, alone)


def _are_close(states: Tensor, expected: Tensor) -> bool:
    # Far above the rounding errors of the dtype, far below the effect of a neighbor or of a wrong position.
    tolerance = 1e-4 if states.dtype == torch.float32 else 2e-2
    return bool((states - expected).abs().max() <= tolerance * expected.abs().max())


def random_row(encoder: Any) -> PackedRows:
    """Return three segments in one row; the first is longer than the window of local attention."""
    config, device = encoder.config, encoder.device
    longest, limit = (getattr(config, "sliding_window", None) or 0) + 8, getattr(config, "max_position_embeddings", 0)
    longest = min(longest, limit // 2) if limit and limit > 0 else longest  # XLNet has -1: no limit
    lengths = torch.tensor([longest, 5, 7])
    # Any token but padding, whose id may be the first or the last of the vocabulary.
    tokens = torch.arange(config.vocab_size)
    others = tokens[tokens != padding_id(encoder)]
    drawn = torch.randint(len(others), (int(lengths.sum()),), generator=torch.Generator().manual_seed(0))
    positions = segment_tokens(torch.zeros_like(lengths), lengths)
    segments = torch.arange(1, 4).repeat_interleave(lengths)
    ids, positions, segments = (values.to(device).unsqueeze(0) for values in (others[drawn], positions, segments))
    return PackedRows(ids, positions, segments, offsets_of(lengths)[:-1].to(device), lengths.to(device), None)
