r"""Weights from the losses alone, through `torchjd.scalarization`.

A scalarizer is a function :math:`S(\ell_1, \ldots, \ell_k)`; the weight of a task is
:math:`\partial S / \partial \ell_t` at the losses of the whole batch. torchjd's scalarizers raise, or forget what they
know, when the number of tasks changes. So here each call makes one for the tasks at hand, and what is learnt is kept by
task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchjd import scalarization

from .balancer import LossBalancer, seeded

__all__ = ["FAMO", "DynamicWeightAverage", "LearntScales", "Stateless", "famo_gradient", "slopes"]


def slopes(scalarizer: scalarization.Scalarizer, losses: Tensor) -> Tensor:
    """The derivative of a scalarizer by each loss: ``[k]`` from ``[k]``.

    Examples:
        >>> slopes(scalarization.Mean(), torch.tensor([3.0, 5.0]))
        tensor([0.5000, 0.5000])
    """
    with torch.enable_grad():
        leaf = losses.detach().requires_grad_()
        return torch.autograd.grad(scalarizer(leaf), leaf)[0]


class Stateless(LossBalancer):
    r"""RLW, GLS and STCH: each call stands alone.

    * RLW: :math:`\lambda = \mathrm{softmax}(z)`, :math:`z \sim N(0, I)` (Lin et al., "Reasonable Effectiveness of
      Random Weighting", TMLR 2022, Algorithm 2). Drawn from the seed and the number of the call.
    * GLS: :math:`S = (\prod_t \ell_t)^{1/k}`, so that :math:`\lambda_t = S / (k \ell_t)` (Chennupati et al.,
      "MultiNet++", CVPR Workshops 2019). A task that is nearly done gets nearly all the weight.
    * STCH: :math:`S = \mu \log \sum_t \exp(\ell_t / (k \mu))`, so that :math:`\lambda = \mathrm{softmax}(\ell / (k
      \mu)) / k` (Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024, with equal
      preferences and an ideal point of 0). Compares raw losses: one on a larger scale drowns the rest.

    Args:
        method: Its name.
        tasks: The names of all tasks.
        seed: Of the weights that are drawn.
        scalarizer: torchjd's.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int, scalarizer: scalarization.Scalarizer) -> None:
        super().__init__(method, tasks, seed)
        self._scalarizer = scalarizer

    def _weights(self, losses: Tensor, ids: list[int]) -> Tensor:
        with seeded(self.seed, self.calls, losses.device):
            return slopes(self._scalarizer, losses)


class LearntScales(LossBalancer):
    r"""UW and IMTL-L: a scale a task, learnt by gradient descent on the scalarizer itself.

    * UW: :math:`S = \sum_t \frac12 e^{-s_t} \ell_t + \frac12 s_t` (Kendall et al., CVPR 2018, equation 7 with
      :math:`s_t = \log \sigma_t^2`, the same for all types of tasks).
    * IMTL-L: :math:`S = \sum_t e^{s_t} \ell_t - s_t` (Liu et al., "Towards Impartial Multi-task Learning", ICLR
      2021).

    Both pull each weighted loss towards the same value: weights settle at :math:`1 / \ell_t`, and grow without bound as
    a loss nears 0. In the papers the scales are learnt by the network's optimizer; one made for fine-tuning, at 1e-5,
    would hardly move them, so they have a rate of their own. A loss far above ``1 / learning_rate`` throws its scale so
    far in one call that its task is out for many.

    Args:
        method: Its name.
        tasks: The names of all tasks.
        seed: Not used.
        scalarizer: torchjd's class, with one parameter.
        learning_rate: > 0. The scales move by it times the slope of S, once a call.
    """

    def __init__(
        self,
        method: str,
        tasks: Sequence[str],
        seed: int,
        scalarizer: type[scalarization.UW] | type[scalarization.IMTLL],
        learning_rate: float,
    ) -> None:
        super().__init__(method, tasks, seed)
        self._scalarizer = scalarizer
        self._learning_rate = learning_rate
        self._scales = torch.zeros(len(tasks), dtype=torch.float64)

    def _weights(self, losses: Tensor, ids: list[int]) -> Tensor:
        scalarizer = self._scalarizer(len(ids)).double()
        (scales,) = scalarizer.parameters()
        with torch.no_grad():
            scales.copy_(self._scales[ids])
        weights = slopes(scalarizer, losses)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(scalarizer(losses), scales)
        self._scales[ids] -= self._learning_rate * slope
        return weights

    def _state(self) -> dict[str, Any]:
        return {"scales": self._scales.tolist()}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._scales = torch.tensor(state["scales"], dtype=torch.float64)


class DynamicWeightAverage(LossBalancer):
    r"""DWA: tasks whose losses fall slowly weigh more.

    :math:`\lambda_t = k \, \mathrm{softmax}(r / T)_t` with :math:`r_t = L_t(e-1) / L_t(e-2)`, the ratio of a task's
    mean losses over the last two epochs (Liu et al., "End-to-End Multi-Task Learning with Attention", CVPR 2019,
    equation 7).
    :math:`r_t = 1` until a task has two means, as in the paper, and where the older one is 0.

    Args:
        method: Its name.
        tasks: The names of all tasks.
        seed: Not used.
        temperature: > 0; far above 1 all tasks weigh alike.
        window: Calls that a mean is over, for the epoch. A fine-tuning of three epochs has weights in the last one
            only, unless the window is shorter.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int, temperature: float, window: int) -> None:
        super().__init__(method, tasks, seed)
        self._temperature = temperature
        self._window = window
        self._calls_in_window = 0
        self._sums = torch.zeros(len(tasks), dtype=torch.float64)
        self._counts = torch.zeros(len(tasks), dtype=torch.float64)
        # Task -> its last means, at most two, the older one first.
        self._means: list[list[float]] = [[] for _ in tasks]

    def _weights(self, losses: Tensor, ids: list[int]) -> Tensor:
        weights = slopes(self._scalarizer(ids), losses)
        self._sums[ids] += losses
        self._counts[ids] += 1
        self._calls_in_window += 1
        if self._calls_in_window >= self._window:
            self._close_window()
        return weights

    def _scalarizer(self, ids: list[int]) -> scalarization.DWA:
        """torchjd's, having seen the tasks' two means as two epochs of one batch each."""
        known = [self._means[task] for task in ids]
        pairs = [means if len(means) == 2 and means[0] else [1.0, 1.0] for means in known]
        scalarizer = scalarization.DWA(self._temperature)
        for epoch in torch.tensor(pairs, dtype=torch.float64).T:
            scalarizer(epoch)
            scalarizer.step()
        return scalarizer

    def _close_window(self) -> None:
        for task, (total, count) in enumerate(zip(self._sums.tolist(), self._counts.tolist(), strict=True)):
            if count:
                self._means[task] = [*self._means[task], total / count][-2:]
        self._sums.zero_()
        self._counts.zero_()
        self._calls_in_window = 0

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
    r"""The gradient of FAMO's task logits, from how far each loss fell over a step.

    :math:`\mathrm{d}z/\mathrm{d}w^\top \delta` with :math:`z = \mathrm{softmax}(w)` and :math:`\delta_t = \log \ell_t -
    \log \ell_t'` (Liu et al., "FAMO: Fast Adaptive Multitask Optimization", NeurIPS 2023). Descent takes
    weight from the tasks whose logarithm fell most.

    Args:
        logits: ``[k]``, w.
        before: ``[k]``, the losses before the step, > 0.
        after: ``[k]``, after it, > 0.

    Returns:
        ``[k]``; adds up to 0.
    """
    weights = logits.softmax(0)
    fall = before.log() - after.log()
    return weights * (fall - weights @ fall)


class FAMO(LossBalancer):
    r"""FAMO: weights under which all losses fall at the same relative rate.

    :math:`\lambda_t = c \, z_t / \ell_t`, :math:`z = \mathrm{softmax}(w)`, with c such that they add up to 1; w follows
    `famo_gradient` with Adam (Liu et al., NeurIPS 2023).

    The paper measures the fall on the same batch, computed again after the step. Here the next call's losses stand in
    for that, which saves a forward pass and adds the noise of another batch; a task takes part if it is in both. With
    gradient accumulation no step lies between most calls, and noise is all there is.

    torchjd gives the weights. Its own update is not used: it steps all tasks or none.

    Args:
        method: Its name.
        tasks: The names of all tasks.
        seed: Not used.
        learning_rate: > 0, of Adam.
        weight_decay: >= 0, of Adam; pulls the weights z together.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int, learning_rate: float, weight_decay: float) -> None:
        super().__init__(method, tasks, seed)
        # A parameter a task: Adam leaves those alone that have no gradient, moments and step count too.
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
        return slopes(scalarizer, losses)

    def _logits_of(self, ids: Sequence[int]) -> Tensor:
        return torch.stack([self._logits[task].detach() for task in ids])

    def _learn(self, now: Mapping[int, float]) -> None:
        both = [task for task in now if task in self._previous]
        if not both:
            return
        before, after = (
            torch.tensor([losses[task] for task in both], dtype=torch.float64) for losses in (self._previous, now)
        )
        for task, slope in zip(both, famo_gradient(self._logits_of(both), before, after), strict=True):
            self._logits[task].grad = slope.clone()
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
            if moments is not None:
                # Adam counts its steps in float32.
                self._optimizer.state[logit] = {
                    name: torch.tensor(number, dtype=torch.float32 if name == "step" else torch.float64)
                    for name, number in moments.items()
                }
