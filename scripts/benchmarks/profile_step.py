"""Measure where the time of a training step goes, of our trainer and of the hand-written packed loop.

    GLUE_DATA=/data/glue ENCODER=/models/all-MiniLM-L6-v2 OMP_NUM_THREADS=1 \
      python scripts/benchmarks/profile_step.py glue5 --output step.json

Both train on the same batches in one process, in turns, for ``--rounds`` rounds. The sections are timed from outside:
functions are wrapped, and the time of a section is without that of the sections inside it. ``rest`` is what no section
covers: the loop itself and, in ours, the bookkeeping of `transformers.Trainer`. It is processor time of one thread,
which depends less on what else the machine does; the first two steps of a run are left out. On a GPU the figures would
be those of launches: use torch.profiler there.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import contenders
import peer_loops
import torch
from peers import CONFIGS, TASK_SETS, machine, settings_of
from torch import nn

from hf_async_mtl.training.loss import MultiTaskLoss
from hf_async_mtl.training.trainer import AsyncMTLTrainer

WARM_UP = 2
SECTIONS = ("read and pack", "encoder", "heads and losses", "backward", "clipping", "optimizer", "rest")
LOOPS = ("ours", "packed loop")


class Sections:
    """Adds up the processor time of sections, which may lie inside each other; a `Clock` for a contender."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self._open = ["rest"]
        self._last = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._last
        self._last = now

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def begin(self) -> None:
        self._switch()
        self.seconds.clear()

    def step(self) -> None:
        self._switch()
        self.steps.append({name: self.seconds[name] for name in SECTIONS})
        self.seconds.clear()


def timed(function: Callable[..., Any], sections: Sections, section: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with sections.section(section):
            return function(*args, **kwargs)

    return call


@contextmanager
def wrapped(sections: Sections, places: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
    """Time functions, each given as the owner, its name there, and the section."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, section in places:
        setattr(owner, name, timed(getattr(owner, name), sections, section))
    try:
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


def profile(name: str, load: contenders.Workload) -> list[dict[str, float]]:
    """Train once, and return the seconds of each section in each step."""
    sections: Any = Sections()
    places = [
        (type(load.run.model.encoder), "forward", "encoder"),
        (torch.Tensor, "backward", "backward"),
        (torch.optim.AdamW, "step", "optimizer"),
        (torch.optim.AdamW, "zero_grad", "optimizer"),
        (nn.Module, "zero_grad", "optimizer"),
        (nn.utils, "clip_grad_norm_", "clipping"),
    ]
    if name == "ours":
        places += [
            (AsyncMTLTrainer, "get_batch_samples", "read and pack"),
            (MultiTaskLoss, "__call__", "heads and losses"),
            (AsyncMTLTrainer, "_get_grad_norm", "heads and losses"),
        ]
    else:
        places += [(peer_loops, "packed", "read and pack"), (peer_loops, "mean_loss", "heads and losses")]
    with wrapped(sections, places):
        contenders.CONTENDERS[name](load, sections)
    return sections.steps[WARM_UP:]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task_set", choices=list(TASK_SETS))
    parser.add_argument("--rows", type=int, default=320, help="training rows of all tasks together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("step.json"), metavar="FILE.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    before = machine()
    with tempfile.TemporaryDirectory() as scratch:
        settings = settings_of(args.task_set, args.rows, validation=10, epochs=1, batch_size=32)
        load = contenders.Workload(str(CONFIGS / f"{args.task_set}.yaml"), settings, scratch)
        steps: dict[str, list[dict[str, float]]] = {name: [] for name in LOOPS}
        for _ in range(args.rounds):
            for name in LOOPS:
                steps[name] += profile(name, load)
    found = {
        name: {section: 1000 * statistics.fmean(step[section] for step in taken) for section in SECTIONS}
        for name, taken in steps.items()
    }
    result = {"task_set": args.task_set, "machine": before, "steps": len(steps["ours"]), "milliseconds": found}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for section in SECTIONS:
        print(section, *(f"{found[name][section]:.1f} ms" for name in LOOPS), sep="\t")


if __name__ == "__main__":
    main()
