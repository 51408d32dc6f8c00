"""Labels: their names are found, and every raw label finds its index or is refused in words."""

import dataclasses
import datetime
import math
import random
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hf_async_mtl import TaskConfig
from hf_async_mtl.tasks.labels import (
    LabelEncoder,
    LabelError,
    check_number,
    find_label_names,
    is_missing,
    label_text,
)
from hf_async_mtl.tasks.rows import labeled_rows
from hf_async_mtl.tasks.special_labels import known_positive, outside_tag


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["pos", "neg", "pos"], ["neg", "pos"]),
        ([1, 0, 2, 0], ["0", "1", "2"]),
        # Stars, and indices with a gap: names, not indices.
        ([5, 1, 3, 2, 4], ["1", "2", "3", "4", "5"]),
        ([0, 2], ["0", "2"]),
        (list(range(12)), [str(i) for i in range(12)]),
        ([True, False], ["false", "true"]),
        # A CSV column of integers with a gap is read as floats.
        ([1.0, 0.0], ["0", "1"]),
        (["I-x", "O", "B-x"], ["O", "B-x", "I-x"]),
        (["b", "a", "O"], ["O", "a", "b"]),
        (["Étage", "a"], ["a", "Étage"]),
    ],
)
def test_names_are_found(values: list[Any], names: list[str]) -> None:
    """Class 10 came before class 9, "O" stood among the tags, or 1.0 and 1 were two classes."""
    assert find_label_names(values) == names


def test_names_do_not_depend_on_the_order_of_the_rows() -> None:
    """The classes were numbered as they came, so that a shuffled file gave another model."""
    values = [f"class {i % 7}" for i in range(50)]
    expected = find_label_names(values)
    random.Random(0).shuffle(values)
    assert find_label_names(values) == expected


@pytest.mark.parametrize("bad", [None, math.nan, -1, 0.5, "", b"pos", datetime.date(2026, 1, 1)])
def test_a_label_that_is_none_is_refused(bad: Any) -> None:
    """A missing label or a fraction became one more class, called "None" or "nan", or a class without a name."""
    with pytest.raises(LabelError, match="must be a string or a whole number other than -1") as error:
        find_label_names([0, 1, bad])
    assert f"found {bad!r}." in str(error.value)


def test_a_class_of_the_name_minus_one_has_a_way_out() -> None:
    """Sentiments of -1, 0 and 1 were refused with the advice to leave the row out."""
    with pytest.raises(LabelError, match=r"found -1\. If it is a class, name all classes in `label_names`\."):
        find_label_names([-1, 0, 1])
    assert [LabelEncoder(["-1", "0", "1"], None, [-1, 1])(value) for value in (-1, 1)] == [0, 2]


def test_mixed_labels_are_refused() -> None:
    """A stray "2" in a column of numbers became a class of its own."""
    with pytest.raises(LabelError, match=r"all strings or all whole numbers; found both, '2' and 0\."):
        find_label_names([0, 1, "2"])


def test_what_is_mixed_is_shown() -> None:
    """Of many labels the message listed six, all of one kind."""
    with pytest.raises(LabelError, match=r"found both, 'a' and 7\."):
        find_label_names([*"zyxwvutsrqponmlkjihgfedcba", 7])


@pytest.mark.parametrize(
    ("labels", "source", "pairs"),
    [
        (["neg", "pos"], None, [("pos", 1), ("neg", 0), (0, 0), (1, 1), (True, 1), (1.0, 1)]),
        # Names that are numbers are names: 1 is the first star, not the second class.
        (["1", "2", "3"], None, [(1, 0), ("2", 1), (3, 2), (3.0, 2)]),
        (["-1", "1"], None, [(-1, 0), (1, 1)]),
        (["False", "True"], None, [(False, 0), (True, 1), ("True", 1)]),
        # The schema's names count, in whatever order the task has them.
        (["b", "a"], ["a", "b"], [(0, 1), (1, 0), ("a", 1)]),
        (["1", "0"], ["0", "1"], [(0, 1), (1, 0)]),
        # A schema of numbers says no more than the indices.
        (["no", "yes"], ["0", "1"], [(0, 0), (1, 1), ("yes", 1)]),
        # Names that are floats are those of the numbers.
        (["1.0", "2.0"], None, [(1, 0), (1.0, 0), (2, 1), ("2.0", 1)]),
        (["0.5", "1.5"], None, [(0.5, 0), (1.5, 1)]),
        # Booleans are named by their names, by their numbers, or by names that say which is positive.
        (["false", "true"], None, [(True, 1), (False, 0), ("true", 1), (np.bool_(True), 1)]),
        (["yes", "no"], None, [(True, 0), (False, 1)]),
        (["FALSE", "MAYBE", "TRUE"], None, [(True, 2), (False, 0), ("MAYBE", 1)]),
        (["neg", "pos"], None, [(np.int64(1), 1), (np.float32(1.0), 1)]),
    ],
)
def test_labels_find_their_index(labels: list[str], source: list[str] | None, pairs: list[tuple[Any, int]]) -> None:
    """A label was read by its place where it stands by its name, and all classes were off by one."""
    encode = LabelEncoder(labels, source)
    assert [encode(value) for value, _ in pairs] == [index for _, index in pairs]


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["a", "b", "c"], [1, 2, 3]),  # the data count from 1
        (["a", "b", "c"], [-1, 0, 1]),
        (["a", "b"], [0.0, 1.0, 2.0]),
        (["001", "002"], [1, 2]),  # codes and numbers
        (["1", "2"], ["1.0", "2.0"]),
        (["neg", "pos"], ["NEG", "POS"]),
        (["a", "b", "c"], [True, False]),
    ],
)
def test_a_column_in_another_scheme_is_refused_with_both_lists(labels: list[str], values: list[Any]) -> None:
    """Labels from 1 were read as indices, and every class was its neighbor."""
    encode = LabelEncoder(labels, None, values)
    with pytest.raises(LabelError) as caught:
        list(map(encode, values))
    assert f"[{', '.join(labels)}]" in str(caught.value)
    shown = [label_text(value) for value in sorted(values) if value != -1]
    assert f"The labels of the column are [{', '.join(shown)}]." in str(caught.value)


@pytest.mark.parametrize("source", [["anger", "fear", "joy"], ["mixed", "anger", "joy", "sadness"]])
def test_a_schema_with_other_names_is_refused_with_both_lists(source: list[str]) -> None:
    """The indices of another schema were read as those of the task: half of the rows had a wrong label."""
    with pytest.raises(LabelError) as caught:
        LabelEncoder(["anger", "joy", "sadness"], source)
    assert "[anger, joy, sadness]" in str(caught.value)
    assert f"[{', '.join(source)}]" in str(caught.value)


def test_labels_that_the_task_lacks_have_indices_behind_its_classes() -> None:
    """A class in a test file that training lacks ended the run, or was read as a class that training has."""
    names = LabelEncoder(["a", "b"], None, ["b", "d", "c"])
    assert [names(value) for value in ("b", "c", "d")] == [1, 2, 3]
    numbers = LabelEncoder(["0", "1"], None, [0, 1, 7])
    assert [numbers(value) for value in (1, 7)] == [1, 2]
    with pytest.raises(LabelError, match="found None"):
        numbers(None)


def test_ignored_labels_have_no_class() -> None:
    """-100, which stands for "no label" in Transformers, was a class that was trained and predicted."""
    assert find_label_names([0, 1, -100, -1], ignored=(-100, -1)) == ["0", "1"]
    encode = LabelEncoder(["a", "b"], None, [0, 1, -100], ignored=(-100,))
    assert [encode(value) for value in (-100, -100.0, 1)] == [-100, -100, 1]


def test_strings_that_say_no_label_have_no_class() -> None:
    """The tag "-1" beside "O" was a class, though -1 and "-100" were not."""
    task = TaskConfig("token_classification", ["tokens"], label_column="tags")
    rows = Dataset.from_list(
        [{"tokens": ["a", "b", "c"], "tags": ["O", "-1", "B-x"]}, {"tokens": ["a"], "tags": ["-1"]}]
    )
    assert task.resolve(rows).label_names == ["O", "B-x"]
    assert len(labeled_rows(rows, task)) == 1
    named = dataclasses.replace(task, label_names=["O", "-1", "B-x"])
    assert len(labeled_rows(rows, named)) == 2


@pytest.mark.parametrize(
    ("names", "positive"),
    [("no yes", 1), ("1 0", 0), ("True False", 0), ("Positive Negative", 0), ("spam not_spam", 0), ("a b", None)],
)
def test_names_that_say_which_class_is_positive(names: str, positive: int | None) -> None:
    """F1 was that of the second class in the order of the alphabet: of "no" in a list from another library."""
    assert known_positive(names.split()) == positive


@pytest.mark.parametrize(
    ("names", "tag"),
    [("B-x O", "O"), ("b-x o", "o"), ("B-x OTHER", "OTHER"), ("other O B-x", "O"), ("NOUN VERB", None)],
)
def test_the_outside_tag_is_known_in_any_case(names: str, tag: str | None) -> None:
    """An outside tag in lower case was a chunk."""
    assert outside_tag(names.split()) == tag


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        (["neg", "pos"], 2),
        (["neg", "pos"], -1),
        (["neg", "pos"], None),
        (["neg", "pos"], math.nan),
        (["neg", "pos"], 0.5),
        (["neg", "pos"], "Pos"),
        (["neg", "pos"], "1"),
        (["1", "2", "3"], 0),
        (["1", "2", "3"], 4),
    ],
)
def test_a_foreign_label_is_refused(labels: list[str], value: Any) -> None:
    """-1 counted from the end of the list, or a label out of range failed in the loss, thousands of steps later."""
    with pytest.raises(LabelError) as caught:
        LabelEncoder(labels)(value)
    assert str(caught.value) == f"A label must be one of [{', '.join(labels)}] or its index; found {value!r}."


def test_a_long_list_of_labels_is_cut_in_the_message() -> None:
    """An unknown intent printed all 150."""
    with pytest.raises(LabelError, match=r"class 9, \.\.\.\] or its index; found 'x'"):
        LabelEncoder([f"class {i}" for i in range(150)])("x")


@pytest.mark.parametrize(
    ("value", "missing"), [(None, True), (-1, True), (-100, True), (math.nan, True), (0, False), ("", False)]
)
def test_missing_labels(value: Any, missing: bool) -> None:
    """The test split of GLUE was scored against -1."""
    assert is_missing(value) is missing


@pytest.mark.parametrize(("value", "number"), [(3, 3.0), ("2.5", 2.5), (True, 1.0), (-1, -1.0)])
def test_numbers(value: Any, number: float) -> None:
    """A number in quotes, as a CSV or JSON file has it, was refused."""
    assert check_number(value) == number


@pytest.mark.parametrize("value", ["many", None, "nan", math.inf, [1.0]])
def test_no_number(value: Any) -> None:
    """A NaN in a column of targets made the loss NaN."""
    with pytest.raises(LabelError, match=r"must be a (finite )?number; found "):
        check_number(value)
