"""One training-loss curve a task: sums between two logs, and the step at which one of them went wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

__all__ = ["TaskLosses"]


class TaskLosses:
    """Adds up each task's losses on the device, so that no training step waits for a number.

    Args:
        tasks: The names of the tasks, in the order of the sums.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._sums = torch.zeros(2, len(self.tasks))

    def add(self, losses: Sequence[Tensor]) -> None:
        """Add the losses of a batch: for each task a vector, empty where it has no example."""
        device = losses[0].device
        new = torch.stack(
            [
                torch.stack([loss.detach().sum() for loss in losses]),
                torch.tensor([float(len(loss)) for loss in losses], device=device),
            ]
        )
        before = self._sums.to(device)
        # Nothing is added to sums that are no longer finite: one bad step spoils all weights, and thereby all losses,
        # but the sums still tell where it began.
        self._sums = torch.where(before.isfinite().all(), before + new, before)

    def check(self, accelerator: Accelerator, step: int) -> tuple[list[float], list[float]]:
        """The sums over all processes, and the numbers of examples in them.

        Raises:
            FloatingPointError: A sum is not finite. The Trainer's own log hides that.
        """
        # Fresh sums are on the processor, where not every backend can add them up.
        sums, counts = accelerator.reduce(self._sums.to(accelerator.device), "sum").tolist()
        for name, total in zip(self.tasks, sums, strict=True):
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"The training loss of task {name!r} must be finite; found {total} before step {step}. Lower the "
                    "learning rate, or look at the task's data; then resume from the last checkpoint."
                )
        return sums, counts

    def take(self, accelerator: Accelerator, step: int) -> dict[str, float]:
        """``<task>_loss``: the mean over the examples since the last call; a task without any is left out."""
        sums, counts = self.check(accelerator, step)
        self.reset()
        return {
            f"{name}_loss": total / count for name, total, count in zip(self.tasks, sums, counts, strict=True) if count
        }
