"""The positive one of two classes: found, set, scored and named."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from runs import tiny_model, tiny_trainer
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score
from tiny import tiny_tokenizer

from hf_async_mtl import ConfigurationError, MultiTaskConfig, MultiTaskModel, TaskConfig
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.report.tables import progress_table, render
from hf_async_mtl.training.evaluation import TaskEvaluator

METRICS = ["f1", "precision", "recall", "average_precision", "accuracy", "macro_f1"]


def rows_of(labels: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": ["good cat"] * len(labels), "label": labels})


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (["fraud", "legit", "legit", "legit"], "fraud"),
        (["legit", "fraud", "fraud", "fraud"], "legit"),
        (["a", "b"], "b"),
        # The names say it, whichever is rarer.
        (["yes", "yes", "no"], "yes"),
        ([1, 1, 0], "1"),
        ([True, True, False], "true"),
        (["spam", "spam", "not_spam"], "spam"),
    ],
)
def test_the_positive_class_is_the_rarer_one_where_the_names_do_not_say(labels: list[Any], positive: str) -> None:
    """Bug: F1 is that of the second name in the alphabet: 0.98 for a constant model, where frauds are looked for."""
    assert TaskConfig("classification", ["text"], metrics=["f1"]).resolve(rows_of(labels)).positive_label == positive


def test_the_positive_class_can_be_set() -> None:
    """Bug: the class that a user asks for is found in the data again."""
    task = TaskConfig("classification", ["text"], metrics=["f1"], positive_label="legit")
    assert task.resolve(rows_of(["fraud", "legit", "legit"])).positive_label == "legit"
    assert (
        TaskConfig("classification", ["text"], metrics=["accuracy"]).resolve(rows_of(["a", "b"])).positive_label is None
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"type": "classification", "label_names": ["a", "b", "c"]},
            "must be one of two classes; found 'x', and the classes a",
        ),
        (
            {"type": "classification", "label_names": ["a", "b"]},
            "must be one of two classes; found 'x', and the classes a",
        ),
        ({"type": "regression"}, "is for type classification; found 'x' in a regression task"),
    ],
)
def test_a_class_that_is_none_is_refused(settings: dict[str, Any], message: str) -> None:
    """Bug: a misspelled class is compared with no prediction, and F1 is 0."""
    with pytest.raises(ConfigurationError, match=message):
        TaskConfig(text_columns=["text"], positive_label="x", **settings)


@pytest.mark.parametrize("positive", ["a", "b"])
def test_metrics_are_those_of_the_positive_class(positive: str) -> None:
    """Bug: the class is named and another one is scored; or what is of both classes changes with it."""
    generator = np.random.default_rng(0)
    true, logits = generator.integers(2, size=40), generator.normal(size=(40, 2))
    task = TaskConfig("classification", ["text"], label_names=["a", "b"], metrics=METRICS, positive_label=positive)
    encoded = encode(rows_of([["a", "b"][label] for label in true]), "t", task, tiny_tokenizer(), 16)
    found = TaskEvaluator(tiny_model(["polarity"]), {}, {}).metrics(TaskDataset("t", 0, task, encoded), logits)
    index = ["a", "b"].index(positive)
    predicted, probabilities = logits.argmax(1), np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found == pytest.approx(
        {
            "f1": f1_score(true, predicted, pos_label=index),
            "precision": precision_score(true, predicted, pos_label=index),
            "recall": recall_score(true, predicted, pos_label=index),
            "average_precision": average_precision_score(true == index, probabilities[:, index]),
            "accuracy": (true == predicted).mean(),
            "macro_f1": f1_score(true, predicted, average="macro"),
        }
    )


def test_the_class_is_named_in_table_card_and_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a table says "f1", and nobody knows of which class."""
    rows = rows_of(["fraud", *["legit"] * 5])
    task = TaskConfig("classification", ["text"], metrics=["f1", "accuracy"]).resolve(rows)
    encoder = tiny_model(["polarity"]).config.encoder_config
    model = MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks={"t": task}, max_length=16))
    trainer = tiny_trainer(
        tmp_path, {"t": 6}, model=model, train={"t": rows}, evaluation={"t": rows}, max_steps=2, eval_steps=2
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert "f1 (fraud)" in render(progress_table(trainer.report()), StringIO())
    assert "`f1` of `fraud`" in (tmp_path / "README.md").read_text()
    assert "`accuracy` of" not in (tmp_path / "README.md").read_text()
    assert MultiTaskModel.from_pretrained(tmp_path).config.task_configs["t"].positive_label == "fraud"
    assert [record.message for record in caplog.records if "positive_label" in record.message] == [
        "Task 't': f1 is that of class 'fraud'. `positive_label` names another one."
    ]
