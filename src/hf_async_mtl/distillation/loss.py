"""How much a converged task listens to its teacher, and how loudly: pure functions of losses and steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..training.arguments import DistillationConfig

__all__ = ["hard_label_weight", "norm_keeping_weight"]


def hard_label_weight(config: DistillationConfig, step: int, switched_at: int, max_steps: int) -> float:
    r"""The share of the supervised loss in a distilling task's loss.

    With a ramp of R steps it goes from 1 at the switch to ``hard_label_weight`` R steps later, linearly. With annealing
    (Clark et al., "BAM! Born-Again Multi-Task Networks", ACL 2019, section 3.2) it is at least :math:`t / T`, so that
    the run ends on labels alone.

    Args:
        config: The section of the configuration.
        step: t, the optimizer steps so far.
        switched_at: The step at which the task began to distil, 0 for one that has done so from the start.
        max_steps: T, the steps of the whole run.

    Returns:
        0..1.

    Examples:
        >>> [hard_label_weight(DistillationConfig(ramp_steps=4), step, 10, 100) for step in (10, 12, 14, 99)]
        [1.0, 0.5, 0.0, 0.0]
        >>> hard_label_weight(DistillationConfig(annealing=True), 25, 0, 100)
        0.25
    """
    share = config.hard_label_weight
    if config.ramp_steps:
        share += (1.0 - share) * max(0.0, 1.0 - (step - switched_at) / config.ramp_steps)
    if config.annealing:
        share = max(share, min(1.0, step / max_steps))
    return share


def norm_keeping_weight(distilled: Tensor, supervised: Tensor, logits: Tensor, largest: float = 10.0) -> Tensor:
    """The weight that gives a task's distillation loss the gradient norm that its supervised loss would have had.

    Measured at the logits of the batch, where it costs no pass through the encoder. A student that agrees with its
    teacher has next to no gradient, and would be shaken by its rounding errors: hence the bound.

    Args:
        distilled: Distillation loss of each example, ``[B]``.
        supervised: Supervised loss of each example, ``[B]``.
        logits: What both were computed from; their graph is kept.
        largest: The weight is in ``1 / largest`` .. ``largest``.

    Returns:
        A number without a gradient; 1 where neither loss has a gradient.
    """
    teacher, labels = (
        torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0].float().norm()
        for losses in (distilled, supervised)
    )
    return (labels / teacher).nan_to_num(nan=1.0, posinf=largest).clamp(1 / largest, largest)
