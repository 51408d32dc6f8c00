"""Compare criteria of convergence on validation curves whose truth is known.

    python scripts/benchmarks/criteria.py simulate
    python scripts/benchmarks/criteria.py replay scripts/configs/quality.yaml noisy5

``simulate`` draws curves. Each validation row is right or wrong at each evaluation, and most rows stay as they are from
one evaluation to the next, as with a real model: two evaluations are far more alike than two validation sets. On top,
the true accuracy itself varies a little, as the weights of a training do.

``replay`` takes the validation predictions of plain training, which ``quality.py`` keeps, and asks each criterion what
it would have done. The same rows without label noise are the truth.

What is measured, for each shape of curve:

* *switched*: share of the curves on which the task is declared converged. For a curve that still rises it is the rate
  of false alarms.
* *delay*: evaluations from the true peak to the switch, median.
* *teacher*: true score at the teacher's step below the best true score, in points.
* *gain*: true score at the end, if a switched task stays at its teacher's score, over plain training's, in points.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pages
from comparison_trainers import from_array
from quality import Cell, Plan, configuration, prepare_encoders, read_cells, references, validation_averages
from scipy.stats import norm

from hf_async_mtl.convergence.config import ConvergenceConfig
from hf_async_mtl.convergence.evaluation import Evaluation
from hf_async_mtl.convergence.task import TaskSpec, TaskTracker
from hf_async_mtl.metrics import compute
from hf_async_mtl.significance import bootstrap_values
from hf_async_mtl.tasks.registry import TASK_TYPES
from hf_async_mtl.utils import write_atomic

EVALUATIONS = 20
RESAMPLES = 200
ROW_CORRELATION = 0.8  # of a row's difficulty between two evaluations
Decision = tuple[int | None, int]  # evaluation of the switch, if there is one, and of the teacher


@dataclass(frozen=True)
class Curve:
    """The evaluations of one task: monitored values ``[E]``, their bootstrap ``[E, R]`` and the truth ``[E]``."""

    values: np.ndarray
    replicates: np.ndarray
    truth: np.ndarray


Criterion = Callable[[Curve], Decision]


def built_in(**config: Any) -> Criterion:
    """Return a criterion of the package."""
    settings = ConvergenceConfig(**config, min_epochs=0)

    def decide(curve: Curve) -> Decision:
        task = TaskTracker("task", TaskSpec("classification", "accuracy", settings))
        # An evaluation at step 0 would be one before the training.
        for step, value in enumerate(curve.values, start=1):
            reference = task.noise_reference
            error = None if reference is None else spread(curve.replicates[step - 1] - curve.replicates[reference - 1])
            if task.observe(Evaluation(step=step, score=float(value), standard_error=error)):
                return step - 1, (task.state.teacher_step or 1) - 1
        return None, (task.state.teacher_step or 1) - 1

    return decide


def significant_gain(z: float, patience: int) -> Criterion:
    """Return a plateau where a gain must exceed ``z`` standard errors. It is not in the package."""

    def decide(curve: Curve) -> Decision:
        best, without = 0, 0
        for step in range(1, len(curve.values)):
            margin = z * spread(curve.replicates[step] - curve.replicates[best])
            if curve.values[step] > curve.values[best] + margin:
                best, without = step, 0
            else:
                without += 1
            if without >= patience:
                return step, int(np.argmax(curve.values[: step + 1]))
        return None, int(np.argmax(curve.values))

    return decide


def mean_decline(window: int, z: float, patience: int) -> Criterion:
    """Return `Decline` of the mean of the last evaluations, against the best such mean. It is not in the package."""

    def decide(curve: Curve) -> Decision:
        means = moving_mean(curve.values, window)
        replicates = moving_mean(curve.replicates, window)
        best, falls = window - 1, 0
        for step in range(window, len(means)):
            if means[step] > means[best]:
                best, falls = step, 0
                continue
            fallen = means[best] - means[step] > z * spread(replicates[step] - replicates[best])
            falls = falls + 1 if fallen else 0
            if falls >= patience:
                return step, int(np.argmax(curve.values[: step + 1]))
        return None, int(np.argmax(curve.values))

    return decide


def spread(differences: np.ndarray) -> float:
    """Return the standard error that the bootstrap gives for a difference."""
    known = differences[np.isfinite(differences)]
    return float(known.std(ddof=1)) if len(known) > 1 else 0.0


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the last ``window`` entries; of those there are at the start.

    >>> moving_mean(np.array([0.0, 2.0, 4.0, 6.0]), 2).tolist()
    [0.0, 1.0, 3.0, 5.0]
    """
    return np.array([values[max(0, last - window + 1) : last + 1].mean(0) for last in range(len(values))])


CRITERIA_TRIED: dict[str, Criterion] = {
    "`plateau`, patience 3": built_in(criterion="plateau", patience=3),
    "significant gain, z 1, patience 3": significant_gain(1.0, 3),
    **{
        f"`decline`, z {z:g}, patience {patience}": built_in(criterion="decline", patience=patience, z=z)
        for z, patience in ((0.0, 3), (1.0, 2), (1.0, 3), (1.0, 4), (1.5, 3), (2.0, 2), (2.0, 3))
    },
    **{
        f"`decline` of means of 3, z {z:g}, patience {patience}": mean_decline(3, z, patience)
        for z, patience in ((1.0, 2), (1.5, 2), (1.5, 3), (2.0, 1), (2.0, 2))
    },
}


# -- simulated curves -------------------------------------------------------------------------------------------------


def shapes() -> dict[str, np.ndarray]:
    """Return name -> true accuracy at each evaluation."""
    time = np.arange(1, EVALUATIONS + 1)
    fast = 0.6 + 0.2 * (1 - np.exp(-time / 1.5))
    peak = 6
    falling = np.maximum(0, time - peak) / (EVALUATIONS - peak)
    late = 0.55 + 0.2 * (1 - np.exp(-np.maximum(0, time - peak) / 6))
    return {
        "rises": 0.6 + 0.2 * (1 - np.exp(-time / 6)),
        "rises late": late,
        "flat": fast,
        **{f"falls by {points}": fast - points / 100 * falling for points in (2, 5, 10)},
        # The first evaluation is that of a model that gives nearly all rows the same answer, where this pays.
        "one answer at first": np.concatenate([[0.75], 0.6 + 0.2 * (1 - np.exp(-time[:-1] / 6))]),
        "best at first": 0.75 - 0.1 * (time - 1) / (EVALUATIONS - 1),
    }


def draw_curve(truth: np.ndarray, rows: int, jitter: float, rng: np.random.Generator) -> Curve:
    """Return the evaluations of one run on ``rows`` validation rows; ``jitter`` is the spread of the true accuracy."""
    truth = truth + jitter * rng.standard_normal(len(truth))
    difficulty = np.sqrt(ROW_CORRELATION) * rng.standard_normal(rows)
    changes = np.sqrt(1 - ROW_CORRELATION) * rng.standard_normal((len(truth), rows))
    right = (difficulty + changes < norm.ppf(truth)[:, None]).astype(np.float64)
    drawn = rng.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)
    return Curve(right.mean(1), right @ drawn.T / rows, truth)


def simulate(
    rows: int, runs: int, jitter: float, criteria: Mapping[str, Criterion] = CRITERIA_TRIED, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Return criterion -> shape -> what is measured."""
    rng = np.random.default_rng(seed)
    curves = {name: [draw_curve(truth, rows, jitter, rng) for _ in range(runs)] for name, truth in shapes().items()}
    return {
        name: {
            shape: measure(curves[shape], [decide(curve) for curve in curves[shape]], int(truth.argmax()))
            for shape, truth in shapes().items()
        }
        for name, decide in criteria.items()
    }


def measure(curves: Sequence[Curve], decisions: Sequence[Decision], peak: int | None) -> dict[str, float]:
    """Return ``switched`` in percent, ``delay`` in evaluations, ``teacher`` and ``gain`` in points.

    ``peak`` is the evaluation of the true peak; None: that of each curve's own best true score.
    """
    pairs = [(curve, step, teacher) for curve, (step, teacher) in zip(curves, decisions, strict=True)]
    switched = [(curve, step, teacher) for curve, step, teacher in pairs if step is not None]
    gains = [0.0 if step is None else curve.truth[teacher] - curve.truth[-1] for curve, step, teacher in pairs]
    found = {"switched": 100 * len(switched) / len(pairs), "gain": 100 * float(np.mean(gains))}
    if switched:
        found["delay"] = float(
            np.median([step - (int(curve.truth.argmax()) if peak is None else peak) for curve, step, _ in switched])
        )
        found["teacher"] = 100 * float(np.mean([curve.truth[t] - curve.truth.max() for curve, _, t in switched]))
    return found


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return a Markdown table: per shape, the share that is switched, the delay, the teacher and the gain."""
    rows = []
    for criterion, of_shapes in results.items():
        row = [criterion]
        for found in of_shapes.values():
            rest = f", {found['delay']:+.0f}, {found['teacher']:.1f}, {found['gain']:+.2f}" if "delay" in found else ""
            row.append(f"{found['switched']:.0f} %{rest}")
        rows.append(row)
    return pages.table(["criterion", *next(iter(results.values()))], rows) + "\n"


# -- recorded curves --------------------------------------------------------------------------------------------------


def recorded_curves(plan: Plan, cell: Cell, content: Mapping[str, Any], work: Path) -> dict[str, Curve]:
    """Return task -> its curve, from the validation predictions of a run of plain training.

    Args:
        plan: The plan of the comparison.
        cell: The run.
        content: The content of its cell.
        work: The folder of the predictions, and of the rows with and without label noise.
    """
    clean = replace(plan, task_sets={cell.task_set: {**plan.task_sets[cell.task_set], "noise": 0.0}})
    monitored, true = (references(configuration(x, cell, work), "validation") for x in (plan, clean))
    found = {}
    with np.load(cell.file(work, "validation.npz"), allow_pickle=False) as predictions:
        for name, predicted in predictions.items():
            metric, (task, _) = content["metrics"][name], monitored[name]
            # The trainer keeps its predictions in the order that the metrics read.
            labels, truth = (TASK_TYPES[task.type].in_metric_order(task, x[name][1]) for x in (monitored, true))
            given = [from_array(task, row, labels) for row in predicted]
            values, replicates, real = (
                [compute([metric], task.type, row, labels, task.label_names)[metric] for row in given],
                [bootstrap_values(metric, task.type, row, labels, task.label_names, RESAMPLES, 0) for row in given],
                [compute([metric], task.type, row, truth, task.label_names)[metric] for row in given],
            )
            found[name] = Curve(np.array(values), np.array(replicates), np.array(real))
    return found


def replay(plan: Plan, task_set: str, cells: Path, work: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return criterion -> task -> what is measured, over all recorded runs of plain training at the chosen rate.

    Args:
        plan: The plan.
        task_set: The task set.
        cells: The folder of the cells.
        work: The folder of the predictions and rows.
    """
    done = read_cells(cells)
    choice = plan.choice(task_set, validation_averages(cells))
    wanted = [
        cell
        for cell in done
        if (cell.task_set, cell.method) == (task_set, plan.choose_with)
        and cell.choice == choice
        and cell.file(work, "validation.npz").is_file()
    ]
    curves = [recorded_curves(plan, cell, done[cell], work) for cell in wanted]
    print(f"{len(curves)} runs")
    return {
        name: {
            task: measure([x[task] for x in curves], [decide(x[task]) for x in curves], None)
            for task in (curves[0] if curves else {})
        }
        for name, decide in CRITERIA_TRIED.items()
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("simulate")
    command.add_argument("--runs", type=int, default=300, help="curves per shape")
    command.add_argument("--rows", type=int, nargs="+", default=[150, 400], help="validation rows")
    command.add_argument("--jitter", type=float, default=0.005, help="spread of the true score between evaluations")
    command = commands.add_parser("replay")
    command.add_argument("plan", type=Path, metavar="PLAN.yaml")
    command.add_argument("task_set")
    command.add_argument("--cells", type=Path, help="default: model_cards/<name of the plan>")
    command.add_argument("--work", type=Path, help="default: runs/<name of the plan>")
    for command in commands.choices.values():
        command.add_argument("--output", type=Path, help="Markdown file, default: standard output")
    args = parser.parse_args()
    if args.command == "simulate":
        text = f"{args.runs} curves per shape, jitter {args.jitter:g}. Per cell: switched, delay, teacher, gain.\n"
        for rows in args.rows:
            text += f"\n{rows} validation rows:\n\n{table(simulate(rows, args.runs, args.jitter))}"
    else:
        plan = Plan.load(args.plan)
        cells, work = args.cells or Path("model_cards", plan.name), args.work or Path("runs", plan.name)
        prepare_encoders(plan, work)
        text = table(replay(plan, args.task_set, cells, work))
    if args.output is None:
        print(text)
    else:
        write_atomic(args.output, text)


if __name__ == "__main__":
    main()
