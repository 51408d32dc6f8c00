"""Do the tasks peak apart? What a run says of curves whose truth is known."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_async_mtl.diagnosis import diagnose, headroom

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "benchmarks"))

import diagnosis as simulated

STEPS = range(100, 2100, 100)
FALLING = [0.6, 0.7, 0.8, 0.9, *(0.9 - i / 100 for i in range(1, 17))]
FLAT = [0.8, 0.81] * 10
RISING = [0.5 + i / 50 for i in range(20)]


def task(history: list[float | None], **fields: Any) -> dict[str, Any]:
    state = {"metric": "accuracy", "phase": "learning", "converged_step": None, "teacher_step": 400, **fields}
    return {**state, "history": [[step, value] for step, value in zip(STEPS, history, strict=True)]}


def diagnosis_of(
    tasks: dict[str, dict[str, Any]], *, saved: int = 2000, noise: float = 0.01, lost: tuple[int, ...] = ()
) -> dict[str, Any]:
    """The diagnosis where each evaluation has this noise of its own; some evaluations have an undefined resample."""
    final = {"step": saved, "tasks": {name: {"value": dict(each["history"])[saved]} for name, each in tasks.items()}}
    generator = np.random.default_rng(0)
    resamples = {step: {name: generator.normal(0, noise, size=200) for name in tasks} for step in STEPS}
    for step in lost:
        for row in resamples[step].values():
            row[7] = np.nan
    return diagnose({"step": 2000, "tasks": tasks, "final": final}, resamples)


# -- the sentence -----------------------------------------------------------------------------------------------------


def test_a_fall_is_something_to_hold() -> None:
    """A task that loses 15 points after its peak was not mentioned, or one that still rises was."""
    found = diagnosis_of({"match": task(FALLING), "stars": task(RISING)})
    match = found["tasks"]["match"]
    assert found["something_to_hold"] == "yes"
    assert found["answer"] == (
        "Something to hold: the saved checkpoint is below a task's own peak by more than noise: match by "
        f"{match['headroom']:.4f} (error {match['headroom_error']:.4f})."
    )
    assert match["peak_step"] == 400
    assert match["fall_z"] == pytest.approx(0.16 / (0.01 * np.sqrt(2)), rel=0.15)
    assert match["headroom"] == pytest.approx(0.14, abs=0.02)
    assert found["tasks"]["stars"]["peak_step"] == 2000
    assert found["tasks"]["stars"]["fall_z"] == 0


@pytest.mark.parametrize("history", [FLAT, RISING])
def test_nothing_to_hold(history: list[float]) -> None:
    """A run advised to hold tasks that had not fallen: the best of twenty noisy values lies above the last one."""
    found = diagnosis_of({"match": task(history), "stars": task(RISING)})
    hidden = 1.96 * max(each["headroom_error"] for each in found["tasks"].values())
    assert found["something_to_hold"] == "no"
    assert found["answer"] == (
        "Nothing to hold was found: the saved checkpoint is below no task's own peak by more than noise, which hides a "
        f"headroom of up to {hidden:.4f}."
    )


def test_perhaps_something_to_hold() -> None:
    """A run that lost some points to overfitting, less than the noise of five tasks hides, was told to hold nothing."""
    falling = [0.6, 0.7, 0.8, 0.9, *(0.9 - i / 300 for i in range(1, 17))]
    tasks = {"match": task(falling), **{name: task(RISING) for name in "abcd"}}
    found = diagnosis_of(tasks, noise=0.02)
    match = found["tasks"]["match"]
    assert 1 < match["headroom"] / match["headroom_error"] < 2.3
    assert found["something_to_hold"] == "perhaps"
    assert found["answer"] == (
        "Perhaps something to hold: the saved checkpoint may be below a task's own peak: match by "
        f"{match['headroom']:.4f} (error {match['headroom_error']:.4f}). More validation examples would tell."
    )


def test_a_checkpoint_at_the_peak_of_all_tasks_has_nothing_to_hold() -> None:
    """Tasks that fall together are a case for early stopping, and the run recommended to distill them."""
    tasks = {"match": task(FALLING), "stars": task(FALLING)}
    assert diagnosis_of(tasks, saved=400)["something_to_hold"] == "no"
    assert diagnosis_of(tasks)["something_to_hold"] == "yes"


def test_what_was_held() -> None:
    """A distilling run judged its tasks by scores after the switch, or had no word for what was switched."""
    held = FALLING[:8] + [0.9] * 12
    tasks = {"match": task(held, phase="distilling", converged_step=800), "stars": task(RISING)}
    found = diagnosis_of(tasks)
    fall = found["tasks"]["match"]["fall_z"]
    assert fall == pytest.approx(0.04 / (0.01 * np.sqrt(2)), rel=0.15)
    assert found["answer"].startswith(
        f"Held: match, which was {fall:.1f} standard errors below the peak when taken off the labels; the saved "
        "checkpoint is below no task's own peak by more than noise"
    )
    tasks["stars"] = task(FALLING, phase="stopped", converged_step=800)
    answer = diagnosis_of(tasks)["answer"]
    assert answer.startswith("Held: match and stars, which were ")
    assert "by more than noise: stars by 0.1" in answer
    tasks["match"]["phase"] = "stopped"
    assert diagnosis_of(tasks)["answer"].startswith("Stopped: match and stars, which were ")


def test_a_task_with_another_models_logits_has_no_fall() -> None:
    """A task that never learned from its labels was said to have been taken off them."""
    teacher = {"phase": "distilling", "converged_step": 0, "teacher_step": None}
    found = diagnosis_of({"match": task(RISING, **teacher), "stars": task(RISING)})
    assert (found["tasks"]["match"]["peak_step"], found["tasks"]["match"]["fall_z"]) == (None, None)
    assert found["answer"].startswith("Nothing to hold was found:")


def test_a_metric_that_is_better_when_smaller() -> None:
    """The peak of a loss was its greatest value."""
    mirrored = {"match": task([-value for value in FALLING], metric="log_loss"), "stars": task(RISING)}
    found = diagnosis_of(mirrored)["tasks"]["match"]
    assert found["peak_step"] == 400
    assert found["headroom"] == pytest.approx(0.14, abs=0.02)


def test_evaluations_without_a_value() -> None:
    """A metric that is not defined at first, or in one resample, ended the run or became its peak."""
    undefined = task([None, None, *FALLING[2:]])
    whole, part = diagnosis_of({"match": task(FALLING)}), diagnosis_of({"match": undefined}, lost=(400,))
    assert part["tasks"]["match"]["peak_step"] == 500
    assert part["tasks"]["match"]["headroom"] == pytest.approx(whole["tasks"]["match"]["headroom"], abs=0.02)
    unknown = diagnosis_of({"match": undefined}, lost=tuple(STEPS))
    assert unknown["something_to_hold"] is None
    assert unknown["answer"] == "Not known: this takes at least 4 evaluations with a defined metric."
    assert set(unknown["tasks"]["match"].values()) == {None}


# -- the estimate -----------------------------------------------------------------------------------------------------


def test_no_noise_no_correction() -> None:
    """The estimate was of another step than the saved one, or a peak of all tasks was lost among its neighbors."""
    values = np.array([0, 1, 2, 3, 4, 5, 5, 5, 5, 4, 3, 2, 1, 0], dtype=float)
    found = [headroom(values, np.zeros((14, 50)), saved=k) for k in (0, 5, 6, 9, 12, 13)]
    assert [estimate for estimate, _ in found] == pytest.approx([4, 0, 0, 1 / 3, 3, 4])
    assert {error for _, error in found} == {0.0}


def test_error_of_two_peaks_that_stand_out() -> None:
    """The error was that of one evaluation, not of a paired difference, or of too many or too few averages."""
    noise = np.random.default_rng(0).normal(size=(12, 4000))
    values = np.array([0.0] * 4 + [99.0] * 4 + [0.0] * 4)
    estimate, error = headroom(values, noise, saved=11)
    assert estimate == pytest.approx(99.0, abs=0.3)
    assert error == pytest.approx(np.sqrt(1 / 3 + 1 / 3), rel=0.05)
    common = noise[:1] + 0 * noise
    assert headroom(values, common, saved=11) == (pytest.approx(99.0), pytest.approx(0.0, abs=1e-6))


def test_weights_that_fluctuate() -> None:
    """On a large validation set, the ups and downs of the weights from step to step were taken for overfitting."""
    generator = np.random.default_rng(0)
    examples = generator.normal(0, 1e-4, size=(20, 200))
    found = [headroom(0.8 + generator.normal(0, 0.01, size=20), examples, saved=19) for _ in range(60)]
    assert np.mean([estimate > 2.3 * error for estimate, error in found]) <= 0.05
    assert np.mean([estimate for estimate, _ in found]) == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("last", [False, True])
def test_false_alarms(last: bool) -> None:
    """The best of twenty noisy evaluations was taken for a peak: a false "something to hold" in every second run."""
    flat, *others = (
        simulated.measure(simulated.TASK_SETS[curves], 400, 20, runs=50, last=last)
        for curves in ("flat", "plateau", "rising")
    )
    assert np.mean([found["something"] + found["perhaps"] for found in (flat, *others)]) <= (40 if last else 20)
    assert np.mean([found["something"] for found in (flat, *others)]) <= 5
    assert all(found["estimate"] < 0.3 for found in (flat, *others))
    assert flat["uncorrected"] > 1.2


def test_a_true_fall_is_found() -> None:
    """The correction was so careful that a fall of five points on 400 rows went unseen."""
    one = simulated.measure(simulated.TASK_SETS["one of five falls by 5"], 400, 20, runs=50, last=True)
    assert one["something"] >= 40
    assert one["estimate"] == pytest.approx(3.8, abs=0.5)
    three = simulated.measure(simulated.TASK_SETS["three of five fall by 5"], 400, 20, runs=30, last=True)
    assert three["something"] >= 80
