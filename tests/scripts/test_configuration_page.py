"""The page of the configuration is what the docstrings of the settings say."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import write_configuration_page as script

from hf_async_mtl.balancing.config import BalancingConfig
from hf_async_mtl.cli.file_keys import TaskSection, TopLevel
from hf_async_mtl.convergence.config import ConvergenceConfig, ConvergenceSettings, ScheduleConfig
from hf_async_mtl.data.config import DataSection, MixingConfig
from hf_async_mtl.distillation.config import DistillationConfig

SETTINGS = (
    *(TopLevel, TaskSection, DataSection, ConvergenceConfig, ConvergenceSettings, ScheduleConfig),
    *(DistillationConfig, MixingConfig, BalancingConfig),
)


def test_the_page_is_current() -> None:
    """Bug: a key is added, renamed or removed, and the page still has the old ones."""
    hint = "Run `python scripts/write_configuration_page.py`."
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), hint


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_field_is_described(kind: type) -> None:
    """Bug: a key without a line in the docstring is missing on the page."""
    assert list(script.descriptions(kind)) == [item.name for item in dataclasses.fields(kind)]
