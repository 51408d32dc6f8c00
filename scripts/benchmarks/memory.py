"""Measure memory and the time to the first step as the number of training examples grows.

    python scripts/benchmarks/memory.py [--rows 2000 2000000] [--folder DIR] [--record]

One task with generated rows is trained for 40 steps, each run in its own process: first with an empty cache (the rows
are read and tokenized), then with a warm one. With ``--record`` the task converges at its second evaluation, and its
teacher runs over all rows. The table has

* *anonymous*: the peak of anonymous memory (``RssAnon``), in MiB. It must not grow with the rows;
* *resident*: the peak of resident memory (``VmHWM``), in MiB. It includes libraries and the memory-mapped pages
  of rows, which the kernel takes back when memory is short;
* *first step*: seconds from the start of the command, without its imports, to the end of the first optimizer step.

The last line is a JSON object with the same figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_async_mtl import AsyncMTLTrainer
from hf_async_mtl.cli.commands import main as run_command
from hf_async_mtl.demo.task_set import write_demo

WORDS = [f"word{number}" for number in range(500)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 2_000_000])
    parser.add_argument("--folder", type=Path, help="default: a temporary folder; needs some GiB")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--child", metavar="CONFIG", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(measured(["train", args.child, "--output-dir", str(Path(args.child).parent / "out")])))
        return 0
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        print("|     rows | cache | anonymous, MiB | resident, MiB | first step, s |")
        print("| -------: | ----- | -------------: | ------------: | ------------: |")
        for rows in args.rows:
            config = write_run(folder / str(rows), rows, args.record)
            for cache in ("empty", "warm"):
                figures = {"rows": rows, "cache": cache, **child(config)}
                found.append(figures)
                print(
                    f"| {rows:>8} | {cache:<5} | {figures['anonymous']:>14.0f} | {figures['resident']:>13.0f} | "
                    f"{figures['first_step']:>13.1f} |",
                    flush=True,
                )
    print(json.dumps(found))
    return 0


def write_run(folder: Path, rows: int, record: bool) -> Path:
    """Write a configuration with one task of ``rows`` training rows."""
    encoder = write_demo(folder / "demo").parent / "encoder"
    dice = random.Random(0)
    for split, count in (("train", rows), ("validation", 500)):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(count):
                text = " ".join(dice.choices(WORDS, k=8))
                file.write(json.dumps({"text": text, "label": dice.choice(["a", "b"])}) + "\n")
    config = {
        "encoder": str(encoder),
        "seed": 0,
        "max_length": 32,
        "tasks": {
            "kind": {
                "type": "classification",
                "text_columns": ["text"],
                "label_column": "label",
                "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
            }
        },
        "convergence": {
            "criterion": "plateau",
            "patience": 1,
            "on_convergence": "distill" if record else "continue",
            "min_delta": 1.0,
        },
        "training": {
            "max_steps": 40,
            "eval_steps": 10,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 64,
            "use_cpu": True,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def child(config: Path) -> dict[str, float]:
    """Run a configuration in a new process with its own cache."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(config.parent / "cache")}
    command = [sys.executable, __file__, "--child", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    subprocess.run(["rm", "-r", str(config.parent / "out")], check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(command: Sequence[str]) -> dict[str, float]:
    """Run a command in this process and measure it."""
    begun, first, peak, over = time.monotonic(), [0.0], [0.0], threading.Event()
    step = AsyncMTLTrainer._maybe_log_save_evaluate

    def noted(*args: Any, **kwargs: Any) -> Any:
        first[0] = first[0] or time.monotonic() - begun
        return step(*args, **kwargs)

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], memory("RssAnon"))

    AsyncMTLTrainer._maybe_log_save_evaluate = noted
    watcher = threading.Thread(target=watch)
    watcher.start()
    status = run_command(command)
    over.set()
    watcher.join()
    if status != 0:
        raise SystemExit(status)
    return {"anonymous": peak[0], "resident": memory("VmHWM"), "first_step": first[0]}


def memory(key: str) -> float:
    """Return a figure of this process from ``/proc/self/status``, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    sys.exit(main())
