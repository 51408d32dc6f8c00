"""`hf-async-mtl predict`: predictions for the rows of a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..data.config import READERS
from ..data.reading import read_file
from ..inference.predict import predict_rows, readable_tasks
from ..run import load_model
from ..validation import ConfigurationError
from .prediction_files import to_csv, to_json_lines, writing


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    chosen = [name for group in args.task or [] for name in group]
    path = Path(args.input)
    if not path.is_file() or path.stat().st_size == 0:
        raise ConfigurationError(f"`--input` must be a file with rows; {path} is missing or empty.")
    if path.suffix not in READERS:
        raise ConfigurationError(f"`--input` must be a file of type {', '.join(READERS)}; found {path.name}.")
    model, tokenizer = load_model(args.model)
    rows, tasks = read_file(path, "`--input`"), model.config.task_configs
    names = readable_tasks(tasks, rows, chosen)
    predictions = predict_rows(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, rows, names)
    # On a terminal only: in a log each step of the bar is a line.
    predictions = tqdm(predictions, desc="rows", total=len(rows), file=sys.stderr, disable=None)
    with writing(args.output) as file:
        file.writelines(to_csv(predictions, tasks, names) if args.format == "csv" else to_json_lines(predictions))
