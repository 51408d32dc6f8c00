"""One task of a `MultiTaskModel` as a model of one task, for code that knows nothing of bundles."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from ..modeling.configuration_multitask import ConfigurationError, TaskConfig

__all__ = ["SequenceView", "TaskView", "TaskViewConfig", "TokenView"]

# Task type -> what Transformers calls the same.
_PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


class TaskViewConfig(PreTrainedConfig):
    """What code for one task looks up: the labels' names and the type of the problem."""

    model_type = "hf_async_mtl_view"

    @classmethod
    def of(cls, model: Any, name: str) -> TaskViewConfig:
        """The configuration of a view.

        Args:
            model: A `MultiTaskModel`.
            name: The task.
        """
        task: TaskConfig = model.config.task_configs[name]
        # A regression has one output, which is called as the task is.
        labels = [name] if task.type == "regression" else [str(label) for label in task.label_names or ()]
        return cls(
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type=_PROBLEMS.get(task.type),
            hidden_size=model.config.encoder_config.hidden_size,
            pad_token_id=model.config.encoder_config.pad_token_id,
        )


class TaskView(PreTrainedModel):
    """A task's head on the encoder that it shares: nothing is copied, and what trains the one trains the other.

    Args:
        model: A `MultiTaskModel`.
        name: One of its tasks.

    Raises:
        ConfigurationError: The task is not known, or not of a type that the view can show.
    """

    config_class = TaskViewConfig
    main_input_name = "input_ids"
    types: tuple[str, ...]
    """The types of task that there is such a view of."""

    def __init__(self, model: Any, name: str) -> None:
        tasks = {key: task.type for key, task in model.config.task_configs.items()}
        if tasks.get(name) not in self.types:
            found = f"is of type {tasks[name]}" if name in tasks else "is unknown"
            fitting = ", ".join(key for key, kind in tasks.items() if kind in self.types) or "none"
            raise ConfigurationError(
                f"A {type(self).__name__} shows a task of type {' or '.join(self.types)}; {name!r} {found}. The model "
                f"has: {fitting}."
            )
        super().__init__(TaskViewConfig.of(model, name))
        self.bundle = model
        self.name = name
        self.train(model.training)

    def get_input_embeddings(self) -> Any:
        return self.bundle.get_input_embeddings()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raise: a view is a part of its bundle, which is what can be saved."""
        raise ConfigurationError(
            f"A view of task {self.name!r} cannot be saved by itself. Save the `MultiTaskModel`, and take the view of "
            "it once it is loaded."
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Any:
        """The task's logits, in the output that Transformers has for such a task; the class says their shape."""
        output = self.bundle(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            tasks=[self.name],
        )
        return self._output(output.logits[self.name])

    def _output(self, logits: Tensor) -> Any:
        raise NotImplementedError


class SequenceView(TaskView):
    """A task of classification, multi-label classification or regression, as ``AutoModelForSequenceClassification``.

    Its logits are ``[B, C]``; of a regression ``[B, 1]``, in the units of its data.
    """

    types = ("classification", "multilabel", "regression")

    def _output(self, logits: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=logits.view(len(logits), -1))


class TokenView(TaskView):
    """A task of token classification, as ``AutoModelForTokenClassification``.

    Its logits are ``[B, L, C]``. Those of a word are at its first sub-word; the rest were never trained.
    """

    types = ("token_classification",)

    def _output(self, logits: Tensor) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=logits)


# The stock pipelines look the class of a model up.
AutoModelForSequenceClassification.register(TaskViewConfig, SequenceView, exist_ok=True)
AutoModelForTokenClassification.register(TaskViewConfig, TokenView, exist_ok=True)
