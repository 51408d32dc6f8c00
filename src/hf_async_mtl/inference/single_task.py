"""Views of one task of a `MultiTaskModel`, for code that expects a stock model of one task."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from ..modeling.configuration_multitask import TaskConfig
from ..tasks.registry import TASK_TYPES
from ..validation import ConfigurationError


class TaskViewConfig(PreTrainedConfig):
    """The configuration of a view: label names and problem type."""

    model_type = "hf_async_mtl_view"

    @classmethod
    def from_model(cls, model: Any, name: str) -> TaskViewConfig:
        """Return the configuration of a view of one task of a `MultiTaskModel`."""
        task: TaskConfig = model.config.task_configs[name]
        # A single output without a label name, as of a regression, gets the name of the task.
        labels = task.label_names or [name]
        return cls(
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type=TASK_TYPES[task.type].problem_type,
            hidden_size=model.config.encoder_config.hidden_size,
            pad_token_id=model.config.encoder_config.pad_token_id,
        )


class TaskView(PreTrainedModel):
    """One task of a `MultiTaskModel`. A view shares the weights of the model: nothing is copied."""

    config_class = TaskViewConfig
    main_input_name = "input_ids"
    hub_name: ClassVar[str]
    """The Hub's name of the task types that have such a view."""

    def __init__(self, model: Any, name: str) -> None:
        tasks = {key: task.type for key, task in model.config.task_configs.items()}
        types = [key for key, kind in TASK_TYPES.items() if kind.hub_name == self.hub_name]
        if tasks.get(name) not in types:
            found = f"is of type {tasks[name]}" if name in tasks else "is unknown"
            fitting = ", ".join(key for key, kind in tasks.items() if kind in types) or "none"
            raise ConfigurationError(
                f"A {type(self).__name__} shows a task of type {' or '.join(types)}; {name!r} {found}. The model "
                f"has: {fitting}."
            )
        super().__init__(TaskViewConfig.from_model(model, name))
        self.multi_task_model = model
        self.name = name
        self.train(model.training)

    def get_input_embeddings(self) -> Any:
        return self.multi_task_model.get_input_embeddings()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raise a `ConfigurationError`: a view is saved with its model."""
        raise ConfigurationError(
            f"A view of task {self.name!r} cannot be saved. Save the `MultiTaskModel`, and create the view again after "
            "loading it."
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Any:
        """Return the logits of the task, in the output class of a stock model."""
        output = self.multi_task_model(
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
    """View a classification, multilabel or regression task as an ``AutoModelForSequenceClassification``.

    Its logits are ``[B, C]``; for regression ``[B, 1]``, in the units of the data.
    """

    hub_name = "text-classification"

    def _output(self, logits: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=logits.view(len(logits), -1))


class TokenView(TaskView):
    """View a token classification task as an ``AutoModelForTokenClassification``.

    Its logits are ``[B, L, C]``. Those of a word are at its first sub-word; the others were never trained.
    """

    hub_name = "token-classification"

    def _output(self, logits: Tensor) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=logits)


# Stock pipelines check that the class of a model is registered.
AutoModelForSequenceClassification.register(TaskViewConfig, SequenceView, exist_ok=True)
AutoModelForTokenClassification.register(TaskViewConfig, TokenView, exist_ok=True)
