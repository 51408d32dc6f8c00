"""The command line: run a command, and turn its errors into messages and an exit status."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence

from ..validation import ConfigurationError
from .config_file import load_config
from .parser import build_parser

DONE, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, with the arguments of the process where ``argv`` is None, and return the exit status.

    0 done; 1 a loss that is not finite, a damaged teacher or a full disk; 2 wrong input of the user; 143 interrupted
    and resumable. Other errors are raised.
    """
    args = build_parser().parse_args(argv)
    if not sys.stderr.isatty():
        # In a log file each step of a progress bar is a line. The libraries read this when they are imported.
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    try:
        # A command's module imports torch and Transformers: only the chosen one is imported, and a wrong key of the
        # configuration is found before.
        if "config" in args:
            args.run_config = load_config(args.config, args.set)
        importlib.import_module(f".{args.command}", __package__).run(args)
    except Exception as error:
        found = _failure(error)
        if found is None:
            raise
        status, message = found
        if message:
            print(f"hf-async-mtl: {message}", file=sys.stderr)
        return status
    return DONE


def _failure(error: Exception) -> tuple[int, str] | None:
    """Return the exit status and the message for an error that a user can act on; None for a bug."""
    if isinstance(error, ConfigurationError):
        return USER_ERROR, str(error)
    from ..distillation.logits import TeacherError
    from .interruption import RunInterrupted

    if isinstance(error, RunInterrupted):
        hint = "To continue, repeat the command with --resume."
        # All processes are interrupted; one reports it.
        is_main = os.environ.get("RANK", "0") == "0"
        return INTERRUPTED, f"interrupted at step {error}, with a checkpoint. {hint}" if is_main else ""
    message = str(error) if isinstance(error, FloatingPointError | TeacherError) else _disk_message(error)
    return None if message is None else (FAILED, message)


_DISK_ERRORS = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EIO: "The disk has failed",
    errno.EROFS: "The file system is read-only",
}


def _disk_message(error: Exception) -> str | None:
    """Return a message for an error of the disk; None for other errors."""
    number = error.errno if isinstance(error, OSError) else None
    # Writers of weights lose the number: safetensors has it in its message, torch reports a position in its file.
    if found := re.search(r"os error (\d+)", str(error)):
        number = int(found[1])
    elif "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
        number = errno.ENOSPC
    if number not in _DISK_ERRORS:
        return None
    path = getattr(error, "filename2", None) or getattr(error, "filename", None)
    return (
        f"{_DISK_ERRORS[number]}{f': {path}' if path else ''}. Complete files are intact. Free space or choose "
        "another folder, and continue from the last checkpoint with --resume."
    )


if __name__ == "__main__":
    sys.exit(main())
