"""`hf-async-mtl export`: a bundle as an ONNX file, and what is lost where its weights are made smaller."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.table import Table

from ..building.lora import merge_lora
from ..data.dataset import TaskDataset
from ..data.loading import load_splits
from ..data.tokenization import encode
from ..export.onnx_files import export_onnx, open_session, quantize
from ..export.onnx_inference import onnx_logits
from ..metrics import compute
from ..modeling.configuration_multitask import ConfigurationError
from ..modeling.modeling_multitask import MultiTaskModel
from ..report.tables import render
from ..run import load_model
from ..tasks.registry import TASK_TYPES
from .config_file import load_config

__all__ = ["add_export"]


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    export = commands.add_parser("export", help="write a model for other engines")
    export.add_argument("model", metavar="MODEL", help="a folder or a Hub id")
    export.add_argument("--onnx", action="store_true", required=True, help="an ONNX graph with all heads")
    export.add_argument("--output", type=Path, default=Path("onnx"), metavar="DIR", help="default: onnx")
    export.add_argument("--int8", action="store_true", help="a second file, with weights in 8 bits")
    export.add_argument(
        "--evaluate", type=Path, metavar="CONFIG.yaml", help="print each task's metric with each of the files"
    )
    export.add_argument("--split", default="test", choices=["validation", "test"])
    export.set_defaults(command=_export)


def _export(args: argparse.Namespace) -> None:
    model, tokenizer = load_model(args.model)
    sets = {} if args.evaluate is None else _rows(model, tokenizer, args.evaluate, args.split)
    if model.config.lora is not None:
        # An engine has no use for two layers where one gives the same.
        merge_lora(model)
    files = [args.output / "model.onnx"]
    # A bundle that was stored in half precision too: few engines compute in it.
    export_onnx(model.float(), files[0])
    if args.int8:
        files.append(args.output / "model.int8.onnx")
        quantize(*files)
    tokenizer.save_pretrained(args.output)
    for file in files:
        # A large graph has its weights beside it.
        size = sum(part.stat().st_size for part in args.output.glob(f"{file.name}*"))
        print(f"{file}: {size / 2**20:.1f} MiB")
    if sets:
        print(render(_table(files, sets, tokenizer), sys.stdout))


def _rows(model: MultiTaskModel, tokenizer: object, path: Path, split: str) -> dict[str, TaskDataset]:
    """The rows to measure on; a task of the configuration that the model lacks, or without the split, is left out."""
    config, found = load_config(path), {}
    for index, (name, task) in enumerate(model.config.task_configs.items()):
        if name not in config.sources:
            continue
        splits = load_splits(name, task, config.sources[name], config.data_seed, has_teacher=True)
        if split in splits:
            rows = encode(splits[split], name, task, tokenizer, task.max_length or model.config.max_length)
            found[name] = TaskDataset(name, index, task, rows)
    if not found:
        raise ConfigurationError(f"No task of the model has a {split} split with labels in {path}.")
    return found


def _table(files: list[Path], sets: dict[str, TaskDataset], tokenizer: object) -> Table:
    sessions = [open_session(file) for file in files]
    table = Table(box=None, header_style="bold")
    table.add_column("task")
    table.add_column("metric")
    for file in files:
        table.add_column(file.name, justify="right")
    if len(files) == 2:
        table.add_column("change", justify="right")
    for name, rows in sets.items():
        values = [_value(session, rows, tokenizer) for session in sessions]
        change = [f"{values[1] - values[0]:+.4f}"] if len(files) == 2 else []
        table.add_row(name, rows.task.monitored, *(f"{value:.4f}" for value in values), *change)
    return table


def _value(session: object, rows: TaskDataset, tokenizer: object) -> float:
    task, kind = rows.task, TASK_TYPES[rows.task.type]
    predictions = kind.predictions(task, onnx_logits(session, rows, tokenizer), rows.rows)
    references = kind.references(task, rows.rows)
    return compute([task.monitored], task.type, predictions, references, task.label_names)[task.monitored]
