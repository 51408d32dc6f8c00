"""A loss or a gradient that is not finite ends the run before a weight is changed."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

_NAMED = 10


class FiniteCheck:
    """Check the losses and the gradients of each optimizer step before the weights are changed."""

    def __init__(self) -> None:
        self._added: list[tuple[str, Tensor, Tensor]] = []

    def add(self, task: str, losses: Tensor, indices: Tensor) -> None:
        """Add losses ``[B]`` of the next optimizer step, with the indices ``[B]`` of the examples."""
        self._added.append((task, losses.detach(), indices))

    def check(self, accelerator: Accelerator, step: int, gradient_norm: float) -> None:
        """Raise unless the update may be made; all ranks call this together.

        Args:
            accelerator: The trainer's.
            step: Number of optimizer steps made so far.
            gradient_norm: Norm of the whole gradient before it was clipped, the same on all ranks.

        Raises:
            FloatingPointError: A loss or the gradient is not finite.
        """
        added, self._added = self._added, []
        losses = torch.cat([losses.float() for _, losses, _ in added]) if added else torch.zeros(1)
        wrong = accelerator.reduce((~losses.isfinite()).sum().to(accelerator.device), "sum")
        # float16's loss scale is found by trial: its gradients overflow by design, and are not applied.
        if not wrong and (math.isfinite(gradient_norm) or accelerator.scaler is not None):
            return
        found = gather_object(
            [
                (task, int(index), float(loss))
                for task, task_losses, indices in added
                for loss, index in zip(task_losses, indices, strict=True)
                if not loss.isfinite()
            ]
        )
        raise FloatingPointError(
            f"{_requirement(found, gradient_norm)} at step {step + 1}, before any weight was changed. Look at these "
            "rows, lower the learning rate, or use bf16 in place of fp16, and resume from the last checkpoint."
        )


def _requirement(found: list[tuple[str, int, float]], gradient_norm: float) -> str:
    if not found:
        return f"The gradient must be finite; its norm is {gradient_norm}, though every loss is finite,"
    tasks: dict[str, list[tuple[int, float]]] = {}
    for task, index, loss in sorted(found, key=lambda item: item[:2]):
        tasks.setdefault(task, []).append((index, loss))
    named = "; ".join(
        f"task {task!r}: {examples[0][1]} for the training examples "
        + ", ".join(str(index) for index, _ in examples[:_NAMED])
        + (f" and {len(examples) - _NAMED} more" if len(examples) > _NAMED else "")
        for task, examples in tasks.items()
    )
    return f"Every training loss must be finite; found {named} (indices in the task's training set),"
