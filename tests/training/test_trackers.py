"""What TensorBoard and W&B get of a run: each task's loss, metric, phase and weight, under names that group."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from runs import tiny_trainer
from task_sets import write_task_set
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import integrations

from hf_async_mtl.cli import config_file

SIZES = {"polarity": 16, "overlap": 16}
# Polarity converges at the second evaluation, overlap never does.
SCRIPT = {"polarity": [0.5, 0.4, 0.4, 0.4], "overlap": [0.1, 0.2, 0.3, 0.4]}
Curves = Mapping[str, Sequence[tuple[float, float]]]


def train(folder: Path, tracker: str) -> None:
    tiny_trainer(folder, SIZES, SCRIPT, report_to=tracker, num_train_epochs=4, balancing={"method": "uw"}).train()


def check(curves: Curves) -> None:
    """Check the curves of such a run: name -> steps and values."""
    wanted = {f"eval/{name}_loss" for name in SIZES} | {f"train/{name}_loss" for name in SIZES}
    wanted |= {f"train/{kind}/{name}" for kind in ("phase", "weight") for name in SIZES}
    assert wanted | {"eval/polarity_accuracy", "eval/overlap_pearson", "eval/average", "train/loss"} <= curves.keys()
    assert [value for _, value in curves["eval/polarity_accuracy"]] == pytest.approx(SCRIPT["polarity"])
    # Learning is 1, distilling 2; the phase moves at the evaluation of step 8, after the log of that step.
    assert curves["train/phase/polarity"] == [(4, 1.0), (8, 1.0), (12, 2.0), (16, 2.0)]
    assert {value for _, value in curves["train/phase/overlap"]} == {1.0}
    # Who distils has left the balanced set, and the other has all of it.
    first, last = curves["train/weight/overlap"][0], curves["train/weight/overlap"][-1]
    assert first[1] != pytest.approx(last[1], abs=0.05)
    assert [step for step, _ in curves["train/weight/polarity"]] == [4, 8]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*", "ignore::DeprecationWarning:google.*")
def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a curve is missing, or all tasks are in one long list."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    train(tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    check({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]})


# -- W&B --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where W&B keeps its runs: offline, with all that it writes in one place, and its process ended afterwards."""
    import wandb

    folder, here = tmp_path / "wandb", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(folder))
    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield folder
    wandb.teardown()
    assert list(here.iterdir()) == []


def records(folder: Path) -> list[list[Any]]:
    """What W&B has written of each run, in the order of their beginning: the messages that it would send.

    Its files are LevelDB logs, of blocks of 32 KiB, behind seven bytes of its own.
    """
    from wandb.proto import wandb_internal_pb2 as messages

    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns):
        content, place, message, found = path.read_bytes(), 7, b"", []
        while place < len(content):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            length, kind = struct.unpack_from("<HB", content, place + 4)
            message += content[place + 7 : place + 7 + length]
            place += 7 + length
            # Whole, or the last part of one.
            if kind in (1, 4):
                found.append(messages.Record.FromString(message))
                message = b""
        runs.append(found)
    return runs


def curves_of(run: Sequence[Any]) -> Curves:
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in run:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                curves.setdefault(name, []).append((row.get("train/global_step"), value))
    return curves


def test_wandb(wandb_folder: Path, tmp_path: Path) -> None:
    """Bug: a curve is missing, is outside the groups `train` and `eval`, or has no optimizer step to be drawn at."""
    import wandb

    train(tmp_path / "run", "wandb")
    wandb.finish()
    # Its service is another process, and may still be writing.
    wandb.teardown()
    (run,) = records(wandb_folder)
    curves = curves_of(run)
    check(curves)
    named = {name: points for name, points in curves.items() if not name.startswith("_")}
    assert {name.split("/")[0] for name in named} == {"train", "eval"}
    assert {step for points in named.values() for step, _ in points} == {4, 8, 12, 16}
    assert {len(curves[f"eval/{key}"]) for key in ("average", "polarity_loss", "overlap_pearson")} == {4}


# -- none -------------------------------------------------------------------------------------------------------------


def test_no_tracker_is_imported_that_nobody_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: every command waits for W&B, which is imported to see whether it is there."""
    config = config_file.load_config(write_task_set(tmp_path))
    monkeypatch.setattr(integrations, "get_available_reporting_integrations", lambda: pytest.fail("It was asked."))
    assert config.arguments(tmp_path / "run").report_to == []
