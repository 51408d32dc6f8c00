"""The losses, against plain loops and against what defines a divergence."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_async_mtl.modeling.losses import (
    bernoulli_kl,
    categorical_kl,
    cross_entropy,
    multilabel_cross_entropy,
    ragged_cross_entropy,
    ragged_kl,
    ragged_mean,
    segment_index,
    squared_error,
)

OFFSETS = torch.tensor([0, 3, 4, 4, 9])
Divergence = Callable[..., Tensor]


def ragged_kl_here(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    return ragged_kl(student, teacher, OFFSETS, temperature)


# Name, function, shape of the logits, and the units of a distribution as rows (for the plain formula).
DIVERGENCES: list[Any] = [
    pytest.param(categorical_kl, (9, 4), id="categorical"),
    pytest.param(bernoulli_kl, (9, 4), id="bernoulli"),
    pytest.param(ragged_kl_here, (9,), id="ragged"),
    pytest.param(ragged_kl_here, (9, 2), id="ragged_pair"),
]


def logits_of(shape: tuple[int, ...], seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


def plain_kl(student: list[float], teacher: list[float], temperature: float) -> float:
    p = softmax([score / temperature for score in teacher])
    q = softmax([score / temperature for score in student])
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def groups() -> list[range]:
    return [range(a, b) for a, b in pairwise(OFFSETS.tolist())]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("divergence", "shape"), DIVERGENCES)
def test_nothing_to_learn_where_student_is_teacher(
    divergence: Divergence, shape: tuple[int, ...], temperature: float
) -> None:
    """A cross-entropy passed for a divergence: its loss is the teacher's entropy, not 0, where both agree."""
    teacher = logits_of(shape, seed=0)
    student = teacher.clone().requires_grad_()
    loss = divergence(student, teacher, temperature)
    assert loss.abs().max() <= 1e-7
    loss.sum().backward()
    assert student.grad is not None
    # Rounding of probabilities, times the temperature squared.
    assert student.grad.abs().max() <= 1e-7 * temperature**2


@pytest.mark.parametrize(("divergence", "shape"), DIVERGENCES)
@pytest.mark.parametrize("seed", range(5))
def test_divergences_are_positive(divergence: Divergence, shape: tuple[int, ...], seed: int) -> None:
    """Student and teacher changed places or a sign was lost, and a larger distance gave a smaller loss."""
    loss = divergence(logits_of(shape, seed), logits_of(shape, seed + 100))
    distributions = loss if loss.shape[0] != len(OFFSETS) - 1 else loss[[0, 3]]
    assert (distributions > 0).all()


@pytest.mark.parametrize(("divergence", "shape"), DIVERGENCES)
def test_no_gradient_flows_to_the_teacher(divergence: Divergence, shape: tuple[int, ...]) -> None:
    """Both sides moved towards each other, and the teacher forgot."""
    student, teacher = (logits_of(shape, seed).requires_grad_() for seed in (0, 1))
    divergence(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("divergence", "shape"), DIVERGENCES)
def test_extreme_logits_stay_finite(divergence: Divergence, shape: tuple[int, ...]) -> None:
    """A sure teacher and a sure student that disagree gave infinity or NaN: log of a probability of 0."""
    teacher = 200 * logits_of(shape, seed=0).sign()
    student = (-teacher).requires_grad_()
    loss = divergence(student, teacher)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("divergence", "shape"), DIVERGENCES)
def test_half_precision_logits_are_computed_in_float32(divergence: Divergence, shape: tuple[int, ...]) -> None:
    """Under autocast the loss itself was rounded to three digits."""
    student, teacher = (logits_of(shape, seed).bfloat16() for seed in (0, 1))
    loss = divergence(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, divergence(student.float(), teacher.float()))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_categorical_kl_is_the_formula(temperature: float) -> None:
    """The factor of the temperature squared was left out or applied once, and the gradient shrank with it."""
    student, teacher = logits_of((5, 3), 0), logits_of((5, 3), 1)
    expected = [plain_kl(s, t, temperature) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(categorical_kl(student, teacher, temperature), torch.tensor(expected))


def test_categorical_kl_at_a_high_temperature_is_a_squared_error() -> None:
    """The size of the gradient depended on the temperature (Hinton et al., 2015, equation 4)."""
    student, teacher = logits_of((5, 4), 0, scale=1.0), logits_of((5, 4), 1, scale=1.0)
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = difference.square().mean(1) / 2
    torch.testing.assert_close(categorical_kl(student, teacher, 100.0), expected, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bernoulli_kl_is_the_formula(temperature: float) -> None:
    """Only the positive outcome was counted, or the labels were summed where their mean was meant."""
    student, teacher = logits_of((4, 3), 0), logits_of((4, 3), 1)
    expected = [
        sum(plain_kl([s, 0.0], [t, 0.0], temperature) for s, t in zip(row, rows, strict=True)) / 3
        for row, rows in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(bernoulli_kl(student, teacher, temperature), torch.tensor(expected))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_ragged_kl_is_the_formula_in_each_group(temperature: float) -> None:
    """The softmax ran over the tokens of all windows, not of each."""
    student, teacher = logits_of((9, 2), 0), logits_of((9, 2), 1)
    loss = ragged_kl(student, teacher, OFFSETS, temperature)
    assert loss.shape == (4, 2)
    for group, units in enumerate(groups()):
        for k in range(2):
            s, t = ([float(x[i, k]) for i in units] for x in (student, teacher))
            expected = plain_kl(s, t, temperature) if units else 0.0
            assert loss[group, k].item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(ragged_kl(student[:, 0], teacher[:, 0], OFFSETS, temperature), loss[:, 0])


def test_ragged_cross_entropy_is_the_formula_in_each_group() -> None:
    """A position inside its window was read as a position in the batch."""
    offsets = torch.tensor([0, 3, 4, 9])
    logits, targets = logits_of((9, 2), 0), torch.tensor([[2, 0], [0, 0], [4, 1]])
    loss = ragged_cross_entropy(logits, targets, offsets)
    for group, (first, last) in enumerate([(0, 3), (3, 4), (4, 9)]):
        for k in range(2):
            probabilities = softmax(logits[first:last, k].tolist())
            assert loss[group, k].item() == pytest.approx(-math.log(probabilities[targets[group, k]]), abs=1e-5)
    torch.testing.assert_close(ragged_cross_entropy(logits[:, 1], targets[:, 1], offsets), loss[:, 1])


def test_ragged_softmax_is_stable() -> None:
    """Scores of a thousand overflowed, since the largest was not taken off in each group."""
    logits = torch.tensor([1000.0, 999.0, -1000.0, -1001.0], requires_grad=True)
    loss = ragged_cross_entropy(logits, torch.tensor([0, 0]), torch.tensor([0, 2, 4]))
    torch.testing.assert_close(loss, torch.full((2,), math.log(1 + math.exp(-1))))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_ragged_mean_is_a_loop() -> None:
    """An example without a word was 0 / 0, or a long example weighed more than a short one."""
    values = logits_of((9,), 0).requires_grad_()
    mask = torch.tensor([1, 0, 1, 0, 1, 1, 0, 0, 1]).bool()
    result = ragged_mean(values, OFFSETS, mask)
    for example, units in enumerate(groups()):
        counted = [values[i].item() for i in units if mask[i]]
        expected = sum(counted) / len(counted) if counted else 0.0
        assert result[example].item() == pytest.approx(expected, abs=1e-6)
    result.sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert (values.grad[~mask] == 0).all()


def test_ragged_mean_does_not_touch_what_is_masked() -> None:
    """A NaN of a token without a label times a weight of 0 was NaN all the same."""
    values = torch.tensor([1.0, math.nan, 3.0])
    mean = ragged_mean(values, torch.tensor([0, 3]), torch.tensor([True, False, True]))
    assert mean.tolist() == [2.0]


def test_owners_of_empty_groups() -> None:
    """A group without a unit shifted all groups behind it."""
    assert segment_index(OFFSETS, 9).tolist() == [0, 0, 0, 1, 3, 3, 3, 3, 3]


def test_cross_entropy_is_the_formula() -> None:
    """A sub-word without a label gave a loss."""
    logits = logits_of((3, 4), 0)
    loss = cross_entropy(logits, torch.tensor([2, -100, 0])).tolist()
    expected = [-math.log(softmax(logits[0].tolist())[2]), 0.0, -math.log(softmax(logits[2].tolist())[0])]
    assert loss == pytest.approx(expected, abs=1e-6)


def test_multilabel_cross_entropy_is_the_formula() -> None:
    """The labels were summed, and a task with more of them weighed more."""
    logits, labels = logits_of((2, 3), 0), torch.tensor([[1, 0, 1], [0, 0, 0]])
    expected = []
    for row, wanted in zip(logits.tolist(), labels.tolist(), strict=True):
        chances = [1 / (1 + math.exp(-score)) for score in row]
        terms = [-math.log(p if label else 1 - p) for p, label in zip(chances, wanted, strict=True)]
        expected.append(sum(terms) / 3)
    assert multilabel_cross_entropy(logits, labels).tolist() == pytest.approx(expected, abs=1e-5)


def test_squared_error_has_no_unit() -> None:
    """Targets in cents made a task weigh ten thousand times as much as in euros."""
    predictions, targets = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])
    assert squared_error(predictions, targets, 2.0).tolist() == [0.25, 1.0]
    torch.testing.assert_close(
        squared_error(100 * predictions, 100 * targets, 200.0), squared_error(predictions, targets, 2.0)
    )
