"""Small runs that other tests make: models in memory, and scores by script, so that tasks converge when told."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import raw_sets, task_configs, tiny_tokenizer
from torch import Tensor
from transformers import BertConfig, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments, MultiTaskConfig, MultiTaskModel
from hf_async_mtl.data.dataset import TaskDataset

Script = Mapping[str, Sequence[float]]

# One task of each type; a test takes the first so many, or names some.
ALL = list(task_configs())


class InterruptedRunError(Exception):
    """The run was killed."""


class Interruption(TrainerCallback):
    """Kills a run at a step, before anything of that step is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise InterruptedRunError


class GradientRecorder(TrainerCallback):
    """Keeps the gradients of each optimizer step, by parameter."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.steps.append({name: p.grad.clone() for name, p in kwargs["model"].named_parameters()})


class ScriptedTrainer(AsyncMTLTrainer):
    """Its monitored scores are read from a script: task -> the value of each evaluation, the last one for ever."""

    script: Script = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The script says what was learned; the models behind it have often learned nothing.
        self.controller.constant_tasks = list  # type: ignore[method-assign]
        self._metrics = self.evaluator.metrics
        self.evaluator.metrics = self._scripted_metrics  # type: ignore[method-assign]

    def _scripted_metrics(self, dataset: TaskDataset, logits: Any) -> dict[str, float]:
        metrics = self._metrics(dataset, logits)
        if dataset.name in self.script:
            values = self.script[dataset.name]
            # A last evaluation may come before a whole interval has passed.
            place = -(-self.state.global_step // int(self.args.eval_steps or 1)) - 1
            metrics[dataset.task.monitored] = values[min(max(place, 0), len(values) - 1)]
        return metrics


def tiny_model(tasks: Sequence[str], seed: int = 0, dropout: float = 0.1, **settings: Any) -> MultiTaskModel:
    """A model of some of the tasks, its weights from the seed."""
    torch.manual_seed(seed)
    encoder = BertConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    configs = {name: task_configs()[name] for name in tasks}
    return MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=configs, max_length=32, **settings))


def some_rows(sizes: Mapping[str, int], seed: int = 0) -> dict[str, Dataset]:
    """So many rows of each task."""
    sets = raw_sets(max(sizes.values()), seed)
    return {name: sets[name].select(range(size)) for name, size in sizes.items()}


def tiny_trainer(
    folder: Path,
    sizes: Mapping[str, int],
    script: Script | None = None,
    *,
    model: MultiTaskModel | None = None,
    train: Mapping[str, Dataset] | None = None,
    evaluation: Mapping[str, Dataset] | None = None,
    callbacks: list[TrainerCallback] | None = None,
    kind: type[ScriptedTrainer] = ScriptedTrainer,
    **settings: Any,
) -> ScriptedTrainer:
    """A trainer of the named tasks on so many training rows each, ready to run."""
    defaults: dict[str, Any] = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "eval_steps": 4,
        "logging_steps": 4,
        "seed": 7,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "convergence": {"patience": 1, "final_evaluations": None},
        **settings,
    }
    defaults["convergence"] = {"criterion": "plateau", **defaults["convergence"]}
    trainer = kind(
        model=tiny_model(list(sizes)) if model is None else model,
        args=AsyncMTLTrainingArguments(str(folder), **defaults),
        processing_class=tiny_tokenizer(),
        train_dataset=some_rows(sizes) if train is None else train,
        eval_dataset=some_rows(dict.fromkeys(sizes, 6), seed=1) if evaluation is None else evaluation,
        callbacks=callbacks,
    )
    trainer.script = script or {}
    return trainer


def weights(trainer: AsyncMTLTrainer) -> dict[str, Tensor]:
    """A copy of the weights as they are now."""
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def different(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that are not equal to the last bit."""
    return [name for name in left.keys() | right.keys() if not torch.equal(left[name], right[name])]


def log_of(trainer: AsyncMTLTrainer) -> list[dict[str, Any]]:
    """The log, without what a clock says and without the summary that closes it."""
    clock = ("runtime", "per_second", "preparation_time")
    return [
        {key: value for key, value in entry.items() if not key.endswith(clock)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]
