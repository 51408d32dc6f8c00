"""Check the arguments of the trainer before anything is written, and tokenize its raw sets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from transformers import EvalPrediction

from ..building.build import check_encoder
from ..building.freezing import check_trainable
from ..building.lora import freeze_base_weights
from ..convergence.actions import ACTIONS
from ..data.collator import MultiTaskCollator
from ..data.dataset import TaskDataset
from ..data.loading import is_unlabeled
from ..distillation.config import DistillationConfig
from ..distillation.external import with_placeholders
from ..distillation.logits import TeacherError
from ..distillation.teachers import Teachers
from ..metrics import METRICS, check_metric
from ..modeling.configuration_multitask import TaskConfig
from ..modeling.modeling_multitask import MultiTaskModel
from ..tasks.checks import check_loss
from ..tasks.loss import LossConfig
from ..tasks.names import check_task_names
from ..tasks.registry import TASK_TYPES
from ..validation import ConfigurationError
from .arguments import AsyncMTLTrainingArguments
from .task_sets import TaskSets, task_of

Metrics = Callable[[EvalPrediction], dict[str, float]]


@dataclass(frozen=True)
class TrainerInputs:
    """What a trainer works with; ``external_rows`` are the raw training rows of tasks with an external teacher."""

    model: MultiTaskModel
    args: AsyncMTLTrainingArguments
    task_sets: TaskSets
    own_metrics: Mapping[str, Metrics]
    train: dict[str, TaskDataset]
    validation: dict[str, TaskDataset]
    external_rows: dict[str, Dataset]

    def collator(self) -> MultiTaskCollator:
        """Return the collator of the model's batches."""
        tasks = self.task_sets.tasks
        longest = max(map(self.task_sets.length_of, tasks))
        types = {name: task.type for name, task in tasks.items()}
        padding = self.task_sets.tokenizer.pad_token_id
        return MultiTaskCollator(types, longest, padding, constant_shapes=self.args.torch_compile)


def prepare_inputs(
    model: Any,
    args: Any,
    tokenizer: Any,
    train: Mapping[str, Dataset] | None,
    evaluation: Mapping[str, Dataset] | None,
    compute_metrics: Any,
    unsupported: Mapping[str, Any],
) -> TrainerInputs:
    """Check what a trainer is given, and encode its sets."""
    if args is None:
        args = AsyncMTLTrainingArguments("tmp_trainer")
    if not isinstance(args, AsyncMTLTrainingArguments):
        raise ConfigurationError(f"`args` must be AsyncMTLTrainingArguments; found {type(args).__name__}.")
    if not isinstance(model, MultiTaskModel):
        raise ConfigurationError(
            f"`model` must be a MultiTaskModel; found {type(model).__name__}. Make one with "
            "`MultiTaskModel.from_encoder(name, tasks)`."
        )
    refuse_arguments(unsupported)
    tasks = model.config.task_configs
    own_metrics = check_own_metrics(compute_metrics, tasks)
    tokenizer = check_tokenizer(tokenizer, model.config.encoder_config.vocab_size)
    check_sets(tasks, train, evaluation)
    if train is not None:
        if model.config.lora is not None:
            freeze_base_weights(model.encoder)
        check_trainable(model.encoder, model.heads)
        check_encoder(model)
    check_task_settings(tasks, args)
    config = args.distillation_config
    task_sets = TaskSets(tasks, tokenizer, model.config.max_length, args)
    labeled, evaluation = task_sets.labeled(train or {}, evaluation or {})
    rows = with_labels(labeled, tasks, config)
    encoded, validation = task_sets.encode(rows, split="train"), task_sets.encode(evaluation)
    for task in tasks.values():
        for metric in task.metrics or ():
            check_metric(metric, task)
    task_sets.warn_truncated({"training": encoded, "validation": validation})
    if validation:
        sets = {name: dataset.task for name, dataset in validation.items()}
        check_best_metric(sets, args, own_metrics)
    set_losses(model, args, encoded)
    model.probe_packing()
    external_rows = {name: own for name, own in rows.items() if name in config.teachers}
    return TrainerInputs(model, args, task_sets, own_metrics, encoded, validation, external_rows)


def refuse_arguments(given: Mapping[str, Any]) -> None:
    """Raise a `ConfigurationError` for an argument of the Trainer that is given and has no effect here."""
    for name, value in given.items():
        if value is None:
            continue
        if name == "model_init":
            raise ConfigurationError(
                "`model_init` is not supported: give the `model` itself. To search for hyperparameters, build a "
                "trainer per trial, as scripts/examples/optuna_search.py does with Optuna."
            )
        raise ConfigurationError(f"`{name}` has no effect here: the tasks define it. Remove the argument.")


def check_sets(
    tasks: Mapping[str, TaskConfig], train: Mapping[str, Dataset] | None, evaluation: Mapping[str, Dataset] | None
) -> None:
    """Check that every task has its raw rows, and that no two sets would be reported under one name."""
    names = ", ".join(tasks)
    for split, sets in (("train_dataset", train), ("eval_dataset", evaluation)):
        if sets is None:
            continue
        if not isinstance(sets, Mapping) or not all(isinstance(rows, Dataset) for rows in sets.values()):
            if isinstance(sets, Mapping) and any(isinstance(rows, IterableDataset) for rows in sets.values()):
                raise ConfigurationError(
                    f"`{split}` must have rows that can be counted and read in any order; found {_kinds(sets)}. Write "
                    "the part of a stream to train on to disk with `Dataset.from_generator(partial(iter, "
                    "stream.take(100_000)))`, as `scripts/examples/streaming.py` does."
                )
            raise ConfigurationError(
                f"`{split}` must be a dictionary: task -> datasets.Dataset; found {_kinds(sets)}. Load one split of "
                "each task; name a table of several tasks for each of them."
            )
        missing = [name for name in tasks if name not in sets]
        if missing:
            raise ConfigurationError(f"`{split}` must have a set for each of {names}; {missing[0]!r} has none.")
        for name, rows in sets.items():
            if split == "train_dataset" and name not in tasks:
                raise ConfigurationError(f"`{split}` must name tasks of the model ({names}); found {name!r}.")
            if len(rows) == 0:
                raise ConfigurationError(f"`{split}` of task {name!r} must have rows; found none.")
    if evaluation is not None:
        check_task_names({name: tasks[task_of(name, tasks)].metrics or () for name in evaluation})


def check_tokenizer(tokenizer: Any, embeddings: int) -> Any:
    """Return a tokenizer if it is the encoder's, which knows ``embeddings`` tokens."""
    if tokenizer is None:
        raise ConfigurationError("`processing_class` must be the encoder's tokenizer; found None.")
    if tokenizer.pad_token_id is None:
        raise ConfigurationError(
            f"The tokenizer must have a pad token; that of {tokenizer.name_or_path!r} has none. Set one, as in "
            "`tokenizer.pad_token = tokenizer.eos_token`, and for a configuration file save it with "
            "`tokenizer.save_pretrained(<folder of the encoder>)`."
        )
    tokens = len(tokenizer)
    if tokens <= len(tokenizer.all_special_tokens):
        raise ConfigurationError(
            f"The tokenizer must know words; that of {tokenizer.name_or_path!r} knows only {tokens} special tokens. "
            "Are the encoder's tokenizer files (tokenizer.json) missing?"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= embeddings:
        raise ConfigurationError(
            f"The tokenizer must be the encoder's; that of {tokenizer.name_or_path!r} has ids up to {largest}, and the "
            f"encoder knows {embeddings} tokens. Give the tokenizer that the encoder was trained with."
        )
    return tokenizer


def check_training(
    tasks: Collection[str], sets: Collection[Any], args: AsyncMTLTrainingArguments, teachers: Teachers
) -> None:
    """Check that no set is missing, and that the disk can hold the logits of all teachers that may be recorded."""
    if not all(sets):
        raise ConfigurationError("Training needs `train_dataset` and `eval_dataset`; one of them was not given.")
    recorded = [
        name
        for name in tasks
        if ACTIONS[args.convergence_of(name).on_convergence].records_teacher
        or name in args.distillation_config.teachers
    ]
    try:
        teachers.check_disk_space(recorded)
    except TeacherError as error:
        raise ConfigurationError(str(error)) from None


def check_task_settings(tasks: Collection[str], args: AsyncMTLTrainingArguments) -> None:
    """Check that settings of single tasks name tasks of the model."""
    named = {
        f"{section}.{key}": args.section(section).get(key) or {}
        for section, key in (("convergence", "tasks"), ("balancing", "weights"), ("distillation", "teachers"))
    }
    for path, names in {**named, "losses": args.loss_configs}.items():
        for name in names:
            if name not in tasks:
                raise ConfigurationError(f"`{path}` must name tasks of the model ({', '.join(tasks)}); found {name!r}.")
    for name in tasks:
        action = args.convergence_of(name).on_convergence
        if ACTIONS[action].rolls_back and args.sharded_by == "DeepSpeed":
            raise ConfigurationError(
                f"`on_convergence: {action}` of task {name!r} cannot be used with DeepSpeed, whose optimizer keeps "
                "weights of its own. Use distill or stop."
            )


def with_labels(
    train: Mapping[str, Dataset], tasks: Mapping[str, TaskConfig], config: DistillationConfig
) -> dict[str, Dataset]:
    """Return raw training rows, with placeholders for labels where a task has an external teacher and no labels."""
    names = [name for name in config.teachers if name in train and is_unlabeled(train[name], tasks[name])]
    if names and config.hard_label_weight:
        raise ConfigurationError(
            f"`distillation.hard_label_weight` needs labels, and the training rows of {', '.join(names)} have none. "
            "Set it to 0, or give the rows their labels."
        )
    for name in names:
        TASK_TYPES[tasks[name].type].check_unlabeled(tasks[name])
    return {**train, **{name: with_placeholders(train[name], tasks[name]) for name in names}}


def set_losses(model: MultiTaskModel, args: AsyncMTLTrainingArguments, train: Mapping[str, TaskDataset]) -> None:
    """Check the options of the tasks' losses, and give them to the heads if there are rows to train on."""
    for name, task in model.config.task_configs.items():
        loss = args.loss_configs.get(name, LossConfig())
        check_loss(loss, name, task)
        head: Any = model.heads[name]
        head.set_loss(TASK_TYPES[task.type].loss_arguments(task, loss, train[name].rows) if name in train else {})


def check_sharding(accelerator: Accelerator) -> None:
    """Check that sharded weights can be gathered: for checkpoints, snapshots and teachers."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise ConfigurationError(
            f"FSDP must be of version 2; found {plugin.fsdp_version}. Set `fsdp_version: 2` in the configuration of "
            "accelerate; scripts/configs/launch/fsdp2.yaml is one."
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ConfigurationError(
            "FSDP must save full weights, which a pushed model and a teacher need. Set "
            "`fsdp_state_dict_type: FULL_STATE_DICT` in the configuration of accelerate; "
            f"found {plugin.state_dict_type}."
        )


def check_own_metrics(functions: Any, tasks: Collection[str]) -> dict[str, Callable[[EvalPrediction], dict]]:
    """Check ``compute_metrics``: task -> function, for some tasks or none; return it."""
    if functions is None:
        return {}
    if not isinstance(functions, Mapping) or not all(callable(function) for function in functions.values()):
        raise ConfigurationError(
            "`compute_metrics` must be a dictionary: task -> function of an EvalPrediction; each task has its own "
            f"labels; found {type(functions).__name__}. Write {{name: function}}."
        )
    for name in functions:
        if name not in tasks:
            raise ConfigurationError(f"`compute_metrics` must name tasks ({', '.join(tasks)}); found {name!r}.")
    return dict(functions)


def check_best_metric(
    sets: Mapping[str, TaskConfig], args: AsyncMTLTrainingArguments, own: Collection[str] = ()
) -> None:
    """Check that an evaluation gives ``metric_for_best_model``, and set its direction if the metric is built in.

    A learning rate that follows the metric gets its direction too. Tasks in ``own`` have metrics that are not known.
    """
    if args.metric_for_best_model is None:
        return
    known: dict[str, str | None] = {"average": None}
    for name, task in sets.items():
        known |= {f"{name}_{key}": key for key in task.metrics or ()} | {f"{name}_loss": None}
    found = args.metric_for_best_model.removeprefix("eval_")
    metric = known.get(found)
    if metric in METRICS:
        # Upstream takes every metric but a loss to be better when greater.
        args.greater_is_better = METRICS[metric].greater_is_better
    if found not in known and not any(found.startswith(f"{name}_") for name in own):
        raise ConfigurationError(
            f"`training.metric_for_best_model` must be one of {', '.join(known)}; found {found!r}."
        )
    if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
        mode = "max" if args.greater_is_better else "min"
        args.lr_scheduler_kwargs = {"mode": mode, **(args.lr_scheduler_kwargs or {})}


def _kinds(sets: Any) -> str:
    if not isinstance(sets, Mapping):
        return type(sets).__name__
    return ", ".join(f"{name}: {type(rows).__name__}" for name, rows in sets.items())
