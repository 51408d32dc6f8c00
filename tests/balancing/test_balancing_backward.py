"""Where the balanced gradients go: heads, shared parameters, and the same on two ranks as on one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_async_mtl.balancing.backward import ParameterGroups, balanced_backward, jacobian
from hf_async_mtl.balancing.balancer import GradientBalancer
from hf_async_mtl.balancing.build import build_balancer
from hf_async_mtl.balancing.config import METHODS, BalancingConfig
from hf_async_mtl.balancing.split import LossSplit

TASKS = ["a", "b", "c", "distilled"]
# The task of each example: `c` is on the first half alone; `distilled` is not balanced.
OWNERS = torch.tensor([0, 1, 2, 3, 0, 2, 1, 0, 1, 0, 3, 1])
COUNTS = torch.bincount(OWNERS).double()
METHODS_AND_OVERS = [(name, over) for name, of in METHODS.items() if of.kind == "gradients" for over in of.scopes]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 5)
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in TASKS)

    def losses(self, rows: Tensor) -> list[Tensor]:
        """The part that some examples have in each task's mean loss: 0 with a graph, where there are none."""
        states = self.last(torch.tanh(self.first(X[rows])))
        return [
            ((head(states[OWNERS[rows] == task]).squeeze(1) - Y[rows][OWNERS[rows] == task]) ** 2).sum() / COUNTS[task]
            for task, head in enumerate(self.heads)
        ]

    @property
    def shared(self) -> list[nn.Parameter]:
        return [*self.first.parameters(), *self.last.parameters()]


generator = torch.Generator().manual_seed(0)
X = torch.randn(len(OWNERS), 4, generator=generator, dtype=torch.float64)
Y = torch.randn(len(OWNERS), generator=generator, dtype=torch.float64) * (1 + OWNERS)
ALL = torch.arange(len(OWNERS))
HALVES = [ALL[:6], ALL[6:]]


def model() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Network().double()


def make(method: str, over: str = "last_layer", **parameters: Any) -> GradientBalancer:
    config = BalancingConfig(method, over=over, parameters=parameters)
    balancer = build_balancer(config, TASKS, seed=3, calls_per_epoch=2)
    assert isinstance(balancer, GradientBalancer)
    return balancer


def split(losses: list[Tensor], other: Tensor, scale: float = 1.0, means: Tensor | None = None) -> LossSplit:
    """The first three tasks are balanced."""
    means = torch.stack(losses)[:3].detach() if means is None else means
    return LossSplit(losses[:3], [0, 1, 2], means, other, torch.tensor(scale))


def groups(network: Network, idle: list[nn.Parameter] | None = None) -> ParameterGroups:
    idle = idle or []
    return ParameterGroups(
        [*idle, *network.shared], [*idle, *network.last.parameters()], list(network.heads.parameters())
    )


def run(
    network: Network,
    balancer: GradientBalancer,
    rows: Tensor = ALL,
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    scale: float = 1.0,
    ranks: int = 1,
) -> None:
    losses, means = network.losses(rows), torch.stack(network.losses(ALL))[:3].detach()
    balanced_backward(split(losses, 0.7 * losses[3], scale, means), groups(network), balancer, reduce, ranks)


def gradients(network: Network) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def flat(parameters: Any) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


@pytest.mark.parametrize(("method", "over"), METHODS_AND_OVERS)
def test_the_shared_gradient_is_the_weighted_sum(method: str, over: str) -> None:
    """Bug: the weights are found and then used on the last layer alone, or the rest of the loss is weighed too."""
    network = model()
    run(network, make(method, over), scale=0.25)
    losses = network.losses(ALL)
    rows = jacobian(losses, network.shared)
    balancer, found = make(method, over), torch.stack(losses)[:3].detach()
    if over == "last_layer":
        weights = balancer.weights(jacobian(losses[:3], list(network.last.parameters())), found, [0, 1, 2])  # type: ignore[attr-defined]
        direction = weights @ rows[:3]
    else:
        direction = balancer.direction(rows[:3], found, [0, 1, 2])
    torch.testing.assert_close(flat(network.shared), 0.25 * direction + 0.7 * rows[3])


@pytest.mark.parametrize(("method", "over"), METHODS_AND_OVERS)
def test_a_head_keeps_its_own_tasks_gradient(method: str, over: str) -> None:
    """Bug: a task's weight also slows or drives its own head, where there is nothing to balance."""
    network = model()
    run(network, make(method, over), scale=0.25)
    for task, (loss, head) in enumerate(zip(network.losses(ALL), network.heads, strict=True)):
        # Of three balanced tasks, each has a third: the plain mean.
        expected = jacobian([loss], list(head.parameters()))[0] * (0.7 if task == 3 else 0.25 / 3)
        torch.testing.assert_close(flat(head.parameters()), expected)


@pytest.mark.parametrize(("method", "over"), METHODS_AND_OVERS)
def test_two_ranks_are_one(method: str, over: str) -> None:
    """Bug: each rank weighs, or projects, by the gradients of its own examples; nothing says so, and the ranks part."""
    whole, halves = model(), [model(), model()]
    one, two = make(method, over), [make(method, over), make(method, over)]
    for _ in range(3):
        for network in (whole, *halves):
            network.zero_grad()
        run(whole, one, scale=0.25)
        for rank, (network, balancer) in enumerate(zip(halves, two, strict=True)):
            other, parameters = halves[1 - rank], "shared" if over == "encoder" else "last"
            seen = other.shared if parameters == "shared" else list(other.last.parameters())
            theirs = jacobian(other.losses(HALVES[1 - rank])[:3], seen)
            run(network, balancer, HALVES[rank], lambda own, theirs=theirs: own + theirs, scale=0.25, ranks=2)
        for name, expected in gradients(whole).items():
            found = gradients(halves[0])[name] + gradients(halves[1])[name]
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
        assert two[0].state_dict() == two[1].state_dict()


@pytest.mark.parametrize(("method", "over"), METHODS_AND_OVERS)
def test_the_scale_does_not_move_the_weights(method: str, over: str) -> None:
    """Bug: the factor of float16's loss scaler, or of accumulation, takes part in balancing (GradNorm has norms)."""
    small, large = model(), model()
    balancers = [make(method, over), make(method, over)]
    for _ in range(3):
        for network, balancer, scale in zip((small, large), balancers, (1.0, 1024.0), strict=True):
            network.zero_grad()
            nothing = torch.zeros((), dtype=torch.float64)
            balanced_backward(split(network.losses(ALL), nothing, scale), groups(network), balancer)
        for name, gradient in gradients(small).items():
            torch.testing.assert_close(gradients(large)[name], 1024 * gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("method", "over"), [("mgda", "last_layer"), ("mgda", "encoder")])
def test_gradients_add_up(method: str, over: str) -> None:
    """Bug: with gradient accumulation only the last micro-batch counts."""
    once, twice = model(), model()
    run(once, make(method, over))
    for _ in range(2):
        run(twice, make(method, over))
    for name, gradient in gradients(once).items():
        torch.testing.assert_close(gradients(twice)[name], 2 * gradient)


@pytest.mark.parametrize("over", ["last_layer", "encoder"])
def test_a_parameter_that_no_task_reaches(over: str) -> None:
    """Bug: an encoder with a pooler that nothing uses cannot be balanced."""
    network = model()
    idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
    losses = network.losses(ALL)
    balanced_backward(split(losses, losses[3]), groups(network, [idle]), make("mgda", over))
    assert idle.grad is None or not idle.grad.any()
    assert not jacobian(network.losses(ALL), [idle, *network.last.parameters()])[:, :3].any()


@pytest.mark.parametrize("over", ["last_layer", "encoder"])
def test_frozen_heads_are_left_out(over: str) -> None:
    """Bug: a model whose heads are all frozen cannot be balanced."""
    network, expected = model(), model()
    network.heads.requires_grad_(False)
    losses = network.losses(ALL)
    parameters = ParameterGroups(network.shared, list(network.last.parameters()), [])
    balanced_backward(split(losses, 0.7 * losses[3]), parameters, make("mgda", over))
    run(expected, make("mgda", over))
    torch.testing.assert_close(flat(network.shared), flat(expected.shared))


def test_without_balanced_tasks_the_rest_is_trained() -> None:
    """Bug: once all tasks have converged, or in a batch of distilled ones alone, nothing is left to stack."""
    network, plain = model(), model()
    other = network.losses(ALL)[3]
    balanced_backward(LossSplit([], [], torch.zeros(0), other, torch.zeros(())), groups(network), make("mgda"))
    plain.losses(ALL)[3].backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(network)[name], gradient)


def test_equal_weights_are_the_plain_mean() -> None:
    """Bug: balancing that does nothing differs from none. CAGrad without averseness is the mean of the losses."""
    network, plain = model(), model()
    run(network, make("cagrad", c=0))
    losses = plain.losses(ALL)
    (torch.stack(losses)[:3].mean() + 0.7 * losses[3]).backward()
    torch.testing.assert_close(flat(network.shared), flat(plain.shared))


def test_the_model_is_left_as_it_was() -> None:
    """Bug: a graph is kept, or a parameter frozen, after the call."""
    network = model()
    before = copy.deepcopy(network.state_dict())
    losses = network.losses(ALL)
    balanced_backward(split(losses, losses[3]), groups(network), make("pcgrad"))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        losses[0].backward()
