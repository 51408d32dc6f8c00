"""Tables of a run, from the content of ``convergence.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TextIO

from rich.box import Box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 100  # columns if the output is not a terminal
MISSING = "-"

DIAGNOSIS_TITLE = "Do the tasks peak apart?"
DIAGNOSIS_COLUMNS = ("peak at step", "fall (std. errors)", "headroom", "std. error")

PHASE_STYLES = {"learning": "cyan", "distilling": "green", "stopped": "yellow", "waiting": "bright_black"}

# One rule under the header, in ASCII, so that the output of a terminal can be pasted into an issue.
_BOX = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


def progress_table(
    report: Mapping[str, Any], epoch: float | None = None, max_steps: int | None = None, seconds: float | None = None
) -> Table:
    """Return the state of each task after an evaluation, with the monitored metric now and at its best.

    The title has the step and the average, and of a running training the epoch, the last step and the elapsed time.
    """
    title = [f"step {report['step']}" if max_steps is None else f"step {report['step']} of {max_steps}"]
    title += [] if seconds is None else [str(timedelta(seconds=round(seconds)))]
    title += [] if epoch is None else [f"epoch {epoch:.2f}"]
    title += [f"average {value_text(report['average'])}"]
    table = _table(title, words=["task", "phase", "metric"], numbers=["now", "best", "at step", "converged"])
    for name, task in report["tasks"].items():
        at_best = task["last"] is not None and task["last"] == task["best"]
        table.add_row(
            name,
            Text(task["phase"], style=PHASE_STYLES.get(task["phase"], "")),
            metric_text(task),
            Text(value_text(task["last"]), style="bold" if at_best else ""),
            value_text(task["best"]),
            step_text(task["best_step"]),
            step_text(task["converged_step"]),
        )
    return table


def final_table(report: Mapping[str, Any]) -> Table:
    """Return how much of each task's best value the saved checkpoint of a finished run retains.

    If the run was evaluated before its first step, the table also has the values at that time.
    """
    if "final" not in report:
        raise ValueError("A final table needs a finished run, and this report has no 'final'. Use progress_table.")
    final = report["final"]
    title = [f"final checkpoint: step {final['step']}", f"average {value_text(final['average'])}"]
    starts = {name: dict(task.get("history", ())).get(0) for name, task in report["tasks"].items()}
    before = ["before"] if any(value is not None for value in starts.values()) else []
    numbers = [*before, "final", "best", "at step", "converged", "retention"]
    table = _table(title, words=["task", "metric"], numbers=numbers)
    for name, task in report["tasks"].items():
        end = final["tasks"][name]
        table.add_row(
            name,
            metric_text(task),
            *([value_text(starts[name])] if before else []),
            Text(value_text(end["value"]), style="bold"),
            value_text(task["best"]),
            step_text(task["best_step"]),
            step_text(task["converged_step"]),
            percent_text(end["retention"]),
        )
    return table


def final_tables(report: Mapping[str, Any]) -> Group:
    """Return the table of a finished run, and that of its diagnosis, which a run of version 0.1 does not have."""
    tables: list[RenderableType] = [final_table(report)]
    if "diagnosis" in report:
        tables += ["", diagnosis_table(report)]
    return Group(*tables)


def diagnosis_table(report: Mapping[str, Any]) -> Group:
    """Return how far each task fell after its peak, what the saved checkpoint lacks of it, and what this means."""
    diagnosis = report["diagnosis"]
    table = _table([DIAGNOSIS_TITLE], words=["task"], numbers=DIAGNOSIS_COLUMNS)
    for name, task in diagnosis["tasks"].items():
        table.add_row(name, *diagnosis_cells(task))
    return Group(table, Text(diagnosis["answer"]))


def diagnosis_cells(task: Mapping[str, Any]) -> list[str]:
    """Return the cells of a task under `DIAGNOSIS_COLUMNS`."""
    fall = MISSING if task["fall_z"] is None else f"{task['fall_z']:.1f}"
    return [step_text(task["peak_step"]), fall, value_text(task["headroom"]), value_text(task["headroom_error"])]


def render(renderable: RenderableType, file: TextIO) -> str:
    """Return the text of a table for a file; the caller writes it (with ``tqdm.write`` beside a progress bar).

    The text for a terminal has colors and the width of the terminal; the text for a pipe or a file is plain ASCII of at
    most 100 columns. It has no trailing blanks and no last line break.
    """
    console = Console(file=file, force_jupyter=False, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    with console.capture() as capture:
        console.print(renderable)
    lines = capture.get().rstrip("\n").split("\n")
    return "\n".join(line.rstrip() for line in lines)


def _table(title: Sequence[str], words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(
        title=Text("   ".join(title), style="bold", no_wrap=True),
        title_justify="left",
        box=_BOX,
        border_style="bright_black",
        header_style="bold",
        show_edge=False,
        padding=0,  # the box separates columns by one blank, so that long names fit into 80 columns
    )
    for header in words:
        table.add_column(header, overflow="fold", no_wrap=header == "phase")
    for header in numbers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def metric_text(task: Mapping[str, Any]) -> str:
    """Return the monitored metric of a task in a report, with the class that it is that of.

    >>> metric_text({"metric": "f1", "positive_label": "fraud"}), metric_text({"metric": "accuracy"})
    ('f1 (fraud)', 'accuracy')
    """
    return f"{task['metric']} ({task['positive_label']})" if "positive_label" in task else task["metric"]


def value_text(value: float | None) -> str:
    """Return a metric with four digits, or a dash."""
    return MISSING if value is None or math.isnan(value) else f"{value:.4f}"


def percent_text(value: float | None) -> str:
    """Return a share in percent, or a dash."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.1f}%"


def step_text(step: int | None) -> str:
    """Return a step, or a dash."""
    return MISSING if step is None else str(step)
