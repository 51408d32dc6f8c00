"""The example that writes the files that the GLUE server takes."""

import doctest
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands_here import done
from datasets import Dataset
from task_sets import write_rows
from tiny import save_model, short_texts, task_configs

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "examples"))

import glue_submission  # noqa: E402

from hf_async_mtl import ConfigurationError, TaskConfig  # noqa: E402
from hf_async_mtl.tasks.presets import PRESETS  # noqa: E402

GLUE = {
    "cola": TaskConfig("classification", ["sentence"], label_names=["unacceptable", "acceptable"]),
    "stsb": TaskConfig("regression", ["sentence1", "sentence2"], target_mean=2.5, target_std=9.0),
    "mnli": TaskConfig(
        "classification", ["premise", "hypothesis"], label_names=["entailment", "neutral", "contradiction"]
    ),
    # Trained on indices, as they are in a file that was taken from the Hub.
    "rte": TaskConfig("classification", ["sentence1", "sentence2"], label_names=[0, 1]),
    "polarity": task_configs()["polarity"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("glue"), GLUE)


@pytest.fixture(scope="module")
def test_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's test sets of four tasks, without one; some have indices of their own."""
    folder = tmp_path_factory.mktemp("data")
    one, two = short_texts(40), short_texts(40)[::-1]
    pairs = [{"sentence1": a, "sentence2": b} for a, b in zip(one, two, strict=True)]
    entailed = [{"premise": a, "hypothesis": b} for a, b in zip(one, two, strict=True)]
    write_rows(folder / "cola" / "test.jsonl", [{"sentence": a, "label": -1, "idx": i} for i, a in enumerate(one)])
    write_rows(folder / "stsb" / "test.jsonl", pairs)
    write_rows(folder / "rte" / "test.jsonl", pairs)
    write_rows(folder / "mnli" / "test_matched.jsonl", entailed)
    write_rows(folder / "ax" / "test.jsonl", [{**row, "idx": 100 + i} for i, row in enumerate(entailed)])
    return folder


def submit(*arguments: Any) -> int:
    return glue_submission.main([str(argument) for argument in arguments])


def test_docstrings() -> None:
    """Bug: an example in the script does not give what it says."""
    assert doctest.testmod(glue_submission) == (0, 2)


def test_the_files_of_a_submission(
    model: Path, test_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: the server refuses a file: a name for an index, an index for a name, another header, a score of 5.3."""
    assert submit(model, tmp_path / "out", "--data", test_sets) == 0
    names = ["AX", "CoLA", "MNLI-m", "RTE", "STS-B"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.tsv" for name in names]
    assert capsys.readouterr().out.endswith("The server also takes: SST-2, MRPC, QQP, MNLI-mm, QNLI, WNLI.\n")
    found = {}
    for name in names:
        header, *lines = (tmp_path / "out" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        assert header == "index\tprediction"
        first = 100 if name == "AX" else 0
        indices, found[name] = zip(*(line.split("\t") for line in lines), strict=True)
        assert indices == tuple(str(first + i) for i in range(40))
    assert set(found["CoLA"]) == {"0", "1"}
    assert set(found["RTE"]) == {"entailment", "not_entailment"}
    assert set(found["MNLI-m"]) <= {"entailment", "neutral", "contradiction"}
    assert found["AX"] == found["MNLI-m"]
    scores = [float(score) for score in found["STS-B"]]
    assert {0.0, 5.0} < set(scores)
    assert all(0 <= score <= 5 for score in scores)
    # They are the predictions of the same rows.
    plain = done("predict", model, "--input", test_sets / "rte" / "test.jsonl", "--task", "rte").splitlines()
    labels = PRESETS["glue/rte"]["label_names"]
    assert list(found["RTE"]) == [labels[int(json.loads(line)["rte"]["label"])] for line in plain]


def test_some_tasks_of_a_submission(model: Path, test_sets: Path, tmp_path: Path) -> None:
    """Bug: `--task` is ignored."""
    assert submit(model, tmp_path, "--data", test_sets, "--task", "cola") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["CoLA.tsv"]


def test_every_file_has_its_task() -> None:
    """Bug: one of the eleven files is forgotten, and the server takes none of them."""
    assert len(set(glue_submission.FILES.values())) == 11
    assert {f"glue/{task}" for task, _, _ in glue_submission.FILES.values()} == {
        name for name in PRESETS if name.startswith("glue/")
    }


def test_the_hub_is_asked_for_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the mismatched set gets the predictions of the matched one."""
    asked = []

    def load(source: str, name: str, split: str) -> Dataset:
        asked.append((source, name, split))
        return Dataset.from_dict({"x": [1]})

    monkeypatch.setattr(glue_submission, "load_dataset", load)
    for _, name, split in glue_submission.FILES.values():
        glue_submission.find_rows("nyu-mll/glue", name, split)
    assert ("nyu-mll/glue", "mnli", "test_mismatched") in asked
    assert len(set(asked)) == 11


def test_what_is_no_submission_is_refused(model: Path, tmp_path: Path) -> None:
    """Bug: a folder with half of the files, or none."""
    with pytest.raises(SystemExit, match="No test set of a task of the model"):
        submit(model, tmp_path / "out", "--data", tmp_path)
    write_rows(tmp_path / "rte" / "test.jsonl", [{"sentence": "a"}])
    with pytest.raises(ConfigurationError, match="'rte' reads the column 'sentence1'"):
        submit(model, tmp_path / "out", "--data", tmp_path)
    assert not (tmp_path / "out").exists()


def test_labels_that_are_not_those_of_glue() -> None:
    """Bug: a model with other labels fills the files with indices that mean something else."""
    with pytest.raises(ConfigurationError, match=r"labels of GLUE \(entailment, not_entailment\) .* found 'yes'"):
        glue_submission.to_glue(
            "rte", TaskConfig("classification", ["a", "b"], label_names=["yes", "no"]), {"label": "yes"}
        )
    with pytest.raises(ConfigurationError, match="must be of type regression, as in GLUE; found classification"):
        glue_submission.to_glue("stsb", TaskConfig("classification", ["a", "b"]), {"label": 1})
