"""Multi-task fine-tuning of text encoders with asynchronous convergence, for Hugging Face Transformers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .inference.pipeline import PIPELINE_TASK, MultiTaskPipeline
from .modeling.configuration_multitask import ConfigurationError, MultiTaskConfig, TaskConfig
from .modeling.modeling_multitask import MultiTaskModel, MultiTaskOutput

if TYPE_CHECKING:
    from .run import Run, load_run
    from .training.arguments import AsyncMTLTrainingArguments
    from .training.trainer import AsyncMTLTrainer

__version__ = "0.1.0"

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

AutoConfig.register("hf_async_mtl", MultiTaskConfig, exist_ok=True)
AutoModel.register(MultiTaskConfig, MultiTaskModel, exist_ok=True)
# `save_pretrained` copies the modelling code beside the weights, so that `trust_remote_code` loads it without us.
MultiTaskConfig.register_for_auto_class()
MultiTaskModel.register_for_auto_class("AutoModel")
PIPELINE_REGISTRY.register_pipeline(PIPELINE_TASK, MultiTaskPipeline, pt_model=AutoModel, type="text")

# Inference needs the model alone; what trains is imported when it is asked for.
_LAZY = {
    "AsyncMTLTrainer": "training.trainer",
    "AsyncMTLTrainingArguments": "training.arguments",
    "Run": "run",
    "load_run": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
