"""From a checked configuration to data, tokenizer and model; every failure is one message for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from .building.transfer import inherit_from_trained, shared_tasks
from .cli.config_file import RunConfig
from .data.loading import load_splits
from .data.tokenization import not_utf8
from .distillation.external import UNLOADABLE
from .distillation.unlabeled import is_unlabelled
from .metrics import check_metric
from .modeling.configuration_multitask import ConfigurationError, MultiTaskConfig, TaskConfig
from .modeling.modeling_multitask import MultiTaskModel
from .tasks.registry import TASK_TYPES

__all__ = [
    "evaluation_sets",
    "grown",
    "load_encoder",
    "load_model",
    "load_tasks",
    "load_tokenizer",
]


def grown(config: RunConfig) -> RunConfig:
    """Return the configuration of a run that starts from a trained model; any other as it is.

    A task that the trained model has takes over its labels, and the trained model is its teacher from the first step,
    unless the task has another teacher, or none (null): then it learns from labels. The run evaluates before its first
    step, so that the report shows where each task started.

    Raises:
        ConfigurationError: A task does not fit its head in the trained model, or a new head is to be frozen.
    """
    try:
        trained = AutoConfig.from_pretrained(config.encoder, trust_remote_code=False)
    except UNLOADABLE:
        # `load_encoder` raises the error, after the checks of the data.
        return config
    known = trained.task_configs if isinstance(trained, MultiTaskConfig) else {}
    kept = shared_tasks(known, config.tasks, config.model["new_heads"])
    for name in config.frozen_heads:
        if name not in kept:
            raise ConfigurationError(
                f"`tasks.{name}.head: frozen` needs a head that has been trained, and `encoder` has none for it. Start "
                "from a trained model that has the task, or train the head."
            )
    if not known:
        return config
    distillation = config.training["distillation"]
    training = {
        **config.training,
        "distillation": {
            **distillation,
            "teachers": dict.fromkeys(kept, config.encoder) | (distillation.get("teachers") or {}),
        },
        "eval_on_start": config.training.get("eval_on_start", True),
    }
    tasks = inherit_from_trained(known, config.tasks, config.model["new_heads"])
    return dataclasses.replace(config, tasks=tasks, training=training)


def load_tasks(config: RunConfig) -> tuple[dict[str, dict[str, Dataset]], dict[str, TaskConfig]]:
    """All raw splits, and the tasks with their labels found; every check that needs the data alone."""
    splits, tasks = {}, {}
    for name, task in config.tasks.items():
        taught = (config.training["distillation"].get("teachers") or {}).get(name) is not None
        splits[name] = load_splits(name, task, config.sources[name], config.data_seed, taught=taught)
        train = splits[name]["train"]
        try:
            if is_unlabelled(train, task):
                TASK_TYPES[task.type].check_unlabeled(task)
                tasks[name] = task
            else:
                tasks[name] = task.resolve(train)
                TASK_TYPES[task.type].check_training_labels(tasks[name], train)
            for metric in tasks[name].metrics or ():
                check_metric(metric, tasks[name])
        except ConfigurationError as error:
            raise ConfigurationError(f"Task {name!r}: {error}") from None
        except UnicodeDecodeError as error:
            raise not_utf8(name, error) from None
    return splits, tasks


def evaluation_sets(splits: dict[str, dict[str, Dataset]]) -> dict[str, Dataset]:
    """The validation sets as the trainer names them: ``<task>`` and ``<task>_<suffix>``."""
    return {
        name + split.removeprefix("validation"): rows
        for name, sets in splits.items()
        for split, rows in sets.items()
        if split.startswith("validation")
    }


def load_tokenizer(source: str, tasks: dict[str, TaskConfig]) -> Any:
    """The tokenizer of a model or an encoder, as its tasks need it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        has_words = any(TASK_TYPES[task.type].reads_words for task in tasks.values())
        if has_words and getattr(tokenizer, "add_prefix_space", None) is False:
            # Byte-level tokenizers read a list of words only when each word may begin with a space.
            tokenizer = AutoTokenizer.from_pretrained(source, add_prefix_space=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"No tokenizer could be loaded from {source!r}: {str(error).splitlines()[0]}"
        ) from error
    return tokenizer


def load_model(source: str) -> tuple[MultiTaskModel, Any]:
    """A trained model in evaluation mode, and its tokenizer."""
    try:
        model = MultiTaskModel.from_pretrained(source)
    except ConfigurationError:
        raise
    except UNLOADABLE as error:
        raise ConfigurationError(f"No model could be loaded from {source!r}: {str(error).splitlines()[0]}") from error
    return model.eval(), load_tokenizer(source, model.config.task_configs)


def load_encoder(config: RunConfig, tasks: dict[str, TaskConfig]) -> MultiTaskModel:
    """New heads on the configured encoder, with what is to stay as it is frozen."""
    try:
        model = MultiTaskModel.from_encoder(config.encoder, tasks, **config.model)
    except ConfigurationError:
        raise
    except UNLOADABLE as error:
        raise ConfigurationError(
            f"`encoder` could not be loaded from {config.encoder!r}: {str(error).splitlines()[0]}"
        ) from error
    if config.freeze is not None:
        model.freeze_encoder(None if config.freeze == "encoder" else int(config.freeze))
    for name in config.frozen_heads:
        model.heads[name].requires_grad_(False)
    return model
