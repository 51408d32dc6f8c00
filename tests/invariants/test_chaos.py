"""A short run of ``scripts/benchmarks/chaos.py``: killed runs end like an undisturbed one."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from launching import ROOT
from task_sets import write_task_set

from hf_async_mtl.cli.commands import main


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chaos", ROOT / "scripts" / "benchmarks" / "chaos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_killed_run_ends_as_one_left_in_peace(
    chaos: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: half a file is read, a draw is repeated, or the folder holds what a killed run has left."""
    config = write_task_set(tmp_path, ("polarity", "overlap", "colors"))
    status = chaos.main([str(config), "--kills", "5", "--seed", "3", "--set", "training.max_steps=40"])
    said = capsys.readouterr()
    assert status == 0, said.err
    found = json.loads(said.out.splitlines()[-1])
    assert found["kills"] == 5 == sum(found["hits"].values())
    assert found["differences"] == 0


def test_every_difference_is_told(chaos: ModuleType, tmp_path: Path) -> None:
    """Bug: the comparison compares nothing, and fifty kills prove nothing."""
    config = write_task_set(tmp_path)
    left, right = tmp_path / "left", tmp_path / "right"
    assert main(["train", str(config), "--output-dir", str(left)]) == 0
    shutil.copytree(left, right)
    assert list(chaos.differences(left, right)) == []
    (right / "left_behind.partial").touch()
    (right / "convergence.json").write_text((left / "convergence.json").read_text().replace('"step": 12', '"step": 13'))
    shutil.copy(left / "checkpoint-4" / "model.safetensors", right / "model.safetensors")
    told = list(chaos.differences(left, right))
    assert "left_behind.partial is in one of the two folders only." in told
    assert any(words.startswith("The weights encoder.") for words in told)
    assert "convergence.json: step is 13, and was 12." in told
