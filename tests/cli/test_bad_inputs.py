"""The table of bad inputs: each is one message with requirement, finding and way out, before training, and no trace."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from commands_here import refused
from datasets import Dataset
from task_sets import task_set_config, write_rows, write_task_set
from tiny import tiny_tokenizer
from transformers import AutoModel, BertConfig

from hf_async_mtl import AsyncMTLTrainer
from hf_async_mtl.cli.commands import main
from hf_async_mtl.training.checkpoint_files import STATE_FILE, checkpoint_step

ALL = ("polarity", "overlap", "colors", "choice", "topics", "answer")


class Case:
    """A task set that a case spoils.

    Attributes:
        folder: Where it is.
        config: What the configuration file will say.
        args: Further arguments of the command.
        text: The whole configuration file, in the place of `config`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = task_set_config(ALL)
        self.args: list[str] = []
        self.text: str | None = None

    def file(self, task: str, split: str = "train") -> Path:
        return self.folder / "data" / task / f"{split}.jsonl"

    def rows(self, task: str, split: str = "train") -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file(task, split).read_text().splitlines()]

    def spoil(self, task: str, place: int | None, split: str = "train", **columns: Any) -> None:
        """Change some columns of a row, or of all rows."""
        rows = self.rows(task, split)
        for row in rows if place is None else [rows[place]]:
            row.update(columns)
        write_rows(self.file(task, split), rows)


def setting(path: str, value: Any) -> Callable[[Case], None]:
    """A case in which a key has this value."""

    def change(case: Case) -> None:
        *parents, last = path.split(".")
        section = case.config
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value

    return change


def without(path: str) -> Callable[[Case], None]:
    """A case in which a key is missing."""

    def change(case: Case) -> None:
        *parents, last = path.split(".")
        section = case.config
        for key in parents:
            section = section[key]
        del section[last]

    return change


def text(content: str) -> Callable[[Case], None]:
    """A case with this configuration file."""

    def change(case: Case) -> None:
        case.text = content

    return change


def argument(*args: str) -> Callable[[Case], None]:
    """A case with further arguments."""
    return lambda case: case.args.extend(args)


def row(task: str, place: int | None, split: str = "train", **columns: Any) -> Callable[[Case], None]:
    """A case in which a row, or all, has these columns."""
    return lambda case: case.spoil(task, place, split, **columns)


def content(task: str, data: bytes) -> Callable[[Case], None]:
    """A case in which a training file holds this."""
    return lambda case: case.file(task).write_bytes(data) and None


def other_file(name: str, data: bytes) -> Callable[[Case], None]:
    """A case in which the training file of polarity is another one."""

    def change(case: Case) -> None:
        (case.folder / name).write_bytes(data)
        case.config["tasks"]["polarity"]["data"]["train"] = name

    return change


def without_field(task: str, field: str, place: int | None = None) -> Callable[[Case], None]:
    """A case in which a training row, or all, has not got a field."""

    def change(case: Case) -> None:
        rows = case.rows(task)
        for found in rows if place is None else [rows[place]]:
            del found[field]
        write_rows(case.file(task), rows)

    return change


def csv(*lines: str) -> Callable[[Case], None]:
    """A case in which the training file of polarity is one of these lines."""
    return other_file("x.csv", "".join(f"{line}\n" for line in lines).encode())


def csv_of_lists(case: Case) -> None:
    Dataset.from_list(case.rows("colors")).to_csv(case.folder / "x.csv")
    case.config["tasks"]["colors"]["data"]["train"] = "x.csv"


def parquet(task: str, place: int, **columns: Any) -> Callable[[Case], None]:
    """A case in which a row of a Parquet file has these columns."""

    def change(case: Case) -> None:
        case.spoil(task, place, **columns)
        Dataset.from_list(case.rows(task)).to_parquet(case.folder / "x.parquet")
        case.config["tasks"][task]["data"]["train"] = "x.parquet"

    return change


def parquet_of_bytes(case: Case) -> None:
    """A text that is not UTF-8, which Arrow takes on trust."""
    values = pa.array([b"good", b"caf\xe9"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(values), values.buffers())
    pq.write_table(pa.table({"text": texts, "label": ["pos", "neg"]}), case.folder / "x.parquet")
    case.config["tasks"]["polarity"]["data"]["train"] = "x.parquet"


def long_context(case: Case) -> None:
    answers = {"text": ["cat"], "answer_start": [0]}
    case.spoil("answer", 3, context="cat " * 2_500_000, answers=answers)


def saved_folder(case: Case) -> None:
    Dataset.from_list([{"wrong": 1}]).save_to_disk(case.folder / "saved")
    case.config["tasks"]["polarity"]["data"]["train"] = "saved"


def broken_weights(case: Case) -> None:
    path = case.folder / "encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def no_tokenizer(case: Case) -> None:
    for path in (case.folder / "encoder").glob("token*"):
        path.unlink()


def fewer_embeddings(case: Case) -> None:
    with torch.random.fork_rng():
        tokens = len(tiny_tokenizer())
        AutoModel.from_config(
            BertConfig(vocab_size=tokens - 3, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        ).save_pretrained(case.folder / "encoder")


LATIN = b'{"text": "caf\xe9", "label": "pos"}\n{"text": "good", "label": "neg"}\n'
SURROGATE = "\ud800".encode(errors="surrogatepass")

CASES: dict[str, tuple[Callable[[Case], None], str]] = {
    # -- the configuration file
    "config: no YAML": (text("tasks: [}"), "must be YAML"),
    "config: a list": (text("- a\n- b\n"), "must"),
    "config: empty": (text(""), "must"),
    "config: a Python object": (text("encoder: !!python/object/apply:os.system ['touch hacked']\n"), "must be YAML"),
    "config: a key twice": (text("encoder: encoder\nencoder: other\n"), "The key `encoder` is written twice"),
    "config: an unknown section": (setting("convergense", {}), "The nearest known key is `convergence`"),
    "config: no encoder": (without("encoder"), "`encoder`"),
    "config: encoder is a number": (setting("encoder", 5), "`encoder`"),
    "config: no tasks": (setting("tasks", {}), "`tasks`"),
    "config: tasks are a list": (setting("tasks", ["mrpc"]), "`tasks`"),
    "config: a task is null": (setting("tasks.polarity", None), "polarity"),
    "config: a name in capitals": (setting("tasks.MRPC", {"preset": "glue/mrpc"}), "MRPC"),
    "config: a name that leaves its folder": (setting("tasks", {"../../x": {"preset": "glue/mrpc"}}), "../../x"),
    "config: a reserved name": (setting("tasks.average", {"preset": "glue/mrpc"}), "average"),
    "config: an unknown preset": (setting("tasks.x", {"preset": "glue/mrcp"}), "glue/mrcp"),
    "config: an unknown type": (setting("tasks.polarity.type", "classifcation"), "classification"),
    "config: no data": (without("tasks.polarity.data"), "data"),
    "config: no train split": (without("tasks.polarity.data.train"), "must have a train split"),
    "config: no validation split": (without("tasks.polarity.data.validation"), "{from_train: 0.1}"),
    "config: a file that is not there": (setting("tasks.polarity.data.train", "nope.jsonl"), "nope.jsonl"),
    "config: a file of another kind": (setting("tasks.polarity.data.train", "config.yaml"), "must be a file of type"),
    "config: a carve of all rows": (setting("tasks.polarity.data.validation", {"from_train": 1.5}), "between 0 and 1"),
    "config: an unset variable": (setting("tasks.polarity.data.train", "${NOWHERE}/x.jsonl"), "${NOWHERE}"),
    "config: an unknown metric": (setting("tasks.polarity.metrics", ["acuracy"]), "acuracy"),
    "config: a metric of another type": (setting("tasks.polarity.metrics", ["pearson"]), "pearson"),
    "config: no metric": (setting("tasks.polarity.metrics", []), "metrics"),
    "config: a limit of 0": (setting("tasks.polarity.max_samples", {"train": 0}), "at least 1"),
    "config: a limit of no split": (setting("tasks.polarity.max_samples", {"dev": 5}), "must name splits"),
    "config: more tokens than positions": (setting("max_length", 100), "100"),
    "config: no room for a token": (setting("max_length", 2), "max_length"),
    "config: a column that is a number": (setting("tasks.polarity.text_columns", 3), "text"),
    "config: another pooling": (setting("pooling", "first"), "first"),
    "config: a seed that is a word": (setting("seed", "lucky"), "seed"),
    "config: an unknown criterion": (setting("convergence.criterion", "plato"), "plato"),
    "config: no patience": (setting("convergence.patience", 0), "patience"),
    "config: an unknown action": (setting("convergence.on_convergence", "distil"), "distil"),
    "config: a temperature of 0": (setting("distillation.temperature", 0), "temperature"),
    "config: a share above 1": (setting("distillation.hard_label_weight", 2), "hard_label_weight"),
    "config: a teacher of no task": (setting("distillation.teachers", {"nope": "encoder"}), "nope"),
    "config: a teacher that is none": (setting("distillation.teachers", {"polarity": "data"}), "data"),
    "config: an unknown mixing": (setting("mixing.strategy", "random"), "random"),
    "config: an unknown balancing": (setting("balancing.method", "pcgard"), "pcgrad"),
    "config: an order without a task": (
        setting("schedule", {"mode": "sequential", "order": ["polarity"]}),
        "must name each",
    ),
    "config: an unknown field of training": (setting("training.lerning_rate", 1), "learning_rate"),
    "config: a field without effect": (setting("training.label_smoothing_factor", 0.1), "has no effect here"),
    "config: a rate that is a word": (setting("training.learning_rate", "fast"), "learning_rate"),
    "config: a schedule that is none": (setting("training.lr_scheduler_type", "linar"), "linar"),
    "config: no evaluation": (setting("training.eval_strategy", "no"), "eval_strategy"),
    "config: another best metric": (setting("training.metric_for_best_model", "loss"), "metric_for_best_model"),
    "config: teachers on the Hub": (setting("training.hub_strategy", "checkpoint"), "would upload the teachers"),
    "config: what to do with NaN": (
        setting("training.on_nonfinite", "skip"),
        "`training.on_nonfinite` has been removed",
    ),
    "config: --set without a value": (argument("--set", "seed"), "An override must be key.path=value"),
    "config: --set of no YAML": (argument("--set", "seed=[}"), "must be YAML"),
    # -- files of rows
    "rows: no JSON": (content("polarity", b'{"text": \n'), "could not be read"),
    "rows: an empty file": (content("polarity", b""), "must have rows"),
    "rows: blank lines": (content("polarity", b"\n\n"), "must have rows"),
    "rows: not UTF-8": (content("polarity", LATIN), "must be UTF-8"),
    "rows: labels not UTF-8": (content("polarity", LATIN.replace(b"pos", b"p\xf6s")), "must be UTF-8"),
    "rows: a CSV that is not UTF-8": (other_file("x.csv", b"text,label\ncaf\xe9,pos\n"), "must be lines of UTF-8"),
    "rows: a Parquet file that is not UTF-8": (parquet_of_bytes, "must be UTF-8; found b'\\xe9' after b'caf'"),
    "rows: half a surrogate": (row("polarity", 3, text="good \ud800 cat"), "row 3"),
    "rows: half a surrogate as a label": (row("polarity", 3, label="\ud800"), "row 3"),
    "rows: half a surrogate in bytes": (content("polarity", LATIN.replace(b"\xe9", SURROGATE)), "must be UTF-8"),
    "rows: half a surrogate in a CSV": (other_file("x.csv", b"text,label\n" + SURROGATE), "must be lines of UTF-8"),
    "rows: a CSV with ragged lines": (other_file("x.csv", b"text,label\na,pos\nb,c,d,neg\n"), "could not be read"),
    "rows: a CSV with a cell too many": (csv("text,label", "no, thanks,neg", "yes, please,pos"), "as many cells"),
    "rows: a CSV with an empty text": (csv("text,label", "good,pos", ",neg"), "column 'text', row 1"),
    "rows: a CSV with lists": (csv_of_lists, "CSV files have no lists"),
    "rows: no Parquet": (other_file("x.parquet", b"PAR1 and then nothing"), "could not be read"),
    "rows: a Parquet file with a null for a text": (parquet("polarity", 3, text=None), "column 'text', row 3"),
    "rows: a Parquet file with a score that is none": (parquet("overlap", 3, score=float("nan")), "'score', row 3"),
    "rows: a Parquet file with fewer tags": (parquet("colors", 3, tags=["O"]), "column 'tags', row 3"),
    "rows: a column is missing": (without_field("polarity", "text"), "reads the column 'text'"),
    "rows: a column of labels is missing": (without_field("polarity", "label"), "reads the column 'label'"),
    "rows: a text is missing": (without_field("polarity", "text", 3), "column 'text', row 3"),
    "rows: words are missing": (without_field("colors", "tokens", 3), "column 'tokens', row 3"),
    "rows: a choice is missing": (without_field("choice", "second", 3), "column 'second', row 3"),
    "rows: a saved folder of other columns": (saved_folder, "'text'"),
    "rows: a text is null": (row("polarity", 3, text=None), "row 3"),
    "rows: a text is a number": (row("polarity", None, text=7), "row 0"),
    "rows: a text is sometimes a number": (row("polarity", 3, text=7), "polarity"),
    "rows: a text is a list": (row("polarity", None, text=["good"]), "row 0"),
    "rows: a side of a pair is null": (row("overlap", 3, right=None), "column 'right', row 3"),
    "rows: no label": (
        row("polarity", None, label=None),
        "train rows must have labels; found none in 'label' of 24",
    ),
    "rows: no label in validation": (row("polarity", None, "validation", label=None), "the validation rows must have"),
    "rows: a label is empty": (row("polarity", 3, label=""), "Column 'label', row 3"),
    "rows: a label is a list": (row("polarity", None, label=["pos"]), "label"),
    "rows: numbers and words as labels": (row("polarity", 3, label=1), "train split: Column 'label': The labels"),
    "rows: a validation split of other classes": (row("polarity", None, "validation", label="meh"), "found 'meh'"),
    "rows: a test split of other classes": (
        row("polarity", None, "test", label="POS"),
        "Task 'polarity', test split, column 'label', row 0: A label must be one of [neg, pos] or its index; found",
    ),
    "rows: one class": (row("polarity", None, label="pos"), "needs two classes or more"),
    "rows: a score is a word": (row("overlap", None, score="high"), "score"),
    "rows: a score is sometimes a word": (row("overlap", 3, score="high"), "Column 'score', row 3"),
    "rows: a score is infinite": (row("overlap", 3, score=float("inf")), "finite number; found inf"),
    "rows: a score is not a number": (row("overlap", 3, score=float("nan")), "finite number; found nan"),
    "rows: a score of validation is none": (row("overlap", 3, "validation", score=float("nan")), "'score', row 3"),
    "rows: fewer tags than words": (row("colors", 3, tags=["O"]), "row 3"),
    "rows: more tags than words": (row("colors", 3, tokens=["red"], tags=["O"] * 5), "1 words; found 5"),
    "rows: fewer tags than words in validation": (row("colors", 3, "validation", tags=["O"]), "row 3"),
    "rows: fewer tags than words in test": (row("colors", 3, "test", tags=["O"]), "row 3"),
    "rows: no word": (row("colors", 3, tokens=[], tags=[]), "row 3"),
    "rows: a word is a number": (row("colors", 3, tokens=[7], tags=["O"]), "column 'tokens', row 3"),
    "rows: a tag is null": (row("colors", 3, tokens=["red"], tags=[None]), "Column 'tags', row 3"),
    "rows: a tag is empty": (row("colors", 3, tokens=["red"], tags=[""]), "Column 'tags', row 3"),
    "rows: numbers and words as tags": (row("colors", 3, tokens=["red"], tags=[1]), "found both, 'B-color' and 1"),
    "rows: a word is null": (row("colors", 3, tokens=["red", None], tags=["O", "O"]), "row 3"),
    "rows: a choice in words": (row("choice", None, label="1"), "column 'label', row 0"),
    "rows: a choice out of range": (row("choice", 3, label=2), "row 3"),
    "rows: a topic twice": (row("topics", 3, topics=["cat", "cat"]), "row 3"),
    "rows: topics are a word": (row("topics", None, topics="cat"), "topics"),
    "rows: an answer that is not there": (row("answer", 3, answers={"text": ["x"], "answer_start": [0]}), "row 3"),
    "rows: an answer before the start": (row("answer", 3, answers={"text": ["x"], "answer_start": [-5]}), "row 3"),
    "rows: an empty context": (row("answer", 3, context=""), "column 'answers', row 3"),
    "rows: a context of 10 MB": (long_context, "no more than 24,000 tokens"),
    "rows: no answer": (row("answer", 3, answers={"text": [], "answer_start": []}), "row 3"),
    # -- encoders
    "model: no folder": (setting("encoder", "./nope"), "nope"),
    "model: a folder without a model": (setting("encoder", "data"), "data"),
    "model: weights cut short": (broken_weights, "encoder"),
    "model: no tokenizer": (no_tokenizer, "tokenizer"),
    "model: a tokenizer of a larger model": (fewer_embeddings, "tokenizer"),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    write_task_set(folder, ALL)
    return folder


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step would come too late."""
    monkeypatch.setattr(AsyncMTLTrainer, "training_step", lambda *args, **kwargs: pytest.fail("It began to train."))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_message(name: str, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a traceback, a message that names nothing, an hour of training before it, or files that are left behind."""
    change, words = CASES[name]
    shutil.copytree(pristine, tmp_path / "task_set")
    case = Case(tmp_path / "task_set")
    change(case)
    config = case.folder / "config.yaml"
    config.write_text(yaml.safe_dump(case.config, sort_keys=False) if case.text is None else case.text)
    monkeypatch.chdir(case.folder)
    before = contents(case.folder)
    message = refused("train", config, "--output-dir", "out", *case.args)
    assert words in message
    assert len(message) < 1000
    assert contents(case.folder) == before
    assert not (case.folder / "out").exists()


def test_the_table_is_long_enough() -> None:
    """Bug: cases are lost in a merge, and the page of guarantees still counts them."""
    page = Path(__file__).parents[2] / "docs" / "guarantees.md"
    assert f"{len(CASES) + len(CHECKPOINTS)} cases;" in page.read_text(encoding="utf-8")


# -- checkpoints ------------------------------------------------------------------------------------------------------


def cut(name: str) -> Callable[[Path], None]:
    """A checkpoint in which a file is cut short."""

    def change(checkpoint: Path) -> None:
        path = next(checkpoint.glob(name))
        # A hard link: another checkpoint's is not to change.
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])

    return change


def gone(name: str) -> Callable[[Path], None]:
    """A checkpoint in which a file is missing."""
    return lambda checkpoint: next(checkpoint.glob(name)).unlink()


def other_shape(checkpoint: Path) -> None:
    path = checkpoint / "_teachers" / "logits-polarity.npy"
    logits = np.load(path)
    path.unlink()
    np.save(path, np.zeros((len(logits), 5), dtype=np.float32))


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no state of ours": (gone(STATE_FILE), STATE_FILE),
    "state of ours cut short": (cut(STATE_FILE), STATE_FILE),
    "no Trainer state": (gone("trainer_state.json"), "trainer_state.json"),
    "Trainer state cut short": (cut("trainer_state.json"), "trainer_state.json"),
    "weights cut short": (cut("model.safetensors"), "model.safetensors"),
    "weights missing": (gone("model.safetensors"), "model.safetensors"),
    "moments cut short": (cut("optimizer.pt"), "optimizer.pt"),
    "moments missing": (gone("optimizer.pt"), "optimizer.pt"),
    "random state cut short": (cut("rng_state.pth"), "rng_state.pth"),
    "a teacher cut short": (cut("_teachers/logits-polarity.npy"), "logits-polarity.npy"),
    "a teacher missing": (gone("_teachers/logits-polarity.json"), "logits-polarity.json"),
    "a teacher's logits missing": (gone("_teachers/logits-polarity.npy"), "logits-polarity.npy"),
    "a teacher's offsets cut short": (cut("_teachers/offsets-polarity.npy"), "offsets-polarity.npy"),
    "a teacher of another shape": (other_shape, "and of the shape [24, 2]; found 24 and [24, 5]"),
    "a snapshot cut short": (cut("_teachers/snapshot-*"), "snapshot-"),
    "a snapshot missing": (gone("_teachers/snapshot-*"), "snapshot-"),
    "resampled scores cut short": (cut("_teachers/resamples.safetensors"), "resamples.safetensors"),
    "resampled scores missing": (gone("_teachers/resamples.safetensors"), "resamples.safetensors"),
}


@pytest.fixture(scope="module")
def a_run(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration and a run of it that has checkpoints with teachers and snapshots."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(pristine, folder / "task_set")
    config = folder / "task_set" / "config.yaml"
    config.write_text(yaml.safe_dump(task_set_config(("polarity", "overlap"))))
    # polarity converges at the first evaluation that is no better, overlap never.
    patience = "tasks.overlap.convergence={patience: 99}"
    settings = ["--set", patience, "--set", "training.max_steps=60"]
    assert main(["train", str(config), "--output-dir", str(folder / "out"), *settings]) == 0
    checkpoints = sorted((folder / "out").glob("checkpoint-*"), key=checkpoint_step)
    return config, next(path for path in checkpoints if any(path.glob("_teachers/logits-*")))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint_is_one_message(
    name: str,
    a_run: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """Bug: a run is resumed with what is left of a checkpoint, or ends in a traceback of the library that reads it."""
    change, words = CHECKPOINTS[name]
    config, source = a_run
    checkpoint = tmp_path / "elsewhere" / source.name
    shutil.copytree(source, checkpoint)
    change(checkpoint)
    settings = ["--set", "tasks.overlap.convergence={patience: 99}", "--set", "training.max_steps=60"]
    args = ["train", str(config), "--output-dir", str(tmp_path / "out"), *settings]
    before = contents(checkpoint)
    assert words in refused(*args, "--resume", checkpoint)
    assert not (tmp_path / "out").exists()
    assert contents(checkpoint) == before
