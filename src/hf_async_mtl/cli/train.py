"""``hf-async-mtl train``: train the tasks of a configuration file, evaluate and save."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from accelerate import PartialState

from ..data.tokenization import encode
from ..report.tables import final_tables, render
from ..run import prepare_run
from ..training.distributed import leave_process_group, newest_checkpoint
from ..utils import write_atomic
from .config_file import RunConfig
from .evaluate import evaluate_sets, to_json
from .interruption import CheckpointOnSignal, RunInterrupted
from .output_dir import check_output_dir, remove_empty_on_error


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config: RunConfig = args.run_config
    train(config, args.output_dir or config.output_dir or Path("runs", config.name), args.resume)


def train(config: RunConfig, output_dir: Path, resume: str | bool | None) -> None:
    """Train, evaluate and save. ``resume`` is a checkpoint, or whether to resume from the newest one.

    If the input is wrong, nothing is left behind.
    """
    try:
        _train(config, output_dir, resume)
    except (RunInterrupted, FloatingPointError):
        # All processes raise these together. After other errors the others may wait for this one.
        leave_process_group()
        raise
    PartialState().wait_for_everyone()
    leave_process_group()


def _train(config: RunConfig, output_dir: Path, resume: str | bool | None) -> None:
    check_output_dir(output_dir, resume)
    ready = prepare_run(config, output_dir)
    checkpoint = newest_checkpoint(output_dir) if resume is True else resume
    tasks, model, test = ready.tasks, ready.model, ready.test_dataset
    for name, rows in test.items():
        # Errors in the test rows must come before training; the result is cached.
        length = tasks[name].max_length or model.config.max_length
        encode(rows, name, tasks[name], ready.tokenizer, length, split="test")
    interruption = CheckpointOnSignal()
    with remove_empty_on_error(output_dir):
        trainer = ready.trainer(callbacks=[interruption])
        with interruption.watching():
            result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    # Without a push: the results and the card are still to be written.
    trainer.save_model(_internal_call=True)
    results = {**result.metrics, **trainer.evaluate()}
    if test:
        results |= evaluate_sets(trainer, test, "test", tasks)
    if trainer.is_world_process_zero():
        write_atomic(output_dir / "all_results.json", to_json(results) + "\n")
    if ready.args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.create_model_card()
    if trainer.is_world_process_zero():
        print(render(final_tables(trainer.report()), sys.stdout))
        print(f"Model, card, plots and figures are in {output_dir}")
