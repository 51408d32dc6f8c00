"""Odd rows that are no mistake: what becomes of each. (Those that are one: test_bad_inputs.)"""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from task_sets import task_set_config, write_config, write_rows, write_task_set
from tiny import raw_sets, task_configs

from hf_async_mtl import MultiTaskModel, TaskConfig
from hf_async_mtl.cli.commands import main

Rows = list[dict[str, Any]]
ALL = tuple(task_configs())
FORMATS = ("jsonl", "csv", "parquet")
ONE_BY_ONE = ("--set", "training.per_device_train_batch_size=1")
BIG = "good cat " * 1_200_000
"""A text of 10 MB."""


def train(folder: Path, rows: dict[str, Rows], *args: str, kind: str = "jsonl", splits: int = 1, **task: Any) -> Path:
    """Train on some rows for four steps; its output folder.

    Args:
        folder: Where all is written.
        rows: Task -> the rows of its first splits.
        *args: Further arguments of the command.
        kind: How the rows are written.
        splits: Of how many splits they are: of training alone, of validation too, or of the test set too.
        **task: Keys of the first task.
    """
    names = list(rows) if len(rows) > 1 else [*rows, "overlap" if "polarity" in rows else "polarity"]
    write_task_set(folder, names)
    config = task_set_config(names)
    for name in rows:
        for split in ("train", "validation", "test")[:splits]:
            path = folder / "data" / name / f"odd.{kind}"
            write_as(path, rows[name])
            config["tasks"][name]["data"][split] = f"data/{name}/odd.{kind}"
    config["tasks"][names[0]].update(task)
    settings = ["--set", "training.max_steps=4", *args]
    out = folder / "out"
    assert main(["train", str(write_config(folder, config)), "--output-dir", str(out), *settings]) == 0
    assert json.loads((out / "convergence.json").read_text())["step"] == 4
    return out


def train_on_lines(folder: Path, lines: list[str], kind: str) -> Path:
    """Train with these lines as rows of the classification task, one example a batch; the output folder."""
    write_task_set(folder)
    (folder / f"odd.{kind}").write_text("\n".join(lines), encoding="utf-8")
    config = task_set_config()
    config["tasks"]["polarity"]["data"]["train"] = f"odd.{kind}"
    args = ["--output-dir", str(folder / "out"), "--set", "training.max_steps=4", *ONE_BY_ONE]
    assert main(["train", str(write_config(folder, config)), *args]) == 0
    return folder / "out"


def write_as(path: Path, rows: Rows) -> None:
    """Write a file of rows as its name says."""
    if path.suffix == ".jsonl":
        write_rows(path, rows)
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path)
    else:
        Dataset.from_list(rows).to_parquet(path)


def good(count: int = 12, name: str = "polarity") -> Rows:
    return raw_sets(count)[name].to_list()


def changed(name: str, place: int, **columns: Any) -> Rows:
    """Good rows, one of them with other columns."""
    rows = good(name=name)
    rows[place].update(columns)
    return rows


def task_of(out: Path, name: str) -> TaskConfig:
    return MultiTaskModel.from_pretrained(out).config.task_configs[name]


def rows_in_an_epoch(out: Path) -> int:
    """The training rows of all tasks, as a run of four steps with one example a batch has counted them."""
    return round(4 / json.loads((out / "all_results.json").read_text())["epoch"])


# -- texts ------------------------------------------------------------------------------------------------------------


def told_of_cuts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "tokens, and are read up to there" in record.message]


def test_texts_that_are_cut_are_counted_once_a_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: half of each text is not read, and nobody says so; or it is said for each row."""
    rows = good()
    rows[3]["text"] = rows[7]["text"] = "good cat " * 40
    train(tmp_path, {"polarity": rows})
    assert [words for words in told_of_cuts(caplog) if "'polarity'" in words] == [
        "Task 'polarity': 2 of 12 training rows and 0 of 24 validation rows have texts of more than 32 tokens, and are "
        "read up to there. A larger `max_length` reads more, in more time."
    ]


def test_a_text_of_any_task_that_is_cut_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: of a pair, of a list of words, of choices or of a question nobody counts what is left out."""
    long = "good cat " * 40
    rows = {
        "polarity": changed("polarity", 0, text=long),
        "overlap": changed("overlap", 0, right=long),
        "colors": changed("colors", 0, tokens=long.split(), tags=["O"] * 80),
        "choice": changed("choice", 0, second=long),
        "topics": changed("topics", 0, text=long),
        "answer": changed("answer", 0, question=long),
    }
    train(tmp_path, rows)
    kinds = dict.fromkeys(ALL, "texts of more than 32") | {"answer": "questions of more than half of 24"}
    told = told_of_cuts(caplog)
    assert [words.split(" tokens")[0] for words in told] == [
        f"Task {name!r}: 1 of 12 training rows and 0 of 24 validation rows have {kinds[name]}" for name in ALL
    ]


def test_cut_texts_of_the_test_set_are_counted_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a score on texts that were read in part passes for one on the texts."""
    train(tmp_path, {"polarity": changed("polarity", 0, text="good cat " * 40)}, splits=3)
    assert [words.split(" have")[0] for words in told_of_cuts(caplog) if "'polarity'" in words] == [
        "Task 'polarity': 1 of 12 training rows and 1 of 12 validation rows",
        "Task 'polarity': 1 of 12 test rows",
    ]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_text_of_10_megabytes_is_read_to_its_limit(kind: str, tmp_path: Path) -> None:
    """Bug: one dump of a web page among the rows ends the run, or takes its memory."""
    train(tmp_path, {"polarity": changed("polarity", 0, text=BIG)}, kind=kind)


def test_10_megabytes_are_read_to_their_limit_wherever_they_stand(tmp_path: Path) -> None:
    """Bug: two of them in a pair are cut into pieces, each with each; a list of them is a hundred thousand labels."""
    rows = {
        "overlap": changed("overlap", 0, left=BIG, right=BIG),
        "colors": changed("colors", 0, tokens=["red"] * 1_200_000, tags=["O"] * 1_200_000),
        "choice": changed("choice", 0, prompt=BIG, first=BIG),
        "answer": changed("answer", 0, question=BIG),
    }
    train(tmp_path, rows)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_empty_texts_and_unknown_signs_are_texts(kind: str, tmp_path: Path) -> None:
    """Bug: a text without a token makes a segment of no length, and a division by it."""
    rows = good()
    for place, text in enumerate(["", " ", "\u0000", "\u202e", "日本語", "🏖️"]):
        rows[place]["text"] = text
    train(tmp_path, {"polarity": rows}, kind=kind)


def test_empty_texts_of_any_task_are_texts(tmp_path: Path) -> None:
    """Bug: an empty side of a pair, a word without a token or a question of none is read beyond its end."""
    rows = {
        "overlap": changed("overlap", 0, left="", right=""),
        "colors": changed("colors", 0, tokens=["", " "], tags=["O", "B-color"]),
        "choice": changed("choice", 0, prompt="", first="", second=""),
        "topics": changed("topics", 0, text="", topics=[]),
        "answer": changed("answer", 0, question=""),
    }
    train(tmp_path, rows)


def test_what_is_no_text_in_a_csv_file_is_one_beside_words(tmp_path: Path) -> None:
    """Bug: a column with a number among its texts is of no type, or the text "NaN" is a missing one."""
    rows = [f"{row['text']},{row['label']}" for row in good()]
    out = train_on_lines(tmp_path, ["text,label", "7,pos", "1.50,neg", "NaN,neg", *rows], "csv")
    assert rows_in_an_epoch(out) == 3 + 12 + 24


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "names"), [("jsonl", "10 11 9"), ("parquet", "10 11 9"), ("csv", "9 10 11")])
def test_labels_that_are_numbers_in_words_are_names(kind: str, names: str, tmp_path: Path) -> None:
    """Bug: "10" is the eleventh class of three. (In a CSV file, which has no quotes for it, 10 is a number.)"""
    rows = good()
    for place, row in enumerate(rows):
        row["label"] = ["9", "10", "11"][place % 3]
    out = train(tmp_path, {"polarity": rows}, kind=kind, splits=3)
    assert task_of(out, "polarity").label_names == names.split()


@pytest.mark.parametrize("kind", FORMATS)
def test_scores_that_are_numbers_in_words_are_numbers(kind: str, tmp_path: Path) -> None:
    """Bug: scores between quotation marks are refused as words, or compared as such."""
    rows = good(name="overlap")
    mean = sum(row["score"] for row in rows) / len(rows)
    out = train(tmp_path, {"overlap": [{**row, "score": str(row["score"])} for row in rows]}, kind=kind)
    assert task_of(out, "overlap").target_mean == pytest.approx(mean)


def test_a_number_between_quotation_marks_is_one_beside_numbers(tmp_path: Path) -> None:
    """Bug: a column of JSON lines in which one number is in quotation marks is of no type, or that row is lost."""
    rows = good(name="overlap")
    mean = sum(row["score"] for row in rows) / len(rows)
    rows[3]["score"] = str(rows[3]["score"])
    out = train(tmp_path, {"overlap": rows})
    assert task_of(out, "overlap").target_mean == pytest.approx(mean)


def test_a_number_beside_words_is_a_name_in_a_csv_file(tmp_path: Path) -> None:
    """Bug: a class called 1 among words is the second class. (In JSON lines it is refused.)"""
    rows = [f"{row['text']},{row['label']}" for row in good()]
    out = train_on_lines(tmp_path, ["text,label", "a cat,1", *rows], "csv")
    assert task_of(out, "polarity").label_names == ["1", "neg", "pos"]


CLASSES = [f"class-{number:06d}" for number in range(100_000)]


@pytest.mark.parametrize(("name", "column"), [("polarity", "label"), ("colors", "tags"), ("topics", "topics")])
def test_a_hundred_thousand_classes(name: str, column: str, tmp_path: Path) -> None:
    """Bug: a table of classes is built by comparing each with each, or a message lists them all."""
    rows = good(name=name)
    for place, row in enumerate(rows):
        found = CLASSES[place * 7919]
        row[column] = {"label": found, "tags": [found] * len(row.get("tags", ())), "topics": [found]}[column]
    # Chunks need a tag of the words outside of them.
    settings = {"metrics": ["accuracy"]} if name == "colors" else {}
    out = train(tmp_path, {name: rows}, splits=3, label_names=CLASSES, **settings)
    assert task_of(out, name).num_labels == 100_000
    assert len((out / "README.md").read_text()) < 100_000


# -- one table for several tasks --------------------------------------------------------------------------------------


def no_label(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "left out of the task" in record.message]


@pytest.mark.parametrize("kind", FORMATS)
def test_one_table_for_several_tasks(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a table whose rows are labeled for one task of two is refused, or has to be named and split per task."""
    write_task_set(tmp_path)
    for seed, split in enumerate(("train", "validation", "test")):
        texts = raw_sets(24, seed)["polarity"].to_list()
        rows = [
            {"text": row["text"], "polarity": None, "length": float(len(row["text"]))}
            if place % 3 == 0
            else {"text": row["text"], "polarity": row["label"], "length": None}
            for place, row in enumerate(texts)
        ]
        write_as(tmp_path / f"{split}.{kind}", rows)
    config = task_set_config()
    config["data"] = {split: f"{split}.{kind}" for split in ("train", "validation", "test")}
    config["tasks"] = {
        "polarity": {"type": "classification", "text_columns": ["text"], "label_column": "polarity"},
        "length": {"type": "regression", "text_columns": ["text"], "label_column": "length"},
    }
    out = tmp_path / "out"
    args = ["--output-dir", str(out), "--set", "training.max_steps=4", *ONE_BY_ONE]
    assert main(["train", str(write_config(tmp_path, config)), *args]) == 0
    assert rows_in_an_epoch(out) == 24
    assert task_of(out, "polarity").label_names == ["neg", "pos"]
    assert no_label(caplog) == [
        "Task 'polarity': 8 of 24 train rows and 8 of 24 validation rows and 8 of 24 test rows have no label in "
        "'polarity', and are left out of the task.",
        "Task 'length': 16 of 24 train rows and 16 of 24 validation rows and 16 of 24 test rows have no label in "
        "'length', and are left out of the task.",
    ]
    results = json.loads((out / "all_results.json").read_text())
    assert {"test_polarity_accuracy", "test_length_pearson"} <= results.keys()


# -- rows -------------------------------------------------------------------------------------------------------------


def test_rows_that_are_there_twice_count_twice(tmp_path: Path) -> None:
    """Bug: examples are told apart by their content, and a double one is left out."""
    out = train(tmp_path, {"polarity": good(6) * 2}, *ONE_BY_ONE)
    assert rows_in_an_epoch(out) == 12 + 24


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_blank_lines_are_no_rows(kind: str, tmp_path: Path) -> None:
    """Bug: the empty line at the end of a file is a row without a text, or ends the reading."""
    write_as(tmp_path / f"good.{kind}", good())
    lines = (tmp_path / f"good.{kind}").read_text(encoding="utf-8").split("\n")
    out = train_on_lines(tmp_path, ["", *lines[:5], "", "", *lines[5:], ""], kind)
    assert rows_in_an_epoch(out) == 12 + 24
