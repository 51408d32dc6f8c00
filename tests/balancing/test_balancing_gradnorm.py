"""GradNorm against Chen et al., ICML 2018."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_async_mtl.balancing.backward import jacobian
from hf_async_mtl.balancing.build import build_balancer
from hf_async_mtl.balancing.config import BalancingConfig
from hf_async_mtl.balancing.gradnorm import LEAST_WEIGHT, GradNorm, gradnorm_gradient


def make(tasks: int, **parameters: float) -> GradNorm:
    config = BalancingConfig("gradnorm", parameters=parameters)
    balancer = build_balancer(config, [f"task{i}" for i in range(tasks)], seed=0, calls_per_epoch=1)
    assert isinstance(balancer, GradNorm)
    return balancer


def ask(balancer: GradNorm, norms: list[float], losses: list[float], ids: list[int] | None = None) -> list[float]:
    jacobian = torch.diag(torch.tensor(norms, dtype=torch.float64))
    ids = list(range(len(norms))) if ids is None else ids
    return balancer.weights(jacobian, torch.tensor(losses, dtype=torch.float64), ids).tolist()


def test_the_first_steps_by_hand() -> None:
    """Bug: what passes for GradNorm elsewhere has no gradient norm in it.

    Norms 3 and 1, equal ratios: the mean norm is 2, the slopes are +3 and -1, the weights 1 - 0.075 and 1 + 0.025, and
    then rescaled to add up to 2. They hold from the next call on; here divided by 2.
    """
    balancer = make(2, learning_rate=0.025)
    assert ask(balancer, [3.0, 1.0], [5.0, 0.1]) == [0.5, 0.5]
    assert ask(balancer, [3.0, 1.0], [5.0, 0.1]) == pytest.approx([0.925 / 1.95, 1.025 / 1.95], rel=1e-12)


@pytest.mark.parametrize("tasks", [2, 3])
def test_it_is_chen_et_al(tasks: int) -> None:
    """Bug: the ratio is of losses, not of losses over first losses; or the target moves with the weights.

    L_grad = sum |w_i n_i - mean(w n) r_i^alpha|, r_i = (l_i / l_i(0)) / mean; w -= lr dL_grad/dw, the target held; then
    w is rescaled to add up to the number of tasks. The slope here is by autograd.
    """
    calls = [
        ([3.0, 1.0, 0.5], [4.0, 1.0, 2.0]),
        ([2.0, 1.5, 1.0], [1.0, 0.9, 2.0]),
        ([0.5, 2.0, 2.0], [0.5, 0.8, 0.1]),
        ([0.5, 2.0, 1.0], [0.4, 0.2, 0.1]),
    ]
    balancer = make(tasks, alpha=1.5, learning_rate=0.05)
    first = np.array(calls[0][1][:tasks])
    w = np.ones(tasks)
    for norms, losses in calls:
        norms, losses = norms[:tasks], losses[:tasks]
        assert ask(balancer, norms, losses) == pytest.approx(w / tasks, rel=1e-12)
        ratios = np.array(losses) / first
        target = np.mean(w * norms) * (ratios / ratios.mean()) ** 1.5
        leaf = torch.tensor(w, requires_grad=True)
        (leaf * torch.tensor(norms) - torch.tensor(target)).abs().sum().backward()
        assert leaf.grad is not None
        w = w - 0.05 * leaf.grad.numpy()
        w = w * tasks / w.sum()


def test_the_gradient_is_zero_where_all_learn_alike() -> None:
    """Bug: weights drift although norms and ratios are equal."""
    one = torch.ones(3)
    assert gradnorm_gradient(one, 2 * one, 0.3 * one, alpha=1.5).tolist() == [0, 0, 0]


def test_norms_become_equal_with_alpha_0() -> None:
    """Bug: the weights run away from the balance that they are to find."""
    balancer = make(3, alpha=0.0, learning_rate=0.001)
    for _ in range(3000):
        weights = ask(balancer, [4.0, 1.0, 2.0], [1.0, 1.0, 1.0])
    weighted = np.array(weights) * [4.0, 1.0, 2.0]
    assert weighted == pytest.approx(np.full(3, weighted.mean()), rel=0.02)
    assert sum(weights) == pytest.approx(1)


def test_a_slow_task_gets_the_larger_gradient() -> None:
    """Bug: the power of the ratio has the wrong sign, and the task that lags is held back."""
    balancer = make(2, alpha=1.0, learning_rate=0.01)
    ask(balancer, [1.0, 1.0], [1.0, 1.0])
    for _ in range(20):
        fast, slow = ask(balancer, [1.0, 1.0], [0.2, 0.9])
    assert slow > fast


def test_no_weight_becomes_negative() -> None:
    """Bug: one step past 0, and a task is trained to forget."""
    balancer = make(2)
    for _ in range(5):
        weights = ask(balancer, [500.0, 1.0], [1.0, 1.0])
        assert min(weights) >= LEAST_WEIGHT / 2 * 0.9
        assert sum(weights) == pytest.approx(1)


def test_a_task_that_left_takes_no_weight_with_it() -> None:
    """Bug: a converged task keeps its share of the sum, and those that still learn hardly move."""
    balancer = make(3, learning_rate=0.1)
    for _ in range(8):
        ask(balancer, [0.2, 2.0, 1.0], [1.0, 1.0, 1.0])
    assert balancer.state_dict()["weights"][0] > 1.2
    assert sum(ask(balancer, [2.0, 1.0], [1.0, 1.0], [1, 2])) == pytest.approx(1)
    assert sum(balancer.state_dict()["weights"]) == pytest.approx(3)


def test_it_trains() -> None:
    """Bug: everything is right on paper, and the losses do not fall."""
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 2), torch.randn(64, 3)
    y = x @ torch.randn(3, 2) * torch.tensor([10.0, 0.1])
    balancer = make(2)
    first = None
    for _ in range(200):
        losses = ((layer(x) - y) ** 2).mean(0)
        rows = jacobian(losses, list(layer.parameters()))
        weights = balancer.weights(rows, losses, [0, 1])
        layer.zero_grad()
        (weights @ losses).backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= 0.1 * parameter.grad
        first = losses.detach() if first is None else first
    assert (losses < 0.05 * first).all()
