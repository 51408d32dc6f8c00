"""Small additions to the Trainer: refused methods, fields replaced for a block, parameter groups of the heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..validation import ConfigurationError


def refused(name: str, hint: str) -> Callable[..., Any]:
    """Return a method that raises a `ConfigurationError`, in place of one of the Trainer that does not work here."""

    def method(*_: Any, **__: Any) -> Any:
        raise ConfigurationError(f"`{name}` is not supported. {hint}")

    method.__name__ = name
    method.__doc__ = f"Not supported. {hint}"
    return method


@contextmanager
def replaced_fields(owner: Any, **values: Any) -> Iterator[None]:
    """Set attributes of the arguments, or of another object, for a block; a method of its class is back after it."""
    before = {name: vars(owner)[name] for name in values if name in vars(owner)}
    vars(owner).update(values)
    try:
        yield
    finally:
        for name in values:
            del vars(owner)[name]
        vars(owner).update(before)


def split_head_groups(optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float) -> None:
    """Give the heads of a model, wrapped or not, parameter groups of their own in its new optimizer."""
    own = {id(parameter) for name, parameter in model.named_parameters() if "heads" in name.split(".")[:2]}
    for group in list(optimizer.param_groups):
        chosen = [parameter for parameter in group["params"] if id(parameter) in own]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        if chosen:
            optimizer.add_param_group({**group, "params": chosen, "lr": learning_rate})
    # An empty group is left if all but the heads is frozen; a sharded run could not be resumed with it.
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
