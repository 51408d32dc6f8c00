"""A loss or a gradient that is not finite ends the run before a weight is changed."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

__all__ = ["FiniteCheck"]

_NAMED = 10


class FiniteCheck:
    """Checks the losses of each optimizer step before the weights are changed."""

    def __init__(self) -> None:
        self._watched: list[tuple[str, Tensor, Tensor]] = []

    def watch(self, task: str, losses: Tensor, places: Tensor) -> None:
        """Note losses that are about to be propagated.

        Args:
            task: The task.
            losses: ``[B]``.
            places: ``[B]``, the examples' places in the task's training set.
        """
        self._watched.append((task, losses.detach(), places))

    def check(self, accelerator: Accelerator, step: int, gradient_norm: float) -> None:
        """Raise a `FloatingPointError` unless the update may be made; all ranks call this together.

        Args:
            accelerator: Of the trainer.
            step: Optimizer steps made so far.
            gradient_norm: Of the whole update, the same on all processes.

        Raises:
            FloatingPointError: A loss or the gradient is not finite; the message names the tasks and their examples.
        """
        watched, self._watched = self._watched, []
        losses = torch.cat([losses.float() for _, losses, _ in watched]) if watched else torch.zeros(1)
        wrong = accelerator.reduce((~losses.isfinite()).sum().to(accelerator.device), "sum")
        # float16's loss scale is found by trying: its gradients overflow by design, and are not applied.
        overflows = not math.isfinite(gradient_norm) and accelerator.scaler is None
        if not wrong and not overflows:
            return
        found = gather_object(
            [
                (task, int(place), float(loss))
                for task, task_losses, places in watched
                for loss, place in zip(task_losses, places, strict=True)
                if not loss.isfinite()
            ]
        )
        raise FloatingPointError(
            f"{_what(found, gradient_norm)} at step {step + 1}, before any weight was changed. Look at these rows, "
            "lower the learning rate, or use bf16 in place of fp16, and resume from the last checkpoint."
        )


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
