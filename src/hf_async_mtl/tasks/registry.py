"""The registry of task types. To add one, write its head in `modeling/heads.py` and its file here, and enter both."""

from __future__ import annotations

from .base import TaskType
from .classification import Classification
from .multilabel import Multilabel
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .regression import Regression
from .token_classification import TokenClassification

TASK_TYPES: dict[str, TaskType] = {
    "classification": Classification(),
    "multilabel": Multilabel(),
    "regression": Regression(),
    "token_classification": TokenClassification(),
    "multiple_choice": MultipleChoice(),
    "question_answering": QuestionAnswering(),
}
"""Name of a type, as in `TaskConfig.type` -> what the library knows about it."""
