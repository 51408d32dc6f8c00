"""What is tried in the comparison of methods: each rule against one that must give the same."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import tiny_model, tiny_trainer, weights
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import comparison_trainers as ct  # noqa: E402

from hf_async_mtl.convergence import ConvergenceConfig  # noqa: E402
from hf_async_mtl.data.sampler import MultiTaskSampler  # noqa: E402

TASKS = ["polarity", "overlap"]


def run(kind: type[ct.KeepingTrainer], folder: Path, decay: float | None = None) -> tuple[dict[str, Tensor], Any]:
    trainer: Any = tiny_trainer(
        folder, dict.fromkeys(TASKS, 24), model=tiny_model(TASKS), kind=kind, max_steps=8, save_strategy="no"
    )
    trainer.keep_from_here()
    if decay is not None:
        trainer.measured.decay = decay
    trainer.train()
    return weights(trainer), trainer


def test_the_average_of_nothing_is_the_run_itself(tmp_path: Path) -> None:
    """The averaged weights went into the training, or another state than the average was measured."""
    plain, expected = run(ct.KeepingTrainer, tmp_path / "plain")
    found, trainer = run(ct.AveragedTrainer, tmp_path / "no average", decay=0.0)
    assert all(torch.equal(plain[name], tensor) for name, tensor in found.items())
    assert trainer.report()["tasks"] == expected.report()["tasks"]
    begin = weights(tiny_trainer(tmp_path / "begin", dict.fromkeys(TASKS, 24), model=tiny_model(TASKS)))
    found, trainer = run(ct.AveragedTrainer, tmp_path / "no step", decay=1.0)
    assert all(torch.equal(begin[name], tensor) for name, tensor in found.items())
    for task in trainer.report()["tasks"].values():
        assert len({value for _, value in task["history"]}) == 1


class Phases:
    """Stands for a trainer: tasks, and the phase of each."""

    def __init__(self, phases: dict[str, str]) -> None:
        self.tasks, self.schedule = phases, self
        self.phases = phases


def test_draws_of_distilling_tasks() -> None:
    """Draws of learning tasks were replaced, or those of distilling tasks went to distilling ones."""
    sampler = MultiTaskSampler([300, 60, 90], seed=5)
    order = list(sampler)
    for phases in ({"a": "learning", "b": "learning", "c": "learning"}, {"a": "distilling", "b": "distilling"}):
        phases.setdefault("c", "distilling")
        assert list(ct.ReplacedDraws(sampler, Phases(phases))) == order
    mixed: Any = Phases({"a": "distilling", "b": "learning", "c": "stopped"})
    found = list(ct.ReplacedDraws(sampler, mixed))
    before, after = (np.searchsorted([300, 360, 450], values, side="right") for values in (order, found))
    assert all(before[before != after] == 0)
    assert all(after[before != after] == 1)
    assert 0.55 < np.mean(before != after) / np.mean(before == 0) < 0.78
    assert list(ct.ReplacedDraws(sampler, mixed)) == found


def test_a_loss_that_rises() -> None:
    """The lowest loss was compared with itself, noise was taken for a rise, or a task that gains was switched."""
    rng = np.random.default_rng(0)
    base = rng.exponential(size=400)

    def converged(scores: list[float], rises: list[float]) -> list[bool]:
        criterion = ct.LossDecline(ConvergenceConfig(criterion="decline", patience=2))
        found = []
        for step, (score, rise) in enumerate(zip(scores, rises, strict=True)):
            criterion.look_at(base + rise + rng.normal(scale=0.2, size=400))
            found.append(criterion.update(step, score, standard_error=10.0))
        return found

    assert converged([0.5] * 4, [0.0, 0.2, 0.2, 0.2]) == [False, False, True, True]
    assert converged([0.5, 0.6, 0.7, 0.8], [0.0, 0.2, 0.2, 0.2]) == [False] * 4, "the metric gains"
    assert converged([0.5] * 4, [0.0, -0.2, -0.4, -0.6]) == [False] * 4
    assert converged([0.5] * 4, [0.0, 0.2, -0.2, 0.2]) == [False] * 4
    assert sum(map(sum, (converged([0.5] * 6, [0.0] * 6) for _ in range(50)))) < 20


def test_the_losses_are_those_of_the_validation_rows(tmp_path: Path) -> None:
    """Losses of other rows, or of an earlier evaluation, decided."""
    _, trainer = run(ct.LossTrainer, tmp_path)
    for name, tracker in trainer.schedule.trackers.items():
        means = trainer.validation_losses[name]
        assert tracker._criterion.lowest.mean() == pytest.approx(min(means))
