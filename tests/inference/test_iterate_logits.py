"""The loop that runs a model over examples: shares, order, and what it leaves alone."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import tiny_model
from tiny import raw_sets, task_configs, tiny_tokenizer

from hf_async_mtl.data.collator import MultiTaskCollator, PaddedCollator
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.tokenization import encode, unit_counts
from hf_async_mtl.inference.logits import IndexBatches, iterate_logits, split_by_example

TASKS = list(task_configs())


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_processes_share_the_examples(examples, batch_size, num_ranks):
    """Bug: an example is left out, or one process waits for a batch that another does not have."""
    shares = [list(IndexBatches(examples, batch_size, rank, num_ranks)) for rank in range(num_ranks)]
    assert {len(share) for share in shares} == {len(IndexBatches(examples, batch_size, 0, num_ranks))}
    assert all(0 < len(batch) <= batch_size for share in shares for batch in share)
    found = list(itertools.chain.from_iterable(itertools.chain.from_iterable(shares)))
    assert set(found) == set(range(examples))
    assert len(found) < examples + num_ranks


def encoded(name: str, rows: int = 10) -> TaskDataset:
    task = task_configs()[name]
    data = encode(raw_sets(rows)[name], name, task, tiny_tokenizer(), task.max_length or 32)
    return TaskDataset(name, TASKS.index(name), task, data)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_packed_and_padded_batches_give_the_same_logits(name, workers):
    """Bug: examples change places, labels reach the model, or a worker's batch is another one."""
    model, examples = tiny_model(TASKS).eval(), encoded(name)
    types = {key: task.type for key, task in task_configs().items()}
    packed = MultiTaskCollator(types, 32, 0)

    def padded_logits(batch):
        rows = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
        if name == "choice":
            rows = {key: value.unflatten(0, (-1, 2)) for key, value in rows.items()}
        logits = model(**rows, tasks=[name]).logits[name]
        return {name: logits[rows["attention_mask"].bool()] if per_token else logits}

    per_token = model.heads[name].unit == "token"
    units = unit_counts(examples.task, examples.rows) if per_token else None
    order = np.array([3, 9, 0, 1, 2, 8, 7, 6, 5, 4])
    found = []
    for forward, collate, batches in (
        (lambda batch: model(**batch).logits, packed, IndexBatches(10, 4)),
        (padded_logits, PaddedCollator(tiny_tokenizer()), IndexBatches(order, 3)),
    ):
        pairs = (
            pair
            for ids, logits in iterate_logits(forward, examples, collate, batches, num_workers=workers)
            for pair in split_by_example(ids, logits[name], units)
        )
        found.append(dict(pairs))
    assert sorted(found[0]) == sorted(found[1]) == list(range(10))
    for index in range(10):
        np.testing.assert_allclose(found[0][index], found[1][index], rtol=1e-4, atol=1e-5)


def test_the_random_state_and_the_gradients_stay():
    """Bug: dropout after a recording depends on whether the task was recorded, or the graph of a pass is kept."""
    model, examples = tiny_model(TASKS).eval(), encoded("polarity")
    collate = MultiTaskCollator({key: task.type for key, task in task_configs().items()}, 32, 0)
    before = torch.get_rng_state()
    for _, logits in iterate_logits(lambda batch: model(**batch).logits, examples, collate, IndexBatches(10, 4)):
        assert not logits["polarity"].requires_grad
        assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
