"""The loss of a batch: each example's by its task's phase, over N, and combined as the balancing method says."""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import TASKS, random_examples, tiny_model
from torch import Tensor

from hf_async_mtl import AsyncMTLTrainingArguments, ConfigurationError
from hf_async_mtl.data.collator import MultiTaskCollator
from hf_async_mtl.training.loss import MultiTaskLoss

# The first three of `TASKS`, so that their ids are those of `random_examples`.
NAMES = ["topic", "stars", "tags"]
THREE = {name: TASKS[name] for name in NAMES}


class Schedule:
    """Phases that a test sets."""

    def __init__(self, **phases: str) -> None:
        self.tasks = NAMES
        self.phases = {**dict.fromkeys(NAMES, "learning"), **phases}

    @property
    def in_loss(self) -> dict[str, bool]:
        return {name: phase in ("learning", "distilling") for name, phase in self.phases.items()}


class Teachers:
    """A distillation loss that tells by its value which example it belongs to."""

    def losses(
        self, task: str, head: Any, logits: Tensor, indices: list[int], labels: Tensor, layout: Any, supervised: Tensor
    ) -> Tensor:
        assert len(logits) == len(labels)
        assert len(indices) == len(supervised)
        return 100.0 + torch.tensor(indices) + 0 * supervised


def accelerator(ranks: int = 1) -> Any:
    """On several ranks, the others have no example."""
    return SimpleNamespace(
        num_processes=ranks, sync_gradients=True, device=torch.device("cpu"), reduce=lambda tensor, how: tensor
    )


def loss_of(schedule: Schedule, ranks: int = 1, balancing: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    args = AsyncMTLTrainingArguments("out", use_cpu=True, report_to="none", balancing=balancing, **settings)
    model = tiny_model("bert", tasks=THREE)
    return MultiTaskLoss(model, args, schedule, Teachers(), accelerator(ranks), epoch_size=90)  # type: ignore[arg-type]


def batch() -> dict[str, Any]:
    examples = random_examples(NAMES, per_task=3)
    return MultiTaskCollator({name: task.type for name, task in THREE.items()}, 48, 0)(examples)


def supervised(loss: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Task -> the supervised losses of its examples, in their order in the batch."""
    return loss.model(**{key: value for key, value in inputs.items() if key != "example_ids"}).losses


def test_learning_tasks_are_weighted_and_divided_by_n() -> None:
    """Bug: each task's mean is taken, so that an example of a small task weighs more; or a weight is lost."""
    loss, inputs = loss_of(Schedule(), balancing={"weights": {"stars": 3.0}}), batch()
    found, outputs = loss(loss.model, inputs, torch.tensor(12), step=0)
    own = supervised(loss, inputs)
    torch.testing.assert_close(found, (own["topic"].sum() + 3 * own["stars"].sum() + own["tags"].sum()) / 12)
    assert set(outputs.logits) == set(NAMES)
    assert found.requires_grad
    # Without N, the examples of the batch count.
    torch.testing.assert_close(loss(loss.model, inputs, None, step=0)[0] * 9, found * 12)


def test_a_task_that_is_not_in_the_loss_does_not_count() -> None:
    """Bug: a stopped task pulls on the encoder, or its examples make the others' gradient smaller."""
    loss, inputs = loss_of(Schedule(stars="stopped", tags="waiting")), batch()
    n = loss.count([inputs, inputs], torch.device("cpu"))
    assert n == 6
    found, _ = loss(loss.model, inputs, n, step=0)
    torch.testing.assert_close(found, supervised(loss, inputs)["topic"].sum() / 6)
    found.backward()
    assert not any(p.grad is not None and p.grad.any() for p in loss.model.heads["stars"].parameters())
    assert any(p.grad is not None and p.grad.any() for p in loss.model.heads["topic"].parameters())


def test_a_distilling_task_is_compared_with_the_logits_of_its_own_examples() -> None:
    """Bug: recorded logits are looked up by the place in the batch, and belong to other examples."""
    loss, inputs = loss_of(Schedule(stars="distilling")), batch()
    found, _ = loss(loss.model, inputs, 9, step=0)
    own = supervised(loss, inputs)
    distilled = (100.0 + inputs["example_ids"][inputs["task_ids"] == 1]).sum()
    torch.testing.assert_close(found, (own["topic"].sum() + distilled + own["tags"].sum()) / 9)


def test_examples_that_fill_up_a_rank_do_not_count() -> None:
    """Bug: the last batch of an epoch, which ranks fill up with examples seen before, weighs these twice."""
    loss, inputs = loss_of(Schedule(tags="distilling"), ranks=2), batch()
    all_ids = inputs["example_ids"].clone()
    filled = torch.tensor([False, True, False, False, False, True, True, False, False])
    inputs["example_ids"] = torch.where(filled, ~all_ids, all_ids)
    inputs["host"].example_ids = inputs["example_ids"].tolist()
    n = loss.count([inputs], torch.device("cpu"))
    assert n == 6
    found, _ = loss(loss.model, inputs, n, step=0)
    own = supervised(loss, inputs)
    distilled = (100.0 + all_ids[7:]).sum()
    expected = own["topic"][[0, 2]].sum() + own["stars"][[0, 1]].sum() + distilled
    # The mean over the ranks, which DDP takes, is to be the sum.
    torch.testing.assert_close(found, 2 * expected / 6)


def test_a_method_on_losses_weighs_the_tasks_that_learn() -> None:
    """Bug: a distilled loss is weighed too; or the balanced part has another share of the update than its examples."""
    loss, inputs = loss_of(Schedule(stars="distilling"), balancing={"method": "gls"}), batch()
    found, _ = loss(loss.model, inputs, 18, step=0)
    own = supervised(loss, inputs)
    topic, tags = own["topic"].mean(), own["tags"].mean()
    # Geometric mean S: its derivative by each loss is S / (2 l).
    weights = (topic * tags).sqrt().detach() / (2 * torch.stack([topic, tags]).detach())
    distilled = (100.0 + inputs["example_ids"][inputs["task_ids"] == 1]).sum()
    torch.testing.assert_close(found, 6 / 18 * (weights @ torch.stack([topic, tags])) + distilled / 18)
    logs = loss.logs()
    assert {name: logs[f"weight/{name}"] for name in ("topic", "tags")} == pytest.approx(
        dict(zip(("topic", "tags"), weights.tolist(), strict=True))
    )
    assert "weight/stars" not in logs


def test_gradient_balancing_adds_gradients_and_returns_the_plain_loss() -> None:
    """Bug: the Trainer propagates the loss a second time, or logs another loss than that of equal weights."""
    loss, inputs = loss_of(Schedule(), balancing={"method": "cagrad", "parameters": {"c": 0}}), batch()
    found, _ = loss(loss.model, inputs, 9, step=0)
    gradients = {name: p.grad.clone() for name, p in loss.model.named_parameters() if p.grad is not None}
    found.backward()
    assert all(torch.equal(p.grad, gradients[name]) for name, p in loss.model.named_parameters() if name in gradients)
    loss.model.zero_grad()
    own = supervised(loss, inputs)
    plain = torch.stack([own[name].mean() for name in NAMES]).mean()
    torch.testing.assert_close(found.detach(), plain.detach())
    plain.backward()
    for name, parameter in loss.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("method", ["uw", "pcgrad"])
def test_a_loss_that_is_not_finite_does_not_reach_the_balancer(method: str) -> None:
    """Bug: a method fails on NaN before the task and its examples are named."""
    loss, inputs = loss_of(Schedule(stars="distilling"), balancing={"method": method}), batch()
    before = loss.state_dict()
    inputs["labels"]["topic"] = inputs["labels"]["topic"].clone()
    with torch.no_grad():
        next(loss.model.heads["topic"].parameters()).fill_(float("nan"))
    found, _ = loss(loss.model, inputs, 9, step=0)
    assert found.isnan()
    assert loss.state_dict() == before
    with pytest.raises(FloatingPointError, match="task 'topic'"):
        loss.finite.check(SimpleNamespace(**vars(accelerator()), scaler=None), 0, 1.0)


def test_the_log_has_each_tasks_mean_since_the_last_log() -> None:
    """Bug: means are over batches, not examples, or are never started again."""
    loss, inputs = loss_of(Schedule(tags="stopped")), batch()
    own = supervised(loss, inputs)
    for _ in range(2):
        loss(loss.model, inputs, 6, step=0)
    expected = {f"{name}_loss": own[name].mean().item() for name in ("topic", "stars")}
    assert loss.logs() == pytest.approx(expected)
    assert loss.logs() == {}


def test_its_state_goes_on() -> None:
    """Bug: a resumed run balances anew, or logs losses of before its checkpoint."""
    first, second = (loss_of(Schedule(), balancing={"method": "uw"}, conflict_steps=1) for _ in range(2))
    inputs = batch()
    first(first.model, inputs, 9, step=0)
    second(second.model, inputs, 9, step=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert second.state_dict() == first.state_dict()
    assert second.conflicts.report()["counts"][0][0] == 1
    assert not any(name.endswith("_loss") for name in second.logs())


@pytest.mark.parametrize(("over", "frozen"), [("last_layer", "all"), ("encoder", "all"), ("last_layer", "layers")])
def test_there_must_be_something_to_balance(over: str, frozen: str) -> None:
    """Bug: the first backward pass fails, hours after the start of the queue."""
    loss = loss_of(Schedule())
    (loss.model.encoder if frozen == "all" else loss.model.encoder.encoder).requires_grad_(False)
    args = AsyncMTLTrainingArguments("out", use_cpu=True, balancing={"method": "mgda", "over": over})
    with pytest.raises(ConfigurationError, match=r"`balancing\.method: mgda`.* Use `balancing\.method: sum`|or use"):
        MultiTaskLoss(loss.model, args, loss.schedule, loss.teachers, loss.accelerator, epoch_size=9)
