"""The section `distillation`: what is accepted, and what earlier versions had."""

from typing import Any

import pytest

from hf_async_mtl.distillation.config import DistillationConfig
from hf_async_mtl.validation import ConfigurationError, parse_section


def test_the_renamed_share_names_its_new_key() -> None:
    """Bug: the old key is called unknown, and its nearest key is another option."""
    with pytest.raises(ConfigurationError, match=r"`label_share` is now `hard_label_weight`\. Rename the key\."):
        parse_section("distillation", DistillationConfig, {"label_share": 0.3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "`distillation.temperature` must be a number above 0; found 0."),
        ({"hard_label_weight": 1.5}, "`distillation.hard_label_weight` must be a number from 0 to 1; found 1.5."),
    ],
)
def test_a_value_out_of_range_is_refused_in_words(settings: dict[str, Any], message: str) -> None:
    """Bug: a wrong value is found hours later, when the first task converges."""
    with pytest.raises(ConfigurationError) as error:
        DistillationConfig(**settings)
    assert str(error.value) == message
