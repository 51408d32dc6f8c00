"""Trainers of the comparison of methods: they keep the weights that are compared, or train by a rule that is tried.

`KeepingTrainer` is that of all methods. `TRIALS` are what was tried on top of distilling and is not in the package:

* ``averaged``: the moving average of the weights is what is evaluated, what teaches and what is saved.
* ``fewer_draws``: two of three examples of a distilling task are replaced by examples of tasks that learn from labels.
* ``loss``: a task also converges when its validation loss has risen by more than its noise, and its metric has not.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hf_async_mtl import AsyncMTLTrainer, MultiTaskModel, TaskConfig
from hf_async_mtl.convergence.criteria import Decline
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.sampler import MultiTaskSampler
from hf_async_mtl.data.tokenization import unit_counts
from hf_async_mtl.inference.logits import IndexBatches, iterate_logits, split_by_example
from hf_async_mtl.metrics import compute
from hf_async_mtl.tasks.registry import TASK_TYPES

Weights = dict[str, Tensor]


def average_weights(states: Sequence[Weights]) -> Weights:
    """Return the mean of each tensor; integers are those of the first."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }


class MovingAverage(TrainerCallback):
    """Keep an exponential moving average of the weights, with one update per optimizer step."""

    def __init__(self, model: MultiTaskModel, decay: float) -> None:
        self.decay = decay
        self.seconds = 0.0
        self.weights = copy_of(model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        begin = time.monotonic()
        for name, tensor in kwargs["model"].state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor.detach(), 1 - self.decay)
        self.seconds += time.monotonic() - begin


def copy_of(model: torch.nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class KeepingTrainer(AsyncMTLTrainer):
    """Keep the weights of each task's best evaluation and of the best average in memory."""

    moving_average: MovingAverage | None = None

    def keep_from_here(self) -> None:
        self.best: dict[str, Weights] = {}
        self.validation_losses: dict[str, list[float]] = {name: [] for name in self.tasks}
        self.validation_predictions: dict[str, list[np.ndarray]] = {name: [] for name in self.tasks}
        self.best_average: tuple[float, int, Weights] = (float("-inf"), 0, {})
        self.best_moving_average: tuple[float, int, Weights] = (float("-inf"), 0, {})

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        if self.is_in_train and eval_dataset is None:
            self.keep(metrics, copy_of(self.model))
        return metrics

    def keep(self, metrics: Mapping[str, float], measured: Weights) -> None:
        report = self.schedule.report()
        for name, task in report["tasks"].items():
            self.validation_losses[name].append(metrics[f"eval_{name}_loss"])
            predicted = self.evaluator.predictions[name]
            self.validation_predictions[name].append(to_array(self.tasks[name], predicted))
            if task["best_step"] == report["step"]:
                self.best[name] = measured
        # A correlation with a constant is not defined; such an evaluation is the best only while there is no other.
        average, step = float(np.nan_to_num(metrics["eval_average"], nan=-1e9)), self.state.global_step
        if average > self.best_average[0]:
            self.best_average = (average, step, measured)
        if self.moving_average is not None:
            begin = time.monotonic()
            average = float(np.nan_to_num(np.mean([*self.values_at(self.moving_average.weights).values()]), nan=-1e9))
            if average > self.best_moving_average[0]:
                weights = {name: tensor.clone() for name, tensor in self.moving_average.weights.items()}
                self.best_moving_average = (average, step, weights)
            self.moving_average.seconds += time.monotonic() - begin

    def values_at(self, weights: Weights) -> dict[str, float]:
        """Return the monitored validation metric of each task with other weights."""
        present = copy_of(self.model)
        self.model.load_state_dict(weights)
        sets: Mapping[str, TaskDataset] = self.eval_dataset
        values = {name: value_of(sets[name], self.predictions(sets[name])) for name in self.tasks}
        self.model.load_state_dict(present)
        return values

    def predictions(self, rows: TaskDataset) -> list[Any]:
        """Return the predictions on some rows, without their labels."""

        def forward(batch: dict[str, Any]) -> dict[str, Tensor]:
            with self.compute_loss_context_manager():
                return self.model(**batch).logits

        self.model.eval()
        units = unit_counts(rows.task, rows.rows) if self.model.heads[rows.name].unit == "token" else None
        batches = IndexBatches(len(rows), self.args.eval_batch_size)
        found = dict(
            example
            for ids, logits in iterate_logits(forward, rows, self.data_collator, batches, self.args.device)
            for example in split_by_example(ids, logits[rows.name], units)
        )
        logits: Any = [found[index] for index in range(len(rows))]
        return TASK_TYPES[rows.task.type].metric_predictions(rows.task, logits, rows.rows)


def value_of(rows: TaskDataset, predictions: Sequence[Any]) -> float:
    """Return the monitored metric of some predictions."""
    return score_of(rows.task, predictions, TASK_TYPES[rows.task.type].references(rows.task, rows.rows))


def score_of(task: TaskConfig, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the monitored metric of predictions and references in the order of the task's labels."""
    metric, in_metric_order = task.monitored, TASK_TYPES[task.type].in_metric_order
    given, true = (in_metric_order(task, list(values)) for values in (predictions, references))
    return compute([metric], task.type, given, true, task.label_names)[metric]


def to_array(task: TaskConfig, predictions: Sequence[Any]) -> np.ndarray:
    """Return predictions as a flat array; see `from_array`."""
    if task.type == "regression":
        return np.asarray(predictions, dtype=np.float32)
    if task.type == "token_classification":
        assert task.label_names is not None
        place = {label: index for index, label in enumerate(task.label_names)}
        return np.asarray([place[label] for words in predictions for label in words], dtype=np.int16)
    return np.asarray(predictions, dtype=np.int16)


def from_array(task: TaskConfig, array: np.ndarray, true: Sequence[Any]) -> list[Any]:
    """Return predictions as metrics expect them; the references give the lengths of lists."""
    if task.type != "token_classification":
        return array.tolist()
    assert task.label_names is not None
    names = iter([task.label_names[index] for index in array.tolist()])
    return [list(itertools.islice(names, len(words))) for words in true]


# -- what was tried ---------------------------------------------------------------------------------------------------


class AveragedTrainer(KeepingTrainer):
    """Evaluate, snapshot and keep the moving average of the weights instead of the weights, and end with it."""

    def keep_from_here(self) -> None:
        super().keep_from_here()
        self.measured = MovingAverage(self.model, decay=0.99)
        self.add_callback(self.measured)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        result = super().train(*args, **kwargs)
        self.model.load_state_dict(self.measured.weights)
        return result

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        present = copy_of(self.model)
        self.model.load_state_dict(self.measured.weights)
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        self.model.load_state_dict(present)
        return metrics


class ReplacedDraws(torch.utils.data.Sampler[int]):
    """The order of another sampler, with two of three examples of distilling tasks replaced by those of learning ones.

    The phases are those of the moment at which an example is drawn.
    """

    def __init__(self, sampler: MultiTaskSampler, trainer: AsyncMTLTrainer) -> None:
        self.sampler, self.trainer = sampler, trainer
        self.starts = np.cumsum([0, *sampler.sizes])

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.sampler.seed, self.sampler.epoch, 1])
        for index in self.sampler:
            phases = [self.trainer.schedule.phases[name] for name in self.trainer.tasks]
            learners = [place for place, phase in enumerate(phases) if phase == "learning"]
            task = int(np.searchsorted(self.starts, index, side="right")) - 1
            if index >= 0 and learners and phases[task] == "distilling" and rng.random() < 2 / 3:
                task = learners[rng.integers(len(learners))]
                index = int(rng.integers(self.starts[task], self.starts[task + 1]))
            yield index


class FewerDrawsTrainer(KeepingTrainer):
    """Draw a distilling task a third as often, and give its draws to the tasks that learn from labels."""

    def _get_train_sampler(self, train_dataset: torch.utils.data.Dataset | None = None) -> Any:
        return ReplacedDraws(super()._get_train_sampler(train_dataset), self)


class LossDecline(Decline):
    """`Decline`, or ``patience`` evaluations in a row with a loss above its lowest and without a new best score.

    The loss must exceed the lowest by ``z`` standard errors of the difference, paired by example. A model that learns
    wrong labels by heart grows sure of them: its loss on other rows rises long before the rank of its answers falls,
    and a loss is far less noisy than a correlation of few rows.
    """

    lowest: np.ndarray | None = None  # the losses of the examples at the evaluation with the lowest mean
    rises = 0

    def look_at(self, losses: np.ndarray) -> None:
        """Take in the losses ``[N]`` of the examples of the evaluation that the next `update` is about."""
        if self.lowest is None or losses.mean() < self.lowest.mean():
            self.lowest = losses
        difference = losses - self.lowest
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        self.has_risen = bool(difference.mean() > self.config.z * error)

    def update(self, step: int, value: float | None, *, standard_error: float | None = None) -> bool:
        converged = super().update(step, value, standard_error=standard_error)
        self.rises = self.rises + 1 if self.has_risen and self.reference_step != step else 0
        return converged or self.rises >= self.config.patience


class LossTrainer(KeepingTrainer):
    """Decide on convergence by `LossDecline`."""

    def keep_from_here(self) -> None:
        super().keep_from_here()
        self._score, self._losses = self.evaluator.score, dict[str, np.ndarray]()
        self.evaluator.score = self._note_losses  # type: ignore[method-assign]

    def _note_losses(self, dataset: TaskDataset, output: EvalLoopOutput, prefix: str) -> EvalLoopOutput:
        _, order = np.unique(np.asarray(output.label_ids), return_index=True)
        self._losses[dataset.name] = np.asarray(output.predictions[1], dtype=np.float64)[order]
        return self._score(dataset, output, prefix)

    def _observe(self, metrics: dict[str, float]) -> None:
        for name, tracker in self.schedule.trackers.items():
            if not isinstance(tracker._criterion, LossDecline):  # before the first evaluation
                tracker._criterion = LossDecline(tracker.spec.convergence)
            tracker._criterion.look_at(self._losses[name])
        super()._observe(metrics)


TRIALS: dict[str, type[KeepingTrainer]] = {
    "averaged": AveragedTrainer,
    "fewer_draws": FewerDrawsTrainer,
    "loss": LossTrainer,
}
