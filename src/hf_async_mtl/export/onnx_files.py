"""One ONNX file with the encoder and all heads, looked at with ONNX Runtime before it is trusted."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..building.build import position_limit
from ..modeling.configuration_multitask import ConfigurationError
from ..modeling.modeling_multitask import MultiTaskModel
from .onnx_module import DenseBundle

__all__ = ["TOLERANCE", "export_onnx", "open_session", "quantize"]

TOLERANCE = 1e-4
"""Of a logit's difference to the model's, in absolute terms, or relative to the largest of its task."""


def export_onnx(model: MultiTaskModel, path: Path) -> None:
    """Write a model as an ONNX graph, with any number of rows of any length.

    The inputs are ``input_ids``, ``attention_mask`` and, where the encoder reads them, ``token_type_ids``, ``[rows,
    length]`` int64; the outputs have the names of the tasks, and `DenseBundle.forward` says their shapes. The file's
    metadata has ``tasks``: JSON, task -> type, labels, columns.

    Args:
        model: On the CPU, in float32.
        path: The file.

    Raises:
        ConfigurationError: A package is missing, the encoder cannot be made a graph, or the graph says something else
            than the model.
    """
    onnx = _packages()[0]
    dense = DenseBundle(model)
    example = _random_inputs(dense, model, rows=2, length=9)
    limit = position_limit(model.encoder)
    rows = torch.export.Dim("rows")
    length = torch.export.Dim("length") if limit is None else torch.export.Dim("length", max=limit)
    try:
        with _quiet():
            program = torch.onnx.export(
                dense,
                tuple(example.values()),
                dynamo=True,
                input_names=dense.inputs,
                output_names=dense.tasks,
                dynamic_shapes=tuple({0: rows, 1: length} for _ in dense.inputs),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConfigurationError(
            f"The encoder, a {type(model.encoder).__name__}, could not be exported: {str(error).splitlines()[0]} Try "
            "it with `attn_implementation='eager'`, or a newer torch."
        ) from error
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path))
    # Weights that lie beside the graph stay there: it could not hold more than 2 GiB.
    graph = onnx.load(str(path), load_external_data=False)
    tasks = {name: task.to_dict() for name, task in model.config.task_configs.items()}
    onnx.helper.set_model_props(graph, {"tasks": json.dumps(tasks)})
    onnx.save(graph, str(path))
    _compare(dense, model, path)


def quantize(path: Path, smaller: Path) -> None:
    """Write a graph with weights in 8 bits, and activations that are brought to 8 bits as they come.

    Args:
        path: A graph that `export_onnx` wrote.
        smaller: The file to write.
    """
    quantize_dynamic, kinds = _packages()[2:]
    with _quiet():
        quantize_dynamic(str(path), str(smaller), weight_type=kinds.QInt8)


def open_session(path: Path) -> Any:
    """The graph, ready to run on the CPU."""
    runtime = _packages()[1]
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _packages() -> tuple[Any, Any, Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter imports it, and says less of it where it is missing
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ConfigurationError(
            f"ONNX needs packages that are not installed ({error.name}): pip install 'hf-async-mtl[onnx]'."
        ) from None
    return onnx, onnxruntime, quantize_dynamic, QuantType


def _random_inputs(dense: DenseBundle, model: MultiTaskModel, rows: int, length: int) -> dict[str, Tensor]:
    """Rows of random tokens, the last one shorter than the others."""
    config = model.encoder.config
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    ids = ids.masked_fill(mask == 0, config.pad_token_id or 0)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: inputs[name] for name in dense.inputs}


@torch.no_grad()
def _compare(dense: DenseBundle, model: MultiTaskModel, path: Path) -> None:
    session = open_session(path)
    for rows, length in ((1, 5), (3, 17)):
        inputs = _random_inputs(dense, model, rows, length)
        expected = model(**inputs).logits
        found = session.run(dense.tasks, {name: tensor.numpy() for name, tensor in inputs.items()})
        for name, values in zip(dense.tasks, found, strict=True):
            # A plain call gives a row's one choice a dimension of its own.
            wanted = expected[name].numpy().reshape(values.shape)
            difference = float(np.abs(values - wanted).max())
            if not difference <= TOLERANCE * max(1.0, float(np.abs(wanted).max())):
                path.unlink()
                raise ConfigurationError(
                    f"The exported graph must answer as the model does; logits of task {name!r} differ by "
                    f"{difference:.2g}. It was not kept. Try `attn_implementation='eager'`, or another torch."
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters speak of themselves: of packages that are not needed, of names of axes, of their own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
