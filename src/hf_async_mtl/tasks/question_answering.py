"""Extractive question answering: the span of a context that answers a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..modeling.configuration_multitask import TaskConfig
from ..utils import truncated_repr
from ..validation import ConfigurationError
from .base import Columns, Target, TaskType, group_windows
from .labels import LabelError
from .windows import tokenize_windows

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

DEFAULT_STRIDE = 32
"""Tokens that two windows of a long context share, if the task does not say."""
MAX_ANSWER_TOKENS = 30
"""Maximum length of a predicted answer, in tokens; as in the scripts of BERT and Transformers."""


class QuestionAnswering(TaskType):
    """A span of the context, which is cut into windows. Logits ``[N, U, 2]``: start and end; predictions are texts."""

    hub_name = "question-answering"
    target_type = [["int64"]]
    ignored = ()
    metrics = ("exact_match", "squad_f1")
    default_metric = "squad_f1"
    text_counts = (2,)
    has_windows = True
    prediction_fields = ("answer",)

    def reads_windows(self, task: TaskConfig) -> bool:
        return True

    def truncated_texts(self, task: TaskConfig) -> str:
        return "questions of more than half of"

    def tokenize(self, rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        texts = [list(rows[column]) for column in task.input_columns]
        stride = DEFAULT_STRIDE if task.doc_stride is None else task.doc_stride
        windows = tokenize_windows(texts, tokenizer, max_length, stride)
        result = group_windows(windows)
        encoded = windows.encoded
        result["spans"] = [[span for window in group for span in _spans(encoded, window)] for group in windows.rows]
        result["context"] = texts[1]
        return result

    def features(self, with_labels: bool) -> dict[str, Any]:
        columns = {"spans": [["int32"]], "context": "string"}
        return {**columns, "labels": self.target_type, "answers": ["string"]} if with_labels else columns

    def target_function(self, task: TaskConfig, dataset: Dataset) -> Target:
        (label,), (_, context) = task.target_columns, task.input_columns
        return lambda row, tokens: {
            "labels": _answer_positions(row[label], row[context], tokens),
            "answers": list(row[label]["text"]),
        }

    def placeholder(self, task: TaskConfig, row: Mapping[str, Any]) -> Any:
        """Return the first character of the context as an answer, since an answer must be a part of it."""
        context = row[task.input_columns[1]]
        if not isinstance(context, str) or not context.strip():
            raise ConfigurationError(
                f"Column {task.input_columns[1]!r}: a context must be a text with an answer in it; found {context!r}."
            )
        start = len(context) - len(context.lstrip())
        return {"text": [context[start : start + 1]], "answer_start": [start]}

    def distributions(self, logits: Tensor, targets: Sequence[Any]) -> None:
        """Return None: a distribution is over the tokens of a window."""
        return None

    def predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        return [_best_span(scores, row) for scores, row in zip(logits, rows, strict=True)]

    def references(self, task: TaskConfig, rows: Dataset) -> list[Any]:
        return list(rows["answers"])

    def label_array(self, task: TaskConfig, rows: Dataset, units: int) -> Any:
        """Return the list of each example's answers."""
        return self.references(task, rows)

    def format_prediction(
        self, task: TaskConfig, prediction: Any, logits: np.ndarray, encoded: Mapping[str, Any], row: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"answer": prediction}

    def sample_predictions(self, task: TaskConfig) -> tuple[list[Any], list[Any]]:
        return ["yes", "no"], [["yes"], ["no"]]

    def card_lines(self, task: TaskConfig) -> list[str]:
        return [
            "first, last = logits[0].argmax(0).tolist()  # of the tokens of the answer",
            'tokenizer.decode(inputs["input_ids"][0, first : last + 1])',
        ]


def _spans(encoded: Any, window: int) -> list[list[int]]:
    """Return where each token of a window is in the context, in characters; [-1, -1] for other tokens."""
    parts = zip(encoded["offset_mapping"][window], encoded.sequence_ids(window), strict=True)
    return [list(span) if part == 1 else [-1, -1] for span, part in parts]


def _answer_positions(answers: Any, context: str, tokens: Mapping[str, Any]) -> list[list[int]]:
    """Return the first and last token of the first answer in each window; [0, 0] for a window without it."""
    start, end = _answer_characters(answers, context)
    positions, first = [], 0
    for window in tokens["input_ids"]:
        spans = tokens["spans"][first : first + len(window)]
        first += len(window)
        inside = [i for i, (a, b) in enumerate(spans) if a >= 0 and a < end and b > start]
        covered = bool(inside) and spans[inside[0]][0] <= start and spans[inside[-1]][1] >= end
        positions.append([inside[0], inside[-1]] if covered else [0, 0])
    return positions


def _answer_characters(answers: Any, context: str) -> tuple[int, int]:
    """Return where the first answer begins and ends in its context, in characters, without white space around it."""
    keys = ("text", "answer_start")
    if not isinstance(answers, Mapping) or not all(isinstance(answers.get(key), list) and answers[key] for key in keys):
        raise LabelError(
            f"`answers` must be {{text: [...], answer_start: [...]}} with an answer; found {truncated_repr(answers)}. "
            "Questions without an answer are not supported."
        )
    text, start = answers["text"][0], answers["answer_start"][0]
    ok = isinstance(text, str) and text.strip() and isinstance(start, int) and start >= 0
    if not ok or not context.startswith(text, start):
        raise LabelError(
            "An answer must be a text that stands in its context at `answer_start`, counted in characters from 0; "
            f"found {truncated_repr(text)} at {truncated_repr(start)}."
        )
    # No token covers the white space around an answer.
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())


def _best_span(logits: np.ndarray, row: Mapping[str, Any]) -> str:
    """Return the text between the best start and the best end over all windows of a row, with logits ``[U, 2]``."""
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
            # Some tokenizers count the space before a word as part of it.
            best_text = row["context"][spans[start][0] : spans[end][1]].strip()
    return best_text
