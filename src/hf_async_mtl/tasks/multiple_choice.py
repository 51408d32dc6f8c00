"""Multiple choice: one of several texts that continue a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling.configuration_multitask import TaskConfig
from ..validation import ConfigurationError
from .base import Columns, Target, TaskType, example_text, group_segments, is_names, tokenizer_call
from .labels import label_encoder
from .pretruncation import shorten

if TYPE_CHECKING:
    from datasets import Dataset

    from .loss import LossConfig


class MultipleChoice(TaskType):
    """One of n choices, each a segment with the prompt. Logits ``[N, n]``; predictions are indices of choices."""

    hub_name = "multiple-choice"
    metrics = ("accuracy", "log_loss")
    default_metric = "accuracy"
    prediction_fields = ("choice", "score")
    loss_options = ("label_smoothing",)

    def check_text_columns(self, task: TaskConfig) -> None:
        sides: dict[str, Any] = dict(task.text_columns) if isinstance(task.text_columns, Mapping) else {}
        if isinstance(sides.get("prompt"), str):
            sides["prompt"] = [sides["prompt"]]
        if set(sides) != {"prompt", "choices"} or not all(map(is_names, sides.values())) or len(sides["choices"]) < 2:
            raise ConfigurationError(
                "`text_columns` of a multiple_choice task must be {prompt: [column, ...], choices: [column, column, "
                f"...]}} with two choices or more; found {task.text_columns!r}."
            )
        task.text_columns = sides

    def tokenize(self, rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        prompt_columns, choice_columns = _columns(task)
        prompts = [" ".join(parts) for parts in zip(*(rows[column] for column in prompt_columns), strict=True)]
        prompts = [shorten(prompt, tokenizer, max_length) for prompt in prompts]
        choices = zip(*(rows[column] for column in choice_columns), strict=True)
        count = len(choice_columns)
        encoded = tokenizer(
            [prompt for prompt in prompts for _ in range(count)],
            [shorten(choice, tokenizer, max_length) for row in choices for choice in row],
            truncation=True,
            max_length=max_length,
        )
        return group_segments(encoded, [range(i * count, (i + 1) * count) for i in range(len(prompts))])

    def target_function(self, task: TaskConfig, dataset: Dataset) -> Target:
        """Return the index of a choice, given as index or as name of its column."""
        (label,), (_, choice_columns) = task.target_columns, _columns(task)
        encode = label_encoder(task, dataset, self.ignored, choice_columns)
        encode.unknown.clear()  # a choice that does not exist is a mistake, not a class that training lacks
        return lambda row, _: encode(row[label])

    def loss_arguments(self, task: TaskConfig, loss: LossConfig, rows: Dataset) -> dict[str, Any]:
        return {"label_smoothing": loss.label_smoothing}

    def placeholder(self, task: TaskConfig, row: Mapping[str, Any]) -> Any:
        return 0

    def logit_shape(self, task: TaskConfig) -> tuple[int, ...]:
        _, choice_columns = _columns(task)
        return (len(choice_columns),)

    def format_prediction(
        self, task: TaskConfig, prediction: Any, logits: np.ndarray, encoded: Mapping[str, Any], row: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"choice": prediction, "score": float(torch.from_numpy(logits).softmax(-1)[prediction])}

    def sample_predictions(self, task: TaskConfig) -> tuple[list[Any], list[Any]]:
        return [0, 1], [0, 1]

    def tokenizer_call(self, task: TaskConfig) -> str:
        prompt_columns, choice_columns = _columns(task)
        prompt = example_text(" ".join(prompt_columns))
        choices = ", ".join(f'"{example_text(column)}"' for column in choice_columns)
        pairs = tokenizer_call(f'["{prompt}"] * {len(choice_columns)}, [{choices}]')
        return f"{{key: value.unsqueeze(0) for key, value in {pairs}.items()}}"

    def card_lines(self, task: TaskConfig) -> list[str]:
        return ["logits.argmax(-1).tolist()  # the place of the choice"]


def _columns(task: TaskConfig) -> tuple[list[str], list[str]]:
    """Return the columns of the prompt and those of the choices."""
    assert isinstance(task.text_columns, Mapping)
    return task.text_columns["prompt"], task.text_columns["choices"]
