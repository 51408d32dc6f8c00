"""The options of the tasks' losses: torch's own values, and a gradient that does not depend on the batches."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from runs import ALL, GradientRecorder, different, some_rows, tiny_model, tiny_trainer, weights
from sklearn.utils.class_weight import compute_class_weight
from tiny import task_configs
from torch import Tensor, nn

from hf_async_mtl import AsyncMTLTrainingArguments, ConfigurationError
from hf_async_mtl.modeling.packing import Layout
from hf_async_mtl.tasks.loss import LossConfig
from hf_async_mtl.tasks.registry import TASK_TYPES

LOSSES: dict[str, Any] = {
    "polarity": {"class_weights": "balanced", "label_smoothing": 0.1},
    "overlap": {"huber": 0.5},
    "colors": {"class_weights": [0.5, 4.0]},
    "choice": {"label_smoothing": 0.2},
    "topics": {"pos_weight": "balanced"},
}


def flat(lengths: list[int]) -> Layout:
    """Examples of one segment each."""
    return Layout(torch.tensor([0, *np.cumsum(lengths)]), torch.arange(len(lengths) + 1))


def head_of(task: str, **arguments: Any) -> Any:
    head = tiny_model([task]).heads[task]
    head.set_loss(arguments)
    return head.train()


def test_losses_are_torchs() -> None:
    """Bug: a weight belongs to another class, smoothing forgets the weights, or delta is in the units of the data."""
    torch.manual_seed(0)
    logits, labels, ones = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0]), flat([1] * 6)
    weight = torch.tensor([0.5, 4.0])
    plain = nn.CrossEntropyLoss(weight, reduction="none", label_smoothing=0.1)
    head = head_of("polarity", weight=weight.tolist(), label_smoothing=0.1)
    torch.testing.assert_close(head.loss(logits, labels, ones), plain(logits, labels))

    # An example's loss is the mean over its words, whatever their weights.
    words = torch.tensor([0, -100, 1, 1, -100, -100])
    by_word = plain(logits[[0, 2, 3]], words[[0, 2, 3]])
    expected = torch.stack([by_word[:2].mean(), by_word[2], torch.tensor(0.0)])
    head = head_of("colors", weight=weight.tolist(), label_smoothing=0.1)
    torch.testing.assert_close(head.loss(logits, words, flat([3, 1, 2])), expected)

    head = head_of("choice", label_smoothing=0.3)
    expected = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.3)(logits, labels)
    torch.testing.assert_close(head.loss(logits, labels, ones), expected)

    several, marked, pos_weight = torch.randn(4, 3), torch.randint(2, (4, 3)).float(), torch.tensor([2.0, 0.5, 7.0])
    head = head_of("topics", pos_weight=pos_weight.tolist())
    expected = nn.BCEWithLogitsLoss(pos_weight=pos_weight, reduction="none")(several, marked).mean(-1)
    torch.testing.assert_close(head.loss(several, marked, flat([1] * 4)), expected)

    numbers, targets = torch.tensor([10.0, 14.0, 3.0]), torch.tensor([11.0, 4.0, 3.0])
    head = head_of("overlap", huber=0.7)
    head.mean, head.std = 6.0, 4.0
    standardized = [(values - head.mean) / head.std for values in (numbers, targets)]
    expected = nn.HuberLoss(delta=0.7, reduction="none")(*standardized)
    torch.testing.assert_close(head.loss(numbers, targets, flat([1] * 3)), expected)
    # Distillation has its own loss, and evaluation the plain one.
    expected = (standardized[0] - standardized[1]).square()
    torch.testing.assert_close(head.distillation_loss(numbers, targets, targets, flat([1] * 3), 1.0), expected)
    torch.testing.assert_close(head.eval().loss(numbers, targets, flat([1] * 3)), expected)


def arguments_of(task: str, rows: list[Any], **loss: Any) -> dict[str, Any]:
    config = task_configs()[task]
    encoded = Dataset.from_dict({"labels": rows})
    return TASK_TYPES[config.type].loss_arguments(config, LossConfig(**loss), encoded)


def test_balanced_weights_are_scikit_learns() -> None:
    """Bug: tokens without a label count, a class without a row divides by 0, or the mean weight is not 1."""
    labels = [0, 1, 0, 0, 0]
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels).tolist()
    found = arguments_of("polarity", labels, class_weights="balanced")
    assert found == {"weight": pytest.approx(expected), "label_smoothing": 0.0}
    assert np.mean(np.array(found["weight"])[labels]) == pytest.approx(1)
    words = [[-100, 0, 0, -100], [1, 0], [0, -100]]
    assert arguments_of("colors", words, class_weights="balanced")["weight"] == pytest.approx(expected)
    assert arguments_of("polarity", [0, 0], class_weights="balanced")["weight"] == [1.0, 1.0]
    # One of four rows has the first label, three the second, none the third.
    rows = [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert arguments_of("topics", rows, pos_weight="balanced") == {"pos_weight": [3.0, pytest.approx(1 / 3), 1.0]}


def gradients_of(folder: Path, packing: str = "auto", **settings: Any) -> dict[str, Tensor]:
    """The gradients of one optimizer step of 24 examples, four of each task."""
    recorder = GradientRecorder()
    model = tiny_model(ALL, dropout=0.0, packing=packing)
    settings = {"losses": LOSSES, "max_steps": 1, "max_grad_norm": 0.0, "eval_steps": 1, **settings}
    settings = {"per_device_train_batch_size": 24, **settings}
    tiny_trainer(folder, dict.fromkeys(ALL, 4), model=model, callbacks=[recorder], **settings).train()
    (found,) = recorder.steps
    return found


def test_batches_do_not_matter(tmp_path: Path) -> None:
    """Bug: a weighted mean is taken per batch, and a rare class pulls more the smaller its batch is."""
    whole = gradients_of(tmp_path / "whole")
    found = gradients_of(tmp_path / "parts", "off", per_device_train_batch_size=4, gradient_accumulation_steps=6)
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    plain = gradients_of(tmp_path / "plain", losses=None)
    changed = [task for task in ALL if different_gradient(plain, whole, f"heads.{task}.linear.weight")]
    assert changed == list(LOSSES)


def different_gradient(left: dict[str, Tensor], right: dict[str, Tensor], name: str) -> bool:
    return bool((left[name] - right[name]).abs().max() > 1e-5)


def test_a_run_resumes_with_its_losses(tmp_path: Path) -> None:
    """Bug: the options live with the model, and a resumed run learns from other losses."""

    def trainer(folder: str, **settings: Any) -> Any:
        sizes = dict.fromkeys(LOSSES, 8)
        settings = {"losses": LOSSES, "max_steps": 8, "eval_steps": 4, **settings}
        return tiny_trainer(tmp_path / folder, sizes, **settings)

    whole = trainer("whole")
    whole.train()
    again = trainer("again", model=tiny_model(list(LOSSES), seed=99))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert different(weights(again), weights(whole)) == []
    # They are neither in the weights nor in the configuration, and the next trainer of the model has its own.
    assert not any("loss" in key for key in whole.model.state_dict())
    assert "balanced" not in whole.model.config.to_json_string()
    trainer("plain", model=whole.model, losses=None)
    assert whole.model.train().heads["polarity"].loss_arguments() == {"weight": None, "label_smoothing": 0.0}


def test_evaluation_reports_the_plain_loss(tmp_path: Path) -> None:
    """Bug: the loss of a run with weights cannot be compared with that of a run without them, or of a loaded model."""
    rows = some_rows({"polarity": 6}, seed=1)
    trainers = [
        tiny_trainer(tmp_path / str(index), {"polarity": 8}, model=tiny_model(["polarity"]), losses=losses)
        for index, losses in enumerate(({"polarity": {"class_weights": [9.0, 1.0]}}, None))
    ]
    for left, right in pairwise(trainer.evaluate(rows)["eval_polarity_loss"] for trainer in trainers):
        assert left == right


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        (
            {"polarity": {"label_smoothing": 1.0}},
            "`tasks.polarity.loss.label_smoothing` must be a number from 0 to below 1; found 1.0.",
        ),
        (
            {"polarity": {"class_weights": "balance"}},
            "`tasks.polarity.loss.class_weights` must be `balanced`, a list of numbers of at least 0, or null; found "
            "'balance'.",
        ),
        (
            {"overlap": {"huber": 0}},
            "`tasks.overlap.loss.huber` must be a number above 0, or null; found 0.",
        ),
        (
            {"polarity": {"class_weight": "balanced"}},
            "Unknown key `tasks.polarity.loss.class_weight`. The nearest known key is `class_weights`.",
        ),
        ({"polarity": "balanced"}, "`tasks.polarity.loss` must be a mapping; found 'balanced'."),
        (
            {"overlap": {"label_smoothing": 0.1}},
            "`tasks.overlap.loss.label_smoothing` needs a task of type classification or token_classification or "
            "multiple_choice; found type regression. Its options are: huber.",
        ),
        (
            {"answer": {"huber": 1.0}},
            "`tasks.answer.loss.huber` needs a task of type regression; found type question_answering. Its options "
            "are: none.",
        ),
        (
            {"topics": {"pos_weight": [1.0, 2.0]}},
            "`tasks.topics.loss.pos_weight` must have a number for each of the labels cat, dog, hat; found [1.0, 2.0].",
        ),
        ({"other": {}}, f"`losses` must name tasks of the model ({', '.join(ALL)}); found 'other'."),
    ],
)
def test_options_that_do_not_fit_are_refused(losses: Any, sentence: str, tmp_path: Path) -> None:
    """Bug: an option without effect is taken, or fails at the first step."""
    with pytest.raises(ConfigurationError) as caught:
        tiny_trainer(tmp_path, dict.fromkeys(ALL, 4), losses=losses)
    assert str(caught.value) == sentence


def test_options_may_be_json() -> None:
    """Bug: the field is the only section that cannot be given on the command line."""
    args = AsyncMTLTrainingArguments("out", losses='{"rte": {"class_weights": [1, 2]}}', use_cpu=True)
    assert args.loss_configs == {"rte": LossConfig(class_weights=[1, 2])}
