"""Do the tasks of a run peak apart? What the validation curves say, given their noise.

The best of many noisy evaluations lies above the value at any fixed step, also where nothing is lost. The headroom is
therefore estimated as by the "little bootstrap" of Breiman, "The Little Bootstrap and Other Methods for Dimensionality
Selection in Regression", JASA 87 (1992): the peak is chosen on one noisy copy of the curve, and measured on another one
whose noise is independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from .metrics import greater_is_better
from .significance import paired_standard_error

_FALSE_ALARMS = 0.05
"""Share of the runs without headroom in which some task seems to have one."""
_PERHAPS_Z = 1.0
"""Number of standard errors above which a headroom is worth a second look."""
_MIN_EVALUATIONS = 4
_MEDIAN_OF_SQUARE = 0.455
"""Of a standard normal variable."""
_SECOND_DIFFERENCE = 1 + 4 + 1
"""Variance of the second difference of independent variables of variance 1."""
_OFF_LABELS = ("distilling", "stopped")
Resamples = Mapping[int, Mapping[str, np.ndarray]]
"""Step -> task -> `hf_async_mtl.significance.bootstrap_values` of its monitored metric ``[R]``."""


def headroom(values: np.ndarray, resamples: np.ndarray, saved: int) -> tuple[float, float]:
    r"""Return how far a task's curve is below its peak at one evaluation, and the standard error of this estimate.

    Values are means over three evaluations in a row: :math:`m_j` of the scores from j to j + 2, and :math:`\delta_{rj}`
    of the deviations of resample r from the mean of all resamples, plus random numbers for what fluctuates more from
    one evaluation to the next than resampling explains (`_jitter`). For each of the deviations and their negatives, the
    peak is :math:`p_r = \arg\max_j (m_j + \delta_{rj})`, and :math:`s_r` is the same among the means that contain the
    saved evaluation. The headroom is the mean over r of :math:`(m - \delta_r)_{p_r} - (m - \delta_r)_{s_r}`: the noise
    that chose a peak does not count in favor of it. The squared error is the mean over r of the variance of
    :math:`\delta_{p_r} - \delta_{s_r}`.

    The estimate has no bias where the curve is flat, and is rather too low where it is not: the chosen peaks are not
    always the true one. It can be negative. Where the evaluation was saved because its scores were high, it is lower.

    Args:
        values: The scores ``[K]``, higher is better. K must be at least 3.
        resamples: Their bootstrap ``[K, R]``, on the same examples for all evaluations.
        saved: The index of the evaluation whose weights are kept.
    """
    noise = resamples - resamples.mean(axis=1, keepdims=True)
    jitter = np.random.default_rng(0).normal(0, _jitter(values, noise), size=noise.shape)
    means, noise = _means_of_three(values), _means_of_three(noise + jitter)
    first, draws = max(0, saved - 2), np.arange(noise.shape[1])
    estimates, variances = [], []
    covariance = noise @ noise.T / (noise.shape[1] - 1)
    for noise_of_choice in (noise, -noise):
        chosen, measured = means[:, None] + noise_of_choice, means[:, None] - noise_of_choice
        peaks, own = chosen.argmax(axis=0), first + chosen[first : saved + 1].argmax(axis=0)
        estimates.append(measured[peaks, draws] - measured[own, draws])
        variances.append(covariance[peaks, peaks] + covariance[own, own] - 2 * covariance[peaks, own])
    return float(np.mean(estimates)), math.sqrt(max(0.0, np.mean(variances)))


def _jitter(values: np.ndarray, noise: np.ndarray) -> float:
    """Return the deviation with which the weights themselves fluctuate: that of the curve beyond the examples' noise.

    It is taken from the median second difference, on which a trend has little effect.
    """
    observed = float(np.median(np.diff(values, n=2) ** 2)) / _MEDIAN_OF_SQUARE
    explained = float(np.median((np.diff(noise, n=2, axis=0) ** 2).mean(axis=1)))
    return math.sqrt(max(0.0, observed - explained) / _SECOND_DIFFERENCE)


def _means_of_three(values: np.ndarray) -> np.ndarray:
    return (values[:-2] + values[1:-1] + values[2:]) / 3


def diagnose(report: Mapping[str, Any], resamples: Resamples) -> dict[str, Any]:
    """Return the ``diagnosis`` of a finished run.

    Args:
        report: The content of ``convergence.json``, with ``final``.
        resamples: Those of all evaluations, and of the final step.

    Returns:
        ``something_to_hold``: whether the saved checkpoint of some task is below the task's own peak: ``yes`` by more
        than the noise of all tasks, ``perhaps`` by more than one standard error, ``no``; None if too little is known.
        ``answer``: one sentence. ``tasks``: per task ``peak_step``, the best step while it learned from its labels;
        ``fall_z``, how far it then fell until the last such evaluation, in standard errors; ``headroom`` and
        ``headroom_error``, see `headroom`. A value that is not known is None.
    """
    tasks = {name: _diagnose_task(name, report, resamples) for name in report["tasks"]}
    known = {name: task for name, task in tasks.items() if task["headroom"] is not None}
    if not known:
        answer = f"Not known: this takes at least {_MIN_EVALUATIONS} evaluations with a defined metric."
        return {"something_to_hold": None, "answer": answer, "tasks": tasks}
    z = NormalDist().inv_cdf(1 - _FALSE_ALARMS / len(known))
    if below := _losses(known, z):
        verdict, finding = "yes", f"is below a task's own peak by more than noise: {below}"
    elif below := _losses(known, _PERHAPS_Z):
        verdict, finding = "perhaps", f"may be below a task's own peak: {below}. More validation examples would tell"
    else:
        hidden = z * max(task["headroom_error"] for task in known.values())
        finding = f"is below no task's own peak by more than noise, which hides a headroom of up to {hidden:.4f}"
        verdict = "no"
    held = _what_was_held(report, tasks)
    answer = f"{f'{held};' if held else _PREFIXES[verdict]} the saved checkpoint {finding}."
    return {"something_to_hold": verdict, "answer": answer, "tasks": tasks}


_PREFIXES = {"yes": "Something to hold:", "perhaps": "Perhaps something to hold:", "no": "Nothing to hold was found:"}


def _losses(tasks: Mapping[str, Mapping[str, Any]], z: float) -> str:
    """Return the tasks whose headroom is more than so many standard errors, in words; empty if there are none."""
    below = {name: task for name, task in tasks.items() if task["headroom"] > z * task["headroom_error"]}
    return _join([f"{k} by {task['headroom']:.4f} (error {task['headroom_error']:.4f})" for k, task in below.items()])


def _diagnose_task(name: str, report: Mapping[str, Any], resamples: Resamples) -> dict[str, Any]:
    task, final = report["tasks"][name], report["final"]
    sign = 1 if greater_is_better(task["metric"]) else -1
    values = {**dict(task["history"]), final["step"]: final["tasks"][name]["value"]}
    rows = {step: sign * np.asarray(resamples[step][name]) for step in sorted(values)}
    scores = {
        step: sign * values[step] for step, row in rows.items() if values[step] is not None and np.isfinite(row).all()
    }
    found: dict[str, Any] = dict.fromkeys(("peak_step", "fall_z", "headroom", "headroom_error"))
    last_step = task["converged_step"] if task["phase"] in _OFF_LABELS else report["step"]
    on_labels = [step for step in scores if step <= last_step and not _has_external_teacher(task)]
    if on_labels:
        peak, end = max(on_labels, key=lambda step: scores[step]), on_labels[-1]
        fall, error = float(scores[peak] - scores[end]), paired_standard_error(rows[peak], rows[end])
        found["peak_step"] = peak
        found["fall_z"] = 0.0 if fall == 0 else fall / error if error > 0 else None
    if len(scores) >= _MIN_EVALUATIONS and final["step"] in scores:
        found["headroom"], found["headroom_error"] = headroom(
            np.array(list(scores.values())),
            np.stack([rows[step] for step in scores]),
            list(scores).index(final["step"]),
        )
    return found


def _has_external_teacher(task: Mapping[str, Any]) -> bool:
    return task["phase"] == "distilling" and task["teacher_step"] is None


def _what_was_held(report: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return how far the tasks that left their labels were below their peaks then; None if there are none."""
    phases = {
        name: task["phase"]
        for name, task in report["tasks"].items()
        if task["phase"] in _OFF_LABELS and not _has_external_teacher(task)
    }
    if not phases:
        return None
    falls = [tasks[name]["fall_z"] for name in phases]
    verb = "was" if len(phases) == 1 else "were"
    return (
        f"{'Held' if 'distilling' in phases.values() else 'Stopped'}: {_join([*phases])}, which {verb} "
        f"{_join(['?' if z is None else f'{z:.1f}' for z in falls])} standard errors below the peak when taken off "
        "the labels"
    )


def _join(parts: Sequence[str]) -> str:
    """Return a list in words; empty if there are none."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
