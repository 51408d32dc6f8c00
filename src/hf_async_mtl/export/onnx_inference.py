"""Run an exported graph over the rows of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.collator import PaddedCollator
from ..data.dataset import TaskDataset
from ..data.tokenization import token_counts
from ..inference.logits import IndexBatches, iterate_logits, split_by_example
from ..modeling.heads import HEADS

__all__ = ["onnx_logits"]


def onnx_logits(session: Any, rows: TaskDataset, tokenizer: Any, batch_size: int = 32) -> list[np.ndarray]:
    """Return the logits of each example, as `TaskType.predictions` takes them.

    Args:
        session: An ONNX Runtime session of an exported multi-task model.
        rows: Encoded examples of one of its tasks.
        tokenizer: The tokenizer of the model.
        batch_size: Examples of a batch.
    """
    counts = token_counts(rows.rows)
    units = counts if HEADS[rows.task.type].unit == "token" else None
    # Rows of similar length share a batch, so that little is padding.
    batches = IndexBatches(np.argsort(-counts, kind="stable"), batch_size)
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    for indices, logits in iterate_logits(
        lambda batch: {rows.name: run_graph(session, rows, batch)}, rows, PaddedCollator(tokenizer), batches
    ):
        for index, own in split_by_example(indices, logits[rows.name], units):
            found[index] = own
    return found


def run_graph(session: Any, rows: TaskDataset, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a padded batch: ``[U, C]`` for tokens, ``[B, n]`` for choices, else ``[B, ...]``."""
    inputs = {name: tensor.numpy() for name, tensor in batch.items()}
    # The encoder reads token types, and the tokenizer does not return them.
    inputs.setdefault("token_type_ids", np.zeros_like(inputs["input_ids"]))
    wanted = {item.name for item in session.get_inputs()}
    logits = torch.from_numpy(session.run([rows.name], {name: x for name, x in inputs.items() if name in wanted})[0])
    if HEADS[rows.task.type].unit == "token":
        return logits[batch["attention_mask"].bool()]
    if HEADS[rows.task.type].has_choices:
        return logits.unflatten(0, (len(batch["segment_counts"]), -1))
    return logits
