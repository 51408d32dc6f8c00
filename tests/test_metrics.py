"""Metrics: values against the reference libraries and by hand, offline, silent, and fitting the task."""

import dataclasses
import math
import socket
import subprocess
import sys
import tempfile

import evaluate
import numpy as np
import pytest
from datasets import Features, Value
from scipy import stats
from seqeval.metrics import f1_score as seqeval_f1_score
from sklearn import metrics as sklearn_metrics

from hf_async_mtl import metrics
from hf_async_mtl.metrics import check_metric, compute
from hf_async_mtl.modeling.configuration_multitask import TaskConfig
from hf_async_mtl.modeling.losses import IGNORE
from hf_async_mtl.span_metrics import normalize_answer
from hf_async_mtl.tasks.registry import TASK_TYPES
from hf_async_mtl.validation import ConfigurationError

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 3, (2, 200))
BINARY = RNG.integers(0, 2, (2, 200))
MANY_HOT = RNG.integers(0, 2, (2, 50, 4))
NUMBERS = RNG.normal(size=(2, 100)).astype(np.float32)


def value(name, task_type, predictions, references):
    return compute([name], task_type, predictions, references, probabilities=predictions)[name]


def task(task_type, **fields):
    text = {
        "multiple_choice": {"prompt": ["p"], "choices": ["a", "b"]},
        "question_answering": ["question", "context"],
    }.get(task_type, ["text"])
    return TaskConfig(type=task_type, text_columns=text, **fields)


@pytest.mark.parametrize(
    ("name", "task_type", "inputs", "expected"),
    [
        ("accuracy", "classification", CLASSES, sklearn_metrics.accuracy_score(*CLASSES[::-1])),
        ("accuracy", "multiple_choice", CLASSES, sklearn_metrics.accuracy_score(*CLASSES[::-1])),
        ("accuracy", "multilabel", MANY_HOT, sklearn_metrics.accuracy_score(*MANY_HOT[::-1])),
        ("f1", "classification", BINARY, sklearn_metrics.f1_score(*BINARY[::-1])),
        ("macro_f1", "classification", CLASSES, sklearn_metrics.f1_score(*CLASSES[::-1], average="macro")),
        ("micro_f1", "classification", CLASSES, sklearn_metrics.accuracy_score(*CLASSES[::-1])),
        ("macro_f1", "multilabel", MANY_HOT, sklearn_metrics.f1_score(*MANY_HOT[::-1], average="macro")),
        ("micro_f1", "multilabel", MANY_HOT, sklearn_metrics.f1_score(*MANY_HOT[::-1], average="micro")),
        ("matthews_correlation", "classification", CLASSES, sklearn_metrics.matthews_corrcoef(*CLASSES[::-1])),
        ("pearson", "regression", NUMBERS, np.corrcoef(*NUMBERS.astype(float))[0, 1]),
        ("spearman", "regression", NUMBERS, stats.spearmanr(*NUMBERS).statistic),
        ("mse", "regression", NUMBERS, np.mean(np.square(np.subtract(*NUMBERS.astype(float))))),
        ("mae", "regression", NUMBERS, np.mean(np.abs(np.subtract(*NUMBERS.astype(float))))),
    ],
)
def test_value_is_the_reference_librarys(name, task_type, inputs, expected):
    """A metric is wired to the wrong function or average, or loses its numbers on the way through `evaluate`."""
    result = value(name, task_type, *inputs)
    assert type(result) is float
    assert result == pytest.approx(expected, abs=1e-12)


RATIOS = {"f1": "f1_score", "precision": "precision_score", "recall": "recall_score"}


@pytest.mark.parametrize("kind", RATIOS)
@pytest.mark.parametrize("average", ["binary", "macro", "micro", "weighted"])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_precision_recall_and_f1_are_scikit_learns(kind, average, count):
    """Predictions and references are swapped, an average is another one's, or a class that is never predicted warns."""
    name = kind if average == "binary" else f"{average}_{kind}"
    if name not in metrics.METRICS:
        return
    for task_type, high, shape in (("classification", 3, ()), ("multilabel", 2, (4,))):
        if average == "binary":
            if task_type == "multilabel":
                continue
            high = 2
        for seed in range(5):
            predictions, references = np.random.default_rng(seed).integers(0, high, (2, count, *shape))
            function = getattr(sklearn_metrics, RATIOS[kind])
            expected = function(references, predictions, average=average, zero_division=0.0)
            assert value(name, task_type, predictions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
def test_balanced_accuracy_is_scikit_learns():
    """A class that is predicted and never occurs counts as a recall of 0."""
    for seed in range(10):
        predictions, references = np.random.default_rng(seed).integers(0, 4, (2, 6))
        expected = sklearn_metrics.balanced_accuracy_score(references, predictions)
        assert value("balanced_accuracy", "classification", predictions, references) == pytest.approx(expected)


def probabilities_of(task_type, count, classes, seed, ties):
    """Logits as a head gives them, the probabilities of its type, and references."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, classes)).astype(np.float32) * 3
    if ties:
        logits = logits.round() + 0.0
    references = generator.integers(0, 2, (count, classes)) if task_type == "multilabel" else None
    if references is None:
        references = np.concatenate([np.arange(classes), generator.integers(0, classes, count)])[:count]
    return logits, TASK_TYPES[task_type].probabilities(None, logits), references


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_of_probabilities_are_scikit_learns(classes, ties):
    """Equal probabilities are ranked by their order, or class 0 is the positive one."""
    for seed in range(4):
        _, given, references = probabilities_of("classification", 30, classes, seed, ties)
        given, one_hot = np.array(given), np.eye(classes)[references]
        scored = given[:, 1] if classes == 2 else given
        of_class_one = (references, scored) if classes == 2 else (one_hot, given)
        expected = {
            "roc_auc": sklearn_metrics.roc_auc_score(references, scored, multi_class="ovr"),
            "average_precision": sklearn_metrics.average_precision_score(*of_class_one),
            "log_loss": sklearn_metrics.log_loss(references, given),
        }
        found = compute(list(expected), "classification", given.argmax(1), references, None, given.tolist())
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_of_probabilities_of_labels_are_scikit_learns(ties):
    """Labels are read as classes that exclude each other."""
    logits, given, references = probabilities_of("multilabel", 30, 3, 0, ties)
    np.testing.assert_allclose(given, 1 / (1 + np.exp(-logits.astype(float))), rtol=1e-12)
    losses = [sklearn_metrics.log_loss(references[:, c], np.array(given)[:, c]) for c in range(3)]
    expected = {
        "roc_auc": sklearn_metrics.roc_auc_score(references, given),
        "average_precision": sklearn_metrics.average_precision_score(references, given),
        "log_loss": np.mean(losses),
    }
    found = compute(list(expected), "multilabel", references, references, None, given)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore:No positive class found:UserWarning")
@pytest.mark.filterwarnings("ignore:Only one class is present")
def test_metrics_of_probabilities_at_their_edges():
    """One class alone, a sure mistake, one example or a diverged head: an error, a warning, or infinity."""
    for references in ([1, 1, 1], [0, 0, 0], [1]):
        given = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])[: len(references)]
        found = compute(["roc_auc", "average_precision"], "classification", references, references, None, given)
        assert math.isnan(found["roc_auc"])
        expected = sklearn_metrics.average_precision_score(references, given[:, 1])
        assert found["average_precision"] == pytest.approx(expected)
    sure = [[1.0, 0.0], [1.0, 0.0]]
    expected = sklearn_metrics.log_loss([0, 1], sure, labels=[0, 1])
    assert value("log_loss", "classification", sure, [0, 1]) == pytest.approx(expected)
    for name in ("roc_auc", "average_precision", "log_loss"):
        assert math.isnan(value(name, "classification", [[math.nan, math.nan], [0.5, 0.5]], [0, 1]))
    # Class 2 does not occur: its area is not defined, as in scikit-learn.
    three = [[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.4, 0.4, 0.2]]
    assert math.isnan(value("roc_auc", "classification", three, [0, 1, 0]))
    expected = sklearn_metrics.log_loss([0, 1, 0], three, labels=[0, 1, 2])
    assert value("log_loss", "classification", three, [0, 1, 0]) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "log_loss"])
def test_labels_that_are_ignored_do_not_count(name):
    """A label of -100 counts as one that does not apply, and a good ranking as a bad one."""
    _, given, references = probabilities_of("multilabel", 30, 3, 0, ties=False)
    given, references = np.array(given), np.array(references)
    references[::4, 1] = IGNORE
    found = compute([name], "multilabel", references, references, None, given)[name]
    columns = [(given[references[:, c] != IGNORE, c], references[references[:, c] != IGNORE, c]) for c in range(3)]
    if name == "log_loss":
        known = references != IGNORE
        losses = -np.log(np.where(references == 1, given, 1 - given)) * known
        assert found == pytest.approx((losses.sum(1) / known.sum(1)).mean())
    else:
        reference = getattr(sklearn_metrics, f"{name}_score")
        assert found == pytest.approx(np.mean([reference(true, scores) for scores, true in columns]))


def test_probabilities_of_large_logits_are_finite():
    """exp of a large logit overflows, and the whole evaluation is NaN."""
    given = TASK_TYPES["classification"].probabilities(None, np.array([[1000.0, 0.0], [0.0, 1000.0]]))
    assert given == [[1.0, 0.0], [0.0, 1.0]]


def test_metric_of_probabilities_refuses_to_guess():
    """Class indices are ranked as if they were probabilities."""
    with pytest.raises(ValueError, match="The metric 'roc_auc' needs `probabilities`; found None"):
        compute(["roc_auc"], "classification", [0, 1], [0, 1])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_values_of_few_examples_are_scikit_learns(classes):
    """A resample without one of the classes, or with a single one, has another value than scikit-learn's."""
    options = {"f1": {"zero_division": 0.0}, "macro_f1": {"zero_division": 0.0, "average": "macro"}}
    functions = {
        "accuracy": sklearn_metrics.accuracy_score,
        "f1": sklearn_metrics.f1_score,
        "macro_f1": sklearn_metrics.f1_score,
        "matthews_correlation": sklearn_metrics.matthews_corrcoef,
    }
    for count in (1, 2, 3, 4, 20) * 10:
        predictions, references = RNG.integers(0, classes, (2, count))
        for name, function in functions.items():
            if name != "f1" or classes == 2:
                expected = function(references, predictions, **options.get(name, {}))
                assert value(name, "classification", predictions, references) == pytest.approx(expected, abs=1e-12)


def test_f1_is_of_index_one():
    """F1 of the class with index 0, here 4/7, or of both."""
    assert value("f1", "classification", [1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0]) == pytest.approx(2 / 5)


def test_multilabel_with_one_label_counts_its_positives_only():
    """scikit-learn takes [n, 1] for two classes, and micro F1 silently becomes accuracy (here 3/4)."""
    predictions, references = [[0], [0], [0], [0]], [[0], [0], [0], [1]]
    assert compute(["micro_f1", "macro_f1", "accuracy"], "multilabel", predictions, references) == {
        "micro_f1": 0.0,
        "macro_f1": 0.0,
        "accuracy": 0.75,
    }


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("predictions", "references"),
    [
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
        ([1.0], [1.0]),
        ([math.nan, 1.0, 2.0], [1.0, 2.0, 3.0]),
        ([math.inf, 1.0, 2.0], [1.0, 2.0, 3.0]),
    ],
)
def test_undefined_correlation_is_nan_and_silent(name, predictions, references):
    """A constant head at the start of a run stops it with an error, floods the log, or counts as a perfect 1."""
    assert math.isnan(value(name, "regression", predictions, references))


def test_nearly_constant_predictions_are_silent():
    """scipy's other warning, on inputs that differ in the last bits, escapes."""
    value("pearson", "regression", [1.0, 1.0 + 1e-15, 1.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("name", ["mse", "mae"])
def test_error_of_a_diverged_head_is_nan(name):
    """scikit-learn raises on NaN predictions in the middle of an evaluation."""
    assert math.isnan(value(name, "regression", [math.nan, 1.0], [0.0, 1.0]))


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("matthews_correlation", [0, 0, 0], [0, 1, 0], 0.0),
        ("matthews_correlation", [1, 1], [1, 1], 0.0),
        ("f1", [0, 0], [0, 0], 0.0),
        ("f1", [0, 0], [1, 0], 0.0),
        ("f1", [1, 1], [1, 1], 1.0),
        ("macro_f1", [0, 0, 0], [0, 1, 2], 1 / 6),
    ],
)
def test_one_class_predicted_is_silent(name, predictions, references, expected):
    """A head that predicts one class only, as all do at first, makes scikit-learn warn."""
    assert value(name, "classification", predictions, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel  Tower", "eiffel tower"),
        ("an apple, a day.", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("state-of-the-art", "stateoftheart"),
        ("a", ""),
        ("50 €", "50 €"),
    ],
)
def test_answers_are_normalized_as_by_the_official_script(text, normal):
    """Articles inside of words go, or punctuation goes after the articles (`state-of-the-art` loses its `the`)."""
    assert normalize_answer(text) == normal


def test_squad_scores_by_hand():
    """The first gold answer is taken for all, or repeated words count more often than the answer has them."""
    predictions = ["the Cat", "big red red dog", "nothing", "a"]
    references = [["dog", "cat!"], ["red dog"], ["all of it"], ["the"]]
    scores = compute(["exact_match", "squad_f1"], "question_answering", predictions, references)
    # "big red red dog" shares two words: precision 2/4, recall 2/2. Empty answers share no word, but match exactly.
    assert scores == {"exact_match": pytest.approx(2 / 4), "squad_f1": pytest.approx((1 + 2 / 3 + 0 + 0) / 4)}


def test_question_without_answer_is_refused():
    """`max()` of no answers raises a sentence that says nothing of the data."""
    with pytest.raises(ValueError, match=r"Every question needs a gold answer; question 1 of 2 has none\. Remove"):
        value("squad_f1", "question_answering", ["a", "b"], [["a"], []])


def test_seqeval_counts_whole_chunks():
    """Tokens are scored for chunks: a chunk with a wrong border would be half right."""
    references = [["B-A", "I-A", "O", "B-B"], ["O", "B-A"]]
    predictions = [["B-A", "I-A", "O", "B-A"], ["O", "O"]]
    names = ["seqeval_f1", "seqeval_precision", "seqeval_recall", "seqeval_accuracy", "accuracy"]
    scores = compute(names, "token_classification", predictions, references)
    # One of two predicted chunks is right, of three that are there; four of six tokens.
    expected = (2 / 5, 1 / 2, 1 / 3, 4 / 6, 4 / 6)
    assert scores == {name: pytest.approx(v) for name, v in zip(names, expected, strict=True)}


def test_seqeval_without_chunks_is_silent():
    """A head that predicts `O` everywhere makes seqeval warn."""
    assert value("seqeval_f1", "token_classification", [["O", "O"]], [["O", "B-A"]]) == 0.0
    assert value("seqeval_f1", "token_classification", [["O"]], [["O"]]) == 0.0


def test_tags_in_any_case_are_chunks() -> None:
    """Tags in lower case were chunks of their own: a head that predicts `o` everywhere had an F1 of 0.21."""
    gold = [["o", "b-a", "i-a", "o", "u-b", "u-b"]]
    assert value("seqeval_f1", "token_classification", [["o"] * 6], gold) == 0.0
    assert value("seqeval_f1", "token_classification", gold, [["O", "B-a", "I-a", "O", "S-b", "S-b"]]) == 1.0
    # Two chunks of one word each, not one of two words.
    half = value("seqeval_f1", "token_classification", [["o", "b-a", "i-a", "o", "u-b", "o"]], gold)
    assert half == pytest.approx(2 * 2 / 5)


@pytest.mark.parametrize("names", [["0", "1", "2"], ["NOUN", "VERB"], ["B-x", "I-x", "a", "b"]])
def test_tags_without_an_outside_tag_are_refused(names: list[str]) -> None:
    """Numbers as tags were all chunks, and F1 that of every word."""
    task = TaskConfig("token_classification", ["tokens"], label_names=names, metrics=["seqeval_f1"])
    with pytest.raises(ConfigurationError, match=rf"; found the tags {', '.join(names)}\. Use accuracy"):
        check_metric("seqeval_f1", task)
    check_metric("accuracy", task)
    check_metric("seqeval_f1", dataclasses.replace(task, label_names=[*names, "Outside"]))
    check_metric("seqeval_f1", dataclasses.replace(task, label_names=["B-x", "I-x", "PAD"]))


@pytest.mark.parametrize("names", ["O B_x I_x", "o x-b x-i", "O B:PER I:PER B:LOC", "O PER_B PER_I LOC_B"])
def test_tags_of_another_scheme_are_refused(names: str) -> None:
    """`B_x` and `I_x` were two types of chunks, so that a chunk of two words was two."""
    task = TaskConfig("token_classification", ["tokens"], label_names=names.split(), metrics=["seqeval_f1"])
    with pytest.raises(ConfigurationError, match=rf"such as B-x; found {', '.join(names.split())}\. Rename the tags"):
        check_metric("seqeval_f1", task)
    for other in ("O B-B I-B B-S", "O E_MAIL PHONE", "O LOC PER", "o b i"):
        check_metric("seqeval_f1", dataclasses.replace(task, label_names=other.split()))


def test_prefixes_alone_are_chunks_in_any_case() -> None:
    """`b` and `i` were two types of chunks."""
    gold = [["o", "b", "i", "o", "b"]]
    assert value("seqeval_f1", "token_classification", [["o", "b", "i", "i", "b"]], gold) == pytest.approx(1 / 2)


@pytest.mark.filterwarnings("ignore:.*seems not to be NE tag:UserWarning")
def test_other_prefixes_score_as_in_seqeval_but_silently():
    """Tags such as `T-POS` make seqeval warn at every evaluation, or are refused though it can score them."""
    tags = np.array(["O", "T-POS", "T-NEG"])
    rows = tags[RNG.integers(0, 3, (2, 30, 8))].tolist()
    expected = seqeval_f1_score(rows[1], rows[0])
    assert 0 < expected < 1
    assert value("seqeval_f1", "token_classification", rows[0], rows[1]) == pytest.approx(expected)


def test_tags_with_unknown_prefixes_do_not_warn():
    """The same, under the filter that makes a warning an error."""
    assert value("seqeval_f1", "token_classification", [["T-POS", "T-POS", "O"]], [["T-POS", "T-POS", "O"]]) == 1.0


def test_tag_with_unknown_prefix_goes_on_with_its_chunk():
    """A scheme that ends chunks with `L-` has each chunk cut in two, the second of a type of its own."""
    assert value("seqeval_f1", "token_classification", [["B-A", "I-A"]], [["B-A", "L-A"]]) == 1.0


def test_tags_without_prefix_keep_their_first_letter():
    """seqeval reads `Brand` as `B` + `rand`: each word is a chunk of its own, and `Size` is `S` + `ize`."""
    references = [["Brand", "Brand", "O", "Size"]]
    # One of two chunks is right: `Brand Brand` is one, and its half is none.
    assert value("seqeval_f1", "token_classification", [["Brand", "O", "O", "Size"]], references) == pytest.approx(0.5)


def test_nothing_is_written_and_no_network_is_touched(tmp_path, monkeypatch):
    """Metrics leave folders in the user's cache, share a file between processes, or fail where there is no network."""

    def refuse(*args):
        raise AssertionError("a built-in metric opened a connection")

    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert compute(["accuracy", "macro_f1"], "classification", [0, 1], [0, 1]) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert not cache.exists()
    assert list(temporary.iterdir()) == []


def test_scoring_leaves_the_random_state_alone():
    """An evaluation changes numpy's random state, and the run after it differs from one without it."""
    before = np.random.get_state()[1].tolist()
    value("accuracy", "classification", [0, 1], [0, 1])
    assert np.random.get_state()[1].tolist() == before


def test_metrics_import_their_libraries_when_they_are_computed():
    """The command line waits seconds for scikit-learn and `evaluate` before it can say that a key is unknown."""
    code = (
        "import sys, hf_async_mtl.metrics; heavy = ('evaluate', 'scipy.stats', 'seqeval', 'sklearn.metrics'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("predictions", "references"), [([], []), ([1], [1, 0])])
def test_lengths_must_agree(predictions, references):
    """The mean of nothing is NaN with a warning, and a lost example shifts all others."""
    with pytest.raises(ValueError, match=rf"found {len(predictions)} predictions and {len(references)} references\."):
        value("accuracy", "classification", predictions, references)


@pytest.mark.parametrize(
    ("name", "a_task", "sentence"),
    [
        (
            "pearson",
            task("classification"),
            (
                "The metric 'pearson' needs a task of type regression; found type classification. "
                f"Use one of {', '.join(TASK_TYPES['classification'].metrics)}."
            ),
        ),
        (
            "f1",
            task("multilabel"),
            (
                "The metric 'f1' needs a task of type classification; found type multilabel. "
                f"Use one of {', '.join(TASK_TYPES['multilabel'].metrics)}."
            ),
        ),
        (
            "f1",
            task("classification", label_names=["a", "b", "c"]),
            (
                "The metric 'f1' needs exactly two classes, of which one is the positive one; found 3: a, b, c. "
                "Use macro_f1."
            ),
        ),
        (
            "recall",
            task("classification", label_names=["a", "b", "c"]),
            (
                "The metric 'recall' needs exactly two classes, of which one is the positive one; found 3: "
                "a, b, c. Use macro_recall."
            ),
        ),
    ],
)
def test_metric_that_does_not_fit_is_refused(name, a_task, sentence):
    """The run starts, and fails or selects the worst checkpoint at its first evaluation."""
    with pytest.raises(ConfigurationError) as error:
        check_metric(name, a_task)
    assert str(error.value) == sentence


def test_metric_that_fits_is_accepted():
    """An error metric is refused as the monitored one, or F1 before the classes are known."""
    check_metric("mae", task("regression", metrics=["mae", "pearson"]))
    check_metric("log_loss", task("classification", metrics=["log_loss"]))
    check_metric("f1", task("classification"))
    check_metric("f1", task("classification", label_names=["no", "yes"]))


def test_compute_checks_the_classes_once_they_are_known():
    """F1 of index 1 is reported for three classes as if it said something."""
    with pytest.raises(ConfigurationError, match="needs exactly two classes"):
        compute(["f1"], "classification", [0, 1], [0, 1], labels=["a", "b", "c"])


class Loaded(evaluate.Metric):
    """Stands for a metric from elsewhere; `config_name` says what it gives."""

    def _info(self):
        features = Features({"predictions": Value("int64"), "references": Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        hits = np.float64(np.sum(np.equal(predictions, references)))
        return {"alone": {"hits": hits}, "named": {"named": hits, "n": 9}, "several": {"hits": hits, "n": 9}}[
            self.config_name
        ]


@pytest.fixture
def loadable(monkeypatch, tmp_path):
    """`evaluate.load` without the Hub: it knows `alone`, `owner/named` and `several`."""

    def load(name, **options):
        stem = name.rsplit("/")[-1]
        if stem not in ("alone", "named", "several"):
            raise FileNotFoundError("no such module")
        return Loaded(stem, cache_dir=str(tmp_path), **options)

    monkeypatch.setattr(evaluate, "load", load)
    metrics._load.cache_clear()
    yield
    metrics._load.cache_clear()


@pytest.mark.parametrize("name", ["alone", "owner/named"])
def test_other_names_go_to_evaluate(name, loadable):
    """A metric of evaluate's cannot be used, or its numpy value breaks the JSON that the results are written to."""
    check_metric(name, task("classification"))
    for _ in range(2):  # the loaded metric is used again
        result = compute([name, "accuracy"], "classification", [0, 1, 1], [0, 1, 0])
        assert result == {name: 2.0, "accuracy": pytest.approx(2 / 3)}
        assert type(result[name]) is float


def test_misspelled_metric_is_found_before_training(loadable):
    """A misspelled name is found at the first evaluation, as a missing file."""
    with pytest.raises(ConfigurationError, match=r"^A metric must be .*found 'acuracy'\. Did you mean 'accuracy'\?"):
        check_metric("acuracy", task("classification"))


def test_loaded_metric_with_several_values_is_refused(loadable):
    """Some value of several is monitored, whichever comes first."""
    with pytest.raises(ConfigurationError, match="found hits, n from 'several'"):
        check_metric("several", task("classification"))


def test_loaded_metric_that_cannot_read_the_type_is_refused(loadable):
    """A metric on class indices is given texts at the first evaluation."""
    with pytest.raises(ConfigurationError, match="must give one number for a task of type question_answering"):
        check_metric("alone", task("question_answering"))
