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
    from .inference.pipeline import MultiTaskPipeline
    from .modeling.configuration_multitask import MultiTaskConfig, TaskConfig
    from .modeling.modeling_multitask import MultiTaskModel, MultiTaskOutput
    from .run import Run, load_run
    from .training.arguments import AsyncMTLTrainingArguments
    from .training.trainer import AsyncMTLTrainer

__version__ = "0.2.0"

__all__ = [
    "AsyncMTLTrainer",
    "AsyncMTLTrainingArguments",
    "ConfigurationError",
    "MultiTaskConfig",
    "MultiTaskModel",
    "MultiTaskOutput",
    "MultiTaskPipeline",
    "Run",
    "TaskConfig",
    "load_run",
]

_MODULES = {
    "AsyncMTLTrainer": "training.trainer",
    "AsyncMTLTrainingArguments": "training.arguments",
    "MultiTaskConfig": "modeling.configuration_multitask",
    "MultiTaskModel": "modeling.modeling_multitask",
    "MultiTaskOutput": "modeling.modeling_multitask",
    "MultiTaskPipeline": "inference.pipeline",
    "Run": "run",
    "TaskConfig": "modeling.configuration_multitask",
    "load_run": "run",
}

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
