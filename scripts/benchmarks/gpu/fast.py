"""Part 3 of the GPU benchmark: how fast, beside other loops in the same run.

    DATA=... ENCODER=... python fast.py OUTPUT [--device cuda] [--quick]

Loops take turns, so that a change of the machine meets all of them: ratios are those of examples a second within a
round, to the first loop of each table; median and range over the rounds.

* ``matmul``: the measured rate of bf16 matrix multiplication, 8192 x 8192 x 8192.
* ``bert_base``: random weights, 256 rows of 128 tokens, no padding, bf16: `AsyncMTLTrainer` with one task against
  `transformers.Trainer`. ``share`` is that of the rate of ``matmul``.
* ``glue``: an encoder like that of $ENCODER with random weights, on cola, sst2, mrpc, stsb and rte of $DATA, batches of
  32: against a hand-written loop with mixed and padded batches, and one with batches of one task (``speed.py``).
* ``tasks``: 1 against 64 tasks, the same number of rows.
* ``compiled``: ``torch_compile: true`` against eager. Needs a GPU.
* ``stalls``: per step of a run of two tasks, how often the host waited for the device, from the profiler; the same for
  `transformers.Trainer`. On a processor the operators that would wait are counted.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import runs
import speed
import torch
from common import Results, Settings, parse
from datasets import Dataset
from stalls import stalls
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from turns import Loop, TurnsCallback, compare

from hf_async_mtl import AsyncMTLTrainer, MultiTaskModel
from hf_async_mtl.distillation.logits import RecordedLogits

OURS, UPSTREAM = "AsyncMTLTrainer", "transformers.Trainer"
FULL_ROW = 126  # words, and two special tokens
BERT_BASE: dict[str, Any] = {"initializer_range": 0.02, "max_position_embeddings": 512, "vocab_size": 30522}
BERT_BASE |= {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
NO_TEACHERS: dict[str, RecordedLogits] = {}


@dataclass(frozen=True)
class Work:
    """A training run on generated rows.

    Args:
        encoder: Fields of a ``BertConfig``.
        tasks: Number of tasks, which share ``rows``.
        rows: Rows of all tasks together.
        words: Bounds of the words of a row.
        batch_size: Examples of a batch.
        on_cpu: Whether the processor computes.
        compiled: Whether the model is compiled.
    """

    encoder: dict[str, Any]
    tasks: int
    rows: int
    words: tuple[int, int]
    batch_size: int
    on_cpu: bool
    compiled: bool = False

    def data(self) -> dict[str, Dataset]:
        of = runs.tasks(self.tasks)
        return {name: runs.rows(self.rows // self.tasks, number, self.words) for number, name in enumerate(of)}

    def settings(self, steps: int) -> dict[str, Any]:
        given: dict[str, Any] = {"max_steps": steps, "eval_steps": steps + 1, "logging_steps": steps + 1}
        given |= {"bf16": True, "torch_compile": self.compiled}
        return given | {"per_device_train_batch_size": self.batch_size}


def ours(work: Work, pipe: Connection, lengths: list[int], folder: Path) -> None:
    """Train with `AsyncMTLTrainer`."""
    model = runs.model_of(runs.family("bert", **work.encoder), runs.tasks(work.tasks), max_length=128)
    args = runs.arguments(folder, work.on_cpu, **work.settings(sum(lengths)))
    runs.trainer_of(model, args, work.data(), [TurnsCallback(pipe, lengths)]).train()


def upstream(work: Work, pipe: Connection, lengths: list[int], folder: Path) -> None:
    """Train the first task with `transformers.Trainer`."""
    upstream_trainer(work, sum(lengths), folder, TurnsCallback(pipe, lengths)).train()


def upstream_trainer(work: Work, steps: int, folder: Path, *callbacks: Any) -> Trainer:
    tokenizer = runs.tokenizer()
    given = {**work.settings(steps), "eval_strategy": "no", "use_cpu": work.on_cpu, "disable_tqdm": True, "seed": 0}
    del given["eval_steps"]
    raw = next(iter(work.data().values()))
    label_ids = [int(label == "yes") for label in raw["label"]]
    encoded = tokenizer(list(raw["text"]))
    set_seed(0)
    return Trainer(
        model=AutoModelForSequenceClassification.from_config(BertConfig(**{**runs.TINY, **work.encoder})),
        args=TrainingArguments(str(folder), report_to="none", save_strategy="no", **given),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=Dataset.from_dict({**encoded, "labels": label_ids}),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


# -- the measurements -------------------------------------------------------------------------------------------------


def matmul(settings: Settings) -> dict[str, Any]:
    """Return the rate of bf16 matrix multiplication, in FLOP/s: the best of some tries."""
    size, tries = settings.size(full=8192, quick=256), settings.size(full=20, quick=3)
    left, right = (torch.randn(size, size, device=settings.device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(tries):
        runs.synchronize(settings.device)
        begin = time.perf_counter()
        left @ right
        runs.synchronize(settings.device)
        best = min(best, time.perf_counter() - begin)
    return {"size": size, "flops": 2 * size**3 / best}


def training_flops(encoder: Mapping[str, Any], row_length: int) -> float:
    """Return the FLOPs of a token in training: the matrix products of the encoder's layers, forward and twice backward.

    >>> training_flops({"hidden_size": 2, "intermediate_size": 8, "num_hidden_layers": 1}, row_length=4)
    384.0
    """
    hidden, layers = encoder["hidden_size"], encoder["num_hidden_layers"]
    weights = 4 * hidden**2 + 2 * hidden * encoder["intermediate_size"]
    return 3.0 * layers * (2 * weights + 4 * row_length * hidden)


def bert_base(settings: Settings, folder: Path, flops: float) -> dict[str, Any]:
    encoder = runs.TINY if settings.quick else BERT_BASE
    batch, words = settings.size(full=256, quick=4), settings.size(full=FULL_ROW, quick=6)
    work = Work(encoder, 1, settings.size(full=4096, quick=16), (words, words), batch, settings.on_cpu)
    loops: dict[str, Loop] = {UPSTREAM: partial(upstream, work), OURS: partial(ours, work)}
    found = compare(loops, *rounds_and_steps(settings, steps=8), batch, folder)
    for row in found.values():
        row["tokens_per_second"] = row["examples_per_second"] * (words + 2)
        row["share"] = row["tokens_per_second"] * training_flops(encoder, words + 2) / flops
    return {"loops": found, "batch": [batch, words + 2]}


def rounds_and_steps(settings: Settings, steps: int) -> tuple[int, int]:
    return settings.size(full=5, quick=1), settings.size(full=steps, quick=2)


def random_encoder(folder: Path) -> str:
    """Write an encoder like that of $ENCODER with random weights, and return its folder.

    The weights do not matter for the speed, and the packed folder does not have those of all layers.
    """
    source = os.environ["ENCODER"]
    set_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


def glue_settings(settings: Settings, folder: Path) -> speed.Settings:
    for name in ("DATA", "ENCODER"):
        if name not in os.environ:
            raise SystemExit(f"The environment variable {name} must be set; see scripts/benchmarks/gpu/run.sh.")
    rounds, steps = rounds_and_steps(settings, steps=40)
    data, encoder = str(Path(os.environ["DATA"], "glue")), random_encoder(folder / "encoder")
    batch, longest = settings.size(full=32, quick=4), settings.size(full=128, quick=32)
    return speed.Settings(data, encoder, steps, rounds, batch, longest, threads=None, bf16=True)


def by_speed(name: str, settings: speed.Settings, pipe: Connection, lengths: list[int], folder: Path) -> None:
    """Run a loop of ``speed.py``, on labels."""
    assert lengths == speed.round_lengths(settings)
    speed.work(speed.Variant(name, distilling=False), settings, folder, pipe)


def one_task_a_batch(settings: speed.Settings, pipe: Connection, lengths: list[int], folder: Path) -> None:
    """Run the hand-written loop on batches of one task each, drawn in proportion to the tasks' sizes."""
    assert lengths == speed.round_lengths(settings)
    task_set = speed.TaskSet.load(settings)
    model = MultiTaskModel.from_encoder(settings.encoder, task_set.tasks, packing="off", max_length=settings.max_length)
    args = runs.arguments(folder, on_cpu=not torch.cuda.is_available(), bf16=True)
    # A task's last batch is not full: draw more, and leave those out.
    drawn = speed.drawn_examples(task_set.encoded(settings.max_length), replace(settings, rounds=2 * settings.rounds))
    waiting: dict[int, list[dict[str, Any]]] = {}
    ordered: list[dict[str, Any]] = []
    for example in drawn:
        batch = waiting.setdefault(example["task_id"], [])
        batch.append(example)
        if len(batch) == settings.batch_size:
            ordered += waiting.pop(example["task_id"])
    enough = settings.total_steps * settings.batch_size
    if len(ordered) < enough:
        raise SystemExit(f"{enough} examples in batches of one task are needed; the data gave {len(ordered)}.")
    speed.run_plain(model, ordered[:enough], NO_TEACHERS, args, settings, pipe)


def glue(settings: Settings, folder: Path) -> dict[str, Any]:
    given = glue_settings(settings, folder)
    encoded = speed.TaskSet.load(given).encoded(given.max_length)  # cached for the processes
    drawn = speed.drawn_examples(encoded, given)
    mean = sum(len(example["input_ids"][0]) for example in drawn) / len(drawn)
    loops: dict[str, Loop] = {
        "padded loop, mixed batches": partial(by_speed, speed.PLAIN, given),
        "padded loop, one task a batch": partial(one_task_a_batch, given),
        OURS: partial(by_speed, "trainer, auto", given),
    }
    found = compare(loops, given.rounds, given.steps, given.batch_size, folder)
    for row in found.values():
        row["tokens_per_second"] = row["examples_per_second"] * mean
    return {"loops": found, "tokens_per_example": mean, "batch_size": given.batch_size}


def minilm(settings: Settings, tasks: int = 2, compiled: bool = False) -> Work:
    """Return a run of an encoder of MiniLM's size on rows of many lengths."""
    encoder = runs.TINY if settings.quick else runs.MINILM
    rows, batch = settings.size(full=4096, quick=256), settings.size(full=64, quick=8)
    return Work(encoder, tasks, rows, (3, settings.size(full=80, quick=8)), batch, settings.on_cpu, compiled)


def number_of_tasks(settings: Settings, folder: Path) -> dict[str, Any]:
    works = {"1 task": minilm(settings, 1), "64 tasks": minilm(settings, 64)}
    loops: dict[str, Loop] = {name: partial(ours, work) for name, work in works.items()}
    return {"loops": compare(loops, *rounds_and_steps(settings, steps=30), works["1 task"].batch_size, folder)}


def compiled(settings: Settings, folder: Path) -> dict[str, Any] | None:
    if settings.on_cpu:
        return None
    works = {name: minilm(settings, compiled=name == "compiled") for name in ("eager", "compiled")}
    loops: dict[str, Loop] = {name: partial(ours, work) for name, work in works.items()}
    return {"loops": compare(loops, *rounds_and_steps(settings, steps=30), works["eager"].batch_size, folder)}


def stalls_of_a_step(settings: Settings, folder: Path) -> dict[str, Any]:
    work = minilm(settings)
    steps = settings.size(full=10, quick=2)
    found = {}
    for phase in ("learning", "distilling"):
        given = work.settings(400) | {"eval_steps": settings.size(full=20, quick=8), "convergence": runs.AT_ONCE}
        model = runs.model_of(runs.family("bert", **work.encoder), runs.tasks(work.tasks), max_length=128)
        args = runs.arguments(folder / phase, work.on_cpu, learning_rate=5e-4, **given)
        trainer = runs.trainer_of(model, args, work.data())
        in_phase = partial(all_in_phase, trainer, phase)
        found[f"{OURS}, {phase}"] = stalls(trainer, steps, settings.device, in_phase)
    theirs = upstream_trainer(replace(work, tasks=1), 400, folder / "theirs")
    found[UPSTREAM] = stalls(theirs, steps, settings.device)
    return {"per_step": found}


def all_in_phase(trainer: AsyncMTLTrainer, phase: str) -> bool:
    return set(trainer.schedule.phases.values()) == {phase}


def main() -> None:
    settings = parse(__doc__)
    results = Results("fast", settings)
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch)
        results.measure("matmul", lambda: matmul(settings))
        flops = results.results.get("matmul", {}).get("flops", float("nan"))
        results.measure("bert_base", lambda: bert_base(settings, at / "bert_base", flops))
        results.measure("glue", lambda: glue(settings, at / "glue"))
        results.measure("tasks", lambda: number_of_tasks(settings, at / "tasks"))
        results.measure("compiled", lambda: compiled(settings, at / "compiled"))
        results.measure("stalls", lambda: stalls_of_a_step(settings, at / "stalls"))


if __name__ == "__main__":
    main()
