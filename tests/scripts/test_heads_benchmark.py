"""The benchmark of heads runs, and asks the encoder as often for eight heads as for one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny import tiny_encoder

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "heads.py"


def test_eight_heads_are_one_pass(tmp_path: Path) -> None:
    """Bug: the pipeline runs the encoder once a task, and the ratio that the README shows is another."""
    encoder = tiny_encoder(tmp_path / "encoder")
    command = [sys.executable, SCRIPT, "--encoder", encoder, "--texts", "40", "--rounds", "2", "--output"]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [*command, tmp_path / "heads.json"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].startswith("| one head | 2 |")
    asked = json.loads((tmp_path / "heads.json").read_text(encoding="utf-8"))["asked"]
    assert [figures["passes"] for figures in asked.values()] == [2, 2, 2, 2, 10]
    assert asked["one head"]["ratio"] == 1
    assert asked["eight heads"]["ratio"] > 0
