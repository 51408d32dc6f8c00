"""Commands that are run in the test's own process."""

import contextlib
import io
from typing import Any

from hf_async_mtl.cli.commands import main


def call(*arguments: Any) -> tuple[int, str, str]:
    """Run a command here, and give its status, stdout and stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        status = main([str(argument) for argument in arguments])
    return status, stdout.getvalue(), stderr.getvalue()


def done(*arguments: Any) -> str:
    """Run a command that must succeed, and give its stdout."""
    status, stdout, stderr = call(*arguments)
    assert status == 0, stderr
    return stdout


def refused(*arguments: Any) -> str:
    """Run a command that must be refused as the contract says, and give the message."""
    status, stdout, stderr = call(*arguments)
    assert status == 2
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.count("hf-async-mtl: ") == 1
    return stderr.split("hf-async-mtl: ")[1]
