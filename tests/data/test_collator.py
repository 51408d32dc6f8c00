"""Collating: mixed examples to packed rows, from which every segment and label comes back to its example."""

import random

import pytest
import torch
from tiny import raw_sets, task_configs, tiny_tokenizer
from torch.utils.data import DataLoader

from hf_async_mtl.data.collator import MultiTaskCollator
from hf_async_mtl.data.dataset import MultiTaskDataset, TaskDataset
from hf_async_mtl.data.sampler import MultiTaskSampler
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.modeling.losses import IGNORE

TYPES = {name: task.type for name, task in task_configs().items()}
ROW_LENGTH, PAD = 64, 0


def make_mixture(token_types=True):
    tokenizer, tasks = tiny_tokenizer(token_types), []
    for task_id, (name, task) in enumerate(task_configs().items()):
        rows = encode(raw_sets(12)[name], name, task, tokenizer, task.max_length or 40)
        tasks.append(TaskDataset(name, task_id, task, rows))
    return MultiTaskDataset(tasks)


@pytest.fixture(scope="module")
def mixture():
    return make_mixture()


def collate(examples, row_length=ROW_LENGTH):
    return MultiTaskCollator(TYPES, row_length, PAD)(examples)


def segments_of(batch, key="input_ids"):
    """The segments of a batch, read out of its rows."""
    flat = batch[key].flatten()
    bounds = zip(batch["segment_starts"].tolist(), batch["segment_lengths"].tolist(), strict=True)
    return [flat[start : start + length].tolist() for start, length in bounds]


def examples_of(batch):
    """(task id, example id, its segments), read out of the rows of a batch."""
    segments = iter(segments_of(batch))
    ids = zip(batch["task_ids"].tolist(), batch["example_ids"].tolist(), batch["segment_counts"].tolist(), strict=True)
    return [(task, example, [next(segments) for _ in range(count)]) for task, example, count in ids]


def random_batches(mixture, count=30):
    for seed in range(count):
        generator = random.Random(seed)
        yield [mixture[i] for i in generator.choices(range(len(mixture)), k=generator.choice([1, 2, 7, 16, 40]))]


def test_example_ids_come_first(mixture):
    """Trainer and accelerate count a batch by its first tensor: rows there would be counted for examples."""
    batch = collate([mixture[i] for i in range(9)])
    assert next(iter(batch)) == "example_ids"
    assert len(batch["example_ids"]) == 9


def test_tasks_ascend_and_keep_their_order(mixture):
    """The model reads each task's examples as one slice; a sort that is not stable would tear labels from examples."""
    for examples in random_batches(mixture):
        batch = collate(examples)
        order = list(zip(batch["task_ids"].tolist(), batch["example_ids"].tolist(), strict=True))
        assert [task for task, _ in order] == sorted(task for task, _ in order)
        for task in set(batch["task_ids"].tolist()):
            given = [example["example_id"] for example in examples if example["task_id"] == task]
            assert [example for t, example in order if t == task] == given


def test_every_segment_comes_back_out_of_the_rows(mixture):
    """A segment cut, overwritten or given to another example would be another text with the same label."""
    for examples in random_batches(mixture):
        batch = collate(examples)
        ordered = sorted(examples, key=lambda example: example["task_id"])
        expected = [(example["task_id"], example["example_id"], example["input_ids"]) for example in ordered]
        assert examples_of(batch) == expected
        types = [segment for example in ordered for segment in example["token_type_ids"]]
        assert segments_of(batch, "token_type_ids") == types


def test_segments_of_a_row_are_apart(mixture):
    """Two segments with one id see each other; positions that go on put a text in the middle of another."""
    for examples in random_batches(mixture):
        batch = collate(examples)
        owner = torch.full_like(batch["input_ids"], -1).flatten()
        bounds = zip(batch["segment_starts"].tolist(), batch["segment_lengths"].tolist(), strict=True)
        for number, (start, length) in enumerate(bounds):
            assert (owner[start : start + length] == -1).all()
            owner[start : start + length] = number
        owner = owner.view_as(batch["input_ids"])
        for key, owners in zip(batch["segment_ids"], owner, strict=True):
            assert torch.equal(key == 0, owners == -1)
            assert len(set(zip(key.tolist(), owners.tolist(), strict=True))) == len(set(owners.tolist()))
        for positions in segments_of(batch, "position_ids"):
            assert positions == list(range(len(positions)))
        padding = owner == -1
        assert (batch["input_ids"][padding] == PAD).all()
        assert (batch["position_ids"][padding] == 0).all()


def test_labels_match_their_examples(mixture):
    """Labels in the order of the sampler, and examples in the order of their tasks, would look like noise."""
    for examples in random_batches(mixture):
        batch = collate(examples)
        assert list(batch["labels"]) == [name for i, name in enumerate(TYPES) if i in batch["task_ids"]]
        for name, labels in batch["labels"].items():
            task = list(TYPES).index(name)
            places = batch["example_ids"][batch["task_ids"] == task].tolist()
            rows = mixture.tasks[task].rows
            if name in ("colors", "answer"):
                expected = [target for place in places for target in rows[place]["labels"]]
            else:
                expected = [rows[place]["labels"] for place in places]
            assert labels.tolist() == expected


def test_labels_have_the_types_of_their_losses(mixture):
    """Integers in a squared error, or floats in a cross-entropy, raise in the first step, or lose digits."""
    batch = collate([mixture[i] for i in range(len(mixture))])
    floats = {"overlap", "topics"}
    for name, labels in batch["labels"].items():
        assert labels.dtype == (torch.float32 if name in floats else torch.int64)
    tokens = batch["segment_lengths"][: len(mixture.tasks[0])]
    assert tokens.sum() > 0
    assert batch["labels"]["topics"].shape == (12, 3)
    assert batch["labels"]["answer"].shape[1] == 2
    assert (batch["labels"]["colors"] == IGNORE).any()


def test_rows_to_predict_have_no_labels():
    """`predict` has no labels, and must be packed by the same code."""
    name, task = "polarity", task_configs()["polarity"]
    rows = encode(raw_sets(5)[name], name, task, tiny_tokenizer(), 32, with_labels=False)
    encoded = TaskDataset(name, 0, task, rows)
    batch = collate([encoded[i] for i in range(5)])
    assert "labels" not in batch
    assert [segments for _, _, segments in examples_of(batch)] == rows["input_ids"][:]


def test_no_token_types_are_made_up():
    """An encoder without token types refuses them."""
    mixture = make_mixture(token_types=False)
    assert "token_type_ids" not in collate([mixture[i] for i in range(9)])


def test_rows_are_nearly_full(mixture):
    """One segment a row is right in all other tests here, and costs three times as much."""
    generator = random.Random(0)
    for _ in range(10):
        examples = [mixture[i] for i in generator.sample(range(len(mixture)), 40)]
        batch = collate(examples, row_length=128)
        rows, width = batch["input_ids"].shape
        assert width <= 128
        assert batch["segment_lengths"].sum() > 0.85 * rows * width


def test_segment_longer_than_a_row_is_refused(mixture):
    """A segment cut to the row would lose its end without a word."""
    with pytest.raises(ValueError, match=r"A segment must fit into a row of 8 tokens; found one of \d+\."):
        collate([mixture[i] for i in range(len(mixture))], row_length=8)


# Python 3.12 warns where a process with threads is forked, as DataLoader does on Linux.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_give_the_same_batches(mixture):
    """Workers that draw, sort or hold something of their own would train on another order than one process."""
    batches = []
    for workers in (0, 2):
        sampler = MultiTaskSampler([len(task) for task in mixture.tasks], seed=3)
        sampler.set_epoch(2)
        collator = MultiTaskCollator(TYPES, ROW_LENGTH, PAD)
        batches.append(list(DataLoader(mixture, 16, sampler=sampler, collate_fn=collator, num_workers=workers)))
    assert len(batches[0]) == len(batches[1]) == -(-len(mixture) // 16)
    for left, right in zip(*batches, strict=True):
        assert list(left) == list(right)
        labels = left.pop("labels"), right.pop("labels")
        assert vars(left.pop("host")) == vars(right.pop("host"))
        assert list(labels[0]) == list(labels[1])
        for a, b in [*((left[key], right[key]) for key in left), *((labels[0][t], labels[1][t]) for t in labels[0])]:
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
