"""The contenders of scripts/benchmarks/peers.py, each a function that trains a task set to the end and scores it.

    python scripts/benchmarks/contenders.py NAME WORKLOAD.json

This is the process of one contender, which `peers.py` starts. It answers each line on stdin with one run: a JSON object
on stdout with

* ``seconds``: from the raw weights to the scores of the validation sets; ``training``: of these, from the begin of
  training to the end of the last step;
* ``total_processor``, ``processor``: the processor time of the process in these, which depends less on what else the
  machine does;
* ``peak``: the peak of anonymous memory (``RssAnon``) in MiB, and ``before``: that before the first run;
* ``scores``: task -> monitored metric on validation.

Tokenization is done once, before the first run, except for tasknet's, which is in its ``seconds`` and not in its
``training``. Needs Linux.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peer_loops
import torch
import transformers
from memory import memory
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from hf_async_mtl import MultiTaskModel
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.sampler import MultiTaskSampler
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.run import Run, load_encoder, load_run
from hf_async_mtl.training.evaluation import TaskEvaluator


@dataclass
class Clock:
    """Adds up the time of the training steps; what happens between `begin` and the first step belongs to it."""

    training: float = 0.0
    processor: float = 0.0
    steps: int = 0

    def begin(self) -> None:
        self._last = time.perf_counter(), time.process_time()

    def step(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.training += now[0] - self._last[0]
        self.processor += now[1] - self._last[1]
        self._last = now
        self.steps += 1


class ClockCallback(TrainerCallback):
    """Tells a clock of the steps of a Trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clock.begin()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.clock.step()


@dataclass
class Workload:
    """A task set, loaded and tokenized, and how it is trained.

    Args:
        config: Configuration file of the task set.
        settings: ``key.path=value``, as for ``--set``.
        work: Folder for what trainers write.
    """

    config: str
    settings: list[str]
    work: str
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        self.run = load_run(self.config, self.settings, self.work)
        self.args = self.run.args
        self.names = list(self.run.tasks)
        self.train, self.validation = self._encoded(self.run.train_dataset), self._encoded(self.run.eval_dataset)

    def length_of(self, name: str) -> int:
        return self.run.tasks[name].max_length or self.run.model.config.max_length

    def _encoded(self, raw: Mapping[str, datasets.Dataset]) -> dict[str, TaskDataset]:
        return {
            name: TaskDataset(
                name, index, task, encode(raw[name], name, task, self.run.tokenizer, self.length_of(name))
            )
            for index, (name, task) in enumerate(self.run.tasks.items())
        }

    @cached_property
    def examples(self) -> dict[str, list[dict[str, Any]]]:
        """The training examples of each task, in memory."""
        return {name: list(part.read(range(len(part)))) for name, part in self.train.items()}

    @property
    def epochs(self) -> int:
        return int(self.args.num_train_epochs)

    @property
    def batch_size(self) -> int:
        return int(self.args.per_device_train_batch_size)

    def model(self) -> MultiTaskModel:
        """Return the model with its pretrained encoder and new heads, the same each time."""
        set_seed(self.args.seed)
        return load_encoder(self.run.config, self.run.tasks)

    def scores(self, logits: Mapping[str, Any]) -> dict[str, float]:
        """Return the monitored metric of each task from the logits of its validation set."""
        evaluator: Any = TaskEvaluator(self.run.model, {}, {}, warns=False)
        return {
            name: evaluator.metrics(self.validation[name], given)[self.run.tasks[name].monitored]
            for name, given in logits.items()
        }


# -- ours and the hand-written loops ----------------------------------------------------------------------------------


def ours(load: Workload, clock: Clock) -> dict[str, float]:
    """Train with `AsyncMTLTrainer`, which evaluates at its last step."""
    trainer = load.run.trainer(model=load.model(), callbacks=[ClockCallback(clock)])
    trainer.train()
    report = trainer.report()
    return {name: task["last"] for name, task in report["tasks"].items()}


def mixed_batches(load: Workload) -> Iterator[list[dict[str, Any]]]:
    """Yield the batches of all epochs in the order of our trainer."""
    mixture = [example for part in load.examples.values() for example in part]
    sampler = MultiTaskSampler([len(part) for part in load.train.values()], load.args.seed)
    for epoch in range(load.epochs):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for first in range(0, len(order), load.batch_size):
            yield [mixture[index] for index in order[first : first + load.batch_size]]


def hand_written(load: Workload, clock: Clock, *, packs: bool, mixes: bool) -> dict[str, float]:
    """Train with a loop of `peer_loops`."""
    model = load.model()
    longest = max(map(load.length_of, load.names))
    collate: Any = partial(peer_loops.padded, names=load.names)
    if packs:
        collate = partial(peer_loops.packed, names=load.names, row_length=longest)
    if mixes:
        steps = load.epochs * -(-sum(map(len, load.train.values())) // load.batch_size)
        batches = mixed_batches(load)
    else:
        steps = load.epochs * sum(-(-len(part) // load.batch_size) for part in load.train.values())
        sets = list(load.examples.values())
        seeds = [load.args.seed + epoch for epoch in range(load.epochs)]
        batches = (b for seed in seeds for b in peer_loops.batches_of_one_task(sets, load.batch_size, seed))
    clock.begin()
    peer_loops.train(model, batches, collate, steps, load.args, clock.step)
    size, bf16 = load.args.per_device_eval_batch_size, load.args.bf16
    parts = load.validation.items()
    logits = {n: peer_loops.predict(model, list(p.read(range(len(p)))), collate, size, bf16) for n, p in parts}
    return load.scores(logits)


# -- other libraries --------------------------------------------------------------------------------------------------


def plain_settings(load: Workload) -> dict[str, Any]:
    """Return the training arguments that other Trainers share with ours."""
    names = [
        *("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate", "bf16"),
        *("weight_decay", "lr_scheduler_type", "warmup_steps", "use_cpu", "seed", "disable_tqdm"),
    ]
    return {
        **{name: getattr(load.args, name) for name in names},
        **{"output_dir": f"{load.work}/peer", "save_strategy": "no", "report_to": "none", "eval_strategy": "no"},
    }


def flat_rows(part: TaskDataset) -> datasets.Dataset:
    """Return a tokenized set with one sequence per row, as stock models read it."""
    columns = part[0].keys() - {"task_id", "example_id"}
    read = list(part.read(range(len(part))))
    return datasets.Dataset.from_list(
        [{key: row[key] if key == "labels" else row[key][0] for key in sorted(columns)} for row in read]
    )


def trainer_per_task(load: Workload, clock: Clock) -> dict[str, float]:
    """Train one stock model per task with `transformers.Trainer`, one after the other."""
    logits = {}
    for name, task in load.run.tasks.items():
        set_seed(load.args.seed)
        is_tags = task.type == "token_classification"
        kind = AutoModelForTokenClassification if is_tags else AutoModelForSequenceClassification
        collator = (DataCollatorForTokenClassification if is_tags else DataCollatorWithPadding)(load.run.tokenizer)
        trainer = Trainer(
            model=kind.from_pretrained(load.run.config.encoder, num_labels=task.num_labels),
            args=TrainingArguments(**plain_settings(load)),
            data_collator=collator,
            train_dataset=flat_rows(load.train[name]),
            callbacks=[ClockCallback(clock)],
        )
        trainer.train()
        found = trainer.predict(flat_rows(load.validation[name])).predictions
        logits[name] = found.squeeze(-1) if task.type == "regression" else found
    return load.scores(logits)


def tasknet(load: Workload, clock: Clock) -> dict[str, float]:
    """Train with tasknet: one encoder, one stock head per task, batches of one task. It drops token types."""
    import evaluate

    # It loads a metric from the network when it is imported; the scores here are ours.
    evaluate.load = lambda *args, **kwargs: None
    tn: Any = importlib.import_module("tasknet")

    def rows(name: str, parts: Mapping[str, TaskDataset], raw: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
        task = load.run.tasks[name]
        kept = raw[name].select_columns(task.input_columns)
        if task.type != "token_classification":
            values = parts[name].rows["labels"]
            return kept.add_column("labels", [float(v) if task.type == "regression" else int(v) for v in values])
        assert task.label_names is not None
        tags = [[task.label_names.index(tag) for tag in row] for row in raw[name][task.label_column]]
        kept = kept.add_column("labels", tags)
        return kept.cast_column("labels", datasets.Sequence(datasets.ClassLabel(names=task.label_names)))

    tasks = []
    for name, task in load.run.tasks.items():
        splits = {
            "train": rows(name, load.train, load.run.train_dataset),
            **dict.fromkeys(("validation", "test"), rows(name, load.validation, load.run.eval_dataset)),
        }
        columns = task.input_columns
        if task.type == "token_classification":
            tasks.append(tn.TokenClassification(datasets.DatasetDict(splits), name=name, tokens=columns[0]))
        else:
            texts = {"s1": columns[0], "s2": columns[1] if len(columns) > 1 else "no second text"}
            size = {"num_labels": task.num_labels}
            tasks.append(tn.Classification(datasets.DatasetDict(splits), name=name, y="labels", **texts, **size))
    hparams = {"model_name": load.run.config.encoder, **plain_settings(load), "batched": True}
    hparams["max_length"] = max(map(load.length_of, load.names))
    model, trainer = tn.Model_Trainer(tasks, hparams)
    trainer.add_callback(ClockCallback(clock))
    trainer.train()
    model.eval()
    logits: dict[str, Any] = {}
    for (name, kind), part in zip(load.run.tasks.items(), trainer.eval_dataset.values(), strict=True):
        found: list[np.ndarray] = []
        for first in range(0, len(part), load.args.per_device_eval_batch_size):
            last = min(first + load.args.per_device_eval_batch_size, len(part))
            batch = trainer.data_collator([part[i] for i in range(first, last)])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=load.args.bf16):
                found += list(model(**batch).logits.float().numpy())
        values: Any = found if kind.type == "token_classification" else np.stack(found)
        logits[name] = values.squeeze(-1) if kind.type == "regression" else values
    return load.scores(logits)


CONTENDERS: dict[str, Callable[[Workload, Clock], dict[str, float]]] = {
    "ours": ours,
    "packed loop": partial(hand_written, packs=True, mixes=True),
    "padded loop": partial(hand_written, packs=False, mixes=True),
    "one-task loop": partial(hand_written, packs=False, mixes=False),
    "Trainer per task": trainer_per_task,
    "tasknet": tasknet,
}


# -- the process of a contender ---------------------------------------------------------------------------------------


def run_once(name: str, load: Workload) -> dict[str, Any]:
    """Train and score once; return the figures of the run."""
    clock, peak, over = Clock(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter(), time.process_time()
    try:
        scores = CONTENDERS[name](load, clock)
        seconds, processor = time.perf_counter() - begun[0], time.process_time() - begun[1]
    finally:
        over.set()
        watcher.join()
    times = {"seconds": seconds, "total_processor": processor}
    times |= {"training": clock.training, "processor": clock.processor}
    return {**times, "steps": clock.steps, "peak": peak[0], "scores": scores}


def main() -> None:
    """Answer each line on stdin with one run."""
    name, workload = sys.argv[1:]
    # Only answers go to stdout.
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    load = Workload(**json.loads(Path(workload).read_text(encoding="utf-8")))
    sizes = {name: len(part) for name, part in load.train.items()}
    answer: dict[str, Any] = {"rows": sizes, "before": memory("RssAnon"), "epochs": load.epochs}
    print(json.dumps(answer), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(run_once(name, load)), file=answers, flush=True)


if __name__ == "__main__":
    main()
