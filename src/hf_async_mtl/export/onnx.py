"""Export the encoder and all heads as one ONNX graph, compare it with the model, and run it with ONNX Runtime."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..building.build import position_limit
from ..inference.logits import IndexBatches, iterate_logits
from ..modeling.modeling_multitask import MultiTaskModel
from ..validation import ConfigurationError
from .onnx_module import OnnxModule

TOLERANCE = 1e-4
"""Largest difference of a logit of the graph to that of the model, absolute or relative to the largest of its task."""
_LENGTHS = (5, 17, 3, 17)
"""Lengths of the random texts on which the graph is compared."""


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


def export_onnx(model: MultiTaskModel, path: Path) -> None:
    """Write a model, on the CPU and in float32, as an ONNX graph with any number of rows of any length.

    The inputs are ``input_ids``, ``attention_mask`` and, if the encoder reads them, ``token_type_ids``, ``[rows,
    length]`` int64; the outputs have the names of the tasks and the shapes of `OnnxModule.forward`. The metadata of the
    file have ``tasks``: JSON, task -> type, labels, columns.

    Raises:
        ConfigurationError: A package is missing, the encoder cannot be exported, or the logits of the graph are not
            those of the model.
    """
    require_onnx()
    import onnx

    module = OnnxModule(model)
    program = _export(module, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path))
    # Weights beside the graph stay there: one file cannot hold more than 2 GiB.
    graph = onnx.load(str(path), load_external_data=False)
    tasks = {name: task.to_dict() for name, task in model.config.task_configs.items()}
    onnx.helper.set_model_props(graph, {"tasks": json.dumps(tasks)})
    onnx.save(graph, str(path))
    try:
        _compare(module.tasks, model, open_session(path))
    except ConfigurationError:
        path.unlink()
        raise


def quantize(path: Path, smaller: Path) -> None:
    """Write an exported graph with weights in 8 bits; activations are quantized when it runs."""
    require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(str(path), str(smaller), weight_type=QuantType.QInt8)


def _export(module: OnnxModule, model: MultiTaskModel) -> Any:
    example = _collate(_random_texts(model, (9, 4)))
    limit = position_limit(model.encoder)
    rows = torch.export.Dim("rows")
    length = torch.export.Dim("length") if limit is None else torch.export.Dim("length", max=limit)
    try:
        with _quiet():
            return torch.onnx.export(
                module,
                tuple(example[name] for name in module.inputs),
                dynamo=True,
                input_names=module.inputs,
                output_names=module.tasks,
                dynamic_shapes=tuple({0: rows, 1: length} for _ in module.inputs),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConfigurationError(
            f"The encoder, a {type(model.encoder).__name__}, could not be exported: {str(error).splitlines()[0]} Try "
            "it with `attn_implementation='eager'`, or a newer torch."
        ) from error


def _random_texts(model: MultiTaskModel, lengths: Sequence[int]) -> Any:
    generator = torch.Generator().manual_seed(0)
    size = model.encoder.config.vocab_size
    texts = [torch.randint(size, (length,), generator=generator) for length in lengths]
    return [{"example_id": index, "input_ids": ids} for index, ids in enumerate(texts)]


def _collate(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    ids = [example["input_ids"] for example in examples]
    padded = pad_sequence(ids, batch_first=True)
    return {
        "example_ids": torch.tensor([example["example_id"] for example in examples]),
        "input_ids": padded,
        "attention_mask": pad_sequence([torch.ones_like(text) for text in ids], batch_first=True),
        "token_type_ids": torch.zeros_like(padded),
    }


def _compare(tasks: Sequence[str], model: MultiTaskModel, session: Any) -> None:
    texts = _random_texts(model, _LENGTHS)
    batches = IndexBatches(len(texts), batch_size=3)
    by_model = iterate_logits(lambda batch: model(**batch).logits, texts, _collate, batches)
    by_graph = iterate_logits(lambda batch: run_graph(session, tasks, batch), texts, _collate, batches)
    for (_, expected), (_, found) in zip(by_model, by_graph, strict=True):
        for name in tasks:
            # A plain call gives the only choice of a row its own dimension.
            wanted = expected[name].reshape(found[name].shape)
            difference = float((found[name] - wanted).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
                raise ConfigurationError(
                    f"The exported graph must give the logits of the model; those of task {name!r} differ by "
                    f"{difference:.2g}. It was not kept. Try `attn_implementation='eager'`, or another torch."
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which log optional packages, names of axes and their own deprecations."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript", "onnx_ir", ""))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


# Running a graph


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
