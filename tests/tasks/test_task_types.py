"""The registry of task types: each entry fits its head and the metrics, and a further type needs nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands_here import done
from datasets import Dataset
from task_sets import task_set_config, write_config, write_data, write_rows
from tiny import tiny_encoder
from torch import Tensor

from hf_async_mtl import MultiTaskModel, TaskConfig
from hf_async_mtl.metrics import METRICS
from hf_async_mtl.modeling.heads import HEADS, Head
from hf_async_mtl.modeling.losses import categorical_kl
from hf_async_mtl.modeling.packing import Layout
from hf_async_mtl.tasks.base import Target, TaskType
from hf_async_mtl.tasks.classification import Classification
from hf_async_mtl.tasks.labels import label_encoder
from hf_async_mtl.tasks.registry import TASK_TYPES


@pytest.mark.parametrize("name", TASK_TYPES)
def test_metrics_of_a_type_exist(name: str) -> None:
    """Bug: a type names a metric that is not there, or its head's default metric does not fit it."""
    kind = TASK_TYPES[name]
    assert {*kind.metrics, *kind.metric_aliases.values()} <= METRICS.keys()
    assert kind.default_metric in kind.metrics


@pytest.mark.parametrize("name", TASK_TYPES)
def test_targets_are_encoded_as_their_type_says(name: str) -> None:
    """Bug: a type that is looked up by name gives another one's columns, and labels become floats."""
    kind = TASK_TYPES[name]
    assert kind.features(with_labels=True)["labels"] == kind.target_type
    assert kind.target_type in ("int64", "float64", ["float32"], ["int64"], [["int64"]])


class ExpectedClassHead(Head):
    """Ordered classes: the squared distance of the expected class from the label. Labels ``[B]``."""

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        classes = torch.arange(logits.shape[-1], device=logits.device)
        return ((logits.softmax(-1) * classes).sum(-1) - labels).square()

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        return categorical_kl(logits, teacher, temperature)


class Ordinal(TaskType):
    """One of several ordered classes; a prediction is the class nearest to the expected one."""

    hub_name = "text-classification"
    metrics = ("accuracy", "macro_f1")
    default_metric = "accuracy"
    prediction_fields = ("grade",)

    def target_function(self, task: TaskConfig, dataset: Dataset) -> Target:
        (column,), encode = task.target_columns, label_encoder(task, dataset)
        return lambda row, _: encode(row[column])

    def placeholder(self, task: TaskConfig, row: Mapping[str, Any]) -> Any:
        assert task.label_names is not None
        return task.label_names[0]

    def predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        probabilities = torch.as_tensor(np.asarray(logits)).softmax(-1)
        return (probabilities @ torch.arange(task.num_labels, dtype=probabilities.dtype)).round().int().tolist()

    def format_prediction(
        self, task: TaskConfig, prediction: Any, logits: np.ndarray, encoded: Mapping[str, Any], row: Mapping[str, Any]
    ) -> dict[str, Any]:
        assert task.label_names is not None
        return {"grade": task.label_names[prediction]}

    def sample_predictions(self, task: TaskConfig) -> tuple[list[Any], list[Any]]:
        return [0, 1], [0, 1]

    def card_lines(self, task: TaskConfig) -> list[str]:
        return ["logits.softmax(-1)"]


def test_a_type_is_a_head_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a module branches on the six types, and a seventh trains for a day and fails when its card is written."""
    monkeypatch.setitem(HEADS, "ordinal", ExpectedClassHead)
    monkeypatch.setitem(TASK_TYPES, "ordinal", Ordinal())
    tiny_encoder(tmp_path / "encoder")
    write_data(tmp_path, ["polarity"])
    grades = ["low", "middle", "high"]
    rows = [{"text": ["bad", "cat", "good"][i % 3], "grade": grades[i % 3]} for i in range(24)]
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / f"data/grade/{split}.jsonl", rows)
    config = task_set_config(["polarity"])
    config["tasks"]["grade"] = {
        "type": "ordinal",
        "text_columns": ["text"],
        "label_column": "grade",
        "metrics": ["accuracy", "macro_f1"],
        "data": {split: f"data/grade/{split}.jsonl" for split in ("train", "validation", "test")},
        "convergence": {"criterion": "plateau", "min_delta": 2.0},
    }
    # Long enough that the predictions are not all the same: such a task is not declared converged.
    config["training"].update(learning_rate=1e-2, max_steps=40)
    run = tmp_path / "run"
    done("train", write_config(tmp_path, config), "--output-dir", run)
    report = json.loads((run / "convergence.json").read_text())["tasks"]["grade"]
    assert (report["type"], report["phase"]) == ("ordinal", "distilling")
    results = json.loads((run / "all_results.json").read_text())
    assert {"eval_grade_accuracy", "eval_grade_macro_f1", "test_grade_accuracy"} <= results.keys()
    assert 'tasks=["grade"]' in (run / "README.md").read_text()
    task = MultiTaskModel.from_pretrained(run).config.task_configs["grade"]
    assert task.label_names == sorted(grades)
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "good cat"}])
    (line,) = done("predict", run, "--input", path, "--task", "grade").splitlines()
    assert json.loads(line)["grade"]["grade"] in grades
    assert done("predict", run, "--input", path, "--task", "grade", "--format", "csv").splitlines()[0] == "grade.grade"


def test_types_share_no_state() -> None:
    """Bug: an entry keeps something of one task for the next, which is read with the other's labels."""
    assert all(vars(kind) == {} for kind in TASK_TYPES.values())
    assert isinstance(TASK_TYPES["classification"], Classification)
