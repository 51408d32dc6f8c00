"""Searches for hyperparameters: what a trial sets and takes back, and what it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import HPSearchBackend

from ..model.configuration_multitask import ConfigurationError
from ..model.modeling_multitask import MultiTaskModel
from .arguments import AsyncMTLTrainingArguments

if TYPE_CHECKING:
    import optuna

__all__ = ["average", "check_model_init", "check_new_model", "check_search", "run_name", "trial_settings"]


def average(metrics: Mapping[str, float]) -> float:
    """What a trial is judged by, where nothing else is said: the mean of the tasks' monitored metrics."""
    return metrics["eval_average"]


def run_name(trial: optuna.Trial) -> str:
    """The name of a trial's folder, as upstream's, and of its run in a tracker, where upstream has none."""
    return f"run-{trial.number}"


def check_search(
    args: AsyncMTLTrainingArguments, model_init: Callable[..., Any] | None, backend: Any, settings: Mapping[str, Any]
) -> None:
    """Check that a search can be made.

    Args:
        args: Of the trainer.
        model_init: Its function that makes a model.
        backend: As it was given.
        settings: What is handed on to Optuna.

    Raises:
        ConfigurationError: It cannot.
    """
    if model_init is None:
        raise ConfigurationError(
            "A search needs a new model for each trial, and this trainer has one. Make it with "
            "`AsyncMTLTrainer(model_init=lambda: MultiTaskModel.from_encoder(name, tasks), ...)` and no `model`."
        )
    if backend not in (None, HPSearchBackend.OPTUNA):
        raise ConfigurationError(f"`backend` must be optuna; found {backend!r}. Leave it out.")
    for what, found in (("process", args.world_size), ("job", settings.get("n_jobs", 1))):
        if found != 1:
            raise ConfigurationError(
                f"A search must run in one {what}: a trial that is pruned would leave the others waiting, and the jobs "
                f"of a process would share one model; found {found}. To search with several, start it several times "
                "with the same `study_name`, `storage` and `load_if_exists=True`: they share its trials."
            )
    if args.push_to_hub:
        raise ConfigurationError(
            "A search must not push: each trial would overwrite the last one's model on the Hub. Set `push_to_hub` "
            "to false, and push the model that is trained with what it found."
        )


def check_model_init(model: Any, optimizers: tuple[Any, Any]) -> None:
    """Check that a trainer with a ``model_init`` was not given what it makes itself.

    Raises:
        ConfigurationError: It was.
    """
    if model is not None:
        raise ConfigurationError("Give a `model`, or a `model_init` that makes one for each run; found both.")
    if optimizers != (None, None):
        raise ConfigurationError(
            "`optimizers` hold on to one model, and `model_init` makes another for each run. Give "
            "`optimizer_cls_and_kwargs`, or `optim` among the training arguments."
        )


@contextmanager
def trial_settings(args: AsyncMTLTrainingArguments, values: Mapping[str, Any]) -> Iterator[None]:
    """Set what a trial has drawn, for a block. The next trial, which may set other fields, finds the user's own."""
    before = dict(args.__dict__)
    try:
        args.update(values)
        yield
    finally:
        args.__dict__ = before


def check_new_model(model: MultiTaskModel, last: MultiTaskModel) -> None:
    """Check that ``model_init`` has made a new model, of the tasks that the data were prepared for.

    Args:
        model: What it returned.
        last: The model that it made before.

    Raises:
        ConfigurationError: It has not.
    """
    if model is last:
        raise ConfigurationError(
            "`model_init` must make a new model at each call; it returned the same one again, which would go on from "
            "where the last run left it. Call `MultiTaskModel.from_encoder` within the function."
        )
    for what, found, wanted in (
        ("tasks", list(model.config.task_configs.items()), list(last.config.task_configs.items())),
        ("max_length", model.config.max_length, last.config.max_length),
    ):
        if found != wanted:
            raise ConfigurationError(
                f"`model_init` must make models of the same `{what}`, for which the data are tokenized once; found "
                f"{found} after {wanted}. Make a trainer for each."
            )
