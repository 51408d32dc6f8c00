"""The rows of the comparison: what a seed draws, and where the noise is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))

import build_task_set as bts  # noqa: E402

SMALL = {
    "noisy": bts.TaskRows("glue/noisy", 60, noisy=True),
    "clean": bts.TaskRows("glue/clean", 80, official_test=("validation",)),
    "weak": bts.TaskRows("weak/weak", 30, gold=True, official_test=("test",)),
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three sources whose rows can be told apart, and a task set of them."""
    monkeypatch.setattr(bts, "TASK_SETS", {"small": SMALL})
    monkeypatch.setattr(bts, "VALIDATION_ROWS", 40)
    monkeypatch.setattr(bts, "TEST_ROWS", 70)
    for name, task in SMALL.items():
        folder = tmp_path / "data" / task.source
        folder.mkdir(parents=True)
        for split, count in (("train", 200), ("validation", 30), ("test", 20), ("gold", 25)):
            rows = [{"text": f"{name} {split} {i}", "label": i % 4} for i in range(count)]
            (folder / f"{split}.jsonl").write_text("".join(map(line_of, rows)), encoding="utf-8")
    return tmp_path / "data"


def line_of(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def built(data: Path, seed: int, noise: float) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Build the task set, and read it."""
    folder = data.parent / f"{seed}-{noise}"
    bts.build("small", data, folder, seed, noise)
    return {
        name: {split: bts.read(folder / name / f"{split}.jsonl") for split in ("train", "validation", "test")}
        for name in SMALL
    }


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


def test_no_row_is_in_two_splits(data: Path) -> None:
    """A validation or test row was trained on."""
    for splits in built(data, 0, 0.3).values():
        rows = [text for split in splits.values() for text in texts(split)]
        assert len(rows) == len(set(rows))


def test_sizes_and_sources(data: Path) -> None:
    """Public test rows were left out where they are known, or read where they are not."""
    found = built(data, 0, 0.3)
    assert {name: [len(rows) for rows in splits.values()] for name, splits in found.items()} == {
        "noisy": [60, 40, 70],
        "clean": [80, 40, 70],
        "weak": [30, 25, 20],
    }
    assert all(text.split()[1] == "gold" for text in texts(found["weak"]["validation"]))
    assert all(text.split()[1] != "test" for text in texts(found["clean"]["test"]))
    assert {text.split()[1] for text in texts(found["noisy"]["test"])} == {"test", "validation", "train"}


def test_noise(data: Path) -> None:
    """Noise reached a clean task or the test, changed the rows, or was not the share that was asked for."""
    clean, noisy = built(data, 0, 0.0), built(data, 0, 0.5)
    for name, splits in noisy.items():
        for split, rows in splits.items():
            assert texts(rows) == texts(clean[name][split])
            changed = np.mean([a["label"] != b["label"] for a, b in zip(rows, clean[name][split], strict=True)])
            if name == "noisy" and split != "test":
                # Half of the labels are drawn anew, and a quarter of the draws give the old label.
                assert 0.2 < changed <= 0.5
            else:
                assert changed == 0
    assert built(data, 0, 0.0)["noisy"]["train"] == clean["noisy"]["train"]


def test_a_seed_is_a_replication(data: Path) -> None:
    """Two seeds shared their rows, so that the interval over seeds was too narrow; or a seed gave two results."""
    first, second = built(data, 0, 0.3), built(data, 1, 0.3)
    for name in ("noisy", "clean"):
        assert set(texts(first[name]["train"])) != set(texts(second[name]["train"]))
    (data.parent / "0-0.3" / "complete.json").unlink()
    assert built(data, 0, 0.3) == first
