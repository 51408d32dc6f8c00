"""An exported graph over a task's rows: the logits that metrics are computed on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.decoding import token_counts
from ..data.mixing import EncodedTask
from ..model.heads import HEADS

__all__ = ["onnx_logits"]


def onnx_logits(session: Any, rows: EncodedTask, pad_token_id: int, batch_size: int = 32) -> list[np.ndarray]:
    """The logits of each example, as `hf_async_mtl.data.decoding.predictions` takes them one by one.

    Args:
        session: An ONNX Runtime session of a bundle.
        rows: Encoded examples of one of its tasks.
        pad_token_id: Of the tokenizer.
        batch_size: Examples at once.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    wanted = {item.name for item in session.get_inputs()}
    per_token = HEADS[rows.task.type].unit == "token"
    # Rows of a length share a batch.
    places = np.argsort(-token_counts(rows.rows), kind="stable")
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        batch = rows.rows[chosen]
        counts = [len(segments) for segments in batch["input_ids"]]
        segments = [segment for example in batch["input_ids"] for segment in example]
        shape = len(segments), max(map(len, segments))
        inputs = {
            "input_ids": np.full(shape, pad_token_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
            "token_type_ids": np.zeros(shape, dtype=np.int64),
        }
        types = [segment for example in batch.get("token_type_ids", []) for segment in example]
        for row, segment in enumerate(segments):
            inputs["input_ids"][row, : len(segment)] = segment
            inputs["attention_mask"][row, : len(segment)] = 1
            if types:
                inputs["token_type_ids"][row, : len(segment)] = types[row]
        (logits,) = session.run([rows.name], {name: x for name, x in inputs.items() if name in wanted})
        first = 0
        for place, count in zip(chosen, counts, strict=True):
            own = logits[first : first + count]
            if per_token:
                own = np.concatenate([own[i, : len(segments[first + i])] for i in range(count)])
            elif rows.task.type != "multiple_choice":
                own = own[0]
            found[place] = own
            first += count
    return found
