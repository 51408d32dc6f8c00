r"""Weights, or a direction, from the gradients of the tasks, through `torchjd.aggregation`.

All methods except GradDrop use only the inner products of the gradients, and are invariant to a common scale of the
gradients. torchjd's thresholds are not: it treats all gradients as 0 if their squared norms add up to less than 1e-4
(CAGrad then stops the update, UPGrad leaves conflicts). So inner products are divided by their trace first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchjd import aggregation

from .balancer import GradientBalancer, WeightingBalancer, seeded
from .config import METHODS


class GramianWeighting(WeightingBalancer):
    r"""PCGrad, CAGrad, MGDA, Aligned-MTL, IMTL-G, UPGrad, Nash-MTL and FairGrad: weights without a state.

    With :math:`g_t` the gradients and :math:`G` their inner products:

    * PCGrad: each :math:`g_t`, less its projections on the gradients that it conflicts with, in an order drawn from the
      seed and the number of the call (Yu et al., NeurIPS 2020, Algorithm 1).
    * CAGrad: :math:`g_0 + c \|g_0\| g_w / \|g_w\|`, where :math:`g_0` is the mean and w in the simplex minimizes
      :math:`g_w^\top g_0 + c \|g_0\| \|g_w\|` (Liu et al., NeurIPS 2021, Algorithm 1). 0 if :math:`g_w` is nearly 0.
      ``c`` = 0 is the mean; far above 1 it is MGDA.
    * MGDA: the shortest vector in the convex hull, by Frank-Wolfe (Sener and Koltun, NeurIPS 2018, Algorithm 2). A task
      with a gradient much smaller than all others gets nearly all the weight.
    * Aligned-MTL: :math:`\sqrt{\sigma} \, G^{-1/2} \, 1/k`, with :math:`\sigma` the least eigenvalue above 0, or the
      median or mean one (Senushkin et al., CVPR 2023, Algorithm 1). The steps are small if two gradients nearly agree.
    * IMTL-G: the same projection on every :math:`g_t / \|g_t\|`, with weights that add up to 1 (Liu et al., "Towards
      Impartial Multi-task Learning", ICLR 2021). Weights may be negative, and are huge if gradients nearly cancel.
    * UPGrad: the mean of the projections of each :math:`g_t` on the cone that conflicts with none (Quinton and Rey,
      "Jacobian Descent for Multi-Objective Optimization", 2024).
    * FairGrad: :math:`(G \alpha)_t = \alpha_t^{-1/a}` (Ban and Ji, "Fair Resource Allocation in Multi-Task Learning",
      ICML 2024, equation 4). With a below 0.1 the powers of the solver can overflow.
    * Nash-MTL: :math:`(G \alpha)_t = 1 / \alpha_t` (Navon et al., ICML 2022, claim 3.1), FairGrad with a = 1.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int, over: str, **parameters: Any) -> None:
        super().__init__(method, tasks, seed, over)
        described = METHODS[method]
        assert described.torchjd is not None
        weighting = getattr(aggregation, described.torchjd)
        self._weighting: aggregation.Weighting = weighting(**{**described.defaults, **parameters})
        self._normalize = described.normalize

    def _weights(self, gramian: Tensor, losses: Tensor, ids: list[int]) -> Tensor:
        with seeded(self.seed, self.calls, gramian.device):
            weights = self._weighting(gramian / gramian.trace())
        return weights / weights.sum() if self._normalize else weights


class GradVac(WeightingBalancer):
    r"""GradVac: PCGrad towards a running mean of each pair's cosine instead of 0.

    If the cosine of :math:`g_i` and :math:`g_j` is below its mean :math:`\hat\phi_{ij}`, a multiple of :math:`g_j` is
    added to :math:`g_i` that raises it to the mean (Wang et al., "Gradient Vaccine", ICLR 2021, Algorithm 1, over all
    parameters at once). The means begin at 0. ``beta`` is the share of the newest cosine in the mean: 0 is PCGrad, 1
    the last cosine. The seed is that of the order of the pairs.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int, over: str, **parameters: Any) -> None:
        super().__init__(method, tasks, seed, over)
        self._weighting: Any = aggregation.GradVacWeighting(**parameters)
        self._cosines = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)

    def _weights(self, gramian: Tensor, losses: Tensor, ids: list[int]) -> Tensor:
        # torchjd resets its means when the number of tasks changes. They are kept here, and set for each call.
        index = torch.tensor(ids)
        own = (index[:, None], index)
        self._weighting._phi_t = self._cosines[own].to(gramian.dtype)
        self._weighting._state_key = (len(ids), gramian.dtype)
        with seeded(self.seed, self.calls, gramian.device):
            weights = self._weighting(gramian / gramian.trace())
        self._cosines[own] = self._weighting._phi_t.double()
        return weights

    def _state(self) -> dict[str, Any]:
        return {"cosines": self._cosines.tolist()}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._cosines = torch.tensor(state["cosines"], dtype=torch.float64)


class GradDrop(GradientBalancer):
    r"""GradDrop: each parameter follows the tasks of one sign.

    With :math:`p = \frac12 (1 + \sum_t g_t / \sum_t |g_t|)` and u uniform, both per parameter: the sum of the positive
    gradients if p > u, of the negative ones if p < u (Chen et al., "Just Pick a Sign", NeurIPS 2020, Algorithm 1, with
    f the identity and no leak; there at the activations of a layer, here at the parameters).

    The draws depend on the seed and the number of the call. It gives a direction and no weights, so ``over`` is
    ``encoder``.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int, over: str, **parameters: Any) -> None:
        super().__init__(method, tasks, seed, over)
        self._aggregator = aggregation.GradDrop(**parameters)

    def direction(self, jacobian: Tensor, losses: Tensor, task_ids: Sequence[int]) -> Tensor:
        """Return the sum of the gradients of the drawn sign, per parameter."""
        with seeded(self.seed, self.calls, jacobian.device):
            direction = self._aggregator(jacobian)
        self.calls += 1
        return self._scaled(direction, len(jacobian), len(jacobian))


ADAPTERS: dict[str, type[GradientBalancer]] = {"gradvac": GradVac, "graddrop": GradDrop}
"""The methods that need more than `GramianWeighting`."""
