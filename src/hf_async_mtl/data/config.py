"""The settings of the data: where the splits of a task are, and how often each task is drawn."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..validation import (
    MAPPING,
    ConfigurationError,
    Requirement,
    check,
    check_fields,
    check_keys,
    number,
    one_of,
    optional,
    setting,
    whole_number,
)

SPLITS = ("train", "validation", "test")
READERS = {
    **{".jsonl": "json", ".json": "json", ".ndjson": "json"},
    **{".csv": "csv", ".tsv": "csv", ".parquet": "parquet"},
}
"""Suffix of a file, without ``.gz`` -> the reader of `datasets` for it."""
_TAGS = 'Write each sentence as a line {"tokens": [...], "tags": [...]} of a .jsonl file, as docs/data.md shows.'
_SHEET = "Save the sheet as CSV in UTF-8."
_REMEDIES = dict.fromkeys((".conll", ".conllu", ".bio", ".iob", ".iob2"), _TAGS) | dict.fromkeys(
    (".xls", ".xlsx", ".ods"), _SHEET
)
STRATEGIES = ("proportional", "temperature", "uniform")
_HUB_KEYS = ("hub", "name")
# YAML and the shell may leave the two characters of an escape as they are.
_TAB = "\\t"
_SEPARATOR = Requirement(
    "one character, such as ';'", lambda value: isinstance(value, str) and (len(value) == 1 or value == _TAB)
)


@dataclass(frozen=True)
class MixingConfig:
    """How often each task is drawn; see `hf_async_mtl.data.sampler.draws_per_task`.

    Args:
        strategy: ``proportional``: an epoch has every example once. ``temperature``: small tasks are drawn more often.
            ``uniform``: every task is drawn equally often.
        temperature: For ``temperature``, at least 1: 1 is proportional, far above 1 is uniform.

    Raises:
        ConfigurationError: A value is out of range.
    """

    strategy: str = setting("proportional", one_of(*STRATEGIES))
    temperature: float = setting(1.0, number(1))

    def __post_init__(self) -> None:
        check_fields("mixing", self)


@dataclass(frozen=True)
class DataSection:
    """Where the splits of a task are.

    A split is a JSON, CSV, TSV or Parquet file, a list of files, a pattern such as ``part-*.jsonl``, a folder of files
    or of ``save_to_disk``, or, with ``hub``, the name of a split of the Hub's dataset. ``{from_train: 0.1}`` splits a
    share off the training rows. ``validation_<suffix>`` is one more evaluation set, which is reported but does not
    decide convergence.

    Args:
        train: The training rows. Required.
        validation: The rows that decide convergence. Required.
        test: The rows of the final evaluation.
        hub: Hub id of a dataset, or ``id@revision``.
        name: Configuration of the Hub's dataset.
        separator: Separator of the cells of CSV files. Default: a comma, or a tab for ``.tsv``.
    """

    train: Any = None
    validation: Any = None
    test: Any = None
    hub: str | None = None
    name: str | None = None
    separator: str | None = None


@dataclass(frozen=True)
class DataSource:
    """Where the splits of a task are.

    Args:
        splits: Split -> a file, a list of files, a folder, the name of a split of the Hub's dataset, or
            ``{"from_train": share}``. ``train``, ``validation``, ``test``, and further evaluation sets
            ``validation_<suffix>``.
        hub: Hub id of a dataset.
        name: Its configuration.
        revision: Its revision.
        max_samples: Split -> the largest number of rows.
        separator: Separator of the cells of CSV files.
    """

    splits: Mapping[str, Any]
    hub: str | None = None
    name: str | None = None
    revision: str | None = None
    max_samples: Mapping[str, int] = field(default_factory=dict)
    separator: str | None = None

    def to_section(self) -> dict[str, Any]:
        """Return the section that a card publishes: Hub data in full, of files only the split-off shares."""
        if self.hub is None or Path(self.hub).exists():
            return {split: value for split, value in self.splits.items() if isinstance(value, Mapping)}
        return {"hub": self.hub, **({"name": self.name} if self.name else {}), **self.splits}

    @classmethod
    def from_section(
        cls, task: str, section: Any, max_samples: Any, folder: Path, *, is_shared: bool = False
    ) -> DataSource:
        """Check a ``data`` section, of a task or of all, and its ``max_samples``, with paths relative to a folder."""
        path = "data" if is_shared else f"tasks.{task}.data"
        if not isinstance(section, Mapping):
            raise ConfigurationError(f"`{path}` must name the splits of the task; found {section!r}.")
        hub_keys = {key: section[key] for key in _HUB_KEYS if key in section}
        others = (*hub_keys, "separator")
        splits = {key: value for key, value in section.items() if key not in others and value is not None}
        further = [split for split in splits if re.fullmatch("validation_[a-z0-9_]+", str(split))]
        check_keys(path, [split for split in splits if split not in further], [*SPLITS, *_HUB_KEYS])
        for split in ("train", "validation"):
            if split not in splits:
                hint = " Name one, or split it off: {from_train: 0.1}." if split == "validation" else ""
                raise ConfigurationError(f"`{path}` must have a {split} split; found none.{hint}")
        for key, value in hub_keys.items():
            check(f"{path}.{key}", value, Requirement("a string", lambda value: isinstance(value, str)))
        if hub_keys and "hub" not in hub_keys:
            raise ConfigurationError(f"`{path}` has a `{next(iter(hub_keys))}` and no `hub`. Add the Hub id.")
        located = {split: _locate(f"{path}.{split}", value, bool(hub_keys), folder) for split, value in splits.items()}
        hub, _, revision = hub_keys.get("hub", "").partition("@")
        paths = [own for value in located.values() for own in (value if isinstance(value, list) else [value])]
        separator = parse_separator(f"{path}.separator", section.get("separator"), paths)
        limits = _check_max_samples(task, max_samples, located)
        return cls(located, hub or None, hub_keys.get("name"), revision or None, limits, separator)


def _check_max_samples(task: str, max_samples: Any, splits: Mapping[str, Any]) -> dict[str, int]:
    if max_samples is None:
        return {}
    key = f"tasks.{task}.max_samples"
    check(key, max_samples, Requirement("a mapping such as {train: 2000}", MAPPING.accepts))
    for split, rows in max_samples.items():
        if split not in splits:
            raise ConfigurationError(f"`{key}` must name splits of the task ({', '.join(splits)}); found {split!r}.")
        check(f"{key}.{split}", rows, whole_number(1))
    return dict(max_samples)


def _locate(key: str, value: Any, on_hub: bool, folder: Path) -> Any:
    """Return a path, a list of paths, the name of a split of the Hub's dataset, or the share of the training rows."""
    if isinstance(value, Mapping):
        share = value.get("from_train")
        ok = set(value) == {"from_train"} and not key.endswith(".train")
        if not ok or not isinstance(share, float) or not 0 < share < 1:
            raise ConfigurationError(
                f"`{key}` must be a name or {{from_train: share}}, with a share between 0 and 1; found {dict(value)!r}."
            )
        return dict(value)
    is_list = isinstance(value, list) and len(value) > 0 and not on_hub
    names = value if is_list else [value]
    if not all(isinstance(name, str) for name in names):
        hint = " Several splits of the Hub are one name, such as train+extra." if on_hub else ""
        raise ConfigurationError(
            f"`{key}` must be a name, a list of files or {{from_train: 0.1}}; found {value!r}.{hint}"
        )
    if on_hub:
        return value
    paths = [path for name in names for path in _find(key, name, folder)]
    if len(paths) == 1 and paths[0].is_dir():
        return paths[0]
    check_one_type(paths, f"`{key}`")
    return paths[0] if len(paths) == 1 else paths


def data_suffix(path: Path) -> str:
    """Return the suffix of a file's name in lower case, without that of a compressed file.

    >>> data_suffix(Path("data/TRAIN.CSV")), data_suffix(Path("part-0.jsonl.gz"))
    ('.csv', '.jsonl')
    """
    return Path(path.name.lower().removesuffix(".gz")).suffix


def parse_separator(key: str, value: Any, sources: Sequence[Any]) -> str | None:
    """Return the separator of the cells of CSV files, checked; ``key`` is its name, ``sources`` have the paths."""
    check(key, value, optional(_SEPARATOR))
    paths = [path for path in sources if isinstance(path, Path)]
    if value is not None and not any(path.is_dir() or READERS[data_suffix(path)] == "csv" for path in paths):
        raise ConfigurationError(f"`{key}` is for CSV files; found none. Leave it out.")
    return "\t" if value == _TAB else value


def _find(key: str, name: str, folder: Path) -> list[Path]:
    """Return the path of a file or folder, or those of the files that match a pattern."""
    expanded = expand_path(key, name)
    path = folder / expanded
    if path.exists():
        return [path]
    found = sorted(map(Path, glob.glob(os.path.join(glob.escape(str(folder)), expanded), recursive=True)))  # noqa: PTH118, PTH207
    if not found:
        raise ConfigurationError(f"`{key}`: there is no file or folder {path}.")
    return [path for path in found if path.is_file()]


def check_one_type(paths: Sequence[Path], what: str) -> None:
    """Raise a `ConfigurationError` unless paths are files that one reader can read; ``what`` they are to the user."""
    for path in paths:
        if data_suffix(path) not in READERS or not path.is_file():
            remedy = _REMEDIES.get(path.suffix.lower())
            raise ConfigurationError(
                f"{what} must be a file of type {', '.join(READERS)}, several of one type, or one folder; found "
                f"{path.name}.{f' {remedy}' if remedy else ''}"
            )
        first, other = data_suffix(paths[0]), data_suffix(path)
        if READERS[other] != READERS[first] or (other == ".tsv") != (first == ".tsv"):
            raise ConfigurationError(f"{what} must be files of one type; found {paths[0].name} and {path.name}.")


def expand_path(key: str, value: str) -> Path:
    """Return a configured path with its environment variables filled in."""
    expanded = os.path.expandvars(value)
    if unset := re.search(r"\$\{?\w+\}?", expanded):
        raise ConfigurationError(
            f"`{key}` names the environment variable {unset[0]}, which is not set. Set it to a folder."
        )
    return Path(expanded).expanduser()
