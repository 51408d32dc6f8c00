"""Our Trainer and callbacks stand where upstream's stand: whoever calls one can call the other."""

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments

import hf_async_mtl.training
from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments
from hf_async_mtl.training.callbacks import RunCallback, TableCallback

SOURCES = sorted(Path(hf_async_mtl.training.__file__).parent.glob("*.py"))
REFUSED = {"hyperparameter_search"}
# What upstream calls by these names, and what we call of upstream.
OVERRIDDEN_SEAMS = {"_get_grad_norm", "_get_train_sampler", "_save", "_save_checkpoint"}
CALLED_SEAMS = {
    # Of `TrainingArguments`.
    "_n_gpu",
    "_VALID_DICT_FIELDS",
}


def overrides(ours: type, upstream: type) -> list[str]:
    """The functions that a class defines in place of a parent's."""
    kinds = ours.__mro__[: ours.__mro__.index(upstream)]
    own = sorted({name for kind in kinds for name, value in vars(kind).items() if inspect.isfunction(value)})
    return [name for name in own if inspect.isfunction(getattr(upstream, name, None)) and name not in REFUSED]


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults; annotations may differ."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(source: Path) -> Iterator[str]:
    """The private attributes that a module reads or sets, of any object."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr


def defines(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef)


def upstream_names() -> set[str]:
    """The private names that upstream's Trainer and arguments define, in their classes or on an instance."""
    found: set[str] = set()
    for kind in (Trainer, TrainingArguments):
        found |= {name for name in vars(kind) if is_private(name)}
        for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(kind)))):  # type: ignore[arg-type]
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_private(node.attr):
                found.add(node.attr)
    return found


def test_the_trainer_is_one_class() -> None:
    """Bug: an intermediate class comes back, and the state of a run is spread over a chain of parents again."""
    assert AsyncMTLTrainer.__bases__ == (Trainer,)
    assert {"__init__", "train", "evaluate", "predict", "compute_loss", "log"} <= set(
        overrides(AsyncMTLTrainer, Trainer)
    )


@pytest.mark.parametrize("name", overrides(AsyncMTLTrainer, Trainer))
def test_the_trainer_takes_what_upstream_takes(name: str) -> None:
    """Bug: a new release calls a method with an argument that our override does not know."""
    assert parameters(getattr(AsyncMTLTrainer, name)) == parameters(getattr(Trainer, name))


@pytest.mark.parametrize("callback", [RunCallback, TableCallback])
def test_callbacks_take_what_upstream_gives(callback: type[TrainerCallback]) -> None:
    """Bug: a hook is misspelt, or does not take the keywords that the Trainer hands on."""
    hooks = [name for name in vars(callback) if name.startswith("on_")]
    assert hooks
    for name in hooks:
        assert parameters(getattr(callback, name)) == parameters(getattr(TrainerCallback, name)), name


def test_every_private_seam_that_is_overridden_is_named() -> None:
    """Bug: upstream drops or renames a private method, and our override is never called again."""
    found = {name for name in overrides(AsyncMTLTrainer, Trainer) if is_private(name)}
    assert found == OVERRIDDEN_SEAMS
    assert vars(Trainer).keys() >= OVERRIDDEN_SEAMS


@pytest.mark.parametrize("name", sorted(OVERRIDDEN_SEAMS))
def test_upstream_calls_the_overridden_seams(name: str) -> None:
    """Bug: a private method is kept for compatibility only, and the Trainer goes another way."""
    assert f"self.{name}" in inspect.getsource(inspect.getmodule(Trainer))  # type: ignore[arg-type]


def test_every_private_seam_that_is_called_is_named() -> None:
    """Bug: the package relies on a private name of upstream that nobody watches, and a release drops it."""
    ours = {name for source in SOURCES for name in private_names(source)}
    names = {
        node.name for source in SOURCES for node in ast.walk(ast.parse(source.read_text())) if hasattr(node, "name")
    }
    assert (ours & upstream_names()) - names - OVERRIDDEN_SEAMS == CALLED_SEAMS
    assert upstream_names() >= CALLED_SEAMS


def test_refused_methods_exist_upstream() -> None:
    """Bug: a method is refused that upstream has renamed, and the new name works half."""
    assert vars(Trainer).keys() >= REFUSED


def test_label_names_reach_the_metrics() -> None:
    """Bug: upstream no longer hands the inputs named by `label_names` to the metrics, and examples are lost."""
    assert "for name in self.label_names" in inspect.getsource(Trainer.prediction_step)


def test_the_loss_is_declared_as_a_mean_of_its_batch() -> None:
    """Bug: upstream drops the switch or the number, and multiplies our gradients by the accumulation steps again."""
    assert AsyncMTLTrainer.loss_is_scaled_for_ga is False
    assert "loss / self.current_gradient_accumulation_steps" in inspect.getsource(Trainer.training_step)


def test_the_arguments_keep_upstream_order() -> None:
    """Bug: our fields come between upstream's, and positional arguments land in the wrong one."""
    upstream = list(inspect.signature(TrainingArguments).parameters)
    ours = list(inspect.signature(AsyncMTLTrainingArguments).parameters)
    assert ours[: len(upstream)] == upstream
    assert set(ours[len(upstream) :]) == {
        "head_learning_rate",
        "conflict_steps",
        "losses",
        "convergence",
        "distillation",
        "mixing",
        "balancing",
        "schedule",
    }
