"""The quality benchmark: what is run, what is chosen, and how answers and weights are kept."""

import doctest
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from hf_async_mtl import TaskConfig

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import quality as bq  # noqa: E402
from quality import Cell, Plan  # noqa: E402

CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "rate": {"low": {"training.learning_rate": 1e-4}, "high": {"training.learning_rate": 3e-4}},
    "schedule": {"linear": {"schedule": "linear"}, "constant": {"schedule": "constant"}},
}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two bundles; a method for one of them alone, and single-task models."""
    for name, tasks in (("one", ["a", "b"]), ("two", ["b", "c"])):
        text = yaml.safe_dump({"tasks": {task: {} for task in tasks}}, sort_keys=False)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    content = {
        "layers": 3,
        "data_seed": 7,
        "seeds": [5, 6],
        "bundles": {"one": {"config": "one.yaml", "set": {"x": 1, "y": [2]}}, "two": {"config": "two.yaml"}},
        "choices": CHOICES,
        "methods": {
            "sum": {"set": {"y": 3}},
            "only-two": {"bundles": ["two"]},
            "single": {"single_task": True, "set": {"z": "s"}},
        },
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Plan.load(file)


def finish(plan: Plan, done: dict[Cell, float], value: Any) -> list[list[Cell]]:
    """Run all cells that can be run, until there are none: the rounds."""
    rounds = []
    while cells := bq.cells_to_run(plan, done):
        rounds.append(cells)
        done |= {cell: value(cell) for cell in cells}
    return rounds


def test_docstrings() -> None:
    """An example in the script does not give what it says."""
    assert doctest.testmod(bq).attempted > 0
    assert doctest.testmod(bq).failed == 0


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_plan(plan: Plan, tmp_path: Path) -> None:
    """The file gives the name, its folder the configurations, and these the tasks."""
    assert (plan.name, plan.folder, plan.seeds, plan.layers) == ("small", tmp_path, [5, 6], 3)
    assert plan.tasks("two") == ["b", "c"]
    assert plan.rows("one") == ["sum", "single-a", "single-b"]
    assert plan.rows("two") == ["sum", "only-two", "single-b", "single-c"]
    assert plan.method("only-two") == ({"bundles": ["two"]}, None)
    assert plan.method("single-c") == (plan.methods["single"], "c")


def test_settings(plan: Plan) -> None:
    """The method goes before the bundle, and the cell's seed and choice before both; values are JSON."""
    assert plan.settings(Cell("one", "sum", "high-linear", 6)) == [
        "x=1",
        "y=3",
        "training.learning_rate=0.0003",
        'schedule="linear"',
        "seed=6",
        "data_seed=7",
    ]
    single = plan.settings(Cell("one", "single-a", "low-constant", 5))
    assert single[:3] == ["x=1", "y=[2]", 'z="s"']
    assert "training.learning_rate=0.0001" in single


def test_choices_of_a_bundle(plan: Plan) -> None:
    """A bundle whose rate was known already was run at the other's too."""
    plan.bundles["two"]["choices"] = {"rate": {"high": {"training.learning_rate": 1e-3}}}
    assert plan.settings(Cell("two", "sum", "high", 5))[1] == "training.learning_rate=0.001"
    first = finish(plan, {}, lambda cell: 0.5)[0]
    assert {cell.choice for cell in first if cell.bundle == "one"} == {"low-linear", "high-linear"}
    assert {cell.choice for cell in first if cell.bundle == "two"} == {"high"}


def test_unknown_choice(plan: Plan) -> None:
    """A choice with an axis too few was run with settings left out."""
    with pytest.raises(ValueError, match="zip"):
        plan.settings(Cell("one", "sum", "high", 5))
    with pytest.raises(KeyError):
        plan.settings(Cell("one", "sum", "high-cosine", 5))


def test_files_of_cells_differ(tmp_path: Path) -> None:
    """Two cells wrote to one file."""
    cells = [Cell(*parts) for parts in itertools.product("ab", "mn", ["x-y", "x-z"], [0, 1])]
    assert len({cell.file(tmp_path, "json") for cell in cells}) == len(cells)
    assert cells[0].file(tmp_path, "npz") == tmp_path / "a" / "m" / "x-y-seed0.npz"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "scripts" / "configs").glob("quality_*.yaml")), ids=lambda path: path.stem
)
def test_plans_of_the_repository(path: Path) -> None:
    """A plan names what there is not, or a name that its cells cannot be taken apart by."""
    plan = Plan.load(path)
    for bundle in plan.bundles:
        choices = plan.choices_of(bundle).values()
        assert all("-" not in option for options in choices for option in options)
        rows = plan.rows(bundle)
        assert len(set(rows)) == len(rows)
        for row in rows:
            task = plan.method(row)[1]
            assert task is None or task in plan.tasks(bundle)
            plan.settings(Cell(bundle, row, "-".join(next(iter(options)) for options in choices), 0))


# -- choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("averages", "expected"),
    [
        ({"low-linear": 0.5}, (["high-linear"], "")),
        ({"low-linear": 0.6, "high-linear": 0.5}, (["low-constant"], "low-linear")),
        ({"low-linear": 0.6, "high-linear": 0.5, "low-constant": 0.7}, ([], "low-constant")),
        # A tie is the earlier option's, whichever was run first.
        ({"high-linear": 0.5, "low-linear": 0.5}, (["low-constant"], "low-linear")),
        # What was run of another rate does not decide the schedule.
        ({"low-linear": 0.5, "high-linear": 0.6, "low-constant": 0.9}, (["high-constant"], "high-linear")),
    ],
)
def test_options_to_try(averages: dict[str, float], expected: tuple[list[str], str]) -> None:
    """One axis after the other: the rate with the first schedule, then the schedule at the best rate."""
    assert bq.options_to_try(CHOICES, averages) == expected


def test_one_axis_and_one_option() -> None:
    """Plans with nothing to choose still have a first run, and a choice."""
    axes: dict[str, dict[str, Any]] = {"rate": {"only": {}}}
    assert bq.options_to_try(axes, {}) == (["only"], "")
    assert bq.options_to_try(axes, {"only": 0.1}) == ([], "only")


def test_three_options_and_axes() -> None:
    """So many runs as there are options, less what axes have in common, and the best that the search can find."""
    axes = {axis: {f"{axis}{i}": {} for i in range(3)} for axis in "xyz"}
    averages: dict[str, float] = {}
    while (step := bq.options_to_try(axes, averages))[0]:
        averages |= {choice: float(choice.count("2")) for choice in step[0]}
    assert step[1] == "x2-y2-z2"
    assert len(averages) == 7


def test_cells_to_run(plan: Plan) -> None:
    """Trials with the first seed alone, before all repeats; repeats at what was chosen; nothing twice."""
    done: dict[Cell, float] = {}
    rounds = finish(plan, done, lambda cell: {"high": 0.6, "low": 0.5}[cell.choice.split("-")[0]])
    assert len(rounds) == 3
    rows = {("one", "sum"), ("one", "single-a"), ("one", "single-b")}
    rows |= {("two", row) for row in ("sum", "only-two", "single-b", "single-c")}
    expected = [
        ({"low-linear", "high-linear"}, {5}),
        ({"high-constant"}, {5}),
        ({"high-linear"}, {6}),
    ]
    for cells, (choices, seeds) in zip(rounds, expected, strict=True):
        assert len(set(cells)) == len(cells)
        assert set(cells) == {Cell(*row, choice, seed) for row in rows for choice in choices for seed in seeds}
    # Bundle by bundle, the methods in their order.
    assert [(cell.method, cell.bundle) for cell in rounds[1]][:5] == [
        ("sum", "one"),
        ("single-a", "one"),
        ("single-b", "one"),
        ("sum", "two"),
        ("only-two", "two"),
    ]


def test_trials_go_before_repeats(plan: Plan) -> None:
    """A repeat that nothing waits for held up a trial that all repeats of its method wait for."""
    of_sum = {Cell("one", "sum", choice, 5): 0.5 for choice in ("low-linear", "high-linear", "low-constant")}
    cells = [cell for cell in bq.cells_to_run(plan, of_sum) if cell.bundle == "one"]
    assert cells[-1] == Cell("one", "sum", "low-linear", 6)
    assert {cell.seed for cell in cells[:-1]} == {5}


def test_methods_and_bundles_choose_for_themselves(plan: Plan) -> None:
    """A choice was made by the runs of another method, bundle or seed."""
    done: dict[Cell, float] = {}
    best = {("one", "sum"): "low-constant", ("two", "sum"): "high-linear", ("two", "only-two"): "high-constant"}

    def value(cell: Cell) -> float:
        if cell.seed != 5:
            return 9.0
        rate, schedule = best.get((cell.bundle, cell.method), "low-linear").split("-")
        return (rate in cell.choice) + 0.5 * (schedule in cell.choice)

    finish(plan, done, value)
    # A run of another seed, at what was not chosen, is no argument.
    done[Cell("one", "sum", "high-linear", 6)] = 99.0
    assert bq.chosen(plan, "one", done) == {"sum": "low-constant", "single-a": "low-linear", "single-b": "low-linear"}
    expected = {"sum": "high-linear", "only-two": "high-constant", "single-b": "low-linear", "single-c": "low-linear"}
    assert bq.chosen(plan, "two", done) == expected
    assert bq.cells_to_run(plan, done) == []


def test_chosen_has_only_what_is_settled(plan: Plan) -> None:
    """A method was scored at a choice that a trial could still overturn."""
    done = {Cell("one", "sum", "low-linear", 5): 0.5, Cell("one", "sum", "high-linear", 5): 0.6}
    assert bq.chosen(plan, "one", done) == {}
    done[Cell("one", "sum", "high-constant", 5)] = 0.4
    assert bq.chosen(plan, "one", done) == {"sum": "high-linear"}


# -- answers and weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "answers", "true"),
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
def test_answers_survive_the_array(task: TaskConfig, answers: list[Any], true: list[Any], tmp_path: Path) -> None:
    """Answers that were kept for scoring are not those that were given; or need pickle to be read."""
    np.savez_compressed(tmp_path / "answers.npz", a=bq.to_array(task, answers))
    with np.load(tmp_path / "answers.npz", allow_pickle=False) as kept:
        assert bq.from_array(task, kept["a"], true) == answers


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


def test_an_undefined_metric_is_null_and_the_worst(tmp_path: Path) -> None:
    """A correlation with a constant made the cell invalid JSON, or its method was never settled."""
    assert (bq.defined(math.nan), bq.defined(None), bq.defined(0.5)) == (None, None, 0.5)
    assert bq.average_of({"a": 0.5, "b": 0.7}) == pytest.approx(0.6)
    assert bq.average_of({"a": 0.5, "b": None}) is None
    for choice, average in (("low-linear", None), ("high-linear", 0.1)):
        cell = bq.Cell("one", "sum", choice, 5)
        path = cell.file(tmp_path, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**vars(cell), "averages": {"best_average": average}}
        path.write_text(json.dumps(content), encoding="utf-8")
    averages = bq.validation_averages(tmp_path)
    assert max(averages, key=averages.__getitem__).choice == "high-linear"
