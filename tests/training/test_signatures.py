"""Our Trainer and callbacks stand where upstream's stand: whoever calls one can call the other."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments
from hf_async_mtl.training.callbacks import ConvergenceCallback, TableCallback


def overrides(ours: type, upstream: type) -> list[str]:
    kinds = ours.__mro__[: ours.__mro__.index(upstream)]
    own = sorted({name for kind in kinds for name, value in vars(kind).items() if inspect.isfunction(value)})
    return [name for name in own if name in dir(upstream) and inspect.isfunction(getattr(upstream, name))]


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults; annotations may differ."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_the_overrides_are_found() -> None:
    """Bug: the list below is empty, and the comparison compares nothing."""
    assert {"__init__", "train", "evaluate", "compute_loss", "log", "_evaluate", "_save_checkpoint"} <= set(
        overrides(AsyncMTLTrainer, Trainer)
    )


@pytest.mark.parametrize("name", overrides(AsyncMTLTrainer, Trainer))
def test_the_trainer_takes_what_upstream_takes(name: str) -> None:
    """Bug: a new release calls a method with an argument that our override does not know."""
    assert parameters(getattr(AsyncMTLTrainer, name)) == parameters(getattr(Trainer, name))


@pytest.mark.parametrize("callback", [ConvergenceCallback, TableCallback])
def test_callbacks_take_what_upstream_gives(callback: type[TrainerCallback]) -> None:
    """Bug: a hook is misspelt, or does not take the keywords that the Trainer hands on."""
    hooks = [name for name in vars(callback) if name.startswith("on_")]
    assert hooks
    for name in hooks:
        assert parameters(getattr(callback, name)) == parameters(getattr(TrainerCallback, name)), name


def test_methods_with_upstream_names_are_overrides() -> None:
    """Bug: upstream drops or renames a private method, and our override is never called again."""
    private = {
        "_evaluate",
        "_get_grad_norm",
        "_get_num_items_in_batch",
        "_get_train_sampler",
        "_load_callback_state",
        "_run_epoch",
        "_save_checkpoint",
    }
    assert private <= set(overrides(AsyncMTLTrainer, Trainer))
    assert private <= vars(Trainer).keys()


def test_the_loss_is_declared_as_scaled() -> None:
    """Bug: upstream drops the switch, and divides or multiplies our gradients by the accumulation steps again."""
    assert AsyncMTLTrainer.loss_is_scaled_for_ga is True
    assert "loss_is_scaled_for_ga" in inspect.getsource(Trainer.training_step)


def test_the_arguments_keep_upstream_order() -> None:
    """Bug: our fields come between upstream's, and positional arguments land in the wrong one."""
    upstream = list(inspect.signature(TrainingArguments).parameters)
    ours = list(inspect.signature(AsyncMTLTrainingArguments).parameters)
    assert ours[: len(upstream)] == upstream
    assert set(ours[len(upstream) :]) == {
        "head_learning_rate",
        "conflict_steps",
        "convergence",
        "distillation",
        "mixing",
        "balancing",
        "schedule",
    }
