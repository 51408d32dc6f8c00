"""The speed benchmark runs, and compares like with like."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import raw_sets, tiny_encoder

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "speed.py"


def tiny_glue(folder: Path, rows: int) -> str:
    """The five tasks with the columns of the Hub and so many rows each."""
    sets = raw_sets(rows)
    for task in ("cola", "sst2", "mrpc", "stsb", "rte"):
        lines = []
        for index in range(rows):
            text, pair = sets["polarity"][index], sets["overlap"][index]
            label = pair["score"] if task == "stsb" else int(text["label"] == "pos")
            columns = {"sentence1": pair["left"], "sentence2": pair["right"]}
            if task in ("cola", "sst2"):
                columns = {"sentence": text["text"]}
            lines.append(json.dumps({**columns, "label": label, "idx": index}))
        (folder / task).mkdir(parents=True)
        (folder / task / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


@pytest.mark.skipif(os.name != "posix", reason="the benchmark reads memory from the Unix-only module `resource`")
def test_all_loops_do_the_same_work(tmp_path: Path) -> None:
    """The hand-written loop saw other batches, weights or losses than the trainer: ratios of unlike work."""
    encoder = tiny_encoder(tmp_path / "encoder", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    output = tmp_path / "figures" / "speed.json"
    options = {"data": tiny_glue(tmp_path / "glue", rows=8), "encoder": encoder, "output": output}
    options |= {"steps": 1, "rounds": 1, "batch-size": 8, "max-length": 32, "threads": 1}
    command = [sys.executable, str(SCRIPT)]
    command += [str(item) for key, value in options.items() for item in (f"--{key}", value)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trainer, auto" in done.stdout

    result = json.loads(output.read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(result), "a path of this machine is in the figures"
    variants = result["variants"]
    assert len(variants) == 6
    for entry in variants:
        assert len(entry["rounds"]) == 1
        figures = [entry["examples_per_second"], entry["speed_ratio"], entry["memory_ratio"], entry["real_tokens"]]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures)
        assert entry["real_tokens"] <= 1
        if entry["loop"].startswith("plain"):
            assert entry["speed_ratio"] == entry["memory_ratio"] == 1
    for losses in ("learning", "distilling"):
        found = [entry["rounds"][0]["loss"] for entry in variants if entry["losses"] == losses]
        assert found == pytest.approx([found[0]] * 3, rel=1e-5)
    shares = {entry["loop"]: entry["real_tokens"] for entry in variants}
    assert shares["trainer, off"] >= shares["plain PyTorch"]
