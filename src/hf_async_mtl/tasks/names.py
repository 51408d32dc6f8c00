"""Names of the tasks of a task set, and the names that their metrics are logged under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..modeling.configuration_multitask import check_task_name
from ..validation import ConfigurationError

_SPEED_KEYS = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def check_task_names(metrics: Mapping[str, Iterable[str]]) -> None:
    """Check the names of a task set: each by itself, and against the names under which metrics are logged.

    ``metrics`` has, for every task (and every further evaluation set of one), the names of its metrics.
    """
    if not metrics:
        raise ConfigurationError("A task set needs at least one task; found none. Add one under `tasks`.")
    logged_by: dict[str, str] = {}
    for name, metric_names in metrics.items():
        check_task_name(name)
        for key in (f"{name}_{metric}" for metric in (*metric_names, *_SPEED_KEYS)):
            if key in logged_by:
                raise ConfigurationError(
                    f"The tasks {logged_by[key]!r} and {name!r} would both log {key!r}. Rename one of them."
                )
            logged_by[key] = name
