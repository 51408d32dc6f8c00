"""A run's teachers: their recorded logits, and the resampled scores that noise is measured with."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording import write_all
from runs import (
    ALL,
    tiny_trainer,
)
from tiny import raw_sets, task_configs, tiny_tokenizer
from torch import Tensor

from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.tokenization import encode, unit_counts
from hf_async_mtl.distillation.config import DistillationConfig
from hf_async_mtl.distillation.logits import TeacherError
from hf_async_mtl.distillation.snapshots import TeacherStore
from hf_async_mtl.distillation.teachers import Teachers

GROWING = [i / 100 for i in range(1, 100)]
LAST_WEIGHTS: dict[str, Any] = {"save_strategy": "no", "load_best_model_at_end": False}


def encoded(name: str, rows: int = 12, seed: int = 0) -> TaskDataset:
    task = task_configs()[name]
    return TaskDataset(
        name, 0, task, encode(raw_sets(rows, seed)[name], name, task, tiny_tokenizer(), task.max_length or 40)
    )


def teachers_of(folder: Path, *names: str, **settings: Any) -> Teachers:
    teachers = Teachers(folder / "_teachers", DistillationConfig(**settings), {name: encoded(name) for name in names})
    teachers.begin()
    return teachers


def some_weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(5, 3, generator=generator),
        "bias": torch.randn(3, generator=generator),
        "steps": torch.tensor([seed, 7]),
        "mask": torch.tensor([True, False]),
    }


# -- recorded logits --------------------------------------------------------------------------------------------------


def assess(teachers: Teachers, name: str, logits: list[np.ndarray]) -> None:
    write_all(teachers.writer(name, step=3), logits)
    teachers.load([name])
    teachers.assess(name)


def by_heart(task: TaskDataset, size: float) -> list[np.ndarray]:
    """Logits of so much for the label, and of 0 for the rest."""
    return [size * np.eye(2, dtype=np.float32)[[label]] for label in task.rows["labels"]]


@pytest.mark.parametrize(
    ("size", "temperature", "warns"),
    [
        (20.0, 1.0, True),
        (1.0, 1.0, False),
        # The remedy that the warning names.
        (20.0, 20.0, False),
    ],
)
def test_a_teacher_that_knows_its_rows_by_heart_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: float, temperature: float, warns: bool
) -> None:
    """Bug: distillation saves its task from nothing, and nobody says so; or every teacher is warned of."""
    teachers = teachers_of(tmp_path, "polarity", temperature=temperature)
    assess(teachers, "polarity", by_heart(teachers.train["polarity"], size))
    assert ["nearly one-hot" in record.message for record in caplog.records] == [True] * warns


@pytest.mark.parametrize("name", ALL)
def test_every_type_is_looked_at(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a type's logits and labels do not have as many rows, and the run ends where its task converges."""
    teachers = teachers_of(tmp_path, name)
    task = teachers.train[name]
    generator = np.random.default_rng(0)
    columns = {"overlap": (), "choice": (2,)}.get(name, (task.task.num_labels,))
    sizes = unit_counts(task.task, task.rows)
    assess(teachers, name, [generator.normal(size=(count, *columns)) for count in sizes])
    assert not caplog.records


def test_other_examples_are_refused(tmp_path: Path) -> None:
    """Bug: logits of other rows teach each example another one's answer."""
    teachers = teachers_of(tmp_path, "polarity")
    write_all(teachers.writer("polarity", step=3), by_heart(teachers.train["polarity"], 1.0))
    other = Teachers(tmp_path / "_teachers", DistillationConfig(), {"polarity": encoded("polarity", seed=1)})
    other.begin()
    with pytest.raises(TeacherError, match="belong to other training examples"):
        other.load(["polarity"])


def test_a_new_run_knows_nothing_of_the_last(tmp_path: Path) -> None:
    """Bug: a second call of `train` teaches from the first one's logits."""
    teachers = teachers_of(tmp_path, "polarity")
    assess(teachers, "polarity", by_heart(teachers.train["polarity"], 1.0))
    teachers.begin()
    with pytest.raises(KeyError):
        teachers.losses("polarity", *[None] * 6)  # type: ignore[arg-type]


PAIR = {"polarity": 16, "overlap": 16}
SCRIPT = {"polarity": [0.5, 0.4], "overlap": [0.2, 0.3, 0.25, 0.2]}
SETTINGS: dict[str, Any] = {"eval_steps": 2, "num_train_epochs": 3}


# -- resampled scores -------------------------------------------------------------------------------------------------


def some_resamples(*steps: int) -> dict[int, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return {step: {name: generator.normal(size=5) for name in PAIR} for step in steps}


def same(a: dict[int, dict[str, np.ndarray]], b: dict[int, dict[str, np.ndarray]]) -> bool:
    """Whether all steps and tasks are the same, to the last bit."""
    lists = [{step: {name: row.tolist() for name, row in tasks.items()} for step, tasks in x.items()} for x in (a, b)]
    return lists[0] == lists[1]


def test_resamples_come_back_as_they_were(tmp_path: Path) -> None:
    """Bug: numbers lose digits, and a resumed run decides by other errors than the run that went on."""
    store = TeacherStore(tmp_path / "_teachers")
    store.save_resamples(some_resamples(40))
    store.save_resamples(some_resamples(40, 80))
    assert same(store.load_resamples([40, 80]), some_resamples(40, 80))
    assert [path.name for path in store.folder.iterdir()] == ["resamples.safetensors"]


def test_missing_resamples_are_told(tmp_path: Path) -> None:
    """Bug: a run that is resumed without the noise of its first evaluations ends at the next one in a `KeyError`."""
    store = TeacherStore(tmp_path)
    assert store.load_resamples([]) == {}
    for steps in ([], [40]):
        if steps:
            store.save_resamples(some_resamples(*steps))
        with pytest.raises(TeacherError) as error:
            store.load_resamples([*steps, 80])
        assert str(error.value) == (
            f"The resampled scores {tmp_path / 'resamples.safetensors'} must have every evaluation, with which later "
            "ones are compared; that of step 80 is missing. Was the checkpoint copied in part? Copy it again, or start "
            "afresh."
        )


@pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"\xff\xfe\x00rubbish"])
def test_damaged_resamples_are_told(tmp_path: Path, content: bytes) -> None:
    """Bug: a checkpoint that was copied in part ends in a message of a file format."""
    (tmp_path / "resamples.safetensors").write_bytes(content)
    with pytest.raises(TeacherError, match=r"resamples\.safetensors is damaged \(.*\)\. Was its checkpoint copied"):
        TeacherStore(tmp_path).load_resamples([40])


def test_resamples_travel_with_their_checkpoint(tmp_path: Path) -> None:
    """Bug: a checkpoint that is copied alone lacks what its next evaluation is compared with."""
    store = TeacherStore(tmp_path / "_teachers")
    store.save_resamples(some_resamples(40))
    store.save_snapshot(40, some_weights(1))
    store.keep_snapshots([])
    store.link_into(tmp_path / "checkpoint-40" / "_teachers")
    # The run goes on, in the same file.
    store.save_resamples(some_resamples(40, 80))
    shutil.copytree(tmp_path / "checkpoint-40", tmp_path / "elsewhere")
    other = TeacherStore(tmp_path / "run" / "_teachers")
    other.save_resamples(some_resamples(20))
    other.replace_with(tmp_path / "elsewhere" / "_teachers")
    assert same(other.load_resamples([40]), some_resamples(40))
    assert [path.name for path in other.folder.iterdir()] == ["resamples.safetensors"]


def test_a_checkpoint_keeps_the_resamples_of_all_its_evaluations(tmp_path: Path) -> None:
    """Bug: a plain run keeps no noise, and its end cannot tell a fall from a lucky evaluation."""
    trainer = tiny_trainer(tmp_path, PAIR, SCRIPT, convergence={"on_convergence": "continue"}, **SETTINGS)
    trainer.train()
    for step in range(2, 13, 2):
        store = TeacherStore(tmp_path / f"checkpoint-{step}" / "_teachers")
        found = store.load_resamples(range(2, step + 1, 2))
        assert list(found) == list(range(2, step + 1, 2))
        assert {row.shape for tasks in found.values() for row in tasks.values()} == {(200,)}
