"""From the losses of the tasks to one update: the weighted sum, or what a balancing method makes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..balancing.backward import balanced_backward
from ..balancing.balancer import GradientBalancer, LossBalancer

__all__ = ["Parts", "add_gradients", "split", "weigh_losses", "weighted_sum"]


@dataclass(frozen=True)
class Parts:
    """A batch's losses, parted into those that are balanced and the rest.

    Args:
        balanced: K scalars, this rank's parts of the tasks' mean losses: they add up to these over the ranks.
        ids: The tasks that they belong to.
        means: ``[K]``, the mean losses over all ranks.
        other: This rank's part of all that is not balanced, over N.
        share: The share of the balanced tasks' examples in N. The balanced part of the update is
            ``share * sum_t lambda_t * mean_t``: with equal weights, the mean of the tasks' means.
    """

    balanced: list[Tensor]
    ids: list[int]
    means: Tensor
    other: Tensor
    share: Tensor


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float], examples: Tensor) -> Tensor:
    r""":math:`\frac{1}{N} \sum_i w_{task(i)} \, l_i` of this rank's examples.

    Args:
        losses: Task -> losses of its examples, empty where it has none.
        weights: Task -> w, 1 where a task is not named.
        examples: N.
    """
    total = torch.stack([weights.get(name, 1.0) * task_losses.sum() for name, task_losses in losses.items()]).sum()
    return total / examples


def split(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    examples: Tensor,
    balanced: Collection[str],
    reduce: Callable[[Tensor], Tensor],
) -> Parts:
    """Part the losses of a batch; arguments as for `weighted_sum`.

    Args:
        losses: Task -> losses of its examples.
        weights: Task -> weight.
        examples: N, over accumulation and ranks.
        balanced: The tasks that may be balanced. One without an example on any rank is left out.
        reduce: Adds a tensor up over the ranks.
    """
    sums = torch.stack([weights.get(name, 1.0) * task_losses.sum() for name, task_losses in losses.items()])
    counts = torch.tensor([float(len(task_losses)) for task_losses in losses.values()], device=sums.device)
    all_sums, all_counts = reduce(torch.stack([sums.detach(), counts]))
    ids = [i for i, name in enumerate(losses) if name in balanced and all_counts[i] > 0]
    rest = [i for i in range(len(losses)) if i not in ids]
    return Parts(
        balanced=[sums[i] / all_counts[i] for i in ids],
        ids=ids,
        means=all_sums[ids] / all_counts[ids],
        other=sums[rest].sum() / examples,
        share=all_counts[ids].sum() / examples,
    )


def weigh_losses(parts: Parts, balancer: LossBalancer) -> Tensor:
    """This rank's loss, with a method's weights for the balanced tasks."""
    if not parts.ids:
        return parts.other
    weights = balancer.weights(parts.means, parts.ids)
    return parts.share * (weights @ torch.stack(parts.balanced)) + parts.other


def add_gradients(
    parts: Parts,
    balancer: GradientBalancer,
    encoder: Sequence[nn.Parameter],
    last_layer: Sequence[nn.Parameter],
    heads: Sequence[nn.Parameter],
    reduce: Callable[[Tensor], Tensor],
    ranks: int,
) -> Tensor:
    """Add a batch's balanced gradient to ``.grad``; see `balanced_backward`.

    Returns:
        This rank's loss with equal weights, for the log; there is nothing to propagate.
    """
    balanced_backward(
        parts.balanced,
        parts.other,
        encoder,
        last_layer,
        heads,
        balancer,
        parts.ids,
        parts.means,
        scale=float(parts.share),
        reduce=reduce,
        ranks=ranks,
    )
    loss = parts.other.detach()
    if parts.ids:
        loss = loss + parts.share * torch.stack(parts.balanced).detach().mean()
    return loss
