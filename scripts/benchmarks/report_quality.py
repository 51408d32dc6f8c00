"""Write the results of scripts/benchmarks/quality.py as Markdown tables and plots, from its cells.

    python scripts/benchmarks/report_quality.py scripts/configs/quality.yaml [--cells FOLDER] [--page PAGE.md ...]

Writes ``README.md``, ``curves-NAME.png`` per task set and ``noise.png`` beside the cells. ``--page`` renews the tables
of pages, each between ``<!-- quality:NAME -->`` and ``<!-- /quality:NAME -->``, or ``NAME short`` for one of few rows;
``diagnosis`` is the table of what plain training said of whether its tasks peak apart. The pages of this project are
``docs/results.md``, ``docs/methods.md`` and ``README.md``.

A seed is a whole replication: other rows, another split, other noise, another order. Intervals are t intervals over the
seeds. Differences are paired by seed. The best baseline is chosen on validation, over all its seeds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from pages import replaced, table
from quality import Plan, read_cells, validation_averages
from scipy import stats

METRIC_NAMES = {
    "matthews_correlation": "MCC",
    "seqeval_f1": "span F1",
    "accuracy": "acc",
    "pearson": "r",
    "f1": "F1",
    "macro_f1": "macro F1",
}
DEFAULT = "distill"
KINDS = {
    "average_of_bests": "average of the bests",
    "ema_best_average": "averaged weights (EMA)",
    "oracle": "each task at its own best",
}
YARDSTICK = "yardstick"
# Row -> its name in a short table. The best baseline has a row there, too.
SHORT_NAMES = {
    "`sum`": "plain multi-task training",
    "`rollback`": "`rollback`: a converged task stops, the weights return (as mSFT)",
    "`sum`, average of the bests": "plain training, average of the tasks' best weights",
    "`sum`, averaged weights (EMA)": "plain training, averaged weights (EMA)",
    "`distill_plateau`": "distilling, criterion `plateau` (the paper)",
    "`distill`": "**distilling, the default**",
    "`sum`, each task at its own best": "*plain training, each task at its own best (not one checkpoint)*",
    "single-task models": "*one model per task*",
}
# Row of a variant of the default -> what it does.
VARIANTS = {
    "`distill_labels`": "`hard_label_weight: 0.3`: a share of the loss stays on the labels",
    "`distill_renew`": "a task below 99.5 % of its best returns to its labels; a better student becomes the teacher",
    "`distill_fewer_draws`": "a distilling task is drawn a third as often, and the learning ones more often",
    "`distill_loss`": "a task also converges when its validation loss rises",
    "`distill_averaged`": "a moving average of the weights is evaluated, teaches and is saved",
    "`distill_averages`, averaged weights (EMA)": "a moving average of the weights is saved",
    "`distill_averages`, average of the bests": "the average of the tasks' best weights is saved",
    "`distill_stable`": "`warmup_stable_decay`: a constant rate, and a decay in the last fifth",
}
# Task set -> its name in the table of diagnoses.
LABELS = {
    "noisy5": "noisy5: 30 % random labels",
    "natural5": "natural5: small tasks, own labels",
    "clean5": "clean5: noisy5 with true labels",
    "distant5": "distant5: labels from rules",
    "noisy5_45": "noisy5_45: 45 % random labels",
}
NOT_KNOWN = "n/a"
# The palette of Okabe and Ito. In grayscale, the dashes distinguish the two methods.
BLUE, ORANGE, GREY, LIGHT_GREY = "#0072B2", "#D55E00", "#767676", "#E5E5E5"

Cell = Mapping[str, Any]
Scores = dict[int, dict[str, float]]


@dataclass(frozen=True)
class Row:
    """One method, or other weights of its runs: seed -> task -> score on validation and on test (empty: not scored).

    ``group`` is ``baseline``, ``distilling`` or ``yardstick``. ``last`` has the test scores of the end of the budget.
    """

    label: str
    group: str
    validation: Scores
    test: Scores
    last: Scores

    def means(self, split: str = "test") -> dict[int, float]:
        """Return seed -> mean over the tasks; NaN if a task has no value."""
        return {seed: mean(scores.values()) for seed, scores in getattr(self, split).items()}

    def mean_on(self, split: str) -> float:
        """Return the mean over tasks and seeds."""
        return mean(self.means(split).values())


@dataclass(frozen=True)
class TaskSet:
    """One task set: its cells at the chosen rate, and the rows of its table."""

    name: str
    noise: float
    choice: str
    metrics: Mapping[str, str]
    cells: Sequence[Cell]
    trials: Sequence[Cell]
    small: Sequence[str] = ()
    validation_only: bool = False
    missing: Collection[str] = ()  # methods that lack runs

    @property
    def large(self) -> list[str]:
        """The tasks that are not small."""
        return [task for task in self.metrics if task not in self.small]

    def of(self, method: str) -> list[Cell]:
        return [cell for cell in self.cells if cell["method"] == method]

    @property
    def split(self) -> str:
        """``test`` once all cells have been scored, ``validation`` before."""
        scored = self.cells and all(cell["test"] is not None for cell in self.cells)
        return "test" if scored and not self.validation_only else "validation"

    @property
    def has_plot(self) -> bool:
        """Whether there is something to draw that another task set has not drawn."""
        return bool(self.of(DEFAULT) and self.of("sum")) and not self.validation_only

    def best_baseline(self) -> Row | None:
        """Return the best baseline; None while one of them lacks runs."""
        lacking = any(group_of(name) == "baseline" and not name.startswith("single-") for name in self.missing)
        return None if lacking else best_baseline(self.rows())

    def rows(self) -> list[Row]:
        """Return the rows of the table, in order: baselines, distilling methods, yardsticks."""
        several = list(dict.fromkeys(cell["method"] for cell in self.cells if not cell["method"].startswith("single-")))
        rows = [make_row(f"`{name}`", group_of(name), self.of(name), "best_average") for name in several]
        for name in several:
            for kind, text in KINDS.items():
                cells = [cell for cell in self.of(name) if kind in cell["steps"] and kind in (cell["test"] or KINDS)]
                if cells and (kind != "oracle" or name == "sum"):
                    group = YARDSTICK if kind == "oracle" else group_of(name)
                    rows.append(make_row(f"`{name}`, {text}", group, cells, kind))
        if any(cell["method"].startswith("single-") for cell in self.cells):
            rows.append(self._single())
        order = ["baseline", "distilling", YARDSTICK]
        return sorted(rows, key=lambda row: order.index(row.group))

    def _single(self) -> Row:
        """Return the single-task models as one row."""
        parts = [make_row("", YARDSTICK, self.of(f"single-{task}"), "best_average") for task in self.metrics]
        merged: dict[str, Scores] = {}
        for split in ("validation", "test", "last"):
            seeds = set.intersection(*(set(getattr(part, split)) for part in parts))
            merged[split] = {
                seed: {task: score for part in parts for task, score in getattr(part, split)[seed].items()}
                for seed in sorted(seeds)
            }
        return Row("single-task models", YARDSTICK, **merged)


def group_of(method: str) -> str:
    return "distilling" if method.startswith("distill") else "baseline"


def make_row(label: str, group: str, cells: Iterable[Cell], kind: str) -> Row:
    """Return the row of some cells of one method; ``kind`` is that of the checkpoint."""
    validation, test, last = {}, {}, {}
    for cell in sorted(cells, key=lambda cell: cell["seed"]):
        validation[cell["seed"]] = numbers(cell["validation"][kind])
        if cell["test"] is not None:
            test[cell["seed"]] = numbers(cell["test"][kind])
            if kind == "best_average":
                last[cell["seed"]] = numbers(cell["test"]["last"])
    return Row(label, group, validation, test, last)


def numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def mean(values: Iterable[float]) -> float:
    """Return the mean; NaN for no numbers or if one is NaN, so that a run without a value is visible."""
    known = list(values)
    return math.fsum(known) / len(known) if known else math.nan


def read_task_sets(plan: Plan, folder: Path) -> list[TaskSet]:
    """Return the task sets of a plan that have cells."""
    cells, averages = read_cells(folder), validation_averages(folder)
    found = []
    for name, settings in plan.task_sets.items():
        choice = plan.choice(name, averages)
        wanted = [] if choice is None else [cells[cell] for cell in plan.cells(name, choice) if cell in cells]
        if wanted and choice is not None:
            metrics: dict[str, str] = {}
            for cell in wanted:
                metrics |= cell["metrics"]
            ordered = {task: metrics[task] for task in plan.tasks(name) if task in metrics}
            trials = [cells[cell] for cell in plan.trials(name) if cell.task_set == name and cell in cells]
            beside = settings.get("beside")
            if beside is not None:
                of_both = [replace(cell, task_set=beside) for cell in plan.cells(beside, choice)]
                shared = [cell for cell in of_both if cell.method in ("sum", DEFAULT) and cell.seed in plan.seeds(name)]
                wanted = [cells[cell] for cell in shared if cell in cells] + wanted
            small = settings.get("small", ())
            missing = {cell.method for cell in plan.cells(name, choice) if cell not in cells}
            found.append(
                TaskSet(name, settings["noise"], choice, ordered, wanted, trials, small, beside is not None, missing)
            )
    return found


# -- statistics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % t interval; the half-width is NaN for one seed."""

    value: float
    half: float
    seeds: int

    def __str__(self) -> str:
        return self.text()

    def text(self, sign: bool = False) -> str:
        """Return the estimate in points, with a minus that is never on a zero."""
        if not math.isfinite(self.value):
            return NOT_KNOWN
        text = points(self.value, sign)
        return f"{text} ± {100 * self.half:.2f}" if math.isfinite(self.half) else text


def estimate(values: Iterable[float]) -> Estimate:
    """Return the mean over seeds and the half-width of its t interval.

    >>> str(estimate([0.50, 0.52]))
    '51.00 ± 12.71'
    """
    known = list(values)
    if len(known) < 2:
        return Estimate(mean(known), math.nan, len(known))
    half = stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known))
    return Estimate(mean(known), float(half), len(known))


def differences(row: Row, base: Row, split: str = "test", tasks: Collection[str] | None = None) -> list[float]:
    """Return the differences of two rows over the seeds that both have: of the mean over some tasks, or over all."""
    values, against = getattr(row, split), getattr(base, split)
    seeds = sorted(set(values) & set(against))
    if tasks is None:
        return [mean(values[seed].values()) - mean(against[seed].values()) for seed in seeds]
    return [mean(values[seed][task] - against[seed][task] for task in tasks) for seed in seeds]


def seeds_needed(deviation: float, effect: float, power: float = 0.9, level: float = 0.05) -> int:
    """Return the number of seeds with which a paired, two-sided t test sees an effect with the given power.

    >>> seeds_needed(1.0, 1.0)
    13
    """
    for seeds in range(2, 10_000):
        critical = stats.t.ppf(1 - level / 2, seeds - 1)
        shift = effect / deviation * math.sqrt(seeds)
        if stats.nct.sf(critical, seeds - 1, shift) >= power:
            return seeds
    raise ValueError(f"An effect of {effect} must be less small against the deviation {deviation}.")


def best_baseline(rows: Sequence[Row]) -> Row | None:
    """Return the baseline with the best validation mean over its seeds, of those that have all seeds."""
    baselines = [row for row in rows if row.group == "baseline"]
    seeds = max((len(row.validation) for row in baselines), default=0)
    known = [row for row in baselines if len(row.validation) == seeds and not math.isnan(row.mean_on("validation"))]
    return max(known, key=lambda row: row.mean_on("validation"), default=None)


# -- Markdown ---------------------------------------------------------------------------------------------------------


def points(value: float, sign: bool = False) -> str:
    """Return a metric times 100 as text, without -0."""
    return f"{round(100 * value, 2) + 0.0:{'+' if sign else ''}.2f}" if math.isfinite(value) else NOT_KNOWN


def results_table(task_set: TaskSet, rows: Sequence[Row]) -> str:
    """Return the table of a task set: on test, or on validation before the test is opened.

    Variants, which are never tested, are compared with the default instead of showing their last weights.
    """
    split, base = task_set.split, task_set.best_baseline()
    plain, default = (next((row for row in rows if row.label == f"`{name}`"), None) for name in ("sum", DEFAULT))
    tasks = [f"{task} {METRIC_NAMES.get(metric, metric)}" for task, metric in task_set.metrics.items()]
    further = f"to `{DEFAULT}`" if task_set.validation_only else "last"
    head = [f"{task_set.name}, {split}", "seeds", "mean", "to `sum`", further, *tasks]

    def against(row: Row, other: Row | None) -> str:
        return "-" if other is None or row is other else estimate(differences(row, other, split)).text(sign=True)

    lines = []
    for row in rows:
        scores = getattr(row, split)
        label = f"**{row.label}**" if row.label == f"`{DEFAULT}`" else row.label
        last = points(mean(mean(x.values()) for x in row.last.values())) if row.last and split == "test" else ""
        lines.append(
            [
                label + (" (best baseline)" if base is not None and row.label == base.label else ""),
                str(len(scores)),
                str(estimate(row.means(split).values())),
                against(row, plain),
                against(row, default) if task_set.validation_only else last,
                *(f"{100 * mean(x[task] for x in scores.values()):.1f}" for task in task_set.metrics),
            ]
        )
    return table(head, lines)


def comparison(task_set: TaskSet) -> str:
    """Return the sentences on the default against the best baseline, and on the number of seeds."""
    rows = task_set.rows()
    base, default = task_set.best_baseline(), next((row for row in rows if row.label == f"`{DEFAULT}`"), None)
    if base is None or default is None:
        return f"Runs are missing: {', '.join(f'`{name}`' for name in sorted(task_set.missing))}."
    split = task_set.split
    found = differences(default, base, split)
    overall = estimate(found)
    tasks = ", ".join(
        f"{task} {estimate(differences(default, base, split, [task])).text(sign=True)}" for task in task_set.metrics
    )
    groups = ", ".join(
        f"the {name} tasks {estimate(differences(default, base, split, group)).text(sign=True)}"
        for name, group in (("small", task_set.small), ("large", task_set.large))
        if group
    )
    relative = 100 * overall.value / mean(base.means(split).values())
    text = (
        f"`{DEFAULT}` minus {base.label}, the best baseline on validation, on {split}: "
        f"**{overall.text(sign=True)} points** ({relative:+.1f} %, seeds: {overall.seeds}); {groups}. By task: {tasks}."
    )
    deviation = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
    if deviation > 1e-9:
        needed = seeds_needed(deviation, 0.01 * mean(base.means(split).values()))
        text += f" To see 1 % with a power of 90 %, {needed} seeds are needed at this spread."
    return text


def runs_table(task_set: TaskSet) -> str:
    """Return the table of all runs."""
    lines = []
    for cell in [*task_set.cells, *(cell for cell in task_set.trials if cell["choice"] != task_set.choice)]:
        converged = [f"{e['task']} {e['step']}" for e in cell["events"] if e["event"] == "converged"]
        test = ["", ""]
        if cell["test"] is not None:
            test = [points(mean(numbers(cell["test"][kind]).values())) for kind in ("best_average", "last")]
        lines.append(
            [
                f"`{cell['method']}`",
                cell["choice"],
                str(cell["seed"]),
                *(points(cell["averages"][kind] or math.nan) for kind in ("best_average", "last")),
                *test,
                str(cell["steps"]["best_average"]),
                ", ".join(converged) or "none",
                f"{cell['seconds']['training']:.0f}",
                cell["environment"]["device"],
                cell["environment"]["commit"],
            ]
        )
    head = [
        "method",
        "rate",
        "seed",
        "validation",
        "last",
        "test",
        "last",
        "at step",
        "converged at",
        "seconds",
        "device",
        "commit",
    ]
    return table(head, lines)


def report(task_sets: Sequence[TaskSet], name: str) -> str:
    """Return the page."""
    parts = [f"# {name}", INTRODUCTION]
    for task_set in task_sets:
        parts += [f"## {task_set.name}", f"Learning rate: {task_set.choice}. {comparison(task_set)}"]
        parts.append(results_table(task_set, task_set.rows()))
        if task_set.has_plot:
            parts.append(f"![Validation curves of {DEFAULT} beside sum](curves-{task_set.name}.png)")
        summary = f"<summary>All runs ({len(task_set.cells)})</summary>"
        parts += [f"<details>\n{summary}", runs_table(task_set), "</details>"]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
Runs of `scripts/benchmarks/quality.py`, written by `scripts/benchmarks/report_quality.py` from the cells beside this
page. [PROTOCOL.md](PROTOCOL.md) says what is compared and how it is decided.

All scores are multiplied by 100. *mean* is the mean over the tasks of the checkpoint with the best validation average,
which is the one that the software saves; *last* is that of the last weights. After ± is the half-width of a 95 % t
interval over the seeds. Differences are paired by seed. A task set is scored on test when all its runs are complete;
until then its table shows validation, whose labels are as noisy as those of training. On validation, the *best average*
of a run is chosen on the rows that it is reported on, which favors runs whose curves vary more."""


def short_table(task_set: TaskSet) -> str:
    """Return the table of a task set for readers who do not know the methods' names: at most nine rows."""
    split, rows = task_set.split, {row.label: row for row in task_set.rows()}
    base, plain = task_set.best_baseline(), rows["`sum`"]
    head = [f"{task_set.name}, {split}", "seeds", "five tasks", "to plain training", "small tasks", "large tasks"]
    lines = []
    for label in dict.fromkeys([*SHORT_NAMES, *([] if base is None else [base.label])]):
        if label in rows:
            row, scores = rows[label], getattr(rows[label], split).values()
            against = "" if row is plain else estimate(differences(row, plain, split)).text(sign=True)
            best = " (best baseline)" if base is not None and label == base.label else ""
            groups = [mean(mean(x[task] for task in of) for x in scores) for of in (task_set.small, task_set.large)]
            numbers = [str(len(scores)), points(row.mean_on(split)), against, *map(points, groups)]
            lines.append([f"{SHORT_NAMES.get(label, label)}{best}", *numbers])
    return table(head, lines)


def variants_table(task_set: TaskSet) -> str:
    """Return the table of the variants of the default; averages are compared with the checkpoint of the same run."""
    rows = {row.label: row for row in task_set.rows()}
    head = [f"{task_set.name}, {task_set.split}", "seeds", "to `distill`", "small tasks", "large tasks"]
    lines = []
    for label, text in VARIANTS.items():
        if label in rows:
            own, _, averages = label.partition(", ")
            base = rows[own if averages else f"`{DEFAULT}`"]
            found = [
                differences(rows[label], base, task_set.split, tasks)
                for tasks in (None, task_set.small, task_set.large)
            ]
            lines.append([text, str(len(found[0])), *(estimate(values).text(sign=True) for values in found)])
    return table(head, lines)


def diagnosis_table(task_sets: Iterable[TaskSet]) -> str:
    """Return the table of what the runs of plain training said of whether their tasks peak apart.

    Cells without a diagnosis are left out, and so are task sets that show the runs of another one.
    """
    head = [
        "task set",
        "gain of distilling on test, all seeds",
        "seeds",
        "*something to hold*, by seed (greatest headroom, in standard errors)",
    ]
    lines = []
    for task_set in task_sets:
        cells = [cell for cell in task_set.of("sum") if "diagnosis" in cell]
        if cells and not task_set.validation_only:
            rows, gain = {row.label: row for row in task_set.rows()}, NOT_KNOWN
            if f"`{DEFAULT}`" in rows and task_set.split == "test":
                gain = estimate(differences(rows[f"`{DEFAULT}`"], rows["`sum`"])).text(sign=True)
            seeds = ", ".join(str(cell["seed"]) for cell in cells)
            said = ", ".join(diagnosis_text(cell["diagnosis"]) for cell in cells)
            lines.append([LABELS.get(task_set.name, task_set.name), gain, seeds, said])
    return table(head, lines)


def diagnosis_text(diagnosis: Mapping[str, Any]) -> str:
    """Return an answer, with the task that is the most standard errors below its own peak.

    >>> diagnosis_text({"something_to_hold": "no", "tasks": {"a": {"headroom": 0.01, "headroom_error": 0.02}}})
    'no (a 0.5)'
    """
    known = {name: task for name, task in diagnosis["tasks"].items() if task["headroom_error"]}
    if diagnosis["something_to_hold"] is None or not known:
        return diagnosis["something_to_hold"] or "not known"
    errors = {name: task["headroom"] / task["headroom_error"] for name, task in known.items()}
    task = max(errors, key=errors.__getitem__)
    return f"{diagnosis['something_to_hold']} ({task} {errors[task]:.1f})"


def renew(text: str, task_sets: Sequence[TaskSet]) -> str:
    """Return a page with the tables between their markers, whole or short; without markers, it is unchanged."""
    for task_set in task_sets:
        whole = f"{results_table(task_set, task_set.rows())}\n\n{comparison(task_set)}"
        text = replaced(text, f"quality:{task_set.name}", whole)
        short = variants_table(task_set) if task_set.validation_only else short_table(task_set)
        text = replaced(text, f"quality:{task_set.name} short", short)
    return replaced(text, "quality:diagnosis", diagnosis_table(task_sets))


# -- plots ------------------------------------------------------------------------------------------------------------


def plot_noise(lines: Mapping[str, Mapping[float, Estimate]], path: Path) -> None:
    """Draw the gains over plain training, a line each, against the share of random labels."""
    figure = Figure(figsize=(5.4, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.margins(x=0.1)
    axes.axhline(0, color=GREY, linewidth=1)
    styles = zip(lines.items(), ((BLUE, "o-"), (GREY, "s--")), (-0.4, 0.4), strict=True)
    for (label, levels), (color, style), shift in styles:
        noise = sorted(levels)
        gain = [100 * levels[x].value for x in noise]
        half = [0.0 if math.isnan(levels[x].half) else 100 * levels[x].half for x in noise]
        places = [100 * x + shift for x in noise]  # the intervals stand side by side
        axes.errorbar(places, gain, half, color=color, fmt=style, capsize=4, linewidth=1.8, markersize=5, label=label)
        axes.set_xticks([100 * x for x in noise], [f"{100 * x:g}\n({levels[x].seeds} seeds)" for x in noise])
    axes.set_xlabel("random labels in the small tasks, %", fontsize=9)
    axes.set_ylabel("gain over plain training, points", fontsize=9)
    tidy(axes)
    figure.legend(loc="outside upper left", fontsize=9, frameon=False)
    figure.savefig(path, format="png")


def plot_curves(task_set: TaskSet, path: Path) -> None:
    """Draw the validation curves of the tasks and their mean: the default in color, ``sum`` in gray; thin: seeds."""
    panels = [*task_set.metrics, None]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.5 * columns, 2.5 * rows + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    styles: dict[str, dict[str, Any]] = {
        "sum": {"color": GREY, "linestyle": (0, (4, 1.5))},
        DEFAULT: {"color": BLUE, "linestyle": "-"},
    }
    shared = set.intersection(*({cell["seed"] for cell in task_set.of(method)} for method in styles))
    runs = {method: [cell for cell in task_set.of(method) if cell["seed"] in shared] for method in styles}
    for place, task in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        for method, style in styles.items():
            curves = [curve(cell, task) for cell in runs[method]]
            for points_of_seed in curves if len(curves) > 1 else []:
                axes.plot(*zip(*points_of_seed.items(), strict=True), color=style["color"], linewidth=0.6, alpha=0.4)
            steps = sorted(set.intersection(*(set(found) for found in curves)))
            axes.plot(steps, [mean(found[step] for found in curves) for step in steps], **style, linewidth=1.9)
        marks = [
            (event["step"], curve(cell, task)[event["step"]])
            for cell in runs[DEFAULT]
            for event in cell["events"]
            if event["event"] == "converged" and event["task"] == task
        ]
        if marks:
            axes.plot(*zip(*marks, strict=True), "v", color=ORANGE, markeredgecolor="white", markersize=7, zorder=4)
        metric = "" if task is None else task_set.metrics[task]
        axes.set_title("mean over the tasks" if task is None else task, fontsize=10, loc="left")
        axes.set_ylabel(METRIC_NAMES.get(metric, metric), fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if place + columns >= len(panels):
            axes.set_xlabel("step", fontsize=9)
        tidy(axes)
    handles = [Line2D([], [], **style, linewidth=2) for style in styles.values()]
    handles.append(Line2D([], [], color=ORANGE, linestyle="", marker="v", markersize=6))
    labels = [f"{method}, seeds: {len(shared)}" for method in styles]
    labels.append("the task converged (in one seed)")
    figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=9, frameon=False, handlelength=3)
    figure.savefig(path, format="png")


def tidy(axes: Axes) -> None:
    """Give a panel its grid and small labels."""
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(True, axis="y", color=LIGHT_GREY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def curve(cell: Cell, task: str | None) -> dict[int, float]:
    """Return step -> validation value of a task, or of the mean over the tasks; NaN if there is none."""
    curves = [
        {step: math.nan if value is None else float(value) for step, value in points_of_task}
        for name, points_of_task in cell["curves"].items()
        if task in (None, name)
    ]
    return {step: mean(found.get(step, math.nan) for found in curves) for step in sorted(set().union(*curves))}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, metavar="PLAN.yaml")
    parser.add_argument("--cells", type=Path, help="default: model_cards/<name of the plan>")
    parser.add_argument("--page", type=Path, nargs="+", default=[], help="pages whose tables are renewed")
    args = parser.parse_args()
    plan = Plan.load(args.plan)
    folder = args.cells or Path("model_cards", plan.name)
    task_sets = read_task_sets(plan, folder)
    if not task_sets:
        raise SystemExit(f"{folder} must have cells (TASK_SET/METHOD/CHOICE-seedN.json) of a settled choice.")
    for task_set in task_sets:
        if task_set.has_plot:
            plot_curves(task_set, folder / f"curves-{task_set.name}.png")
    levels_of = [task_set for task_set in task_sets if not task_set.validation_only]
    settings = plan.task_sets
    by_noise = [x for x in levels_of if settings[x.name]["rows"] == "noisy5" and "layers" not in settings[x.name]]
    if len(by_noise) > 1 and all(task_set.split == "test" for task_set in by_noise):
        shown = {f"`{DEFAULT}`": "distilling", "`sum`, average of the bests": "average of the tasks' best weights"}
        lines: dict[str, dict[float, Estimate]] = {name: {} for name in shown.values()}
        for task_set in by_noise:
            rows = {row.label: row for row in task_set.rows()}
            for label, name in shown.items():
                lines[name][task_set.noise] = estimate(differences(rows[label], rows["`sum`"]))
        plot_noise(lines, folder / "noise.png")
    (folder / "README.md").write_text(report(task_sets, plan.name), encoding="utf-8")
    for page in args.page:
        page.write_text(renew(page.read_text(encoding="utf-8"), task_sets), encoding="utf-8")


if __name__ == "__main__":
    main()
