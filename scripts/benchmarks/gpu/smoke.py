"""Part 1 of the GPU benchmark: two tasks of the demo on the device, with a switch to distilling and a resume.

    python smoke.py OUTPUT [--device cuda] [--quick]

The run is stopped after a third of its steps and resumed from its checkpoint by a new trainer. Both tasks are declared
converged at their second evaluation, whatever their metric is, so that the switch happens in each run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from common import Results, Settings, parse
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_async_mtl.cli.config_file import load_config
from hf_async_mtl.demo.task_set import write_demo
from hf_async_mtl.run import prepare_run

TASKS = ("relevance", "match")


class StopAt(TrainerCallback):
    """End the run after a step, as an interruption would; its checkpoint is complete."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == self.step


def demo(settings: Settings, folder: Path) -> dict[str, Any]:
    """Train, stop, resume; return what happened."""
    interval = settings.size(full=30, quick=4)
    changes = {
        "training.max_steps": 3 * interval,
        "training.eval_steps": interval,
        "training.logging_steps": interval,
        "training.use_cpu": str(settings.on_cpu).lower(),
        "convergence": "{criterion: plateau, patience: 1, min_epochs: 0, min_delta: 10.0, final_evaluations: null}",
    }
    config = load_config(write_demo(folder), [f"{key}={value}" for key, value in changes.items()])
    config.tasks = {name: config.tasks[name] for name in TASKS}
    config.sources = {name: config.sources[name] for name in TASKS}
    first = prepare_run(config, folder / "run").trainer(callbacks=[StopAt(interval)])
    first.train()
    stopped = first.state.global_step
    second = prepare_run(config, folder / "run").trainer()
    second.train(resume_from_checkpoint=True)
    report = second.report()
    device = next(second.model.parameters()).device.type
    return {
        "device": device,
        "stopped_at": stopped,
        "steps": second.state.global_step,
        "events": report["events"],
        "phases": {name: entry["phase"] for name, entry in report["tasks"].items()},
        "values": {name: entry["last"] for name, entry in report["tasks"].items()},
        "holds": device == settings.device
        and (stopped, second.state.global_step) == (interval, 3 * interval)
        and all(entry["phase"] == "distilling" for entry in report["tasks"].values()),
    }


def main() -> None:
    settings = parse(__doc__)
    results = Results("smoke", settings)
    with tempfile.TemporaryDirectory() as scratch:
        results.measure("demo", lambda: demo(settings, Path(scratch)))


if __name__ == "__main__":
    main()
