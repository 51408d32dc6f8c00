"""Part 4 of the GPU benchmark: ``noisy5/sum`` against ``noisy5/distill`` at full size, with the time that is left.

    DATA=... ENCODER=... python quality_part.py OUTPUT [--device cuda] [--quick] [--seconds 200]

The cells are those of ``quality.py`` with ``scripts/configs/quality.yaml`` (see model_cards/quality/PROTOCOL.md), on
the device, seed by seed, with the learning rate that the trials on processors chose. Several processes share the card,
each with a thread of its own. The cells are kept in ``OUTPUT/cells``. The figures are those of validation: test labels
are not read. Cells that are not finished in time are lost.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import tempfile
import traceback
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import quality
from common import Results, Settings, last_lines, parse, quieten
from quality import Cell, Plan

PLAN = Path(__file__).parents[2] / "configs" / "quality.yaml"
METHODS = ("sum", "distill")
TASK_SET = "noisy5"
CHOICE = "low"  # the rate that the protocol's trials chose
MARGIN = 8.0  # seconds to the time limit
GIBIBYTES_PER_CELL = 4
QUICK = {"training.max_steps": 4, "training.eval_steps": 2, "training.logging_steps": 2, "max_length": 32}
QUICK |= {"tasks.stars.max_length": 32, "training.per_device_train_batch_size": 8}


def plan_of(settings: Settings) -> Plan:
    """Return the plan of the comparison, cut to the pair and the rate, on the device."""
    plan = Plan.load(PLAN)
    changes = {"training.use_cpu": settings.on_cpu, **(QUICK if settings.quick else {})}
    choices = {CHOICE: {**plan.choices[CHOICE], **changes}}
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
        cell.file(work, "error").write_text(last_lines(traceback.format_exc()), encoding="utf-8")
        raise


def processes(settings: Settings) -> int:
    """Return the number of cells at once: one per two cores, as far as the memory of the card goes."""
    if settings.on_cpu:
        return 1
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory // 2**30
    return max(1, min((os.cpu_count() or 2) // 2, memory // GIBIBYTES_PER_CELL, 12))


def run_cells(settings: Settings, results: Results, plan: Plan, cells: Path, work: Path) -> None:
    """Run cells until the time is over, seed by seed, and write the result file after each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_async_mtl.training.trainer"])
    waiting, running = plan.cells(TASK_SET, CHOICE), dict[Any, Cell]()
    while (waiting or running) and results.left() > MARGIN:
        while waiting and len(running) < processes(settings):
            cell = waiting.pop(0)
            process = context.Process(target=run_cell, args=(plan, cell, cells, work), daemon=True)
            process.start()
            running[process] = cell
        connection.wait([process.sentinel for process in running], timeout=max(0.0, results.left() - MARGIN))
        for process in [process for process in running if process.exitcode is not None]:
            cell = running.pop(process)
            if process.exitcode:
                file = cell.file(work, "error")
                said = file.read_text(encoding="utf-8") if file.is_file() else f"exit status {process.exitcode}"
                results.errors[f"{cell.method}, seed {cell.seed}"] = said
        results.results["pair"] = {**summary(cells), "not_finished": len(running) + len(waiting)}
        results.write()
    for process in running:
        process.terminate()
        process.join()


def summary(cells: Path) -> dict[str, Any]:
    """Return the validation averages of both methods by seed, and their paired differences in points."""
    seeds: dict[str, dict[str, Any]] = {}
    for cell, content in sorted(quality.read_cells(cells).items(), key=lambda item: item[0].seed):
        kept = {"converged": content["events"], "seconds": content["seconds"]}
        seeds.setdefault(str(cell.seed), {})[cell.method] = {**content["averages"], **kept}
    pairs = [methods for methods in seeds.values() if set(methods) == set(METHODS)]
    gains = {
        kind: [100 * (methods["distill"][kind] - methods["sum"][kind]) for methods in pairs]
        for kind in ("best_average", "last")
    }
    points = {
        kind: {"mean": statistics.mean(values), "each": values} if values else None for kind, values in gains.items()
    }
    return {"choice": CHOICE, "split": "validation", "pairs": len(pairs), "points": points, "seeds": seeds}


def main() -> None:
    settings = parse(__doc__)
    results = Results("quality", settings)
    cells = settings.output / "cells"
    shutil.rmtree(cells, ignore_errors=True)  # of an earlier run
    with tempfile.TemporaryDirectory() as scratch:
        plan, work = plan_of(settings), Path(scratch)
        os.environ["ENCODER"] = quality.prepare_encoder(plan, work)
        run_cells(settings, results, plan, cells, work)


if __name__ == "__main__":
    main()
