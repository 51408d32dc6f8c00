"""Long texts in windows: overlapping segments of one example, of which no token is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..modeling.losses import IGNORE
from .pretruncation import shorten

_LENGTHS = 1000
"""Maximum length of a text, in units of `max_length`: all its windows are in one batch."""
CARD_NOTE = "The code below reads the first window of a long text; `hf-async-mtl predict` reads all of them."


class Windows(NamedTuple):
    """Tokenized windows: the tokenizer's output, the windows of each row, and whether its first text was cut."""

    encoded: Any
    rows: list[list[int]]
    truncated: list[bool]


def length_error(text: str | Sequence[str], tokenizer: Any, max_length: int) -> str | None:
    """Return what is wrong with the length of a text, or a list of words, that is read in windows."""
    limit = _LENGTHS * max_length
    # A text rarely has more tokens than characters.
    if sum(map(len, text)) <= limit:
        return None
    options = {"add_special_tokens": False, "is_split_into_words": not isinstance(text, str), "verbose": False}
    count = len(tokenizer(text, **options)["input_ids"])
    if count <= limit:
        return None
    return (
        f"a text that is read in windows must have no more than {limit:,} tokens ({_LENGTHS:,} times `max_length`), "
        f"for all its windows are read in one batch; found {count:,}. Give a part of it, or leave the row out."
    )


def tokenize_windows(
    texts: Sequence[list[Any]], tokenizer: Any, max_length: int, stride: int, *, are_words: bool = False
) -> Windows:
    """Tokenize texts, or the second ones of pairs, in windows.

    The first text of a pair is in each of its windows. If the pair has several, it is cut to half of one: if it filled
    the window, no token of the second would be left.

    Args:
        texts: One column of texts or of lists of words, or two columns.
        tokenizer: A fast tokenizer.
        max_length: Maximum length of a window, in tokens.
        stride: Number of tokens that two windows share; at most half of what a window has at least of the text.
        are_words: Whether a text is a list of words.
    """
    is_pair, long = len(texts) == 2, texts[-1]
    room = max_length - tokenizer.num_special_tokens_to_add(pair=is_pair)
    columns, truncated = [long], [False] * len(long)
    if is_pair:
        first, truncated = _cut_first(texts[0], long, tokenizer, max_length, room)
        columns = [first, long]
    encoded = tokenizer(
        *columns,
        truncation="only_second" if is_pair else True,
        max_length=max_length,
        # With a stride close to a window's tokens there would be very many windows, and the tokenizer crashes with a
        # larger one.
        stride=min(stride, room // (4 if is_pair else 2)),
        is_split_into_words=are_words,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows: list[list[int]] = [[] for _ in long]
    for window, row in enumerate(encoded["overflow_to_sample_mapping"]):
        rows[row].append(window)
    return Windows(encoded, rows, truncated)


def _cut_first(
    texts: Sequence[str], long: Sequence[str], tokenizer: Any, max_length: int, room: int
) -> tuple[list[str], list[bool]]:
    """Return the first texts of pairs, cut where a pair does not fit into one window, and whether each was cut."""
    short = [shorten(text, tokenizer, max_length) for text in texts]
    offsets = tokenizer(short, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    limit, truncated = room // 2, [False] * len(short)
    for row, spans in enumerate(offsets):
        if len(spans) > limit:
            second = shorten(long[row], tokenizer, max_length)
            count = len(tokenizer(second, add_special_tokens=False, verbose=False)["input_ids"])
            if len(spans) + count > room:
                short[row], truncated[row] = short[row][: spans[limit - 1][1]], True
    return short, truncated


def central_words(words: Sequence[Sequence[int | None]], spans: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """Return the index of the word that each token of a text begins, in the window in which it is most central.

    Other tokens have -100. ``words`` has the index of the word of each token of each window, None for special tokens;
    ``spans`` has the first and last character of each token in its word, for a window may begin within a word.

    >>> central_words([[0, 1, 1, 2], [1, 2, 3]], [[[0, 2], [0, 1], [1, 2], [0, 1]], [[1, 2], [0, 1], [0, 1]]])
    [0, 1, -100, -100, -100, 2, 3]
    """
    best: dict[int, tuple[tuple[int, int], int]] = {}
    place = 0
    for of_window, spans_of_window in zip(words, spans, strict=True):
        for index, (word, (first, _)) in enumerate(zip(of_window, spans_of_window, strict=True)):
            if word is not None and (index == 0 or of_window[index - 1] != word):
                rank = (first, -min(index, len(of_window) - 1 - index))
                if word not in best or rank < best[word][0]:
                    best[word] = (rank, place + index)
        place += len(of_window)
    found = [IGNORE] * place
    for word, (_, index) in best.items():
        found[index] = word
    return found
