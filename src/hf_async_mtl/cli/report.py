"""``hf-async-mtl report``: the table, the plots and the page of a finished or a running run."""

from __future__ import annotations

import argparse
import json
import sys

from ..report.page import make_page
from ..report.plots import draw
from ..report.tables import final_tables, progress_table, render
from ..tasks.names import check_task_names
from ..utils import write_atomic
from ..validation import ConfigurationError


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    path = args.run / "convergence.json"
    if not path.is_file():
        raise ConfigurationError(f"{args.run} must be the folder of a run; it has no convergence.json yet.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path} must be a file that a run has written: {error}") from None
    # The names of plots contain names of tasks.
    check_task_names(dict.fromkeys(report["tasks"], ()))
    print(render(final_tables(report) if "final" in report else progress_table(report), sys.stdout))
    for plot in draw(report, args.run):
        print(plot)
    if args.html:
        write_atomic(args.run / "report.html", make_page(report, args.run.resolve().name))
        print(args.run / "report.html")
