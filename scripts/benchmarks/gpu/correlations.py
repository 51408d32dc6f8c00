"""Pearson's and Spearman's correlation as ``scipy.stats`` has them, for a machine on which scipy does not fit.

scipy and its linear algebra take 13 MiB of the 60 that ``pack.sh`` may fill. The parts of the benchmark need two of its
functions. ``pack.sh`` makes a wheel of this file: ``scipy``, with the local version ``+correlations``. A test compares
the functions with those of scipy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ConstantInputWarning(RuntimeWarning):
    """A side is constant: its correlation is not defined."""


class NearConstantInputWarning(RuntimeWarning):
    """A side is nearly constant: its correlation is not precise. Never raised here."""


class Correlation(NamedTuple):
    """The result of a correlation; -1 to 1, or NaN."""

    statistic: float


def pearsonr(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Correlation:
    """Return Pearson's correlation.

    >>> pearsonr([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]).statistic
    1.0
    """
    centered = [np.asarray(side, dtype=np.float64) - np.mean(side) for side in (x, y)]
    norms = [float(np.linalg.norm(side)) for side in centered]
    if any(np.ptp(side) == 0 for side in centered):
        warnings.warn(ConstantInputWarning("An input is constant: the correlation is not defined."), stacklevel=2)
        return Correlation(math.nan)
    product = float(np.dot(centered[0] / norms[0], centered[1] / norms[1]))
    return Correlation(max(-1.0, min(1.0, product)))


def spearmanr(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Correlation:
    """Return Spearman's correlation: that of the ranks, equal values sharing their mean rank.

    >>> spearmanr([1.0, 2.0, 4.0], [10.0, 11.0, 50.0]).statistic
    1.0
    """
    return pearsonr(ranks(x), ranks(y))


def ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the rank of each value, from 1.

    >>> ranks([5.0, 3.0, 5.0]).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
