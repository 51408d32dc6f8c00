"""The benchmark for a GPU machine, on this processor in tiny sizes."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import WORDS, tiny_encoder

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks" / "gpu"
PARTS = ("smoke", "right", "fast", "quality")
# Source -> training rows, and a row: the columns of the Hub. noisy5 draws 8,000 and 400 rows of the last two.
Text = Callable[[], str]
SOURCES: dict[str, tuple[int, Callable[[Text, int], dict[str, Any]]]] = {
    "glue/cola": (40, lambda text, place: {"sentence": text(), "label": place % 2}),
    "glue/mrpc": (40, lambda text, place: {"sentence1": text(), "sentence2": text(), "label": place % 2}),
    "glue/rte": (40, lambda text, place: {"sentence1": text(), "sentence2": text(), "label": place % 2}),
    "glue/stsb": (920, lambda text, place: {"sentence1": text(), "sentence2": text(), "label": place % 6 * 1.0}),
    "ecommerce/counterfactual": (920, lambda text, place: {"sentence": text(), "label": place % 2}),
    "ecommerce/stars": (920, lambda text, place: {"text": text(), "label": 1.0 + place % 5}),
    "glue/sst2": (8410, lambda text, place: {"sentence": text(), "label": place % 2}),
    "glue/qnli": (8410, lambda text, place: {"question": text(), "sentence": text(), "label": place % 2}),
}


def write_data(folder: Path) -> Path:
    dice = random.Random(0)

    def text() -> str:
        return " ".join(dice.choices(WORDS, k=dice.randint(2, 5)))

    for source, (rows, make) in SOURCES.items():
        for split, count in (("train", rows), ("validation", 20), ("test", 20)):
            file = folder / source / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(make(text, place)) + "\n" for place in range(count)), encoding="utf-8")
    return folder


def results_named(content: Any, key: str) -> Iterator[Any]:
    """All values of a key, at any depth."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            yield from results_named(value, key)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="run.sh needs bash and `timeout`")
def test_all_parts_run_and_hold(tmp_path: Path) -> None:
    """A part crashed on a machine that was rented for it, or a check that cannot fail was reported as right."""
    variables = {
        **os.environ,
        "PYTHON": sys.executable,  # in place of an installation from the packed folder
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "DATA": str(write_data(tmp_path / "data")),
        "ENCODER": str(tiny_encoder(tmp_path / "encoder")),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", str(FOLDER / "run.sh"), "--device", "cpu", "--quick", str(tmp_path / "out")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {part: json.loads((tmp_path / "out" / f"{part}.json").read_text(encoding="utf-8")) for part in PARTS}
    for content in found.values():
        assert content["errors"] == {}
        assert content["card"].startswith("none")
        assert str(tmp_path) not in json.dumps(content), "a path of this machine is in the figures"
    right = found["right"]["results"]
    assert set(right) == {"packed", "losses", "resume"}, "memory needs a GPU"
    assert all(results_named(found, "holds"))
    assert right["resume"]["bitwise"]
    assert len(right["packed"]["cases"]) == 8
    assert found["fast"]["results"]["glue"]["loops"]["AsyncMTLTrainer"]["ratio"] > 0
    assert found["fast"]["results"]["stalls"]["per_step"]["AsyncMTLTrainer, distilling"] is not None
    assert found["quality"]["results"]["pair"]["pairs"] == 1


def test_a_failed_part_is_in_its_file(tmp_path: Path) -> None:
    """A part that ran out of time took its finished measurements with it, or nobody saw that it had failed."""
    (tmp_path / "fast.json").write_text(
        json.dumps({"part": "fast", "results": {"matmul": {"flops": 1.0}}, "errors": {}}), encoding="utf-8"
    )
    (tmp_path / "fast.log").write_text("fast: glue\nKilled\n", encoding="utf-8")
    script = [sys.executable, str(FOLDER / "common.py"), str(tmp_path), "fast"]
    subprocess.run([*script, "170"], check=True)
    content = json.loads((tmp_path / "fast.json").read_text(encoding="utf-8"))
    assert content["results"] == {"matmul": {"flops": 1.0}}
    assert content["errors"]["part"].endswith("fast: glue\nKilled")
    shown = subprocess.run(script, capture_output=True, text=True)
    assert (shown.returncode, "within 170 s" in shown.stderr) == (1, True)
