"""Plots of a run, from the plain dict of `convergence.json`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

__all__ = ["draw", "plot_curves", "plot_retention"]

# Okabe and Ito's palette: told apart by color-blind readers, and in grey by their brightness.
_BLUE, _ORANGE, _PURPLE, _GREEN = "#0072B2", "#D55E00", "#CC79A7", "#009E73"
_DARK_GREY, _GREY, _LIGHT_GREY = "#444444", "#888888", "#E5E5E5"
_PHASE_COLORS = {"learning": _BLUE, "distilling": _ORANGE, "stopped": _PURPLE, "waiting": _GREY}
_LEGEND_ORDER = [*_PHASE_COLORS, "converged", "teacher", "saved checkpoint"]
_LEGEND_COLUMNS = {1: 3, 2: 5, 3: 7}  # by the number of panels in a row: what fits beside one another
_FONT_SIZE = 9
_DPI = 130


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw all plots that a report has the data for into ``folder/plots``.

    Args:
        report: The content of `convergence.json`, of a finished or a running run.
        folder: The run's folder.

    Returns:
        The files.
    """
    drawn = [folder / "plots" / "curves.png"]
    plot_curves(report, drawn[0])
    if "final" in report:
        drawn.append(folder / "plots" / "retention.png")
        plot_retention(report, drawn[-1])
    return drawn


def plot_curves(report: Mapping[str, Any], path: str | Path) -> None:
    """Draw each task's validation curve as a PNG: small multiples over the same steps.

    A curve changes color where its task converged; the teacher is a star and, from there on, a dashed line at its
    value; the saved checkpoint is a diamond, once the run has ended. Evaluations without a value are skipped.

    Args:
        report: The content of `convergence.json`, of a finished or a running run.
        path: The file to write; its folder is made.
    """
    tasks = report["tasks"]
    columns = len(tasks) if len(tasks) <= 3 else 2 if len(tasks) == 4 else 3
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(max(3.6 * columns, 5.0), 2.5 * rows + 0.7), dpi=_DPI, layout="constrained")
    last_step = max([1, report["step"], *(step for task in tasks.values() for step, _ in task["history"])])
    legend: dict[str, Artist] = {}
    for i, (name, task) in enumerate(tasks.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        legend |= _draw_curve(axes, task, last_step)
        if "final" in report and report["final"]["tasks"][name]["value"] is not None:
            x, y = report["final"]["step"], report["final"]["tasks"][name]["value"]
            legend["saved checkpoint"] = axes.plot(x, y, "D", color=_GREEN, markersize=6, zorder=4)[0]
        axes.set_title(_shorten(name, 36), fontsize=_FONT_SIZE + 1, loc="left")
        axes.set_ylabel(_shorten(task["metric"], 24), fontsize=_FONT_SIZE)
        axes.set_xlim(0, 1.04 * last_step)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if i + columns >= len(tasks):
            axes.set_xlabel("step", fontsize=_FONT_SIZE)
        _tidy(axes)
    labels = [label for label in _LEGEND_ORDER if label in legend]
    if labels:
        handles = [legend[label] for label in labels]
        style: dict[str, Any] = {"ncols": _LEGEND_COLUMNS[columns], "fontsize": _FONT_SIZE, "frameon": False}
        figure.legend(handles, labels, loc="outside upper left", **style)  # above the panels: no curve is under it
    _save(figure, path)


def plot_retention(report: Mapping[str, Any], path: str | Path) -> None:
    """Draw each task's retention (final over best value) as a PNG: a bar a task, in the order of the tasks.

    Args:
        report: The content of `convergence.json` of a run that has ended.
        path: The file to write; its folder is made.

    Raises:
        ValueError: The run has not ended, so that nothing is final yet.
    """
    if "final" not in report:
        raise ValueError(
            "A plot of retention needs a run that has ended, and this report has no 'final': plot its curves meanwhile."
        )
    retention = {name: task["retention"] for name, task in report["final"]["tasks"].items()}
    figure = Figure(figsize=(7.0, 1.0 + 0.36 * len(retention)), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    names = [_shorten(name, 24) for name in retention]
    widths = [0.0 if value is None else value for value in retention.values()]
    rows = range(len(retention))  # not the names: shortened ones may be equal
    axes.barh(rows, [0.0 if value is None else 1.0 for value in retention.values()], height=0.62, color=_LIGHT_GREY)
    axes.barh(rows, widths, height=0.62, color=_BLUE)
    right = max(1.0, *widths)
    for row, value in zip(rows, retention.values(), strict=True):
        label = "not defined" if value is None else f"{100 * value:.1f}%"
        axes.text(1.015 * right, row, label, va="center", fontsize=_FONT_SIZE)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.2 * right)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_xlabel("retention: the saved checkpoint's value over the best in the run", fontsize=_FONT_SIZE)
    _tidy(axes)
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    _save(figure, path)


def _draw_curve(axes: Axes, task: Mapping[str, Any], last_step: int) -> dict[str, Artist]:
    """Draw one task and return what the legend should explain, by label."""
    points = [(step, value) for step, value in task["history"] if value is not None and math.isfinite(value)]
    if not points:
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", va="center", color=_GREY)
        axes.set_yticks([])
        return {}
    drawn: dict[str, Artist] = {}
    switch = task["converged_step"]
    before = points if switch is None else [point for point in points if point[0] <= switch]
    after = [] if switch is None else [point for point in points if point[0] >= switch]
    first_phase = "waiting" if task["phase"] == "waiting" else "learning"
    for phase, part in ((first_phase, before), (task["phase"], after)):
        if part:
            x, y = zip(*part, strict=True)
            (line,) = axes.plot(x, y, ".-", color=_PHASE_COLORS[phase], markersize=4, linewidth=1.4)
            drawn[phase] = line
    if switch is not None:
        drawn["converged"] = axes.axvline(switch, color=_DARK_GREY, linewidth=1.2, linestyle=":", zorder=0)
        span, level = [task["teacher_step"], last_step], [task["teacher_value"]] * 2
        (teacher,) = axes.plot(span, level, "*--", color="black", linewidth=1, markersize=9, markevery=[0], zorder=3)
        drawn["teacher"] = teacher
    return drawn


def _tidy(axes: Axes) -> None:
    axes.grid(True, axis="y", color=_LIGHT_GREY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT_SIZE - 1)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _save(figure: Figure, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)  # not pyplot's choice of a backend, which may want a display
    figure.savefig(path, format="png")
