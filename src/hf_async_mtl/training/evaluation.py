"""The part of the Trainer that looks: it evaluates every task on its own set, and records what the model says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import EvalPrediction, Trainer
from transformers.utils import logging

from ..data.dataset import TaskDataset
from ..data.tokenization import encode, truncation_warning
from ..inference.logits import IndexBatches, iterate_logits
from ..metrics import compute
from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from ..modeling.modeling_multitask import MultiTaskModel, MultiTaskOutput
from ..tasks.registry import TASK_TYPES
from .arguments import AsyncMTLTrainingArguments
from .callbacks import TableCallback
from .checks import task_of
from .distributed import gather_examples

__all__ = ["PerTaskTrainer", "dense"]

logger = logging.get_logger(__name__)


def dense(values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Flat units to one row an example: ``[U, C]`` and offsets ``[B + 1]`` to ``[B, longest, C]``, padded with -100."""
    return nn.utils.rnn.pad_sequence(
        list(values.split(offsets.diff().tolist())), batch_first=True, padding_value=-100.0
    )


class PerTaskTrainer(Trainer):
    """A `transformers.Trainer` whose ``eval_dataset`` has a set for each task, and whose metrics are the tasks' own.

    `AsyncMTLTrainer` makes one, and fills in what is declared here.
    """

    model: MultiTaskModel
    args: AsyncMTLTrainingArguments
    tasks: dict[str, TaskConfig]
    _tokenizer: Any
    _max_length: int
    _own_metrics: dict[str, Callable[[EvalPrediction], dict]]
    _display: TableCallback
    # The validation answers of the last evaluation.
    _answers: dict[str, list[Any]]
    # What is being looked at.
    _evaluated: TaskDataset | None = None

    def _encode(self, sets: Mapping[str, Dataset | TaskDataset]) -> dict[str, TaskDataset]:
        encoded = {}
        for name in sorted(sets, key=lambda n: list(self.tasks).index(task_of(n, self.tasks))):
            rows, task_name = sets[name], task_of(name, self.tasks)
            if isinstance(rows, TaskDataset):
                encoded[name] = rows
                continue
            task = self.tasks[task_name]
            # One process of a machine tokenizes; the others read what it has cached.
            with self.args.main_process_first():
                rows = encode(rows, name, task, self._tokenizer, task.max_length or self._max_length)
            encoded[name] = TaskDataset(task_name, list(self.tasks).index(task_name), task, rows)
        return encoded

    def _tell_truncated(self, sets: Mapping[str, Mapping[str, TaskDataset]]) -> None:
        """Say of each task how many of its texts are longer than it reads, in sets of several kinds."""
        for name, task in self.tasks.items():
            rows = {kind: found[name].rows for kind, found in sets.items() if name in found}
            words = truncation_warning(name, task, task.max_length or self._max_length, rows)
            if words is not None and self.args.should_log:
                logger.warning(f"{words} A larger `max_length` reads more, in more time.")

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Supervised loss and logits of a batch of one task; the examples' places stand in for labels.

        Metrics find labels, words and contexts by these places, whatever order several ranks return them in.
        """
        inputs = self._prepare_inputs(inputs)
        example_ids = inputs.pop("example_ids")
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs: MultiTaskOutput = model(**inputs)
        assert outputs.logits is not None
        assert outputs.losses is not None
        assert outputs.layouts is not None
        (name,) = outputs.logits
        logits = outputs.logits[name].detach().float()
        head: Any = self.model.heads[name]
        if head.unit == "token":
            logits = dense(logits, outputs.layouts[name].example_tokens)
        # Each example's own loss: the mean of a batch says nothing of one that several ranks have filled up.
        labels: Any = (example_ids, outputs.losses[name].detach().float())
        return None, logits, labels

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        assert self._evaluated is not None
        evaluated, (example_ids, losses) = self._evaluated, prediction.label_ids
        # Ranks share out a split in equal parts, with examples that are seen twice where it does not divide.
        _, order = np.unique(example_ids, return_index=True)
        task, kind = evaluated.task, TASK_TYPES[evaluated.task.type]
        assert task.metrics is not None
        answers = kind.predictions(task, np.asarray(prediction.predictions)[order], evaluated.rows)
        if evaluated is self.eval_dataset.get(evaluated.name):
            self._answers[evaluated.name] = answers
        metrics = compute(task.metrics, task.type, answers, kind.references(task, evaluated.rows), task.label_names)
        if evaluated.name in self._own_metrics:
            logits = np.asarray(prediction.predictions)[order]
            labels = kind.label_array(task, evaluated.rows, logits.shape[-2] if logits.ndim > 2 else 0)
            metrics = {**metrics, **self._own_metrics[evaluated.name](EvalPrediction(logits, labels))}
        return {"loss": float(np.mean(losses[order], dtype=np.float64)), **metrics}

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate every task on its own set.

        Args:
            eval_dataset: Task -> raw `datasets.Dataset`; the sets of the constructor, where absent.
            ignore_keys: As upstream.
            metric_key_prefix: As upstream; ``test`` for a test split.

        Returns:
            ``<prefix>_<task>_<metric>``, ``<prefix>_<task>_loss`` (the supervised one), and ``<prefix>_average``: the
            mean over the tasks of the monitored metric.
        """
        if isinstance(eval_dataset, Mapping):
            eval_dataset = self._encode(eval_dataset)
            self._tell_truncated({metric_key_prefix: eval_dataset})
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(sets, Mapping):
            monitored = [f"{name}_{self.tasks[name].monitored}" for name in sets if name in self.tasks]
            if not monitored:
                raise ConfigurationError(
                    f"`eval_dataset` must have a set of a task ({', '.join(self.tasks)}); found "
                    f"{', '.join(sets) or 'none'}."
                )
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            average = np.mean([metrics[f"{metric_key_prefix}_{key}"] for key in monitored])
            summary = {f"{metric_key_prefix}_average": float(average)}
            self.log(dict(summary))
            return {**metrics, **summary}
        self._evaluated = self.eval_dataset[sets] if isinstance(sets, str) else sets
        assert self._evaluated is not None
        self._display.description = f"Evaluating {self._evaluated.name}"
        if isinstance(sets, str):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        with self._passing_workers():
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    @contextmanager
    def _passing_workers(self) -> Iterator[None]:
        """No persistent workers for a set that is seen once.

        They would idle until the run ends; and the parent keeps such loaders by name, with one name for all sets that
        it is given.
        """
        persistent = self.args.dataloader_persistent_workers
        self.args.dataloader_persistent_workers = False
        try:
            yield
        finally:
            self.args.dataloader_persistent_workers = persistent

    def record(self, task: TaskDataset, put: Callable[[Tensor, Tensor], None]) -> None:
        """Run the model over a set, its own rows alone, shared among the processes.

        Args:
            task: The set.
            put: Is given each batch of all processes, on each of them: ``example_ids`` ``[B]`` and the logits,
                ``[sum of their units, C]``, one example after the other. Some examples may come twice.
        """
        args, ranks = self.args, self.accelerator
        batches = IndexBatches(len(task), args.eval_batch_size, ranks.process_index, ranks.num_processes)
        self.model.eval()
        logits = iterate_logits(
            self._logits_of, task, self.data_collator, batches, args.device, args.dataloader_num_workers
        )
        hidden = args.disable_tqdm or not args.should_log
        for example_ids, answers in tqdm(logits, f"Recording {task.name}", len(batches), leave=False, disable=hidden):
            put(*gather_examples(ranks, example_ids, answers[task.name].float()))

    def _logits_of(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        with self.compute_loss_context_manager():
            return self.model(**batch).logits
