"""`Trainer.predict` and `evaluate` on a dictionary of raw sets, and on one set whose task is named or found."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from runs import ALL, some_rows, tiny_model, tiny_trainer
from tiny import tiny_tokenizer
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import PredictionOutput

from hf_async_mtl import AsyncMTLTrainer, ConfigurationError, MultiTaskModel, TaskConfig
from hf_async_mtl.training.task_sets import find_task

SIZES = dict.fromkeys(ALL, 5)
LABELS = {
    "polarity": ["label"],
    "overlap": ["score"],
    "colors": ["tags"],
    "choice": ["label"],
    "topics": ["topics"],
    "answer": ["answers"],
}


def assert_equal(found: PredictionOutput, expected: PredictionOutput) -> None:
    np.testing.assert_array_equal(found.predictions, expected.predictions)
    for left, right in zip(found.label_ids, expected.label_ids, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_trainer(tmp_path_factory.mktemp("predict"), SIZES, model=tiny_model(ALL), per_device_eval_batch_size=2)


def test_a_dictionary_has_a_result_for_each_task(trainer: Any) -> None:
    """Bug: raw rows reach the collator, logits are in the order of the batches, or labels are those of another task."""
    rows = some_rows(SIZES, seed=2)
    found = trainer.predict(rows)
    assert list(found) == ALL
    metrics = trainer.evaluate(rows, metric_key_prefix="test")
    model = trainer.model.eval()
    for name, result in found.items():
        assert len(result.predictions) == len(result.label_ids) == 5
        for metric in (*trainer.tasks[name].metrics, "loss"):
            assert result.metrics[f"test_{name}_{metric}"] == pytest.approx(metrics[f"test_{name}_{metric}"])
        encoded = trainer.task_sets.encode({name: rows[name]})[name]
        batch = trainer.data_collator([encoded[3]])
        batch.pop("example_ids")
        with torch.no_grad():
            own = model(**batch).logits[name].numpy()
        np.testing.assert_allclose(np.ravel(result.predictions[3])[: own.size], np.ravel(own), atol=1e-5)
    assert found["polarity"].label_ids.tolist() == [["neg", "pos"].index(label) for label in rows["polarity"]["label"]]
    # Tokens are padded to the longest example, as the labels are.
    assert found["colors"].label_ids.shape == found["colors"].predictions.shape[:2]


@pytest.mark.parametrize("name", ["overlap", "colors", "choice", "answer"])
def test_one_set_is_the_same_as_in_a_dictionary(trainer: Any, name: str) -> None:
    """Bug: a single raw set, as upstream takes it, fails or is read as another task's."""
    rows = some_rows(SIZES, seed=2)[name]
    expected = trainer.predict({name: rows})[name]
    assert_equal(trainer.predict(rows), expected)
    encoded = trainer.predict(trainer.task_sets.encode({name: rows})[name])
    assert_equal(encoded, expected)
    value = f"test_{trainer.tasks[name].monitored}"
    assert encoded.metrics[value] == expected.metrics[f"test_{name}_{trainer.tasks[name].monitored}"]
    assert trainer.evaluate(rows, metric_key_prefix="test")[value] == encoded.metrics[value]


def metric_of(name: str, result: PredictionOutput) -> float:
    """The monitored metric by its definition, from logits and labels alone."""
    logits, labels = result.predictions, result.label_ids
    if name in ("polarity", "choice"):
        return float(np.mean(logits.argmax(-1) == labels))
    if name == "overlap":
        return float(np.corrcoef(logits, labels)[0, 1])
    if name == "topics":
        predicted, true = logits > 0, labels == 1
    else:  # each B- is a chunk
        predicted, true = ((values == 1)[labels != -100] for values in (logits.argmax(-1), labels))
    return float(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))


def test_metrics_are_those_of_the_logits(trainer: Any) -> None:
    """Bug: a set is scored against the labels of the set that was evaluated last, or of another task."""
    rows = some_rows(SIZES, seed=2)
    trainer.evaluate(some_rows(SIZES, seed=3))
    found = {}
    for name in ("polarity", "overlap", "colors", "choice", "topics"):
        task, metric = trainer.tasks[name], f"test_{trainer.tasks[name].monitored}"
        encoded = trainer.task_sets.encode({name: rows[name]})[name]
        named = trainer.predict({name: rows[name]})[name]
        value = found[name] = pytest.approx(metric_of(name, named))
        assert named.metrics[f"test_{name}_{task.monitored}"] == value
        assert trainer.predict(encoded).metrics[metric] == value
        assert trainer.evaluate(encoded, metric_key_prefix="test")[metric] == value
        assert trainer.evaluate({name: rows[name]}, metric_key_prefix="test")[f"test_{name}_{task.monitored}"] == value
        if name not in ("polarity", "topics"):  # which read one column
            assert trainer.predict(rows[name]).metrics[metric] == value
    assert len({value.expected for value in found.values()}) > 2
    assert trainer.evaluate("overlap")["eval_pearson"] == trainer.evaluate()["eval_overlap_pearson"]


def test_rows_without_labels_are_predicted(trainer: Any) -> None:
    """Bug: new rows need labels; or places of words are taken for labels of tokens, and scored."""
    rows = some_rows(SIZES, seed=2)
    expected = trainer.predict(rows)
    bare = {name: own.remove_columns(LABELS[name]) for name, own in rows.items()}
    for name, result in trainer.predict(bare).items():
        np.testing.assert_array_equal(result.predictions, expected[name].predictions)
        assert result.label_ids is None
        assert not any(
            f"_{metric}" in key for key in result.metrics for metric in (*trainer.tasks[name].metrics, "loss")
        )
    with pytest.raises(ConfigurationError, match="Task 'overlap' reads the column 'score'; its data has left, right"):
        trainer.evaluate(bare["overlap"])


def test_predictions_after_save_and_reload(trainer: Any, tmp_path: Path) -> None:
    """Bug: the saved model predicts otherwise than the one in memory."""
    rows = some_rows(SIZES, seed=2)
    trainer.save_model(str(tmp_path))
    model = MultiTaskModel.from_pretrained(tmp_path)
    again = tiny_trainer(tmp_path / "again", SIZES, model=model, per_device_eval_batch_size=2)
    expected = trainer.predict(rows)
    for name, result in again.predict(rows).items():
        assert_equal(result, expected[name])
    assert_equal(again.predict(rows["overlap"]), expected["overlap"])
    plain = AsyncMTLTrainer(model=model, args=again.args, processing_class=tiny_tokenizer())
    assert_equal(plain.predict(rows["overlap"]), expected["overlap"])
    metrics = [kind.evaluate(rows["overlap"], metric_key_prefix="test") for kind in (plain, trainer)]
    assert (
        metrics[0]["test_pearson"] == metrics[1]["test_pearson"] == expected["overlap"].metrics["test_overlap_pearson"]
    )


def test_a_set_of_no_task_or_of_several_is_refused(trainer: Any) -> None:
    """Bug: rows are read as those of the first task that fits."""
    rows = Dataset.from_dict({"text": ["good"]})
    with pytest.raises(ConfigurationError, match=r"text fit polarity, topics\. Name its task: {task: rows}"):
        trainer.predict(rows)
    with pytest.raises(ConfigurationError, match=r"words fit none\."):
        trainer.predict(Dataset.from_dict({"words": ["good"]}))
    with pytest.raises(
        ConfigurationError, match=r"must be a `datasets\.Dataset`, or a dictionary of one per task; found"
    ):
        trainer.predict([{"text": "good"}])


def test_labels_decide_between_tasks_on_one_text() -> None:
    """Bug: two tasks on one text can never be told apart, though their labels have columns of their own."""
    tasks = {name: TaskConfig("classification", ["text"], label_column=name) for name in ("mood", "topic")}
    assert find_task(["text", "topic", "id"], tasks) == "topic"
    with pytest.raises(ConfigurationError, match="text, mood, topic fit mood, topic"):
        find_task(["text", "mood", "topic"], tasks)


@pytest.mark.parametrize("metric", ["average", "polarity_accuracy", "eval_overlap_pearson"])
def test_callbacks_see_all_metrics_at_once(metric: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: early stopping never sees `eval_average`, counts a task's metric twice, or warns for every other task."""
    seen: list[dict[str, float]] = []

    class Watcher(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            seen.append({"step": state.global_step, **metrics})

    pair = {"polarity": 16, "overlap": 16}
    trainer = tiny_trainer(
        tmp_path,
        pair,
        {"polarity": [0.9, 0.1, 0.1, 0.1], "overlap": [0.9, 0.1, 0.1, 0.1]},
        callbacks=[Watcher(), EarlyStoppingCallback(early_stopping_patience=2)],
        convergence={"patience": 9},
        eval_steps=2,
        metric_for_best_model=metric,
    )
    trainer.train()
    assert [metrics["step"] for metrics in seen] == [2, 4, 6]
    assert all({"eval_average", "eval_polarity_accuracy", "eval_overlap_pearson"} <= metrics.keys() for metrics in seen)
    assert trainer.state.global_step == 6
    assert "early stopping" not in caplog.text
