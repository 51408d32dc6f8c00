"""The checks of configuration values: requirements, sentences and unknown keys."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from hf_async_mtl.modeling import configuration_multitask
from hf_async_mtl.validation import (
    RENAMED,
    ConfigurationError,
    check_fields,
    check_keys,
    number,
    of_type,
    one_of,
    optional,
    parse_section,
    setting,
    whole_number,
)
from hf_async_mtl.validation import ConfigurationError as ErrorOfModels


@dataclass(frozen=True)
class Section:
    share: float = setting(0.5, number(0, 1))
    names: Any = None

    def __post_init__(self) -> None:
        check_fields("section", self)


def test_there_is_one_error_and_one_table_of_renamed_fields() -> None:
    """Bug: code that travels with a model has a copy of the error, or of the names, that the package does not use."""
    assert ErrorOfModels is ConfigurationError
    assert configuration_multitask.RENAMED is RENAMED


@pytest.mark.parametrize(
    ("requirement", "accepted", "refused"),
    [
        (number(0), [0, 0.5, 7], [-1, math.nan, math.inf, True, "1", None]),
        (number(0, exclusive=True), [0.1], [0]),
        (number(0, 1), [0, 1], [1.1]),
        (number(0, 1, exclusive=True), [0.5], [0, 1]),
        (whole_number(1), [1], [0, 1.0, True]),
        (whole_number(0, 3), [3], [4]),
        (one_of("a", "b"), ["a"], ["c", ["a"], 1]),
        (optional(whole_number(1)), [None, 1], [0]),
        (of_type(float | None), [1, 0.5, None], [True, "1"]),
        (of_type(bool | str), [True, "x"], [1]),
        (of_type(dict[str, Any] | list[str]), [{}, []], ["x"]),
    ],
)
def test_requirements(requirement: Any, accepted: list[Any], refused: list[Any]) -> None:
    """Bug: true passes for 1, a NaN for a number, or a bound is on the wrong side."""
    assert all(requirement.accepts(value) for value in accepted)
    assert not any(requirement.accepts(value) for value in refused)


def test_other_types_are_left_to_upstream() -> None:
    """Bug: a field of an enumeration takes no value at all."""
    assert of_type(Literal["a"]) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 2}, "`section.share` must be a number from 0 to 1; found 2."),
        ({"shares": 1}, "Unknown key `section.shares`. The nearest known key is `share`."),
        ({"colors": 1}, "Unknown key `section.colors`. The known keys are share, names."),
        ([1], "`section` must be a mapping; found [1]."),
    ],
)
def test_a_section_that_does_not_fit(given: Any, message: str) -> None:
    """Bug: the message does not say which key of which section is meant."""
    with pytest.raises(ConfigurationError) as error:
        parse_section("section", Section, given)
    assert str(error.value) == message


def test_a_renamed_key_is_one_only_where_its_new_name_is_known() -> None:
    """Bug: `labels` in a section without labels is answered with a key that the section does not have."""
    with pytest.raises(ConfigurationError, match=r"^Unknown key `training\.labels`\. The known keys are lr\.$"):
        check_keys("training", ["labels"], ["lr"])
    many = [f"field_{number}" for number in range(30)]
    with pytest.raises(
        ConfigurationError, match=r"`training\.labels`\. No known key is similar; `docs/configuration\.md`"
    ):
        check_keys("training", ["labels"], many)
    assert parse_section("section", Section, None) == Section()
