"""The README's recipes, as they stand there, in a fresh folder: small data, a Hub on loopback, few steps."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Value
from fake_hub import Commit, Repository, serving_all
from tiny import raw_sets, tiny_encoder

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
ENCODER = "google-bert/bert-base-uncased"
TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")
FEW = "--set training.max_steps=4 --set training.eval_steps=2 --set training.use_cpu=true --set max_length=32"
"""What makes a training command short."""


def recipes() -> dict[str, list[tuple[str, str]]]:
    """Title -> its blocks, each a language and a text, in order; one of YAML begins with its file's name."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Recipes\n")[1].split("\n## ")[0]
    found: dict[str, list[tuple[str, str]]] = {}
    for part in section.split("\n**")[1:]:
        title = part.split("**")[0]
        blocks = re.findall(r"```(\w+)\n(.*?)```", part, flags=re.DOTALL)
        name = re.search(r"`(\w+\.yaml)`", part.split("```")[0])
        found[title] = [(kind, f"# {name[1]}\n{text}" if kind == "yaml" and name else text) for kind, text in blocks]
    return found


class Newcomer:
    """Somebody with an empty folder, who copies and pastes."""

    def __init__(self, folder: Path, address: str, commits: list[Commit]) -> None:
        self.folder, self.commits = folder, commits
        hub = {
            "HF_ENDPOINT": address,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {"PATH": path, "NO_PROXY": "127.0.0.1", "HF_TOKEN": "hf_of_nobody", "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **hub, **ours}

    def follow(self, title: str) -> str:
        """Follow a recipe; what was printed."""
        said = []
        for kind, text in recipes()[title]:
            if kind == "yaml":
                name = text.splitlines()[0].removeprefix("# ")
                (self.folder / name).write_text(text, encoding="utf-8")
            elif kind == "python":
                said.append(self.run([sys.executable, "-c", text]))
            else:
                said.append(self.run(["bash", "-e", "-c", shortened(text)]))
        return "".join(said)

    def run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


def shortened(commands: str) -> str:
    """Shell commands as the README has them, for small data and a processor."""
    # The token is in the environment.
    commands = commands.replace("hf auth login\n", "")
    # Two processes on the processor stand in for eight on GPUs.
    launch = ROOT / "scripts" / "configs" / "launch" / "cpu.yaml"
    commands = commands.replace("--multi_gpu --num_processes 8", f"--config_file {launch}")
    return re.sub(r"( train \w+\.yaml)", rf"\1 {FEW}", commands)


def parquet(rows: Dataset) -> bytes:
    file = io.BytesIO()
    rows.to_parquet(file)
    return file.getvalue()


def glue() -> dict[str, bytes]:
    """The files of five tasks of GLUE as the Hub has them, with few rows of our own."""
    files, card = {}, ""
    for name in TASKS:
        card += f"- config_name: {name}\n  data_files:\n"
        for seed, split in enumerate(("train", "validation", "test")):
            sets = raw_sets(24, seed)
            single = name in ("cola", "sst2")
            columns: dict[str, list[Any]] = (
                {"sentence": sets["polarity"]["text"]}
                if single
                else {"sentence1": sets["overlap"]["left"], "sentence2": sets["overlap"]["right"]}
            )
            scores, classes = sets["overlap"]["score"], [int(label == "pos") for label in sets["polarity"]["label"]]
            columns["label"] = list(scores if name == "stsb" else classes)
            if split == "test":
                # As on the Hub, which keeps them back.
                columns["label"] = [-1] * 24
            rows = Dataset.from_dict({**columns, "idx": list(range(24))})
            feature = Value("float32") if name == "stsb" else ClassLabel(names=["no", "yes"])
            files[f"{name}/{split}-00000-of-00001.parquet"] = parquet(rows.cast_column("label", feature))
            card += f"  - split: {split}\n    path: {name}/{split}-*\n"
    return {"README.md": f"---\nconfigs:\n{card}---\n".encode(), **files}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    folder = tmp_path_factory.mktemp("newcomer")
    tiny_encoder(tmp_path_factory.mktemp("hub") / "encoder")
    encoder = {path.name: path.read_bytes() for path in (tmp_path_factory.getbasetemp()).glob("hub0/encoder/*")}
    titles = raw_sets(40)["overlap"]
    products = [
        {
            "title": row["left"],
            "description": row["right"],
            "category": "shoes" if "shoe" in row["left"] else "other",
            "price": f"{3 + row['score']:.2f}",
            "returned": "yes" if "bad" in row["right"] else "no",
        }
        for row in titles
    ]
    write_csv(folder / "products.csv", products)
    write_csv(
        folder / "new.csv", [{"title": row["left"], "description": row["right"]} for row in titles.select(range(5))]
    )
    lines = []
    for row in raw_sets(40)["colors"]:
        intent = "buy" if "red" in row["tokens"] else "ask"
        lines.append(json.dumps({"text": " ".join(row["tokens"]), "intent": intent, **row}))
    (folder / "said.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    commits: list[Commit] = []
    empty = [Repository(f"user/{name}", {}, "model") for name in ("products", "products-lora")]
    served = [Repository(ENCODER, encoder, "model"), Repository("nyu-mll/glue", glue()), *empty]
    with serving_all(served, commits) as address:
        yield Newcomer(folder, address, commits)


def test_every_recipe_is_followed() -> None:
    """Bug: a recipe is added to the README, and nobody runs it."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [title for title in recipes() if f'follow("{title}")' not in text] == []


def test_glue_on_one_gpu_and_on_eight(newcomer: Newcomer) -> None:
    """Bug: a preset names a column, a split or a configuration that the Hub does not have."""
    newcomer.follow("GLUE from the Hub, on one GPU and on eight")
    for name in ("glue", "glue8"):
        results = json.loads((newcomer.folder / "runs" / name / "all_results.json").read_text(encoding="utf-8"))
        assert {f"eval_{task}_loss" for task in TASKS} <= results.keys()


def test_csv_files_and_what_follows(newcomer: Newcomer) -> None:
    """Bug: a recipe reads what another has not made, or its command has gone; or a growing run cannot be resumed."""
    newcomer.follow("Your own CSV files")
    answers = (newcomer.folder / "answers.csv").read_text(encoding="utf-8").splitlines()
    assert len(answers) == 6
    newcomer.follow("Adding a task")
    report = json.loads((newcomer.folder / "runs" / "grown" / "convergence.json").read_text(encoding="utf-8"))
    assert {name: task["phase"] == "distilling" for name, task in report["tasks"].items()}["category"]
    said = newcomer.follow("Resuming")
    assert "Model, card, plots and figures are in runs/grown" in said
    newcomer.follow("Pushing")
    assert "model.safetensors" in newcomer.commits[-1].files
    newcomer.follow("LoRA")
    assert b"lora" not in newcomer.commits[-1].files["model.safetensors"]
    assert b"word_embeddings" in newcomer.commits[-1].files["model.safetensors"]


def test_names_and_intent_on_one_text(newcomer: Newcomer) -> None:
    """Bug: two tasks on one text cannot be read from one file, or asked at once."""
    said = newcomer.follow("Names and intent on one text")
    answers = said.strip().splitlines()[-1]
    assert answers.startswith("{'intent': [{'label': ")
    assert "'names': [" in answers
