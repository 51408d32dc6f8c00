"""Recorded logits: complete or not there, for these examples and no others, and each example its own."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recording import write_logits
from tiny import raw_sets, task_configs, tiny_encoder, tiny_tokenizer
from torch.utils.data import DataLoader

from hf_async_mtl import MultiTaskModel, TaskConfig
from hf_async_mtl.data.collator import MultiTaskCollator
from hf_async_mtl.data.dataset import MultiTaskDataset, TaskDataset
from hf_async_mtl.data.fingerprint import fingerprint
from hf_async_mtl.data.sampler import MultiTaskSampler
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.distillation import logits as recording_module
from hf_async_mtl.distillation.logits import LogitsFiles, RecordedLogits, TeacherError, check_disk_space, record_logits

HASH = "a" * 64


def encoded(name, rows=30, seed=0, **changes):
    task = TaskConfig(**{**task_configs()[name].to_dict(), **changes})
    return encode(raw_sets(rows, seed)[name], name, task, tiny_tokenizer(), task.max_length or 40)


def random_logits(shape, examples=50):
    generator = np.random.default_rng(0)
    units = generator.integers(1, 9, examples) if shape == "tokens" else [1] * examples
    tail = () if shape == "numbers" else (3,)
    return [generator.normal(size=(count, *tail)).astype(np.float32) for count in units]


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
