"""The datasets of one task and of all tasks: which example an index is."""

import pytest
from tiny import raw_sets, task_configs, tiny_tokenizer

from hf_async_mtl.data.dataset import MultiTaskDataset, TaskDataset
from hf_async_mtl.data.tokenization import encode


@pytest.fixture(scope="module")
def tasks():
    made = []
    for task_id, (name, task) in enumerate(task_configs().items()):
        rows = encode(raw_sets(3 + task_id)[name], name, task, tiny_tokenizer(), 32)
        made.append(TaskDataset(name, task_id, task, rows))
    return made


def test_each_index_is_one_example_of_one_task(tasks):
    """An index off by one at a border gives an example to another task's head."""
    mixture = MultiTaskDataset(tasks)
    assert len(mixture) == sum(map(len, tasks))
    found = [(item["task_id"], item["example_id"]) for item in (mixture[i] for i in range(len(mixture)))]
    assert found == [(task.task_id, i) for task in tasks for i in range(len(task))]


def test_items_are_the_encoded_rows_and_no_more(tasks):
    """Texts and answers that travel to the collator cost memory in every worker."""
    for task in tasks:
        for index in range(len(task)):
            item, row = task[index], task.rows[index]
            keys = {"input_ids", "token_type_ids", "labels"}
            assert set(item) == {"task_id", "example_id"} | keys
            assert {key: item[key] for key in keys} == {key: row[key] for key in keys}


@pytest.mark.parametrize("index", ["end", -100])
def test_index_outside_is_an_error(tasks, index):
    """An index past the end must not wrap around to some other example."""
    mixture = MultiTaskDataset(tasks)
    with pytest.raises(IndexError):
        mixture[len(mixture) if index == "end" else index]
