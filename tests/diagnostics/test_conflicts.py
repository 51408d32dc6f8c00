"""Conflicts between tasks: cosines by hand, the layer that they are taken at, and a training that does not notice."""

import json
import math

import pytest
import torch
from families import FAMILIES, family_config, packed, random_examples, tiny_model
from torch import nn
from transformers import AutoModel

from hf_async_mtl.building.freezing import last_shared_layer
from hf_async_mtl.diagnostics.gradient_conflicts import GradientConflicts, cosines
from hf_async_mtl.validation import ConfigurationError

LAST_LAYER = {
    "bert": "encoder.layer.2.",
    "roberta": "encoder.layer.2.",
    "distilbert": "transformer.layer.2.",
    "electra": "encoder.layer.2.",
    "albert": "encoder.albert_layer_groups.0.",
    "modernbert": "layers.2.",
    "deberta-v2": "encoder.layer.2.",
    "mpnet": "encoder.layer.2.",
}


# -- cosines ----------------------------------------------------------------------------------------------------------


def test_cosines_by_hand():
    """Bug: a dot product without the lengths, or the angle."""
    gradients = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, -5.0]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[1, half, 0], [half, 1, -half], [0, -half, 1]])
    torch.testing.assert_close(cosines(gradients), expected)


def test_properties_of_cosines():
    """Bug: rounding leaves the range or the diagonal, or small gradients vanish when they are squared."""
    gradients = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    gradients[1] = gradients[0]
    found = cosines(gradients)
    torch.testing.assert_close(found, found.T)
    assert found.abs().max() == 1
    assert torch.equal(found.diagonal(), torch.ones(6))
    for scale in (1e-25, 1e25):
        torch.testing.assert_close(cosines(scale * gradients), found)
    torch.testing.assert_close(cosines(-gradients), found)


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_no_direction_has_no_cosine(bad):
    """Bug: a task without a gradient is said to be orthogonal to all others, and draws the mean to 0."""
    gradients = torch.tensor([[1.0, 2.0], [bad, bad], [2.0, 4.0]])
    found = cosines(gradients)
    assert found[1].isnan().all()
    assert found[:, 1].isnan().all()
    torch.testing.assert_close(found[::2, ::2], torch.ones(2, 2))


def test_cosines_under_autocast():
    """Bug: training in bfloat16 leaves the cosines two digits."""
    gradients = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = cosines(gradients)
    assert torch.equal(found, cosines(gradients))


# -- the last shared layer --------------------------------------------------------------------------------------------


def names_of(encoder, parameters):
    ids = {id(parameter) for parameter in parameters}
    return [name for name, parameter in encoder.named_parameters() if id(parameter) in ids]


@pytest.mark.parametrize("family", FAMILIES)
def test_last_layer_of_each_family(family):
    """Bug: the pooler, the first layer, or a list inside a layer is taken for the last layer."""
    assert set(LAST_LAYER) == set(FAMILIES)
    encoder = AutoModel.from_config(family_config(family, num_hidden_layers=3))
    found = names_of(encoder, last_shared_layer(encoder))
    assert found == [name for name, _ in encoder.named_parameters() if name.startswith(LAST_LAYER[family])]
    assert len(found) > 4


def test_frozen_layers_are_passed_over():
    """Bug: gradients are asked of parameters that have none, which raises in the middle of a run."""
    encoder = AutoModel.from_config(family_config("bert", num_hidden_layers=3))
    encoder.encoder.layer[2].requires_grad_(False)
    encoder.encoder.layer[1].attention.requires_grad_(False)
    found = names_of(encoder, last_shared_layer(encoder))
    assert found
    assert all(name.startswith(("encoder.layer.1.intermediate", "encoder.layer.1.output")) for name in found)
    encoder.encoder.requires_grad_(False)
    assert last_shared_layer(encoder) == []


def test_small_lists_inside_many_are_not_the_layers():
    """Bug: the longest list is taken, which may be a layer's own list of experts."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))
            self.parts = nn.ModuleList([nn.Linear(50, 50), nn.LayerNorm(50)])

    encoder = nn.Module()
    encoder.layers = nn.ModuleList(Layer() for _ in range(2))
    assert all(name.startswith("layers.1.") for name in names_of(encoder, last_shared_layer(encoder)))


def test_encoder_without_layers_is_named():
    """Bug: `max() arg is an empty sequence`."""
    with pytest.raises(
        ValueError,
        match=r"must keep its layers in an `nn.ModuleList`.*; Linear has none\. Set `training.conflict_steps: 0`",
    ):
        last_shared_layer(nn.Linear(2, 2))


# -- the measurements -------------------------------------------------------------------------------------------------


def losses_along(parameter, *directions):
    """Losses with these gradients."""
    return [None if d is None else (parameter * torch.tensor(d)).sum() for d in directions]


def test_means_counts_and_shares():
    """Bug: a pair that was not measured counts as 0, or a mean is over all measurements."""
    weights = nn.Parameter(torch.ones(2))
    conflicts = GradientConflicts(["a", "b", "c"], [weights], every=1)
    conflicts.measure(losses_along(weights, [1.0, 0.0], [2.0, 0.0], None))
    conflicts.measure(losses_along(weights, [1.0, 0.0], [-3.0, 0.0], [0.0, 0.0]))
    conflicts.measure(losses_along(weights, [1.0, 0.0], [-3.0, 0.0], [0.0, 1.0]))
    third = pytest.approx(-1 / 3)
    assert conflicts.report() == {
        "tasks": ["a", "b", "c"],
        "cosines": [[1.0, third, 0.0], [third, 1.0, 0.0], [0.0, 0.0, 1.0]],
        "counts": [[3, 3, 1], [3, 3, 1], [1, 1, 1]],
        "negative": [[0.0, pytest.approx(2 / 3), 0.0], [pytest.approx(2 / 3), 0.0, 0.0], [0.0, 0.0, 0.0]],
    }


def test_report_before_a_measurement_is_json():
    """Bug: NaN, which no strict reader takes, or a division by 0."""
    weights = nn.Parameter(torch.ones(2))
    without_parameters = GradientConflicts(["a", "b"], [], every=10)
    without_parameters.measure(losses_along(weights, [1.0, 0.0], [1.0, 0.0]))
    assert not without_parameters.has_measured
    conflicts = GradientConflicts(["a", "b"], [weights], every=10)
    conflicts.measure([None, None])
    assert not conflicts.has_measured
    report = conflicts.report()
    assert report["cosines"] == report["negative"] == [[None, None], [None, None]]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_unused_parameters_have_a_gradient_of_zero():
    """Bug: a task that does not reach a parameter raises, or its gradient moves to another parameter's place."""
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2, 2))
    conflicts = GradientConflicts(["a", "b"], [first, second], every=1)
    conflicts.measure([first.sum() + second.sum(), second[0, 0]])
    assert conflicts.report()["cosines"][0][1] == pytest.approx(1 / math.sqrt(5))


def model_losses(model, examples):
    losses = model(**packed(model, examples)).losses
    return [loss.sum() for loss in losses.values()]


def test_cosines_are_those_of_whole_gradients():
    """Bug: the gradient is of something else than the layer's parameters and the task's loss."""
    model = tiny_model("bert")
    examples = random_examples()
    parameters = last_shared_layer(model.encoder)
    conflicts = GradientConflicts(list(model.heads), parameters, every=1)
    conflicts.measure(model_losses(model, examples))
    rows = []
    for i in range(len(model.heads)):
        model.zero_grad()
        model_losses(model, examples)[i].backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    expected = cosines(torch.stack(rows))
    torch.testing.assert_close(torch.tensor(conflicts.report()["cosines"]), expected, atol=1e-5, rtol=0)


# Its successor is not in the oldest release that we allow.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize(("family", "checkpointing"), [("bert", False), ("bert", True), ("albert", False)])
def test_training_does_not_notice(family, checkpointing):
    """Bug: a measurement adds to the gradients of the step, frees its graph, or draws the next step's dropout."""
    examples = random_examples()
    gradients, states = [], []
    for measured in (False, True):
        model = tiny_model(family).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        conflicts = GradientConflicts(list(model.heads), last_shared_layer(model.encoder), every=1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses = model_losses(model, examples)
            if measured:
                conflicts.measure(losses)
                assert all(parameter.grad is None for parameter in model.parameters())
            states.append(torch.random.get_rng_state())
            torch.stack(losses).sum().backward()
            gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert conflicts.report()["counts"][0][0] == 1
    assert torch.equal(*states)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_one_measurement_per_step_that_is_due():
    """Bug: each micro-batch is measured, or too many steps or none, for instance if the first step counts as 1."""
    weights = nn.Parameter(torch.ones(2))
    conflicts, counts = GradientConflicts(["a"], [weights], every=4), []
    for step in range(10):
        for _ in range(2):
            conflicts.observe([(weights * torch.tensor([1.0, 2.0]))], step)
            counts.append(conflicts.report()["counts"][0][0])
    assert counts == [1] * 8 + [2] * 8 + [3] * 4
    with pytest.raises(ValueError, match="at least 1; found 0"):
        GradientConflicts(["a"], [weights], every=0)


# -- its state --------------------------------------------------------------------------------------------------------


def test_state_goes_on():
    """Bug: a resumed run reports the conflicts since its resumption alone."""
    weights = nn.Parameter(torch.ones(2))
    batches = [([1.0, 0.0], [1.0, 2.0]), ([1.0, 0.0], [-1.0, 0.3]), ([0.0, 1.0], None)]
    whole, first, second = (GradientConflicts(["a", "b"], [weights], every=1) for _ in range(3))
    for batch in batches:
        whole.measure(losses_along(weights, *batch))
    first.measure(losses_along(weights, *batches[0]))
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    kept = json.dumps(first.state_dict())
    for batch in batches[1:]:
        second.measure(losses_along(weights, *batch))
    assert second.report() == whole.report()
    assert json.dumps(first.state_dict()) == kept


def test_state_shares_nothing():
    """Bug: a saved state changes with the next measurement."""
    weights = nn.Parameter(torch.ones(2))
    conflicts, other = (GradientConflicts(["a", "b"], [weights], every=1) for _ in range(2))
    state, report = conflicts.state_dict(), conflicts.report()
    other.load_state_dict(state)
    for changed in (conflicts, other):
        changed.measure(losses_along(weights, [1.0, 0.0], [1.0, 0.0]))
    assert state["counts"] == report["counts"] == [[0, 0], [0, 0]]


def test_state_is_strict():
    """Bug: the state of other tasks, or of another version, is taken in part."""
    conflicts = GradientConflicts(["a", "b"], [], every=1)
    state = conflicts.state_dict()
    with pytest.raises(ConfigurationError, match=r"found tasks, counts, negative\. Was it saved by another version\?"):
        conflicts.load_state_dict({key: value for key, value in state.items() if key != "sums"})
    with pytest.raises(ConfigurationError, match=r"with the tasks a, b, in this order; found b, a\. Resume with"):
        conflicts.load_state_dict({**state, "tasks": ["b", "a"]})
    assert conflicts.state_dict() == state
