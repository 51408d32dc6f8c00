"""Evaluation of a task's set: from the logits of a batch to the metrics of the set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import EvalPrediction, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..data.dataset import TaskDataset
from ..inference.logits import IndexBatches, iterate_logits
from ..metrics import compute, greater_is_better, reads_probabilities, worst_value
from ..modeling.modeling_multitask import MultiTaskModel, MultiTaskOutput
from ..tasks.registry import TASK_TYPES
from .distributed import gather_examples

logger = logging.get_logger(__name__)


def dense(values: Tensor, offsets: Tensor) -> Tensor:
    """Return one row per example: ``[U, C]`` and offsets ``[B + 1]`` to ``[B, longest, C]``, padded with -100."""
    return nn.utils.rnn.pad_sequence(
        list(values.split(offsets.diff().tolist())), batch_first=True, padding_value=-100.0
    )


def iterate_over_ranks(
    model: nn.Module, dataset: TaskDataset, collate: Any, args: TrainingArguments, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``example_ids`` ``[B]`` and logits ``[U, C]`` of one set, which the ranks share; the same on all ranks.

    Switch the model to evaluation mode. Some examples may occur twice.
    """
    batches = IndexBatches(len(dataset), args.eval_batch_size, accelerator.process_index, accelerator.num_processes)
    model.eval()
    logits = iterate_logits(
        lambda batch: model(**batch).logits, dataset, collate, batches, args.device, args.dataloader_num_workers
    )
    hidden = args.disable_tqdm or not args.should_log
    for example_ids, found in tqdm(logits, f"Recording {dataset.name}", len(batches), leave=False, disable=hidden):
        yield gather_examples(accelerator, example_ids, found[dataset.name].float())


@dataclass(eq=False)
class TaskEvaluator:
    """Compute the metrics of a task's set, and keep what the monitored one reads of each validation set's last logits.

    ``predictions``: task -> `TaskType.predictions`, or `TaskType.probabilities` for a metric that reads these.
    """

    model: MultiTaskModel
    validation: Mapping[str, TaskDataset]
    own_metrics: Mapping[str, Callable[[EvalPrediction], dict[str, float]]]
    warns: bool = True
    predictions: dict[str, list[Any]] = field(default_factory=dict, init=False)
    _undefined: set[str] = field(default_factory=set, init=False)

    def step(self, model: nn.Module, inputs: Mapping[str, Any], **_: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of a batch, its ``logits`` ``[B, ...]``, and its ``losses`` ``[B]`` if it has labels.

        It stands in for `Trainer.compute_loss`, whose further arguments are ignored.
        """
        outputs: MultiTaskOutput = model(**inputs)
        assert outputs.logits is not None
        assert outputs.layouts is not None
        (name,) = outputs.logits
        logits = outputs.logits[name].float()
        head: Any = self.model.heads[name]
        if head.unit == "token":
            logits = dense(logits, outputs.layouts[name].example_tokens)
        if outputs.losses is None:
            return logits.new_zeros(()), {"logits": logits}
        # Each example's own loss: the mean of a batch says nothing if ranks have filled it up.
        losses = outputs.losses[name].float()
        return losses.mean(), {"logits": logits, "losses": losses}

    def score(self, dataset: TaskDataset, output: EvalLoopOutput, prefix: str) -> EvalLoopOutput:
        """Turn what the evaluation loop has gathered into logits in the order of the examples, and metrics."""
        # Ranks share a set in equal parts, with examples that occur twice where it does not divide.
        _, order = np.unique(np.asarray(output.label_ids), return_index=True)
        has_losses = isinstance(output.predictions, tuple)
        logits = np.asarray(output.predictions[0] if has_losses else output.predictions)[order]
        metrics = {name: value for name, value in (output.metrics or {}).items() if name != f"{prefix}_loss"}
        if has_losses:
            losses = np.asarray(output.predictions[1])[order]
            losses = losses[TASK_TYPES[dataset.task.type].has_loss(dataset.task, dataset.rows)]
            loss = float(np.mean(losses, dtype=np.float64)) if len(losses) else math.nan
            values = {"loss": loss, **self.metrics(dataset, logits)}
            metrics |= {f"{prefix}_{name}": value for name, value in values.items()}
        return output._replace(predictions=logits, label_ids=None, metrics=metrics)

    def average(self, metrics: Mapping[str, float], prefix: str, monitored: Mapping[str, str]) -> float:
        """Return the mean of the monitored metrics, task -> name, negated where they are better when smaller.

        One that is not defined has its worst value.
        """
        values = []
        for task, metric in monitored.items():
            value = metrics[f"{prefix}_{task}_{metric}"]
            if not math.isfinite(value):
                value = worst_value(metric)
                if self.warns and task not in self._undefined:
                    logger.warning(
                        f"Task {task!r}: {metric} is not defined on its {prefix} rows (are all labels, or all "
                        f"predictions, the same?). It counts as {value:g} in `{prefix}_average`."
                    )
                self._undefined.add(task)
            values.append(value if greater_is_better(metric) else -value)
        return float(np.mean(values))

    def metrics(self, dataset: TaskDataset, logits: np.ndarray) -> dict[str, float]:
        """Return the metrics of a set from the logits of its examples, in their order."""
        task, task_type = dataset.task, TASK_TYPES[dataset.task.type]
        assert task.metrics is not None
        predicted = task_type.metric_predictions(task, logits, dataset.rows)
        references = task_type.references(task, dataset.rows)
        probabilities = task_type.probabilities(task, logits) if any(map(reads_probabilities, task.metrics)) else []
        predicted, references, probabilities = (
            task_type.in_metric_order(task, values) for values in (predicted, references, probabilities)
        )
        if dataset is self.validation.get(dataset.name):
            self.predictions[dataset.name] = probabilities if reads_probabilities(task.monitored) else predicted
        # Of rows that are predicted, some may have no label.
        scored = [reference is not None for reference in references]
        kept = (list(compress(values, scored)) for values in (predicted, references, probabilities))
        predicted, references, probabilities = kept
        found = compute(task.metrics, task.type, predicted, references, task.label_names, probabilities)
        if dataset.name in self.own_metrics:
            labels = self.label_ids(dataset, logits)
            found = {**found, **self.own_metrics[dataset.name](EvalPrediction(logits, labels))}
        return found

    def label_ids(self, dataset: TaskDataset, logits: np.ndarray) -> np.ndarray | None:
        """Return the labels of a set as `Trainer.predict` does; None for rows without labels."""
        if "labels" not in dataset.rows.column_names:
            return None
        units = logits.shape[-2] if logits.ndim > 2 else 0
        return TASK_TYPES[dataset.task.type].label_array(dataset.task, dataset.rows, units)
