"""What the trainer is given, checked before anything is written or trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from transformers import EvalPrediction

from ..convergence.actions import ACTIONS
from ..convergence.config import ScheduleConfig
from ..distillation.config import DistillationConfig
from ..metrics import METRICS
from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from ..modeling.modeling_multitask import MultiTaskModel
from ..tasks.names import check_task_names
from .arguments import AsyncMTLTrainingArguments

__all__ = [
    "check_best_metric",
    "check_own_metrics",
    "check_sets",
    "check_sharding",
    "check_task_settings",
    "check_tokenizer",
    "check_unlabelled_tasks",
    "checked_model",
    "join_order",
    "task_of",
]


def task_of(name: str, tasks: Collection[str]) -> str:
    """The task of an evaluation set: its own name, or the longest task name before an underscore.

    Raises:
        ConfigurationError: There is none.

    Examples:
        >>> task_of("mnli_mismatched", ["mnli", "rte"])
        'mnli'
    """
    found = [task for task in tasks if name == task or name.startswith(f"{task}_")]
    if not found:
        raise ConfigurationError(
            f"An evaluation set must be named as a task ({', '.join(tasks)}) or <task>_<suffix>; found {name!r}."
        )
    return max(found, key=len)


def checked_model(model: Any) -> MultiTaskModel:
    """Return the model that a trainer is given; raise a `ConfigurationError` unless it is a `MultiTaskModel`."""
    if not isinstance(model, MultiTaskModel):
        raise ConfigurationError(
            f"`model` must be a MultiTaskModel; found {type(model).__name__}. Make one with "
            "`MultiTaskModel.from_encoder(name, tasks)`."
        )
    return model


def check_sets(
    tasks: Mapping[str, TaskConfig], train: Mapping[str, Dataset] | None, evaluation: Mapping[str, Dataset] | None
) -> None:
    """Check that every task has its raw rows, and that no two sets would be reported under one name.

    Raises:
        ConfigurationError: A set is missing, empty, unknown or no `datasets.Dataset`.
    """
    names = ", ".join(tasks)
    for split, sets in (("train_dataset", train), ("eval_dataset", evaluation)):
        if sets is None:
            continue
        if not isinstance(sets, Mapping) or not all(isinstance(rows, Dataset) for rows in sets.values()):
            if isinstance(sets, Mapping) and any(isinstance(rows, IterableDataset) for rows in sets.values()):
                raise ConfigurationError(
                    f"`{split}` must have rows that can be counted and read in any order; found {_kinds(sets)}. Write "
                    "the part of a stream to train on to disk with `Dataset.from_generator(partial(iter, "
                    "stream.take(100_000)))`, as `scripts/examples/streaming.py` does."
                )
            raise ConfigurationError(
                f"`{split}` must be a dictionary: task -> datasets.Dataset; found {_kinds(sets)}. Load one split of "
                "each task."
            )
        missing = [name for name in tasks if name not in sets]
        if missing:
            raise ConfigurationError(f"`{split}` must have a set for each of {names}; {missing[0]!r} has none.")
        for name, rows in sets.items():
            if split == "train_dataset" and name not in tasks:
                raise ConfigurationError(f"`{split}` must name tasks of the model ({names}); found {name!r}.")
            if len(rows) == 0:
                raise ConfigurationError(f"`{split}` of task {name!r} must have rows; found none.")
    if evaluation is not None:
        check_task_names({name: tasks[task_of(name, tasks)].metrics or () for name in evaluation})


def check_tokenizer(tokenizer: Any, embeddings: int) -> None:
    """Check that a tokenizer is one of the model's.

    Args:
        tokenizer: As given.
        embeddings: How many tokens the encoder knows.

    Raises:
        ConfigurationError: It knows no word (Transformers makes such a one where a folder has none), or has ids that
            the encoder has not.
    """
    tokens = len(tokenizer)
    if tokens <= len(tokenizer.all_special_tokens):
        raise ConfigurationError(
            f"The tokenizer must know words; that of {tokenizer.name_or_path!r} knows {tokens} special tokens alone. "
            "Are the encoder's tokenizer files (tokenizer.json) missing?"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= embeddings:
        raise ConfigurationError(
            f"The tokenizer must be the encoder's; that of {tokenizer.name_or_path!r} has ids up to {largest}, and the "
            f"encoder knows {embeddings} tokens. Give the tokenizer that the encoder was trained with."
        )


def check_task_settings(tasks: Collection[str], args: AsyncMTLTrainingArguments) -> None:
    """Check that settings of single tasks name tasks of the model."""
    for section, key in (("convergence", "tasks"), ("balancing", "weights"), ("distillation", "teachers")):
        for name in args.section(section).get(key) or {}:
            if name not in tasks:
                raise ConfigurationError(
                    f"`{section}.{key}` must name tasks of the model ({', '.join(tasks)}); found {name!r}."
                )
    for name in tasks:
        action = args.convergence_of(name).on_convergence
        if ACTIONS[action].rolls_back and args.sharded_by == "DeepSpeed":
            raise ConfigurationError(
                f"`on_convergence: {action}` of task {name!r} cannot be used with DeepSpeed, whose optimizer keeps "
                "weights of its own. Use distill, stop or stop_and_go."
            )


def check_unlabelled_tasks(names: Collection[str], config: DistillationConfig) -> None:
    """Check that no loss is asked for on the labels that some tasks' training rows do not have."""
    if names and config.hard_label_weight:
        raise ConfigurationError(
            f"`distillation.hard_label_weight` needs labels, and the training rows of {', '.join(names)} have none. "
            "Set it to 0, or give the rows their labels."
        )


def check_sharding(accelerator: Accelerator) -> None:
    """Check that sharded weights can be gathered: for checkpoints, snapshots and teachers.

    Raises:
        ConfigurationError: FSDP is of version 1, or would write shards.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise ConfigurationError(
            f"FSDP must be of version 2; found {plugin.fsdp_version}. Set `fsdp_version: 2` in the configuration of "
            "accelerate; scripts/configs/launch/fsdp2.yaml is one."
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ConfigurationError(
            "FSDP must save whole weights, which a model is pushed with and a teacher is made of. Set "
            "`fsdp_state_dict_type: FULL_STATE_DICT` in the configuration of accelerate; "
            f"found {plugin.state_dict_type}."
        )


def join_order(config: ScheduleConfig, tasks: Sequence[str], sizes: Mapping[str, int]) -> list[str] | None:
    """The order in which the tasks of a sequential run join; None where all join at once.

    Args:
        config: The section of the configuration.
        tasks: All tasks.
        sizes: Their numbers of training examples; empty for a trainer that does not train.

    Raises:
        ConfigurationError: A given order does not name every task once.

    Examples:
        >>> join_order(ScheduleConfig("sequential"), ["rte", "sst2"], {"rte": 2490, "sst2": 67349})
        ['sst2', 'rte']
    """
    if config.mode == "joint":
        return None
    if isinstance(config.order, str):
        return sorted(tasks, key=lambda name: -sizes.get(name, 0))
    if sorted(config.order) != sorted(tasks):
        raise ConfigurationError(
            f"`schedule.order` must name each of {', '.join(tasks)} once; found {', '.join(config.order)}."
        )
    return list(config.order)


def check_own_metrics(functions: Any, tasks: Collection[str]) -> dict[str, Callable[[EvalPrediction], dict]]:
    """Check what the trainer is given as ``compute_metrics``: one function a task, of some tasks or of none."""
    if functions is None:
        return {}
    if not isinstance(functions, Mapping) or not all(callable(function) for function in functions.values()):
        raise ConfigurationError(
            "`compute_metrics` must be a dictionary: task -> function of an EvalPrediction, for each task has its own "
            f"labels; found {type(functions).__name__}. Write {{name: function}}."
        )
    for name in functions:
        if name not in tasks:
            raise ConfigurationError(f"`compute_metrics` must name tasks ({', '.join(tasks)}); found {name!r}.")
    return dict(functions)


def check_best_metric(sets: Mapping[str, TaskConfig], metric: str | None, own: Collection[str] = ()) -> None:
    """Check that ``metric_for_best_model`` is one that an evaluation gives.

    Args:
        sets: Name of an evaluation set -> its task.
        metric: As given.
        own: The tasks that have metrics of the user's, whose names are not known here.
    """
    if metric is None:
        return
    known = ["average"]
    for name, task in sets.items():
        # Upstream takes every metric but a loss to be better when greater.
        fitting = [key for key in task.metrics or () if key not in METRICS or METRICS[key].greater_is_better]
        known += [f"{name}_{key}" for key in (*fitting, "loss")]
    found = metric.removeprefix("eval_")
    if found not in known and not any(found.startswith(f"{name}_") for name in own):
        raise ConfigurationError(
            f"`training.metric_for_best_model` must be one of {', '.join(known)}; found {found!r}."
        )


def _kinds(sets: Any) -> str:
    if not isinstance(sets, Mapping):
        return type(sets).__name__
    return ", ".join(f"{name}: {type(rows).__name__}" for name, rows in sets.items())
