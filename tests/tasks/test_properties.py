"""Whatever the configuration and the rows: they are accepted, or refused in words; never a traceback."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_sets import task_set_config, write_task_set
from tiny import task_configs, tiny_tokenizer

from hf_async_mtl import ConfigurationError, TaskConfig
from hf_async_mtl.cli.config_file import RunConfig, load_config
from hf_async_mtl.data.tokenization import encode

ALL = tuple(task_configs())
STEADY = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["polarity", "accuracy", "auto", "data/polarity/train.jsonl", "1e-5", "classification"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.text(max_size=6), st.integers()), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(section: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all that is in a configuration."""
    found = [before] if before else []
    if isinstance(section, dict):
        for key, value in section.items():
            found += paths(value, (*before, key))
    return found


FULL = task_set_config(ALL)
FULL["tasks"]["polarity"].update(
    metrics=["accuracy", "f1"], max_samples={"train": 5}, weight=2.0, label_names=["neg", "pos"]
)
FULL["tasks"]["polarity"]["convergence"] = {"patience": 2}
FULL.update(
    data_seed=1,
    pooling="mean",
    packing="auto",
    schedule={"mode": "sequential", "order": "size"},
    distillation={"temperature": 2.0, "hard_label_weight": 0.5},
    mixing={"strategy": "temperature", "temperature": 2.0},
    balancing={"method": "cagrad", "parameters": {"c": 0.5}, "over": "encoder"},
)
PATHS = paths(FULL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task_set")
    write_task_set(folder, ALL)
    return folder


def loaded(folder: Path, config: Any) -> RunConfig | None:
    """The checked configuration with its arguments, or None where it is refused."""
    path = folder / "property.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    try:
        run = load_config(path)
        run.arguments(folder / "out")
    except ConfigurationError:
        return None
    return run


def test_the_whole_configuration_is_accepted(folder: Path) -> None:
    """Bug: what the properties below begin with is refused already, and they show nothing."""
    assert loaded(folder, FULL) is not None


@STEADY
@given(changes=st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=2))
def test_any_value_anywhere_is_accepted_or_refused_in_words(folder: Path, changes: list[Any]) -> None:
    """Bug: a value of a type that nobody thought of is compared, hashed or iterated before it is checked."""
    config = copy.deepcopy(FULL)
    for path, value in changes:
        section = config
        for key in path[:-1]:
            section = section[key] if isinstance(section, dict) and key in section else {}
        if isinstance(section, dict):
            section[path[-1]] = value
    loaded(folder, config)


@STEADY
@given(path=st.sampled_from([(), *PATHS]), key=st.text(max_size=10), value=VALUES)
def test_any_further_key_is_refused_in_words(folder: Path, path: tuple[Any, ...], key: str, value: Any) -> None:
    """Bug: a key that nobody knows is looked up in a table, or its nearest is looked for in an empty one."""
    config = copy.deepcopy(FULL)
    section = config
    for step in path:
        section = section[step]
    if isinstance(section, dict):
        section[key] = value
    loaded(folder, config)


@STEADY
@given(config=VALUES)
def test_any_file_is_refused_in_words(folder: Path, config: Any) -> None:
    """Bug: a file that is no mapping, or one of anything."""
    assert loaded(folder, config) is None


CELLS = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.integers(-2, 4),
    st.floats(),
    st.booleans(),
    st.lists(st.one_of(st.none(), st.text(max_size=5), st.integers(-1, 3)), max_size=4),
    st.fixed_dictionaries(
        {"text": st.lists(st.text(max_size=4), max_size=2), "answer_start": st.lists(st.integers(-3, 9), max_size=2)}
    ),
)


@pytest.mark.parametrize("name", ALL)
@STEADY
@given(data=st.data())
def test_any_rows_are_accepted_or_refused_in_words(name: str, data: st.DataObject) -> None:
    """Bug: a row of another shape reaches the tokenizer, or a head, as it is."""
    task = task_configs()[name]
    columns = [*task.input_columns, *task.target_columns]
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, CELLS)), min_size=1, max_size=3))
    try:
        dataset = Dataset.from_list(rows)
    except (ValueError, TypeError, OverflowError, UnicodeEncodeError):
        # Arrow holds columns of one type: such rows do not come into being.
        return
    unresolved = TaskConfig(
        task.type, task.text_columns, task.label_column, max_length=task.max_length, doc_stride=task.doc_stride
    )
    for given_task in (task, unresolved):
        try:
            encoded = encode(dataset, name, given_task.resolve(dataset), tiny_tokenizer(), 32)
        except ConfigurationError:
            continue
        assert len(encoded) == len(rows)
