"""Tiny things that other tests import: a tokenizer, an encoder folder, and seeded data for all six task types.

The data are made by rules that a two-layer encoder of width 32 can learn, so that a short run shows every task improve.
Some words (``WORDS_IN_PIECES``) are cut into several sub-words.
"""

import random
import string
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

from hf_async_mtl import MultiTaskModel, TaskConfig

WORDS = ["good", "bad", "red", "blue", "big", "small", "shoe", "hat", "very", "not", "is", "the", "a", "cat", "dog"]
WORDS_IN_PIECES = ["sofa", "lamp", "mug"]
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}


def tiny_tokenizer(token_types: bool = True) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT's: ``[CLS] text [SEP]``, ``[CLS] left [SEP] right [SEP]``; pads with id 0.

    The words of `WORDS` are one token each; all other lower-case words are one token a letter.

    Args:
        token_types: False for a tokenizer that makes no ``token_type_ids``.
    """
    letters = string.ascii_lowercase
    vocabulary = [*SPECIAL.values(), *WORDS, *(f"##{letter}" for letter in letters), *letters]
    # "a" is a word and a letter.
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    backend = Tokenizer(models.WordPiece(ids, unk_token=SPECIAL["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **SPECIAL)


def byte_level_tokenizer(add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with RoBERTa's form of a pair: four special tokens, no token types."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        cls_token="<s>",
        pad_token="<pad>",
        sep_token="</s>",
        unk_token="<unk>",
    )


def tiny_encoder(folder: str | Path, seed: int = 0, **settings: Any) -> str:
    """Write an encoder that `MultiTaskModel.from_encoder` and `AutoTokenizer` load, and return its folder.

    Args:
        folder: Made where it is not.
        seed: Of the weights. The global random state is left as it was.
        **settings: Fields of `BertConfig` that replace the ones here.
    """
    tokenizer = tiny_tokenizer()
    fields = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        **settings,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModel.from_config(BertConfig(vocab_size=len(tokenizer), **fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def raw_sets(rows: int = 32, seed: int = 0) -> dict[str, Dataset]:
    """Raw rows of one split for each task of `task_configs`. The same arguments give the same rows.

    Args:
        rows: Rows of each task.
        seed: Another seed gives other rows, as for another split.
    """
    generator = random.Random(seed)
    vocabulary = [*WORDS, *WORDS_IN_PIECES]

    def words(least: int = 3, most: int = 8) -> list[str]:
        return [generator.choice(vocabulary) for _ in range(generator.randint(least, most))]

    def polarity() -> dict[str, Any]:
        text = words()
        return {"text": " ".join(text), "label": "pos" if "good" in text or "big" in text else "neg"}

    def overlap() -> dict[str, Any]:
        left, right = words(), words()
        return {"left": " ".join(left), "right": " ".join(right), "score": float(len({*left} & {*right}))}

    def colors() -> dict[str, Any]:
        tokens = words()
        return {"tokens": tokens, "tags": ["B-color" if word in ("red", "blue") else "O" for word in tokens]}

    def choice() -> dict[str, Any]:
        prompt = words()
        right, wrong = prompt[0], generator.choice([word for word in vocabulary if word not in prompt])
        label = generator.randrange(2)
        first, second = (right, wrong) if label == 0 else (wrong, right)
        return {"prompt": " ".join(prompt), "first": first, "second": second, "label": label}

    def topics() -> dict[str, Any]:
        text = words()
        return {"text": " ".join(text), "topics": [word for word in ("cat", "dog", "hat") if word in text]}

    def answer() -> dict[str, Any]:
        context = words(20, 40)
        # An article is no answer: SQuAD's metrics leave it out.
        place = generator.choice([place for place, word in enumerate(context) if word not in ("the", "a")])
        start = len(" ".join([*context[:place], ""]))
        return {
            "question": f"is the {context[place]}",
            "context": " ".join(context),
            "answers": {"text": [context[place]], "answer_start": [start]},
        }

    makers = {
        "polarity": polarity,
        "overlap": overlap,
        "colors": colors,
        "choice": choice,
        "topics": topics,
        "answer": answer,
    }
    return {name: Dataset.from_list([make() for _ in range(rows)]) for name, make in makers.items()}


def task_configs() -> dict[str, TaskConfig]:
    """One task of each type, with all that `TaskConfig.resolve` would find, for the data of `raw_sets`."""
    return {
        "polarity": TaskConfig("classification", ["text"], label_names=["neg", "pos"]),
        "overlap": TaskConfig("regression", ["left", "right"], label_column="score", target_mean=1.0, target_std=1.0),
        "colors": TaskConfig("token_classification", ["tokens"], label_column="tags", label_names=["O", "B-color"]),
        "choice": TaskConfig("multiple_choice", {"prompt": ["prompt"], "choices": ["first", "second"]}),
        "topics": TaskConfig("multilabel", ["text"], label_column="topics", label_names=["cat", "dog", "hat"]),
        # Its contexts are longer than this: several windows each.
        "answer": TaskConfig("question_answering", ["question", "context"], "answers", max_length=24, doc_stride=4),
    }


def short_texts(rows: int) -> list[str]:
    """Texts of at most five words, the same for the same number."""
    return [" ".join(row["text"].split()[:5]) for row in raw_sets(rows, 8)["polarity"]]


def save_model(folder: Path, tasks: dict[str, TaskConfig]) -> Path:
    """Save a tokenizer and an untrained model, with heads that are drawn wide and centered: predictions differ."""
    model = MultiTaskModel.from_encoder(tiny_encoder(folder / "encoder"), tasks, max_length=32, pooling="mean")
    inputs = tiny_tokenizer()(short_texts(40), padding=True, return_tensors="pt")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for head in model.heads.values():
            torch.nn.init.normal_(head.linear.weight, std=5.0)
        states = model.encoder(**inputs).last_hidden_state.mean(1)
        for head in model.heads.values():
            head.linear.bias -= head.linear(states).mean(0)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder / "model"
