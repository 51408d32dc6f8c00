"""One index space over all tasks, and the order in which an epoch visits it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..modeling.configuration_multitask import TaskConfig
from .config import MixingConfig

__all__ = ["EncodedTask", "MixingSampler", "TaskMixture", "draws_per_task", "example_places"]

# Examples that `EncodedTask.read` holds in memory at a time.
_READ = 32


class EncodedTask(torch.utils.data.Dataset[dict[str, Any]]):
    """One split of one task, each example knowing its task and its place in it.

    Args:
        name: The task's name.
        task_id: Its place in the bundle.
        task: The resolved task.
        rows: What `hf_async_mtl.data.tokenization.encode` made.
    """

    def __init__(self, name: str, task_id: int, task: TaskConfig, rows: Dataset) -> None:
        self.name = name
        self.task_id = task_id
        self.task = task
        self.rows = rows
        keys = [key for key in ("input_ids", "token_type_ids", "labels") if key in rows.column_names]
        self._inputs = rows.select_columns(keys)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples at once, as a `DataLoader` asks for them: one read of the table, not one for each."""
        columns = self._inputs[list(indices)]
        return [
            {"task_id": self.task_id, "example_id": index, **{name: values[place] for name, values in columns.items()}}
            for place, index in enumerate(indices)
        ]

    def read(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Go through many examples, a few at a time: memory does not grow with them."""
        for first in range(0, len(indices), _READ):
            yield from self.__getitems__(indices[first : first + _READ])


class TaskMixture(torch.utils.data.Dataset[dict[str, Any]]):
    """All examples of all tasks, one task after the other.

    The complement of an index, below 0, repeats its example only to fill a batch (see `MixingSampler`). The
    ``example_id`` is then a complement too; `example_places` takes it back.
    """

    def __init__(self, tasks: Sequence[EncodedTask]) -> None:
        self.tasks = list(tasks)
        self._starts = np.cumsum([0, *(len(task) for task in self.tasks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples at once, in the order of their indices."""
        given = np.asarray(indices)
        within = np.where(given < 0, ~given, given)
        owners = np.searchsorted(self._starts, within, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner).tolist()
            own = [int(within[place] - self._starts[owner]) for place in places]
            found.update(zip(places, self.tasks[owner].__getitems__(own), strict=True))
        for place in np.flatnonzero(given < 0).tolist():
            found[place]["example_id"] = ~found[place]["example_id"]
        return [found[place] for place in range(len(indices))]


def example_places(example_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Part the ``example_ids`` of a batch, ``[B]``, into places in the tasks' sets and whether the example counts.

    Examples:
        >>> example_places(torch.tensor([7, ~0]))
        (tensor([7, 0]), tensor([ True, False]))
    """
    counts = example_ids >= 0
    return torch.where(counts, example_ids, ~example_ids), counts


def draws_per_task(sizes: Sequence[int], strategy: str = "proportional", temperature: float = 1.0) -> list[int]:
    r"""How many examples of each task an epoch draws. An epoch has as many draws as there are examples.

    Args:
        sizes: Examples of each task, all > 0.
        strategy: ``proportional`` visits each example once. ``temperature``: task :math:`i` gets a share of
            :math:`n_i^{1/T} / \sum_j n_j^{1/T}` (Raffel et al., 2020, section 3.5.2). ``uniform``: all get the same.
        temperature: T >= 1: 1 is proportional, and far above 1 is uniform. Small tasks are then seen many times an
            epoch, and overfit sooner.

    Returns:
        Whole numbers that add up to ``sum(sizes)`` (largest remainders).

    Examples:
        >>> draws_per_task([90, 10], "uniform")
        [50, 50]
    """
    MixingConfig(strategy, temperature)
    exponent = {"proportional": 1.0, "temperature": 1.0 / temperature, "uniform": 0.0}[strategy]
    weights = np.array(sizes, dtype=float) ** exponent
    exact = weights / weights.sum() * sum(sizes)
    # Exact products such as 0.1 * 30 must not lose a draw to rounding.
    draws = np.floor(exact + 1e-9).astype(int)
    for task in np.argsort(draws - exact, kind="stable")[: sum(sizes) - int(draws.sum())]:
        draws[task] += 1
    return draws.tolist()


class MixingSampler(torch.utils.data.Sampler[int]):
    """Indices into a `TaskMixture`, in an order that is a pure function of the seed and the epoch.

    A task that is drawn more often than it has examples is gone through again in another order; one that is drawn less
    often gives another sample each epoch.

    Args:
        sizes: Examples of each task.
        seed: Of the order.
        strategy: See `draws_per_task`.
        temperature: See `draws_per_task`.
        multiple: The examples of a batch over all processes, where they are several. Each process must have as many
            batches, all of one size: the epoch is filled up to a multiple of this with indices that do not count.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        strategy: str = "proportional",
        temperature: float = 1.0,
        multiple: int = 1,
    ) -> None:
        self.sizes = list(sizes)
        self.seed = seed
        self.draws = draws_per_task(sizes, strategy, temperature)
        self.multiple = multiple
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-sum(self.draws) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        starts, drawn = np.cumsum([0, *self.sizes]), sum(self.draws)
        order, filled = np.empty(drawn, np.int32 if starts[-1] < 2**31 else np.int64), 0
        for start, size, draws in zip(starts, self.sizes, self.draws, strict=False):
            for first in range(0, draws, size):
                count = min(size, draws - first)
                own = np.arange(start, start + size, dtype=order.dtype)
                generator.shuffle(own)
                order[filled : filled + count] = own[:count]
                filled += count
        generator.shuffle(order)
        # In pieces: a list of all would take many times the room of the array.
        for first in range(0, drawn, 4096):
            yield from order[first : first + 4096].tolist()
        yield from (~np.resize(order, len(self) - drawn)).tolist()
