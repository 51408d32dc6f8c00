"""A model's weights out and in, whether each process has all of them or a shard of them (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel


def full_state_dict(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Return all weights on the CPU, or {} unless ``keep``; all ranks call this together, for shards are gathered."""
    found = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = full.detach().cpu()
    return found


def clone_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of what this rank holds, for `load_weights`; on the CPU unless it is a shard."""
    # A shard is small, and stays where its mesh is.
    return {
        name: tensor.detach().clone() if isinstance(tensor, DTensor) else tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
    }


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights, full tensors or the model's own shards; a sharded model takes its part of a full tensor."""
    shaped = {}
    for name, own in model.state_dict().items():
        tensor = weights[name]
        if isinstance(own, DTensor) and not isinstance(tensor, DTensor):
            # Each rank has read the full tensor: nothing needs to be sent.
            tensor = distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
        shaped[name] = tensor
    model.load_state_dict(shaped)


@contextmanager
def savable(model: PreTrainedModel) -> Iterator[None]:
    """Let `save_pretrained` write a model from this rank; the model must not run inside the block.

    It writes on the first of all ranks only, though ``save_on_each_node`` needs one on each machine. And FSDP2 makes a
    class at run time, whose name would go into ``config.json``, with torch's code beside it.
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
