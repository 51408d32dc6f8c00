"""Write predictions to a file, one line per row, as they come."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..modeling.configuration_multitask import TaskConfig
from ..tasks.registry import TASK_TYPES
from ..utils import atomic_path
from ..validation import ConfigurationError
from .output_dir import remove_empty_on_error

Predictions = Mapping[str, Mapping[str, Any]]


@contextmanager
def writing(path: Path | None) -> Iterator[TextIO]:
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


def to_json_lines(rows: Iterable[Predictions]) -> Iterator[str]:
    """Yield one JSON object per row: task -> prediction."""
    for predictions in rows:
        yield json.dumps(predictions, ensure_ascii=False) + "\n"


def to_csv(rows: Iterable[Predictions], tasks: Mapping[str, TaskConfig], names: Sequence[str]) -> Iterator[str]:
    """Yield a header ``<task>.label``, ``<task>.score``, ... and one line per row; lists and dictionaries are JSON."""
    columns = [(name, field) for name in names for field in TASK_TYPES[tasks[name].type].prediction_fields]
    yield _csv_line([f"{name}.{field}" for name, field in columns])
    for predictions in rows:
        yield _csv_line([_csv_value(predictions[name][field]) for name, field in columns])


def _csv_value(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _csv_line(values: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
