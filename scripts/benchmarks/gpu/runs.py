"""What the parts train: tiny encoders, generated rows of a known length, and trainers on them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    BertConfig,
    BertTokenizer,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
    set_seed,
)

from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments, MultiTaskModel, TaskConfig
from hf_async_mtl.modeling.configuration_multitask import MultiTaskConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"w{number}" for number in range(500))
TINY: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 160,
    # Far from uniform attention: a wrong mask would hardly show otherwise.
    "initializer_range": 0.1,
}
SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
LOCAL = {"local_attention": 16, "global_attn_every_n_layers": 2}
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {"type_vocab_size": 2, "pad_token_id": 0}),
    "distilbert": (DistilBertConfig, {}),
    "modernbert": (ModernBertConfig, {**SPECIAL_IDS, **LOCAL}),
}
# A task converges at its second evaluation, whatever its metric is, unless it gives all rows the same answer.
AT_ONCE: dict[str, Any] = {"criterion": "plateau", "patience": 1, "min_epochs": 0, "min_delta": 10.0}
AT_ONCE |= {"final_evaluations": None}
MINILM: dict[str, Any] = {
    **{"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    **{"vocab_size": 30522, "max_position_embeddings": 512, "initializer_range": 0.02},
}


def tokenizer() -> BertTokenizer:
    """Return a tokenizer for which each word of `WORDS` is one token."""
    return BertTokenizer(vocab={token: number for number, token in enumerate((*SPECIAL, *WORDS))}, model_max_length=512)


def family(name: str, **settings: Any) -> PreTrainedConfig:
    """Return the configuration of a tiny encoder of a family; ``settings`` replace fields."""
    config_class, fields = FAMILIES[name]
    return config_class(**{**TINY, **fields, **settings})


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    for name, value in config.to_dict().items():
        if "dropout" in name and value is not None:
            setattr(config, name, 0.0)
    return config


def task(number: int) -> TaskConfig:
    """Return a task: every second one is a regression."""
    if number % 2:
        return TaskConfig("regression", ["text"], target_mean=0.0, target_std=1.0, metrics=["mse"])
    return TaskConfig("classification", ["text"], label_names=["no", "yes"], metrics=["accuracy"])


def tasks(count: int) -> dict[str, TaskConfig]:
    return {f"task{number}": task(number) for number in range(count)}


def rows(count: int, number: int = 0, words: tuple[int, int] = (3, 40), seed: int = 0) -> Dataset:
    """Return the rows of task ``number``, with a number of words between the bounds (both included).

    Every second word tells the label, so that a few steps are enough to learn something.
    """
    dice = random.Random(f"{seed}/{number}")
    texts, labels = [], []
    for _ in range(count):
        positive, length = dice.random() < 0.5, dice.randint(*words)
        telling = WORDS[:8] if positive else WORDS[8:16]
        texts.append(" ".join(dice.choice(WORDS if place % 2 else telling) for place in range(length)))
        labels.append((1.0 if positive else -1.0) if number % 2 else ("yes" if positive else "no"))
    return Dataset.from_dict({"text": texts, "label": labels})


def model_of(encoder: PreTrainedConfig, of: Mapping[str, TaskConfig], attention: str = "sdpa", **settings: Any) -> Any:
    """Return a multi-task model with random weights, the same each time."""
    set_seed(0)
    config = MultiTaskConfig(encoder_config=encoder, tasks=dict(of), **settings)
    model = AutoModel.from_config(config, attn_implementation=attention)
    assert isinstance(model, MultiTaskModel)
    return model


def arguments(folder: Path, on_cpu: bool, **settings: Any) -> AsyncMTLTrainingArguments:
    """Return training arguments without checkpoints, reports and bars; ``settings`` replace them."""
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "load_best_model_at_end": False}
    return AsyncMTLTrainingArguments(str(folder), **{**quiet, "use_cpu": on_cpu, "seed": 0, **settings})


def trainer_of(
    model: MultiTaskModel, args: AsyncMTLTrainingArguments, train: Mapping[str, Dataset], callbacks: Sequence[Any] = ()
) -> AsyncMTLTrainer:
    """Return a trainer on generated rows; the first rows of each task are its validation set."""
    return AsyncMTLTrainer(
        model=model,
        args=args,
        processing_class=tokenizer(),
        train_dataset=dict(train),
        eval_dataset={name: part.select(range(min(16, len(part)))) for name, part in train.items()},
        callbacks=list(callbacks),
    )


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
