"""The losses of a batch, split into those of the balanced tasks and the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..modeling.packing import to_device


@dataclass(frozen=True)
class LossSplit:
    r"""The losses of a batch, split into those of the balanced tasks and the rest.

    The balanced part of the update is :math:`\text{share} \sum_t \lambda_t \, \text{means}_t`: with equal weights, the
    mean of the means. The parts of ``balanced`` add up to the means over the ranks. A rank that has no example of a
    task has a part, too.
    """

    balanced: list[Tensor]  # K scalars with their graph, this rank's parts of the tasks' mean losses
    ids: list[int]  # of the K tasks, the same on every rank
    means: Tensor  # ``[K]``, over all ranks
    other: Tensor  # this rank's part of everything that is not balanced, over N
    share: Tensor  # of the balanced tasks' examples in N


def weighted_sums(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of each task's losses times its weight, ``[T]``; a task that is not named has the weight 1."""
    return torch.stack([weights.get(name, 1.0) * task_losses.sum() for name, task_losses in losses.items()])


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of all losses times the weights of their tasks; see `weighted_sums`."""
    values = torch.cat(list(losses.values()))
    if all(weights.get(name, 1.0) == 1 for name in losses):
        return values.sum()
    of_each = [weights.get(name, 1.0) for name, task_losses in losses.items() for _ in range(len(task_losses))]
    return (values * to_device(torch.tensor(of_each), values.device)).sum()


def split_losses(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float],
    num_examples: Tensor,
    balanced: Collection[str],
    reduce: Callable[[Tensor], Tensor],
) -> LossSplit:
    """Split the losses of a batch; tasks in ``balanced`` are balanced if they have an example on any rank.

    ``num_examples`` is N, the examples of the optimizer step over accumulation and ranks.
    """
    sums = weighted_sums(losses, weights)
    counts = torch.tensor([float(len(task_losses)) for task_losses in losses.values()], device=sums.device)
    all_sums, all_counts = reduce(torch.stack([sums.detach(), counts]))
    ids = [i for i, name in enumerate(losses) if name in balanced and all_counts[i] > 0]
    rest = [i for i in range(len(losses)) if i not in ids]
    return LossSplit(
        balanced=[sums[i] / all_counts[i] for i in ids],
        ids=ids,
        means=all_sums[ids] / all_counts[ids],
        other=sums[rest].sum() / num_examples,
        share=all_counts[ids].sum() / num_examples,
    )
