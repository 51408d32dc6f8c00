"""Part 4 of the GPU benchmark: ``noisy5/sum`` against ``noisy5/distill`` at full size, with the time that is left.

    DATA=... ENCODER=... python quality_part.py OUTPUT [--device cuda] [--quick] [--seconds 200]

The cells are those of ``quality.py`` with ``scripts/configs/quality.yaml`` (see model_cards/quality/PROTOCOL.md), on
the device: the trials of the learning rate first, then seed by seed. Several processes share the card, each with a
thread of its own. The cells are kept in ``OUTPUT/cells``. The figures are those of validation: test labels are not
read.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from traceback import format_exception
from typing import Any

import quality
from common import Results, Settings, last_lines, parse, quieten
from quality import Cell, Plan

PLAN = Path(__file__).parents[2] / "configs" / "quality.yaml"
METHODS = ("sum", "distill")
TASK_SET = "noisy5"
GIBIBYTES_PER_CELL = 4
QUICK = {"training.max_steps": 4, "training.eval_steps": 2, "training.logging_steps": 2, "max_length": 32}
QUICK |= {"tasks.stars.max_length": 32, "training.per_device_train_batch_size": 8}


def plan_of(settings: Settings) -> Plan:
    """Return the plan of the comparison, cut to the pair, on the device."""
    plan = Plan.load(PLAN)
    changes: dict[str, Any] = {"training.use_cpu": settings.on_cpu}
    choices = {name: {**choice, **changes} for name, choice in plan.choices.items()}
    task_set = {**plan.task_sets[TASK_SET], "methods": list(METHODS)}
    if settings.quick:
        choices = {"low": {**choices["low"], **QUICK}}
        task_set["seeds"] = 1
        plan = replace(plan, layers=None)
    return replace(plan, choices=choices, task_sets={TASK_SET: task_set})


def run_cell(plan: Plan, cell: Cell, cells: Path, work: Path) -> None:
    quieten()
    quality.run_cell(plan, cell, cells, work)


def processes(settings: Settings) -> int:
    """Return the number of cells at once: one per two cores, as far as the memory of the card goes."""
    if settings.on_cpu:
        return 1
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory // 2**30
    return max(1, min((os.cpu_count() or 2) // 2, memory // GIBIBYTES_PER_CELL, 12))


def run_cells(settings: Settings, results: Results, plan: Plan, cells: Path, work: Path) -> None:
    """Run cells until the time is over, and write the result file after each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_async_mtl.training.trainer"])
    jobs, running, failed = processes(settings), dict[Future[None], Cell](), list[Cell]()
    with ProcessPoolExecutor(jobs, context) as pool:
        while True:
            taken = {*running.values(), *failed}
            ready = [cell for cell in plan.ready(quality.validation_averages(cells)) if cell not in taken]
            for cell in ready[: jobs - len(running)]:
                running[pool.submit(run_cell, plan, cell, cells, work)] = cell
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell, error = running.pop(future), future.exception()
                if error is not None:
                    failed.append(cell)
                    results.errors[f"{cell.method}, seed {cell.seed}"] = last_lines("".join(format_exception(error)))
            results.results["pair"] = summary(plan, cells)
            results.write()


def summary(plan: Plan, cells: Path) -> dict[str, Any]:
    """Return the validation averages of both methods by seed, and their paired difference."""
    done = quality.read_cells(cells)
    choice = plan.choice(TASK_SET, quality.validation_averages(cells))
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell, content in done.items():
        if cell.choice == choice:
            found.setdefault(str(cell.seed), {})[cell.method] = content
    seeds = {
        seed: {
            method: {**content["averages"], "converged": content["events"], "seconds": content["seconds"]}
            for method, content in methods.items()
        }
        for seed, methods in sorted(found.items())
    }
    pairs = [methods for methods in seeds.values() if set(methods) == set(METHODS)]
    gains = {
        kind: [100 * (methods["distill"][kind] - methods["sum"][kind]) for methods in pairs]
        for kind in ("best_average", "last")
    }
    differences = {
        kind: {"mean": statistics.mean(values), "each": values} if values else None for kind, values in gains.items()
    }
    return {"choice": choice, "split": "validation", "pairs": len(pairs), "points": differences, "seeds": seeds}


def main() -> None:
    settings = parse(__doc__)
    results = Results("quality", settings)
    cells = settings.output / "cells"
    with tempfile.TemporaryDirectory() as scratch:
        plan, work = plan_of(settings), Path(scratch)
        os.environ["ENCODER"] = quality.prepare_encoder(plan, work)
        begin = time.monotonic()
        run_cells(settings, results, plan, cells, work)
        print(f"{len(quality.read_cells(cells))} cells in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
