"""A model on a pretrained encoder."""

import logging
from pathlib import Path

import pytest
import torch
from tiny import task_configs, tiny_tokenizer
from transformers import BertConfig, BertForPreTraining
from transformers.utils.logging import get_logger

from hf_async_mtl import ConfigurationError, MultiTaskModel


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
