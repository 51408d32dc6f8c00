"""When a task has converged: the plateau, its settings and its state."""

import json
import math
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from hf_async_mtl.convergence.criteria import CRITERIA, ConvergenceConfig, Plateau


def converged_at(scores: Sequence[float | None], **settings: Any) -> int | None:
    """The number of the evaluation (from 1, at steps 100, 200, ...) that a plateau is declared at."""
    plateau = Plateau(ConvergenceConfig(**settings))
    for number, score in enumerate(scores, start=1):
        if plateau.update(100 * number, score):
            return number
    return None


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience_counts_evaluations_after_the_best(patience: int) -> None:
    """Off by one: the best evaluation itself used up one evaluation of the patience, or one too many was granted."""
    assert converged_at([0.1, 0.9] + [0.5] * 10, patience=patience) == 2 + patience


def test_an_improvement_grants_full_patience_again() -> None:
    """Evaluations without improvement were summed over the run instead of counted in a row."""
    assert converged_at([0.5, 0.4, 0.6, 0.5, 0.7, 0.6, 0.8, 0.7], patience=2) is None


def test_an_equal_score_is_no_improvement() -> None:
    """A task stuck at one score, such as the majority class, never converged."""
    assert converged_at([0.5] * 10, patience=3) == 4


def test_a_steady_climb_never_converges() -> None:
    """A task that improved at every evaluation was switched to its teacher."""
    assert converged_at([number / 100 for number in range(50)], patience=1) is None


@pytest.mark.parametrize(("mode", "patience_used_up"), [("absolute", 3), ("relative", None)])
def test_min_delta_mode(mode: str, patience_used_up: int | None) -> None:
    """Relative was computed as absolute: a gain of 15 % on a small score is below an absolute 0.1."""
    assert converged_at([0.1, 0.115, 0.13], patience=2, min_delta=0.1, min_delta_mode=mode) == patience_used_up


def test_small_gains_add_up() -> None:
    """The reference crept up with gains below min_delta, so that a task in slow, steady progress converged."""
    assert converged_at([0.50, 0.54, 0.58, 0.62, 0.66, 0.70, 0.74], patience=3, min_delta=0.1) is None


def test_min_delta_relative_to_a_negative_score_demands_a_gain() -> None:
    """Without the absolute value, a relative min_delta accepted a decline of a negative correlation."""
    assert converged_at([-0.50, -0.52, -0.54], patience=2, min_delta=0.1, min_delta_mode="relative") == 3


def test_a_gain_of_exactly_min_delta_is_too_small() -> None:
    """`min_delta` read as "at least" and not as "more than"."""
    assert converged_at([0.5, 0.75], patience=1, min_delta=0.25) == 2


def test_min_steps_delays_but_earlier_evaluations_count() -> None:
    """The patience began at min_steps, or min_steps was ignored, or was taken as exclusive."""
    scores = [0.9] + [0.5] * 9
    assert converged_at(scores, patience=2, min_steps=0) == 3
    assert converged_at(scores, patience=2, min_steps=700) == 7
    assert converged_at(scores, patience=2, min_steps=701) == 8


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [[], [0.5]])
def test_no_number_is_no_improvement(nothing: float | None, first: list[float]) -> None:
    """NaN or infinity became the best score, which nothing could beat from then on."""
    plateau = Plateau(ConvergenceConfig(patience=2))
    for step, score in enumerate([*first, nothing], start=1):
        assert not plateau.update(step, score)
    before = plateau.state_dict()
    assert before["reference"] == (first[0] if first else None)
    assert before["evaluations_without_improvement"] == 1
    plateau.update(9, 0.6)
    assert plateau.state_dict() == {"reference": 0.6, "evaluations_without_improvement": 0}


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("seed", range(5))
def test_a_criterion_resumes_where_it_was(name: str, seed: int) -> None:
    """A counter was left out of the state: every resume granted full patience again."""
    rng = random.Random(seed)
    scores = [rng.choice([rng.random(), math.nan]) for _ in range(30)]
    config = ConvergenceConfig(criterion=name, patience=3, min_delta=0.05)
    whole = CRITERIA[name](config)
    expected = [whole.update(step, score) for step, score in enumerate(scores)]
    resumed = CRITERIA[name](config)
    answers = []
    for step, score in enumerate(scores):
        state = json.loads(json.dumps(resumed.state_dict(), allow_nan=False))
        resumed = CRITERIA[name](config)
        resumed.load_state_dict(state)
        answers.append(resumed.update(step, score))
    assert answers == expected
    assert True in expected


@pytest.mark.parametrize("name", CRITERIA)
def test_loading_names_the_missing_and_the_unexpected_key(name: str) -> None:
    """A state with a missing counter was loaded as if it were whole."""
    criterion = CRITERIA[name](ConvergenceConfig(criterion=name))
    for key in criterion.state_dict():
        state = criterion.state_dict()
        del state[key]
        with pytest.raises(ValueError, match=f"missing {key}"):
            criterion.load_state_dict(state)
    with pytest.raises(ValueError, match="unexpected counter"):
        criterion.load_state_dict({**criterion.state_dict(), "counter": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "platau"}, "convergence.criterion must be one of plateau, not 'platau'."),
        ({"criterion": ["plateau"]}, "convergence.criterion must be one of plateau, not ['plateau']."),
        (
            {"on_convergence": "freeze"},
            "convergence.on_convergence must be one of distill, stop, continue, not 'freeze'.",
        ),
        ({"min_delta_mode": "rel"}, "convergence.min_delta_mode must be one of absolute, relative, not 'rel'."),
        ({"patience": 0}, "convergence.patience must be a whole number of at least 1, such as 3, not 0."),
        ({"patience": 2.0}, "convergence.patience must be a whole number of at least 1, such as 3, not 2.0."),
        ({"patience": True}, "convergence.patience must be a whole number of at least 1, such as 3, not True."),
        ({"min_steps": -1}, "convergence.min_steps must be a whole number of at least 0, such as 500, not -1."),
        ({"min_delta": -0.1}, "convergence.min_delta must be a finite number of at least 0, such as 0.001, not -0.1."),
        (
            {"min_delta": math.nan},
            "convergence.min_delta must be a finite number of at least 0, such as 0.001, not nan.",
        ),
        (
            {"min_delta": math.inf},
            "convergence.min_delta must be a finite number of at least 0, such as 0.001, not inf.",
        ),
        # YAML reads 1e-3, which has no point, as a string.
        (
            {"min_delta": "1e-3"},
            "convergence.min_delta must be a finite number of at least 0, such as 0.001, not '1e-3'.",
        ),
    ],
)
def test_a_wrong_setting_is_refused_in_words(settings: dict[str, Any], message: str) -> None:
    """A wrong setting was found hours later, at the first evaluation, or never."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ConvergenceConfig(**settings)
