"""Standard errors of a metric's change: the resamples that they are said to be of, in pairs, and quietly."""

import math
import random

import evaluate
import numpy as np
import pytest
from datasets import Features, Value

from hf_async_mtl import metrics
from hf_async_mtl.metrics import compute
from hf_async_mtl.significance import bootstrap_values, paired_standard_error
from hf_async_mtl.tasks.registry import TASK_TYPES
from hf_async_mtl.validation import ConfigurationError

# Also tags that seqeval does not know, rows without a tag, and rows of one length.
TAGS = ["O", "O", "B-x", "I-x", "I-y", "E-y", "S-x", "T-x", "y"]


def examples(task_type, count=40, seed=0, positive=0.5):
    """Predictions before and now, and references; the present predictions are right more often."""
    generator = random.Random(seed)

    def one():
        return {
            "classification": int(generator.random() < positive),
            "multiple_choice": generator.randrange(4),
            "multilabel": [generator.randrange(2) for _ in range(3)],
            "regression": generator.gauss(0, 1),
            "token_classification": [generator.choice(TAGS) for _ in range(generator.randrange(6))],
            "question_answering": " ".join(generator.choices(["the", "Red", "fox.", "2"], k=3)),
        }[task_type]

    references = [one() for _ in range(count)]
    sets = [[true if generator.random() < share else one() for true in references] for share in (0.3, 0.6)]
    if task_type == "token_classification":
        # Each row as many tags as its words.
        sets = [
            [[*found, *["O"] * 6][: len(true)] for found, true in zip(rows, references, strict=True)] for rows in sets
        ]
    if task_type == "question_answering":
        references = [[answer, one()] for answer in references]
    return *sets, references


def error_of(metric, task_type, before, now, references, **settings):
    """The standard error of a metric's change, from the predictions."""
    values = [bootstrap_values(metric, task_type, given, references, None, **settings) for given in (before, now)]
    return paired_standard_error(*values)


@pytest.mark.parametrize(
    ("metric", "task_type"), [(name, task_type) for task_type, kind in TASK_TYPES.items() for name in kind.metrics]
)
def test_values_are_the_metrics_on_the_resamples(metric, task_type):
    """Bug: a quicker way to a metric, or a reference that is not drawn with its prediction, gives other values."""
    before, now, references = examples(task_type)
    if metrics.reads_probabilities(metric):
        shape = (2, 40, *{"classification": (2,), "multiple_choice": (4,), "multilabel": (3,)}[task_type])
        logits = np.random.default_rng(1).normal(size=shape)
        before, now = (TASK_TYPES[task_type].probabilities(None, part) for part in logits)
    draws = np.random.default_rng(3).integers(40, size=(15, 40))
    for predictions in (before, now):
        drawn = [([predictions[i] for i in draw], [references[i] for i in draw]) for draw in draws]
        expected = [compute([metric], task_type, *pair, probabilities=pair[0])[metric] for pair in drawn]
        found = bootstrap_values(metric, task_type, predictions, references, None, resamples=15, seed=3)
        assert all(type(value) is float for value in found)
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_tokens_in_rows_of_one_length(length):
    """Bug: rows of one length become a matrix, and a metric is given letters for rows."""
    rows = [["B-x"] * length] * 5
    for metric in ("seqeval_f1", "seqeval_accuracy") if length else ("seqeval_f1",):
        values = bootstrap_values(metric, "token_classification", rows, rows, None, resamples=4, seed=0)
        assert values == [1.0 if length else 0.0] * 4


def test_error_of_an_accuracy_is_the_textbooks():
    """Bug: the deviation is of something else than the difference, or is divided by a root too many."""
    before, now, references = examples("classification", count=400)
    difference = np.equal(now, references).astype(float) - np.equal(before, references)
    found = error_of("accuracy", "classification", before, now, references, resamples=2000)
    assert found == pytest.approx(difference.std() / math.sqrt(400), rel=0.06)


def test_same_resamples_for_both():
    """Bug: each set has resamples of its own, and the error of a difference of nothing is that of two values."""
    before, now, references = examples("classification")
    assert error_of("f1", "classification", now, now, references) == 0
    values = [bootstrap_values("f1", "classification", p, references, None, 200, seed=5) for p in (before, now)]
    expected = np.std(np.subtract(*values), ddof=1)
    assert error_of("f1", "classification", before, now, references, seed=5) == expected
    assert error_of("f1", "classification", now, before, references, seed=5) == expected


def test_seed_decides_and_no_global_state_moves():
    """Bug: a run's order or dropout depends on whether its criterion asked for an error."""
    before, now, references = examples("regression")
    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
    errors = [error_of("pearson", "regression", before, now, references, seed=s) for s in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == (state, numpy_state)


def test_resamples_without_a_value_are_left_out():
    """Bug: one resample of equal predictions makes the error NaN; or there is an error where few values are defined."""

    def values(predictions, references):
        return np.array(bootstrap_values("pearson", "regression", predictions, references, None, 100, seed=0))

    def error(before, now, references):
        return error_of("pearson", "regression", before, now, references, resamples=100)

    before, now, references = [0.0, 0.0, 1.0, 2.0], [1.0, 2.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0]
    differences = values(now, references) - values(before, references)
    assert 0 < np.isnan(differences).mean() < 0.5
    assert error(before, now, references) == pytest.approx(np.nanstd(differences, ddof=1), rel=1e-12)
    first, last = [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]  # one of them is constant in most resamples
    assert 0.5 < np.isnan(values(first, last)).mean() < 1
    assert math.isnan(error(first, first, last))


class Agreement(evaluate.Metric):
    """Twice the share of equal predictions."""

    def _info(self):
        features = Features({"predictions": Value("int64"), "references": Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"agreement": 2 * np.mean(np.equal(predictions, references))}


def test_metric_of_evaluates(monkeypatch):
    """Bug: only built-in metrics have an error, and a run with another ends at its second evaluation."""
    monkeypatch.setattr(evaluate, "load", lambda name, **options: Agreement(**options))
    metrics._load.cache_clear()
    before, now, references = examples("classification")
    found, accuracy = (
        error_of(name, "classification", before, now, references, resamples=20) for name in ("agreement", "accuracy")
    )
    metrics._load.cache_clear()
    assert found == pytest.approx(2 * accuracy)


def test_what_compute_refuses_is_refused():
    """Bug: the short way past `compute` is also one past its checks."""
    with pytest.raises(ValueError, match="as many predictions as references"):
        error_of("accuracy", "classification", [1], [1, 0], [1, 0])
    with pytest.raises(ConfigurationError, match="needs a task of type classification"):
        error_of("f1", "regression", [1.0], [1.0], [1.0])
    with pytest.raises(ConfigurationError, match="exactly two classes"):
        bootstrap_values("f1", "classification", [1], [1], ["a", "b", "c"], resamples=2, seed=0)
