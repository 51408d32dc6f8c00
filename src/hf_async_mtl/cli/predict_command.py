"""`hf-async-mtl predict`: the answers to a file's rows, in constant memory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.loading import READERS, read_file
from ..inference.predict import answerable, predict_rows
from ..modeling.configuration_multitask import ConfigurationError
from ..modeling.modeling_multitask import MultiTaskModel
from ..run import load_model
from .glue_submission import FILES, find_rows, lines_of
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
        help="JSON lines, CSV or Parquet; with --format glue a folder or Hub id",
    )
    predict.add_argument("--task", action="append", metavar="NAME", nargs="+", help="default: all that the rows fit")
    predict.add_argument("--output", type=Path, metavar="FILE", help="default: stdout; with --format glue a folder")
    predict.add_argument(
        "--format", default="jsonl", choices=["jsonl", "csv", "glue"], help="glue: the files that its server wants"
    )
    predict.set_defaults(command=_predict)


def _predict(args: argparse.Namespace) -> None:
    chosen = [name for group in args.task or [] for name in group]
    if args.format == "glue":
        _submit(args, chosen)
        return
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


def _submit(args: argparse.Namespace, chosen: Collection[str]) -> None:
    if args.output is None:
        raise ConfigurationError("`--format glue` writes a file for each test set; name a folder with --output.")
    model, tokenizer = load_model(args.model)
    tasks = model.config.task_configs
    files = [file for file in FILES if file.task in tasks and (not chosen or file.task in chosen)]
    if not files:
        raise ConfigurationError(
            f"`--format glue` needs tasks that are named as GLUE's ({', '.join({file.task: 0 for file in FILES})}); "
            f"the model has {', '.join(tasks)}."
        )
    found = {file: rows for file in files if (rows := find_rows(args.input, file)) is not None}
    if not found:
        raise ConfigurationError(
            "`--input` must be a Hub id such as nyu-mll/glue, or a folder with "
            f"{files[0].data}/{files[0].split}.jsonl; there is none in {args.input}."
        )
    for file, rows in found.items():
        answerable(tasks, rows, [file.task])
    _on_device(model)
    for file, rows in found.items():
        answers = _with_bar(predict_rows(model, tokenizer, rows, [file.task]), len(rows), file.name)
        with writing(args.output / file.name) as out:
            out.writelines(lines_of(file, tasks[file.task], rows, answers))
    print(f"{len(found)} files are in {args.output}: {', '.join(file.name for file in found)}")
    missing = [file.name for file in FILES if file not in found]
    if missing:
        print(f"The server wants these too, which this model or this data does not have: {', '.join(missing)}")


def _on_device(model: MultiTaskModel) -> MultiTaskModel:
    moved: MultiTaskModel = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return moved


def _with_bar(answers: Iterator[dict[str, Any]], total: int, what: str) -> Iterator[dict[str, Any]]:
    # On a terminal alone: in a log each of its steps is a line.
    yield from tqdm(answers, desc=what, total=total, file=sys.stderr, disable=None)
