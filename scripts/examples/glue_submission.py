"""Write the files that the GLUE server takes, from a model with tasks named as in GLUE.

    python scripts/examples/glue_submission.py MODEL OUTPUT [--data nyu-mll/glue] [--task NAME ...]

A file has the columns ``index`` and ``prediction``, in the order of its test set. Wang et al., "GLUE: A Multi-Task
Benchmark and Analysis Platform for Natural Language Understanding" (2019), arXiv:1804.07461.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from hf_async_mtl import TaskConfig
from hf_async_mtl.inference.predict import predict_rows, readable_tasks
from hf_async_mtl.modeling.configuration_multitask import ConfigurationError
from hf_async_mtl.run import load_model
from hf_async_mtl.tasks.presets import PRESETS

FILES = {
    "CoLA": ("cola", "cola", "test"),
    "SST-2": ("sst2", "sst2", "test"),
    "MRPC": ("mrpc", "mrpc", "test"),
    "STS-B": ("stsb", "stsb", "test"),
    "QQP": ("qqp", "qqp", "test"),
    "MNLI-m": ("mnli", "mnli", "test_matched"),
    "MNLI-mm": ("mnli", "mnli", "test_mismatched"),
    "QNLI": ("qnli", "qnli", "test"),
    "RTE": ("rte", "rte", "test"),
    "WNLI": ("wnli", "wnli", "test"),
    "AX": ("mnli", "ax", "test"),
}
"""File -> the task that predicts, and the configuration and split of the data."""
# The server takes the names of classes for these tasks, and their indices for the others.
WITH_NAMES = ("mnli", "qnli", "rte")


def main(argv: Sequence[str] | None = None) -> int:
    """Write a file for each test set that the model has a task for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder or a Hub id")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="a folder")
    parser.add_argument("--data", default="nyu-mll/glue", help="a Hub id, or a folder with <name>/<split>.jsonl")
    parser.add_argument("--task", nargs="+", metavar="NAME", help="default: all")
    args = parser.parse_args(argv)
    model, tokenizer = load_model(args.model)
    tasks = model.config.task_configs
    wanted = {file: where for file, where in FILES.items() if where[0] in (args.task or tasks) and where[0] in tasks}
    sets = {file: rows for file, (_, name, split) in wanted.items() if (rows := find_rows(args.data, name, split))}
    if not sets:
        raise SystemExit(f"No test set of a task of the model ({', '.join(tasks)}) was found in {args.data}.")
    for file, rows in sets.items():
        readable_tasks(tasks, rows, [FILES[file][0]])
    args.output.mkdir(parents=True, exist_ok=True)
    for file, rows in sets.items():
        task = FILES[file][0]
        predictions = (found[task] for found in predict_rows(model, tokenizer, rows, [task]))
        with (args.output / f"{file}.tsv").open("w", encoding="utf-8") as out:
            out.writelines(lines_of(task, tasks[task], rows, predictions))
    print(f"The files of {', '.join(sets)} are in {args.output}.")
    if missing := [file for file in FILES if file not in sets]:
        print(f"The server also takes: {', '.join(missing)}.")
    return 0


def find_rows(source: str, name: str, split: str) -> Dataset | None:
    """Return a test set from the Hub or a folder, or ``None`` where the folder does not have it."""
    if not Path(source).is_dir():
        return load_dataset(source, name, split=split)
    path = Path(source, name, f"{split}.jsonl")
    return load_dataset("json", data_files=str(path), split="train") if path.is_file() else None


def lines_of(name: str, task: TaskConfig, rows: Dataset, predictions: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a file; the index is the column ``idx`` of the test set, or the number of the row."""
    yield "index\tprediction\n"
    indices = rows["idx"] if "idx" in rows.column_names else range(len(rows))
    for index, prediction in zip(indices, predictions, strict=True):
        yield f"{index}\t{to_glue(name, task, prediction)}\n"


def to_glue(name: str, task: TaskConfig, prediction: Mapping[str, Any]) -> str:
    """Return a prediction as the server takes it.

    Raises:
        ConfigurationError: The type or the labels of the task are not those of GLUE.

    Examples:
        >>> to_glue("rte", TaskConfig("classification", ["a", "b"]), {"label": 1})
        'not_entailment'
        >>> to_glue("stsb", TaskConfig("regression", ["a", "b"]), {"value": 5.25})
        '5.000'
    """
    preset = PRESETS[f"glue/{name}"]
    if task.type != preset["type"]:
        raise ConfigurationError(f"Task {name!r} must be of type {preset['type']}, as in GLUE; found {task.type}.")
    if name == "stsb":
        # The server refuses scores beyond the scale.
        return f"{min(max(prediction['value'], 0.0), 5.0):.3f}"
    names, label = preset["label_names"], str(prediction["label"])
    if label not in (*names, *map(str, range(len(names)))):
        raise ConfigurationError(
            f"Task {name!r} must have the labels of GLUE ({', '.join(names)}) or their indices; found {label!r}. "
            f"Train it with `preset: glue/{name}`."
        )
    index = int(label) if label.isdigit() else names.index(label)
    return names[index] if name in WITH_NAMES else str(index)


if __name__ == "__main__":
    sys.exit(main())
