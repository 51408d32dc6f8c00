"""`hf-async-mtl predict`: the answers to a file's rows, in constant memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.config import READERS
from ..data.loading import read_file
from ..inference.predict import answerable, predict_rows
from ..modeling.configuration_multitask import ConfigurationError
from ..modeling.modeling_multitask import MultiTaskModel
from ..run import load_model
from .prediction_files import to_csv, to_json_lines, writing

__all__ = ["add_predict"]


def add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    predict = commands.add_parser("predict", help="answer for the rows of a file")
    predict.add_argument("model", metavar="MODEL", help="a folder or a Hub id")
    predict.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="JSON lines, CSV or Parquet",
    )
    predict.add_argument("--task", action="append", metavar="NAME", nargs="+", help="default: all that the rows fit")
    predict.add_argument("--output", type=Path, metavar="FILE", help="default: stdout")
    predict.add_argument("--format", default="jsonl", choices=["jsonl", "csv"])
    predict.set_defaults(command=_predict)


def _predict(args: argparse.Namespace) -> None:
    chosen = [name for group in args.task or [] for name in group]
    path = Path(args.input)
    if not path.is_file() or path.stat().st_size == 0:
        raise ConfigurationError(f"`--input` must be a file with rows; {path} is missing or empty.")
    if path.suffix not in READERS:
        raise ConfigurationError(f"`--input` must be a file of type {', '.join(READERS)}; found {path.name}.")
    model, tokenizer = load_model(args.model)
    rows, tasks = read_file(path, "`--input`"), model.config.task_configs
    names = answerable(tasks, rows, chosen or None)
    answers = predict_rows(_on_device(model), tokenizer, rows, names)
    answers = _with_bar(answers, len(rows), "rows")
    with writing(args.output) as file:
        file.writelines(to_csv(answers, tasks, names) if args.format == "csv" else to_json_lines(answers))


def _on_device(model: MultiTaskModel) -> MultiTaskModel:
    moved: MultiTaskModel = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return moved


def _with_bar(answers: Iterator[dict[str, Any]], total: int, what: str) -> Iterator[dict[str, Any]]:
    # On a terminal alone: in a log each of its steps is a line.
    yield from tqdm(answers, desc=what, total=total, file=sys.stderr, disable=None)
