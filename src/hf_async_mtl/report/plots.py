"""Plots of a finished or running run, from the content of its ``convergence.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .tables import metric_text

# The palette of Okabe and Ito: color-blind readers can distinguish it, and so can readers of grayscale prints.
_BLUE, _ORANGE, _PURPLE, _GREEN = "#0072B2", "#D55E00", "#CC79A7", "#009E73"
_DARK_GREY, _GREY, _LIGHT_GREY = "#444444", "#888888", "#E5E5E5"
_PHASE_COLORS = {"learning": _BLUE, "distilling": _ORANGE, "stopped": _PURPLE, "waiting": _GREY}
_LEGEND_ORDER = [*_PHASE_COLORS, "converged", "teacher", "saved checkpoint"]
_LEGEND_COLUMNS = {1: 3, 2: 5, 3: 7}  # number of panels in a row -> columns that fit
_CONFLICT_COLORS = LinearSegmentedColormap.from_list("conflicts", [_ORANGE, "white", _BLUE])
_SMALLEST_LIMIT = 0.2  # of the color scale, so that small cosines have pale colors
_FONT_SIZE = 9
_DPI = 130


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw all plots for which a report has data into ``folder/plots``, and return the files."""
    drawn = [folder / "plots" / "curves.png"]
    plot_curves(report, drawn[0])
    if "final" in report:
        drawn.append(folder / "plots" / "retention.png")
        plot_retention(report, drawn[-1])
    if report.get("conflicts") and len(report["conflicts"]["tasks"]) > 1:
        drawn.append(folder / "plots" / "conflicts.png")
        plot_conflicts(report["conflicts"], drawn[-1])
    return drawn


def plot_curves(report: Mapping[str, Any], path: str | Path | BinaryIO) -> None:
    """Draw the validation curve of each task, one panel per task over the same steps.

    The color of a curve is the phase of its task. A convergence is a dotted line. The teacher is a star and a dashed
    line at its value; the saved checkpoint of a finished run is a diamond. Evaluations without a value are skipped.
    """
    tasks = report["tasks"]
    columns = len(tasks) if len(tasks) <= 3 else 2 if len(tasks) == 4 else 3
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(max(3.6 * columns, 5.0), 2.5 * rows + 0.7), dpi=_DPI, layout="constrained")
    last_step = max([1, report["step"], *(step for task in tasks.values() for step, _ in task["history"])])
    legend: dict[str, Artist] = {}
    for i, (name, task) in enumerate(tasks.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        legend |= _draw_curve(axes, task, [event for event in report["events"] if event["task"] == name], last_step)
        if "final" in report and report["final"]["tasks"][name]["value"] is not None:
            x, y = report["final"]["step"], report["final"]["tasks"][name]["value"]
            legend["saved checkpoint"] = axes.plot(x, y, "D", color=_GREEN, markersize=6, zorder=4)[0]
        axes.set_title(_shorten(name, 36), fontsize=_FONT_SIZE + 1, loc="left")
        axes.set_ylabel(_shorten(metric_text(task), 24), fontsize=_FONT_SIZE)
        axes.set_xlim(0, 1.04 * last_step)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if i + columns >= len(tasks):
            axes.set_xlabel("step", fontsize=_FONT_SIZE)
        _tidy(axes)
    labels = [label for label in _LEGEND_ORDER if label in legend]
    if labels:
        handles = [legend[label] for label in labels]
        style: dict[str, Any] = {"ncols": _LEGEND_COLUMNS[columns], "fontsize": _FONT_SIZE, "frameon": False}
        figure.legend(handles, labels, loc="outside upper left", **style)  # above the panels
    _save(figure, path)


def plot_retention(report: Mapping[str, Any], path: str | Path | BinaryIO) -> None:
    """Draw the retention (final value divided by best value) of each task of a finished run as a bar."""
    if "final" not in report:
        raise ValueError(
            "A plot of retention needs a finished run, and this report has no 'final'. Plot its curves instead."
        )
    retention = {name: task["retention"] for name, task in report["final"]["tasks"].items()}
    figure = Figure(figsize=(7.0, 1.0 + 0.36 * len(retention)), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    names = [_shorten(name, 24) for name in retention]
    widths = [0.0 if value is None else value for value in retention.values()]
    rows = range(len(retention))  # shortened names may be equal
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
    axes.set_xlabel("retention: value of the saved checkpoint / best value of the run", fontsize=_FONT_SIZE)
    _tidy(axes)
    axes.grid(False)
    axes.tick_params(axis="y", length=0)
    _save(figure, path)


def plot_conflicts(conflicts: Mapping[str, Any], path: str | Path | BinaryIO) -> None:
    """Draw the mean cosine between the gradients of each pair of tasks: blue if positive, orange if negative.

    Each pair has one cell; a pair that was never measured is gray. The color scale is symmetric and ends at the largest
    absolute cosine, or at 0.2 if that is greater.
    """
    tasks = conflicts["tasks"]
    cosines = np.array(conflicts["cosines"], dtype=float)
    # The table is symmetric: show the part below the diagonal.
    cells = np.where(np.tri(len(tasks), k=-1, dtype=bool), cosines, np.nan)[1:, :-1]
    limit = max([_SMALLEST_LIMIT, *np.abs(cells[np.isfinite(cells)])])
    names = [_shorten(name, 24) for name in tasks]
    size = len(tasks) - 1
    figure = Figure(figsize=(0.55 * size + 3.9, 0.55 * size + 0.8), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(cells, cmap=_CONFLICT_COLORS, vmin=-limit, vmax=limit)
    center: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": _FONT_SIZE}
    for row in range(size):
        for column in range(row + 1):
            cosine = cells[row, column]
            if math.isfinite(cosine):
                color = "white" if abs(cosine) > 0.7 * limit else "black"
                axes.text(column, row, f"{round(cosine, 2) + 0:.2f}", color=color, **center)  # + 0 avoids -0.00
            else:
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=_LIGHT_GREY))
                axes.text(column, row, "-", **center)
        # Above the diagonal, which leaves space for a long name.
        axes.text(row - 0.45, row - 0.6, names[row], ha="left", va="bottom", fontsize=_FONT_SIZE)
    axes.set_yticks(range(size), names[1:])
    axes.set_xticks([])
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", labelsize=_FONT_SIZE, length=0)
    axes.spines[:].set_visible(False)
    title = "mean cosine between the tasks' gradients (negative: conflict)"
    figure.suptitle(title, fontsize=_FONT_SIZE + 1, x=0.01, ha="left")
    _save(figure, path)


def _draw_curve(
    axes: Axes, task: Mapping[str, Any], events: Sequence[Mapping[str, Any]], last_step: int
) -> dict[str, Artist]:
    """Draw one task and return the artists of the legend by label."""
    points = [(step, value) for step, value in task["history"] if value is not None and math.isfinite(value)]
    if not points:
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", va="center", color=_GREY)
        axes.set_yticks([])
        return {}
    drawn: dict[str, Artist] = {}
    for phase, start, end in _stretches(task, events):
        if part := [point for point in points if start <= point[0] <= end]:
            x, y = zip(*part, strict=True)
            (line,) = axes.plot(x, y, ".-", color=_PHASE_COLORS[phase], markersize=4, linewidth=1.4)
            drawn[phase] = line
    for event in events:
        if event["event"] == "converged":
            drawn["converged"] = axes.axvline(event["step"], color=_DARK_GREY, linewidth=1.2, linestyle=":", zorder=0)
    # A learning task has no teacher, and an external teacher has no score.
    if task["converged_step"] is not None and task["teacher_value"] is not None:
        span, level = [task["teacher_step"], last_step], [task["teacher_value"]] * 2
        (teacher,) = axes.plot(span, level, "*--", color="black", linewidth=1, markersize=9, markevery=[0], zorder=3)
        drawn["teacher"] = teacher
    return drawn


def _stretches(task: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Return the phases of a task, each with its first and last step; the step of a change is in both."""
    moves = [event for event in events if event["event"] in ("joined", "converged")]
    if not moves:
        return [(task["phase"], -math.inf, math.inf)]
    after = {"joined": "learning", "converged": task["phase"]}
    phases = ["waiting" if moves[0]["event"] == "joined" else "learning", *(after[move["event"]] for move in moves)]
    steps = [-math.inf, *(move["step"] for move in moves), math.inf]
    return list(zip(phases, steps[:-1], steps[1:], strict=True))


def _tidy(axes: Axes) -> None:
    axes.grid(True, axis="y", color=_LIGHT_GREY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_FONT_SIZE - 1)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _save(figure: Figure, path: str | Path | BinaryIO) -> None:
    """Write a PNG file, in a folder that is created if needed; or an SVG to a binary file."""
    FigureCanvasAgg(figure)  # pyplot could choose a backend that needs a display
    if not isinstance(path, str | Path):
        figure.savefig(path, format="svg")
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
