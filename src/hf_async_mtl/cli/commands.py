"""The command line: train, evaluate, predict, report, demo."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors import SafetensorError

from ..data.loading import is_unlabeled, load_splits
from ..data.tokenization import encode
from ..demo.task_set import write_demo
from ..distillation.logits import TeacherError
from ..modeling.configuration_multitask import ConfigurationError
from ..report.page import make_page
from ..report.plots import draw
from ..report.tables import final_table, progress_table, render
from ..run import evaluation_sets, load_model, prepare_run
from ..tasks.names import check_task_names
from ..training.distributed import newest_checkpoint
from ..training.trainer import AsyncMTLTrainer
from ..utils import write_atomic
from .config_file import RunConfig, load_config
from .export_command import add_export
from .interruption import CheckpointOnSignal, RunInterrupted
from .output_dir import check_output_dir, remove_empty_on_error
from .predict_command import add_predict
from .push_command import add_push

__all__ = ["main"]

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        The exit status: 0 done; 1 a loss that is not finite, a damaged teacher or a full disk; 2 wrong input of the
        user; 143 interrupted and resumable. Other errors are raised.
    """
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except ConfigurationError as error:
        print(f"hf-async-mtl: {error}", file=sys.stderr)
        return USER_ERROR
    except RunInterrupted as interruption:
        # All processes have been interrupted; the first one reports it.
        if os.environ.get("RANK", "0") == "0":
            print(
                f"hf-async-mtl: interrupted at step {interruption}, with a checkpoint. To continue, repeat "
                "the command with --resume.",
                file=sys.stderr,
            )
        return INTERRUPTED
    except (FloatingPointError, TeacherError) as error:
        print(f"hf-async-mtl: {error}", file=sys.stderr)
        return FAILED
    except (OSError, RuntimeError, SafetensorError) as error:
        words = _disk_words(error)
        if words is None:
            raise
        print(f"hf-async-mtl: {words}", file=sys.stderr)
        return FAILED
    return DONE


_DISK_ERRORS = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EIO: "The disk has failed",
    errno.EROFS: "The file system is read-only",
}


def _disk_words(error: Exception) -> str | None:
    """Return a message for an error of the disk; None for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    # Writers of weights lose the number: safetensors has it in its message, torch reports a position in its file.
    if found := re.search(r"os error (\d+)", str(error)):
        number = int(found[1])
    elif "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
        number = errno.ENOSPC
    if number not in _DISK_ERRORS:
        return None
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return (
        f"{_DISK_ERRORS[number]}{f': {path}' if path else ''}. Complete files are intact. Free space or choose "
        "another folder, and continue from the last checkpoint with --resume."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-async-mtl", description="Multi-task fine-tuning of text encoders with asynchronous convergence."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a task set")
    train.add_argument("config", type=Path, metavar="CONFIG.yaml")
    _add_run_options(train)
    _add_overrides(train)
    train.set_defaults(command=_train)

    demo = commands.add_parser("demo", help="generate a small task set and train it")
    _add_run_options(demo)
    demo.set_defaults(command=_demo)

    evaluate = commands.add_parser("evaluate", help="print a model's metrics as JSON")
    evaluate.add_argument("model", metavar="MODEL", help="a folder or a Hub id")
    evaluate.add_argument("config", type=Path, metavar="CONFIG.yaml")
    evaluate.add_argument("--split", default="test", choices=["train", "validation", "test"])
    _add_overrides(evaluate)
    evaluate.set_defaults(command=_evaluate)

    add_predict(commands)
    add_push(commands)
    add_export(commands)

    report = commands.add_parser("report", help="print the table and draw the plots of a run")
    report.add_argument("run", type=Path, metavar="RUN_DIR")
    report.add_argument("--html", action="store_true", help="also write a page, RUN_DIR/report.html")
    report.set_defaults(command=_report)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key.path=value",
        help="override a key; the value is YAML",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="the folder of the run; must be new or empty")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="CHECKPOINT",
        help="continue from this checkpoint; without a value, from the newest complete one",
    )


# -- train ------------------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)
    _run(config, args.output_dir or config.output_dir or Path("runs", config.name), args.resume)


def _demo(args: argparse.Namespace) -> None:
    output_dir = args.output_dir or Path("runs/demo")
    check_output_dir(output_dir, args.resume)
    with tempfile.TemporaryDirectory() as scratch:
        # Generated bitwise identically each time, so that a run can be resumed.
        _run(load_config(write_demo(Path(scratch))), output_dir, args.resume)


def _run(config: RunConfig, output_dir: Path, resume: str | bool | None) -> None:
    check_output_dir(output_dir, resume)
    run = prepare_run(config, output_dir)
    checkpoint = newest_checkpoint(output_dir) if resume is True else resume
    tasks, model, test = run.tasks, run.model, run.test_dataset
    for name, rows in test.items():
        # For its errors, which are to come before training; the result is cached.
        encode(rows, name, tasks[name], run.tokenizer, tasks[name].max_length or model.config.max_length)
    interruption = CheckpointOnSignal()
    with remove_empty_on_error(output_dir):
        trainer = run.trainer(callbacks=[interruption])
        with interruption.watching():
            result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    # The push comes later: figures and model card are not written yet.
    trainer.save_model(_internal_call=True)
    results = {**result.metrics, **trainer.evaluate()}
    if test:
        results |= _evaluate_sets(trainer, test, "test", tasks)
    if trainer.is_world_process_zero():
        write_atomic(output_dir / "all_results.json", _to_json(results) + "\n")
    if run.args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.create_model_card()
    if trainer.is_world_process_zero():
        print(render(final_table(trainer.schedule.report()), sys.stdout))
        print(f"Model, card, plots and figures are in {output_dir}")


def _evaluate_sets(
    trainer: AsyncMTLTrainer, sets: Mapping[str, Dataset], prefix: str, tasks: Collection[str]
) -> dict[str, float]:
    """Return the metrics of some sets. The average is NaN if a task is missing."""
    metrics = trainer.evaluate(sets, metric_key_prefix=prefix)
    if not set(tasks) <= set(sets):
        metrics[f"{prefix}_average"] = math.nan
    return metrics


def _to_json(metrics: Mapping[str, Any]) -> str:
    """Return metrics as JSON; NaN and infinity become null."""
    finite = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in metrics.items()}
    return json.dumps(finite, indent=2, allow_nan=False)


# -- evaluate, report ----------------------------------------------------------------------------------------


def _evaluate(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.set)
    model, tokenizer = load_model(args.model)
    unknown = [name for name in config.tasks if name not in model.config.tasks]
    if unknown:
        raise ConfigurationError(
            f"The configuration must name tasks of the model ({', '.join(model.config.tasks)}); found {unknown[0]!r}."
        )
    sets: dict[str, Dataset] = {}
    for name in config.tasks:
        task = model.config.task_configs[name]
        splits = load_splits(name, task, config.sources[name], config.data_seed, has_teacher=True)
        if args.split == "validation":
            sets.update(evaluation_sets({name: splits}))
        elif args.split in splits and not is_unlabeled(splits[args.split], task):
            sets[name] = splits[args.split]
    if not sets:
        raise ConfigurationError(f"No task of {args.config} has a {args.split} split with labels.")
    prefix = "eval" if args.split == "validation" else args.split
    # The Trainer needs a folder. A progress bar on stdout would be part of the JSON.
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        # Precision and batch size are those of training, so that the figures equal those of the run.
        arguments = config.arguments(scratch, report_to="none", push_to_hub=False)
        trainer = AsyncMTLTrainer(model=model, args=arguments, processing_class=tokenizer)
        metrics = _evaluate_sets(trainer, sets, prefix, config.tasks)
    print(_to_json({key: value for key, value in metrics.items() if not key.endswith(_NO_METRICS)}))


_NO_METRICS = ("epoch", "_runtime", "_per_second", "_preparation_time")


def _report(args: argparse.Namespace) -> None:
    path = args.run / "convergence.json"
    if not path.is_file():
        raise ConfigurationError(f"{args.run} must be the folder of a run; it has no convergence.json yet.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path} must be a file that a run has written: {error}") from None
    # The names of plots contain names of tasks.
    check_task_names(dict.fromkeys(report["tasks"], ()))
    print(render(final_table(report) if "final" in report else progress_table(report), sys.stdout))
    for plot in draw(report, args.run):
        print(plot)
    if args.html:
        write_atomic(args.run / "report.html", make_page(report, args.run.resolve().name))
        print(args.run / "report.html")


if __name__ == "__main__":
    sys.exit(main())
