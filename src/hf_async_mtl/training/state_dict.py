"""A model's weights out and in, whether each process has them whole or a shard of them (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

__all__ = ["load_weights", "present_weights", "savable", "whole_weights"]


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
def savable(model: PreTrainedModel) -> Iterator[None]:
    """Let `save_pretrained` write a model as it is, from this process, for a block in which the model must not run.

    It writes on the first of all processes alone, though ``save_on_each_node`` asks for one on each machine. And FSDP2
    has made a class on the fly, whose name would go into ``config.json``, and torch's code beside it.
    """
    sharded = type(model)
    if issubclass(sharded, FSDPModule):
        model.__class__ = sharded.__mro__[2]
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del model.should_save_on_this_rank
        model.__class__ = sharded
