"""Small helpers with no other home: files that are never half written, and values and keys in messages."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to ``path`` when the block ends. Its folder is created.

    A reader finds the old file or the new one, never a part of it. When the block raises, the temporary file is
    removed and ``path`` is left as it was. If several processes may write the file at the same time, let each have a
    temporary file of its own (``unique``), which one that is killed leaves behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The underscore keeps it out of a push that runs in the background.
    partial = path.with_name(f"_{path.name}{f'.{os.getpid()}' if unique else ''}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomic(path: Path, text: str, *, unique: bool = False) -> None:
    """Write a text file in UTF-8 through `atomic_path`."""
    with atomic_path(path, unique=unique) as partial:
        partial.write_text(text, encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``, or a copy where the file system has no hard links."""
    with atomic_path(target) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copy2(source, partial)
        # Renaming a hard link to another name of the same file does nothing.
        target.unlink(missing_ok=True)


def nearest_existing(path: Path) -> Path:
    """Return a path, or its nearest parent that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def nearest_key(key: object, known: Collection[str]) -> str | None:
    """Return the known key that is most similar to another one, for a message; None if none is similar.

    >>> nearest_key("paticence", ["criterion", "patience"])
    'patience'
    """
    return next(iter(difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)), None)


def nearest_hint(value: object, known: Collection[str]) -> str:
    """Return the sentence that names the nearest known value, with a blank before it; empty if none is similar.

    >>> nearest_hint("platau", ["plateau", "decline"])
    " The nearest is 'plateau'."
    """
    nearest = nearest_key(value, known)
    return "" if nearest is None else f" The nearest is {nearest!r}."


def truncated_repr(value: Any) -> str:
    """Return the ``repr`` of a value for a message, cut to 200 characters.

    >>> truncated_repr("good"), len(truncated_repr("good cat" * 1_000_000))
    ("'good'", 200)
    """
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
