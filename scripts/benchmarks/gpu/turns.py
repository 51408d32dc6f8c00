"""Loops that take turns: one round of the first, one of the second, ..., each in a process of its own.

So that a change of the machine meets all of them. The processes are those of ``speed.py``.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import quieten
from speed import GO_ON, WARM_UP, Turns, receive
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Loop = Callable[[Connection, list[int], Path], None]
"""Trains until it is stopped: the pipe of its turns, the steps of each round, a folder of its own."""


class TurnsCallback(TrainerCallback):
    """Pause a Trainer between its rounds."""

    def __init__(self, pipe: Connection, lengths: Sequence[int]) -> None:
        self.pipe, self.lengths = pipe, lengths

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.turns = Turns(self.pipe, self.lengths, args.device)
        self.no_loss: Tensor = next(kwargs["model"].parameters()).new_zeros(())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.turns.end_step(self.no_loss)


def process(loop: Loop, pipe: Connection, lengths: list[int], folder: Path) -> None:
    quieten()
    loop(pipe, lengths, folder)


def take_turns(loops: Mapping[str, Loop], rounds: int, steps: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Run ``rounds`` rounds of ``steps`` steps of each loop, after a warm-up; return what each reported per round."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_async_mtl.training.trainer"])
    lengths = [WARM_UP, *[steps] * rounds]
    pipes: dict[str, Connection] = {}
    processes: list[Any] = []
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in loops}
    try:
        for name, loop in loops.items():
            pipes[name], theirs = context.Pipe()
            given = (loop, theirs, lengths, folder / str(len(processes)))
            processes.append(context.Process(target=process, args=given, daemon=True))
            processes[-1].start()
            theirs.close()
            receive(pipes[name], name)
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send(GO_ON)
                reports[name].append(receive(pipe, name))
    finally:
        # If one has failed, the others wait, and hold memory of the card.
        for started in processes:
            started.terminate()
            started.join()
    return reports


def compare(
    loops: Mapping[str, Loop], rounds: int, steps: int, batch_size: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """Return examples a second, and the ratio to the first loop's, of each loop: median and range over the rounds."""
    reports = take_turns(loops, rounds, steps, folder)
    first = next(iter(reports.values()))
    found = {}
    for name, own in reports.items():
        ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(own, first, strict=True)]
        rate = statistics.median(steps * batch_size / report["seconds"] for report in own)
        found[name] = {
            "examples_per_second": rate,
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "peak_gpu_mib": None if own[-1]["peak_gpu"] is None else own[-1]["peak_gpu"] / 2**20,
        }
    return found
