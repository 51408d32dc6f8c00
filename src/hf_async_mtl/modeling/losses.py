r"""Losses as pure functions: logits and targets in, one loss per example out.

Every function returns a vector, so that the caller decides how examples are weighted. Units that belong to one example
(its tokens, its windows) are flat, with ``offsets`` of shape ``[B + 1]``: the units of example ``i`` are
``offsets[i]:offsets[i + 1]``. All arithmetic is in float32, whatever the dtype of the logits.

The distillation losses are those of Hinton et al., "Distilling the Knowledge in a Neural Network" (2015): with a
temperature :math:`T`, :math:`T^2 \, \mathrm{KL}(\mathrm{softmax}(z_t / T) \,\|\, \mathrm{softmax}(z_s / T))`. The
factor :math:`T^2` keeps the size of the gradient. They are 0, with a gradient of 0, if student and teacher are equal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100
"""Target without a loss: of an example or a word without a label, and of all but the first sub-word of a word."""


def segment_index(offsets: Tensor, units: int) -> Tensor:
    """Return the index of the example (or segment) of each unit: ``[units]`` from ``offsets`` of shape ``[B + 1]``."""
    index = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(index, offsets.diff(), output_size=units)


def ragged_mean(values: Tensor, offsets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over the units of each example: ``[B]``, 0 for an example without a unit.

    ``mask`` ``[U]`` has the units to average; by default all.

    >>> ragged_mean(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 2, 3, 3]))
    tensor([2., 5., 0.])
    """
    index = segment_index(offsets, len(values))
    weight = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    zeros = values.new_zeros(len(offsets) - 1)
    total = zeros.index_add(0, index, torch.where(weight > 0, values, values.new_zeros(())))
    return total / zeros.index_add(0, index, weight).clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of class indices ``[U]``: ``[U]``, in nats, 0 for -100. Logits are ``[U, C]``.

    The options are torch's: ``weight`` ``[C]`` multiplies the terms of its classes.
    """
    weight = None if weight is None else weight.float()
    return F.cross_entropy(
        logits.float(), labels, weight, ignore_index=IGNORE, reduction="none", label_smoothing=label_smoothing
    )


def multilabel_cross_entropy(logits: Tensor, labels: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of labels 0 or 1, ``[B, C]``, averaged over the labels: ``[B]``, in nats.

    Labels of -100 are left out. ``pos_weight`` ``[C]`` multiplies the losses of labels of 1.
    """
    weight, known = None if pos_weight is None else pos_weight.float(), labels != IGNORE
    targets = labels.float().where(known, 0.0)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=weight, reduction="none")
    return losses.where(known, 0.0).sum(-1) / known.sum(-1).clamp(min=1)


def squared_error(predictions: Tensor, targets: Tensor, std: float, huber: float | None = None) -> Tensor:
    """Return the squared error in units of the standard deviation of the training targets: ``[B]``, dimensionless.

    Predictions and targets (labels, or a teacher's predictions) are in the units of the data. The loss explodes if the
    standard deviation is tiny. With ``huber`` > 0 it is torch's Huber loss with that delta: half the square up to an
    error of delta, linear above.
    """
    error = (predictions.float() - targets.float()) / std
    return error.square() if huber is None else F.huber_loss(error, torch.zeros_like(error), "none", huber)


def categorical_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the KL divergence from a teacher's distribution over classes, times the squared temperature.

    Args:
        student: Logits ``[U, C]``.
        teacher: Logits ``[U, C]``; no gradient flows to them.
        temperature: > 0. Far below 1 both distributions become one-hot and the gradient vanishes; far above 1 the loss
            turns into a squared error between the centered logits.

    Returns:
        ``[U]``, in nats, >= 0.

    Examples:
        >>> logits = torch.tensor([[2.0, -1.0]])
        >>> categorical_kl(logits, logits)
        tensor([0.])
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the KL divergence of independent Bernoulli distributions, averaged over the labels: ``[B]``, in nats.

    Logits are ``[B, C]``; for the rest, see `categorical_kl`.
    """
    s, t = student.float() / temperature, teacher.detach().float() / temperature
    # Log-probabilities of both outcomes: 1 - sigmoid(z) loses all digits where z is large, sigmoid(-z) loses none.
    log_student = torch.stack([F.logsigmoid(s), F.logsigmoid(-s)])
    log_teacher = torch.stack([F.logsigmoid(t), F.logsigmoid(-t)])
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(0).mean(-1) * temperature**2


def _ragged_log_softmax(logits: Tensor, segment: Tensor, segments: int) -> Tensor:
    # The largest logit of each segment is subtracted first, as in any stable softmax; it has no gradient.
    index = segment if logits.dim() == 1 else segment[:, None].expand_as(logits)
    shape = (segments, *logits.shape[1:])
    top = logits.new_zeros(shape).scatter_reduce(0, index, logits.detach(), "amax", include_self=False)
    shifted = logits - top.index_select(0, segment)
    total = logits.new_zeros(shape).index_add(0, segment, shifted.exp())
    return shifted - total.log().index_select(0, segment)


def ragged_kl(student: Tensor, teacher: Tensor, offsets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the KL divergence of distributions over the units of each segment: ``[S]`` or ``[S, K]``, in nats.

    Logits are ``[U]``, or ``[U, K]`` for K distributions over the same units (start and end); ``offsets`` ``[S + 1]``
    are those of the segments. For the rest, see `categorical_kl`.
    """
    segments = len(offsets) - 1
    segment = segment_index(offsets, len(student))
    log_student = _ragged_log_softmax(student.float() / temperature, segment, segments)
    log_teacher = _ragged_log_softmax(teacher.detach().float() / temperature, segment, segments)
    pointwise = log_teacher.exp() * (log_teacher - log_student)
    return pointwise.new_zeros((segments, *student.shape[1:])).index_add(0, segment, pointwise) * temperature**2


def ragged_cross_entropy(logits: Tensor, targets: Tensor, offsets: Tensor) -> Tensor:
    """Return the cross-entropy of one unit among the units of each segment: ``[S]`` or ``[S, K]``, in nats.

    Targets have that shape: the position of the true unit in its segment. For the rest, see `ragged_kl`.
    """
    segment = segment_index(offsets, len(logits))
    log_probabilities = _ragged_log_softmax(logits.float(), segment, len(offsets) - 1)
    first = offsets[:-1] if targets.dim() == 1 else offsets[:-1, None]
    return -log_probabilities.gather(0, first + targets)
