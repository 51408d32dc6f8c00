"""The comparison of criteria: what it measures, and the claims that the pages make from it."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import criteria as bc  # noqa: E402

Results = dict[str, dict[str, dict[str, float]]]
PLATEAU, DECLINE = "`plateau`, patience 3", "default"


@pytest.fixture(scope="module")
def results() -> Results:
    """Sixty curves of each shape, on 400 rows."""
    criteria = {PLATEAU: bc.CRITERIA_TRIED[PLATEAU], DECLINE: bc.built_in()}
    return bc.simulate(rows=400, runs=60, jitter=0.005, criteria=criteria)


def test_docstrings() -> None:
    """An example in the script does not give what it says."""
    assert doctest.testmod(bc).attempted > 0
    assert doctest.testmod(bc).failed == 0


def test_the_default_leaves_rising_tasks_alone(results: Results) -> None:
    """The default criterion declared tasks converged that still learned, as a plateau does on noisy curves."""
    assert results[PLATEAU]["rises"]["switched"] > 80
    assert results[DECLINE]["rises"]["switched"] < 10
    assert results[DECLINE]["rises"]["gain"] > -0.3


def test_the_default_sees_a_fall(results: Results) -> None:
    """The default criterion was so careful that it did not see a task overfit."""
    assert results[DECLINE]["falls by 5"]["switched"] > 90
    assert results[DECLINE]["falls by 10"]["switched"] == 100
    assert results[DECLINE]["falls by 10"]["teacher"] > -2
    assert results[DECLINE]["falls by 10"]["gain"] > 8


def test_the_default_is_not_fooled_by_the_first_evaluation(results: Results) -> None:
    """A task was switched because it began with the majority's answer; or a peak at the first evaluation was lost."""
    assert results[PLATEAU]["one answer at first"]["switched"] == 100
    assert results[DECLINE]["one answer at first"]["switched"] < 10
    assert results[DECLINE]["best at first"]["switched"] > 95
    assert results[DECLINE]["best at first"]["teacher"] > -1.5


def test_measure() -> None:
    """A run that is never switched counted as held, or a delay was counted from the wrong peak."""
    falls = bc.Curve(np.zeros(4), np.zeros((4, 2)), np.array([0.5, 0.75, 0.625, 0.5]))
    found = bc.measure([falls, falls], [(3, 1), (None, 1)], peak=1)
    assert found == {"switched": 50.0, "gain": 12.5, "delay": 2.0, "teacher": 0.0}
    assert bc.measure([falls], [(3, 2)], peak=None) == {"switched": 100, "gain": 12.5, "delay": 2, "teacher": -12.5}
    assert bc.measure([falls], [(None, 0)], peak=1) == {"switched": 0, "gain": 0}
