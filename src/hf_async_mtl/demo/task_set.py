"""The demo: a generated set of five e-commerce tasks, with a tiny encoder and a configuration.

One command shows a complete run on a new machine without a network. The text comes from a small grammar
(`hf_async_mtl.demo.grammar`), so the figures are not evidence of quality.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, BertTokenizer

from .grammar import TASKS

HELD_OUT_ROWS = 250
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY_SIZE = 2000
# Standard deviations of some weights, in units of ``initializer_range``: words have more weight than positions.
SCALES = {"position_embeddings": 0.3, "token_type_embeddings": 0.3, "query": 2.0}

CONFIGURATION = """\
# The demo of hf_async_mtl: five tasks of an invented shop, generated from seed {seed}.
# Two tasks have 3,000 clean rows. The others have 200 to 400, and 30 % of their training labels are random: they peak
# early and would then learn the noise. The text comes from a small grammar: its figures are not evidence of quality.
encoder: encoder                # a tiny BERT that is not pretrained
seed: {seed}
max_length: 64
pooling: mean
tasks:
  relevance:                    # how well a product answers a search query
    type: classification
    data: {{train: relevance/train.jsonl, validation: relevance/validation.jsonl, test: relevance/test.jsonl}}
    text_columns: [query, title]
    label_column: label
    label_names: [exact, substitute, complement, irrelevant]
    metrics: [accuracy, macro_f1]
  category:                     # the department that sells a product
    type: classification
    data: {{train: category/train.jsonl, validation: category/validation.jsonl, test: category/test.jsonl}}
    text_columns: [title]
    label_column: label
    metrics: [accuracy, macro_f1]
  match:                        # whether two offers sell the same product
    type: classification
    data: {{train: match/train.jsonl, validation: match/validation.jsonl, test: match/test.jsonl}}
    text_columns: [left, right]
    label_column: label
    metrics: [f1, accuracy]
  rating:                       # the stars of a review, 1 to 5
    type: regression
    data: {{train: rating/train.jsonl, validation: rating/validation.jsonl, test: rating/test.jsonl}}
    text_columns: [review]
    label_column: stars
    metrics: [pearson, mae]
  attributes:                   # brand, color, material and size in a title
    type: token_classification
    data: {{train: attributes/train.jsonl, validation: attributes/validation.jsonl, test: attributes/test.jsonl}}
    text_columns: [tokens]
    label_column: tags
    metrics: [seqeval_f1, seqeval_accuracy]
mixing: {{strategy: uniform}}     # every task is drawn equally often, so that small ones are repeated
training:
  learning_rate: 1.0e-3
  head_learning_rate: 1.0e-3
  lr_scheduler_type: linear
  warmup_steps: 100
  per_device_train_batch_size: 48
  per_device_eval_batch_size: 64
  num_train_epochs: 14
  eval_steps: 72
  save_total_limit: 2
"""


def write_demo(folder: Path, seed: int = 0) -> Path:
    """Write the demo: rows as JSON lines, an encoder folder and ``demo.yaml``.

    The rows, the tokenizer and the weights are a pure function of the seed. They do not depend on the clock, on hash
    order or on the global random state, which is not changed. Files of an earlier demo in the folder are overwritten.

    The seed is that of the training, too. Return the path of ``demo.yaml``.
    """
    texts: list[str] = []
    for name, grammar in TASKS.items():
        for split, rows in grammar.splits(f"{seed}/{name}", HELD_OUT_ROWS).items():
            file = folder / name / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
            if split == "train":
                texts += [text for row in rows for text in grammar.texts(row)]
    write_encoder(folder / "encoder", texts, seed)
    path = folder / "demo.yaml"
    path.write_text(CONFIGURATION.format(seed=seed), encoding="utf-8", newline="\n")
    return path


def write_encoder(folder: Path, texts: list[str], seed: int) -> None:
    """Write a tokenizer trained on the texts and a small BERT with random weights as one ``from_pretrained`` folder."""
    tokenizer = BertTokenizer(vocab=train_vocabulary(texts), model_max_length=128)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        initializer_range=0.04,
    )
    with torch.random.fork_rng(devices=[]):
        model = BertModel(config)
    fill(model, seed)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def train_vocabulary(texts: list[str]) -> dict[str, int]:
    """Train WordPiece on the texts and return its vocabulary, which is the same in every process."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers characters in the order of a hash map that is seeded per process, and the numbers decide
    # between merges of equal count. Special tokens have fixed numbers.
    characters = sorted(set("".join(texts).lower()) - {" "})
    alphabet = characters + [f"##{character}" for character in characters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=SPECIAL_TOKENS + alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def fill(model: BertModel, seed: int) -> None:
    """Draw every weight matrix from a uniform distribution, and set the keys of attention equal to the queries.

    The normal numbers of torch use vectorized logarithms whose last bits may differ between processors; these numbers
    are exact. With equal keys and queries, a word attends to similar words from the first step (Trockman and Kolter,
    "Mimetic Initialization of Self-Attention Layers", ICML 2023). Otherwise, such a small encoder memorizes the pair
    tasks instead of comparing the texts.
    """
    width = 3**0.5 * model.config.initializer_range  # of a uniform distribution with that standard deviation
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.ndim < 2:
            continue
        scale = next((factor for part, factor in SCALES.items() if part in name), 1.0)
        rng = Random(f"{seed}/{name}")
        values = torch.tensor([rng.random() for _ in range(parameter.numel())], dtype=torch.float64)
        parameter.data = ((2 * values - 1) * (scale * width)).to(parameter.dtype).view_as(parameter)
    for name, parameter in parameters.items():
        if name.endswith("key.weight"):
            parameter.data = parameters[name.replace("key", "query")].data.clone()
