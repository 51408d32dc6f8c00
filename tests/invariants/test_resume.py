"""A resumed run is the run that was not interrupted."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import (
    InterruptedRunError,
    Interruption,
    ScriptedTrainer,
    different,
    log_of,
    some_rows,
    tiny_model,
    tiny_trainer,
    weights,
)
from torch import Tensor

from hf_async_mtl import ConfigurationError
from hf_async_mtl.distillation.logits import LogitsFiles
from hf_async_mtl.training.checkpoint_files import STATE_FILE

SIZES = {"polarity": 14, "overlap": 14, "colors": 14}
# Evaluations at 3, 6, ... 24. polarity switches at 9 to the teacher of step 3, overlap at 15 to that of step 9, colors
# at 18 to that of step 15. The run is over at 21. Its best average is that of step 15.
SCRIPT = {
    "polarity": [0.8, 0.7, 0.6, 0.6, 0.7, 0.5],
    "overlap": [0.1, 0.2, 0.4, 0.3, 0.3, 0.2],
    "colors": [0.1, 0.2, 0.3, 0.4, 0.6, 0.5],
}
LAST = 21
BEST = 15
# Six steps make an epoch, and six epochs the budget.
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 6,
    "eval_steps": 3,
    "logging_steps": 3,
    "convergence": {"patience": 2, "final_evaluations": 1, "tasks": {"colors": {"patience": 1}}},
    "weight_decay": 0.01,
    "head_learning_rate": 2e-3,
}


def run(folder: Path, **settings: Any) -> ScriptedTrainer:
    return tiny_trainer(folder, SIZES, SCRIPT, **{**SETTINGS, **settings})


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "convergence.json").read_text())


class Whole:
    """The run that nobody interrupted, as it was left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        trainer = run(folder)
        trainer.train()
        assert trainer.state.global_step == LAST
        assert trainer.state.best_global_step == BEST
        assert [(e.task, e.step, e.teacher_step) for e in trainer.schedule.events] == [
            ("polarity", 9, 3),
            ("overlap", 15, 9),
            ("colors", 18, 15),
        ]
        self.weights: dict[str, Tensor] = weights(trainer)
        self.report = trainer.schedule.report()
        self.log = log_of(trainer)
        self.told = told(folder)

    def equals(self, trainer: ScriptedTrainer, folder: Path) -> None:
        """Fails unless the trainer's run came to the same end."""
        assert trainer.state.global_step == LAST
        assert different(weights(trainer), self.weights) == []
        assert trainer.schedule.report() == self.report
        assert log_of(trainer) == self.log
        assert told(folder) == self.told


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def fresh(folder: Path, **settings: Any) -> ScriptedTrainer:
    """A trainer for resuming: it begins with other weights than the run did."""
    return run(folder, model=tiny_model(list(SIZES), seed=99), **settings)


@contextmanager
def alone(whole: Whole, step: int, folder: Path) -> Iterator[Path]:
    """A checkpoint that was copied to another folder; for a while, nothing else of its run is there."""
    checkpoint = folder / "brought" / f"checkpoint-{step}"
    shutil.copytree(whole.folder / checkpoint.name, checkpoint)
    away = whole.folder.rename(folder / "away")
    try:
        yield checkpoint
    finally:
        away.rename(whole.folder)


# Before all switches, in the epoch's middle and at its end; right after a switch; between; after the last one.
@pytest.mark.parametrize("step", [3, 6, 9, 12, 15, 18])
def test_a_checkpoint_alone_resumes_elsewhere(whole: Whole, tmp_path: Path, step: int) -> None:
    """Bug: a checkpoint needs its neighbors: teachers, snapshots, best weights, or counters that were not saved."""
    folder = tmp_path / "resumed"
    trainer = fresh(folder)
    with alone(whole, step, tmp_path) as checkpoint:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    whole.equals(trainer, folder)
    assert not (folder / "_teachers").exists()


def test_the_end_differs_between_steps(whole: Whole) -> None:
    """Bug: all checkpoints hold the same weights, and the comparisons above compare nothing."""
    models = [
        (whole.folder / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in range(3, LAST + 1, 3)
    ]
    assert len(set(models)) == len(models)


def test_a_finished_run_is_not_trained_further(whole: Whole, tmp_path: Path) -> None:
    """Bug: a run that had ended by convergence takes more steps when it is resumed."""
    trainer = fresh(tmp_path / "resumed", callbacks=[Interruption(LAST + 1)])
    with alone(whole, LAST, tmp_path) as checkpoint:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    whole.equals(trainer, tmp_path / "resumed")


def test_a_finished_run_is_not_trained_further_without_the_best(tmp_path: Path) -> None:
    """Bug: the same, where the run ends with its last weights."""
    settings = {"load_best_model_at_end": False}
    first = run(tmp_path / "first", **settings)
    first.train()
    trainer = fresh(tmp_path / "second", **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "first" / f"checkpoint-{LAST}"))
    assert trainer.state.global_step == LAST
    assert different(weights(trainer), weights(first)) == []
    assert told(tmp_path / "second") == told(tmp_path / "first")


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("killed", [8, 17])
def test_a_killed_run_goes_on_in_its_folder(whole: Whole, tmp_path: Path, killed: int, restore: bool) -> None:
    """Bug: phases are restored only where other callbacks are, or what the killed run left stands in the way."""
    trainer = run(tmp_path, callbacks=[Interruption(killed)])
    with pytest.raises(InterruptedRunError):
        trainer.train()
    trainer = fresh(tmp_path, restore_callback_states_from_checkpoint=restore)
    trainer.train(resume_from_checkpoint=True)
    whole.equals(trainer, tmp_path)


def test_a_run_is_killed_twice(whole: Whole, tmp_path: Path) -> None:
    """Bug: what resuming restores is not saved again by the resumed run."""
    for killed in (7, 13):
        begin = run if killed == 7 else fresh
        trainer = begin(tmp_path, callbacks=[Interruption(killed)])
        with pytest.raises(InterruptedRunError):
            trainer.train(resume_from_checkpoint=killed != 7)
    trainer = fresh(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    whole.equals(trainer, tmp_path)


def test_the_same_trainer_resumes(whole: Whole, tmp_path: Path) -> None:
    """Bug: sums, teachers and phases of the broken run are still there when the trainer is asked again."""
    interruption = Interruption(17)
    trainer = run(tmp_path, callbacks=[interruption])
    with pytest.raises(InterruptedRunError):
        trainer.train()
    interruption.step = -1
    trainer.train(resume_from_checkpoint=True)
    whole.equals(trainer, tmp_path)


def test_with_one_checkpoint_kept(whole: Whole, tmp_path: Path) -> None:
    """Bug: `save_total_limit` deletes what a teacher or the best weights came from."""
    trainer = run(tmp_path / "run", callbacks=[Interruption(20)], save_total_limit=1)
    with pytest.raises(InterruptedRunError):
        trainer.train()
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == ["checkpoint-15", "checkpoint-18"]
    shutil.copytree(tmp_path / "run" / "checkpoint-18", tmp_path / "checkpoint-18")
    shutil.rmtree(tmp_path / "run")
    trainer = fresh(tmp_path / "resumed", save_total_limit=1)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-18"))
    whole.equals(trainer, tmp_path / "resumed")


def test_between_evaluations(whole: Whole, tmp_path: Path) -> None:
    """Bug: a checkpoint that is written when a run is told to stop, at any step, resumes otherwise than others."""

    class SaveAt(Interruption):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save |= state.global_step == self.step

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == self.step:
                raise InterruptedRunError

    trainer = run(tmp_path / "run", callbacks=[SaveAt(10)])
    with pytest.raises(InterruptedRunError):
        trainer.train()
    trainer = fresh(tmp_path / "resumed")
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-10"))
    assert different(weights(trainer), whole.weights) == []
    assert trainer.schedule.report() == whole.report


def cut(checkpoint: Path, how: str) -> None:
    state = checkpoint / STATE_FILE
    if how == "without state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:100])


@pytest.mark.parametrize("how", ["without state", "half a state"])
def test_a_checkpoint_cut_short_is_passed_over(whole: Whole, tmp_path: Path, how: str) -> None:
    """Bug: the newest folder is taken, and it was being written when the run was killed."""
    trainer = run(tmp_path, callbacks=[Interruption(14)])
    with pytest.raises(InterruptedRunError):
        trainer.train()
    cut(tmp_path / "checkpoint-12", how)
    with pytest.raises(ConfigurationError, match=f"checkpoint-12 has no readable {STATE_FILE}"):
        fresh(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    trainer = fresh(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    whole.equals(trainer, tmp_path)


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    """Bug: `resume_from_checkpoint=True` starts afresh without a word, over what is there."""
    with pytest.raises(ConfigurationError, match=r"needs a complete checkpoint in .*; found none"):
        run(tmp_path).train(resume_from_checkpoint=True)


def other_rows() -> dict[str, Dataset]:
    return some_rows(SIZES, seed=5)


@pytest.mark.parametrize("step", [6, 18])
def test_other_data_is_refused(whole: Whole, tmp_path: Path, step: int) -> None:
    """Bug: recorded logits are looked up by place: other rows get those of the rows that were there."""
    trainer = fresh(tmp_path, train={**some_rows(SIZES), "polarity": other_rows()["polarity"]})
    with pytest.raises(ConfigurationError, match=r"those of task 'polarity' are others than in .*checkpoint-"):
        trainer.train(resume_from_checkpoint=str(whole.folder / f"checkpoint-{step}"))


def test_checkpoints_have_what_they_need(whole: Whole) -> None:
    """Bug: a checkpoint carries teachers that nobody needs any more, or lacks one that somebody will."""

    def files(step: int) -> set[str]:
        return {
            str(path.relative_to(whole.folder / f"checkpoint-{step}"))
            for folder in ("_teachers", "_best")
            for path in (whole.folder / f"checkpoint-{step}" / folder).glob("*")
        } - {"_best/config.json", "_teachers/resamples.safetensors"}

    best = {"_best/model.safetensors"}
    snapshots = {step: f"_teachers/snapshot-{step}.safetensors" for step in range(3, LAST + 1, 3)}
    logits = {name: {f"_teachers/{file.name}" for file in LogitsFiles.of(whole.folder, name)} for name in SIZES}
    assert files(3) == {snapshots[3]}
    assert files(6) == {snapshots[3], snapshots[6]} | (files(6) & best)
    assert files(9) == {snapshots[9], *logits["polarity"]} | (files(9) & best)
    assert files(12) == {snapshots[9], snapshots[12], *logits["polarity"]} | (files(12) & best)
    assert files(15) == {snapshots[15], *logits["polarity"], *logits["overlap"]}
    assert files(18) == set().union(*logits.values()) | best
    assert files(21) == set().union(*logits.values()) | best
    # Hard links: they cost nothing.
    assert (whole.folder / "checkpoint-21" / "_best" / "model.safetensors").samefile(
        whole.folder / "checkpoint-15" / "model.safetensors"
    )
    assert not (whole.folder / "_teachers").exists()


def test_eval_on_start_of_a_resumed_run(whole: Whole, tmp_path: Path) -> None:
    """Bug: the evaluation that opens a resumed run is told to the phases a second time, which they refuse."""
    trainer = fresh(tmp_path, eval_on_start=True)
    trainer.train(resume_from_checkpoint=str(whole.folder / "checkpoint-12"))
    assert different(weights(trainer), whole.weights) == []
    assert trainer.schedule.report() == whole.report


def test_training_twice_starts_afresh(tmp_path: Path) -> None:
    """Bug: the second call goes on with the phases of the first, whose run is over."""
    trainer = run(tmp_path, max_steps=6, load_best_model_at_end=False)
    trainer.train()
    first = trainer.schedule.report()
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.schedule.report()["tasks"].keys() == first["tasks"].keys()
    assert [step for step, _ in trainer.schedule.report()["tasks"]["colors"]["history"]] == [3, 6]


def test_a_run_by_epochs_resumes(tmp_path: Path) -> None:
    """Bug: what is evaluated at the end of an epoch is evaluated again when the run goes on from there."""
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_steps": 6, "num_train_epochs": 5}
    first = run(tmp_path / "first", **settings)
    first.train()
    for step in (12, first.state.global_step):
        trainer = fresh(tmp_path / str(step), **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "first" / f"checkpoint-{step}"))
        assert different(weights(trainer), weights(first)) == []
        assert trainer.schedule.report() == first.schedule.report()


def test_other_tasks_are_refused(whole: Whole, tmp_path: Path) -> None:
    """Bug: a run is resumed with other tasks, and fails by a traceback after the output folder was changed."""
    sizes = {"polarity": 14, "overlap": 14, "choice": 14}
    trainer = tiny_trainer(tmp_path, sizes, SCRIPT, **{**SETTINGS, "convergence": {"patience": 2}})
    with pytest.raises(ConfigurationError, match=r"cannot be resumed: .*missing choice, unexpected colors"):
        trainer.train(resume_from_checkpoint=str(whole.folder / "checkpoint-6"))
    assert list(tmp_path.iterdir()) == []


def test_a_spent_budget_is_not_overspent(tmp_path: Path) -> None:
    """Bug: a run that had ended in the middle of an epoch takes one more step when it is resumed."""
    first = run(tmp_path / "first", max_steps=8)
    first.train()
    trainer = fresh(tmp_path / "second", max_steps=8)
    trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-8"))
    assert trainer.state.global_step == 8
    assert different(weights(trainer), weights(first)) == []
    assert told(tmp_path / "second") == told(tmp_path / "first")


def test_a_checkpoint_that_is_written_again_leaves_its_links_alone(tmp_path: Path) -> None:
    """The best weights that a later checkpoint is linked to were overwritten by a second try from an earlier one."""
    trainer = fresh(tmp_path / "run")
    trainer.train()
    checkpoint = tmp_path / "run" / f"checkpoint-{trainer.state.global_step}"
    linked = tmp_path / "linked.safetensors"
    linked.hardlink_to(checkpoint / "model.safetensors")
    before = linked.read_bytes()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1)
    trainer._save_checkpoint(trainer.model, None)
    assert linked.read_bytes() == before
    assert (checkpoint / "model.safetensors").read_bytes() != before
