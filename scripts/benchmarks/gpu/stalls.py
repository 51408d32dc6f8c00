"""Count how often the host waits for the device in a training step, and find the lines of code that wait."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Of the runtime: calls that return when the device has finished. Of the device: copies to the host.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIES = ("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pinned)")
# Operators that make such a wait on a device, and can be counted on a processor.
OPERATORS = ("aten::_local_scalar_dense", "aten::nonzero")


class ProfiledSteps(TrainerCallback):
    """After a warm-up, profile some steps, note the waits of PyTorch in as many others, and end the run.

    Args:
        steps: Number of steps, of the warm-up, of the profile and of what follows it.
        ready: The warm-up begins when this is true.
    """

    def __init__(self, steps: int, ready: Callable[[], bool]) -> None:
        self.steps, self.ready, self.seen = steps, ready, 0
        self.profile: Any = None
        self.counts: dict[str, int] | None = None
        self.places: Counter[str] = Counter()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seen += self.ready()
        if self.seen == self.steps + 1 and self.profile is None:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (args.device.type == "cuda")
            self.profile = profile(activities=activities)
            self.profile.start()
        if self.seen == 2 * self.steps + 1 and args.device.type == "cuda":
            self.warned = warnings.catch_warnings(record=True)
            self.noted = self.warned.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.seen == 2 * self.steps and self.counts is None:
            self.profile.stop()
            self.counts = {event.key: event.count for event in self.profile.key_averages()}
        if self.seen == 3 * self.steps:
            control.should_training_stop = True
            if args.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
                self.warned.__exit__(None, None, None)
                waits = [noted for noted in self.noted if "synchronizing CUDA operation" in str(noted.message)]
                self.places.update(place_of(noted) for noted in waits)


def place_of(noted: warnings.WarningMessage) -> str:
    """Return the package's file and the line, without the folders of this machine."""
    parts = Path(noted.filename).parts
    packages = [place for place, part in enumerate(parts) if part in ("site-packages", "dist-packages", "src")]
    return f"{'/'.join(parts[packages[-1] + 1 :] if packages else parts[-1:])}:{noted.lineno}"


def stalls(
    trainer: Trainer, steps: int, device: str, ready: Callable[[], bool] = lambda: True
) -> dict[str, Any] | None:
    """Return the number of waits, copies and operators per step; None if the run ended before it was ``ready``.

    ``waits_at`` has the lines of code at which PyTorch waited for the device, and how often per step.
    """
    profiled = ProfiledSteps(steps, ready)
    trainer.add_callback(profiled)
    trainer.train()
    if profiled.counts is None:
        return None
    names = (*WAITS, *COPIES, *OPERATORS) if device == "cuda" else OPERATORS
    counts: dict[str, Any] = {name: profiled.counts.get(name, 0) / steps for name in names}
    return {**counts, "waits_at": {place: count / steps for place, count in sorted(profiled.places.items())}}
