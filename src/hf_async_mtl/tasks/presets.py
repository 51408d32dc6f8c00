"""Presets: well-known tasks by name, each as a section of the configuration file.

The data ids, columns and label names (in the order of the label indices) are the Hub's. The first metric is the
monitored one. A data key ``validation_<suffix>`` is a further evaluation set of the task, reported but not monitored.
The test labels of SuperGLUE, and of GLUE except mrpc, are not public: they are -1 on the Hub and are never scored.
"""

from __future__ import annotations

from functools import partial
from typing import Any


def _preset(
    hub: str, name: str, text_columns: Any, label_names: list[str] | None, metrics: list[str], **fields: Any
) -> dict[str, Any]:
    data = {"hub": hub, "name": name, "train": "train", "validation": "validation", "test": "test"}
    preset = {"type": "classification", "text_columns": text_columns, "label_column": "label", "metrics": metrics}
    labels = {} if label_names is None else {"label_names": label_names}
    return {**preset, **labels, "data": data, **fields}


_glue = partial(_preset, "nyu-mll/glue")
_super_glue = partial(_preset, "aps/super_glue")
_SENTENCES = ["sentence1", "sentence2"]
_ENTAILMENT = ["entailment", "not_entailment"]
_MNLI_DATA = {
    "hub": "nyu-mll/glue",
    "name": "mnli",
    "train": "train",
    "validation": "validation_matched",
    "validation_mismatched": "validation_mismatched",
    "test": "test_matched",
}

PRESETS: dict[str, dict[str, Any]] = {
    "glue/cola": _glue("cola", ["sentence"], ["unacceptable", "acceptable"], ["matthews_correlation"]),
    "glue/sst2": _glue("sst2", ["sentence"], ["negative", "positive"], ["accuracy"]),
    "glue/mrpc": _glue("mrpc", _SENTENCES, ["not_equivalent", "equivalent"], ["f1", "accuracy"]),
    "glue/stsb": _glue("stsb", _SENTENCES, None, ["pearson", "spearman"], type="regression"),
    "glue/qqp": _glue("qqp", ["question1", "question2"], ["not_duplicate", "duplicate"], ["f1", "accuracy"]),
    "glue/mnli": _glue(
        "mnli", ["premise", "hypothesis"], ["entailment", "neutral", "contradiction"], ["accuracy"], data=_MNLI_DATA
    ),
    "glue/qnli": _glue("qnli", ["question", "sentence"], _ENTAILMENT, ["accuracy"]),
    "glue/rte": _glue("rte", _SENTENCES, _ENTAILMENT, ["accuracy"]),
    "glue/wnli": _glue("wnli", _SENTENCES, ["not_entailment", "entailment"], ["accuracy"]),
    "super_glue/boolq": _super_glue("boolq", ["question", "passage"], ["False", "True"], ["accuracy"]),
    "super_glue/cb": _super_glue(
        "cb", ["premise", "hypothesis"], ["entailment", "contradiction", "neutral"], ["accuracy", "macro_f1"]
    ),
    # `question` is "cause" or "effect": which of the two of the premise is asked for.
    "super_glue/copa": _super_glue(
        "copa",
        {"prompt": ["premise", "question"], "choices": ["choice1", "choice2"]},
        None,
        ["accuracy"],
        type="multiple_choice",
    ),
    # The model sees neither the word in question nor its place in the sentences (columns word, start1, end1, start2,
    # end2). The usual baseline reads the states of the two spans, which a pair of plain columns cannot give. The word
    # can only be guessed from what the sentences share: expect less than published results.
    "super_glue/wic": _super_glue("wic", _SENTENCES, ["False", "True"], ["accuracy"]),
}
"""Name of a preset -> its section. Make a deep copy of a section before you change it."""
