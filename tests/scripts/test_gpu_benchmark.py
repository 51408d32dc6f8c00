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
import torch
from tiny import WORDS, tiny_encoder
from transformers import AutoTokenizer

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
    cells = {file.parent.name: json.loads(file.read_text("utf-8")) for file in tmp_path.glob("out/cells/*/*/*.json")}
    assert {name: "diagnosis" in cell for name, cell in cells.items()} == {"sum": True, "distill": False}
    assert set(cells["sum"]["diagnosis"]["tasks"]) == set(cells["sum"]["curves"])


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


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_section_of_the_page(tmp_path: Path) -> None:
    """The page showed figures of `--quick`, or lost a part that had failed."""
    page, results = tmp_path / "page.md", tmp_path / "results"
    results.mkdir()
    page.write_text("before\n<!-- gpu -->\n<!-- /gpu -->\nafter\n", encoding="utf-8")
    path = os.pathsep.join([str(FOLDER.parent), *(entry for entry in sys.path if entry)])

    def written(**parts: Any) -> tuple[str, str]:
        for name, content in parts.items():
            (results / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        command = [sys.executable, str(FOLDER / "report.py"), "--page", str(page), "--results", str(results)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        return page.read_text(encoding="utf-8"), done.stderr

    assert written()[0].splitlines()[1:6:4] == ["<!-- gpu -->", "<!-- /gpu -->"]
    assert "Not measured on a GPU yet." in page.read_text(encoding="utf-8")
    card = {"card": "Some GPU", "torch": "2.11.0", "date": "2030-01-01T00:00:00+00:00", "quick": False}
    cases = {
        "bert sdpa fp32": {"difference": 2e-6, "limit": 1e-4, "holds": True},
        "bert eager fp32": {"difference": 1e-6, "limit": 1e-4, "holds": False},
    }
    entry = {"examples_per_second": 1234.4, "ratio": 1.5, "ratio_range": [1.4, 1.6]}
    found, _ = written(
        smoke={"errors": {"part": "out of time"}, "results": {}},
        right={**card, "errors": {}, "results": {"packed": {"cases": cases, "holds": True}}},
        fast={**card, "errors": {}, "results": {"glue": {"loops": {"AsyncMTLTrainer": entry}}}},
    )
    assert "Measured on Some GPU, torch 2.11.0, 2030-01-01." in found
    assert "| packed, fp32 (2 cases) | 2.0e-06 | 1.0e-04 | **no** |" in found
    assert "| MiniLM, GLUE-5 | AsyncMTLTrainer | 1234 |  | 1.50 (1.40-1.60) |  |" in found
    assert "Failed, see the files: smoke, part." in found
    assert "without" in written(right={**card, "quick": True, "errors": {}, "results": {}})[1]


# -- the packed folder ------------------------------------------------------------------------------------------------


def test_weights_survive_packing(tmp_path: Path) -> None:
    """Bytes or tensors changed places between `pack.py` and `unpack.py`, or a word piece that is used was cleared."""
    sys.path.insert(0, str(FOLDER))
    import pack
    import unpack
    from safetensors.torch import load_file

    encoder = Path(tiny_encoder(tmp_path / "encoder"))
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "train.jsonl").write_text(json.dumps({"text": "red shoe", "label": 1}) + "\n", encoding="utf-8")
    pack.write_encoder(tmp_path / "packed", encoder, [texts])
    unpack.write_weights(tmp_path / "packed")
    found, given = load_file(tmp_path / "packed" / "model.safetensors"), load_file(encoder / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "packed")
    used = tokenizer("red shoe")["input_ids"]
    for name, tensor in found.items():
        if name.endswith("word_embeddings.weight"):
            cleared = [row for row in range(len(tensor)) if row not in used and row not in tokenizer.all_special_ids]
            assert cleared
            assert not tensor[cleared].any()
            assert torch.equal(tensor[used], given[name][used].bfloat16())
        elif name in given:
            assert torch.equal(tensor, given[name].bfloat16())
