"""Read a YAML file, with overrides of its keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..validation import ConfigurationError


class _Loader(yaml.SafeLoader):
    """YAML in which ``5e-5`` is a number, ``off`` and a date are words, and a key that is written twice is an error."""

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
                line = key_node.start_mark.line + 1
                raise ConfigurationError(f"The key `{key}` is written twice, again in line {line}.")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[Any, Any]:
    """Return the mapping in a file, with overrides ``key.path=value`` applied, whose values are YAML too."""
    if not path.is_file():
        raise ConfigurationError(f"There is no configuration file {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} must be text in UTF-8: {error}") from None
    config = _parse(text, str(path))
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} must hold a mapping with `encoder` and `tasks`; found {config!r}.")
    for override in overrides:
        _apply(config, override)
    return config


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{what} must be YAML: {error}") from None


def _apply(config: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigurationError(f"An override must be key.path=value; found {override!r}.")
    *parents, last = path.split(".")
    section = config
    for key in parents:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    section[last] = _parse(value, f"The value of the override `{path}`")
