"""From a configuration to the balancer of a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..validation import ConfigurationError, check_keys
from .balancer import GradientBalancer, LossBalancer
from .config import METHODS, BalancingConfig
from .gradnorm import GradNorm

_BAD_PARAMETERS = (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError)


def build_balancer(
    config: BalancingConfig, tasks: Sequence[str], seed: int, calls_per_epoch: int
) -> LossBalancer | GradientBalancer | None:
    """Build the balancer of a run; None for ``sum``, which needs none.

    The ids of the tasks count from 0 in the order of ``tasks``, the seed is the same on every rank, and
    ``calls_per_epoch`` is DWA's default window.
    """
    if config.kind == "none":
        return None
    parameters = dict(config.parameters)
    if config.method == "dwa" and parameters.get("window") is None:
        parameters["window"] = calls_per_epoch
    scope = {"over": config.over} if config.kind == "gradients" else {}
    try:
        adapter = _adapter(config)
        check_keys("balancing.parameters", parameters, _arguments(_source(config)))
        return adapter(method=config.method, tasks=tasks, seed=seed, **scope, **parameters)
    except ConfigurationError:
        raise
    except ImportError as error:
        raise ConfigurationError(
            f"`balancing.method: {config.method}` needs packages that are not installed ({error}). Run "
            "`pip install 'hf-async-mtl[balancing]'`."
        ) from error
    except _BAD_PARAMETERS as error:
        raise _refused(config, error) from error


def check_parameters(config: BalancingConfig) -> None:
    """Build a method and call it on two tasks with orthogonal gradients, so that it refuses its parameters now."""
    balancer = build_balancer(config, ["first", "second"], seed=0, calls_per_epoch=1)
    losses = torch.ones(2)
    try:
        if isinstance(balancer, LossBalancer):
            found = balancer.weights(losses, [0, 1])
        elif balancer is not None:
            found = balancer.direction(torch.eye(2), losses, [0, 1])
        else:
            return
    except _BAD_PARAMETERS as error:
        raise _refused(config, error) from error
    if not found.isfinite().all():
        raise _refused(config, ValueError("the weights of two tasks are not finite"))


def _adapter(config: BalancingConfig) -> Callable[..., LossBalancer | GradientBalancer]:
    if config.method == "gradnorm":
        return GradNorm
    # torchjd is an extra: imported only for the methods that need it.
    if config.kind == "losses":
        from . import loss_weighting

        return loss_weighting.ADAPTERS.get(config.method, loss_weighting.StatelessWeighting)
    from . import gradient_weighting

    return gradient_weighting.ADAPTERS.get(config.method, gradient_weighting.GramianWeighting)


def _source(config: BalancingConfig) -> Any:
    """Return the class whose arguments are the parameters of a method: one of torchjd's, or the adapter itself."""
    method = METHODS[config.method]
    if method.torchjd is None:
        return _adapter(config)
    from torchjd import aggregation, scalarization

    return getattr(scalarization if method.kind == "losses" else aggregation, method.torchjd)


def _arguments(source: Any) -> dict[str, Any]:
    """Return the parameters that a user may set, with their defaults."""
    own = ("method", "tasks", "seed", "over")
    parameters = inspect.signature(source).parameters.items()
    return {name: parameter.default for name, parameter in parameters if name not in own}


def _refused(config: BalancingConfig, error: Exception) -> ConfigurationError:
    """Return an error with the parameters of a method as a call: ``CAGradWeighting(c=0.5, norm_eps=0.0001)``."""
    source = _source(config)
    defaults = {**_arguments(source), **METHODS[config.method].defaults}
    call = ", ".join(f"{name}={value!r}" for name, value in defaults.items())
    return ConfigurationError(
        f"`balancing.parameters` must be arguments of {source.__name__}({call}); found {dict(config.parameters)!r}: "
        f"{str(error).rstrip('.')}."
    )
