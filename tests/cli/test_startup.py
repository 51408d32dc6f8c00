"""Help, the version and errors that need no data answer at once: nothing heavy is imported for them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_async_mtl

CODE = """
import sys
from hf_async_mtl.cli.commands import main
try:
    status = main(sys.argv[1:])
except SystemExit as done:
    status = done.code
heavy = ("torch", "transformers", "datasets", "numpy", "sklearn", "matplotlib")
print("\\nstatus", status, [name for name in heavy if name in sys.modules])
"""
CONFIG: dict[str, Any] = {
    "encoder": "google-bert/bert-base-uncased",
    "tasks": {"rte": {"preset": "glue/rte"}, "cola": {"preset": "glue/cola"}},
    "convergence": {"patience": 3},
    "training": {"max_steps": 10},
}


def started(*arguments: object) -> tuple[str, str]:
    """Return what the command printed, and its status with the heavy packages that it imported."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed, _, status = done.stdout.rpartition("\nstatus ")
    return printed + done.stderr, status.strip()


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (["--help"], 0, "usage: hf-async-mtl"),
        (["--version"], 0, f"hf-async-mtl {hf_async_mtl.__version__}"),
        (["train", "--help"], 0, "--output-dir DIR"),
        (["trian", "config.yaml"], 2, "invalid choice: 'trian'"),
        (["train", "config.yaml", "--outptu-dir", "out"], 2, "unrecognized arguments: --outptu-dir out"),
        (["train", "missing.yaml"], 2, "missing.yaml"),
    ],
)
def test_usage_answers_without_torch(arguments: list[str], status: int, printed: str) -> None:
    """Bug: `--help` takes eight seconds of processor time."""
    found, imported = started(*arguments)
    assert imported == f"{status} []"
    assert printed in found


@pytest.mark.parametrize(
    ("key", "value", "printed"),
    [
        ("encodr", "x", "`encodr`. The nearest known key is `encoder`"),
        ("tasks.rte.maximum_length", 64, "max_length"),
        ("convergence.patiance", 3, "`convergence.patiance`. The nearest known key is `patience`"),
        ("balancing.method", "pcgrd", "pcgrad"),
    ],
)
def test_a_wrong_key_answers_without_torch(key: str, value: Any, printed: str, tmp_path: Path) -> None:
    """Bug: a typing error in the file is reported after seconds of imports."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    found, imported = started("train", path, "--set", f"{key}={value}", "--output-dir", tmp_path / "out")
    assert imported == "2 []"
    assert printed in found
    assert not (tmp_path / "out").exists()
