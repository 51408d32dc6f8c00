"""A new bundle out of a trained one: which heads it keeps, and what its tasks take over with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from .configuration_multitask import ConfigurationError, TaskConfig

__all__ = ["adopt", "kept_tasks"]


def kept_tasks(
    known: Mapping[str, TaskConfig], tasks: Mapping[str, TaskConfig], new_heads: Collection[str] = ()
) -> list[str]:
    """The tasks that a trained model already has: those of the same name.

    Args:
        known: The model's tasks.
        tasks: Those of the new bundle.
        new_heads: Tasks that begin anew, though the model has one of that name.

    Raises:
        ConfigurationError: ``new_heads`` names a task that the new bundle does not have.

    Examples:
        >>> mrpc, rte = TaskConfig.from_preset("glue/mrpc"), TaskConfig.from_preset("glue/rte")
        >>> kept_tasks({"mrpc": mrpc}, {"mrpc": mrpc, "rte": rte})
        ['mrpc']
    """
    for name in new_heads:
        if name not in tasks:
            raise ConfigurationError(f"`new_heads` must name tasks ({', '.join(tasks)}); found {name!r}.")
    return [name for name in tasks if name in known and name not in new_heads]


def adopt(name: str, task: TaskConfig, known: TaskConfig) -> TaskConfig:
    """A task with the labels, or the scale of its targets, that its trained head has.

    Args:
        name: Its name, for messages.
        task: The task of the new bundle, resolved or not.
        known: The task of the trained model.

    Returns:
        A new task; the columns, metrics and lengths are its own.

    Raises:
        ConfigurationError: The head does not fit: another type, or other labels.
    """
    way_out = "Name the task otherwise, or let it begin with a new head (`new_heads`, in a file `head: new`)."
    if task.type != known.type:
        raise ConfigurationError(
            f"Task {name!r} of the trained model is of type {known.type}; found {task.type}. {way_out}"
        )
    if (
        task.label_names is not None
        and known.label_names is not None
        and list(task.label_names) != list(known.label_names)
    ):
        raise ConfigurationError(
            f"Task {name!r} of the trained model has the labels {', '.join(known.label_names)}, in that order; found "
            f"{', '.join(task.label_names)}. {way_out}"
        )
    return dataclasses.replace(
        task, label_names=known.label_names, target_mean=known.target_mean, target_std=known.target_std
    )
