"""An exported graph over a task's rows: the logits that metrics are computed on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.mixing import EncodedTask
from ..data.tokenization import token_counts
from ..modeling.heads import HEADS

__all__ = ["onnx_logits"]


def onnx_logits(session: Any, rows: EncodedTask, tokenizer: Any, batch_size: int = 32) -> list[np.ndarray]:
    """The logits of each example, as `TaskType.predictions` takes them.

    Args:
        session: An ONNX Runtime session of a bundle.
        rows: Encoded examples of one of its tasks.
        tokenizer: The bundle's.
        batch_size: Examples at once.
    """
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    wanted = {item.name for item in session.get_inputs()}
    per_token = HEADS[rows.task.type].unit == "token"
    # Rows of a length share a batch.
    places = np.argsort(-token_counts(rows.rows), kind="stable")
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        examples = rows.__getitems__(chosen.tolist())
        counts = [len(example["input_ids"]) for example in examples]
        flat = {
            key: [segment for example in examples for segment in example[key]]
            for key in ("input_ids", "token_type_ids")
            if key in examples[0]
        }
        inputs = dict(tokenizer.pad(flat, return_attention_mask=True, return_tensors="np"))
        # Of an encoder that knows types, and a tokenizer that does not.
        inputs.setdefault("token_type_ids", np.zeros_like(inputs["input_ids"]))
        mask = inputs["attention_mask"].astype(bool)
        (logits,) = session.run([rows.name], {name: x for name, x in inputs.items() if name in wanted})
        first = 0
        for place, count in zip(chosen, counts, strict=True):
            own = logits[first : first + count]
            if per_token:
                own = own[mask[first : first + count]]
            elif not HEADS[rows.task.type].has_choices:
                own = own[0]
            found[place] = own
            first += count
    return found
