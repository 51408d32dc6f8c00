"""Measure what the method costs beside plain training, and how the cost of training grows.

    GLUE_DATA=/data/glue ENCODER=/models/all-MiniLM-L6-v2 OMP_NUM_THREADS=1 \
      python scripts/benchmarks/price.py method --output method.json

Each part writes one file:

- ``method``: `on_convergence: distill` against ``continue`` on GLUE-5 at equal steps: time and memory of whole runs
  with evaluations, checkpoints, snapshots and recording. A task converges at its first evaluation without improvement
  (``plateau``, patience 1), so that most of the run distills.
- ``disk``: what a distilling run of 1, 2, 4 and 8 generated tasks has on disk at most: snapshots, recorded logits,
  checkpoints. All tasks distill in the end. A file that two names share counts once.
- ``tasks``: a training step with 1, 8 and 64 tasks on the same rows.
- ``balancing``: a training step of each balancing method with four tasks, relative to ``sum``.
- ``rows``: memory and first step with 2,000 and 2,000,000 rows; see `memory.py`.

Runs take turns, round by round, and every other round in the opposite order. Ratios are computed within each round.
Those of steps are of processor time, which depends less on what else the machine does; those of time are in the files
too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from peers import CONFIGS, HERE, Contender, machine, ratios, say, settings_of

WARM_UP = 2
WORDS = ["the", "a", "good", "bad", "shoe", "hat", "is", "was", "not", "very", "small", "red", "it", "price", "of"]
SCOPES = ("last_layer", "encoder")


class EnoughSteps(Exception):  # noqa: N818
    """All steps of a round have been taken."""


T = TypeVar("T")


def in_turn(runs: Mapping[str, T], number: int) -> list[tuple[str, T]]:
    """Return the runs of a round; in every other one, the last comes first."""
    return list(runs.items())[:: -1 if number % 2 else 1]


# -- the method -------------------------------------------------------------------------------------------------------


def method(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train with and without the method, each in its own process."""
    epochs, rows = args.epochs, args.rows
    steps = epochs * -(-rows // 32)
    common = [
        *settings_of("glue5", rows, validation=50, epochs=epochs, batch_size=32),
        *(f"training.eval_steps={steps // epochs}", "training.save_strategy=steps", "training.save_total_limit=2"),
        *("training.load_best_model_at_end=true", "convergence.criterion=plateau", "convergence.patience=1"),
        "convergence.min_epochs=0",
    ]
    contenders = {}
    for action in ("continue", "distill"):
        settings = [*common, f"convergence.on_convergence={action}"]
        content = {"config": str(CONFIGS / "glue5.yaml"), "settings": settings, "work": str(work / action)}
        file = work / f"{action}.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        contenders[action] = Contender("ours", file, work)
    for number in range(args.rounds):
        for action, contender in in_turn(contenders, number):
            contender.run()
            if contender.failed:
                raise SystemExit(f"{action}: {contender.failed}")
            say(f"round {number + 1} of {args.rounds}, {action}: {contender.runs[-1]['seconds']:.1f} s")
    for contender in contenders.values():
        contender.end()
    runs = {action: contender.runs for action, contender in contenders.items()}
    events = json.loads((work / "distill" / "convergence.json").read_text(encoding="utf-8"))["events"]
    peaks = {action: max(run["peak"] for run in own) for action, own in runs.items()}
    keys = {"time": "seconds", "processor": "total_processor"}
    return {
        "rows": contenders["distill"].loaded["rows"],
        "steps": runs["distill"][0]["steps"],
        "events": events,
        **{
            key: ratios(*([run[name] for run in runs[action]] for action in ("distill", "continue")))
            for key, name in keys.items()
        },
        "memory": peaks["distill"] / peaks["continue"],
        "runs": runs,
    }


# -- generated tasks --------------------------------------------------------------------------------------------------


def generated_rows(count: int, shortest: int, longest: int, seed: int = 0) -> list[dict[str, str]]:
    """Return texts of common words; the label says whether a word is in the text."""
    dice, rows = random.Random(seed), []
    for _ in range(count):
        words = dice.choices(WORDS, k=dice.randint(shortest, longest))
        rows.append({"text": " ".join(words), "label": "yes" if "red" in words else "no"})
    return rows


def trainer_of(
    tasks: int, rows: Sequence[Mapping[str, str]], encoder: str, folder: Path, callbacks: Sequence[Any], **settings: Any
) -> Any:
    """Return a trainer whose rows are dealt out to so many tasks."""
    from datasets import Dataset
    from transformers import AutoTokenizer, set_seed

    from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments, MultiTaskModel, TaskConfig

    names = [f"task_{number}" for number in range(tasks)]
    configs = {name: TaskConfig("classification", ["text"], label_names=["no", "yes"]) for name in names}
    train = {name: Dataset.from_list(list(rows[place::tasks])) for place, name in enumerate(names)}
    validation = {name: Dataset.from_list(generated_rows(16, 8, 24, seed=1)) for name in names}
    set_seed(0)
    plain = {"save_strategy": "no", "load_best_model_at_end": False, "report_to": "none", "disable_tqdm": True}
    plain |= {"per_device_train_batch_size": 32, "bf16": True, "use_cpu": True, "learning_rate": 1e-4}
    return AsyncMTLTrainer(
        model=MultiTaskModel.from_encoder(encoder, configs, pooling="mean", max_length=64),
        args=AsyncMTLTrainingArguments(str(folder), **{**plain, **settings}),
        processing_class=AutoTokenizer.from_pretrained(encoder),
        train_dataset=train,
        eval_dataset=validation,
        callbacks=list(callbacks),
    )


def timed_steps(variants: Mapping[str, Mapping[str, Any]], args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train each variant for some steps per round; return its time per step, and ratios to the first variant."""
    from contenders import Clock, ClockCallback

    class Timer(Clock):
        """Forgets the first steps, and ends the run after the last one: its evaluation is not of interest."""

        def step(self) -> None:
            super().step()
            if self.steps == WARM_UP:
                self.training = self.processor = 0.0
            if self.steps == WARM_UP + args.steps:
                raise EnoughSteps

    found: dict[str, list[Clock]] = {name: [] for name in variants}
    for number in range(args.rounds):
        for name, variant in in_turn(variants, number):
            clock = Timer()
            settings = {"max_steps": WARM_UP + args.steps, "eval_steps": 10**6, **variant}
            trainer = trainer_of(
                encoder=args.encoder, folder=work / "steps", callbacks=[ClockCallback(clock)], **settings
            )
            with suppress(EnoughSteps):
                trainer.train()
            found[name].append(clock)
            say(f"round {number + 1} of {args.rounds}, {name}: {clock.processor / args.steps:.3f} s a step")
    first = next(iter(found.values()))
    return {
        name: {
            "milliseconds": 1000 * statistics.median(clock.processor for clock in clocks) / args.steps,
            "processor": ratios([clock.processor for clock in clocks], [clock.processor for clock in first]),
            "time": ratios([clock.training for clock in clocks], [clock.training for clock in first]),
        }
        for name, clocks in found.items()
    }


def tasks_part(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train 1, 8 and 64 tasks on texts of one length: the same tokens in each batch."""
    rows = generated_rows(32 * (WARM_UP + args.steps), 24, 24)
    return timed_steps({str(count): {"tasks": count, "rows": rows} for count in (1, 8, 64)}, args, work)


def balancing(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train four tasks with each balancing method."""
    from hf_async_mtl.balancing.config import METHODS

    rows = generated_rows(32 * (WARM_UP + args.steps), 8, 40)
    variants = {}
    for name, described in METHODS.items():
        scopes = described.scopes if described.kind == "gradients" else SCOPES[:1]
        for scope in [s for s in SCOPES[:1] if s in scopes] or list(scopes):
            label = name if scope == SCOPES[0] else f"{name}, {scope}"
            variants[label] = {"tasks": 4, "rows": rows, "balancing": {"method": name, "over": scope}}
    # One method over the whole encoder, for comparison.
    variants["pcgrad, encoder"] = {"tasks": 4, "rows": rows, "balancing": {"method": "pcgrad", "over": "encoder"}}
    return timed_steps(variants, args, work)


# -- disk and rows ----------------------------------------------------------------------------------------------------


def sizes_of(folder: Path) -> dict[str, int]:
    """Return the bytes of snapshots, of the other files of teachers (logits), and of checkpoints in a run's folder."""
    found, seen = dict.fromkeys(("snapshots", "logits", "checkpoints"), 0), set()
    for path in sorted(folder.rglob("*"), key=lambda path: ("checkpoint-" in str(path), str(path))):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_dir() or status.st_ino in seen:
            continue
        seen.add(status.st_ino)
        is_teachers = "_teachers" in path.parts
        if is_teachers and path.name.startswith("snapshot-"):
            found["snapshots"] += status.st_size
        elif is_teachers:
            found["logits"] += status.st_size
        elif "checkpoint-" in str(path):
            found["checkpoints"] += status.st_size
    return found


def disk(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train 1, 2, 4 and 8 tasks until all distill, and look at the folder after each step."""
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class Watch(TrainerCallback):
        def __init__(self, folder: Path) -> None:
            self.folder, self.peak = folder, dict.fromkeys(("snapshots", "logits", "checkpoints"), 0)

        def on_step_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            self.peak = {key: max(self.peak[key], size) for key, size in sizes_of(self.folder).items()}

    found: dict[str, Any] = {}
    for count in (1, 2, 4, 8):
        watch = Watch(work / f"disk-{count}")
        rows = generated_rows(256, 8, 24)
        saved = {"save_strategy": "steps", "eval_steps": 3, "save_steps": 3, "save_total_limit": 2, "max_steps": 18}
        saved["per_device_train_batch_size"] = 8
        quick = {"criterion": "plateau", "patience": 1, "min_epochs": 0, "final_evaluations": None}
        trainer = trainer_of(count, rows, args.encoder, watch.folder, [watch], **saved, convergence=quick)
        trainer.train()
        weights = sum(parameter.numel() * parameter.element_size() for parameter in trainer.model.parameters())
        tasks = trainer.report()["tasks"].values()
        steps = {task["teacher_step"] for task in tasks if task["phase"] == "distilling"}
        found[str(count)] = {
            **watch.peak,
            **{"weights": weights, "rows": len(rows), "distilling": sum(t["phase"] == "distilling" for t in tasks)},
            "teachers": len(steps),
        }
        say(f"{count} tasks: {found[str(count)]}")
    return found


def rows_part(_: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run the benchmark of memory."""
    command = [sys.executable, str(HERE / "memory.py"), "--folder", str(work / "rows"), "--record"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"runs": json.loads(done.stdout.splitlines()[-1])}


PARTS = {"method": method, "disk": disk, "tasks": tasks_part, "balancing": balancing, "rows": rows_part}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one part, and write its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--encoder", default=os.environ.get("ENCODER"), help="folder or Hub id; default: $ENCODER")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of the part `method`")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a round, for the parts about steps")
    parser.add_argument("--rows", type=int, default=640, help="training rows of the part `method`")
    parser.add_argument("--output", type=Path, default=Path("price.json"), metavar="FILE.json")
    args = parser.parse_args(argv)
    if args.encoder is None:
        parser.error("--encoder must be given, or ENCODER set")
    before, begun = machine(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        found = PARTS[args.part](args, Path(scratch))
    result = {"part": args.part, "machine": before, "rounds": args.rounds, "found": found}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"All figures are in {args.output}, after {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
