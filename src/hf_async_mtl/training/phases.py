"""The phases of a run before its first step, from its settings."""

from __future__ import annotations

from collections.abc import Mapping

from ..convergence.schedule import ConvergenceSchedule
from ..convergence.task import TaskSpec
from ..modeling.configuration_multitask import TaskConfig
from .arguments import AsyncMTLTrainingArguments
from .checks import join_order


def new_schedule(
    tasks: Mapping[str, TaskConfig], args: AsyncMTLTrainingArguments, sizes: Mapping[str, int]
) -> ConvergenceSchedule:
    """Return the schedule that a run begins with."""
    distillation = args.distillation_config
    specs = {
        name: TaskSpec(
            task.type,
            task.monitored,
            args.convergence_of(name),
            distilled_from_start=name in distillation.teachers,
        )
        for name, task in tasks.items()
    }
    return ConvergenceSchedule(specs, args.final_evaluations, join_order(args.schedule_config, list(tasks), sizes))
