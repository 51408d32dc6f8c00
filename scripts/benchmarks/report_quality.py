"""The results of scripts/benchmarks/quality.py as Markdown tables and plots, from its cells alone.

    python scripts/benchmarks/report_quality.py CELLS [--output-dir FOLDER] [--method NAME] [--readme FILE.md]

Writes `README.md` and one `curves-BUNDLE.png` a bundle. With ``--readme``, the short tables there are renewed, each
between ``<!-- quality:BUNDLE -->`` and ``<!-- /quality:BUNDLE -->``.

The intervals are percentile bootstrap intervals over seeds and examples (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13): each draw takes as many seeds as there are, with replacement, and one resample of the
test rows. Differences are paired: both methods have the seeds and the rows of a draw.
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
# Methods that train each task by itself -> label, and where they stand in the table.
SINGLE_TASK = {
    "single_distill": ("single-task self-distillation", "control"),
    "single": ("single-task models", "yardstick"),
}
TOLERANCE = 1.0  # percent below its single-task model, from which a task is marked
NOT_KNOWN = "n/a"
LEAST_HEIGHT = 0.04  # of a panel, so that noise does not look like more
ONE_SEED = r"\* One seed: the interval is over the examples alone."
# Okabe and Ito's palette. In grey print the two methods are told apart by their dashes.
BLUE, ORANGE, GREY, LIGHT_GREY = "#0072B2", "#D55E00", "#767676", "#E5E5E5"

Cell = Mapping[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Bundle:
    """One bundle: cells in the order of `method_order`, and each method's choice (not settled: the best so far)."""

    name: str
    cells: list[Cell]
    choices: Mapping[str, str]
    settled: bool

    @property
    def metrics(self) -> dict[str, str]:
        """Task -> metric, in the order of the tasks."""
        several = [cell for cell in self.cells if not is_single(cell["method"])]
        found: dict[str, str] = {}
        for cell in several or self.cells:
            found |= {task: metric for task, metric in cell["metrics"].items() if task not in found}
        return found

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(cell["method"] for cell in self.cells))

    def chosen(self, method: str) -> list[Cell]:
        """A method's cells at its choice, by seed."""
        return [c for c in self.cells if c["method"] == method and c["choice"] == self.choices[method]]

    def scored(self, method: str) -> list[Cell]:
        return [cell for cell in self.chosen(method) if cell["test"] is not None]

    @property
    def is_scored(self) -> bool:
        return any(self.scored(method) for method in self.methods)


@dataclass(frozen=True)
class Outcome:
    """One seed on test: task -> metric, the same of the last weights where there are some, and the rest of a row."""

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
    """The mean; NaN of none, and where one is NaN: a run without a value is not left out in silence."""
    known = list(numbers)
    return math.fsum(known) / len(known) if known else math.nan


def is_single(method: str) -> bool:
    """Whether a method is one task's model, ``single-<task>`` or ``single_distill-<task>``."""
    return method.partition("-")[0] in SINGLE_TASK


def is_distilling(method: str) -> bool:
    return method.startswith("distill")


def method_order(method: str) -> tuple[int, int, str]:
    """Baselines, distilling methods, single-task models; the well-known baselines first, the rest by name."""
    group = 2 if is_single(method) else 1 if is_distilling(method) else 0
    return group, FIRST_METHODS.index(method) if method in FIRST_METHODS else len(FIRST_METHODS), method


def make_bundle(name: str, cells: Iterable[Cell], choices: Mapping[str, str] | None = None) -> Bundle:
    """Sort the cells. Where a choice is not written down yet, it is the best so far on validation.

    The same comparison as the benchmark's: with the first seed.
    """
    ordered = sorted(cells, key=lambda cell: (method_order(cell["method"]), cell["choice"], cell["seed"]))
    best: dict[str, Cell] = {}
    first = {cell["method"]: min(c["seed"] for c in ordered if c["method"] == cell["method"]) for cell in ordered}
    for cell in ordered:
        method = cell["method"]
        if cell["seed"] == first[method] and (method not in best or _validation(cell) > _validation(best[method])):
            best[method] = cell
    so_far = {method: cell["choice"] for method, cell in best.items()}
    return Bundle(name, ordered, {**so_far, **(choices or {})}, settled=choices is not None)


def read_bundles(folder: Path) -> list[Bundle]:
    """All bundles of a folder of cells, by name."""
    cells: dict[str, list[Cell]] = {}
    for path in sorted(folder.glob("*/*/*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        cells.setdefault(cell["bundle"], []).append(cell)
    bundles = []
    for name in sorted(cells):
        file = folder / name / "choices.json"
        choices = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        bundles.append(make_bundle(name, cells[name], choices))
    return bundles


def _validation(cell: Cell) -> float:
    average = cell["averages"]["best_average"]
    return -math.inf if average is None else float(average)


def best_distilling(bundle: Bundle, of: Callable[[str], Sequence[Cell]]) -> str | None:
    """The distilling method with the best validation average, over the seeds of ``of``."""
    averages = {name: mean(map(_validation, of(name))) for name in bundle.methods if is_distilling(name) and of(name)}
    return max(averages, key=averages.__getitem__) if averages else None


# -- statistics -------------------------------------------------------------------------------------------------------


def interval(replicates: Mapping[int, ArrayLike], against: Mapping[int, ArrayLike] | None = None) -> Interval:
    """The 95 % percentile bootstrap interval of a mean over seeds, or of its difference to another's.

    Draw b takes seeds with replacement, as many as there are, and averages what they have in resample b of the rows.

    Args:
        replicates: Seed -> the metric in each resample of the test rows.
        against: The same of what is subtracted, in pairs: same seeds and rows. Seeds of one alone are left out.

    Returns:
        Its two ends; NaN where more than half of the draws are not defined, or no seed is shared.

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
    """A checkpoint's validation value over the best of the run, in percent; the mean over the tasks with values > 0."""
    shares = []
    for task, best in cell["validation"]["oracle"].items():
        value = cell["validation"][kind][task]
        if best is not None and value is not None and best > 0 and value > 0:
            shares.append(100 * value / best)
    return mean(shares)


def relative(value: float, base: float) -> float:
    """Percent above the base; NaN where that has no meaning."""
    return 100 * (value / base - 1) if base > 0 else math.nan


def results(bundle: Bundle) -> list[Row]:
    """All rows of a bundle's table, in order; scored runs only."""
    rows = []
    for method in bundle.methods:
        if not is_single(method) and (cells := bundle.scored(method)):
            group = "distilling" if is_distilling(method) else "baseline"
            rows.append(_row(f"`{method}`", group, cells, "best_average", "last"))
    for method in bundle.methods:
        for kind, name in CONTROLS.items():
            if not is_single(method) and (cells := [c for c in bundle.scored(method) if kind in c["test"]]):
                rows.append(_row(f"`{method}`, {name}", "control", cells, kind))
    rows += [row for kind in SINGLE_TASK if (row := single_task_row(bundle, kind))]
    for oracle in ("sum", best_distilling(bundle, bundle.scored)):
        if oracle is not None and oracle in bundle.methods and (cells := bundle.scored(oracle)):
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


def single_task_row(bundle: Bundle, kind: str = "single") -> Row | None:
    """The models of single tasks as one row; its mean needs all tasks, with the same seeds."""
    models = {
        task: {cell["seed"]: cell for cell in bundle.scored(f"{kind}-{task}")}
        for task in bundle.metrics
        if f"{kind}-{task}" in bundle.methods
    }
    models = {task: cells for task, cells in models.items() if cells}
    if not models:
        return None
    whole = len(models) == len(bundle.metrics)
    seeds = {}
    for seed in sorted(set.intersection(*(set(cells) for cells in models.values()))):
        parts = [cells[seed] for cells in models.values()]
        values = {task: _numbers(c[seed]["test"]["best_average"])[task] for task, c in models.items()}
        last = {task: _numbers(c[seed]["test"]["last"])[task] for task, c in models.items()}
        replicates = np.mean([np.array(p["replicates"]["best_average"], dtype=float) for p in parts], axis=0)
        seeds[seed] = Outcome(
            # A mean over some tasks would look like one over all.
            values={task: values.get(task, math.nan) for task in bundle.metrics},
            last=last if whole else None,
            replicates=replicates if whole else np.full_like(replicates, np.nan),
            retention=mean(retention(part, "best_average") for part in parts),
            seconds=math.fsum(part["seconds"]["training"] for part in parts),
        )
    if not seeds:
        return None
    choices = {task: bundle.choices[f"{kind}-{task}"] for task in models}
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
    """The baseline with the best mean on test."""
    known = [row for row in rows if row.group == "baseline" and math.isfinite(row.mean)]
    return max(known, key=lambda row: row.mean) if known else None


# -- Markdown ---------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 2, sign: bool = False, times: float = 100) -> str:
    """A metric times 100; no minus before zero."""
    if not math.isfinite(value):
        return NOT_KNOWN
    return f"{round(times * value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def with_interval(value: float, ends: Interval, seeds: int, sign: bool = False) -> str:
    """A value and its interval; of one seed, the interval has a star."""
    if not math.isfinite(value):
        return NOT_KNOWN
    if not all(map(math.isfinite, ends)):
        return number(value, sign=sign)
    low, high = (number(end, sign=sign) for end in ends)
    return f"{number(value, sign=sign)} [{low}, {high}]" + (r"\*" if seeds == 1 else "")


def mean_cell(row: Row) -> str:
    return with_interval(row.mean, interval(row.replicates), len(row.seeds))


def last_cell(row: Row) -> str:
    """Empty where there are no last weights of the kind."""
    return number(row.last) if any(outcome.last is not None for outcome in row.seeds.values()) else ""


def difference_cells(row: Row, base: Row | None) -> tuple[str, str]:
    """The difference to the best baseline with its interval, in points, and in percent of the baseline."""
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
    """A Markdown table; columns of numbers are aligned to the right.

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


def _task_heads(bundle: Bundle) -> list[str]:
    return [f"{task} {METRIC_NAMES.get(metric, metric)}" for task, metric in bundle.metrics.items()]


def _grouped(rows: Sequence[Row], cells_of: Callable[[Row], list[str]], columns: int) -> list[list[str]]:
    """The lines of a table, with a line above the controls and one above the yardsticks."""
    lines = []
    titles = {"control": "*controls*", "yardstick": "*yardsticks*"}
    for row in rows:
        if row.group in titles:
            lines.append([titles.pop(row.group)] + [""] * (columns - 1))
        lines.append(cells_of(row))
    return lines


def not_scored(bundle: Bundle) -> str:
    return f"Nothing of {bundle.name} has been scored on test yet."


def summary_table(bundle: Bundle) -> str:
    """The narrow table, for the main README."""
    rows = results(bundle)
    if not rows:
        return not_scored(bundle)
    base = best_baseline(rows)
    head = [f"{bundle.name}, test", "mean [95 %]", "to best baseline [95 %]", "last", *_task_heads(bundle)]

    def cells(row: Row) -> list[str]:
        tasks = [number(row.task(task), 1) for task in bundle.metrics]
        return [row.label, mean_cell(row), difference_cells(row, base)[0], last_cell(row), *tasks]

    text = table(head, _grouped(rows, cells, len(head)))
    return text + ("\n\n" + ONE_SEED if ONE_SEED[:2] in text else "")


def results_table(bundle: Bundle) -> str:
    """The whole table of test results."""
    rows = results(bundle)
    base = best_baseline(rows)
    head = ["method", "mean [95 %]", "to best baseline [95 %]", "relative, %", "last", *_task_heads(bundle)]
    head += ["retention, %", "seeds", "training, s", "choice"]

    def cells(row: Row) -> list[str]:
        tasks = [number(row.task(task), 1) for task in bundle.metrics]
        kept = number(mean(x.retention for x in row.seeds.values()), 1, times=1)
        seconds = f"{statistics.median(outcome.seconds for outcome in row.seeds.values()):.0f}"
        facts = [kept, str(len(row.seeds)), seconds, row.choice]
        return [row.label, mean_cell(row), *difference_cells(row, base), last_cell(row), *tasks, *facts]

    return table(head, _grouped(rows, cells, len(head)))


def single_task_table(bundle: Bundle) -> str | None:
    """The best baseline and the distilling methods, each task in percent against its single-task model."""
    rows = results(bundle)
    base = best_baseline(rows)
    models: dict[str, Row] = {}
    for task in bundle.metrics:
        name = f"single-{task}"
        if name in bundle.methods and (cells := bundle.scored(name)):
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


def runs_table(bundle: Bundle) -> str:
    """Every run that was made, on validation."""
    lines = []
    for cell in bundle.cells:
        chosen = cell["choice"] == bundle.choices[cell["method"]]
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


def report(bundles: Sequence[Bundle], name: str, plots: Mapping[str, str] | None = None) -> str:
    """The whole README. ``plots``: bundle -> the method whose curves were drawn."""
    parts = [f"# {name}", INTRODUCTION.format(name=name, one_seed=ONE_SEED), _environments(bundles)]
    for bundle in bundles:
        parts.append(f"## {bundle.name}")
        parts.append(_training_rows(bundle))
        if bundle.is_scored:
            parts.append(results_table(bundle))
            waiting = [f"`{method}`" for method in bundle.methods if not bundle.scored(method)]
            if waiting:
                parts.append(f"Not scored yet: {', '.join(waiting)}.")
            if against := single_task_table(bundle):
                parts += [f"In bold: more than {TOLERANCE:g} % below the single-task model.", against]
        else:
            parts.append(not_scored(bundle) + " What is known is validation.")
        if plots and bundle.name in plots:
            parts.append(f"![Validation curves of {plots[bundle.name]} beside sum](curves-{bundle.name}.png)")
        summary = f"<summary>Every run that was made, on validation ({len(bundle.cells)})</summary>"
        bold = "the choice that was made" if bundle.settled else "the best choice so far; none is written down yet"
        parts += [f"<details>\n{summary}", f"In bold: {bold}.", runs_table(bundle), "</details>"]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
Runs of `scripts/benchmarks/quality.py`. Its first lines are the protocol; `scripts/configs/{name}.yaml` is the plan.
This page is written by `scripts/benchmarks/report_quality.py` from the cells beside it.

All metrics are times 100. *mean* is over the tasks at the checkpoint with the best validation average, *last* at the
end of the budget; both, and each task (at the former checkpoint), are means over the seeds. *Retention* is that
checkpoint's validation value over the best in the same run, mean over tasks and seeds.

In brackets: 95 % percentile bootstrap intervals over seeds and examples (Efron and Tibshirani, *An Introduction to the
Bootstrap*, 1993): each draw takes the seeds with replacement and a resample of the test rows. The differences are
paired: same seeds, same rows. Few seeds are drawn too narrowly (of n seeds, the bootstrap has (n - 1) / n of the
variance that is theirs). {one_seed}

*The best baseline* is the one with the best mean on test among all methods that do not distill, which is to its
advantage. *Controls* are other weights of the same runs: the mean of the weights of the tasks' best evaluations, and an
exponential moving average (EMA). *Yardsticks* are no one model: a model for each task (their training seconds are added
up), or each task at its own best evaluation. The seconds are of a machine that may have had other work."""


def _environments(bundles: Sequence[Bundle]) -> str:
    found = {json.dumps(cell["environment"], sort_keys=True) for bundle in bundles for cell in bundle.cells}
    texts = []
    for text in sorted(found):
        e = json.loads(text)
        texts.append(f"{e['device']}, {e['threads']} threads, torch {e['torch']}, transformers {e['transformers']}")
    return f"Measured on {'; '.join(texts).replace(' 1 threads', ' 1 thread')}." if texts else "There are no cells yet."


def _training_rows(bundle: Bundle) -> str:
    rows: dict[str, int] = {}
    for cell in bundle.cells:
        rows |= cell["train_rows"]
    steps = sorted({cell["steps"]["last"] for cell in bundle.cells if not is_single(cell["method"])})
    text = "Training rows: " + ", ".join(f"{task} {rows[task]}" for task in bundle.metrics)
    return text + (f"; steps: {', '.join(map(str, steps))}." if steps else ".")


def renew(text: str, bundles: Sequence[Bundle]) -> str:
    """A README with the short tables of these bundles between their markers; without markers, it stays as it is."""
    for bundle in bundles:
        begin, end = f"<!-- quality:{bundle.name} -->", f"<!-- /quality:{bundle.name} -->"
        new = f"{begin}\n\n{summary_table(bundle)}\n\n{end}".replace("\\", r"\\")
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", new, text, flags=re.DOTALL)
    return text


# -- plots ------------------------------------------------------------------------------------------------------------


def plot_curves(bundle: Bundle, method: str, path: Path) -> None:
    """Draw each task's validation curve, and their mean: a method in color, `sum` in grey; thin lines are seeds.

    The first tenth of the steps does not count for the height of a panel: the rise would make the rest flat.
    """
    panels = [*bundle.metrics, None]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.5 * columns, 2.5 * rows + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    compared = {name: bundle.chosen(name) for name in ("sum", method) if name in bundle.methods}
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
        metric = "" if task is None else bundle.metrics[task]
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
    """Show all but the first tenth of the steps, what is marked, and no less than `LEAST_HEIGHT`."""
    end = max((step for points in curves for step in points), default=0)
    shown = [y for points in curves for step, y in points.items() if 10 * step > end and math.isfinite(y)]
    if shown := [*shown, *marked]:
        low, high = min(shown), max(shown)
        margin = max(0.06 * (high - low), (LEAST_HEIGHT - (high - low)) / 2)
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
    """Step and value at which a task converged, in each run in which it did and had a value."""
    return [
        (event["step"], value)
        for cell in cells
        for event in cell["events"]
        if event["event"] == "converged" and event["task"] == task
        if math.isfinite(value := curve(cell, task).get(event["step"], math.nan))
    ]


def curve(cell: Cell, task: str | None) -> dict[int, float]:
    """Step -> validation value of a task, or the mean over the tasks; NaN where there is none."""
    curves = [
        {step: math.nan if value is None else float(value) for step, value in points}
        for name, points in cell["curves"].items()
        if task in (None, name)
    ]
    return {step: mean(points.get(step, math.nan) for points in curves) for step in sorted(set().union(*curves))}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, metavar="CELLS", help="a folder that scripts/benchmarks/quality.py filled")
    parser.add_argument("--output-dir", type=Path, help="default: CELLS")
    parser.add_argument("--method", help="whose curves are drawn; default: the best distilling method on validation")
    parser.add_argument("--readme", type=Path, help="a file whose short tables are renewed")
    args = parser.parse_args()
    bundles = read_bundles(args.cells)
    if not bundles:
        raise SystemExit(f"{args.cells} has no cells, which are BUNDLE/METHOD/CHOICE-seedN.json.")
    folder = args.output_dir or args.cells
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, str] = {}
    for bundle in bundles:
        method = args.method or best_distilling(bundle, bundle.chosen)
        if method in bundle.methods and method != "sum":
            plots[bundle.name] = method
            plot_curves(bundle, method, folder / f"curves-{bundle.name}.png")
    text = report(bundles, args.cells.resolve().name, plots)
    (folder / "README.md").write_text(text, encoding="utf-8")
    if args.readme is not None:
        old = args.readme.read_text(encoding="utf-8")
        args.readme.write_text(renew(old, bundles), encoding="utf-8")
        for bundle in bundles:
            if f"<!-- quality:{bundle.name} -->" not in old:
                print(f"{args.readme} has no place for {bundle.name}: <!-- quality:{bundle.name} -->.")


if __name__ == "__main__":
    main()
