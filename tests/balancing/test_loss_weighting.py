"""Weights from the losses, each method against its paper's formula.

All are at the scale of the plain mean: where a paper adds the tasks up, its weights are divided by their number K.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from hf_async_mtl.balancing.balancer import LossBalancer
from hf_async_mtl.balancing.build import build_balancer
from hf_async_mtl.balancing.config import BalancingConfig
from hf_async_mtl.balancing.loss_weighting import famo_gradient

TWO = [[2.0, 0.5], [1.0, 0.25], [3.0, 0.125]]
THREE = [[2.0, 0.5, 1.0], [1.5, 0.25, 4.0], [0.5, 0.5, 0.125]]


def make(method: str, tasks: int, calls_per_epoch: int = 1000, seed: int = 0, **parameters: Any) -> LossBalancer:
    config = BalancingConfig(method, parameters=parameters)
    balancer = build_balancer(config, [f"task{i}" for i in range(tasks)], seed, calls_per_epoch)
    assert isinstance(balancer, LossBalancer)
    return balancer


def ask(balancer: LossBalancer, losses: list[float], ids: list[int] | None = None) -> list[float]:
    ids = list(range(len(losses))) if ids is None else ids
    return balancer.weights(torch.tensor(losses, dtype=torch.float64), ids).tolist()


def softmax(values: Any) -> np.ndarray:
    powers = np.exp(np.asarray(values) - np.max(values))
    return powers / powers.sum()


@pytest.mark.parametrize("rows", [TWO, THREE])
def test_uw_is_kendall_et_al(rows: list[list[float]]) -> None:
    """Bug: the log-variances stand still, or climb.

    S = sum exp(-s) l / 2 + s / 2; so dS/dl = exp(-s) / 2, here times 2/K, and dS/ds = (1 - exp(-s) l) / 2.
    """
    balancer = make("uw", len(rows[0]), learning_rate=0.1)
    s = np.zeros(len(rows[0]))
    for losses in rows:
        assert ask(balancer, losses) == pytest.approx(np.exp(-s) / len(s), rel=1e-12)
        s = s - 0.1 * (1 - np.exp(-s) * np.array(losses)) / 2


@pytest.mark.parametrize("rows", [TWO, THREE])
def test_imtl_l_is_liu_et_al(rows: list[list[float]]) -> None:
    """Bug: the sign of the scales is UW's.

    S = sum exp(s) l - s; so dS/dl = exp(s), here divided by K, and dS/ds = exp(s) l - 1.
    """
    balancer = make("imtl_l", len(rows[0]), learning_rate=0.1)
    s = np.zeros(len(rows[0]))
    for losses in rows:
        assert ask(balancer, losses) == pytest.approx(np.exp(s) / len(s), rel=1e-12)
        s = s - 0.1 * (np.exp(s) * np.array(losses) - 1)


@pytest.mark.parametrize("method", ["uw", "imtl_l"])
def test_learned_scales_settle_at_the_inverse_of_the_loss(method: str) -> None:
    """Bug: descent on the wrong function. Both objectives are least where the weights are 1 / l."""
    balancer = make(method, 2, learning_rate=0.1)
    for _ in range(2000):
        weights = ask(balancer, [4.0, 0.5])
    assert weights == pytest.approx([0.25 / 2, 2.0 / 2], rel=1e-6)


@pytest.mark.parametrize("rows", [TWO, THREE])
def test_dwa_is_liu_et_al(rows: list[list[float]]) -> None:
    """Bug: the ratio is of single batches, or upside down, or of the wrong epochs.

    lambda = K softmax(r / T), r = mean loss of the last epoch over that of the one before; here divided by K.
    """
    balancer = make("dwa", len(rows[0]), calls_per_epoch=2, temperature=1.5)
    epochs = [[rows[0], rows[1]], [rows[2], rows[0]], [rows[1], rows[1]], [rows[2], rows[2]]]
    answers = [ask(balancer, losses) for epoch in epochs for losses in epoch]
    means = [np.mean(epoch, axis=0) for epoch in epochs]
    for number in range(4):
        assert answers[number] == pytest.approx(np.full(len(rows[0]), 1 / len(rows[0])))
    for number in (4, 5):
        assert answers[number] == pytest.approx(softmax(means[1] / means[0] / 1.5))
    for number in (6, 7):
        assert answers[number] == pytest.approx(softmax(means[2] / means[1] / 1.5))


def test_dwa_takes_means_over_the_calls_that_a_task_is_in() -> None:
    """Bug: a task that is rarely in a batch has its loss averaged with zeros, or loses its history."""
    balancer = make("dwa", 3, window=2)
    for losses, ids in (
        ([4.0, 2.0], [0, 1]),
        ([2.0], [1]),  # window 1: means 4 and 2
        ([1.0], [1]),
        ([1.0], [1]),  # window 2: task 1 at 1, task 0 absent
        ([2.0, 3.0, 5.0], [0, 1, 2]),
        ([2.0, 3.0, 7.0], [0, 1, 2]),  # window 3: means 2, 3 and 6
    ):
        ask(balancer, losses, ids)
    # r: 2 / 4; 3 / 1; and 1 for the task with a single mean.
    assert ask(balancer, [1.0, 1.0, 1.0]) == pytest.approx(softmax(np.array([0.5, 3.0, 1.0]) / 2))


def test_rlw_is_lin_et_al() -> None:
    """Bug: weights are drawn from another law. lambda = softmax(z): ln(lambda_1 / lambda_2) = z_1 - z_2 ~ N(0, 2)."""
    for tasks in (2, 3):
        balancer = make("rlw", tasks)
        weights = np.array([ask(balancer, [1.0] * tasks) for _ in range(4000)])
        assert weights.sum(1) == pytest.approx(np.ones(4000))
        differences = np.log(weights[:, 0] / weights[:, 1])
        assert abs(differences.mean()) < 0.1
        assert differences.var() == pytest.approx(2, rel=0.1)
        assert len(np.unique(differences)) == 4000


def test_rlw_draws_by_seed_and_call() -> None:
    """Bug: ranks draw different weights, or every run the same."""
    assert ask(make("rlw", 2, seed=1), [1.0, 1.0]) == ask(make("rlw", 2, seed=1), [9.0, 2.0])
    assert ask(make("rlw", 2, seed=1), [1.0, 1.0]) != ask(make("rlw", 2, seed=2), [1.0, 1.0])


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # S = 2: 2 / (2 * 4) and 2 / (2 * 1).
        ([4.0, 1.0], [0.25, 1.0]),
        # S = 2: 2 / (3 * 1), 2 / (3 * 2), 2 / (3 * 4).
        ([1.0, 2.0, 4.0], [2 / 3, 1 / 3, 1 / 6]),
    ],
)
def test_gls_is_the_slope_of_the_geometric_mean(losses: list[float], expected: list[float]) -> None:
    """Bug: the product is taken without its root. S = (l_1 ... l_K)^(1/K), dS/dl_t = S / (K l_t)."""
    assert ask(make("gls", len(losses)), losses) == pytest.approx(expected)


@pytest.mark.parametrize("losses", [[1.0, 2.0], [1.0, 3.0, 0.5]])
def test_stch_is_lin_et_al(losses: list[float]) -> None:
    """Bug: mu multiplies where it should divide, and the smooth maximum is a minimum.

    S = mu ln sum exp(l_t / (K mu)); dS/dl = softmax(l / (K mu)) / K, here times K.
    """
    for mu in (0.1, 2.0):
        expected = softmax(np.array(losses) / (len(losses) * mu))
        assert ask(make("stch", len(losses), mu=mu), losses) == pytest.approx(expected)


@pytest.mark.parametrize("tasks", [2, 3])
def test_famo_gradient_is_the_slope_of_the_weighted_fall(tasks: int) -> None:
    """Bug: the product with the softmax's derivative has the wrong sign or lacks its second term.

    d/dw of softmax(w) . delta, by finite differences.
    """
    logits, before, after = np.array([0.3, -0.2, 1.0])[:tasks], np.array(TWO[0] + [1.0])[:tasks], np.ones(tasks) * 0.4
    delta = np.log(before) - np.log(after)
    slopes = [(softmax(logits + step) @ delta - softmax(logits - step) @ delta) / 2e-6 for step in np.eye(tasks) * 1e-6]
    found = famo_gradient(*(torch.tensor(x, dtype=torch.float64) for x in (logits, before, after)))
    assert found.tolist() == pytest.approx(slopes, abs=1e-8)


@pytest.mark.parametrize("rows", [TWO, THREE])
def test_famo_is_liu_et_al(rows: list[list[float]]) -> None:
    """Bug: the weights follow the losses of one call instead of their fall, or Adam is fed the wrong sign.

    lambda_t = c z_t / l_t with z = softmax(w), adding up to 1; w by Adam (0.9, 0.999) with weight decay, on
    (diag(z) - z z') delta, delta = ln l - ln l'.
    """
    balancer = make("famo", len(rows[0]), learning_rate=0.1, weight_decay=0.01)
    w, m, v = np.zeros((3, len(rows[0])))
    previous = None
    for step, losses in enumerate(np.array(rows * 2)):
        if previous is not None:
            z = softmax(w)
            gradient = (np.diag(z) - np.outer(z, z)) @ (np.log(previous) - np.log(losses)) + 0.01 * w
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            w = w - 0.1 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        expected = softmax(w) / losses
        assert ask(balancer, losses.tolist()) == pytest.approx(expected / expected.sum(), rel=1e-6)
        previous = losses


def test_famo_leaves_absent_tasks_alone() -> None:
    """Bug: Adam's momentum and decay move a task that is not there, or its step count runs on.

    A task that comes first at call 4 must take the step of a fresh Adam: the learning rate, once.
    """
    balancer = make("famo", 3, learning_rate=0.1, weight_decay=0.0)
    for losses in ([1.0, 2.0], [0.5, 2.0], [0.5, 1.0]):
        ask(balancer, losses, [0, 1])
    before = balancer.state_dict()
    assert before["logits"][2] == 0
    assert before["adam"][2] is None
    ask(balancer, [0.5, 3.0], [1, 2])
    ask(balancer, [0.5, 9.0], [1, 2])
    after = balancer.state_dict()
    assert after["logits"][0] == before["logits"][0]
    assert after["adam"][0] == before["adam"][0]
    assert after["logits"][2] == pytest.approx(0.1, rel=1e-6)
    assert after["previous"] == [None, 0.5, 9.0]


def test_famo_moves_weight_to_the_task_that_does_not_fall() -> None:
    """Bug: the task that learns fastest is given ever more weight."""
    balancer = make("famo", 2, learning_rate=0.1)
    for call in range(10):
        ask(balancer, [0.8**call, 1.0])
    fast, slow = balancer.state_dict()["logits"]
    assert slow > fast
    assert math.isfinite(slow)
