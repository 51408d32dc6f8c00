"""A pipeline of Transformers that runs all tasks on a text in one pass of the encoder."""

from __future__ import annotations

from typing import Any

from transformers import AutoModel, Pipeline, TokenClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.token_classification import AggregationStrategy

from ..modeling.modeling_multitask import MultiTaskModel
from ..tasks.pretruncation import shorten
from ..tasks.registry import TASK_TYPES
from ..tasks.special_labels import outside_tag
from ..validation import ConfigurationError
from .single_task import SequenceView, TokenView

PIPELINE_TASK = "multi-task-text"
_KINDS = {False: "a text", True: "a pair of texts"}


class MultiTaskPipeline(Pipeline):
    """Predict, for texts or pairs of texts, all tasks that read them, with one pass of the encoder.

    ``pipeline("multi-task-text", model="user/model")`` makes one where this package has been imported; device,
    ``batch_size``, generators and datasets are as with any pipeline. ``hf-async-mtl predict`` has the other types of
    task, and those that read long texts in windows. For the output of a stock pipeline, see
    `MultiTaskModel.as_sequence_classifier`.

    Args:
        tasks: The tasks to predict; default: all that read the input. Here or in a call.

    Raises:
        ConfigurationError: A task is not known, no task reads the input, or a task that was named does not.

    A text is read up to the largest ``max_length`` of these tasks.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    model: MultiTaskModel

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._reads_pairs: dict[str, bool] = {}
        self._entities: dict[str, TokenClassificationPipeline] = {}
        for name, task in self.model.config.task_configs.items():
            if task.doc_stride is not None:
                continue  # a text is one sequence here
            hub_name = TASK_TYPES[task.type].hub_name
            if hub_name == TokenView.hub_name:
                view = TokenView(self.model, name)
                self._entities[name] = TokenClassificationPipeline(
                    model=view, tokenizer=self.tokenizer, device=self.device
                )
            elif hub_name != SequenceView.hub_name:
                continue
            self._reads_pairs[name] = len(task.input_columns) == 2

    def _sanitize_parameters(
        self, tasks: str | list[str] | None = None, **unknown: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise TypeError(f"MultiTaskPipeline takes `tasks`; found {', '.join(unknown)}.")
        names = [tasks] if isinstance(tasks, str) else tasks
        return {} if names is None else {"tasks": list(names)}, {}, {}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Predict.

        Args:
            inputs: A text, a pair ``{"text": ..., "text_pair": ...}``, or any number of them.
            **kwargs: ``tasks``, and the arguments of any pipeline, such as ``batch_size``.

        Returns:
            For each input, task -> prediction in the format of `predict_rows`. A token classification task, which
            here reads a text and no list of words, has ``entities``: those of the stock pipeline with
            ``aggregation_strategy="first"``.
        """
        return super().__call__(inputs, **kwargs)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the model and its tokenizer; the pipeline itself is code of this package, and is not copied."""
        self.model.save_pretrained(save_directory, **kwargs)
        assert self.tokenizer is not None
        self.tokenizer.save_pretrained(save_directory, **kwargs)

    def _tasks_for(self, is_pair: bool, tasks: list[str] | None) -> list[str]:
        for name in tasks or ():
            if name not in self._reads_pairs:
                raise ConfigurationError(
                    f"`tasks` must be among {', '.join(self._reads_pairs) or 'none'}; found {name!r}. `hf-async-mtl "
                    "predict` predicts tasks of all types."
                )
            if self._reads_pairs[name] != is_pair:
                raise ConfigurationError(
                    f"Task {name!r} reads {_KINDS[not is_pair]}; found {_KINDS[is_pair]}. A pair is "
                    '{"text": ..., "text_pair": ...}.'
                )
        found = [name for name in tasks or self._reads_pairs if self._reads_pairs[name] == is_pair]
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
        names, config = self._tasks_for(pair is not None, tasks), self.model.config
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
        inputs = dict(input_tensors)
        kept = {key: inputs.pop(key) for key in ("names", "sentence", "special_tokens_mask", "offset_mapping")}
        # The names of one input, or a list of names for each input of a batch.
        lists = [kept["names"]] if isinstance(kept["names"][0], str) else kept["names"]
        names = [name for name in self._reads_pairs if any(name in of_input for of_input in lists)]
        logits = self.model(**inputs, tasks=names).logits
        return {**kept, "input_ids": inputs["input_ids"], **{f"logits.{name}": logits[name] for name in names}}

    def postprocess(self, model_outputs: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the prediction of each task."""
        predictions = {}
        for name in model_outputs["names"]:
            logits, task = model_outputs[f"logits.{name}"], self.model.config.task_configs[name]
            if name in self._entities:
                entities = self._entities[name].postprocess(
                    [{**model_outputs, "logits": logits}],
                    aggregation_strategy=AggregationStrategy.FIRST,
                    ignore_labels=[outside_tag(task.label_names or ()) or "O"],
                )
                predictions[name] = {"entities": entities}
            else:
                task_type, values = TASK_TYPES[task.type], logits.float().numpy()
                (prediction,) = task_type.predictions(task, values, None)
                predictions[name] = task_type.format_prediction(task, prediction, values[0], {}, {})
        return predictions


PIPELINE_REGISTRY.register_pipeline(PIPELINE_TASK, MultiTaskPipeline, pt_model=AutoModel, type="text")
