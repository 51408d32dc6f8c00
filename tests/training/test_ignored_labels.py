"""Labels that are ignored, and labels that training lacks: what a run trains, scores and says."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, List, Value
from runs import tiny_model, tiny_trainer, weights
from tiny import raw_sets, task_configs, tiny_tokenizer

from hf_async_mtl import ConfigurationError, MultiTaskConfig, MultiTaskModel, TaskConfig
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.metrics import compute
from hf_async_mtl.tasks.registry import TASK_TYPES
from hf_async_mtl.tasks.rows import label_messages, labeled_rows, untrained_classes
from hf_async_mtl.training.evaluation import TaskEvaluator
from hf_async_mtl.training.trainer import AsyncMTLTrainer

NAMES = ["polarity", "colors", "topics", "choice"]


@pytest.fixture(autouse=True)
def propagate() -> Iterator[None]:
    """Transformers' loggers do not reach pytest by themselves."""
    logger = logging.getLogger("transformers"), logging.getLogger("hf_async_mtl")
    before = [(own, own.propagate) for own in logger]
    for own in logger:
        own.propagate = True
    yield
    for own, value in before:
        own.propagate = value


def with_ignored(name: str, rows: Dataset) -> Dataset:
    """The rows, with a row before each that has the label -100 only."""
    (column,) = task_configs()[name].target_columns
    names = {"polarity": ["neg", "pos"], "colors": ["O", "B-color"], "topics": ["cat", "dog", "hat"]}.get(name)

    def index(label: Any) -> Any:
        return label if names is None else names.index(label)

    found = []
    for row in rows:
        label = row[column]
        indices = list(map(index, label)) if isinstance(label, list) else index(label)
        nothing = ([-100] * len(label) or [-100]) if isinstance(label, list) else -100
        found += [{**row, column: nothing}, {**row, column: indices}]
    return Dataset.from_list(found)


def test_rows_whose_label_is_ignored_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: -100 is a class that is trained and scored. Without the rows, a run is the same to the last bit."""
    rows, evaluation = ({name: raw_sets(12, seed)[name] for name in NAMES} for seed in (0, 1))
    found = []
    for change in (lambda name, own: own, with_ignored):
        train, held_out = ({name: change(name, own) for name, own in sets.items()} for sets in (rows, evaluation))
        trainer = tiny_trainer(
            tmp_path,
            dict.fromkeys(NAMES, 12),
            train=train,
            evaluation=held_out,
            max_steps=3,
            eval_steps=3,
            num_train_epochs=1,
        )
        trainer.train()
        metrics = trainer.evaluate({name: held_out[name] for name in NAMES})
        found.append(
            (
                weights(trainer),
                {key: value for key, value in metrics.items() if "runtime" not in key and "second" not in key},
            )
        )
    assert found[0][1] == found[1][1]
    assert all(torch.equal(found[0][0][key], found[1][0][key]) for key in found[0][0])
    said = [record.message for record in caplog.records if "are left out of the task" in record.message]
    assert said[0] == (
        "Task 'polarity': 12 of 24 train rows and 12 of 24 validation rows have no label in 'label', and are left out "
        "of the task."
    )


@pytest.mark.parametrize("labels", [["a", "b", "-100"], [0.0, 1.0, -100.0], [0, 1, -100]])
def test_rows_are_left_out_in_every_way_to_write_numbers(labels: list[Any]) -> None:
    """Bug: in a column of strings or of floats, -100 is a class."""
    rows = Dataset.from_dict({"text": ["cat"] * 3, "label": labels})
    task = TaskConfig("classification", ["text"]).resolve(rows)
    assert task.num_labels == 2
    assert len(labeled_rows(rows, task)) == 2


@pytest.mark.parametrize("ignored", [-100, -1])
def test_ignored_words_have_neither_loss_nor_metric(ignored: int) -> None:
    """Bug: the tag -100 of a word is one more class; -1 is refused."""
    rows = Dataset.from_dict({"tokens": [["red", "cat", "blue"]] * 2, "tags": [[1, ignored, 1], [0, 1, ignored]]})
    task = TaskConfig("token_classification", ["tokens"], "tags", metrics=["accuracy"]).resolve(rows)
    assert task.label_names == ["0", "1"]
    encoded = encode(rows, "t", task, tiny_tokenizer(), 16)
    assert [[x for x in labels if x != -100] for labels in encoded["labels"]] == [[1, 1], [0, 1]]
    kind = TASK_TYPES[task.type]
    assert kind.references(task, encoded) == [["1", "1"], ["0", "1"]]
    logits = np.zeros((2, 5, 2))  # the first class everywhere
    assert kind.metric_predictions(task, logits, encoded) == [["0", "0"], ["0", "0"]]


def test_ignored_labels_of_a_vector_have_neither_loss_nor_metric() -> None:
    """Bug: an unknown label of a vector is refused, or trained as one that does not apply."""
    rows = Dataset.from_dict({"text": ["cat", "dog"], "y": [[1, -100, 0], [0, 1, -100]]})
    task = TaskConfig("multilabel", ["text"], "y", label_names=["a", "b", "c"])
    encoded = encode(rows, "t", task, tiny_tokenizer(), 16)
    kind = TASK_TYPES[task.type]
    references, predictions = kind.references(task, encoded), kind.metric_predictions(task, np.ones((2, 3)), encoded)
    assert references == [[1, -100, 0], [0, 1, -100]]
    assert predictions == [[1, -100, 1], [1, 1, -100]]
    # Two of four decisions are right, both of the ones that apply.
    found = compute(["micro_f1", "micro_precision", "accuracy"], task.type, predictions, references)
    assert found == {"micro_f1": pytest.approx(2 / 3), "micro_precision": 0.5, "accuracy": 0.0}


def test_a_metric_over_two_labels_is_not_that_of_one() -> None:
    """Bug: the card says that the average precision over both labels is that of the second."""
    names = {kind: TaskConfig(kind, ["text"], label_names=["no", "yes"]) for kind in ("classification", "multilabel")}
    found = {kind: TASK_TYPES[kind].class_of_metric(task, "average_precision") for kind, task in names.items()}
    assert found == {"classification": "yes", "multilabel": None}


def one_task_trainer(
    folder: Path, task: TaskConfig, rows: Dataset, evaluation: Dataset | None = None
) -> AsyncMTLTrainer:
    model = tiny_model(["polarity"])
    config = MultiTaskConfig(encoder_config=model.config.encoder_config, tasks={"t": task}, max_length=16)
    return tiny_trainer(
        folder,
        {"t": 4},
        model=MultiTaskModel(config),
        train={"t": rows},
        evaluation={"t": rows if evaluation is None else evaluation},
    )


def test_rows_to_predict_may_have_ignored_labels(tmp_path: Path) -> None:
    """Bug: rows without a label are dropped from the predictions, or scored as a class."""
    rows = Dataset.from_dict({"text": ["good", "bad", "cat", "dog"], "label": [0, 1, -100, -100]})
    task = TaskConfig("classification", ["text"]).resolve(rows)
    trainer = one_task_trainer(tmp_path, task, rows)
    output = trainer.predict({"t": rows})["t"]
    assert output.predictions.shape == (4, 2)
    assert output.label_ids.tolist() == [0, 1, -100, -100]
    labeled = trainer.predict({"t": rows.select([0, 1])})["t"]
    assert output.metrics["test_t_accuracy"] == labeled.metrics["test_t_accuracy"]
    assert output.metrics["test_t_loss"] == pytest.approx(labeled.metrics["test_t_loss"])


def test_labels_that_training_lacks_are_errors_of_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a class in a validation file that training lacks refuses the run, or is read as another class."""
    train = Dataset.from_dict({"text": ["good", "bad"] * 2, "label": ["pos", "neg"] * 2})
    held_out = Dataset.from_dict({"text": ["good", "bad", "cat", "dog"], "label": ["pos", "meh", "neg", "odd"]})
    task = TaskConfig("classification", ["text"], metrics=["macro_f1", "accuracy"]).resolve(train)
    trainer = one_task_trainer(tmp_path, task, train, held_out)
    assert [record.message for record in caplog.records if "none of its classes" in record.message] == [
        "Task 't': 2 of 4 labels of the validation split are none of its classes (meh: 1, odd: 1). They count as "
        "errors of the model."
    ]
    evaluator, rows = trainer.evaluator, trainer.eval_dataset["t"]
    right = np.array([[-1.0, 1.0], [1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    # As scikit-learn: f1_score([pos, meh, neg, odd], [pos, neg, neg, neg], average="macro").
    assert evaluator.metrics(rows, right) == {"macro_f1": pytest.approx((1 + 0.5) / 4), "accuracy": 0.5}
    metrics = trainer.evaluate()
    assert np.isfinite(metrics["eval_t_loss"])


def test_messages_about_labels_name_the_task_and_its_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a further set was a task of its own; a training label that is refused was first an error of the model."""
    train = Dataset.from_dict({"text": ["good", "bad"] * 2, "label": ["pos", "neg"] * 2})
    further = Dataset.from_dict({"text": ["good", "cat"], "label": ["pos", "meh"]})
    task = TaskConfig("classification", ["text"]).resolve(train)
    trainer = one_task_trainer(tmp_path, task, train)
    trainer.evaluate({"t": train, "t_hard": further})
    trainer.predict({"t": further})
    found = [record.message.split(" are")[0] for record in caplog.records if "none of its classes" in record.message]
    assert found == [
        "Task 't': 1 of 2 labels of the validation_hard split",
        "Task 't': 1 of 2 labels of the test split",
    ]
    caplog.clear()
    with pytest.raises(ConfigurationError, match=r"Task 't', train split, column 'label', row 1: .* found 'meh'"):
        one_task_trainer(tmp_path, task, further, train)
    assert not [record for record in caplog.records if "errors of the model" in record.message]


def test_tags_that_training_lacks_are_chunks_that_are_missed() -> None:
    """Bug: an `I-show` of a test file refuses the run; read as another tag, it would end a chunk and make it right."""
    train = Dataset.from_dict({"tokens": [["red", "cat"]], "tags": [["O", "B-show"]]})
    rows = Dataset.from_dict({"tokens": [["red", "cat"]] * 2, "tags": [["B-show", "I-show"], ["B-show", "O"]]})
    task = TaskConfig("token_classification", ["tokens"], "tags").resolve(train)
    encoded = encode(rows, "t", task, tiny_tokenizer(), 16, split="test")
    dataset = TaskDataset("t", 0, task, encoded)
    assert [label for label in dataset[0]["labels"] if label != -100] == [1]  # no loss for the unknown tag
    logits = np.array([[[0, 0], [0, 1], [1, 0], [0, 0]]] * 2)  # B-show O
    evaluator = TaskEvaluator(tiny_model(["polarity"]), {}, {})
    assert evaluator.metrics(dataset, logits) == {"seqeval_f1": 0.5}


@pytest.mark.parametrize("outside", ["O", "o", "OTHER"])
def test_metrics_of_tags_are_over_all_words(outside: str) -> None:
    """Bug: F1 is over the words that are read: 1 where half of the chunks are behind the maximum length."""
    words = ["red", "cat", "dog", "hat"] * 4
    tags = ["b-x" if word == "red" else outside for word in words]
    rows = Dataset.from_dict({"tokens": [words], "tags": [tags]})
    task = TaskConfig("token_classification", ["tokens"], "tags", metrics=["seqeval_f1", "accuracy"]).resolve(rows)
    assert task.label_names is not None
    dataset = TaskDataset("t", 0, task, encode(rows, "t", task, tiny_tokenizer(), 10))
    read = [task.label_names.index(tag) for tag in tags[:8]]  # beside [CLS] and [SEP]
    logits = np.eye(2)[[0, *read, 0]][None]
    metrics = TaskEvaluator(tiny_model(["polarity"]), {}, {}).metrics(dataset, logits)
    assert metrics == {"seqeval_f1": pytest.approx(2 * 2 / (2 + 4)), "accuracy": 14 / 16}


def test_labels_of_several_per_row_that_training_lacks_are_missed() -> None:
    """Bug: a topic in a validation file that training lacks refuses the run."""
    train = Dataset.from_dict({"text": ["cat", "dog"], "topics": [["a"], ["b"]]})
    rows = Dataset.from_dict({"text": ["cat", "dog"], "topics": [["a", "c"], ["b"]]})
    task = TaskConfig("multilabel", ["text"], "topics", metrics=["micro_f1", "accuracy"]).resolve(train)
    dataset = TaskDataset("t", 0, task, encode(rows, "t", task, tiny_tokenizer(), 16, split="test"))
    assert dataset[0]["labels"] == [1, 0]
    metrics = TaskEvaluator(tiny_model(["polarity"]), {}, {}).metrics(dataset, np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert metrics == {"micro_f1": pytest.approx(4 / 5), "accuracy": 0.5}


def test_classes_without_a_training_row_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a class whose only rows were held out is in the model, never trained, and nobody says so."""
    train = Dataset.from_dict({"text": ["good", "bad"] * 2, "label": ["pos", "neg"] * 2})
    held_out = Dataset.from_dict({"text": ["good", "bad", "cat"], "label": ["pos", "meh", "meh"]})
    task = TaskConfig("classification", ["text"], label_names=["neg", "meh", "pos", "odd"])
    one_task_trainer(tmp_path, task, train, held_out)
    assert [record.message for record in caplog.records if "no training row" in record.message] == [
        "Task 't': 2 of 4 classes have no training row, and cannot be learned. They, and their number in the "
        "evaluation sets: meh: 2, odd: 0."
    ]


@pytest.mark.parametrize("label_column", ["y", ["a", "b", "c"]])
def test_labels_of_vectors_are_counted(label_column: Any) -> None:
    """Bug: of vectors of 0 and 1 nobody says that labels are ignored, or never apply in training."""
    vectors = [[1, -100, 0], [0, 0, 0], [1, 0, -100]]
    columns = {name: [row[place] for row in vectors] for place, name in enumerate("abc")}
    rows = Dataset.from_dict({"text": ["cat"] * 3, "y": vectors, **columns})
    task = TaskConfig("multilabel", ["text"], label_column, label_names=["a", "b", "c"])
    assert label_messages("t", task, rows, "train") == [
        "Task 't': 2 of 9 labels of the train split say that there is no label (-100, or -1 for a word), and are "
        "ignored."
    ]
    other = Dataset.from_dict({"text": ["dog"], "y": [[0, 1, 0]], "a": [0], "b": [1], "c": [0]})
    assert untrained_classes("t", task, rows, [other]) == (
        "Task 't': 2 of 3 classes have no training row, and cannot be learned. They, and their number in the "
        "evaluation sets: b: 1, c: 0."
    )


@pytest.mark.parametrize("in_lists", [False, True])
@pytest.mark.parametrize("names", [["anger", "fear", "joy"], ["mixed", "anger", "joy", "sadness"]])
def test_a_validation_schema_with_other_names_is_refused(names: list[str], in_lists: bool) -> None:
    """Bug: `ClassLabel` columns with other names than in training are read by index, and half of the rows are wrong."""
    kind = "multilabel" if in_lists else "classification"
    task = TaskConfig(kind, ["text"], label_names=["anger", "joy", "sadness"])
    feature = List(ClassLabel(names=names)) if in_lists else ClassLabel(names=names)
    rows = Dataset.from_dict({"text": ["cat"], "label": [[0] if in_lists else 0]})
    rows = rows.cast(rows.features.__class__({"text": Value("string"), "label": feature}))
    with pytest.raises(ConfigurationError) as caught:
        encode(rows, "t", task, tiny_tokenizer(), 16, split="validation")
    message = str(caught.value)
    assert message.startswith("Task 't', validation split, column 'label': The names of the column's `ClassLabel` must")
    assert "[anger, joy, sadness]" in message
    assert f"[{', '.join(names)}]" in message


def test_a_message_names_the_split_and_the_row_of_the_file() -> None:
    """Bug: of rows that were filtered, drawn and split off, the message named the place among those that were left."""
    rows = Dataset.from_dict({"text": ["cat"] * 9, "label": [*["neg", "pos"] * 4, "bad"]})
    task = TaskConfig("classification", ["text"], label_names=["neg", "pos"])
    drawn = rows.filter(lambda row: row["label"] != "neg").select([4, 0])
    with pytest.raises(ConfigurationError, match=r"^Task 't', train split, column 'label', row 8: .*found 'bad'"):
        encode(drawn, "t", task, tiny_tokenizer(), 16, split="train")
