"""GradNorm (Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing", ICML 2018).

torchjd does not have it. The GradNorm of some libraries computes no gradient norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .balancer import WeightingBalancer, check_positive

LEAST_WEIGHT = 0.01
"""Lower bound of the weights: below 0, a task would be unlearned. The paper has no such bound."""


def gradnorm_gradient(weights: Tensor, norms: Tensor, ratios: Tensor, alpha: float) -> Tensor:
    r"""Return the gradient of GradNorm's objective with respect to the tasks' weights.

    The objective is :math:`\sum_i |G_i - \bar G \, r_i^\alpha|` (equation 2), where :math:`G_i = w_i \|\nabla
    \ell_i\|`, :math:`\bar G` is its mean over the tasks, and :math:`r_i` is a task's loss ratio over the mean ratio:
    how slowly it learns in comparison. The target :math:`\bar G \, r_i^\alpha` is held constant, as in the paper. So
    the gradient is :math:`\mathrm{sign}(G_i - \bar G r_i^\alpha) \, \|\nabla \ell_i\|`. All are ``[k]``. ``alpha`` = 0
    asks for equal norms at any speed of learning; high values favor slow tasks.
    """
    weighted = weights * norms
    target = weighted.mean() * (ratios / ratios.mean()) ** alpha
    return torch.sign(weighted - target) * norms


class GradNorm(WeightingBalancer):
    """GradNorm: tasks that learn slowly get larger gradients.

    In each call the weights take a step against `gradnorm_gradient`, and are rescaled to add up to the number of tasks
    (Algorithm 1). The tasks in the batch share the sum of their weights among themselves; absent tasks keep theirs.

    The loss ratio of a task is over its loss in the first batch that it is in. A small batch makes this a poor
    reference; if it is near 0, the task gets too much weight for the rest of the run.

    Args:
        alpha: >= 0; see `gradnorm_gradient`. The paper has 1.5 and 0.12.
        learning_rate: > 0, of the weights; 0.025 in the paper. A step is this times a gradient norm: with norms far
            above 10, weights oscillate between their bounds.
    """

    def __init__(
        self, method: str, tasks: Sequence[str], seed: int, over: str, alpha: float = 1.5, learning_rate: float = 0.025
    ) -> None:
        super().__init__(method, tasks, seed, over)
        check_positive("learning_rate", learning_rate)
        if alpha < 0:
            raise ValueError(f"alpha must be non-negative, but got {alpha!r}.")
        self._alpha = alpha
        self._learning_rate = learning_rate
        self._task_weights = torch.ones(len(tasks), dtype=torch.float64)
        self._first_losses: list[Any] = [None] * len(tasks)

    def _weights(self, gramian: Tensor, losses: Tensor, ids: list[int]) -> Tensor:
        share = self._task_weights[ids].mean()
        weights = self._task_weights[ids] / share
        ratios = []
        for task, loss in zip(ids, losses.tolist(), strict=True):
            if self._first_losses[task] is None:
                self._first_losses[task] = loss
            ratios.append(loss / self._first_losses[task])
        norms = gramian.diagonal().double().sqrt()
        gradient = gradnorm_gradient(weights, norms, torch.tensor(ratios, dtype=torch.float64), self._alpha)
        moved = (weights - self._learning_rate * gradient).clamp(min=LEAST_WEIGHT)
        self._task_weights[ids] = moved / moved.mean() * share
        return weights.to(gramian)

    def _state(self) -> dict[str, Any]:
        return {"weights": self._task_weights.tolist(), "first_losses": list(self._first_losses)}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._task_weights = torch.tensor(state["weights"], dtype=torch.float64)
        self._first_losses = list(state["first_losses"])
