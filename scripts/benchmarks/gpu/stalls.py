"""Count how often the host waits for the device in a training step, with PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Of the runtime: calls that return when the device has finished. Of the device: copies to the host.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIES = ("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pinned)")
# Operators that make such a wait on a device, and can be counted on a processor.
OPERATORS = ("aten::_local_scalar_dense", "aten::nonzero")


class ProfiledSteps(TrainerCallback):
    """Profile some steps after a warm-up, and end the run.

    Args:
        steps: Number of steps, of the warm-up and of the profile.
        ready: The warm-up begins when this is true.
    """

    def __init__(self, steps: int, ready: Callable[[], bool]) -> None:
        self.steps, self.ready, self.seen = steps, ready, 0
        self.profile: Any = None
        self.counts: dict[str, int] | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seen += self.ready()
        if self.seen == self.steps + 1 and self.profile is None:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (args.device.type == "cuda")
            self.profile = profile(activities=activities)
            self.profile.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.seen == 2 * self.steps and self.counts is None:
            self.profile.stop()
            self.counts = {event.key: event.count for event in self.profile.key_averages()}
            control.should_training_stop = True


def stalls(
    trainer: Trainer, steps: int, device: str, ready: Callable[[], bool] = lambda: True
) -> dict[str, float] | None:
    """Return the number of waits, copies and operators per step; None if the run ended before it was ``ready``."""
    profiled = ProfiledSteps(steps, ready)
    trainer.add_callback(profiled)
    trainer.train()
    if profiled.counts is None:
        return None
    names = (*WAITS, *COPIES, *OPERATORS) if device == "cuda" else OPERATORS
    return {name: profiled.counts.get(name, 0) / steps for name in names}
