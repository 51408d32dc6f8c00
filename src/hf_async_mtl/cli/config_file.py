"""The configuration file: from YAML to checked objects.

Unknown keys, and values of the sections, are reported before torch and Transformers are imported.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.config import DataSource, expand_path
from ..tasks.loss import LossConfig
from ..tasks.presets import PRESETS
from ..training.sections import SECTIONS, parse_sections
from ..validation import MAPPING, ConfigurationError, Requirement, check, check_keys, one_of
from .file_keys import TaskSection, TopLevel
from .yaml_file import read_yaml

if TYPE_CHECKING:
    from ..modeling.configuration_multitask import TaskConfig
    from ..training.arguments import AsyncMTLTrainingArguments

# Given at the top of the file, because they also apply outside of the Trainer.
_NOT_IN_TRAINING = ("seed", "data_seed", *SECTIONS)
_TASK_FIELDS = (
    *("type", "text_columns", "label_column", "label_names", "positive_label"),
    *("metrics", "max_length", "doc_stride", "doc_pooling"),
)


@dataclass
class RunConfig:
    """A checked configuration."""

    name: str  # of the file, without its suffix
    encoder: str  # Hub id or absolute folder
    seed: int
    data_seed: int
    model: dict[str, Any]  # as `MultiTaskModel.from_encoder` takes it
    freeze: int | str | None
    frozen_heads: list[str]
    tasks: dict[str, TaskConfig]  # their labels may be unknown
    sources: dict[str, DataSource]
    training: dict[str, Any]  # as `AsyncMTLTrainingArguments` takes it, without ``output_dir``
    output_dir: Path | None  # absolute

    def arguments(self, output_dir: str | Path, **overrides: Any) -> AsyncMTLTrainingArguments:
        """Make the training arguments of this run."""
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
    """Read and check a configuration file, with overrides ``key.path=value``; see ``docs/configuration.md``."""
    config = read_yaml(path, overrides)
    check_keys("", config, _fields(TopLevel))
    for key in ("encoder", "tasks"):
        if key not in config:
            raise ConfigurationError(f"{path} must have the key `{key}`; it has {', '.join(map(str, config))}.")
    if not isinstance(config["tasks"], dict) or not config["tasks"]:
        raise ConfigurationError(f"`tasks` must name at least one task; found {config['tasks']!r}.")
    folder = path.parent.resolve()
    shared = config.get("data")
    tasks = {name: _with_preset(f"tasks.{name}", section, shared) for name, section in config["tasks"].items()}
    if shared is not None and not any(section["data"] is shared for section in tasks.values()):
        raise ConfigurationError("`data` must be used by a task; each has a `data` of its own. Remove one of them.")
    sections = _sections(config, tasks, folder)
    sources = {
        name: DataSource.from_section(
            name, section["data"], section.get("max_samples"), folder, is_shared=section["data"] is shared
        )
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
        model={
            # Where these are None, `from_encoder` takes those of a trained model, or the defaults.
            **{"max_length": top.max_length, "pooling": top.pooling, "packing": top.packing},
            "lora": _lora(top.lora),
            "new_heads": [name for name, head in heads.items() if head == "new"],
        },
        freeze=top.freeze,
        frozen_heads=[name for name, head in heads.items() if head == "frozen"],
        tasks=_task_configs(tasks, sources, sections["losses"]),
        sources=sources,
        training={**training, **sections, "seed": top.seed},
        output_dir=None if output_dir is None else folder / expand_path("training.output_dir", output_dir),
    )


def _with_preset(path: str, section: Any, data: Any) -> dict[str, Any]:
    """Return the section of a task with the keys of its preset and the ``data`` of all tasks, its own keys checked."""
    if not isinstance(section, dict):
        raise ConfigurationError(
            f"`{path}` must be a mapping with a `preset`, or `type` and `data`; found {section!r}."
        )
    check_keys(path, section, _fields(TaskSection))
    if "preset" in section:
        check(f"{path}.preset", section["preset"], one_of(*sorted(PRESETS)))
        section = {**copy.deepcopy(PRESETS[section["preset"]]), **section}
    if data is not None:
        section = {"data": data, **section}
    for key in ("type", "text_columns", "data"):
        if key not in section:
            shared = " For one table of several tasks, `data` stands at the top of the file." if key == "data" else ""
            raise ConfigurationError(f"`{path}` must have `{key}`, or a `preset` that has it.{shared}")
    check(f"{path}.head", section.get("head", "kept"), one_of("kept", "new", "frozen"))
    return section


def _task_configs(
    tasks: Mapping[str, Any], sources: Mapping[str, DataSource], losses: Mapping[str, Any]
) -> dict[str, TaskConfig]:
    """Make the tasks from their sections, and check that no two of them log under one key."""
    from ..modeling.configuration_multitask import TaskConfig
    from ..tasks.checks import check_loss
    from ..tasks.names import check_task_names

    check_task_names(dict.fromkeys(tasks, ()))
    found = {}
    for name, section in tasks.items():
        metrics = section.get("metrics")
        for word in (section["type"], *(metrics if isinstance(metrics, list) else [metrics or ""])):
            if not isinstance(word, str):
                raise ConfigurationError(f"`tasks.{name}`: `type` and `metrics` must be names; found {word!r}.")
        try:
            found[name] = TaskConfig(**{key: copy.deepcopy(section[key]) for key in _TASK_FIELDS if key in section})
        except ConfigurationError as error:
            raise ConfigurationError(f"`tasks.{name}`: {error}") from None
    for name, loss in LossConfig.of_tasks(losses).items():
        check_loss(loss, name, found[name])
    check_task_names(_metric_names(found, sources))
    return found


def _metric_names(tasks: Mapping[str, TaskConfig], sources: Mapping[str, DataSource]) -> dict[str, list[str]]:
    """Return the metrics of each task and of each further evaluation set, under the name in the log."""
    names = {}
    for name, task in tasks.items():
        names[name] = list(task.metrics or ())
        for split in sources[name].splits:
            if not split.startswith("validation_"):
                continue
            evaluation = f"{name}_{split.removeprefix('validation_')}"
            for other in tasks:
                if len(other) > len(name) and f"{evaluation}_".startswith(f"{other}_"):
                    raise ConfigurationError(
                        f"`tasks.{name}.data.{split}` would be reported as {evaluation!r}, which reads as one of task "
                        f"{other!r}. Rename one of them."
                    )
            names[evaluation] = list(task.metrics or ())
    return names


def _sections(config: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Return the sections as `AsyncMTLTrainingArguments` takes them, with what stands with the single tasks."""
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        given = {} if config.get(name) is None else config[name]
        check(name, given, MAPPING)
        sections[name] = dict(given)
    for name, key, of_task in (("convergence", "tasks", "convergence"), ("balancing", "weights", "weight")):
        if key in sections[name]:
            raise ConfigurationError(f"`{name}.{key}` must stand with each task, as `tasks.<name>.{of_task}`.")
        own = {task: section[of_task] for task, section in tasks.items() if of_task in section}
        if own:
            sections[name][key] = own
    sections["losses"] = {task: section["loss"] for task, section in tasks.items() if "loss" in section}
    parse_sections(sections)
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


def _lora(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    from ..building.lora import check_lora

    check_lora(given)
    return dict(given)


def _training(given: Any) -> dict[str, Any]:
    """Check the keys and the types of the training arguments, which upstream checks at their first use."""
    from ..training.arguments import REFUSED, AsyncMTLTrainingArguments, check_types

    training = {} if given is None else given
    check("training", training, Requirement("a mapping of training arguments", MAPPING.accepts))
    for key in training:
        if key in REFUSED:
            raise ConfigurationError(f"`training.{key}` has no effect here: {REFUSED[key]}. Remove the key.")
        if key == "losses":
            raise ConfigurationError("`training.losses` must stand with each task, as `tasks.<name>.loss`.")
        if key in _NOT_IN_TRAINING:
            raise ConfigurationError(f"`training.{key}` must stand at the top of the file, as `{key}`.")
    check_keys("training", training, [key for key in _fields(AsyncMTLTrainingArguments) if key not in _NOT_IN_TRAINING])
    check_types(training)
    return dict(training)
