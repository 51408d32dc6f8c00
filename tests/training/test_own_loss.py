"""A user's own `compute_loss`, written as the documentation of Transformers shows, and terms added to ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ScriptedTrainer, log_of, some_rows, tiny_model, tiny_trainer, weights
from torch.nn import functional

SIZES = {"polarity": 16}


class OwnLoss(ScriptedTrainer):
    """Cross-entropy with weights of the classes."""

    class_weights = (1.0, 1.0)

    def compute_loss(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None, return_outputs: bool = False
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        weight = torch.tensor(self.class_weights)
        loss = functional.cross_entropy(outputs.get("logits")["polarity"], labels["polarity"], weight=weight)
        return (loss, outputs) if return_outputs else loss


class WeightedLoss(OwnLoss):
    class_weights = (1.0, 9.0)


class FurtherTerm(ScriptedTrainer):
    """Our loss, and as much again of the batch's mean."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = (loss + outputs.loss) / 2
        return (loss, outputs) if return_outputs else loss


def run(folder: Path, kind: type[ScriptedTrainer], **settings: Any) -> ScriptedTrainer:
    given: dict[str, Any] = {"num_train_epochs": 2, "eval_steps": 2, "logging_steps": 1, **settings}
    model = tiny_model(list(SIZES), dropout=0.0)
    trainer = tiny_trainer(folder, SIZES, kind=kind, model=model, load_best_model_at_end=False, **given)
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_own_loss_that_is_ours_trains_alike(accumulation: int, tmp_path: Path) -> None:
    """Bug: `model(**inputs)` refuses a batch of the trainer, or accumulation multiplies the gradient of a mean."""
    settings = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
    runs = [
        run(tmp_path / kind.__name__, kind, convergence={"patience": 9}, **settings)
        for kind in (ScriptedTrainer, OwnLoss, FurtherTerm)
    ]
    for other in runs[1:]:
        for name, tensor in weights(runs[0]).items():
            torch.testing.assert_close(weights(other)[name], tensor, atol=1e-6, rtol=1e-5)
        losses = [[entry["loss"] for entry in log_of(kind) if "loss" in entry] for kind in (runs[0], other)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_an_own_loss_is_what_is_trained(tmp_path: Path) -> None:
    """Bug: the heads' loss is trained all the same, or an evaluation reports the user's loss as that of a task."""
    plain, own = (run(tmp_path / kind.__name__, kind, max_steps=8) for kind in (OwnLoss, WeightedLoss))
    rows = some_rows({"polarity": 32}, seed=4)
    share = [float((kind.predict(rows)["polarity"].predictions.argmax(-1) == 1).mean()) for kind in (plain, own)]
    assert share[1] > share[0]
    result = own.predict(rows)["polarity"]
    expected = functional.cross_entropy(torch.tensor(result.predictions), torch.tensor(result.label_ids))
    assert result.metrics["test_polarity_loss"] == pytest.approx(expected.item(), abs=1e-5)
