"""The folder of the teachers: written completely or not at all, and linked into checkpoints."""

import errno
import os
import shutil

import numpy as np
import pytest
import torch
from recording import write_logits
from safetensors.torch import save_file

from hf_async_mtl.distillation import snapshots as teacher_module
from hf_async_mtl.distillation.logits import RecordedLogits, TeacherError, record_logits
from hf_async_mtl.distillation.snapshots import TeacherStore
from hf_async_mtl.utils import link_or_copy

HASH = "a" * 64
DAMAGED = "The file {} is damaged (.*). Was its checkpoint copied in part\\? Copy it again, or resume from another"


def random_logits(shape, examples=50):
    generator = np.random.default_rng(0)
    units = generator.integers(1, 9, examples) if shape == "tokens" else [1] * examples
    tail = () if shape == "numbers" else (3,)
    return [generator.normal(size=(count, *tail)).astype(np.float32) for count in units]


@pytest.fixture
def store(tmp_path):
    return TeacherStore(tmp_path / "_teachers")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_snapshot_comes_back_to_the_last_bit(store):
    """A teacher that is another model by rounding records other logits than it was chosen for."""
    base = torch.randn(6, 4)
    weights = {"a": base, "view": base[:, 1:3].T, "half": base.half(), "count": torch.tensor(3)}
    store.save_snapshot(12, weights)
    loaded = store.load_snapshot(12)
    assert set(loaded) == set(weights)
    for name, tensor in weights.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_missing_snapshot_is_named(store):
    """A `FileNotFoundError` does not say that the settings were changed."""
    with pytest.raises(TeacherError) as error:
        store.load_snapshot(12)
    assert str(error.value) == (
        f"The snapshot {store.snapshot_path(12)} is missing: a task's teacher would be read from it. Was "
        "`on_convergence` changed to distill on resuming? Start afresh, or resume from an earlier checkpoint with the "
        "first settings."
    )


def test_killed_write_leaves_the_old_file_or_none(store, monkeypatch):
    """Half of a file under the final name would be taken for a teacher by the next run."""

    def killed(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    store.save_snapshot(1, {"w": torch.ones(3)})
    with monkeypatch.context() as patch:
        patch.setattr(teacher_module, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save_snapshot(1, {"w": torch.zeros(3)})
        with pytest.raises(KeyboardInterrupt):
            store.save_snapshot(2, {"w": torch.zeros(3)})
    # Killed in the midst of a recording: the block never ends.
    unfinished = record_logits(store.logits_files("a"), [1, 1], 3, HASH, 1)
    unfinished.__enter__().write(torch.tensor([1]), torch.ones(1, 3))
    assert torch.equal(store.load_snapshot(1)["w"], torch.ones(3))
    with pytest.raises(TeacherError, match="is missing"):
        store.load_snapshot(2)
    with pytest.raises(TeacherError, match="are missing"):
        RecordedLogits(store.logits_files("a"))
    # What is left is no file of a checkpoint, and is written over the next time.
    other = store.folder.parent / "checkpoint-1" / "_teachers"
    store.link_into(other)
    assert names(other) == ["snapshot-1.safetensors"]
    store.save_snapshot(2, {"w": torch.zeros(3)})
    assert torch.equal(store.load_snapshot(2)["w"], torch.zeros(3))


def test_snapshots_not_needed_are_deleted(store):
    """One snapshot an evaluation fills the disk; recorded logits must stay."""
    for step in (100, 200, 300):
        store.save_snapshot(step, {"w": torch.ones(3)})
    write_logits(store.logits_files("a"), random_logits("classes"), HASH, 1)
    store.keep_snapshots({200, 400})
    assert names(store.folder) == ["logits-a.json", "logits-a.npy", "offsets-a.npy", "snapshot-200.safetensors"]


def test_link_costs_nothing(store):
    """A copy of each snapshot and of all logits in each checkpoint fills the disk."""
    store.save_snapshot(1, {"w": torch.ones(3)})
    write_logits(store.logits_files("a"), random_logits("classes"), HASH, 1)
    checkpoint = store.folder.parent / "checkpoint-1" / "_teachers"
    for _ in range(2):  # a checkpoint may be written again after resuming
        store.link_into(checkpoint)
        assert names(checkpoint) == names(store.folder)
        for name in names(checkpoint):
            assert (checkpoint / name).samefile(store.folder / name)


def test_checkpoint_keeps_its_files_when_the_store_changes(store):
    """A snapshot written in place would change the teachers of all checkpoints that share the file."""
    store.save_snapshot(1, {"w": torch.ones(3)})
    checkpoint = store.folder.parent / "checkpoint-1" / "_teachers"
    store.link_into(checkpoint)
    store.save_snapshot(1, {"w": torch.zeros(3)})
    assert torch.equal(TeacherStore(checkpoint).load_snapshot(1)["w"], torch.ones(3))
    store.clear()
    assert torch.equal(TeacherStore(checkpoint).load_snapshot(1)["w"], torch.ones(3))


def no_hard_links(source, target):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_copy_where_there_are_no_hard_links(store, monkeypatch):
    """A checkpoint on another file system, or one without hard links, must hold its teachers too."""
    monkeypatch.setattr(os, "link", no_hard_links)
    store.save_snapshot(1, {"w": torch.ones(3)})
    checkpoint = store.folder.parent / "checkpoint-1" / "_teachers"
    for _ in range(2):
        store.link_into(checkpoint)
        assert names(checkpoint) == ["snapshot-1.safetensors"]
        assert not (checkpoint / "snapshot-1.safetensors").samefile(store.snapshot_path(1))
    assert torch.equal(TeacherStore(checkpoint).load_snapshot(1)["w"], torch.ones(3))


def test_killed_copy_is_not_seen_as_whole(tmp_path, monkeypatch):
    """A copy that stops half way, under the final name, is taken for a teacher."""

    def killed(source, target):
        target.write_bytes(source.read_bytes()[:2])
        raise KeyboardInterrupt

    source, target = tmp_path / "a.safetensors", tmp_path / "folder" / "a.safetensors"
    save_file({"w": torch.ones(3)}, source)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_hard_links)
        patch.setattr(shutil, "copy2", killed)
        with pytest.raises(KeyboardInterrupt):
            link_or_copy(source, target)
    assert not target.exists()
    link_or_copy(source, target)
    assert target.samefile(source)
    assert names(target.parent) == ["a.safetensors"]


def test_store_holds_exactly_what_the_checkpoint_holds(store):
    """A snapshot left from later steps of an earlier run would be the teacher of this one."""
    store.save_snapshot(1, {"w": torch.ones(3)})
    checkpoint = store.folder.parent / "elsewhere" / "checkpoint-1" / "_teachers"
    store.link_into(checkpoint)
    store.save_snapshot(9, {"w": torch.zeros(3)})
    store.replace_with(checkpoint)
    assert names(store.folder) == ["snapshot-1.safetensors"]
    store.replace_with(checkpoint.parent / "absent")
    assert not store.folder.exists()


def test_clearing_twice_is_no_error(store):
    """A run that never wrote a teacher clears a folder that is not there."""
    store.clear()
    store.save_snapshot(1, {"w": torch.ones(3)})
    store.clear()
    store.clear()
    assert not store.folder.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_snapshot_cut_short_is_no_teacher(tmp_path, share):
    """Weights copied in part would fail with a message of the file's format."""
    store = TeacherStore(tmp_path)
    store.save_snapshot(1, {"w": torch.ones(300)})
    content = store.snapshot_path(1).read_bytes()
    store.snapshot_path(1).write_bytes(content[: int(share * len(content))])
    with pytest.raises(TeacherError, match=DAMAGED.format(store.snapshot_path(1))):
        store.load_snapshot(1)
