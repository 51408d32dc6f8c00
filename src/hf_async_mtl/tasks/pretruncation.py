"""Cut very long texts before the tokenizer gets them, without a change to the tokens that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Texts up to this length go to the tokenizer unchanged: few tokens are as long as this.
_CHARACTERS_PER_TOKEN = 16
_LONGEST_WORD = 1000


def shorten(text: str, tokenizer: Any, max_length: int) -> str:
    """Return a text, or one side of a pair, without what is far behind the last token that is kept.

    A fast tokenizer stores the tokens that it cuts off; for a pair, each piece of one side with each piece of the
    other. At 32 tokens, a pair of two texts of 40,000 characters takes 9 GB, and one text of 10 MB takes 2 GB.

    The result has twice as many tokens as can be kept, so that those are the same as in the complete text. In a pair of
    two texts that are both shortened, the odd token may go to the other side. A tokenizer that truncates on the left
    keeps the end: the text is returned unchanged.
    """
    size, kept = _CHARACTERS_PER_TOKEN * max_length, 2 * max_length
    while size < len(text) and tokenizer.truncation_side == "right":
        first = _complete_words(text[:size])
        encoded = tokenizer(first, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = encoded["offset_mapping"]
        if len(spans) > kept:
            return text[: spans[kept - 1][1]]
        size *= 4
    return text


def _complete_words(text: str) -> str:
    """Return a beginning of a text without its last word, which may be incomplete and have other tokens."""
    words = text.rsplit(maxsplit=1)
    # A longer sequence is not a word (a script without spaces, a dump), and may go on to the end of the text.
    return text[: text.rindex(words[1])] if len(words) == 2 and len(words[1]) < _LONGEST_WORD else text


def shorten_words(words: Sequence[str], tokenizer: Any, max_length: int) -> list[str]:
    """Return a list of words without what is far behind the last token that is kept; see `shorten`."""
    size = 4 * max_length
    while size < len(words) and tokenizer.truncation_side == "right":
        first = [shorten(word, tokenizer, max_length) for word in words[:size]]
        # Some words have no token.
        encoded = tokenizer(first, is_split_into_words=True, add_special_tokens=False, verbose=False)
        if len(encoded["input_ids"]) > max_length:
            return first
        size *= 4
    return [shorten(word, tokenizer, max_length) for word in words]
