"""Several processes: the run of one, wherever examples, teachers and files happen to be, and an end in words."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import (
    TRAIN,
    assert_same_weights,
    command,
    end,
    free_port,
    kill,
    ranks_of,
    start,
    write_exact_task_set,
)

from hf_async_mtl.cli.commands import main
from hf_async_mtl.training.checkpoint_files import complete_checkpoints

FSDP = Path(__file__).parents[1] / "fsdp_on_cpu.py"
ADAM = ["--set", "training.optim=adamw_torch", "--set", "training.learning_rate=0.001"]


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "convergence.json").read_text())


def metrics(folder: Path) -> dict[str, float]:
    results = json.loads((folder / "all_results.json").read_text())
    clock = ("runtime", "per_second", "preparation_time", "flos", "train_loss", "epoch")
    return {key: value for key, value in results.items() if not key.endswith(clock)}


def switches(folder: Path) -> list[tuple[int, str, str]]:
    return [(event["step"], event["task"], event["event"]) for event in told(folder)["events"]]


def run(*args: Any, **launch: Any) -> str:
    """A launch that is to end well; what it said."""
    status, said = end(start(command(*args, **launch)))
    assert status == 0, said[-4000:]
    return said


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process, twelve examples a step, in whose folder its configuration is."""
    folder = tmp_path_factory.mktemp("one")
    config = write_exact_task_set(folder)
    assert main(["train", str(config), "--output-dir", str(folder / "out"), "--set", BATCH.format(12)]) == 0
    assert {event for _, _, event in switches(folder / "out")} == {"converged"}
    assert len(switches(folder / "out")) == 6
    return folder


BATCH = "training.per_device_train_batch_size={}"


@pytest.fixture(scope="module")
def two(one: Path) -> Path:
    """The same on two processes, three examples at a time, so that a process lacks tasks in most of its batches."""
    settings = ["--set", BATCH.format(3), "--set", "training.gradient_accumulation_steps=2"]
    said = run(TRAIN, one / "config.yaml", "--output-dir", one / "two", *settings)
    # Every table once.
    assert said.count("final checkpoint") == 1
    return one / "two"


def test_two_processes_train_as_one(one: Path, two: Path) -> None:
    """Bug: an example is seen twice or not at all, N is that of one rank, or a switch comes on one of them first.

    All head types, accumulation, batches without some tasks, an epoch that does not divide, six switches.
    """
    assert switches(two) == switches(one / "out")
    assert_same_weights(one / "out", two)


def test_metrics_are_those_of_the_whole_split(one: Path, two: Path) -> None:
    """Bug: the examples that fill up the last batch of a rank count twice, in the metric or in the loss."""
    expected, found = metrics(one / "out"), metrics(two)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4), key


def test_two_processes_resume_within_an_epoch(one: Path, two: Path) -> None:
    """Bug: the order after resuming is that of the first epoch, which upstream does not tell the sampler."""
    shutil.copytree(two / "checkpoint-16", one / "again" / "checkpoint-16")
    settings = ["--set", BATCH.format(3), "--set", "training.gradient_accumulation_steps=2"]
    run(TRAIN, one / "config.yaml", "--output-dir", one / "again", "--resume", *settings)
    assert_same_weights(two, one / "again", tolerance=0)
    assert told(one / "again") == told(two)


def test_a_run_goes_on_with_other_processes(one: Path, two: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a run can only be resumed on as many processes, or nobody says what is no longer exact."""
    shutil.copytree(two / "checkpoint-16", one / "fewer" / "checkpoint-16")
    args = [
        "train",
        str(one / "config.yaml"),
        "--output-dir",
        str(one / "fewer"),
        "--resume",
        "--set",
        BATCH.format(12),
    ]
    assert main([*args, "--set", BATCH.format(12)]) == 0
    words = "Resumed with 1 process x batch 12 x accumulation 1, after 2 x 3 x 2. A step's examples are the same; "
    assert any(record.message.startswith(words) for record in caplog.records)
    # Without dropout that is the same run.
    assert_same_weights(two, one / "fewer")


@pytest.mark.parametrize(
    ("frozen", "launch"),
    [("lora={r: 4, lora_alpha: 8}", "cpu"), ("lora={r: 4, lora_alpha: 8}", "fsdp2"), ("freeze=1", "cpu")],
)
def test_processes_with_frozen_weights(tmp_path: Path, frozen: str, launch: str) -> None:
    """Bug: a process waits for the gradient of a weight that has none, or each draws low-rank layers of its own."""
    config = write_exact_task_set(tmp_path, ["polarity", "overlap"])
    alone = ["train", str(config), "--output-dir", str(tmp_path / "one"), "--set", BATCH.format(12), "--set", frozen]
    assert main(alone) == 0
    script = FSDP if launch == "fsdp2" else TRAIN
    run(script, config, "--output-dir", tmp_path / "two", "--set", BATCH.format(6), "--set", frozen, config=launch)
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_fsdp2_trains_as_one_process(one: Path) -> None:
    """Bug: a snapshot, a teacher or a checkpoint holds one rank's shards; or the card's code is torch's own."""
    run(FSDP, one / "config.yaml", "--output-dir", one / "sharded", "--set", BATCH.format(6), config="fsdp2")
    assert switches(one / "sharded") == switches(one / "out")
    assert_same_weights(one / "out", one / "sharded")
    written = {path.name for path in (one / "out").iterdir() if path.is_file()}
    assert {path.name for path in (one / "sharded").iterdir() if path.is_file()} == written
    left, right = (json.loads((one / name / "config.json").read_text()) for name in ("out", "sharded"))
    assert left == right


def test_fsdp2_resumes(one: Path) -> None:
    """Bug: recorded logits, the best weights or the moments of a sharded run cannot be taken up again."""
    args = (one / "config.yaml", "--set", BATCH.format(6), *ADAM)
    run(FSDP, *args, "--output-dir", one / "whole", config="fsdp2")
    best = told(one / "whole")["final"]["step"]
    # A step after the best, so that the best weights come from inside the checkpoint.
    later = min(step for step in complete_checkpoints(one / "whole") if step > best) if best < 24 else 20
    shutil.copytree(one / "whole" / f"checkpoint-{later}", one / "part" / f"checkpoint-{later}")
    run(FSDP, *args, "--output-dir", one / "part", "--resume", config="fsdp2")
    assert_same_weights(one / "whole", one / "part", tolerance=0)
    assert told(one / "part") == told(one / "whole")


# -- two machines -----------------------------------------------------------------------------------------------------


def machines(one: Path, folders: tuple[Path, Path], *args: str) -> list[tuple[int, str]]:
    """Two launches of one process each, on loopback, with output folders of their own."""
    port = free_port()
    runs = []
    for rank, folder in enumerate(folders):
        launch = ["--num_machines", "2", "--machine_rank", str(rank)]
        launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        settings = ["--set", BATCH.format(6), *args]
        runs.append(start(command(TRAIN, one / "config.yaml", "--output-dir", folder, *settings, launch=launch)))
    return [end(process) for process in runs]


def test_machines_without_a_common_folder_are_told(one: Path) -> None:
    """Bug: hours later, where a task converges, one machine looks for a teacher that the other has written."""
    folders = one / "here", one / "there"
    results = machines(one, folders)
    assert all(status != 0 for status, _ in results)
    words = "must be on a file system that all machines share; it is not. Give such a folder, or set"
    assert all(words in said for _, said in results)
    assert not any(folder.exists() for folder in folders)


def test_either_of_two_machines_can_be_lost(one: Path) -> None:
    """Bug: a teacher, a snapshot or a random state is on one machine alone, and its loss is the end of the run."""
    folders, each = (one / "first", one / "second"), "training.save_on_each_node=true"
    results = machines(one, folders, "--set", each, "--set", "training.max_steps=16")
    assert all(status == 0 for status, _ in results), results[0][1][-3000:]
    left, right = (
        sorted(str(path.relative_to(folder)) for path in (folder / "checkpoint-16").rglob("*")) for folder in folders
    )
    assert left == right
    shutil.rmtree(folders[0])
    results = machines(one, folders, "--set", each, "--resume")
    assert all(status != 0 for status, _ in results)
    assert "All machines must resume from one checkpoint; process 1 has checkpoint-16 in" in results[0][1]
    shutil.copytree(folders[1] / "checkpoint-16", folders[0] / "checkpoint-16")
    results = machines(one, folders, "--set", each, "--resume")
    assert all(status == 0 for status, _ in results), results[0][1][-3000:]
    assert switches(folders[0]) == switches(one / "out")
    for folder in folders:
        assert_same_weights(one / "out" / "checkpoint-24", folder / "checkpoint-24")


# -- an early end -----------------------------------------------------------------------------------------------------


@pytest.fixture
def endless(one: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run on two processes that would not end by itself, with a checkpoint already."""
    settings = ["--set", BATCH.format(6), "--set", "training.max_steps=100000", "--set", "training.save_total_limit=2"]
    process = start(command(TRAIN, one / "config.yaml", "--output-dir", tmp_path / "out", *settings))
    waited = time.monotonic()
    while not complete_checkpoints(tmp_path / "out"):
        assert process.poll() is None, end(process)[1][-3000:]
        assert time.monotonic() - waited < 120
        time.sleep(0.1)
    yield process, tmp_path / "out"
    kill(process)


def test_a_rank_that_dies_ends_the_run(endless: tuple[subprocess.Popen[str], Path]) -> None:
    """Bug: the other ranks wait for it in a collective until the time limit of hours."""
    process, folder = endless
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    begun = time.monotonic()
    status, said = end(process, timeout=60)
    assert time.monotonic() - begun < 60
    assert status != 0
    assert "rank      : 1" in said
    assert "Signal 9 (SIGKILL)" in said
    assert complete_checkpoints(folder)


def test_a_launch_that_is_told_to_stop_can_be_resumed(one: Path, endless: tuple[subprocess.Popen[str], Path]) -> None:
    """Bug: one rank has written its part of the checkpoint and goes, and the launcher kills the other at it."""
    process, folder = endless
    # As a scheduler does it: the launcher alone is told, and tells its processes.
    os.kill(process.pid, signal.SIGTERM)
    status, said = end(process, timeout=60)
    assert status != 0
    assert said.count("interrupted at step") == 1, said[-3000:]
    step = int(said.split("interrupted at step ")[1].split(",")[0])
    assert max(complete_checkpoints(folder)) == step
    assert {path.name for path in (folder / f"checkpoint-{step}").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    steps = f"training.max_steps={step + 2}"
    run(TRAIN, one / "config.yaml", "--output-dir", folder, "--resume", "--set", BATCH.format(6), "--set", steps)
    assert told(folder)["step"] == step + 2
