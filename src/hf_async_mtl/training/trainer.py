"""The Trainer for bundles of tasks: joins data, model, phases and teachers at the Trainer's own seams."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import nn
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.trainer_utils import BestRun, HPSearchBackend, TrainOutput

from ..building.freezing import check_trainable
from ..building.lora import freeze_base_weights
from ..convergence.actions import ACTIONS, PHASES
from ..data.collator import MultiTaskCollator
from ..data.dataset import MultiTaskDataset
from ..data.loading import is_unlabeled
from ..data.sampler import MultiTaskSampler
from ..distillation.logits import TeacherError
from ..distillation.teachers import Teachers
from ..distillation.unlabeled import with_placeholders
from ..metrics import check_metric
from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from ..modeling.modeling_multitask import MultiTaskModel
from ..tasks.registry import TASK_TYPES
from .arguments import AsyncMTLTrainingArguments
from .callbacks import ConvergenceCallback, TableCallback
from .checkpoint_validation import check_checkpoint
from .checkpoints import TEACHERS_FOLDER, adopt_best, checkpoint_step
from .checks import (
    check_best_metric,
    check_own_metrics,
    check_sets,
    check_sharding,
    check_task_settings,
    check_tokenizer,
    check_unlabelled_tasks,
    checked_model,
)
from .distributed import check_files_reach, newest_checkpoint
from .loss import MultiTaskLoss
from .phases import new_schedule
from .saving import SavingTrainer

if TYPE_CHECKING:
    import optuna
    from transformers import (
        BaseImageProcessor,
        DataCollator,
        FeatureExtractionMixin,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

__all__ = ["AsyncMTLTrainer"]

SEARCH_HINT = (
    "To search for hyperparameters, build a trainer per trial, as scripts/examples/optuna_search.py does with Optuna."
)


class AsyncMTLTrainer(SavingTrainer):
    """A `transformers.Trainer` for bundles of tasks with asynchronous convergence.

    The method is that of Lu et al., "Asynchronous Convergence in Multi-Task Learning via Knowledge Distillation from
    Converged Tasks", NAACL 2022 Industry Track.

    Differs from its parent in what it takes: ``model`` is a `MultiTaskModel`; ``args`` are `AsyncMTLTrainingArguments`;
    ``train_dataset`` is a dictionary of raw `datasets.Dataset`, one a task; ``eval_dataset`` the same, and may hold
    further sets named ``<task>_<suffix>``, which are reported but not monitored; ``processing_class`` is a fast
    tokenizer; ``compute_metrics`` is a dictionary: task -> a function of an `EvalPrediction` (logits, and labels as
    `TaskType.label_array` returns them), whose values are reported beside the task's own metrics. The rest is as
    upstream.

    Raises:
        ConfigurationError: Something does not fit, found before training.
    """

    # Our loss is normalised over the whole optimizer step; the Trainer must not divide it again.
    loss_is_scaled_for_ga = True

    model: MultiTaskModel
    args: AsyncMTLTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: AsyncMTLTrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Mapping[str, Dataset] | None = None,
        eval_dataset: Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase
        | BaseImageProcessor
        | FeatureExtractionMixin
        | ProcessorMixin
        | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        args = AsyncMTLTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, AsyncMTLTrainingArguments):
            raise ConfigurationError(f"`args` must be AsyncMTLTrainingArguments; found {type(args).__name__}.")
        if model_init is not None:
            raise ConfigurationError(f"`model_init` is not supported: give the `model` itself. {SEARCH_HINT}")
        model = checked_model(model)
        for name, value in {
            "data_collator": data_collator,
            "compute_loss_func": compute_loss_func,
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
        }.items():
            if value is not None:
                raise ConfigurationError(f"`{name}` has no effect here: the tasks say it. Remove the argument.")
        self._own_metrics = check_own_metrics(compute_metrics, model.config.task_configs)
        if processing_class is None:
            raise ConfigurationError("`processing_class` must be the encoder's tokenizer; found None.")

        check_tokenizer(processing_class, model.config.encoder_config.vocab_size)
        self.tasks: dict[str, TaskConfig] = model.config.task_configs
        self._tokenizer = processing_class
        self._max_length = model.config.max_length
        check_sets(self.tasks, train_dataset, eval_dataset)
        if train_dataset is not None:
            if model.config.lora is not None:
                freeze_base_weights(model.encoder)
            check_trainable(model.encoder, model.heads)
        check_task_settings(self.tasks, args)
        self.args = args
        unlabelled = [
            name
            for name, rows in (train_dataset or {}).items()
            if name in args.distillation_config.teachers and is_unlabeled(rows, self.tasks[name])
        ]
        check_unlabelled_tasks(unlabelled, args.distillation_config)
        for name in unlabelled:
            TASK_TYPES[self.tasks[name].type].check_unlabeled(self.tasks[name])
        if train_dataset is not None:
            places = {name: with_placeholders(train_dataset[name], self.tasks[name]) for name in unlabelled}
            train_dataset = {**train_dataset, **places}
        encoded_train = None if train_dataset is None else self._encode(train_dataset)
        encoded_eval = None if eval_dataset is None else self._encode(eval_dataset)
        for task in self.tasks.values():
            for metric in task.metrics or ():
                check_metric(metric, task)
        self._tell_truncated({"training": encoded_train or {}, "validation": encoded_eval or {}})
        if encoded_eval is not None:
            sets = {name: rows.task for name, rows in encoded_eval.items()}
            check_best_metric(sets, args.metric_for_best_model, self._own_metrics)
        self._sizes = {name: len(rows) for name, rows in (encoded_train or {}).items()}
        self.schedule = new_schedule(self.tasks, args, self._sizes)
        model.probe_packing()
        row_length = max(task.max_length or self._max_length for task in self.tasks.values())
        tokenizer: Any = processing_class
        collator = MultiTaskCollator(
            {name: task.type for name, task in self.tasks.items()}, row_length, tokenizer.pad_token_id
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=None if encoded_train is None else MultiTaskDataset(list(encoded_train.values())),
            # Without a set the parent refuses an `eval_strategy`; a trainer that evaluates explicit sets has none.
            eval_dataset=encoded_eval or {},
            processing_class=processing_class,
            compute_metrics=self._compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        check_sharding(self.accelerator)
        self.encoded_train = encoded_train or {}
        self.label_names = ["labels"]
        self._run_dir = Path(args.output_dir)
        distillation = args.distillation_config
        self.teachers = Teachers(self._run_dir / TEACHERS_FOLDER, distillation, self.encoded_train)
        self._raw_train = {name: rows for name, rows in (train_dataset or {}).items() if name in distillation.teachers}
        self.batch_loss = MultiTaskLoss(
            model, args, self.schedule, self.teachers, self.accelerator, epoch_size=sum(self._sizes.values())
        )
        # What each run begins with.
        self._untrained = {"schedule": self.schedule.state_dict(), "batch_loss": self.batch_loss.state_dict()}
        self._convergence = ConvergenceCallback(self.schedule, self._run_state, self._roll_back, self._check_finite)
        self.add_callback(self._convergence)
        # Its dictionaries would bury the tables; a notebook's own bar stays.
        self.remove_callback(PrinterCallback)
        for callback in [c for c in self.callback_handler.callbacks if type(c).__name__ == "ProgressCallback"]:
            self.remove_callback(callback)
        self._display = TableCallback()
        self.add_callback(self._display)
        self._answers = {}
        self.data_sources = {}

    # -- losses -------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: torch.utils.data.Dataset | None = None) -> MultiTaskSampler:
        sizes = [len(task) for task in self.encoded_train.values()]
        ranks = self.args.world_size
        multiple = 1 if ranks == 1 else ranks * self.args.per_device_train_batch_size
        self._sampler = MultiTaskSampler(sizes, self.args.seed, self.args.mixing_config, multiple)
        return self._sampler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        """The examples of the whole optimizer step, over accumulation and ranks, of the tasks that are in the loss."""
        return self.batch_loss.count(batch_samples, self.state.global_step, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the loss of a packed batch; see `MultiTaskLoss`."""
        loss, outputs = self.batch_loss(model, inputs, num_items_in_batch, self.state.global_step)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each task's training loss, phase (its place in `PHASES`) and balancing weight beside the sum."""
        if "loss" in logs:
            logs = {**logs, **self.batch_loss.logs()}
            logs |= {f"phase/{name}": float(PHASES.index(phase)) for name, phase in self.schedule.phases.items()}
        super().log(logs, start_time)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the whole gradient, which is looked at before the update is made."""
        self._gradient_norm = super()._get_grad_norm(model, grad_norm)
        return self._gradient_norm

    def _check_finite(self) -> None:
        self.batch_loss.finite.check(self.accelerator, self.state.global_step, float(self._gradient_norm))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, the heads in groups of their own where they have a learning rate of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        rate = self.args.head_learning_rate
        if is_new and rate is not None:
            parameters = (self.model if model is None else model).named_parameters()
            heads = {id(p) for name, p in parameters if "heads" in name.split(".")[:2]}
            for group in list(optimizer.param_groups):
                chosen = [p for p in group["params"] if id(p) in heads]
                group["params"] = [p for p in group["params"] if id(p) not in heads]
                if chosen:
                    optimizer.add_param_group({**group, "params": chosen, "lr": rate})
            # Where all but the heads is frozen; shards of nothing could not be resumed.
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    # -- the run ------------------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: optuna.Trial | dict[str, Any] | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, as upstream. ``resume_from_checkpoint=True`` takes the newest checkpoint that is whole."""
        if not self.encoded_train or not self.eval_dataset:
            raise ConfigurationError("Training needs `train_dataset` and `eval_dataset`; one of them was not given.")
        self._begin()
        output_dir = self._run_dir
        if resume_from_checkpoint is True:
            found = newest_checkpoint(output_dir)
            if found is None:
                raise ConfigurationError(
                    f"`resume_from_checkpoint` needs a whole checkpoint in {output_dir}; found none. Leave it out to "
                    "start afresh."
                )
            resume_from_checkpoint = str(found)
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        check_files_reach(self.args, self.accelerator)
        self._check_room()
        if checkpoint is not None:
            check_checkpoint(
                checkpoint,
                self.args,
                self.schedule,
                self.teachers,
                {name: tensor.shape for name, tensor in self.batch_loss.model.state_dict().items()},
                self._run_state(),
            )
        if self.args.should_save:
            self.teachers.store.clear()
            if checkpoint is not None:
                self.teachers.store.replace_with(checkpoint / TEACHERS_FOLDER)
                adopt_best(checkpoint, output_dir)
        self.accelerator.wait_for_everyone()
        # Every process must load the same weights in the end.
        self._adopted_best = None if checkpoint is None else adopt_best(checkpoint, output_dir)
        if checkpoint is None:
            self._record_external_teachers()
        result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._finish()
        return result

    def _begin(self) -> None:
        """Begin a run as new, whatever an earlier one has left."""
        self.schedule.load_state_dict(self._untrained["schedule"])
        self.batch_loss.load_state_dict(self._untrained["batch_loss"])
        self.teachers.begin()

    def hyperparameter_search(
        self,
        hp_space: Callable[[optuna.Trial], dict[str, float]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[optuna.Trial], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Raise a `ConfigurationError`: each trial of a search needs a trainer of its own."""
        raise ConfigurationError(f"`hyperparameter_search` is not supported. {SEARCH_HINT}")

    def _check_room(self) -> None:
        actions = {name: ACTIONS[self.args.convergence_of(name).on_convergence] for name in self.tasks}
        try:
            self.teachers.check_disk_space(
                name for name, action in actions.items() if action.records_teacher or name in self._raw_train
            )
        except TeacherError as error:
            raise ConfigurationError(str(error)) from None

    def _run_epoch(
        self,
        model: nn.Module,
        epoch: int,
        train_dataloader: torch.utils.data.DataLoader,
        steps_in_epoch: int,
        num_update_steps_per_epoch: int,
        trial: optuna.Trial | dict[str, Any] | None,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        resume_from_checkpoint: str | None,
        epochs_trained: int,
        steps_trained_in_current_epoch: int,
    ) -> None:
        """Train an epoch, unless the run was resumed after its end."""
        # The parent asks whether to stop after a step, not before the first one.
        if self.schedule.finished or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # On several processes the parent does not reach the sampler of an epoch that is resumed in its midst.
        self._sampler.set_epoch(epoch)
        super()._run_epoch(
            model,
            epoch,
            train_dataloader,
            steps_in_epoch,
            num_update_steps_per_epoch,
            trial,
            ignore_keys_for_eval,
            start_time,
            resume_from_checkpoint,
            epochs_trained,
            steps_trained_in_current_epoch,
        )

    def _finish(self) -> None:
        """Say which weights the run ended with, and let the teachers go: each checkpoint has its own."""
        best = self._best_checkpoint()
        step = self.state.global_step if best is None else checkpoint_step(best)
        evaluated = any(at == step for at, _ in self.schedule.report()["tasks"][next(iter(self.tasks))]["history"])
        values = None
        if not evaluated:
            metrics = self.evaluate()
            values = {name: metrics[f"eval_{name}_{task.monitored}"] for name, task in self.tasks.items()}
        self.schedule.finish(step, values)
        self._write_report()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.teachers.store.clear()
