"""Weights and directions from gradients, each method against its paper's formula.

The references work on the vectors themselves, the methods on inner products. All are at the scale of the plain mean:
where a paper adds the tasks up, its direction is divided by their number K.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from hf_async_mtl.balancing.balancer import GradientBalancer, WeightingBalancer
from hf_async_mtl.balancing.build import build_balancer
from hf_async_mtl.balancing.config import METHODS, BalancingConfig

# Two that conflict; three, of which two conflict.
TWO = np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]])
THREE = np.array([[1.0, 0.0, 0.2], [-1.0, 2.0, 0.0], [0.5, 0.5, -1.5]])
# Each of three conflicts with both others: the order of the projections shows.
CONFLICTS = np.array([[1.0, 0.0, 0.2], [-1.0, 2.0, 0.0], [-0.5, -0.5, 1.5]])
UPRIGHT = np.diag([2.0, 1.0, 0.5])
CASES = [TWO, THREE]


def make(method: str, tasks: int, over: str = "last_layer", seed: int = 0, **parameters: Any) -> GradientBalancer:
    config = BalancingConfig(method, over=over, parameters=parameters)
    balancer = build_balancer(config, [f"task{i}" for i in range(tasks)], seed, calls_per_epoch=1)
    assert isinstance(balancer, GradientBalancer)
    return balancer


def weights(balancer: GradientBalancer, jacobian: np.ndarray, ids: list[int] | None = None) -> np.ndarray:
    assert isinstance(balancer, WeightingBalancer)
    ids = list(range(len(jacobian))) if ids is None else ids
    return balancer.weights(torch.tensor(jacobian), torch.ones(len(ids), dtype=torch.float64), ids).numpy()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def orders(tasks: int) -> Any:
    """For each task an order of the others: all ways."""
    return itertools.product(*[list(itertools.permutations([j for j in range(tasks) if j != i])) for i in range(tasks)])


def pcgrad(jacobian: np.ndarray, order: Any) -> np.ndarray:
    """Algorithm 1: g_i -= (g_i . g_j) / |g_j|^2 g_j where g_i . g_j < 0; the sum over i."""
    total = np.zeros(jacobian.shape[1])
    for i, others in enumerate(order):
        g = jacobian[i].copy()
        for j in others:
            if g @ jacobian[j] < 0:
                g -= (g @ jacobian[j]) / (jacobian[j] @ jacobian[j]) * jacobian[j]
        total += g
    return total


def test_pcgrad_is_yu_et_al_with_two_tasks() -> None:
    """Bug: projections on the altered gradients, or of the sum.

    g_1 = (1, 0), g_2 = (-1, 1): g_1 + g_2 / 2 = (.5, .5) and g_2 + g_1 = (0, 1): 2 g_1 + 1.5 g_2.
    """
    assert weights(make("pcgrad", 2), TWO) == pytest.approx([2 / 2, 1.5 / 2])


@pytest.mark.parametrize("method", ["pcgrad", "gradvac"])
def test_pcgrad_is_yu_et_al_with_three_tasks(method: str) -> None:
    """Bug: one order for all calls, or one that does not come from the algorithm. GradVac's first call is the same."""
    possible = np.unique(np.round([pcgrad(CONFLICTS, order) / 3 for order in orders(3)], 9), axis=0)
    seen = set()
    for call in range(60):
        balancer = make(method, 3)
        balancer.load_state_dict({**balancer.state_dict(), "calls": call})
        found = weights(balancer, CONFLICTS) @ CONFLICTS
        (match,) = np.flatnonzero(np.isclose(possible, found, atol=1e-6).all(axis=1))
        seen.add(match)
    assert len(seen) == len(possible) > 1


def gradvac(jacobian: np.ndarray, means: np.ndarray, beta: float) -> np.ndarray:
    """Algorithm 1 in a fixed order: where only two are not at right angles, it does not matter. Updates the means."""
    total = np.zeros(jacobian.shape[1])
    for i, start in enumerate(jacobian):
        g = start.copy()
        for j, other in enumerate(jacobian):
            if j == i:
                continue
            cosine, mean = unit(g) @ unit(other), means[i, j]
            if cosine < mean:
                sine, sine_of_mean = np.sqrt(1 - cosine**2), np.sqrt(1 - mean**2)
                factor = np.linalg.norm(g) * (mean * sine - cosine * sine_of_mean)
                g = g + factor / (np.linalg.norm(other) * sine_of_mean) * other
            means[i, j] = (1 - beta) * mean + beta * cosine
        total += g
    return total


@pytest.mark.parametrize("third", [[], [[0.0, 0.0, 3.0]]])
def test_gradvac_is_wang_et_al(third: list[list[float]]) -> None:
    """Bug: the running means are lost from call to call, and the vaccine is PCGrad."""
    tasks = 2 + len(third)
    balancer = make("gradvac", tasks, beta=0.3)
    means = np.zeros((tasks, tasks))
    for pair in (
        [[1.0, 0, 0], [0.5, 1, 0]],
        [[1.0, 0, 0], [0.1, 1, 0]],
        [[2.0, 0, 0], [-1, 0.5, 0]],
        [[1.0, 0, 0], [-1, 3, 0]],
    ):
        jacobian = np.array(pair + third)
        expected = gradvac(jacobian, means, 0.3) / tasks
        assert weights(balancer, jacobian) @ jacobian == pytest.approx(expected, abs=1e-6)
    assert abs(means[0, 1]) > 0.1
    assert np.array(balancer.state_dict()["cosines"]) == pytest.approx(means, abs=1e-6)


def test_gradvac_keeps_the_means_of_absent_tasks() -> None:
    """Bug: torchjd begins anew with every change in the number of tasks: with mixed batches, at every other call."""
    balancer = make("gradvac", 3, beta=1.0)
    weights(balancer, np.eye(3) + 0.5)
    weights(balancer, np.array([[1.0, 0.0], [0.6, 0.8]]), [0, 2])
    cosines = balancer.state_dict()["cosines"]
    # (1.5, .5, .5) and (.5, 1.5, .5): 1.75 / 2.75.
    assert cosines[0][1] == pytest.approx(1.75 / 2.75)
    assert cosines[0][2] == pytest.approx(0.6)


def simplex(tasks: int, steps: int) -> np.ndarray:
    grid = np.array([point for point in itertools.product(range(steps + 1), repeat=tasks - 1) if sum(point) <= steps])
    return np.column_stack([grid, steps - grid.sum(1)]) / steps


@pytest.mark.parametrize("jacobian", CASES)
@pytest.mark.parametrize("c", [0.2, 0.5])
def test_cagrad_is_liu_et_al(jacobian: np.ndarray, c: float) -> None:
    """Bug: the radius is that of the sum, or c is squared.

    d = g_0 + c |g_0| g_w / |g_w|, w in the simplex minimising g_w . g_0 + c |g_0| |g_w|: by trying all.
    """
    mean = jacobian.mean(0)
    radius = c * np.linalg.norm(mean)
    points = simplex(len(jacobian), {2: 20000, 3: 400}[len(jacobian)])
    combined = points @ jacobian
    best = combined[np.argmin(combined @ mean + radius * np.linalg.norm(combined, axis=1))]
    assert weights(make("cagrad", len(jacobian), c=c), jacobian) @ jacobian == pytest.approx(
        mean + radius * unit(best), abs=2e-3
    )


def test_cagrad_by_hand() -> None:
    """Bug: as above. At right angles and of one length, g_w = g_0: (1 + c) times the mean."""
    for tasks in (2, 3):
        assert weights(make("cagrad", tasks, c=0.4), np.eye(tasks)) == pytest.approx(np.full(tasks, 1.4 / tasks))
        assert weights(make("cagrad", tasks, c=0), UPRIGHT[:tasks]) == pytest.approx(np.full(tasks, 1 / tasks))


def test_mgda_is_the_shortest_convex_combination() -> None:
    """Bug: the weights of the two tasks change places.

    Two: w_1 = g_2 . (g_2 - g_1) / |g_1 - g_2|^2 = 1 / 5 for (2, 0) and (0, 1). Three at right angles: w ~ 1 / |g|^2.
    """
    assert weights(make("mgda", 2), UPRIGHT[:2]) == pytest.approx([0.2, 0.8])
    inverse = np.array([1 / 4, 1, 4])
    assert weights(make("mgda", 3), UPRIGHT) == pytest.approx(inverse / inverse.sum(), abs=0.02)
    points = simplex(3, 400) @ THREE
    shortest = points[np.argmin(np.linalg.norm(points, axis=1))]
    assert weights(make("mgda", 3), THREE) @ THREE == pytest.approx(shortest, abs=0.02)


def bargain(jacobian: np.ndarray, a: float) -> np.ndarray:
    """(G x)_t = x_t^(-1/a): one coordinate after the other by bisection; adding up to 1."""
    gramian = jacobian @ jacobian.T
    x = np.ones(len(jacobian))
    for _ in range(500):
        for t in range(len(x)):
            low, high = 1e-9, 1e9
            for _ in range(80):
                x[t] = np.sqrt(low * high)
                low, high = (low, x[t]) if gramian[t] @ x > x[t] ** (-1 / a) else (x[t], high)
    return x / x.sum()


def test_nash_mtl_is_navon_et_al() -> None:
    """Bug: the start of the solver is taken for its result, as happens in torchjd where gradients conflict.

    (G x)_t = 1 / x_t. With two tasks x_t ~ 1 / |g_t|, whatever their angle; with three at right angles too.
    """
    inverse = np.array([1, 1 / np.sqrt(2)])
    assert weights(make("nash_mtl", 2), TWO) == pytest.approx(inverse / inverse.sum(), rel=1e-4)
    inverse = np.array([1 / 2, 1, 2])
    assert weights(make("nash_mtl", 3), UPRIGHT) == pytest.approx(inverse / inverse.sum(), rel=1e-4)
    found = weights(make("nash_mtl", 3), THREE)
    assert found == pytest.approx(bargain(THREE, 1.0), rel=1e-4)
    gains = found * (THREE @ (found @ THREE))
    assert gains == pytest.approx(np.full(3, gains.mean()), rel=1e-4)


@pytest.mark.parametrize("jacobian", CASES)
@pytest.mark.parametrize("a", [0.5, 1.0, 2.0])
def test_fairgrad_is_ban_and_ji(jacobian: np.ndarray, a: float) -> None:
    """Bug: the power is alpha, not -1 / alpha. By hand at right angles: x_t = |g_t|^(-2a / (1 + a))."""
    tasks = len(jacobian)
    assert weights(make("fairgrad", tasks, alpha=a), jacobian) == pytest.approx(bargain(jacobian, a), rel=1e-3)
    expected = np.array([2.0, 1.0, 0.5])[:tasks] ** (-2 * a / (1 + a))
    found = weights(make("fairgrad", tasks, alpha=a), UPRIGHT[:tasks])
    assert found == pytest.approx(expected / expected.sum(), rel=1e-4)


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
@pytest.mark.parametrize("jacobian", CASES)
def test_aligned_mtl_is_senushkin_et_al(jacobian: np.ndarray, mode: str) -> None:
    """Bug: the principal components are those of the parameters, or their values are kept.

    With J = U S V': the mean row of sigma U V'. By hand at right angles, (2, 0) and (0, 1): weights 1/2 and 1, halved.
    """
    u, s, v = np.linalg.svd(jacobian, full_matrices=False)
    sigma = {"min": s.min(), "median": np.sqrt(np.sort(s**2)[(len(s) - 1) // 2]), "rmse": np.sqrt(np.mean(s**2))}[mode]
    expected = (sigma * u @ v).mean(0)
    balancer = make("aligned_mtl", len(jacobian), scale_mode=mode)
    assert weights(balancer, jacobian) @ jacobian == pytest.approx(expected, abs=1e-6)
    if mode == "min":
        assert weights(make("aligned_mtl", 2), UPRIGHT[:2]) == pytest.approx([0.25, 0.5])


@pytest.mark.parametrize("jacobian", CASES)
def test_imtl_g_is_liu_et_al(jacobian: np.ndarray) -> None:
    """Bug: equal norms instead of equal projections.

    d = sum w_t g_t with d . g_t / |g_t| the same for all, and sum w_t = 1. By hand, (2, 0) and (0, 1): 1/3 and 2/3.
    """
    found = weights(make("imtl_g", len(jacobian)), jacobian)
    projections = np.array([found @ jacobian @ unit(row) for row in jacobian])
    assert projections == pytest.approx(np.full(len(jacobian), projections.mean()), rel=1e-6)
    assert found.sum() == pytest.approx(1)
    assert weights(make("imtl_g", 2), UPRIGHT[:2]) == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("jacobian", CASES)
def test_upgrad_is_quinton_and_rey(jacobian: np.ndarray) -> None:
    """Bug: the mean is projected, not each gradient.

    The mean of the projections of the g_t on the cone {d: g_t . d >= 0 for all t}: g + J' v with the v >= 0 that makes
    it shortest. By hand for (1, 0) and (-1, 1): ((.5, .5) + (0, 1)) / 2.
    """
    projections = [row + jacobian.T @ nnls(jacobian.T, -row)[0] for row in jacobian]
    found = weights(make("upgrad", len(jacobian)), jacobian) @ jacobian
    assert found == pytest.approx(np.mean(projections, axis=0), abs=1e-3)
    assert weights(make("upgrad", 2), TWO) @ TWO == pytest.approx([0.25, 0.75, 0], abs=1e-3)


@pytest.mark.parametrize("tasks", [2, 3])
def test_graddrop_is_chen_et_al(tasks: int) -> None:
    """Bug: the sign is drawn once for all parameters, or without regard to its share.

    p = (1 + sum g / sum |g|) / 2 a parameter: 1 where all are positive; 2 and -1: 2/3, and 1/2 with another -1.
    """
    jacobian = np.array([[1.0, 2.0, 2.0, 0.0], [3.0, -1.0, -1.0, 0.0], [1.0, -1.0, -1.0, 0.0]])[:tasks]
    balancer = make("graddrop", tasks, over="encoder")
    rows, losses = torch.tensor(jacobian), torch.ones(tasks)
    drawn = torch.stack([balancer.direction(rows, losses, range(tasks)) for _ in range(3000)]).numpy()
    agreed, negative, share = {2: (4.0, -1.0, 2 / 3), 3: (5.0, -2.0, 1 / 2)}[tasks]
    assert np.allclose(drawn[:, 0], agreed / tasks)
    assert (drawn[:, 3] == 0).all()
    for column in (1, 2):
        positive = np.isclose(drawn[:, column], 2.0 / tasks)
        assert (positive | np.isclose(drawn[:, column], negative / tasks)).all()
        assert positive.mean() == pytest.approx(share, abs=0.03)
    assert 0.4 < np.mean(drawn[:, 1] == drawn[:, 2]) < 0.65


ON_GRAMIANS = [name for name, of in METHODS.items() if of.kind == "gradients" and name not in ("graddrop", "gradnorm")]


@pytest.mark.parametrize("method", ON_GRAMIANS)
@pytest.mark.parametrize("size", [1e-8, 1e-3, 1e3])
def test_the_size_of_all_gradients_does_not_move_the_weights(method: str, size: float) -> None:
    """Bug: torchjd takes norms below 0.01 for 0: CAGrad's update stops, UPGrad leaves conflicts standing."""
    single = THREE.astype(np.float32)
    found, expected = (weights(make(method, 3), rows) for rows in (single * np.float32(size), single))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("method", [*ON_GRAMIANS, "gradnorm"])
def test_a_direction_is_the_weighted_sum(method: str) -> None:
    """Bug: over the encoder a method says something else than over a layer."""
    expected = weights(make(method, 3), THREE) @ THREE
    found = make(method, 3).direction(torch.tensor(THREE), torch.ones(3), range(3))
    assert found.tolist() == pytest.approx(expected)
