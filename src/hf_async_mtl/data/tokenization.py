"""Raw rows to model inputs: the token ids and the target of each row, computed once and cached."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from ..modeling.configuration_multitask import TaskConfig
from ..modeling.heads import HEADS
from ..tasks.base import Columns, Target
from ..tasks.columns import file_row
from ..tasks.labels import HINT, LabelError
from ..tasks.registry import TASK_TYPES
from ..tasks.rows import plain_rows
from ..validation import ConfigurationError

_TOKENIZED, _WRITTEN = 500, 2000
"""Rows that are tokenized at a time, and rows of one batch of the file. Opening a file reads the head of each batch and
64 KiB around it; a row of a large batch is spread over many pages."""


def encode(
    dataset: Dataset,
    name: str,
    task: TaskConfig,
    tokenizer: Any,
    max_length: int,
    *,
    with_labels: bool = True,
    split: str | None = None,
) -> Dataset:
    """Tokenize one split of one task, to segments of at most ``max_length`` tokens.

    Args:
        dataset: Raw rows.
        name: Name of the task or of its evaluation set, for messages.
        task: The task, resolved.
        tokenizer: A fast tokenizer.
        max_length: Maximum length of a segment, in tokens.
        with_labels: Whether the rows have labels; rows to predict need none.
        split: Name of the split, for messages. In ``train`` (the default) a label that is no class of the task is
            refused; in any other it is an error of the model, see `LabelEncoder`.

    Returns:
        Columns ``input_ids`` (one list per segment), ``token_type_ids`` if the tokenizer returns them, ``truncated``
        (whether a text was longer than its segment, or a question than half of one), ``labels``, and those of the
        task's type. The result is cached by the content of all arguments.

    Raises:
        ConfigurationError: There are no rows, a column is missing, or a text or a label cannot be used; the message
            names its row in the file that it comes from.
    """
    dataset = plain_rows(dataset, f"The rows of task {name!r}")
    columns = [*task.input_columns, *(task.target_columns if with_labels else ())]
    _check_input(dataset, name, columns, tokenizer)
    kind = TASK_TYPES[task.type]
    features = _features(kind.features(with_labels), tokenizer)
    schema = features.arrow_schema.remove_metadata()
    what = f"Task {name!r}" if split is None else f"Task {name!r}, {split} split"
    try:
        make_target = _target_function(dataset, task, what, split in (None, "train")) if with_labels else None
        return dataset.map(
            _Encoder(what, task, tokenizer, max_length, columns, make_target, schema, partial(file_row, dataset)),
            batched=True,
            batch_size=_WRITTEN,
            writer_batch_size=_WRITTEN,
            with_indices=True,
            remove_columns=dataset.column_names,
            desc=f"Tokenizing {name}",
            features=features,
            new_fingerprint=_fingerprint(dataset, task, tokenizer, max_length, features),
        )
    except UnicodeDecodeError as error:
        raise not_utf8(name, error) from None


def _target_function(dataset: Dataset, task: TaskConfig, what: str, is_strict: bool) -> Target:
    """Return the function that makes targets; if it is strict, refuse labels that are no classes of the task."""
    kind = TASK_TYPES[task.type]
    try:
        make_target = kind.target_function(task, dataset)
        if is_strict:
            kind.check_known(task, dataset)
    except LabelError as error:
        raise _label_error(what, task, error, error.row) from None
    return make_target


def _label_error(what: str, task: TaskConfig, error: LabelError, row: int | None) -> ConfigurationError:
    where = f"{what}, column {', '.join(map(repr, task.target_columns))}"
    return ConfigurationError(f"{where}: {error}" if row is None else f"{where}, row {row}: {error} {HINT}")


@dataclass(frozen=True)
class _Encoder:
    """Encodes batches of raw rows; see `encode`."""

    what: str
    task: TaskConfig
    tokenizer: Any
    max_length: int
    columns: Sequence[str]
    make_target: Target | None
    schema: pa.Schema
    file_row: Callable[[int], int]

    def __call__(self, rows: Columns, indices: Sequence[int]) -> pa.Table:
        pieces = []
        for first in range(0, len(indices), _TOKENIZED):
            here = slice(first, first + _TOKENIZED)
            piece = self._encode({column: rows[column][here] for column in self.columns}, indices[here])
            arrays = [pa.array(piece[field.name], field.type) for field in self.schema]
            pieces.append(pa.table(arrays, self.schema))
        return pa.concat_tables(pieces)

    def _encode(self, rows: Columns, indices: Sequence[int]) -> Columns:
        kind = TASK_TYPES[self.task.type]
        self._check_texts(rows, indices)
        encoded = kind.tokenize(rows, self.task, self.tokenizer, self.max_length)
        if self.make_target is None:
            return encoded
        return {**encoded, **self._targets(rows, indices, encoded, self.make_target)}

    def _check_texts(self, rows: Columns, indices: Sequence[int]) -> None:
        kind = TASK_TYPES[self.task.type]
        for column in self.task.input_columns:
            for index, text in zip(indices, rows[column], strict=True):
                error = kind.text_error(self.task, column, text, self.tokenizer, self.max_length)
                if error is not None:
                    raise ConfigurationError(f"{self.what}, column {column!r}, row {self.file_row(index)}: {error}")

    def _targets(self, rows: Columns, indices: Sequence[int], encoded: Columns, make_target: Target) -> Columns:
        targets: dict[str, list[Any]] = {}
        for i, index in enumerate(indices):
            row = {column: rows[column][i] for column in self.columns}
            try:
                found = make_target(row, {key: values[i] for key, values in encoded.items()})
            except LabelError as error:
                raise _label_error(self.what, self.task, error, self.file_row(index)) from None
            for column, value in (found if isinstance(found, dict) else {"labels": found}).items():
                targets.setdefault(column, []).append(value)
        return targets


def _check_input(dataset: Dataset, name: str, columns: Sequence[str], tokenizer: Any) -> None:
    if len(dataset) == 0:
        raise ConfigurationError(f"Task {name!r} needs at least one row in each of its splits; found an empty one.")
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


def _features(columns: Mapping[str, Any], tokenizer: Any) -> Features:
    # An inferred type would be that of the raw column of the same name: class indices turned into floats.
    tokens = {"input_ids": [["int32"]], "token_type_ids": [["int8"]]}
    types = {key: kind for key, kind in tokens.items() if key in tokenizer.model_input_names}
    return Features({key: _feature(kind) for key, kind in {**types, "truncated": "bool", **columns}.items()})


def _feature(kind: Any) -> Any:
    return List(_feature(kind[0])) if isinstance(kind, list) else Value(kind)


def _fingerprint(dataset: Dataset, task: TaskConfig, tokenizer: Any, max_length: int, features: Features) -> str:
    try:
        # Rows that an earlier release has cached may differ from what this one computes.
        version = importlib.metadata.version("hf_async_mtl")
    except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
        version = ""
    # The hash of a fast tokenizer changes with each call: it remembers how it last truncated and padded.
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(truncation=None, padding=None)
    settings = [tokenizer.truncation_side, tokenizer.split_special_tokens, tokenizer.model_input_names]
    identity = json.dumps([backend, settings], sort_keys=True)
    return Hasher.hash([dataset._fingerprint, task.to_dict(), max_length, str(features), identity, version])


def not_utf8(name: str, error: UnicodeDecodeError) -> ConfigurationError:
    """Return the error for a task whose text, as Arrow holds it, is not UTF-8."""
    return ConfigurationError(
        f"Task {name!r}: its data must be UTF-8; found {error.object[error.start : error.start + 1]!r} after "
        f"{error.object[: error.start][-20:]!r}. Convert the file."
    )


# Encoded rows


def count_truncated(rows: Dataset) -> int:
    """Return the number of encoded examples whose texts were longer than their segments."""
    pieces = rows.select_columns("truncated").with_format("arrow").iter(batch_size=10_000)
    return sum(pc.sum(piece.column(0)).as_py() or 0 for piece in pieces)


def truncation_warning(name: str, task: TaskConfig, max_length: int, sets: Mapping[str, Dataset]) -> str | None:
    """Return the warning about texts that were truncated; None if there are none.

    ``sets`` has encoded rows by their kind, for the message.
    """
    counts = {kind: count_truncated(rows) for kind, rows in sets.items()}
    if not any(counts.values()):
        return None
    found = " and ".join(f"{count} of {len(sets[kind])} {kind} rows" for kind, count in counts.items())
    texts = TASK_TYPES[task.type].truncated_texts(task)
    return f"Task {name!r}: {found} have {texts} {max_length} tokens, and are read up to there."


def token_counts(rows: Dataset) -> np.ndarray:
    """Return the number of tokens of each encoded example, ``[N]``, over all its segments."""
    counts, first = np.empty(len(rows), dtype=np.int64), 0
    for piece in rows.select_columns("input_ids").with_format("arrow").iter(batch_size=1000):
        segments = piece.column(0).combine_chunks()
        ends = np.cumsum(segments.value_lengths().to_numpy(zero_copy_only=False))
        tokens = np.cumsum([0, *segments.flatten().value_lengths().to_numpy(zero_copy_only=False)])
        counts[first : first + len(ends)] = np.diff(tokens[ends], prepend=0)
        first += len(ends)
    return counts


def unit_counts(task: TaskConfig, rows: Dataset) -> np.ndarray:
    """Return the number of rows of logits of each example, ``[N]``: its number of tokens, or 1."""
    if HEADS[task.type].unit == "token":
        return token_counts(rows)
    return np.broadcast_to(np.int64(1), len(rows))
