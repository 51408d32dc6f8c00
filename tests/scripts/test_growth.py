"""The benchmark of growth: its plans are configurations, and the page has the table of its figures."""

import doctest
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import growth  # noqa: E402

from hf_async_mtl.cli.config_file import load_config  # noqa: E402


def test_docstrings() -> None:
    """An example in the script does not give what it says."""
    assert doctest.testmod(growth) == (0, 2)


def test_the_page_has_the_committed_figures() -> None:
    """A figure on the page is not what was measured."""
    seeds = json.loads((ROOT / "model_cards" / "growth-glue.json").read_text(encoding="utf-8"))
    assert growth.table(seeds) in (ROOT / "docs" / "growing.md").read_text(encoding="utf-8")


def test_a_run_of_another_plan_is_not_taken(tmp_path: Path) -> None:
    """A setting is changed, and the table shows the figures of before."""
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "all_results.json").write_text(json.dumps({"test_mrpc_f1": 0.5}))
    assert growth.train("growth_old.yaml", folder, ["seed=0"]) == {"mrpc": 0.5}
    assert growth.train("growth_old.yaml", folder, ["seed=0"]) == {"mrpc": 0.5}
    with pytest.raises(SystemExit, match="was made with other settings"):
        growth.train("growth_old.yaml", folder, ["seed=0", "freeze=1"])


def test_its_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of one of the ways is refused half-way; or the old tasks differ between the two files."""
    for name in ("mrpc", "stsb", "sst2", "qnli"):
        for split in ("train", "validation", "test"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{split}.jsonl").write_text("{}\n")
    for variable in ("GLUE_DATA", "ENCODER", "OLD"):
        monkeypatch.setenv(variable, str(tmp_path))
    old = load_config(growth.CONFIGS / "growth_old.yaml")
    for settings in growth.WAYS.values():
        new = load_config(growth.CONFIGS / "growth_new.yaml", settings)
        assert list(new.tasks) == [*growth.OLD, growth.NEW]
        assert all(new.sources[name] == old.sources[name] for name in growth.OLD)
        assert {name: task.monitored for name, task in new.tasks.items()} == growth.METRICS
