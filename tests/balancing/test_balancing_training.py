"""Balancing inside the trainer: whose loss is balanced, what becomes of the rest, resumption, and several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    GradientRecorder,
    InterruptedRunError,
    Interruption,
    different,
    log_of,
    tiny_model,
    tiny_trainer,
    weights,
)
from torch import Tensor

from hf_async_mtl import AsyncMTLTrainingArguments, ConfigurationError

TRIO = {"polarity": 12, "overlap": 12, "colors": 8}
GROWING = [i / 100 for i in range(1, 100)]
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "eval_steps": 2,
    "logging_steps": 2,
    "convergence": {"patience": 1, "final_evaluations": None},
}
# polarity distils from the second evaluation on.
SCRIPT = {"polarity": [0.5, 0.4], "overlap": GROWING, "colors": GROWING}


def one_step(folder: Path, balancing: dict[str, Any], **settings: Any) -> tuple[Any, dict[str, Tensor]]:
    """A trainer before its only step, a batch of all examples, and the gradients of the step."""
    recorder = GradientRecorder()
    trainer = tiny_trainer(
        folder,
        TRIO,
        model=tiny_model(list(TRIO), dropout=0.0),
        callbacks=[recorder],
        balancing=balancing,
        max_steps=1,
        per_device_train_batch_size=sum(TRIO.values()),
        max_grad_norm=0.0,
        **settings,
    )
    trainer.train()
    return trainer, recorder.steps[0]


def task_gradients(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Of each task's mean loss over all examples, at the weights that every run here begins with."""
    trainer = tiny_trainer(folder, TRIO, model=tiny_model(list(TRIO), dropout=0.0))
    model, found, losses = trainer.model.train(), {}, {}
    for name, rows in trainer.encoded_train.items():
        batch = trainer.data_collator([rows[i] for i in range(len(rows))])
        batch.pop("example_ids")
        model.zero_grad()
        loss = model(**batch).losses[name].mean()
        loss.backward()
        losses[name] = float(loss.detach())
        found[name] = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
    return found, losses


def assert_gradients(found: dict[str, Tensor], tasks: dict[str, dict[str, Tensor]], lambdas: dict[str, float]) -> None:
    """The encoder's gradient is the weighted sum over the tasks."""
    for key, gradient in found.items():
        if key.startswith("encoder"):
            expected = sum(weight * tasks[name][key] for name, weight in lambdas.items())
            torch.testing.assert_close(
                gradient, expected, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_a_method_on_losses_weighs_the_means_of_the_tasks(tmp_path: Path) -> None:
    """Bug: tasks are balanced by their sums over unequal numbers of examples, or the scale of the update is lost."""
    tasks, losses = task_gradients(tmp_path / "tasks")
    _, found = one_step(tmp_path / "run", {"method": "gls"})
    # The geometric mean (prod l)^(1/3): its derivative by l_t is that over 3 l_t.
    mean = torch.tensor(list(losses.values())).log().mean().exp().item()
    assert_gradients(found, tasks, {name: mean / (3 * loss) for name, loss in losses.items()})


@pytest.mark.parametrize("over", ["last_layer", "encoder"])
def test_a_method_on_gradients_leaves_the_heads_alone(over: str, tmp_path: Path) -> None:
    """Bug: heads are scaled by their task's weight, or by other than the mean's, or the encoder gets all twice."""
    tasks, _ = task_gradients(tmp_path / "tasks")
    _, found = one_step(tmp_path / "run", {"method": "cagrad", "parameters": {"c": 0}, "over": over})
    # Without conflict-averseness it is the plain mean over the tasks.
    assert_gradients(found, tasks, dict.fromkeys(TRIO, 1 / 3))
    for key, gradient in found.items():
        if key.startswith("heads"):
            torch.testing.assert_close(gradient, tasks[key.split(".")[1]][key] / 3, rtol=1e-4, atol=1e-6)


def test_static_weights_multiply_the_balanced_losses(tmp_path: Path) -> None:
    """Bug: `weights` are forgotten as soon as a method is chosen."""
    tasks, _ = task_gradients(tmp_path / "tasks")
    balancing = {"method": "cagrad", "parameters": {"c": 0}, "weights": {"polarity": 3.0}}
    _, found = one_step(tmp_path / "run", balancing)
    assert_gradients(found, tasks, {**dict.fromkeys(TRIO, 1 / 3), "polarity": 1.0})


@pytest.mark.parametrize("method", ["uw", "pcgrad"])
def test_a_converged_task_leaves_the_balanced_set(method: str, tmp_path: Path) -> None:
    """Bug: a distilled loss near 0 takes all weight (FAMO), or blows its own up (UW)."""
    trainer = tiny_trainer(tmp_path, TRIO, SCRIPT, balancing={"method": method}, **SETTINGS)
    balanced: list[tuple[int, tuple[int, ...]]] = []
    weigh = type(trainer.multi_task_loss.balancer).weights

    class Seen(type(trainer.multi_task_loss.balancer)):  # type: ignore[misc]
        def weights(self, *args: Any) -> Tensor:
            balanced.append((trainer.state.global_step, tuple(args[-1])))
            return weigh(self, *args)

    trainer.multi_task_loss.balancer.__class__ = Seen
    trainer.train()
    assert trainer.schedule.phases["polarity"] == "distilling"
    assert any(0 in ids for step, ids in balanced if step < 4)
    assert not any(0 in ids for step, ids in balanced if step >= 4)


@pytest.mark.parametrize(
    "balancing",
    [
        {"method": "uw"},
        {"method": "dwa", "parameters": {"window": 2}},
        {"method": "rlw"},
        {"method": "famo"},
        {"method": "pcgrad"},
        {"method": "gradvac"},
        {"method": "gradnorm"},
        {"method": "graddrop", "over": "encoder"},
    ],
    ids=lambda balancing: balancing["method"],
)
def test_a_balanced_run_resumes(balancing: dict[str, Any], tmp_path: Path) -> None:
    """Bug: learned weights, averages or the place in a stream of random numbers begin anew."""
    settings = {**SETTINGS, "balancing": balancing, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    whole = tiny_trainer(tmp_path / "whole", TRIO, SCRIPT, **settings)
    whole.train()
    killed = tiny_trainer(tmp_path / "killed", TRIO, SCRIPT, callbacks=[Interruption(5)], **settings)
    with pytest.raises(InterruptedRunError):
        killed.train()
    resumed = tiny_trainer(tmp_path / "killed", TRIO, SCRIPT, model=tiny_model(list(TRIO), seed=99), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert different(weights(resumed), weights(whole)) == []
    assert log_of(resumed) == log_of(whole)
    assert resumed.multi_task_loss.balancer is not None
    assert whole.multi_task_loss.balancer is not None
    assert resumed.multi_task_loss.balancer.state_dict() == whole.multi_task_loss.balancer.state_dict()


@pytest.mark.parametrize(
    ("name", "fields", "variable"),
    [
        ("`training.fp16`", {"fp16": True}, None),
        ("FSDP", {"fsdp": "full_shard"}, None),
        ("FSDP", {}, "ACCELERATE_USE_FSDP"),
    ],
)
def test_what_a_method_cannot_run_with_is_refused(
    name: str, fields: dict[str, Any], variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: scaled or sharded gradients are balanced as if they were whole, and nothing tells.

    Sharding may come from the configuration of `accelerate launch`, of which the arguments have no field.
    """
    if variable is not None:
        monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigurationError, match=f"`balancing.method: pcgrad` cannot be used with {name}: "):
        AsyncMTLTrainingArguments(str(tmp_path), balancing={"method": "pcgrad"}, **fields)


def test_conflicts_are_measured_without_a_trace(tmp_path: Path) -> None:
    """Bug: measuring moves a random number or a gradient, or happens at every micro-batch."""
    trainers = []
    for steps in (0, 2):
        trainer = tiny_trainer(
            tmp_path / str(steps), TRIO, SCRIPT, conflict_steps=steps, **{**SETTINGS, "gradient_accumulation_steps": 2}
        )
        trainer.train()
        trainers.append(trainer)
    assert different(weights(trainers[0]), weights(trainers[1])) == []
    assert "conflicts" not in trainers[0].report()
    conflicts = trainers[1].report()["conflicts"]
    steps = trainers[1].state.global_step
    assert conflicts["counts"][0][0] <= -(-steps // 2)
    assert all(-1 <= cosine <= 1 for row in conflicts["cosines"] for cosine in row)


# Its successor is not in the oldest release that we allow.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_conflicts_that_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    """Bug: gradients are taken through a graph that cannot give them, hours after the start; or nothing is measured."""
    with pytest.raises(ConfigurationError, match=r"`training\.conflict_steps` .* gradient_checkpointing does not give"):
        tiny_trainer(tmp_path, TRIO, SCRIPT, conflict_steps=2, gradient_checkpointing=True, **SETTINGS)


# -- several processes ------------------------------------------------------------------------------------------------

RANK = """
import json, sys
import torch
from pathlib import Path
from test_balancing_training import rank_run
folder, method, over = sys.argv[1:]
rank_run(Path(folder), {"method": method, "over": over}, batch=16)
"""


def rank_run(folder: Path, balancing: dict[str, Any], batch: int) -> None:
    """Train a little with as many examples a step on one process or two, and leave the weights."""
    trainer = tiny_trainer(
        folder / "run",
        TRIO,
        {**dict.fromkeys(TRIO, GROWING), "polarity": [0.5, 0.4]},
        model=tiny_model(list(TRIO), dropout=0.0),
        balancing=balancing,
        max_steps=4,
        per_device_train_batch_size=batch,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        conflict_steps=2,
        **{key: value for key, value in SETTINGS.items() if key != "num_train_epochs"},
        save_strategy="no",
        load_best_model_at_end=False,
    )
    trainer.train()
    state = {name: tensor.tolist() for name, tensor in weights(trainer).items()}
    (folder / f"weights-{trainer.args.process_index}.json").write_text(json.dumps(state))


@pytest.mark.parametrize(("method", "over"), [("uw", "last_layer"), ("pcgrad", "last_layer"), ("upgrad", "encoder")])
def test_two_processes_balance_as_one(method: str, over: str, tmp_path: Path) -> None:
    """Bug: each rank balances its own gradients, and the ranks drift apart without an error."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    rank_run(one, {"method": method, "over": over}, batch=32)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH")])
        ),
        "ACCELERATE_USE_CPU": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    done = subprocess.run(
        [*command, str(script), str(two), method, over],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = json.loads((one / "weights-0.json").read_text())
    ranks = [json.loads((two / f"weights-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(ranks[0][name]), torch.tensor(values), rtol=1e-4, atol=1e-5)
