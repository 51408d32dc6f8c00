"""The files that the server of GLUE wants, from a model that has tasks named as GLUE's.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding" (2019),
arXiv:1804.07461. A file has the columns ``index`` and ``prediction``, in the order of the test set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..data.loading import READERS, DataSource, load_split, read_file
from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from ..tasks.presets import PRESETS

__all__ = ["FILES", "SubmissionFile", "find_rows", "lines_of", "prediction"]


@dataclass(frozen=True)
class SubmissionFile:
    """One file of a submission: its name, the task that answers, and the test set that it is about."""

    name: str
    task: str
    data: str
    split: str = "test"


FILES = (
    SubmissionFile("CoLA.tsv", "cola", "cola"),
    SubmissionFile("SST-2.tsv", "sst2", "sst2"),
    SubmissionFile("MRPC.tsv", "mrpc", "mrpc"),
    SubmissionFile("STS-B.tsv", "stsb", "stsb"),
    SubmissionFile("QQP.tsv", "qqp", "qqp"),
    SubmissionFile("MNLI-m.tsv", "mnli", "mnli", "test_matched"),
    SubmissionFile("MNLI-mm.tsv", "mnli", "mnli", "test_mismatched"),
    SubmissionFile("QNLI.tsv", "qnli", "qnli"),
    SubmissionFile("RTE.tsv", "rte", "rte"),
    SubmissionFile("WNLI.tsv", "wnli", "wnli"),
    SubmissionFile("AX.tsv", "mnli", "ax"),
)
# The server takes names of classes for these, and their numbers for the others.
_IN_WORDS = ("mnli", "qnli", "rte")


def find_rows(source: str, file: SubmissionFile) -> Dataset | None:
    """The rows of a test set.

    Args:
        source: A folder with ``<data>/<split>.jsonl``, ``.csv`` or ``.parquet``; else a Hub id with such configurations
            and splits, as ``nyu-mll/glue``.
        file: Which.

    Returns:
        The rows; None where the folder has no such file.

    Raises:
        ConfigurationError: They cannot be read.
    """
    if not Path(source).is_dir():
        return load_split(file.task, "test", file.split, DataSource({}, hub=source, name=file.data))
    for ending in READERS:
        path = Path(source, file.data, file.split + ending)
        if path.is_file():
            return read_file(path, f"The {file.split} split of {file.data}")
    return None


def prediction(name: str, task: TaskConfig, answer: dict[str, Any]) -> str:
    """An answer of `predict_rows`, as the server wants it.

    Args:
        name: The task's name in GLUE.
        task: The task.
        answer: ``{"label": ...}`` or ``{"value": ...}``.

    Raises:
        ConfigurationError: The task's type or labels are not GLUE's.

    Examples:
        >>> prediction("rte", TaskConfig("classification", ["a", "b"]), {"label": 1})
        'not_entailment'
        >>> prediction("stsb", TaskConfig("regression", ["a", "b"]), {"value": 5.25})
        '5.000'
    """
    preset = PRESETS[f"glue/{name}"]
    if task.type != preset["type"]:
        raise ConfigurationError(f"Task {name!r} must be of type {preset['type']}, as in GLUE; found {task.type}.")
    if name == "stsb":
        # Scores beyond the scale are refused by the server.
        return f"{min(max(answer['value'], 0.0), 5.0):.3f}"
    labels: list[str] = preset["labels"]
    label = str(answer["label"])
    if label.isdigit() and int(label) < len(labels):
        place = int(label)
    elif label in labels:
        place = labels.index(label)
    else:
        raise ConfigurationError(
            f"Task {name!r} must have the labels of GLUE ({', '.join(labels)}) or their numbers; found {label!r}. "
            f"Train it with `preset: glue/{name}`."
        )
    return labels[place] if name in _IN_WORDS else str(place)


def lines_of(file: SubmissionFile, task: TaskConfig, rows: Dataset, answers: Iterator[dict[str, Any]]) -> Iterator[str]:
    """The lines of a file.

    Args:
        file: Which.
        task: The task that answers.
        rows: The test set; its ``idx`` is the index, where there is one.
        answers: Of `predict_rows`, one a row.
    """
    yield "index\tprediction\n"
    indices = rows["idx"] if "idx" in rows.column_names else range(len(rows))
    for index, answer in zip(indices, answers, strict=True):
        yield f"{index}\t{prediction(file.task, task, answer[file.task])}\n"
