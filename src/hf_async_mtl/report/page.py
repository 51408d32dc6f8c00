"""A run as one HTML page without external resources, readable on a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from .plots import plot_conflicts, plot_curves, plot_retention
from .tables import (
    DIAGNOSIS_COLUMNS,
    DIAGNOSIS_TITLE,
    diagnosis_cells,
    metric_text,
    percent_text,
    step_text,
    value_text,
)

TEMPLATE = Path(__file__).with_name("page_template.html")
_EVENTS = {
    "joined": "joined",
    "converged": "converged",
    "rolled_back": "rolled back to its best weights",
}
Column = tuple[str, str]


def make_page(report: Mapping[str, Any], title: str) -> str:
    """Return the HTML page of a finished or running run, with embedded styles and plots."""
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True)
    final = report.get("final")
    columns, rows = _tasks(report)
    converged = sum(task["converged_step"] is not None for task in report["tasks"].values())
    average = "average of the saved checkpoint" if final else "current average"
    curves = [(name, _image(plot_curves, {**report, "tasks": {name: task}})) for name, task in report["tasks"].items()]
    diagnosis = report.get("diagnosis")
    conflicts = report.get("conflicts") if len(report["tasks"]) > 1 else None
    return environment.get_template(TEMPLATE.name).render(
        title=title,
        status=f"The saved checkpoint is that of step {final['step']}." if final else "The run is not finished.",
        figures=[
            (average, value_text((final or report)["average"])),
            ("tasks converged", f"{converged} of {len(report['tasks'])}"),
            ("steps made", str(report["step"])),
        ],
        task_columns=columns,
        task_rows=rows,
        curves=curves,
        diagnosis_title=DIAGNOSIS_TITLE,
        diagnosis=diagnosis and diagnosis["answer"],
        diagnosis_columns=[("task", ""), *((name, "number") for name in DIAGNOSIS_COLUMNS)],
        diagnosis_rows=[[name, *diagnosis_cells(task)] for name, task in (diagnosis or {"tasks": {}})["tasks"].items()],
        event_columns=[("step", "number"), ("task", ""), ("event", ""), ("teacher of step", "number")],
        event_rows=[
            [
                event["step"],
                event["task"],
                _EVENTS.get(event["event"], event["event"]),  # a file of an earlier version has more kinds
                step_text(event.get("teacher_step")),
            ]
            for event in report["events"]
        ],
        retention=_image(plot_retention, report) if final else None,
        conflicts=_image(plot_conflicts, conflicts) if conflicts else None,
    )


def _tasks(report: Mapping[str, Any]) -> tuple[list[Column], list[list[Any]]]:
    """Return the table of tasks, the most important columns first. The cell of a task has its name and its metric."""
    final = report.get("final")
    names = ["final", "retention"] if final else ["now"]
    columns = [("task", ""), *((name, "number") for name in [*names, "best", "at step", "converged"]), ("phase", "")]
    rows = []
    for name, task in report["tasks"].items():
        end = final["tasks"][name] if final else {"value": task["last"]}
        kept = [percent_text(end["retention"])] if final else []
        steps = [step_text(task["best_step"]), step_text(task["converged_step"])]
        rows.append([(name, metric_text(task)), value_text(end["value"]), *kept, value_text(task["best"]), *steps])
        rows[-1].append(task["phase"])
    return columns, rows


def _image(plot: Any, content: Mapping[str, Any]) -> str:
    file = io.BytesIO()
    plot(content, file)
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")
