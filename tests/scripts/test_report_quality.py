"""The report on the quality benchmark: bootstrap intervals, tables and plots from cells alone."""

import doctest
import json
import math
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import report_quality as rq  # noqa: E402

TASKS = {"cola": "matthews_correlation", "sst2": "accuracy"}
COMMITTED = sorted((ROOT / "model_cards").glob("quality_*"))


def cell(
    method: str,
    seed: int = 0,
    value: float | dict[str, float] = 0.5,
    choice: str = "low-linear",
    scored: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """A cell whose metrics are all ``value``, with a spread over four resamples that all cells have in common."""
    tasks = {method.removeprefix("single-"): TASKS[method.removeprefix("single-")]} if "single-" in method else TASKS
    values = value if isinstance(value, dict) else dict.fromkeys(tasks, value)
    kinds = dict.fromkeys(("last", "best_average", "oracle"), values)
    mean = sum(values.values()) / len(values)
    made = {
        "version": 1,
        "bundle": "b",
        "method": method,
        "choice": choice,
        "seed": seed,
        "settings": [],
        "metrics": dict(tasks),
        "train_rows": dict.fromkeys(tasks, 8),
        "validation": kinds,
        "averages": dict.fromkeys(kinds, mean),
        "steps": {"last": 30, "best_average": 20, "oracle": dict.fromkeys(tasks, 20)},
        "curves": {task: [[10, 0.3], [20, values[task]], [30, None]] for task in tasks},
        "events": [],
        "seconds": {"training": 10.0 + seed, "all": 20.0},
        "environment": {"device": "x", "threads": 1, "torch": "2", "transformers": "5"},
        "test": kinds if scored else None,
    }
    if scored:
        made["replicates"] = {kind: [mean + x for x in (-0.02, -0.01, 0.01, 0.02)] for kind in kinds}
    return json.loads(json.dumps({**made, **changes}))  # nothing shared


def write(folder: Path, cells: Iterable[dict[str, Any]], choices: dict[str, str] | None = None) -> Path:
    for one in cells:
        path = folder / one["bundle"] / one["method"] / f"{one['choice']}-seed{one['seed']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one), encoding="utf-8")
    if choices is not None:
        (folder / "b" / "choices.json").write_text(json.dumps(choices), encoding="utf-8")
    return folder


def cells_of(markdown: str, label: str) -> list[str]:
    """The cells of the first line whose label it is."""
    lines = [[part.strip() for part in line.strip("|").split(" | ")] for line in markdown.splitlines() if "|" in line]
    return next(line for line in lines if line[0] == label)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["report_quality.py", *map(str, arguments)])
    rq.main()


def test_docstrings() -> None:
    """An example in the script does not give what it says."""
    assert doctest.testmod(rq).attempted > 0
    assert doctest.testmod(rq).failed == 0


# -- intervals --------------------------------------------------------------------------------------------------------


def test_interval_of_one_seed_is_that_of_the_resamples() -> None:
    """With one seed to draw, a draw is one resample: the interval is the percentiles of what the cell holds."""
    values = np.linspace(0.4, 0.6, 41)
    low, high = rq.interval({3: values})
    assert low == pytest.approx(0.405)  # 2.5 % of the way from 0.4 to 0.6
    assert high == pytest.approx(0.595)


def test_interval_draws_the_seeds_with_replacement() -> None:
    """Seeds that differ, and resamples that do not: the means of two drawn seeds are 0, 1 or, half the time, 0.5."""
    resamples = 2000
    zeros, ones = np.zeros(resamples), np.ones(resamples)
    assert rq.interval({0: zeros, 1: ones}) == (0.0, 1.0)
    # Of ten seeds, one apart from nine: none drawn at (9/10)^10 = 35 %, four or more at 1.3 %.
    assert rq.interval({**dict.fromkeys(range(9), zeros), 9: ones}) == pytest.approx((0.0, 0.3))


def test_interval_keeps_resamples_in_pairs() -> None:
    """Each method spreads widely over resamples; their difference is the same in every one."""
    spread = np.random.default_rng(1).normal(0, 0.1, size=(3, 500))
    base = {seed: 0.5 + spread[seed] for seed in range(3)}
    shifted = {seed: base[seed] + 0.125 for seed in range(3)}
    assert rq.interval(shifted, base) == pytest.approx((0.125, 0.125))
    assert rq.interval(base, base) == (0.0, 0.0)
    low, high = rq.interval(base)
    assert high - low > 0.1


def test_interval_takes_only_shared_seeds() -> None:
    """A seed of one method alone made a difference of unlike seeds."""
    assert rq.interval({0: [0.5] * 4, 1: [9.0] * 4}, {2: [7.0] * 4, 0: [0.25] * 4}) == (0.25, 0.25)
    assert all(map(math.isnan, rq.interval({0: [0.5] * 4}, {1: [0.5] * 4})))


def test_interval_leaves_undefined_resamples_out() -> None:
    """A metric that one resample leaves undefined made the whole interval NaN; most of them undefined give none."""
    assert rq.interval({0: [0.5, math.nan, 0.5, 0.5]}) == (0.5, 0.5)
    assert all(map(math.isnan, rq.interval({0: [0.5, math.nan, math.nan, math.nan]})))


# -- rows -------------------------------------------------------------------------------------------------------------


def test_identical_methods_do_not_differ() -> None:
    """Two methods with the same answers differ by exactly 0, and no more or less than that."""
    task_set = rq.make_task_set("b", [cell(method, seed) for method in ("sum", "uw") for seed in (0, 1)])
    assert cells_of(rq.results_table(task_set), "`sum`")[2:4] == ["-", "-"]
    assert cells_of(rq.results_table(task_set), "`uw`")[2:4] == ["+0.00 [+0.00, +0.00]", "+0.0"]


def test_a_constant_shift_is_its_own_interval() -> None:
    """The difference to the best baseline, in points and in percent of it; that one is not the first, and not `sum`."""
    methods = {"sum": 0.40, "uw": 0.50, "distill": 0.55}
    made = [cell(m, seed, x + 0.01 * seed) for m, x in methods.items() for seed in (0, 1, 2)]
    table = rq.results_table(rq.make_task_set("b", made))
    assert cells_of(table, "`uw`")[2:4] == ["-", "-"]
    assert cells_of(table, "`distill`")[2:4] == ["+5.00 [+5.00, +5.00]", "+9.8"]  # 0.56 over 0.51
    assert cells_of(table, "`sum`")[2:4] == ["-10.00 [-10.00, -10.00]", "-19.6"]


def test_all_columns_of_a_row() -> None:
    """Means over tasks and seeds, retention, the median of the seconds and the choice."""
    first = cell("sum", 0, {"cola": 0.2, "sst2": 0.6})
    second = cell("sum", 1, {"cola": 0.4, "sst2": 0.8})
    third = cell("sum", 2, {"cola": 0.3, "sst2": 0.7}, seconds={"training": 99.0, "all": 99.0})
    for one in (first, second, third):
        one["test"]["last"] = {"cola": 0.0, "sst2": 0.5}
        one["validation"]["best_average"] = {"cola": 0.9, "sst2": 0.3}
        one["validation"]["oracle"] = {"cola": 0.9, "sst2": 0.4}
    table = rq.results_table(rq.make_task_set("b", [first, second, third]))
    heads, row = table.splitlines()[0], cells_of(table, "`sum`")
    assert "cola MCC | sst2 acc" in heads
    assert row[1].startswith("50.00 [")
    assert row[4:] == ["25.00", "30.0", "70.0", "87.5", "3", "11", "low-linear"]


def test_one_seed_is_marked() -> None:
    """An interval over the examples alone looked like one over seeds; and where two methods share one seed alone."""
    made = [cell("sum", 0), cell("sum", 1), cell("uw", 0, 0.4), cell("distill", 1, 0.6), cell("distill", 2, 0.6)]
    table = rq.summary_table(rq.make_task_set("b", made))
    assert r"\*" not in cells_of(table, "`sum`")[1]
    assert cells_of(table, "`uw`")[1].endswith(r"\*")
    assert r"\*" not in cells_of(table, "`distill`")[1]
    assert cells_of(table, "`distill`")[2].endswith(r"\*")
    assert table.endswith(rq.ONE_SEED)
    assert rq.ONE_SEED not in rq.summary_table(rq.make_task_set("b", made[:2]))


def test_controls_and_yardsticks_come_last_and_are_no_baselines() -> None:
    """A yardstick or control that is best on test is not what the others are measured by."""
    made = [cell("single-cola", 0, 0.9), cell("single-sst2", 0, 0.7), cell("distill_b", 0, 0.55)]
    made += [cell("distill_a", 0, 0.52), cell("zeta", 0, 0.41), cell("sum", 0, 0.5), cell("alpha", 0, 0.4)]
    for kind in rq.CONTROLS:
        made[5]["test"][kind] = made[5]["validation"][kind] = {"cola": 0.99, "sst2": 0.99}
        made[5]["replicates"][kind] = [0.99] * 4
    table = rq.results_table(rq.make_task_set("b", made))
    labels = [line.split(" | ")[0].strip("| ") for line in table.splitlines()[2:]]
    assert labels[:5] == ["`sum`", "`alpha`", "`zeta`", "`distill_a`", "`distill_b`"]
    assert labels[5:9] == ["*controls*", *(f"`sum`, {name}" for name in rq.CONTROLS.values())]
    best = [f"`{name}`, each task at its own best" for name in ("sum", "distill_b")]
    assert labels[9:] == ["*yardsticks*", "single-task models", *best]
    assert cells_of(table, "`sum`")[2] == "-"
    single = cells_of(table, "single-task models")
    assert single[1].startswith("80.00 [78.")
    assert single[2].startswith("+30.00")
    assert single[5:7] == ["90.0", "70.0"]
    assert single[9] == "20"  # the seconds of both models


def test_single_task_models_of_some_tasks_have_no_mean() -> None:
    """A mean over some of the tasks stood beside means over all; tasks of different seeds are not put together."""
    task_set = rq.make_task_set("b", [cell("sum"), cell("single-cola", 0, 0.9)])
    assert cells_of(rq.results_table(task_set), "single-task models")[1:7] == ["n/a", "n/a", "n/a", "", "90.0", "n/a"]
    task_set = rq.make_task_set("b", [cell("sum"), cell("single-cola", 0), cell("single-sst2", 1)])
    assert "single-task models" not in rq.results_table(task_set)


def test_tasks_below_their_single_task_model_are_marked() -> None:
    """More than 1 % below is bold, 1 % or less is not; only the best baseline and what distills is shown."""
    made = [cell("single-cola", 0, 0.5), cell("single-sst2", 0, 0.8), cell("distill", 0, {"cola": 0.49, "sst2": 0.796})]
    table = rq.single_task_table(rq.make_task_set("b", [*made, cell("sum", 0, 0.6), cell("uw", 0, 0.3)]))
    assert table is not None
    assert cells_of(table, "`distill`")[1:] == ["**-2.0**", "-0.5"]
    assert cells_of(table, "`sum`")[1:] == ["+20.0", "**-25.0**"]
    assert "`uw`" not in table


def test_only_what_was_chosen_is_on_test() -> None:
    """A choice that lost on validation entered the mean over seeds."""
    made = [cell("sum", 0, 0.5), cell("sum", 1, 0.6), cell("sum", 0, 0.9, choice="high-linear")]
    task_set = rq.make_task_set("b", made, {"sum": "low-linear"})
    assert cells_of(rq.results_table(task_set), "`sum`")[1].startswith("55.00")


def test_values_that_are_not_defined() -> None:
    """An undefined metric on test (a constant prediction has no correlation) broke the report, or went unseen."""
    broken = cell("uw", 0, {"cola": math.nan, "sst2": 0.9})
    broken["replicates"] = {kind: [math.nan] * 4 for kind in broken["replicates"]}
    table = rq.results_table(rq.make_task_set("b", [cell("sum"), cell("distill", 0, 0.6), broken, cell("uw", 1, 0.9)]))
    row = cells_of(table, "`uw`")
    assert row[1:7] == ["n/a", "n/a", "n/a", "n/a", "n/a", "90.0"]
    assert cells_of(table, "`sum`")[2] == "-"


# -- the whole --------------------------------------------------------------------------------------------------------


def test_nothing_scored() -> None:
    """Before test is opened there are tables of validation, and a sentence that says so."""
    made = [cell("sum", 0, 0.5, scored=False), cell("sum", 0, 0.6, choice="high-linear", scored=False)]
    made[0]["events"] = [{"step": 20, "task": "cola", "event": "converged", "teacher_step": 10}]
    made[0]["events"] += [{"step": 20, "task": "cola", "event": "rolled_back", "teacher_step": 10}]
    task_set = rq.make_task_set("b", made)
    text = rq.report([task_set], "name")
    assert "No run of b has been scored on test yet." in text
    assert "95 %]" not in text
    assert "`sum` | low-linear | 0 | 50.00 | 50.00 | 20 | cola 20 |" in text
    assert "`sum` | **high-linear** | 0 | 60.00 | 60.00 | 20 | none |" in text
    assert rq.summary_table(task_set) == "No run of b has been scored on test yet."


def test_part_is_scored() -> None:
    """Methods that wait for their score are named, and in the table of all runs."""
    text = rq.report(
        [rq.make_task_set("b", [cell("sum"), cell("uw", scored=False), cell("distill", scored=False)])], "n"
    )
    assert "Not scored yet: `uw`, `distill`." in text
    assert "| `uw` | **low-linear** | 0 | 50.00 |" in text
    assert "on validation (3)" in text


def test_the_order_of_files_and_seeds_does_not_matter(tmp_path: Path) -> None:
    """The report of the same cells was another one."""
    rng = np.random.default_rng(2)
    made = []
    for method in ("sum", "uw", "distill", "distill_b", "single-cola", "single-sst2"):
        for seed in (0, 1, 2):
            one = cell(method, seed, float(rng.uniform()))
            one["replicates"] = {kind: rng.uniform(size=50).tolist() for kind in one["replicates"]}
            made.append(one)
    expected = rq.report([rq.make_task_set("b", made)], "n")
    for attempt in range(3):
        shuffled = random.Random(attempt).sample(made, len(made))
        assert rq.report([rq.make_task_set("b", shuffled)], "n") == expected
    choices = {one["method"]: one["choice"] for one in made}
    from_files = rq.report(rq.read_task_sets(write(tmp_path, reversed(made), choices)), "n")
    assert from_files == rq.report([rq.make_task_set("b", made, choices)], "n")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: a second call changes the tables again, or a task set without markers is passed over in silence."""
    made = [cell(method, seed) for method in ("sum", "distill_a", "distill_b") for seed in (0, 1)]
    made += [cell("sum", bundle="other", scored=False)]
    folder = write(tmp_path / "quality", made, {"sum": "low-linear"})
    page = tmp_path / "results.md"
    page.write_text("before\n<!-- quality:b -->\nold\n<!-- /quality:b -->\nafter\n", encoding="utf-8")
    run(monkeypatch, folder, "--page", page)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# quality\n")
    assert "curves of distill_a beside sum](curves-b.png)" in text
    assert (folder / "curves-b.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "curves-other.png").exists(), "there is nothing beside sum"
    assert "other" in capsys.readouterr().out
    renewed = page.read_text(encoding="utf-8")
    assert "old" not in renewed
    assert renewed.startswith("before\n<!-- quality:b -->\n\n| b, test |")
    assert renewed.endswith("\n\n<!-- /quality:b -->\nafter\n")

    run(monkeypatch, folder, "--page", page, "--output-dir", tmp_path / "out", "--method", "distill_b")
    assert page.read_text(encoding="utf-8") == renewed
    assert "curves of distill_b beside" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    with pytest.raises(SystemExit, match="has no cells"):
        run(monkeypatch, tmp_path / "out")


def test_plot_without_sum_values_or_seeds_in_common(tmp_path: Path) -> None:
    """A plot of a run in which a task never had a value, or of a method that stands alone."""
    lonely = cell("distill", 1, curves={"cola": [[10, None], [20, None]], "sst2": [[10, 0.5], [20, 0.6]]})
    lonely["events"] = [{"step": 15, "task": "cola", "event": "converged", "teacher_step": 10}]
    for number, made in enumerate([[lonely], [lonely, cell("sum", 0)]]):
        rq.plot_curves(rq.make_task_set("b", made), "distill", tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 0


def test_convergences_are_marked_at_their_values() -> None:
    """A mark stood where no value was, at another task's curve, or for what is no convergence."""
    one, two = cell("distill", 0), cell("distill", 1)
    one["events"] = [{"step": step, "task": "cola", "event": "converged"} for step in (10, 30)]
    one["events"] += [{"step": 20, "task": "cola", "event": "returned"}]
    two["events"] = [{"step": 20, "task": task, "event": "converged"} for task in TASKS]
    assert rq.convergences([one, two], "cola") == [(10, 0.3), (20, 0.5)]
    assert rq.convergences([one, two], None) == []


def test_mean_curve() -> None:
    """The mean over tasks has no value where one of them has none."""
    one = cell("sum", curves={"cola": [[10, 0.2], [20, None]], "sst2": [[10, 0.6], [20, 0.6]]})
    assert rq.curve(one, "sst2") == {10: 0.6, 20: 0.6}
    points = rq.curve(one, None)
    assert points[10] == pytest.approx(0.4)
    assert math.isnan(points[20])


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_the_committed_tables_are_those_of_the_committed_cells(folder: Path) -> None:
    """Bug: a figure on a page is not that of its cells."""
    task_sets = rq.read_task_sets(folder)
    assert task_sets
    # Which method was drawn is read back: it may have been asked for.
    text = (folder / "README.md").read_text(encoding="utf-8")
    plots = {b.name: m for b in task_sets for m in b.methods if f"{m} beside sum](curves-{b.name}.png)" in text}
    assert text == rq.report(task_sets, folder.name, plots)
    if folder.name == "quality_cpu":
        page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
        assert all(f"<!-- quality:{task_set.name} -->" in page for task_set in task_sets)
        assert page == rq.renew(page, task_sets)


def test_the_readme_has_the_figures_of_the_cells() -> None:
    """Bug: the short table in the README is not renewed with the cells."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = {
        task_set.name: rq.results(task_set) for task_set in rq.read_task_sets(ROOT / "model_cards" / "quality_cpu")
    }
    names = {
        "plain multi-task training": "`sum`",
        "distilling, criterion `decline`": "`distill_decline`",
        "distilling, criterion `plateau`": "`distill_plateau`",
        "one model per task": "single-task models",
    }
    rows = {
        title: [next(row for row in tables[name] if row.label == label) for name in ("glue5", "ecommerce5")]
        for title, label in names.items()
    }
    best = [rq.best_baseline(tables[name]) for name in ("glue5", "ecommerce5")]
    rows["best baseline ({}; {})".format(*(row.label for row in best))] = best
    for title, (glue, ecommerce) in rows.items():
        assert f"| {title} | {rq.number(glue.mean)} | {rq.number(ecommerce.mean)} |" in readme
