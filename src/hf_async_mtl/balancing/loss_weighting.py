r"""Weights from the losses, through `torchjd.scalarization`.

A scalarizer is a function :math:`S(\ell_1, \ldots, \ell_k)`; the weight of a task is
:math:`\partial S / \partial \ell_t` at the losses of the batch of all ranks. The scalarizers of torchjd raise, or reset
their state, when the number of tasks changes. So each call here makes one for the tasks in the batch, and the state is
kept per task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchjd import scalarization

from .balancer import LossBalancer, check_positive, seeded
from .config import METHODS


def partial_derivatives(scalarizer: scalarization.Scalarizer, losses: Tensor) -> Tensor:
    """Return the derivatives of a scalarizer by each loss: ``[k]`` from ``[k]``."""
    with torch.enable_grad():
        leaf = losses.detach().requires_grad_()
        return torch.autograd.grad(scalarizer(leaf), leaf)[0]


class StatelessWeighting(LossBalancer):
    r"""RLW, GLS and STCH: weights without a state.

    * RLW: :math:`\lambda = \mathrm{softmax}(z)`, :math:`z \sim N(0, I)` (Lin et al., "Reasonable Effectiveness of
      Random Weighting", TMLR 2022, Algorithm 2), drawn from the seed and the number of the call.
    * GLS: :math:`S = (\prod_t \ell_t)^{1/k}`, so that :math:`\lambda_t = S / (k \ell_t)` (Chennupati et al.,
      "MultiNet++", CVPR Workshops 2019). A task whose loss is nearly 0 gets nearly all the weight.
    * STCH: :math:`S = \mu \log \sum_t \exp(\ell_t / (k \mu))`, so that :math:`\lambda = \mathrm{softmax}(\ell / (k
      \mu)) / k` (Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024, with equal
      preferences and an ideal point of 0). It compares raw losses: one on a larger scale dominates. With ``mu`` near 0
      only the largest loss counts; far above the losses all count alike.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int, **parameters: Any) -> None:
        super().__init__(method, tasks, seed)
        described = METHODS[method]
        assert described.torchjd is not None
        scalarizer = getattr(scalarization, described.torchjd)
        self._scalarizer: scalarization.Scalarizer = scalarizer(**{**described.defaults, **parameters})

    def _weights(self, losses: Tensor, ids: list[int]) -> Tensor:
        with seeded(self.seed, self.calls, losses.device):
            return partial_derivatives(self._scalarizer, losses)


class _LearnedScales(LossBalancer):
    r"""One scale per task, learned by gradient descent on the scalarizer itself.

    Both methods pull each weighted loss towards the same value: weights converge to :math:`1 / \ell_t`, and grow
    without bound as a loss nears 0. In the papers the optimizer of the network learns the scales; with a learning rate
    for fine-tuning, 1e-5, they would hardly move, so they have their own. A loss far above ``1 / learning_rate`` moves
    its scale so far in one call that the task has no weight for many calls.

    Args:
        learning_rate: > 0. The scales move by it times the derivative of S, once per call.
    """

    scalarizer: ClassVar[type[scalarization.Scalarizer]]

    def __init__(self, method: str, tasks: Sequence[str], seed: int, learning_rate: float = 0.025) -> None:
        super().__init__(method, tasks, seed)
        check_positive("learning_rate", learning_rate)
        self._learning_rate = learning_rate
        self._scales = torch.zeros(len(tasks), dtype=torch.float64)

    def _weights(self, losses: Tensor, ids: list[int]) -> Tensor:
        make: Any = self.scalarizer
        scalarizer = make(len(ids)).double()
        (scales,) = scalarizer.parameters()
        with torch.no_grad():
            scales.copy_(self._scales[ids])
        weights = partial_derivatives(scalarizer, losses)
        with torch.enable_grad():
            (derivative,) = torch.autograd.grad(scalarizer(losses), scales)
        self._scales[ids] -= self._learning_rate * derivative
        return weights

    def _state(self) -> dict[str, Any]:
        return {"scales": self._scales.tolist()}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._scales = torch.tensor(state["scales"], dtype=torch.float64)


class UncertaintyWeighting(_LearnedScales):
    r"""UW: :math:`S = \sum_t \frac12 e^{-s_t} \ell_t + \frac12 s_t`.

    Kendall et al., CVPR 2018, equation 7 with :math:`s_t = \log \sigma_t^2`, the same for all types of tasks.
    """

    scalarizer = scalarization.UW


class IMTLL(_LearnedScales):
    r"""IMTL-L: :math:`S = \sum_t e^{s_t} \ell_t - s_t`.

    Liu et al., "Towards Impartial Multi-task Learning", ICLR 2021.
    """

    scalarizer = scalarization.IMTLL


class DWA(LossBalancer):
    r"""DWA: tasks whose losses fall slowly get more weight.

    :math:`\lambda_t = k \, \mathrm{softmax}(r / T)_t` with :math:`r_t = L_t(e-1) / L_t(e-2)`, the ratio of a task's
    mean losses over the last two epochs (Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019,
    equation 7).
    :math:`r_t = 1` until a task has two means, as in the paper, and if the older one is 0.

    Args:
        temperature: > 0; far above 1 all tasks get the same weight.
        window: The number of calls that take the place of an epoch. A fine-tuning of three epochs has weights in the
            last one only, unless the window is shorter. None: the calls of an epoch.
    """

    def __init__(
        self, method: str, tasks: Sequence[str], seed: int, temperature: float = 2.0, window: int | None = None
    ) -> None:
        super().__init__(method, tasks, seed)
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ValueError(f"window must be a whole number above 0, but got {window!r}.")
        scalarization.DWA(temperature)  # checks it
        self._temperature = temperature
        self._window = window
        self._calls_in_window = 0
        self._sums = torch.zeros(len(tasks), dtype=torch.float64)
        self._counts = torch.zeros(len(tasks), dtype=torch.float64)
        # Task -> its last means, at most two, the older one first.
        self._means: list[list[float]] = [[] for _ in tasks]

    def _weights(self, losses: Tensor, ids: list[int]) -> Tensor:
        weights = partial_derivatives(self._scalarizer(ids), losses)
        self._sums[ids] += losses
        self._counts[ids] += 1
        self._calls_in_window += 1
        if self._calls_in_window >= self._window:
            for task, (total, count) in enumerate(zip(self._sums.tolist(), self._counts.tolist(), strict=True)):
                if count:
                    self._means[task] = [*self._means[task], total / count][-2:]
            self._sums.zero_()
            self._counts.zero_()
            self._calls_in_window = 0
        return weights

    def _scalarizer(self, ids: list[int]) -> scalarization.DWA:
        """Return torchjd's scalarizer after two epochs of one batch each, with the tasks' two means as losses."""
        known = [self._means[task] for task in ids]
        pairs = [means if len(means) == 2 and means[0] else [1.0, 1.0] for means in known]
        scalarizer = scalarization.DWA(self._temperature)
        for epoch in torch.tensor(pairs, dtype=torch.float64).T:
            scalarizer(epoch)
            scalarizer.step()
        return scalarizer

    def _state(self) -> dict[str, Any]:
        return {
            "calls_in_window": self._calls_in_window,
            "sums": self._sums.tolist(),
            "counts": self._counts.tolist(),
            "means": [list(means) for means in self._means],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._calls_in_window = state["calls_in_window"]
        self._sums = torch.tensor(state["sums"], dtype=torch.float64)
        self._counts = torch.tensor(state["counts"], dtype=torch.float64)
        self._means = [list(means) for means in state["means"]]


def famo_gradient(logits: Tensor, before: Tensor, after: Tensor) -> Tensor:
    r"""Return the gradient of FAMO's task logits, from the fall of each loss over a step.

    :math:`\mathrm{d}z/\mathrm{d}w^\top \delta` with :math:`z = \mathrm{softmax}(w)` and :math:`\delta_t = \log \ell_t -
    \log \ell_t'` (Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023). Descent moves weight away
    from the tasks whose logarithm fell most. All are ``[k]``; the gradient adds up to 0.
    """
    weights = logits.softmax(0)
    fall = before.log() - after.log()
    return weights * (fall - weights @ fall)


class FAMO(LossBalancer):
    r"""FAMO: weights under which all losses fall at the same relative rate.

    :math:`\lambda_t = c \, z_t / \ell_t`, :math:`z = \mathrm{softmax}(w)`, with c such that they add up to 1; w follows
    `famo_gradient` with Adam (Liu et al., NeurIPS 2023).

    The paper measures the fall on the same batch, computed again after the step. Here the losses of the next call are
    used instead, which saves a forward pass and adds the noise of another batch; a task takes part if it is in both.
    With gradient accumulation most calls have no step between them, and only the noise is left.

    torchjd gives the weights. Its own update is not used: it steps all tasks or none.

    Args:
        learning_rate: > 0, of Adam.
        weight_decay: >= 0, of Adam; pulls the weights z together.
    """

    def __init__(
        self, method: str, tasks: Sequence[str], seed: int, learning_rate: float = 0.025, weight_decay: float = 0.001
    ) -> None:
        super().__init__(method, tasks, seed)
        check_positive("learning_rate", learning_rate)
        # One parameter per task: Adam leaves those without a gradient alone, with their moments and step counts.
        self._logits = [nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in tasks]
        self._optimizer = torch.optim.Adam(self._logits, learning_rate, weight_decay=weight_decay)
        self._previous: dict[int, float] = {}

    def _weights(self, losses: Tensor, ids: list[int]) -> Tensor:
        now = dict(zip(ids, losses.tolist(), strict=True))
        self._learn(now)
        self._previous = now
        scalarizer = scalarization.FAMO(len(ids)).double()
        (logits,) = scalarizer.parameters()
        with torch.no_grad():
            logits.copy_(self._logits_of(ids))
        return partial_derivatives(scalarizer, losses)

    def _logits_of(self, ids: Sequence[int]) -> Tensor:
        return torch.stack([self._logits[task].detach() for task in ids])

    def _learn(self, now: Mapping[int, float]) -> None:
        both = [task for task in now if task in self._previous]
        if not both:
            return
        before, after = (
            torch.tensor([losses[task] for task in both], dtype=torch.float64) for losses in (self._previous, now)
        )
        for task, derivative in zip(both, famo_gradient(self._logits_of(both), before, after), strict=True):
            self._logits[task].grad = derivative.clone()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _state(self) -> dict[str, Any]:
        moments = [self._optimizer.state.get(logit) for logit in self._logits]
        return {
            "logits": [logit.item() for logit in self._logits],
            "previous": [self._previous.get(task) for task in range(len(self.tasks))],
            "adam": [None if of is None else {name: value.item() for name, value in of.items()} for of in moments],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._previous = {task: loss for task, loss in enumerate(state["previous"]) if loss is not None}
        self._optimizer.state.clear()
        for logit, value, moments in zip(self._logits, state["logits"], state["adam"], strict=True):
            with torch.no_grad():
                logit.fill_(value)
            for name, number in (moments or {}).items():
                # Adam counts its steps in float32.
                dtype = torch.float32 if name == "step" else torch.float64
                self._optimizer.state[logit][name] = torch.tensor(number, dtype=dtype)


ADAPTERS: dict[str, type[LossBalancer]] = {"uw": UncertaintyWeighting, "imtl_l": IMTLL, "dwa": DWA, "famo": FAMO}
"""The methods that need more than `StatelessWeighting`."""
