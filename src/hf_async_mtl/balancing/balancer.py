"""Base classes of the balancing methods: which tasks are balanced, the scale of the weights, and the state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..validation import ConfigurationError
from .config import METHODS


def check_positive(name: str, value: Any) -> None:
    """Require a finite number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0, but got {value!r}.")


@contextmanager
def seeded(seed: int, calls: int, device: torch.device) -> Iterator[None]:
    """Seed the generator that torchjd draws from. All ranks and a resumed run draw the same, and dropout goes on."""
    number = int(np.random.SeedSequence([seed, calls]).generate_state(1)[0])
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            yield
    else:
        module = getattr(torch, device.type)
        with torch.random.fork_rng(devices=[device], device_type=device.type), module.device(device):
            module.manual_seed(number)
            yield


class Balancer:
    r"""Base class of the methods that turn the losses of several tasks into one update of their shared parameters.

    The balanced tasks of a batch are those that still learn from labels and have an example in it: K tasks, given by
    their ids. State is kept per task, so that any of them may be absent.

    **Scale.** The balanced part of the update is :math:`\sum_t \lambda_t \nabla \ell_t`. If a method treats all tasks
    alike, :math:`\lambda_t = 1/K`: the mean of the losses, for every method. So the balanced part keeps its size beside
    the losses that are not balanced, when the method changes or a task leaves. The scales of the papers differ by a
    constant: DWA, IMTL-L, PCGrad, GradVac, GradDrop and GradNorm add the tasks up (divided by K here), UW halves each
    loss (times 2/K), STCH weighs by 1/K twice (times K); RLW, FAMO, GLS, CAGrad, MGDA, Aligned-MTL, IMTL-G and UPGrad
    are means already. `METHODS` holds these constants. Everything beyond them is kept: the weights of UW grow as losses
    fall, those of CAGrad add up to more than 1, those of Aligned-MTL to less. The weights of Nash-MTL and FairGrad have
    the scale of an inverse gradient; they are normalized to add up to 1.

    **Limits of the formulas.** Most formulas divide by a loss (gradient balancing: by the norm of a gradient) or take
    its logarithm. A task whose loss or gradient is exactly 0 is excluded from the call and gets the weight 1/K; the
    others share the rest. If a value is not finite, all tasks get 1/K and no state changes; the gradient then shows the
    fault. (GradDrop gives no weights, and needs neither.)

    Args:
        method: Its name in `METHODS`.
        tasks: The names of all tasks of the run; ids count from 0 in this order.
        seed: Seed of the methods that draw random numbers.

    Attributes:
        latest: Task -> its weight in the last batch, for the tasks that were balanced there; used in the log. Empty for
            GradDrop.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int) -> None:
        self.method = method
        self.tasks = list(tasks)
        self.seed = seed
        self.calls = 0
        self.latest: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next call depends on besides the configuration, as JSON values."""
        return {"method": self.method, "tasks": list(self.tasks), "calls": self.calls, **self._state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ConfigurationError: The state is of another method or of other tasks, or a key is missing or not expected.
        """
        for key, own in (("method", self.method), ("tasks", self.tasks)):
            if key in state and state[key] != own:
                raise ConfigurationError(
                    f"The state of balancing must have the {key} {own!r}; found {state[key]!r}. Resume with the "
                    "configuration that it was saved with."
                )
        required = self.state_dict()
        missing = [key for key in required if key not in state]
        unexpected = [str(key) for key in state if key not in required]
        if missing or unexpected:
            raise ConfigurationError(
                f"The state of balancing method {self.method} must have exactly the keys {', '.join(required)}; "
                f"missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}. Was it saved "
                "by another version?"
            )
        self.calls = state["calls"]
        self._load(state)

    def _state(self) -> dict[str, Any]:
        return {}

    def _load(self, state: Mapping[str, Any]) -> None:
        """Restore what `_state` returned."""

    def _note(self, weights: Tensor, task_ids: Sequence[int]) -> None:
        """Count a call, and store its weights for the log."""
        self.calls += 1
        self.latest = {self.tasks[task]: weight for task, weight in zip(task_ids, weights.tolist(), strict=True)}

    def _scaled(self, own: Tensor, weighed: int, balanced: int) -> Tensor:
        """Rescale the paper's result for ``weighed`` tasks, so that equal weights are ``1 / balanced``."""
        return own / (METHODS[self.method].equal_weight(weighed) * balanced)


class LossBalancer(Balancer, ABC):
    """Base class of the methods that compute weights from the losses."""

    def weights(self, losses: Tensor, task_ids: Sequence[int]) -> Tensor:
        r"""Return the weights of the tasks in a batch from the state before it, then update the state.

        Args:
            losses: ``[K]``, the tasks' losses over the batch of all ranks.
            task_ids: K ids.

        Returns:
            ``[K]``, :math:`\lambda_t`, detached. Computed in float64 on the CPU: the same on every rank.
        """
        values = losses.detach().double().cpu()
        weights = torch.full_like(values, 1 / len(values))
        weighed = values > 0
        if values.isfinite().all() and weighed.any():
            ids = [task for task, is_weighed in zip(task_ids, weighed.tolist(), strict=True) if is_weighed]
            weights[weighed] = self._scaled(self._weights(values[weighed], ids), len(ids), len(values))
        self._note(weights, task_ids)
        return weights.to(losses)

    @abstractmethod
    def _weights(self, losses: Tensor, ids: list[int]) -> Tensor:
        """Return the weights of the paper's formula: ``[k]`` from losses ``[k]``, float64, all > 0."""


class GradientBalancer(Balancer, ABC):
    """Base class of the methods that weigh or combine the gradients of the tasks.

    Args:
        method: Its name in `METHODS`.
        tasks: The names of all tasks of the run.
        seed: Seed of the methods that draw random numbers.
        over: ``last_layer`` or ``encoder``; see `hf_async_mtl.balancing.config.BalancingConfig`.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int, over: str) -> None:
        super().__init__(method, tasks, seed)
        self.over = over

    @abstractmethod
    def direction(self, jacobian: Tensor, losses: Tensor, task_ids: Sequence[int]) -> Tensor:
        """Return the balanced gradient ``[n]``.

        Args:
            jacobian: ``[K, n]``, the gradient of each task's loss over the batch of all ranks, one per row.
            losses: ``[K]``, those losses.
            task_ids: K ids.
        """


class WeightingBalancer(GradientBalancer):
    """Base class of the methods that compute weights from the inner products of the gradients."""

    def weights(self, jacobian: Tensor, losses: Tensor, task_ids: Sequence[int]) -> Tensor:
        """Return the weights ``[K]``, computed on the CPU from the reduced Jacobian: the same on every rank."""
        gramian = (jacobian @ jacobian.T).cpu()
        values = losses.detach().to(gramian)
        weights = torch.full_like(values, 1 / len(values))
        weighed = gramian.diagonal() > 0
        if gramian.isfinite().all() and values.isfinite().all() and weighed.any():
            ids = [task for task, is_weighed in zip(task_ids, weighed.tolist(), strict=True) if is_weighed]
            own = self._weights(gramian[weighed][:, weighed], values[weighed], ids)
            weights[weighed] = self._scaled(own, len(ids), len(values))
        self._note(weights, task_ids)
        return weights.to(jacobian)

    def direction(self, jacobian: Tensor, losses: Tensor, task_ids: Sequence[int]) -> Tensor:
        """Return the weighted sum of the gradients."""
        return self.weights(jacobian, losses, task_ids) @ jacobian

    @abstractmethod
    def _weights(self, gramian: Tensor, losses: Tensor, ids: list[int]) -> Tensor:
        """Return the weights of the paper's formula: ``[k]`` from inner products ``[k, k]``, with a diagonal > 0."""
