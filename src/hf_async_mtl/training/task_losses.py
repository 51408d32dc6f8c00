"""One training-loss curve a task: sums between two logs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

__all__ = ["TaskLosses"]


class TaskLosses:
    """Adds up each task's losses on the device, so that no training step waits for a number.

    A loss that is not finite is left out: its step is not made (see `hf_async_mtl.training.nonfinite`).

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
        finite = [loss.detach().isfinite() for loss in losses]
        new = [
            torch.stack([loss.detach().where(ok, 0.0).sum() for loss, ok in zip(losses, finite, strict=True)]),
            torch.stack([ok.sum() for ok in finite]),
        ]
        self._sums = self._sums.to(losses[0].device) + torch.stack([new[0], new[1].to(new[0])])

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """``<task>_loss``: the mean over the examples since the last call; a task without any is left out."""
        # Fresh sums are on the processor, where not every backend can add them up.
        sums, counts = accelerator.reduce(self._sums.to(accelerator.device), "sum").tolist()
        self.reset()
        return {
            f"{name}_loss": total / count for name, total, count in zip(self.tasks, sums, counts, strict=True) if count
        }
