"""The page about performance shows what the files of the measurements have."""

import doctest
import importlib
import importlib.util
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


def test_the_section_on_a_gpu_is_that_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a part is measured again on a GPU, and the page shows the figures of the one before."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "benchmarks"))
    spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "scripts" / "benchmarks" / "gpu" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "<!-- gpu -->" in text
    assert report.renew(text, ROOT / "model_cards" / "gpu") == text


def test_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example in the script does not give what it says."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "benchmarks"))
    for name in ("pages", "performance_page"):
        found = doctest.testmod(importlib.import_module(name))
        assert found.attempted > 0
        assert found.failed == 0
