"""Build a multi-task model on a pretrained encoder, or on the encoder of a trained multi-task model."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Collection, Mapping
from logging import LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from ..modeling.configuration_multitask import MultiTaskConfig, TaskConfig
from ..modeling.modeling_multitask import without_pooler
from ..modeling.packing import encode_length_groups, random_row, trial
from ..tasks.names import check_task_names
from ..validation import ConfigurationError
from .lora import add_lora, merge_lora

if TYPE_CHECKING:
    from ..modeling.modeling_multitask import MultiTaskModel

# Arguments of `from_pretrained` that also apply to the configuration.
_HUB_KEYS = ("token", "cache_dir", "local_files_only", "revision", "subfolder", "trust_remote_code")

# Names of learned absolute positions, in BERT, CLIP, GPT-2, OpenAI GPT and OPT.
_POSITIONS = ("position_embeddings", "position_embedding", "wpe", "positions_embed", "embed_positions")


def from_encoder(
    model_class: type[MultiTaskModel],
    encoder: str | os.PathLike[str],
    tasks: Mapping[str, TaskConfig],
    *,
    settings: Mapping[str, Any],
    new_heads: Collection[str] = (),
    lora: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> MultiTaskModel:
    """Return a model with new heads on a pretrained encoder; see `MultiTaskModel.from_encoder`.

    ``settings`` are ``pooling``, ``packing`` and ``max_length``. None stands for the default, or for the value of the
    trained model.
    """
    if not isinstance(encoder, str | os.PathLike):
        raise ConfigurationError(f"`encoder` must be a Hub id or a folder; found {encoder!r}.")
    source = str(encoder)
    # Without a value, Transformers asks at the terminal whether to run code from the Hub.
    kwargs = {"dtype": torch.float32, "trust_remote_code": False, **kwargs}
    found = AutoConfig.from_pretrained(source, **{key: kwargs[key] for key in _HUB_KEYS if key in kwargs})
    settings = {key: value for key, value in settings.items() if value is not None}
    kept: list[str] = []
    if isinstance(found, MultiTaskConfig):
        kept = shared_tasks(found.task_configs, tasks, new_heads)
        tasks = inherit_from_trained(found.task_configs, tasks, new_heads)
        settings = _inherit_settings(source, found, settings, kept)
    encoder_config = found.encoder_config if isinstance(found, MultiTaskConfig) else found
    _check_text_encoder(source, encoder_config)
    check_task_names({name: task.metrics or () for name, task in tasks.items()})
    config = MultiTaskConfig(encoder_config=encoder_config, tasks=dict(tasks), **settings)
    model = model_class(config)
    _check_positions(source, model)
    if isinstance(found, MultiTaskConfig):
        loaded, heads = _load_trained(model_class, source, kwargs)
        model.heads.update({name: heads[name] for name in kept})
    else:
        loaded = _load_encoder(type(model.encoder), source, kwargs)
    # The model and its encoder share one configuration object: `config.json` shows later changes to it.
    model.encoder, config.encoder_config = loaded, loaded.config
    loaded.name_or_path = loaded.config._name_or_path = _public_name(source)
    check_encoder(model)
    if lora is not None:
        config.lora = add_lora(loaded, lora)
    model.heads.to(loaded.dtype)
    # As `from_pretrained` leaves it; the loaded encoder is in evaluation mode already.
    return model.eval()


# What a new model inherits from a trained one


def _inherit_settings(
    source: str, trained: MultiTaskConfig, settings: Mapping[str, Any], kept: Collection[str]
) -> dict[str, Any]:
    pooling = settings.get("pooling", trained.pooling)
    if kept and pooling != trained.pooling:
        raise ConfigurationError(
            f"`pooling` must be {trained.pooling}, with which the heads of {source!r} were trained; found {pooling!r}."
        )
    return {"pooling": trained.pooling, "max_length": trained.max_length, **settings}


def shared_tasks(
    trained: Mapping[str, TaskConfig], tasks: Mapping[str, TaskConfig], new_heads: Collection[str] = ()
) -> list[str]:
    """Return the names of the new model's tasks that keep their head of the trained model."""
    for name in new_heads:
        if name not in tasks:
            raise ConfigurationError(f"`new_heads` must name tasks ({', '.join(tasks)}); found {name!r}.")
    return [name for name in tasks if name in trained and name not in new_heads]


def inherit_from_trained(
    trained: Mapping[str, TaskConfig], tasks: Mapping[str, TaskConfig], new_heads: Collection[str] = ()
) -> dict[str, TaskConfig]:
    """Return the tasks of a new model; those that keep their head have the labels of the trained model."""
    shared = shared_tasks(trained, tasks, new_heads)
    return {**tasks, **{name: inherit_labels(name, tasks[name], trained[name]) for name in shared}}


def inherit_labels(name: str, task: TaskConfig, trained: TaskConfig) -> TaskConfig:
    """Return a task with the label names and the scale of targets of its trained head.

    Its columns, metrics and lengths stay as they are.
    """
    hint = "Rename the task, or give it a new head (`new_heads`; in a configuration file `head: new`)."
    if task.type != trained.type:
        raise ConfigurationError(
            f"Task {name!r} of the trained model is of type {trained.type}; found {task.type}. {hint}"
        )
    names, known = task.label_names, trained.label_names
    if names is not None and known is not None and list(names) != list(known):
        raise ConfigurationError(
            f"Task {name!r} of the trained model has the labels {', '.join(known)}, in that order; found "
            f"{', '.join(names)}. {hint}"
        )
    return dataclasses.replace(
        task,
        label_names=known,
        positive_label=task.positive_label or trained.positive_label,
        target_mean=trained.target_mean,
        target_std=trained.target_std,
    )


def _load_encoder(encoder_class: type[PreTrainedModel], source: str, kwargs: Mapping[str, Any]) -> PreTrainedModel:
    def is_shown(record: LogRecord) -> bool:
        # The report is about weights that the checkpoint has in excess, such as those of the pooler.
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.get_logger("transformers.modeling_utils")
    logger.addFilter(is_shown)
    try:
        encoder, info = encoder_class.from_pretrained(
            source, output_loading_info=True, **without_pooler(encoder_class), **kwargs
        )
    finally:
        logger.removeFilter(is_shown)
    _check_complete(source, info)
    return encoder


def _load_trained(
    model_class: type[MultiTaskModel], source: str, kwargs: Mapping[str, Any]
) -> tuple[PreTrainedModel, nn.ModuleDict]:
    """Return the encoder of a trained model, low-rank layers merged, and its heads."""
    model, info = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    _check_complete(source, info)
    if model.config.lora is not None:
        merge_lora(model)
    return model.encoder, model.heads


def _check_complete(source: str, info: Mapping[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigurationError(
            f"The checkpoint {source!r} must hold all weights of its encoder; {len(missing)} are missing "
            f"({', '.join(missing[:3])}, ...). They would be random. Was it saved with another head? Save its encoder "
            "alone."
        )


def is_text_encoder(config: Any) -> bool:
    """Return whether a configuration is that of a model that reads token ids and has no decoder."""
    if config.is_encoder_decoder or type(config) not in AutoModel._model_mapping:
        return False
    found = AutoModel._model_mapping[type(config)]
    # Funnel has two, with and without its decoder; `AutoModel` takes the first.
    encoder_class = found[0] if isinstance(found, tuple) else found
    inputs = inspect.signature(encoder_class.forward).parameters
    return "input_ids" in inputs and "pixel_values" not in inputs and hasattr(config, "hidden_size")


def _check_text_encoder(source: str, config: Any) -> None:
    if not is_text_encoder(config):
        raise ConfigurationError(
            "`encoder` must be a text encoder whose AutoModel returns last_hidden_state; "
            f"{source!r} is of type {config.model_type!r}. Choose a model such as BERT or ModernBERT."
        )


def check_encoder(model: MultiTaskModel) -> None:
    """Run the encoder of a model on a few tokens, and check that the heads can read its states.

    Raises:
        ConfigurationError: It does not return a state for each token, or heads on sequences would read a first token
            that does not see the others.
    """
    encoder: Any = model.encoder
    kind, width = f"of type {encoder.config.model_type!r}", model.config.encoder_config.hidden_size
    try:
        states, others = _states_of_two_texts(encoder)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(
            f"An encoder must return a state for each token id, without other inputs; one {kind} does not ({reason}). "
            "Choose a model such as BERT or ModernBERT."
        ) from error
    if states.shape[-1] != width:
        raise ConfigurationError(
            f"The states of an encoder must be as wide as its `hidden_size`, {width}; those of one {kind} have width "
            f"{states.shape[-1]}. Choose a model such as BERT or ModernBERT."
        )
    reads_first = model.config.pooling == "cls" and any(head.unit == "example" for head in model.heads.values())
    if reads_first and (states - others)[0].abs().max() <= 1e-5 * states[0].abs().max():
        raise ConfigurationError(
            f"`pooling: cls` reads the first token, which must see the others; an encoder {kind} reads from left to "
            "right. Set `pooling: mean` or `pooling: max`."
        )


def _states_of_two_texts(encoder: Any) -> tuple[Tensor, Tensor]:
    """Return the states ``[T, H]`` of padded random segments, and of others with the same first tokens."""
    with trial(encoder):
        rows = random_row(encoder)
        other_ids = rows.input_ids.roll(1, 1)
        other_ids[0, rows.segment_starts] = rows.input_ids[0, rows.segment_starts]
        both = (rows, rows._replace(input_ids=other_ids))
        counts = torch.ones_like(rows.segment_lengths)
        first, second = (encode_length_groups(encoder, some, counts, groups=1).states for some in both)
    return first, second


def position_limit(encoder: nn.Module) -> int | None:
    """Return the maximum number of tokens in a sequence; None if the encoder has no absolute positions."""
    for name, module in encoder.named_modules():
        if name.endswith(_POSITIONS) and isinstance(module, nn.Embedding):
            # RoBERTa and similar encoders count positions from `padding_idx + 1`, OPT from `offset`.
            first = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return None


def _check_positions(source: str, model: MultiTaskModel) -> None:
    config, limit = model.config, position_limit(model.encoder)
    longest = max([config.max_length, *(task.max_length or 0 for task in config.task_configs.values())])
    if limit is not None and longest > limit:
        raise ConfigurationError(
            f"`max_length` must be at most {limit}, the number of positions of {source!r}; found {longest}. Lower it, "
            "or choose an encoder for longer texts."
        )


def _public_name(source: str) -> str:
    """Return the name of a model for ``config.json``, which may be pushed: of a folder only its last part."""
    return f"./{Path(source).resolve().name}" if Path(source).is_dir() else source
