"""What the encoders of Transformers have in common, and where they differ."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModel, PreTrainedModel

from .configuration_multitask import ConfigurationError

__all__ = [
    "build_encoder",
    "check_whole",
    "head_dropout",
    "is_text_encoder",
    "position_limit",
    "public_name",
    "without_pooler",
]


def head_dropout(config: Any) -> float:
    """The dropout that an encoder's configuration has for heads, or else for its layers."""
    names = ("classifier_dropout", "classifier_dropout_prob", "hidden_dropout_prob", "seq_classif_dropout", "dropout")
    return next((float(p) for p in (getattr(config, name, None) for name in names) if p is not None), 0.1)


def is_text_encoder(config: Any) -> bool:
    """Whether a configuration is that of a model that reads token ids, and no decoder follows."""
    if config.is_encoder_decoder or type(config) not in AutoModel._model_mapping:
        return False
    inputs = inspect.signature(AutoModel._model_mapping[type(config)].forward).parameters
    return "input_ids" in inputs and "pixel_values" not in inputs and hasattr(config, "hidden_size")


def position_limit(encoder: nn.Module) -> int | None:
    """The longest sequence that an encoder has positions for; None where its positions are relative."""
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding's.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def public_name(source: str) -> str:
    """A model's name in a ``config.json``, which goes public; where a folder lay on this machine does not."""
    return f"./{Path(source).resolve().name}" if Path(source).is_dir() else source


def build_encoder(config: Any) -> PreTrainedModel:
    """An encoder with random weights."""
    return AutoModel.from_config(config, **without_pooler(AutoModel._model_mapping[type(config)]))


def without_pooler(model_class: type[PreTrainedModel]) -> dict[str, bool]:
    """Arguments for an encoder's class. A pooling layer that nothing reads gets no gradient, and DDP waits for one."""
    has_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if has_pooler else {}


def check_whole(source: str, info: Mapping[str, Any]) -> None:
    """Raise a `ConfigurationError` if loading has found weights missing, from its ``output_loading_info``."""
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigurationError(
            f"The checkpoint {source!r} must hold all weights of its encoder; {len(info['missing_keys'])} are "
            f"missing ({some}, ...). They would be random. Was it saved with another head? Save its encoder alone."
        )
