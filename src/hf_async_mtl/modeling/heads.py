"""Heads: one class per task type, with its logits, its supervised loss and its distillation loss.

To add a type, add its class here and to `HEADS`, and its file to ``hf_async_mtl/tasks``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from .packing import HostBatch, Layout, Ragged


def pool(ragged: Ragged, pooling: str) -> Tensor:
    """Return one vector per segment, ``[S, H]``: ``cls`` (that of its first token), ``mean`` or ``max``."""
    if ragged.vectors is not None:
        return ragged.vectors
    states, tokens = ragged.states, ragged.layout.tokens
    if pooling == "cls":
        return states.index_select(0, tokens[:-1])
    segment = segment_index(tokens, len(states))
    empty = states.new_zeros(len(tokens) - 1, states.shape[-1])
    if pooling == "mean":
        # In float32: a sum of many half-precision numbers loses digits.
        total = empty.float().index_add(0, segment, states.float())
        return (total / tokens.diff().clamp(min=1).unsqueeze(1)).to(states.dtype)
    return empty.scatter_reduce(0, segment[:, None].expand_as(states), states, "amax", include_self=False)


class Head(nn.Module):
    """Dropout and a linear layer, on pooled segments or on tokens.

    Args:
        hidden_size: H, the width of the encoder's states.
        task: The resolved `TaskConfig`; its number of labels is the number of logits.
        dropout: Probability.
        pooling: What a head on sequences reads; see `pool`.
    """

    unit: ClassVar[str] = "example"
    """What a row of the logits belongs to: an ``example`` or a ``token``."""
    num_outputs: ClassVar[int | None] = None
    """Number of outputs of the linear layer; None: one for each of the task's label names."""
    has_choices: ClassVar[bool] = False
    """Whether an example has one segment per choice, each with a score."""
    row_loss: ClassVar[staticmethod[..., Tensor]]
    """Logits, labels and the `loss_arguments` -> the supervised loss of each row."""
    row_divergence: ClassVar[staticmethod[[Tensor, Tensor, float], Tensor]]
    """Logits, those of the teacher and a temperature -> the distillation loss of each row."""

    def __init__(self, hidden_size: int, task: Any, dropout: float, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.window_pooling: str | None = None if task.doc_stride is None else task.doc_pooling or "mean"
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, task.num_labels)
        self._loss_arguments: dict[str, Any] = {}

    def set_loss(self, arguments: Mapping[str, Any]) -> None:
        """Set the arguments of `loss` while training, in place of earlier ones: numbers, or a list per label.

        They are not saved. In evaluation mode the loss is the plain one.
        """
        self._loss_arguments = dict(arguments)
        for name, value in arguments.items():
            if isinstance(value, list):
                # A buffer, so that it moves with the head and no step waits for a copy.
                weights = torch.tensor(value, dtype=torch.float32, device=self.linear.weight.device)
                self.register_buffer(f"loss_{name}", weights, persistent=False)

    def loss_arguments(self) -> dict[str, Any]:
        """Return what `set_loss` has set while training, nothing in evaluation mode."""
        given = self._loss_arguments if self.training else {}
        return {name: getattr(self, f"loss_{name}") if isinstance(x, list) else x for name, x in given.items()}

    def forward(self, ragged: Ragged) -> Tensor:
        """Return the logits of the examples, ``[B, C]``, from the first segment of each or from all its windows."""
        vectors, segments = pool(ragged, self.pooling), ragged.layout.segments
        if self.window_pooling is None:
            return self.linear(self.dropout(vectors.index_select(0, segments[:-1])))
        scores = self.linear(self.dropout(vectors))
        return pool(Ragged(scores, Layout(segments, segments)), self.window_pooling)

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        """Return the supervised loss of each example, ``[B]``, with `loss_arguments`."""
        return self.row_loss(logits, labels, **self.loss_arguments())

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        """Return the distillation loss of each example, ``[B]``: 0, with a gradient of 0, if both logits are equal."""
        return self.row_divergence(logits, teacher, temperature)


def pooled(ragged: Ragged, heads: Iterable[Head], pooling: str) -> Ragged:
    """Pool the segments once for some heads, if they read them, and in the same way."""
    of_heads = {head.pooling for head in heads if head.unit == "example"}
    return ragged._replace(vectors=pool(ragged, pooling)) if of_heads == {pooling} else ragged


def split_by_task(ragged: Ragged, host: HostBatch, heads: Mapping[str, Head], pooling: str) -> dict[str, Ragged]:
    """Return the part of each head, in the order of the task ids: the examples of a packed batch are sorted by task.

    All parts are made together, as views: on a GPU, a few operators per task would take longer than the heads.
    """
    slices = host.slices(len(heads))
    sizes = [[part.stop - part.start for part in parts] for parts in zip(*slices, strict=True)]
    ragged = pooled(ragged, [head for head, size in zip(heads.values(), sizes[0], strict=True) if size], pooling)
    vectors = [None] * len(heads) if ragged.vectors is None else ragged.vectors.split(sizes[1])
    parts = zip(ragged.states.split(sizes[2]), host.layouts(slices, ragged.states.device), vectors, strict=True)
    return {name: Ragged(*part) for name, part in zip(heads, parts, strict=True)}


def empty_loss(heads: Sequence[Head]) -> Tensor:
    """Return the losses ``[0]`` of no example, with a gradient of 0 for all parameters of some heads."""
    return torch.cat([parameter.flatten() for head in heads for parameter in head.parameters()])[:0].float()


class ClassificationHead(Head):
    """One class out of C: cross-entropy, and KL between the distributions over the classes. Labels ``[B]``."""

    row_loss = staticmethod(cross_entropy)
    row_divergence = staticmethod(categorical_kl)


class MultilabelHead(Head):
    """Any of C labels: binary cross-entropy, and the KL of independent Bernoulli distributions. Labels ``[B, C]``."""

    row_loss = staticmethod(multilabel_cross_entropy)
    row_divergence = staticmethod(bernoulli_kl)


class RegressionHead(Head):
    """A number: squared error on standardized targets, to the label or to the teacher's prediction. Labels ``[B]``.

    The linear layer computes standard deviations from the mean; the logits are in the units of the data. A squared
    error has no temperature: it is ignored.
    """

    num_outputs = 1

    def __init__(self, hidden_size: int, task: Any, dropout: float, pooling: str) -> None:
        super().__init__(hidden_size, task, dropout, pooling)
        self.mean = 0.0 if task.target_mean is None else task.target_mean
        self.std = 1.0 if task.target_std is None else task.target_std

    def forward(self, ragged: Ragged) -> Tensor:
        """Return the predictions of the examples, ``[B]``."""
        return super().forward(ragged).squeeze(-1).float() * self.std + self.mean

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        return squared_error(logits, labels, self.std, **self.loss_arguments())

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        return squared_error(logits, teacher.detach(), self.std)


class MultipleChoiceHead(ClassificationHead):
    """One of n segments: a score for each, and a distribution over the choices of an example. Labels ``[B]``."""

    num_outputs = 1
    has_choices = True

    def forward(self, ragged: Ragged) -> Tensor:
        """Return the scores of the choices, ``[B, n]``."""
        scores = self.linear(self.dropout(pool(ragged, self.pooling))).squeeze(-1)
        # `len` would be a constant in an exported graph.
        examples = ragged.layout.segments.shape[0] - 1
        # In a plain call with one sequence per row, n is 1.
        return scores.view(examples, -1) if examples else scores.view(0, 1)


class _TokenHead(Head):
    unit = "token"

    def forward(self, ragged: Ragged) -> Tensor:
        """Return the logits of all tokens, ``[T, C]``."""
        return self.linear(self.dropout(ragged.states))


class TokenClassificationHead(_TokenHead):
    """One class out of C for each word, at its first sub-word. Labels ``[T]``, -100 on all other sub-words.

    Both losses of an example are means over its words.
    """

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        losses = cross_entropy(logits, labels, **self.loss_arguments())
        return ragged_mean(losses, layout.example_tokens, labels != IGNORE)

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        return ragged_mean(categorical_kl(logits, teacher, temperature), layout.example_tokens, labels != IGNORE)


class QuestionAnsweringHead(_TokenHead):
    """Start and end of an answer among the tokens of each window. Labels ``[S, 2]``, 0 if a window has no answer.

    Both losses of an example are means over its windows, and over start and end.
    """

    num_outputs = 2

    def loss(self, logits: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        return ragged_mean(ragged_cross_entropy(logits, labels, layout.tokens).mean(-1), layout.segments)

    def distillation_loss(
        self, logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout, temperature: float
    ) -> Tensor:
        return ragged_mean(ragged_kl(logits, teacher, layout.tokens, temperature).mean(-1), layout.segments)


HEADS: dict[str, type[Head]] = {
    "classification": ClassificationHead,
    "multilabel": MultilabelHead,
    "regression": RegressionHead,
    "token_classification": TokenClassificationHead,
    "multiple_choice": MultipleChoiceHead,
    "question_answering": QuestionAnsweringHead,
}
"""Task type -> its head."""
