"""The configuration file: YAML to objects, with errors for people."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers.integrations import get_available_reporting_integrations

from ..building.lora import check_lora
from ..data.config import DataSource, expand_path
from ..modeling.configuration_multitask import TaskConfig, check_task_names
from ..tasks.presets import PRESETS
from ..training.arguments import REFUSED, AsyncMTLTrainingArguments
from ..validation import ConfigurationError, check_keys

__all__ = ["RunConfig", "load_config"]

SECTIONS = ("convergence", "distillation", "mixing", "balancing", "schedule")
_MODEL_KEYS = ("encoder", "max_length", "pooling", "packing", "freeze", "lora")
_TOP_KEYS = (*_MODEL_KEYS, "seed", "data_seed", "tasks", *SECTIONS, "training")
_TASK_FIELDS = ("type", "text_columns", "label_column", "label_names", "metrics", "max_length", "doc_stride")
_TASK_KEYS = (*_TASK_FIELDS, "preset", "data", "max_samples", "weight", "convergence", "head")
_HEADS = ("kept", "new", "frozen")
# Given at the top of the file, where they also rule what the trainer does not know of.
_NOT_IN_TRAINING = ("seed", "data_seed", *SECTIONS)
# NumPy takes no greater one.
_LARGEST_SEED = 2**32 - 1


@dataclass
class RunConfig:
    """A checked configuration.

    Args:
        name: Of the file, without its ending.
        encoder: Hub id or absolute folder of a text encoder, or of a trained multi-task model.
        seed: Of model, order and dropout.
        data_seed: Of samples and carves.
        model: ``max_length``, ``pooling``, ``packing``, ``lora`` and ``new_heads``, as `MultiTaskModel.from_encoder`
            takes them.
        freeze: ``encoder``, or the number of its first layers that stay as they are; None: all learns.
        frozen_heads: Tasks whose heads stay as they are.
        tasks: Name -> task, its labels not yet found.
        sources: Name -> where its data is.
        training: Keyword arguments of `AsyncMTLTrainingArguments`, without ``output_dir``. A teacher of a task may be
            None, which says that it has none; see `hf_async_mtl.run.grown`.
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
        """The training arguments of this run."""
        training = {**self.training, **overrides}
        teachers = training["distillation"].get("teachers")
        if isinstance(teachers, dict):
            named = {name: source for name, source in teachers.items() if source is not None}
            training["distillation"] = {**training["distillation"], "teachers": named}
        try:
            arguments = AsyncMTLTrainingArguments(str(output_dir), **training)
        except ConfigurationError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigurationError(f"`training`: {error}") from None
        # Some trackers are imported to see whether they are there: for as long as a second, and some memory.
        available = get_available_reporting_integrations() if arguments.report_to else []
        for tracker in arguments.report_to:
            if tracker not in available:
                raise ConfigurationError(
                    "`training.report_to` must name trackers that are installed here "
                    f"({', '.join(available) or 'none'}); found {tracker!r}. Install it, or remove it."
                )
        for name in self.tasks:
            try:
                arguments.convergence_of(name)
            except ConfigurationError as error:
                raise ConfigurationError(f"Task {name!r}: {error}") from None
        return arguments


class _Loader(yaml.SafeLoader):
    """YAML as people mean it.

    ``5e-5`` is a number; ``off``, ``no`` and a date are the words that were written; a key that is written twice is a
    mistake.
    """

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            # A merge (`<<`) may be written twice, and what cannot be a key is refused below.
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in seen:
                raise ConfigurationError(
                    f"The key `{key}` is written twice, again in line {key_node.start_mark.line + 1}."
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{what} must be YAML: {error}") from None


def _override(config: dict[str, Any], setting: str) -> None:
    path, equals, value = setting.partition("=")
    if not equals or not path:
        raise ConfigurationError(f"`--set` must be key.path=value; found {setting!r}.")
    keys = path.split(".")
    section = config
    for key in keys[:-1]:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    section[keys[-1]] = _parse(value, f"The value of `--set {path}`")


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a configuration file; the README has a table of its keys.

    Args:
        path: The file.
        overrides: ``key.path=value``, the values in YAML.

    Raises:
        ConfigurationError: The file is missing or no YAML, a key is not known, or a value does not fit.
    """
    if not path.is_file():
        raise ConfigurationError(f"There is no configuration file {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} must be text in UTF-8: {error}") from None
    config = _parse(text, str(path))
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} must hold a mapping with `encoder` and `tasks`; found {config!r}.")
    for setting in overrides:
        _override(config, setting)
    check_keys("", config, _TOP_KEYS)
    for key in ("encoder", "tasks"):
        if key not in config:
            raise ConfigurationError(f"{path} must have the key `{key}`; it has {', '.join(map(str, config))}.")
    if not isinstance(config["tasks"], dict) or not config["tasks"]:
        raise ConfigurationError(f"`tasks` must name at least one task; found {config['tasks']!r}.")
    check_task_names(dict.fromkeys(config["tasks"], ()))

    folder = path.parent.resolve()
    seed = _whole_number("seed", config.get("seed", 42), maximum=_LARGEST_SEED)
    tasks, sources, weights, convergence = {}, {}, {}, {}
    heads: dict[str, str] = {}
    for name, section in config["tasks"].items():
        section = _with_preset(name, section)
        tasks[name] = _task(name, section)
        sources[name] = DataSource.from_section(name, section["data"], section.get("max_samples"), folder)
        if "weight" in section:
            weights[name] = section["weight"]
        heads[name] = section.get("head", "kept")
        if heads[name] not in _HEADS:
            raise ConfigurationError(f"`tasks.{name}.head` must be one of {', '.join(_HEADS)}; found {heads[name]!r}.")
        if section.get("convergence") is not None:
            convergence[name] = section["convergence"]
    check_task_names(_metric_names(tasks, sources))
    if config.get("lora") is not None and config.get("freeze") is not None:
        raise ConfigurationError(
            "`freeze` and `lora` exclude each other: beside low-rank layers the whole encoder is frozen. Remove one of "
            "them; `lora.layers_to_transform` says which layers learn."
        )
    training = _training(config, weights, convergence)
    teachers = training["distillation"].get("teachers")
    if teachers is not None:
        if not isinstance(teachers, dict):
            raise ConfigurationError(
                f"`distillation.teachers` must be a mapping: task -> folder or Hub id; found {teachers!r}."
            )
        for name in teachers:
            if name not in tasks:
                raise ConfigurationError(
                    f"`distillation.teachers` must name tasks ({', '.join(tasks)}); found {name!r}."
                )
        training["distillation"]["teachers"] = {
            name: None if source is None else _model_source(f"distillation.teachers.{name}", source, folder)
            for name, source in teachers.items()
        }
    return RunConfig(
        name=path.stem,
        encoder=_model_source("encoder", config["encoder"], folder),
        seed=seed,
        data_seed=_whole_number("data_seed", config.get("data_seed", seed), maximum=_LARGEST_SEED),
        model={
            # Those of a trained bundle, where that is the encoder, are not known here.
            "max_length": _whole_number("max_length", config["max_length"], minimum=8)
            if "max_length" in config
            else None,
            "pooling": config.get("pooling"),
            "packing": config.get("packing", "auto"),
            "lora": None if config.get("lora") is None else check_lora(config["lora"]),
            "new_heads": [name for name, head in heads.items() if head == "new"],
        },
        freeze=_freeze(config.get("freeze")),
        frozen_heads=[name for name, head in heads.items() if head == "frozen"],
        tasks=tasks,
        sources=sources,
        output_dir=_output_dir(training.pop("output_dir", None), folder),
        training={**training, "seed": seed},
    )


def _whole_number(key: str, value: Any, minimum: int = 0, maximum: int | None = None) -> int:
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    if not ok or (maximum is not None and value > maximum):
        wanted = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ConfigurationError(f"`{key}` must be a whole number {wanted}; found {value!r}.")
    return value


def _freeze(value: Any) -> int | str | None:
    if value is None or value == "encoder":
        return value
    if isinstance(value, str):
        raise ConfigurationError(f"`freeze` must be `encoder`, or a number of its first layers; found {value!r}.")
    return _whole_number("freeze", value, minimum=1)


def _output_dir(value: str | None, folder: Path) -> Path | None:
    return None if value is None else folder / expand_path("training.output_dir", value)


def _model_source(key: str, value: Any, folder: Path) -> str:
    """A Hub id, or the absolute path of a folder."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"`{key}` must be a Hub id or a folder; found {value!r}.")
    path = folder / expand_path(key, value)
    if path.is_dir():
        return str(path)
    if value.startswith((".", "/", "~", "$")):
        raise ConfigurationError(f"`{key}` must be a Hub id or a folder; there is no folder {path}.")
    return value


def _with_preset(name: str, section: Any) -> dict[str, Any]:
    if not isinstance(section, dict):
        raise ConfigurationError(
            f"`tasks.{name}` must be a mapping with a `preset`, or `type` and `data`; found {section!r}."
        )
    check_keys(f"tasks.{name}", section, _TASK_KEYS)
    if "preset" in section:
        if not isinstance(section["preset"], str) or section["preset"] not in PRESETS:
            raise ConfigurationError(
                f"`tasks.{name}.preset` must be one of {', '.join(sorted(PRESETS))}; found {section['preset']!r}."
            )
        section = {**copy.deepcopy(PRESETS[section["preset"]]), **section}
    for key in ("type", "text_columns", "data"):
        if key not in section:
            raise ConfigurationError(f"`tasks.{name}` must have `{key}`, or a `preset` that has it.")
    return section


def _task(name: str, section: Mapping[str, Any]) -> TaskConfig:
    metrics = section.get("metrics")
    words = [section["type"], *(metrics if isinstance(metrics, list) else [metrics or ""])]
    for word in words:
        if not isinstance(word, str):
            raise ConfigurationError(f"`tasks.{name}`: `type` and `metrics` must be names; found {word!r}.")
    try:
        return TaskConfig(**{key: copy.deepcopy(section[key]) for key in _TASK_FIELDS if key in section})
    except ConfigurationError as error:
        raise ConfigurationError(f"`tasks.{name}`: {error}") from None


def _metric_names(tasks: Mapping[str, TaskConfig], sources: Mapping[str, DataSource]) -> dict[str, list[str]]:
    """The metrics of each task and of each further evaluation set, under the name that it is reported with."""
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


def _training(config: Mapping[str, Any], weights: Mapping[str, Any], convergence: Mapping[str, Any]) -> dict[str, Any]:
    training = {} if config.get("training") is None else config["training"]
    if not isinstance(training, dict):
        raise ConfigurationError(f"`training` must be a mapping of training arguments; found {training!r}.")
    known = {item.name: item for item in dataclasses.fields(AsyncMTLTrainingArguments)}
    for key in training:
        if key in REFUSED:
            raise ConfigurationError(f"`training.{key}` has no effect here: {REFUSED[key]}. Remove the key.")
        if key in _NOT_IN_TRAINING:
            raise ConfigurationError(f"`training.{key}` must stand at the top of the file, as `{key}`.")
    check_keys("training", training, [key for key in known if key not in _NOT_IN_TRAINING])
    for key, value in training.items():
        kind = known[key].type
        _check_value(key, value, kind.__name__ if isinstance(kind, type) else str(kind))
    sections = {}
    for name in SECTIONS:
        section = {} if config.get(name) is None else config[name]
        if not isinstance(section, dict):
            raise ConfigurationError(f"`{name}` must be a mapping; found {section!r}.")
        sections[name] = dict(section)
    for name, key, own, of_task in (
        ("convergence", "tasks", convergence, "convergence"),
        ("balancing", "weights", weights, "weight"),
    ):
        if key in sections[name]:
            raise ConfigurationError(f"`{name}.{key}` must stand with each task, as `tasks.<name>.{of_task}`.")
        if own:
            sections[name][key] = dict(own)
    return {**training, **sections}


# Upstream's own checks leave these to the first step, or to no one.
_ABOVE_ZERO = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "learning_rate",
    "eval_steps",
    "save_steps",
    "logging_steps",
    "save_total_limit",
)
_TYPES: dict[str, tuple[Any, str]] = {
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "str": (str, "a string"),
    "list": (list, "a list"),
    "dict": (dict, "a mapping"),
    "None": (type(None), "null"),
}


def _check_value(key: str, value: Any, annotation: str) -> None:
    # Upstream takes any value and fails at its first use, in the middle of a run.
    if key in _ABOVE_ZERO and isinstance(value, int | float) and not value > 0:
        raise ConfigurationError(f"`training.{key}` must be above 0; found {value!r}.")
    kinds = [part.strip() for part in re.sub(r"\[.*?\]", "", annotation).split("|")]
    if not all(kind in _TYPES for kind in kinds):
        return
    for kind in kinds:
        if isinstance(value, _TYPES[kind][0]) and (kind == "bool" or not isinstance(value, bool)):
            return
    wanted = " or ".join(_TYPES[kind][1] for kind in kinds)
    raise ConfigurationError(f"`training.{key}` must be {wanted}; found {value!r}.")
