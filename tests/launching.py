"""Runs on several processes: what `accelerate launch` starts, on the processor and over gloo."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from task_sets import task_set_config, write_config, write_data
from tiny import task_configs, tiny_encoder

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "scripts" / "train.py"
LAUNCH = ROOT / "scripts" / "configs" / "launch"


_PER_TASK: dict[str, dict[str, Any]] = {
    "polarity": {"loss": {"class_weights": "balanced"}, "max_length": 8, "doc_stride": 2},
    "colors": {"loss": {"class_weights": [0.5, 2.0], "label_smoothing": 0.1}, "max_length": 8, "doc_stride": 2},
    "topics": {"loss": {"pos_weight": "balanced"}},
    "overlap": {"loss": {"huber": 1.0}},
}


def write_exact_task_set(folder: Path, tasks: Sequence[str] | None = None, rows: int = 25, **training: Any) -> Path:
    """A task set without dropout and with an update linear in the gradient: runs on several processes can equal one.

    25 rows a task divide by no number of processes or batches here; all tasks converge in the 24 steps. Some have
    weights in their losses, and read their texts in windows.
    """
    tasks = list(task_configs()) if tasks is None else list(tasks)
    folder.mkdir(parents=True, exist_ok=True)
    tiny_encoder(folder / "encoder", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_data(folder, tasks, rows)
    config = task_set_config(tasks)
    config["training"].update(optim="sgd", learning_rate=0.05, lr_scheduler_type="constant", max_steps=24)
    config["training"].update(training)
    for name, settings in _PER_TASK.items():
        if name in tasks:
            config["tasks"][name].update(settings)
    return write_config(folder, config)


def command(script: Path, *args: Any, config: str = "cpu", processes: int = 2, launch: Sequence[str] = ()) -> list[str]:
    """The command of a launch."""
    options = ["--config_file", str(LAUNCH / f"{config}.yaml"), "--num_processes", str(processes), *launch]
    run = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script)]
    return [*run, *map(str, args)]


def start(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Begin a run; `end` or `kill` it."""
    own = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
        **(environment or {}),
    }
    return subprocess.Popen(command, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str]:
    """Wait for a run: its status, and all that it said."""
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        kill(process)
    return process.returncode, said


def kill(process: subprocess.Popen[str]) -> None:
    """Take a launch away with its training processes, which have sessions of their own."""
    for pid in ranks_of(process).values():
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Rank -> process id, of the training processes of a launch."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            values = (folder / "environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        ranks = [int(value[5:]) for value in values if value.startswith(b"RANK=")]
        if parent == process.pid and ranks:
            found[ranks[0]] = int(folder.name)
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def assert_same_weights(left: Path, right: Path, tolerance: float = 1e-5) -> None:
    """Two models on disk, up to so much in each weight."""
    one, other = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            other[name], tensor, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
