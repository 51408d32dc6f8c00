"""How much of a very long text is given to the tokenizer: what can be kept of it, and as much again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["shorten", "shorten_words"]

# Texts up to this length go to the tokenizer as they are: few have tokens as long as this.
_CHARACTERS_PER_TOKEN = 16
_LONGEST_WORD = 1000


def shorten(text: str, tokenizer: Any, max_length: int) -> str:
    """A text without what lies far behind the last token that is kept.

    A fast tokenizer keeps in pieces what it cuts off, and of a pair each piece of one side with each of the other: at
    32 tokens, a pair of two texts of 40,000 characters takes 9 GB, and one text of 10 MB takes 2 GB.

    Twice as many tokens are left as can be kept, so that these are the same as in the whole text. Of a pair of two
    texts that are shortened, the odd token may go to the other side.

    Args:
        text: A text, or a side of a pair.
        tokenizer: A fast tokenizer. One that cuts on the left is given all: it keeps the end.
        max_length: The longest segment, in tokens.
    """
    size, kept = _CHARACTERS_PER_TOKEN * max_length, 2 * max_length
    while size < len(text) and tokenizer.truncation_side == "right":
        first = _whole_words(text[:size])
        encoded = tokenizer(first, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = encoded["offset_mapping"]
        if len(spans) > kept:
            return text[: spans[kept - 1][1]]
        size *= 4
    return text


def _whole_words(text: str) -> str:
    """The beginning of a text without its last word, which may go on: a part of it has other tokens."""
    words = text.rsplit(maxsplit=1)
    # What goes on for longer is no word (a script without spaces, a dump), and might go on to the end.
    return text[: text.rindex(words[1])] if len(words) == 2 and len(words[1]) < _LONGEST_WORD else text


def shorten_words(words: Sequence[str], tokenizer: Any, max_length: int) -> list[str]:
    """A list of words without what lies far behind the last token that is kept; see `shorten`."""
    size = 4 * max_length
    while size < len(words) and tokenizer.truncation_side == "right":
        first = [shorten(word, tokenizer, max_length) for word in words[:size]]
        # Some words have no token.
        encoded = tokenizer(first, is_split_into_words=True, add_special_tokens=False, verbose=False)
        if len(encoded["input_ids"]) > max_length:
            return first
        size *= 4
    return [shorten(word, tokenizer, max_length) for word in words]
