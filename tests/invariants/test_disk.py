"""A disk that is full or cannot be written to: an end in words, and the last checkpoint as it was."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import assert_same_weights
from safetensors import SafetensorError
from task_sets import write_task_set

from hf_async_mtl.cli import commands
from hf_async_mtl.cli.commands import main
from hf_async_mtl.training.distributed import newest_checkpoint

RUN = ["--set", "training.max_steps=60", "--set", "training.save_total_limit=1"]


class Disk:
    """A file system of its own, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str) -> bool:
        remount = "remount," if os.path.ismount(self.folder) else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", str(self.folder)],
            capture_output=True,
            check=False,
        )
        return done.returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path / "disk")
    found.folder.mkdir()
    if os.name != "posix" or os.getuid() != 0 or not found.mount("size=64m"):
        pytest.skip("A file system can be mounted by root alone, and not in every container.")
    yield found
    subprocess.run(["umount", "-l", str(found.folder)], check=True)


@pytest.mark.parametrize("size", [620, 680, 740])
def test_a_full_disk_costs_no_checkpoint(
    size: int, disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: a traceback of a library's writer, a last checkpoint that is half overwritten, or a bus error.

    The sizes, all above one checkpoint with its code, end the run in different files; which, the library decides.
    """
    config = write_task_set(tmp_path)
    assert disk.mount(f"size={size}k")
    out = disk.folder / "out"
    status = main(["train", str(config), "--output-dir", str(out), *RUN])
    said = capsys.readouterr().err
    assert status == 1
    assert "hf-async-mtl: The disk is full" in said
    assert "continue from the last checkpoint with --resume" in said
    assert newest_checkpoint(out) is not None
    assert disk.mount("size=64m")
    assert main(["train", str(config), "--output-dir", str(out), "--resume", *RUN]) == 0
    assert main(["train", str(config), "--output-dir", str(tmp_path / "whole"), *RUN]) == 0
    assert_same_weights(tmp_path / "whole", out, tolerance=0)
    # What the run had begun to write and could not is not left behind.
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def test_a_folder_that_cannot_be_written_to_is_told_at_once(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: data are loaded and tokenized for an hour, and then there is no place for a checkpoint."""
    config = write_task_set(tmp_path)
    assert disk.mount("ro")
    assert main(["train", str(config), "--output-dir", str(disk.folder / "out")]) == 2
    words = f"must be one that can be written to; {disk.folder} cannot be written to. Choose another with --output-dir."
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "from", None, "to"), "The disk is full: to. Complete"),
        (OSError(errno.EROFS, "Read-only file system"), "The file system is read-only. Complete"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "full. Complete",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"), "full. Complete"),
    ],
)
def test_every_writer_says_that_the_disk_is_full(error: Exception, words: str) -> None:
    """Bug: which library wrote last decides whether the user gets a sentence or a traceback."""
    assert words in (commands._disk_message(error) or "")


def test_other_errors_are_shown_as_they_are() -> None:
    """Bug: a missing file, or a bug of ours, is taken for a full disk."""
    for error in (
        FileNotFoundError(errno.ENOENT, "No such file"),
        RuntimeError("shape mismatch"),
        SafetensorError("x"),
    ):
        assert commands._disk_message(error) is None
