"""Part 4 of the GPU benchmark: cells of the comparison of methods at full size, with the time that is left.

    DATA=... ENCODER=... python quality_part.py OUTPUT [--device cuda] [--quick] [--seconds 200]
    DATA=... ENCODER=... python quality_part.py OUTPUT --plan PLAN.yaml --cells CELLS [--jobs 14] [--seconds 500]

The cells are those of ``quality.py`` (see model_cards/quality/PROTOCOL.md), on the device. Without a plan they are
``noisy5/sum`` and ``noisy5/distill`` of ``scripts/configs/quality.yaml``, seed by seed, with the learning rate that the
trials on processors chose; they are kept in ``OUTPUT/cells``. With a plan they are all of its cells that are not in
``CELLS`` yet. Several processes share the card, each with a thread of its own. The figures are those of validation:
test labels are not read. Cells that are not finished in time are lost.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import traceback
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import quality
from common import Results, Settings, command_line, last_lines, quieten, settings_of
from quality import Cell, Plan

PLAN = Path(__file__).parents[2] / "configs" / "quality.yaml"
METHODS = ("sum", "distill")
TASK_SET = "noisy5"
CHOICE = "low"  # the rate that the protocol's trials chose
MARGIN = 8.0  # seconds to the time limit
GIBIBYTES_PER_CELL = 4
QUICK = {"training.max_steps": 4, "training.eval_steps": 2, "training.logging_steps": 2, "max_length": 32}
QUICK |= {"tasks.stars.max_length": 32, "training.per_device_train_batch_size": 8}


def plan_of(settings: Settings, path: Path | None) -> Plan:
    """Return the given plan, or that of the comparison cut to the pair and the rate, on the device."""
    plan = Plan.load(path or PLAN)
    changes = {"training.use_cpu": settings.on_cpu, **(QUICK if settings.quick else {})}
    choices = {name: {**choice, **changes} for name, choice in plan.choices.items()}
    if path is not None:
        return replace(plan, choices=choices)
    choices = {CHOICE: choices[CHOICE]}
    task_set = {**plan.task_sets[TASK_SET], "methods": list(METHODS)}
    if settings.quick:
        task_set["seeds"] = 1
        plan = replace(plan, layers=1)
    return replace(plan, choices=choices, task_sets={TASK_SET: task_set})


def run_cell(plan: Plan, cell: Cell, cells: Path, work: Path) -> None:
    """Run a cell in its own process; its error goes into a file."""
    quieten()
    try:
        quality.run_cell(plan, cell, cells, work)
    except (Exception, SystemExit):
        file = cell.file(work, "error")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(last_lines(traceback.format_exc()), encoding="utf-8")
        raise


def processes(settings: Settings, jobs: int | None) -> int:
    """Return the number of cells at once: ``jobs``, or one per two cores, as far as the memory of the card goes."""
    if jobs is not None:
        return jobs
    if settings.on_cpu:
        return 1
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory // 2**30
    return max(1, min((os.cpu_count() or 2) // 2, memory // GIBIBYTES_PER_CELL, 12))


def run_cells(results: Results, jobs: int, plan: Plan, cells: Path, work: Path) -> None:
    """Run the missing cells until the time is over, seed by seed, and write the result file after each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_async_mtl.training.trainer"])
    running, failed = dict[Any, Cell](), list[Cell]()
    while results.left() > MARGIN:
        done = quality.validation_averages(cells)
        waiting = [cell for cell in plan.ready(done) if cell not in failed and cell not in running.values()]
        if not waiting and not running:
            break
        for cell in waiting[: jobs - len(running)]:
            process = context.Process(target=run_cell, args=(plan, cell, cells, work), daemon=True)
            process.start()
            running[process] = cell
        connection.wait([process.sentinel for process in running], timeout=max(0.0, results.left() - MARGIN))
        for process in [process for process in running if process.exitcode is not None]:
            cell = running.pop(process)
            if process.exitcode:
                failed.append(cell)
                file = cell.file(work, "error")
                said = file.read_text(encoding="utf-8") if file.is_file() else f"exit status {process.exitcode}"
                results.errors[f"{cell.task_set}/{cell.method}, seed {cell.seed}"] = said
            print(f"{time.monotonic() - results.started:.0f} s", *vars(cell).values(), process.exitcode, flush=True)
        results.results["pair"] = summary(cells)
        results.write()
    for process in running:
        process.terminate()
        process.join()


def summary(cells: Path) -> dict[str, Any]:
    """Return the validation averages of both methods by seed, and their paired differences in points."""
    seeds: dict[str, dict[str, Any]] = {}
    for cell, content in sorted(quality.read_cells(cells).items(), key=lambda item: item[0].seed):
        if (cell.task_set, cell.choice) != (TASK_SET, CHOICE) or cell.method not in METHODS:
            continue
        kept = {"converged": content["events"], "seconds": content["seconds"]}
        seeds.setdefault(str(cell.seed), {})[cell.method] = {**content["averages"], **kept}
    seeds = {seed: methods for seed, methods in seeds.items() if len(methods) == len(METHODS)}
    pairs = list(seeds.values())
    gains = {
        kind: [100 * (methods["distill"][kind] - methods["sum"][kind]) for methods in pairs]
        for kind in ("best_average", "last")
    }
    points = {
        kind: {"mean": statistics.mean(values), "each": values} if values else None for kind, values in gains.items()
    }
    return {"choice": CHOICE, "split": "validation", "pairs": len(pairs), "points": points, "seeds": seeds}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--cells", type=Path)
    parser.add_argument("--jobs", type=int, help="cells at once")
    args = parser.parse_args()
    settings = settings_of(args)
    results = Results("quality", settings)
    cells = args.cells or settings.output / "cells"
    if args.cells is None:
        shutil.rmtree(cells, ignore_errors=True)  # of an earlier run
    with tempfile.TemporaryDirectory() as scratch:
        plan, work = plan_of(settings, args.plan), Path(scratch)
        quality.prepare_encoders(plan, work)
        run_cells(results, processes(settings, args.jobs), plan, cells, work)


if __name__ == "__main__":
    main()
