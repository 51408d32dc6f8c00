"""Token classification: one class per word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling.configuration_multitask import TaskConfig
from ..modeling.losses import IGNORE
from ..utils import truncated_repr
from ..validation import ConfigurationError
from .base import Columns, Target, TaskType, group_segments, group_windows, tokenizer_call
from .classification import CARD_LABELS, class_loss_arguments
from .labels import LabelError, label_encoder, label_text
from .pretruncation import shorten_words
from .special_labels import outside_tag
from .windows import Windows, central_words, tokenize_windows

if TYPE_CHECKING:
    from datasets import Dataset

    from .loss import LossConfig


class TokenClassification(TaskType):
    """One class out of C per word, read at its first sub-word. Logits ``[N, U, C]``; predictions are label names."""

    hub_name = "token-classification"
    has_windows = True
    target_type = ["int64"]
    metrics = ("accuracy", "seqeval_f1", "seqeval_precision", "seqeval_recall", "seqeval_accuracy")
    default_metric = "seqeval_f1"
    text_counts = (1,)
    metric_aliases = {"accuracy": "seqeval_accuracy"}
    prediction_fields = ("labels",)
    loss_options = ("class_weights", "label_smoothing")
    ignored = (IGNORE, -1)
    reads_words = True
    has_label_lists = True

    def tokenize(self, rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        (column,) = task.input_columns
        words = _spaced(list(rows[column]), tokenizer)
        if task.doc_stride is not None:
            windows = tokenize_windows([words], tokenizer, max_length, task.doc_stride, are_words=True)
            return {**group_windows(windows), "words": [_central_words(windows, row) for row in windows.rows]}
        words = [shorten_words(row, tokenizer, max_length) for row in words]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        result = group_segments(encoded, [[i] for i in range(len(words))])
        result["words"] = [first_subwords(encoded.word_ids(i)) for i in range(len(words))]
        return result

    def features(self, with_labels: bool) -> dict[str, Any]:
        """Return ``words``: the index of the word that each token begins, or -100; ``tags``: of all words."""
        return {"words": ["int32"], **({"labels": self.target_type, "tags": ["string"]} if with_labels else {})}

    def target_function(self, task: TaskConfig, dataset: Dataset) -> Target:
        (column,), (label,) = task.input_columns, task.target_columns
        encode = label_encoder(task, dataset, self.ignored)
        names = [*encode.names, *map(label_text, encode.unknown)]

        def target(row: Mapping[str, Any], tokens: Mapping[str, Any]) -> dict[str, Any]:
            words, labels = row[column], row[label]
            if not isinstance(labels, list) or len(labels) != len(words):
                found = len(labels) if isinstance(labels, list) else truncated_repr(labels)
                raise LabelError(f"A row needs one label for each of its {len(words)} words; found {found}.")
            indices = [encode(value) for value in labels]
            return {
                "labels": [IGNORE if word == IGNORE else indices[word] for word in tokens["words"]],
                "tags": [None if index == IGNORE else names[index] for index in indices],
            }

        return target

    def loss_arguments(self, task: TaskConfig, loss: LossConfig, rows: Dataset) -> dict[str, Any]:
        return class_loss_arguments(task, loss, rows)

    def placeholder(self, task: TaskConfig, row: Mapping[str, Any]) -> Any:
        assert task.label_names is not None
        (column,) = task.input_columns
        # A value that is no list of words is reported with its row when it is tokenized.
        return [task.label_names[0]] * len(row[column] or ())

    def distributions(self, logits: torch.Tensor, targets: Sequence[Any]) -> torch.Tensor:
        """Return the distributions of the tokens that have a label."""
        return logits.softmax(-1)[torch.tensor([target for row in targets for target in row]) != IGNORE]

    def predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        """Return the label of each word that is read."""
        assert task.label_names is not None
        return [list(labels.values()) for labels in _read_words(task.label_names, logits, rows)]

    def metric_predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        """Return the label of each word that has a tag; a word that is not read is predicted to be outside."""
        read = _read_words(_metric_names(task), logits, rows)
        return [
            [labels.get(word, "O") for word, tag in enumerate(tags) if tag is not None]
            for labels, tags in zip(read, rows["tags"], strict=True)
        ]

    def references(self, task: TaskConfig, rows: Dataset) -> list[Any]:
        assert task.label_names is not None
        names = dict(zip(task.label_names, _metric_names(task), strict=True))
        return [[names.get(tag, tag) for tag in tags if tag is not None] for tags in rows["tags"]]

    def known_targets(self, task: TaskConfig, targets: Sequence[Any]) -> list[Any]:
        count = task.num_labels
        return [[label if label < count else IGNORE for label in labels] for labels in targets]

    def label_array(self, task: TaskConfig, rows: Dataset, units: int) -> np.ndarray:
        padded = np.full((len(rows), units), IGNORE)
        for index, targets in enumerate(self.known_targets(task, rows["labels"])):
            padded[index, : len(targets)] = targets
        return padded

    def is_constant(self, predictions: Sequence[Any]) -> bool:
        """Return whether all words of all examples have the same label."""
        return len({label for words in predictions for label in words}) <= 1

    def format_prediction(
        self, task: TaskConfig, prediction: Any, logits: np.ndarray, encoded: Mapping[str, Any], row: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return one label per word: None for words behind the maximum length, and for words without a token."""
        (column,) = task.input_columns
        found = dict(zip((word for word in encoded["words"] if word != IGNORE), prediction, strict=True))
        return {"labels": [found.get(word) for word in range(len(row[column]))]}

    def sample_predictions(self, task: TaskConfig) -> tuple[list[Any], list[Any]]:
        names = task.label_names or ["O", "B-X"]
        return [names], [names]

    def tokenizer_call(self, task: TaskConfig) -> str:
        return tokenizer_call('[["some", "words"]], is_split_into_words=True')

    def card_lines(self, task: TaskConfig) -> list[str]:
        return [CARD_LABELS, "[labels[token.argmax()] for token in logits[0]]  # a word's is its first token's"]


def _spaced(rows: list[list[str]], tokenizer: Any) -> list[list[str]]:
    """Return the words as the tokenizer must get them to return the tokens of their text.

    Byte-level tokenizers (RoBERTa's, ModernBERT's) know a word by the space before it. In a list of words there is
    none, and ``["the", "cat"]`` would be read as "thecat".
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


def _read_words(names: Sequence[str], logits: Any, rows: Dataset) -> Iterator[dict[int, str]]:
    """Yield the label of each word that is read, by its index, for each row."""
    for scores, words in zip(logits, rows["words"], strict=True):
        yield {word: names[c] for c, word in zip(scores.argmax(-1), words, strict=False) if word != IGNORE}


def _metric_names(task: TaskConfig) -> list[str]:
    """Return the label names as the metrics read them, in which ``O`` is the tag of words outside of all chunks."""
    assert task.label_names is not None
    outside = outside_tag(task.label_names)
    return ["O" if name == outside else name for name in task.label_names]


def _central_words(windows: Windows, row: Sequence[int]) -> list[int]:
    """Return the word that each token of a row begins, in the window in which it is most central; otherwise -100."""
    word_ids = [windows.encoded.word_ids(window) for window in row]
    return central_words(word_ids, [windows.encoded["offset_mapping"][window] for window in row])


def first_subwords(word_ids: Sequence[int | None]) -> list[int]:
    """Return the index of the word that each token begins; -100 for special tokens and for later sub-words."""
    return [
        word if word is not None and (index == 0 or word_ids[index - 1] != word) else IGNORE
        for index, word in enumerate(word_ids)
    ]
