"""A model's weights out and in, whether each process has them whole or a shard of them (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["load_weights", "of_its_own_class", "present_weights", "whole_weights"]


def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """All weights, on the CPU.

    Args:
        model: Every process calls this together: shards are gathered one tensor at a time.
        keep: Whether this process wants them; if not, it gets an empty dictionary.
    """
    found = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = whole.detach().cpu()
    return found


def present_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what this process holds, to be put back by `load_weights`; off the accelerator, where it is whole."""
    # A shard is small, and stays where its mesh is.
    return {
        name: tensor.detach().clone() if isinstance(tensor, DTensor) else tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
    }


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Take over weights, each whole or a shard as the model's own; a sharded model takes its part of a whole one."""
    shaped = {}
    for name, own in model.state_dict().items():
        tensor = weights[name]
        if isinstance(own, DTensor) and not isinstance(tensor, DTensor):
            # Each process has read the whole: nothing needs to be sent.
            tensor = distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
        shaped[name] = tensor
    model.load_state_dict(shaped)


@contextmanager
def of_its_own_class(model: nn.Module) -> Iterator[None]:
    """Give a model that FSDP2 has sharded its own class back for the block, in which it must not run.

    ``fully_shard`` makes a class on the fly. `save_pretrained` would put that one's name into ``config.json``, and
    torch's code beside it.
    """
    sharded = type(model)
    if issubclass(sharded, FSDPModule):
        model.__class__ = sharded.__mro__[2]
    try:
        yield
    finally:
        model.__class__ = sharded
