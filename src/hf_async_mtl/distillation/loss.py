"""The loss of a distilling task: its teacher's, with a share of its labels'."""

from __future__ import annotations

import torch
from torch import Tensor

from ..modeling.heads import Head
from ..modeling.packing import Layout


def distillation_losses(
    head: Head,
    logits: Tensor,
    teacher: Tensor,
    labels: Tensor,
    layout: Layout,
    supervised: Tensor,
    *,
    temperature: float,
    hard_label_weight: float,
) -> Tensor:
    r"""Return the losses of some examples: :math:`(1 - w) \, l_{teacher} + w \, l_{labels}`.

    Args:
        supervised: ``[B]``, the losses on the labels.

    Returns:
        ``[B]``.
    """
    losses = head.distillation_loss(logits, teacher.to(logits.device).view(logits.shape), labels, layout, temperature)
    # Not always: 0 * NaN is NaN.
    return torch.lerp(losses, supervised, hard_label_weight) if hard_label_weight else losses
