"""Compare runs of one configuration: a Markdown table of the last and the best-average checkpoint of each run.

    python scripts/benchmarks/compare_runs.py CONFIG.yaml runs/distill runs/continue [--output figures.json]

The best-average checkpoint is the final model of a run (``load_best_model_at_end``), with its metrics in
``all_results.json``. The last one is the newest ``checkpoint-N``. It is evaluated here, on the validation and test
splits of the configuration. Retention is a validation value divided by the best value of the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_async_mtl.training.distributed import newest_checkpoint

METRIC_NAMES = {"matthews_correlation": "MCC", "seqeval_f1": "span F1", "accuracy": "acc", "pearson": "r", "f1": "F1"}


def evaluate(model: Path, config: Path, split: str) -> dict[str, float]:
    """Return the metrics of a checkpoint, from the command line."""
    command = [sys.executable, "-m", "hf_async_mtl.cli.commands", "evaluate", str(model), str(config), "--split", split]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def figures_of(run: Path, config: Path) -> dict[str, Any]:
    """Return the figures of a run for the table."""
    report = json.loads((run / "convergence.json").read_text(encoding="utf-8"))
    best = json.loads((run / "all_results.json").read_text(encoding="utf-8"))
    checkpoint = newest_checkpoint(run)
    if checkpoint is None or "final" not in report:
        raise SystemExit(f"{run} must be a finished run with its last checkpoint.")
    last = {**evaluate(checkpoint, config, "validation"), **evaluate(checkpoint, config, "test")}
    tasks = {}
    for name, task in report["tasks"].items():
        key = f"{name}_{task['metric']}"
        tasks[name] = {
            "metric": task["metric"],
            "converged_step": task["converged_step"],
            "teacher_step": task["teacher_step"],
            "best_in_run": task["best"],
            **{f"last_{split}": last[f"{split}_{key}"] for split in ("eval", "test")},
            **{f"best_{split}": best[f"{split}_{key}"] for split in ("eval", "test")},
        }
    return {
        "tasks": tasks,
        "last_step": int(checkpoint.name.removeprefix("checkpoint-")),
        "best_step": report["final"]["step"],
        "train_runtime_s": best["train_runtime"],
    }


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table: validation / test / retention in percent for each run and checkpoint."""
    columns = [(run, which) for run in runs for which in ("last", "best")]
    lines = [
        _row("validation / test / retention %", [f"{run}, {_title(runs[run], which)}" for run, which in columns]),
        _row("---", ["---"] * len(columns)),
    ]
    first = next(iter(runs.values()))
    for task, facts in first["tasks"].items():
        metric = METRIC_NAMES.get(facts["metric"], facts["metric"])
        cells = [_cell(runs[run]["tasks"][task], which) for run, which in columns]
        lines.append(_row(f"{task} ({metric})", cells))
    averages = []
    for run, which in columns:
        tasks = runs[run]["tasks"].values()
        means = [statistics.fmean(task[f"{which}_{split}"] for task in tasks) for split in ("eval", "test")]
        kept = statistics.fmean(task[f"{which}_eval"] / task["best_in_run"] for task in tasks)
        averages.append(f"**{means[0]:.4f} / {means[1]:.4f}** / {100 * kept:.1f}")
    lines.append(_row("**average**", averages))
    lines.append(_row("converged at step", [_switches(runs[run]) if which == "last" else "" for run, which in columns]))
    seconds = [f"{runs[run]['train_runtime_s'] / 60:.1f} min" if which == "last" else "" for run, which in columns]
    lines.append(_row("training, wall time", seconds))
    return "\n".join(lines)


def _title(run: dict[str, Any], which: str) -> str:
    return f"last (step {run['last_step']})" if which == "last" else f"best average (step {run['best_step']})"


def _cell(task: dict[str, Any], which: str) -> str:
    value = task[f"{which}_eval"]
    return f"{value:.4f} / {task[f'{which}_test']:.4f} / {100 * value / task['best_in_run']:.1f}"


def _switches(run: dict[str, Any]) -> str:
    found = [f"{name} {task['converged_step']}" for name, task in run["tasks"].items() if task["converged_step"]]
    return ", ".join(found) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    runs = {run.name: figures_of(run, args.config) for run in args.runs}
    if args.output is not None:
        args.output.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
