"""What `hf-async-mtl predict` reads and writes beside JSON lines: CSV, Parquet, the files that GLUE's server wants."""

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import write_rows
from commands_here import done, refused
from datasets import Dataset
from tiny import raw_sets, task_configs, tiny_encoder, tiny_tokenizer

from hf_async_mtl import MultiTaskModel, TaskConfig
from hf_async_mtl.cli import glue_submission
from hf_async_mtl.cli.glue_submission import FILES, find_rows, prediction
from hf_async_mtl.inference.predict import predict_rows
from hf_async_mtl.modeling.configuration_multitask import ConfigurationError
from hf_async_mtl.tasks.presets import PRESETS

TEXTS = ["the red sofa", 'a, "big" cat', "not good"]


def words(count: int) -> list[str]:
    return [" ".join(row["text"].split()[:5]) for row in raw_sets(count, 8)["polarity"]]


def save_model(folder: Path, tasks: dict[str, TaskConfig]) -> Path:
    """Untrained heads, drawn wide and set in the middle of what they say, so that answers differ; and a tokenizer."""
    model = MultiTaskModel.from_encoder(tiny_encoder(folder / "encoder"), tasks, max_length=32, pooling="mean")
    inputs = tiny_tokenizer()(words(40), padding=True, return_tensors="pt")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for head in model.heads.values():
            torch.nn.init.normal_(head.linear.weight, std=5.0)
        states = model.encoder(**inputs).last_hidden_state.mean(1)
        for head in model.heads.values():
            head.linear.bias -= head.linear(states).mean(0)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("all"), task_configs())


def json_answers(model: Path, path: Path, *options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done("predict", model, "--input", path, *options).splitlines()]


# -- rows in and out --------------------------------------------------------------------------------------------------


def test_every_kind_of_file_is_read(model: Path, tmp_path: Path) -> None:
    """Bug: a comma or a quotation mark in a text of a CSV file moves its columns."""
    rows = Dataset.from_dict({"text": TEXTS, "left": TEXTS, "right": TEXTS[::-1]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.to_parquet(tmp_path / "rows.parquet")
    expected = json_answers(model, write_rows(tmp_path / "rows.jsonl", rows))
    assert [list(answers) for answers in expected] == [["polarity", "overlap", "topics"]] * 3
    assert json_answers(model, tmp_path / "rows.csv") == expected
    assert json_answers(model, tmp_path / "rows.parquet") == expected


def test_rows_that_are_cut_are_counted(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: an answer to the first words of a page passes for one to the page."""
    path = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in (*TEXTS, "the cat " * 40)])
    assert len(json_answers(model, path, "--task", "polarity")) == 4
    told = [record.message for record in caplog.records if "are read up to there" in record.message]
    assert [words.split(" have")[0] for words in told] == ["Task 'polarity': 1 of 4 input rows"]


def test_answers_as_csv(model: Path, tmp_path: Path) -> None:
    """Bug: a field of a task has no column, a list is written as Python has it, or lines end twice."""
    sets = raw_sets(4, 5)
    rows = [{key: value for data in sets.values() for key, value in data[i].items()} for i in range(4)]
    path, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "answers.csv"
    done("predict", model, "--input", path, "--format", "csv", "--output", out)
    assert b"\r" not in out.read_bytes()
    with out.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    expected = json_answers(model, path)
    assert len(found) == 4
    for line, answers in zip(found, expected, strict=True):
        flat = {f"{task}.{field}": value for task, answer in answers.items() for field, value in answer.items()}
        assert line.keys() == flat.keys()
        for key, value in flat.items():
            read = line[key] if isinstance(value, str) else json.loads(line[key])
            assert read == (pytest.approx(value) if isinstance(value, float) else value), key


def test_answers_come_as_rows_are_read(model: Path) -> None:
    """Bug: all rows are answered before the first is written, and a large file does not fit."""
    loaded = MultiTaskModel.from_pretrained(model).eval()
    calls: list[int] = []
    loaded.encoder.register_forward_hook(lambda *args: calls.append(1))
    rows = Dataset.from_dict({"text": ["a cat"] * 1000})
    answers = predict_rows(loaded, tiny_tokenizer(), rows, ["polarity"], batch_size=10)
    assert len(list(islice(answers, 25))) == 25
    # Beside the three batches there is the probe for packing, at most three passes.
    assert len(calls) <= 6


def test_what_answers_are_written_to(model: Path, tmp_path: Path) -> None:
    """Bug: an hour of answers is lost to a folder of that name, and a link or a pipe becomes a file."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    said = done("predict", model, "--input", rows)
    (tmp_path / "folder").mkdir()
    message = refused("predict", model, "--input", rows, "--output", tmp_path / "folder")
    assert "must be a file; " in message
    assert list((tmp_path / "folder").iterdir()) == []
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "target.jsonl")
    (tmp_path / "target.jsonl").write_text("before")
    done("predict", model, "--input", rows, "--output", tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "target.jsonl").read_text(encoding="utf-8") == said
    done("predict", model, "--input", rows, "--output", "/dev/null")
    assert not Path("/dev/null").is_file()


def test_a_file_of_an_unknown_type_is_refused(model: Path, tmp_path: Path) -> None:
    """Bug: a table of another program is read as JSON, and the error speaks of line 1."""
    path = tmp_path / "rows.xlsx"
    path.write_bytes(b"PK")
    assert ".jsonl, .json, .csv, .parquet; found rows.xlsx" in refused("predict", model, "--input", path)


# -- GLUE -------------------------------------------------------------------------------------------------------------


GLUE = {
    "cola": TaskConfig("classification", ["sentence"], labels=["unacceptable", "acceptable"]),
    "stsb": TaskConfig("regression", ["sentence1", "sentence2"], target_mean=2.5, target_std=9.0),
    "mnli": TaskConfig("classification", ["premise", "hypothesis"], labels=["entailment", "neutral", "contradiction"]),
    # Trained on numbers, as they are in a file that was taken from the Hub.
    "rte": TaskConfig("classification", ["sentence1", "sentence2"], labels=[0, 1]),
    "polarity": task_configs()["polarity"],
}


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("glue"), GLUE)


@pytest.fixture(scope="module")
def test_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLUE's test sets of four tasks, but for one; some have indices of their own."""
    folder = tmp_path_factory.mktemp("data")
    one, two = words(40), words(40)[::-1]
    pairs = [{"sentence1": a, "sentence2": b} for a, b in zip(one, two, strict=True)]
    entailed = [{"premise": a, "hypothesis": b} for a, b in zip(one, two, strict=True)]
    write_rows(folder / "cola" / "test.jsonl", [{"sentence": a, "label": -1, "idx": i} for i, a in enumerate(one)])
    write_rows(folder / "stsb" / "test.jsonl", pairs)
    Dataset.from_list(pairs).to_parquet((folder / "rte").mkdir() or folder / "rte" / "test.parquet")
    write_rows(folder / "mnli" / "test_matched.jsonl", entailed)
    write_rows(folder / "ax" / "test.jsonl", [{**row, "idx": 100 + i} for i, row in enumerate(entailed)])
    return folder


def test_the_files_of_a_submission(glue: Path, test_sets: Path, tmp_path: Path) -> None:
    """Bug: the server refuses a file: a name for a number, a number for a name, another header, a score of 5.3."""
    said = done("predict", glue, "--input", test_sets, "--format", "glue", "--output", tmp_path / "out")
    names = ["AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "RTE.tsv", "STS-B.tsv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    missing = "SST-2.tsv, MRPC.tsv, QQP.tsv, MNLI-mm.tsv, QNLI.tsv, WNLI.tsv"
    assert f"does not have: {missing}" in said
    found = {}
    for name in names:
        header, *lines = (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()
        assert header == "index\tprediction"
        found[name] = [line.split("\t") for line in lines]
        first = 100 if name == "AX.tsv" else 0
        assert [index for index, _ in found[name]] == [str(first + i) for i in range(40)]
    said_by = {name: [answer for _, answer in lines] for name, lines in found.items()}
    assert set(said_by["CoLA.tsv"]) == {"0", "1"}
    assert set(said_by["RTE.tsv"]) == {"entailment", "not_entailment"}
    assert set(said_by["MNLI-m.tsv"]) <= {"entailment", "neutral", "contradiction"}
    assert said_by["AX.tsv"] == said_by["MNLI-m.tsv"]
    scores = [float(score) for score in said_by["STS-B.tsv"]]
    assert {0.0, 5.0} < set(scores)
    assert all(0 <= score <= 5 for score in scores)
    # The answers are those of the rows.
    plain = json_answers(glue, test_sets / "cola" / "test.jsonl", "--task", "cola")
    labels = PRESETS["glue/cola"]["labels"]
    assert said_by["CoLA.tsv"] == [str(labels.index(answer["cola"]["label"])) for answer in plain]
    plain = json_answers(glue, test_sets / "rte" / "test.parquet", "--task", "rte")
    labels = PRESETS["glue/rte"]["labels"]
    assert said_by["RTE.tsv"] == [labels[int(answer["rte"]["label"])] for answer in plain]


def test_some_tasks_of_a_submission(glue: Path, test_sets: Path, tmp_path: Path) -> None:
    """Bug: `--task` is passed over."""
    done("predict", glue, "--input", test_sets, "--format", "glue", "--output", tmp_path, "--task", "cola")
    assert [path.name for path in tmp_path.iterdir()] == ["CoLA.tsv"]


def test_every_file_has_its_task() -> None:
    """Bug: one of the eleven files is forgotten, and the server takes none of them."""
    assert len({file.name for file in FILES}) == len(FILES) == 11
    assert {f"glue/{file.task}" for file in FILES} == {name for name in PRESETS if name.startswith("glue/")}


def test_the_hub_is_asked_for_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the mismatched set is that of the matched one's answers."""
    asked = []

    def load(name: str, split: str, value: str, source: Any) -> Dataset:
        asked.append((source.hub, source.name, value))
        return Dataset.from_dict({"x": [1]})

    monkeypatch.setattr(glue_submission, "load_split", load)
    assert all(find_rows("nyu-mll/glue", file) is not None for file in FILES)
    assert ("nyu-mll/glue", "mnli", "test_mismatched") in asked
    assert ("nyu-mll/glue", "ax", "test") in asked
    assert len(set(asked)) == 11


def arguments(glue: Path, test_sets: Path, model: Path, folder: Path) -> Iterator[tuple[list[Any], str]]:
    yield [glue, "--input", test_sets], "name a folder with --output"
    yield [model, "--input", test_sets, "--output", folder], "needs tasks that are named as GLUE's (cola, sst2"
    yield [glue, "--input", folder.parent, "--output", folder], "or a folder with cola/test.jsonl; there is none"
    write_rows(folder.parent / "bad" / "rte" / "test.jsonl", [{"sentence": "a"}])
    yield [glue, "--input", folder.parent / "bad", "--output", folder], "'rte' reads the column 'sentence1'"


def test_what_is_no_submission_is_refused(glue: Path, test_sets: Path, model: Path, tmp_path: Path) -> None:
    """Bug: a traceback, or a folder with half of the files."""
    for given, message in arguments(glue, test_sets, model, tmp_path / "out"):
        assert message in refused("predict", *given, "--format", "glue")
        assert not (tmp_path / "out").exists()


def test_labels_that_are_not_those_of_glue() -> None:
    """Bug: a model with other labels fills the files with numbers that mean something else."""
    with pytest.raises(ConfigurationError, match=r"labels of GLUE \(entailment, not_entailment\) .* found 'yes'"):
        prediction("rte", TaskConfig("classification", ["a", "b"], labels=["yes", "no"]), {"label": "yes"})
    with pytest.raises(ConfigurationError, match="must be of type regression, as in GLUE; found classification"):
        prediction("stsb", TaskConfig("classification", ["a", "b"]), {"label": 1})
