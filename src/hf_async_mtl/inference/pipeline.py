"""All tasks on a text in one pass of the encoder, as a pipeline of Transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Pipeline, TextClassificationPipeline, TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from ..modeling.configuration_multitask import ConfigurationError
from ..modeling.modeling_multitask import MultiTaskModel
from ..tasks.pretruncation import shorten
from .single_task import SequenceView, TokenView

__all__ = ["PIPELINE_TASK", "MultiTaskPipeline"]

PIPELINE_TASK = "multi-task-text"
_KINDS = {False: "a text", True: "a pair of texts"}


class MultiTaskPipeline(Pipeline):
    """Texts or pairs of texts -> the answers of all tasks that read such, with one pass of the encoder.

    Its answers are those of the stock pipelines, which compute them: ``text-classification`` for classes, labels and
    numbers, ``token-classification`` for entities. ``predict`` has the other types of task.

    ``pipeline("multi-task-text", model="user/model")`` makes one, wherever this package has been imported; device,
    ``batch_size``, generators and data sets are as with any pipeline.

    Args:
        tasks: The tasks to ask; all that can answer, where absent. Here or in a call, as all that follow.
        top_k: So many of a task's labels, the best first; None: all. The default is 1.
        aggregation_strategy: How sub-words become entities. ``first`` (the default) reads a word's label where it is
            trained, at its first sub-word; ``none`` gives each sub-word's.

    Raises:
        ConfigurationError: A task is not known, no task reads what is given, or a task that was asked for does not.

    A text is read as far as the longest ``max_length`` of the tasks that are asked.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    model: MultiTaskModel

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        stock: dict[str, Any] = {"tokenizer": self.tokenizer, "device": self.device}
        self._of_pair: dict[str, bool] = {}
        self._stock: dict[str, Pipeline] = {}
        for name, task in self.model.config.task_configs.items():
            if task.type in SequenceView.types:
                self._stock[name] = TextClassificationPipeline(model=SequenceView(self.model, name), **stock)
            elif task.type in TokenView.types:
                self._stock[name] = TokenClassificationPipeline(model=TokenView(self.model, name), **stock)
            else:
                continue
            self._of_pair[name] = len(task.input_columns) == 2

    def _sanitize_parameters(
        self,
        tasks: str | list[str] | None = None,
        top_k: int | str | None = "",
        aggregation_strategy: str | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(
                f"MultiTaskPipeline takes `tasks`, `top_k` and `aggregation_strategy`; found {', '.join(unknown)}."
            )
        asked: dict[str, Any] = {}
        if tasks is not None:
            asked["tasks"] = [tasks] if isinstance(tasks, str) else list(tasks)
        answers: dict[str, Any] = {}
        # None stands for all labels, so that the default cannot be None.
        if top_k != "":
            answers["top_k"] = top_k
        if aggregation_strategy is not None:
            known = [strategy.value for strategy in AggregationStrategy]
            if aggregation_strategy not in known:
                raise ConfigurationError(
                    f"`aggregation_strategy` must be one of {', '.join(known)}; found {aggregation_strategy!r}."
                )
            answers["strategy"] = AggregationStrategy(aggregation_strategy)
        return asked, {}, answers

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Answer.

        Args:
            inputs: A text, a pair ``{"text": ..., "text_pair": ...}``, or any number of them.
            **kwargs: ``tasks``, ``top_k``, ``aggregation_strategy``, and those of any pipeline, as ``batch_size``.

        Returns:
            For each input, task -> ``[{"label": ..., "score": ...}]``, of a regression the task's name and the value;
            entities for a task on tokens.
        """
        return super().__call__(inputs, **kwargs)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the model and its tokenizer; the pipeline itself is code of this package, and is not copied."""
        self.model.save_pretrained(save_directory, **kwargs)
        assert self.tokenizer is not None
        self.tokenizer.save_pretrained(save_directory, **kwargs)

    def _asked(self, is_pair: bool, tasks: list[str] | None) -> list[str]:
        for name in tasks or ():
            if name not in self._stock:
                raise ConfigurationError(
                    f"`tasks` must be among {', '.join(self._stock) or 'none'}; found {name!r}. `hf-async-mtl predict` "
                    "answers tasks of all types."
                )
            if self._of_pair[name] != is_pair:
                raise ConfigurationError(
                    f"Task {name!r} reads {_KINDS[not is_pair]}; found {_KINDS[is_pair]}. A pair is "
                    '{"text": ..., "text_pair": ...}.'
                )
        found = [name for name in tasks or self._stock if self._of_pair[name] == is_pair]
        if not found:
            raise ConfigurationError(
                f"No task of this model reads {_KINDS[is_pair]}; they read {_KINDS[not is_pair]}. A pair is "
                '{"text": ..., "text_pair": ...}.'
            )
        return found

    def preprocess(self, input_: Any, tasks: list[str] | None = None) -> dict[str, Any]:
        """Tokenize a text or a pair."""
        pair = input_.get("text_pair") if isinstance(input_, dict) else None
        text = input_.get("text") if isinstance(input_, dict) else input_
        if not isinstance(text, str) or not isinstance(pair, str | None):
            raise ConfigurationError(
                f'An input must be a text or {{"text": ..., "text_pair": ...}}, both of them strings; found {input_!r}.'
            )
        names = self._asked(pair is not None, tasks)
        config = self.model.config
        assert self.tokenizer is not None
        max_length = max(config.task_configs[name].max_length or config.max_length for name in names)
        encoded = self.tokenizer(
            shorten(text, self.tokenizer, max_length),
            pair if pair is None else shorten(pair, self.tokenizer, max_length),
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
        )
        return {**encoded, "names": names, "sentence": text}

    def _forward(self, input_tensors: dict[str, Any]) -> dict[str, Any]:
        names, inputs = input_tensors["names"], dict(input_tensors)
        kept = {key: inputs.pop(key) for key in ("names", "sentence", "special_tokens_mask", "offset_mapping")}
        # One input's, or one list an input of a batch.
        lists = [names] if isinstance(names[0], str) else names
        asked = [name for name in self._stock if any(name in of_input for of_input in lists)]
        output = self.model(**inputs, tasks=asked)
        logits: dict[str, Tensor] = output.logits
        return {**kept, "input_ids": inputs["input_ids"], **{f"logits.{name}": logits[name] for name in asked}}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        top_k: int | None = 1,
        strategy: AggregationStrategy = AggregationStrategy.FIRST,
    ) -> dict[str, list[dict[str, Any]]]:
        """Let the stock pipelines read the logits."""
        answers = {}
        for name in model_outputs["names"]:
            stock, logits = self._stock[name], model_outputs[f"logits.{name}"]
            if isinstance(stock, TokenClassificationPipeline):
                answers[name] = stock.postprocess([{**model_outputs, "logits": logits}], aggregation_strategy=strategy)
            else:
                answers[name] = stock.postprocess({"logits": logits.view(1, -1)}, top_k=top_k, _legacy=False)
        return answers
