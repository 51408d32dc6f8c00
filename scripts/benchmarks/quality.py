"""Compare methods on task sets: each at its own best learning rate, over several seeds, with test opened last.

    python scripts/benchmarks/quality.py run   scripts/configs/quality_cpu.yaml --jobs 2
    python scripts/benchmarks/quality.py score scripts/configs/quality_cpu.yaml
    python scripts/benchmarks/report_quality.py model_cards/quality_cpu --page docs/results.md

*Plan.* The plan is one YAML file: task sets (``bundles``: a configuration of ``hf-async-mtl train`` and its changes),
methods (further changes), choices (learning rates and their schedules; a task set may have its own) and seeds.
``data_seed`` fixes the samples and the validation rows for all runs; a seed determines the weights of the heads, the
order and the dropout.

*Fairness.* Every run of a task set takes the same number of steps (a single task the same number of epochs), and none
ends early. The choices of a method are made one after the other, with the first seed, by the validation average of its
best-average checkpoint: first the learning rate, with the first schedule, then the schedule at that rate. The other
seeds run with these choices. All runs are shown.

*Test rows.* ``run`` uses validation only. It also stores the predictions of each checkpoint on the test rows, without
their labels. ``score`` reads the labels, and only for a task set whose choices have all been written down.

*Checkpoints.* ``best_average``, the evaluation with the best validation average, is the primary result. ``last`` is the
end of the budget. ``oracle`` takes each task at its own best evaluation, which is not a single checkpoint. With
``controls``, a method also has ``average_of_bests`` (the mean of the weights of the tasks' best evaluations),
``ema_last`` and ``ema_best_average`` (an exponential moving average of the weights), because a gain may be an effect of
smoothing.

*Resuming.* A cell (task set, method, choice, seed) is one process and one small JSON file in ``--cells``, with its
predictions on test (``.npz``) until they are scored. Existing cells are not run again, and a killed run loses only the
cells that were in progress. Logs and scratch files are in ``--work``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_async_mtl import AsyncMTLTrainer, MultiTaskModel, TaskConfig
from hf_async_mtl.cli.config_file import RunConfig, load_config
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.tokenization import encode, unit_counts
from hf_async_mtl.inference.logits import IndexBatches, iterate_logits, split_by_example
from hf_async_mtl.metrics import compute
from hf_async_mtl.run import load_tasks, load_tokenizer, prepare_run
from hf_async_mtl.significance import bootstrap_values
from hf_async_mtl.tasks.registry import TASK_TYPES
from hf_async_mtl.utils import atomic_path, write_atomic

RESAMPLES = 500
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Cell:
    """One run."""

    bundle: str
    method: str
    choice: str
    seed: int

    def file(self, folder: Path, ending: str) -> Path:
        return folder / self.bundle / self.method / f"{self.choice}-seed{self.seed}.{ending}"


@dataclass(frozen=True)
class Plan:
    """The YAML file; see the top of this script, and ``scripts/configs/quality_cpu.yaml``."""

    name: str
    folder: Path
    layers: int | None
    data_seed: int
    seeds: list[int]
    bundles: dict[str, dict[str, Any]]
    choices: dict[str, dict[str, dict[str, Any]]]
    methods: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> Plan:
        return cls(name=path.stem, folder=path.parent, **yaml.safe_load(path.read_text(encoding="utf-8")))

    def tasks(self, bundle: str) -> list[str]:
        """Return the names of the tasks of a task set, from its configuration."""
        text = (self.folder / self.bundles[bundle]["config"]).read_text(encoding="utf-8")
        return list(yaml.safe_load(text)["tasks"])

    def rows(self, bundle: str) -> list[str]:
        """Return the methods of a task set; a single-task method has one row per task."""
        names = []
        for name, method in self.methods.items():
            if bundle in method.get("bundles", self.bundles):
                names += [f"{name}-{task}" for task in self.tasks(bundle)] if method.get("single_task") else [name]
        return names

    def choices_of(self, bundle: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Return axis -> option -> settings: those of the task set, or those of the plan."""
        own: dict[str, dict[str, dict[str, Any]]] = self.bundles[bundle].get("choices", self.choices)
        return own

    def method(self, row: str) -> tuple[dict[str, Any], str | None]:
        """Return the method of a row, and its task if it has a single one."""
        if row in self.methods:
            return self.methods[row], None
        name, _, task = row.rpartition("-")
        return self.methods[name], task

    def settings(self, cell: Cell) -> list[str]:
        """Return the changes of a cell to the configuration of its task set, as arguments of ``--set``."""
        changes = {**self.bundles[cell.bundle].get("set", {}), **self.method(cell.method)[0].get("set", {})}
        for options, name in zip(self.choices_of(cell.bundle).values(), cell.choice.split("-"), strict=True):
            changes.update(options[name])
        changes |= {"seed": cell.seed, "data_seed": self.data_seed}
        return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def options_to_try(choices: Mapping[str, Mapping[str, Any]], averages: Mapping[str, float]) -> tuple[list[str], str]:
    """Return the choices that a method has to try with its first seed, and the best one that it has tried.

    One axis after the other, so that two axes of two options cost three runs and not four. Ties go to the earlier
    option.

    Args:
        choices: Axis -> option -> settings.
        averages: Choice (``option-option``) -> validation average, of those that were run.

    Examples:
        >>> axes = {"rate": {"low": {}, "high": {}}, "schedule": {"linear": {}, "constant": {}}}
        >>> options_to_try(axes, {})
        (['low-linear', 'high-linear'], '')
        >>> options_to_try(axes, {"low-linear": 0.5, "high-linear": 0.6})
        (['high-constant'], 'high-linear')
        >>> options_to_try(axes, {"low-linear": 0.5, "high-linear": 0.6, "high-constant": 0.6})
        ([], 'high-linear')
    """
    best = [next(iter(options)) for options in choices.values()]
    for axis, options in enumerate(choices.values()):
        tries = ["-".join([*best[:axis], option, *best[axis + 1 :]]) for option in options]
        missing = [choice for choice in tries if choice not in averages]
        if missing:
            known = [choice for choice in tries if choice in averages]
            return missing, max(known, key=averages.__getitem__) if axis and known else ""
        best = max(tries, key=averages.__getitem__).split("-")
    return [], "-".join(best)


def cells_to_run(plan: Plan, done: Mapping[Cell, float]) -> list[Cell]:
    """Return the cells that can be run now, by task set; cells that others depend on come first.

    Args:
        plan: The plan.
        done: Cell -> validation average.
    """
    ready = []
    for bundle in plan.bundles:
        repeats = []
        for row in plan.rows(bundle):
            tries, settled = options_to_try(plan.choices_of(bundle), trials(plan, bundle, row, done))
            ready += [Cell(bundle, row, choice, plan.seeds[0]) for choice in tries]
            if not tries:
                repeats += [Cell(bundle, row, settled, seed) for seed in plan.seeds[1:]]
        ready += repeats
    return [cell for cell in ready if cell not in done]


def trials(plan: Plan, bundle: str, row: str, done: Mapping[Cell, float]) -> dict[str, float]:
    """Return choice -> validation average of the runs of a row with the first seed."""
    return {
        cell.choice: average
        for cell, average in done.items()
        if (cell.bundle, cell.method, cell.seed) == (bundle, row, plan.seeds[0])
    }


def chosen(plan: Plan, bundle: str, done: Mapping[Cell, float]) -> dict[str, str]:
    """Return row -> choice, for the rows with a settled choice."""
    settled = {}
    for row in plan.rows(bundle):
        tries, choice = options_to_try(plan.choices_of(bundle), trials(plan, bundle, row, done))
        if not tries:
            settled[row] = choice
    return settled


# -- one cell ---------------------------------------------------------------------------------------------------------


def average_weights(states: Sequence[Weights]) -> Weights:
    """Return the mean of each tensor; integers are those of the first."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }


class MovingAverage(TrainerCallback):
    """Keep an exponential moving average of the weights, with one update per optimizer step."""

    def __init__(self, model: MultiTaskModel, decay: float) -> None:
        self.decay = decay
        self.seconds = 0.0
        self.weights = copy_of(model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        begin = time.monotonic()
        for name, tensor in kwargs["model"].state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor.detach(), 1 - self.decay)
        self.seconds += time.monotonic() - begin


def copy_of(model: torch.nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class KeepingTrainer(AsyncMTLTrainer):
    """Keep the weights of each task's best evaluation and of the best average in memory."""

    moving_average: MovingAverage | None = None

    def keep_from_here(self) -> None:
        self.best: dict[str, Weights] = {}
        self.best_average: tuple[float, int, Weights] = (float("-inf"), 0, {})
        self.best_moving_average: tuple[float, int, Weights] = (float("-inf"), 0, {})

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        if self.is_in_train and eval_dataset is None:
            self.keep(metrics, copy_of(self.model))
        return metrics

    def keep(self, metrics: Mapping[str, float], measured: Weights) -> None:
        report = self.schedule.report()
        for name, task in report["tasks"].items():
            if task["best_step"] == report["step"]:
                self.best[name] = measured
        # A correlation with a constant is not defined; such an evaluation is the best only while there is no other.
        average, step = float(np.nan_to_num(metrics["eval_average"], nan=-1e9)), self.state.global_step
        if average > self.best_average[0]:
            self.best_average = (average, step, measured)
        if self.moving_average is not None:
            begin = time.monotonic()
            average = float(np.nan_to_num(np.mean([*self.values_at(self.moving_average.weights).values()]), nan=-1e9))
            if average > self.best_moving_average[0]:
                weights = {name: tensor.clone() for name, tensor in self.moving_average.weights.items()}
                self.best_moving_average = (average, step, weights)
            self.moving_average.seconds += time.monotonic() - begin

    def values_at(self, weights: Weights) -> dict[str, float]:
        """Return the monitored validation metric of each task with other weights."""
        present = copy_of(self.model)
        self.model.load_state_dict(weights)
        sets: Mapping[str, TaskDataset] = self.eval_dataset
        values = {name: value_of(sets[name], self.answers(sets[name])) for name in self.tasks}
        self.model.load_state_dict(present)
        return values

    def answers(self, rows: TaskDataset) -> list[Any]:
        """Return the predictions on some rows, without their labels."""

        def forward(batch: dict[str, Any]) -> dict[str, Tensor]:
            with self.compute_loss_context_manager():
                return self.model(**batch).logits

        self.model.eval()
        units = unit_counts(rows.task, rows.rows) if self.model.heads[rows.name].unit == "token" else None
        batches = IndexBatches(len(rows), self.args.eval_batch_size)
        found = dict(
            example
            for ids, logits in iterate_logits(forward, rows, self.data_collator, batches, self.args.device)
            for example in split_by_example(ids, logits[rows.name], units)
        )
        logits: Any = [found[index] for index in range(len(rows))]
        return TASK_TYPES[rows.task.type].metric_predictions(rows.task, logits, rows.rows)


def value_of(rows: TaskDataset, answers: Sequence[Any]) -> float:
    """Return the monitored metric of some predictions."""
    task = rows.task
    assert task.metrics is not None
    metric = task.metrics[0]
    references = TASK_TYPES[task.type].references(task, rows.rows)
    return compute([metric], task.type, answers, references, task.label_names)[metric]


def to_array(task: TaskConfig, answers: Sequence[Any]) -> np.ndarray:
    """Return predictions as a flat array; see `from_array`."""
    if task.type == "regression":
        return np.asarray(answers, dtype=np.float32)
    if task.type == "token_classification":
        assert task.label_names is not None
        place = {label: index for index, label in enumerate(task.label_names)}
        return np.asarray([place[label] for words in answers for label in words], dtype=np.int16)
    return np.asarray(answers, dtype=np.int16)


def from_array(task: TaskConfig, array: np.ndarray, true: Sequence[Any]) -> list[Any]:
    """Return predictions as metrics expect them; the references give the lengths of lists."""
    if task.type != "token_classification":
        return array.tolist()
    assert task.label_names is not None
    names = iter([task.label_names[index] for index in array.tolist()])
    return [list(itertools.islice(names, len(words))) for words in true]


def configuration(plan: Plan, cell: Cell) -> RunConfig:
    """Return a cell's configuration."""
    config = load_config(plan.folder / plan.bundles[cell.bundle]["config"], plan.settings(cell))
    task = plan.method(cell.method)[1]
    if task is not None:
        config.tasks, config.sources = {task: config.tasks[task]}, {task: config.sources[task]}
    return config


def run_cell(plan: Plan, cell: Cell, cells: Path, work: Path) -> None:
    """Train, evaluate on validation, predict on test, and write the cell."""
    begin = time.monotonic()
    method = plan.method(cell.method)[0]
    settings = {"save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
    run = prepare_run(configuration(plan, cell), cell.file(work, "run"), **settings)
    tasks, model, arguments = run.tasks, run.model, run.args
    trainer = KeepingTrainer(
        model=model,
        args=arguments,
        processing_class=run.tokenizer,
        train_dataset=run.train_dataset,
        eval_dataset=run.eval_dataset,
    )
    trainer.keep_from_here()
    if method.get("controls"):
        trainer.moving_average = MovingAverage(model, decay=0.99)
        trainer.add_callback(trainer.moving_average)
    result = trainer.train()
    report = trainer.schedule.report()
    of_controls = 0.0 if trainer.moving_average is None else trainer.moving_average.seconds

    history = {name: dict(task["history"]) for name, task in report["tasks"].items()}
    best_step = trainer.best_average[1]
    present = copy_of(model)
    kept: dict[str, dict[str, Weights]] = {
        "last": dict.fromkeys(tasks, present),
        "best_average": dict.fromkeys(tasks, trainer.best_average[2]),
        "oracle": {name: trainer.best.get(name, present) for name in tasks},
    }
    validation = {
        "last": {
            name: history[name].get(report["final"]["step"], report["final"]["tasks"][name]["value"]) for name in tasks
        },
        "best_average": {name: history[name][best_step] for name in tasks},
        "oracle": {name: task["best"] for name, task in report["tasks"].items()},
    }
    steps: dict[str, Any] = {
        "last": report["final"]["step"],
        "best_average": best_step,
        "oracle": {name: task["best_step"] for name, task in report["tasks"].items()},
    }
    if trainer.moving_average is not None:
        for kind, weights, step in (
            ("average_of_bests", average_weights(list(trainer.best.values())), report["final"]["step"]),
            ("ema_last", trainer.moving_average.weights, report["final"]["step"]),
            ("ema_best_average", trainer.best_moving_average[2], trainer.best_moving_average[1]),
        ):
            kept[kind] = dict.fromkeys(tasks, weights)
            validation[kind], steps[kind] = trainer.values_at(weights), step

    answers = {}
    test = trainer.task_sets.encode(run.test_dataset)
    for kind, states in kept.items():
        for name in tasks:
            model.load_state_dict(states[name])
            answers[f"{kind}.{name}"] = to_array(tasks[name], trainer.answers(test[name]))
    file = cell.file(cells, "npz")
    save: Any = np.savez_compressed
    with atomic_path(file) as partial, partial.open("wb") as opened:  # an open file, or ".npz" would be appended
        save(opened, **answers)
    shutil.rmtree(arguments.output_dir, ignore_errors=True)

    written = {
        "version": 1,
        "bundle": cell.bundle,
        "method": cell.method,
        "choice": cell.choice,
        "seed": cell.seed,
        "settings": plan.settings(cell),
        "metrics": {name: task.monitored for name, task in tasks.items()},
        "train_rows": {name: len(rows) for name, rows in run.train_dataset.items()},
        "validation": {kind: {name: defined(x) for name, x in values.items()} for kind, values in validation.items()},
        "averages": {kind: average_of(values) for kind, values in validation.items()},
        "steps": steps,
        "curves": {
            name: [[step, None if x is None else round(x, 4)] for step, x in task["history"]]
            for name, task in report["tasks"].items()
        },
        "events": report["events"],
        "seconds": {
            "training": round(result.metrics["train_runtime"] - of_controls, 1),
            "all": round(time.monotonic() - begin, 1),
        },
        "environment": environment(),
        "test": None,
    }
    write_atomic(cell.file(cells, "json"), json.dumps(written, indent=1, allow_nan=False) + "\n")


def defined(value: float | None) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def average_of(values: Mapping[str, float | None]) -> float | None:
    """Return the mean over the tasks; None if a task has no value."""
    known = [x for x in map(defined, values.values()) if x is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def environment() -> dict[str, Any]:
    """Return what the measured seconds depend on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


# -- all cells --------------------------------------------------------------------------------------------------------


def read_cells(folder: Path) -> dict[Cell, dict[str, Any]]:
    """Return all cells that were run."""
    found = {}
    for path in sorted(folder.glob("*/*/*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        found[Cell(cell["bundle"], cell["method"], cell["choice"], cell["seed"])] = cell
    return found


def validation_averages(cells: Path) -> dict[Cell, float]:
    """Return the value that choices are made on; a run without a defined average is the worst."""
    averages = {cell: content["averages"]["best_average"] for cell, content in read_cells(cells).items()}
    return {cell: float("-inf") if average is None else average for cell, average in averages.items()}


def prepare_encoder(plan: Plan, work: Path) -> str:
    """Return the encoder, with its first layers only if the plan asks for it."""
    source = os.environ["ENCODER"]
    if plan.layers is None:
        return source
    folder = work / f"encoder-{plan.layers}"
    if not (folder / "tokenizer.json").is_file():
        AutoModel.from_pretrained(source, num_hidden_layers=plan.layers).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def run(plan: Plan, path: Path, cells: Path, work: Path, jobs: int, minutes: float) -> None:
    """Run the missing cells, ``jobs`` at once, each in its own process."""
    variables = {**os.environ, "ENCODER": prepare_encoder(plan, work)}
    end = time.monotonic() + 60 * minutes
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    failed: list[Cell] = []
    while True:
        for cell, process in list(running.items()):
            if process.poll() is not None:
                del running[cell]
                status = "done" if process.returncode == 0 else f"FAILED, see {cell.file(work, 'log')}"
                failed += [cell] if process.returncode else []
                print(
                    f"{time.strftime('%H:%M:%S')} {cell.bundle} {cell.method} {cell.choice} {cell.seed}: {status}",
                    flush=True,
                )
        ready = [c for c in cells_to_run(plan, validation_averages(cells)) if c not in running and c not in failed]
        if time.monotonic() < end:
            for cell in ready[: jobs - len(running)]:
                log = cell.file(work, "log")
                log.parent.mkdir(parents=True, exist_ok=True)
                command = [
                    sys.executable,
                    __file__,
                    "cell",
                    str(path),
                    "--cells",
                    str(cells),
                    "--work",
                    str(work),
                    *(f"--{key}={getattr(cell, key)}" for key in ("bundle", "method", "choice", "seed")),
                ]
                with log.open("wb") as out:
                    running[cell] = subprocess.Popen(command, env=variables, stdout=out, stderr=subprocess.STDOUT)
        if not running:
            break
        time.sleep(5)
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {', '.join(map(str, failed))}")


def score(plan: Plan, cells: Path) -> None:
    """Read the test labels, and write the metrics and their bootstrap into the chosen cells."""
    done = read_cells(cells)
    averages = validation_averages(cells)
    for bundle in plan.bundles:
        choices = chosen(plan, bundle, averages)
        missing = [row for row in plan.rows(bundle) if row not in choices]
        if missing:
            print(f"{bundle}: not scored; no choice has been made yet for {', '.join(missing)}")
            continue
        write_atomic(cells / bundle / "choices.json", json.dumps(choices, indent=1) + "\n")
        for cell, content in done.items():
            if cell.bundle == bundle and choices.get(cell.method) == cell.choice and content["test"] is None:
                content["test"], content["replicates"] = score_cell(plan, cell, cells)
                write_atomic(cell.file(cells, "json"), json.dumps(content, indent=1, allow_nan=False) + "\n")
                cell.file(cells, "npz").unlink()


def score_cell(plan: Plan, cell: Cell, cells: Path) -> tuple[dict[str, Any], dict[str, list[float | None]]]:
    """Return kind -> task -> metric on test, and kind -> mean over the tasks in each resample of the test rows.

    A resample is the same rows for every method and seed, so that two methods can be compared in pairs.
    """
    config = configuration(plan, cell)
    splits, tasks = load_tasks(config)
    tokenizer = load_tokenizer(config.encoder, tasks)
    values: dict[str, dict[str, float | None]] = {}
    means: dict[str, list[np.ndarray]] = {}
    with np.load(cell.file(cells, "npz"), allow_pickle=False) as answers:
        for key in answers.files:
            kind, name = key.split(".")
            task = tasks[name]
            length = task.max_length or (config.model["max_length"] or 128)
            rows = encode(splits[name]["test"], name, task, tokenizer, length, split="test")
            true = TASK_TYPES[task.type].references(task, rows)
            given = from_array(task, answers[key], true)
            metric = task.monitored
            values.setdefault(kind, {})[name] = defined(
                compute([metric], task.type, given, true, task.label_names)[metric]
            )
            # Tasks with equally many rows are not to share their draws.
            place = plan.tasks(cell.bundle).index(name)
            resampled = bootstrap_values(metric, task.type, given, true, task.label_names, RESAMPLES, seed=place)
            means.setdefault(kind, []).append(np.asarray(resampled))
    drawn = {kind: np.mean(of_tasks, axis=0).round(5).tolist() for kind, of_tasks in means.items()}
    return values, {kind: list(map(defined, numbers)) for kind, numbers in drawn.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "cell", "score"])
    parser.add_argument("plan", type=Path, metavar="PLAN.yaml")
    parser.add_argument("--cells", type=Path, help="default: model_cards/<name of the plan>")
    parser.add_argument("--work", type=Path, help="default: runs/<name of the plan>")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, each with OMP_NUM_THREADS threads")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no cell after so long")
    for key, kind in (("bundle", str), ("method", str), ("choice", str), ("seed", int)):
        parser.add_argument(f"--{key}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    plan = Plan.load(args.plan)
    cells, work = args.cells or Path("model_cards", plan.name), args.work or Path("runs", plan.name)
    if args.command == "run":
        run(plan, args.plan, cells, work, args.jobs, args.minutes)
    elif args.command == "cell":
        run_cell(plan, Cell(args.bundle, args.method, args.choice, args.seed), cells, work)
    else:
        os.environ["ENCODER"] = prepare_encoder(plan, work)
        score(plan, cells)


if __name__ == "__main__":
    main()
