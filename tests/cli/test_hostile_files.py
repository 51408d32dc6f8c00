"""Files from strangers: nothing that they hold is run, and no path of theirs is followed."""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands_here import refused
from launching import ROOT
from task_sets import task_set_config, write_task_set
from transformers import AutoConfig

from hf_async_mtl.cli.commands import main


class Trap:
    """What a pickle runs as it is loaded: it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    """A trap that works."""
    working = Trap(tmp_path / "works")
    pickle.loads(pickle.dumps(working))
    assert (tmp_path / "works").exists()
    return Trap(tmp_path / "sprung")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("run")
    config = write_task_set(folder)
    assert main(["train", str(config), "--output-dir", str(folder / "out")]) == 0
    return config, folder / "out"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_with_code_in_it_is_refused(name: str, run: tuple[Path, Path], trap: Trap, tmp_path: Path) -> None:
    """Bug: who resumes another's checkpoint runs what is in its pickles."""
    config, out = run
    checkpoint = tmp_path / "checkpoint-8"
    shutil.copytree(out / "checkpoint-8", checkpoint)
    (checkpoint / name).unlink()
    (checkpoint / name).write_bytes(pickle.dumps(trap))
    assert name in refused("train", config, "--output-dir", tmp_path / "new", "--resume", checkpoint)
    assert not trap.path.exists()
    assert not (tmp_path / "new").exists()


def test_an_encoder_with_code_in_its_weights_is_refused(trap: Trap, tmp_path: Path) -> None:
    """Bug: an old checkpoint format, which is a pickle, is read as such."""
    config = write_task_set(tmp_path)
    (tmp_path / "encoder" / "model.safetensors").unlink()
    (tmp_path / "encoder" / "pytorch_model.bin").write_bytes(pickle.dumps(trap, protocol=2))
    assert "`encoder` could not be loaded" in refused("train", config, "--output-dir", tmp_path / "out")
    assert not trap.path.exists()


@pytest.mark.parametrize("command", ["train", "predict"])
def test_code_beside_a_model_is_not_run(command: str, run: tuple[Path, Path], tmp_path: Path) -> None:
    """Bug: the modelling code of a folder is trusted though nobody said so, or the user is asked and a script hangs."""
    config = write_task_set(tmp_path)
    sprung, folder = tmp_path / "sprung", tmp_path / "encoder"
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n")
    content = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps({**content, "model_type": "stranger", "auto_map": auto_map}))
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n')
    args = ["train", config, "--output-dir", tmp_path / "out"]
    if command == "predict":
        args = ["predict", folder, "--input", tmp_path / "rows.jsonl"]
    refused(*args)
    assert not sprung.exists()


def test_a_tag_in_yaml_makes_no_object(tmp_path: Path) -> None:
    """Bug: a configuration from the web runs a command."""
    config = tmp_path / "x.yaml"
    config.write_text(f"encoder: !!python/object/apply:os.mkdir ['{tmp_path / 'sprung'}']\n")
    assert "must be YAML" in refused("train", config)
    setting = f"encoder=!!python/object/apply:os.mkdir ['{tmp_path / 'sprung'}']"
    assert "must be YAML" in refused("train", write_task_set(tmp_path), "--set", setting)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/b", "..", "a\x00b"])
def test_a_name_does_not_leave_its_folder(name: str, run: tuple[Path, Path], tmp_path: Path) -> None:
    """Bug: snapshots, logits and plots are named after tasks, and one called ../../x is written two folders up."""
    config, out = run
    written = task_set_config()
    written["tasks"] = {name: written["tasks"]["polarity"]}
    spoilt = config.with_name("spoilt.yaml")
    spoilt.write_text(yaml.safe_dump(written))
    refused("train", spoilt, "--output-dir", tmp_path / "new")
    # A model's, and a report's.
    shutil.copytree(out, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    content["tasks"] = {name: content["tasks"]["polarity"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(content))
    refused("evaluate", tmp_path / "model", config)
    report = json.loads((tmp_path / "model" / "convergence.json").read_text())
    report["tasks"] = {name: report["tasks"]["polarity"]}
    (tmp_path / "model" / "convergence.json").write_text(json.dumps(report))
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "model")}
    refused("report", tmp_path / "model")
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "model")} == before


SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_reader_runs_what_it_reads(path: Path) -> None:
    """Bug: the next file format is read by the first function that comes to mind, and that one unpickles."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "os.system", "joblib.load"), name
        if name == "torch.load":
            assert options.get("weights_only") == "True"
        if name == "np.load":
            assert options.get("allow_pickle") == "False"
        if name == "yaml.load":
            assert options.get("Loader") == "_Loader"
        assert options.get("trust_remote_code", "False") == "False"
        assert options.get("shell", "False") == "False"


def test_remote_code_needs_a_word_of_the_user() -> None:
    """Bug: upstream changes its default, and the tests above pass because nothing is loaded at all."""
    assert AutoConfig.from_pretrained.__doc__ is not None
    assert "trust_remote_code (`bool`, *optional*, defaults to `False`)" in AutoConfig.from_pretrained.__doc__
