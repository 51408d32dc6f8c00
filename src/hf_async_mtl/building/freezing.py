"""Which weights are trained: the encoder as a whole, the layers above the first few, or none of it."""

from __future__ import annotations

import hashlib

from torch import nn
from transformers.utils import logging

from ..validation import ConfigurationError

logger = logging.get_logger(__name__)


def encoder_layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the layers of an encoder, the one next to the embeddings first; none if it has no such list.

    They are the `nn.ModuleList` of modules of one type that has the most parameters. ALBERT has one layer, which it
    applies several times.
    """
    stacks = [
        module
        for module in encoder.modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    # `max` returns the first of equals: an outer list comes before those inside it.
    return list(max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()), default=[]))


def last_shared_layer(encoder: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters of the last layer of an encoder that has any; empty if all layers are frozen.

    ALBERT has one layer, which it applies several times: a gradient there passes through the whole encoder.
    """
    layers = encoder_layers(encoder)
    if not layers:
        raise ConfigurationError(
            "An encoder must keep its layers in an `nn.ModuleList`, so that the tasks' gradients can be compared at "
            f"the last of them; {type(encoder).__name__} has none. Set `training.conflict_steps: 0`, and "
            "`balancing.over: encoder`."
        )
    trainable = ([p for p in layer.parameters() if p.requires_grad] for layer in reversed(layers))
    return next(filter(None, trainable), [])


def freeze(encoder: nn.Module, layers: int | None = None) -> None:
    """Freeze the weights of an encoder: all of them, or those of its embeddings and first layers.

    Weights that all layers share and that come after them (the relative positions of MPNet and DeBERTa-v2) stay
    trainable.
    """
    if layers is None:
        encoder.requires_grad_(False)
        return
    known = encoder_layers(encoder)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= len(known):
        raise ConfigurationError(
            f"`freeze` must be `encoder`, or the number of its first layers, from 1 to {len(known)}; found {layers!r}."
        )
    first, rest = ({id(p) for layer in part for p in layer.parameters()} for part in (known[:layers], known[layers:]))
    before_layers = True
    # Parameters are listed in this order: embeddings, layers, and what comes after them.
    for parameter in encoder.parameters():
        before_layers = before_layers and id(parameter) not in first | rest
        if before_layers or id(parameter) in first:
            parameter.requires_grad_(False)


def trainable_hash(model: nn.Module) -> str:
    """Return a hash of the names and shapes of the trainable weights: 64 hexadecimal digits."""
    trainable = sorted(f"{name} {tuple(p.shape)}" for name, p in model.named_parameters() if p.requires_grad)
    return hashlib.sha256("\n".join(trainable).encode()).hexdigest()


def check_trainable(encoder: nn.Module, heads: nn.ModuleDict) -> None:
    """Check that some weights are trainable, and warn about frozen heads on a trainable encoder."""
    encoder_trains = any(parameter.requires_grad for parameter in encoder.parameters())
    frozen = [name for name, head in heads.items() if not any(p.requires_grad for p in head.parameters())]
    if not encoder_trains and len(frozen) == len(heads):
        raise ConfigurationError(
            "Training needs trainable weights; the encoder and all heads are frozen. Unfreeze one of them."
        )
    if encoder_trains and frozen:
        logger.warning(
            f"The heads of {', '.join(frozen)} are frozen, and the encoder is trained: the inputs of these heads "
            "change, and they cannot adapt. Freeze the encoder too (`freeze: encoder`), or train the heads."
        )
