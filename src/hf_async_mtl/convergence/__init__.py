"""When each task has converged, and what it learns from afterwards.

Standard library only: importing this package costs nothing. The recorded teachers are in `convergence.teacher`.
"""

from hf_async_mtl.convergence.actions import ACTIONS, Action
from hf_async_mtl.convergence.config import ConvergenceConfig
from hf_async_mtl.convergence.criteria import (
    CRITERIA,
    Criterion,
    Decline,
    Plateau,
    Significant,
)
from hf_async_mtl.convergence.schedule import ConvergenceSchedule, Event, Phase, TaskSpec

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
    "Significant",
    "TaskSpec",
]
