"""Teachers on disk: whole or not there, for these examples and no others, and each example its own logits."""

import errno
import os
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk
from recording import write_logits
from safetensors.torch import save_file
from tiny import raw_sets, task_configs, tiny_encoder, tiny_tokenizer
from torch.utils.data import DataLoader

from hf_async_mtl import MultiTaskModel, TaskConfig
from hf_async_mtl.data.collator import MultiTaskCollator
from hf_async_mtl.data.dataset import MultiTaskDataset, TaskDataset
from hf_async_mtl.data.fingerprint import fingerprint
from hf_async_mtl.data.sampler import MultiTaskSampler
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.distillation import logits as recording_module
from hf_async_mtl.distillation import snapshots as teacher_module
from hf_async_mtl.distillation.logits import LogitsFiles, RecordedLogits, TeacherError, check_disk_space, record_logits
from hf_async_mtl.distillation.snapshots import TeacherStore
from hf_async_mtl.utils import link_or_copy

HASH = "a" * 64


def encoded(name, rows=30, seed=0, **changes):
    task = TaskConfig(**{**task_configs()[name].to_dict(), **changes})
    return encode(raw_sets(rows, seed)[name], name, task, tiny_tokenizer(), task.max_length or 40)


# -- recorded logits --------------------------------------------------------------------------------------------------


def random_logits(shape, examples=50):
    generator = np.random.default_rng(0)
    units = generator.integers(1, 9, examples) if shape == "tokens" else [1] * examples
    tail = () if shape == "numbers" else (3,)
    return [generator.normal(size=(count, *tail)).astype(np.float32) for count in units]


def test_the_hash_of_cached_rows_is_kept_beside_them(tmp_path):
    """Hashing millions of rows at every start would cost each resumed run its first minute."""
    raw_sets(20)["polarity"].to_json(tmp_path / "rows.jsonl")
    raw = load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    rows = encode(raw, "polarity", task_configs()["polarity"], tiny_tokenizer(), 40)
    found = fingerprint(rows)
    assert found == fingerprint(encoded("polarity", 20))
    (kept,) = (tmp_path / "cache").rglob("examples-*.sha256")
    assert kept.read_text() == found
    kept.write_text("it was read")
    assert fingerprint(rows) == "it was read"
    # Some of the rows are other rows.
    assert fingerprint(rows.select(range(10))) == fingerprint(encoded("polarity", 20).select(range(10)))


@pytest.mark.parametrize("shape", ["numbers", "classes", "tokens"])
def test_lookup_gives_each_example_its_own_logits(tmp_path, shape):
    """Logits in the order of the file, and not of the batch, would teach each example another one's answer."""
    logits = random_logits(shape)
    write_logits(LogitsFiles.of(tmp_path, "a"), logits, HASH, step=7)
    recorded = RecordedLogits(LogitsFiles.of(tmp_path, "a"))
    generator = random.Random(0)
    for size in (1, 2, 17, 50):
        ids = generator.choices(range(50), k=size)
        found = recorded.lookup(torch.tensor(ids))
        assert found.dtype == torch.float32
        assert torch.equal(found, torch.from_numpy(np.concatenate([logits[i] for i in ids])))
    assert recorded.lookup(torch.tensor([], dtype=torch.long)).shape == (0, *logits[0].shape[1:])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_logits_are_stored_in_float32(tmp_path, kind):
    """Evaluation may run in half precision; the student's loss is computed in float32."""
    logits = [row.astype(kind) for row in random_logits("classes")]
    write_logits(LogitsFiles.of(tmp_path, "a"), logits, HASH, step=7)
    stored = np.load(tmp_path / "logits-a.npy", allow_pickle=False)
    assert stored.dtype == np.float32
    assert np.array_equal(stored, np.concatenate(logits).astype(np.float32))


def test_logits_come_in_any_order_and_some_twice(tmp_path):
    """Several ranks fill up their batches with examples that others have had."""
    files = LogitsFiles.of(tmp_path, "a")
    with record_logits(files, [1, 2, 1], 2, HASH, 1) as writer:
        writer.write(torch.tensor([2, 0]), torch.tensor([[5.0, 6], [1, 2]]))
        writer.write(torch.tensor([1, 2]), torch.tensor([[3.0, 4], [7, 8], [5, 6]]))
    assert np.load(files.logits).tolist() == [[1, 2], [3, 4], [7, 8], [5, 6]]
    assert np.load(files.offsets).tolist() == [0, 1, 3, 4]


def test_a_recording_with_a_gap_is_no_teacher(tmp_path):
    """An example that no rank had would be taught zeros."""
    files = LogitsFiles.of(tmp_path, "a")
    with pytest.raises(TeacherError) as error, record_logits(files, [1, 1, 1], 2, HASH, 1) as writer:
        writer.write(torch.tensor([0, 2]), torch.ones(2, 2))
    expected = "Every example must be recorded; 1 of 3 in logits-a.npy were not, the first is 1."
    assert str(error.value) == expected
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_finite_are_refused(tmp_path):
    """A teacher whose weights went wrong would teach NaN, and the student's would follow some steps later."""
    files, logits = LogitsFiles.of(tmp_path, "a"), torch.zeros(4, 2)
    logits[2, 1] = torch.nan
    with pytest.raises(TeacherError) as error, record_logits(files, [2, 2, 1], 2, HASH, 1) as writer:
        writer.write(torch.tensor([1, 0]), logits)
    assert str(error.value) == (
        "A teacher must give finite logits; those of training row 0 in logits-a.npy are not. Lower the "
        "learning rate or use bf16 in place of fp16, and resume from the last checkpoint."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_beforehand(tmp_path, monkeypatch):
    """A run of days ends where the first task converges, in a bus error of the memory map."""
    monkeypatch.setattr(recording_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 2**20))
    folder = tmp_path / "run"
    recording = record_logits(LogitsFiles.of(folder, "a"), np.ones(2**20), 10, HASH, 1)
    with pytest.raises(TeacherError) as error, recording:
        pass
    assert str(error.value) == (
        f"Recording the logits logits-a.npy needs 48.0 MiB in {folder}; its disk has 3.0 MiB left. Free "
        "some, choose another output folder, or train on fewer examples (`max_samples: {train: ...}`)."
    )
    check_disk_space(folder, 3 * 2**20, "This")


def test_logits_name_their_step_and_examples(tmp_path):
    """Without them, a report cannot say which weights taught."""
    files = LogitsFiles.of(tmp_path, "a")
    write_logits(files, random_logits("classes"), HASH, step=7)
    recorded = RecordedLogits(files)
    assert (recorded.example_hash, recorded.step) == (HASH, 7)


def test_missing_logits_are_named(tmp_path):
    """A `FileNotFoundError` does not say what to do."""
    files = LogitsFiles.of(tmp_path, "a")
    with pytest.raises(TeacherError) as error:
        RecordedLogits(files)
    expected = (
        f"The recorded logits {files.info} are missing. Resume from a checkpoint that holds them, or start afresh."
    )
    assert str(error.value) == expected


DAMAGED = "The file {} is damaged (.*). Was its checkpoint copied in part\\? Copy it again, or resume from another"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("file", LogitsFiles._fields)
def test_files_cut_short_are_no_teacher(tmp_path, file, share):
    """A checkpoint copied in part would teach zeros, or fail with a message of the file's format."""
    files = LogitsFiles.of(tmp_path, "a")
    write_logits(files, random_logits("tokens"), HASH, step=1)
    cut = getattr(files, file)
    content = cut.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TeacherError, match=DAMAGED.format(cut)):
        RecordedLogits(files)


@pytest.mark.parametrize("file", ["logits", "offsets"])
def test_pickled_arrays_are_refused(tmp_path, file):
    """A checkpoint from somebody else would run code where its teachers are read."""
    files = LogitsFiles.of(tmp_path, "a")
    write_logits(files, random_logits("tokens"), HASH, step=1)
    np.save(getattr(files, file), np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(TeacherError, match=DAMAGED.format(getattr(files, file))):
        RecordedLogits(files)
    np.save(getattr(files, file), np.ones(51, dtype=np.int8))
    with pytest.raises(TeacherError, match="it holds int8"):
        RecordedLogits(files)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_snapshot_cut_short_is_no_teacher(tmp_path, share):
    """Weights copied in part would fail with a message of the file's format."""
    store = TeacherStore(tmp_path)
    store.save_snapshot(1, {"w": torch.ones(300)})
    content = store.snapshot_path(1).read_bytes()
    store.snapshot_path(1).write_bytes(content[: int(share * len(content))])
    with pytest.raises(TeacherError, match=DAMAGED.format(store.snapshot_path(1))):
        store.load_snapshot(1)


def test_logits_of_other_examples_are_refused(tmp_path):
    """A resumed run on other data would teach each example another one's answer, without a word."""
    rows = encoded("polarity")
    write_logits(LogitsFiles.of(tmp_path, "polarity"), random_logits("classes", 30), fingerprint(rows), step=7)
    recorded = RecordedLogits(LogitsFiles.of(tmp_path, "polarity"))
    recorded.check(fingerprint(encoded("polarity")), "polarity", 30, 3)
    other = fingerprint(encoded("polarity", seed=1))
    with pytest.raises(TeacherError) as error:
        recorded.check(other, "polarity", 30, 3)
    assert str(error.value) == (
        f"The recorded logits of task 'polarity' belong to other training examples (hash {fingerprint(rows)[:12]}, now "
        f"{other[:12]}). Resume with the data, tokenizer and `data_seed` of the first run, or start afresh."
    )


# Python 3.12 warns where a process with threads is forked, as DataLoader does on Linux.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_recorded_logits_are_the_teachers_own(tmp_path):
    """Recorded in one order and batching, and looked up in another, each example must have its own logits."""
    configs = task_configs()
    model = MultiTaskModel.from_encoder(tiny_encoder(tmp_path / "encoder"), configs, max_length=40).eval()
    collator = MultiTaskCollator({name: task.type for name, task in configs.items()}, 40, 0)
    tasks = [TaskDataset(name, i, task, encoded(name, 10)) for i, (name, task) in enumerate(configs.items())]
    recorded = {}
    with torch.no_grad():
        for task in tasks:
            logits = []
            for start in range(0, len(task), 4):
                batch = collator([task[i] for i in range(start, min(start + 4, len(task)))])
                batch.pop("example_ids")
                output = model(**batch)
                rows = output.logits[task.name]
                if model.heads[task.name].unit == "token":
                    counts = output.layouts[task.name].example_tokens.diff().tolist()
                    logits += [part.numpy() for part in rows.split(counts)]
                else:
                    logits += [row[None].numpy() for row in rows]
            files = LogitsFiles.of(tmp_path, task.name)
            write_logits(files, logits, fingerprint(task.rows), step=1)
            recorded[task.name] = RecordedLogits(files)
        sampler = MultiTaskSampler([len(task) for task in tasks], seed=1)
        loader = DataLoader(MultiTaskDataset(tasks), 13, sampler=sampler, collate_fn=collator, num_workers=2)
        seen = 0
        for batch in loader:
            example_ids, task_ids = batch.pop("example_ids"), batch["task_ids"]
            for name, own in model(**batch).logits.items():
                ids = example_ids[task_ids == list(configs).index(name)]
                seen += len(ids)
                torch.testing.assert_close(recorded[name].lookup(ids).view(own.shape), own, atol=1e-5, rtol=0)
    assert seen == sum(map(len, tasks))


# -- the fingerprint --------------------------------------------------------------------------------------------------


def copied(rows, folder):
    rows.save_to_disk(folder / "copy", num_shards=3)
    return load_from_disk(folder / "copy")


SAME = {
    "itself": lambda rows, folder: rows,
    "copied": copied,
    "in_memory": lambda rows, folder: Dataset.from_list(list(rows), features=rows.features),
    "types_found": lambda rows, folder: Dataset.from_list(list(rows)),
    "chunks": lambda rows, folder: concatenate_datasets(
        [rows.select(range(i, min(i + 7, len(rows)))) for i in range(0, len(rows), 7)]
    ),
    "selected": lambda rows, folder: rows.select(list(range(len(rows)))),
    "reordered_twice": lambda rows, folder: rows.select(range(len(rows))[::-1]).select(range(len(rows))[::-1]),
    "part_of_more": lambda rows, folder: concatenate_datasets([rows, rows]).select(range(len(rows))),
    "columns": lambda rows, folder: rows.select_columns(["labels", "input_ids"]),
    "format": lambda rows, folder: rows.with_format("numpy"),
}


@pytest.mark.parametrize("name", task_configs())
@pytest.mark.parametrize("same", SAME)
def test_fingerprint_is_of_the_content_alone(tmp_path, name, same):
    """A hash of the file, its chunks or its order on disk would refuse to resume on another machine."""
    rows = encoded(name)
    assert fingerprint(SAME[same](rows, tmp_path)) == fingerprint(rows)


def test_fingerprint_does_not_know_batches():
    """More rows than one batch of the reader, and chunks across its borders, must give the same hash."""
    rows = Dataset.from_dict({"input_ids": [[[i, i + 1]] for i in range(2300)], "labels": list(range(2300))})
    parts = [rows.select(range(a, b)) for a, b in [(0, 999), (999, 1001), (1001, 2300)]]
    assert fingerprint(concatenate_datasets(parts)) == fingerprint(rows)


def changed(rows, place, column, value):
    return Dataset.from_list([{**row, column: value(row[column])} if i == place else row for i, row in enumerate(rows)])


OTHER = {
    "token": lambda rows: changed(rows, 17, "input_ids", lambda ids: [[*ids[0][:-1], ids[0][-1] + 1], *ids[1:]]),
    "label": lambda rows: changed(rows, 17, "labels", lambda label: 1 - label),
    "order": lambda rows: rows.select([1, 0, *range(2, len(rows))]),
    "fewer": lambda rows: rows.select(range(len(rows) - 1)),
    "more": lambda rows: concatenate_datasets([rows, rows.select([0])]),
    "border": lambda rows: changed(
        changed(rows, 3, "input_ids", lambda ids: [[*ids[0], rows[4]["input_ids"][0][0]]]),
        4,
        "input_ids",
        lambda ids: [ids[0][1:]],
    ),
    "segments": lambda rows: changed(rows, 17, "input_ids", lambda ids: [ids[0][:2], ids[0][2:]]),
}


@pytest.mark.parametrize("other", OTHER)
def test_fingerprint_sees_the_smallest_change(other):
    """One token moved over the border of two examples leaves all values as they were, and is other data."""
    rows = encoded("polarity")
    assert fingerprint(OTHER[other](rows)) != fingerprint(rows)


def test_fingerprint_sees_the_length_limit_and_the_label_order():
    """Rows cut elsewhere have other tokens to teach; swapped labels would teach the wrong class."""
    swapped = encoded("polarity", label_names=["pos", "neg"])
    shorter = encoded("polarity", max_length=8)
    assert len({fingerprint(rows) for rows in (encoded("polarity"), swapped, shorter)}) == 3


# -- the store --------------------------------------------------------------------------------------------------------


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
