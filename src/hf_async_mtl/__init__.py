"""Multi-task fine-tuning of text encoders with asynchronous convergence, for Hugging Face Transformers.

The public names are imported when they are first used. After ``import hf_async_mtl``, ``AutoModel`` and ``pipeline``
know the classes of this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_with_transformers
from .validation import ConfigurationError

if TYPE_CHECKING:
    from .balancing.balancer import GradientBalancer, LossBalancer
    from .balancing.config import METHODS, BalancingConfig
    from .convergence.actions import ACTIONS, Action
    from .convergence.config import ConvergenceConfig, ScheduleConfig
    from .convergence.criteria import CRITERIA, Criterion
    from .convergence.schedule import ConvergenceSchedule
    from .data.config import DataSource, MixingConfig
    from .diagnostics.gradient_conflicts import GradientConflicts
    from .distillation.config import DistillationConfig
    from .inference.logits import iterate_logits
    from .inference.pipeline import MultiTaskPipeline
    from .inference.predict import predict_rows
    from .metrics import METRICS, Metric
    from .modeling.configuration_multitask import MultiTaskConfig, TaskConfig
    from .modeling.heads import HEADS, Head
    from .modeling.modeling_multitask import MultiTaskModel, MultiTaskOutput
    from .run import Run, load_run
    from .tasks.base import TaskType
    from .tasks.loss import LossConfig
    from .tasks.presets import PRESETS
    from .tasks.registry import TASK_TYPES
    from .training.arguments import AsyncMTLTrainingArguments
    from .training.trainer import AsyncMTLTrainer

__version__ = "0.2.0"

__all__ = [
    "ACTIONS",
    "CRITERIA",
    "HEADS",
    "METHODS",
    "METRICS",
    "PRESETS",
    "TASK_TYPES",
    "Action",
    "AsyncMTLTrainer",
    "AsyncMTLTrainingArguments",
    "BalancingConfig",
    "ConfigurationError",
    "ConvergenceConfig",
    "ConvergenceSchedule",
    "Criterion",
    "DataSource",
    "DistillationConfig",
    "GradientBalancer",
    "GradientConflicts",
    "Head",
    "LossBalancer",
    "LossConfig",
    "Metric",
    "MixingConfig",
    "MultiTaskConfig",
    "MultiTaskModel",
    "MultiTaskOutput",
    "MultiTaskPipeline",
    "Run",
    "ScheduleConfig",
    "TaskConfig",
    "TaskType",
    "iterate_logits",
    "load_run",
    "predict_rows",
]

_PUBLIC = {
    "balancing.balancer": ["GradientBalancer", "LossBalancer"],
    "balancing.config": ["METHODS", "BalancingConfig"],
    "convergence.actions": ["ACTIONS", "Action"],
    "convergence.config": ["ConvergenceConfig", "ScheduleConfig"],
    "convergence.criteria": ["CRITERIA", "Criterion"],
    "convergence.schedule": ["ConvergenceSchedule"],
    "data.config": ["DataSource", "MixingConfig"],
    "diagnostics.gradient_conflicts": ["GradientConflicts"],
    "distillation.config": ["DistillationConfig"],
    "inference.logits": ["iterate_logits"],
    "inference.pipeline": ["MultiTaskPipeline"],
    "inference.predict": ["predict_rows"],
    "metrics": ["METRICS", "Metric"],
    "modeling.configuration_multitask": ["MultiTaskConfig", "TaskConfig"],
    "modeling.heads": ["HEADS", "Head"],
    "modeling.modeling_multitask": ["MultiTaskModel", "MultiTaskOutput"],
    "run": ["Run", "load_run"],
    "tasks.base": ["TaskType"],
    "tasks.loss": ["LossConfig"],
    "tasks.presets": ["PRESETS"],
    "tasks.registry": ["TASK_TYPES"],
    "training.arguments": ["AsyncMTLTrainingArguments"],
    "training.trainer": ["AsyncMTLTrainer"],
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
