"""The Trainer for bundles of tasks: joins data, model, phases and teachers at the Trainer's own seams."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, TrainerCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import (
    BestRun,
    HPSearchBackend,
    HubStrategy,
    SaveStrategy,
    TrainOutput,
    default_hp_space_optuna,
)
from transformers.utils import logging

from ..convergence.actions import ACTIONS, PHASES
from ..convergence.recording import TeacherError
from ..convergence.schedule import Event
from ..convergence.teacher import TeacherStore
from ..data.collating import MultiTaskCollator
from ..data.decoding import is_constant, references
from ..data.mixing import EncodedTask, MixingSampler, TaskMixture
from ..data.unlabelled import check_unlabelled, is_unlabelled, with_placeholders
from ..metrics import check_metric
from ..model.configuration_multitask import ConfigurationError, TaskConfig
from ..model.freezing import check_learns, what_learns
from ..model.modeling_multitask import MultiTaskModel
from ..significance import paired_standard_error
from .arguments import AsyncMTLTrainingArguments
from .batch_loss import BatchLoss
from .callbacks import ConvergenceCallback, TableCallback
from .checkpoints import (
    TEACHERS_FOLDER,
    adopt_best,
    checkpoint_step,
    link_best,
    write_whole,
)
from .checks import (
    check_best_metric,
    check_own_metrics,
    check_same_teachers,
    check_sets,
    check_sharding,
    check_task_settings,
    check_tokenizer,
    check_unlabelled_tasks,
    checked_model,
)
from .evaluating import PerTaskTrainer
from .external_teachers import load_external_teacher
from .phases import new_schedule
from .publishing import publish
from .ranks import (
    agreed,
    check_files_reach,
    gather_examples,
    newest_checkpoint,
    share_rng_states,
)
from .resuming import check_checkpoint, placement
from .searching import average, check_model_init, check_new_model, check_search, run_name, trial_settings
from .teachers import Teachers
from .weights import load_weights, present_weights, savable, whole_weights

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

logger = logging.get_logger(__name__)


class AsyncMTLTrainer(PerTaskTrainer):
    """A `transformers.Trainer` for bundles of tasks with asynchronous convergence.

    The method is that of Lu et al., "Asynchronous Convergence in Multi-Task Learning via Knowledge Distillation from
    Converged Tasks", NAACL 2022 Industry Track.

    Differs from its parent in what it takes: ``model`` is a `MultiTaskModel`; ``args`` are `AsyncMTLTrainingArguments`;
    ``train_dataset`` is a dictionary of raw `datasets.Dataset`, one a task; ``eval_dataset`` the same, and may hold
    further sets named ``<task>_<suffix>``, which are reported but not monitored; ``processing_class`` is a fast
    tokenizer; ``compute_metrics`` is a dictionary: task -> a function of an `EvalPrediction` (logits, and labels as
    `hf_async_mtl.data.decoding.label_array` gives them), whose values are reported beside the task's own metrics;
    ``model_init`` makes models of the same tasks. The rest is as upstream.

    Raises:
        ConfigurationError: Something does not fit, found before training.
    """

    # Our loss is normalised over the whole optimizer step; the Trainer must not divide it again.
    loss_is_scaled_for_ga = True

    model: MultiTaskModel
    args: AsyncMTLTrainingArguments
    model_init: Callable[..., PreTrainedModel] | None
    _space: Callable[[Any], Mapping[str, Any]]

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
            check_model_init(model, optimizers)
            self.model_init = model_init
            # As in `train`, which makes another.
            set_seed(args.seed)
            model = super().call_model_init()
        model = checked_model(model, "`model` must be" if model_init is None else "`model_init` must return")
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
            check_learns(model.encoder, model.heads)
        check_task_settings(self.tasks, args)
        self.args = args
        unlabelled = [
            name
            for name, rows in (train_dataset or {}).items()
            if name in args.distillation_config.teachers and is_unlabelled(rows, self.tasks[name])
        ]
        check_unlabelled_tasks(unlabelled, args.distillation_config)
        for name in unlabelled:
            check_unlabelled(self.tasks[name])
        if train_dataset is not None:
            places = {name: with_placeholders(train_dataset[name], self.tasks[name]) for name in unlabelled}
            train_dataset = {**train_dataset, **places}
        encoded_train = None if train_dataset is None else self._encode(train_dataset)
        encoded_eval = None if eval_dataset is None else self._encode(eval_dataset)
        for task in self.tasks.values():
            for metric in task.metrics or ():
                check_metric(metric, task)
        self._tell_truncated(encoded_train or {}, encoded_eval or {})
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
            train_dataset=None if encoded_train is None else TaskMixture(list(encoded_train.values())),
            # Without a set the parent refuses an `eval_strategy`; a trainer that evaluates explicit sets has none.
            eval_dataset=encoded_eval or {},
            processing_class=processing_class,
            compute_metrics=self._compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        check_sharding(self.accelerator)
        self.model_init = model_init
        self.encoded_train: dict[str, EncodedTask] = encoded_train or {}
        self.label_names = ["labels"]
        self._run_dir = Path(args.output_dir)
        distillation = args.distillation_config
        self.teachers = Teachers(self._run_dir / TEACHERS_FOLDER, distillation, self.encoded_train, unlabelled)
        self._raw_train = {name: rows for name, rows in (train_dataset or {}).items() if name in distillation.teachers}
        self.batch_loss = BatchLoss(
            model, args, self.schedule, self.teachers, self.accelerator, draws=sum(self._sizes.values())
        )
        self._convergence = ConvergenceCallback(self.schedule, self._run_state, self._roll_back, self._may_update)
        self.add_callback(self._convergence)
        # Its dictionaries would bury the tables; a notebook's own bar stays.
        self.remove_callback(PrinterCallback)
        for callback in [c for c in self.callback_handler.callbacks if type(c).__name__ == "ProgressCallback"]:
            self.remove_callback(callback)
        self._display = TableCallback()
        self.add_callback(self._display)
        self._answers = {}
        # For the card: task -> its `data` section, of which what is the Hub's is published.
        self.data_sources: dict[str, Mapping[str, Any]] = {}

    # -- losses -------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: torch.utils.data.Dataset | None = None) -> MixingSampler:
        mixing = self.args.mixing_config
        sizes = [len(task) for task in self.encoded_train.values()]
        ranks = self.args.world_size
        multiple = 1 if ranks == 1 else ranks * self.args.per_device_train_batch_size
        self._sampler = MixingSampler(sizes, self.args.seed, mixing.strategy, mixing.temperature, multiple)
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
        r"""The loss of a packed batch: :math:`\frac{1}{N} \sum_i w_{task(i)} \, l_i`.

        :math:`l_i` is the supervised loss of example i while its task learns, and its distillation loss once it distils
        (mixed with a share of the former, where one is set). N counts the examples of the whole optimizer step, so that
        batch size, accumulation and processes can be traded freely. (Not with ``keep_gradient_norm``, whose weight is
        that of a micro-batch on its rank.)

        With a balancing method the tasks that learn from labels are weighed by it, micro-batch by micro-batch; see
        `hf_async_mtl.training.combining.Parts`. A method on gradients adds to ``.grad`` itself: the loss that is
        returned then has no graph behind it.
        """
        state = self.state
        loss, outputs = self.batch_loss(model, inputs, num_items_in_batch, state.global_step, state.max_steps)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each task's training loss, phase (its place in `PHASES`) and balancing weight beside the sum."""
        if "loss" in logs:
            logs = {**logs, **self.batch_loss.sums.take(self.accelerator)}
            logs |= {f"phase/{name}": float(PHASES.index(phase)) for name, phase in self.schedule.phases.items()}
            if self.batch_loss.balancer is not None:
                latest, phases = self.batch_loss.balancer.latest, self.schedule.phases
                logs |= {f"weight/{name}": weight for name, weight in latest.items() if phases[name] == "learning"}
            if self.batch_loss.finite.skipped:
                logs["skipped_steps"] = self.batch_loss.finite.skipped
        super().log(logs, start_time)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the whole gradient, which is looked at before the update is made."""
        self._gradient_norm = super()._get_grad_norm(model, grad_norm)
        return self._gradient_norm

    def _may_update(self) -> bool:
        return self.batch_loss.finite.allows(self.accelerator, self.state.global_step, float(self._gradient_norm))

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

    # -- convergence --------------------------------------------------------------------------------------------------

    def _evaluate(
        self,
        trial: optuna.Trial | dict[str, Any] | None,
        ignore_keys_for_eval: list[str] | None,
        skip_scheduler: bool = False,
    ) -> dict[str, float]:
        """An evaluation while training: the phases move here, before the checkpoint of the same step is written."""
        # All compute the same, but for the last digit where machines differ; what follows must not hang on it.
        metrics = agreed(super()._evaluate(None, ignore_keys_for_eval, skip_scheduler))
        # `eval_on_start` of a resumed run: the phases know of it.
        if not skip_scheduler or self.state.global_step == 0:
            self._observe(metrics)
        # Last, for it may end the trial: what was evaluated is then in its report.
        self._report_to_hp_search(trial, self.state.global_step, metrics)
        return metrics

    def _observe(self, metrics: dict[str, float]) -> None:
        """Move the phases by an evaluation, and do what follows from it."""
        step = self.state.global_step
        standard_errors, constant = agreed((self._standard_errors(), self._constant_tasks()))
        events = self.schedule.observe(
            step,
            {name: metrics[f"eval_{name}_{task.monitored}"] for name, task in self.tasks.items()},
            losses={name: metrics[f"eval_{name}_loss"] for name in self.tasks},
            standard_errors=standard_errors,
            epoch=self.state.epoch,
            constant=constant,
        )
        # All have read the reference that the first now replaces.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for name, reference_step in self.schedule.noise_references.items():
                if reference_step == step:
                    self.teachers.store.save_answers(name, step, self._answers[name])
        if self.schedule.improved(step):
            self._save_snapshot(step)
        for event in events:
            if event.event in ("converged", "teacher_renewed") and self.schedule.phases[event.task] == "distilling":
                self._record_teacher(event)
        if self.args.should_save:
            self.teachers.store.keep_snapshots(self.schedule.snapshots_needed() | self._rolls_back_to())
        self._write_report()
        if self.is_world_process_zero():
            self._display.show(self.schedule.report(), self.state.epoch)
        if self.schedule.finished:
            self.control.should_training_stop = True
            # As at the end of the budget: the last weights may be the best.
            if self.args.save_strategy == SaveStrategy.STEPS:
                self.control.should_save = True

    def _constant_tasks(self) -> list[str]:
        """The tasks that gave every validation example the same answer."""
        return [name for name, task in self.tasks.items() if is_constant(task.type, self._answers[name])]

    def _standard_errors(self) -> dict[str, float]:
        """Of the difference between this evaluation and the one that each noise-aware criterion compares it with."""
        found = {}
        for name, reference_step in self.schedule.noise_references.items():
            if reference_step is None:
                continue
            task, rows = self.tasks[name], self.eval_dataset[name].rows
            before = self.teachers.store.load_answers(name, reference_step)
            found[name] = paired_standard_error(
                task.monitored, task.type, before, self._answers[name], references(task, rows), task.labels
            )
        return found

    def _save_snapshot(self, step: int) -> None:
        weights = whole_weights(self.model, keep=self.args.should_save)
        if self.args.should_save:
            self.teachers.store.save_snapshot(step, weights)
        self.accelerator.wait_for_everyone()

    def _record_teacher(self, event: Event) -> None:
        """Run a task's best weights over its training set once, and put the present weights back."""
        steps = self.schedule.teacher_steps(event.task)
        if event.teacher_step == self.schedule.report()["tasks"][event.task]["history"][0][0]:
            logger.warning(
                f"Task {event.task!r} has converged without an improvement on its first evaluation: that is its "
                "teacher. If it had not begun to learn by then, raise its `convergence.min_steps` or `patience`."
            )
        with ExitStack() as stack:
            if steps != [event.step]:
                teacher, present = self.teachers.snapshot(steps), present_weights(self.model)
                stack.callback(load_weights, self.model, present)
                load_weights(self.model, teacher)
            with self._writing(event.task, steps[0]) as put:
                self.record(self.encoded_train[event.task], put)

    @contextmanager
    def _writing(self, task: str, step: int) -> Iterator[Callable[[Tensor, Tensor], None]]:
        """Write a teacher's logits where files are written, and let the task learn from them on all processes."""
        if self.args.should_save:
            with self.teachers.writer(task, step) as writer:
                yield writer.put
        else:
            yield lambda example_ids, logits: None
        self.accelerator.wait_for_everyone()
        self.teachers.open([task])
        self.teachers.judge(task)

    def _record_external_teachers(self) -> None:
        """Ask the teachers from outside, and let them go; a resumed run has what they said, and needs them no more."""
        sources = self.args.distillation_config.teachers
        # All are looked at before the first is asked.
        teachers = {
            name: load_external_teacher(name, self.tasks[name], sources[name], rows, self._tokenizer)
            for name, rows in self._raw_train.items()
        }
        ranks = self.accelerator
        try:
            for name, teacher in teachers.items():
                length, batch = self.tasks[name].max_length or self._max_length, self.args.per_device_eval_batch_size
                with self._writing(name, step=0) as put:
                    for answers in teacher.answers(
                        self._raw_train[name], length, batch, self.args.device, ranks.process_index, ranks.num_processes
                    ):
                        put(*gather_examples(ranks, *answers))
        except ConfigurationError:
            if self.args.should_save:
                self.teachers.store.clear()
            raise

    def _rolls_back_to(self) -> set[int]:
        """The step that the weights return to before the next one is taken, where they do."""
        return {
            event.teacher_step
            for event in self.schedule.events
            if event.event == "rolled_back" and event.step == self.state.global_step and event.teacher_step is not None
        }

    def _roll_back(self) -> None:
        """Return to the best weights of a task, if the evaluation before this step says so.

        Not at the evaluation itself: a checkpoint of that step holds the weights that were evaluated. The optimizer's
        moments belong to weights that are left, and start anew; the learning rate's schedule goes on.
        """
        for step in self._rolls_back_to():
            load_weights(self.model, self.teachers.store.load_snapshot(step))
            self.optimizer.state.clear()

    def report(self) -> dict[str, Any]:
        """The content of ``convergence.json``: `ConvergenceSchedule.report`, and what was measured on the way.

        Each task that has a teacher has its ``teacher_quality``; ``conflicts`` is there once they have been measured.
        """
        report = self.schedule.report()
        for name, quality in self.teachers.quality.items():
            report["tasks"][name]["teacher_quality"] = dict(quality)
        if self.batch_loss.finite.skipped:
            report["skipped_steps"] = self.batch_loss.finite.skipped
        conflicts = self.batch_loss.conflicts.report()
        if any(any(row) for row in conflicts["counts"]):
            report["conflicts"] = conflicts
        return report

    def _run_state(self) -> dict[str, Any]:
        """What a checkpoint holds of this run, beside weights and files."""
        return {
            "schedule": self.schedule.state_dict(),
            "teachers": self.teachers.state_dict(),
            "batch_loss": self.batch_loss.state_dict(),
            "placement": placement(self.args),
            "learns": what_learns(self.batch_loss.model),
        }

    def _write_report(self) -> None:
        if not self.is_world_process_zero():
            return
        report = json.dumps(self.report(), indent=2, allow_nan=False)
        write_whole(self._run_dir / "convergence.json", report + "\n")

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
        if self.hp_search_backend is None or trial is None:
            return self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        with trial_settings(self.args, self._space(trial)):
            try:
                result = self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)
            finally:
                # Where it was pruned, nobody else does.
                self.is_in_train = False
                self.teachers.store.clear()
            # Upstream judges by the last evaluation, whichever weights the run ends with.
            self.objective = self.compute_objective(self._final_results())
        return result

    def _train(
        self,
        resume_from_checkpoint: str | bool | None,
        trial: optuna.Trial | dict[str, Any] | None,
        ignore_keys_for_eval: list[str] | None,
    ) -> TrainOutput:
        self._begin(trial)
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

    def _begin(self, trial: optuna.Trial | dict[str, Any] | None) -> None:
        """Take up the settings as they are now: a trial's, or what was set since the last run."""
        args = self.args
        check_task_settings(self.tasks, args)
        check_unlabelled_tasks(self.teachers.unlabelled, args.distillation_config)
        check_same_teachers(self._raw_train, args.distillation_config)
        self._run_dir = Path(self._get_output_dir(trial))
        # Upstream's is the last trial's, once there was one.
        self._train_batch_size = args.train_batch_size
        self.schedule = self._convergence.schedule = new_schedule(self.tasks, args, self._sizes)
        self.teachers.store = TeacherStore(self._run_dir / TEACHERS_FOLDER)
        self.teachers.config = args.distillation_config
        self.teachers.begin()

    def _hp_search_setup(self, trial: optuna.Trial | dict[str, Any] | None) -> None:
        """Set up as upstream, which does so for every run; its model and its accelerator are there only now."""
        super()._hp_search_setup(trial)
        self.batch_loss.begin(self.model, self.schedule, self.accelerator)

    def call_model_init(self, trial: optuna.Trial | dict[str, Any] | None = None) -> MultiTaskModel:
        """A new model from ``model_init``, for the next run.

        Raises:
            ConfigurationError: It is no new model, or one that the data were not prepared for.
        """
        model = checked_model(super().call_model_init(trial), "`model_init` must return")
        check_new_model(model, self.batch_loss.model)
        check_tokenizer(self._tokenizer, model.config.encoder_config.vocab_size)
        model.probe_packing()
        # The run must not hang on how many random numbers it took: one that was given a model took none.
        set_seed(self.args.seed)
        return model

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
        """Search with Optuna, as upstream, for the settings with the greatest ``eval_average``.

        Each trial is a run of its own, in ``<output_dir>/run-<number>``: model, phases and teachers are new, and what
        it has set is taken back when it ends. It is judged by the weights that it ends with.

        Args:
            hp_space: Trial -> what `AsyncMTLTrainingArguments.update` takes. Default: upstream's.
            compute_objective: Default: ``eval_average``, which is always maximized.
            n_trials: As upstream.
            direction: As upstream, where ``compute_objective`` is given.
            backend: ``optuna``.
            hp_name: As upstream. Default: ``run-<number>``, so that a tracker keeps the trials apart too.
            **kwargs: As upstream, for Optuna.

        Raises:
            ConfigurationError: The trainer has no ``model_init``, or a setting of a trial does not fit.
        """
        check_search(self.args, self.model_init, backend, kwargs)
        if compute_objective is None:
            compute_objective, direction = average, "maximize"
        self._space = default_hp_space_optuna if hp_space is None else hp_space
        try:
            # `train` has set it all before upstream asks.
            return super().hyperparameter_search(
                lambda trial: {}, compute_objective, n_trials, direction, "optuna", hp_name or run_name, **kwargs
            )
        finally:
            self.hp_search_backend = None

    def _check_room(self) -> None:
        actions = {name: ACTIONS[self.args.convergence_of(name).on_convergence] for name in self.tasks}
        try:
            self.teachers.check_room(
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

    def _load_callback_state(self) -> None:
        """Restore the phases, whatever is asked of the other callbacks."""
        # Upstream restores all callbacks or none, and makes new objects, which would not be the ones that we hold.
        name = ConvergenceCallback.__name__
        saved = self.state.stateful_callbacks.pop(name)
        super()._load_callback_state()
        self.state.stateful_callbacks[name] = saved
        attributes = saved["attributes"]
        self.schedule.load_state_dict(attributes["schedule"])
        self.teachers.load_state_dict(attributes["teachers"])
        self.batch_loss.load_state_dict(attributes["batch_loss"])
        self.teachers.open(name for name, phase in self.schedule.phases.items() if phase == "distilling")
        if self._adopted_best is not None:
            self.state.best_model_checkpoint = str(self._adopted_best)

    def _save_checkpoint(self, model: nn.Module, trial: optuna.Trial | dict[str, Any] | None) -> None:
        """Write a checkpoint with all that it needs elsewhere: teachers, and the best weights so far."""
        if self.args.should_save:
            output_dir = Path(self._get_output_dir(trial))
            checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
            # An earlier try's. While it is written over it is no whole checkpoint; and weights that are written in
            # place would change under the checkpoints that are linked to them.
            for path in [checkpoint / TRAINER_STATE_NAME, *checkpoint.glob("*.safetensors")]:
                path.unlink(missing_ok=True)
            # Before the rest: the Trainer's state is written last, and makes the checkpoint whole.
            self.teachers.store.link_into(checkpoint / TEACHERS_FOLDER)
            best = self._best_checkpoint()
            if best is not None and self.state.best_global_step != self.state.global_step:
                link_best(best, checkpoint)
        super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push in the middle of a run, as upstream, the modelling code and a card too: without them nothing loads."""
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            for code in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(code, self.args.output_dir)
            self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random states of all processes before the Trainer's state makes the checkpoint whole."""
        super()._save_rng_state(output_dir)
        share_rng_states(Path(output_dir), self.args)

    def _best_checkpoint(self) -> Path | None:
        """The checkpoint that would be loaded at the end. A better evaluation may have come without a checkpoint."""
        best = self.state.best_model_checkpoint
        return Path(best) if best is not None and self.args.load_best_model_at_end else None

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
        """Write ``README.md`` and the plots that it shows, from what the run left. Arguments as upstream.

        The Trainer's own card has no result at all where there are several evaluation sets.
        """
        if not self.is_world_process_zero():
            return
        splits = {"train": self.encoded_train, "validation": self.eval_dataset}
        publish(
            self.model,
            self.args,
            self.report(),
            # Upstream gives the last part of the repository's name, which would not load.
            model_name=self.hub_model_id or model_name,
            results=self._final_results(),
            finetuned_from=finetuned_from,
            license=license,
            language=language,
            metadata={
                "tags": tags,
                "datasets": dataset_tags or dataset,
                "pipeline_tag": tasks,
                "dataset_args": dataset_args,
            },
            data=self.data_sources,
            rows={
                name: {split: len(sets[name]) for split, sets in splits.items() if name in sets} for name in self.tasks
            },
        )

    def _final_results(self) -> dict[str, float]:
        """The validation metrics of the weights that the run ended with, as they were logged."""
        step = self.schedule.report().get("final", {}).get("step")
        logged = [entry for entry in self.state.log_history if entry["step"] == step]
        return {key: value for entry in logged for key, value in entry.items() if key.startswith("eval_")}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as upstream, without the pickled arguments: they hold local paths and the Hub's token."""
        with savable(self.model):
            super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)
