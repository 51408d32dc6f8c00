"""Files that are never half written."""

import os
from pathlib import Path

import pytest

from hf_async_mtl.utils import (
    atomic_path,
    link_or_copy,
    nearest_existing,
    nearest_hint,
    nearest_key,
    truncated_repr,
    write_atomic,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("unique", [False, True])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, unique: bool) -> None:
    """Bug: a full disk replaces a report with half of one, or leaves a temporary file for ever."""
    path = tmp_path / "new" / "report.json"
    write_atomic(path, "old", unique=unique)

    def fill_the_disk() -> None:
        with atomic_path(path, unique=unique) as partial:
            partial.write_text("ne")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert path.read_text() == "old"
    write_atomic(path, "é", unique=unique)
    assert path.read_text(encoding="utf-8") == "é"
    assert names(path.parent) == ["report.json"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    """Bug: what a killed run was writing stays beside the file, or is taken for its content."""
    path = tmp_path / "report.json"
    with atomic_path(path) as partial:
        partial.write_text("one")
        left = partial.name
    (tmp_path / left).write_text("half of ")
    write_atomic(path, "two")
    assert (path.read_text(), names(tmp_path)) == ("two", ["report.json"])


def test_temporary_files_are_not_pushed(tmp_path: Path) -> None:
    """Bug: a push in the background uploads a file that is being written."""
    with atomic_path(tmp_path / "report.json") as partial:
        assert partial.name.startswith("_")
        partial.touch()


def test_two_writers_have_a_temporary_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: of two processes that write one file, one renames what the other is still writing."""
    with atomic_path(tmp_path / "file", unique=True) as first:
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with atomic_path(tmp_path / "file", unique=True) as second:
            assert first != second
            second.write_text("second")
        first.write_text("first")
    assert names(tmp_path) == ["file"]


def test_a_file_is_linked_onto_its_own_link(tmp_path: Path) -> None:
    """Bug: a rename between two names of one file does nothing, and the temporary name stays."""
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_text("text")
    for _ in range(2):
        link_or_copy(source, target)
        assert target.samefile(source)
        assert names(target.parent) == ["target"]


def test_a_file_is_copied_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a file system without hard links ends the run."""

    def refuse(*paths: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "source").write_text("text")
    link_or_copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "text"
    assert not (tmp_path / "target").samefile(tmp_path / "source")


def test_nearest_existing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a relative folder that is yet to be made has no parent that exists."""
    assert nearest_existing(tmp_path / "a" / "b") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert nearest_existing(Path("a/b")) == tmp_path


def test_words_for_messages() -> None:
    """Bug: a message fails for a key that is no word, names one that is not similar, or holds a complete file."""
    assert nearest_key(5, ["a", "b"]) is None
    assert nearest_hint(5, ["a", "b"]) == ""
    assert len(truncated_repr(list(range(10_000)))) == 200
