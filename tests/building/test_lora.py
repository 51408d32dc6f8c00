"""Low-rank layers on the encoder: trained, resumed, merged in the final model, and saved alone for peft."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from commands_here import done, refused
from families import FAMILIES, packed, random_examples, tiny_model
from safetensors.torch import load_file
from task_sets import task_set_config, write_config, write_task_set
from tiny import raw_sets, task_configs, tiny_tokenizer
from transformers import AutoModel, AutoTokenizer, pipeline

from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments, ConfigurationError, MultiTaskModel
from hf_async_mtl.building.lora import add_lora, is_adapter, merge_lora

TASKS = ("polarity", "overlap", "colors")
LORA = {"r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three tasks with low-rank layers, which converge and distil."""
    folder = tmp_path_factory.mktemp("lora")
    write_task_set(folder, TASKS)
    config = {**task_set_config(TASKS), "lora": LORA}
    config["training"] |= {"load_best_model_at_end": False, "learning_rate": 0.02}
    done("train", write_config(folder, config, "lora"), "--output-dir", folder / "run")
    return folder / "run"


def answers(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    batch = tiny_tokenizer()(["the red cat", "a very big sofa is not good"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], logits, **tolerance)


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_begins_as_it_was(family: str) -> None:
    """Bug: an encoder that peft does not know is refused, or answers otherwise before anything was learned."""
    model = tiny_model(family)
    batch = packed(model, random_examples())
    before = model(**batch)
    settings = add_lora(model.encoder, LORA)
    assert settings["target_modules"]
    after = model(**batch)
    assert_same(after.logits, before.logits)
    after.loss.backward()
    learns = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    assert learns
    assert all(is_adapter(name) for name in learns)
    assert all(p.grad is not None for p in model.encoder.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    """The last checkpoint of the run, which has the low-rank layers."""
    return run / "checkpoint-12"


def test_a_run_moves_low_rank_layers_and_heads_alone(run: Path, checkpoint: Path) -> None:
    """Bug: the encoder's own weights are trained beside its adapters, or the heads are frozen with them."""
    saved = load_file(checkpoint / "model.safetensors")
    begun = AutoModel.from_pretrained(run.parent / "encoder", add_pooling_layer=False).state_dict()
    own = {name.removeprefix("encoder.").replace(".base_layer", ""): tensor for name, tensor in saved.items()}
    for name, tensor in begun.items():
        assert torch.equal(own[name], tensor), name
    learned = [tensor for name, tensor in saved.items() if ".lora_B." in name]
    assert learned
    assert all(tensor.abs().max() > 0 for tensor in learned)
    report = json.loads((run / "convergence.json").read_text(encoding="utf-8"))
    assert any(event["event"] == "converged" for event in report["events"])


def test_a_saved_model_answers_the_same_and_learns_the_same(checkpoint: Path, tmp_path: Path) -> None:
    """Bug: the layers are drawn anew in loading; or a loaded model trains its whole encoder."""
    model = MultiTaskModel.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert_same(answers(again), answers(model))
    rows = {name: raw_sets()[name] for name in TASKS}
    arguments = AsyncMTLTrainingArguments(str(tmp_path), report_to=[])
    AsyncMTLTrainer(again, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tiny_tokenizer())
    learns = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert learns == {name for name, _ in model.named_parameters() if name.startswith("heads") or is_adapter(name)}


def test_the_final_model_is_merged(run: Path, checkpoint: Path) -> None:
    """Bug: the run's model needs peft; or it has another answer than the weights that were evaluated."""
    saved = load_file(run / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in saved)
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["lora"] is None
    final, last = MultiTaskModel.from_pretrained(run), MultiTaskModel.from_pretrained(checkpoint)
    assert_same(answers(final), answers(last), rtol=1e-4, atol=1e-5)


# peft 0.21 reads an attribute that Transformers 5 has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_alone_is_saved_for_peft(
    run: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: the saved adapter holds the encoder's weights or a path of this machine, or peft cannot load it."""
    # peft looks for the base model's configuration, here `./encoder`.
    monkeypatch.chdir(run.parent)
    model = MultiTaskModel.from_pretrained(checkpoint)
    model.encoder.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved
    assert all(".lora_" in name for name in saved)
    assert str(run.parent) not in (tmp_path / "adapter_config.json").read_text(encoding="utf-8")
    plain = AutoModel.from_pretrained(run.parent / "encoder", add_pooling_layer=False)
    again = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    batch = tiny_tokenizer()(["the red cat"], return_tensors="pt")
    with torch.no_grad():
        found, expected = (encoder(**batch).last_hidden_state for encoder in (again, model.encoder))
    assert torch.equal(found, expected)


def test_merged_it_is_a_model_like_any_other(checkpoint: Path, tmp_path: Path) -> None:
    """Bug: what was learned is lost in merging, or the merged model still asks for peft."""
    model = MultiTaskModel.from_pretrained(checkpoint)
    expected = answers(model)
    merge_lora(model)
    assert_same(answers(model), expected, rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in saved)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["lora"] is None
    assert_same(answers(MultiTaskModel.from_pretrained(tmp_path)), answers(model))
    with pytest.raises(ConfigurationError, match="must have low-rank layers; this one has none"):
        merge_lora(model)


def test_a_run_is_resumed(run: Path, tmp_path: Path) -> None:
    """Bug: a checkpoint of low-rank layers cannot be resumed, or is resumed from the plain encoder."""
    command = ["train", run.parent / "lora.yaml", "--output-dir"]
    done(*command, tmp_path / "run", "--set", "training.save_steps=8")
    # As a run that was killed after its checkpoint left it.
    for path in [tmp_path / "run" / "checkpoint-12"]:
        for file in path.iterdir():
            file.unlink() if file.is_file() else None
    before = load_file(tmp_path / "run" / "model.safetensors")
    done(*command, tmp_path / "run", "--resume", tmp_path / "run" / "checkpoint-8")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_grows_from_it(checkpoint: Path) -> None:
    """Bug: the encoder of a model with low-rank layers is taken without its updates."""
    old = MultiTaskModel.from_pretrained(checkpoint)
    chosen = {name: task_configs()[name] for name in ("polarity", "topics")}
    for settings in (None, LORA):
        grown = MultiTaskModel.from_encoder(str(checkpoint), chosen, lora=settings)
        torch.testing.assert_close(answers(grown)["polarity"], answers(old)["polarity"], rtol=1e-4, atol=1e-5)
        assert (grown.config.lora is None) == (settings is None)


def test_what_comes_after_training(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Bug: a command or a view does not know the layers."""
    rows = run.parent / "data" / "polarity" / "test.jsonl"
    done("predict", checkpoint, "--input", rows, "--task", "polarity", "--output", tmp_path / "answers.jsonl")
    done("evaluate", checkpoint, run.parent / "lora.yaml")
    done("export", checkpoint, "--onnx", "--output", tmp_path / "onnx")
    model = MultiTaskModel.from_pretrained(checkpoint).eval()
    pipe = pipeline(
        "text-classification",
        model=model.as_sequence_classifier("polarity"),
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
    )
    assert pipe("the red cat")[0]["label"] in ("pos", "neg")


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([("lora", 4)], "`lora` must be a mapping"),
        ([("lora.rank", 4)], "`lora` has no key `rank`. It takes r, lora_alpha"),
        ([("lora.use_dora", "maybe")], "`lora.use_dora` must be true or false; found 'maybe'"),
        ([("lora.r", 0)], "`lora.r` must be a whole number of at least 1; found 0"),
        ([("lora.r", "many")], "`lora.r` must be a whole number of at least 1; found 'many'"),
        ([("lora.lora_dropout", 1)], "`lora.lora_dropout` must be a number from 0 to below 1; found 1"),
        ([("lora.lora_alpha", ".nan")], "`lora.lora_alpha` must be a number above 0; found nan"),
        ([("lora.target_modules", "'('")], "`lora` does not fit"),
        ([("lora.target_modules", "[keys]")], "`lora` does not fit: Target modules"),
        ([("lora.r", 4), ("freeze", 1)], "`freeze` and `lora` exclude each other"),
    ],
)
def test_refused(run: Path, settings: list[tuple[str, Any]], words: str) -> None:
    """Bug: a typing error is a traceback, or trains the whole encoder."""
    options = [part for key, value in settings for part in ("--set", f"{key}={value}")]
    config_path, out = run.parent / "config.yaml", run.parent / "refused"
    assert words in refused("train", config_path, "--output-dir", out, *options)
    assert not out.exists()


def test_an_adapter_without_its_encoder_is_refused(run: Path, tmp_path: Path) -> None:
    """Bug: a checkpoint that version 0.1 saved without its encoder answers with random weights."""
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    base = {"lora_only": True, "lora_base": "user/model@main"}
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, **base}))
    rows = run.parent / "data" / "polarity" / "test.jsonl"
    assert "saved by version 0.1 with `--adapter-only`" in refused("predict", tmp_path / "copy", "--input", rows)


def test_peft_is_named_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: who lacks an optional package gets a traceback from the middle of a model."""
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'hf-async-mtl\[lora\]'"):
        add_lora(tiny_model("bert").encoder, LORA)


def test_what_is_not_finite_is_not_merged(checkpoint: Path) -> None:
    """Bug: a broken layer breaks the encoder's own weight, or is a traceback."""
    model = MultiTaskModel.from_pretrained(checkpoint)
    broken = next(parameter for name, parameter in model.named_parameters() if is_adapter(name))
    torch.nn.init.constant_(broken, float("nan"))
    with pytest.raises(ConfigurationError, match="Weights that are merged must be finite"):
        merge_lora(model)
