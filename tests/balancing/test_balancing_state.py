"""What holds for every method: its scale, its state, its randomness, and where its formula ends."""

import json
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_async_mtl.balancing.balancer import GradientBalancer, LossBalancer, WeightingBalancer
from hf_async_mtl.balancing.build import build_balancer
from hf_async_mtl.balancing.config import METHODS, BalancingConfig
from hf_async_mtl.validation import ConfigurationError

BALANCERS = [name for name in METHODS if name != "sum"]
WITH_WEIGHTS = [name for name in BALANCERS if name != "graddrop"]
TASKS = ["a", "b", "c", "d"]
Balancer = LossBalancer | GradientBalancer


def make(method: str, **parameters: Any) -> Balancer:
    config = BalancingConfig(method, over=METHODS[method].scopes[0], parameters=parameters)
    balancer = build_balancer(config, TASKS, seed=3, calls_per_epoch=2)
    assert balancer is not None
    return balancer


def ask(balancer: Balancer, losses: Tensor, jacobian: Tensor, ids: list[int]) -> Tensor:
    """The weights; the direction, where a method has none."""
    if isinstance(balancer, LossBalancer):
        return balancer.weights(losses, ids)
    if isinstance(balancer, WeightingBalancer):
        return balancer.weights(jacobian, losses, ids)
    return balancer.direction(jacobian, losses, ids)


def batches(count: int) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Losses and gradients of some of the tasks, other ones in each batch."""
    generator, chooser = torch.Generator().manual_seed(0), random.Random(0)
    found = []
    for _ in range(count):
        ids = sorted(chooser.sample(range(4), chooser.randint(1, 4)))
        losses = torch.rand(len(ids), generator=generator) + 0.1
        found.append((losses, torch.randn(len(ids), 6, generator=generator), ids))
    return found


@pytest.mark.parametrize("method", BALANCERS)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_tasks_that_are_alike_get_the_plain_mean(method: str, tasks: int) -> None:
    """Bug: a change of method, or a task that leaves, changes the balanced part's size beside the rest of the loss."""
    jacobian = torch.eye(tasks, 5) if method != "graddrop" else torch.ones(tasks, 5)
    found = ask(
        make(method, **({"c": 0.0} if method == "cagrad" else {})), torch.ones(tasks), jacobian, list(range(tasks))
    )
    if method == "rlw":
        assert found.mean().item() == pytest.approx(1 / tasks)
    elif method == "graddrop":
        assert found.tolist() == pytest.approx([1.0] * 5)
    else:
        assert found.tolist() == pytest.approx([1 / tasks] * tasks, rel=1e-4)


@pytest.mark.parametrize("method", BALANCERS)
def test_any_task_may_be_absent(method: str) -> None:
    """Bug: UW and FAMO raise in a batch that lacks a task, and DWA when one comes back."""
    balancer = make(method)
    for losses, jacobian, ids in batches(30):
        found = ask(balancer, losses, jacobian, ids)
        assert found.shape == ((6,) if method == "graddrop" else (len(ids),))
        assert found.isfinite().all()
        assert found.dtype == losses.dtype


@pytest.mark.parametrize("method", ["uw", "imtl_l", "gradnorm", "gradvac"])
def test_what_is_learned_of_absent_tasks_stays(method: str) -> None:
    """Bug: state is kept by place in the batch, so that one task is weighed with another's."""
    both = (torch.tensor([2.0, 0.5]), torch.tensor([[1.0, 0.0], [-1.0, 3.0]]), [0, 2])
    other = (torch.tensor([9.0, 1.0]), torch.tensor([[5.0, 1.0], [0.0, 3.0]]), [1, 3])
    plain, mixed = make(method), make(method)
    for _ in range(3):
        expected = ask(plain, *both)
        assert torch.equal(ask(mixed, *both), expected)
        ask(mixed, *other)


@pytest.mark.parametrize("method", BALANCERS)
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_run_goes_on_alike(method: str, stop: int) -> None:
    """Bug: DWA saves no state and FAMO loses its optimizer's: every resume balances anew."""
    whole, first, resumed = make(method), make(method), make(method)
    ahead = batches(14)
    expected = [ask(whole, *batch) for batch in ahead]
    for batch in ahead[:stop]:
        ask(first, *batch)
    # What the new one has learned elsewhere must go.
    ask(resumed, *ahead[5])
    state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state == first.state_dict()
    for batch, answer in zip(ahead[stop:], expected[stop:], strict=True):
        assert torch.equal(ask(resumed, *batch), answer)
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize("method", BALANCERS)
def test_a_state_is_a_copy(method: str) -> None:
    """Bug: a state that was taken for a checkpoint changes as training goes on, or training changes it."""
    balancer = make(method)
    for batch in batches(3):
        ask(balancer, *batch)
    state = balancer.state_dict()
    before = json.dumps(state)
    balancer.load_state_dict(state)
    for batch in batches(5):
        ask(balancer, *batch)
    assert json.dumps(state) == before


@pytest.mark.parametrize("method", BALANCERS)
def test_loading_names_the_missing_and_the_unexpected_key(method: str) -> None:
    """Bug: a state that lacks a part is loaded as if it were whole."""
    balancer = make(method)
    for key in balancer.state_dict():
        state = balancer.state_dict()
        del state[key]
        with pytest.raises(ConfigurationError, match=f"missing: {key}; unexpected: none"):
            balancer.load_state_dict(state)
    with pytest.raises(
        ConfigurationError, match=r"missing: none; unexpected: more\. Was it saved by another version\?"
    ):
        balancer.load_state_dict({**balancer.state_dict(), "more": 1})


def test_loading_refuses_another_methods_state_and_other_tasks() -> None:
    """Bug: a run is resumed with another method, and told of missing keys; or a task gets another one's scale."""
    with pytest.raises(ConfigurationError, match=r"must have the method 'uw'; found 'imtl_l'\. Resume with the"):
        make("uw").load_state_dict(make("imtl_l").state_dict())
    with pytest.raises(ConfigurationError, match=r"must have the tasks \['a', 'b', 'c', 'd'\]; found \['b', 'a'\]"):
        make("uw").load_state_dict({**make("uw").state_dict(), "tasks": ["b", "a"]})


@pytest.mark.parametrize("method", BALANCERS)
def test_torchs_own_generator_is_left_alone(method: str) -> None:
    """Bug: balancing draws from the numbers of dropout, so that a run depends on its method where it should not."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    balancer = make(method)
    first = [ask(balancer, *batch) for batch in batches(4)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    balancer = make(method)
    for batch, answer in zip(batches(4), first, strict=True):
        assert torch.equal(ask(balancer, *batch), answer)


@pytest.mark.parametrize("method", WITH_WEIGHTS)
def test_a_task_with_nothing_to_give_sits_out(method: str) -> None:
    """Bug: a task at 0 gives NaN (GLS), takes all the weight (FAMO, MGDA), or stops the update (CAGrad)."""
    losses, jacobian = torch.tensor([0.5, 0.0, 2.0]), torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 3.0]])
    with_it, without = make(method), make(method)
    rest = [0, 2]
    for _ in range(2):
        found = ask(with_it, losses, jacobian, [0, 1, 2])
        assert found[1] == pytest.approx(1 / 3)
        expected = ask(without, losses[rest], jacobian[rest], rest)
        assert found[rest].tolist() == pytest.approx((expected * 2 / 3).tolist(), rel=1e-5)
    nothing = ask(make(method), torch.zeros(3), torch.zeros(3, 2), [0, 1, 2])
    assert nothing.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("method", WITH_WEIGHTS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_and_leaves_no_trace(method: str, bad: float) -> None:
    """Bug: one overflow under float16, which the scaler skips, spoils the state of the rest of the run."""
    balancer = make(method)
    ask(balancer, torch.tensor([0.5, 2.0]), torch.tensor([[1.0, 0.0], [-1.0, 3.0]]), [0, 1])
    before = balancer.state_dict()
    found = ask(balancer, torch.tensor([bad, 1.0]), torch.tensor([[bad, 0.0], [1.0, 1.0]]), [0, 1])
    assert found.tolist() == [0.5, 0.5]
    assert {**balancer.state_dict(), "calls": before["calls"]} == before


@pytest.mark.parametrize("method", BALANCERS)
def test_weights_are_detached(method: str) -> None:
    """Bug: the update follows the weights' own dependence on the losses as well, or does not work under `no_grad`."""
    losses, jacobian = torch.tensor([0.5, 2.0], requires_grad=True), torch.tensor([[1.0, 0.0], [-1.0, 3.0]])
    found = ask(make(method), losses, jacobian, [0, 1])
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(ask(make(method), losses, jacobian, [0, 1]), found)
