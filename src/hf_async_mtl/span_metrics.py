"""Metrics of spans: answers of question answering, and chunks of tagged words."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

_PREFIXES = str.maketrans("LU", "ES")
"""The last word of a chunk and a chunk of one word, in BILOU -> in the scheme of seqeval."""


def normalize_answer(text: str) -> str:
    """Normalize an answer as SQuAD does: lower case, no punctuation, no articles, single spaces.

    The order of the steps is that of the official evaluation script, version 1.1 (Rajpurkar et al., 2016,
    arXiv:1606.05250).

    Examples:
        >>> normalize_answer("The  U.S. Army, an army")
        'us army army'
    """
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_overlap_f1(prediction: str, answer: str) -> float:
    predicted, gold = normalize_answer(prediction).split(), normalize_answer(answer).split()
    shared = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def _mean_of_best(
    score: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    for question, answers in enumerate(references):
        if not answers:
            raise ValueError(
                f"Every question needs a gold answer; question {question} of {len(references)} has none. Remove "
                "questions without an answer from the data."
            )
    pairs = zip(predictions, references, strict=True)
    return float(np.mean([max(score(text, answer) for answer in answers) for text, answers in pairs]))


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the share of questions whose prediction equals a gold answer, both normalized."""
    return _mean_of_best(lambda a, b: normalize_answer(a) == normalize_answer(b), predictions, references)


def squad_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean word-overlap F1 with the best-fitting gold answer, both normalized."""
    return _mean_of_best(_word_overlap_f1, predictions, references)


def chunk_tag(label: str) -> str:
    """Return a label in a scheme that seqeval knows, its prefix in any case: ``L-`` becomes ``E-`` and ``U-`` ``S-``.

    Any prefix but these, B-, I-, E- and S- becomes I-.
    """
    if re.fullmatch("[OBIES]", label, re.IGNORECASE):
        return label.upper()
    prefix = re.match(r"([A-Za-z])-", label)
    if prefix is None:
        return f"I-{label}"
    first = prefix[1].upper().translate(_PREFIXES)
    return f"{first if first in 'BIES' else 'I'}-{label[2:]}"


def chunk_score(kind: str, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Return the micro precision, recall or F1 of complete chunks, counted as ``conlleval`` does; 0 without any chunk.

    Labels are ``O`` and ``B-<type>``, ``I-<type>`` (or with ``E-``, ``S-``, ``L-``, ``U-``), in any case. A label with
    another prefix (``T-<type>``) or with none counts as inside a chunk of its type: neighbors of one type are then one
    chunk.
    """
    from seqeval import metrics

    predicted, gold = ([[chunk_tag(label) for label in row] for row in rows] for rows in (predictions, references))
    return getattr(metrics, f"{kind}_score")(gold, predicted, zero_division=0)


def token_accuracy(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Return the share of tokens with the correct label."""
    from seqeval.metrics import accuracy_score

    return accuracy_score(list(references), list(predictions))
