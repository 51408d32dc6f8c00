"""When a task has converged: the criteria, their settings and their state."""

import json
import math
import random
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from hf_async_mtl.convergence.actions import ACTIONS
from hf_async_mtl.convergence.config import CRITERION_NAMES, ConvergenceConfig
from hf_async_mtl.convergence.criteria import CRITERIA, Plateau
from hf_async_mtl.validation import ConfigurationError

config_of = partial(ConvergenceConfig, criterion="plateau")


def converged_at(scores: Sequence[float | None], **settings: Any) -> int | None:
    """The number of the evaluation (from 1, at steps 100, 200, ...) that a plateau is declared at."""
    plateau = Plateau(config_of(**settings))
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


def test_min_delta_is_absolute() -> None:
    """A gain of 15 % on a small score was taken for one of more than 0.1."""
    assert converged_at([0.1, 0.115, 0.13], patience=2, min_delta=0.1) == 3


def test_small_gains_add_up() -> None:
    """The reference crept up with gains below min_delta, so that a task in slow, steady progress converged."""
    assert converged_at([0.50, 0.54, 0.58, 0.62, 0.66, 0.70, 0.74], patience=3, min_delta=0.1) is None


def test_a_gain_of_exactly_min_delta_is_too_small() -> None:
    """`min_delta` read as "at least" and not as "more than"."""
    assert converged_at([0.5, 0.75], patience=1, min_delta=0.25) == 2


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("first", [[], [0.5]])
def test_no_number_is_no_improvement(nothing: float | None, first: list[float]) -> None:
    """NaN or infinity became the best score, which nothing could beat from then on."""
    plateau = Plateau(config_of(patience=2))
    for step, score in enumerate([*first, nothing], start=1):
        assert not plateau.update(step, score)
    before = plateau.state_dict()
    assert before["reference"] == (first[0] if first else None)
    assert before["evaluations_without_improvement"] == 1
    plateau.update(9, 0.6)
    assert plateau.state_dict() == {"reference": 0.6, "reference_step": 9, "evaluations_without_improvement": 0}


def test_a_plateau_ignores_the_noise() -> None:
    """The standard error, measured for other tasks, changed when a plateau converges."""
    plain, noisy = (Plateau(config_of(patience=2)) for _ in range(2))
    for step, score in enumerate([0.5, 0.51, 0.52, 0.5, 0.5]):
        assert plain.update(step, score) == noisy.update(step, score, standard_error=0.3)
    assert plain.state_dict() == noisy.state_dict()


@pytest.mark.parametrize("error", [None, math.nan, math.inf, 0.0])
def test_an_unknown_standard_error_counts_as_none(error: float | None) -> None:
    """A NaN standard error made every comparison false: no fall counted."""
    criterion = CRITERIA["decline"](config_of(criterion="decline", patience=1))
    assert not criterion.update(1, 0.5, standard_error=error)
    assert not criterion.update(2, 0.6, standard_error=error)
    assert criterion.reference_step == 2
    assert criterion.update(3, 0.5, standard_error=error)


def decline_at(scores: Sequence[float | None], standard_error: float | None = None, **settings: Any) -> int | None:
    decline = CRITERIA["decline"](config_of(criterion="decline", **settings))
    for number, score in enumerate(scores, start=1):
        if decline.update(100 * number, score, standard_error=standard_error):
            return number
    return None


def test_a_decline_is_below_the_best_in_a_row() -> None:
    """A plateau was taken for a decline, or falls were summed over the run, or compared with the score before."""
    assert decline_at([0.5] * 10, patience=1) is None
    assert decline_at([0.9, 0.8, 0.9, 0.8, 0.9, 0.8], patience=2) is None
    assert decline_at([0.5, 0.9, 0.6, 0.7, 0.8], patience=3) == 5


def test_a_fall_must_exceed_min_delta_and_the_noise() -> None:
    """A fall within the noise of the validation set ended a task."""
    scores = [0.5, 0.45, 0.45]
    assert decline_at(scores, patience=2) == 3
    assert decline_at(scores, patience=2, min_delta=0.06) is None
    assert decline_at(scores, patience=2, standard_error=0.06) is None
    assert decline_at(scores, patience=2, standard_error=0.06, z=0.5) == 3


def test_no_number_has_fallen_once_there_is_a_best() -> None:
    """A task that broke, and had NaN for its score from then on, never ended."""
    assert decline_at([math.nan] * 5, patience=2) is None
    assert decline_at([math.nan, 0.5, math.nan, None], patience=2) == 4


def test_the_reference_is_the_evaluation_that_scores_are_compared_with() -> None:
    """The noise was measured against the best evaluation, while the gain was taken over an earlier one."""
    expected = {"plateau": [1, 1, 3, 3], "decline": [1, 2, 3, 3]}
    for name, steps in expected.items():
        criterion = CRITERIA[name](config_of(criterion=name, min_delta=0.1))
        assert criterion.reference_step is None
        for number, score in enumerate([0.5, 0.55, 0.65, 0.6], start=1):
            criterion.update(number, score)
            assert criterion.reference_step == steps[number - 1], name


@pytest.mark.parametrize("name", CRITERIA)
def test_nan_from_the_start_has_no_reference(name: str) -> None:
    """The first evaluation was the reference although it had no score."""
    criterion = CRITERIA[name](config_of(criterion=name))
    for step in range(3):
        criterion.update(step, math.nan, standard_error=math.nan)
    assert criterion.reference_step is None
    json.dumps(criterion.state_dict(), allow_nan=False)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("seed", range(5))
def test_a_criterion_resumes_where_it_was(name: str, seed: int) -> None:
    """A counter was left out of the state: every resume granted full patience again."""
    rng = random.Random(seed)
    scores = [rng.choice([rng.random(), math.nan]) for _ in range(30)]
    errors = [rng.choice([None, rng.random() / 4]) for _ in range(30)]
    config = config_of(criterion=name, patience=3, min_delta=0.05)
    whole = CRITERIA[name](config)
    expected = [whole.update(step, score, standard_error=errors[step]) for step, score in enumerate(scores)]
    resumed = CRITERIA[name](config)
    found = []
    for step, score in enumerate(scores):
        state = json.loads(json.dumps(resumed.state_dict(), allow_nan=False))
        resumed = CRITERIA[name](config)
        resumed.load_state_dict(state)
        assert resumed.reference_step == state["reference_step"]
        found.append(resumed.update(step, score, standard_error=errors[step]))
    assert found == expected
    assert True in expected


@pytest.mark.parametrize("name", CRITERIA)
def test_loading_names_the_missing_and_the_unexpected_key(name: str) -> None:
    """A state with a missing counter was loaded as if it were whole."""
    criterion = CRITERIA[name](config_of(criterion=name))
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
        (
            {"criterion": "platau"},
            "`convergence.criterion` must be one of plateau, decline; found 'platau'. The nearest is 'plateau'.",
        ),
        (
            {"criterion": ["plateau"]},
            "`convergence.criterion` must be one of plateau, decline; found ['plateau'].",
        ),
        (
            {"on_convergence": "freeze"},
            "`convergence.on_convergence` must be one of distill, stop, continue, rollback; found 'freeze'.",
        ),
        *(
            ({"patience": value}, f"`convergence.patience` must be a whole number of at least 1; found {value!r}.")
            for value in (0, 2.0, True)
        ),
        ({"min_steps": -1}, "`convergence.min_steps` must be a whole number of at least 0; found -1."),
        ({"min_epochs": -1}, "`convergence.min_epochs` must be a number of at least 0; found -1."),
        ({"z": -1}, "`convergence.z` must be a number of at least 0; found -1."),
        ({"z": math.inf}, "`convergence.z` must be a number of at least 0; found inf."),
        # YAML reads 1e-3, which has no point, as a string.
        *(
            ({"min_delta": value}, f"`convergence.min_delta` must be a number of at least 0; found {value!r}.")
            for value in (-0.1, math.nan, math.inf, "1e-3")
        ),
    ],
)
def test_a_wrong_setting_is_refused_in_words(settings: dict[str, Any], message: str) -> None:
    """A wrong setting was found hours later, at the first evaluation, or never."""
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        config_of(**settings)


def test_every_criterion_has_a_name_in_the_settings() -> None:
    """The settings, which know the names only, accepted a criterion that is not there, or refused a new one."""
    assert tuple(CRITERIA) == CRITERION_NAMES


def test_what_an_action_needs() -> None:
    """A teacher, or the weights to return to, were not kept while the task learned; or some were that nobody reads."""
    needs = [name for name, action in ACTIONS.items() if action.needs_snapshot]
    assert needs == ["distill", "rollback"]
    # A stopped task has no loss for its teacher.
    assert {action.phase for action in ACTIONS.values() if action.records_teacher} == {"distilling"}


def test_the_defaults_are_those_of_the_evidence() -> None:
    """Bug: the default is a criterion for which no run of ours speaks."""
    config = ConvergenceConfig()
    assert (config.criterion, config.z, config.patience) == ("decline", 1.5, 3)
    assert (config.on_convergence, config.min_steps, config.min_epochs) == ("distill", 0, 1)
