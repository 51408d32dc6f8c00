"""Logits to answers: what metrics compare, and what `predict` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..modeling.configuration_multitask import TaskConfig
from ..modeling.losses import IGNORE

__all__ = ["is_constant", "label_array", "predictions", "references", "token_counts", "unit_counts"]

MAX_ANSWER_TOKENS = 30
"""The longest answer that is read out of a context, in tokens; as in the scripts of BERT and Transformers."""


def token_counts(rows: Dataset) -> np.ndarray:
    """The tokens of each encoded example, ``[N]``, over all its segments."""
    counts, first = np.empty(len(rows), dtype=np.int64), 0
    for piece in rows.select_columns("input_ids").with_format("arrow").iter(batch_size=1000):
        segments = piece.column(0).combine_chunks()
        ends = np.cumsum(segments.value_lengths().to_numpy(zero_copy_only=False))
        tokens = np.cumsum([0, *segments.flatten().value_lengths().to_numpy(zero_copy_only=False)])
        counts[first : first + len(ends)] = np.diff(tokens[ends], prepend=0)
        first += len(ends)
    return counts


def unit_counts(task: TaskConfig, rows: Dataset) -> np.ndarray:
    """The number of rows of logits that each example has, ``[N]``: its tokens, or 1."""
    if task.type in ("token_classification", "question_answering"):
        return token_counts(rows)
    return np.broadcast_to(np.int64(1), len(rows))


def predictions(task: TaskConfig, logits: np.ndarray, rows: Dataset) -> list[Any]:
    """The predictions of a task, as its metrics take them.

    Args:
        task: The resolved task.
        logits: ``[N, C]``; ``[N]`` for regression; ``[N, U, C]`` for tokens, padded behind each example's own.
        rows: The encoded split, in the same order.

    Returns:
        Class indices; 0/1 vectors; numbers; lists of label names, one a word; texts of answers.
    """
    if task.type in ("classification", "multiple_choice"):
        return logits.argmax(-1).tolist()
    if task.type == "regression":
        return logits.tolist()
    if task.type == "multilabel":
        return (logits > 0).astype(int).tolist()
    if task.type == "token_classification":
        assert task.label_names is not None
        names = task.label_names
        return [
            [names[c] for c, target in zip(scores.argmax(-1), labels, strict=False) if target != IGNORE]
            for scores, labels in zip(logits, rows["labels"], strict=True)
        ]
    return [best_span(scores, row) for scores, row in zip(logits, rows, strict=True)]


def is_constant(task_type: str, answers: Sequence[Any]) -> bool:
    """Whether predictions are all the same: one answer to every example, or one label for every word of all of them.

    Examples:
        >>> is_constant("classification", [1, 1, 1]), is_constant("token_classification", [["O", "O"], ["O"]])
        (True, True)
        >>> is_constant("multilabel", [[0, 1], [0, 1]]), is_constant("multilabel", [[0, 1], [1, 1]])
        (True, False)
    """
    if task_type == "token_classification":
        return len({label for words in answers for label in words}) <= 1
    return all(answer == answers[0] for answer in answers)


def references(task: TaskConfig, rows: Dataset) -> list[Any]:
    """The true answers of a task, as its metrics take them; see `predictions`."""
    if task.type == "token_classification":
        assert task.label_names is not None
        names = task.label_names
        return [[names[label] for label in labels if label != IGNORE] for labels in rows["labels"]]
    if task.type == "question_answering":
        return list(rows["answers"])
    if task.type == "multilabel":
        return [[int(label) for label in labels] for labels in rows["labels"]]
    return list(rows["labels"])


def label_array(task: TaskConfig, rows: Dataset, units: int) -> Any:
    """The targets of an encoded split as functions of an `EvalPrediction` know them.

    Args:
        task: The resolved task.
        rows: The split.
        units: The tokens of the longest example; tokens are padded to it.

    Returns:
        ``[N]``; ``[N, C]`` for multilabel; ``[N, units]`` for token classification, -100 where there is no label;
        for question answering the list of each example's answers.
    """
    if task.type == "question_answering":
        return references(task, rows)
    if task.type != "token_classification":
        return np.asarray(rows["labels"])
    padded = np.full((len(rows), units), IGNORE)
    for place, labels in enumerate(rows["labels"]):
        padded[place, : len(labels)] = labels
    return padded


def best_span(logits: np.ndarray, row: Mapping[str, Any]) -> str:
    """The text between the best start and the best end of all windows of a context.

    Args:
        logits: ``[U, 2]``, start and end, over the tokens of all windows.
        row: The encoded row: its windows' ``input_ids``, ``spans`` in the context, and ``context``.
    """
    best_score, best_text, first = -np.inf, "", 0
    for window in row["input_ids"]:
        spans: Sequence[Sequence[int]] = row["spans"][first : first + len(window)]
        inside = np.array([a >= 0 for a, _ in spans])
        scores = np.where(inside[:, None], logits[first : first + len(window)], -np.inf)
        first += len(window)
        pairs = scores[:, 0][:, None] + scores[:, 1][None, :]
        allowed = np.triu(np.tril(np.ones(pairs.shape, dtype=bool), MAX_ANSWER_TOKENS - 1))
        pairs = np.where(allowed, pairs, -np.inf)
        start, end = map(int, np.unravel_index(pairs.argmax(), pairs.shape))
        if pairs[start, end] > best_score:
            best_score = float(pairs[start, end])
            # Some tokenizers count the space before a word as the word's.
            best_text = row["context"][spans[start][0] : spans[end][1]].strip()
    return best_text
