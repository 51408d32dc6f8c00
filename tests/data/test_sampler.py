"""The sampler: its order depends only on the seed and the epoch."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from hf_async_mtl import ConfigurationError
from hf_async_mtl.data.config import MixingConfig
from hf_async_mtl.data.sampler import MultiTaskSampler, draws_per_task

SIZES = [70, 5, 25]
STRATEGIES = [("proportional", 1.0), ("temperature", 2.0), ("temperature", 5.0), ("uniform", 1.0)]


def epochs(sampler, count):
    orders = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


def counts_per_task(order, sizes):
    return np.histogram(order, bins=np.cumsum([0, *sizes]))[0].tolist()


@pytest.mark.parametrize(("strategy", "temperature"), STRATEGIES)
def test_order_is_a_function_of_seed_and_epoch(strategy, temperature):
    """An order that hangs on earlier epochs, or on the global random state, cannot be resumed."""
    straight = epochs(MultiTaskSampler(SIZES, 7, MixingConfig(strategy, temperature)), 4)
    torch.manual_seed(1)
    np.random.default_rng(2)
    random.seed(3)
    resumed = MultiTaskSampler(SIZES, 7, MixingConfig(strategy, temperature))
    resumed.set_epoch(3)
    assert list(resumed) == straight[3]
    assert list(resumed) == straight[3]
    half_read = iter(resumed)
    next(half_read)
    resumed.set_epoch(2)
    assert list(resumed) == straight[2]


def test_order_leaves_the_global_random_state_alone():
    """An order drawn from the global generator would change dropout."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(MultiTaskSampler(SIZES, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_and_epochs_differ():
    """A seed added to the epoch would give epoch 1 of seed 0 the order of epoch 0 of seed 1."""
    orders = [tuple(order) for seed in range(5) for order in epochs(MultiTaskSampler(SIZES, seed), 5)]
    assert len(set(orders)) == len(orders)


def test_proportional_visits_each_example_once():
    """An example left out of the epochs would never be trained on."""
    generator = random.Random(0)
    for seed in range(20):
        sizes = [generator.randint(1, 300) for _ in range(generator.randint(1, 8))]
        for order in epochs(MultiTaskSampler(sizes, seed), 2):
            assert sorted(order) == list(range(sum(sizes)))


def test_tasks_are_mixed_from_the_first_draws_on():
    """Task after task in turn is catastrophic forgetting, and no batch would mix."""
    order = next(iter(epochs(MultiTaskSampler([200, 200], 0), 1)))
    for start in range(0, 400, 50):
        assert 5 < counts_per_task(order[start : start + 50], [200, 200])[0] < 45


def test_uniform_draws_are_equal_and_other_each_epoch():
    """A small task repeats all its examples before any again; a large one shows others in each epoch."""
    sizes = [90, 10]
    sampler = MultiTaskSampler(sizes, 0, MixingConfig("uniform"))
    assert sampler.draws == [50, 50]
    seen = set()
    for order in epochs(sampler, 5):
        assert counts_per_task(order, sizes) == [50, 50]
        repeats = Counter(order)
        assert {repeats[i] for i in range(90, 100)} == {5}
        assert max(repeats[i] for i in range(90)) == 1
        seen |= set(order)
    assert len(seen) > 90


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 10.0])
def test_temperature_draws_follow_the_formula(temperature):
    """T in the place of 1/T turns the small tasks smaller still."""
    sizes = [1000, 100, 10]
    shares = np.array(sizes) ** (1 / temperature)
    expected = shares / shares.sum() * sum(sizes)
    assert draws_per_task(sizes, MixingConfig("temperature", temperature)) == pytest.approx(expected, abs=1)


def test_temperature_goes_from_proportional_to_uniform():
    """The two ends of the temperature are known strategies."""
    assert draws_per_task(SIZES, MixingConfig("temperature", 1.0)) == draws_per_task(SIZES) == SIZES
    assert draws_per_task(SIZES, MixingConfig("temperature", 1e9)) == draws_per_task(SIZES, MixingConfig("uniform"))


def test_draws_add_up_to_the_number_of_examples():
    """A draw lost to rounding changes the length of the epoch, and with it the number of steps that is promised."""
    generator = random.Random(1)
    for _ in range(300):
        sizes = [
            generator.choice([1, 3, 10, 1000, 393702]) + generator.randrange(7) for _ in range(generator.randint(1, 9))
        ]
        for strategy, temperature in STRATEGIES:
            draws = draws_per_task(sizes, MixingConfig(strategy, temperature))
            assert sum(draws) == sum(sizes)
            assert min(draws) >= 0
        assert draws_per_task(sizes) == sizes
        sampler = MultiTaskSampler(sizes, 0, MixingConfig("uniform"))
        assert len(sampler) == sum(sizes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("equal",),
            "`mixing.strategy` must be one of proportional, temperature, uniform; found 'equal'.",
        ),
        (("temperature", 0.5), "`mixing.temperature` must be a number of at least 1; found 0.5."),
    ],
)
def test_wrong_mixing_is_refused(arguments, message):
    """A name that nobody knows would fall to some default."""
    with pytest.raises(ConfigurationError) as error:
        MixingConfig(*arguments)
    assert str(error.value) == message
