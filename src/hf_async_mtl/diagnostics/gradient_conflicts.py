"""Cosines between the tasks' gradients, measured every few steps of a run.

Yu et al., "Gradient Surgery for Multi-Task Learning" (2020), arXiv:2001.06782, call two gradients conflicting if their
cosine is negative (definition 1). Here it is taken over the parameters of the last shared layer: a gradient there costs
a backward pass through one head and that layer, and not through the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..balancing.backward import jacobian
from ..validation import ConfigurationError


def cosines(gradients: Tensor) -> Tensor:
    """Return the cosine of the angle between each two of K gradients ``[K, n]``.

    ``[K, K]``, float32, symmetric, -1 to 1, with 1 on the diagonal. The row and the column of a gradient that is 0, or
    not finite, are NaN.
    """
    # The autocast of training would round the products to a few digits.
    with torch.autocast(gradients.device.type, enabled=False):
        units = gradients.float()
        # In two steps: the squares of small numbers underflow.
        units = units / units.abs().amax(dim=1, keepdim=True)
        units = units / units.norm(dim=1, keepdim=True)
        products = (units @ units.T).clamp(-1, 1)
    diagonal = products.diagonal()
    diagonal[~diagonal.isnan()] = 1
    return products.triu() + products.triu(1).T


class GradientConflicts:
    """The mean cosines between the tasks' gradients over a run.

    Each measurement runs a small backward pass per task through graphs that are kept for the step's own. It changes no
    ``.grad`` and no random state. Under DDP each process measures its own batches; the report has those of rank 0.
    Gradients in float16 are not scaled, and small ones count as 0.

    Args:
        tasks: The names of the tasks, in the order of the losses.
        parameters: The parameters whose gradients are compared. Without any, nothing is measured.
        every: The number of optimizer steps between two measurements, at least 1.
    """

    def __init__(self, tasks: Sequence[str], parameters: Sequence[nn.Parameter], every: int) -> None:
        if every < 1:
            raise ValueError(f"`every` must be a number of steps of at least 1; found {every}.")
        self.tasks = list(tasks)
        self.parameters = list(parameters)
        self.every = every
        self._last_step = -1
        # Sums of cosines, numbers of measurements, numbers of negative cosines.
        self._totals = torch.zeros(3, len(self.tasks), len(self.tasks), dtype=torch.float64)

    def observe(self, losses: Sequence[Tensor], step: int) -> None:
        """Measure the first micro-batch of an optimizer step, if a measurement is due at that step.

        Args:
            losses: For each task the losses of its examples with their graph, empty without an example.
            step: Optimizer steps made so far.
        """
        if step % self.every == 0 and step != self._last_step:
            self._last_step = step
            self.measure([own.mean() if len(own) else None for own in losses])

    def measure(self, losses: Sequence[Tensor | None]) -> None:
        """Add the cosines of one batch.

        Args:
            losses: For each task its loss, a scalar with its graph, or None without an example in the batch. A loss
                with a gradient of 0 is treated as None.
        """
        present = [(index, loss) for index, loss in enumerate(losses) if loss is not None]
        if not present or not self.parameters:
            return
        measured = cosines(jacobian([loss for _, loss in present], self.parameters)).double().cpu()
        ids = torch.tensor([index for index, _ in present])
        self._totals[:, ids[:, None], ids] += torch.stack(
            [measured.nan_to_num(0.0), (~measured.isnan()).double(), (measured < 0).double()]
        )

    @property
    def has_measured(self) -> bool:
        """Whether there was a measurement."""
        return bool(self._totals[1].any())

    def report(self) -> dict[str, Any]:
        """Return what was measured, as JSON values.

        Returns:
            ``tasks``, and as one row and one column per task: ``cosines``, the mean; ``counts``, the number of
            measurements; ``negative``, the share of conflicts. None without a measurement.
        """
        sums, counts, negative = self._totals
        return {
            "tasks": list(self.tasks),
            "cosines": _without_nan(sums / counts),
            "counts": counts.long().tolist(),
            "negative": _without_nan(negative / counts),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that `report` depends on, as JSON values."""
        sums, counts, negative = self._totals.tolist()
        return {"tasks": list(self.tasks), "sums": sums, "counts": counts, "negative": negative}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ConfigurationError: The state is of other tasks, or its keys are not exactly those of `state_dict`. Nothing
                has changed.
        """
        known = self.state_dict()
        if state.keys() != known.keys():
            raise ConfigurationError(
                f"The state of gradient conflicts must have exactly the keys {', '.join(known)}; found "
                f"{', '.join(state) or 'none'}. Was it saved by another version?"
            )
        if state["tasks"] != self.tasks:
            raise ConfigurationError(
                f"Gradient conflicts must be resumed with the tasks {', '.join(self.tasks)}, in this order; found "
                f"{', '.join(state['tasks'])}. Resume with the tasks that they were saved with."
            )
        self._last_step = -1
        self._totals = torch.tensor([state[key] for key in ("sums", "counts", "negative")], dtype=torch.float64)


def _without_nan(means: Tensor) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in means.tolist()]
