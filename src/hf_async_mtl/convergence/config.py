"""The settings of convergence: when a task has converged and what happens then, and when the tasks join the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..validation import (
    MAPPING,
    ConfigurationError,
    Requirement,
    check,
    check_fields,
    check_keys,
    number,
    one_of,
    optional,
    parse_section,
    setting,
    whole_number,
)
from .actions import ACTIONS

CRITERION_NAMES = ("plateau", "decline")
"""The keys of `hf_async_mtl.convergence.criteria.CRITERIA`."""


@dataclass(frozen=True)
class ConvergenceConfig:
    """When a task counts as converged, and what happens to it then.

    Args:
        criterion: ``decline`` (the score falls below its best; the first evaluation does not count) or ``plateau`` (no
            improvement).
        patience: Number of consecutive evaluations with a decrease (``decline``) or without improvement (``plateau``)
            after which the task has converged. Counted in evaluations, not in steps. With 1, the first noisy evaluation
            is enough.
        min_delta: An improvement, or a decrease, must exceed this value, in the units of the metric. On small
            validation sets a value below the metric's granularity (one example right or wrong) is the same as 0.
        min_steps: Number of optimizer steps with the task before which it cannot converge, counted from the step at
            which it joins. Earlier evaluations do count towards ``patience``.
        min_epochs: The same in passes over the task's own training examples; fractions are allowed. A task that has not
            seen an example twice has not overfitted.
        on_convergence: ``distill`` trains on from the recorded teacher, ``stop`` takes the task out of the loss,
            ``continue`` records the convergence and trains on with the labels, ``rollback`` stops the task and returns
            all weights to its best.
        z: Number of standard errors that a decrease must exceed, too, with ``decline``; 0: none. With 400
            validation rows, 1 switches one in five tasks that still learn; 2 sees 23 % of the falls of 2 points, 85 %
            of the falls of 5 (``docs/results.md``). No effect with ``plateau``.

    Raises:
        ConfigurationError: A value is out of range.
    """

    criterion: str = setting("decline", one_of(*CRITERION_NAMES))
    patience: int = setting(3, whole_number(1))
    min_delta: float = setting(0.0, number(0))
    min_steps: int = setting(0, whole_number(0))
    min_epochs: float = setting(1, number(0))
    on_convergence: str = setting("distill", one_of(*ACTIONS))
    z: float = setting(1.5, number(0))

    def __post_init__(self) -> None:
        check_fields("convergence", self)


@dataclass(frozen=True)
class ConvergenceSettings:
    """The ``convergence`` section of a run: the settings of every task.

    Args:
        default: The settings of a task that has none of its own.
        tasks: Task -> its settings, where it has some of its own.
        final_evaluations: Number of evaluations after the last convergence, after which the run ends; null: it uses
            the whole budget.

    Examples:
        >>> settings = ConvergenceSettings.parse({"patience": 5, "tasks": {"rte": {"min_steps": 9}}})
        >>> settings.of("rte").patience, settings.of("rte").min_steps, settings.of("mrpc").min_steps
        (5, 9, 0)
    """

    default: ConvergenceConfig = field(default_factory=ConvergenceConfig)
    tasks: Mapping[str, ConvergenceConfig] = field(default_factory=dict)
    final_evaluations: int | None = setting(3, optional(whole_number(0)))

    def __post_init__(self) -> None:
        check_fields("convergence", self)

    @classmethod
    def parse(cls, section: Any) -> ConvergenceSettings:
        """Make the settings from the section: the fields of `ConvergenceConfig`, ``tasks`` and ``final_evaluations``.

        Raises:
            ConfigurationError: A key is not known, or a value is out of range.
        """
        check("convergence", {} if section is None else section, MAPPING)
        names = [item.name for item in fields(ConvergenceConfig)]
        check_keys("convergence", section or {}, [*names, "tasks", "final_evaluations"])
        shared = dict(section or {})
        own = shared.pop("tasks", None) or {}
        check("convergence.tasks", own, MAPPING)
        rest = {"final_evaluations": shared.pop("final_evaluations")} if "final_evaluations" in shared else {}
        default = parse_section("convergence", ConvergenceConfig, shared)
        tasks = {name: _parse_own(name, shared, values) for name, values in own.items() if values is not None}
        return cls(default, tasks, **rest)

    def of(self, task: str) -> ConvergenceConfig:
        """Return the settings of a task."""
        return self.tasks.get(task, self.default)


def _parse_own(task: str, shared: Mapping[str, Any], own: Any) -> ConvergenceConfig:
    path = f"tasks.{task}.convergence"
    check(path, own, MAPPING)
    try:
        return parse_section(path, ConvergenceConfig, {**shared, **own})
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("`convergence.", f"`{path}.", 1)) from None


def _is_order(value: Any) -> bool:
    return value == "size" or (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value))


@dataclass(frozen=True)
class ScheduleConfig:
    """When the tasks join the run.

    Args:
        mode: ``joint``: all tasks from the start. ``sequential``: one after the other, each when those before it have
            converged.
        order: For ``sequential``: the names of all tasks, or ``size`` for the task with the most training examples
            first.

    Raises:
        ConfigurationError: A value is out of range.
    """

    mode: str = setting("joint", one_of("joint", "sequential"))
    order: Sequence[str] | str = setting("size", Requirement("size, or a list of all tasks", _is_order))

    def __post_init__(self) -> None:
        check_fields("schedule", self)
        if self.mode == "joint" and self.order != "size":
            raise ConfigurationError(
                f"`schedule.order` must be left out with `schedule.mode: joint`; found {self.order!r}."
            )
