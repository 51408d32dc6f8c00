"""The heads: one class per task type, with its logits, its supervised loss, its distillation loss and its targets.

To add a type, write its class here and enter it in `HEADS`, and write its file in ``hf_async_mtl/tasks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .losses import (
    IGNORE,
    bernoulli_kl,
    categorical_kl,
    cross_entropy,
    multilabel_cross_entropy,
    ragged_cross_entropy,
    ragged_kl,
    ragged_mean,
    segment_index,
    squared_error,
)
from .packing import Layout, Ragged

__all__ = ["HEADS", "Head", "pool"]


def pool(ragged: Ragged, pooling: str) -> Tensor:
    """Make one vector of each segment's token states.

    Args:
        ragged: States ``[T, H]`` of S segments.
        pooling: ``cls`` (the first token), ``mean`` or ``max``.

    Returns:
        ``[S, H]``.
    """
    states, tokens = ragged.states, ragged.layout.tokens
    if pooling == "cls":
        return states[tokens[:-1]]
    segment = segment_index(tokens, len(states))
    empty = states.new_zeros(len(tokens) - 1, states.shape[-1])
    if pooling == "mean":
        # A sum of many half-precision numbers would lose their digits.
        total = empty.float().index_add(0, segment, states.float())
        return (total / tokens.diff().clamp(min=1).unsqueeze(1)).to(states.dtype)
    return empty.scatter_reduce(0, segment[:, None].expand_as(states), states, "amax", include_self=False)


class Head(nn.Module):
    """What all heads share: dropout and a linear layer on pooled segments or on tokens.

    Args:
        hidden_size: H, the width of the encoder's states.
        task: The resolved `TaskConfig`; its number of labels is the number of logits.
        dropout: Probability.
        pooling: What a head on sequences reads; see `pool`.
    """

    default_metric: ClassVar[str]
    """The metric that is monitored unless the task names others."""
    unit: ClassVar[str] = "example"
    """What a row of the logits belongs to: an ``example`` or a ``token``."""
    num_outputs: ClassVar[int | None] = None
    """Number of outputs of the linear layer; None: one for each of the task's label names."""
    min_labels: ClassVar[int] = 2
    """Minimum number of label names."""
    text_counts: ClassVar[tuple[int, ...]] = (1, 2)
    """Numbers of text columns that a task may have."""
    has_choices: ClassVar[bool] = False
    """Whether an example has one segment per choice, each with a score; its text columns are prompt and choices."""
    has_windows: ClassVar[bool] = False
    """Whether an example has one segment per window of a long text."""
    takes_label_columns: ClassVar[bool] = False
    """Whether the labels may be in several columns of 0 and 1."""

    def __init__(self, hidden_size: int, task: Any, dropout: float, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, task.num_labels)

    def forward(self, ragged: Ragged) -> Tensor:
        """Logits of the examples: ``[B, C]``, read from the first segment of each."""
        first = ragged.layout.segments[:-1]
        return self.linear(self.dropout(pool(ragged, self.pooling)[first]))

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        """The supervised loss of each example, ``[B]``."""
        raise NotImplementedError

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        """The distillation loss of each example, ``[B]``: 0, with a gradient of 0, where ``logits`` are ``teacher``."""
        raise NotImplementedError

    @staticmethod
    def collate_labels(labels: Sequence[Any]) -> Tensor:
        """The targets of a batch, from those of its examples."""
        return torch.tensor(labels)


class ClassificationHead(Head):
    """One class out of C: cross-entropy, and KL between the distributions over the classes. Labels ``[B]``."""

    default_metric: ClassVar[str] = "accuracy"

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        return cross_entropy(logits, labels)

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        return categorical_kl(logits, teacher, temperature)


class MultilabelHead(Head):
    """Any of C labels: binary cross-entropy, and the KL of independent Bernoulli distributions. Labels ``[B, C]``."""

    default_metric: ClassVar[str] = "micro_f1"
    min_labels: ClassVar[int] = 1
    takes_label_columns: ClassVar[bool] = True

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        return multilabel_cross_entropy(logits, labels)

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        return bernoulli_kl(logits, teacher, temperature)

    @staticmethod
    def collate_labels(labels: Sequence[Any]) -> Tensor:
        return torch.tensor(labels, dtype=torch.float32)


class RegressionHead(Head):
    """A number: squared error on standardised targets, to the label or to the teacher's prediction. Labels ``[B]``.

    The linear layer works in standard deviations from the mean; the logits are in the data's own units. There is no
    temperature in a squared error: it is left out.
    """

    default_metric: ClassVar[str] = "pearson"
    num_outputs: ClassVar[int | None] = 1

    def __init__(self, hidden_size: int, task: Any, dropout: float, pooling: str) -> None:
        super().__init__(hidden_size, task, dropout, pooling)
        self.mean = 0.0 if task.target_mean is None else task.target_mean
        self.std = 1.0 if task.target_std is None else task.target_std

    def forward(self, ragged: Ragged) -> Tensor:
        """Predictions of the examples: ``[B]``."""
        return super().forward(ragged).squeeze(-1).float() * self.std + self.mean

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        return squared_error(logits, labels, self.std)

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        return squared_error(logits, teacher.detach(), self.std)

    @staticmethod
    def collate_labels(labels: Sequence[Any]) -> Tensor:
        return torch.tensor(labels, dtype=torch.float32)


class TokenClassificationHead(Head):
    """One class out of C for each word, read at its first sub-word. Labels ``[T]``, -100 on all other sub-words.

    The loss of an example is the mean over its words, with labels and with a teacher alike.
    """

    default_metric: ClassVar[str] = "seqeval_f1"
    unit: ClassVar[str] = "token"
    text_counts: ClassVar[tuple[int, ...]] = (1,)

    def forward(self, ragged: Ragged) -> Tensor:
        """Logits of all tokens: ``[T, C]``."""
        return self.linear(self.dropout(ragged.states))

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        return ragged_mean(cross_entropy(logits, labels), layout.example_tokens, labels != IGNORE)

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        return ragged_mean(categorical_kl(logits, teacher, temperature), layout.example_tokens, labels != IGNORE)

    @staticmethod
    def collate_labels(labels: Sequence[Any]) -> Tensor:
        return torch.tensor([label for example in labels for label in example], dtype=torch.long)


class MultipleChoiceHead(ClassificationHead):
    """One of n segments: a score each, and a distribution over the choices of an example. Labels ``[B]``."""

    default_metric: ClassVar[str] = "accuracy"
    num_outputs: ClassVar[int | None] = 1
    has_choices: ClassVar[bool] = True

    def forward(self, ragged: Ragged) -> Tensor:
        """Scores of the choices: ``[B, n]``."""
        scores = self.linear(self.dropout(pool(ragged, self.pooling))).squeeze(-1)
        # `len` would be a constant in an exported graph.
        examples = ragged.layout.segments.shape[0] - 1
        # A plain call with one sequence a row scores each row by itself.
        return scores.view(examples, -1) if examples else scores.view(0, 1)


class QuestionAnsweringHead(Head):
    """Start and end of an answer among the tokens of each window. Labels ``[S, 2]``, 0 where a window has no answer.

    The loss of an example is the mean over its windows and over start and end.
    """

    default_metric: ClassVar[str] = "squad_f1"
    unit: ClassVar[str] = "token"
    num_outputs: ClassVar[int | None] = 2
    text_counts: ClassVar[tuple[int, ...]] = (2,)
    has_windows: ClassVar[bool] = True

    def forward(self, ragged: Ragged) -> Tensor:
        """Start and end logits of all tokens: ``[T, 2]``."""
        return self.linear(self.dropout(ragged.states))

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        return ragged_mean(ragged_cross_entropy(logits, labels, layout.tokens).mean(-1), layout.segments)

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        return ragged_mean(ragged_kl(logits, teacher, layout.tokens, temperature).mean(-1), layout.segments)

    @staticmethod
    def collate_labels(labels: Sequence[Any]) -> Tensor:
        return torch.tensor([window for example in labels for window in example], dtype=torch.long)


HEADS: dict[str, type[Head]] = {
    "classification": ClassificationHead,
    "multilabel": MultilabelHead,
    "regression": RegressionHead,
    "token_classification": TokenClassificationHead,
    "multiple_choice": MultipleChoiceHead,
    "question_answering": QuestionAnsweringHead,
}
"""Task type -> its head."""
