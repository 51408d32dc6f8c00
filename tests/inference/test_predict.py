"""What `hf-async-mtl predict` reads and writes beside JSON lines: CSV, Parquet."""

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from commands_here import done, refused
from datasets import Dataset
from task_sets import write_rows
from tiny import raw_sets, save_model, task_configs, tiny_tokenizer

from hf_async_mtl import MultiTaskModel
from hf_async_mtl.inference.predict import predict_rows, tasks_by_input

TEXTS = ["the red sofa", 'a, "big" cat', "not good"]


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


def test_tasks_with_the_same_inputs_share_a_pass(model: Path) -> None:
    """Bug: each task tokenizes the rows and runs the encoder again; or tasks share rows that differ."""
    loaded = MultiTaskModel.from_pretrained(model).eval()
    names = ["topics", "overlap", "polarity"]
    assert tasks_by_input(loaded.config, names) == [["topics", "polarity"], ["overlap"]]
    rows = Dataset.from_dict({"text": TEXTS, "left": TEXTS, "right": TEXTS[::-1]})
    calls: list[int] = []
    loaded.probe_packing()
    loaded.encoder.register_forward_hook(lambda *args: calls.append(1))
    together = list(predict_rows(loaded, tiny_tokenizer(), rows, names))
    assert len(calls) == 2
    assert [list(predictions) for predictions in together] == [names] * 3
    for name in names:
        alone = list(predict_rows(loaded, tiny_tokenizer(), rows, [name]))
        assert [predictions[name] for predictions in together] == [predictions[name] for predictions in alone]
    loaded.config.tasks["topics"]["max_length"] = 16
    assert len(tasks_by_input(loaded.config, names)) == 3


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
    message = refused("predict", model, "--input", path)
    assert "`--input` must be a file of type .jsonl" in message
    assert "found rows.xlsx" in message
