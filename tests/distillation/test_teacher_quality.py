"""What a teacher can teach beyond the labels: values worked by hand, and the sentence where it is nothing."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from recording import write_logits

from hf_async_mtl.distillation.snapshots import RecordedLogits
from hf_async_mtl.distillation.teacher_quality import (
    TeacherQuality,
    degenerate_warning,
    expected_calibration_error,
    is_degenerate,
    quality_of,
)


def logits_of(*probabilities):
    return torch.tensor(probabilities).log()


def entropy_of(*probabilities):
    return -sum(p * math.log(p) for p in probabilities)


@pytest.mark.parametrize("task_type", ["classification", "multiple_choice"])
def test_classes_by_hand(task_type):
    """Bug: entropy in bits or not normalised, or a confidence that is not the decided class's."""
    quality = quality_of(task_type, logits_of([0.7, 0.2, 0.1], [0.1, 0.3, 0.6]), [0, 1])
    expected = (entropy_of(0.7, 0.2, 0.1) + entropy_of(0.1, 0.3, 0.6)) / 2 / math.log(3)
    assert quality.entropy == pytest.approx(expected, abs=1e-6)
    assert quality.calibration == pytest.approx((0.3 + 0.6) / 2, abs=1e-6)  # two bins, each with one decision
    assert (quality.accuracy, quality.residual) == (0.5, None)


def test_only_labelled_words_count():
    """Bug: sub-words and special tokens, which nobody labelled, make a sure teacher look unsure or wrong."""
    sure, unsure = [0.99, 0.01], [0.5, 0.5]
    logits = logits_of(unsure, sure, unsure, unsure, sure, sure, unsure)
    labels = [[-100, 0, -100], [-100, 0, 1, -100]]
    quality = quality_of("token_classification", logits, labels)
    assert quality.entropy == pytest.approx(entropy_of(*sure) / math.log(2), abs=1e-6)
    assert quality.accuracy == pytest.approx(2 / 3)
    assert quality.calibration == pytest.approx(0.99 - 2 / 3, abs=1e-6)


def test_no_labelled_word():
    """Bug: a mean over nothing is NaN, which is no JSON."""
    assert quality_of("token_classification", torch.zeros(2, 3), [[-100], [-100]]) == TeacherQuality()


def test_each_label_is_a_decision():
    """Bug: a multilabel teacher's sigmoids are read as a softmax over the labels."""
    odds = torch.tensor([[0.9, 0.2], [0.6, 0.2]])
    quality = quality_of("multilabel", odds.logit(), [[1.0, 0.0], [0.0, 0.0]])
    expected = sum(entropy_of(p, 1 - p) for p in (0.9, 0.2, 0.6, 0.2)) / 4 / math.log(2)
    assert quality.entropy == pytest.approx(expected, abs=1e-6)
    assert quality.accuracy == 0.75
    assert quality.calibration == pytest.approx((0.1 + 2 * 0.2 + 0.6) / 4, abs=1e-6)


def test_residual_is_in_standard_deviations():
    """Bug: the residual depends on the unit of the target, or is a variance."""
    predictions, targets = torch.tensor([1.0, 3.0, 5.0, 7.0]), [2.0, 2.0, 6.0, 6.0]
    for scale in (1, 100):
        quality = quality_of("regression", scale * predictions, [scale * target for target in targets])
        assert quality == TeacherQuality(residual=pytest.approx(0.5))


def test_targets_without_spread_have_no_residual():
    """Bug: a division by 0 where all targets are equal."""
    assert quality_of("regression", torch.tensor([1.0, 2.0]), [3.0, 3.0]) == TeacherQuality()


def test_answers_have_no_quality():
    """Bug: start and end scores are taken for two classes."""
    assert quality_of("question_answering", torch.randn(5, 2), [[[0, 1]], [[1, 1]]]) == TeacherQuality()


def test_one_class_has_no_entropy():
    """Bug: a division by log 1."""
    assert quality_of("classification", torch.zeros(3, 1), [0, 0, 0]).entropy is None


@pytest.mark.parametrize("classes", [2, 7])
def test_bounds(classes):
    """Bug: an entropy above 1, or -0 or NaN where a probability is 0."""
    labels = torch.randint(classes, (50,)).tolist()
    one_hot = 500.0 * torch.eye(classes)[labels]
    expected = {"entropy": 0, "calibration": 0, "accuracy": 1, "residual": None}
    assert vars(quality_of("classification", one_hot, labels)) == expected
    assert quality_of("classification", torch.zeros(50, classes), labels).entropy == pytest.approx(1, abs=1e-6)
    some = quality_of("classification", torch.randn(50, classes), labels)
    assert all(0 < value < 1 for value in (some.entropy, some.calibration, some.accuracy))


def test_temperature_softens():
    """Bug: the remedy that the warning names does not change what it warns of."""
    logits = 12 * torch.eye(2)
    assert is_degenerate(quality_of("classification", logits, [0, 1]))
    assert not is_degenerate(quality_of("classification", logits / 4, [0, 1]))


def test_recorded_logits_against_encoded_rows(tmp_path):
    """Bug: what the disk and the data set hold must be turned into something else first."""
    logits = [np.log([[0.8, 0.2]] * 3), np.log([[0.4, 0.6]])]
    write_logits(tmp_path / "logits.safetensors", logits, "a" * 64, step=1)
    recorded = RecordedLogits(tmp_path / "logits.safetensors")
    rows = Dataset.from_dict({"labels": [[-100, 0, 1], [1]]})
    assert quality_of("token_classification", recorded.logits, rows["labels"]).accuracy == pytest.approx(2 / 3)


def test_other_rows_are_refused():
    """Bug: logits are compared with the labels of other rows."""
    with pytest.raises(ValueError, match=r"one label each; found 3 rows of logits and 2 labels\. Take the encoded"):
        quality_of("classification", torch.zeros(3, 2), [0, 1])


# -- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    """Bug: bins weigh the same however many decisions they hold, or errors within a bin add up."""
    confidence = torch.tensor([0.61, 0.65, 0.66, 0.95])
    right = torch.tensor([True, False, True, False])
    # 9/15 < 0.61, 0.65, 0.66 <= 10/15
    expected = 3 / 4 * abs(2 / 3 - 1.92 / 3) + 1 / 4 * 0.95
    assert expected_calibration_error(confidence, right) == pytest.approx(expected, abs=1e-6)


def test_ends_of_the_calibration_bins():
    """Bug: a confidence of 0 or 1 falls outside the bins."""
    assert expected_calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([True, True])) == 0.5


# -- degenerate teachers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quality", "degenerate"),
    [
        (TeacherQuality(entropy=0.019), True),
        (TeacherQuality(entropy=0.02), False),
        (TeacherQuality(residual=0.049), True),
        (TeacherQuality(residual=0.05), False),
        (TeacherQuality(), False),
        (TeacherQuality(accuracy=1.0, calibration=0.0), False),
    ],
)
def test_degenerate(quality, degenerate):
    """Bug: a teacher of which nothing is known is warned of, or a threshold is on the wrong side."""
    assert is_degenerate(quality) is degenerate


def test_threshold_is_what_its_docstring_says():
    """Bug: the docstring names another distribution than the threshold's."""
    assert quality_of("classification", logits_of([0.998, 0.002]), [0]).entropy == pytest.approx(0.02, abs=0.001)


def test_warning_says_requirement_value_and_way_out():
    """Bug: the user reads that something is wrong, and not what to change."""
    assert degenerate_warning("match", TeacherQuality(entropy=0.00312)) == (
        "The recorded logits of task 'match' should say more than its labels do: on its training rows they should have "
        "a normalised entropy of at least 0.02; found 0.0031. To distil them is nearly to go on learning from the "
        "labels. Let the task converge earlier (a smaller `patience` or a larger `min_delta`), raise "
        "`distillation.temperature`, record an average of snapshots, or give it more data."
    )
    assert degenerate_warning("stars", TeacherQuality(residual=0.01)) == (
        "The recorded logits of task 'stars' should say more than its labels do: on its training rows they should miss "
        "the targets by at least 0.05 of their standard deviation; found 0.010. To distil them is nearly to go on "
        "learning from the labels. Let the task converge earlier (a smaller `patience` or a larger `min_delta`), "
        "record an average of snapshots, or give it more data."
    )
