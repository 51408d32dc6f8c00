"""Labels: their names are found, and every raw label finds its index or is refused in words."""

import datetime
import math
import random
from typing import Any

import pytest

from hf_async_mtl.tasks.labels import LabelEncoder, LabelError, check_number, find_label_names, is_missing


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["pos", "neg", "pos"], ["neg", "pos"]),
        ([1, 0, 2, 0], ["0", "1", "2"]),
        # Stars, and indices with a gap: names, not indices.
        ([5, 1, 3, 2, 4], ["1", "2", "3", "4", "5"]),
        ([0, 2], ["0", "2"]),
        (list(range(12)), [str(i) for i in range(12)]),
        ([True, False], ["0", "1"]),
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
    assert str(error.value).endswith(f"found {bad!r}.")


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
        # The user renamed the classes: the schema speaks in indices.
        (["no", "yes"], ["not_entailment", "entailment"], [(0, 0), (1, 1), ("yes", 1)]),
    ],
)
def test_labels_find_their_index(labels: list[str], source: list[str] | None, pairs: list[tuple[Any, int]]) -> None:
    """A label was read by its place where it stands by its name, and all classes were off by one."""
    encode = LabelEncoder(labels, source)
    assert [encode(value) for value, _ in pairs] == [index for _, index in pairs]


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


@pytest.mark.parametrize(("value", "missing"), [(None, True), (-1, True), (math.nan, True), (0, False), ("", False)])
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
