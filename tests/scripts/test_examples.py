"""The scripts in `scripts/examples/`: they run as their docstrings say."""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import load_from_disk

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "examples"))

import streaming  # noqa: E402

# -- streaming --------------------------------------------------------------------------------------------------------


def write_long_file(path: Path, rows: int, end: str = "") -> None:
    """A file of JSON lines with ``end`` as its last line."""
    lines = (json.dumps({"text": f"text {i}" + "x" * 500, "label": ["neg", "pos"][i % 2]}) for i in range(rows))
    path.write_text("\n".join([*lines, end]), encoding="utf-8")


def streamed(folder: Path, *options: Any) -> list[dict[str, Any]]:
    """The rows that the example keeps of ``rows.jsonl``."""
    arguments = ["json", folder / "out", "--files", folder / "rows.jsonl", *options]
    assert streaming.main([str(argument) for argument in arguments]) == 0
    return load_from_disk(folder / "out").to_list()


def test_a_stream_is_not_read_to_its_end(tmp_path: Path) -> None:
    """Bug: a dataset that does not fit on the disk is read to its end for the sake of a sample."""
    write_long_file(tmp_path / "rows.jsonl", 60_000, "this is where the reader would fail")
    found = streamed(tmp_path, "--rows", 20)
    assert len({row["text"] for row in found}) == 20
    assert {row["label"] for row in found} == {"neg", "pos"}


def test_a_stream_is_a_seeded_sample_of_the_file_as_it_is(tmp_path: Path) -> None:
    """Bug: the first rows of a sorted file are all of one class, or the rows are those of an earlier file."""
    write_long_file(tmp_path / "rows.jsonl", 300)
    first, other = streamed(tmp_path, "--rows", 20), streamed(tmp_path, "--rows", 20, "--seed", 1)
    assert first == streamed(tmp_path, "--rows", 20) != other
    write_long_file(tmp_path / "rows.jsonl", 10)
    assert len(streamed(tmp_path, "--rows", 20)) == 10
