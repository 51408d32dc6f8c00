"""Examples of mixed tasks to one packed batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..modeling.heads import HEADS
from ..modeling.packing import pack

__all__ = ["MultiTaskCollator", "PaddedCollator"]


class MultiTaskCollator:
    """Packs the segments of mixed examples into rows.

    The examples of a batch are put in the order of their tasks: the model then reads each task's as a slice.
    ``example_ids`` comes first, because Trainer and accelerate count a batch by its first tensor.

    Args:
        tasks: Name -> type, in the order of the task ids.
        row_length: The longest row, in tokens.
        pad_token_id: What fills a row.
    """

    def __init__(self, tasks: Mapping[str, str], row_length: int, pad_token_id: int) -> None:
        self.tasks = dict(tasks)
        self.row_length = row_length
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            examples: Items of a `TaskMixture` or an `EncodedTask`.

        Returns:
            ``example_ids``, ``task_ids``, ``segment_counts`` ``[B]``; ``input_ids``, ``position_ids``, ``segment_ids``,
            ``token_type_ids`` ``[R, L]``; ``segment_starts``, ``segment_lengths`` ``[S]``; ``labels``: task -> targets.
        """
        examples = sorted(examples, key=lambda example: example["task_id"])
        segments = [segment for example in examples for segment in example["input_ids"]]
        types = None
        if "token_type_ids" in examples[0]:
            types = [segment for example in examples for segment in example["token_type_ids"]]
        rows = pack(segments, types, self.row_length, self.pad_token_id)
        batch: dict[str, Any] = {
            "example_ids": torch.tensor([example["example_id"] for example in examples]),
            "task_ids": torch.tensor([example["task_id"] for example in examples]),
            "segment_counts": torch.tensor([len(example["input_ids"]) for example in examples]),
            "input_ids": rows.input_ids,
            "position_ids": rows.position_ids,
            "segment_ids": rows.segment_ids,
            "segment_starts": rows.segment_starts,
            "segment_lengths": rows.segment_lengths,
        }
        if rows.token_type_ids is not None:
            batch["token_type_ids"] = rows.token_type_ids
        if "labels" in examples[0]:
            batch["labels"] = {}
            for task_id, (name, task_type) in enumerate(self.tasks.items()):
                labels = [example["labels"] for example in examples if example["task_id"] == task_id]
                if labels:
                    batch["labels"][name] = HEADS[task_type].collate_labels(labels)
        return batch


class PaddedCollator:
    """Pad the segments of examples of one task to rows of one length, for models that cannot read packed rows.

    Args:
        tokenizer: The tokenizer of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: Items of an `EncodedTask`.

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
