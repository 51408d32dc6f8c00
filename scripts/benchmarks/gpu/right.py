"""Part 2 of the GPU benchmark: the device computes what it should.

    python right.py OUTPUT [--device cuda] [--quick]

* ``packed``: logits of packed rows against those of a plain padded call, for four families of encoders, ``sdpa`` and
  ``eager``, in fp32 (difference at most 1e-4) and in bf16 autocast (at most 5 % of the largest logit: bf16 has 8 bits,
  and the order of the sums differs).
* ``losses``: the losses of 20 steps in fp32 on the device and on the processor differ by at most 1e-3.
* ``resume``: the weights of a resumed run against those of the uninterrupted one, with dropout: equal to the last bit.
  If a kernel of the card is not deterministic, they may differ by 1e-5.
* ``memory``: the peak of allocated GPU memory of distilling steps over that of learning steps, at most 1.02. All
  batches have the same shape. Needs a GPU.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import runs
import torch
from common import Results, Settings, parse
from datasets import Dataset
from smoke import StopAt
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_async_mtl import AsyncMTLTrainer, MultiTaskModel

FP32_TOLERANCE = 1e-4
BF16_TOLERANCE = 0.05
LOSS_TOLERANCE = 1e-3
RESUME_TOLERANCE = 1e-5
MEMORY_RATIO = 1.02


# -- packed rows ------------------------------------------------------------------------------------------------------


def packed(settings: Settings, folder: Path) -> dict[str, Any]:
    """Compare packed with padded logits in every case."""
    cases = {}
    families = ("bert", "modernbert") if settings.quick else tuple(runs.FAMILIES)
    for name in families:
        for attention in ("sdpa", "eager"):
            model = runs.model_of(runs.family(name), runs.tasks(2), attention, max_length=128)
            for bf16 in (False, True):
                key = f"{name} {attention} {'bf16' if bf16 else 'fp32'}"
                cases[key] = packed_case(model.eval(), bf16, settings, folder)
    return {"cases": cases, "holds": all(case["holds"] for case in cases.values())}


def packed_case(model: MultiTaskModel, bf16: bool, settings: Settings, folder: Path) -> dict[str, Any]:
    data = {name: runs.rows(32, number) for number, name in enumerate(model.config.task_order)}
    args = runs.arguments(folder, settings.on_cpu, bf16=bf16, bf16_full_eval=False, per_device_eval_batch_size=16)
    trainer = runs.trainer_of(model, args, data)
    found = trainer.predict(data)
    expected = padded_logits(trainer, data, bf16)
    pairs = [(torch.as_tensor(found[name].predictions).double(), expected[name]) for name in data]
    difference = largest(ours - theirs for ours, theirs in pairs)
    largest_logit = largest(theirs for _, theirs in pairs)
    limit = BF16_TOLERANCE * largest_logit if bf16 else FP32_TOLERANCE
    return {
        "packs": model.packs,
        "difference": difference,
        "largest_logit": largest_logit,
        "limit": limit,
        "holds": model.packs and difference <= limit,
    }


def largest(tensors: Iterable[Tensor]) -> float:
    """Return the largest absolute value; a value that is not finite is an error (Python's `max` can skip NaN)."""
    value = float(torch.stack([tensor.abs().max() for tensor in tensors]).max())
    if not math.isfinite(value):
        raise ValueError(f"All values must be finite; found {value}.")
    return value


def padded_logits(trainer: AsyncMTLTrainer, data: Mapping[str, Dataset], bf16: bool) -> dict[str, Tensor]:
    """Return the logits of each task, on the scale of its predictions, from the model's plain padded call."""
    device = trainer.args.device
    found = {}
    for name, part in data.items():
        batch = trainer.processing_class(list(part["text"]), return_tensors="pt", padding=True).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = trainer.model(**batch, tasks=[name]).logits[name]
        found[name] = logits.double().cpu()
    return found


# -- the same steps ---------------------------------------------------------------------------------------------------


def train(folder: Path, on_cpu: bool, dropout: bool, callbacks: Sequence[Any] = (), **settings: Any) -> AsyncMTLTrainer:
    """Return a trainer of two tasks, one of each kind, that has not trained yet."""
    encoder = runs.family("bert") if dropout else runs.without_dropout(runs.family("bert"))
    of = runs.tasks(2)
    data = {name: runs.rows(160, number) for number, name in enumerate(of)}
    given: dict[str, Any] = {
        "max_steps": 20,
        "eval_steps": 10,
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        **settings,
    }
    args = runs.arguments(folder, on_cpu, learning_rate=1e-3, **given)
    return runs.trainer_of(runs.model_of(encoder, of, max_length=64), args, data, callbacks)


def within(difference: float, limit: float, holds: bool) -> dict[str, Any]:
    return {"difference": difference, "limit": limit, "holds": holds and difference <= limit}


def losses(settings: Settings, folder: Path) -> dict[str, Any]:
    """Compare the losses of the same steps on the device and on the processor."""
    steps = settings.size(full=20, quick=6)
    curves = []
    for number, on_cpu in enumerate((settings.on_cpu, True)):
        trainer = train(folder / str(number), on_cpu, dropout=False, max_steps=steps, eval_steps=steps)
        trainer.train()
        curves.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    difference = largest(torch.tensor(ours - theirs) for ours, theirs in zip(*curves, strict=True))
    holds = len(curves[0]) == steps
    return {"steps": steps, "first": curves[0][0], "last": curves[0][-1], **within(difference, LOSS_TOLERANCE, holds)}


def resume(settings: Settings, folder: Path) -> dict[str, Any]:
    """Compare a resumed run, in which a task switches to distilling, with the uninterrupted one."""
    half = 10
    given: dict[str, Any] = {
        "max_steps": 4 * half,
        "eval_steps": half,
        "save_strategy": "steps",
        "convergence": runs.AT_ONCE,
    }
    whole = train(folder / "whole", settings.on_cpu, dropout=True, **given)
    whole.train()
    train(folder / "parts", settings.on_cpu, dropout=True, callbacks=[StopAt(3 * half)], **given).train()
    second = train(folder / "parts", settings.on_cpu, dropout=True, **given)
    second.train(resume_from_checkpoint=True)
    pairs = zip(whole.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    difference = largest(ours.double() - theirs.double() for ours, theirs in pairs)
    phases = {name: entry["phase"] for name, entry in second.report()["tasks"].items()}
    holds = "distilling" in phases.values()
    return {
        "steps": 4 * half,
        "bitwise": difference == 0,
        "phases": phases,
        **within(difference, RESUME_TOLERANCE, holds),
    }


# -- memory -----------------------------------------------------------------------------------------------------------


class PeakOfSteps(TrainerCallback):
    """Keep the peak of allocated GPU memory of steps in which all tasks are in one phase, evaluations left out.

    The first steps are left out too: they make the state of the optimizer. The run ends after ``steps`` steps of
    distilling.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.trainer: AsyncMTLTrainer
        self.peaks: dict[str, list[int]] = {"learning": [], "distilling": []}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        phases = set(self.trainer.schedule.phases.values())
        if len(phases) == 1 and state.global_step > self.steps:
            self.peaks[phases.pop()].append(torch.cuda.max_memory_allocated())
        control.should_training_stop |= len(self.peaks["distilling"]) == self.steps


def memory(settings: Settings, folder: Path) -> dict[str, Any] | None:
    """Compare the peak of distilling steps with that of learning steps, for an encoder of MiniLM's size."""
    if settings.on_cpu:
        return None
    of = runs.tasks(2)
    # One length for all rows, so that all batches have the same shape; 30 tokens and the two special ones.
    data = {name: runs.rows(512, number, words=(30, 30)) for number, name in enumerate(of)}
    model = runs.model_of(runs.family("bert", **runs.MINILM), of, max_length=32)
    given = {"max_steps": 400, "eval_steps": 20, "learning_rate": 5e-4, "convergence": runs.AT_ONCE}
    peaks = PeakOfSteps(steps=10)
    args = runs.arguments(folder, False, per_device_train_batch_size=64, bf16=True, **given)
    peaks.trainer = runs.trainer_of(model, args, data, [peaks])
    peaks.trainer.train()
    learning, distilling = (max(values) for values in peaks.peaks.values())
    ratio = distilling / learning
    found = {"learning_mib": learning / 2**20, "distilling_mib": distilling / 2**20}
    return {**found, "ratio": ratio, "limit": MEMORY_RATIO, "holds": ratio <= MEMORY_RATIO}


def main() -> None:
    settings = parse(__doc__)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    results = Results("right", settings)
    with tempfile.TemporaryDirectory() as scratch:
        for function in (packed, losses, resume, memory):
            folder = Path(scratch, function.__name__)
            results.measure(function.__name__, partial(function, settings, folder))


if __name__ == "__main__":
    main()
