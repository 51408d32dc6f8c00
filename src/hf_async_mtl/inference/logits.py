"""The loop that runs a model over encoded examples, for teachers, predictions, exported graphs and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Model = Callable[[dict[str, Any]], Mapping[str, Tensor]]
"""A batch without ``example_ids`` and ``labels`` -> task -> logits."""


class IndexBatches:
    """The batches of one process (``rank``): indices of examples, given as such or by their number.

    Several processes have the batches of one between them, so that their logits are the same to the last digit. All
    have the same number of batches: in the last one, a process without an example repeats one of another process.

    >>> list(IndexBatches(5, batch_size=2)), list(IndexBatches(5, batch_size=2, rank=1, num_ranks=2))
    ([[0, 1], [2, 3], [4]], [[2, 3], [4]])
    """

    def __init__(
        self, order: Sequence[int] | np.ndarray | int, batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.order = range(order) if isinstance(order, int) else order
        self.batch_size = batch_size
        self.rank = rank
        self.num_ranks = num_ranks

    def __len__(self) -> int:
        return -(-len(self.order) // (self.batch_size * self.num_ranks))

    def __iter__(self) -> Iterator[list[int]]:
        step = self.batch_size * self.num_ranks
        for start in range(0, len(self.order), step):
            shared = self.order[start : start + step]
            own = shared[self.rank * self.batch_size :][: self.batch_size]
            yield [int(index) for index in (own if len(own) else shared[:1])]


@torch.no_grad()
def iterate_logits(
    model: Model,
    examples: Dataset[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    batches: IndexBatches,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
    """Run a model over examples, without gradients, one batch at a time.

    The global random state does not move. Call ``model.eval()`` before.

    Args:
        model: A function that runs the model on a batch.
        examples: A `TaskDataset`.
        collate: Examples -> batch with ``example_ids`` ``[B]``, such as a `MultiTaskCollator`.
        batches: Which examples go together.
        device: Where the tensors of a batch go.
        num_workers: Processes that read and collate ahead.

    Yields:
        ``example_ids`` ``[B]``, and task -> logits of these examples.
    """
    # A loader draws a seed for its workers: from a generator of its own, not from the global one.
    loader = DataLoader(
        examples, batch_sampler=batches, collate_fn=collate, num_workers=num_workers, generator=torch.Generator()
    )
    for batch in loader:
        batch.pop("labels", None)
        inputs = send_to_device(batch, device)
        yield inputs.pop("example_ids"), model(inputs)


def split_by_example(example_ids: Tensor, logits: Tensor, units: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index and the logits of each example of a batch.

    ``units`` ``[N]`` has the number of units of every example of the dataset, if ``logits`` are ``[U, ...]``: the units
    of one example after those of another.

    >>> ids, logits = torch.tensor([2, 0]), torch.tensor([[1.0], [2.0], [3.0]])
    >>> [(index, own.tolist()) for index, own in split_by_example(ids, logits, np.array([1, 5, 2]))]
    [(2, [[1.0], [2.0]]), (0, [[3.0]])]
    """
    indices, values = example_ids.tolist(), logits.float().cpu().numpy()
    if units is None:
        yield from zip(indices, values, strict=True)
    else:
        yield from zip(indices, np.split(values, np.cumsum(units[indices])[:-1]), strict=True)
