"""A model on a pretrained encoder: its weights, their type, what is reported and what is refused."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import FAMILIES, TASKS, family_config
from safetensors.torch import load_file, save_file
from tiny import task_configs, tiny_tokenizer
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    RobertaConfig,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)
from transformers.utils.logging import get_logger

from hf_async_mtl import ConfigurationError, MultiTaskModel, TaskConfig


def save_encoder(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Saves a plain encoder, with a pooler where its family has one, and returns its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = AutoModel.from_config(family_config(family)).to(dtype)
    encoder.save_pretrained(folder)
    return encoder.state_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_a_pretrained_encoder(family: str, tmp_path: Path) -> None:
    """The encoder began at random, or kept a pooler that nothing reads."""
    saved = save_encoder(family, tmp_path)
    model = MultiTaskModel.from_encoder(str(tmp_path), TASKS, pooling="mean", max_length=48)
    loaded = model.encoder.state_dict()
    assert set(saved) - set(loaded) == {name for name in saved if name.startswith("pooler")}
    assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.items())
    assert not any("pooler" in name for name, _ in model.named_parameters())
    assert (model.config.pooling, model.config.max_length) == ("mean", 48)
    assert all(head.pooling == "mean" for head in model.heads.values())
    assert model.config.encoder_config is model.encoder.config
    assert not any(module.training for module in model.modules())


def test_half_precision_weights_are_trained_in_float32(tmp_path: Path) -> None:
    """An fp16 checkpoint was trained in fp16, where a small update is no update; its file said float16 ever after."""
    saved = save_encoder("bert", tmp_path / "encoder", torch.float16)
    model = MultiTaskModel.from_encoder(str(tmp_path / "encoder"), TASKS, max_length=32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(model.encoder.state_dict()[name], saved[name].float())
    model.save_pretrained(tmp_path / "model")
    assert "float16" not in (tmp_path / "model" / "config.json").read_text(encoding="utf-8")
    half = MultiTaskModel.from_encoder(str(tmp_path / "encoder"), TASKS, max_length=32, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """Layers that the file does not hold began at random, with a line in the log."""
    save_encoder("bert", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigurationError, match=r"must hold all weights of its encoder; 16 are missing \(encoder\.layer"
    ):
        MultiTaskModel.from_encoder(str(tmp_path), TASKS, max_length=32)


def test_a_checkpoint_with_another_head_gives_its_encoder(tmp_path: Path) -> None:
    """The encoder under a classifier has a prefix: all of it was left at random."""
    model = BertForSequenceClassification(family_config("bert"))
    model.save_pretrained(tmp_path)
    loaded = MultiTaskModel.from_encoder(str(tmp_path), TASKS, max_length=32).encoder.state_dict()
    expected = model.bert.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in loaded.items())


def test_several_encoders_are_refused() -> None:
    """Bug: a list of models, which version 0.1 merged, is a traceback."""
    with pytest.raises(ConfigurationError, match=r"`encoder` must be a Hub id or a folder; found \['a', 'b'\]"):
        MultiTaskModel.from_encoder(["a", "b"], TASKS)  # type: ignore[arg-type]


def test_what_is_no_plain_text_encoder_is_refused(tmp_path: Path) -> None:
    """A vision model or a decoder pair failed at its first batch, or deep inside a constructor."""
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 37}
    ViTModel(ViTConfig(**size, image_size=4, patch_size=2)).save_pretrained(tmp_path / "vit")
    T5Model(T5Config(vocab_size=99, d_model=32, d_kv=16, d_ff=37, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    for name in ("vit", "t5"):
        with pytest.raises(ConfigurationError, match=rf"must be a text encoder .* of type '{name}'\. Choose a model"):
            MultiTaskModel.from_encoder(str(tmp_path / name), TASKS)


def test_no_path_of_this_machine_goes_public(tmp_path: Path) -> None:
    """`config.json` on the Hub told where the author's encoder lay."""
    save_encoder("bert", tmp_path / "secret" / "my-encoder")
    model = MultiTaskModel.from_encoder(str(tmp_path / "secret" / "my-encoder"), TASKS, max_length=32)
    model.save_pretrained(tmp_path / "model")
    MultiTaskModel.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    for folder in ("model", "again"):
        text = (tmp_path / folder / "config.json").read_text(encoding="utf-8")
        assert "secret" not in text
        assert str(tmp_path) not in text


@pytest.mark.parametrize(("family", "limit"), [("bert", 64), ("roberta", 62)])
def test_a_sequence_longer_than_the_positions_is_refused(family: str, limit: int, tmp_path: Path) -> None:
    """The first long text ended a run with an IndexError, hours after its start."""
    config = BertConfig if family == "bert" else RobertaConfig
    encoder = config(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=64,
        pad_token_id=0 if family == "bert" else 1,
    )
    AutoModel.from_config(encoder).save_pretrained(tmp_path)
    task = TaskConfig(type="regression", text_columns=["text"])
    assert MultiTaskModel.from_encoder(str(tmp_path), {"score": task}, max_length=limit).config.max_length == limit
    for wrong, longest in ((task, limit + 1), (replace(task, max_length=limit + 1), 32)):
        with pytest.raises(ConfigurationError, match=f"must be at most {limit}, the number of positions .* found"):
            MultiTaskModel.from_encoder(str(tmp_path), {"score": wrong}, max_length=longest)


def pretrained(folder: Path) -> BertForPreTraining:
    """A checkpoint as it is published: with a pooler and the heads of its pretraining."""
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForPreTraining(BertConfig(vocab_size=len(tiny_tokenizer()), **size))
    model.save_pretrained(folder)
    return model


@pytest.fixture
def messages() -> list[str]:
    """What Transformers logs while it loads; its loggers do not propagate."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = get_logger("transformers.modeling_utils"), Handler()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_weights_that_nothing_reads_are_not_reported(tmp_path: Path, messages: list[str]) -> None:
    """Bug: each run begins with a table of the weights of the pooler, as if something were wrong."""
    checkpoint = pretrained(tmp_path)
    model = MultiTaskModel.from_encoder(tmp_path, {"polarity": task_configs()["polarity"]}, max_length=32)
    assert not any("LOAD REPORT" in message for message in messages)
    expected = checkpoint.bert.encoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.encoder.encoder.state_dict().items())
    # The report of others is still there.
    BertForPreTraining.from_pretrained(tmp_path, num_hidden_layers=2)
    assert any("LOAD REPORT" in message for message in messages)


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    """Bug: with the report goes the only word about weights that are random."""
    pretrained(tmp_path)
    config = BertConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="must hold all weights of its encoder; 32 are missing"):
        MultiTaskModel.from_encoder(tmp_path, {"polarity": task_configs()["polarity"]}, max_length=32)
