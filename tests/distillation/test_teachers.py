"""A run's teachers: their recorded logits, and the validation predictions that noise is measured with."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording import write_all
from runs import (
    ALL,
    some_rows,
    tiny_trainer,
)
from tiny import raw_sets, task_configs, tiny_tokenizer
from torch import Tensor

from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.tokenization import encode, unit_counts
from hf_async_mtl.distillation.config import DistillationConfig
from hf_async_mtl.distillation.logits import LogitsFiles, RecordedLogits, TeacherError
from hf_async_mtl.distillation.snapshots import TeacherStore
from hf_async_mtl.distillation.teachers import Teachers
from hf_async_mtl.metrics import compute
from hf_async_mtl.tasks.registry import TASK_TYPES
from hf_async_mtl.training.checkpoint_files import STATE_FILE

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


# -- validation predictions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_predictions_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    """Bug: numbers lose digits, or lists of lists their form, and two evaluations differ by the way to the disk."""
    data = encoded(name)
    generator = np.random.default_rng(0)
    longest = max(unit_counts(data.task, data.rows))
    columns = {"choice": 2}.get(name, data.task.num_labels)
    shape: tuple[int, ...] = {"overlap": (12,), "colors": (12, longest, columns), "answer": (12, longest, columns)}.get(
        name, (12, columns)
    )
    kind = TASK_TYPES[data.task.type]
    answers = kind.predictions(data.task, generator.normal(size=shape).astype(np.float32), data.rows)
    store = TeacherStore(tmp_path / "_teachers")
    store.save_predictions(name, 40, answers)
    found = store.load_predictions(name, 40)
    assert found == answers
    assert list(map(type, found)) == list(map(type, answers))
    assert data.task.metrics is not None
    scores = [
        compute(
            data.task.metrics,
            data.task.type,
            x,
            kind.references(data.task, data.rows),
            data.task.label_names,
        )
        for x in (answers, found)
    ]
    assert scores[0] == scores[1]
    assert [path.name for path in store.folder.iterdir()] == [f"predictions-{name}.json"]


def test_later_predictions_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    """Bug: an evaluation is compared with predictions of a step that no longer matters."""
    store = TeacherStore(tmp_path)
    store.save_predictions("polarity", 40, [0, 1])
    store.save_predictions("polarity", 80, [1, 1])
    assert store.load_predictions("polarity", 80) == [1, 1]
    path = tmp_path / "predictions-polarity.json"
    with pytest.raises(TeacherError) as error:
        store.load_predictions("polarity", 40)
    assert str(error.value) == (
        f"The validation predictions {path} must be those of step 40, which the next evaluation is compared with; "
        "found those of step 80. Resume from a checkpoint that was written with this criterion, or start afresh."
    )


def test_missing_predictions_are_told(tmp_path: Path) -> None:
    """Bug: a criterion that is new on resuming ends in a `FileNotFoundError`."""
    with pytest.raises(
        TeacherError, match=r"predictions-polarity\.json must be those of step 40, .* found no such file"
    ):
        TeacherStore(tmp_path / "nowhere").load_predictions("polarity", 40)


@pytest.mark.parametrize("content", [b"", b'{"step": 40, "predictions": [0', b"\x00" * 20, b"\xff\xfe\x00rubbish"])
def test_damaged_predictions_are_told(tmp_path: Path, content: bytes) -> None:
    """Bug: a checkpoint that was copied in part ends in a message of a file format."""
    (tmp_path / "predictions-polarity.json").write_bytes(content)
    with pytest.raises(TeacherError, match=r"predictions-polarity\.json is damaged \(.*\)\. Was its checkpoint copied"):
        TeacherStore(tmp_path).load_predictions("polarity", 40)


def test_predictions_travel_with_their_checkpoint(tmp_path: Path) -> None:
    """Bug: a checkpoint that is copied alone lacks what its next evaluation is compared with."""
    store = TeacherStore(tmp_path / "_teachers")
    store.save_predictions("polarity", 40, [0, 1])
    store.save_snapshot(40, some_weights(1))
    store.keep_snapshots([])
    assert store.load_predictions("polarity", 40) == [0, 1]
    store.link_into(tmp_path / "checkpoint-40" / "_teachers")
    # The run goes on, in the same file.
    store.save_predictions("polarity", 80, [1, 1])
    shutil.copytree(tmp_path / "checkpoint-40", tmp_path / "elsewhere")
    other = TeacherStore(tmp_path / "run" / "_teachers")
    other.save_predictions("overlap", 20, [0.5])
    other.replace_with(tmp_path / "elsewhere" / "_teachers")
    assert other.load_predictions("polarity", 40) == [0, 1]
    assert [path.name for path in other.folder.iterdir()] == ["predictions-polarity.json"]


def test_a_run_keeps_the_predictions_that_its_checkpoints_need(tmp_path: Path) -> None:
    """Bug: the predictions of a checkpoint are those of an evaluation that its criterion does not compare with."""
    trainer = tiny_trainer(
        tmp_path,
        PAIR,
        {"polarity": [0.2, 0.5, 0.5, 0.5], "overlap": GROWING},
        convergence={"patience": 3, "criterion": "significant", "final_evaluations": None},
        **SETTINGS,
    )
    trainer.train()
    for step in range(2, 13, 2):
        state = json.loads((tmp_path / f"checkpoint-{step}" / STATE_FILE).read_text())
        schedule = state["schedule"]
        store = TeacherStore(tmp_path / f"checkpoint-{step}" / "_teachers")
        for name in PAIR:
            if schedule["tasks"][name]["phase"] != "learning":
                continue
            reference = schedule["tasks"][name]["criterion"]["state"]["reference_step"]
            assert len(store.load_predictions(name, reference)) == 6


def test_logits_of_a_checkpoint_are_those_of_its_run(tmp_path: Path) -> None:
    """Bug: a checkpoint's recorded logits are written over by those of a renewed teacher."""
    trainer = tiny_trainer(
        tmp_path,
        PAIR,
        {"polarity": [0.5, 0.4, 0.8, 0.7], "overlap": GROWING},
        train=some_rows(PAIR),
        convergence={"patience": 1, "final_evaluations": None, "renew_teacher": True},
        **SETTINGS,
    )
    trainer.train()
    assert [event.event for event in trainer.schedule.events] == ["converged", "teacher_renewed"]
    steps = {
        step: RecordedLogits(LogitsFiles.of(tmp_path / f"checkpoint-{step}" / "_teachers", "polarity")).step
        for step in (4, 6, 8)
    }
    assert steps == {4: 2, 6: 6, 8: 6}
