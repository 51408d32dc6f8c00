"""Raw rows to model inputs: each row becomes its segments' token ids and its target, once and cached."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from datasets.fingerprint import Hasher

from ..model.configuration_multitask import ConfigurationError, TaskConfig
from ..model.labels import LabelError, check_number, is_missing
from ..model.losses import IGNORE

__all__ = ["DEFAULT_STRIDE", "encode"]

DEFAULT_STRIDE = 32
"""Tokens that two windows of a long context share, where a task does not say."""

Columns = Mapping[str, Sequence[Any]]


def encode(
    dataset: Dataset, name: str, task: TaskConfig, tokenizer: Any, max_length: int, *, with_labels: bool = True
) -> Dataset:
    """Tokenize one split of one task.

    Args:
        dataset: Raw rows.
        name: The task's name, for messages and the progress bar.
        task: The resolved task.
        tokenizer: A fast tokenizer.
        max_length: The longest segment, in tokens.
        with_labels: False for rows to predict; token tasks then get a target of 0 on each word.

    Returns:
        Columns ``input_ids`` (one list a segment), ``token_type_ids`` where the tokenizer makes them, ``labels``; question
        answering also ``spans``, ``context`` and ``answers``. The result is cached by the content of all arguments.

    Raises:
        ConfigurationError: A column is missing, a text is no text, or a label cannot be used; with its row.
    """
    columns = [*task.text_columns, *(task.label_columns if with_labels else ())]
    for column in columns:
        if column not in dataset.column_names:
            raise ConfigurationError(
                f"Task {name!r} reads the column {column!r}; its data has {', '.join(dataset.column_names)}."
            )
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigurationError(
            f"The tokenizer must be a fast one, which knows the words behind its tokens; found {type(tokenizer).__name__}."
        )
    tokenize = _TOKENIZERS.get(task.type, _tokenize_texts)
    targets = _target_function(dataset, task) if with_labels else None

    def convert(rows: Columns, indices: Sequence[int]) -> dict[str, list[Any]]:
        for column in task.text_columns:
            _check_texts(rows[column], indices, name, column, words=task.type == "token_classification")
        encoded = tokenize(rows, task, tokenizer, max_length)
        words = encoded.pop("words", None)
        if targets is not None:
            encoded["labels"] = []
            for place in range(len(indices)):
                try:
                    row = {column: rows[column][place] for column in columns}
                    encoded["labels"].append(
                        targets(
                            row,
                            {key: value[place] for key, value in encoded.items() if key in ("input_ids", "spans")},
                            words and words[place],
                        )
                    )
                except LabelError as error:
                    where = ", ".join(map(repr, task.label_columns))
                    raise ConfigurationError(f"Task {name!r}, column {where}, row {indices[place]}: {error}") from None
        elif words is not None:
            encoded["labels"] = [[IGNORE if word is None else 0 for word in _firsts(ids)] for ids in words]
        if task.type == "question_answering" and targets is not None:
            assert isinstance(task.label, str)
            encoded["answers"] = [list(answers["text"]) for answers in rows[task.label]]
        return encoded

    return dataset.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        desc=f"Tokenizing {name}",
        new_fingerprint=Hasher.hash(
            [dataset._fingerprint, task.to_dict(), max_length, with_labels, _tokenizer_identity(tokenizer)]
        ),
    )


def _tokenizer_identity(tokenizer: Any) -> str:
    # A fast tokenizer's own hash changes when it is called: it remembers how it last truncated and padded.
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(truncation=None, padding=None)
    return json.dumps(backend, sort_keys=True)


def _check_texts(values: Sequence[Any], indices: Sequence[int], name: str, column: str, words: bool) -> None:
    for index, value in zip(indices, values, strict=True):
        ok = isinstance(value, str)
        if words:
            ok = isinstance(value, list) and len(value) > 0 and all(isinstance(word, str) for word in value)
        if not ok:
            wanted = "a list of words" if words else "a string"
            raise ConfigurationError(
                f"Task {name!r}, column {column!r}, row {index}: the text must be {wanted}; found {value!r}."
            )


def _firsts(word_ids: Sequence[int | None]) -> list[int | None]:
    """The word that each token begins; None for special tokens and for sub-words that go on."""
    return [
        word if word is not None and (place == 0 or word_ids[place - 1] != word) else None
        for place, word in enumerate(word_ids)
    ]


# -- tokens -----------------------------------------------------------------------------------------------------------


def _segments(encoded: Any, groups: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    keys = [key for key in ("input_ids", "token_type_ids") if key in encoded]
    return {key: [[encoded[key][i] for i in group] for group in groups] for key in keys}


def _tokenize_texts(rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    texts = [list(rows[column]) for column in task.text_columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    return _segments(encoded, [[i] for i in range(len(texts[0]))])


def _tokenize_words(rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    words = list(rows[task.text_columns[0]])
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    result = _segments(encoded, [[i] for i in range(len(words))])
    result["words"] = [encoded.word_ids(i) for i in range(len(words))]
    return result


def _tokenize_choices(rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    assert isinstance(task.text, Mapping)
    prompts = [" ".join(parts) for parts in zip(*(rows[column] for column in task.text["prompt"]), strict=True)]
    choices = list(zip(*(rows[column] for column in task.text["choices"]), strict=True))
    count = len(task.text["choices"])
    encoded = tokenizer(
        [prompt for prompt in prompts for _ in range(count)],
        [choice for row in choices for choice in row],
        truncation=True,
        max_length=max_length,
    )
    return _segments(encoded, [range(i * count, (i + 1) * count) for i in range(len(prompts))])


def _tokenize_windows(rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    questions, contexts = (list(rows[column]) for column in task.text_columns)
    # Only the context is cut into windows; a question that filled the window would leave none of it.
    short = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    limit = max_length // 2
    questions = [q[: o[limit - 1][1]] if len(o) > limit else q for q, o in zip(questions, short, strict=True)]
    # Some tokens of the window are the question's; a stride at or above the rest is refused by the tokenizer.
    stride = min(DEFAULT_STRIDE if task.stride is None else task.stride, max_length // 4)
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    groups: list[list[int]] = [[] for _ in questions]
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        groups[row].append(window)
    result = _segments(encoded, groups)
    result["spans"] = [
        [
            list(span) if part == 1 else [-1, -1]
            for window in group
            for span, part in zip(encoded["offset_mapping"][window], encoded.sequence_ids(window), strict=True)
        ]
        for group in groups
    ]
    result["context"] = contexts
    return result


_TOKENIZERS: dict[str, Callable[[Columns, TaskConfig, Any, int], dict[str, list[Any]]]] = {
    "token_classification": _tokenize_words,
    "multiple_choice": _tokenize_choices,
    "question_answering": _tokenize_windows,
}


# -- targets ----------------------------------------------------------------------------------------------------------

Target = Callable[[Mapping[str, Any], Mapping[str, Any], Any], Any]


def _target_function(dataset: Dataset, task: TaskConfig) -> Target:
    """The function that makes a row's target of (raw row, encoded row, word ids)."""
    if task.type == "question_answering":
        return lambda row, encoded, _: _answer_positions(row[str(task.label)], encoded)
    if task.type == "regression":
        return lambda row, encoded, _: check_number(row[str(task.label)])
    if task.type == "multiple_choice":
        assert isinstance(task.text, Mapping)
        names = list(task.text["choices"])
        return lambda row, encoded, _: _choice(row[str(task.label)], names)
    if isinstance(task.label, list):
        label_columns = task.label
        return lambda row, encoded, _: [_zero_or_one(row[column]) for column in label_columns]
    label, encode_label = task.label, task.label_encoder(dataset)
    if task.type == "classification":
        return lambda row, encoded, _: encode_label(row[label])
    if task.type == "multilabel":
        count = task.num_labels

        def several(row: Mapping[str, Any], encoded: Any, _: Any) -> list[float]:
            if not isinstance(row[label], list):
                raise LabelError(f"A multilabel label must be a list of labels; found {row[label]!r}.")
            chosen = {encode_label(value) for value in row[label]}
            return [float(i in chosen) for i in range(count)]

        return several

    def tags(row: Mapping[str, Any], encoded: Any, word_ids: Sequence[int | None]) -> list[int]:
        words, raw = row[task.text_columns[0]], row[label]
        if not isinstance(raw, list) or len(raw) != len(words):
            found = len(raw) if isinstance(raw, list) else repr(raw)
            raise LabelError(f"A row needs one label for each of its {len(words)} words; found {found}.")
        indices = [encode_label(value) for value in raw]
        return [IGNORE if word is None else indices[word] for word in _firsts(word_ids)]

    return tags


def _zero_or_one(value: Any) -> float:
    if value not in (0, 1):
        raise LabelError(f"A column of a multilabel task must hold 0 or 1; found {value!r}.")
    return float(value)


def _choice(value: Any, names: Sequence[str]) -> int:
    if value in names:
        return names.index(value)
    if is_missing(value) or isinstance(value, str) or value not in range(len(names)):
        raise LabelError(
            f"The label of a multiple_choice task must be 0..{len(names) - 1} or one of {', '.join(names)}; found {value!r}."
        )
    return int(value)


def _answer_positions(answers: Any, encoded: Mapping[str, Any]) -> list[list[int]]:
    """Where each window holds the first answer, as positions in the window; [0, 0] where it does not."""
    if not isinstance(answers, Mapping) or not answers.get("text") or not answers.get("answer_start"):
        raise LabelError(
            f"`answers` must be {{text: [...], answer_start: [...]}} with an answer; found {answers!r}. Questions "
            "without an answer are not supported: remove them."
        )
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    positions, first = [], 0
    for window in encoded["input_ids"]:
        spans = encoded["spans"][first : first + len(window)]
        first += len(window)
        inside = [i for i, (a, b) in enumerate(spans) if a >= 0 and a < end and b > start]
        covered = bool(inside) and spans[inside[0]][0] <= start and spans[inside[-1]][1] >= end
        positions.append([inside[0], inside[-1]] if covered else [0, 0])
    return positions
