"""The arguments of the command line. Nothing heavy is imported: ``--help`` and errors of usage answer at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import __version__

_MODEL: dict[str, Any] = {"metavar": "MODEL", "help": "a folder or a Hub id"}


def build_parser() -> argparse.ArgumentParser:
    """Make the parser. The name of the chosen command, which is that of its module, comes out as ``command``."""
    parser = argparse.ArgumentParser(
        prog="hf-async-mtl", description="Multi-task fine-tuning of text encoders with asynchronous convergence."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")

    train = commands.add_parser("train", help="train a task set")
    train.add_argument("config", type=Path, metavar="CONFIG.yaml")
    _add_run_options(train)
    _add_overrides(train)

    demo = commands.add_parser("demo", help="generate a small task set and train it")
    demo.add_argument("--plain", action="store_true", help="plain multi-task training of the same tasks, to compare")
    _add_run_options(demo)

    evaluate = commands.add_parser("evaluate", help="print a model's metrics as JSON")
    evaluate.add_argument("model", **_MODEL)
    evaluate.add_argument("config", type=Path, metavar="CONFIG.yaml")
    evaluate.add_argument("--split", default="test", choices=["train", "validation", "test"])
    _add_overrides(evaluate)

    _add_predict(commands.add_parser("predict", help="write predictions for the rows of a file"))
    _add_export(commands.add_parser("export", help="write a model for other engines"))

    report = commands.add_parser("report", help="print the table and draw the plots of a run")
    report.add_argument("run", type=Path, metavar="RUN_DIR")
    report.add_argument("--html", action="store_true", help="also write a page, RUN_DIR/report.html")

    push = commands.add_parser("push", help="upload a finished run to the Hub")
    push.add_argument("run", type=Path, metavar="RUN_DIR")
    push.add_argument("repository", metavar="USER/NAME")
    push.add_argument("--private", action="store_true", help="if the repository is new")
    push.add_argument("--revision", help="default: main")
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="key.path=value", help="override a key; the value is YAML"
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="the folder of the run; must be new or empty")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="CHECKPOINT",
        help="continue from this checkpoint; without a value, from the newest complete one",
    )


def _add_predict(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("model", **_MODEL)
    predict.add_argument("--input", required=True, metavar="FILE", help="JSON lines, CSV, TSV or Parquet")
    predict.add_argument("--separator", metavar="CHARACTER", help="of the cells of a CSV file; default: a comma")
    predict.add_argument(
        "--task", action="append", metavar="NAME", nargs="+", help="default: all tasks whose columns the rows have"
    )
    predict.add_argument("--output", type=Path, metavar="FILE", help="default: stdout")
    predict.add_argument("--format", default="jsonl", choices=["jsonl", "csv"])


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("model", **_MODEL)
    export.add_argument("--onnx", action="store_true", required=True, help="an ONNX graph with all heads")
    export.add_argument("--output", type=Path, default=Path("onnx"), metavar="DIR", help="default: onnx")
    export.add_argument("--int8", action="store_true", help="a second file, with weights in 8 bits")
