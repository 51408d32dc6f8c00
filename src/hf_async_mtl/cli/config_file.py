"""The configuration file: from YAML to checked objects.

Unknown keys, and values of the sections, are reported before torch and Transformers are imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..balancing.config import BalancingConfig
from ..convergence.config import ConvergenceSettings, ScheduleConfig
from ..data.config import DataSource, MixingConfig, expand_path
from ..distillation.config import DistillationConfig
from ..validation import (
    MAPPING,
    ConfigurationError,
    Requirement,
    check,
    check_keys,
    parse_section,
)
from .sections import TopLevel
from .task_sections import task_configs, with_preset
from .yaml_file import read_yaml

if TYPE_CHECKING:
    from ..modeling.configuration_multitask import TaskConfig
    from ..training.arguments import AsyncMTLTrainingArguments

_SECTIONS = ("convergence", "distillation", "mixing", "balancing", "schedule")
# Given at the top of the file, because they also apply outside of the Trainer.
_NOT_IN_TRAINING = ("seed", "data_seed", *_SECTIONS)


@dataclass
class RunConfig:
    """A checked configuration.

    Args:
        name: Name of the file, without its suffix.
        encoder: Hub id or absolute folder.
        seed: Seed of model, order and dropout.
        data_seed: Seed of samples and of splits of the training rows.
        model: ``max_length``, ``pooling``, ``packing``, ``lora`` and ``new_heads``, as `MultiTaskModel.from_encoder`
            takes them.
        freeze: ``encoder``, or the number of its first layers that are frozen; None: all are trained.
        frozen_heads: Tasks whose heads are frozen.
        tasks: Name -> task; its labels may be unknown.
        sources: Name -> where its data is.
        training: Keyword arguments of `AsyncMTLTrainingArguments`, without ``output_dir``.
        output_dir: Absolute, or None.
    """

    name: str
    encoder: str
    seed: int
    data_seed: int
    model: dict[str, Any]
    freeze: int | str | None
    frozen_heads: list[str]
    tasks: dict[str, TaskConfig]
    sources: dict[str, DataSource]
    training: dict[str, Any]
    output_dir: Path | None

    def arguments(self, output_dir: str | Path, **overrides: Any) -> AsyncMTLTrainingArguments:
        """Make the training arguments of this run.

        Raises:
            ConfigurationError: A value does not fit, or a tracker is not installed.
        """
        from transformers.integrations import get_available_reporting_integrations

        from ..training.arguments import AsyncMTLTrainingArguments

        try:
            arguments = AsyncMTLTrainingArguments(str(output_dir), **{**self.training, **overrides})
        except ConfigurationError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigurationError(f"`training`: {error}") from None
        # Some trackers are imported to see whether they are installed, which takes up to a second.
        available = get_available_reporting_integrations() if arguments.report_to else []
        for tracker in arguments.report_to:
            if tracker not in available:
                raise ConfigurationError(
                    "`training.report_to` must name trackers that are installed here "
                    f"({', '.join(available) or 'none'}); found {tracker!r}. Install it, or remove it."
                )
        return arguments


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a configuration file; ``docs/configuration.md`` lists its keys.

    Args:
        path: The file.
        overrides: ``key.path=value``, the values in YAML.

    Raises:
        ConfigurationError: The file is missing or no YAML, a key is not known, or a value does not fit.
    """
    config = read_yaml(path, overrides)
    check_keys("", config, _fields(TopLevel))
    for key in ("encoder", "tasks"):
        if key not in config:
            raise ConfigurationError(f"{path} must have the key `{key}`; it has {', '.join(map(str, config))}.")
    if not isinstance(config["tasks"], dict) or not config["tasks"]:
        raise ConfigurationError(f"`tasks` must name at least one task; found {config['tasks']!r}.")
    folder = path.parent.resolve()
    tasks = {name: with_preset(f"tasks.{name}", section) for name, section in config["tasks"].items()}
    sections = _sections(config, tasks, folder)
    sources = {
        name: DataSource.from_section(name, section["data"], section.get("max_samples"), folder)
        for name, section in tasks.items()
    }
    heads = {name: section.get("head", "kept") for name, section in tasks.items()}
    top = TopLevel(**config)
    training = _training(top.training)
    output_dir = training.pop("output_dir", None)
    return RunConfig(
        name=path.stem,
        encoder=_model_source("encoder", top.encoder, folder),
        seed=top.seed,
        data_seed=top.seed if top.data_seed is None else top.data_seed,
        model=_model(top, [name for name, head in heads.items() if head == "new"]),
        freeze=top.freeze,
        frozen_heads=[name for name, head in heads.items() if head == "frozen"],
        tasks=task_configs(tasks, sources),
        sources=sources,
        training={**training, **sections, "seed": top.seed},
        output_dir=None if output_dir is None else folder / expand_path("training.output_dir", output_dir),
    )


def _sections(config: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Return the sections as `AsyncMTLTrainingArguments` takes them, with what stands with the single tasks."""
    sections: dict[str, Any] = {}
    for name in _SECTIONS:
        check(name, {} if config.get(name) is None else config[name], MAPPING)
        sections[name] = dict(config.get(name) or {})
    for name, key, of_task in (("convergence", "tasks", "convergence"), ("balancing", "weights", "weight")):
        if key in sections[name]:
            raise ConfigurationError(f"`{name}.{key}` must stand with each task, as `tasks.<name>.{of_task}`.")
        own = {task: section[of_task] for task, section in tasks.items() if of_task in section}
        if own:
            sections[name][key] = own
    ConvergenceSettings.parse(sections["convergence"])
    for name, kind in (("mixing", MixingConfig), ("balancing", BalancingConfig), ("schedule", ScheduleConfig)):
        parse_section(name, kind, sections[name])
    parse_section("distillation", DistillationConfig, sections["distillation"])
    teachers = sections["distillation"].get("teachers", {})
    for task, source in teachers.items():
        if task not in tasks:
            raise ConfigurationError(f"`distillation.teachers` must name tasks ({', '.join(tasks)}); found {task!r}.")
        if source is not None:
            teachers = {**teachers, task: _model_source(f"distillation.teachers.{task}", source, folder)}
            sections["distillation"]["teachers"] = teachers
    return sections


def _fields(kind: type[Any]) -> list[str]:
    return [item.name for item in dataclasses.fields(kind)]


def _model_source(key: str, value: Any, folder: Path) -> str:
    """Return a Hub id, or the absolute path of a folder."""
    check(key, value, Requirement("a Hub id or a folder", lambda value: isinstance(value, str) and bool(value)))
    path = folder / expand_path(key, value)
    if path.is_dir():
        return str(path)
    if value.startswith((".", "/", "~", "$")):
        raise ConfigurationError(f"`{key}` must be a Hub id or a folder; there is no folder {path}.")
    return value


def _model(top: TopLevel, new_heads: list[str]) -> dict[str, Any]:
    if top.lora is not None:
        from ..building.lora import check_lora

        check_lora(top.lora)
    return {
        # Where these are None, `from_encoder` takes those of a trained model, or the defaults.
        "max_length": top.max_length,
        "pooling": top.pooling,
        "packing": top.packing,
        "lora": None if top.lora is None else dict(top.lora),
        "new_heads": new_heads,
    }


def _training(given: Any) -> dict[str, Any]:
    """Check the keys and the types of the training arguments, which upstream checks at their first use."""
    from ..training.arguments import REFUSED, AsyncMTLTrainingArguments, check_types

    training = {} if given is None else given
    check("training", training, Requirement("a mapping of training arguments", MAPPING.accepts))
    for key in training:
        if key in REFUSED:
            raise ConfigurationError(f"`training.{key}` has no effect here: {REFUSED[key]}. Remove the key.")
        if key in _NOT_IN_TRAINING:
            raise ConfigurationError(f"`training.{key}` must stand at the top of the file, as `{key}`.")
    check_keys("training", training, [key for key in _fields(AsyncMTLTrainingArguments) if key not in _NOT_IN_TRAINING])
    check_types(training)
    return dict(training)
