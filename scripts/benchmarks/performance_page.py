"""Renew the tables of docs/performance.md from the files that the speed benchmarks wrote.

    python scripts/benchmarks/performance_page.py [--figures model_cards/speed] [--page docs/performance.md]

A table stands between ``<!-- performance:NAME -->`` and ``<!-- /performance:NAME -->``, with the date, the processor
and the load of its measurement. NAME is the name of a JSON file; without the file the table is left as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import replaced, table

Figures = Mapping[str, Any]
MIB = 2**20


def spread(found: Figures) -> str:
    """Return a ratio and its range.

    >>> spread({"ratio": 1.0, "range": [0.956, 1.1]})
    '1.00 (0.96-1.10)'
    """
    return f"{found['ratio']:.2f} ({found['range'][0]:.2f}-{found['range'][1]:.2f})"


def step(found: Figures) -> str:
    """Return the table of `profile_step.py`."""
    loops = found["milliseconds"]
    totals = {name: sum(sections.values()) for name, sections in loops.items()}
    rows = [
        [section, *(f"{loops[name][section]:.1f} ms ({loops[name][section] / totals[name]:.1%})" for name in loops)]
        for section in next(iter(loops.values()))
    ]
    return table(["section", *loops], [*rows, ["a step", *(f"{total:.1f} ms" for total in totals.values())]])


def peers(found: Figures) -> str:
    """Return the table of `peers.py`."""
    headers = ["contender", "examples/s", "speed", "speed by processor time", "seconds", "MiB", "memory", "average"]
    rows = []
    for entry in found["contenders"]:
        if entry.get("failed"):
            rows.append([entry["name"], entry["failed"], *[""] * (len(headers) - 2)])
            continue
        rows.append(
            [
                *(entry["name"], f"{entry['examples_per_second']:.1f}", spread(entry["speed"])),
                *(spread(entry["speed_of_processor"]), f"{entry['seconds']:.1f}", f"{entry['peak']:.0f}"),
                *(f"{entry['memory']:.2f}", f"{100 * entry['average']:.1f}"),
            ]
        )
    sizes = ", ".join(f"{name} {count}" for name, count in found["rows"].items())
    return "\n\n".join(
        [
            table(headers, rows),
            f"Training rows: {sizes}; {found['epochs']} epochs, {found['rounds']} rounds. `seconds` are those of a "
            "whole run, from the pretrained weights to the scores; `average` is its validation average, in percent.",
        ]
    )


def method(found: Figures) -> str:
    """Return the table of `price.py method`."""
    found = found["found"]
    ratios = [
        ["time of a run", spread(found["time"]), "1.05"],
        ["its processor time", spread(found["processor"]), "1.05"],
        ["peak memory", f"{found['memory']:.3f}", "1.02"],
    ]
    steps = [event["step"] for event in found["events"] if event["event"] == "converged"]
    rows, tasks = sum(found["rows"].values()), len(found["rows"])
    when = f", between steps {min(steps)} and {max(steps)}" if steps else ""
    return (
        f"{table(['`distill` / `continue`', 'ratio', 'goal, at most'], ratios)}\n\n{rows} training rows, "
        f"{found['steps']} steps. {len(steps)} of {tasks} tasks converged{when}."
    )


def disk(found: Figures) -> str:
    """Return the table of `price.py disk`."""
    rows = [
        [
            count,
            *(f"{entry[key] / MIB:.1f}" for key in ("weights", "snapshots")),
            f"{entry['logits'] / 1024:.0f}",
            f"{entry['checkpoints'] / MIB:.1f}",
            f"{entry['distilling']}, of {entry['teachers']} steps",
        ]
        for count, entry in found["found"].items()
    ]
    headers = ["tasks", "weights, MiB", "snapshots, MiB", "logits, KiB", "checkpoints, MiB", "distilling"]
    return table(headers, rows)


def steps_table(first: str) -> Callable[[Figures], str]:
    """Return the function for a table of steps, whose first column has a name."""

    def render(found: Figures) -> str:
        rows = [
            [name, f"{entry['milliseconds']:.0f}", spread(entry["processor"]), spread(entry["time"])]
            for name, entry in found["found"].items()
        ]
        return table([first, "processor ms a step", "ratio of processor time", "ratio of time"], rows)

    return render


def rows_table(found: Figures) -> str:
    """Return the table of `price.py rows`."""
    rows = [
        [f"{run['rows']:,}", run["cache"], f"{run['anonymous']:.0f}", f"{run['first_step']:.1f}"]
        for run in found["found"]["runs"]
    ]
    return table(["rows", "cache", "anonymous memory, MiB", "first step, s"], rows)


def heads(found: Figures) -> str:
    """Return the table of `heads.py`."""
    rows = [
        [name, str(entry["passes"]), f"{entry['ratio']:.2f} ({entry['range'][0]:.2f}-{entry['range'][1]:.2f})"]
        for name, entry in found["asked"].items()
    ]
    return table(["asked", "passes of the encoder", "time"], rows)


TABLES: dict[str, Callable[[Figures], str]] = {
    "step": step,
    "peers-glue5": peers,
    "peers-ecommerce": peers,
    "method": method,
    "disk": disk,
    "tasks": steps_table("tasks"),
    "balancing": steps_table("method"),
    "rows": rows_table,
    "inference": heads,
}


def stamp(found: Figures) -> str:
    """Return when and where a table was measured."""
    machine = found.get("machine", {"date": found.get("date", "")[:10], "load": found.get("load", [0])[0]})
    parts = [f"Measured on {machine['date']}"]
    if "processor" in machine:
        parts.append(f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread(s)")
    return f"{', '.join(parts)}; load of the machine before: {machine['load']:.1f}."


def renew(text: str, figures: Path) -> str:
    """Return a page with the tables of the files in a folder."""
    for name, render in TABLES.items():
        file = figures / f"{name}.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            text = replaced(text, f"performance:{name}", f"{render(found)}\n\n{stamp(found)}")
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Renew the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=Path("model_cards/speed"))
    parser.add_argument("--page", type=Path, default=Path("docs/performance.md"))
    args = parser.parse_args(argv)
    args.page.write_text(renew(args.page.read_text(encoding="utf-8"), args.figures), encoding="utf-8")


if __name__ == "__main__":
    main()
