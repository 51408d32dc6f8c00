"""What the trainer does when a task converges: rollback, stop and go, return, joining in order, resumption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    GradientRecorder,
    InterruptedRunError,
    Interruption,
    different,
    log_of,
    tiny_model,
    tiny_trainer,
    weights,
)
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_async_mtl import ConfigurationError

PAIR = {"polarity": 16, "overlap": 16}
# Four steps make an epoch; evaluations at 2, 4, 6, ...
SETTINGS: dict[str, Any] = {"num_train_epochs": 3, "eval_steps": 2, "logging_steps": 2, "weight_decay": 0.01}
GROWING = [i / 100 for i in range(1, 100)]


class Watcher(TrainerCallback):
    """Keeps the weights that each step updates, and the number of parameters whose moments the optimizer has."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.moments: dict[int, int] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = {k: v.clone() for k, v in kwargs["model"].state_dict().items()}
        self.moments[state.global_step] = len(kwargs["optimizer"].state)


def events(trainer: Any) -> list[tuple[str, str, int, int | None]]:
    return [(e.event, e.task, e.step, e.teacher_step) for e in trainer.schedule.events]


def test_weights_return_to_the_best_of_the_task(tmp_path: Path) -> None:
    """Bug: weights return to another step's, moments of those that were left stay, or a checkpoint holds others."""
    watcher = Watcher()
    trainer = tiny_trainer(
        tmp_path,
        PAIR,
        {"polarity": [0.5, 0.7, 0.6], "overlap": GROWING},
        callbacks=[watcher],
        convergence={"patience": 1, "final_evaluations": None, "on_convergence": "rollback"},
        **SETTINGS,
    )
    trainer.train()
    assert events(trainer)[:2] == [("converged", "polarity", 6, 4), ("rolled_back", "polarity", 6, 4)]
    assert different(watcher.weights[6], watcher.weights[4]) == []
    assert (watcher.moments[4] > 0, watcher.moments[6], watcher.moments[7] > 0) == (True, 0, True)
    # What was evaluated at step 6 is what the checkpoint of step 6 holds.
    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert different(saved, watcher.weights[4]) != []


def test_a_rolled_back_task_leaves_the_mixture(tmp_path: Path) -> None:
    """Bug: its head goes on moving, by its loss, by momentum or by weight decay."""
    trainer = tiny_trainer(
        tmp_path,
        PAIR,
        {"polarity": [0.5, 0.4], "overlap": GROWING},
        callbacks=[watcher := Watcher()],
        convergence={"patience": 1, "final_evaluations": None, "on_convergence": "rollback"},
        **SETTINGS,
    )
    trainer.train()
    assert trainer.schedule.phases["polarity"] == "stopped"
    head = [name for name in watcher.weights[0] if name.startswith("heads.polarity")]
    other = [name for name in watcher.weights[0] if not name.startswith("heads.polarity")]
    moved = different(watcher.weights[4], watcher.weights[11])
    assert not set(head) & set(moved)
    assert set(other) == set(moved)


def test_tasks_join_in_order(tmp_path: Path) -> None:
    """Bug: a task that waits is trained, counts in N, or never joins."""
    recorder = GradientRecorder()
    script = {"overlap": [0.5, 0.4], "polarity": [0.9, 0.1, 0.2, 0.15], "colors": GROWING}
    sizes = {"polarity": 8, "overlap": 16, "colors": 8}
    trainer = tiny_trainer(
        tmp_path,
        sizes,
        script,
        callbacks=[recorder],
        convergence={"patience": 1, "final_evaluations": None},
        schedule={"mode": "sequential", "order": "size"},
        **SETTINGS,
    )
    assert trainer.schedule.phases == {"polarity": "waiting", "overlap": "learning", "colors": "waiting"}
    trainer.train()
    assert events(trainer) == [
        ("converged", "overlap", 4, 2),
        ("joined", "polarity", 4, None),
        ("converged", "polarity", 8, 6),
        ("joined", "colors", 8, None),
    ]
    trained = {
        name: [i for i, step in enumerate(recorder.steps) if step[f"heads.{name}.linear.weight"].abs().sum() > 0]
        for name in sizes
    }
    assert {name: min(steps) >= start for (name, steps), start in zip(trained.items(), (4, 0, 8), strict=True)} == (
        dict.fromkeys(sizes, True)
    )


def test_a_sequential_order_names_every_task(tmp_path: Path) -> None:
    """Bug: a task that the order forgets waits for ever."""
    with pytest.raises(ConfigurationError, match="must name each of polarity, overlap once; found polarity"):
        tiny_trainer(tmp_path, PAIR, schedule={"mode": "sequential", "order": ["polarity"]})


FALLING = {"polarity": [0.5, 0.7, 0.6, 0.6, 0.4, 0.8], "overlap": [0.2, 0.1, 0.15, 0.3, 0.25, 0.2]}


@pytest.mark.parametrize(
    "settings",
    [
        {"convergence": {"on_convergence": "rollback"}},
        {"convergence": {"on_convergence": "stop"}},
        {"convergence": {"criterion": "decline", "z": 0.1}},
        {"convergence": {"min_epochs": 1.5}},
        {"convergence": {}, "distillation": {"hard_label_weight": 0.5}},
        {"convergence": {}, "schedule": {"mode": "sequential"}},
    ],
    ids=lambda settings: "-".join(f"{k}={v}" for section in settings.values() for k, v in section.items()),
)
@pytest.mark.parametrize("killed_at", [5, 7, 9])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(settings: dict[str, Any], killed_at: int, tmp_path: Path) -> None:
    """Bug: a rollback is forgotten or made twice, a reference's predictions are lost, or patience is granted anew."""
    own = {**settings, "convergence": {"patience": 1, "final_evaluations": None, **settings["convergence"]}}
    whole = tiny_trainer(tmp_path / "whole", PAIR, FALLING, **own, **SETTINGS)
    whole.train()
    killed = tiny_trainer(tmp_path / "killed", PAIR, FALLING, callbacks=[Interruption(killed_at)], **own, **SETTINGS)
    with pytest.raises(InterruptedRunError):
        killed.train()
    resumed = tiny_trainer(tmp_path / "killed", PAIR, FALLING, model=tiny_model(list(PAIR), seed=99), **own, **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert different(weights(resumed), weights(whole)) == []
    assert resumed.report() == whole.report()
    assert log_of(resumed) == log_of(whole)
