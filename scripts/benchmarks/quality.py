"""Compare methods on task sets: one schedule for all methods, paired over seeds, with test opened last.

    export DATA=/data ENCODER=/models/all-MiniLM-L6-v2 OMP_NUM_THREADS=1
    python scripts/benchmarks/quality.py run   scripts/configs/quality.yaml --jobs 2
    python scripts/benchmarks/quality.py score scripts/configs/quality.yaml
    python scripts/benchmarks/report_quality.py scripts/configs/quality.yaml \
        --page docs/results.md docs/methods.md README.md

``model_cards/quality/PROTOCOL.md`` says what is compared, how often and why. It was written before any test label was
read.

*Plan.* The plan is one YAML file: task sets (a configuration of ``hf-async-mtl train``, and the rows that
``build_task_set.py`` draws for it), methods (changes of that configuration) and choices (learning rates). A seed
determines the rows, the split, the label noise, the weights of the heads, the order and the dropout: it is a whole
replication, and methods are compared in pairs with the same seed.

*Fairness.* All methods of a task set use the same steps, learning rate and schedule. The rate is chosen by plain
training (``choose_with``) with the first seed, by the validation average of its best-average checkpoint. All runs are
shown.

*Test rows.* ``run`` uses validation only. It also stores the predictions of each checkpoint on the test rows, without
their labels. ``score`` reads the labels of a task set, once all its cells have been run.

*Checkpoints.* ``best_average``, the evaluation with the best validation average, is the one that the software saves,
and the primary result. ``last`` is the end of the budget. A method with ``controls`` has more: ``oracle`` takes each
task at its own best evaluation, which is not a single checkpoint; ``average_of_bests`` is the mean of the weights of
these evaluations; ``ema_last`` and ``ema_best_average`` are an exponential moving average of the weights.

*Diagnosis.* The cell of plain training with ``controls`` also has the answer to whether its tasks peak apart, for the
checkpoint that the software saves.

*Resuming.* A cell (task set, method, choice, seed) is one process and one small JSON file in ``--cells``, with its
predictions on test (``.npz``) until they are scored. Existing cells are not run again, and a killed run loses only the
cells that were in progress. Rows, logs and scratch files are in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from build_task_set import build
from comparison_trainers import (
    TRIALS,
    KeepingTrainer,
    MovingAverage,
    Weights,
    average_weights,
    copy_of,
    from_array,
    score_of,
    to_array,
)
from transformers import AutoModel, AutoTokenizer

from hf_async_mtl import TaskConfig
from hf_async_mtl.cli.config_file import RunConfig, load_config
from hf_async_mtl.convergence.config import ConvergenceSettings
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.diagnosis import diagnose
from hf_async_mtl.run import load_tasks, load_tokenizer, prepare_run
from hf_async_mtl.tasks.registry import TASK_TYPES
from hf_async_mtl.utils import atomic_path, write_atomic


@dataclass(frozen=True)
class Cell:
    """One run."""

    task_set: str
    method: str
    choice: str
    seed: int

    def file(self, folder: Path, ending: str) -> Path:
        return folder / self.task_set / self.method / f"{self.choice}-seed{self.seed}.{ending}"


@dataclass(frozen=True)
class Plan:
    """The YAML file; see the top of this script, and ``scripts/configs/quality.yaml``.

    Args:
        name: The name of the file.
        folder: The folder of the file, to which the names of configurations are relative.
        layers: Number of the encoder's first layers; None: all. A task set with ``layers`` has its own.
        choose_with: The method that decides on the choice.
        choices: Choice -> changes of the configuration.
        task_sets: Name -> ``config``, ``rows`` (the task set that is built), ``noise``, ``seeds`` (their number, or a
            list), ``methods``, ``fewer_seeds``: method -> the seeds of a method that has not all of them,
            ``choice_of``: the task set whose choice is used, if it is another one, ``small``: its small tasks, and
            ``beside``: the task set with whose methods its own are compared, on validation: its test labels are never
            read.
        methods: Name -> ``set`` (changes of the configuration), ``controls``, ``single_task``, ``trial`` (a key of
            ``comparison_trainers.TRIALS``), ``commit`` (the last one that has its settings, which were removed: its
            missing cells are run there alone).
    """

    name: str
    folder: Path
    layers: int | None
    choose_with: str
    choices: dict[str, dict[str, Any]]
    task_sets: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> Plan:
        return cls(name=path.stem, folder=path.parent, **yaml.safe_load(path.read_text(encoding="utf-8")))

    def config(self, task_set: str) -> Path:
        """Return the configuration of a task set."""
        return self.folder / str(self.task_sets[task_set]["config"])

    def tasks(self, task_set: str) -> list[str]:
        """Return the names of the tasks of a task set, from its configuration."""
        return list(yaml.safe_load(self.config(task_set).read_text(encoding="utf-8"))["tasks"])

    def layers_of(self, task_set: str) -> int | None:
        """Return the number of the encoder's first layers that a task set uses; None: all."""
        layers: int | None = self.task_sets[task_set].get("layers", self.layers)
        return layers

    def encoder(self, task_set: str, work: Path) -> Path:
        """Return the folder of a task set's encoder; see `prepare_encoders`."""
        layers = self.layers_of(task_set)
        return work / ("encoder" if layers is None else f"encoder-{layers}")

    def rows(self, task_set: str) -> list[str]:
        """Return the methods of a task set; a single-task method has one row per task."""
        names = []
        for name in self.task_sets[task_set]["methods"]:
            one_each = self.methods[name].get("single_task")
            names += [f"{name}-{task}" for task in self.tasks(task_set)] if one_each else [name]
        return names

    def seeds(self, task_set: str) -> list[int]:
        """Return the seeds of a task set."""
        seeds = self.task_sets[task_set]["seeds"]
        return list(range(seeds)) if isinstance(seeds, int) else seeds

    def method_of(self, row: str) -> str:
        """Return the name of a row's method."""
        return row if row in self.methods else row.rpartition("-")[0]

    def method(self, row: str) -> tuple[dict[str, Any], str | None]:
        """Return the method of a row, and its task if it has a single one."""
        name = self.method_of(row)
        return self.methods[name], None if name == row else row.removeprefix(f"{name}-")

    def settings(self, cell: Cell) -> list[str]:
        """Return the changes of a cell to the configuration of its task set, as arguments of ``--set``."""
        method = self.method(cell.method)[0].get("set", {})
        changes = {**self.choices[cell.choice], **method, "seed": cell.seed, "data_seed": cell.seed}
        return [f"{key}={json.dumps(value)}" for key, value in changes.items()]

    def cells(self, task_set: str, choice: str) -> list[Cell]:
        """Return all cells of a task set, seed by seed, so that each seed is complete before the next."""
        fewer = self.task_sets[task_set].get("fewer_seeds", {})
        return [
            Cell(task_set, row, choice, seed)
            for seed in self.seeds(task_set)
            for row in self.rows(task_set)
            if seed in fewer.get(self.method_of(row), [seed])
        ]

    def trials(self, task_set: str) -> list[Cell]:
        """Return the cells that decide on the choice of a task set."""
        decided_by = self.task_sets[task_set].get("choice_of", task_set)
        return [Cell(decided_by, self.choose_with, choice, 0) for choice in self.choices]

    def choice(self, task_set: str, done: Mapping[Cell, float]) -> str | None:
        """Return the best choice of a task set; None until all have been tried. A tie goes to the first.

        A single choice needs no trial.

        Args:
            task_set: The task set.
            done: Cell -> validation average.
        """
        if len(self.choices) == 1:
            return next(iter(self.choices))
        trials = self.trials(task_set)
        return max(trials, key=done.__getitem__).choice if all(cell in done for cell in trials) else None

    def ready(self, done: Mapping[Cell, float]) -> list[Cell]:
        """Return the cells that can be run now, in order."""
        cells: list[Cell] = []
        for task_set in self.task_sets:
            choice = self.choice(task_set, done)
            cells += self.trials(task_set) if choice is None else self.cells(task_set, choice)
        waiting = [cell for cell in dict.fromkeys(cells) if cell not in done]
        return [cell for cell in waiting if "commit" not in self.method(cell.method)[0]]


# -- one cell ---------------------------------------------------------------------------------------------------------


def configuration(plan: Plan, cell: Cell, work: Path) -> RunConfig:
    """Return a cell's configuration; its rows are built if they are not there."""
    task_set = plan.task_sets[cell.task_set]
    folder = work / "rows" / f"{task_set['rows']}-noise{task_set['noise']}-seed{cell.seed}"
    build(task_set["rows"], Path(os.environ["DATA"]), folder, cell.seed, task_set["noise"])
    os.environ["TASK_SET"] = str(folder.absolute())
    os.environ["ENCODER"] = str(plan.encoder(cell.task_set, work).absolute())
    config = load_config(plan.config(cell.task_set), plan.settings(cell))
    task = plan.method(cell.method)[1]
    if task is not None:
        config.tasks, config.sources = {task: config.tasks[task]}, {task: config.sources[task]}
    return config


def run_cell(plan: Plan, cell: Cell, cells: Path, work: Path) -> None:
    """Train, evaluate on validation, predict on test, and write the cell."""
    begin = time.monotonic()
    method = plan.method(cell.method)[0]
    settings = {"save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
    run = prepare_run(configuration(plan, cell, work), cell.file(work, "run"), **settings)
    tasks, model, arguments = run.tasks, run.model, run.args
    trainer = TRIALS.get(method.get("trial", ""), KeepingTrainer)(
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
        kept["oracle"] = {name: trainer.best.get(name, present) for name in tasks}
        for kind, weights, step in (
            ("average_of_bests", average_weights(list(trainer.best.values())), report["final"]["step"]),
            ("ema_last", trainer.moving_average.weights, report["final"]["step"]),
            ("ema_best_average", trainer.best_moving_average[2], trainer.best_moving_average[1]),
        ):
            kept[kind] = dict.fromkeys(tasks, weights)
            validation[kind], steps[kind] = trainer.values_at(weights), step

    save: Any = np.savez_compressed
    predicted = {}
    test = trainer.task_sets.encode(run.test_dataset)
    for kind, states in kept.items():
        for name in tasks:
            model.load_state_dict(states[name])
            predicted[f"{kind}.{name}"] = to_array(tasks[name], trainer.predictions(test[name]))
    file = cell.file(cells, "npz")
    with atomic_path(file) as partial, partial.open("wb") as opened:  # an open file, or ".npz" would be appended
        save(opened, **predicted)
    if method.get("controls"):
        curves = {name: np.stack(arrays) for name, arrays in trainer.validation_predictions.items()}
        save(cell.file(work, "validation.npz"), **curves)  # for `criteria.py replay`
    shutil.rmtree(arguments.output_dir, ignore_errors=True)

    convergence = ConvergenceSettings.parse(arguments.convergence).default
    diagnosis = None
    if method.get("controls") and convergence.on_convergence == "continue":
        trainer.schedule.finish(best_step)
        diagnosis = rounded(diagnose(trainer.schedule.report(), trainer.controller._resamples))
    written = {
        "version": 2,
        "task_set": cell.task_set,
        "method": cell.method,
        "choice": cell.choice,
        "seed": cell.seed,
        "settings": plan.settings(cell),
        "convergence": asdict(convergence),
        "metrics": {name: task.monitored for name, task in tasks.items()},
        "train_rows": {name: len(rows) for name, rows in run.train_dataset.items()},
        "validation": {kind: {name: defined(x) for name, x in values.items()} for kind, values in validation.items()},
        "averages": {kind: average_of(values) for kind, values in validation.items()},
        "steps": steps,
        "curves": {
            name: [[step, None if x is None else round(x, 4)] for step, x in task["history"]]
            for name, task in report["tasks"].items()
        },
        "validation_losses": {name: np.round(x, 4).tolist() for name, x in trainer.validation_losses.items()},
        "events": report["events"],
        **({} if diagnosis is None else {"diagnosis": diagnosis}),
        "seconds": {
            "training": round(result.metrics["train_runtime"] - of_controls, 1),
            "all": round(time.monotonic() - begin, 1),
        },
        "environment": environment(),
        "test": None,
    }
    write_atomic(cell.file(cells, "json"), json.dumps(written, indent=1, allow_nan=False) + "\n")


def rounded(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    """Return a diagnosis whose numbers have four digits after the point."""
    tasks = {
        name: {key: round(value, 4) if isinstance(value, float) else value for key, value in task.items()}
        for name, task in diagnosis["tasks"].items()
    }
    return {**diagnosis, "tasks": tasks}


def defined(value: float | None) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def average_of(values: Mapping[str, float | None]) -> float | None:
    """Return the mean over the tasks; None if a task has no value."""
    known = [x for x in map(defined, values.values()) if x is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def commit() -> str:
    """Return the commit of this clone."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True).stdout.decode().strip()


def environment() -> dict[str, Any]:
    """Return the version of the code ($COMMIT where there is no clone), and what the measured seconds depend on."""
    return {
        "commit": os.environ.get("COMMIT") or commit(),
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
        found[Cell(cell["task_set"], cell["method"], cell["choice"], cell["seed"])] = cell
    return found


def validation_averages(cells: Path) -> dict[Cell, float]:
    """Return the value that choices are made on; a run without a defined average is the worst."""
    averages = {cell: content["averages"]["best_average"] for cell, content in read_cells(cells).items()}
    return {cell: float("-inf") if average is None else average for cell, average in averages.items()}


def prepare_encoders(plan: Plan, work: Path) -> None:
    """Write $ENCODER for each number of first layers that a task set uses.

    Raises:
        SystemExit: It has fewer layers.
    """
    for task_set in plan.task_sets:
        folder, layers = plan.encoder(task_set, work), plan.layers_of(task_set)
        if not (folder / "tokenizer.json").is_file():
            changes = {} if layers is None else {"num_hidden_layers": layers}
            model, found = AutoModel.from_pretrained(os.environ["ENCODER"], output_loading_info=True, **changes)
            if missing := sorted(name for name in found["missing_keys"] if ".layer." in name):
                needed = model.config.num_hidden_layers
                raise SystemExit(f"{task_set} needs {needed} layers; {os.environ['ENCODER']} lacks {missing[0]}.")
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(os.environ["ENCODER"]).save_pretrained(folder)


def run(
    plan: Plan, path: Path, cells: Path, work: Path, jobs: int, minutes: float, only: Collection[str] | None = None
) -> None:
    """Run the missing cells, ``jobs`` at once, each in its own process.

    Args:
        plan: The plan.
        path: Its file.
        cells: The folder of the cells.
        work: The folder of rows, logs and scratch files.
        jobs: Number of processes.
        minutes: No cell starts later.
        only: ``task_set/row`` of the cells that are run; None: all.
    """
    prepare_encoders(plan, work)
    end = time.monotonic() + 60 * minutes
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    failed: list[Cell] = []
    while True:
        for cell, process in list(running.items()):
            if process.poll() is not None:
                del running[cell]
                status = "done" if process.returncode == 0 else f"FAILED, see {cell.file(work, 'log')}"
                failed += [cell] if process.returncode else []
                print(time.strftime("%H:%M:%S"), *vars(cell).values(), status, flush=True)
        ready = [cell for cell in plan.ready(validation_averages(cells)) if cell not in running and cell not in failed]
        if only is not None:
            ready = [cell for cell in ready if f"{cell.task_set}/{cell.method}" in only]
        if time.monotonic() < end:
            for cell in ready[: jobs - len(running)]:
                log = cell.file(work, "log")
                log.parent.mkdir(parents=True, exist_ok=True)
                options = {"cells": cells, "work": work, **vars(cell)}
                command = [sys.executable, __file__, "cell", str(path), *(f"--{k}={v}" for k, v in options.items())]
                with log.open("wb") as out:
                    running[cell] = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        if not running:
            break
        time.sleep(5)
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {', '.join(map(str, failed))}")


def score(plan: Plan, cells: Path, work: Path) -> None:
    """Read the test labels of each task set whose cells are complete, and write the metrics into its cells."""
    done = read_cells(cells)
    averages = validation_averages(cells)
    for task_set, content in plan.task_sets.items():
        if "beside" in content:
            continue
        choice = plan.choice(task_set, averages)
        wanted = [] if choice is None else plan.cells(task_set, choice)
        missing = [cell for cell in wanted if cell not in done]
        if choice is None or missing:
            print(f"{task_set}: not scored; {len(missing) if missing else 'all'} of its cells have not been run")
            continue
        test_of: dict[int, dict[str, tuple[TaskConfig, list[Any]]]] = {}  # of each seed
        for cell in wanted:
            if done[cell]["test"] is None:
                if cell.seed not in test_of:
                    any_method = replace(cell, method=plan.choose_with)
                    test_of[cell.seed] = references(configuration(plan, any_method, work), "test")
                done[cell]["test"] = score_cell(cell, cells, test_of[cell.seed])
                write_atomic(cell.file(cells, "json"), json.dumps(done[cell], indent=1, allow_nan=False) + "\n")
                cell.file(cells, "npz").unlink()


def references(config: RunConfig, split: str) -> dict[str, tuple[TaskConfig, list[Any]]]:
    """Return name -> the task and the true values of its rows of a split, in the order of the task's labels."""
    splits, tasks = load_tasks(config)
    tokenizer = load_tokenizer(config.encoder, tasks)
    found = {}
    for name, task in tasks.items():
        length = task.max_length or (config.model["max_length"] or 128)
        rows = encode(splits[name][split], name, task, tokenizer, length, split=split)
        found[name] = (task, TASK_TYPES[task.type].references(task, rows))
    return found


def score_cell(
    cell: Cell, cells: Path, test: Mapping[str, tuple[TaskConfig, list[Any]]]
) -> dict[str, dict[str, float | None]]:
    """Return kind of checkpoint -> task -> metric on test, from what `references` returned."""
    values: dict[str, dict[str, float | None]] = {}
    with np.load(cell.file(cells, "npz"), allow_pickle=False) as predicted:
        for key in predicted.files:
            kind, name = key.split(".")
            task, true = test[name]
            given = from_array(task, predicted[key], true)
            values.setdefault(kind, {})[name] = defined(score_of(task, given, true))
    return values


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "cell", "score"])
    parser.add_argument("plan", type=Path, metavar="PLAN.yaml")
    parser.add_argument("--cells", type=Path, help="default: model_cards/<name of the plan>")
    parser.add_argument("--work", type=Path, help="default: runs/<name of the plan>")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, each with OMP_NUM_THREADS threads")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no cell later")
    parser.add_argument("--only", nargs="+", metavar="TASK_SET/METHOD", help="run these cells alone")
    for key, kind in (("task_set", str), ("method", str), ("choice", str), ("seed", int)):
        parser.add_argument(f"--{key}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    plan = Plan.load(args.plan)
    cells, work = args.cells or Path("model_cards", plan.name), args.work or Path("runs", plan.name)
    if args.command == "run":
        run(plan, args.plan, cells, work, args.jobs, args.minutes, args.only)
    elif args.command == "cell":
        run_cell(plan, Cell(args.task_set, args.method, args.choice, args.seed), cells, work)
    else:
        prepare_encoders(plan, work)
        score(plan, cells, work)


if __name__ == "__main__":
    main()
