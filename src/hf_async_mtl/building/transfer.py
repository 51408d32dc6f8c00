"""What a new model inherits from a trained one: heads, label names and the scale of targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from ..modeling.configuration_multitask import TaskConfig
from ..validation import ConfigurationError


def shared_tasks(
    trained: Mapping[str, TaskConfig], tasks: Mapping[str, TaskConfig], new_heads: Collection[str] = ()
) -> list[str]:
    """Return the names of the tasks that keep their head of the trained model.

    Args:
        trained: The tasks of the trained model.
        tasks: The tasks of the new model.
        new_heads: Tasks that get a new head although the trained model has one.

    Raises:
        ConfigurationError: ``new_heads`` names a task that the new model does not have.

    Examples:
        >>> mrpc, rte = TaskConfig.from_preset("glue/mrpc"), TaskConfig.from_preset("glue/rte")
        >>> shared_tasks({"mrpc": mrpc}, {"mrpc": mrpc, "rte": rte})
        ['mrpc']
    """
    for name in new_heads:
        if name not in tasks:
            raise ConfigurationError(f"`new_heads` must name tasks ({', '.join(tasks)}); found {name!r}.")
    return [name for name in tasks if name in trained and name not in new_heads]


def inherit_from_trained(
    trained: Mapping[str, TaskConfig], tasks: Mapping[str, TaskConfig], new_heads: Collection[str] = ()
) -> dict[str, TaskConfig]:
    """Return the tasks of a new model, in their order; those that keep their head have the labels of the trained model.

    Args:
        trained: The tasks of the trained model.
        tasks: The tasks of the new model, resolved or not.
        new_heads: Tasks that get a new head although the trained model has one.

    Raises:
        ConfigurationError: A task does not fit its head, or ``new_heads`` names an unknown task.
    """
    shared = shared_tasks(trained, tasks, new_heads)
    return {**tasks, **{name: inherit_labels(name, tasks[name], trained[name]) for name in shared}}


def inherit_labels(name: str, task: TaskConfig, trained: TaskConfig) -> TaskConfig:
    """Return a task with the label names and the scale of targets of its trained head.

    Args:
        name: Its name, for messages.
        task: The task of the new model, resolved or not. Columns, metrics and lengths stay as they are.
        trained: The task of the trained model.

    Raises:
        ConfigurationError: The head is of another type, or has other labels.
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
