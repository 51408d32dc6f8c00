"""A loss or a gradient that is not finite changes no weight: the run stops and says whose it is, or skips the step."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

__all__ = ["ON_NONFINITE", "FiniteCheck"]

ON_NONFINITE = ("stop", "skip")
_NAMED = 10


class FiniteCheck:
    """Looks at the losses of each optimizer step before the weights are touched.

    Args:
        policy: ``stop`` raises; ``skip`` leaves the step out and counts it.

    Attributes:
        skipped: Steps left out so far.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.skipped = 0
        self._watched: list[tuple[str, Tensor, Tensor]] = []

    def watch(self, task: str, losses: Tensor, places: Tensor) -> None:
        """Note losses that are about to be propagated.

        Args:
            task: The task.
            losses: ``[B]``.
            places: ``[B]``, the examples' places in the task's training set.
        """
        self._watched.append((task, losses.detach(), places))

    def allows(self, accelerator: Accelerator, step: int, gradient_norm: float) -> bool:
        """Whether the update may be made; all processes ask together.

        Args:
            accelerator: Of the trainer.
            step: Optimizer steps made so far.
            gradient_norm: Of the whole update, the same on all processes.

        Returns:
            False where the step is to be skipped.

        Raises:
            FloatingPointError: The policy is ``stop``, and a loss or the gradient is not finite.
        """
        watched, self._watched = self._watched, []
        losses = torch.cat([losses.float() for _, losses, _ in watched]) if watched else torch.zeros(1)
        wrong = accelerator.reduce((~losses.isfinite()).sum().to(accelerator.device), "sum")
        # float16's loss scale is found by trying: its gradients overflow by design, and are not applied.
        overflows = not math.isfinite(gradient_norm) and accelerator.scaler is None
        if not wrong and not overflows:
            return True
        found = gather_object(
            [
                (task, int(place), float(loss))
                for task, task_losses, places in watched
                for loss, place in zip(task_losses, places, strict=True)
                if not loss.isfinite()
            ]
        )
        if self.policy == "stop":
            raise FloatingPointError(
                f"{_what(found, gradient_norm)} at step {step + 1}, before any weight was changed. Look at these rows, "
                "lower the learning rate, or use bf16 in place of fp16, and go on from the last checkpoint; "
                "`training.on_nonfinite: skip` leaves such steps out and counts them."
            )
        self.skipped += 1
        return False


def _what(found: list[tuple[str, int, float]], gradient_norm: float) -> str:
    if not found:
        return f"The gradient must be finite; its norm is {gradient_norm}, though every loss is finite,"
    tasks: dict[str, list[tuple[int, float]]] = {}
    for task, place, loss in sorted(found, key=lambda item: item[:2]):
        tasks.setdefault(task, []).append((place, loss))
    told = "; ".join(
        f"task {task!r}: {examples[0][1]} for the training examples "
        + ", ".join(str(place) for place, _ in examples[:_NAMED])
        + (f" and {len(examples) - _NAMED} more" if len(examples) > _NAMED else "")
        for task, examples in tasks.items()
    )
    return f"Every training loss must be finite; found {told} (places in the task's training set),"
