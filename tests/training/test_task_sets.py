"""Raw sets that a trainer is given: one table for several tasks, formats and transforms."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from runs import log_of, some_rows, tiny_model, tiny_trainer

from hf_async_mtl import ConfigurationError

TASKS = ["polarity", "topics"]


def one_table(seed: int = 0, rows: int = 8) -> tuple[Dataset, dict[str, Dataset]]:
    """A table with rows of two tasks on the same column of texts, and the rows of each."""
    own = some_rows(dict.fromkeys(TASKS, rows), seed)
    return concatenate_datasets(list(own.values())).shuffle(seed=seed), own


def test_a_table_trains_as_the_rows_of_each_task_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: rows without a label are trained on, evaluated or counted, or are reported for each of the sets."""
    (train, _), (validation, _) = one_table(), one_table(seed=1)
    own = {
        name: [table.filter(lambda row, column=column: row[column] is not None) for table in (train, validation)]
        for name, column in (("polarity", "label"), ("topics", "topics"))
    }
    runs = []
    for place, (rows, sets) in enumerate(
        (
            ({name: own[name][0] for name in TASKS}, {name: own[name][1] for name in TASKS}),
            (dict.fromkeys(TASKS, train), {**dict.fromkeys(TASKS, validation)}),
        )
    ):
        caplog.clear()
        trainer = tiny_trainer(
            tmp_path / str(place),
            dict.fromkeys(TASKS, 0),
            model=tiny_model(TASKS),
            train=rows,
            evaluation=sets,
            num_train_epochs=1,
            eval_steps=1,
            logging_steps=1,
        )
        found = [record.message for record in caplog.records if "left out" in record.message]
        trainer.train()
        runs.append(log_of(trainer))
    assert runs[0] == runs[1]
    assert found == [
        f"Task {name!r}: 8 of 16 train rows and 8 of 16 validation rows have no label in {column!r}, and are left out "
        "of the task."
        for name, column in (("polarity", "label"), ("topics", "topics"))
    ]
    # Sets that are given later.
    caplog.clear()
    assert trainer.evaluate({"polarity": validation})["eval_polarity_loss"] == pytest.approx(
        trainer.evaluate({"polarity": own["polarity"][1]})["eval_polarity_loss"]
    )
    assert [record.message for record in caplog.records if "left out" in record.message] == [
        "Task 'polarity': 8 of 16 validation rows have no label in 'label', and are left out of the task."
    ]
    predicted = trainer.predict({"polarity": validation})["polarity"]
    labeled = [place for place, label in enumerate(validation["label"]) if label is not None]
    expected = trainer.predict({"polarity": own["polarity"][1]})["polarity"]
    assert len(predicted.predictions) == 16
    np.testing.assert_allclose(predicted.predictions[labeled], expected.predictions, atol=1e-5)


def test_a_transform_is_refused_before_training(tmp_path: Path) -> None:
    """Bug: the texts that a transform makes are not those that the model reads, and nobody says so."""
    sizes = {"polarity": 8}
    rows = some_rows(sizes)
    lazy = {"polarity": rows["polarity"].with_transform(lambda batch: batch)}
    for sets in ({"train": lazy}, {"evaluation": lazy}):
        with pytest.raises(ConfigurationError, match=r"The rows of task 'polarity' must have no transform"):
            tiny_trainer(tmp_path, sizes, **sets)
    trainer = tiny_trainer(tmp_path, sizes)
    for read in (trainer.predict, trainer.evaluate):
        for sets in (lazy, lazy["polarity"]):
            with pytest.raises(ConfigurationError, match="must have no transform"):
                read(sets)


def test_a_format_changes_nothing_in_a_run(tmp_path: Path) -> None:
    """Bug: sets in numpy format fail in the middle of the preparation, or train on other numbers."""
    sizes = {"polarity": 8, "overlap": 8}
    runs = []
    for kind in (None, "numpy"):
        rows = {name: own.with_format(kind) for name, own in some_rows(sizes).items()}
        trainer = tiny_trainer(tmp_path / str(kind), sizes, train=rows, evaluation=rows, num_train_epochs=1)
        trainer.train()
        runs.append(log_of(trainer))
    assert runs[0] == runs[1]
