"""What the Trainer does not offer by itself: refused methods, fields replaced for a block, groups for the heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..validation import ConfigurationError


def refused(name: str, hint: str) -> Callable[..., Any]:
    """Return a method that raises a `ConfigurationError`, in place of one of the Trainer that does not work here."""

    def method(*_: Any, **__: Any) -> Any:
        raise ConfigurationError(f"`{name}` is not supported. {hint}")

    method.__name__ = name
    method.__doc__ = f"Not supported. {hint}"
    return method


@contextmanager
def replaced_fields(args: TrainingArguments, **values: Any) -> Iterator[None]:
    """Set fields of the arguments for a block."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)


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
