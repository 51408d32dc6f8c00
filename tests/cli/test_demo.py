"""The generated demo task set: the same bytes everywhere, learnable, and honest splits."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer

import hf_async_mtl.cli.demo as demo_command
import hf_async_mtl.demo.grammar as demo_grammar
from hf_async_mtl.demo.grammar import TASKS, TaskGrammar
from hf_async_mtl.demo.task_set import write_demo

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo")).parent


def rows_of(demo: Path, task: str, split: str) -> list[dict[str, Any]]:
    lines = (demo / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_bytes_do_not_depend_on_the_process(demo: Path, tmp_path: Path) -> None:
    """Hash order leaked into the rows or the tokenizer: every newcomer got another task set and other figures."""
    program = (
        "import sys, pathlib; from hf_async_mtl.demo.task_set import write_demo; write_demo(pathlib.Path(sys.argv[1]))"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "new")], env=environment, check=True)
    assert digests(tmp_path / "new") == digests(demo)


def test_another_seed_changes_every_data_file_and_the_weights(demo: Path, tmp_path: Path) -> None:
    """A part of the task set ignored the seed."""
    other = digests(write_demo(tmp_path, seed=1).parent)
    mine = digests(demo)
    assert other.keys() == mine.keys()
    same = {name for name, digest in mine.items() if other[name] == digest}
    assert not {name for name in same if name.endswith((".jsonl", ".safetensors", "demo.yaml"))}


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    """Writing the demo drew from the caller's generators, and the training after it changed."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    write_demo(tmp_path)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


@pytest.mark.parametrize("task", TASKS)
def test_no_input_occurs_twice(demo: Path, task: str) -> None:
    """A training row came back in validation or test, perhaps with its sides swapped: the metric measured memory."""
    keys = [TASKS[task].key(row) for split in SPLITS for row in rows_of(demo, task, split)]
    assert max(Counter(keys).values()) == 1


def test_a_swapped_pair_in_another_case_counts_as_a_repetition() -> None:
    """The guard against repetitions compared raw strings, so that near copies slipped through it."""
    match = TASKS["match"]
    row = {"left": "Norvik lamp - red", "right": "red lamp", "label": 1}
    assert match.key(row) == match.key({"left": "Red lamp", "right": "norvik lamp red", "label": 0})
    assert match.key(row) != match.key({"left": "Norvik lamp - red", "right": "red stool", "label": 1})


@pytest.mark.parametrize("task", ["relevance", "category", "match", "rating"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_label_is_there_and_none_dominates(demo: Path, task: str, split: str) -> None:
    """A split missed a class, or one class alone gave a good score."""
    counts = Counter(row[TASKS[task].label] for row in rows_of(demo, task, split))
    assert len(counts) == {"relevance": 4, "category": 8, "match": 2, "rating": 5}[task]
    share = {label: count / counts.total() for label, count in counts.items()}
    assert min(share.values()) > 0.3 / len(counts)
    assert max(share.values()) < min(0.6, 2 / len(counts))


@pytest.mark.parametrize("split", SPLITS)
def test_tags_are_valid_bio_of_the_same_length(demo: Path, split: str) -> None:
    """A tag list was shorter than its words, or an inside tag stood without its beginning: seqeval counted ghosts."""
    rows = rows_of(demo, "attributes", split)
    for row in rows:
        assert len(row["tokens"]) == len(row["tags"])
        assert all(word and " " not in word for word in row["tokens"])
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:]
    begun = Counter(tag for row in rows for tag in row["tags"] if tag.startswith("B-"))
    assert set(begun) == {"B-brand", "B-color", "B-material", "B-size"}
    assert min(begun.values()) > len(rows) / 3


def test_only_training_labels_are_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise got into the validation labels, and a perfect model could no longer be told from a good one."""
    asked: list[bool] = []

    def draw(rng: random.Random, noisy: bool) -> dict[str, Any]:
        asked.append(noisy)
        return {"text": str(len(asked)), "label": 0}

    TaskGrammar(draw, label="label", train_rows=40, noise=0.5).splits("seed", held_out_rows=20)
    assert 0 < sum(asked[:40]) < 40
    assert not any(asked[40:])


def test_what_says_the_same_has_the_same_label() -> None:
    """The relation of two kinds was drawn apart from the label, so that the task could not be learned."""
    rng = random.Random(0)
    place = {
        name: (category, group, kind)
        for category, groups in demo_grammar.CATALOG.items()
        for group, kinds in enumerate(groups)
        for kind, names in enumerate(kinds)
        for name in names
    }
    longest_first = sorted(place, key=len, reverse=True)

    def kind_in(text: str) -> tuple[str, int, int]:
        return place[next(name for name in longest_first if f" {name} " in f" {text} ")]

    for _ in range(300):
        row = TASKS["relevance"].draw(rng, False)
        wanted, shown = kind_in(row["query"]), kind_in(row["title"])
        if wanted == shown:
            expected = "exact"
        elif wanted[:2] == shown[:2]:
            expected = "substitute"
        else:
            expected = "complement" if wanted[0] == shown[0] else "irrelevant"
        assert row["label"] == expected, row


def test_each_name_belongs_to_one_kind() -> None:
    """One name stood for two kinds, so that no label of a title with it was right."""
    names = [name for groups in demo_grammar.CATALOG.values() for kinds in groups for kind in kinds for name in kind]
    assert max(Counter(names).values()) == 1


def test_encoder_folder_loads_with_the_auto_classes(demo: Path) -> None:
    """The encoder folder missed a file, or its tokenizer disagreed with the size of the embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(demo / "encoder", local_files_only=True)
    model = AutoModel.from_pretrained(demo / "encoder", local_files_only=True)
    assert tokenizer.is_fast
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) <= 2000
    encoded = tokenizer("Norvik desk", "desk by norvik", return_tensors="pt")
    assert set(encoded) == {"input_ids", "token_type_ids", "attention_mask"}
    assert encoded["token_type_ids"].unique().tolist() == [0, 1]
    assert model(**encoded).last_hidden_state.isfinite().all()


def test_tokenizer_knows_the_words(demo: Path) -> None:
    """The vocabulary was not trained on the rows: words fell apart, or became unknown, and rows grew long."""
    tokenizer = AutoTokenizer.from_pretrained(demo / "encoder", local_files_only=True)
    for task, grammar in TASKS.items():
        for row in rows_of(demo, task, "test"):
            encoded = tokenizer(*grammar.texts(row))
            assert tokenizer.unk_token_id not in encoded["input_ids"]
            assert len(encoded["input_ids"]) <= 64


def test_keys_equal_queries_and_weights_are_alive(demo: Path) -> None:
    """The start that makes the pair tasks learnable was lost, or two layers shared their random numbers."""
    model = AutoModel.from_pretrained(demo / "encoder", local_files_only=True)
    first, second = (layer.attention.self for layer in model.encoder.layer)
    assert torch.equal(first.query.weight, first.key.weight)
    assert not torch.equal(first.query.weight, second.query.weight)
    assert first.value.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.02)


def test_configuration_points_at_what_was_written(demo: Path) -> None:
    """The configuration named a file or a column that the task set does not have."""
    configuration = yaml.safe_load((demo / "demo.yaml").read_text(encoding="utf-8"))
    assert (demo / configuration["encoder"] / "config.json").is_file()
    assert list(configuration["tasks"]) == list(TASKS)
    for name, task in configuration["tasks"].items():
        assert set(task["data"]) == set(SPLITS)
        for split, path in task["data"].items():
            assert (demo / path) == demo / name / f"{split}.jsonl"
            assert set(rows_of(demo, name, split)[0]) == {*task["text_columns"], task["label_column"]}
            if "label_names" in task:
                assert {row[task["label_column"]] for row in rows_of(demo, name, split)} == set(task["label_names"])
    training = configuration["training"]
    assert all(isinstance(training[key], float) for key in ("learning_rate", "head_learning_rate"))


@pytest.mark.parametrize(("plain", "action"), [(False, "distill"), (True, "continue")])
def test_plain_training_differs_in_the_action_alone(
    plain: bool, action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--plain` wrote into the folder of the other run, or compared two task sets."""
    monkeypatch.chdir(tmp_path)
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(demo_command, "train", lambda *args: called.append(args))
    demo_command.run(argparse.Namespace(plain=plain, output_dir=None, resume=None))
    ((config, output_dir, _),) = called
    args = config.arguments(tmp_path)
    assert {args.convergence_of(name).on_convergence for name in TASKS} == {action}
    assert args.mixing_config.strategy == "uniform"
    assert output_dir == Path("runs/demo-plain" if plain else "runs/demo")
