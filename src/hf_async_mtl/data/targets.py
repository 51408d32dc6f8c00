"""Raw labels to targets: what each head's loss is computed on, or an error that shows the label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ..modeling.configuration_multitask import TaskConfig
from ..modeling.labels import LabelError, check_number, is_missing, shown
from ..modeling.losses import IGNORE

__all__ = ["first_subwords", "target_function"]

Target = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]


def target_function(dataset: Dataset, task: TaskConfig) -> Target:
    """The function that makes a row's target of (raw row, encoded row).

    Args:
        dataset: Raw rows; their schema may name integer labels.
        task: The resolved task.

    Returns:
        A function that raises a `LabelError` where the label cannot be used.
    """
    if task.type == "question_answering":
        return lambda row, tokens: _answer_positions(row[str(task.label_column)], row[task.input_columns[1]], tokens)
    if task.type == "regression":
        return lambda row, _: check_number(row[str(task.label_column)])
    if task.type == "multiple_choice":
        assert isinstance(task.text_columns, Mapping)
        names = list(task.text_columns["choices"])
        return lambda row, _: _choice(row[str(task.label_column)], names)
    if isinstance(task.label_column, list):
        label_columns = task.label_column
        return lambda row, _: [_zero_or_one(row[column]) for column in label_columns]
    label, encode_label = task.label_column, task.label_encoder(dataset)
    if task.type == "classification":
        return lambda row, _: encode_label(row[label])
    if task.type == "multilabel":
        count = task.num_labels

        def several(row: Mapping[str, Any], _: Any) -> np.ndarray:
            if not isinstance(row[label], list):
                raise LabelError(f"A multilabel label must be a list of labels; found {shown(row[label])}.")
            chosen = {encode_label(value) for value in row[label]}
            if len(chosen) < len(row[label]):
                raise LabelError(
                    f"A multilabel label must list each label that applies once; found {shown(row[label])}. Give "
                    "vectors of 0 and 1 as several columns."
                )
            vector = np.zeros(count, np.float32)
            vector[list(chosen)] = 1
            return vector

        return several

    def tags(row: Mapping[str, Any], tokens: Mapping[str, Any]) -> list[int]:
        words, raw = row[task.input_columns[0]], row[label]
        if not isinstance(raw, list) or len(raw) != len(words):
            found = len(raw) if isinstance(raw, list) else shown(raw)
            raise LabelError(f"A row needs one label for each of its {len(words)} words; found {found}.")
        indices = [encode_label(value) for value in raw]
        return [IGNORE if word is None else indices[word] for word in first_subwords(tokens["words"])]

    return tags


def _zero_or_one(value: Any) -> float:
    if value not in (0, 1):
        raise LabelError(f"A column of a multilabel task must hold 0 or 1; found {shown(value)}.")
    return float(value)


def _choice(value: Any, names: Sequence[str]) -> int:
    if value in names:
        return names.index(value)
    if is_missing(value) or isinstance(value, str) or value not in range(len(names)):
        raise LabelError(
            f"The label of a multiple_choice task must be 0..{len(names) - 1} or one of {', '.join(names)}; found "
            f"{shown(value)}."
        )
    return int(value)


def _answer_positions(answers: Any, context: str, tokens: Mapping[str, Any]) -> list[list[int]]:
    """Where each window holds the first answer, as positions in the window; [0, 0] where it does not."""
    keys = ("text", "answer_start")
    if not isinstance(answers, Mapping) or not all(isinstance(answers.get(key), list) and answers[key] for key in keys):
        raise LabelError(
            f"`answers` must be {{text: [...], answer_start: [...]}} with an answer; found {shown(answers)}. "
            "Questions without an answer are not supported."
        )
    text, start = answers["text"][0], answers["answer_start"][0]
    ok = isinstance(text, str) and text.strip() and isinstance(start, int) and start >= 0
    if not ok or not context.startswith(text, start):
        raise LabelError(
            "An answer must be a text that stands in its context at `answer_start`, counted in characters from 0; "
            f"found {shown(text)} at {shown(start)}."
        )
    # No token covers the white space around an answer.
    start += len(text) - len(text.lstrip())
    end = start + len(text.strip())
    positions, first = [], 0
    for window in tokens["input_ids"]:
        spans = tokens["spans"][first : first + len(window)]
        first += len(window)
        inside = [i for i, (a, b) in enumerate(spans) if a >= 0 and a < end and b > start]
        covered = bool(inside) and spans[inside[0]][0] <= start and spans[inside[-1]][1] >= end
        positions.append([inside[0], inside[-1]] if covered else [0, 0])
    return positions


def first_subwords(word_ids: Sequence[int | None]) -> list[int | None]:
    """The word that each token begins; None for special tokens and for sub-words that go on."""
    return [
        word if word is not None and (place == 0 or word_ids[place - 1] != word) else None
        for place, word in enumerate(word_ids)
    ]
