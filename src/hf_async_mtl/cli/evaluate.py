"""``hf-async-mtl evaluate``: print a model's metrics as JSON."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from typing import Any

from datasets import Dataset

from ..data.loading import is_unlabeled, load_splits
from ..run import evaluation_sets, load_model
from ..training.trainer import AsyncMTLTrainer
from ..validation import ConfigurationError
from .config_file import RunConfig

_NO_METRICS = ("epoch", "_runtime", "_per_second", "_preparation_time")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    config: RunConfig = args.run_config
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
    # The Trainer needs a folder, and a progress bar on stdout would end up in the JSON.
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        # With the precision and the batch size of the training, the values are those of the run.
        arguments = config.arguments(scratch, report_to="none", push_to_hub=False)
        trainer = AsyncMTLTrainer(model=model, args=arguments, processing_class=tokenizer)
        metrics = evaluate_sets(trainer, sets, prefix, config.tasks)
    print(to_json({key: value for key, value in metrics.items() if not key.endswith(_NO_METRICS)}))


def evaluate_sets(
    trainer: AsyncMTLTrainer, sets: Mapping[str, Dataset], prefix: str, tasks: Collection[str]
) -> dict[str, float]:
    """Return the metrics of some sets, without an average where some tasks have no set."""
    metrics = trainer.evaluate(sets, metric_key_prefix=prefix)
    if not set(tasks) <= set(sets):
        metrics[f"{prefix}_average"] = math.nan
    return metrics


def to_json(metrics: Mapping[str, Any]) -> str:
    """Return metrics as JSON, which has no NaN: a value that is not defined is null."""
    finite = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in metrics.items()}
    return json.dumps(finite, indent=2, allow_nan=False)
