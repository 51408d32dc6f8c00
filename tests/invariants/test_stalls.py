"""A training step never waits for the device: nothing of ours reads a number, or makes a shape that depends on one."""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALL, ScriptedTrainer, some_rows, tiny_model, tiny_trainer, weights
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

import hf_async_mtl
from hf_async_mtl import MultiTaskConfig, MultiTaskModel
from hf_async_mtl.modeling.packing import segment_tokens

OURS = str(Path(hf_async_mtl.__file__).parent)
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero"}
TO_HOST = ("tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__", "__array__")


LIBRARIES = {"hf_async_mtl", "transformers", "accelerate"}


def caller() -> tuple[bool, str]:
    """Whether the innermost line outside torch is ours, and which it is: ``file:function``."""
    found = [
        frame
        for frame in traceback.extract_stack()
        if frame.filename != __file__ and LIBRARIES & set(Path(frame.filename).parts)
    ]
    if not found:
        return False, "torch"
    return found[-1].filename.startswith(OURS), f"{Path(found[-1].filename).name}:{found[-1].name}"


class Stalls(TorchDispatchMode):
    """Count what a GPU would have to be waited for, by who asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: Counter[str] = Counter()
        self.upstream: Counter[str] = Counter()

    def note(self, what: str) -> None:
        is_ours, where = caller()
        (self.ours if is_ours else self.upstream)[f"{what} in {where}"] += 1

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        by_mask = name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        # Without the size of its result, `repeat_interleave` reads it.
        by_sum = name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in READS or by_mask or by_sum:
            self.note(name)
        return function(*args, **(kwargs or {}))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count, and the methods of a tensor that give Python numbers, too."""
        with self, pytest.MonkeyPatch.context() as patch:
            for method in TO_HOST:
                patch.setattr(torch.Tensor, method, self._counted(method, getattr(torch.Tensor, method)))
            yield

    def _counted(self, method: str, original: Any) -> Any:
        def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.note(method)
            return original(tensor, *args, **kwargs)

        return call


UPSTREAM = {
    f"{what} in masking_utils.py:_ignore_bidirectional_mask_sdpa" for what in ("aten::_local_scalar_dense", "__bool__")
}
"""Transformers asks whether a padded batch has padding at all."""


class CountSteadySteps(TrainerCallback):
    """Count from the end of one step to the end of the next, where nothing is evaluated, logged or saved between."""

    def __init__(self, stalls: Stalls, steps: set[int]) -> None:
        self.stalls, self.steps = stalls, steps
        self.counted: list[int] = []
        self._context: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None
            self.counted.append(state.global_step)
        if state.global_step + 1 in self.steps:
            self._context = self.stalls.counting()
            self._context.__enter__()


def stalls_of(folder: Path, packing: str, steps: set[int], **settings: Any) -> tuple[Stalls, ScriptedTrainer]:
    """Train all task types, which converge at step 8 and distill from then on, and count at some steps."""
    counter = CountSteadySteps(Stalls(), steps)
    trainer = tiny_trainer(
        folder,
        dict.fromkeys(ALL, 40),
        {name: [0.5, 0.4] for name in ALL},
        model=tiny_model(ALL, packing=packing),
        callbacks=[counter],
        max_steps=14,
        per_device_train_batch_size=16,
        logging_steps=100,
        save_strategy="no",
        convergence={"patience": 1, "min_epochs": 0, "final_evaluations": None},
        **settings,
    )
    # As on a GPU: the check of a step is read at the next one.
    trainer.multi_task_loss.finite.is_deferred = True
    trainer.train()
    assert counter.counted == sorted(steps)
    return counter.stalls, trainer


def test_the_counter_counts() -> None:
    """Bug: nothing is found because nothing is counted."""
    stalls, values = Stalls(), torch.tensor([2, 3])
    with stalls.counting():
        segment_tokens(values, values)
        assert not stalls.upstream
        assert float(values[values > 2].sum()) == 3
    assert "aten::_local_scalar_dense in packing.py:segment_tokens" in stalls.ours
    assert {"aten::index in torch", "aten::_local_scalar_dense in torch", "__float__ in torch"} <= set(stalls.upstream)


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_no_step_waits_for_the_device(tmp_path: Path, packing: str) -> None:
    """Bug: a small encoder is bound by launches, and every number that is read from the device stops them."""
    stalls, trainer = stalls_of(tmp_path, packing, {3, 11})
    assert {state["phase"] for state in trainer.schedule.report()["tasks"].values()} == {"distilling"}
    assert trainer.model.packs == (packing == "auto")
    # The losses and the norm of the step before, which have been copied to the host by then.
    assert {name for name in stalls.ours if not name.endswith("nonfinite.py:flush")} == set()
    assert set(stalls.upstream) == (set() if packing == "auto" else UPSTREAM)


class Operators(TorchDispatchMode):
    """Counts the operators of training steps that compute or copy something, from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        aliases = [returned.alias_info for returned in function._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        is_empty = isinstance(found, torch.Tensor) and not found.numel()
        if not is_view and not is_empty:
            self.names[function._schema.name] += 1
        return found


class CountOperators(TrainerCallback):
    def __init__(self) -> None:
        self.counted = Operators()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.counted.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.counted.__exit__(None, None, None)
            control.should_training_stop = True


@pytest.mark.parametrize("has_examples", [True, False])
def test_a_task_adds_few_operators(tmp_path: Path, has_examples: bool) -> None:
    """Bug: with 64 tasks a step took three times as long on a GPU: each task pooled, cut and summed on its own."""
    counts = []
    for number in (4, 24):
        names = [f"task{place}" for place in range(number)]
        model = tiny_model(ALL[:1])
        configs = dict.fromkeys(names, model.config.task_configs[ALL[0]])
        model = MultiTaskModel(
            MultiTaskConfig(encoder_config=model.config.encoder_config, tasks=configs, max_length=32)
        )
        rows = some_rows({ALL[0]: 96})[ALL[0]]
        counter = CountOperators()
        tiny_trainer(
            tmp_path / f"{number}{has_examples}",
            {},
            model=model,
            train={name: rows.select(range(24 if has_examples or name == "task0" else 1)) for name in names},
            evaluation={name: rows.select(range(4)) for name in names},
            callbacks=[counter],
            per_device_train_batch_size=4 * number if has_examples else 4,
            max_steps=3,
            save_strategy="no",
            optim="sgd",
        ).train()
        counts.append(counter.counted.names)
    added = {name: count / 20 for name, count in (counts[1] - counts[0]).items()}
    assert sum(added.values()) <= (20 if has_examples else 5), added


def test_the_encoder_is_compiled_for_all_batches(tmp_path: Path) -> None:
    """Bug: each batch has other shapes, until the limit of recompilations is hit and nothing is compiled any more."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = {}
    for compiled in (False, True):
        trainer = tiny_trainer(
            tmp_path / str(compiled),
            dict.fromkeys(ALL, 40),
            model=tiny_model(ALL, dropout=0.0),
            per_device_train_batch_size=16,
            max_steps=8,
            torch_compile=compiled,
            torch_compile_backend="eager" if compiled else None,
            optim="sgd",
            learning_rate=0.05,
        )
        trainer.train()
        found[compiled] = weights(trainer)
    # For the first number of rows, and for any.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    assert not torch._dynamo.utils.counters["graph_break"]
    for name, tensor in found[False].items():
        torch.testing.assert_close(found[True][name], tensor, rtol=0, atol=1e-5)
