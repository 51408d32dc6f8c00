"""One task of a `MultiTaskModel` as a model of one task, for code that knows nothing of bundles."""

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

from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from ..tasks.registry import TASK_TYPES

__all__ = ["SequenceView", "TaskView", "TaskViewConfig", "TokenView"]


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
        # A single output without a name, as that of a regression, is called as the task is.
        labels = task.label_names or [name]
        return cls(
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            problem_type=TASK_TYPES[task.type].problem_type,
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
    hub_name: ClassVar[str]
    """The Hub's name of the types of task that the view can show."""

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

    hub_name = "text-classification"

    def _output(self, logits: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=logits.view(len(logits), -1))


class TokenView(TaskView):
    """A task of token classification, as ``AutoModelForTokenClassification``.

    Its logits are ``[B, L, C]``. Those of a word are at its first sub-word; the rest were never trained.
    """

    hub_name = "token-classification"

    def _output(self, logits: Tensor) -> TokenClassifierOutput:
        return TokenClassifierOutput(logits=logits)


# The stock pipelines look the class of a model up.
AutoModelForSequenceClassification.register(TaskViewConfig, SequenceView, exist_ok=True)
AutoModelForTokenClassification.register(TaskViewConfig, TokenView, exist_ok=True)
