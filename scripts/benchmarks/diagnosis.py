"""How often the diagnosis of a run is right, on simulated validation curves whose truth is known.

    python scripts/benchmarks/diagnosis.py [--runs 1000]

Each validation row of a task is right or wrong at each evaluation. Most rows stay as they are from one evaluation to
the next, and two evaluations are the more alike the nearer they are, as with the weights of a training. A run has five
tasks. What is shown, per shape of the curves, number of rows and of evaluations, and saved checkpoint:

* the share of the runs with something to hold, and with something to hold perhaps, in percent;
* for the first task, in points: the true headroom, the mean of its estimate, the deviation of the estimates and the
  mean of their standard errors, and what is found without a correction: the best value minus the saved one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from hf_async_mtl.diagnosis import diagnose

RESAMPLES = 200
TOP = 0.75  # accuracy at the peak
SHARED, DRIFTING = (
    0.8,
    0.15,
)  # shares of a row's variance that stay for the run, and for some evaluations; the rest none


def rising(rate: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a curve over the share of the run that is done; with a high rate it is a plateau for most of the run."""
    return lambda time: TOP - 0.15 * np.exp(-rate * time)


def falling(points: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a curve that peaks at 30 % of the run and has fallen by some points at its end."""
    return lambda time: TOP - np.where(time < 0.3, 0.15 * (1 - time / 0.3) ** 2, points / 100 * (time - 0.3) / 0.7)


SHAPES = {
    "flat": rising(1e9),
    "plateau": rising(10),
    "rising": rising(2.5),
    "falls 5": falling(5),
    "falls 10": falling(10),
}
TASK_SETS = {
    "flat": ["flat"] * 5,
    "plateau": ["plateau"] * 5,
    "rising": ["rising"] * 5,
    "one of five falls by 5": ["falls 5"] + ["rising"] * 4,
    "three of five fall by 5": ["falls 5"] * 3 + ["rising"] * 2,
    "one of five falls by 10": ["falls 10"] + ["rising"] * 4,
}


def right_or_wrong(accuracies: np.ndarray, rows: int, generator: np.random.Generator) -> np.ndarray:
    """Return which rows are right at each evaluation ``[K, N]``, with these accuracies ``[K]`` over all rows."""
    normal, keep = generator.standard_normal, np.exp(-1 / 5)
    drift = normal((len(accuracies), rows))
    for k in range(1, len(accuracies)):
        drift[k] = keep * drift[k - 1] + np.sqrt(1 - keep**2) * drift[k]
    rest = normal(drift.shape) * np.sqrt(1 - SHARED - DRIFTING)
    difficulty = np.sqrt(SHARED) * normal(rows) + np.sqrt(DRIFTING) * drift + rest
    return difficulty < norm.ppf(accuracies)[:, None]


def simulate(
    shapes: Sequence[str], rows: int, evaluations: int, generator: np.random.Generator, *, last: bool = False
) -> tuple[dict[str, Any], list[float]]:
    """Simulate a run; return its report with ``diagnosis``, and the true headroom of each task."""
    time = np.arange(1, evaluations + 1) / evaluations
    truth = np.array([SHAPES[shape](time) for shape in shapes])
    scores = np.stack([right_or_wrong(curve, rows, generator) for curve in truth]).astype(np.float32)
    weights = generator.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES).astype(np.float32)
    values, resampled = scores.mean(2), scores @ weights.T / rows
    saved = evaluations - 1 if last else int(values.mean(0).argmax())
    names = [f"{shape} {i}" for i, shape in enumerate(shapes)]
    report: dict[str, Any] = {
        "step": evaluations,
        "tasks": {
            name: {
                **{"metric": "accuracy", "phase": "learning", "converged_step": None, "teacher_step": 1},
                "history": [[step, value] for step, value in enumerate(curve.tolist(), start=1)],
            }
            for name, curve in zip(names, values, strict=True)
        },
        "final": {
            "step": saved + 1,
            "tasks": {name: {"value": float(curve[saved])} for name, curve in zip(names, values, strict=True)},
        },
    }
    resamples = {step: dict(zip(names, resampled[:, step - 1], strict=True)) for step in range(1, evaluations + 1)}
    report["diagnosis"] = diagnose(report, resamples)
    return report, (truth.max(1) - truth[:, saved]).tolist()


def measure(
    shapes: Sequence[str], rows: int, evaluations: int, runs: int, *, last: bool = False, seed: int = 0
) -> dict[str, float]:
    """Return the figures of one line of the table."""
    generator = np.random.default_rng(seed)
    answers, figures = [], []
    for _ in range(runs):
        report, headrooms = simulate(shapes, rows, evaluations, generator, last=last)
        first = next(iter(report["diagnosis"]["tasks"].values()))
        task = next(iter(report["tasks"].values()))
        values = dict(task["history"])
        raw = max(values.values()) - values[report["final"]["step"]]
        answers.append(report["diagnosis"]["something_to_hold"])
        figures.append([headrooms[0], first["headroom"], first["headroom_error"], raw])
    truth, estimate, error, raw = 100 * np.array(figures).T
    return {
        "something": 100 * answers.count("yes") / runs,
        "perhaps": 100 * answers.count("perhaps") / runs,
        "truth": truth.mean(),
        "estimate": estimate.mean(),
        "deviation": (estimate - truth).std(),
        "error": error.mean(),
        "uncorrected": raw.mean(),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    figures = "something | perhaps | truth | estimate | deviation | error | uncorrected"
    print(f"| curves | rows | evaluations | saved | {figures} |")
    print("| --- | ---: | ---: | --- |" + " ---: |" * (figures.count("|") + 1))
    for name, shapes in TASK_SETS.items():
        for rows, evaluations in ((200, 15), (400, 20), (800, 30)):
            for last in (False, True):
                found = measure(shapes, rows, evaluations, runs, last=last)
                cells = [name, rows, evaluations, "last" if last else "best average"]
                print(
                    "|", " | ".join([*map(str, cells), *(f"{value:.1f}" for value in found.values())]), "|", flush=True
                )


if __name__ == "__main__":
    main()
