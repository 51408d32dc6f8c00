"""The loss of a converged task: a mixture of its teacher's and its labels'."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ALL, ScriptedTrainer, tiny_model, tiny_trainer
from torch import Tensor


class Listener:
    """Stands in for `Teachers.losses`: keeps its results, beside the two losses that it mixes."""

    def __init__(self, trainer: ScriptedTrainer) -> None:
        self.calls: list[dict[str, Any]] = []
        self._trainer = trainer
        self._real = trainer.teachers.losses
        trainer.teachers.losses = self  # type: ignore[method-assign]

    def __call__(self, task: str, head: Any, logits: Tensor, *args: Any) -> Tensor:
        example_ids, labels, layout, supervised = args
        losses = self._real(task, head, logits, *args)
        recorded = self._trainer.teachers._loaded[task].lookup(example_ids).view(logits.shape)
        teacher = head.distillation_loss(logits, recorded, labels, layout, 1.0)
        self.calls.append(
            {
                "step": self._trainer.state.global_step,
                "task": task,
                "losses": losses.detach(),
                "supervised": supervised.detach(),
                "teacher": teacher.detach(),
            }
        )
        return losses


def listen(folder: Path, **settings: Any) -> tuple[ScriptedTrainer, list[dict[str, Any]]]:
    """A run in which all tasks but the last converge at step 4 on the weights of step 2, and what their losses were."""
    names = ALL[:-1]
    trainer = tiny_trainer(
        folder,
        dict.fromkeys(ALL, 4),
        {**{name: [0.5, 0.4] for name in names}, ALL[-1]: [i / 100 for i in range(1, 100)]},
        model=tiny_model(ALL, dropout=0.0),
        per_device_train_batch_size=24,
        eval_steps=2,
        logging_steps=1,
        max_steps=12,
        save_strategy="no",
        load_best_model_at_end=False,
        learning_rate=5e-3,
        **settings,
    )
    listener = Listener(trainer)
    trainer.train()
    assert {event.step for event in trainer.schedule.events} == {4}
    assert {call["step"] for call in listener.calls} == set(range(4, 12))
    assert {call["task"] for call in listener.calls} == set(names)
    return trainer, listener.calls


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_labels_keep_their_share(tmp_path: Path, share: float) -> None:
    """Bug: the share is the teacher's, depends on the step, or leaves a trace of the other loss at 0 and 1."""
    _, calls = listen(tmp_path, distillation={"hard_label_weight": share})
    for call in calls:
        assert torch.equal(call["losses"], torch.lerp(call["teacher"], call["supervised"], share))
    assert all((call["teacher"] - call["supervised"]).abs().max() > 1e-4 for call in calls)


def test_the_logged_loss_is_the_one_that_was_learned_from(tmp_path: Path) -> None:
    """Bug: the log shows the teacher's loss while the labels' is what the gradient comes from."""
    trainer, calls = listen(tmp_path, distillation={"hard_label_weight": 0.5})
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    for call in calls:
        mean = float(call["losses"].mean())
        assert logged[call["step"] + 1][f"{call['task']}_loss"] == pytest.approx(mean, rel=1e-5)
