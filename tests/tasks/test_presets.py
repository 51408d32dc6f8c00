"""The presets: what they name must be what the Hub has, and every one must be a task that can be trained."""

import json
import os
from pathlib import Path

import pytest

from hf_async_mtl.metrics import METRICS, check_metric
from hf_async_mtl.modeling.configuration_multitask import TaskConfig
from hf_async_mtl.tasks.presets import PRESETS

GLUE = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
SUPER_GLUE = ["boolq", "cb", "copa", "wic"]
# Not part of this repository: one folder a task, with the columns and the label order of the Hub.
DATA = os.environ.get("GLUE_DATA")


def test_all_promised_presets_are_there():
    """A preset that the documentation promises is missing, or one is named after another benchmark's task."""
    assert list(PRESETS) == [f"glue/{name}" for name in GLUE] + [f"super_glue/{name}" for name in SUPER_GLUE]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_valid_task(name):
    """A preset has a key that no task has, or a metric that does not fit its own type."""
    task = TaskConfig.from_preset(name)
    for metric in task.metrics:
        assert metric in METRICS
        check_metric(metric, task)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_reads_its_own_data_set(name):
    """A section copied from its neighbor still names the neighbor's data."""
    benchmark, task = name.split("/")
    data = PRESETS[name]["data"]
    assert data["hub"] == {"glue": "nyu-mll/glue", "super_glue": "aps/super_glue"}[benchmark]
    assert data["name"] == task
    assert {"train", "validation", "test"} <= set(data)


def test_sections_share_no_data():
    """One section's data is the same object as another's, so that an override in one task changes the other."""
    sections = [section["data"] for section in PRESETS.values()]
    assert len({id(section) for section in sections}) == len(sections)


@pytest.mark.parametrize(
    ("name", "monitored"),
    [("cola", "matthews_correlation"), ("mrpc", "f1"), ("qqp", "f1"), ("stsb", "pearson")]
    + [(name, "accuracy") for name in ("sst2", "mnli", "qnli", "rte", "wnli")],
)
def test_monitored_metric_of_glue(name, monitored):
    """Convergence is decided on another metric than the benchmark's own (accuracy for cola, say)."""
    assert PRESETS[f"glue/{name}"]["metrics"][0] == monitored


def test_mnli_evaluates_mismatched_beside_matched():
    """MNLI's mismatched half is dropped, or is the one that convergence is decided on."""
    data = PRESETS["glue/mnli"]["data"]
    assert (data["validation"], data["validation_mismatched"]) == ("validation_matched", "validation_mismatched")


@pytest.mark.parametrize(
    ("name", "index", "meaning"),
    [
        ("glue/rte", 0, "entailment"),  # RTE and QNLI count entailment first, WNLI last
        ("glue/qnli", 0, "entailment"),
        ("glue/wnli", 1, "entailment"),
        ("glue/mnli", 1, "neutral"),  # MNLI's second class is CB's third
        ("super_glue/cb", 1, "contradiction"),
        ("super_glue/cb", 2, "neutral"),
        ("glue/cola", 1, "acceptable"),
        ("glue/mrpc", 1, "equivalent"),  # F1 is of index 1
        ("glue/qqp", 1, "duplicate"),
    ],
)
def test_label_names_stand_in_the_hubs_order(name, index, meaning):
    """The names are swapped: a published model calls an entailment a contradiction."""
    assert PRESETS[name]["label_names"][index] == meaning


def rows(name: str) -> list[dict]:
    if DATA is None:
        pytest.skip("the environment variable GLUE_DATA names no folder with <task>/train.jsonl")
    with (Path(DATA) / name.removeprefix("glue/") / "train.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(2000), strict=False)]


@pytest.mark.parametrize("name", [f"glue/{name}" for name in GLUE if name != "qqp"])
def test_columns_and_classes_are_those_of_the_data(name):
    """A column is misspelled, or a class has no name, which only a download would show."""
    preset, sample = PRESETS[name], rows(name)
    assert {*preset["text_columns"], preset["label_column"], "idx"} == set(sample[0])
    if "label_names" in preset:
        assert {row["label"] for row in sample} == set(range(len(preset["label_names"])))


@pytest.mark.parametrize(
    ("name", "sentence", "meaning"),
    [
        ("rte", "Weapons of Mass Destruction Found in Iraq.", "not_entailment"),
        ("wnli", "The carrot had a hole.", "entailment"),
    ],
)
def test_a_known_pair_has_the_right_name(name, sentence, meaning):
    """The order of the names was guessed, not taken from the data."""
    label = next(row["label"] for row in rows(f"glue/{name}") if row["sentence2"] == sentence)
    assert PRESETS[f"glue/{name}"]["label_names"][label] == meaning
