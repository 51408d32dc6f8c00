"""The ``tasks`` section of the configuration file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..data.config import DataSource
from ..tasks.presets import PRESETS
from ..validation import ConfigurationError, check, check_keys, one_of
from .sections import TaskSection

if TYPE_CHECKING:
    from ..modeling.configuration_multitask import TaskConfig

_HEADS = ("kept", "new", "frozen")


_KEYS = tuple(item.name for item in fields(TaskSection))
_FIELDS = ("type", "text_columns", "label_column", "label_names", "metrics", "max_length", "doc_stride")


def with_preset(path: str, section: Any) -> dict[str, Any]:
    """Return the section of a task with the keys of its preset, its own keys checked."""
    if not isinstance(section, dict):
        raise ConfigurationError(
            f"`{path}` must be a mapping with a `preset`, or `type` and `data`; found {section!r}."
        )
    check_keys(path, section, _KEYS)
    if "preset" in section:
        check(f"{path}.preset", section["preset"], one_of(*sorted(PRESETS)))
        section = {**copy.deepcopy(PRESETS[section["preset"]]), **section}
    for key in ("type", "text_columns", "data"):
        if key not in section:
            raise ConfigurationError(f"`{path}` must have `{key}`, or a `preset` that has it.")
    check(f"{path}.head", section.get("head", "kept"), one_of(*_HEADS))
    return section


def task_configs(tasks: Mapping[str, Any], sources: Mapping[str, DataSource]) -> dict[str, TaskConfig]:
    """Make the tasks from their sections.

    Raises:
        ConfigurationError: A section does not fit its type, or two tasks would log under one key.
    """
    from ..modeling.configuration_multitask import TaskConfig
    from ..tasks.names import check_task_names

    check_task_names(dict.fromkeys(tasks, ()))
    found = {}
    for name, section in tasks.items():
        metrics = section.get("metrics")
        for word in (section["type"], *(metrics if isinstance(metrics, list) else [metrics or ""])):
            if not isinstance(word, str):
                raise ConfigurationError(f"`tasks.{name}`: `type` and `metrics` must be names; found {word!r}.")
        try:
            found[name] = TaskConfig(**{key: copy.deepcopy(section[key]) for key in _FIELDS if key in section})
        except ConfigurationError as error:
            raise ConfigurationError(f"`tasks.{name}`: {error}") from None
    check_task_names(_metric_names(found, sources))
    return found


def _metric_names(tasks: Mapping[str, TaskConfig], sources: Mapping[str, DataSource]) -> dict[str, list[str]]:
    """Return the metrics of each task and of each further evaluation set, under the name in the log."""
    names = {}
    for name, task in tasks.items():
        names[name] = list(task.metrics or ())
        for split in sources[name].splits:
            if not split.startswith("validation_"):
                continue
            evaluation = f"{name}_{split.removeprefix('validation_')}"
            for other in tasks:
                if len(other) > len(name) and f"{evaluation}_".startswith(f"{other}_"):
                    raise ConfigurationError(
                        f"`tasks.{name}.data.{split}` would be reported as {evaluation!r}, which reads as one of task "
                        f"{other!r}. Rename one of them."
                    )
            names[evaluation] = list(task.metrics or ())
    return names
