"""A model in ONNX: the same answers from another engine, for every head, in batches of any shape."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from commands_here import done, refused
from families import tiny_model
from task_sets import write_task_set
from tiny import task_configs, tiny_encoder, tiny_tokenizer
from transformers import AutoTokenizer

from hf_async_mtl import ConfigurationError, MultiTaskModel
from hf_async_mtl.cli.config_file import load_config
from hf_async_mtl.data.collator import PaddedCollator
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.loading import load_splits
from hf_async_mtl.data.tokenization import encode, token_counts
from hf_async_mtl.export import onnx as export
from hf_async_mtl.export.onnx import TOLERANCE, export_onnx, open_session, run_graph
from hf_async_mtl.export.onnx_module import OnnxModule
from hf_async_mtl.inference.logits import IndexBatches, iterate_logits, split_by_example
from hf_async_mtl.metrics import compute
from hf_async_mtl.modeling.heads import HEADS
from hf_async_mtl.tasks.registry import TASK_TYPES

ALL = tuple(task_configs())


def onnx_logits(session: Any, examples: TaskDataset, tokenizer: Any, batch_size: int = 32) -> list[np.ndarray]:
    """Return the logits of each tokenized example, as `TaskType.predictions` takes them."""
    counts, name, head = token_counts(examples.rows), examples.name, HEADS[examples.task.type]

    def forward(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        logits = run_graph(session, [name], batch)[name]
        if head.unit == "token":
            logits = logits[batch["attention_mask"].bool()]
        return {name: logits.unflatten(0, (len(batch["segment_counts"]), -1)) if head.has_choices else logits}

    # Rows of similar length share a batch, so that little is padding.
    batches = IndexBatches(np.argsort(-counts, kind="stable"), batch_size)
    found: list[np.ndarray] = [np.empty(0)] * len(examples)
    for indices, logits in iterate_logits(forward, examples, PaddedCollator(tokenizer), batches):
        for index, own in split_by_example(indices, logits[name], counts if head.unit == "token" else None):
            found[index] = own
    return found


def wide(model: MultiTaskModel) -> MultiTaskModel:
    """Heads whose answers differ much."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for head in model.heads.values():
            torch.nn.init.normal_(head.linear.weight, std=1.0)
    return model


def model_of(folder: Path, pooling: str) -> MultiTaskModel:
    encoder = tiny_encoder(folder / "encoder")
    return wide(MultiTaskModel.from_encoder(encoder, task_configs(), max_length=32, pooling=pooling))


def batches(model: MultiTaskModel) -> list[dict[str, torch.Tensor]]:
    """Rows of many shapes, padded on either side."""
    found = []
    for rows, length, padding in ((1, 2, 0), (4, 11, 3), (4, 11, -3), (7, 30, 12)):
        ids = torch.randint(5, model.encoder.config.vocab_size, (rows, length))
        mask = torch.ones_like(ids)
        if padding > 0:
            mask[1:, -padding:] = 0
        elif padding < 0:
            mask[1:, :-padding] = 0
        found.append({"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)})
        found[-1]["token_type_ids"][:, length // 2 :] = 1
    return found


@pytest.fixture(scope="module", params=["cls", "mean", "max"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MultiTaskModel:
    return model_of(tmp_path_factory.mktemp(request.param), request.param)


@torch.no_grad()
def test_padded_rows_answer_as_the_model(model: MultiTaskModel) -> None:
    """Bug: a pooling reads padding, or a regression is in standard deviations."""
    dense = OnnxModule(model)
    for batch in batches(model):
        found = dict(zip(dense.tasks, dense(**batch), strict=True))
        expected = model(**batch).logits
        assert list(found) == list(ALL)
        for name, logits in expected.items():
            torch.testing.assert_close(found[name], logits.reshape(found[name].shape), atol=1e-5, rtol=1e-5)
    # Nothing was changed in the model.
    assert all(head.pooling == model.config.pooling for head in model.heads.values())


@torch.no_grad()
def test_the_graph_answers_as_the_model(model: MultiTaskModel, tmp_path: Path) -> None:
    """Bug: the number of rows or their length is that of the example that was traced."""
    export_onnx(model, tmp_path / "new" / "model.onnx")
    session = open_session(tmp_path / "new" / "model.onnx")
    assert [item.name for item in session.get_outputs()] == list(ALL)
    for batch in batches(model):
        found = session.run(list(ALL), {name: tensor.numpy() for name, tensor in batch.items()})
        for name, logits in zip(ALL, found, strict=True):
            expected = model(**batch).logits[name].numpy().reshape(logits.shape)
            assert np.abs(logits - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max()), name
    tasks = json.loads(session.get_modelmeta().custom_metadata_map["tasks"])
    assert tasks == {name: task.to_dict() for name, task in model.config.task_configs.items()}
    onnx.checker.check_model(str(tmp_path / "new" / "model.onnx"))


@pytest.mark.parametrize("family", ["roberta", "modernbert", "deberta-v2"])
def test_other_encoders_are_exported(family: str, tmp_path: Path) -> None:
    """Bug: positions, local attention or relative ones are those of the example that was traced."""
    # It compares by itself.
    export_onnx(tiny_model(family, "eager" if family == "deberta-v2" else "sdpa"), tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model with all types of task, in whose folder its configuration is."""
    folder = tmp_path_factory.mktemp("run")
    done("train", write_task_set(folder, ALL), "--output-dir", folder / "run", "--set", "training.max_steps=40")
    return folder


@pytest.fixture(scope="module")
def graph(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its export."""
    folder = tmp_path_factory.mktemp("graph")
    assert "model.onnx: 0." in done("export", run / "run", "--onnx", "--int8", "--output", folder)
    return folder


@pytest.mark.parametrize("name", ALL)
def test_metrics_of_the_graph_are_those_of_the_model(run: Path, graph: Path, name: str) -> None:
    """Bug: rows, windows or choices change places on the way through the other engine."""
    task, tokenizer = MultiTaskModel.from_pretrained(run / "run").config.task_configs[name], tiny_tokenizer()
    source = load_config(run / "config.yaml").sources[name]
    rows = encode(load_splits(name, task, source, 0)["test"], name, task, tokenizer, task.max_length or 32)
    logits = onnx_logits(open_session(graph / "model.onnx"), TaskDataset(name, 0, task, rows), tokenizer, batch_size=3)
    task_type, expected = TASK_TYPES[task.type], json.loads((run / "run" / "all_results.json").read_text())
    found = compute(
        [task.monitored], task.type, task_type.predictions(task, logits, rows), task_type.references(task, rows)
    )
    assert found[task.monitored] == pytest.approx(expected[f"test_{name}_{task.monitored}"], abs=6e-5)


def test_the_files_of_an_export(graph: Path) -> None:
    """Bug: who serves the graph has to look for the tokenizer elsewhere, or the small file is as large as the other."""
    files = {"model.onnx", "model.int8.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in graph.iterdir()} == files
    weights = [item.data_type for item in onnx.load(str(graph / "model.int8.onnx")).graph.initializer]
    assert onnx.TensorProto.INT8 in weights
    tokenizer: Any = AutoTokenizer.from_pretrained(graph)
    assert tokenizer("a red cat")["input_ids"] == tiny_tokenizer()("a red cat")["input_ids"]


def test_a_model_in_half_precision(run: Path, tmp_path: Path) -> None:
    """Bug: the other engine has no such numbers, and says so in words of its own."""
    MultiTaskModel.from_pretrained(run / "run", dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    assert "model.onnx" in done("export", tmp_path / "half", "--onnx", "--output", tmp_path / "out")


def test_what_cannot_be_exported_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: an import error of a package that the user never heard of; or a graph that answers otherwise is left."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = refused("export", run / "run", "--onnx", "--output", tmp_path / "out")
    assert "(onnxruntime): pip install 'hf-async-mtl[onnx]'" in message
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ConfigurationError, match="must give the logits of the model; those of task 'polarity' differ"):
        export_onnx(model_of(tmp_path, "cls"), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
