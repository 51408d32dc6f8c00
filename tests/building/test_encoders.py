"""Encoders other than BERT: which are refused, and what decoder-only ones answer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import SIZES, TASKS, packed, padded_logits, random_examples, tiny_model
from runs import tiny_trainer
from tiny import task_configs, tiny_tokenizer
from transformers import (
    AutoModel,
    BertConfig,
    BrosConfig,
    FNetConfig,
    FunnelBaseModel,
    FunnelConfig,
    FunnelModel,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from hf_async_mtl import ConfigurationError, MultiTaskConfig, MultiTaskModel
from hf_async_mtl.building.build import position_limit


def gpt2(**settings: Any) -> GPT2Config:
    return GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2, **settings)


CAUSAL: dict[str, PreTrainedConfig] = {
    "gpt2": gpt2(),
    "llama": LlamaConfig(**SIZES, pad_token_id=0),
    "bert": BertConfig(**SIZES, pad_token_id=0, is_decoder=True),
}


def saved(config: PreTrainedConfig, folder: Path) -> str:
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_first_token_that_sees_nothing_is_not_read(name: str, tmp_path: Path) -> None:
    """Bug: GPT-2 and Llama are accepted, and every text with the same first token has the same logits."""
    encoder = saved(CAUSAL[name], tmp_path)
    message = f"`pooling: cls` reads the first token, which must see the others; an encoder of type '{name}' reads from"
    with pytest.raises(ConfigurationError, match=message):
        MultiTaskModel.from_encoder(encoder, TASKS, max_length=32)
    MultiTaskModel.from_encoder(encoder, {"tags": TASKS["tags"]}, max_length=32)
    MultiTaskModel.from_encoder(encoder, TASKS, max_length=32, pooling="max")


def test_the_trainer_checks_the_encoder_too(tmp_path: Path) -> None:
    """Bug: a model that was made from a configuration, or saved by an earlier version, is trained all the same."""
    config = gpt2(pad_token_id=0)
    config.vocab_size = len(tiny_tokenizer())
    tasks = {"polarity": task_configs()["polarity"]}
    model = MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=tasks, max_length=32))
    with pytest.raises(ConfigurationError, match="Set `pooling: mean` or `pooling: max`"):
        tiny_trainer(tmp_path, {"polarity": 8}, model=model)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("name", CAUSAL)
def test_texts_differ_and_padding_does_not(name: str, pooling: str) -> None:
    """Bug: logits are those of the first token, or padding on the left moves the positions of the text."""
    model = tiny_model(CAUSAL[name], pooling=pooling)
    ids = torch.tensor([[5, 6, 7, 8], [5, 9, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    right = model(ids, mask).logits
    left = model(torch.stack([ids[0], ids[1].roll(1)]), torch.stack([mask[0], mask[1].roll(1)])).logits
    assert (right["topic"][0] - right["topic"][1]).abs().max() > 1e-3
    for task in ("topic", "stars", "marks"):
        torch.testing.assert_close(left[task], right[task])
    torch.testing.assert_close(left["tags"][1].roll(-1, 0), right["tags"][1])


@pytest.mark.parametrize("name", CAUSAL)
def test_packed_is_padded(name: str) -> None:
    """Bug: a packed row lets a decoder look ahead, or into its neighbor."""
    model, examples = tiny_model(CAUSAL[name], pooling="mean"), random_examples()
    logits = model(**packed(model, examples)).logits
    for task in TASKS:
        ordered = sorted(examples, key=lambda example: example["task_id"])
        torch.testing.assert_close(logits[task], padded_logits(model, ordered, task), atol=1e-5, rtol=1e-4)


def test_a_text_has_the_same_logits_in_every_batch() -> None:
    """Bug: an encoder that reads its padding (FNet has no mask) scores a text by the length of its neighbors."""
    model, examples = tiny_model(FNetConfig(**SIZES, pad_token_id=0)), random_examples(["topic"], per_task=4)
    together = model(**packed(model, examples)).logits["topic"]
    for index, example in enumerate(examples):
        alone = model(**packed(model, [example])).logits["topic"]
        torch.testing.assert_close(together[index : index + 1], alone)


def test_an_encoder_with_two_classes(tmp_path: Path) -> None:
    """Bug: Funnel, with and without a decoder, is a traceback; without, it has fewer states than tokens."""
    config = FunnelConfig(vocab_size=99, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8, d_inner=37)
    FunnelModel(config).save_pretrained(tmp_path / "whole")
    FunnelBaseModel(config).save_pretrained(tmp_path / "base")
    model = MultiTaskModel.from_encoder(str(tmp_path / "whole"), TASKS, max_length=32)
    assert not model.packs
    assert model(**packed(model, random_examples())).loss.isfinite()
    message = "must return a state for each token id, without other inputs; one of type 'funnel' does not"
    with pytest.raises(ConfigurationError, match=message):
        MultiTaskModel.from_encoder(str(tmp_path / "base"), TASKS, max_length=32)


def test_an_encoder_that_needs_more_than_tokens_is_refused(tmp_path: Path) -> None:
    """Bug: an encoder of pages is accepted, and asks for the boxes of the words at the first batch."""
    encoder = saved(BrosConfig(**SIZES, pad_token_id=0), tmp_path)
    with pytest.raises(ConfigurationError, match=r"one of type 'bros' does not \(ValueError: .* bbox\)\. Choose"):
        MultiTaskModel.from_encoder(encoder, TASKS, max_length=32)


@pytest.mark.parametrize(
    "config", [gpt2(n_positions=16), OPTConfig(**SIZES, pad_token_id=0, ffn_dim=37, word_embed_proj_dim=32)]
)
def test_learned_positions_of_a_decoder_are_counted(config: PreTrainedConfig) -> None:
    """Bug: a text that is longer than the positions ends a run with an `IndexError`."""
    encoder, limit = AutoModel.from_config(config).eval(), config.max_position_embeddings
    assert position_limit(encoder) == limit
    encoder(torch.ones(1, limit, dtype=torch.long))
    with pytest.raises(IndexError):
        encoder(torch.ones(1, limit + 1, dtype=torch.long))
