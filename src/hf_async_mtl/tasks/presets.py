"""Presets: well-known tasks by name, each as a section of the configuration file.

The data ids, columns and label names (in the order of the label indices) are the Hub's. The first metric is the
monitored one. A data key ``validation_<suffix>`` is a further evaluation set of the task, reported but not monitored.
The test labels of SuperGLUE, and of GLUE except mrpc, are not public: they are -1 on the Hub and are never scored.
"""

from __future__ import annotations

from typing import Any

_GLUE = "nyu-mll/glue"
_SUPER_GLUE = "aps/super_glue"


def _data(hub: str, name: str) -> dict[str, str]:
    return {"hub": hub, "name": name, "train": "train", "validation": "validation", "test": "test"}


PRESETS: dict[str, dict[str, Any]] = {
    "glue/cola": {
        "type": "classification",
        "text_columns": ["sentence"],
        "label_column": "label",
        "label_names": ["unacceptable", "acceptable"],
        "metrics": ["matthews_correlation"],
        "data": _data(_GLUE, "cola"),
    },
    "glue/sst2": {
        "type": "classification",
        "text_columns": ["sentence"],
        "label_column": "label",
        "label_names": ["negative", "positive"],
        "metrics": ["accuracy"],
        "data": _data(_GLUE, "sst2"),
    },
    "glue/mrpc": {
        "type": "classification",
        "text_columns": ["sentence1", "sentence2"],
        "label_column": "label",
        "label_names": ["not_equivalent", "equivalent"],
        "metrics": ["f1", "accuracy"],
        "data": _data(_GLUE, "mrpc"),
    },
    "glue/stsb": {
        "type": "regression",
        "text_columns": ["sentence1", "sentence2"],
        "label_column": "label",
        "metrics": ["pearson", "spearman"],
        "data": _data(_GLUE, "stsb"),
    },
    "glue/qqp": {
        "type": "classification",
        "text_columns": ["question1", "question2"],
        "label_column": "label",
        "label_names": ["not_duplicate", "duplicate"],
        "metrics": ["f1", "accuracy"],
        "data": _data(_GLUE, "qqp"),
    },
    "glue/mnli": {
        "type": "classification",
        "text_columns": ["premise", "hypothesis"],
        "label_column": "label",
        "label_names": ["entailment", "neutral", "contradiction"],
        "metrics": ["accuracy"],
        "data": {
            "hub": _GLUE,
            "name": "mnli",
            "train": "train",
            "validation": "validation_matched",
            "validation_mismatched": "validation_mismatched",
            "test": "test_matched",
        },
    },
    "glue/qnli": {
        "type": "classification",
        "text_columns": ["question", "sentence"],
        "label_column": "label",
        "label_names": ["entailment", "not_entailment"],
        "metrics": ["accuracy"],
        "data": _data(_GLUE, "qnli"),
    },
    "glue/rte": {
        "type": "classification",
        "text_columns": ["sentence1", "sentence2"],
        "label_column": "label",
        "label_names": ["entailment", "not_entailment"],
        "metrics": ["accuracy"],
        "data": _data(_GLUE, "rte"),
    },
    "glue/wnli": {
        "type": "classification",
        "text_columns": ["sentence1", "sentence2"],
        "label_column": "label",
        "label_names": ["not_entailment", "entailment"],
        "metrics": ["accuracy"],
        "data": _data(_GLUE, "wnli"),
    },
    "super_glue/boolq": {
        "type": "classification",
        "text_columns": ["question", "passage"],
        "label_column": "label",
        "label_names": ["False", "True"],
        "metrics": ["accuracy"],
        "data": _data(_SUPER_GLUE, "boolq"),
    },
    "super_glue/cb": {
        "type": "classification",
        "text_columns": ["premise", "hypothesis"],
        "label_column": "label",
        "label_names": ["entailment", "contradiction", "neutral"],
        "metrics": ["accuracy", "macro_f1"],
        "data": _data(_SUPER_GLUE, "cb"),
    },
    # `question` is "cause" or "effect": which of the two of the premise is asked for.
    "super_glue/copa": {
        "type": "multiple_choice",
        "text_columns": {"prompt": ["premise", "question"], "choices": ["choice1", "choice2"]},
        "label_column": "label",
        "metrics": ["accuracy"],
        "data": _data(_SUPER_GLUE, "copa"),
    },
    # The model sees neither the word in question nor its place in the sentences (columns word, start1, end1, start2,
    # end2). The usual baseline reads the states of the two spans, which a pair of plain columns cannot give. The word
    # can only be guessed from what the sentences share: expect less than published results.
    "super_glue/wic": {
        "type": "classification",
        "text_columns": ["sentence1", "sentence2"],
        "label_column": "label",
        "label_names": ["False", "True"],
        "metrics": ["accuracy"],
        "data": _data(_SUPER_GLUE, "wic"),
    },
}
"""Name of a preset -> its section. Make a deep copy of a section before you change it."""
