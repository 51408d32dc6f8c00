"""When each task has converged, and what it learns from afterwards.

Standard library only, so that importing this package is cheap. Teachers are in `hf_async_mtl.distillation`.
"""

from __future__ import annotations

from .actions import ACTIONS, Action, Phase
from .config import ConvergenceConfig
from .criteria import CRITERIA, Criterion, Decline, Plateau
from .schedule import ConvergenceSchedule
from .task import Event, TaskSpec, TaskTracker

__all__ = [
    "ACTIONS",
    "CRITERIA",
    "Action",
    "ConvergenceConfig",
    "ConvergenceSchedule",
    "Criterion",
    "Decline",
    "Event",
    "Phase",
    "Plateau",
    "TaskSpec",
    "TaskTracker",
]
