"""Measure training speed, time, memory and scores against other libraries and hand-written loops.

    GLUE_DATA=/data/glue ENCODER=/models/all-MiniLM-L6-v2 OMP_NUM_THREADS=1 \
      python scripts/benchmarks/peers.py glue5 --rows 320 --epochs 3 --rounds 3 --output peers-glue5.json

The task sets are those of `scripts/configs`: ``glue5`` in its real proportions, ``ecommerce`` in equal parts (a pair
task, ten classes, a regression, tags, two classes). All contenders of `contenders.py` start from the same encoder, read
the same rows for the same number of epochs with the same batch size, learning rate and bfloat16, and are scored on the
same validation rows at the end:

- ``ours``: `AsyncMTLTrainer`, plain training (``on_convergence: continue``);
- ``packed loop``, ``padded loop``: hand-written, batches of mixed tasks; the first is the floor;
- ``one-task loop``: hand-written, one task a batch, padded to the longest text of the batch: what most people write;
- ``Trainer per task``: `transformers.Trainer`, one model per task, one after the other;
- ``tasknet``: from the package index, in an environment of its own beside the present one.

Each contender has a process, loads and tokenizes before it is measured, and trains once per round. In a round all
contenders take their turns; the order rotates. Ratios are computed within each round, relative to ours; of time, and
of processor time (``speed_of_processor``), which depends less on what else the machine does. A contender that fails has
its error in the output in place of figures.

Models of other libraries differ in their heads: stock heads read BERT's pooler. The scores tell whether a contender has
learned about as much; the runs are far too short to tell which is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
TASK_SETS: dict[str, dict[str, int]] = {
    "glue5": {"cola": 8551, "sst2": 67349, "mrpc": 3668, "stsb": 5749, "rte": 2490},
    "ecommerce": dict.fromkeys(("match", "category", "stars", "aspects", "counterfactual"), 1),
}
"""Task set -> task -> its share of the rows."""
OWN_ENVIRONMENT = {
    "tasknet": [
        *("tasknet==1.60", "lazy_load==0.8.3", "lazy-object-proxy==1.12.0", "easydict==1.14", "frozendict==2.5.1"),
        *("funcy==2.1", "magicattr==0.1.7"),
    ]
}
"""Contender -> its packages, installed without their dependencies: the present environment has the others."""
NAMES = ("ours", "packed loop", "padded loop", "one-task loop", "Trainer per task", "tasknet")
# Without these, glibc returns memory to the system at each step.
MALLOC = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_"), "1000000000")


def make_environment(folder: Path, packages: Sequence[str]) -> str:
    """Make a virtual environment that sees the present one behind its own packages; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *packages], check=True)
    return str(python)


def settings_of(task_set: str, rows: int, validation: int, epochs: int, batch_size: int) -> list[str]:
    """Return the settings of plain training: so many rows, and one evaluation, at the last step."""
    shares = TASK_SETS[task_set]
    train = {name: max(8, round(rows * share / sum(shares.values()))) for name, share in shares.items()}
    steps = epochs * -(-sum(train.values()) // batch_size)
    return [
        *(f"tasks.{name}.max_samples={{train: {count}, validation: {validation}}}" for name, count in train.items()),
        *(f"training.num_train_epochs={epochs}", f"training.per_device_train_batch_size={batch_size}"),
        *(f"training.eval_steps={steps}", f"training.logging_steps={steps}", "training.save_strategy='no'"),
        *("training.load_best_model_at_end=false", "training.disable_tqdm=true", "training.report_to=none"),
        *("convergence.on_convergence=continue",),
    ]


class Contender:
    """The process of a contender. ``failed`` says why it has ended before its time."""

    def __init__(self, name: str, workload: Path, work: Path) -> None:
        self.name, self.failed = name, ""
        self.runs: list[dict[str, Any]] = []
        self.errors = work / f"{workload.stem}-{name.replace(' ', '-')}.log"
        own = OWN_ENVIRONMENT.get(name)
        try:
            python = make_environment(work / f"environment-{name}", own) if own else sys.executable
        except subprocess.CalledProcessError as error:
            self.failed = f"its environment could not be made: {error}"
            return
        self.process = subprocess.Popen(
            [python, str(HERE / "contenders.py"), name, str(workload)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("w", encoding="utf-8"),
            text=True,
            env={**os.environ, **MALLOC, "HF_DATASETS_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"},
        )
        self.loaded = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if line:
            return json.loads(line)
        lines = self.errors.read_text(encoding="utf-8").strip().splitlines()
        self.failed = lines[-1] if lines else "it ended without a word"
        return {}

    def run(self) -> None:
        """Train once."""
        if not self.failed and self.process.stdin:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            self.runs += [run] if (run := self._answer()) else []

    def end(self) -> None:
        if hasattr(self, "process") and self.process.stdin:
            self.process.stdin.close()
            self.process.wait()


def ratios(own: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Return the median and the range of the ratios of each round.

    >>> ratios([1.0, 4.0, 3.0], [1.0, 2.0, 2.0])
    {'ratio': 1.5, 'range': [1.0, 2.0]}
    """
    found = [a / b for a, b in zip(own, ours, strict=True)]
    return {"ratio": statistics.median(found), "range": [min(found), max(found)]}


def summarize(name: str, runs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]], examples: int) -> dict:
    """Return the figures of a contender, from its runs and those of ours in the same rounds."""
    rates, our_rates = ([examples / run["training"] for run in given] for given in (runs, ours))
    averages = [statistics.fmean(run["scores"].values()) for run in runs]
    peaks = [max(run["peak"] for run in given) for given in (runs, ours)]
    return {
        "name": name,
        "examples_per_second": statistics.median(rates),
        "speed": ratios(rates, our_rates),
        "speed_of_processor": ratios([run["processor"] for run in ours], [run["processor"] for run in runs]),
        "seconds": statistics.median(run["seconds"] for run in runs),
        "time": ratios([run["seconds"] for run in runs], [run["seconds"] for run in ours]),
        "peak": peaks[0],
        "memory": peaks[0] / peaks[1],
        "average": statistics.fmean(averages),
        "steps": runs[0]["steps"],
        "rounds": list(runs),
    }


def measure(names: Sequence[str], workload: Path, work: Path, rounds: int) -> dict[str, Contender]:
    """Start all contenders, and let each train once per round."""
    # One after the other: the first one tokenizes, the others read its cache.
    contenders = {}
    for name in names:
        contenders[name] = Contender(name, workload, work)
        say(f"{name}: {contenders[name].failed or 'loaded'}")
    for number in range(rounds):
        shift = number % len(names)
        for name in [*names[shift:], *names[:shift]]:
            contenders[name].run()
            done = contenders[name].failed or f"{contenders[name].runs[-1]['seconds']:.1f} s"
            say(f"round {number + 1} of {rounds}, {name}: {done}")
    for contender in contenders.values():
        contender.end()
    return contenders


def say(line: str) -> None:
    """Show progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code: processor, threads, versions, load, date."""
    import torch
    import transformers
    from speed import processor

    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task_set", choices=list(TASK_SETS))
    parser.add_argument("--rows", type=int, default=320, help="training rows of all tasks together")
    parser.add_argument("--validation", type=int, default=50, help="validation rows of each task")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--work", type=Path, help="keeps environments and caches; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=Path("peers.json"), metavar="FILE.json")
    args = parser.parse_args(argv)
    if "ours" not in args.contenders:
        parser.error("--contenders must name 'ours': all ratios are relative to it")
    settings = settings_of(args.task_set, args.rows, args.validation, args.epochs, args.batch_size)
    before = machine()
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        workload = work / f"{args.task_set}.json"
        config = str(CONFIGS / f"{args.task_set}.yaml")
        content = {"config": config, "settings": settings, "work": str(work / "runs")}
        workload.write_text(json.dumps(content), encoding="utf-8")
        contenders = measure(args.contenders, workload, work, args.rounds)
    ours = contenders["ours"]
    if ours.failed:
        raise SystemExit(f"ours: {ours.failed}")
    rows = ours.loaded["rows"]
    result = {
        **{"task_set": args.task_set, "machine": before, "rows": rows, "epochs": args.epochs, "rounds": args.rounds},
        "contenders": [
            {"name": name, "failed": contender.failed}
            if contender.failed
            else summarize(name, contender.runs, ours.runs, args.epochs * sum(rows.values()))
            for name, contender in contenders.items()
        ],
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"All figures are in {args.output}")


if __name__ == "__main__":
    main()
