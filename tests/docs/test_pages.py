"""The README and the pages of docs/: snippets are valid, links lead somewhere, and recipes run as written.

Recipes run in a fresh folder, with small data, a Hub on loopback and few steps.
"""

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset, Value
from fake_hub import Commit, Repository, serving_all
from tiny import raw_sets, tiny_encoder

from hf_async_mtl.cli.config_file import load_config
from hf_async_mtl.cli.parser import build_parser
from hf_async_mtl.tasks.presets import PRESETS

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ENCODER = "google-bert/bert-base-uncased"
TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")
FEW = "--set training.max_steps=4 --set training.eval_steps=2 --set training.use_cpu=true --set max_length=32"
"""Options that make a training command short."""
RUN_ALL = """
import json, sys
from hf_async_mtl.cli.commands import main
for part in json.loads(sys.argv[1]):
    if isinstance(part, str):
        exec(part, {})
    elif status := main(part):
        sys.exit(status)
"""
"""Runs Python texts and commands of the package one after the other, and imports the package once."""
NOT_OURS = ("python3", "pip", "pytest", "ruff", "mypy", "source", "export", "hf", "bash")
NOT_FOLLOWED = ("demo", "export")
"""Commands that have tests of their own."""


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    page: Path
    heading: str
    language: str
    text: str
    file: str | None
    """The YAML file that the text before the block names."""


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code of a page, in order."""
    found = []
    for section in re.split(r"^#+ ", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading, file = section.split("\n")[0], None
        for before, language, text in re.findall(r"(.*?)^```(\w+)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE):
            names = re.findall(r"`([\w-]+\.yaml)`", before)
            file = names[-1] if names else file
            found.append(Block(page, heading, language, text, file))
    return found


def all_blocks(*languages: str) -> list[Any]:
    """Return the blocks of some languages on all pages, as parameters of a test."""
    chosen = [block for page in PAGES for block in blocks(page) if block.language in languages]
    return [pytest.param(block, id=f"{block.page.stem}-{place}") for place, block in enumerate(chosen)]


def command_lines(text: str) -> list[list[str]]:
    """Return the commands of a block as words, without comments and variables."""
    lines = [line for part in text.replace("\\\n", " ").splitlines() for line in part.split(" && ")]
    commands = [shlex.split(line, comments=True) for line in lines]
    return [[word for word in words if not re.match(r"[A-Z_]+=", word)] for words in commands if words]


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return two mappings as one; values of the second replace those of the first."""
    both = dict(first)
    for key, value in second.items():
        inner = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if inner else value
    return both


@pytest.mark.parametrize("block", all_blocks("yaml"))
def test_yaml_is_a_configuration(block: Block, tmp_path: Path) -> None:
    """Bug: a key is renamed, and a page still has the old name."""
    base = {"encoder": ENCODER, "tasks": {name: {"preset": f"glue/{name}"} for name in ("rte", "stsb")}}
    given = yaml.safe_load(block.text)
    config = given if {"encoder", "tasks"} <= set(given) else merged(base, given)
    for section in (config, *config["tasks"].values()):
        for value in section.get("data", {}).values():
            if isinstance(value, str) and "hub" not in section["data"]:
                (tmp_path / value).touch()
    file = tmp_path / "tasks.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    assert list(load_config(file).tasks) == list(config["tasks"])


@pytest.mark.parametrize("block", all_blocks("bash"))
def test_commands_exist(block: Block) -> None:
    """Bug: a page has a command, a script or an option that has been removed."""
    for words in command_lines(block.text):
        if "-m" in words and "hf_async_mtl" in words:
            words = ["hf-async-mtl", *words[words.index("hf_async_mtl") + 1 :]]
        script = next((word for word in words if word.startswith("scripts/") and word.endswith(".py")), None)
        if Path(words[0]).name == "hf-async-mtl":
            build_parser().parse_args(words[1:])
        elif script is not None:
            text = (ROOT / script).read_text(encoding="utf-8")
            options = [word for word in words[words.index(script) :] if word.startswith("--")]
            assert script == "scripts/train.py" or [option for option in options if f'"{option}"' not in text] == []
        else:
            assert Path(words[0]).name in NOT_OURS, words
            assert [word for word in words[1:] if word.startswith("tests/") and not (ROOT / word).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_files_exist(page: Path) -> None:
    """Bug: a page, a heading, a script or a test is renamed, and a page still names the old one."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]*(?:#[^)]*)?)\)", text):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    for name in re.findall(r"\b(?:tests|scripts|src)/[\w/]+\.(?:py|yaml)", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(name)), name


def test_every_package_has_a_row() -> None:
    """Bug: a package is added or renamed, and the table for contributors does not have it."""
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Packages")[1].split("## To add")[0]
    source = ROOT / "src" / "hf_async_mtl"
    packages = [f"`{path.name}/`" for path in source.iterdir() if (path / "__init__.py").is_file()]
    modules = [f"`{path.stem}`" for path in source.glob("[a-z]*.py")]
    assert [name for name in packages + modules if name not in table] == []


def test_readme_is_short() -> None:
    """Bug: the README grows back to a manual."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert sum(len(line.split()) for line in text.splitlines() if not line.startswith("|")) <= 1300


class Newcomer:
    """A user with an empty folder, who copies and pastes."""

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

    def follow(self, page: str, *headings: str) -> str:
        """Follow sections of a page, and return what was printed."""
        parts: list[list[str] | str] = []
        launches = []
        for block in blocks(ROOT / page):
            if block.heading not in headings:
                continue
            if block.language == "yaml":
                assert block.file is not None
                (self.folder / block.file).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                parts.append(shortened_python(block.text))
            else:
                commands = command_lines(shortened(block.text))
                parts += [
                    words[1:] for words in commands if words[0] == "hf-async-mtl" and words[1] not in NOT_FOLLOWED
                ]
                launches += [words for words in commands if words[0] == "accelerate"]
        printed = self.run([sys.executable, "-c", RUN_ALL, json.dumps(parts)])
        return printed + "".join(self.run(words) for words in launches)

    def run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


def shortened(commands: str) -> str:
    """Return shell commands of a page for small data and CPUs."""
    # Two processes on CPUs stand in for all GPUs.
    launch = ROOT / "scripts" / "configs" / "launch" / "cpu.yaml"
    commands = re.sub(r"--multi_gpu( --num_processes 8)?", f"--config_file {launch}", commands)
    return re.sub(r"( train \w+\.yaml)", rf"\1 {FEW}", commands)


def shortened_python(text: str) -> str:
    """Return Python of a page for few steps and CPUs, and for the model that was trained instead of pushed."""
    text = text.replace("eval_steps=200", "eval_steps=2, max_steps=4, use_cpu=True")
    text = text.replace('["training.max_steps=100"]', repr(FEW.split()[1::2]))
    return text.replace('"user/model"', '"runs/tasks"')


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
            feature = Value("float32") if name == "stsb" else ClassLabel(names=PRESETS[f"glue/{name}"]["label_names"])
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
    hub = tmp_path_factory.mktemp("hub")
    tiny_encoder(hub / "encoder", max_position_embeddings=128)
    encoder = {path.name: path.read_bytes() for path in (hub / "encoder").iterdir()}
    write_files(folder)
    commits: list[Commit] = []
    empty = [Repository(f"user/{name}", {}, "model") for name in ("model", "products", "products-lora")]
    served = [Repository(ENCODER, encoder, "model"), Repository("nyu-mll/glue", glue()), *empty]
    with serving_all(served, commits) as address:
        yield Newcomer(folder, address, commits)


def write_files(folder: Path) -> None:
    """Write the files that the pages name as the user's own."""
    pairs = raw_sets(40)["overlap"]
    products = [
        {
            "title": row["left"],
            "description": row["right"],
            "category": "shoes" if "shoe" in row["left"] else "other",
            "price": f"{3 + row['score']:.2f}",
            "returned": "yes" if "bad" in row["right"] else "no",
        }
        for row in pairs
    ]
    write_csv(folder / "products.csv", products)
    write_csv(folder / "new.csv", [{key: row[key] for key in ("title", "description")} for row in products[:5]])
    reviews = [
        {"text": row["title"], "sentiment": row["returned"], "stars": row["price"], "id": place}
        for place, row in enumerate(products)
    ]
    for name in ("reviews.csv", "reviews-test.csv"):
        write_csv(folder / name, reviews)
    write_csv(folder / "new-reviews.csv", [{"text": row["text"]} for row in reviews])
    labels = ["sentiment", "stars"]
    partly = [{**row, labels[place % 2]: ""} for place, row in enumerate(reviews)]
    write_csv(folder / "labeled-reviews.csv", partly)
    sentences = [
        "".join(f"{word} X {tag}\n" for word, tag in zip(row["tokens"], row["tags"], strict=True))
        for row in raw_sets(12)["colors"]
    ]
    for name in ("train", "dev"):
        (folder / f"{name}.conll").write_text("-DOCSTART- X O\n\n" + "\n".join(sentences), encoding="utf-8")
    matches = [
        {"left": row["left"], "right": row["right"], "label": "yes" if row["score"] > 1 else "no"} for row in pairs
    ]
    utterances = [
        {"text": " ".join(row["tokens"]), "intent": "buy" if "red" in row["tokens"] else "ask", **row}
        for row in raw_sets(40)["colors"]
    ]
    files = {"train": matches, "dev": matches, "test": matches, "utterances": utterances}
    for name, rows in files.items():
        lines = [json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_every_recipe_is_followed() -> None:
    """Bug: a recipe is added to the page, and no test runs it."""
    text = Path(__file__).read_text(encoding="utf-8")
    headings = {block.heading for block in blocks(ROOT / "docs" / "recipes.md")}
    assert [heading for heading in headings if f'"{heading}"' not in text] == []


def test_readme(newcomer: Newcomer) -> None:
    """Bug: the first commands that a newcomer copies do not work one after the other."""
    newcomer.follow("README.md", "Train on your own tasks", "Use it from Python")
    runs = newcomer.folder / "runs"
    results = json.loads((runs / "tasks" / "all_results.json").read_text(encoding="utf-8"))
    assert "test_match_f1" in results
    assert (runs / "tasks" / "report.html").is_file()
    assert (runs / "gpus" / "model.safetensors").is_file()
    assert (runs / "rte-stsb").is_dir()
    assert "model.safetensors" in newcomer.commits[-1].files


def test_quickstart(newcomer: Newcomer) -> None:
    """Bug: a step of the quickstart needs something that the steps before it do not make."""
    printed = newcomer.follow("docs/quickstart.md", "Describe a task set", "Train", "Inspect the run", "Predict")
    assert "{'sentiment': {'label': " in printed
    assert len((newcomer.folder / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 41


def test_glue_on_one_gpu_and_on_eight(newcomer: Newcomer) -> None:
    """Bug: a preset names a column, a split or a configuration that the Hub does not have."""
    newcomer.follow("docs/recipes.md", "GLUE from the Hub, on one GPU and on eight")
    for name in ("glue", "glue8"):
        results = json.loads((newcomer.folder / "runs" / name / "all_results.json").read_text(encoding="utf-8"))
        assert {f"eval_{task}_loss" for task in TASKS} <= results.keys()


def test_csv_files_and_what_follows(newcomer: Newcomer) -> None:
    """Bug: a recipe reads a file that no other has made; or a growing run cannot be resumed."""
    recipes = ("Your own CSV files", "LoRA", "Adding a task", "Resuming", "Pushing")
    newcomer.follow("docs/recipes.md", *recipes)
    assert len((newcomer.folder / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 6
    report = json.loads((newcomer.folder / "runs" / "grown" / "convergence.json").read_text(encoding="utf-8"))
    assert report["tasks"]["category"]["phase"] == "distilling"
    pushed = [commit.files["model.safetensors"] for commit in newcomer.commits if "model.safetensors" in commit.files]
    merged_lora, grown = pushed[-2:]
    assert b"lora" not in merged_lora
    assert b"word_embeddings" in merged_lora
    assert b"heads.returned" in grown


def test_tags_and_an_intent_on_the_same_text(newcomer: Newcomer) -> None:
    """Bug: two tasks on one text cannot be read from one file, or predicted at once."""
    printed = newcomer.follow("docs/recipes.md", "Tags and an intent on the same text", "A loss of your own")
    (predictions,) = (line for line in printed.splitlines() if line.startswith("{'intent'"))
    assert predictions.startswith("{'intent': {'label': ")
    assert "'names': {'entities': [" in predictions


def test_data(newcomer: Newcomer) -> None:
    """Bug: the table of several tasks cannot be trained on as the page says, or its lines for CoNLL files lose rows."""
    newcomer.follow("docs/data.md", "One table for several tasks", "Files")
    results = json.loads((newcomer.folder / "runs" / "labeled" / "all_results.json").read_text(encoding="utf-8"))
    assert {"eval_sentiment_accuracy", "eval_stars_pearson"} <= results.keys()
    lines = (newcomer.folder / "train-tags.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == raw_sets(12)["colors"].to_list()
