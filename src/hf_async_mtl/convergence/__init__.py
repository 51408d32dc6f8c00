"""When each task has converged, and what it learns from afterwards.

Standard library only: importing this package costs nothing. The recorded teachers are in `convergence.teacher`.
"""

from hf_async_mtl.convergence.criteria import CRITERIA, ConvergenceConfig, Criterion, Plateau
from hf_async_mtl.convergence.schedule import ConvergenceSchedule, Event, Phase, TaskSpec

__all__ = [
    "CRITERIA",
    "ConvergenceConfig",
    "ConvergenceSchedule",
    "Criterion",
    "Event",
    "Phase",
    "Plateau",
    "TaskSpec",
]
