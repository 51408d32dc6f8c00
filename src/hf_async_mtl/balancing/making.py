"""From a configuration to the balancer that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..modeling.configuration_multitask import ConfigurationError
from .balancer import GradientBalancer, LossBalancer
from .config import METHODS, BalancingConfig
from .gradnorm import GradNorm

__all__ = ["make_balancer"]


def make_balancer(
    config: BalancingConfig, tasks: Sequence[str], seed: int, calls_per_epoch: int
) -> LossBalancer | GradientBalancer | None:
    """Make the balancer of a run.

    Args:
        config: The method and its settings.
        tasks: The names of all tasks; ids count from 0 in this order.
        seed: Of the methods that draw random numbers, >= 0; the same on every rank.
        calls_per_epoch: How often the balancer is called in an epoch: DWA's window, where none is set.

    Returns:
        The balancer; None for ``sum``, which needs none.

    Raises:
        ConfigurationError: A package that the method needs is not installed.

    Examples:
        >>> import torch
        >>> balancer = make_balancer(BalancingConfig("gls"), ["rte", "stsb", "cola"], seed=42, calls_per_epoch=100)
        >>> balancer.weights(torch.tensor([0.5, 2.0]), task_ids=[0, 2])
        tensor([1.0000, 0.2500])
    """
    method = METHODS[config.method]
    if method.kind == "none":
        return None
    if config.method == "gradnorm":
        return GradNorm(config.method, tasks, seed, config.over, **config.settings)
    try:
        if method.kind == "losses":
            return _loss_balancer(config.method, tasks, seed, calls_per_epoch, config.settings)
        return _gradient_balancer(config.method, tasks, seed, config.over, config.settings)
    except ImportError as error:
        raise ConfigurationError(
            f"`balancing.method: {config.method}` needs packages that are not installed ({error}). Run "
            "`pip install 'hf-async-mtl[balancing]'`."
        ) from error


def _loss_balancer(
    method: str, tasks: Sequence[str], seed: int, calls_per_epoch: int, settings: dict[str, Any]
) -> LossBalancer:
    # An extra: imported where it is asked for.
    from torchjd import scalarization

    from .loss_weighting import FAMO, DynamicWeightAverage, LearntScales, Stateless

    if method == "uw":
        return LearntScales(method, tasks, seed, scalarization.UW, **settings)
    if method == "imtl_l":
        return LearntScales(method, tasks, seed, scalarization.IMTLL, **settings)
    if method == "dwa":
        settings["window"] = settings["window"] or calls_per_epoch
        return DynamicWeightAverage(method, tasks, seed, **settings)
    if method == "famo":
        return FAMO(method, tasks, seed, **settings)
    stateless = {"rlw": scalarization.Random, "gls": scalarization.GeometricMean, "stch": scalarization.STCH}
    return Stateless(method, tasks, seed, stateless[method](**settings))


def _gradient_balancer(
    method: str, tasks: Sequence[str], seed: int, over: str, settings: dict[str, Any]
) -> GradientBalancer:
    from torchjd import aggregation

    from .gradient_weighting import GradientVaccine, GramianWeighting, SignDropout

    if method == "graddrop":
        return SignDropout(method, tasks, seed, over)
    if method == "gradvac":
        return GradientVaccine(method, tasks, seed, over, **settings)
    if method == "nash_mtl":
        return GramianWeighting(method, tasks, seed, over, aggregation.FairGradWeighting(alpha=1.0), normalise=True)
    if method == "fairgrad":
        return GramianWeighting(method, tasks, seed, over, aggregation.FairGradWeighting(**settings), normalise=True)
    weightings = {
        "pcgrad": aggregation.PCGradWeighting,
        "cagrad": aggregation.CAGradWeighting,
        "mgda": aggregation.MGDAWeighting,
        "aligned_mtl": aggregation.AlignedMTLWeighting,
        "imtl_g": aggregation.IMTLGWeighting,
        "upgrad": aggregation.UPGradWeighting,
    }
    return GramianWeighting(method, tasks, seed, over, weightings[method](**settings))
