"""Checks of configuration values: one sentence for a wrong value, one for an unknown key. Standard library only.

``huggingface_hub.dataclasses.strict`` does not fit here: it does not check frozen dataclasses or annotations that are
strings, and its messages name neither the section nor the requirement.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin

from .utils import nearest_hint, nearest_key

T = TypeVar("T")

RENAMED = {
    "text": "text_columns",
    "label": "label_column",
    "labels": "label_names",
    "limit": "max_samples",
    "stride": "doc_stride",
    "label_share": "hard_label_weight",
}
"""Keys of version 0.1 -> their names today."""

REMOVED = {
    "convergence.watch": "Remove the key; `decline` goes by the task's first metric, which may be `log_loss`.",
    "convergence.return_below": "Remove the key; a converged task does not return to its labels.",
    "convergence.renew_teacher": "Remove the key; the teacher is the task's best evaluation.",
    "convergence.min_delta_mode": "Remove the key, and give `min_delta` in the units of the metric.",
    "data.revision": "Write `hub: <id>@<revision>`.",
    "data.stream": "Save the rows as `scripts/examples/streaming.py` does, and name their folder as the split.",
    "distillation.annealing": "Remove the key; `hard_label_weight` gives the labels a constant share.",
    "distillation.keep_gradient_norm": "Remove the key; `tasks.<name>.weight` sets the weight of a task.",
    "distillation.ramp_steps": "Remove the key; a converged task changes to its teacher's logits at once.",
    "distillation.snapshots": "Remove the key; the teacher is the single best evaluation.",
    "training.on_nonfinite": "Remove the key; a loss or gradient that is not finite always stops the run.",
}
"""Keys of version 0.1 that are gone, with the last part of their section's path -> what to do instead."""


class ConfigurationError(ValueError):
    """The user's input is wrong. The message gives the requirement, the value found and the way out."""


class Requirement(NamedTuple):
    """What a value must be."""

    description: str  # the words after "must be"
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()  # the nearest one is offered


MAPPING = Requirement("a mapping", lambda value: isinstance(value, Mapping))


def number(minimum: float, maximum: float | None = None, *, exclusive: bool = False) -> Requirement:
    """Require a finite number; ``exclusive`` refuses the bounds themselves."""
    if maximum is None:
        description = f"a number above {minimum}" if exclusive else f"a number of at least {minimum}"
    elif exclusive:
        description = f"a number between {minimum} and {maximum}, both excluded"
    else:
        description = f"a number from {minimum} to {maximum}"
    upper = math.inf if maximum is None else maximum

    def accepts(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return minimum < value < upper if exclusive else minimum <= value <= upper

    return Requirement(description, accepts)


def whole_number(minimum: int, maximum: int | None = None) -> Requirement:
    """Require an integer; 1.0 and True are none."""
    bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    upper = math.inf if maximum is None else maximum

    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= upper

    return Requirement(f"a whole number {bounds}", accepts)


def one_of(*choices: str) -> Requirement:
    """Require one of several names."""
    return Requirement(
        f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices, choices
    )


def optional(requirement: Requirement) -> Requirement:
    """Allow None, too."""
    return Requirement(f"{requirement.description}, or null", lambda value: value is None or requirement.accepts(value))


_NOUNS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}


def of_type(annotation: Any) -> Requirement | None:
    """Require what an annotation says; None where it names other types than those of YAML."""
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kinds = tuple(get_origin(option) or option for option in options)
    if not all(kind in _NOUNS for kind in kinds):
        return None
    accepted = (*kinds, int) if float in kinds else kinds

    def accepts(value: Any) -> bool:
        return isinstance(value, accepted) and (bool in kinds or not isinstance(value, bool))

    return Requirement(" or ".join(_NOUNS[kind] for kind in kinds), accepts)


def check(key: str, value: Any, requirement: Requirement) -> None:
    """Raise a `ConfigurationError` unless a value meets its requirement.

    Examples:
        >>> check("seed", -1, whole_number(0))
        Traceback (most recent call last):
            ...
        hf_async_mtl.validation.ConfigurationError: `seed` must be a whole number of at least 0; found -1.
    """
    if requirement.accepts(value):
        return
    hint = nearest_hint(value, requirement.choices) if isinstance(value, str) else ""
    raise ConfigurationError(f"`{key}` must be {requirement.description}; found {value!r}.{hint}")


def check_keys(section: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise a `ConfigurationError` for an unknown key, with its new name, what replaces it, or the nearest known key.

    ``section`` is the path of the section, for the message; empty for the top of the file.
    """
    for key in given:
        if key in known:
            continue
        path = f"{section}.{key}" if section else str(key)
        if RENAMED.get(str(key)) in known:
            raise ConfigurationError(f"`{path}`: `{key}` is now `{RENAMED[key]}`. Rename the key.")
        if (way_out := REMOVED.get(f"{section.rpartition('.')[2]}.{key}")) is not None:
            raise ConfigurationError(f"`{path}` has been removed. {way_out}")
        nearest = nearest_key(key, known)
        if nearest is None:
            raise ConfigurationError(f"Unknown key `{path}`. {_known_keys(known)}")
        raise ConfigurationError(f"Unknown key `{path}`. The nearest known key is `{nearest}`.")


def _known_keys(known: Collection[str]) -> str:
    if not known:
        return "The section has no keys. Remove it."
    if len(known) > 20:
        return "No known key is similar; `docs/configuration.md` describes them. Remove the key."
    return f"The known keys are {', '.join(known)}."


def setting(default: Any, requirement: Requirement) -> Any:
    """Return a field of a dataclass with a default and a requirement, for `check_fields`."""
    metadata = {"requirement": requirement}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_fields(section: str, config: Any) -> None:
    """Check every `setting` of a dataclass; ``section`` is as for `check_keys`."""
    for item in dataclasses.fields(config):
        if "requirement" in item.metadata:
            key = f"{section}.{item.name}" if section else item.name
            check(key, getattr(config, item.name), item.metadata["requirement"])


def parse_section(section: str, kind: type[T], given: Any) -> T:
    """Make the dataclass of a section from the user's keys and values; None stands for the defaults."""
    values = {} if given is None else given
    check(section, values, MAPPING)
    check_keys(section, values, [item.name for item in dataclasses.fields(kind)])  # type: ignore[arg-type]
    return kind(**values)
