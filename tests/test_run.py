"""From a configuration file to a trainer, in Python."""

import subprocess
import sys
from pathlib import Path

import pytest
from task_sets import write_task_set

from hf_async_mtl import AsyncMTLTrainer, load_run
from hf_async_mtl.validation import ConfigurationError


class OwnTrainer(AsyncMTLTrainer):
    """A trainer as a user may write it."""


def test_a_run_in_a_notebook(tmp_path: Path) -> None:
    """Bug: what the command line builds from a file can be built in Python only by copying its code."""
    overrides = ["training.max_steps=2", "training.eval_steps=2", "training.save_steps=2"]
    run = load_run(write_task_set(tmp_path), overrides, tmp_path / "out")
    assert list(run.tasks) == list(run.train_dataset) == list(run.eval_dataset) == list(run.test_dataset)
    assert run.tasks["polarity"].label_names == ["neg", "pos"]
    trainer = run.trainer(OwnTrainer)
    assert isinstance(trainer, OwnTrainer)
    assert trainer.data_sources == {name: source.to_section() for name, source in run.config.sources.items()}
    trainer.train()
    assert trainer.state.global_step == 2
    assert (tmp_path / "out" / "convergence.json").is_file()


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    """Bug: `training.output_dir` of the file is passed over, or a run has no folder."""
    path = write_task_set(tmp_path)
    assert load_run(path).args.output_dir == str(Path("runs", path.stem))
    assert load_run(str(path), [f"training.output_dir={tmp_path / 'own'}"]).args.output_dir == str(tmp_path / "own")


def test_a_wrong_run_is_refused(tmp_path: Path) -> None:
    """Bug: in Python, a slip is a traceback from within."""
    with pytest.raises(ConfigurationError, match="nearest known key is `patience`"):
        load_run(write_task_set(tmp_path), ["convergence.patiens=1"])
    with pytest.raises(ConfigurationError, match=r"`overrides` must be a list .* Write \['seed=1'\]\."):
        load_run(tmp_path / "config.yaml", "seed=1")
    with pytest.raises(ConfigurationError, match=r"^An override must be key\.path=value; found 'seed'\."):
        load_run(tmp_path / "config.yaml", ["seed"])


def test_keys_and_values_are_checked_without_torch(tmp_path: Path) -> None:
    """Bug: whoever misspells a key waits for torch before the message."""
    path = tmp_path / "config.yaml"
    path.write_text("encoder: x\ntasks: {a: {preset: glue/rte}}\nmixing: {strategy: temperatur}\n", encoding="utf-8")
    code = f"""
import sys
from pathlib import Path
from hf_async_mtl import ConfigurationError
from hf_async_mtl.cli.config_file import load_config
for override in ("encodr=x", "tasks.a.label=x", "tasks.a.convergence.patiens=1", "mixing.strategy=temperatur"):
    try:
        load_config(Path({str(path)!r}), [override])
    except ConfigurationError as error:
        print(error)
print([name for name in ("torch", "transformers", "datasets", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *messages, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert [message.split("`")[1] for message in messages] == [
        "encodr",
        "tasks.a.label",
        "tasks.a.convergence.patiens",
        "mixing.strategy",
    ]
