"""Which weights of a model learn: its encoder as a whole, the layers above the first few, or none of it."""

from __future__ import annotations

import hashlib

from torch import nn
from transformers.utils import logging

from .configuration_multitask import ConfigurationError

__all__ = ["check_learns", "encoder_layers", "freeze", "last_shared_layer", "what_learns"]

logger = logging.get_logger(__name__)


def encoder_layers(encoder: nn.Module) -> list[nn.Module]:
    """The layers of an encoder, the one next to the embeddings first.

    They are the `nn.ModuleList` of blocks of one type that holds the most parameters, which finds them in any encoder.
    ALBERT has one layer, which it runs several times.

    Returns:
        The layers; none, where the encoder keeps them otherwise.
    """
    stacks = [
        module
        for module in encoder.modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not stacks:
        return []
    # Of several, the first: an outer list comes before those inside it.
    largest: nn.ModuleList = max(stacks, key=_size)
    return list(largest)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def last_shared_layer(encoder: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters of the last layer of an encoder that has any.

    ALBERT has one layer, which it runs several times: a gradient there passes through the whole encoder.

    Returns:
        The parameters; empty if all layers are frozen.

    Raises:
        ConfigurationError: The encoder has no list of layers.
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
    """Let an encoder's weights stay as they are: all, or those of its embeddings and first layers.

    Args:
        encoder: A text encoder.
        layers: So many of its first layers, and all that comes before them; None: the whole encoder. What all layers
            share and an encoder keeps behind them, as MPNet and DeBERTa-v2 their relative positions, learns on.

    Raises:
        ConfigurationError: The encoder does not have so many layers.
    """
    if layers is None:
        encoder.requires_grad_(False)
        return
    known = encoder_layers(encoder)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= len(known):
        raise ConfigurationError(
            f"`freeze` must be `encoder`, or the number of its first layers, from 1 to {len(known)}; found {layers!r}."
        )
    stay, move = ({id(p) for layer in part for p in layer.parameters()} for part in (known[:layers], known[layers:]))
    below = True
    # Parameters come in the order in which a text meets them: embeddings, layers, and what follows the last.
    for parameter in encoder.parameters():
        below = below and id(parameter) not in stay | move
        if below or id(parameter) in stay:
            parameter.requires_grad_(False)


def what_learns(model: nn.Module) -> str:
    """A hash of the names and shapes of the weights that learn: 64 hexadecimal digits."""
    learn = sorted(f"{name} {tuple(p.shape)}" for name, p in model.named_parameters() if p.requires_grad)
    return hashlib.sha256("\n".join(learn).encode()).hexdigest()


def check_learns(encoder: nn.Module, heads: nn.ModuleDict) -> None:
    """Check that something learns, and warn of frozen heads that listen to an encoder that moves.

    Raises:
        ConfigurationError: All weights are frozen.
    """
    moves = any(parameter.requires_grad for parameter in encoder.parameters())
    still = [name for name, head in heads.items() if not any(p.requires_grad for p in head.parameters())]
    if not moves and len(still) == len(heads):
        raise ConfigurationError(
            "Training needs weights that learn; the encoder and all heads are frozen. Let one of them learn."
        )
    if moves and still:
        logger.warning(
            f"The heads of {', '.join(still)} are frozen and listen to an encoder that moves: what they read changes, "
            "and they cannot follow. Freeze the encoder too (`freeze: encoder`), or let them learn."
        )
