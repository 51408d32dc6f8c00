"""Is a teacher nearly one-hot? Then its recorded logits say no more than the labels do.

A teacher is recorded on the rows that it was trained on. One that has memorized them gives each label a probability of
nearly 1, and distilling from it is nearly the same as training on the labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..tasks.registry import TASK_TYPES

_ENTROPY_FLOOR = 0.02
"""For two classes, the entropy of 0.998 to 0.002. Set by eye: far below a teacher that is unsure of some rows."""


def normalized_entropy(task_type: str, logits: Tensor, labels: Sequence[Any]) -> float | None:
    """Return the mean entropy of a teacher's distributions, divided by the largest possible one.

    ``logits`` ``[U, C]`` are divided by the temperature; ``labels`` are read for token classification only. The result
    is 0 (one-hot) to 1 (uniform), and None where there is no such value: for regression, question answering (its
    distributions are over the tokens of a window), one class, or no labelled token.

    >>> round(normalized_entropy("classification", torch.tensor([[0.0, 0.0], [0.0, 0.0]]), [1, 0]), 4)
    1.0
    """
    probabilities = TASK_TYPES[task_type].distributions(logits, labels) if len(logits) else None
    if probabilities is None or len(probabilities) == 0 or probabilities.shape[-1] == 1:
        return None
    return float(torch.special.entr(probabilities).sum(-1).mean()) / math.log(probabilities.shape[-1])


def near_one_hot_warning(task: str, entropy: float | None) -> str | None:
    """Return the warning for a teacher with this `normalized_entropy`, or None where there is nothing to warn of."""
    if entropy is None or entropy >= _ENTROPY_FLOOR:
        return None
    return (
        f"The recorded logits of task {task!r} are nearly one-hot: on its training rows their normalized entropy "
        f"should be at least {_ENTROPY_FLOOR}; found {entropy:.4f}. Distilling from them is nearly the same as "
        "training on the labels. Let the task converge earlier (a smaller `patience` or a larger `min_delta`), raise "
        "`distillation.temperature`, or give the task more data."
    )
