"""The parts of the trainer by themselves: evaluation, controller, checkpoint, without a run."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import ALL, some_rows, tiny_model, tiny_trainer
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer_utils import EvalLoopOutput

from hf_async_mtl import AsyncMTLTrainer, ConfigurationError
from hf_async_mtl.training.checkpoint_files import STATE_FILE, complete_checkpoints, read_state
from hf_async_mtl.training.evaluation import TaskEvaluator, dense
from hf_async_mtl.training.nonfinite import FiniteCheck
from hf_async_mtl.training.state_dict import clone_state_dict, full_state_dict, load_weights
from hf_async_mtl.training.upstream import refused, replaced_fields, split_head_groups

PAIR = {"polarity": 6, "overlap": 6}


@pytest.fixture
def trainer(tmp_path: Path) -> AsyncMTLTrainer:
    return tiny_trainer(tmp_path / "run", PAIR, model=tiny_model(list(PAIR), dropout=0.0))


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_units_are_padded_per_example() -> None:
    """Bug: the units of one example are given to its neighbor, or padded with a logit that could win."""
    values = torch.arange(6.0).reshape(3, 2)
    assert dense(values, torch.tensor([0, 1, 3])).tolist() == [[[0, 1], [-100, -100]], [[2, 3], [4, 5]]]


def test_scores_are_those_of_each_example_once(trainer: AsyncMTLTrainer) -> None:
    """Bug: examples that fill up a batch of several ranks count twice, or logits are scored in the order of arrival."""
    evaluator = TaskEvaluator(trainer.model, trainer.eval_dataset, {})
    dataset = trainer.eval_dataset["overlap"]
    targets = np.asarray(dataset.rows["labels"], dtype=np.float32)
    ids = np.array([5, 4, 3, 2, 1, 0, 5, 4])
    losses = ids.astype(np.float32)
    output = EvalLoopOutput((targets[ids], losses), ids, {"eval_loss": 99.0, "eval_model_preparation_time": 0.1}, 6)
    scored = evaluator.score(dataset, output, "eval")
    assert scored.predictions.tolist() == targets.tolist()
    assert scored.metrics == {
        "eval_loss": 2.5,
        "eval_pearson": pytest.approx(1.0),
        "eval_model_preparation_time": 0.1,
    }
    assert evaluator.predictions.keys() == {"overlap"}


def test_only_validation_predictions_are_kept(trainer: AsyncMTLTrainer) -> None:
    """Bug: a test set that is evaluated in the midst of a run takes the place of the reference predictions."""
    trainer.evaluate(some_rows(dict.fromkeys(PAIR, 4), seed=3))
    assert trainer.evaluator.predictions == {}
    trainer.evaluate()
    assert {name: len(values) for name, values in trainer.evaluator.predictions.items()} == PAIR


def test_the_users_metrics_see_logits_and_labels(tmp_path: Path) -> None:
    """Bug: the user's function is not called, or with labels in another order than the logits."""

    def share(prediction: Any) -> dict[str, float]:
        return {"share": float(np.mean(np.argmax(prediction.predictions, -1) == prediction.label_ids))}

    trainer = tiny_trainer(tmp_path, {"polarity": 6})
    evaluator = TaskEvaluator(trainer.model, trainer.eval_dataset, {"polarity": share})
    dataset = trainer.eval_dataset["polarity"]
    logits = np.eye(2)[[0, 1, 0, 0, 1, 1]]
    found = evaluator.metrics(dataset, logits)
    assert found["share"] == found["accuracy"]


# -- controller -------------------------------------------------------------------------------------------------------


def observe(trainer: AsyncMTLTrainer, step: int, polarity: float, overlap: float) -> bool:
    trainer.controller.constant_tasks = list  # type: ignore[method-assign]
    trainer.controller.resample = lambda: {name: np.zeros(3) for name in PAIR}  # type: ignore[method-assign]
    values = {"polarity_accuracy": polarity, "overlap_pearson": overlap, "polarity_loss": 1.0, "overlap_loss": 1.0}
    return trainer.controller.observe(step, step / 4, {f"eval_{key}": value for key, value in values.items()})


def test_the_controller_records_the_weights_of_the_best_step(trainer: AsyncMTLTrainer) -> None:
    """Bug: logits are recorded with the present weights, or these are not restored after it."""
    trainer.teachers.begin()
    best = clone_state_dict(trainer.model)
    assert observe(trainer, 4, 0.9, 0.1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1)
    present = clone_state_dict(trainer.model)
    assert observe(trainer, 8, 0.5, 0.2)
    assert trainer.schedule.phases == {"polarity": "distilling", "overlap": "learning"}
    assert all(torch.equal(tensor, present[name]) for name, tensor in trainer.model.state_dict().items())
    trainer.model.load_state_dict(best)
    recorded = trainer.teachers.read("polarity", trainer.teachers.store)
    for example_ids, logits in trainer.iterate_logits(trainer.encoded_train["polarity"]):
        torch.testing.assert_close(recorded.lookup(example_ids), logits, atol=1e-5, rtol=1e-5)
    told = json.loads(Path(trainer.args.output_dir, "convergence.json").read_text())
    assert told["tasks"]["polarity"]["teacher_step"] == 4


def test_the_controller_observes_a_step_once(trainer: AsyncMTLTrainer) -> None:
    """Bug: a user's own evaluation, or the one that opens a resumed run, counts against a task's patience."""
    trainer.teachers.begin()
    assert observe(trainer, 4, 0.9, 0.1)
    assert not observe(trainer, 4, 0.1, 0.1)
    trainer.controller.begin(10)
    assert not observe(trainer, 10, 0.1, 0.1)
    assert trainer.schedule.report()["tasks"]["polarity"]["history"] == [[4, 0.9]]
    assert observe(trainer, 12, 0.8, 0.2)


def test_ranks_that_do_not_write_read_all_batches(trainer: AsyncMTLTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a rank leaves the collective calls of a recording, and the others wait for ever."""
    trainer.teachers.begin()
    batches = [(torch.arange(6), torch.zeros(6, 2))]
    trainer.controller.record("polarity", 0, batches)
    read: list[int] = []

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches):
            read.append(number)
            yield batch

    monkeypatch.setattr(type(trainer.args), "should_save", False)
    trainer.controller.record("polarity", 0, counted())
    assert read == [0]


# -- checkpoint -------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_complete_with_our_state_only(trainer: AsyncMTLTrainer, tmp_path: Path) -> None:
    """Bug: a checkpoint that is written again counts as complete while it is, with what an earlier run left."""
    folder = tmp_path / "run" / "checkpoint-4"
    trainer.checkpoint.prepare(folder, TrainerState(global_step=4))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rng_state.pth").write_bytes(b"")
    assert complete_checkpoints(tmp_path / "run") == {}
    trainer.checkpoint.complete(folder)
    assert complete_checkpoints(tmp_path / "run") == {4: folder}
    state = read_state(folder)
    assert state is not None
    assert state == json.loads(json.dumps(trainer.checkpoint.state()))
    trainer.checkpoint.prepare(folder, TrainerState(global_step=4))
    assert complete_checkpoints(tmp_path / "run") == {}


def test_a_checkpoint_of_version_0_1_is_refused_by_name(trainer: AsyncMTLTrainer, tmp_path: Path) -> None:
    """Bug: a checkpoint of an earlier version, whose state was in the Trainer's, ends in a traceback."""
    folder = tmp_path / "old" / "checkpoint-4"
    folder.mkdir(parents=True)
    TrainerState(global_step=4).save_to_json(str(folder / "trainer_state.json"))
    with pytest.raises(
        ConfigurationError, match=rf"has no readable {STATE_FILE}\. Was it written by another Trainer or"
    ):
        trainer.checkpoint.begin(str(folder))


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_fields_are_replaced_for_a_block_only(trainer: AsyncMTLTrainer) -> None:
    """Bug: an error within the block leaves the run without a limit of checkpoints."""
    trainer.args.save_total_limit = 3
    with suppress(ValueError), replaced_fields(trainer.args, save_total_limit=None):
        assert trainer.args.save_total_limit is None
        raise ValueError
    assert trainer.args.save_total_limit == 3


def test_a_refused_method_says_what_to_do() -> None:
    """Bug: an unsupported method of the Trainer runs half, or its error names no way out."""
    with pytest.raises(ConfigurationError, match=r"`search` is not supported\. Build one\."):
        refused("search", "Build one.")(None, n_trials=3)


def test_frozen_bodies_leave_no_empty_group() -> None:
    """Bug: a group without parameters cannot be resumed when it is sharded."""
    body, heads = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([{"params": [*heads.parameters()]}, {"params": [*body.parameters()]}], lr=1.0)
    split_head_groups(optimizer, nn.ModuleDict({"encoder": body, "heads": nn.ModuleDict({"a": heads})}), 0.1)
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(1.0, 2), (0.1, 2)]


def test_weights_go_out_and_in() -> None:
    """Bug: a copy changes with the model, or weights are put into another model than they came from."""
    model, other = tiny_model(ALL[:2]), tiny_model(ALL[:2], seed=1)
    copied, full = clone_state_dict(model), full_state_dict(model, keep=True)
    assert full_state_dict(model, keep=False) == {}
    assert all(torch.equal(copied[name], tensor) for name, tensor in full.items())
    load_weights(other, full)
    with torch.no_grad():
        other.heads["polarity"].linear.weight.add_(1.0)
    assert torch.equal(copied["heads.polarity.linear.weight"], model.heads["polarity"].linear.weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_is_checked_by_its_norm(trainer: AsyncMTLTrainer, bad: float) -> None:
    """Bug: a gradient that is not finite passes, because every loss is finite."""
    check = FiniteCheck(is_deferred=False)
    check.check(trainer.accelerator, 0, 1.0)
    with pytest.raises(FloatingPointError, match=rf"its norm is {bad}, though every loss is finite, at step 1"):
        check.check(trainer.accelerator, 0, bad)
