"""Examples to batches: packed rows of mixed tasks, or padded rows of one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..modeling.heads import HEADS
from ..modeling.packing import HostBatch, PackedRows, segment_tokens
from ..tasks.registry import TASK_TYPES

_ROWS = 8
"""Multiple to which the number of rows is rounded up for a compiled encoder."""


class MultiTaskCollator:
    """Pack the segments of examples of mixed tasks into rows.

    The examples of a batch are sorted by task, so that the model reads those of one task as a slice. ``example_ids``
    comes first, because Trainer and accelerate take the size of a batch from its first tensor. ``tasks`` are name ->
    type, in the order of the task ids; ``row_length`` is a maximum in tokens. With ``constant_shapes``, rows have that
    length and their number is a multiple of 8, so that a compiled encoder sees few shapes.
    """

    def __init__(
        self, tasks: Mapping[str, str], row_length: int, pad_token_id: int, *, constant_shapes: bool = False
    ) -> None:
        self.tasks = dict(tasks)
        self.row_length = row_length
        self.pad_token_id = pad_token_id
        self.constant_shapes = constant_shapes

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of the items of a `MultiTaskDataset` or a `TaskDataset`.

        Returns:
            ``example_ids``, ``task_ids``, ``segment_counts`` ``[B]``; ``input_ids``, ``position_ids``, ``segment_ids``,
            ``token_type_ids`` ``[R, L]``; ``segment_starts``, ``segment_lengths`` ``[S]``; ``labels``: task -> targets;
            ``host``: a `HostBatch`.
        """
        examples = sorted(examples, key=lambda example: example["task_id"])
        segments = [segment for example in examples for segment in example["input_ids"]]
        types = [segment for example in examples for segment in example.get("token_type_ids", ())]
        rows = pack(segments, types or None, self.row_length, self.pad_token_id, constant_shape=self.constant_shapes)
        host = HostBatch(
            task_ids=[example["task_id"] for example in examples],
            segment_counts=[len(example["input_ids"]) for example in examples],
            segment_lengths=[len(segment) for segment in segments],
            example_ids=[example["example_id"] for example in examples],
        )
        batch: dict[str, Any] = {
            "example_ids": torch.tensor(host.example_ids),
            "task_ids": torch.tensor(host.task_ids),
            "segment_counts": torch.tensor(host.segment_counts),
            **{name: tensor for name, tensor in rows._asdict().items() if tensor is not None},
            "host": host,
        }
        if "labels" in examples[0]:
            batch["labels"] = {}
            for task_id, (name, task_type) in enumerate(self.tasks.items()):
                labels = [example["labels"] for example in examples if example["task_id"] == task_id]
                if labels:
                    batch["labels"][name] = collate_targets(task_type, labels)
        return batch


class PaddedCollator:
    """Pad the segments of examples of one task to rows of one length, for models that cannot read packed rows."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of the items of a `TaskDataset`.

        Returns:
            ``example_ids``, ``segment_counts`` ``[B]``; ``input_ids``, ``attention_mask`` and, if the examples have
            them, ``token_type_ids`` ``[S, L]``: the segments of one example after those of another.
        """
        keys = [key for key in ("input_ids", "token_type_ids") if key in examples[0]]
        segments = {key: [segment for example in examples for segment in example[key]] for key in keys}
        return {
            "example_ids": torch.tensor([example["example_id"] for example in examples]),
            "segment_counts": torch.tensor([len(example["input_ids"]) for example in examples]),
            **self.tokenizer.pad(segments, return_attention_mask=True, return_tensors="pt"),
        }


def collate_targets(task_type: str, targets: Sequence[Any]) -> Tensor:
    """Return the targets of a batch from those of its examples; for a head on tokens, one after another."""
    if HEADS[task_type].unit == "token":
        targets = [unit for example in targets for unit in example]
    is_float = "float" in str(TASK_TYPES[task_type].target_type)
    return torch.tensor(targets, dtype=torch.float32 if is_float else torch.int64)


def pack_rows(lengths: Sequence[int], row_length: int) -> list[tuple[int, int]]:
    """Return the row of each segment, and the column of its first token, by best-fit decreasing.

    It takes at most 11/9 of the minimum number of rows, and 6/9 of a row. The result depends on the lengths only.

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
    *,
    constant_shape: bool = False,
) -> PackedRows:
    """Pack the token ids of segments, and their token types if there are some, into rows as wide as the fullest.

    With ``constant_shape`` they have ``row_length`` tokens, and their number is rounded up to a multiple of 8.
    """
    sizes = [len(segment) for segment in segments]
    places = pack_rows(sizes, row_length)
    rows = max(row for row, _ in places) + 1
    width = max(start + size for (_, start), size in zip(places, sizes, strict=True))
    if constant_shape:
        rows, width = -(-rows // _ROWS) * _ROWS, row_length
    numbers, in_row = [0] * len(places), [0] * rows
    # In the order of their places, so that the ids of a row's segments count up from left to right.
    for index in sorted(range(len(places)), key=lambda i: places[i]):
        in_row[places[index][0]] += 1
        numbers[index] = in_row[places[index][0]]

    lengths = torch.tensor(sizes)
    starts = torch.tensor([row * width + start for row, start in places])
    tokens = segment_tokens(starts, lengths, sum(sizes))

    def fill(values: Tensor, padding: int = 0) -> Tensor:
        flat = torch.full((rows * width,), padding)
        flat[tokens] = values
        return flat.view(rows, width)

    return PackedRows(
        input_ids=fill(_flatten(segments), pad_token_id),
        position_ids=fill(segment_tokens(torch.zeros_like(lengths), lengths, sum(sizes))),
        segment_ids=fill(torch.tensor(numbers).repeat_interleave(lengths, output_size=sum(sizes))),
        segment_starts=starts,
        segment_lengths=lengths,
        token_type_ids=None if token_types is None else fill(_flatten(token_types)),
    )


def _flatten(segments: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([token for segment in segments for token in segment])
