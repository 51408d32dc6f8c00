"""Tiny encoders of every family, a task of every type, and random batches: packed, and padded by plain means."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from hf_async_mtl.data.collator import MultiTaskCollator
from hf_async_mtl.modeling.configuration_multitask import MultiTaskConfig, TaskConfig
from hf_async_mtl.modeling.modeling_multitask import MultiTaskModel

VOCABULARY = 99
LONGEST = 20

# Weights large enough for attention to be far from uniform: else a wrong mask would hardly show.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}

_FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {"type_vocab_size": 2}),
    "distilbert": (DistilBertConfig, {}),
    "electra": (ElectraConfig, {"embedding_size": 16}),
    "albert": (AlbertConfig, {"embedding_size": 16}),
    # A window of 4 to each side: most segments are longer. The first layer is global, the second local.
    "modernbert": (
        ModernBertConfig,
        {
            "local_attention": 8,
            "global_attn_every_n_layers": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    # As the published checkpoints have it.
    "deberta-v2": (
        DebertaV2Config,
        {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_buckets": 16,
            "position_biased_input": False,
            "type_vocab_size": 2,
        },
    ),
    "mpnet": (MPNetConfig, {}),
}

FAMILIES = tuple(_FAMILIES)
EAGER_ONLY = ("deberta-v2", "mpnet")
FAMILIES_AND_ATTENTION = [
    (family, attention)
    for family in FAMILIES
    for attention in ("sdpa", "eager")
    if attention == "eager" or family not in EAGER_ONLY
]

# The order is not the alphabet's: `config.json` is written with sorted keys.
TASKS = {
    "topic": TaskConfig("classification", ["text"], label_names=["c", "a", "b"]),
    "stars": TaskConfig("regression", ["text"], target_mean=3.0, target_std=1.5),
    "tags": TaskConfig("token_classification", ["tokens"], label_names=["O", "B-x", "I-x", "B-y"]),
    "choice": TaskConfig("multiple_choice", {"prompt": ["p"], "choices": ["x", "y", "z"]}),
    "marks": TaskConfig("multilabel", ["text"], label_names=["p", "q"]),
    "answer": TaskConfig("question_answering", ["question", "context"], label_column="answers"),
}


def family_config(family: str, **settings: Any) -> PreTrainedConfig:
    """A tiny configuration; ``settings`` replace fields."""
    config_class, fields = _FAMILIES[family]
    return config_class(**{**SIZES, **fields, **settings})


def without_dropout(family: str) -> PreTrainedConfig:
    """A tiny configuration whose training mode is as deterministic as its evaluation mode."""
    config = family_config(family)
    for name, value in config.to_dict().items():
        if "dropout" in name and value is not None:
            setattr(config, name, 0.0)
    return config


def tiny_model(
    encoder: str | PreTrainedConfig,
    attention: str = "eager",
    tasks: Mapping[str, TaskConfig] | None = None,
    **settings: Any,
) -> MultiTaskModel:
    """A model with seeded weights, in evaluation mode; the global random state is left as it was."""
    encoder_config = family_config(encoder) if isinstance(encoder, str) else encoder
    config = MultiTaskConfig(encoder_config=encoder_config, tasks=dict(tasks or TASKS), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config, attn_implementation=attention).eval()
        for name, parameter in model.named_parameters():
            if name.startswith("heads") or name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, MultiTaskModel)
    return model


def random_examples(
    tasks: Sequence[str] = tuple(TASKS), per_task: int = 3, token_types: bool = False, seed: int = 0
) -> list[dict[str, Any]]:
    """Encoded examples with labels, as an `TaskDataset` gives them, in a random order."""
    generator = random.Random(seed)
    order = list(TASKS)

    def example(name: str) -> dict[str, Any]:
        task = TASKS[name]
        count = {"multiple_choice": 3, "question_answering": generator.randint(1, 3)}.get(task.type, 1)
        lengths = [generator.randint(2, LONGEST) for _ in range(count)]
        labels: Any = {
            "classification": generator.randrange(3),
            "regression": generator.uniform(1, 5),
            "token_classification": [generator.choice([-100, 0, 1, 2, 3]) for _ in range(lengths[0])],
            "multiple_choice": generator.randrange(3),
            "multilabel": [float(generator.randrange(2)) for _ in range(2)],
            "question_answering": [sorted(generator.choices(range(length), k=2)) for length in lengths],
        }[task.type]
        made = {
            "task_id": order.index(name),
            "input_ids": [[generator.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths],
            "labels": labels,
        }
        if token_types:
            made["token_type_ids"] = [[int(place > length // 2) for place in range(length)] for length in lengths]
        return made

    examples = [example(name) for name in tasks for _ in range(per_task)]
    generator.shuffle(examples)
    return [{"example_id": index, **made} for index, made in enumerate(examples)]


def packed(model: MultiTaskModel, examples: Sequence[Mapping[str, Any]], row_length: int = 48) -> dict[str, Any]:
    """The packed batch, as `MultiTaskModel.forward` takes it, in tensors alone."""
    types = {name: task.type for name, task in TASKS.items()}
    batch = MultiTaskCollator(types, row_length, model.encoder.config.pad_token_id or 0)(examples)
    del batch["example_ids"], batch["host"]
    return batch


def padded_logits(model: MultiTaskModel, examples: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    """The logits of one task through a plain padded call, in the shape of a packed batch's."""
    mine = [example for example in examples if example["task_id"] == list(TASKS).index(name)]

    def pad(key: str, padding: int) -> Tensor:
        rows = [torch.tensor(segment) for example in mine for segment in example[key]]
        return pad_sequence(rows, batch_first=True, padding_value=padding)

    inputs = {
        "input_ids": pad("input_ids", model.encoder.config.pad_token_id or 0),
        "attention_mask": pad_sequence(
            [torch.ones(len(segment), dtype=torch.long) for example in mine for segment in example["input_ids"]],
            batch_first=True,
        ),
    }
    if "token_type_ids" in mine[0]:
        inputs["token_type_ids"] = pad("token_type_ids", 0)
    if TASKS[name].type == "multiple_choice":
        inputs = {key: value.unflatten(0, (len(mine), -1)) for key, value in inputs.items()}
    logits = model(**inputs, tasks=[name]).logits[name]
    if TASKS[name].type in ("token_classification", "question_answering"):
        return logits[inputs["attention_mask"].bool()]
    return logits
