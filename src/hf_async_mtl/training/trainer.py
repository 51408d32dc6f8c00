"""A Trainer for task sets: overrides only, each of which calls its parent or a collaborator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback, TrainerControl
from transformers.data.data_collator import DataCollator
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, SaveStrategy, TrainOutput, rotate_checkpoints

from ..building.lora import merged_copy
from ..convergence.actions import PHASES
from ..data.dataset import MultiTaskDataset, TaskDataset
from ..data.sampler import MultiTaskSampler
from ..distillation.teachers import Teachers
from ..modeling.configuration_multitask import TaskConfig
from ..modeling.modeling_multitask import MultiTaskModel
from .arguments import AsyncMTLTrainingArguments
from .callbacks import RunCallback, TableCallback, build_sampler
from .checkpoint import RunCheckpoint
from .checkpoint_files import TEACHERS_FOLDER
from .controller import ConvergenceController, new_schedule
from .distributed import broadcast_from_main
from .evaluation import TaskEvaluator, iterate_over_ranks
from .inputs import TrainerInputs, check_sharding, check_training, prepare_inputs
from .loss import MultiTaskLoss
from .publishing import publish
from .state_dict import savable
from .upstream import refused, replaced_fields, split_head_groups


class AsyncMTLTrainer(Trainer):
    """A `transformers.Trainer` for task sets with asynchronous convergence.

    The method is that of Lu et al., "Asynchronous Convergence in Multi-Task Learning via Knowledge Distillation from
    Converged Tasks", NAACL 2022 Industry Track.

    Differences from the parent: ``model`` is a `MultiTaskModel`; ``args`` are `AsyncMTLTrainingArguments`;
    ``train_dataset`` is a dictionary of raw `datasets.Dataset`, one per task; ``eval_dataset`` likewise, and may hold
    further sets named ``<task>_<suffix>``, which are reported but not monitored; ``processing_class`` is a fast
    tokenizer; ``compute_metrics`` is a dictionary: task -> a function of an `EvalPrediction` (logits, and labels as
    `TaskType.label_array` returns them), whose values are reported beside the task's own metrics.

    Raises:
        ConfigurationError: An argument does not fit; found before training.
    """

    # As upstream for a loss that is the mean of its batch; see `compute_loss`.
    loss_is_scaled_for_ga = False
    current_gradient_accumulation_steps = 1

    hyperparameter_search = refused(
        "hyperparameter_search", "Build a trainer per trial, as scripts/examples/optuna_search.py does with Optuna."
    )

    model: MultiTaskModel
    args: AsyncMTLTrainingArguments
    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: AsyncMTLTrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Mapping[str, Dataset] | None = None,
        eval_dataset: Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        unused = {
            **{"model_init": model_init, "data_collator": data_collator, "compute_loss_func": compute_loss_func},
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
        }
        inputs = prepare_inputs(model, args, processing_class, train_dataset, eval_dataset, compute_metrics, unused)
        super().__init__(
            model=inputs.model,
            args=inputs.args,
            data_collator=inputs.collator(),
            train_dataset=MultiTaskDataset(list(inputs.train.values())) if inputs.train else None,
            # Without a set the parent refuses an `eval_strategy`; a trainer that evaluates explicit sets has none.
            eval_dataset=inputs.validation,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self._connect(inputs)

    def _connect(self, inputs: TrainerInputs) -> None:
        """Make the collaborators of the run."""
        check_sharding(self.accelerator)
        # The parent hands the inputs of these names to the metrics: labels are found by the indices of the examples.
        self.label_names = ["example_ids"]
        # Task -> its `data` section, of which the model card shows what is on the Hub.
        self.data_sources: dict[str, Mapping[str, Any]] = {}
        self.tasks: dict[str, TaskConfig] = inputs.model.config.task_configs
        self.task_sets, self.encoded_train = inputs.task_sets, inputs.train
        model, args, ranks = inputs.model, inputs.args, self.accelerator
        sizes = {name: len(rows) for name, rows in inputs.train.items()}
        self.schedule = new_schedule(self.tasks, args, sizes)
        self.teachers = Teachers(Path(args.output_dir, TEACHERS_FOLDER), args.distillation_config, inputs.train)
        self.multi_task_loss = MultiTaskLoss(model, args, self.schedule, self.teachers, ranks, sum(sizes.values()))
        self.evaluator = TaskEvaluator(model, inputs.validation, inputs.own_metrics, args.should_log)
        self.controller = ConvergenceController(
            args, model, ranks, self.schedule, self.teachers, self.evaluator, self.multi_task_loss, self.iterate_logits
        )
        self.checkpoint = RunCheckpoint(args, model, ranks, self.schedule, self.teachers, self.multi_task_loss)
        self._external_rows = inputs.external_rows
        if sizes:
            self._sampler = build_sampler(list(sizes.values()), args)
            parts = (self._sampler, self.controller, self.checkpoint, self.multi_task_loss)
            self.add_callback(RunCallback(*parts, self.create_model_card))
        self._table = TableCallback()
        self._table.replace_others(self)

    def _get_train_sampler(self, train_dataset: torch.utils.data.Dataset | None = None) -> MultiTaskSampler:
        return self._sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Collect the batches of an optimizer step, and count its examples over accumulation, ranks and tasks."""
        if self.control.should_training_stop:
            # A resumed run was over: the parent asks only after a step.
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, self.multi_task_loss.count(batches, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the training loss of a packed batch; see `MultiTaskLoss`. With gradient balancing it has no graph.

        An override may run the model itself, as upstream: ``model(**inputs).logits`` and ``inputs["labels"]`` are
        dictionaries by task. Its loss, a mean over the batch, replaces that of every phase. Evaluations do not call it.
        """
        loss, outputs = self.multi_task_loss(model, inputs, num_items_in_batch, self.state.global_step)
        if num_items_in_batch is not None:
            # Normalized over the whole optimizer step: undo the division by its number of batches.
            loss = loss * self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each task's training loss, phase (its index in `PHASES`) and balancing weight beside the sum."""
        if "loss" in logs:
            logs = {**logs, **self.multi_task_loss.logs()}
            logs |= {f"phase/{name}": float(PHASES.index(phase)) for name, phase in self.schedule.phases.items()}
        super().log(logs, start_time)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm before clipping, and check that the losses and the gradient are finite; see `FiniteCheck`."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.multi_task_loss.finite.check(self.accelerator, self.state.global_step, norm)
        return norm

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, with the heads in groups of their own if they have their own learning rate."""
        is_new, rate = self.optimizer is None, self.args.head_learning_rate
        optimizer = super().create_optimizer(model)
        if is_new and rate is not None:
            split_head_groups(optimizer, self.model if model is None else model, rate)
        return optimizer

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, as upstream. ``resume_from_checkpoint=True`` takes the newest complete checkpoint."""
        check_training(self.tasks, [self.encoded_train, self.eval_dataset], self.args, self.teachers)
        checkpoint, step = self.checkpoint.begin(resume_from_checkpoint)
        self.controller.begin(step)
        if checkpoint is None:
            self.controller.record_external(self._external_rows, self.task_sets)
        result = super().train(None if checkpoint is None else str(checkpoint), trial, ignore_keys_for_eval)
        self.controller.finish(self.checkpoint.final_step(self.state), self.evaluate)
        return result

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate every task on its own set, or one set; while training, the phases move by the former.

        Callbacks get one ``on_evaluate``, with the metrics of all sets.

        Args:
            eval_dataset: Task -> raw `datasets.Dataset`; or one raw set, whose columns tell its task; or the name of a
                set of the constructor. Default: all of them.
            ignore_keys: As upstream.
            metric_key_prefix: As upstream; ``test`` for a test split.

        Returns:
            ``<prefix>_<task>_<metric>``, ``<prefix>_<task>_loss`` (the supervised one), and ``<prefix>_average``: see
            `TaskEvaluator.average`. For one set ``<prefix>_<metric>``.
        """
        self.multi_task_loss.finite.flush(self.accelerator)
        if isinstance(eval_dataset, str):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is not None and not isinstance(eval_dataset, Mapping):
            # The parent keeps persistent workers by name, with one name for all sets that it is given.
            rows = self.task_sets.encode_one(eval_dataset, split=metric_key_prefix)
            with replaced_fields(self.args, dataloader_persistent_workers=False):
                return super().evaluate(rows, ignore_keys, metric_key_prefix)
        sets = self.eval_dataset
        if eval_dataset is not None:
            sets = eval_dataset = self.task_sets.encode(eval_dataset, split=metric_key_prefix)
            self.task_sets.warn_truncated({metric_key_prefix: sets})
        monitored = self.task_sets.monitored(sets)
        # The parent calls it for each set, where early stopping would count a metric twice or miss it.
        with replaced_fields(self.callback_handler, on_evaluate=lambda args, state, control, metrics: control):
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        average = f"{metric_key_prefix}_average"
        metrics[average] = self.evaluator.average(metrics, metric_key_prefix, monitored)
        self.log({average: metrics[average]})
        if self.is_in_train and eval_dataset is None:
            # Ranks may differ in the last digit; what follows must not depend on it.
            metrics = broadcast_from_main(metrics)
            self._observe(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _observe(self, metrics: dict[str, float]) -> None:
        """Let the controller act on an evaluation, show its outcome, and end the run if it is over."""
        if not self.controller.observe(self.state.global_step, self.state.epoch, metrics):
            return
        if self.is_world_process_zero():
            self._table.show(self.schedule.report(), self.state.epoch)
        if self.schedule.finished:
            self.control.should_training_stop = True
            # As at the end of the budget: the last weights may be the best.
            self.control.should_save |= self.args.save_strategy == SaveStrategy.STEPS

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run the model over one set, as upstream; the metrics are those of its task."""
        with replaced_fields(self, compute_loss=self.evaluator.step):
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        dataset: Any = dataloader.dataset
        return self.evaluator.score(dataset, output, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput | dict[str, PredictionOutput]:
        """Predict, as upstream: logits, labels and metrics of one set, or of each set of a dictionary.

        Args:
            test_dataset: Task -> raw `datasets.Dataset`, with or without labels; or one such set, whose columns tell
                its task.
            ignore_keys: As upstream.
            metric_key_prefix: As upstream; the name of a set of a dictionary follows it.

        Returns:
            ``predictions`` are logits ``[N, ...]``; labels and metrics are there if the rows have labels.
        """
        if isinstance(test_dataset, Mapping):
            sets = self.task_sets.encode(test_dataset, needs_labels=False, split=metric_key_prefix)
            return {name: self.predict(rows, ignore_keys, f"{metric_key_prefix}_{name}") for name, rows in sets.items()}
        rows = self.task_sets.encode_one(test_dataset, needs_labels=False, split=metric_key_prefix)
        with replaced_fields(self.args, dataloader_persistent_workers=False):
            output = super().predict(rows, ignore_keys, metric_key_prefix)
        return output._replace(label_ids=self.evaluator.label_ids(rows, output.predictions))

    def iterate_logits(self, dataset: TaskDataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the model over the rows of one set; see `iterate_over_ranks`."""
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        return iterate_over_ranks(model, dataset, self.data_collator, self.args, self.accelerator)

    def report(self) -> dict[str, Any]:
        """Return the content of ``convergence.json``."""
        return self.controller.report()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as upstream, with our state as the last file, and older checkpoints deleted only after it."""
        output_dir = self.args.output_dir
        folder = Path(output_dir, f"checkpoint-{self.state.global_step}")
        self.checkpoint.prepare(folder, self.state)
        with replaced_fields(self.args, save_total_limit=None):
            super()._save_checkpoint(model, trial)
        self.checkpoint.complete(folder)
        if self.args.should_save:
            rotate_checkpoints(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as upstream, without the pickled arguments, and with merged low-rank layers except in checkpoints."""
        folder = Path(output_dir or self.args.output_dir)
        merges = self.model.config.lora is not None and not folder.name.startswith("checkpoint-")
        # Before the parent, which empties the dictionary; of a sharded model only a rank that saves has the weights.
        merged = merged_copy(self.model, state_dict) if merges and self.args.should_save else None
        with savable(self.model):
            super()._save(output_dir, state_dict)
            if merged is not None:
                with savable(merged):
                    merged.save_pretrained(folder)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write ``README.md`` and the plots that it shows, from what the run left. Arguments as upstream."""
        if self.is_world_process_zero():
            publish(
                self.model,
                self.args,
                self.report(),
                self.state.log_history,
                data=self.data_sources,
                sets={"train": self.encoded_train, "validation": self.eval_dataset},
                # Upstream gives the last part of the repository's name, which would not load.
                model_name=self.hub_model_id or model_name,
                metadata={
                    **{"language": language, "license": license, "tags": tags, "base_model": finetuned_from},
                    **{"pipeline_tag": tasks, "datasets": dataset_tags or dataset, "dataset_args": dataset_args},
                },
            )
