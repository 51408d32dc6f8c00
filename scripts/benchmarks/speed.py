"""Measure speed and peak memory of the trainer on five GLUE tasks, compared with a hand-written PyTorch loop.

    python scripts/benchmarks/speed.py --data GLUE --encoder ENCODER --rounds 5 --steps 10 --output speed.json

``GLUE`` is a folder with ``<task>/train.jsonl`` for cola, sst2, mrpc, stsb and rte, with the columns of the Hub;
``ENCODER`` is a folder or a Hub id. The environment variables GLUE_DATA and ENCODER are the defaults of the two
options.

*Loops.* There are three loops, each with all tasks on labels (learning) and with all tasks on recorded logits
(distilling), which gives six variants:

- ``plain PyTorch``: a hand-written loop. Tokenized examples in a list, batches padded to their longest sequence, one
  forward of the encoder, one linear layer per task, the losses of the trainer's heads, and the fused AdamW, clipping
  and linear schedule of the trainer. The teachers' logits are in a tensor.
- ``trainer, auto``: `AsyncMTLTrainer.train()` with ``packing: auto``: sequences share rows if the encoder supports it.
- ``trainer, off``: the same with ``packing: off``: length groups, several padded forwards per batch.

All variants start from the same weights and process the same examples in the same batches, drawn by the sampler of the
trainer from the five training sets in proportion to their size. With an encoder without dropout, their losses agree
step by step, which a test checks; the mean losses of each round are in the output. The recorded logits are random, but
they are written and read as in a run. The figures contain no information about the quality of a model.

*Timing.* Each variant runs in its own process, in turns: one round of the first, the second, ..., the sixth, then the
next round, so that changes of the machine affect all variants. Waiting processes are blocked on a pipe. A round is
``--steps`` optimizer steps, timed from the end of a step to the end of a step: reading, collating and packing are
included; loading, evaluation and checkpoints are not. Two warm-up steps come first. Ratios are computed within each
round, relative to the plain loop with the same losses; above 1, the trainer is faster. The table has the median and the
range over the rounds. On a busy machine, the range shows how reliable the median is.

*Memory* is the maximum resident size of the process up to the last round (``ru_maxrss``; on a GPU
``torch.cuda.max_memory_allocated``). All variants load the same libraries, including those that a plain loop would not
need; ``rss_before_training`` in the output is the size before the first step.

*Real tokens* is the share of the encoder's positions that are not padding. The trainer is faster because it computes
less padding; a hand-written loop that sorts by length or packs would be closer to it.

On Linux with glibc, much of the time can be spent on returning memory to the system between steps, in all loops. Set
MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_ and MALLOC_TOP_PAD_ to about 10^9 to avoid this; the output records these
variables. Needs Unix.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset, load_dataset
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

import hf_async_mtl
from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments, MultiTaskModel, TaskConfig
from hf_async_mtl.data.dataset import MultiTaskDataset, TaskDataset
from hf_async_mtl.data.fingerprint import fingerprint
from hf_async_mtl.data.sampler import MultiTaskSampler
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.distillation.logits import LogitsFiles, RecordedLogits, record_logits
from hf_async_mtl.report.tables import render

TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")
WARM_UP = 2
PLAIN = "plain PyTorch"
PACKINGS = {"trainer, auto": "auto", "trainer, off": "off"}
GO_ON, STOP = "go on", "stop"
LIBRARIES = (torch, transformers, datasets, accelerate, hf_async_mtl)
ENVIRONMENT = ("OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


@dataclass(frozen=True)
class Settings:
    """The options of the command line."""

    data: str
    encoder: str
    steps: int
    rounds: int
    batch_size: int
    max_length: int
    threads: int | None
    bf16: bool
    learning_rate: float = 5e-5
    seed: int = 42

    @property
    def total_steps(self) -> int:
        return WARM_UP + self.rounds * self.steps


@dataclass(frozen=True)
class Variant:
    """One loop with one kind of losses."""

    loop: str
    distilling: bool

    @property
    def losses(self) -> str:
        return "distilling" if self.distilling else "learning"


VARIANTS = [Variant(loop, distilling) for distilling in (False, True) for loop in (PLAIN, *PACKINGS)]


# -- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskSet:
    """The raw training sets, their tasks and the tokenizer."""

    raw: dict[str, Dataset]
    tasks: dict[str, TaskConfig]
    tokenizer: Any

    @classmethod
    def load(cls, settings: Settings) -> TaskSet:
        raw = {}
        for name in TASKS:
            path = Path(settings.data) / name / "train.jsonl"
            if not path.is_file():
                raise SystemExit(f"`--data` must hold <task>/train.jsonl for {', '.join(TASKS)}; there is no {path}.")
            raw[name] = load_dataset("json", data_files=str(path), split="train")
        tasks = {name: TaskConfig.from_preset(f"glue/{name}").resolve(raw[name]) for name in TASKS}
        return cls(raw, tasks, AutoTokenizer.from_pretrained(settings.encoder))

    def encoded(self, max_length: int) -> list[TaskDataset]:
        """Return the tokenized training sets, from the cache if possible."""
        return [
            TaskDataset(name, index, task, encode(self.raw[name], name, task, self.tokenizer, max_length))
            for index, (name, task) in enumerate(self.tasks.items())
        ]


def drawn_examples(encoded: Sequence[TaskDataset], settings: Settings) -> list[dict[str, Any]]:
    """Return the examples of the run, in the order of the trainer."""
    mixture = MultiTaskDataset(encoded)
    wanted = settings.total_steps * settings.batch_size
    if wanted > len(mixture):
        raise SystemExit(
            f"The run must fit into one epoch; {settings.total_steps} steps of {settings.batch_size} need {wanted} "
            f"examples, and the data has {len(mixture)}. Lower --rounds, --steps or --batch-size."
        )
    order = MultiTaskSampler([len(task) for task in encoded], settings.seed)
    return [mixture[index] for index in islice(order, wanted)]


def record_teachers(encoded: Sequence[TaskDataset], folder: Path, seed: int) -> None:
    """Write random logits for every training example of every task."""
    generator = np.random.default_rng(seed)
    for part in encoded:
        task, size = part.task, len(part)
        if task.type == "regression":
            assert task.target_mean is not None
            assert task.target_std is not None
            columns, logits = None, generator.normal(task.target_mean, task.target_std, size)
        else:
            columns = task.num_labels
            logits = generator.normal(size=(size, columns))
        files, units = LogitsFiles.of(folder, part.name), np.ones(size, dtype=np.int64)
        with record_logits(files, units, columns, fingerprint(part.rows), step=0) as writer:
            writer.write(torch.arange(size), torch.from_numpy(logits))


# -- taking turns -----------------------------------------------------------------------------------------------------


class Turns:
    """Run a loop one round at a time, and report the time of each round to the main process.

    Args:
        pipe: To the main process.
        lengths: Optimizer steps of each round, the warm-up first.
        device: Where the loop computes.
    """

    def __init__(self, pipe: Connection, lengths: Sequence[int], device: torch.device) -> None:
        self.pipe = pipe
        self.lengths = iter(lengths)
        self.device = device
        self.rss_before = peak_rss()
        self._begin()

    def _begin(self) -> None:
        self.left = next(self.lengths)
        self.losses: list[Tensor] = []
        self.positions = 0
        self.started = time.perf_counter()

    def count_positions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the positions of a forward of the encoder; a hook before it."""
        self.positions += kwargs["input_ids"].numel()

    def end_step(self, loss: Tensor) -> None:
        """Count an optimizer step. After the last step of a round, report and wait for the next turn or the end."""
        self.losses.append(loss.detach())
        self.left -= 1
        if self.left:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.started
        on_gpu = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        self.pipe.send(
            {
                "seconds": seconds,
                "loss": torch.stack(self.losses).mean().item(),
                "positions": self.positions,
                "peak_rss": peak_rss(),
                "rss_before_training": self.rss_before,
                "peak_gpu": on_gpu,
                "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
                "threads": torch.get_num_threads(),
            }
        )
        if self.pipe.recv() == STOP:
            # The trainer would go on to its last evaluation.
            raise SystemExit
        self._begin()


def peak_rss() -> int:
    """Return the maximum resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def work(variant: Variant, settings: Settings, folder: Path, pipe: Connection) -> None:
    """Run the process of a variant."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    task_set = TaskSet.load(settings)
    set_seed(settings.seed)
    model = MultiTaskModel.from_encoder(
        settings.encoder, task_set.tasks, packing=PACKINGS.get(variant.loop, "off"), max_length=settings.max_length
    )
    args = AsyncMTLTrainingArguments(
        str(folder / variant.losses / PACKINGS.get(variant.loop, "plain")),
        max_steps=settings.total_steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        bf16=settings.bf16,
        # On a processor upstream autocasts only where it is told that this is meant.
        use_cpu=not torch.cuda.is_available(),
        seed=settings.seed,
        # Of no interest here: neither evaluations nor checkpoints while the clock runs.
        eval_steps=settings.total_steps + 1,
        save_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
        disable_tqdm=True,
        convergence={"criterion": "plateau", "patience": 1, "min_epochs": 0, "final_evaluations": None},
    )
    teachers = {name: RecordedLogits(LogitsFiles.of(folder, name)) for name in TASKS} if variant.distilling else {}
    if variant.loop == PLAIN:
        examples = drawn_examples(task_set.encoded(settings.max_length), settings)
        run_plain(model, examples, teachers, args, settings, pipe)
    else:
        run_trainer(model, task_set, teachers, args, settings, pipe)


def round_lengths(settings: Settings) -> list[int]:
    """Return the optimizer steps of the warm-up and of each round."""
    return [WARM_UP, *[settings.steps] * settings.rounds]


# -- the hand-written loop --------------------------------------------------------------------------------------------


def pad(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch padded to its longest sequence, with the rows, labels and indices of each task."""
    segments = [torch.tensor(example["input_ids"][0]) for example in examples]
    inputs = {
        "input_ids": pad_sequence(segments, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(segment) for segment in segments], batch_first=True),
    }
    if "token_type_ids" in examples[0]:
        types = [torch.tensor(example["token_type_ids"][0]) for example in examples]
        inputs["token_type_ids"] = pad_sequence(types, batch_first=True)
    tasks = {}
    # A task without an example is there too: as in the trainer, its head gets a gradient of 0 and keeps its momentum.
    for index, name in enumerate(TASKS):
        rows = [row for row, example in enumerate(examples) if example["task_id"] == index]
        tasks[name] = {
            "rows": torch.tensor(rows, dtype=torch.long),
            "labels": torch.tensor([examples[row]["labels"] for row in rows]),
            "example_ids": torch.tensor([examples[row]["example_id"] for row in rows], dtype=torch.long),
        }
    return {"inputs": inputs, "tasks": tasks}


def run_plain(
    model: MultiTaskModel,
    examples: Sequence[dict[str, Any]],
    teachers: dict[str, RecordedLogits],
    args: AsyncMTLTrainingArguments,
    settings: Settings,
    pipe: Connection,
) -> None:
    """Train with a hand-written loop, which uses the weights of the model but not its code."""
    device = args.device
    model.to(device).train()
    configs = model.config.task_configs
    logits = {name: torch.tensor(recorded.logits, device=device) for name, recorded in teachers.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.total_steps)
    batches = [examples[i : i + settings.batch_size] for i in range(0, len(examples), settings.batch_size)]
    turns = Turns(pipe, round_lengths(settings), device)
    model.encoder.register_forward_pre_hook(turns.count_positions, with_kwargs=True)
    for batch in map(pad, batches):
        inputs = {key: tensor.to(device) for key, tensor in batch["inputs"].items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            first = model.encoder(**inputs).last_hidden_state[:, 0]
            total = first.new_zeros((), dtype=torch.float32)
            for name, part in batch["tasks"].items():
                head: Any = model.heads[name]
                scores = head.linear(head.dropout(first[part["rows"].to(device)])).float()
                labels = part["labels"].to(device)
                teacher = logits[name][part["example_ids"].to(device)] if logits else None
                task = configs[name]
                if task.type == "regression":
                    target = labels.float() if teacher is None else teacher
                    standardized = (target - task.target_mean) / task.target_std
                    total = total + F.mse_loss(scores.squeeze(-1), standardized, reduction="sum")
                elif teacher is None:
                    total = total + F.cross_entropy(scores, labels.long(), reduction="sum")
                else:
                    student, target = scores.log_softmax(-1), teacher.log_softmax(-1)
                    total = total + F.kl_div(student, target, reduction="sum", log_target=True)
            loss = total / len(first)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        turns.end_step(loss)


# -- the trainer ------------------------------------------------------------------------------------------------------


class LossKeepingTrainer(AsyncMTLTrainer):
    """Trainer that keeps the loss of the last step for a callback."""

    last_loss: Tensor

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self.last_loss = super().training_step(model, inputs, num_items_in_batch)
        return self.last_loss


class TurnsCallback(TrainerCallback):
    """Set the phase of the tasks before the run, and pause the run between rounds."""

    def __init__(
        self, trainer: LossKeepingTrainer, teachers: dict[str, RecordedLogits], lengths: Sequence[int], pipe: Connection
    ) -> None:
        self.trainer, self.teachers, self.lengths, self.pipe = trainer, teachers, lengths, pipe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.teachers:
            # Two evaluations of which the second is worse: with a patience of 1 every task converges.
            self.trainer.schedule.observe(-1, dict.fromkeys(TASKS, 1.0))
            self.trainer.schedule.observe(0, dict.fromkeys(TASKS, 0.0))
            for name, recorded in self.teachers.items():
                self.trainer.teachers._loaded[name] = recorded
        self.turns = Turns(self.pipe, self.lengths, args.device)
        self.trainer.model.encoder.register_forward_pre_hook(self.turns.count_positions, with_kwargs=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.turns.end_step(self.trainer.last_loss)


def run_trainer(
    model: MultiTaskModel,
    task_set: TaskSet,
    teachers: dict[str, RecordedLogits],
    args: AsyncMTLTrainingArguments,
    settings: Settings,
    pipe: Connection,
) -> None:
    """Train with the trainer."""
    trainer = LossKeepingTrainer(
        model=model,
        args=args,
        processing_class=task_set.tokenizer,
        train_dataset=task_set.raw,
        # It must have some, and never comes to read them.
        eval_dataset={name: rows.select(range(2)) for name, rows in task_set.raw.items()},
    )
    trainer.add_callback(TurnsCallback(trainer, teachers, round_lengths(settings), pipe))
    trainer.train()


# -- all variants ------------------------------------------------------------------------------------------------------


def measure(settings: Settings, folder: Path) -> list[list[dict[str, Any]]]:
    """Run all variants in turns.

    Returns:
        For each variant what it reported after its warm-up and after each round.
    """
    # Forked from a server that has the libraries loaded and nothing else: a process that comes from this one, forked or
    # executed, would inherit its peak of memory.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_async_mtl.training.trainer"])
    pipes, processes = [], []
    reports: list[list[dict[str, Any]]] = []
    for variant in VARIANTS:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(variant, settings, folder, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
        reports.append([receive(ours, variant)])
        say(f"{variant.loop}, {variant.losses}: warmed up in {reports[-1][0]['seconds']:.1f} s")
    for number in range(1, settings.rounds + 1):
        for variant, pipe, done in zip(VARIANTS, pipes, reports, strict=True):
            pipe.send(GO_ON)
            done.append(receive(pipe, variant))
        say(f"round {number} of {settings.rounds}: " + ", ".join(f"{done[-1]['seconds']:.1f} s" for done in reports))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(STOP)
        process.join()
    return reports


def receive(pipe: Connection, variant: object) -> dict[str, Any]:
    """Return the report of a variant after a round."""
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(f"The process of {variant} has ended before its last round; see its error above.") from None


def say(line: str) -> None:
    """Show progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def summarize(
    reports: Sequence[Sequence[dict[str, Any]]], examples: Sequence[dict[str, Any]], settings: Settings
) -> list[dict[str, Any]]:
    """Return one entry per variant, from all reports."""
    timed = examples[WARM_UP * settings.batch_size :]
    real = sum(len(example["input_ids"][0]) for example in timed)
    seconds = {
        variant: [entry["seconds"] for entry in entries[1:]] for variant, entries in zip(VARIANTS, reports, strict=True)
    }
    memory = {
        variant: entries[-1]["peak_gpu"] or entries[-1]["peak_rss"]
        for variant, entries in zip(VARIANTS, reports, strict=True)
    }
    summary = []
    for variant, entries in zip(VARIANTS, reports, strict=True):
        plain = Variant(PLAIN, variant.distilling)
        ratios = [theirs / ours for ours, theirs in zip(seconds[variant], seconds[plain], strict=True)]
        rates = [settings.steps * settings.batch_size / taken for taken in seconds[variant]]
        summary.append(
            {
                "loop": variant.loop,
                "losses": variant.losses,
                "examples_per_second": statistics.median(rates),
                "speed_ratio": statistics.median(ratios),
                "real_tokens": real / sum(entry["positions"] for entry in entries[1:]),
                "peak_rss": entries[-1]["peak_rss"],
                "rss_before_training": entries[-1]["rss_before_training"],
                "peak_gpu": entries[-1]["peak_gpu"],
                "memory_ratio": memory[variant] / memory[plain],
                "rounds": [
                    {"seconds": entry["seconds"], "speed_ratio": ratio, "loss": entry["loss"]}
                    for entry, ratio in zip(entries[1:], ratios, strict=True)
                ],
            }
        )
    return summary


def table_of(summary: Sequence[dict[str, Any]]) -> Table:
    """Return the summary as a Markdown table."""
    on_gpu = summary[0]["peak_gpu"] is not None
    table = Table(box=box.MARKDOWN, header_style="bold")
    for header in ("loop", "losses"):
        table.add_column(header)
    peak = "GPU MiB" if on_gpu else "peak MiB"
    for header in ("examples/s", "ratio", "range", "real tokens", peak, "memory"):
        table.add_column(header, justify="right")
    for entry in summary:
        ratios = [item["speed_ratio"] for item in entry["rounds"]]
        table.add_row(
            entry["loop"],
            entry["losses"],
            f"{entry['examples_per_second']:.1f}",
            f"{entry['speed_ratio']:.2f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
            f"{100 * entry['real_tokens']:.1f}%",
            f"{(entry['peak_gpu'] if on_gpu else entry['peak_rss']) / 2**20:.0f}",
            f"{entry['memory_ratio']:.2f}",
        )
    return table


def processor() -> str:
    """Return the name of the processor, if the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    environment = os.environ
    parser.add_argument("--data", default=environment.get("GLUE_DATA"), help="folder of the tasks; default: $GLUE_DATA")
    parser.add_argument("--encoder", default=environment.get("ENCODER"), help="folder or Hub id; default: $ENCODER")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="examples of a batch")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of the longest sequence, and of a row")
    parser.add_argument("--threads", type=int, help="of PyTorch in each process; default: PyTorch's own")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--output", type=Path, default=Path("speed.json"), metavar="FILE.json")
    args = parser.parse_args(argv)
    for key in ("data", "encoder"):
        if getattr(args, key) is None:
            parser.error(f"--{key} must be given, or its environment variable set")
    for key in ("steps", "rounds", "batch_size"):
        if getattr(args, key) < 1:
            parser.error(f"--{key.replace('_', '-')} must be at least 1; found {getattr(args, key)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the file."""
    args = parse(argv)
    settings = Settings(
        args.data, args.encoder, args.steps, args.rounds, args.batch_size, args.max_length, args.threads, args.bf16
    )
    started, load = datetime.now(timezone.utc), os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        # Tokenized here, so that no variant pays for it, in time or in memory.
        encoded = TaskSet.load(settings).encoded(settings.max_length)
        examples = drawn_examples(encoded, settings)
        record_teachers(encoded, Path(scratch), settings.seed)
        reports = measure(settings, Path(scratch))
    summary = summarize(reports, examples, settings)
    counts = Counter(example["task_id"] for example in examples)
    result = {
        "date": started.isoformat(timespec="seconds"),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "cores": os.cpu_count(),
            "device": reports[0][0]["device"],
            "threads": reports[0][0]["threads"],
            "load_before": load,
            "load_after": os.getloadavg(),
        },
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in LIBRARIES},
        },
        # Where folders lie on this machine is nobody's business.
        "settings": {
            **asdict(settings),
            "data": Path(settings.data).name,
            "encoder": Path(settings.encoder).name if Path(settings.encoder).is_dir() else settings.encoder,
            "warm_up": WARM_UP,
            "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        },
        "examples": {part.name: {"of": len(part), "drawn": counts[part.task_id]} for part in encoded},
        "variants": summary,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(render(table_of(summary), sys.stdout))
    print(f"All figures are in {args.output}")


if __name__ == "__main__":
    main()
