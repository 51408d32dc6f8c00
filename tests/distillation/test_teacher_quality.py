"""The warning about a teacher that is nearly one-hot: entropies worked by hand, and the sentence."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from recording import write_logits

from hf_async_mtl.distillation.logits import LogitsFiles, RecordedLogits
from hf_async_mtl.distillation.teachers import near_one_hot_warning, normalized_entropy


def logits_of(*probabilities):
    return torch.tensor(probabilities).log()


def entropy_of(*probabilities):
    return -sum(p * math.log(p) for p in probabilities)


@pytest.mark.parametrize("task_type", ["classification", "multiple_choice"])
def test_classes_by_hand(task_type):
    """Bug: the entropy is not divided by that of as many equal classes, or is of the mean distribution."""
    found = normalized_entropy(task_type, logits_of([0.7, 0.2, 0.1], [0.1, 0.3, 0.6]), [0, 1])
    expected = (entropy_of(0.7, 0.2, 0.1) + entropy_of(0.1, 0.3, 0.6)) / 2 / math.log(3)
    assert found == pytest.approx(expected, abs=1e-6)


def test_words_without_a_label_do_not_count(tmp_path):
    """Bug: what the disk and the data set hold must be turned into something else first, or padding counts."""
    logits = [np.log([[0.99, 0.01], [0.8, 0.2], [0.8, 0.2]]), np.log([[0.8, 0.2]])]
    files = LogitsFiles.of(tmp_path, "colors")
    write_logits(files, logits, "a" * 64, step=1)
    recorded = RecordedLogits(files).lookup(torch.arange(2))
    rows = Dataset.from_dict({"labels": [[-100, 0, 1], [1]]})
    found = normalized_entropy("token_classification", recorded, rows["labels"])
    assert found == pytest.approx(entropy_of(0.8, 0.2) / math.log(2), abs=1e-6)
    assert normalized_entropy("token_classification", torch.zeros(2, 3), [[-100], [-100]]) is None


def test_multilabel_by_hand():
    """Bug: each label is no decision of its own, or 1 - p loses its digits where p is nearly 1."""
    odds = torch.tensor([[0.9, 0.2], [0.6, 0.2]])
    expected = sum(entropy_of(p, 1 - p) for p in (0.9, 0.2, 0.6, 0.2)) / 4 / math.log(2)
    found = normalized_entropy("multilabel", odds.logit(), [[1.0, 0.0], [0.0, 0.0]])
    assert found == pytest.approx(expected, abs=1e-6)
    sure = normalized_entropy("multilabel", torch.tensor([[30.0]]), [[1.0]])
    assert sure == pytest.approx(31 * math.exp(-30) / math.log(2), rel=1e-3)


def test_what_has_no_entropy():
    """Bug: numbers, windows or a single class divide by zero, or are warned of."""
    assert normalized_entropy("regression", torch.tensor([1.0, 2.0]), [3.0, 3.0]) is None
    assert normalized_entropy("question_answering", torch.randn(5, 2), [[[0, 1]], [[1, 1]]]) is None
    assert normalized_entropy("classification", torch.zeros(3, 1), [0, 0, 0]) is None
    assert normalized_entropy("classification", torch.zeros(0, 2), []) is None
    assert near_one_hot_warning("match", None) is None


def test_the_ends():
    """Bug: log 0 makes the entropy of a one-hot teacher NaN."""
    assert normalized_entropy("classification", 1000 * torch.eye(4), [0, 1, 2, 3]) == 0
    assert normalized_entropy("classification", torch.zeros(50, 4), [0] * 50) == pytest.approx(1, abs=1e-6)


def test_threshold_is_what_its_docstring_says():
    """Bug: the docstring names another distribution than the threshold's, or the threshold is on the wrong side."""
    found = normalized_entropy("classification", logits_of([0.998, 0.002]), [0])
    assert found == pytest.approx(0.02, abs=0.001)
    assert near_one_hot_warning("match", 0.02) is None
    assert near_one_hot_warning("match", 0.0199) is not None


def test_warning_says_requirement_value_and_way_out():
    """Bug: the user reads that something is wrong, and not what to change."""
    assert near_one_hot_warning("match", 0.00312) == (
        "The recorded logits of task 'match' are nearly one-hot: on its training rows their normalized entropy should "
        "be at least 0.02; found 0.0031. Distilling from them is nearly the same as training on the labels. Let the "
        "task converge earlier (a smaller `patience` or a larger `min_delta`), raise `distillation.temperature`, or "
        "give the task more data."
    )
