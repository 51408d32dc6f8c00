"""What a new model inherits from a trained one: heads, label names and the scale of targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from ..modeling.configuration_multitask import TaskConfig
from ..validation import ConfigurationError


def shared_tasks(
    trained: Mapping[str, TaskConfig], tasks: Mapping[str, TaskConfig], new_heads: Collection[str] = ()
) -> list[str]:
    """Return the names of the new model's tasks that keep their head of the trained model."""
    for name in new_heads:
        if name not in tasks:
            raise ConfigurationError(f"`new_heads` must name tasks ({', '.join(tasks)}); found {name!r}.")
    return [name for name in tasks if name in trained and name not in new_heads]


def inherit_from_trained(
    trained: Mapping[str, TaskConfig], tasks: Mapping[str, TaskConfig], new_heads: Collection[str] = ()
) -> dict[str, TaskConfig]:
    """Return the tasks of a new model; those that keep their head have the labels of the trained model."""
    shared = shared_tasks(trained, tasks, new_heads)
    return {**tasks, **{name: inherit_labels(name, tasks[name], trained[name]) for name in shared}}


def inherit_labels(name: str, task: TaskConfig, trained: TaskConfig) -> TaskConfig:
    """Return a task with the label names and the scale of targets of its trained head.

    Its columns, metrics and lengths stay as they are.
    """
    hint = "Rename the task, or give it a new head (`new_heads`; in a configuration file `head: new`)."
    if task.type != trained.type:
        raise ConfigurationError(
            f"Task {name!r} of the trained model is of type {trained.type}; found {task.type}. {hint}"
        )
    names, known = task.label_names, trained.label_names
    if names is not None and known is not None and list(names) != list(known):
        raise ConfigurationError(
            f"Task {name!r} of the trained model has the labels {', '.join(known)}, in that order; found "
            f"{', '.join(names)}. {hint}"
        )
    return dataclasses.replace(task, label_names=known, target_mean=trained.target_mean, target_std=trained.target_std)
