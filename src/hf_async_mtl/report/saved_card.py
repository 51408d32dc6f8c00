"""What a card says and no other file of a run knows, kept beside it, to write it again under a new name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from .model_card import RunCard

__all__ = ["FACTS", "render_card", "save_card"]

FACTS = "_card.json"
"""Stays here: what begins with an underscore is not pushed."""
_OF_THE_CARD = ("model_name", "encoder", "training", "data", "rows", "license", "language", "versions")
Metadata = Mapping[str, str | list[str]]


def save_card(folder: Path, card: RunCard, metadata: Metadata) -> None:
    """Write a run's card, and the facts that it was made from, into the run's folder.

    Args:
        folder: Of the run.
        card: The card.
        metadata: Further keys of its metadata, added to those that are there.
    """
    facts = {
        **{name: getattr(card, name) for name in _OF_THE_CARD},
        "tasks": {name: task.to_dict() for name, task in card.tasks.items()},
        "results": dict(card.results),
        "metadata": dict(metadata),
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")
    _with_metadata(card, metadata).save(folder / "README.md")


def render_card(folder: Path, model_name: str | None = None) -> ModelCard:
    """The card of a run, from its folder alone.

    Args:
        folder: Of a run.
        model_name: The model's name or its repository; the one that the card had, where absent.

    Returns:
        The card; ``save(path)`` writes it.

    Raises:
        ConfigurationError: The folder is not that of a run, or has no facts of a card.
    """
    for name in ("convergence.json", FACTS):
        if not (folder / name).is_file():
            raise ConfigurationError(
                f"{folder} must be the folder of a run, as `hf-async-mtl train` leaves it; it has no {name}."
            )
    facts = _read(folder / FACTS)
    results = folder / "all_results.json"
    known = {name: facts[name] for name in _OF_THE_CARD if name in facts} | (
        {"model_name": model_name} if model_name else {}
    )
    card = RunCard(
        tasks={name: TaskConfig(**task) for name, task in facts["tasks"].items()},
        report=_read(folder / "convergence.json"),
        results=_read(results) if results.is_file() else facts["results"],
        **known,
    )
    return _with_metadata(card, facts["metadata"])


def _with_metadata(card: RunCard, metadata: Metadata) -> ModelCard:
    made = card.to_model_card()
    for key, value in metadata.items():
        known = getattr(made.data, key, None)
        both = known + ([value] if isinstance(value, str) else value) if isinstance(known, list) else value
        setattr(made.data, key, sorted(set(both)) if isinstance(both, list) else both)
    return made


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
