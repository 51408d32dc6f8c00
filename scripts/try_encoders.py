"""Try every type of text encoder that Transformers has: three training steps of a tiny model, or the refusal.

    python scripts/try_encoders.py [TYPE ...] [--output docs/encoders.md]

For each type whose `AutoModel` reads token ids, a tiny configuration with random weights is built and saved, and
`MultiTaskModel.from_encoder` loads it, with a task on sequences and one on tokens. Nothing is downloaded. A type whose
tiny configuration cannot be built is named with the error of its own code.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel
from transformers.utils import logging

from hf_async_mtl import ConfigurationError, MultiTaskModel, TaskConfig
from hf_async_mtl.building.build import is_text_encoder
from hf_async_mtl.data.collator import MultiTaskCollator

STEPS = 3
LARGEST = 30_000_000
"""Number of weights above which a configuration counts as not tiny."""
TASKS = {
    "topic": TaskConfig("classification", ["text"], label_names=["a", "b", "c"]),
    "tags": TaskConfig("token_classification", ["tokens"], label_column="tags", label_names=["O", "B-x"]),
}
TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
EXTRA: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "codegen": {"rotary_dim": 8},
    "esm": {"pad_token_id": 0, "mask_token_id": 3},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "d_head": 8, "d_inner": 64},
    "gemma4_text": {"vocab_size_per_layer_input": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 16, "entity_emb_size": 32},
    "reformer": {"axial_pos_embds": False},
    "mamba2": {"num_heads": 8},
    "squeezebert": {"embedding_size": 32},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
}
"""Sizes and settings of single types."""
# Their sections of rotary positions are for wide heads.
_WIDE = {"num_attention_heads": 2, "num_key_value_heads": 2}
EXTRA |= {
    name: {**_WIDE, "hidden_size": 128, "head_dim": 64} for name in ("glm4v_text", "glm_image_text", "glm_ocr_text")
}
EXTRA |= {name: {**_WIDE, "hidden_size": 256, "head_dim": 128} for name in ("qwen2_vl_text", "qwen2_5_vl_text")}
PAGE = """# Encoders

`encoder` names any checkpoint whose `AutoModel` reads token ids and returns a state of `hidden_size` for each token.
When it is loaded, it runs on a few tokens:

* An encoder that needs other inputs is refused with one sentence.
* `pooling: cls` is refused if the first token does not see the others, as in GPT-2 or Llama. `mean` and `max` work.
* Packed and padded tokens must get the same states. If they do not, batches are length groups, which cost more padding.
* If the states depend on padding, as through a convolution, a group has texts of one length, which costs more forwards.

The side on which a tokenizer pads makes no difference. A tokenizer needs a pad token.

`scripts/try_encoders.py` has made the tables with Transformers {version}: each type with a tiny configuration and
random weights, three steps of a task on sequences and one on tokens.

## Trained

| batches | `pooling` | number | types |
| --- | --- | --- | --- |
{trained}

## Refused

| type | message |
| --- | --- |
{refused}

## Not tried

The sizes of the script do not fit these types, or their code needs a package that was not installed: {not_built}.

Types that are not listed do not read text alone (images, sound, a decoder's input) and are refused too.
"""


class Outcome(NamedTuple):
    """What became of a type: it trains ``packed``, in ``length groups`` or groups of ``equal lengths``, or not."""

    kind: str
    detail: str
    """The pooling with which it trains, or the message."""


def tiny_config(model_type: str) -> Any:
    """Return a tiny configuration of a type; an error is that of its own code."""
    config_class = CONFIG_MAPPING[model_type]
    default, sizes = config_class(), {}
    for name, value in {**TINY, **EXTRA.get(model_type, {})}.items():
        # Some types have no such size, and raise.
        with contextlib.suppress(Exception):
            # Latent attention has several widths of a head.
            if hasattr(default, name) and not (name == "head_dim" and hasattr(default, "qk_rope_head_dim")):
                setattr(default, name, getattr(default, name))
                sizes[name] = value
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(default, name, None) not in (None, *range(TINY["vocab_size"])):
            sizes[name] = 0
    return config_class(**sizes)


def batch(seed: int) -> dict[str, Any]:
    """Return a batch of both tasks with random tokens."""
    generator = random.Random(seed)
    examples = []
    for index in range(6):
        length = generator.randint(4, 20)
        examples.append(
            {
                "example_id": index,
                "task_id": index % 2,
                "input_ids": [[generator.randrange(3, TINY["vocab_size"]) for _ in range(length)]],
                "labels": [generator.randrange(2) for _ in range(length)] if index % 2 else generator.randrange(3),
            }
        )
    return MultiTaskCollator({name: task.type for name, task in TASKS.items()}, 32, 0)(examples)


def train(model: MultiTaskModel) -> None:
    """Take a few steps of a model; raise if a loss is not finite or a weight of the encoder gets no gradient at all."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for step in range(STEPS):
        loss = model(**batch(step)).loss
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of step {step + 1} is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        if all(parameter.grad is None for parameter in model.encoder.parameters()):
            raise ValueError("no weight of the encoder has a gradient")
        optimizer.step()


def try_type(model_type: str) -> Outcome | None:
    """Return what becomes of a type; None if it is no text encoder."""
    try:
        if not is_text_encoder(CONFIG_MAPPING[model_type]()):
            return None
        config = tiny_config(model_type)
        # Without a list, `AutoModel` cannot choose between the two classes of Funnel.
        config.architectures = config.architectures or []
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
        if size > LARGEST:
            return Outcome("not built", f"{size:,} weights with tiny sizes")
        encoder = AutoModel.from_config(config).eval()
        # It asks for further inputs by a `ValueError`; other errors are those of the tiny sizes.
        with torch.no_grad(), contextlib.suppress(ValueError):
            encoder(input_ids=torch.arange(3, 11).unsqueeze(0))
    except Exception as error:  # noqa: BLE001 - the code of any model
        return Outcome("not built", first_line(error))
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        outcome = Outcome("refused", "")
        for pooling in ("cls", "mean"):
            try:
                model = MultiTaskModel.from_encoder(folder, TASKS, pooling=pooling, max_length=32)
            except ConfigurationError as error:
                outcome = Outcome("refused", str(error).replace(folder, model_type))
                continue
            train(model)
            unpacked = "length groups" if model._length_groups else "equal lengths"
            return Outcome("packed" if model.packs else unpacked, pooling)
    return outcome


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(line.strip() for line in lines[:2])}"


def page(found: Mapping[str, Outcome]) -> str:
    """Return the page."""
    rows = []
    for kind in ("packed", "length groups", "equal lengths"):
        for pooling, settings in (("cls", "`cls`, `mean`, `max`"), ("mean", "`mean`, `max`")):
            names = [f"`{name}`" for name, outcome in found.items() if outcome == (kind, pooling)]
            if names:
                rows.append(f"| {kind} | {settings} | {len(names)} | {', '.join(names)} |")
    refused = [f"| `{name}` | {outcome.detail} |" for name, outcome in found.items() if outcome.kind == "refused"]
    failed = [f"| `{name}` | {outcome.detail} |" for name, outcome in found.items() if outcome.kind == "fails"]
    not_built = [f"`{name}`" for name, outcome in found.items() if outcome.kind == "not built"]
    return PAGE.format(
        version=transformers.__version__,
        trained="\n".join(rows),
        refused="\n".join([*refused, *failed]),
        not_built=", ".join(not_built),
    )


def main() -> None:
    """Try the types, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="default: all")
    parser.add_argument("--output", type=Path, help="the page; default: print the outcomes only")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    found = {}
    for name in options.types or sorted(CONFIG_MAPPING):
        if CONFIG_MAPPING[name] in MODEL_MAPPING:
            torch.manual_seed(0)
            try:
                outcome = try_type(name)
            except Exception as error:  # noqa: BLE001 - a type that is neither trained nor refused
                outcome = Outcome("fails", first_line(error))
            if outcome:
                found[name] = outcome
                print(name, *outcome, sep="\t", flush=True)
    if options.output:
        options.output.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
