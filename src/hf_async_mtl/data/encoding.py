"""Raw rows to model inputs: each row becomes its segments' token ids and its target, once and cached."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from ..modeling import labels
from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from ..modeling.labels import WAY_OUT, LabelError, shown
from ..modeling.losses import IGNORE
from . import pretruncation as shortening
from . import targets
from .pretruncation import shorten, shorten_words
from .targets import first_subwords, target_function

__all__ = ["DEFAULT_STRIDE", "count_truncated", "encode", "not_utf8", "truncation_warning"]

DEFAULT_STRIDE = 32
"""Tokens that two windows of a long context share, where a task does not say."""

_CONTEXT_LENGTHS = 1000
"""The longest context, in times `max_length`: all its windows are in one batch."""

_CONVERTED, _WRITTEN = 500, 2000
"""Rows that are tokenized at a time, and rows of one batch of the file. The head of each batch is read when the file is
opened, with 64 KiB around it; and of a large batch one row is spread wide."""

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
        with_labels: False for rows to predict; token tasks then get each word's index as its target.

    Returns:
        Columns ``input_ids`` (one list a segment), ``token_type_ids`` where the tokenizer makes them, ``labels``,
        ``truncated`` (whether a text was longer than its segment, or a question than half of one); question answering
        also ``spans``, ``context`` and ``answers``. The result is cached by the content of all arguments.

    Raises:
        ConfigurationError: There are no rows, a column is missing, a text is no text, or a label cannot be used; with
            its row.
    """
    if len(dataset) == 0:
        raise ConfigurationError(f"Task {name!r} needs at least one row in each of its splits; found an empty one.")
    dataset = dataset.with_format(None)  # plain Python values of all columns, whatever the user looked at
    columns = [*task.input_columns, *(task.target_columns if with_labels else ())]
    for column in columns:
        if column not in dataset.column_names:
            raise ConfigurationError(
                f"Task {name!r} reads the column {column!r}; its data has {', '.join(dataset.column_names)}."
            )
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigurationError(
            "The tokenizer must be a fast one, which knows the words behind its tokens; found "
            f"{type(tokenizer).__name__}."
        )
    tokenize = _TOKENIZERS.get(task.type, _tokenize_texts)
    make_target = target_function(dataset, task) if with_labels else None
    features = _features(task, tokenizer, with_labels)
    schema = features.arrow_schema.remove_metadata()

    def convert(rows: Columns, indices: Sequence[int]) -> dict[str, list[Any]]:
        for column in task.input_columns:
            _check_texts(rows[column], indices, name, column, words=task.type == "token_classification")
        if task.type == "question_answering":
            _check_contexts(rows[task.input_columns[1]], indices, name, task.input_columns[1], tokenizer, max_length)
        encoded = tokenize(rows, task, tokenizer, max_length)
        if make_target is not None:
            made = []
            for place in range(len(indices)):
                row = {column: rows[column][place] for column in columns}
                tokens = {key: values[place] for key, values in encoded.items()}
                try:
                    made.append(make_target(row, tokens))
                except LabelError as error:
                    where = ", ".join(map(repr, task.target_columns))
                    raise ConfigurationError(
                        f"Task {name!r}, column {where}, row {indices[place]}: {error} {WAY_OUT}"
                    ) from None
            encoded["labels"] = made
        elif task.type == "token_classification":
            encoded["labels"] = [
                [IGNORE if word is None else word for word in first_subwords(words)] for words in encoded["words"]
            ]
        encoded.pop("words", None)
        if task.type == "question_answering" and with_labels:
            assert isinstance(task.label_column, str)
            encoded["answers"] = [list(answers["text"]) for answers in rows[task.label_column]]
        return encoded

    def convert_all(rows: Columns, indices: Sequence[int]) -> pa.Table:
        pieces = []
        for first in range(0, len(indices), _CONVERTED):
            here = slice(first, first + _CONVERTED)
            piece = convert({column: rows[column][here] for column in columns}, indices[here])
            pieces.append(pa.table([pa.array(piece[field.name], field.type) for field in schema], schema))
        return pa.concat_tables(pieces)

    fingerprint = Hasher.hash(
        [dataset._fingerprint, task.to_dict(), max_length, with_labels, _tokenizer_identity(tokenizer), _code()]
    )
    try:
        return dataset.map(
            convert_all,
            batched=True,
            batch_size=_WRITTEN,
            writer_batch_size=_WRITTEN,
            with_indices=True,
            remove_columns=dataset.column_names,
            desc=f"Tokenizing {name}",
            features=features,
            new_fingerprint=fingerprint,
        )
    except UnicodeDecodeError as error:
        raise not_utf8(name, error) from None


def count_truncated(rows: Dataset) -> int:
    """How many encoded examples were longer than their segments."""
    pieces = rows.select_columns("truncated").with_format("arrow").iter(batch_size=10_000)
    return sum(pc.sum(piece.column(0)).as_py() or 0 for piece in pieces)


def truncation_warning(name: str, task: TaskConfig, max_length: int, sets: Mapping[str, Dataset]) -> str | None:
    """What to say of the texts that are longer than their task reads; None where none is.

    Args:
        name: The task's name.
        task: The task.
        max_length: What its rows were encoded with.
        sets: What rows they are -> encoded rows.
    """
    cut = {kind: count_truncated(rows) for kind, rows in sets.items()}
    if not any(cut.values()):
        return None
    told = " and ".join(f"{count} of {len(sets[kind])} {kind} rows" for kind, count in cut.items())
    texts = "questions of more than half of" if task.type == "question_answering" else "texts of more than"
    return f"Task {name!r}: {told} have {texts} {max_length} tokens, and are read up to there."


def not_utf8(name: str, error: UnicodeDecodeError) -> ConfigurationError:
    """What to say of a task's text that Arrow holds as bytes, and that is none."""
    return ConfigurationError(
        f"Task {name!r}: its data must be UTF-8; found {error.object[error.start : error.start + 1]!r} after "
        f"{error.object[: error.start][-20:]!r}. Convert the file."
    )


def _features(task: TaskConfig, tokenizer: Any, with_labels: bool) -> Features:
    # Left to be found, a type is taken from the raw column of the same name: class indices turned into floats.
    tokens = {"input_ids": "int32", "token_type_ids": "int8"}
    features = {key: List(List(Value(kind))) for key, kind in tokens.items() if key in tokenizer.model_input_names}
    features["truncated"] = Value("bool")
    if task.type == "question_answering":
        features["spans"] = List(List(Value("int32")))
        features["context"] = Value("string")
    if with_labels or task.type == "token_classification":
        features["labels"] = _LABEL_FEATURES[task.type]
    if with_labels and task.type == "question_answering":
        features["answers"] = List(Value("string"))
    return Features(features)


_LABEL_FEATURES: dict[str, Any] = {
    "classification": Value("int64"),
    "multilabel": List(Value("float32")),
    "regression": Value("float64"),
    "token_classification": List(Value("int64")),
    "multiple_choice": Value("int64"),
    "question_answering": List(List(Value("int64"))),
}


def _code() -> str:
    # Rows that an earlier release cached are not what this one would make.
    return "".join(map(inspect.getsource, (sys.modules[__name__], targets, labels, shortening)))


def _tokenizer_identity(tokenizer: Any) -> str:
    # A fast tokenizer's own hash changes when it is called: it remembers how it last truncated and padded.
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(truncation=None, padding=None)
    settings = [tokenizer.truncation_side, tokenizer.split_special_tokens, tokenizer.model_input_names]
    return json.dumps([backend, settings], sort_keys=True)


def _check_texts(values: Sequence[Any], indices: Sequence[int], name: str, column: str, words: bool) -> None:
    for index, value in zip(indices, values, strict=True):
        ok = isinstance(value, str)
        if words:
            ok = isinstance(value, list) and len(value) > 0 and all(isinstance(word, str) for word in value)
        if not ok:
            wanted = "a list of words" if words else "a string"
            raise ConfigurationError(
                f"Task {name!r}, column {column!r}, row {index}: the text must be {wanted}; found {shown(value)}. "
                f"{WAY_OUT}"
            )


def _check_contexts(
    contexts: Sequence[str], indices: Sequence[int], name: str, column: str, tokenizer: Any, max_length: int
) -> None:
    limit = _CONTEXT_LENGTHS * max_length
    for index, context in zip(indices, contexts, strict=True):
        # Seldom has a text more tokens than characters.
        tokens = tokenizer(context, add_special_tokens=False, verbose=False) if len(context) > limit else {}
        if len(tokens.get("input_ids", ())) > limit:
            raise ConfigurationError(
                f"Task {name!r}, column {column!r}, row {index}: a context must have no more than {limit:,} tokens "
                f"({_CONTEXT_LENGTHS:,} times `max_length`), for all its windows are read in one batch; found "
                f"{len(tokens['input_ids']):,}. Give the part of it that has the answer, or leave the row out."
            )


# -- tokens -----------------------------------------------------------------------------------------------------------


def _segments(encoded: Any, groups: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    keys = [key for key in ("input_ids", "token_type_ids") if key in encoded]
    result: dict[str, list[Any]] = {key: [[encoded[key][i] for i in group] for group in groups] for key in keys}
    result["truncated"] = [any(encoded.encodings[i].overflowing for i in group) for group in groups]
    return result


def _tokenize_texts(rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    texts = [[shorten(text, tokenizer, max_length) for text in rows[column]] for column in task.input_columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    return _segments(encoded, [[i] for i in range(len(texts[0]))])


def _tokenize_words(rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    spaced = _spaced(list(rows[task.input_columns[0]]), tokenizer)
    words = [shorten_words(row, tokenizer, max_length) for row in spaced]
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    result = _segments(encoded, [[i] for i in range(len(words))])
    result["words"] = [encoded.word_ids(i) for i in range(len(words))]
    return result


def _spaced(rows: list[list[str]], tokenizer: Any) -> list[list[str]]:
    """The words as the tokenizer must be given them, so that they become the tokens of the text that they make up.

    Byte-level tokenizers (RoBERTa's, ModernBERT's) know a word by the space before it. A list of words has none, and
    they would read "the cat" as "thecat".
    """
    text = tokenizer("a b c")["input_ids"]
    if tokenizer(["a", "b", "c"], is_split_into_words=True)["input_ids"] == text:
        return rows
    if tokenizer(["a", " b", " c"], is_split_into_words=True)["input_ids"] == text:
        return [[words[0], *(f" {word}" for word in words[1:])] for words in rows]
    raise ConfigurationError(
        "A token_classification task needs a tokenizer that gives a list of words the tokens of their text; "
        f"{type(tokenizer).__name__} does not, with a space before each word or without. Use another encoder."
    )


def _tokenize_choices(rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    assert isinstance(task.text_columns, Mapping)
    prompts = [" ".join(parts) for parts in zip(*(rows[column] for column in task.text_columns["prompt"]), strict=True)]
    prompts = [shorten(prompt, tokenizer, max_length) for prompt in prompts]
    choices = list(zip(*(rows[column] for column in task.text_columns["choices"]), strict=True))
    count = len(task.text_columns["choices"])
    encoded = tokenizer(
        [prompt for prompt in prompts for _ in range(count)],
        [shorten(choice, tokenizer, max_length) for row in choices for choice in row],
        truncation=True,
        max_length=max_length,
    )
    return _segments(encoded, [range(i * count, (i + 1) * count) for i in range(len(prompts))])


def _tokenize_windows(rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    questions, contexts = (list(rows[column]) for column in task.input_columns)
    questions = [shorten(question, tokenizer, max_length) for question in questions]
    # Only the context is cut into windows; a question that filled the window would leave none of it.
    limit = (max_length - tokenizer.num_special_tokens_to_add(pair=True)) // 2
    short = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    questions = [q[: o[limit - 1][1]] if len(o) > limit else q for q, o in zip(questions, short, strict=True)]
    # At least `limit` tokens of a window are the context's. Windows that share nearly all of them would be very many,
    # and a stride at or above them crashes the tokenizer.
    stride = min(DEFAULT_STRIDE if task.doc_stride is None else task.doc_stride, limit // 2)
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
    # A context is cut into windows, and nothing of it is lost.
    result["truncated"] = [len(offsets) > limit for offsets in short]
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
