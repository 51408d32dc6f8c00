"""Class names with a meaning: the positive one of two classes, and the tag of words outside of all chunks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..modeling.configuration_multitask import TaskConfig

OUTSIDE_TAGS = ("o", "_", "-", "out", "outside", "other", "none", "null")
"""Tags of words outside of all chunks, in lower case; the first one that a task has is its outside tag."""
_PREFIX = re.compile("[BIESLU]-.", re.IGNORECASE)
_OTHER_SCHEME = re.compile("[BIESLU][_:/ ].+|.+[-_:/ ][BIESLU]", re.IGNORECASE)
_PAIRS = (
    ("0", "1"),
    ("-1", "1"),
    ("no", "yes"),
    ("n", "y"),
    ("false", "true"),
    ("negative", "positive"),
    ("neg", "pos"),
)


METRICS_OF_ONE_CLASS = ("f1", "precision", "recall", "average_precision")
"""Metrics of two classes that are those of the positive one."""


def known_positive(names: Sequence[str]) -> int | None:
    """Return the index of the positive one of two classes, if their names say which it is.

    >>> known_positive(["yes", "no"]), known_positive(["spam", "not_spam"]), known_positive(["fraud", "legit"])
    (0, 0, None)
    """
    first, second = (name.lower() for name in names)
    for negative, positive in _PAIRS:
        if {first, second} == {negative, positive}:
            return (first, second).index(positive)
    for index, (name, other) in enumerate([(first, second), (second, first)]):
        if re.fullmatch(rf"(not|non|no)[ _-]?{re.escape(name)}", other):
            return index
    return None


def outside_tag(names: Sequence[str]) -> str | None:
    """Return the tag of words outside of all chunks; None if there is none.

    It is the name that is one of `OUTSIDE_TAGS` in any case, or the only one without a prefix (``B-``, ``I-``, ...).

    >>> outside_tag(["B-x", "I-x", "o"]), outside_tag(["B-x", "PAD"]), outside_tag(["NOUN", "VERB"])
    ('o', 'PAD', None)
    """
    found = {name.lower(): name for name in reversed(names)}
    known = next((found[tag] for tag in OUTSIDE_TAGS if tag in found), None)
    plain = [name for name in names if not _PREFIX.match(name)]
    return plain[0] if known is None and len(plain) == 1 < len(names) else known


def has_chunks(names: Sequence[str]) -> bool:
    """Return whether tags say where chunks are: one is that of words outside, or all have a prefix."""
    return outside_tag(names) is not None or all(map(_PREFIX.match, names))


def has_other_scheme(names: Sequence[str]) -> bool:
    """Return whether all tags but the outside one say where chunks are in another way than `_PREFIX`.

    >>> has_other_scheme(["O", "B_x", "I_x"]), has_other_scheme(["O", "x-B", "x-I"]), has_other_scheme(["O", "B-x"])
    (True, True, False)
    """
    tags = [name for name in names if name != outside_tag(names)]
    return all(map(_OTHER_SCHEME.fullmatch, tags)) and not all(map(_PREFIX.match, tags))


def positive_index(task: TaskConfig) -> int:
    """Return the index of the positive one of two classes: `positive_label`, or what the names say, or the second."""
    names = task.label_names
    if names is None or len(names) != 2:
        return 1
    if task.positive_label is not None:
        return names.index(task.positive_label)
    known = known_positive(names)
    return 1 if known is None else known
