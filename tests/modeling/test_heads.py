"""Heads: every type learns, distils and reads the states that are its own."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from families import TASKS
from runs import tiny_model
from torch import Tensor
from torch.nn import functional as F

from hf_async_mtl.data.collator import collate_targets
from hf_async_mtl.modeling.configuration_multitask import TaskConfig
from hf_async_mtl.modeling.heads import HEADS, Head, pool
from hf_async_mtl.modeling.packing import Layout, Ragged
from hf_async_mtl.tasks.registry import TASK_TYPES

WIDTH = 8
# Three examples; all types but multiple choice and question answering read the first segment alone.
ONE_EACH = Layout(torch.tensor([0, 4, 5, 11]), torch.tensor([0, 1, 2, 3]))
# Three choices each.
CHOICES = Layout(torch.tensor([0, 2, 3, 6, 7, 9, 10, 14, 15, 17]), torch.tensor([0, 3, 6, 9]))
# Two windows, one, and three.
WINDOWS = Layout(torch.tensor([0, 4, 6, 9, 10, 12, 17]), torch.tensor([0, 2, 3, 6]))
LAYOUTS = {"multiple_choice": CHOICES, "question_answering": WINDOWS}
LABELS: dict[str, list[Any]] = {
    "classification": [2, 0, 1],
    "regression": [1.0, 4.5, 3.0],
    "token_classification": [[-100, 1, -100, 3], [-100], [0, 0, -100, 2, 1, -100]],
    "multiple_choice": [2, 0, 0],
    "multilabel": [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]],
    "question_answering": [[[1, 3], [0, 0]], [[0, 2]], [[0, 0], [1, 1], [0, 4]]],
}
TYPES = sorted(HEADS)


def task_of(task_type: str) -> TaskConfig:
    return next(task for task in TASKS.values() if task.type == task_type)


def layout_of(task_type: str) -> Layout:
    return LAYOUTS.get(task_type, ONE_EACH)


def head_of(task_type: str, pooling: str = "cls", dropout: float = 0.0) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return HEADS[task_type](WIDTH, task_of(task_type), dropout, pooling)


def states_of(layout: Layout, seed: int = 0) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    return Ragged(torch.randn(int(layout.tokens[-1]), WIDTH, generator=generator), layout)


def labels_of(task_type: str) -> Tensor:
    return collate_targets(task_type, LABELS[task_type])


def distil(task_type: str, logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    head = head_of(task_type)
    return head.distillation_loss(logits, teacher, labels_of(task_type), layout_of(task_type), temperature)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("task_type", TYPES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(task_type: str, temperature: float) -> None:
    """The student was pushed away from a teacher that it equals, by the teacher's own entropy."""
    teacher = head_of(task_type)(states_of(layout_of(task_type))).detach()
    student = teacher.clone().requires_grad_()
    loss = distil(task_type, student, teacher, temperature)
    assert loss.shape == (3,)
    assert loss.abs().max() <= 1e-7
    loss.sum().backward()
    assert student.grad is not None
    # Rounding of probabilities, times the temperature squared.
    assert student.grad.abs().max() <= 1e-7 * temperature**2


@pytest.mark.parametrize("task_type", TYPES)
def test_distance_to_the_teacher_is_a_loss(task_type: str) -> None:
    """One side of a divergence lost its sign: the loss was negative, or did not fall on the way to the teacher.

    The second example of the token task has no labeled word and no loss.
    """
    head, layout = head_of(task_type), layout_of(task_type)
    teacher, start = (head(states_of(layout, seed)).detach() for seed in (0, 1))
    losses = [distil(task_type, teacher + share * (start - teacher), teacher) for share in (1.0, 0.5, 0.1)]
    counted = [0, 2] if task_type == "token_classification" else [0, 1, 2]
    for far, near in pairwise(losses):
        assert (near[counted] > 0).all()
        assert (far[counted] > near[counted]).all()


@pytest.mark.parametrize("task_type", TYPES)
@pytest.mark.parametrize("supervised", [True, False])
def test_an_example_has_its_own_loss(task_type: str, supervised: bool) -> None:
    """A loss leaked into a batch mate: the same example gave another loss alone, so batches could not be split."""
    head, layout = head_of(task_type), layout_of(task_type)
    ragged, labels = states_of(layout), labels_of(task_type)
    logits, teacher = head(ragged), head(states_of(layout, seed=1))

    def loss(logits: Tensor, teacher: Tensor, labels: Tensor, layout: Layout) -> Tensor:
        if supervised:
            return head.loss(logits, labels, layout)
        return head.distillation_loss(logits, teacher, labels, layout, 2.0)

    together = loss(logits, teacher, labels, layout)
    for example in range(3):
        first, last = layout.segments[example : example + 2].tolist()
        start, stop = layout.tokens[[first, last]].tolist()
        alone = Layout(layout.tokens[first : last + 1] - start, torch.tensor([0, last - first]))
        rows = slice(start, stop) if head.unit == "token" else slice(example, example + 1)
        found = loss(
            head(Ragged(ragged.states[start:stop], alone)), teacher[rows], _one_label(task_type, example), alone
        )
        torch.testing.assert_close(found, together[example : example + 1])


def _one_label(task_type: str, example: int) -> Tensor:
    return collate_targets(task_type, LABELS[task_type][example : example + 1])


@pytest.mark.parametrize("task_type", TYPES)
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_a_head_without_an_example_stays_in_the_graph(task_type: str, pooling: str) -> None:
    """A task was absent from a batch and its head had no gradient: DDP waits for it for ever."""
    head = head_of(task_type, pooling)
    states = torch.zeros(0, WIDTH, requires_grad=True)
    nothing = torch.zeros(1, dtype=torch.long)
    head(Ragged(states, Layout(nothing, nothing))).sum().backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()


@pytest.mark.parametrize("task_type", TYPES)
def test_targets_of_no_example(task_type: str) -> None:
    """The targets of one task had another type or shape than the logits they meet."""
    labels = labels_of(task_type)
    layout = layout_of(task_type)
    expected = {
        "token_classification": (int(layout.tokens[-1]),),
        "question_answering": (len(layout.tokens) - 1, 2),
        "multilabel": (3, 2),
    }.get(task_type, (3,))
    assert labels.shape == expected
    assert labels.is_floating_point() == (task_type in ("regression", "multilabel"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_is_a_loop(dtype: torch.dtype) -> None:
    """A segment was pooled with its neighbor's tokens; a mean over many bf16 states had lost its digits."""
    tokens = torch.tensor([0, 3, 4, 300])
    ragged = states_of(Layout(tokens, torch.tensor([0, 1, 2, 3])))
    ragged = Ragged((ragged.states + 1).to(dtype), ragged.layout)
    pieces = [ragged.states[a:b].float() for a, b in ((0, 3), (3, 4), (4, 300))]
    expected = {
        "cls": torch.stack([piece[0] for piece in pieces]),
        "mean": torch.stack([piece.mean(0) for piece in pieces]),
        "max": torch.stack([piece.max(0).values for piece in pieces]),
    }
    for pooling, vectors in expected.items():
        found = pool(ragged, pooling)
        assert found.dtype == dtype
        torch.testing.assert_close(found, vectors.to(dtype))


def test_max_pooling_of_negative_states() -> None:
    """The maximum began at 0, so that no state below it was ever seen."""
    ragged = states_of(ONE_EACH)
    negative = Ragged(-ragged.states.abs() - 1, ONE_EACH)
    assert (pool(negative, "max") < -1).all()


def test_sequence_heads_read_the_first_segment() -> None:
    """A windowed example was read at its last window, or all windows were taken for examples."""
    head, ragged = head_of("classification", "mean"), states_of(WINDOWS)
    first = torch.stack([ragged.states[a:b].mean(0) for a, b in ((0, 4), (6, 9), (9, 10))])
    torch.testing.assert_close(head(ragged), head.linear(first))


def test_choices_are_scored_one_by_one() -> None:
    """A score stood at another choice of its example, or at another example's."""
    head, ragged = head_of("multiple_choice"), states_of(CHOICES)
    scores = [head.linear(ragged.states[start]).item() for start in CHOICES.tokens[:-1]]
    assert head(ragged).flatten().tolist() == pytest.approx(scores, abs=1e-6)
    assert head(ragged).shape == (3, 3)


def test_tokens_without_a_label_are_not_distilled() -> None:
    """Sub-words that no label was ever given for made up half of the distillation loss."""
    teacher, student = torch.zeros(11, 4), torch.zeros(11, 4)
    silent = labels_of("token_classification") == -100
    student[silent] = 5 * torch.randn(int(silent.sum()), 4, generator=torch.Generator().manual_seed(0))
    assert distil("token_classification", student, teacher).tolist() == [0.0, 0.0, 0.0]


def test_token_loss_is_a_mean_over_words() -> None:
    """Long texts weighed more than short ones."""
    head, ragged = head_of("token_classification"), states_of(ONE_EACH)
    logits = head(ragged)
    loss = head.loss(logits, labels_of("token_classification"), ONE_EACH)
    for example, (start, stop) in enumerate([(0, 4), (4, 5), (5, 11)]):
        wanted = torch.tensor(LABELS["token_classification"][example])
        terms = [
            F.cross_entropy(row, label) for row, label in zip(logits[start:stop], wanted, strict=True) if label >= 0
        ]
        expected = torch.stack(terms).mean().item() if terms else 0.0
        assert loss[example].item() == pytest.approx(expected, abs=1e-6)


def test_answer_loss_is_a_mean_over_windows() -> None:
    """A context in three windows weighed three times as much as one that fits."""
    head, ragged = head_of("question_answering"), states_of(WINDOWS)
    logits = head(ragged)
    loss = head.loss(logits, labels_of("question_answering"), WINDOWS)
    tokens, window = WINDOWS.tokens.tolist(), 0
    for example, windows in enumerate(LABELS["question_answering"]):
        terms = []
        for positions in windows:
            start, stop = tokens[window : window + 2]
            terms += [F.cross_entropy(logits[start:stop, k], torch.tensor(positions[k])) for k in range(2)]
            window += 1
        assert loss[example].item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-6)


def test_regression_speaks_in_the_units_of_the_data() -> None:
    """Predictions came out standardized, or a task in cents outweighed all others."""
    task = TaskConfig("regression", ["text"], target_mean=100.0, target_std=50.0)
    head = HEADS["regression"](WIDTH, task, 0.0, "cls")
    ragged = states_of(ONE_EACH)
    raw = head.linear(ragged.states[ONE_EACH.tokens[:-1]]).squeeze(-1)
    logits = head(ragged)
    torch.testing.assert_close(logits, raw * 50 + 100)
    labels = torch.tensor([100.0, 150.0, 0.0])
    expected = (raw - torch.tensor([0.0, 1.0, -2.0])).square()
    torch.testing.assert_close(head.loss(logits, labels, ONE_EACH), expected)
    # A teacher's prediction stands in the place of the label.
    torch.testing.assert_close(head.distillation_loss(logits, labels, labels, ONE_EACH, 1.0), expected)


def test_temperature_has_no_part_in_a_squared_error() -> None:
    """A temperature of 3 multiplied the regression's distillation loss by nine."""
    teacher, student = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 0.0])
    assert torch.equal(distil("regression", student, teacher, 1.0), distil("regression", student, teacher, 3.0))


def test_dropout_is_in_training_alone() -> None:
    """Predictions were drawn by chance, or a head learned without the dropout that its encoder names."""
    head, ragged = head_of("classification", dropout=0.5), states_of(ONE_EACH)
    assert torch.equal(head.eval()(ragged), head(ragged))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(head.train()(ragged), head(ragged))


def test_every_table_of_types_knows_every_head() -> None:
    """A new head trained for a day, and failed with a KeyError when its card was written."""
    assert TASK_TYPES.keys() == HEADS.keys()


def test_a_head_with_another_pooling_pools_for_itself() -> None:
    """Bug: a head with a pooling of its own reads the vectors that were pooled for all heads."""
    model = tiny_model(["polarity", "overlap"]).eval()
    ids = torch.arange(5, 17).reshape(2, 6)
    before = model(ids).logits
    model.heads["polarity"].pooling = "max"
    after, alone = model(ids).logits, model(ids, tasks=["polarity"]).logits
    assert model.config.pooling != "max"
    assert torch.equal(after["overlap"], before["overlap"])
    assert torch.equal(after["polarity"], alone["polarity"])
    assert not torch.allclose(after["polarity"], before["polarity"])
