"""Checkpoints: the newest that is complete, and the best weights that travel inside it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_async_mtl.training.checkpoint_files import (
    BEST_FOLDER,
    STATE_FILE,
    adopt_best,
    checkpoint_step,
    link_best,
    read_state,
)
from hf_async_mtl.training.distributed import newest_checkpoint
from hf_async_mtl.validation import ConfigurationError


def write_checkpoint(output_dir, step, best=None, value=None):
    """A checkpoint as a run writes it: weights first, our state last."""
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"w": torch.full((3,), float(step if value is None else value))}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"large")
    state = {"global_step": step, "best_global_step": best, "best_model_checkpoint": None}
    if best is not None:
        state["best_model_checkpoint"] = str(output_dir / f"checkpoint-{best}")
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=2))
    (folder / STATE_FILE).write_text(json.dumps({"schedule": {}, "teachers": {}}))
    return folder


def weight(folder):
    return load_file(folder / "model.safetensors")["w"][0].item()


def test_newest_is_by_number(tmp_path):
    """In the order of names, checkpoint-900 comes after checkpoint-1000."""
    for step in (100, 1000, 900):
        write_checkpoint(tmp_path, step)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert checkpoint_step(newest) == 1000


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_state_cut_short_is_skipped(tmp_path, share):
    """A run killed as it was writing would resume from half a checkpoint, or not at all."""
    write_checkpoint(tmp_path, 100)
    state = write_checkpoint(tmp_path, 200) / STATE_FILE
    content = state.read_text()
    state.write_text(content[: int(share * len(content))])
    assert read_state(state.parent) is None
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_checkpoint_without_its_state_is_skipped(tmp_path):
    """The state is written last: without it, the optimizer may be missing too."""
    write_checkpoint(tmp_path, 100)
    (write_checkpoint(tmp_path, 200) / STATE_FILE).unlink()
    (tmp_path / "checkpoint-300").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_other_names_are_no_checkpoints(tmp_path):
    """A user's copy, a file and a folder of another tool must neither be taken nor stop the search."""
    write_checkpoint(tmp_path, 100)
    for name in ("checkpoint-best", "checkpoint-200-copy", "checkpoint-", "old-checkpoint-300"):
        shutil.copytree(tmp_path / "checkpoint-100", tmp_path / name)
    (tmp_path / "checkpoint-400").write_text("a file")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_no_checkpoint_is_none(tmp_path):
    """`--resume` in a new folder starts afresh."""
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None


def test_a_run_of_version_1_is_refused(tmp_path):
    """From Python, a run of 0.1 began again at step 0 in the folder of the old one, and replaced what was there."""
    old = write_checkpoint(tmp_path, 100)
    (old / STATE_FILE).unlink()
    (old / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": {"ConvergenceCallback": {}}}))
    with pytest.raises(ConfigurationError, match=r"checkpoint-100 was written by version 0\.1"):
        newest_checkpoint(tmp_path)


# -- the best weights -------------------------------------------------------------------------------------------------


def test_best_weights_are_linked_and_nothing_else(tmp_path):
    """The optimizer of the best checkpoint would double the size of each one."""
    best, last = write_checkpoint(tmp_path, 100), write_checkpoint(tmp_path, 300, best=100)
    for _ in range(2):  # a checkpoint may be written again after resuming
        link_best(best, last)
        assert sorted(path.name for path in (last / BEST_FOLDER).iterdir()) == ["config.json", "model.safetensors"]
        assert (last / BEST_FOLDER / "model.safetensors").samefile(best / "model.safetensors")


@pytest.fixture
def moved(tmp_path):
    """A checkpoint with its best weights, copied alone to another folder."""
    best = write_checkpoint(tmp_path / "first", 100, best=100)
    last = write_checkpoint(tmp_path / "first", 300, best=100)
    link_best(best, last)
    (tmp_path / "usb").mkdir()
    shutil.move(last, tmp_path / "usb")
    shutil.rmtree(tmp_path / "first")
    return tmp_path / "usb" / "checkpoint-300"


def test_moved_checkpoint_brings_its_best_weights(moved, tmp_path):
    """`load_best_model_at_end` would look for weights on the first machine, and end with the last ones."""
    new = tmp_path / "new"
    assert adopt_best(moved, new) == new / "checkpoint-100"
    assert weight(new / "checkpoint-100") == 100
    # Weights alone are nothing to resume from.
    assert newest_checkpoint(new) is None
    # Every process asks, and later runs too.
    assert adopt_best(moved, new) == new / "checkpoint-100"


def test_killed_adoption_is_done_again(moved, tmp_path):
    """A folder without weights, taken for the best checkpoint, fails at the end of the run."""
    best = tmp_path / "new" / "checkpoint-100"
    best.mkdir(parents=True)
    assert adopt_best(moved, tmp_path / "new") == best
    assert weight(best) == 100


def test_checkpoint_that_is_itself_the_best(tmp_path):
    """It holds no folder with the best weights: they are its own."""
    only = write_checkpoint(tmp_path / "first", 100, best=100)
    assert adopt_best(only, tmp_path / "first") == only
    assert adopt_best(only, tmp_path / "new") == tmp_path / "new" / "checkpoint-100"
    assert weight(tmp_path / "new" / "checkpoint-100") == weight(only) == 100
    assert not (tmp_path / "new" / "checkpoint-100" / "optimizer.pt").exists()


def test_best_of_the_same_folder_is_left_alone(tmp_path):
    """Adopting must not replace the checkpoint that is there with its weights alone."""
    best, last = write_checkpoint(tmp_path, 100, best=100), write_checkpoint(tmp_path, 300, best=100)
    link_best(best, last)
    assert adopt_best(last, tmp_path) == best
    assert (best / "trainer_state.json").exists()
    assert weight(best) == 100


def test_without_a_best_there_is_nothing_to_adopt(tmp_path):
    """A run without `load_best_model_at_end`, or one whose best is gone, ends with the last weights."""
    assert adopt_best(write_checkpoint(tmp_path / "a", 100), tmp_path / "new") is None
    assert adopt_best(write_checkpoint(tmp_path / "b", 300, best=100), tmp_path / "new") is None
    assert adopt_best(tmp_path / "absent", tmp_path / "new") is None
    assert not (tmp_path / "new").exists()


def test_best_of_a_checkpoint_that_was_renamed(tmp_path):
    """A copy under another name was not known as its own best, and a run ended with its last weights."""
    best = write_checkpoint(tmp_path / "old", 100, best=100)
    copy = shutil.copytree(best, tmp_path / "moved" / "from-the-cluster")
    adopted = adopt_best(copy, tmp_path / "new")
    assert adopted == tmp_path / "new" / "checkpoint-100"
    assert weight(adopted) == 100
