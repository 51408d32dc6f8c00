"""A loss or a gradient that is not finite ends the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

_NAMED = 10
Added = list[tuple[str, Tensor, Sequence[int]]]


@dataclass
class _Step:
    """What is known of an optimizer step; ``wrong`` is the number of losses that are not finite, over all ranks."""

    step: int
    wrong: Tensor
    norm: Tensor | float
    added: Added
    copied: torch.cuda.Event | None = None


class FiniteCheck:
    """Check the losses and the gradients of each optimizer step.

    On a CPU the check is made before the weights are changed. On a GPU it would wait for the step. It is made one step
    later there, and before an evaluation or a checkpoint, so that the host is at most one step ahead.

    Args:
        is_deferred: Whether the check is made one step later.
    """

    def __init__(self, *, is_deferred: bool) -> None:
        self.is_deferred = is_deferred
        self.reset()

    def reset(self) -> None:
        """Forget the steps of an earlier run."""
        self._added: Added = []
        self._last: _Step | None = None

    def add(self, task: str, losses: Tensor, indices: Sequence[int]) -> None:
        """Add losses ``[B]`` of the next optimizer step, with the indices of the examples."""
        self._added.append((task, losses.detach(), indices))

    def check(self, accelerator: Accelerator, step: int, gradient_norm: Tensor | float) -> None:
        """Check an optimizer step, or the one before it; all ranks call this together.

        Args:
            accelerator: The trainer's.
            step: Number of optimizer steps made so far.
            gradient_norm: Norm of the whole gradient before it was clipped, the same on all ranks.

        Raises:
            FloatingPointError: A loss or the gradient is not finite.
        """
        added, self._added = self._added, []
        empty = torch.zeros(0, device=accelerator.device)
        losses = torch.cat([empty, *(losses.float() for _, losses, _ in added)])
        wrong = accelerator.reduce((~losses.isfinite()).sum(), "sum")
        self.flush(accelerator)
        self._last = _Step(step, wrong, gradient_norm, added)
        if self.is_deferred:
            _copy_to_host(self._last)
        else:
            self.flush(accelerator)

    def flush(self, accelerator: Accelerator) -> None:
        """Check the last step, if that has not been done; all ranks call this together."""
        last, self._last = self._last, None
        if last is None:
            return
        if last.copied is not None:
            last.copied.synchronize()
        norm = float(last.norm)
        # float16's loss scale is found by trial: its gradients overflow by design, and are not applied.
        if not last.wrong and (math.isfinite(norm) or accelerator.scaler is not None):
            return
        found = gather_object(
            [
                (task, int(index), float(loss))
                for task, task_losses, indices in last.added
                for loss, index in zip(task_losses, indices, strict=True)
                if not loss.isfinite()
            ]
        )
        spoiled = "found after it: the weights are spoiled, those of the checkpoints are not"
        raise FloatingPointError(
            f"{_requirement(found, norm)} at step {last.step + 1}, "
            f"{spoiled if self.is_deferred else 'before any weight was changed'}. Look at these rows, lower the "
            "learning rate, or use bf16 in place of fp16, and resume from the last checkpoint."
        )


def _copy_to_host(step: _Step) -> None:
    """Begin to copy what `FiniteCheck.flush` reads."""
    norm = step.norm if isinstance(step.norm, Tensor) else torch.tensor(step.norm)
    # Under FSDP the norm is sharded like the parameters.
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    step.wrong, step.norm = (value.to("cpu", non_blocking=True) for value in (step.wrong, norm))
    if torch.cuda.is_available():
        step.copied = torch.cuda.Event()
        step.copied.record()


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
