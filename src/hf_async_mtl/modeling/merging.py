r"""One bundle out of several of one encoder: its weights are averaged, and their heads stand side by side.

Wortsman et al., "Model soups" (2022), arXiv:2203.05482, section 2: :math:`\theta = \frac{1}{k} \sum_i \theta_i`. It
serves models that began at the same pretrained weights and have not gone far: between others there is a wall of high
loss, and their mean is no better than chance. The heads find their states moved; distilling from each model is what
mends them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .configuration_multitask import ConfigurationError, MultiTaskConfig

__all__ = ["average", "merged_config"]

logger = logging.get_logger(__name__)

# Of where a model was saved, not of what it is.
_OF_THE_FILE = ("_name_or_path", "architectures", "dtype", "transformers_version")


def merged_config(configs: Mapping[str, Any]) -> MultiTaskConfig:
    """The configuration of a bundle with the tasks of several.

    Args:
        configs: Name of a model -> its configuration; two or more.

    Raises:
        ConfigurationError: One is no bundle; their encoders or poolings differ; or two have a task of one name.
    """
    first_name, first = next(iter(configs.items()))
    tasks: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, config in configs.items():
        if not isinstance(config, MultiTaskConfig):
            raise ConfigurationError(
                f"Models that are merged must be trained bundles; {name!r} is of type {config.model_type!r}. Train it "
                "on its task with this package first, or name it as a teacher."
            )
        other, own = _structure(first), _structure(config)
        differ = sorted(key for key in own.keys() | other.keys() if own.get(key) != other.get(key))
        if differ:
            raise ConfigurationError(
                f"Models that are merged must have one encoder and one pooling; {name!r} differs from {first_name!r} "
                f"in {', '.join(differ)}. Name one of them as a teacher instead."
            )
        begun = {config.encoder_config._name_or_path, first.encoder_config._name_or_path}
        if len(begun) > 1:
            logger.warning(
                f"{first_name!r} and {name!r} began with {' and '.join(sorted(map(repr, begun)))}. If these are not "
                "the same weights, the mean of the two is no better than chance."
            )
        for task, settings in config.task_configs.items():
            if task in owners:
                raise ConfigurationError(
                    f"Models that are merged must have different tasks; {owners[task]!r} and {name!r} both have "
                    f"{task!r}. Leave one of them out."
                )
            owners[task], tasks[task] = name, settings
    return MultiTaskConfig(
        encoder_config=first.encoder_config,
        tasks=tasks,
        pooling=first.pooling,
        max_length=max(config.max_length for config in configs.values()),
    )


def _structure(config: MultiTaskConfig) -> dict[str, Any]:
    encoder = config.encoder_config.to_dict()
    kept = {key: value for key, value in encoder.items() if key not in _OF_THE_FILE and "dropout" not in key}
    return {**kept, "pooling": config.pooling}


@torch.no_grad()
def average(encoders: Sequence[nn.Module]) -> nn.Module:
    """The first of several encoders of one structure, with the mean of their weights."""
    first, *others = encoders
    for name, parameter in first.named_parameters():
        # One by one: of a large encoder there is room for so many copies, and for no more.
        total = parameter.float().clone()
        for other in others:
            total += other.get_parameter(name).float()
        parameter.copy_(total / len(encoders))
    return first
