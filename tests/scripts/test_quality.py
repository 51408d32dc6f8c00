"""The quality benchmark: what is run, what is chosen, and how answers and weights are kept."""

import doctest
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, BertModel

from hf_async_mtl import TaskConfig

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import quality as bq  # noqa: E402
from build_task_set import TASK_SETS  # noqa: E402
from quality import Cell, Plan  # noqa: E402

TINY = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
CHOICES: dict[str, dict[str, Any]] = {"low": {"training.learning_rate": 1e-4}, "high": {"training.learning_rate": 3e-4}}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two task sets, of which one uses the other's choice, and single-task models."""
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"tasks": {"a": {}, "b": {}}}), encoding="utf-8")
    common = {"config": "one.yaml", "rows": "noisy5", "noise": 0.3}
    content = {
        "layers": 3,
        "choose_with": "sum",
        "choices": CHOICES,
        "task_sets": {
            "one": {**common, "seeds": 3, "methods": ["sum", "other", "single"]},
            "two": {**common, "noise": 0.0, "seeds": 2, "methods": ["sum", "other"], "choice_of": "one"},
        },
        "methods": {
            "sum": {"set": {"y": 3}},
            "other": {},
            "single": {"single_task": True, "set": {"training.learning_rate": 0.1}},
        },
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Plan.load(file)


def test_docstrings() -> None:
    """An example in the script does not give what it says."""
    assert doctest.testmod(bq).failed == 0


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_plan(plan: Plan, tmp_path: Path) -> None:
    """The file gives the name, its folder the configurations, and these the tasks."""
    assert (plan.name, plan.folder, plan.layers) == ("small", tmp_path, 3)
    assert plan.tasks("one") == ["a", "b"]
    assert plan.rows("one") == ["sum", "other", "single-a", "single-b"]
    assert plan.method("other") == ({}, None)
    assert plan.method("single-b") == (plan.methods["single"], "b")


def test_settings(plan: Plan) -> None:
    """A method did not override the choice, or the seed did not draw the samples; values are JSON."""
    assert plan.settings(Cell("one", "sum", "high", 2)) == [
        "training.learning_rate=0.0003",
        "y=3",
        "seed=2",
        "data_seed=2",
    ]
    assert plan.settings(Cell("one", "single-a", "low", 0))[0] == "training.learning_rate=0.1"
    with pytest.raises(KeyError):
        plan.settings(Cell("one", "sum", "middle", 0))


def test_encoders(plan: Plan, tmp_path: Path) -> None:
    """A task set with more layers was trained with the encoder of the others."""
    deep = replace(plan, task_sets={**plan.task_sets, "deep": {"layers": 6}, "whole": {"layers": None}})
    folders = {name: deep.encoder(name, tmp_path) for name in ("one", "two", "deep", "whole")}
    assert folders["one"] == folders["two"]
    assert len(set(folders.values())) == 3


def test_an_encoder_with_too_few_layers(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers that an encoder lacks had random weights, and nobody was told."""
    BertModel(BertConfig(**TINY, num_hidden_layers=2)).save_pretrained(tmp_path / "source")
    config = BertConfig(**TINY, num_hidden_layers=3)
    config.save_pretrained(tmp_path / "source")
    monkeypatch.setenv("ENCODER", str(tmp_path / "source"))
    with pytest.raises(SystemExit, match=r"one needs 3 layers; .* lacks encoder\.layer\.2"):
        bq.prepare_encoders(plan, tmp_path / "work")


def test_files_of_cells_differ(tmp_path: Path) -> None:
    """Two cells wrote to one file."""
    cells = [Cell(*parts) for parts in itertools.product("ab", "mn", ["x-y", "x-z"], [0, 1])]
    assert len({cell.file(tmp_path, "json") for cell in cells}) == len(cells)
    assert cells[0].file(tmp_path, "npz") == tmp_path / "a" / "m" / "x-y-seed0.npz"


def test_plan_of_the_repository() -> None:
    """The plan names a method, a configuration or rows that do not exist."""
    plan = Plan.load(ROOT / "scripts" / "configs" / "quality.yaml")
    for name, task_set in plan.task_sets.items():
        assert plan.tasks(name) == list(TASK_SETS[task_set["rows"]])
        assert task_set.get("choice_of", name) in plan.task_sets
        for row in plan.rows(name):
            task = plan.method(row)[1]
            assert task is None or task in plan.tasks(name)


def test_plain_training_decides_for_all(plan: Plan) -> None:
    """Each method chose its own rate, so that rate and method were confounded."""
    done: dict[Cell, float] = {}
    trials = [Cell("one", "sum", "low", 0), Cell("one", "sum", "high", 0)]
    assert plan.ready(done) == trials
    done[trials[0]] = 0.5
    assert plan.choice("one", done) is None
    assert plan.ready(done) == trials[1:]
    done[trials[1]] = 0.6
    assert (plan.choice("one", done), plan.choice("two", done)) == ("high", "high")
    ready = plan.ready(done)
    assert {cell.choice for cell in ready} == {"high"}
    assert len(ready) == len(set(ready)) == 3 * 4 - 1 + 2 * 2
    # Seed by seed, so that an unfinished comparison has complete pairs.
    assert [cell.seed for cell in ready if cell.task_set == "one"] == [0] * 3 + [1] * 4 + [2] * 4
    done |= {Cell("one", "other", "low", 0): 9.0}
    assert plan.choice("one", done) == "high"


def test_a_method_whose_settings_were_removed_is_not_run(plan: Plan) -> None:
    """A comparison on another machine stopped at a setting that the package no longer has."""
    removed = replace(plan, methods={**plan.methods, "other": {"commit": "abc"}}, choices={"low": CHOICES["low"]})
    assert {cell.method for cell in removed.ready({})} == {"sum", "single-a", "single-b"}
    assert Cell("one", "other", "low", 0) in removed.cells("one", "low")


def test_seeds(plan: Plan) -> None:
    """A method that has fewer seeds was run on all, or held up the scores of its task set for ever."""
    plan.task_sets["one"] |= {"seeds": [3, 5], "fewer_seeds": {"single": [5], "other": [3]}}
    cells = [(cell.method, cell.seed) for cell in plan.cells("one", "low")]
    assert cells == [("sum", 3), ("other", 3), ("sum", 5), ("single-a", 5), ("single-b", 5)]
    assert [cell.seed for cell in plan.cells("two", "low")] == [0, 0, 1, 1]


def test_a_single_choice_needs_no_trial(plan: Plan) -> None:
    """One run of plain training had to end before any other could begin."""
    alone = replace(plan, choices={"low": CHOICES["low"]})
    assert alone.choice("two", {}) == "low"
    assert len(alone.ready({})) == 3 * 4 + 2 * 2


def test_a_tie_goes_to_the_first(plan: Plan) -> None:
    """The choice depended on the order in which the runs ended."""
    done = {Cell("one", "sum", "high", 0): 0.5, Cell("one", "sum", "low", 0): 0.5}
    assert plan.choice("one", done) == "low"


@pytest.mark.parametrize("missing", [True, False])
def test_test_labels_are_read_last(
    plan: Plan, missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task set was scored while some of its runs, and so some decisions, were still open."""
    scored: list[Cell] = []

    def score_cell(cell: Cell, cells: Path, test: Any) -> dict[str, Any]:
        scored.append(cell)
        return {"last": {}}

    monkeypatch.setattr(bq, "score_cell", score_cell)
    monkeypatch.setattr(bq, "configuration", lambda plan, cell, work: cell)
    monkeypatch.setattr(bq, "references", lambda cell, split: {} if split == "test" else None)
    wanted = [*plan.cells("one", "low"), Cell("one", "sum", "high", 0)][missing:]
    for cell in wanted:
        path = cell.file(tmp_path, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        best = 0.9 if cell.choice == "low" else 0.1
        path.write_text(json.dumps({**vars(cell), "averages": {"best_average": best}, "test": None}), encoding="utf-8")
        cell.file(tmp_path, "npz").touch()
    bq.score(plan, tmp_path, tmp_path)
    assert ("one: not scored" in capsys.readouterr().out) is missing
    assert scored == ([] if missing else plan.cells("one", "low"))
    plan.task_sets["tried"] = {**plan.task_sets["one"], "methods": [], "beside": "one"}
    bq.score(plan, tmp_path, tmp_path)  # a second call reads no labels, nor does a set that is tried on validation
    assert len(scored) == (0 if missing else len(plan.cells("one", "low")))


# -- predictions and weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "predictions", "true"),
    [
        (TaskConfig(type="classification", text_columns=["t"], label_names=["x", "y"]), [1, 0, 1], [0, 0, 1]),
        (TaskConfig(type="regression", text_columns=["t"]), [0.5, -1.25, 3.0], [1.0, 2.0, 3.0]),
        (TaskConfig(type="multilabel", text_columns=["t"], label_names=["x", "y"]), [[1, 0], [0, 0]], [[1, 1], [0, 1]]),
        (
            TaskConfig(type="token_classification", text_columns=["t"], label_names=["O", "B-x", "I-x"]),
            [["O"], [], ["B-x", "I-x", "O"]],
            [["B-x"], [], ["O", "O", "O"]],
        ),
    ],
    ids=lambda value: value.type if isinstance(value, TaskConfig) else "",
)
def test_predictions_survive_the_array(
    task: TaskConfig, predictions: list[Any], true: list[Any], tmp_path: Path
) -> None:
    """Predictions that were kept for scoring are not those that were made; or need pickle to be read."""
    np.savez_compressed(tmp_path / "predictions.npz", a=bq.to_array(task, predictions))
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as kept:
        assert bq.from_array(task, kept["a"], true) == predictions


def test_score_cell(tmp_path: Path) -> None:
    """One checkpoint had the scores of another, or F1 was that of the other class than in the run."""
    task = TaskConfig(
        type="classification", text_columns=["t"], label_names=["yes", "no"], metrics=["f1"], positive_label="yes"
    )
    cell = Cell("one", "sum", "low", 0)
    file = cell.file(tmp_path, "npz")
    file.parent.mkdir(parents=True)
    np.savez_compressed(file, **{"last.a": np.array([0, 0, 1, 0]), "best_average.a": np.array([1, 1, 1, 1])})
    assert bq.score_cell(cell, tmp_path, {"a": (task, [0, 0, 1, 1])}) == {
        "last": {"a": pytest.approx(0.8)},
        "best_average": {"a": 0},
    }


def test_average_weights() -> None:
    """The mean of each tensor in its own type; counters are not averaged; the states stay as they are."""
    states = [
        {"w": torch.tensor([1.0, 2.0]), "half": torch.tensor([1.0], dtype=torch.bfloat16), "ids": torch.tensor([7])},
        {"w": torch.tensor([3.0, 6.0]), "half": torch.tensor([2.0], dtype=torch.bfloat16), "ids": torch.tensor([9])},
    ]
    mean = bq.average_weights(states)
    assert mean["w"].tolist() == [2.0, 4.0]
    assert mean["half"].dtype == torch.bfloat16
    assert mean["half"].tolist() == [1.5]
    assert mean["ids"].tolist() == [7]
    assert states[0]["w"].tolist() == [1.0, 2.0]
    assert bq.average_weights(states[:1])["w"].tolist() == [1.0, 2.0]


def test_rounded() -> None:
    """A value that is not known stopped the cell, or a step became a fraction."""
    task = {"peak_step": 20, "fall_z": None, "headroom": -0.00123, "headroom_error": 0.01}
    diagnosis = {"something_to_hold": "no", "answer": "A sentence.", "tasks": {"a": task}}
    assert bq.rounded(diagnosis) == {**diagnosis, "tasks": {"a": {**task, "headroom": -0.0012}}}


def test_an_undefined_metric_is_null_and_the_worst(tmp_path: Path) -> None:
    """A correlation with a constant made the cell invalid JSON, or its method was never settled."""
    assert (bq.defined(math.nan), bq.defined(None), bq.defined(0.5)) == (None, None, 0.5)
    assert bq.average_of({"a": 0.5, "b": 0.7}) == pytest.approx(0.6)
    assert bq.average_of({"a": 0.5, "b": None}) is None
    for choice, average in (("low", None), ("high", 0.1)):
        cell = bq.Cell("one", "sum", choice, 5)
        path = cell.file(tmp_path, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**vars(cell), "averages": {"best_average": average}}
        path.write_text(json.dumps(content), encoding="utf-8")
    averages = bq.validation_averages(tmp_path)
    assert max(averages, key=averages.__getitem__).choice == "high"
