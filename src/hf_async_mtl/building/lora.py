"""LoRA on an encoder, with peft's own layers. The heads train all their weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), arXiv:2106.09685, equation 3: a frozen weight W
is applied as W + (alpha / r) B A, and only A and B are trained.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..validation import ConfigurationError, Requirement, check, number, whole_number

_INSTALL = "Run `pip install 'hf-async-mtl[lora]'`."

LORA_KEYS = ("r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform", "use_rslora", "use_dora")
"""Fields of `peft.LoraConfig` that are accepted: those that do not change the encoder's own weights."""


# Values that peft accepts without effect, or refuses without naming the key.
_REQUIREMENTS = {
    "r": whole_number(1),
    "lora_alpha": number(0, exclusive=True),
    "lora_dropout": Requirement("a number from 0 to below 1", lambda p: number(0, 1).accepts(p) and p < 1),
    "use_rslora": Requirement("true or false", lambda value: isinstance(value, bool)),
    "use_dora": Requirement("true or false", lambda value: isinstance(value, bool)),
}


def check_lora(settings: Any) -> dict[str, Any]:
    """Check a ``lora`` section, as far as possible without an encoder."""
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"`lora` must be a mapping, such as {{r: 8, lora_alpha: 16}}; found {settings!r}.")
    for key, value in settings.items():
        if key not in LORA_KEYS:
            raise ConfigurationError(f"`lora` has no key `{key}`. It takes {', '.join(LORA_KEYS)}.")
        if key in _REQUIREMENTS:
            check(f"lora.{key}", value, _REQUIREMENTS[key])
    return dict(settings)


def add_lora(encoder: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add low-rank layers to the linear layers of an encoder, in place, and freeze all its own weights.

    Default of ``target_modules``: peft's choice for this encoder (query and value, for BERT), or all linear layers if
    peft has none. The outputs stay the same until the new layers are trained.

    Returns:
        The settings, with the target modules that were found.
    """
    checked = check_lora(settings)
    try:
        from peft import LoraConfig
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    except ImportError as error:
        raise ConfigurationError(f"A model with `lora` needs peft, which is not installed. {_INSTALL}") from error
    try:
        config: Any = LoraConfig(**checked)
        if config.target_modules is None:
            config.target_modules = KNOWN.get(encoder.config.model_type, "all-linear")
        encoder.add_adapter(config)
    except (ValueError, TypeError, re.error) as error:
        raise ConfigurationError(f"`lora` does not fit: {error}") from error
    found = config.target_modules
    return {**checked, "target_modules": found if isinstance(found, str) else sorted(found)}


def is_adapter(name: str) -> bool:
    """Return whether a weight of this name in an encoder belongs to a low-rank layer."""
    return ".lora_" in name


def freeze_base_weights(encoder: nn.Module) -> None:
    """Freeze all weights of an encoder but its low-rank layers. Loading a checkpoint makes them all trainable."""
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def merge_lora(model: Any) -> None:
    """Add the low-rank updates of a `MultiTaskModel` to its encoder's own weights, in place, and remove the layers."""
    if model.config.lora is None:
        raise ConfigurationError("A model that is merged must have low-rank layers; this one has none. Use it as is.")
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise ConfigurationError(f"Merging needs peft, which is not installed. {_INSTALL}") from error
    encoder = model.encoder
    for name, module in list(encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            try:
                module.merge(safe_merge=True)
            except ValueError as error:
                raise ConfigurationError(
                    f"Weights that are merged must be finite; those of {name} are not ({error}). Use an earlier "
                    "checkpoint."
                ) from error
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, module.get_base_layer())
    # Otherwise peft adds new layers as a second adapter, and Transformers saves adapters only.
    del encoder.peft_config
    encoder._hf_peft_config_loaded = False
    encoder.requires_grad_(True)
    model.config.lora = None


def merged_copy(model: Any, state_dict: Mapping[str, Tensor] | None = None) -> Any:
    """Return a copy of a `MultiTaskModel` on the CPU, with its low-rank layers merged.

    ``state_dict`` has its weights, on the CPU, where the caller has gathered those of a sharded model.
    """
    merged = type(model)(copy.deepcopy(model.config))
    merged.load_state_dict(model.state_dict() if state_dict is None else state_dict)
    # The sum is computed in float32, whatever the dtype of the weights.
    merge_lora(merged)
    return merged.to(model.dtype).eval()
