"""The order of an epoch: a pure function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .config import MixingConfig

_PROPORTIONAL = MixingConfig()
# Indices that are converted to Python numbers at a time.
_CHUNK = 4096


def draws_per_task(sizes: Sequence[int], mixing: MixingConfig = _PROPORTIONAL) -> list[int]:
    r"""Return how many examples of each task an epoch draws; together they are as many as there are examples.

    Args:
        sizes: Number of examples of each task, all > 0.
        mixing: ``proportional`` visits each example once. With ``temperature`` T, task :math:`i` gets a share of
            :math:`n_i^{1/T} / \sum_j n_j^{1/T}` (Raffel et al., 2020, section 3.5.2). ``uniform`` draws every task
            equally often. Small tasks are then repeated many times in an epoch, and overfit sooner.

    Returns:
        Integers whose sum is ``sum(sizes)`` (largest remainders).

    Examples:
        >>> draws_per_task([90, 10], MixingConfig("uniform"))
        [50, 50]
    """
    exponent = {"proportional": 1.0, "temperature": 1.0 / mixing.temperature, "uniform": 0.0}[mixing.strategy]
    weights = np.array(sizes, dtype=float) ** exponent
    exact = weights / weights.sum() * sum(sizes)
    # Exact products such as 0.1 * 30 must not lose a draw to rounding.
    draws = np.floor(exact + 1e-9).astype(int)
    for task in np.argsort(draws - exact, kind="stable")[: sum(sizes) - int(draws.sum())]:
        draws[task] += 1
    return draws.tolist()


class MultiTaskSampler(torch.utils.data.Sampler[int]):
    """Sample indices of a `MultiTaskDataset`, in an order that depends only on the seed and the epoch.

    A task that is drawn more often than it has examples is repeated in another order; one that is drawn less often
    gives another sample in each epoch.

    ``multiple`` is the number of examples of a batch over all processes. All of them must have the same number of
    batches of one size: the epoch is filled up to a multiple with negative indices, which do not count.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int, mixing: MixingConfig = _PROPORTIONAL, multiple: int = 1
    ) -> None:
        self.sizes = list(sizes)
        self.seed = seed
        self.draws = draws_per_task(sizes, mixing)
        self.multiple = multiple
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-sum(self.draws) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        # In chunks: a list of all indices would take many times the memory of the array.
        for first in range(0, len(order), _CHUNK):
            yield from order[first : first + _CHUNK].tolist()
        yield from (~np.resize(order, len(self) - len(order))).tolist()

    def _order(self) -> np.ndarray:
        generator = np.random.default_rng([self.seed, self.epoch])
        starts, filled = np.cumsum([0, *self.sizes]), 0
        order = np.empty(sum(self.draws), np.int32 if starts[-1] < 2**31 else np.int64)
        for start, size, draws in zip(starts, self.sizes, self.draws, strict=False):
            for first in range(0, draws, size):
                count = min(size, draws - first)
                own = np.arange(start, start + size, dtype=order.dtype)
                generator.shuffle(own)
                order[filled : filled + count] = own[:count]
                filled += count
        generator.shuffle(order)
        return order
