"""What the parts of the GPU benchmark share: their command line, their result file, and what they train.

A part writes ``OUTPUT/<part>.json`` after each of its measurements, so that a part which is stopped keeps the others::

    {"part": "right", "card": "...", "torch": "2.11.0", "date": "...", "quick": false, "seconds": 41.0,
     "results": {"<measurement>": {...}}, "errors": {"<measurement>": "the last lines"}}

``python common.py OUTPUT PART SECONDS`` does the same for a part that ran out of its time or crashed: the last lines
of ``OUTPUT/<part>.log`` become the error ``part``. ``python common.py OUTPUT PART PART ...`` shows the errors of all
parts, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

LAST_LINES = 12


@dataclass(frozen=True)
class Settings:
    """The command line of a part.

    Args:
        output: Folder of the result files.
        device: ``cuda`` or ``cpu``.
        quick: Tiny sizes, which show that the script works and nothing else.
        seconds: Time limit of the part.
    """

    output: Path
    device: str
    quick: bool
    seconds: float

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of what all parts take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=3600.0)
    return parser


def parse(description: str | None) -> Settings:
    """Read the command line of a part, and quieten the libraries."""
    return settings_of(command_line(description).parse_args())


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings of a part, and quieten the libraries."""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda needs a GPU that PyTorch can use; found none. Give --device cpu.")
    quieten()
    return Settings(args.output, args.device, args.quick, args.seconds)


def quieten() -> None:
    """Turn off progress bars and the notes of the libraries."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@dataclass
class Results:
    """The result file of a part, rewritten after each measurement."""

    part: str
    settings: Settings
    results: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds that the part still has."""
        return self.settings.seconds - (time.monotonic() - self.started)

    def measure(self, name: str, function: Callable[[], Mapping[str, Any] | None]) -> None:
        """Run a measurement and write what it found, or its error; None means that there is nothing to measure here."""
        print(f"{self.part}: {name}", flush=True)
        begin = time.monotonic()
        try:
            found = function()
        except (Exception, SystemExit):  # noqa: BLE001 - a measurement that fails must not stop the others
            traceback.print_exc()
            self.errors[name] = last_lines(traceback.format_exc())
        else:
            if found is not None:
                self.results[name] = {**found, "seconds": round(time.monotonic() - begin, 1)}
        self.write()

    def write(self) -> None:
        seconds = round(time.monotonic() - self.started, 1)
        content = {"part": self.part, **machine(self.settings.device), "quick": self.settings.quick}
        content |= {"seconds": seconds, "results": self.results, "errors": self.errors}
        write_json(self.settings.output / f"{self.part}.json", content)


def machine(device: str) -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch
    import transformers

    return {
        "card": torch.cuda.get_device_name() if device == "cuda" else f"none ({platform.machine()} processor)",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file, so that a process that is killed leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def note_failure(output: Path, part: str, limit: str) -> None:
    """Add the end of a part's log to its result file, which may hold finished measurements."""
    file, log = output / f"{part}.json", output / f"{part}.log"
    content: dict[str, Any] = {"part": part, "results": {}, "errors": {}}
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "it left no log"
    content["errors"]["part"] = f"did not end well within {limit} s; the last lines of its log:\n{last_lines(said)}"
    write_json(file, content)


def errors_of(output: Path, parts: Sequence[str]) -> dict[str, str]:
    """Return the errors of some parts, and the checks that do not hold."""
    found: dict[str, str] = {}
    for part in parts:
        content = json.loads((output / f"{part}.json").read_text(encoding="utf-8"))
        found |= {f"{part}, {name}": error for name, error in content["errors"].items()}
        for name, result in content["results"].items():
            if result.get("holds") is False:
                found[f"{part}, {name}"] = f"does not hold: {json.dumps(result)}"
    return found


def main() -> int:
    """Run the command line."""
    output, *parts = Path(sys.argv[1]), *sys.argv[2:]
    if len(parts) == 2 and parts[1].isdigit():
        note_failure(output, *parts)
        return 0
    errors = errors_of(output, parts)
    for name, error in errors.items():
        print(f"{name}: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
