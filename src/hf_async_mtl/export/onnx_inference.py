"""Run an exported graph with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.collator import PaddedCollator
from ..data.dataset import TaskDataset
from ..data.tokenization import token_counts
from ..inference.logits import IndexBatches, iterate_logits, split_by_example
from ..modeling.heads import HEADS
from ..validation import ConfigurationError


def require_onnx() -> None:
    """Raise a `ConfigurationError` if a package that export needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  # torch's exporter imports it, and its own message says less
    except ImportError as error:
        raise ConfigurationError(
            f"ONNX needs packages that are not installed ({error.name}): pip install 'hf-async-mtl[onnx]'."
        ) from None


def open_session(path: Path) -> Any:
    """Return an ONNX Runtime session of a graph, on the CPU."""
    require_onnx()
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run_graph(session: Any, tasks: Sequence[str], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the logits of a padded batch, in the shapes of `OnnxModule.forward`.

    The batch has ``input_ids``, ``attention_mask``, and ``token_type_ids`` if the tokenizer returns them, ``[S, L]``.
    """
    inputs = {name: tensor.numpy() for name, tensor in batch.items()}
    # The encoder may read token types that the tokenizer does not return.
    inputs.setdefault("token_type_ids", np.zeros_like(inputs["input_ids"]))
    wanted = [item.name for item in session.get_inputs()]
    found = session.run(list(tasks), {name: inputs[name] for name in wanted})
    return {name: torch.from_numpy(logits) for name, logits in zip(tasks, found, strict=True)}


def onnx_logits(session: Any, examples: TaskDataset, tokenizer: Any, batch_size: int = 32) -> list[np.ndarray]:
    """Return the logits of each tokenized example, as `TaskType.predictions` takes them."""
    counts, name, head = token_counts(examples.rows), examples.name, HEADS[examples.task.type]

    def forward(batch: dict[str, Any]) -> dict[str, Tensor]:
        logits = run_graph(session, [name], batch)[name]
        if head.unit == "token":
            logits = logits[batch["attention_mask"].bool()]
        return {name: logits.unflatten(0, (len(batch["segment_counts"]), -1)) if head.has_choices else logits}

    # Rows of similar length share a batch, so that little is padding.
    batches = IndexBatches(np.argsort(-counts, kind="stable"), batch_size)
    found: list[np.ndarray] = [np.empty(0)] * len(examples)
    for indices, logits in iterate_logits(forward, examples, PaddedCollator(tokenizer), batches):
        for index, own in split_by_example(indices, logits[name], counts if head.unit == "token" else None):
            found[index] = own
    return found
