"""What the balancing methods share: who is weighed, at which scale, and how their state goes out and in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling.configuration_multitask import ConfigurationError
from .config import METHODS

__all__ = ["Balancer", "GradientBalancer", "LossBalancer", "WeightingBalancer", "seeded"]


@contextmanager
def seeded(seed: int, calls: int, device: torch.device) -> Iterator[None]:
    """Within, torch's own generator of a device is seeded by (seed, calls); afterwards it is as it was.

    torchjd draws from that generator. So every rank draws the same, a resumed run goes on with the same numbers, and
    dropout does not notice.
    """
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
    r"""Decides how the tasks of a batch share the update of the parameters that they have in common.

    The balanced tasks of a batch are those that still learn from labels and have an example in it: K of them, given
    by their ids. State is kept by task, so that any of them may be absent.

    **Scale.** The balanced part of the update is :math:`\sum_t \lambda_t \nabla \ell_t`. Where a method treats all
    tasks alike, :math:`\lambda_t = 1/K`: the plain mean of the losses, whatever the method. So the balanced part keeps
    its size beside the losses that are not balanced, when the method is changed or a task leaves. The papers' own
    scales differ by a constant: DWA, IMTL-L, PCGrad, GradVac, GradDrop and GradNorm add the tasks up (divided by K
    here), UW halves each loss (times 2/K), STCH weighs by 1/K twice (times K); RLW, FAMO, GLS, CAGrad, MGDA,
    Aligned-MTL, IMTL-G and UPGrad are means already. `METHODS` holds these constants. What a method says beyond them
    is kept: UW's weights grow as losses fall, CAGrad's add up to more than 1, Aligned-MTL's to less. The weights of
    Nash-MTL and FairGrad have the scale of an inverse gradient; they are made to add up to 1.

    **Where formulas end.** A loss (for methods on gradients: a gradient) of exactly 0 has nothing to give to this
    batch, and most formulas divide by it or take its logarithm: its task sits out the call and gets 1/K, and the
    others share the rest. If a value is not finite, all tasks get 1/K and no state moves; the gradient then shows the
    fault. (GradDrop gives no weights, and needs neither.)

    Args:
        method: Its name in `METHODS`.
        tasks: The names of all tasks of the run; ids count from 0 in this order.
        seed: Of the methods that draw random numbers.

    Attributes:
        latest: Task -> its weight in the last batch, of the tasks that were balanced there; for the log. GradDrop has
            none.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int) -> None:
        self.method = method
        self.tasks = list(tasks)
        self.seed = seed
        self.calls = 0
        self.latest: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """All that the next call depends on, besides the configuration, as JSON values."""
        return {"method": self.method, "tasks": list(self.tasks), "calls": self.calls, **self._state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ConfigurationError: The state is another method's, or of other tasks; a key is missing, or one too many.
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
        """What a subclass adds to the state."""
        return {}

    def _load(self, state: Mapping[str, Any]) -> None:
        """Take over what `_state` returned."""

    def _note(self, weights: Tensor, task_ids: Sequence[int]) -> None:
        """Count a call, and keep its weights."""
        self.calls += 1
        self.latest = {self.tasks[task]: weight for task, weight in zip(task_ids, weights.tolist(), strict=True)}

    def _scaled(self, own: Tensor, weighed: int, balanced: int) -> Tensor:
        """A method's own answer for ``weighed`` tasks, at the scale where equal weights are ``1 / balanced``."""
        return own / (METHODS[self.method].equal_weight(weighed) * balanced)


class LossBalancer(Balancer, ABC):
    """Weighs tasks by their losses."""

    def weights(self, losses: Tensor, task_ids: Sequence[int]) -> Tensor:
        r"""The weights of the tasks in a batch, from the state before it; then the state moves.

        Args:
            losses: ``[K]``, the tasks' losses over the whole batch of all ranks.
            task_ids: K ids.

        Returns:
            ``[K]``, :math:`\lambda_t`, detached. Computed in float64 on the processor: the same on every rank.
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
        """The method's own weights: ``[k]`` from losses ``[k]``, float64, all > 0."""


class GradientBalancer(Balancer, ABC):
    """Weighs or combines the gradients of the tasks.

    Args:
        method: Its name in `METHODS`.
        tasks: The names of all tasks of the run.
        seed: Of the methods that draw random numbers.
        over: ``last_layer`` or ``encoder``; see `hf_async_mtl.balancing.config.BalancingConfig`.
    """

    def __init__(self, method: str, tasks: Sequence[str], seed: int, over: str) -> None:
        super().__init__(method, tasks, seed)
        self.over = over

    @abstractmethod
    def direction(self, jacobian: Tensor, losses: Tensor, task_ids: Sequence[int]) -> Tensor:
        """The balanced gradient.

        Args:
            jacobian: ``[K, n]``, a row for the gradient of each task's loss, over the whole batch of all ranks.
            losses: ``[K]``, those losses.
            task_ids: K ids.

        Returns:
            ``[n]``.
        """


class WeightingBalancer(GradientBalancer):
    """Weighs tasks by the inner products of their gradients."""

    def weights(self, jacobian: Tensor, losses: Tensor, task_ids: Sequence[int]) -> Tensor:
        r"""The weights of the tasks in a batch. Arguments as for `direction`.

        Returns:
            ``[K]``, :math:`\lambda_t`. Computed on the processor from the reduced Jacobian: the same on every rank.
        """
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
        return self.weights(jacobian, losses, task_ids) @ jacobian

    @abstractmethod
    def _weights(self, gramian: Tensor, losses: Tensor, ids: list[int]) -> Tensor:
        """The method's own weights: ``[k]`` from the inner products ``[k, k]``, none of them of a gradient of 0."""
