"""Odd rows that are no mistake: what becomes of each. (Those that are one: test_bad_inputs.)"""

import json
from pathlib import Path
from typing import Any

import pytest
from bundles import bundle_config, write_bundle, write_config, write_rows
from tiny import raw_sets

from hf_async_mtl import MultiTaskModel
from hf_async_mtl.cli.commands import main

Rows = list[dict[str, Any]]


def train(folder: Path, polarity: Rows, *args: str, **task: Any) -> Path:
    """Train a bundle whose classification task has these rows; its output folder."""
    write_bundle(folder)
    write_rows(folder / "data" / "polarity" / "train.jsonl", polarity)
    config = bundle_config()
    config["tasks"]["polarity"].update(task)
    settings = ["--set", "training.max_steps=4", *args]
    out = folder / "out"
    assert main(["train", str(write_config(folder, config)), "--output-dir", str(out), *settings]) == 0
    return out


def good(count: int = 12) -> Rows:
    return raw_sets(count)["polarity"].to_list()


def test_texts_that_are_cut_are_counted_once_a_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: half of each text is not read, and nobody says so; or it is said for each row."""
    rows = good()
    rows[3]["text"] = rows[7]["text"] = "good cat " * 40
    train(tmp_path, rows)
    told = [record.message for record in caplog.records if "tokens, and are read up to there" in record.message]
    assert [words for words in told if "'polarity'" in words] == [
        "Task 'polarity': 2 of 12 training rows and 0 of 24 validation rows have texts of more than 32 tokens, and are "
        "read up to there. A larger `max_length` reads more, in more time."
    ]


def test_a_text_of_10_megabytes_is_read_to_its_limit(tmp_path: Path) -> None:
    """Bug: one dump of a web page among the rows ends the run, or takes its memory."""
    rows = good()
    rows[0]["text"] = "good cat " * 1_200_000
    out = train(tmp_path, rows)
    assert json.loads((out / "convergence.json").read_text())["step"] == 4


def test_empty_texts_and_unknown_signs_are_texts(tmp_path: Path) -> None:
    """Bug: a text without a token makes a segment of no length, and a division by it."""
    rows = good()
    for place, text in enumerate(["", " ", "\u0000", "\u202e", "日本語", "🏖️"]):
        rows[place]["text"] = text
    train(tmp_path, rows)


def test_rows_that_are_there_twice_count_twice(tmp_path: Path) -> None:
    """Bug: examples are looked up by their content, and a double one gets another's teacher."""
    out = train(tmp_path, good(6) * 2)
    assert json.loads((out / "convergence.json").read_text())["step"] == 4


def test_labels_that_are_numbers_in_words_are_names(tmp_path: Path) -> None:
    """Bug: words are turned into numbers on the way, and "10" is the eleventh class of three."""
    write_bundle(tmp_path)
    for split in ("train", "validation", "test"):
        rows = good()
        for place, row in enumerate(rows):
            row["label"] = ["9", "10", "11"][place % 3]
        write_rows(tmp_path / "data" / "polarity" / f"{split}.jsonl", rows)
    config = str(write_config(tmp_path, bundle_config()))
    args = ["--output-dir", str(tmp_path / "out"), "--set", "training.max_steps=4"]
    assert main(["train", config, *args]) == 0
    assert MultiTaskModel.from_pretrained(tmp_path / "out").config.task_configs["polarity"].labels == ["10", "11", "9"]


def test_a_hundred_thousand_classes(tmp_path: Path) -> None:
    """Bug: a table of classes is built by comparing each with each, or a message lists them all."""
    names = [f"class-{number:06d}" for number in range(100_000)]
    rows = good()
    for place, row in enumerate(rows):
        row["label"] = names[place * 7919]
    write_bundle(tmp_path)
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / "data" / "polarity" / f"{split}.jsonl", rows)
    config = bundle_config()
    config["tasks"]["polarity"]["labels"] = names
    path = str(write_config(tmp_path, config))
    args = ["--output-dir", str(tmp_path / "out"), "--set", "training.max_steps=4"]
    assert main(["train", path, *args]) == 0
    assert len((tmp_path / "out" / "README.md").read_text()) < 100_000
