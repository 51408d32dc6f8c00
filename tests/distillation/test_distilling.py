"""How much a converged task listens to its labels and to its teacher, and how loudly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALL, ScriptedTrainer, tiny_model, tiny_trainer
from torch import Tensor

from hf_async_mtl.distillation.loss import hard_label_weight, norm_keeping_weight
from hf_async_mtl.modeling.losses import categorical_kl, cross_entropy, squared_error
from hf_async_mtl.training.arguments import DistillationConfig

# -- the labels' share ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_a_plain_share_stays(share: float) -> None:
    """Bug: a share that nothing changes depends on the step."""
    config = DistillationConfig(hard_label_weight=share)
    assert {hard_label_weight(config, step, 10, 100) for step in (10, 11, 50, 100)} == {share}


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]),
        # Not `max`, which would arrive two steps early, and with a kink.
        (0.5, [1.0, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5]),
        (1.0, [1.0] * 7),
    ],
)
def test_a_ramp_goes_to_the_share_in_so_many_steps(share: float, expected: list[float]) -> None:
    """Bug: the ramp ends early where labels keep a share, or begins a step late, with a jump."""
    config = DistillationConfig(hard_label_weight=share, ramp_steps=4)
    assert [hard_label_weight(config, step, 20, 1000) for step in (20, 21, 22, 23, 24, 25, 999)] == expected


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.7, 0.9])
def test_a_ramp_is_exact_at_both_ends(share: float) -> None:
    """Bug: rounding leaves a trace of the teacher at the switch, or of the ramp behind it."""
    config = DistillationConfig(hard_label_weight=share, ramp_steps=7)
    assert [hard_label_weight(config, step, 3, 100) for step in (3, 10, 11)] == [1.0, share, share]


def test_annealing_takes_the_larger_share() -> None:
    """Bug: annealing lowers the share that was asked for, or goes by the steps since the switch."""
    config = DistillationConfig(hard_label_weight=0.5, annealing=True)
    assert [hard_label_weight(config, step, 8, 16) for step in (8, 12, 15, 16)] == [0.5, 0.75, 15 / 16, 1.0]
    born_again = DistillationConfig(annealing=True)
    assert [hard_label_weight(born_again, step, 0, 16) for step in range(17)] == [step / 16 for step in range(17)]


def test_a_ramp_comes_down_to_the_annealed_share() -> None:
    """Bug: of two settings that are given together, one is forgotten."""
    config = DistillationConfig(ramp_steps=4, annealing=True)
    found = [hard_label_weight(config, step, 8, 16) for step in (8, 9, 10, 11, 12, 14)]
    # 1, 3/4, 1/2, 1/4, 0 of the ramp against 8/16, 9/16, ... of annealing.
    assert found == [1.0, 0.75, 10 / 16, 11 / 16, 12 / 16, 14 / 16]


# -- the teacher's loudness -------------------------------------------------------------------------------------------

LOGITS = torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]])
TEACHER = torch.tensor([[0.2, 0.1, 0.9], [1.5, 0.0, -0.4]])
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_weight_is_the_ratio_of_norms_of_classification(temperature: float) -> None:
    """Bug: the ratio is upside down, of the losses, or of the gradients of one example."""
    logits = LOGITS.clone().requires_grad_()
    weight = norm_keeping_weight(
        categorical_kl(logits, TEACHER, temperature), cross_entropy(logits, LABELS), logits, largest=1e6
    )
    # Cross-entropy: p - y. The divergence, times temperature squared: temperature * (p_T - q_T).
    of_labels = LOGITS.softmax(-1) - torch.eye(3)[LABELS]
    of_teacher = temperature * ((LOGITS / temperature).softmax(-1) - (TEACHER / temperature).softmax(-1))
    assert float(weight) == pytest.approx(float(of_labels.norm() / of_teacher.norm()), rel=1e-5)
    assert not weight.requires_grad


def test_the_weight_is_the_ratio_of_norms_of_regression() -> None:
    """Bug: numbers instead of vectors of logits are refused, or the deviation does not cancel out."""
    predictions = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    teacher, labels = torch.tensor([1.5, 2.0, 3.0]), torch.tensor([0.0, 4.0, 4.0])
    weight = norm_keeping_weight(
        squared_error(predictions, teacher, 2.5), squared_error(predictions, labels, 2.5), predictions
    )
    assert float(weight) == pytest.approx((5 / 1.25) ** 0.5, rel=1e-6)


def losses_with_norms(teacher: float, labels: float) -> tuple[Tensor, Tensor, Tensor]:
    """Two losses of one example, and logits at which they have these gradients."""
    logits = torch.zeros(1, 2, requires_grad=True)
    return teacher * logits[:, 0], labels * logits[:, 1], logits


@pytest.mark.parametrize(
    ("teacher", "labels", "expected"),
    [
        (1.0, 3.0, 3.0),
        (1.0, 0.2, 0.2),
        (1.0, 50.0, 10.0),
        (50.0, 1.0, 0.1),
        (1e-30, 1.0, 10.0),
        (0.0, 1.0, 10.0),
        (1.0, 0.0, 0.1),
        (0.0, 0.0, 1.0),
    ],
)
def test_the_weight_is_bounded(teacher: float, labels: float, expected: float) -> None:
    """Bug: a student that agrees with its teacher is shaken by rounding errors, or becomes NaN."""
    assert float(norm_keeping_weight(*losses_with_norms(teacher, labels))) == pytest.approx(expected, rel=1e-6)


def test_a_student_that_is_its_teacher_has_no_gradient() -> None:
    """Bug: 0 / 0 makes the whole step NaN, from the first one after the switch on."""
    logits = LOGITS.clone().requires_grad_()
    distilled, supervised = categorical_kl(logits, LOGITS), cross_entropy(logits, LABELS)
    weighted = distilled * norm_keeping_weight(distilled, supervised, logits)
    weighted.sum().backward()
    assert logits.grad is not None
    assert weighted.abs().max() == 0
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1e-3, 0.5, 100.0])
def test_scales_do_not_matter(scale: float) -> None:
    """Bug: the weight of a task in the sum, or the number of its examples, changes the balance within it."""

    def weight(by: float, repeats: int) -> float:
        logits = LOGITS.repeat(repeats, 1).requires_grad_()
        distilled = categorical_kl(logits, TEACHER.repeat(repeats, 1))
        supervised = cross_entropy(logits, LABELS.repeat(repeats))
        return float(norm_keeping_weight(by * distilled, by * supervised, logits))

    assert weight(scale, 1) == pytest.approx(weight(1.0, 1), rel=1e-4)
    assert weight(1.0, 3) == pytest.approx(weight(1.0, 1), rel=1e-5)


def test_half_precision_logits_have_a_weight() -> None:
    """Bug: squares of small half-precision gradients underflow, and the weight is that of no gradient."""
    logits = LOGITS.bfloat16().requires_grad_()
    small = 1e-20
    weight = norm_keeping_weight(small * categorical_kl(logits, TEACHER), small * cross_entropy(logits, LABELS), logits)
    exact = LOGITS.clone().requires_grad_()
    expected = norm_keeping_weight(categorical_kl(exact, TEACHER), cross_entropy(exact, LABELS), exact)
    assert float(weight) == pytest.approx(float(expected), rel=2e-2)


def test_the_graph_is_kept() -> None:
    """Bug: measuring frees what the backward pass needs, or leaves a gradient behind."""
    layer = torch.nn.Linear(3, 3)
    logits = layer(LOGITS)
    distilled, supervised = categorical_kl(logits, TEACHER), cross_entropy(logits, LABELS)
    weight = norm_keeping_weight(distilled, supervised, logits)
    assert layer.weight.grad is None
    (expected,) = torch.autograd.grad(distilled.sum(), layer.weight, retain_graph=True)
    (distilled * weight).sum().backward()
    torch.testing.assert_close(layer.weight.grad, expected * weight)


# -- in a run ---------------------------------------------------------------------------------------------------------


class Listener:
    """Stands in for `Teachers.losses`: keeps its calls, and what the teacher alone would have said, unweighted."""

    def __init__(self, trainer: ScriptedTrainer) -> None:
        self.calls: list[dict[str, Any]] = []
        self._trainer = trainer
        self._real = trainer.teachers.losses
        trainer.teachers.losses = self  # type: ignore[method-assign]

    def __call__(self, task: str, head: Any, logits: Tensor, *args: Any) -> Tensor:
        *others, supervised, share = args
        losses = self._real(task, head, logits, *args)
        teachers = self._trainer.teachers
        config, teachers.config = teachers.config, replace(teachers.config, keep_gradient_norm=False)
        plain = self._real(task, head, logits, *others, supervised, 0.0)
        teachers.config = config
        call: dict[str, Any] = {
            "step": self._trainer.state.global_step,
            "task": task,
            "share": share,
            "losses": losses.detach(),
            "supervised": supervised.detach(),
            "teacher": plain.detach(),
        }
        if torch.is_grad_enabled():
            for name, value in (("norm", losses), ("labels_norm", supervised), ("teacher_norm", plain)):
                (gradient,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
                call[name] = float(gradient.norm())
        self.calls.append(call)
        return losses


def listen(folder: Path, **settings: Any) -> tuple[ScriptedTrainer, list[dict[str, Any]]]:
    """A run in which all tasks but the last converge at step 4 on the weights of step 2, and what their losses were."""
    names = ALL[:-1]
    trainer = tiny_trainer(
        folder,
        dict.fromkeys(ALL, 4),
        {**{name: [0.5, 0.4] for name in names}, ALL[-1]: [i / 100 for i in range(1, 100)]},
        model=tiny_model(ALL, dropout=0.0),
        per_device_train_batch_size=24,
        eval_steps=2,
        logging_steps=1,
        max_steps=12,
        save_strategy="no",
        load_best_model_at_end=False,
        learning_rate=5e-3,
        **settings,
    )
    listener = Listener(trainer)
    trainer.train()
    assert {event.step for event in trainer.schedule.events} == {4}
    assert {call["step"] for call in listener.calls} == set(range(4, 12))
    assert {call["task"] for call in listener.calls} == set(names)
    return trainer, listener.calls


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_ramp_begins_with_the_labels(tmp_path: Path, share: float) -> None:
    """Bug: the loss jumps at the switch, for the ramp goes by the run's steps or by the next evaluation."""
    _, calls = listen(tmp_path, distillation={"ramp_steps": 4, "hard_label_weight": share})
    for call in calls:
        of_labels = share + (1 - share) * max(0.0, 1 - (call["step"] - 4) / 4)
        assert call["share"] == pytest.approx(of_labels, abs=1e-12)
        expected = torch.lerp(call["teacher"], call["supervised"], call["share"])
        assert torch.equal(call["losses"], expected)
        if call["step"] == 4:
            assert torch.equal(call["losses"], call["supervised"])
        if call["step"] >= 8 and share == 0:
            assert torch.equal(call["losses"], call["teacher"])
    assert all((call["teacher"] - call["supervised"]).abs().max() > 1e-4 for call in calls)


def test_annealing_goes_by_the_steps_of_the_run(tmp_path: Path) -> None:
    """Bug: T is an epoch's steps or the training arguments' -1, and the share is above 1 or below 0."""
    trainer, calls = listen(tmp_path, distillation={"annealing": True})
    assert trainer.state.max_steps == 12
    assert {(call["step"], call["share"]) for call in calls} == {(step, step / 12) for step in range(4, 12)}


def test_the_logged_loss_is_the_one_that_was_learned_from(tmp_path: Path) -> None:
    """Bug: the log shows the teacher's loss while the labels' is what the gradient comes from."""
    trainer, calls = listen(tmp_path, distillation={"ramp_steps": 8})
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    for call in calls:
        mean = float(call["losses"].mean())
        assert logged[call["step"] + 1][f"{call['task']}_loss"] == pytest.approx(mean, rel=1e-5)


def test_a_task_pulls_as_hard_as_its_labels_would(tmp_path: Path) -> None:
    """Bug: the weight is taken from other logits than those of the loss, or is left out of it."""
    _, calls = listen(tmp_path, distillation={"keep_gradient_norm": True})
    free = 0
    for call in calls:
        assert call["losses"].isfinite().all()
        least, most = call["teacher_norm"] / 10, call["teacher_norm"] * 10
        assert call["norm"] == pytest.approx(min(max(call["labels_norm"], least), most), rel=1e-3)
        free += least < call["labels_norm"] < most
    assert free > 5


def test_labels_alone_are_not_weighed(tmp_path: Path) -> None:
    """Bug: the teacher's weight multiplies the labels' share too, and a ramp begins with a jump after all."""
    _, calls = listen(tmp_path, distillation={"keep_gradient_norm": True, "ramp_steps": 4})
    at_switch = [call for call in calls if call["step"] == 4]
    assert at_switch
    for call in at_switch:
        assert torch.equal(call["losses"], call["supervised"])


def test_the_norm_is_kept_under_autocast(tmp_path: Path) -> None:
    """Bug: under bf16 the output's logits are copies, on which the model's own losses do not hang: the run dies."""
    trainer = tiny_trainer(
        tmp_path,
        dict.fromkeys(ALL, 4),
        {name: [0.5, 0.4] for name in ALL},
        eval_steps=1,
        max_steps=4,
        bf16=True,
        distillation={"keep_gradient_norm": True},
        convergence={"patience": 1, "final_evaluations": None},
    )
    trainer.train()
    assert set(trainer.schedule.phases.values()) == {"distilling"}
    assert trainer.state.global_step == 4
