"""Do the tasks pull the encoder in different directions? Cosines between their gradients, now and then in a run.

Yu et al., "Gradient Surgery for Multi-Task Learning" (2020), arXiv:2001.06782, call two gradients conflicting where
their cosine is negative (definition 1). Here it is taken over the parameters of the last shared layer: a gradient there
costs a backward pass through one head and that layer, and not through the encoder.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..convergence.criteria import check_keys
from ..modeling.configuration_multitask import ConfigurationError
from ..modeling.freezing import encoder_layers

__all__ = ["ConflictMonitor", "cosines", "last_shared_layer"]


def cosines(gradients: Tensor) -> Tensor:
    """The cosine of the angle between each two gradients.

    Args:
        gradients: ``[K, n]``. Their lengths do not matter, unless they are 0.

    Returns:
        ``[K, K]``, float32, -1 to 1, with 1 on the diagonal. The row and the column of a gradient that is 0, or not
        finite, are NaN.

    Examples:
        >>> cosines(torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0]]))
        tensor([[ 1., -1., nan],
                [-1.,  1., nan],
                [nan, nan, nan]])
    """
    # Training's autocast would round the products to a few digits.
    with torch.autocast(gradients.device.type, enabled=False):
        units = gradients.float()
        # In two steps: the squares of small numbers vanish.
        units = units / units.abs().amax(dim=1, keepdim=True)
        units = units / units.norm(dim=1, keepdim=True)
        products = (units @ units.T).clamp(-1, 1)
    diagonal = products.diagonal()
    diagonal[~diagonal.isnan()] = 1
    return products


def last_shared_layer(encoder: nn.Module) -> list[nn.Parameter]:
    """The parameters of the encoder's last layer that learns.

    ALBERT has one layer, which it runs several times: a gradient there goes through the whole encoder.

    Args:
        encoder: A text encoder.

    Returns:
        Those parameters of the last layer that require a gradient; where it is frozen, of the last one that is not.
        Empty where all layers are frozen: there is then no layer for tasks to be at odds about.

    Raises:
        ConfigurationError: The encoder has no list of layers.
    """
    layers = encoder_layers(encoder)
    if not layers:
        raise ConfigurationError(
            f"An encoder must keep its layers in an `nn.ModuleList` for gradients to be compared at the last of them; "
            f"{type(encoder).__name__} has none. Set `training.conflict_steps: 0`, and balance over the encoder."
        )
    learning = ([p for p in layer.parameters() if p.requires_grad] for layer in reversed(layers))
    return next(filter(None, learning), [])


class ConflictMonitor:
    """Averages the cosines between the tasks' gradients over a run.

    Each measurement runs a small backward pass a task through graphs that are kept for the step's own. It changes no
    ``.grad`` and no random state. Under DDP each process measures its own batches, and the report has the first one's.
    Gradients in float16 are not scaled, and small ones count as 0. A compiled model refuses to keep its
    graph; reentrant gradient checkpointing refuses gradients of chosen parameters.

    Args:
        tasks: The names of the tasks, in the order of the losses.
        every: Steps from one measurement to the next, at least 1.
    """

    def __init__(self, tasks: Sequence[str], every: int) -> None:
        if every < 1:
            raise ValueError(f"Conflicts must be measured every so many steps, at least 1; found {every}.")
        self.tasks = list(tasks)
        self.every = every
        self._sums = self._zeros(0.0)
        self._counts = self._zeros(0)
        self._negative = self._zeros(0)

    def _zeros(self, zero: Any) -> list[list[Any]]:
        return [[zero for _ in self.tasks] for _ in self.tasks]

    def due(self, step: int) -> bool:
        """Whether there is a measurement at this optimizer step."""
        return step % self.every == 0

    def measure(self, losses: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> None:
        """Take the gradients of one batch in.

        Args:
            losses: For each task its loss, a scalar with its graph, or None where the batch has no example of it. A
                loss with a gradient of 0, such as a sum over no example, counts as none.
            parameters: What the gradients are taken of; see `last_shared_layer`. Of none, nothing is measured.
        """
        present = [(i, loss) for i, loss in enumerate(losses) if loss is not None]
        if not present or not parameters:
            return
        # Filled in place: of a large layer there is room for each task's gradient, and not for each twice.
        gradients = parameters[0].new_zeros(len(present), sum(p.numel() for p in parameters), dtype=torch.float32)
        for row, (_, loss) in zip(gradients, present, strict=True):
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            for part, gradient in zip(row.split([p.numel() for p in parameters]), found, strict=True):
                if gradient is not None:
                    part.copy_(gradient.flatten())
        measured = cosines(gradients).tolist()
        for (a, (i, _)), (b, (j, _)) in itertools.product(enumerate(present), repeat=2):
            cosine = measured[min(a, b)][max(a, b)]
            if cosine == cosine:  # not NaN
                self._sums[i][j] += cosine
                self._counts[i][j] += 1
                self._negative[i][j] += cosine < 0

    def report(self) -> dict[str, Any]:
        """What was found, as JSON values.

        Returns:
            ``tasks``; and, as a row and a column for each, ``cosines``: the mean, ``counts``: of how many measurements,
            and ``negative``: the share of them in which the two conflicted. None where there was no measurement.
        """
        return {
            "tasks": list(self.tasks),
            "cosines": self._shares(self._sums),
            "counts": [list(row) for row in self._counts],
            "negative": self._shares(self._negative),
        }

    def _shares(self, totals: Sequence[Sequence[float]]) -> list[list[float | None]]:
        return [
            [total / count if count else None for total, count in zip(*rows, strict=True)]
            for rows in zip(totals, self._counts, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """All that `report` depends on, as JSON values."""
        return {
            "tasks": list(self.tasks),
            "sums": [list(row) for row in self._sums],
            "counts": [list(row) for row in self._counts],
            "negative": [list(row) for row in self._negative],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            ValueError: The state is of other tasks, or its keys are not exactly those of `state_dict`. Nothing has
                changed.
        """
        check_keys(state, self.state_dict(), "The state of a conflict monitor", "was it saved by another version?")
        if state["tasks"] != self.tasks:
            raise ValueError(
                f"Conflicts must be resumed with the tasks {', '.join(self.tasks)}, in this order; found "
                f"{', '.join(state['tasks'])}: resume with the tasks that they were saved with."
            )
        self._sums = [list(row) for row in state["sums"]]
        self._counts = [list(row) for row in state["counts"]]
        self._negative = [list(row) for row in state["negative"]]
