"""Write the results of scripts/benchmarks/quality.py as Markdown tables and plots, from its cells.

    python scripts/benchmarks/report_quality.py CELLS [--output-dir FOLDER] [--method NAME] [--page docs/results.md]

Writes ``README.md`` and one ``curves-NAME.png`` per task set. ``--page`` renews the short tables of a page, each
between ``<!-- quality:NAME -->`` and ``<!-- /quality:NAME -->``.

The intervals are percentile bootstrap intervals over seeds and examples (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13). Each draw takes all seeds with replacement and one resample of the test rows. Differences
are paired: both methods use the same seeds and rows.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

METRIC_NAMES = {
    "matthews_correlation": "MCC",
    "seqeval_f1": "span F1",
    "accuracy": "acc",
    "pearson": "r",
    "spearman": "rho",
    "f1": "F1",
    "macro_f1": "macro F1",
}
FIRST_METHODS = ["sum", "uw", "pcgrad", "stop", "rollback", "stop_and_go"]
CONTROLS = {
    "average_of_bests": "average of the bests",
    "ema_best_average": "EMA, best average",
    "ema_last": "EMA, last",
}
# Methods that train one model per task -> label and group in the table.
SINGLE_TASK = {
    "single_distill": ("single-task self-distillation", "control"),
    "single": ("single-task models", "yardstick"),
}
TOLERANCE = 1.0  # a task that is more percent below its single-task model is marked
NOT_KNOWN = "n/a"
MIN_HEIGHT = 0.04  # of a panel, so that noise stays small
ONE_SEED = r"\* One seed: the interval covers the examples only."
# The palette of Okabe and Ito. In grayscale, the dashes distinguish the two methods.
BLUE, ORANGE, GREY, LIGHT_GREY = "#0072B2", "#D55E00", "#767676", "#E5E5E5"

Cell = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class TaskSet:
    """One task set: cells in the order of `method_order`; the choice of each method, if not settled the best so far."""

    name: str
    cells: list[Cell]
    choices: Mapping[str, str]
    settled: bool

    @property
    def metrics(self) -> dict[str, str]:
        """Return task -> metric, in the order of the tasks."""
        several = [cell for cell in self.cells if not is_single(cell["method"])]
        found: dict[str, str] = {}
        for cell in several or self.cells:
            found |= {task: metric for task, metric in cell["metrics"].items() if task not in found}
        return found

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(cell["method"] for cell in self.cells))

    def chosen(self, method: str) -> list[Cell]:
        """Return the cells of a method with its choice, by seed."""
        return [c for c in self.cells if c["method"] == method and c["choice"] == self.choices[method]]

    def scored(self, method: str) -> list[Cell]:
        return [cell for cell in self.chosen(method) if cell["test"] is not None]

    @property
    def is_scored(self) -> bool:
        return any(self.scored(method) for method in self.methods)


@dataclass(frozen=True)
class Outcome:
    """One seed on test: task -> metric, the same for the last weights (or None), and the other cells of a row."""

    values: Mapping[str, float]
    last: Mapping[str, float] | None
    replicates: np.ndarray
    retention: float
    seconds: float

    @property
    def mean(self) -> float:
        return mean(self.values.values())


@dataclass(frozen=True)
class Row:
    """One row of a table of results. ``group``: baseline, distilling, control or yardstick."""

    label: str
    group: str
    seeds: Mapping[int, Outcome]
    choice: str

    @property
    def mean(self) -> float:
        return mean(outcome.mean for outcome in self.seeds.values())

    @property
    def last(self) -> float:
        return mean(math.nan if x.last is None else mean(x.last.values()) for x in self.seeds.values())

    def task(self, name: str) -> float:
        return mean(outcome.values.get(name, math.nan) for outcome in self.seeds.values())

    @property
    def replicates(self) -> dict[int, np.ndarray]:
        return {seed: outcome.replicates for seed, outcome in self.seeds.items()}


def mean(numbers: Iterable[float]) -> float:
    """Return the mean; NaN for no numbers or if one is NaN, so that a run without a value is visible."""
    known = list(numbers)
    return math.fsum(known) / len(known) if known else math.nan


def is_single(method: str) -> bool:
    """Return whether a method is the model of one task, ``single-<task>`` or ``single_distill-<task>``."""
    return method.partition("-")[0] in SINGLE_TASK


def is_distilling(method: str) -> bool:
    return method.startswith("distill")


def method_order(method: str) -> tuple[int, int, str]:
    """Return a sort key: baselines (well-known ones first), distilling methods, single-task models."""
    group = 2 if is_single(method) else 1 if is_distilling(method) else 0
    return group, FIRST_METHODS.index(method) if method in FIRST_METHODS else len(FIRST_METHODS), method


def make_task_set(name: str, cells: Iterable[Cell], choices: Mapping[str, str] | None = None) -> TaskSet:
    """Sort the cells. A choice that is not written down yet is the best so far on validation, with the first seed."""
    ordered = sorted(cells, key=lambda cell: (method_order(cell["method"]), cell["choice"], cell["seed"]))
    best: dict[str, Cell] = {}
    first = {cell["method"]: min(c["seed"] for c in ordered if c["method"] == cell["method"]) for cell in ordered}
    for cell in ordered:
        method = cell["method"]
        if cell["seed"] == first[method] and (method not in best or _validation(cell) > _validation(best[method])):
            best[method] = cell
    so_far = {method: cell["choice"] for method, cell in best.items()}
    return TaskSet(name, ordered, {**so_far, **(choices or {})}, settled=choices is not None)


def read_task_sets(folder: Path) -> list[TaskSet]:
    """Read all task sets of a folder of cells, by name."""
    cells: dict[str, list[Cell]] = {}
    for path in sorted(folder.glob("*/*/*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        cells.setdefault(cell["bundle"], []).append(cell)
    task_sets = []
    for name in sorted(cells):
        file = folder / name / "choices.json"
        choices = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        task_sets.append(make_task_set(name, cells[name], choices))
    return task_sets


def _validation(cell: Cell) -> float:
    average = cell["averages"]["best_average"]
    return -math.inf if average is None else float(average)


def best_distilling(task_set: TaskSet, of: Callable[[str], Sequence[Cell]]) -> str | None:
    """Return the distilling method with the best validation average over the cells that ``of`` returns."""
    averages = {name: mean(map(_validation, of(name))) for name in task_set.methods if is_distilling(name) and of(name)}
    return max(averages, key=averages.__getitem__) if averages else None


# -- statistics -------------------------------------------------------------------------------------------------------


def interval(replicates: Mapping[int, ArrayLike], against: Mapping[int, ArrayLike] | None = None) -> Interval:
    """Return the 95 % percentile bootstrap interval of a mean over seeds, or of a difference of two means.

    Draw b takes all seeds with replacement and averages their values in resample b of the rows.

    Args:
        replicates: Seed -> the metric in each resample of the test rows.
        against: The same for the subtracted mean, with the same rows. Only seeds of both are used.

    Returns:
        The two ends; NaN if more than half of the draws are not defined, or if no seed is shared.

    Examples:
        >>> interval({0: [0.5, 0.5], 1: [0.5, 0.5]}, {0: [0.25, 0.25], 1: [0.25, 0.25]})
        (0.25, 0.25)
    """
    seeds = shared_seeds(replicates, against)
    if not seeds:
        return math.nan, math.nan
    values = np.array([replicates[seed] for seed in seeds], dtype=float)
    if against is not None:
        values = values - np.array([against[seed] for seed in seeds], dtype=float)
    resamples = values.shape[1]
    drawn = np.random.default_rng(0).integers(len(seeds), size=(resamples, len(seeds)))
    means = values[drawn, np.arange(resamples)[:, None]].mean(1)
    defined = means[np.isfinite(means)]
    if 2 * len(defined) < resamples or not len(defined):
        return math.nan, math.nan
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def shared_seeds(first: Mapping[int, Any], second: Mapping[int, Any] | None = None) -> list[int]:
    return sorted(first if second is None else set(first) & set(second))


def retention(cell: Cell, kind: str) -> float:
    """Return validation value / best of the run in percent, as a mean over the tasks with values > 0."""
    shares = []
    for task, best in cell["validation"]["oracle"].items():
        value = cell["validation"][kind][task]
        if best is not None and value is not None and best > 0 and value > 0:
            shares.append(100 * value / best)
    return mean(shares)


def relative(value: float, base: float) -> float:
    """Return the difference to the base in percent; NaN if the base is not positive."""
    return 100 * (value / base - 1) if base > 0 else math.nan


def results(task_set: TaskSet) -> list[Row]:
    """Return all rows of the table of a task set, in order; scored runs only."""
    rows = []
    for method in task_set.methods:
        if not is_single(method) and (cells := task_set.scored(method)):
            group = "distilling" if is_distilling(method) else "baseline"
            rows.append(_row(f"`{method}`", group, cells, "best_average", "last"))
    for method in task_set.methods:
        for kind, name in CONTROLS.items():
            if not is_single(method) and (cells := [c for c in task_set.scored(method) if kind in c["test"]]):
                rows.append(_row(f"`{method}`, {name}", "control", cells, kind))
    rows += [row for kind in SINGLE_TASK if (row := single_task_row(task_set, kind))]
    for oracle in ("sum", best_distilling(task_set, task_set.scored)):
        if oracle is not None and oracle in task_set.methods and (cells := task_set.scored(oracle)):
            rows.append(_row(f"`{oracle}`, each task at its own best", "yardstick", cells, "oracle"))
    return rows


def _row(label: str, group: str, cells: Sequence[Cell], kind: str, last: str | None = None) -> Row:
    seeds = {
        cell["seed"]: Outcome(
            values=_numbers(cell["test"][kind]),
            last=None if last is None else _numbers(cell["test"][last]),
            replicates=np.array(cell["replicates"][kind], dtype=float),
            retention=retention(cell, kind),
            seconds=cell["seconds"]["training"],
        )
        for cell in cells
    }
    return Row(label, group, seeds, cells[0]["choice"])


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def single_task_row(task_set: TaskSet, kind: str = "single") -> Row | None:
    """Return the single-task models as one row; its mean needs all tasks, with the same seeds."""
    models = {
        task: {cell["seed"]: cell for cell in task_set.scored(f"{kind}-{task}")}
        for task in task_set.metrics
        if f"{kind}-{task}" in task_set.methods
    }
    models = {task: cells for task, cells in models.items() if cells}
    if not models:
        return None
    complete = len(models) == len(task_set.metrics)
    seeds = {}
    for seed in sorted(set.intersection(*(set(cells) for cells in models.values()))):
        parts = [cells[seed] for cells in models.values()]
        values = {task: _numbers(c[seed]["test"]["best_average"])[task] for task, c in models.items()}
        last = {task: _numbers(c[seed]["test"]["last"])[task] for task, c in models.items()}
        replicates = np.mean([np.array(p["replicates"]["best_average"], dtype=float) for p in parts], axis=0)
        seeds[seed] = Outcome(
            # A mean over some tasks could be mistaken for one over all.
            values={task: values.get(task, math.nan) for task in task_set.metrics},
            last=last if complete else None,
            replicates=replicates if complete else np.full_like(replicates, np.nan),
            retention=mean(retention(part, "best_average") for part in parts),
            seconds=math.fsum(part["seconds"]["training"] for part in parts),
        )
    if not seeds:
        return None
    choices = {task: task_set.choices[f"{kind}-{task}"] for task in models}
    grouped = {
        choice: [task for task in choices if choices[task] == choice] for choice in sorted(set(choices.values()))
    }
    if len(grouped) == 1:
        choice = next(iter(grouped))
    else:
        choice = "; ".join(f"{choice}: {', '.join(tasks)}" for choice, tasks in grouped.items())
    label, group = SINGLE_TASK[kind]
    return Row(label, group, seeds, choice)


def best_baseline(rows: Sequence[Row]) -> Row | None:
    """Return the baseline with the best mean on test."""
    known = [row for row in rows if row.group == "baseline" and math.isfinite(row.mean)]
    return max(known, key=lambda row: row.mean) if known else None


# -- Markdown ---------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 2, sign: bool = False, times: float = 100) -> str:
    """Return a metric times 100 as text, without -0."""
    if not math.isfinite(value):
        return NOT_KNOWN
    return f"{round(times * value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def with_interval(value: float, ends: Interval, seeds: int, sign: bool = False) -> str:
    """Return a value and its interval; the interval of a single seed has a star."""
    if not math.isfinite(value):
        return NOT_KNOWN
    if not all(map(math.isfinite, ends)):
        return number(value, sign=sign)
    low, high = (number(end, sign=sign) for end in ends)
    return f"{number(value, sign=sign)} [{low}, {high}]" + (r"\*" if seeds == 1 else "")


def mean_cell(row: Row) -> str:
    return with_interval(row.mean, interval(row.replicates), len(row.seeds))


def last_cell(row: Row) -> str:
    """Return the value of the last weights; empty if there are none."""
    return number(row.last) if any(outcome.last is not None for outcome in row.seeds.values()) else ""


def difference_cells(row: Row, base: Row | None) -> tuple[str, str]:
    """Return the difference to the best baseline with its interval, in points, and in percent of the baseline."""
    if base is None:
        return NOT_KNOWN, NOT_KNOWN
    if row is base:
        return "-", "-"
    seeds = shared_seeds(row.seeds, base.seeds)
    values = [mean(some.seeds[seed].mean for seed in seeds) for some in (row, base)]
    ends = interval(row.replicates, base.replicates)
    return with_interval(values[0] - values[1], ends, len(seeds), sign=True), number(
        relative(*values), 1, True, times=1
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; columns of numbers are aligned to the right.

    Examples:
        >>> print(table(["method", "mean"], [["sum", "1.25"]]))
        | method | mean |
        | --- | ---: |
        | sum | 1.25 |
    """
    body = list(rows)
    columns = list(zip(*body, strict=True))
    rules = ["---:" if all(map(_is_number, column)) else "---" for column in columns] or ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rules, *body])


def _is_number(text: str) -> bool:
    return text in ("", "-", NOT_KNOWN) or re.match(r"(\*\*)?[+-]?\d", text) is not None


def _task_heads(task_set: TaskSet) -> list[str]:
    return [f"{task} {METRIC_NAMES.get(metric, metric)}" for task, metric in task_set.metrics.items()]


def _grouped(rows: Sequence[Row], cells_of: Callable[[Row], list[str]], columns: int) -> list[list[str]]:
    """Return the lines of a table, with a line above the controls and one above the yardsticks."""
    lines = []
    titles = {"control": "*controls*", "yardstick": "*yardsticks*"}
    for row in rows:
        if row.group in titles:
            lines.append([titles.pop(row.group)] + [""] * (columns - 1))
        lines.append(cells_of(row))
    return lines


def not_scored(task_set: TaskSet) -> str:
    return f"No run of {task_set.name} has been scored on test yet."


def summary_table(task_set: TaskSet) -> str:
    """Return the narrow table for the page of results."""
    rows = results(task_set)
    if not rows:
        return not_scored(task_set)
    base = best_baseline(rows)
    head = [f"{task_set.name}, test", "mean [95 %]", "to best baseline [95 %]", "last", *_task_heads(task_set)]

    def cells(row: Row) -> list[str]:
        tasks = [number(row.task(task), 1) for task in task_set.metrics]
        return [row.label, mean_cell(row), difference_cells(row, base)[0], last_cell(row), *tasks]

    text = table(head, _grouped(rows, cells, len(head)))
    return text + ("\n\n" + ONE_SEED if ONE_SEED[:2] in text else "")


def results_table(task_set: TaskSet) -> str:
    """Return the full table of test results."""
    rows = results(task_set)
    base = best_baseline(rows)
    head = ["method", "mean [95 %]", "to best baseline [95 %]", "relative, %", "last", *_task_heads(task_set)]
    head += ["retention, %", "seeds", "training, s", "choice"]

    def cells(row: Row) -> list[str]:
        tasks = [number(row.task(task), 1) for task in task_set.metrics]
        kept = number(mean(x.retention for x in row.seeds.values()), 1, times=1)
        seconds = f"{statistics.median(outcome.seconds for outcome in row.seeds.values()):.0f}"
        facts = [kept, str(len(row.seeds)), seconds, row.choice]
        return [row.label, mean_cell(row), *difference_cells(row, base), last_cell(row), *tasks, *facts]

    return table(head, _grouped(rows, cells, len(head)))


def single_task_table(task_set: TaskSet) -> str | None:
    """Return the table of the best baseline and the distilling methods against single-task models, in percent."""
    rows = results(task_set)
    base = best_baseline(rows)
    models: dict[str, Row] = {}
    for task in task_set.metrics:
        name = f"single-{task}"
        if name in task_set.methods and (cells := task_set.scored(name)):
            models[task] = _row(name, "yardstick", cells, "best_average")
    compared = [row for row in rows if row is base or row.group == "distilling"]
    if not models or not compared:
        return None
    lines = []
    for row in compared:
        line = [row.label]
        for task, model in models.items():
            seeds = shared_seeds(row.seeds, model.seeds)
            change = relative(*(mean(some.seeds[seed].values[task] for seed in seeds) for some in (row, model)))
            text = number(change, 1, True, times=1)
            line.append(f"**{text}**" if change < -TOLERANCE else text)
        lines.append(line)
    return table(["against single-task, %", *models], lines)


def runs_table(task_set: TaskSet) -> str:
    """Return the table of all runs, on validation."""
    lines = []
    for cell in task_set.cells:
        chosen = cell["choice"] == task_set.choices[cell["method"]]
        converged = [f"{e['task']} {e['step']}" for e in cell["events"] if e["event"] == "converged"]
        lines.append(
            [
                f"`{cell['method']}`",
                f"**{cell['choice']}**" if chosen else cell["choice"],
                str(cell["seed"]),
                *(number(float(cell["averages"][kind])) for kind in ("best_average", "last")),
                str(cell["steps"]["best_average"]),
                ", ".join(converged) or "none",
            ]
        )
    head = ["method", "choice", "seed", "best average", "last", "at step", "converged at step"]
    return table(head, lines)


def report(task_sets: Sequence[TaskSet], name: str, plots: Mapping[str, str] | None = None) -> str:
    """Return the page. ``plots``: task set -> the method whose curves were drawn."""
    parts = [f"# {name}", INTRODUCTION.format(name=name, one_seed=ONE_SEED), _environments(task_sets)]
    for task_set in task_sets:
        parts.append(f"## {task_set.name}")
        parts.append(_training_rows(task_set))
        if task_set.is_scored:
            parts.append(results_table(task_set))
            waiting = [f"`{method}`" for method in task_set.methods if not task_set.scored(method)]
            if waiting:
                parts.append(f"Not scored yet: {', '.join(waiting)}.")
            if against := single_task_table(task_set):
                parts += [f"In bold: more than {TOLERANCE:g} % below the single-task model.", against]
        else:
            parts.append(not_scored(task_set) + " Only validation results are known.")
        if plots and task_set.name in plots:
            parts.append(f"![Validation curves of {plots[task_set.name]} beside sum](curves-{task_set.name}.png)")
        summary = f"<summary>All runs, on validation ({len(task_set.cells)})</summary>"
        bold = "the choice" if task_set.settled else "the best choice so far; none is written down yet"
        parts += [f"<details>\n{summary}", f"In bold: {bold}.", runs_table(task_set), "</details>"]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
Runs of `scripts/benchmarks/quality.py`. Its first lines are the protocol; `scripts/configs/{name}.yaml` is the plan.
This page is written by `scripts/benchmarks/report_quality.py` from the cells beside it.

All metrics are multiplied by 100. *mean* is the mean over the tasks of the checkpoint with the best validation average;
*last* is that of the last weights. Both, and the columns of the tasks (first checkpoint), are means over the seeds.
*Retention* is the validation value of that checkpoint divided by the best value of the same run, as a mean over tasks
and seeds.

In brackets: 95 % percentile bootstrap intervals over seeds and examples (Efron and Tibshirani, *An Introduction to the
Bootstrap*, 1993). Each draw takes the seeds with replacement and a resample of the test rows. Differences are paired:
same seeds, same rows. With few seeds the intervals are too narrow: for n seeds, the bootstrap has (n - 1) / n of their
variance. {one_seed}

*The best baseline* is the one with the best mean on test among all methods that do not distill, which favors it.
*Controls* are other weights of the same runs: the mean of the weights of the tasks' best evaluations, and an
exponential moving average (EMA). *Yardsticks* are not single models: one model per task (their training seconds are
added up), or each task at its own best evaluation. The machine may have had other work during the measured seconds."""


def _environments(task_sets: Sequence[TaskSet]) -> str:
    found = {json.dumps(cell["environment"], sort_keys=True) for task_set in task_sets for cell in task_set.cells}
    texts = []
    for text in sorted(found):
        e = json.loads(text)
        texts.append(f"{e['device']}, {e['threads']} threads, torch {e['torch']}, transformers {e['transformers']}")
    return f"Measured on {'; '.join(texts).replace(' 1 threads', ' 1 thread')}." if texts else "There are no cells yet."


def _training_rows(task_set: TaskSet) -> str:
    rows: dict[str, int] = {}
    for cell in task_set.cells:
        rows |= cell["train_rows"]
    steps = sorted({cell["steps"]["last"] for cell in task_set.cells if not is_single(cell["method"])})
    text = "Training rows: " + ", ".join(f"{task} {rows[task]}" for task in task_set.metrics)
    return text + (f"; steps: {', '.join(map(str, steps))}." if steps else ".")


def renew(text: str, task_sets: Sequence[TaskSet]) -> str:
    """Return a page with the short tables between their markers; without markers, it is unchanged."""
    for task_set in task_sets:
        begin, end = f"<!-- quality:{task_set.name} -->", f"<!-- /quality:{task_set.name} -->"
        new = f"{begin}\n\n{summary_table(task_set)}\n\n{end}".replace("\\", r"\\")
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", new, text, flags=re.DOTALL)
    return text


# -- plots ------------------------------------------------------------------------------------------------------------


def plot_curves(task_set: TaskSet, method: str, path: Path) -> None:
    """Draw the validation curves of the tasks and their mean: a method in color, ``sum`` in gray; thin lines are seeds.

    The height of a panel ignores the first tenth of the steps, whose rise would flatten the rest.
    """
    panels = [*task_set.metrics, None]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.5 * columns, 2.5 * rows + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    compared = {name: task_set.chosen(name) for name in ("sum", method) if name in task_set.methods}
    switched = False
    for place, task in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        for name, cells in compared.items():
            _draw(axes, [curve(cell, task) for cell in cells], _style(name, method))
        switches = convergences(compared[method], task)
        if switches:
            x, y = zip(*switches, strict=True)
            axes.plot(x, y, "v", color=ORANGE, markeredgecolor="white", markeredgewidth=0.6, markersize=7, zorder=4)
            switched = True
        _limits(axes, [curve(cell, task) for cells in compared.values() for cell in cells], [y for _, y in switches])
        metric = "" if task is None else task_set.metrics[task]
        axes.set_title("mean over the tasks" if task is None else task, fontsize=10, loc="left")
        axes.set_ylabel(METRIC_NAMES.get(metric, metric), fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if place + columns >= len(panels):
            axes.set_xlabel("step", fontsize=9)
        axes.grid(True, axis="y", color=LIGHT_GREY, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    handles = [Line2D([], [], **_style(name, method), linewidth=2) for name in compared]
    labels = [f"{name}, {_count(len(cells), 'seed')}" for name, cells in compared.items()]
    if switched:
        handles.append(Line2D([], [], color=ORANGE, linestyle="", marker="v", markersize=6))
        labels.append("the task converged (in one seed)")
    figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=9, frameon=False, handlelength=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _limits(axes: Axes, curves: Sequence[Mapping[int, float]], marked: Sequence[float]) -> None:
    """Fit the limits to the marked values and to the steps after the first tenth, with at least `MIN_HEIGHT`."""
    end = max((step for points in curves for step in points), default=0)
    shown = [y for points in curves for step, y in points.items() if 10 * step > end and math.isfinite(y)]
    if shown := [*shown, *marked]:
        low, high = min(shown), max(shown)
        margin = max(0.06 * (high - low), (MIN_HEIGHT - (high - low)) / 2)
        axes.set_ylim(low - margin, high + margin)


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}" + ("s" if number_of != 1 else "")


def _style(name: str, method: str) -> dict[str, Any]:
    return {"color": BLUE, "linestyle": "-"} if name == method else {"color": GREY, "linestyle": (0, (4, 1.5))}


def _draw(axes: Axes, curves: Sequence[Mapping[int, float]], style: Mapping[str, Any]) -> None:
    """Draw one method in one panel."""
    steps = sorted({step for points in curves for step, value in points.items() if math.isfinite(value)})
    middle = [float(np.nanmean([points.get(step, math.nan) for points in curves])) for step in steps]
    if len(curves) > 1:
        for points in curves:
            axes.plot(list(points), list(points.values()), **{**style, "linestyle": "-"}, linewidth=0.7, alpha=0.6)
    axes.plot(steps, middle, **style, linewidth=1.9)


def convergences(cells: Sequence[Cell], task: str | None) -> list[tuple[int, float]]:
    """Return step and value of each convergence of a task, in the runs with a value there."""
    return [
        (event["step"], value)
        for cell in cells
        for event in cell["events"]
        if event["event"] == "converged" and event["task"] == task
        if math.isfinite(value := curve(cell, task).get(event["step"], math.nan))
    ]


def curve(cell: Cell, task: str | None) -> dict[int, float]:
    """Return step -> validation value of a task, or of the mean over the tasks; NaN if there is none."""
    curves = [
        {step: math.nan if value is None else float(value) for step, value in points}
        for name, points in cell["curves"].items()
        if task in (None, name)
    ]
    return {step: mean(points.get(step, math.nan) for points in curves) for step in sorted(set().union(*curves))}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, metavar="CELLS", help="a folder that scripts/benchmarks/quality.py wrote")
    parser.add_argument("--output-dir", type=Path, help="default: CELLS")
    parser.add_argument("--method", help="method to draw; default: the best distilling method on validation")
    parser.add_argument("--page", type=Path, help="page whose short tables are renewed")
    args = parser.parse_args()
    task_sets = read_task_sets(args.cells)
    if not task_sets:
        raise SystemExit(f"{args.cells} has no cells (TASK_SET/METHOD/CHOICE-seedN.json).")
    folder = args.output_dir or args.cells
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, str] = {}
    for task_set in task_sets:
        method = args.method or best_distilling(task_set, task_set.chosen)
        if method in task_set.methods and method != "sum":
            plots[task_set.name] = method
            plot_curves(task_set, method, folder / f"curves-{task_set.name}.png")
    text = report(task_sets, args.cells.resolve().name, plots)
    (folder / "README.md").write_text(text, encoding="utf-8")
    if args.page is not None:
        old = args.page.read_text(encoding="utf-8")
        args.page.write_text(renew(old, task_sets), encoding="utf-8")
        for task_set in task_sets:
            if f"<!-- quality:{task_set.name} -->" not in old:
                print(f"{args.page} has no markers for {task_set.name}: <!-- quality:{task_set.name} -->.")


if __name__ == "__main__":
    main()
