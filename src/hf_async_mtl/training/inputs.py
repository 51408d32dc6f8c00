"""The arguments of the trainer, checked before anything is written, and its raw sets, encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import EvalPrediction

from ..building.freezing import check_trainable
from ..building.lora import freeze_base_weights
from ..data.collator import MultiTaskCollator
from ..data.dataset import TaskDataset
from ..metrics import check_metric
from ..modeling.modeling_multitask import MultiTaskModel
from .arguments import AsyncMTLTrainingArguments
from .checks import (
    check_best_metric,
    check_own_metrics,
    check_sets,
    check_task_settings,
    check_tokenizer,
    checked_args,
    checked_model,
    refuse_arguments,
    with_labels,
)
from .task_sets import TaskSets

Metrics = Callable[[EvalPrediction], dict[str, float]]


@dataclass(frozen=True)
class TrainerInputs:
    """What a trainer works with.

    Args:
        task_sets: Encodes raw rows; knows the tasks and the tokenizer.
        own_metrics: Task -> the user's function.
        train: Task -> its encoded training set; empty if none was given.
        validation: Name -> encoded validation set.
        external_rows: Task -> its raw training rows, of the tasks with an external teacher.
    """

    model: MultiTaskModel
    args: AsyncMTLTrainingArguments
    task_sets: TaskSets
    own_metrics: Mapping[str, Metrics]
    train: dict[str, TaskDataset]
    validation: dict[str, TaskDataset]
    external_rows: dict[str, Dataset]

    def collator(self) -> MultiTaskCollator:
        """Return the collator of the model's batches."""
        tasks = self.task_sets.tasks
        longest = max(map(self.task_sets.length_of, tasks))
        types = {name: task.type for name, task in tasks.items()}
        return MultiTaskCollator(types, longest, self.task_sets.tokenizer.pad_token_id)


def prepare_inputs(
    model: Any,
    args: Any,
    tokenizer: Any,
    train: Mapping[str, Dataset] | None,
    evaluation: Mapping[str, Dataset] | None,
    compute_metrics: Any,
    unsupported: Mapping[str, Any],
) -> TrainerInputs:
    """Check what a trainer is given, and encode its sets."""
    args, model = checked_args(args), checked_model(model)
    refuse_arguments(unsupported)
    tasks = model.config.task_configs
    own_metrics = check_own_metrics(compute_metrics, tasks)
    tokenizer = check_tokenizer(tokenizer, model.config.encoder_config.vocab_size)
    check_sets(tasks, train, evaluation)
    if train is not None:
        if model.config.lora is not None:
            freeze_base_weights(model.encoder)
        check_trainable(model.encoder, model.heads)
    check_task_settings(tasks, args)
    config = args.distillation_config
    rows = with_labels(train or {}, tasks, config)
    task_sets = TaskSets(tasks, tokenizer, model.config.max_length, args)
    encoded, validation = task_sets.encode(rows), task_sets.encode(evaluation or {})
    for task in tasks.values():
        for metric in task.metrics or ():
            check_metric(metric, task)
    task_sets.warn_truncated({"training": encoded, "validation": validation})
    if validation:
        sets = {name: dataset.task for name, dataset in validation.items()}
        check_best_metric(sets, args.metric_for_best_model, own_metrics)
    model.probe_packing()
    external_rows = {name: own for name, own in rows.items() if name in config.teachers}
    return TrainerInputs(model, args, task_sets, own_metrics, encoded, validation, external_rows)
