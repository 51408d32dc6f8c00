"""The page about performance shows what the files of the measurements have."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_tables_are_those_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a benchmark is run again, or a number is edited by hand, and the page shows other figures than the files."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "benchmarks"))
    page = importlib.import_module("performance_page")
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert re.findall(r"<!-- performance:([\w-]+) -->", text) == list(page.TABLES)
    assert page.renew(text, ROOT / "model_cards" / "speed") == text
