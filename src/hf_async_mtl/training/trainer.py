"""A Trainer for task sets: overrides only, each of which calls its parent or a collaborator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    PredictionOutput,
    SaveStrategy,
    TrainOutput,
    rotate_checkpoints,
)

from ..convergence.actions import PHASES
from ..data.collator import MultiTaskCollator
from ..data.mixing import EncodedTask, MixingSampler, TaskMixture
from ..distillation.teachers import Teachers
from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from ..modeling.modeling_multitask import MultiTaskModel
from .arguments import AsyncMTLTrainingArguments
from .callbacks import RunCallback, TableCallback
from .checkpoint import RunCheckpoint
from .checkpoint_files import TEACHERS_FOLDER, checkpoint_step, write_atomic
from .checks import (
    check_best_metric,
    check_disk_space,
    check_own_metrics,
    check_sets,
    check_sharding,
    check_task_settings,
    check_tokenizer,
    checked_args,
    checked_model,
    refuse_arguments,
)
from .controller import ConvergenceController
from .distributed import broadcast_from_main, gather_examples
from .evaluation import TaskEvaluator, iterate_logits
from .loss import BatchLoss
from .parameters import check_trainable, split_head_groups
from .phases import new_schedule
from .publishing import publish
from .refusals import refused, replaced_fields
from .state_dict import load_saved_weights, savable
from .task_sets import TaskSets

if TYPE_CHECKING:
    import optuna
    from transformers import (
        BaseImageProcessor,
        DataCollator,
        FeatureExtractionMixin,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )
