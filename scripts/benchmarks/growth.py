"""Measure what the tasks of a trained model lose when a task is added, with and without teachers.

    python scripts/benchmarks/growth.py [--seeds 0 1 2] [--work DIR] [--output FILE.json]

`scripts/configs/growth_old.yaml` trains three tasks; `growth_new.yaml` starts from that model and adds a fourth:

* *taught*, the default: the old tasks distill from the old model;
* *taught, weight 3*: the same, with a weight of 3 for each example of an old task;
* *labels*: all four tasks learn from labels;
* *new task alone*: plain fine-tuning. The old heads are unchanged, on an encoder that is trained.

Seed, rows, steps and the choice of the checkpoint (the best validation average) are the same. All figures are from the
test sets, which do not influence the runs.

An existing run is used again; one with other settings is refused. The table is Markdown. Its changes are in percent of
the metric before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "configs"
OLD, NEW = ("mrpc", "stsb", "sst2"), "qnli"
NO_TEACHERS = f"distillation.teachers={json.dumps(dict.fromkeys(OLD))}"
WAYS = {
    "taught": [],
    "taught, weight 3": [f"tasks.{name}.weight=3.0" for name in OLD],
    "labels": [NO_TEACHERS],
    # So small that the epsilon of Adam suppresses the gradient.
    "new task alone": [NO_TEACHERS, *(f"tasks.{name}.weight=1.0e-12" for name in OLD)],
}
METRICS = {"mrpc": "f1", "stsb": "pearson", "sst2": "accuracy", "qnli": "accuracy"}


def train(config: str, folder: Path, settings: Sequence[str], **variables: str) -> dict[str, float]:
    """Run a training, unless it exists, and return its test metrics."""
    results, asked = folder / "all_results.json", folder.with_suffix(".asked.json")
    plan = {"config": (CONFIGS / config).read_text(encoding="utf-8"), "settings": list(settings)}
    if asked.is_file() and json.loads(asked.read_text(encoding="utf-8")) != plan:
        raise SystemExit(f"{folder} was made with other settings. Remove it, or choose another folder with `--work`.")
    asked.write_text(json.dumps(plan), encoding="utf-8")
    if not results.is_file():
        command = [sys.executable, "-m", "hf_async_mtl.cli.commands", "train", str(CONFIGS / config)]
        command += ["--output-dir", str(folder), "--resume", *(part for s in settings for part in ("--set", s))]
        with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
            subprocess.run(command, env={**os.environ, **variables}, stdout=log, stderr=log, check=True)
    found = json.loads(results.read_text(encoding="utf-8"))
    keys = {name: f"test_{name}_{metric}" for name, metric in METRICS.items()}
    return {name: found[key] for name, key in keys.items() if key in found}


def table(seeds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return a table of means over the seeds, from seed -> way -> task -> metric.

    Examples:
        >>> run = {"mrpc": 0.5, "stsb": 0.5, "sst2": 0.5}
        >>> print(table({"0": {"before": run, "taught": {**run, "mrpc": 0.49, "qnli": 0.2}}}))
        | | before | taught |
        | --- | ---: | ---: |
        | mrpc (f1) | 50.00 | 49.00 (-2.0 %) |
        | stsb (pearson) | 50.00 | 50.00 (+0.0 %) |
        | sst2 (accuracy) | 50.00 | 50.00 (+0.0 %) |
        | qnli (accuracy), new | | 20.00 |
    """
    ways = list(next(iter(seeds.values())))
    lines = [f"| | {' | '.join(ways)} |", "| --- |" + " ---: |" * len(ways)]
    for name, metric in METRICS.items():
        cells = []
        for way in ways:
            values = [runs[way][name] for runs in seeds.values() if name in runs[way]]
            if not values:
                cells.append("")
                continue
            cell = f"{100 * statistics.fmean(values):.2f}"
            if way != "before" and name in OLD:
                changes = [100 * (runs[way][name] / runs["before"][name] - 1) for runs in seeds.values()]
                cell += f" ({statistics.fmean(changes):+.1f} %)"
            cells.append(cell)
        label = f"{name} ({metric})" + (", new" if name == NEW else "")
        lines.append(f"| {label} | {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(f"runs/growth-{NEW}"))
    parser.add_argument("--output", type=Path, default=Path("model_cards/growth-glue.json"))
    args = parser.parse_args()
    seeds: dict[str, Any] = {}
    for seed in args.seeds:
        folder = args.work / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        runs = {"before": train("growth_old.yaml", folder / "old", [f"seed={seed}"])}
        for way, settings in WAYS.items():
            old = str((folder / "old").resolve())
            runs[way] = train("growth_new.yaml", folder / way.replace(" ", "-"), [f"seed={seed}", *settings], OLD=old)
        seeds[str(seed)] = runs
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(seeds, indent=1) + "\n", encoding="utf-8")
    print(table(seeds))


if __name__ == "__main__":
    main()
