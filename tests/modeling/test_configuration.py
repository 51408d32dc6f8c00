"""Tasks and their model: what is wrong is refused in words, and what is right survives ``config.json``."""

import copy
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from families import TASKS, family_config

from hf_async_mtl.modeling.configuration_multitask import MultiTaskConfig, TaskConfig
from hf_async_mtl.tasks.labels import label_encoder
from hf_async_mtl.tasks.names import check_task_names
from hf_async_mtl.tasks.presets import PRESETS
from hf_async_mtl.tasks.registry import TASK_TYPES
from hf_async_mtl.validation import ConfigurationError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"type": "classify", "text_columns": ["a"]},
            "`type` must be one of classification, multilabel, regression, token_classification, multiple_choice, "
            "question_answering; found 'classify'.",
        ),
        (
            {"type": "classification", "text_columns": ["a", "b", "c"]},
            "`text_columns` of a classification task must be a list of 1 or 2 column name(s); found ['a', 'b', 'c'].",
        ),
        (
            {"type": "classification", "text_columns": []},
            "`text_columns` of a classification task must be a list of 1 or 2 column name(s); found [].",
        ),
        (
            {"type": "regression", "text_columns": [1]},
            "`text_columns` of a regression task must be a list of 1 or 2 column name(s); found [1].",
        ),
        (
            {"type": "token_classification", "text_columns": ["a", "b"]},
            "`text_columns` of a token_classification task must be a list of 1 column name(s); found ['a', 'b'].",
        ),
        (
            {"type": "question_answering", "text_columns": ["context"]},
            "`text_columns` of a question_answering task must be a list of 2 column name(s); found ['context'].",
        ),
        (
            {"type": "multiple_choice", "text_columns": ["a", "b"]},
            "`text_columns` of a multiple_choice task must be {prompt: [column, ...], choices: [column, column, "
            "...]} with two choices or more; found ['a', 'b'].",
        ),
        (
            {"type": "multiple_choice", "text_columns": {"prompt": ["p"], "choices": ["a"]}},
            "`text_columns` of a multiple_choice task must be {prompt: [column, ...], choices: [column, column, "
            "...]} with two choices or more; found {'prompt': ['p'], 'choices': ['a']}.",
        ),
        (
            {"type": "multiple_choice", "text_columns": {"prompt": ["p"], "choices": "ab"}},
            "`text_columns` of a multiple_choice task must be {prompt: [column, ...], choices: [column, column, "
            "...]} with two choices or more; found {'prompt': ['p'], 'choices': 'ab'}.",
        ),
        (
            {"type": "multiple_choice", "text_columns": {"prompts": ["p"], "choices": ["a", "b"]}},
            "`text_columns` of a multiple_choice task must be {prompt: [column, ...], choices: [column, column, "
            "...]} with two choices or more; found {'prompts': ['p'], 'choices': ['a', 'b']}.",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "metrics": []},
            "`metrics` must name at least one metric, each once; found [].",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "metrics": ["f1", "f1"]},
            "`metrics` must name at least one metric, each once; found ['f1', 'f1'].",
        ),
        (
            {"type": "regression", "text_columns": ["a"], "label_names": ["low", "high"]},
            "A regression task has no `label_names`; found ['low', 'high']. Remove the key.",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "label_names": ["x", "y", "x"]},
            "`label_names` must differ from each other; found 'x' 2 times. Name it once.",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "label_names": "yes"},
            "`label_names` must be a list of names; found 'yes'.",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "label_names": ["only"]},
            "A classification task needs two classes or more; found ['only']. Remove the task, or provide rows of "
            "at least two classes.",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "label_column": ["x", "y"]},
            "`label_column` must be one column in a classification task; found ['x', 'y']. Several 0/1 columns are "
            "type multilabel.",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "label_column": 3},
            "`label_column` must be the name of a column; found 3.",
        ),
        (
            {"type": "multilabel", "text_columns": ["a"], "label_column": []},
            "`label_column` must be the name of a column; found [].",
        ),
        (
            {"type": "multilabel", "text_columns": ["a"], "label_column": ["x", "y"], "label_names": ["x", "y", "z"]},
            "`label_names` must name each of the columns ['x', 'y']; found ['x', 'y', 'z']. Without the key, the "
            "labels have the names of their columns.",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "max_length": 4},
            "`max_length` must be a whole number of at least 8; found 4.",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "max_length": "64"},
            "`max_length` must be a whole number of at least 8; found '64'.",
        ),
        (
            {"type": "multiple_choice", "text_columns": {"prompt": ["p"], "choices": ["a", "b"]}, "doc_stride": 16},
            "`doc_stride` must be a whole number of at least 0, in a task of type classification or multilabel or "
            "regression or token_classification or question_answering; found 16 in a multiple_choice task.",
        ),
        (
            {"type": "question_answering", "text_columns": ["q", "c"], "doc_stride": -1},
            "`doc_stride` must be a whole number of at least 0, in a task of type classification or multilabel or "
            "regression or token_classification or question_answering; found -1 in a question_answering task.",
        ),
        (
            {"type": "classification", "text_columns": ["a"], "doc_pooling": "max"},
            "`doc_pooling` must be mean or max, and stands beside a `doc_stride` in a task of type classification or "
            "multilabel or regression; found 'max' in a classification task without a stride.",
        ),
        (
            {"type": "token_classification", "text_columns": ["a"], "doc_stride": 8, "doc_pooling": "mean"},
            "`doc_pooling` must be mean or max, and stands beside a `doc_stride` in a task of type classification or "
            "multilabel or regression; found 'mean' in a token_classification task with a stride.",
        ),
        (
            {"type": "regression", "text_columns": ["a"], "target_std": 0.0},
            "`target_std` must be greater than 0; found 0.0. Leave it out: `task.resolve(train_dataset)` finds it.",
        ),
    ],
)
def test_a_task_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    """A mistake in a task showed as a KeyError in the tokenizer, or as no error at all."""
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        TaskConfig(**fields)


@pytest.mark.parametrize(
    ("old", "new"),
    [("text", "text_columns"), ("label", "label_column"), ("labels", "label_names"), ("stride", "doc_stride")],
)
def test_a_field_of_version_1_is_answered_with_its_new_name(old: str, new: str) -> None:
    """Code of version 0.1 would end in a TypeError that does not say what the field is called now."""
    with pytest.raises(ConfigurationError, match=f"^`{old}` is now `{new}`. Rename the key.$"):
        TaskConfig("classification", **{old: ["a"]})  # type: ignore[arg-type]


def test_short_forms() -> None:
    """One column, one metric or one prompt had to be written as a list."""
    fields: dict[str, Any] = {"text_columns": "sentence", "metrics": "f1", "label_names": [0, 1]}
    task = TaskConfig("classification", **fields)
    assert (task.text_columns, task.metrics, task.label_names) == (["sentence"], ["f1"], ["0", "1"])
    text: Any = {"prompt": "p", "choices": ["a", "b"]}
    choice = TaskConfig("multiple_choice", text)
    assert choice.input_columns == ["p", "a", "b"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_type_has_its_default_metric_and_logits(task: TaskConfig) -> None:
    """A type without a default metric failed at its first evaluation."""
    assert task.monitored == TASK_TYPES[task.type].default_metric
    assert task.num_labels == {"question_answering": 2, "regression": 1, "multiple_choice": 1}.get(
        task.type, len(task.label_names or ())
    )
    assert TaskConfig(**json.loads(json.dumps(task.to_dict()))) == task


def test_labels_that_are_not_known_are_asked_for() -> None:
    """A head was built before its labels were found, with two logits by default."""
    with pytest.raises(
        ConfigurationError, match=r"not known yet. Give `label_names`, or call `task.resolve\(train_dataset\)`"
    ):
        _ = TaskConfig("classification", ["a"]).num_labels


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_make_tasks(name: str) -> None:
    """A preset had a key that a task does not know, or a change to one task changed the preset."""
    before = copy.deepcopy(PRESETS[name])
    task = TaskConfig.from_preset(name)
    for value in (task.metrics, task.label_names, task.input_columns):
        if value is not None:
            value.append("changed")
    assert PRESETS[name] == before
    assert TaskConfig.from_preset(name, max_length=64).max_length == 64


def test_unknown_preset() -> None:
    """A misspelt preset was a KeyError."""
    with pytest.raises(ConfigurationError, match=r"`preset` must be one of glue/cola, .*; found 'glue/colla'\."):
        TaskConfig.from_preset("glue/colla")


# -- what the training split knows ------------------------------------------------------------------------------------

DATA = Dataset.from_dict(
    {
        "name": ["b", "a", "b"],
        "star": [5, 1, 3],
        "index": [1, 0, 1],
        "number": ["1.0", "2.0", "6.0"],
        "same": [2.0, 2.0, 2.0],
        "one": ["x", "x", "x"],
        "tags": [["O", "B-x"], [], ["I-x", "O"]],
        "several": [["q"], [], ["p", "q"]],
        "named": [1, 0, 1],
        "named_tags": [[1], [0, 2], []],
    },
    features=Features(
        {
            "name": Value("string"),
            "star": Value("int64"),
            "index": Value("int64"),
            "number": Value("string"),
            "same": Value("float64"),
            "one": Value("string"),
            "tags": List(Value("string")),
            "several": List(Value("string")),
            "named": ClassLabel(names=["zero", "one", "two"]),
            "named_tags": List(ClassLabel(names=["O", "B", "I"])),
        }
    ),
)


@pytest.mark.parametrize(
    ("task_type", "column", "labels"),
    [
        ("classification", "name", ["a", "b"]),
        ("classification", "star", ["1", "3", "5"]),
        ("classification", "index", ["0", "1"]),
        # The schema's order, and the class that no row has.
        ("classification", "named", ["zero", "one", "two"]),
        ("token_classification", "tags", ["O", "B-x", "I-x"]),
        ("token_classification", "named_tags", ["O", "B", "I"]),
        ("multilabel", "several", ["p", "q"]),
        ("multilabel", ["index", "star"], ["index", "star"]),
    ],
)
def test_labels_are_found(task_type: str, column: str | list[str], labels: list[str]) -> None:
    """The head had as many logits as the split has classes, in the order of its rows."""
    task = TaskConfig(task_type, ["text"], label_column=column)
    assert task.resolve(DATA).label_names == labels
    assert task.label_names is None


def test_what_is_known_is_kept() -> None:
    """`resolve` overwrote the names, or the scale, that the user had given."""
    assert TaskConfig("classification", ["t"], "name", label_names=["b", "a"]).resolve(DATA).label_names == ["b", "a"]
    task = TaskConfig("regression", ["t"], "number", target_std=7.0).resolve(DATA)
    assert (task.target_mean, task.target_std) == (3.0, 7.0)
    task = TaskConfig("regression", ["t"], "number", target_mean=1.0).resolve(DATA)
    assert task.target_mean == 1.0
    assert task.target_std is not None
    choice = TASKS["choice"]
    assert choice.resolve(DATA) == choice


def test_targets_are_measured() -> None:
    """The mean and deviation of another split, or of strings, were used."""
    task = TaskConfig("regression", ["t"], "number").resolve(DATA)
    assert task.target_mean == pytest.approx(3.0)
    assert task.target_std == pytest.approx((14 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("task_type", "column", "message"),
    [
        ("classification", "one", r"needs two classes or more; found \['x'\]\. Remove the task"),
        ("regression", "name", r"Column 'name', row 0: A regression label must be a number; found 'b'\. Correct"),
        ("regression", "same", r"needs targets that differ; column 'same' has 3 rows and no value but \[2\.0\]\."),
    ],
)
def test_a_split_that_teaches_nothing_is_refused(task_type: str, column: str, message: str) -> None:
    """A task that cannot be wrong, or divides by a deviation of 0, was trained to the end."""
    with pytest.raises(ConfigurationError, match=message):
        TaskConfig(task_type, ["t"], label_column=column).resolve(DATA)


@pytest.mark.parametrize("task_type", ["classification", "regression"])
def test_an_empty_split_is_refused(task_type: str) -> None:
    """An empty file was a StatisticsError."""
    empty = Dataset.from_dict({"label": []})
    with pytest.raises(ConfigurationError, match=r"needs (two classes or more; found \[\]|targets that differ)"):
        TaskConfig(task_type, ["t"]).resolve(empty)


def test_label_encoder_reads_the_schema() -> None:
    """Integers of a named column were taken in the order of the task's labels, not of the schema's."""
    task = TaskConfig("classification", ["t"], "named", label_names=["two", "one", "zero"])
    encode = label_encoder(task, DATA)
    assert [encode(value) for value in (0, 1, 2)] == [2, 1, 0]


# -- names of tasks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Mrpc", "2nd", "a-b", "a.b", "a b", "", "é", "_a", "a\n", 3])
def test_a_name_that_is_no_identifier_is_refused(name: Any) -> None:
    """A dot in a name is a path in the state dict; a slash is a folder in TensorBoard."""
    with pytest.raises(ConfigurationError, match=r"must begin with a lower-case letter.*; found ") as caught:
        check_task_names({name: ["f1"]})
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["type", "keys", "train", "to", "eval", "test", "average", "loss", "items", "values", "pop", "update", "half",
     "float", "forward", "training", "parameters", "state_dict", "all", "encoder", "cuda"],
)  # fmt: skip
def test_a_reserved_name_is_refused(name: str) -> None:
    """`ModuleDict` has an attribute of that name, or the Trainer a metric: building or logging failed, or lied."""
    with pytest.raises(ConfigurationError, match=rf"'{name}' is reserved. Choose another, such as '{name}_task'\."):
        check_task_names({name: ["f1"]})
    check_task_names({f"{name}_task": ["f1"]})


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            {"a": ["macro_f1"], "a_macro": ["f1"]},
            "The tasks 'a' and 'a_macro' would both log 'a_macro_f1'. Rename one of them.",
        ),
        (
            {"a_samples": ["f1"], "a": ["samples_f1"]},
            "The tasks 'a_samples' and 'a' would both log 'a_samples_f1'. Rename one of them.",
        ),
        (
            {"a": ["x_loss"], "a_x": ["f1"]},
            "The tasks 'a' and 'a_x' would both log 'a_x_loss'. Rename one of them.",
        ),
    ],
)
def test_two_tasks_under_one_key_are_refused(metrics: dict[str, list[str]], message: str) -> None:
    """One task's score was silently the other's."""
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        check_task_names(metrics)


def test_no_task() -> None:
    """An empty section trained an encoder without a loss."""
    with pytest.raises(ConfigurationError, match="needs at least one task; found none"):
        check_task_names({})


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "first"}, "`pooling` must be one of cls, mean, max; found 'first'."),
        ({"packing": "on"}, "`packing` must be one of auto, off; found 'on'."),
        ({"max_length": 0}, "`max_length` must be a whole number of at least 8; found 0."),
        (
            {"task_order": ["topic", "topic"]},
            "`task_order` must name each of topic, stars once; found ['topic', 'topic']. Leave it out.",
        ),
        ({"tasks": {"type": TASKS["topic"]}}, "The task name 'type' is reserved. Choose another, such as 'type_task'."),
    ],
)
def test_a_model_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    """A misspelt pooling fell through to `max`."""
    tasks = {name: TASKS[name] for name in ("topic", "stars")}
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        MultiTaskConfig(**{"encoder_config": family_config("bert"), "tasks": tasks, **settings})


def test_configuration_survives_its_file(tmp_path: Path) -> None:
    """Keys are sorted in the file: the tasks came back in the alphabet's order, and every task id meant another."""
    config = MultiTaskConfig(
        encoder_config=family_config("modernbert"), tasks=TASKS, pooling="mean", packing="off", max_length=77
    )
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert list(written["tasks"]) == sorted(TASKS)
    again = MultiTaskConfig.from_pretrained(tmp_path)
    assert again.task_configs == TASKS
    assert list(again.task_configs) == list(again.tasks) == again.task_order == list(TASKS)
    assert (again.pooling, again.packing, again.max_length) == ("mean", "off", 77)
    assert type(again.encoder_config) is type(config.encoder_config)
    assert again.encoder_config.to_dict() == config.encoder_config.to_dict()


def test_an_empty_configuration_can_be_made() -> None:
    """transformers makes one to see which fields differ from their defaults."""
    assert MultiTaskConfig().task_configs == {}


@pytest.mark.parametrize(
    ("missing", "message"),
    [("hf_async_mtl", "This needs the package hf_async_mtl"), ("torch.missing", "^No module named 'torch.missing'$")],
)
def test_what_needs_the_package_says_so(missing: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: without the package a preset is a ModuleNotFoundError; or a broken package is called missing."""

    def import_module(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ImportError, match=message):
        TaskConfig.from_preset("glue/rte")
