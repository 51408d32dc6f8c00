"""The mean training loss of each task between two logs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor


class RunningTaskLoss:
    """Add up each task's losses on the device, so that no training step waits for a number.

    Losses that are not finite are left out: `FiniteCheck` ends the run at their step.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self.reset()

    def reset(self) -> None:
        """Set all sums to 0."""
        # Sums of losses, numbers of examples.
        self._totals = torch.zeros(2, len(self.tasks))

    def add(self, losses: Sequence[Tensor]) -> None:
        """Add the losses of a batch: for each task a vector, empty if it has no example."""
        finite = [loss.detach().isfinite() for loss in losses]
        sums = torch.stack([loss.detach().where(ok, 0.0).sum() for loss, ok in zip(losses, finite, strict=True)])
        counts = torch.stack([ok.sum() for ok in finite]).to(sums)
        self._totals = self._totals.to(sums.device) + torch.stack([sums, counts])

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the mean loss of each task over all ranks since the last call, and start again.

        Returns:
            ``<task>_loss`` -> mean over the examples. A task without an example is left out.
        """
        # New sums are on the CPU, where not every backend can add them up.
        sums, counts = accelerator.reduce(self._totals.to(accelerator.device), "sum").tolist()
        self.reset()
        return {
            f"{name}_loss": total / count for name, total, count in zip(self.tasks, sums, counts, strict=True) if count
        }
