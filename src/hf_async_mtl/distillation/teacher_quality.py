"""What a teacher's recorded logits can teach beyond the labels: how soft, how calibrated and how right they are.

A teacher is recorded on the rows that it was trained on. One that knows them by heart gives each label a probability of
nearly 1, and to learn from it is to learn from the labels: the distillation loss then saves its task from nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..modeling.losses import IGNORE

__all__ = ["TeacherQuality", "degenerate_warning", "expected_calibration_error", "is_degenerate", "quality_of"]

ENTROPY_FLOOR = 0.02
"""A normalised entropy below this is nearly one-hot: of two classes, it is that of 0.998 to 0.002."""
RESIDUAL_FLOOR = 0.05
"""A residual below this leaves 1/400 of the targets' variance."""
BINS = 15
"""As many as Guo et al. (2017) take."""


@dataclass(frozen=True)
class TeacherQuality:
    """How a teacher does on the rows that it was recorded on. None where a task's type has no such value.

    Attributes:
        entropy: Mean entropy of its distributions over the largest there can be; 0 (one-hot) to 1 (uniform).
        calibration: Expected calibration error, 0 to 1. A teacher that knows its rows by heart is sure and right there:
            0 is no praise where the entropy is 0 too.
        accuracy: Share of decisions that agree with the labels, 0 to 1.
        residual: Of a regression, the root mean squared error over the standard deviation of the targets.
    """

    entropy: float | None = None
    calibration: float | None = None
    accuracy: float | None = None
    residual: float | None = None


def quality_of(task_type: str, logits: Tensor, labels: Sequence[Any]) -> TeacherQuality:
    """Look at a teacher's recorded logits.

    A decision is an example; of token classification a labelled word, of multilabel one label of one example.

    Args:
        task_type: The task's type.
        logits: ``[U, C]``, or ``[U]`` of a regression: those of all training rows, as `RecordedLogits` holds them.
            Divide them by the temperature to see what is distilled at one.
        labels: The encoded rows' ``labels``, one an example: class indices, numbers, lists of 0 and 1, or a list with
            one label a token, where -100 is none.

    Returns:
        Regression: the residual alone (None where all targets are equal). Question answering: nothing, since its
        distributions are over as many tokens as each window has. Others: entropy (None where there is one class),
        calibration and accuracy; nothing where no word is labelled.

    Raises:
        ValueError: There are not as many logits as labels.

    >>> quality = quality_of("classification", torch.tensor([[0.0, 0.0], [0.0, 0.0]]), [1, 0])
    >>> quality.entropy, quality.accuracy
    (1.0, 0.5)
    """
    if task_type == "question_answering":
        return TeacherQuality()
    per_token = task_type == "token_classification"
    targets = torch.as_tensor(list(itertools.chain.from_iterable(labels) if per_token else labels))
    if len(targets) != len(logits):
        raise ValueError(
            f"Recorded logits need one label each; found {len(logits)} rows of logits and {len(targets)} labels. Take "
            "the encoded rows that the logits were recorded for."
        )
    if task_type == "regression":
        errors, spread = logits - targets, targets.double().std(correction=0)
        return TeacherQuality(residual=float(errors.square().mean().sqrt() / spread) if spread > 0 else None)
    if task_type == "multilabel":
        # Both from the logit: 1 - sigmoid(z) loses its digits where z is large.
        outcomes = torch.stack([-logits.flatten(), logits.flatten()], dim=-1).sigmoid()
        return _of_distributions(outcomes, targets.flatten().long())
    scored = targets != IGNORE
    return _of_distributions(logits[scored].softmax(-1), targets[scored])


def _of_distributions(probabilities: Tensor, targets: Tensor) -> TeacherQuality:
    """The quality of ``[U, C]`` distributions against ``[U]`` class indices."""
    decisions, classes = probabilities.shape
    if decisions == 0:
        return TeacherQuality()
    confidence, decided = probabilities.max(-1)
    right = decided == targets
    entropy = torch.special.entr(probabilities).sum(-1).mean() / math.log(classes) if classes > 1 else None
    return TeacherQuality(
        entropy=None if entropy is None else float(entropy),
        calibration=expected_calibration_error(confidence, right),
        accuracy=float(right.double().mean()),
    )


def expected_calibration_error(confidence: Tensor, right: Tensor) -> float:
    r"""How far confidence is from accuracy, over bins of equal width: :math:`\sum_b \frac{n_b}{n} |acc_b - conf_b|`.

    Guo et al., "On Calibration of Modern Neural Networks" (2017), arXiv:1706.04599, equation 3, with 15 bins
    :math:`(\frac{b - 1}{15}, \frac{b}{15}]`.

    Args:
        confidence: ``[n]``, n > 0: the probability of what was decided, 0 to 1.
        right: ``[n]``, whether it was right.

    Returns:
        0 to 1. Of a few hundred decisions it is too large by chance: each bin's noise counts as error.

    >>> expected_calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([True, True, True, False]))
    0.0
    """
    bins = (confidence * BINS).ceil().long().clamp(min=1) - 1
    gaps = torch.zeros(BINS, dtype=torch.double).index_add(0, bins, right.double() - confidence.double())
    return float(gaps.abs().sum() / len(confidence))


def is_degenerate(quality: TeacherQuality) -> bool:
    """Whether a teacher says no more than the labels do: nearly one-hot, or a regression without residuals.

    The thresholds, an entropy of 0.02 and a residual of 0.05, are set by eye: far below what a teacher has that is
    unsure of some rows. A task that is truly easy falls below them too; it has nothing to lose by it.

    >>> is_degenerate(TeacherQuality(entropy=0.01)), is_degenerate(TeacherQuality(residual=0.3))
    (True, False)
    """
    one_hot = quality.entropy is not None and quality.entropy < ENTROPY_FLOOR
    exact = quality.residual is not None and quality.residual < RESIDUAL_FLOOR
    return one_hot or exact


def degenerate_warning(task: str, quality: TeacherQuality) -> str:
    """The sentence for a teacher that `is_degenerate`: what is needed, what was found, and the way out."""
    if quality.residual is not None:
        need = (
            f"miss the targets by at least {RESIDUAL_FLOOR} of their standard deviation; found {quality.residual:.3f}"
        )
        temperature = ""
    else:
        need = f"have a normalised entropy of at least {ENTROPY_FLOOR}; found {quality.entropy:.4f}"
        temperature = "raise `distillation.temperature`, "
    return (
        f"The recorded logits of task {task!r} should say more than its labels do: on its training rows they should "
        f"{need}. To distil them is nearly to go on learning from the labels. Let the task converge earlier (a smaller "
        f"`patience` or a larger `min_delta`), {temperature}record an average of snapshots, or give it more data."
    )
