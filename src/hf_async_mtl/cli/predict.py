"""``hf-async-mtl predict``: predictions for the rows of a file."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm.auto import tqdm

from ..data.config import check_one_type, parse_separator
from ..data.files import read_files
from ..inference.predict import predict_rows, readable_tasks
from ..modeling.configuration_multitask import TaskConfig
from ..run import load_model
from ..tasks.registry import TASK_TYPES
from ..utils import atomic_path
from ..validation import ConfigurationError
from .output_dir import remove_empty_on_error

Predictions = Mapping[str, Mapping[str, Any]]


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    chosen = [name for group in args.task or [] for name in group]
    path = Path(args.input)
    if not path.is_file() or path.stat().st_size == 0:
        raise ConfigurationError(f"`--input` must be a file with rows; {path} is missing or empty.")
    check_one_type([path], "`--input`")
    separator = parse_separator("--separator", args.separator, [path])
    model, tokenizer = load_model(args.model)
    tasks = model.config.task_configs
    texts = {column for task in tasks.values() for column in task.input_columns}
    rows = read_files([path], "`--input`", texts, separator=separator)
    names = readable_tasks(tasks, rows, chosen)
    predictions = predict_rows(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, rows, names)
    # On a terminal only: in a log each step of the bar is a line.
    predictions = tqdm(predictions, desc="rows", total=len(rows), file=sys.stderr, disable=None)
    with _writing(args.output) as file:
        if args.format == "csv":
            _write_csv(file, predictions, tasks, names)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)


@contextmanager
def _writing(path: Path | None) -> Iterator[TextIO]:
    """Yield a file to write lines to, or stdout. A file is renamed at the end, so that a failure keeps the old one."""
    if path is None:
        yield sys.stdout
        return
    if path.is_dir():
        raise ConfigurationError(f"`--output` must be a file; {path} is a folder. Name a file in it.")
    if path.exists() and not path.is_file():
        # A pipe or a device is written to, not replaced.
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    path = path.resolve()
    with (
        remove_empty_on_error(path.parent),
        atomic_path(path, unique=True) as partial,
        partial.open("w", encoding="utf-8", newline="") as file,
    ):
        yield file


def _write_csv(
    file: TextIO, rows: Iterable[Predictions], tasks: Mapping[str, TaskConfig], names: Sequence[str]
) -> None:
    """Write a header ``<task>.label``, ``<task>.score``, ... and one line per row; lists and dictionaries are JSON."""
    columns = [(name, field) for name in names for field in TASK_TYPES[tasks[name].type].prediction_fields]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([f"{name}.{field}" for name, field in columns])
    for predictions in rows:
        values = [predictions[name][field] for name, field in columns]
        writer.writerow([json.dumps(x, ensure_ascii=False) if isinstance(x, list | dict) else x for x in values])
