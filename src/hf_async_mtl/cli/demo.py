"""``hf-async-mtl demo``: generate a small task set and train it, with distillation or plainly."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ..demo.task_set import write_demo
from .config_file import load_config
from .output_dir import check_output_dir
from .train import train


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    output_dir = args.output_dir or Path("runs/demo-plain" if args.plain else "runs/demo")
    overrides = ["convergence.on_convergence=continue"] if args.plain else []
    check_output_dir(output_dir, args.resume)
    with tempfile.TemporaryDirectory() as scratch:
        # Generated bitwise identically each time, so that a run can be resumed.
        train(load_config(write_demo(Path(scratch)), overrides), output_dir, args.resume)
