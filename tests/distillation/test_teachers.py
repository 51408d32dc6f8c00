"""A run's teachers: averages of snapshots, what their logits are worth, and the predictions that noise is judged by."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording import put_all
from runs import (
    ALL,
    InterruptedRunError,
    Interruption,
    ScriptedTrainer,
    different,
    some_rows,
    tiny_model,
    tiny_trainer,
    weights,
)
from tiny import raw_sets, task_configs, tiny_tokenizer
from torch import Tensor

from hf_async_mtl.data.mixing import EncodedTask
from hf_async_mtl.data.tokenization import encode, unit_counts
from hf_async_mtl.distillation.logits import TeacherError
from hf_async_mtl.distillation.snapshots import RecordedLogits, TeacherStore
from hf_async_mtl.distillation.teacher_quality import degenerate_warning, quality_of
from hf_async_mtl.distillation.teachers import Teachers
from hf_async_mtl.metrics import compute
from hf_async_mtl.tasks.registry import TASK_TYPES
from hf_async_mtl.training.arguments import DistillationConfig

GROWING = [i / 100 for i in range(1, 100)]
LAST_WEIGHTS: dict[str, Any] = {"save_strategy": "no", "load_best_model_at_end": False}


def encoded(name: str, rows: int = 12, seed: int = 0) -> EncodedTask:
    task = task_configs()[name]
    return EncodedTask(
        name, 0, task, encode(raw_sets(rows, seed)[name], name, task, tiny_tokenizer(), task.max_length or 40)
    )


def teachers_of(folder: Path, *names: str, **settings: Any) -> Teachers:
    teachers = Teachers(folder / "_teachers", DistillationConfig(**settings), {name: encoded(name) for name in names})
    teachers.begin()
    return teachers


# -- averages of snapshots --------------------------------------------------------------------------------------------


def some_weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(5, 3, generator=generator),
        "bias": torch.randn(3, generator=generator),
        "steps": torch.tensor([seed, 7]),
        "mask": torch.tensor([True, False]),
    }


@pytest.mark.parametrize("steps", [[3], [5, 3], [5, 3, 8], [1, 2, 3, 4, 5]])
def test_a_teacher_is_the_mean_of_its_snapshots(tmp_path: Path, steps: list[int]) -> None:
    """Bug: the sum is taken, one snapshot counts twice, or a whole-number buffer becomes a fraction."""
    teachers = teachers_of(tmp_path)
    for step in range(1, 10):
        teachers.store.save_snapshot(step, some_weights(step))
    found = teachers.snapshot(steps)
    first = some_weights(steps[0])
    assert found.keys() == first.keys()
    for name in ("weight", "bias"):
        mean = torch.stack([some_weights(step)[name].double() for step in steps]).mean(0)
        assert (found[name].double() - mean).abs().max() < 1e-6
    for name in ("steps", "mask"):
        assert found[name].dtype == first[name].dtype
        assert torch.equal(found[name], first[name])
    # Reading changes nothing on disk.
    assert different(teachers.store.load_snapshot(steps[0]), first) == []


def test_one_snapshot_is_itself(tmp_path: Path) -> None:
    """Bug: the paper's teacher, a single snapshot, is moved by the rounding of a mean."""
    teachers = teachers_of(tmp_path)
    teachers.store.save_snapshot(4, some_weights(4))
    assert different(teachers.snapshot([4]), some_weights(4)) == []


def test_a_missing_snapshot_is_told(tmp_path: Path) -> None:
    """Bug: a mean is taken over the snapshots that happen to be there."""
    teachers = teachers_of(tmp_path)
    teachers.store.save_snapshot(4, some_weights(4))
    with pytest.raises(TeacherError, match=r"snapshot-6\.safetensors is missing"):
        teachers.snapshot([4, 6])


class Keeper(ScriptedTrainer):
    """Keeps the weights at each evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.evaluated: dict[int, dict[str, Tensor]] = {}

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self.evaluated[self.state.global_step] = weights(self)
        return super()._evaluate(*args, **kwargs)


@pytest.mark.parametrize(
    ("script", "snapshots", "steps"),
    [
        # The evaluation that ends the patience is the second best.
        ([0.5, 0.7, 0.6], 2, [4, 6]),
        # It is the worst.
        ([0.5, 0.7, 0.4], 2, [4, 2]),
        ([0.5, 0.7, 0.6], 5, [4, 6, 2]),
        # There is one evaluation before it, and none better.
        ([0.5, 0.4], 3, [2, 4]),
    ],
)
def test_the_best_evaluations_teach_together(
    tmp_path: Path, script: list[float], snapshots: int, steps: list[int]
) -> None:
    """Bug: the logits are those of the best weights alone, of the last ones, or of the present ones."""
    names = ["polarity", "colors", "answer", "overlap"]
    trainer = tiny_trainer(
        tmp_path,
        dict.fromkeys(names, 8),
        {**dict.fromkeys(names, script), "overlap": GROWING},
        kind=Keeper,
        model=tiny_model(names),
        distillation={"snapshots": snapshots},
        eval_steps=2,
        num_train_epochs=3,
        **LAST_WEIGHTS,
    )
    trainer.train()
    assert isinstance(trainer, Keeper)
    assert {trainer.schedule.phases[name] for name in names[:3]} == {"distilling"}
    assert trainer.schedule.teacher_steps("polarity") == steps
    model = trainer.model.eval()
    kept = [trainer.evaluated[step] for step in steps]
    model.load_state_dict({name: torch.stack([state[name] for state in kept]).mean(0) for name in kept[0]})
    for name in names[:3]:
        for example in range(8):
            batch = trainer.data_collator([trainer.encoded_train[name][example]])
            batch.pop("example_ids")
            with torch.no_grad():
                own = model(**batch).logits[name]
            recorded = trainer.teachers._opened[name].lookup(torch.tensor([example]))
            torch.testing.assert_close(recorded.view(own.shape), own, atol=1e-5, rtol=1e-5)


def test_an_average_leaves_the_run_alone(tmp_path: Path) -> None:
    """Bug: the live weights become the average, or the recording moves the numbers that dropout takes."""
    runs = []
    for action in ("continue", "distill"):
        trainer = tiny_trainer(
            tmp_path / action,
            {"polarity": 16, "overlap": 16},
            {"polarity": [0.5, 0.7, 0.6], "overlap": GROWING},
            convergence={"patience": 1, "on_convergence": action, "final_evaluations": None},
            # With labels alone the two runs differ in nothing but the recording.
            distillation={"hard_label_weight": 1.0, "snapshots": 2},
            eval_steps=2,
            **LAST_WEIGHTS,
        )
        trainer.train()
        runs.append(trainer)
    assert runs[1].schedule.phases["polarity"] == "distilling"
    assert different(weights(runs[0]), weights(runs[1])) == []


# -- what a teacher is worth ------------------------------------------------------------------------------------------


def judged(teachers: Teachers, name: str, logits: list[np.ndarray]) -> dict[str, float | None]:
    put_all(teachers.writer(name, step=3), logits)
    teachers.open([name])
    teachers.judge(name)
    return teachers.quality[name]


def by_heart(task: EncodedTask, size: float) -> list[np.ndarray]:
    """Logits of so much for the label, and of 0 for the rest."""
    return [size * np.eye(2, dtype=np.float32)[[label]] for label in task.rows["labels"]]


@pytest.mark.parametrize(("size", "told"), [(20.0, True), (1.0, False)])
def test_a_teacher_that_knows_its_rows_by_heart_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: float, told: bool
) -> None:
    """Bug: distillation saves its task from nothing, and nobody says so; or every teacher is warned of."""
    teachers = teachers_of(tmp_path, "polarity")
    quality = judged(teachers, "polarity", by_heart(teachers.train["polarity"], size))
    assert quality["accuracy"] == 1.0
    assert "residual" not in quality
    expected = quality_of(
        "classification",
        torch.tensor(np.concatenate(by_heart(teachers.train["polarity"], size))),
        teachers.train["polarity"].rows["labels"],
    )
    assert quality == {key: value for key, value in asdict(expected).items() if value is not None}
    assert [record.message for record in caplog.records] == [degenerate_warning("polarity", expected)] * told


def test_a_teacher_is_judged_at_the_temperature_that_it_teaches_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: a remedy that the warning names does not silence it."""
    teachers = teachers_of(tmp_path, "polarity", temperature=20.0)
    quality = judged(teachers, "polarity", by_heart(teachers.train["polarity"], 20.0))
    assert quality["entropy"] is not None
    assert quality["entropy"] > 0.5
    assert not caplog.records


@pytest.mark.parametrize(("noise", "told"), [(1e-3, True), (1.0, False)])
def test_a_regression_has_no_temperature(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, noise: float, told: bool
) -> None:
    """Bug: predictions in the data's own units are divided by a temperature that their loss does not know."""
    teachers = teachers_of(tmp_path, "overlap", temperature=4.0)
    targets = np.array(teachers.train["overlap"].rows["labels"])
    errors = noise * np.where(np.arange(len(targets)) % 2, 1.0, -1.0)
    quality = judged(teachers, "overlap", [np.array([x]) for x in targets + errors])
    assert quality.keys() == {"residual"}
    assert quality["residual"] == pytest.approx(noise / targets.std(), rel=1e-4)
    assert any("miss the targets" in record.message for record in caplog.records) is told


@pytest.mark.parametrize("name", ALL)
def test_every_type_has_a_quality(tmp_path: Path, name: str) -> None:
    """Bug: a type's logits and labels do not have as many rows, and the run ends where its task converges."""
    teachers = teachers_of(tmp_path, name)
    task = teachers.train[name]
    generator = np.random.default_rng(0)
    columns = {"overlap": (), "choice": (2,)}.get(name, (task.task.num_labels,))
    logits = [generator.normal(size=(count, *columns)) for count in unit_counts(task.task, task.rows)]
    quality = judged(teachers, name, logits)
    expected = {"overlap": {"residual"}, "answer": set()}.get(name, {"entropy", "calibration", "accuracy"})
    assert quality.keys() == expected
    # It goes into JSON files.
    assert json.loads(json.dumps(teachers.state_dict(), allow_nan=False))["quality"] == {name: quality}


def test_other_examples_are_refused(tmp_path: Path) -> None:
    """Bug: logits of other rows teach each example another one's answer."""
    teachers = teachers_of(tmp_path, "polarity")
    put_all(teachers.writer("polarity", step=3), by_heart(teachers.train["polarity"], 1.0))
    other = Teachers(tmp_path / "_teachers", DistillationConfig(), {"polarity": encoded("polarity", seed=1)})
    other.begin()
    with pytest.raises(TeacherError, match="belong to other training examples"):
        other.open(["polarity"])


def test_a_new_run_knows_nothing_of_the_last(tmp_path: Path) -> None:
    """Bug: a second call of `train` teaches from the first one's logits, and reports what they were worth."""
    teachers = teachers_of(tmp_path, "polarity")
    judged(teachers, "polarity", by_heart(teachers.train["polarity"], 1.0))
    teachers.begin()
    assert teachers.quality == {}
    with pytest.raises(KeyError):
        teachers.losses("polarity", *[None] * 7)  # type: ignore[arg-type]


PAIR = {"polarity": 16, "overlap": 16}
SCRIPT = {"polarity": [0.5, 0.4], "overlap": [0.2, 0.3, 0.25, 0.2]}
SETTINGS: dict[str, Any] = {"eval_steps": 2, "num_train_epochs": 3}


def test_the_report_says_what_teachers_are_worth(tmp_path: Path) -> None:
    """Bug: the quality is that of other logits, comes too late for the report, or is lost on resuming."""
    trainer = tiny_trainer(tmp_path / "whole", PAIR, SCRIPT, **SETTINGS)
    trainer.train()
    written = json.loads((tmp_path / "whole" / "convergence.json").read_text())
    assert written == trainer.report()
    for name in PAIR:
        rows = trainer.encoded_train[name].rows
        recorded = trainer.teachers._opened[name]
        expected = quality_of(task_configs()[name].type, recorded.logits, rows["labels"])
        quality = {key: value for key, value in asdict(expected).items() if value is not None}
        assert written["tasks"][name]["teacher_quality"] == quality
    # Both have converged by step 8.
    killed = tiny_trainer(tmp_path / "killed", PAIR, SCRIPT, callbacks=[Interruption(9)], **SETTINGS)
    with pytest.raises(InterruptedRunError):
        killed.train()
    at_8 = json.loads((tmp_path / "killed" / "convergence.json").read_text())
    assert {name: task["teacher_quality"] for name, task in at_8["tasks"].items()} == {
        name: task["teacher_quality"] for name, task in written["tasks"].items()
    }
    resumed = tiny_trainer(tmp_path / "killed", PAIR, SCRIPT, **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert json.loads((tmp_path / "killed" / "convergence.json").read_text()) == written


def test_a_task_that_learns_has_no_quality(tmp_path: Path) -> None:
    """Bug: the report speaks of a teacher that there is not."""
    trainer = tiny_trainer(tmp_path, PAIR, {"polarity": [0.5, 0.4], "overlap": GROWING}, **SETTINGS)
    assert not any("teacher_quality" in task for task in trainer.report()["tasks"].values())
    trainer.train()
    has = {name: "teacher_quality" in task for name, task in trainer.report()["tasks"].items()}
    assert has == {"polarity": True, "overlap": False}


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
    store.save_answers(name, 40, answers)
    found = store.load_answers(name, 40)
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
    assert [path.name for path in store.folder.iterdir()] == [f"answers-{name}.json"]


def test_later_predictions_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    """Bug: an evaluation is compared with predictions of a step that no longer matters."""
    store = TeacherStore(tmp_path)
    store.save_answers("polarity", 40, [0, 1])
    store.save_answers("polarity", 80, [1, 1])
    assert store.load_answers("polarity", 80) == [1, 1]
    path = tmp_path / "answers-polarity.json"
    with pytest.raises(TeacherError) as error:
        store.load_answers("polarity", 40)
    assert str(error.value) == (
        f"The validation predictions {path} must be those of step 40, which the next evaluation is compared with; "
        "found those of step 80. Resume from a checkpoint that was written with this criterion, or start afresh."
    )


def test_missing_predictions_are_told(tmp_path: Path) -> None:
    """Bug: a criterion that is new on resuming ends in a `FileNotFoundError`."""
    with pytest.raises(TeacherError, match=r"answers-polarity\.json must be those of step 40, .* found no such file"):
        TeacherStore(tmp_path / "nowhere").load_answers("polarity", 40)


@pytest.mark.parametrize("content", [b"", b'{"step": 40, "answers": [0', b"\x00" * 20, b"\xff\xfe\x00rubbish"])
def test_damaged_predictions_are_told(tmp_path: Path, content: bytes) -> None:
    """Bug: a checkpoint that was copied in part ends in a message of a file format."""
    (tmp_path / "answers-polarity.json").write_bytes(content)
    with pytest.raises(TeacherError, match=r"answers-polarity\.json is damaged \(.*\)\. Was its checkpoint copied"):
        TeacherStore(tmp_path).load_answers("polarity", 40)


def test_predictions_travel_with_their_checkpoint(tmp_path: Path) -> None:
    """Bug: a checkpoint that is copied alone lacks what its next evaluation is compared with."""
    store = TeacherStore(tmp_path / "_teachers")
    store.save_answers("polarity", 40, [0, 1])
    store.save_snapshot(40, some_weights(1))
    store.keep_snapshots([])
    assert store.load_answers("polarity", 40) == [0, 1]
    store.link_into(tmp_path / "checkpoint-40" / "_teachers")
    # The run goes on, in the same file.
    store.save_answers("polarity", 80, [1, 1])
    shutil.copytree(tmp_path / "checkpoint-40", tmp_path / "elsewhere")
    other = TeacherStore(tmp_path / "run" / "_teachers")
    other.save_answers("overlap", 20, [0.5])
    other.replace_with(tmp_path / "elsewhere" / "_teachers")
    assert other.load_answers("polarity", 40) == [0, 1]
    assert [path.name for path in other.folder.iterdir()] == ["answers-polarity.json"]


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
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        schedule = state["stateful_callbacks"]["ConvergenceCallback"]["attributes"]["schedule"]
        store = TeacherStore(tmp_path / f"checkpoint-{step}" / "_teachers")
        for name in PAIR:
            if schedule["tasks"][name]["phase"] != "learning":
                continue
            reference = schedule["tasks"][name]["criterion"]["state"]["reference_step"]
            assert len(store.load_answers(name, reference)) == 6


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
        step: RecordedLogits(tmp_path / f"checkpoint-{step}" / "_teachers" / "logits-polarity.safetensors").metadata[
            "step"
        ]
        for step in (4, 6, 8)
    }
    assert steps == {4: "2", 6: "6", 8: "6"}
