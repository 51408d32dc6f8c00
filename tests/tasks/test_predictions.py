"""Decoding: logits to what metrics compare, read at the right tokens, words and windows."""

import random

import numpy as np
import pytest
from datasets import Dataset
from tiny import WORDS, WORDS_IN_PIECES, byte_level_tokenizer, raw_sets, task_configs, tiny_tokenizer

from hf_async_mtl import TaskConfig
from hf_async_mtl.data.tokenization import encode, unit_counts
from hf_async_mtl.metrics import compute
from hf_async_mtl.tasks.question_answering import MAX_ANSWER_TOKENS
from hf_async_mtl.tasks.registry import TASK_TYPES

TOKENIZER = tiny_tokenizer()


def predictions(task, logits, rows):
    return TASK_TYPES[task.type].predictions(task, logits, rows)


def references(task, rows):
    return TASK_TYPES[task.type].references(task, rows)


def encoded(name, rows=20, max_length=32, **arguments):
    task = task_configs()[name]
    return encode(raw_sets(rows)[name], name, task, TOKENIZER, task.max_length or max_length, **arguments)


def padded(rows):
    """Arrays of shape [U, C] as the Trainer gathers them: padded behind, with what would win if it were read."""
    width = max(map(len, rows)) + 3
    return np.stack([np.pad(row, ((0, width - len(row)), (0, 0)), constant_values=1e9) for row in rows])


def perfect_logits(task, rows):
    """The logits of a model that knows all labels."""
    if task.type == "regression":
        return np.array(rows["labels"])
    if task.type == "multilabel":
        return np.array(rows["labels"]) * 4 - 2
    if task.type == "token_classification":
        return padded([np.eye(task.num_labels)[np.maximum(labels, 0)] for labels in rows["labels"]])
    if task.type == "question_answering":
        return padded([one_hot_spans(row) for row in rows])
    return np.eye(2)[rows["labels"]]


def one_hot_spans(row):
    """Start and end logits [U, 2] of a row: 10 at the answer in each window that has it."""
    logits, first = np.zeros((len(row["spans"]), 2)), 0
    for window, (start, end) in zip(row["input_ids"], row["labels"], strict=True):
        if (start, end) != (0, 0):
            logits[first + start, 0] = logits[first + end, 1] = 10
        first += len(window)
    return logits


@pytest.mark.parametrize("name", task_configs())
def test_perfect_logits_give_the_references(name):
    """Predictions and references read in different forms would compare as wrong, or as right by chance."""
    task, rows = task_configs()[name], encoded(name)
    guessed = predictions(task, perfect_logits(task, rows), rows)
    true = references(task, rows)
    if name == "answer":
        assert [[answer] for answer in guessed] == true
    else:
        assert guessed == true
    assert compute([task.monitored], task.type, guessed, true, task.label_names)[task.monitored] == pytest.approx(1)


def test_tags_are_one_a_word():
    """Labels read at all sub-words, or at padding, would not be one a word."""
    task, raw = task_configs()["colors"], raw_sets(20)["colors"]
    rows = encoded("colors", max_length=64)
    assert predictions(task, perfect_logits(task, rows), rows) == raw["tags"][:]


def test_wrong_logits_give_other_answers():
    """A reader that answers the same whatever the logits say would pass all other tests here."""
    for name, task in task_configs().items():
        rows = encoded(name)
        assert predictions(task, -perfect_logits(task, rows), rows) != TASK_TYPES[task.type].references(task, rows)


@pytest.mark.parametrize("name", task_configs())
def test_units_are_the_tokens_or_one(name):
    """Recorded logits cut at a wrong count would give each example the tail of the one before."""
    task, rows = task_configs()[name], encoded(name)
    counts = unit_counts(task, rows)
    if name in ("colors", "answer"):
        assert counts.tolist() == [sum(len(segment) for segment in row["input_ids"]) for row in rows]
        assert len(set(counts)) > 1
    else:
        assert counts.tolist() == [1] * len(rows)


def test_threshold_of_a_label_is_a_logit_of_zero():
    """A threshold of one half on logits instead of probabilities would ask for more than 62 %."""
    task = task_configs()["topics"]
    assert predictions(task, np.array([[0.1, -0.1, 0.6]]), encoded("topics", rows=1)) == [[1, 0, 1]]


# -- spans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_level_tokenizer()], ids=["wordpiece", "byte_level"])
@pytest.mark.parametrize("stride", [4, 8])
def test_answers_of_several_words_come_back_from_their_windows(tokenizer, stride):
    """An offset of a window, of the question or of a sub-word would cut the answer elsewhere.

    An answer of at most stride + 1 tokens is whole in at least one window.
    """
    generator, rows = random.Random(stride), []
    for _ in range(40):
        words = [generator.choice([*WORDS, *WORDS_IN_PIECES]) for _ in range(generator.randint(1, 60))]
        first = generator.randrange(len(words))
        last = first
        while last + 1 < len(words) and generator.random() < 0.6:
            if len(tokenizer(" ".join(words[first : last + 2]), add_special_tokens=False)["input_ids"]) > stride:
                break
            last += 1
        answer = {"text": [" ".join(words[first : last + 1])], "answer_start": [len(" ".join([*words[:first], ""]))]}
        question = " ".join(generator.choice(WORDS) for _ in range(generator.randint(1, 30)))
        rows.append({"question": question, "context": " ".join(words), "answers": answer})
    task = TaskConfig("question_answering", ["question", "context"], "answers", doc_stride=stride)
    encoded = encode(Dataset.from_list(rows), "t", task, tokenizer, 48)
    assert any(len(row["input_ids"]) > 2 for row in encoded)
    assert any(" " in row["answers"]["text"][0] for row in rows)
    assert predictions(task, padded([one_hot_spans(row) for row in encoded]), encoded) == [
        row["answers"]["text"][0] for row in rows
    ]


def test_answer_is_never_read_outside_the_context():
    """The highest logits on the question, on [CLS] or on padding would give an answer that is no text at all."""
    rows = encoded("answer")
    logits = []
    for row in rows:
        spans = np.array(row["spans"])
        scores = np.where(spans[:, :1] < 0, 100.0, 0.0) * np.ones(2)
        scores[np.flatnonzero(spans[:, 0] >= 0)[-1]] = 1
        logits.append(scores)
    for row, answer in zip(rows, predictions(task_configs()["answer"], padded(logits), rows), strict=True):
        assert answer
        assert row["context"].endswith(answer)


def test_end_is_never_before_the_start():
    """Start and end chosen apart from each other give empty answers."""
    task, rows = task_configs()["answer"], encoded("answer", rows=1)
    row = rows[0]
    places = [i for i, (start, _) in enumerate(row["spans"][: len(row["input_ids"][0])]) if start >= 0]
    logits = np.zeros((1, len(row["spans"]), 2))
    logits[0, places[5], 0] = 10
    logits[0, places[1], 1] = 12
    logits[0, places[7], 1] = 5
    (answer,) = predictions(task, logits, rows)
    assert answer == row["context"][row["spans"][places[5]][0] : row["spans"][places[7]][1]]


def test_answer_has_a_greatest_length():
    """Without one, a start at the beginning and an end at the end give the whole context."""
    context = " ".join(["cat"] * 80)
    rows = Dataset.from_list([{"question": "is", "context": context}])
    task = task_configs()["answer"]
    row = encode(rows, "t", task, TOKENIZER, 128, with_labels=False)
    logits = np.zeros((1, len(row["spans"][0]), 2))
    logits[0, 3, 0] = 10  # [CLS] is [SEP], then the context
    logits[0, 3 + MAX_ANSWER_TOKENS, 1] = 10
    logits[0, 2 + MAX_ANSWER_TOKENS, 1] = 1
    (answer,) = predictions(task, logits, row)
    assert answer.split() == ["cat"] * MAX_ANSWER_TOKENS


def test_best_window_gives_the_answer():
    """The first window's answer, taken because it is first, would hide all later ones."""
    rows = encoded("answer", rows=10)
    for row in rows:
        sizes = [len(window) for window in row["input_ids"]]
        first = sum(sizes[:-1])
        place = first + next(i for i, (start, _) in enumerate(row["spans"][first:]) if start >= 0)
        logits = np.random.default_rng(0).uniform(0, 1, (1, sum(sizes), 2))
        logits[0, place] = 2
        only = Dataset.from_list([row])
        begin, end = row["spans"][place]
        assert predictions(task_configs()["answer"], logits, only) == [row["context"][begin:end]]


def test_empty_context_has_an_empty_answer():
    """A context without a token has no best span, and must not stop the prediction of all others."""
    rows = Dataset.from_list([{"question": "is the cat", "context": ""}])
    task = task_configs()["answer"]
    row = encode(rows, "t", task, TOKENIZER, 16, with_labels=False)
    assert predictions(task, np.zeros((1, len(row["spans"][0]), 2)), row) == [""]
