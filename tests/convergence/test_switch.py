"""What a task learns from in each phase: gradients, recorded teachers, and the switch between them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALL, GradientRecorder, ScriptedTrainer, different, log_of, tiny_model, tiny_trainer, weights
from torch import Tensor

from hf_async_mtl import ConfigurationError
from hf_async_mtl.modeling.heads import Head

# The run ends with the weights of its last step.
LAST_WEIGHTS: dict[str, Any] = {"save_strategy": "no", "load_best_model_at_end": False}
GROWING = [i / 100 for i in range(1, 100)]


class Tape(GradientRecorder):
    """Keeps the gradients of each optimizer step, and the weights that they were taken at."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_pre_optimizer_step(args, state, control, **kwargs)
        self.weights.append({name: p.detach().clone() for name, p in kwargs["model"].named_parameters()})


# polarity distils and overlap is stopped from the second evaluation on; the others learn.
MIXED_PHASES: dict[str, Any] = {
    "script": {**dict.fromkeys(ALL, GROWING), "polarity": [0.5, 0.4], "overlap": [0.5, 0.4]},
    "convergence": {"patience": 1, "tasks": {"overlap": {"on_convergence": "stop"}}},
    "balancing": {"weights": {"colors": 2.0, "polarity": 0.5}},
    "eval_steps": 1,
    "logging_steps": 1,
    "optim": "sgd",
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    **LAST_WEIGHTS,
}


def gradients(folder: Path, sizes: dict[str, int], batch: int, accumulation: int, epochs: int) -> tuple[Any, Tape]:
    tape = Tape()
    trainer = tiny_trainer(
        folder,
        sizes,
        model=tiny_model(list(sizes), dropout=0.0),
        callbacks=[tape],
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **MIXED_PHASES,
    )
    trainer.train()
    return trainer, tape


@pytest.mark.parametrize(
    ("sizes", "epochs", "splits"),
    [
        # One window of 16: 4 x 4, and 6 + 6 + 4.
        (dict(zip(ALL, [4, 3, 3, 2, 2, 2], strict=True)), 4, [(4, 4), (6, 3)]),
        # Windows of 16 and 8: the last one of an epoch is smaller.
        (dict(zip(ALL, [6, 5, 4, 3, 3, 3], strict=True)), 2, [(4, 4)]),
    ],
    ids=["whole", "last-window"],
)
def test_batch_size_and_accumulation_are_traded_freely(
    tmp_path: Path, sizes: dict[str, int], epochs: int, splits: list[tuple[int, int]]
) -> None:
    """Bug: micro-batches weigh the same whatever they hold, so accumulation changes the gradient."""
    whole, expected = gradients(tmp_path / "whole", sizes, 16, 1, epochs)
    assert whole.schedule.phases == {**dict.fromkeys(ALL, "learning"), "polarity": "distilling", "overlap": "stopped"}
    assert len(expected.steps) == 4
    assert log_of(whole)[-1]["epoch"] == epochs
    for batch, accumulation in splits:
        _, found = gradients(tmp_path / f"{batch}", sizes, batch, accumulation, epochs)
        assert len(found.steps) == len(expected.steps)
        for step, (left, right) in enumerate(zip(found.steps, expected.steps, strict=True)):
            for name in right:
                difference = (left[name] - right[name]).abs().max()
                assert difference <= 1e-5, (step, name, difference)


def test_the_gradient_is_that_of_the_mean_over_examples(tmp_path: Path) -> None:
    """Bug: N counts stopped examples, a weight is left out, or a task learns from the wrong target in its phase."""
    sizes = dict(zip(ALL, [4, 3, 3, 2, 2, 2], strict=True))
    trainer, tape = gradients(tmp_path, sizes, 16, 1, 4)
    model, collator = trainer.model.eval(), trainer.data_collator
    task_weights = MIXED_PHASES["balancing"]["weights"]

    def logits_of(name: str, example: int) -> tuple[Any, Any]:
        batch = collator([trainer.encoded_train[name][example]])
        batch.pop("example_ids")
        return model(**batch), batch

    def reference(step: int, phases: dict[str, str], teacher: dict[tuple[str, int], Tensor]) -> dict[str, Tensor]:
        model.load_state_dict(tape.weights[step], strict=False)
        model.zero_grad()
        losses = []
        for name, size in sizes.items():
            for example in range(size):
                output, batch = logits_of(name, example)
                loss = output.losses[name]
                if phases[name] == "distilling":
                    loss = model.heads[name].distillation_loss(
                        output.logits[name], teacher[name, example], batch["labels"][name], output.layouts[name], 1.0
                    )
                if phases[name] != "stopped":
                    losses.append(task_weights.get(name, 1.0) * loss.sum())
        (sum(losses) / len(losses)).backward()
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}

    # The second step was taken from the weights of the first evaluation, which are the teacher's.
    model.load_state_dict(tape.weights[1], strict=False)
    with torch.no_grad():
        teacher = {
            ("polarity", example): logits_of("polarity", example)[0].logits["polarity"]
            for example in range(sizes["polarity"])
        }
    learning = dict.fromkeys(ALL, "learning")
    for step, phases in [(0, learning), (3, {**learning, "polarity": "distilling", "overlap": "stopped"})]:
        expected = reference(step, phases, teacher)
        assert expected["heads.polarity.linear.weight"].abs().max() > 1e-5
        for name, gradient in expected.items():
            assert (tape.steps[step][name] - gradient).abs().max() <= 1e-5, (step, name)


class TeacherSpy(ScriptedTrainer):
    """Keeps the weights at each evaluation, and the teacher's logits that each example is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.evaluated: dict[int, dict[str, Tensor]] = {}
        self.given: dict[tuple[str, int], Tensor] = {}
        self.temperatures: set[float] = set()
        self._batch: dict[str, Any] = {}
        for name, head in self.model.heads.items():
            head.distillation_loss = self._spy(name, head)

    def _spy(self, name: str, head: Head) -> Any:
        real = head.distillation_loss

        def distillation_loss(logits: Tensor, teacher: Tensor, labels: Any, layout: Any, temperature: float) -> Tensor:
            here = self._batch["task_ids"] == list(self.tasks).index(name)
            units = [1] * int(here.sum())
            if head.unit == "token":
                units = layout.example_tokens.diff().tolist()
            for example, rows in zip(self._batch["example_ids"][here].tolist(), teacher.split(units), strict=True):
                self.given[name, example] = rows
            self.temperatures.add(temperature)
            return real(logits, teacher, labels, layout, temperature)

        return distillation_loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            self._batch = inputs
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        if eval_dataset is None:
            self.evaluated[self.state.global_step] = weights(self)
        return super().evaluate(eval_dataset, *args, **kwargs)


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_recorded_logits_are_the_teachers_own(tmp_path: Path, packing: str) -> None:
    """Bug: an example gets another one's logits, those of another step, or some that dropout has touched."""
    early, late = [0.5, 0.4], [0.1, 0.2, 0.15]
    script = {name: (early, late)[place % 2] for place, name in enumerate(ALL)}
    trainer = tiny_trainer(
        tmp_path,
        dict.fromkeys(ALL, 6),
        script,
        kind=TeacherSpy,
        model=tiny_model(ALL, dropout=0.3, packing=packing),
        dataloader_num_workers=2 if packing == "auto" else 0,
        eval_steps=5,
        num_train_epochs=4,
        per_device_eval_batch_size=4,
        **LAST_WEIGHTS,
        distillation={"temperature": 2.0},
    )
    assert trainer.model.packs == (packing == "auto")
    trainer.train()
    assert isinstance(trainer, TeacherSpy)
    steps = {event.task: event.teacher_step for event in trainer.schedule.events}
    assert steps == {name: (5, 10)[place % 2] for place, name in enumerate(ALL)}
    assert trainer.temperatures == {2.0}
    # The last epoch visits every example once, and all tasks distil in it.
    assert trainer.given.keys() == {(name, example) for name in ALL for example in range(6)}
    model = trainer.model.eval()
    for name in ALL:
        model.load_state_dict(trainer.evaluated[steps[name]])
        for example in range(6):
            batch = trainer.data_collator([trainer.encoded_train[name][example]])
            batch.pop("example_ids")
            with torch.no_grad():
                own = model(**batch).logits[name]
            torch.testing.assert_close(trainer.given[name, example].view(own.shape), own, atol=1e-5, rtol=1e-5)


def switch_run(folder: Path, action: str, **settings: Any) -> ScriptedTrainer:
    """All tasks but the last converge at step 4, on the weights of step 4 themselves; without dropout."""
    names = ALL[:-1]
    trainer = tiny_trainer(
        folder,
        dict.fromkeys(ALL, 8),
        {**{name: [0.5, 0.55] for name in names}, ALL[-1]: [0.1, 0.5, 0.9]},
        **{
            "model": tiny_model(ALL, dropout=0.0),
            "convergence": {"patience": 1, "min_delta": 0.1, "on_convergence": action},
            "eval_steps": 2,
            "logging_steps": 1,
            "max_steps": 6,
            "per_device_train_batch_size": 48,
            **LAST_WEIGHTS,
            **settings,
        },
    )
    trainer.train()
    assert [(event.step, event.teacher_step) for event in trainer.schedule.events] == [(4, 4)] * len(names)
    return trainer


def losses_at(trainer: ScriptedTrainer, step: int) -> dict[str, float]:
    (entry,) = [entry for entry in trainer.state.log_history if entry["step"] == step and "loss" in entry]
    return {name: entry[f"{name}_loss"] for name in ALL if f"{name}_loss" in entry}


def test_the_loss_switches_for_converged_tasks_alone(tmp_path: Path) -> None:
    """Bug: the loss switches too late, for all tasks, or against other logits than those of the weights at hand."""
    plain = losses_at(switch_run(tmp_path / "plain", "continue"), 5)
    trainer = switch_run(tmp_path / "distil", "distill")
    assert losses_at(trainer, 4) == pytest.approx(losses_at(switch_run(tmp_path / "again", "continue"), 4), abs=1e-6)
    distilled = losses_at(trainer, 5)
    for name in ALL[:-1]:
        # Nothing but the rounding of another packing: the student is its own teacher.
        assert abs(distilled[name]) < 1e-7 < 1e-3 < plain[name]
    assert distilled[ALL[-1]] == pytest.approx(plain[ALL[-1]], rel=1e-5)


def test_label_share_interpolates(tmp_path: Path) -> None:
    """Bug: the share is that of the teacher, or is applied to tasks that still learn."""
    plain = losses_at(switch_run(tmp_path / "plain", "continue"), 5)
    mixed = losses_at(switch_run(tmp_path / "mixed", "distill", distillation={"hard_label_weight": 0.25}), 5)
    for name in ALL[:-1]:
        assert mixed[name] == pytest.approx(0.25 * plain[name], rel=1e-4)
    assert mixed[ALL[-1]] == pytest.approx(plain[ALL[-1]], rel=1e-5)


THREE = {"polarity": 16, "overlap": 16, "colors": 16}
# With dropout, and teachers of an earlier step than the one that they are recorded at.
THREE_SCRIPT = {"polarity": [0.5, 0.4], "overlap": [0.1, 0.2, 0.15], "colors": GROWING}


def test_recording_a_teacher_leaves_the_run_alone(tmp_path: Path) -> None:
    """Bug: the live weights stay the teacher's, or the recording moves the random numbers that dropout takes."""
    runs = []
    for action in ("continue", "distill"):
        trainer = tiny_trainer(
            tmp_path / action,
            THREE,
            THREE_SCRIPT,
            convergence={"patience": 1, "on_convergence": action},
            # With labels alone the two runs differ in nothing but the recording.
            distillation={"hard_label_weight": 1.0},
            **LAST_WEIGHTS,
        )
        trainer.train()
        runs.append(trainer)
    plain, recorded = runs
    assert recorded.schedule.phases == {"polarity": "distilling", "overlap": "distilling", "colors": "learning"}
    assert plain.state.global_step == recorded.state.global_step
    assert different(weights(plain), weights(recorded)) == []


def test_continue_is_plain_training(tmp_path: Path) -> None:
    """Bug: with `continue`, the baseline of every comparison, convergence changes the run or goes unrecorded."""
    runs = []
    for patience in (1, 10**6):
        trainer = tiny_trainer(
            tmp_path / str(patience),
            THREE,
            THREE_SCRIPT,
            convergence={"patience": patience, "on_convergence": "continue", "final_evaluations": 0},
            **LAST_WEIGHTS,
        )
        trainer.train()
        runs.append(trainer)
    converged, plain = runs
    assert different(weights(converged), weights(plain)) == []
    assert log_of(converged) == log_of(plain)
    assert plain.schedule.events == []
    assert [(event.task, event.step) for event in converged.schedule.events] == [("polarity", 8), ("overlap", 12)]
    assert set(converged.schedule.phases.values()) == {"learning"}
    assert converged.state.global_step == 18


class WeightsAtSteps(GradientRecorder):
    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = {
            name: tensor.detach().clone() for name, tensor in kwargs["model"].state_dict().items()
        }

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_a_stopped_head_is_frozen(tmp_path: Path, optimizer: str) -> None:
    """Bug: weight decay or momentum goes on moving the head of a task that has stopped."""
    recorder = WeightsAtSteps()
    trainer = tiny_trainer(
        tmp_path,
        THREE,
        THREE_SCRIPT,
        callbacks=[recorder],
        convergence={"patience": 1, "tasks": {"polarity": {"on_convergence": "stop"}}},
        optim=optimizer,
        optim_args="momentum=0.9" if optimizer == "sgd" else None,
        weight_decay=0.1,
        **LAST_WEIGHTS,
    )
    trainer.train()
    assert trainer.schedule.phases["polarity"] == "stopped"
    before, after = recorder.weights[8], weights(trainer)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("heads.polarity."), name
    moved = [name for name in before if not torch.equal(recorder.weights[7][name], before[name])]
    assert "heads.polarity.linear.weight" in moved
    assert "polarity_loss" not in log_of(trainer)[-1]


@pytest.mark.parametrize(("final_evaluations", "last"), [(0, 12), (1, 16), (None, 24)])
def test_the_run_ends_when_nobody_learns(tmp_path: Path, final_evaluations: int | None, last: int) -> None:
    """Bug: the run goes on to the end of its budget, or ends with the first task."""
    trainer = tiny_trainer(
        tmp_path,
        {"polarity": 16, "overlap": 16},
        {"polarity": [0.5, 0.4], "overlap": [0.1, 0.2, 0.15]},
        convergence={"patience": 1, "final_evaluations": final_evaluations},
        num_train_epochs=6,
    )
    trainer.train()
    assert trainer.state.global_step == last
    assert trainer.schedule.report()["step"] == last


@pytest.mark.parametrize("final_evaluations", [-1, 1.5, True, "3"])
def test_final_evaluations_are_counted(tmp_path: Path, final_evaluations: Any) -> None:
    """Bug: a value that counts nothing is found after hours of training."""
    with pytest.raises(ConfigurationError, match="final_evaluations` must be a whole number of at least 0, or null"):
        tiny_trainer(tmp_path, {"polarity": 8}, convergence={"final_evaluations": final_evaluations})
