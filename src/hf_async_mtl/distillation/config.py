"""The settings of distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..validation import Requirement, check_fields, number, setting


def _are_sources(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        source is None or (isinstance(source, str) and source) for source in value.values()
    )


@dataclass(frozen=True)
class DistillationConfig:
    """How a converged task learns from its teacher.

    Args:
        temperature: Temperature of the softmax in the divergence, above 0; see
            `hf_async_mtl.modeling.losses.categorical_kl`.
        hard_label_weight: Share of the supervised loss, from 0 (the teacher's logits only) to 1 (the labels only).
        teachers: Task -> folder or Hub id of a model that teaches the task from the first step, instead of the task's
            own best weights. Null: the task has no such teacher, although the trained model that the run starts from
            would be one.

    Raises:
        ConfigurationError: A value is out of range.
    """

    temperature: float = setting(1.0, number(0, exclusive=True))
    hard_label_weight: float = setting(0.0, number(0, 1))
    teachers: Mapping[str, str] = setting({}, Requirement("a mapping: task -> folder or Hub id", _are_sources))

    def __post_init__(self) -> None:
        check_fields("distillation", self)
        named = {task: source for task, source in self.teachers.items() if source is not None}
        object.__setattr__(self, "teachers", named)
