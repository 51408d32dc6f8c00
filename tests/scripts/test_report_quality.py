"""The report on the comparison of methods: intervals, tables and plots from cells alone."""

from __future__ import annotations

import doctest
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import report_quality as rq  # noqa: E402
from quality import Plan  # noqa: E402

METRICS = {"a": "accuracy", "b": "matthews_correlation"}
COMMITTED = ROOT / "model_cards" / "quality"
Score = Callable[[str, int, str], float]  # method, seed, kind of checkpoint


def shifted(**shifts: float) -> Score:
    """Return scores that differ between seeds by 0.1, and between methods by their shift."""
    return lambda method, seed, kind: 0.5 + 0.1 * seed + shifts.get(method, 0.0) + (0.05 if kind == "oracle" else 0.0)


def write(
    folder: Path, methods: list[str], seeds: int, validation: Score, test: Score | None, noise: float = 0.3
) -> Plan:
    """Write the cells of one task set, and return its plan."""
    (folder / "set.yaml").write_text(yaml.safe_dump({"tasks": {name: {} for name in METRICS}}), encoding="utf-8")
    settings = {"config": "set.yaml", "rows": "noisy5", "noise": noise, "seeds": seeds, "methods": methods}
    plan = {
        "layers": 3,
        "choose_with": "sum",
        "choices": {"low": {}},
        "task_sets": {"set": settings},
        "methods": {name: {"single_task": name == "single"} for name in methods},
    }
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    loaded = Plan.load(file)
    for cell in loaded.cells("set", "low"):
        tasks = [cell.method.removeprefix("single-")] if cell.method.startswith("single-") else list(METRICS)
        kinds = ["last", "best_average", *(["oracle", "ema_best_average"] if cell.method == "sum" else [])]
        scores = {
            split: {kind: dict.fromkeys(tasks, of(cell.method.split("-")[0], cell.seed, kind)) for kind in kinds}
            for split, of in (("validation", validation), ("test", test))
            if of is not None
        }
        scores["validation"]["oracle"] = scores["validation"]["best_average"]
        content: dict[str, Any] = {
            **vars(cell),
            "metrics": {name: METRICS[name] for name in tasks},
            "validation": scores["validation"],
            "test": scores.get("test"),
            "averages": {kind: next(iter(values.values())) for kind, values in scores["validation"].items()},
            "steps": {**dict.fromkeys(kinds, 20), "oracle": dict.fromkeys(tasks, 20)},
            "curves": {name: [[10, 0.3], [20, 0.5], [30, None]] for name in tasks},
            "events": [{"task": "a", "step": 20, "event": "converged"}] if cell.method == "distill" else [],
            "seconds": {"training": 10.0},
            "environment": {"commit": "abc", "device": "x86_64"},
        }
        path = cell.file(folder, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return loaded


def test_docstrings() -> None:
    """An example in the script does not give what it says."""
    assert doctest.testmod(rq).attempted > 0
    assert doctest.testmod(rq).failed == 0


def test_t_interval() -> None:
    """The interval was that of a normal distribution, too narrow for few seeds."""
    values = [0.1, 0.3, 0.2, 0.5]
    found = rq.estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found.value == pytest.approx(0.275)
    assert (found.value - found.half, found.value + found.half) == pytest.approx((low, high))
    assert math.isnan(rq.estimate([0.1]).half)
    assert rq.estimate([0.1]).text(sign=True) == "+10.00"


def test_power() -> None:
    """The number of seeds was that of a one-sided or unpaired test."""
    # Cohen (1988), table 2.4.1 for one sample: d = 0.5, 90 %, two-sided 5 %: 44.
    assert rq.seeds_needed(2.0, 1.0) == 44


def test_differences_are_paired(tmp_path: Path) -> None:
    """The spread between seeds, which both methods share, went into the interval of their difference."""
    scores = shifted(distill=0.02)
    (task_set,) = rq.read_task_sets(write(tmp_path, ["sum", "distill"], 4, scores, scores), tmp_path)
    rows = {row.label: row for row in task_set.rows()}
    assert rq.differences(rows["`distill`"], rows["`sum`"]) == pytest.approx([0.02] * 4)
    assert "`distill` minus `sum`, the best baseline on validation, on test: **+2.00 ± 0.00 points**" in rq.comparison(
        task_set
    )


def test_the_best_baseline_is_chosen_on_validation(tmp_path: Path) -> None:
    """The baseline was the best one on test, or a yardstick."""
    methods = ["sum", "uw", "distill", "single"]
    plan = write(tmp_path, methods, 2, shifted(uw=0.1, distill=0.3, single=0.4), shifted(sum=0.1))
    (task_set,) = rq.read_task_sets(plan, tmp_path)
    base = rq.best_baseline(task_set.rows())
    assert base is not None
    assert base.label == "`uw`"
    groups = [row.group for row in task_set.rows()]
    assert groups == ["baseline"] * 3 + ["distilling"] + ["yardstick"] * 2
    assert list(task_set.rows()[-1].test[0]) == ["a", "b"]  # one model per task


def test_a_baseline_with_fewer_seeds_is_not_the_best(tmp_path: Path) -> None:
    """A method was the best baseline because it had been run on the seeds with easy rows alone."""
    plan = write(tmp_path, ["sum", "uw", "distill"], 2, shifted(uw=0.01), shifted())
    (tmp_path / "set" / "uw" / "low-seed0.json").unlink()
    (task_set,) = rq.read_task_sets(plan, tmp_path)
    assert task_set.best_baseline() is None, "a run is missing"
    assert "Runs are missing: `uw`." in rq.comparison(task_set)
    plan.task_sets["set"]["fewer_seeds"] = {"uw": [1]}
    base = rq.read_task_sets(plan, tmp_path)[0].best_baseline()
    assert base is not None
    assert base.label.startswith("`sum`")


def test_what_is_tried_stands_beside_its_task_set(tmp_path: Path) -> None:
    """A variant had nothing to be compared with, or was compared with other seeds, or on test."""
    plan = write(tmp_path, ["sum", "uw", "distill"], 3, shifted(), shifted())
    content = json.loads((tmp_path / "set" / "distill" / "low-seed1.json").read_text("utf-8"))
    plan.task_sets["tried"] = {**plan.task_sets["set"], "methods": ["distill_x"], "seeds": [1, 2], "beside": "set"}
    plan.methods["distill_x"] = {}
    path = tmp_path / "tried" / "distill_x" / "low-seed1.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**content, "task_set": "tried", "method": "distill_x"}), encoding="utf-8")
    tried = rq.read_task_sets(plan, tmp_path)[1]
    assert [row.label for row in tried.rows() if row.group != "yardstick"][::2] == ["`sum`", "`distill`"]
    assert {row.label: len(row.validation) for row in tried.rows()}["`distill_x`"] == 1
    assert tried.split == "validation"


def test_averages_are_compared_with_their_own_run(tmp_path: Path) -> None:
    """An average of weights was compared with another run of the same method, whose noise hid the difference."""
    plan = write(tmp_path, ["sum", "distill"], 2, shifted(), None)
    plan.task_sets["tried"] = {**plan.task_sets["set"], "methods": ["distill_averages", "distill_stable"]}
    plan.task_sets["tried"]["beside"] = "set"
    for method, shift in (("distill_averages", 0.2), ("distill_stable", 0.03)):
        plan.methods[method] = {}
        for seed in range(2):
            content = json.loads((tmp_path / "set" / "distill" / f"low-seed{seed}.json").read_text("utf-8"))
            scores = {task: value + shift for task, value in content["validation"]["best_average"].items()}
            averages = {task: value + 0.01 for task, value in scores.items()}
            content |= {"task_set": "tried", "method": method}
            content["validation"] = {"best_average": scores, "average_of_bests": averages}
            content["steps"] |= {"average_of_bests": 20} if method == "distill_averages" else {}
            path = tmp_path / "tried" / method / f"low-seed{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")
    lines = rq.variants_table(rq.read_task_sets(plan, tmp_path)[1]).splitlines()[2:]
    assert [line.split(" | ")[1:3] for line in lines] == [["2", "+1.00 ± 0.00"], ["2", "+3.00 ± 0.00"]]


def test_validation_stands_until_all_runs_are_scored(tmp_path: Path) -> None:
    """A page mixed scores on validation and on test."""
    plan = write(tmp_path, ["sum", "distill"], 2, shifted(), shifted(sum=0.1))
    path = tmp_path / "set" / "distill" / "low-seed1.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "test": None}), encoding="utf-8")
    (task_set,) = rq.read_task_sets(plan, tmp_path)
    text = rq.report([task_set], "name")
    assert "| set, validation | seeds | mean |" in text
    assert "on validation: **+0.00" in text


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page was not renewed, twice the same, or its plots were not drawn."""
    write(tmp_path, ["sum", "distill"], 2, shifted(), shifted(distill=0.01))
    page = tmp_path / "page.md"
    parts = [f"<!-- quality:{name} -->\nold\n<!-- /quality:{name} -->" for name in ("set", "set short", "other")]
    page.write_text("\n".join(["before", *parts, "after"]), encoding="utf-8")
    argv = ["x", str(tmp_path / "plan.yaml"), "--cells", str(tmp_path), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", argv)
    rq.main()
    first = page.read_text("utf-8")
    assert first.startswith("before\n")
    assert "| **`distill`** | 2 | 56.00 ± 63.53 | +1.00 ± 0.00 | 56.00 | 56.0 | 56.0 |" in first
    assert "| **distilling, the default** | 2 | 56.00 | +1.00 ± 0.00 | n/a | 56.00 |" in first
    assert "<!-- quality:other -->\nold\n" in first
    rq.main()
    assert page.read_text("utf-8") == first
    assert (tmp_path / "curves-set.png").stat().st_size > 10_000
    assert "| `distill` | low | 0 |" in (tmp_path / "README.md").read_text("utf-8")


def test_committed_report() -> None:
    """The committed page was not written from the committed cells."""
    plan = Plan.load(ROOT / "scripts" / "configs" / "quality.yaml")
    task_sets = rq.read_task_sets(plan, COMMITTED)
    assert task_sets
    assert (COMMITTED / "README.md").read_text("utf-8") == rq.report(task_sets, "quality")
    for name, marker in (
        ("docs/results.md", "<!-- quality:noisy5 -->"),
        ("docs/methods.md", "<!-- quality:diagnosis -->"),
        ("README.md", "<!-- quality:noisy5 short -->"),
    ):
        page = (ROOT / name).read_text("utf-8")
        assert rq.renew(page, task_sets) == page
        assert marker in page


def diagnosed(answer: str | None, **headrooms: float | None) -> dict[str, Any]:
    """Return the diagnosis of a cell whose headrooms have the standard error 0.01, or none if they are not known."""
    tasks = {
        name: {"fall_z": 1.0, "headroom": headroom, "headroom_error": None if headroom is None else 0.01}
        for name, headroom in headrooms.items()
    }
    return {"something_to_hold": answer, "answer": "A sentence.", "tasks": tasks}


def test_diagnosis_table(tmp_path: Path) -> None:
    """A run without a diagnosis had an answer or stopped the report, or the runs of a task set were listed twice."""
    plan = write(tmp_path, ["sum", "distill"], 4, shifted(), shifted(distill=0.01))
    plan.task_sets["tried"] = {**plan.task_sets["set"], "methods": ["distill_x"], "beside": "set"}
    plan.methods["distill_x"] = {}
    found = {0: diagnosed("yes", a=-0.02, b=0.031), 2: diagnosed("no", a=0.002, b=None)}
    found[3] = diagnosed(None, a=None, b=None)
    for method in ("sum", "distill", "distill_x"):
        for seed in range(4):
            path = tmp_path / "set" / ("sum" if method == "sum" else "distill") / f"low-seed{seed}.json"
            content = json.loads(path.read_text("utf-8"))
            if method == "distill_x":
                content |= {"task_set": "tried", "method": method}
                path = tmp_path / "tried" / method / path.name
                path.parent.mkdir(parents=True, exist_ok=True)
            elif method == "sum" and seed in found:
                content["diagnosis"] = found[seed]
            path.write_text(json.dumps(content), encoding="utf-8")
    task_sets = rq.read_task_sets(plan, tmp_path)
    assert [task_set.name for task_set in task_sets] == ["set", "tried"]
    row = "| set | +1.00 ± 0.00 | 0, 2, 3 | yes (b 3.1), no (a 0.2), not known |"
    assert rq.diagnosis_table(task_sets).splitlines()[2:] == [row]
    page = "before\n<!-- quality:diagnosis -->\nformer\n<!-- /quality:diagnosis -->\nafter"
    assert row in rq.renew(page, task_sets)
    assert "former" not in rq.renew(page, task_sets)


def test_the_gain_beside_a_diagnosis_is_that_on_test(tmp_path: Path) -> None:
    """The gain on validation stood in the column of the gain on test."""
    plan = write(tmp_path, ["sum", "distill"], 2, shifted(distill=0.01), None)
    path = tmp_path / "set" / "sum" / "low-seed0.json"
    content = {**json.loads(path.read_text("utf-8")), "diagnosis": diagnosed("perhaps", a=0.02)}
    path.write_text(json.dumps(content), encoding="utf-8")
    text = rq.diagnosis_table(rq.read_task_sets(plan, tmp_path))
    assert text.endswith("| set | n/a | 0 | perhaps (a 2.0) |")
