"""The sections of the training arguments: from the user's mappings to checked settings, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..balancing.config import BalancingConfig
from ..convergence.config import ConvergenceSettings, ScheduleConfig
from ..data.config import MixingConfig
from ..distillation.config import DistillationConfig
from ..tasks.loss import LossConfig
from ..validation import parse_section


class Sections(NamedTuple):
    """The settings of each section."""

    convergence: ConvergenceSettings
    distillation: DistillationConfig
    mixing: MixingConfig
    balancing: BalancingConfig
    schedule: ScheduleConfig
    losses: Mapping[str, LossConfig]


SECTIONS = Sections._fields


def parse_sections(given: Mapping[str, Any]) -> Sections:
    """Make the settings of all sections from section -> the user's keys and values.

    The command line calls it before it imports torch, and the training arguments for all their users.

    Raises:
        ConfigurationError: A key is not known, or a value is out of range.
    """
    return Sections(
        ConvergenceSettings.parse(given.get("convergence")),
        parse_section("distillation", DistillationConfig, given.get("distillation")),
        parse_section("mixing", MixingConfig, given.get("mixing")),
        parse_section("balancing", BalancingConfig, given.get("balancing")),
        parse_section("schedule", ScheduleConfig, given.get("schedule")),
        LossConfig.of_tasks(given.get("losses")),
    )
