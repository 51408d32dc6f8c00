"""From a configuration file to a run that is ready to train: model, tokenizer, data and training arguments.

run = load_run("config.yaml", ["training.max_steps=100"])
trainer = run.trainer()
trainer.train()
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, set_seed

from .building.build import inherit_from_trained, shared_tasks
from .cli.config_file import RunConfig, load_config
from .data.loading import divide_splits, is_unlabeled, read_splits
from .data.tokenization import not_utf8
from .distillation.external import UNLOADABLE
from .metrics import check_metric
from .modeling.configuration_multitask import MultiTaskConfig, TaskConfig
from .modeling.modeling_multitask import MultiTaskModel
from .tasks.registry import TASK_TYPES
from .tasks.rows import labeled_sets
from .training.arguments import AsyncMTLTrainingArguments
from .training.trainer import AsyncMTLTrainer
from .validation import ConfigurationError


@dataclass
class Run:
    """All that a configuration file describes, loaded."""

    config: RunConfig
    args: AsyncMTLTrainingArguments
    tasks: dict[str, TaskConfig]  # with their labels
    splits: dict[str, dict[str, Dataset]]  # task -> split -> raw rows
    tokenizer: Any
    model: MultiTaskModel  # with new heads, or those of a trained model

    @property
    def train_dataset(self) -> dict[str, Dataset]:
        """The training rows of each task."""
        return {name: sets["train"] for name, sets in self.splits.items()}

    @property
    def eval_dataset(self) -> dict[str, Dataset]:
        """The validation rows of each task, and its further evaluation sets."""
        return evaluation_sets(self.splits)

    @property
    def test_dataset(self) -> dict[str, Dataset]:
        """The test rows of the tasks that have some with labels."""
        return {name: sets["test"] for name, sets in self.splits.items() if "test" in sets}

    def trainer(self, trainer_class: type[AsyncMTLTrainer] = AsyncMTLTrainer, **kwargs: Any) -> AsyncMTLTrainer:
        """Make the trainer of this run.

        Args:
            trainer_class: `AsyncMTLTrainer`, or a class of your own that inherits from it.
            **kwargs: Further arguments of the trainer, such as ``callbacks``; they replace those of the run.
        """
        sets = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        given = {"model": self.model, "args": self.args, "processing_class": self.tokenizer, **sets, **kwargs}
        trainer = trainer_class(**given)
        trainer.data_sources = {name: source.to_section() for name, source in self.config.sources.items()}
        return trainer


def load_run(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), output_dir: str | os.PathLike[str] | None = None
) -> Run:
    """Load what a configuration file describes, as ``hf-async-mtl train`` does.

    Args:
        path: The configuration file.
        overrides: ``key.path=value``, the values in YAML, as for ``--set``.
        output_dir: Folder of the run. Default: ``training.output_dir`` of the file, or ``runs/<name of the file>``.

    Raises:
        ConfigurationError: A key, a value, a file, a row or a model does not fit.
    """
    if isinstance(overrides, str):
        raise ConfigurationError(f"`overrides` must be a list of strings; found {overrides!r}. Write [{overrides!r}].")
    config = load_config(Path(path), overrides)
    return prepare_run(config, output_dir or config.output_dir or Path("runs", config.name))


def prepare_run(config: RunConfig, output_dir: str | os.PathLike[str], **arguments: Any) -> Run:
    """Load what a checked configuration describes; ``arguments`` replace training arguments of the configuration."""
    config = inherit_tasks(config)
    args = config.arguments(Path(output_dir), **arguments)
    splits, tasks = load_tasks(config)
    tokenizer = load_tokenizer(config.encoder, tasks)
    set_seed(config.seed)
    return Run(config, args, tasks, splits, tokenizer, load_encoder(config, tasks))


def inherit_tasks(config: RunConfig) -> RunConfig:
    """Return the configuration of a run that starts from a trained model; any other as it is.

    A task that the trained model has takes over its labels, and the trained model is its teacher from the first step,
    unless the task has another teacher, or none (null): then it learns from labels. The run evaluates before its first
    step, so that the report shows where each task started.
    """
    try:
        trained = AutoConfig.from_pretrained(config.encoder, trust_remote_code=False)
    except UNLOADABLE:
        # `load_encoder` raises the error, after the checks of the data.
        return config
    known = trained.task_configs if isinstance(trained, MultiTaskConfig) else {}
    kept = shared_tasks(known, config.tasks, config.model["new_heads"])
    for name in config.frozen_heads:
        if name not in kept:
            raise ConfigurationError(
                f"`tasks.{name}.head: frozen` needs a head that has been trained, and `encoder` has none for it. Start "
                "from a trained model that has the task, or train the head."
            )
    if not known:
        return config
    distillation = config.training["distillation"]
    teachers = dict.fromkeys(kept, config.encoder) | (distillation.get("teachers") or {})
    teachers = {name: source for name, source in teachers.items() if source is not None}
    further = {"distillation": {**distillation, "teachers": teachers}}
    training = {"eval_on_start": True, **config.training, **further}
    tasks = inherit_from_trained(known, config.tasks, config.model["new_heads"])
    return dataclasses.replace(config, tasks=tasks, training=training)


def load_tasks(config: RunConfig) -> tuple[dict[str, dict[str, Dataset]], dict[str, TaskConfig]]:
    """Return all raw splits, and the tasks with their labels; run every check that needs the data only."""
    splits, tasks = {}, {}
    for name, task in config.tasks.items():
        has_teacher = (config.training["distillation"].get("teachers") or {}).get(name) is not None
        read = read_splits(name, task, config.sources[name], has_teacher=has_teacher)
        # Before rows are held out: a class of theirs alone is a class of the task too.
        known = _resolved(name, task, read["train"]) if task.has_label_names else task
        splits[name] = divide_splits(name, known, read, config.sources[name], config.data_seed)
        train = splits[name]["train"]
        tasks[name] = _resolved(name, known, train)
        try:
            if is_unlabeled(train, task):
                TASK_TYPES[task.type].check_unlabeled(task)
            else:
                TASK_TYPES[task.type].check_training_labels(tasks[name], train)
            for metric in tasks[name].metrics or ():
                check_metric(metric, tasks[name])
        except ConfigurationError as error:
            raise ConfigurationError(f"Task {name!r}: {error}") from None
    return splits, tasks


def _resolved(name: str, task: TaskConfig, train: Dataset) -> TaskConfig:
    """Return a task with what the labels of its training rows tell, if they have labels."""
    if is_unlabeled(train, task):
        return task
    labeled, _ = labeled_sets(name, task, {"train": train})
    try:
        return task.resolve(labeled["train"])
    except ConfigurationError as error:
        raise ConfigurationError(f"Task {name!r}, train split: {error}") from None
    except UnicodeDecodeError as error:
        raise not_utf8(name, error) from None


def evaluation_sets(splits: dict[str, dict[str, Dataset]]) -> dict[str, Dataset]:
    """Return the validation sets under the trainer's names: ``<task>`` and ``<task>_<suffix>``."""
    return {
        name + split.removeprefix("validation"): rows
        for name, sets in splits.items()
        for split, rows in sets.items()
        if split.startswith("validation")
    }


@contextmanager
def _loading(problem: str, source: str) -> Iterator[None]:
    """Turn an error of Transformers for what cannot be loaded into one sentence."""
    try:
        yield
    except ConfigurationError:
        raise
    except UNLOADABLE as error:
        raise ConfigurationError(f"{problem} from {source!r}: {str(error).splitlines()[0]}") from error


def load_tokenizer(source: str, tasks: dict[str, TaskConfig]) -> Any:
    """Load the tokenizer of a model or an encoder, with the settings that its tasks need."""
    with _loading("No tokenizer could be loaded", source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        has_words = any(TASK_TYPES[task.type].reads_words for task in tasks.values())
        if has_words and getattr(tokenizer, "add_prefix_space", None) is False:
            # Byte-level tokenizers read a list of words only when each word may begin with a space.
            tokenizer = AutoTokenizer.from_pretrained(source, add_prefix_space=True, trust_remote_code=False)
    return tokenizer


def load_model(source: str) -> tuple[MultiTaskModel, Any]:
    """Load a trained model, in evaluation mode, and its tokenizer."""
    with _loading("No model could be loaded", source):
        model = MultiTaskModel.from_pretrained(source)
    return model.eval(), load_tokenizer(source, model.config.task_configs)


def load_encoder(config: RunConfig, tasks: dict[str, TaskConfig]) -> MultiTaskModel:
    """Build the model from the configured encoder, and freeze the parts that the configuration names."""
    with _loading("`encoder` could not be loaded", config.encoder):
        model = MultiTaskModel.from_encoder(config.encoder, tasks, **config.model)
    if config.freeze is not None:
        model.freeze_encoder(None if config.freeze == "encoder" else int(config.freeze))
    for name in config.frozen_heads:
        model.heads[name].requires_grad_(False)
    return model
