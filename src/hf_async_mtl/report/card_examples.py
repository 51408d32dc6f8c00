"""How each task of a model is asked in code, for its card: a few lines a task that run as they stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_async_mtl.modeling.configuration_multitask import TaskConfig

__all__ = ["example_of", "tokenizer_call"]

_LABELS = 'labels = model.config.tasks["{name}"]["label_names"]'
_ANSWERS = {
    "classification": [_LABELS, "[labels[row.argmax()] for row in logits]"],
    "multilabel": [
        _LABELS,
        "[[label for label, score in zip(labels, row.sigmoid()) if score > 0.5] for row in logits]",
    ],
    "regression": ["logits.tolist()"],
    "token_classification": [
        _LABELS,
        "[labels[token.argmax()] for token in logits[0]]  # a word's is its first token's",
    ],
    "multiple_choice": ["logits.argmax(-1).tolist()  # the place of the choice"],
    "question_answering": [
        "first, last = logits[0].argmax(0).tolist()  # of the tokens of the answer",
        'tokenizer.decode(inputs["input_ids"][0, first : last + 1])',
    ],
}


def _words(column: str) -> str:
    """A column's name as it can stand in a text.

    Examples:
        >>> _words('the "left"')
        'the left'
    """
    return " ".join(re.findall(r"\w+", column))


def example_of(name: str, task: TaskConfig) -> list[str]:
    """The lines that ask one task, where ``tokenizer``, ``model`` and ``torch`` are there.

    Args:
        name: Of the task.
        task: Its configuration.
    """
    return [
        f"inputs = {tokenizer_call(task)}",
        "with torch.no_grad():",
        f'    logits = model(**inputs, tasks=["{name}"]).logits["{name}"]',
        *(line.replace("{name}", name) for line in _ANSWERS[task.type]),
    ]


def tokenizer_call(task: TaskConfig) -> str:
    """The expression that makes a model's inputs of one row of a task."""
    ends = 'return_tensors="pt", padding=True, truncation=True'
    if isinstance(task.text_columns, Mapping):
        count = len(task.text_columns["choices"])
        prompt = " ".join(_words(column) for column in task.text_columns["prompt"])
        choices = ", ".join(f'"{_words(column)} ..."' for column in task.text_columns["choices"])
        pairs = f'tokenizer(["{prompt} ..."] * {count}, [{choices}], {ends})'
        return f"{{key: value.unsqueeze(0) for key, value in {pairs}.items()}}"
    if task.type == "token_classification":
        return f'tokenizer([["some", "words"]], is_split_into_words=True, {ends})'
    texts = ", ".join(f'["{_words(column)} ..."]' for column in task.text_columns)
    return f"tokenizer({texts}, {ends})"
