"""The model: packed rows say what a padded call says, every parameter learns, and what is saved comes back."""

import inspect
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import (
    FAMILIES,
    FAMILIES_AND_ATTENTION,
    TASKS,
    family_config,
    packed,
    padded_logits,
    random_examples,
    tiny_model,
    without_dropout,
)
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
)

import hf_async_mtl.modeling.modeling_multitask as modeling
import hf_async_mtl.modeling.packing as packing_module
from hf_async_mtl import ConfigurationError, MultiTaskConfig, MultiTaskModel
from hf_async_mtl.modeling.configuration_multitask import RENAMED
from hf_async_mtl.modeling.heads import Head
from hf_async_mtl.modeling.packing import HostBatch, length_groups

SOURCES = Path(modeling.__file__).parents[2]
PACKING = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert")
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@contextmanager
def counted_forwards(model: MultiTaskModel) -> Iterator[list[Any]]:
    """Records the shape of the input of each forward of the encoder."""
    shapes: list[Any] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    handle = model.encoder.register_forward_hook(record, with_kwargs=True)
    yield shapes
    handle.remove()


def heads_of(model: MultiTaskModel) -> list[Head]:
    return [head for head in model.heads.values() if isinstance(head, Head)]


def gradients(model: MultiTaskModel) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        found[name] = parameter.grad.clone()
    model.zero_grad()
    return found


def loss_of(model: MultiTaskModel, batch: dict[str, Any]) -> Tensor:
    loss = model(**batch).loss
    assert isinstance(loss, Tensor)
    return loss


def logits_of(model: MultiTaskModel, batch: dict[str, Any]) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(**batch).logits


# -- packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token_types", [False, True])
@pytest.mark.parametrize(("family", "attention"), FAMILIES_AND_ATTENTION)
def test_a_packed_batch_says_what_padded_calls_say(family: str, attention: str, token_types: bool) -> None:
    """A segment saw its neighbor, was counted from a wrong position, or was given to another example or head.

    The families that do not pack take their length groups here.
    """
    model = tiny_model(family, attention)
    examples = random_examples(token_types=token_types)
    logits = logits_of(model, packed(model, examples))
    assert list(logits) == list(TASKS)
    with torch.no_grad():
        for name, found in logits.items():
            torch.testing.assert_close(found, padded_logits(model, examples, name), **TOLERANCE)


@pytest.mark.parametrize(("family", "attention"), FAMILIES_AND_ATTENTION)
def test_which_families_pack(family: str, attention: str) -> None:
    """A probe that refuses what works costs half the speed and no test; one that takes what does not, the results."""
    model = tiny_model(family, attention)
    assert model.encoder.config._attn_implementation == attention
    # MPNet counts its relative positions from the places in the row: right here, and not promised.
    if family != "mpnet":
        assert model.packs is (family in PACKING)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_forward_for_a_packed_batch(family: str) -> None:
    """The encoder ran once a task, or the probe ran again with every batch."""
    model = tiny_model(family)
    batch = packed(model, random_examples())
    model.probe_packing()
    with counted_forwards(model) as shapes:
        logits_of(model, batch)
        logits_of(model, batch)
    if model.packs:
        assert shapes == [tuple(batch["input_ids"].shape)] * 2
    else:
        groups = length_groups(batch["segment_lengths"].tolist())
        assert 1 < len(groups) <= 4
        assert [rows for rows, _ in shapes] == [len(group) for group in groups] * 2


def test_segments_of_modernbert_are_longer_than_its_window() -> None:
    """Local attention was never put to the test, since no segment was longer than its window."""
    window = family_config("modernbert").sliding_window
    examples = random_examples()
    longest = max(len(segment) for example in examples for segment in example["input_ids"])
    assert longest > 2 * window + 1
    model = tiny_model("modernbert", "sdpa")
    batch = packed(model, examples)
    expected = logits_of(model, batch)
    model.encoder.config.sliding_window = 50
    assert (logits_of(model, batch)["tags"] - expected["tags"]).abs().max() > 1e-2


def test_named_heads_read_every_example_of_a_packed_batch() -> None:
    """Several tasks on the same rows cost a pass of the encoder each, or a head read the examples of its task alone."""
    model = tiny_model("bert")
    batch = packed(model, random_examples())
    own = logits_of(model, batch)
    with torch.no_grad():
        named = model(**{**batch, "labels": None}, tasks=["topic", "tags"]).logits
    assert list(named) == ["topic", "tags"]
    assert len(named["topic"]) == len(batch["task_ids"])
    index = model.config.task_order.index("topic")
    torch.testing.assert_close(named["topic"][batch["task_ids"] == index], own["topic"])


@pytest.mark.parametrize("family", PACKING)
def test_a_wrong_mask_is_noticed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe or the test above could not see a segment that reads its neighbor."""
    model = tiny_model(family, "sdpa")
    examples = random_examples()
    batch = packed(model, examples)
    expected = logits_of(model, batch)
    monkeypatch.setattr(packing_module, "block_mask", lambda ids: torch.ones(len(ids), 1, *ids.shape[1:] * 2).bool())
    assert (logits_of(model, batch)["tags"] - expected["tags"]).abs().max() > 1e-2
    assert model.probe_packing() is False
    for name, found in logits_of(model, batch).items():
        torch.testing.assert_close(found, expected[name], **TOLERANCE)


def test_wrong_positions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """RoBERTa was packed with BERT's positions: a little worse everywhere, and no error."""
    model = tiny_model("roberta", "sdpa")
    assert model.packs
    batch = packed(model, random_examples())
    expected = logits_of(model, batch)
    model._position_offset = 0
    assert (logits_of(model, batch)["tags"] - expected["tags"]).abs().max() > 1e-2
    assert model.probe_packing()
    assert torch.equal(logits_of(model, batch)["tags"], expected["tags"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_packs_alike(family: str, dtype: torch.dtype) -> None:
    """The probe's tolerance let a wrong position pass, or refused what rounds."""
    model = tiny_model(family)
    expected = (model.packs, model._position_offset)
    model.to(dtype)
    assert (model.probe_packing(), model._position_offset) == expected


@pytest.mark.parametrize("pad_token_id", [0, 50, 98])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_probe_knows_any_pad_token(family: str, pad_token_id: int) -> None:
    """A vocabulary with padding at its end was probed with a token behind the end: an assert on the GPU."""
    model = tiny_model(family_config(family, pad_token_id=pad_token_id, max_position_embeddings=200))
    assert model.packs
    examples = random_examples(tasks=["topic"])
    for example in examples:
        example["input_ids"] = [[token if token != pad_token_id else 97 for token in example["input_ids"][0]]]
    with torch.no_grad():
        torch.testing.assert_close(
            model(**packed(model, examples)).logits["topic"], padded_logits(model, examples, "topic"), **TOLERANCE
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_leaves_no_trace(family: str) -> None:
    """The probe drew from the global generators, so that packing changed the dropout, or woke a layer that rests."""
    model = tiny_model(family, "eager").train()
    frozen = next(module for module in model.encoder.modules() if isinstance(module, torch.nn.Dropout))
    frozen.eval()
    before = {name: module.training for name, module in model.named_modules()}
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.probe_packing()
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert str(np.random.get_state()) == states[2]
    assert torch.is_grad_enabled()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_packing_can_be_switched_off() -> None:
    """`packing: off` packed, or answered otherwise."""
    examples = random_examples()
    packing, plain = tiny_model("bert"), tiny_model("bert", packing="off")
    assert packing.packs
    assert not plain.packs
    batch = packed(packing, examples)
    expected = logits_of(packing, batch)
    with counted_forwards(plain) as shapes:
        found = logits_of(plain, batch)
    assert 1 < len(shapes) <= 4
    for name in TASKS:
        torch.testing.assert_close(found[name], expected[name], **TOLERANCE)


def test_another_attention_after_the_probe() -> None:
    """The mask kept the form of the attention that was probed."""
    model = tiny_model("bert", "sdpa")
    batch = packed(model, random_examples())
    expected = logits_of(model, batch)
    model.set_attn_implementation("eager")
    assert model.encoder.config._attn_implementation == "eager"
    for name, found in logits_of(model, batch).items():
        torch.testing.assert_close(found, expected[name], **TOLERANCE)


def test_one_segment_in_a_row() -> None:
    """A batch of one example, or rows that hold one segment each, went another way."""
    model = tiny_model("roberta", "sdpa")
    examples = random_examples(tasks=["topic"], per_task=1)
    with torch.no_grad():
        expected = padded_logits(model, examples, "topic")
    for row_length in (20, 64):
        torch.testing.assert_close(
            logits_of(model, packed(model, examples, row_length))["topic"], expected, **TOLERANCE
        )


# -- losses and gradients ---------------------------------------------------------------------------------------------


def test_the_loss_of_a_batch_is_the_mean_over_its_examples() -> None:
    """Tasks were averaged first, so that an example of a rare task weighed more."""
    model = tiny_model("bert")
    examples = random_examples(per_task=2) + random_examples(tasks=["topic"], per_task=3, seed=1)
    output = model(**packed(model, examples))
    losses = torch.cat(list(output.losses.values()))
    assert len(losses) == len(examples) == 15
    torch.testing.assert_close(output.loss, losses.mean())
    alone = [model(**packed(model, [example])).loss for example in examples]
    torch.testing.assert_close(output.loss, torch.stack(alone).mean(), **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_gradient(family: str) -> None:
    """A task was absent from the batch, or an encoder's pooler is read by nobody: DDP waits for a gradient for ever."""
    model = tiny_model(family)
    present = ["stars", "tags"]
    loss_of(model, packed(model, random_examples(present))).backward()
    for name, gradient in gradients(model).items():
        absent = name.startswith("heads.") and name.split(".")[1] not in present
        assert gradient.isfinite().all()
        if absent:
            assert (gradient == 0).all(), name
        elif "key" not in name and ".Wqkv.bias" not in name:
            # A key's bias moves no attention: its gradient is 0 by rights.
            assert (gradient != 0).any(), name


def relative_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in expected) / largest


@pytest.mark.parametrize("family", PACKING)
def test_packed_gradients_are_padded_gradients(family: str) -> None:
    """Rows gave the right logits and let a gradient flow into another segment."""
    model = tiny_model(family, "sdpa")
    batch = packed(model, random_examples())
    assert model.packs
    loss_of(model, batch).backward()
    found = gradients(model)
    model.config.packing = "off"
    assert model.probe_packing() is False
    loss_of(model, batch).backward()
    assert relative_difference(found, gradients(model)) < 1e-5


def test_split_batches_add_up_to_the_same_gradient() -> None:
    """A batch of 12 was not 5 + 4 + 3: an example's loss depended on its company."""
    model = tiny_model("modernbert", "sdpa")
    examples = random_examples(per_task=2)
    loss_of(model, packed(model, examples)).backward()
    whole = gradients(model)
    for part in (examples[:5], examples[5:9], examples[9:]):
        (loss_of(model, packed(model, part)) * len(part) / len(examples)).backward()
    assert relative_difference(gradients(model), whole) < 1e-5


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    """Checkpointing was declared and did nothing, or recomputed with another mask."""
    model = tiny_model(without_dropout(family)).train()
    for head in heads_of(model):
        head.dropout.p = 0.0
    batch = packed(model, random_examples())
    model.probe_packing()
    layer = next(module for name, module in model.encoder.named_modules() if name.endswith(("layer.0", "layers.0")))
    inside = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
    calls: list[int] = []
    inside.register_forward_pre_hook(lambda *_: calls.append(1))

    def run() -> tuple[dict[str, Tensor], int]:
        calls.clear()
        loss_of(model, batch).backward()
        return gradients(model), len(calls)

    plain, once = run()
    # Older releases say "gradient".
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{word}_checkpointing_enable")()
    checkpointed, twice = run()
    assert twice == 2 * once
    assert relative_difference(checkpointed, plain) < 1e-6
    getattr(model, f"{word}_checkpointing_disable")()
    assert run()[1] == once


@pytest.mark.parametrize(("family", "attention"), FAMILIES_AND_ATTENTION)
def test_autocast_runs_packed(family: str, attention: str) -> None:
    """Eager attention added a float32 mask to bf16 scores, or the whole step fell back to float32."""
    model = tiny_model(family, attention)
    batch = packed(model, random_examples())
    expected = logits_of(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch)
    assert output.loss.dtype == torch.float32
    for name, logits in output.logits.items():
        assert (logits.float() - expected[name]).abs().mean() < 0.05 * expected[name].abs().mean() + 0.05
    output.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# -- a plain call -----------------------------------------------------------------------------------------------------


def test_every_head_answers_for_every_row() -> None:
    """A plain call, as inference makes it, asked one head or gave shapes that no reader expects."""
    model = tiny_model("bert")
    ids = torch.randint(3, 99, (2, 7))
    output = model(ids)
    shapes = {name: tuple(logits.shape) for name, logits in output.logits.items()}
    assert shapes == {
        "topic": (2, 3),
        "stars": (2,),
        "tags": (2, 7, 4),
        "choice": (2, 1),
        "marks": (2, 2),
        "answer": (2, 7, 2),
    }
    assert output.loss is None
    assert output.losses is None
    some = model(ids, tasks=["tags", "topic"]).logits
    assert list(some) == ["tags", "topic"]
    assert torch.equal(some["topic"], output.logits["topic"])
    assert isinstance(model(ids, return_dict=False), tuple)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str) -> None:
    """The answer for a text depended on the longest text beside it."""
    model = tiny_model(family)
    pad = model.encoder.config.pad_token_id
    ids = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = pad, 0
    with torch.no_grad():
        both, alone = model(ids, mask).logits, model(ids[1:, :4]).logits
    for name in TASKS:
        found = both[name][1:]
        if TASKS[name].type in ("token_classification", "question_answering"):
            assert (found[:, 4:] == 0).all()
            found = found[:, :4]
        torch.testing.assert_close(found, alone[name], **TOLERANCE)


def test_a_plain_call_with_labels() -> None:
    """A loss of its own for the padded way: the two differed."""
    model = tiny_model("bert")
    examples = random_examples(tasks=["topic"], per_task=4)
    labels = packed(model, examples)["labels"]
    lengths = [len(example["input_ids"][0]) for example in examples]
    ids, mask = torch.zeros(4, max(lengths), dtype=torch.long), torch.zeros(4, max(lengths), dtype=torch.long)
    for row, example in enumerate(examples):
        ids[row, : lengths[row]] = torch.tensor(example["input_ids"][0])
        mask[row, : lengths[row]] = 1
    output = model(ids, mask, labels=labels)
    assert list(output.losses) == ["topic"]
    torch.testing.assert_close(output.loss, loss_of(model, packed(model, examples)), **TOLERANCE)


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_a_batch_with_its_integers_on_the_host(packing: str) -> None:
    """What the trainer gives, and what a plain call reads from the tensors, gave different logits."""
    model = tiny_model("bert", packing=packing)
    batch = packed(model, random_examples())
    names = ("task_ids", "segment_counts", "segment_lengths")
    host = HostBatch(*(batch[name].tolist() for name in names))
    found, expected = model(**batch, host=host), model(**batch)
    assert found.loss == expected.loss
    for name, logits in expected.logits.items():
        assert torch.equal(found.logits[name], logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.update(task_ids=batch["task_ids"].flip(0)), "must be in the order of their tasks"),
        (lambda batch: batch.pop("position_ids"), "needs `position_ids` and `segment_ids`"),
        (lambda batch: batch.pop("segment_counts"), "needs `segment_starts`, `segment_lengths` and `segment_counts`"),
    ],
)
def test_a_packed_batch_that_is_not_whole(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    """Examples out of order were given to each other's heads."""
    model = tiny_model("bert")
    batch = packed(model, random_examples())
    change(batch)
    with pytest.raises(ValueError, match=message):
        model(**batch)


def test_an_unknown_task() -> None:
    """A misspelt task was a KeyError of `ModuleDict`."""
    with pytest.raises(ValueError, match=r"`tasks` must be among topic, .*; found 'topics'"):
        tiny_model("bert")(torch.tensor([[5, 6]]), tasks=["topics"])


def test_forward_has_one_name_with_label() -> None:
    """The Trainer takes each parameter with "label" in its name for a label; one is absent, and all metrics are."""
    names = inspect.signature(MultiTaskModel.forward).parameters
    assert [name for name in names if "label" in name] == ["labels"]
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in names.values())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MultiTaskConfig(), "has no encoder. Start from a plain encoder"),
        (MultiTaskConfig(encoder_config=family_config("bert")), "has no tasks. Start from a plain encoder"),
    ],
)
def test_a_model_without_parts(config: MultiTaskConfig, message: str) -> None:
    """`MultiTaskModel(config)` of an empty configuration was an AttributeError."""
    with pytest.raises(ConfigurationError, match=message):
        MultiTaskModel(config)


# -- saved and loaded -------------------------------------------------------------------------------------------------


def assert_same_answers(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same but for rounding: on some processors a product's last digit depends on where its factors lie in memory.

    That the weights are the same to the bit is for the caller to see.
    """
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("load", [MultiTaskModel.from_pretrained, AutoModel.from_pretrained], ids=["ours", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back(family: str, load: Callable[..., MultiTaskModel], tmp_path: Path) -> None:
    """Weights, tasks, their order, their labels or the scale of a regression were not those that were saved."""
    model = tiny_model(family, pooling="mean")
    model.save_pretrained(tmp_path)
    again = load(tmp_path, attn_implementation="eager")
    assert type(again) is MultiTaskModel
    assert not again.training
    assert list(again.heads) == list(TASKS) == again.config.task_order
    assert again.config.task_configs == TASKS
    assert again.packs == model.packs
    batch = packed(model, random_examples())
    assert_same_answers(logits_of(again, batch), logits_of(model, batch))
    ids = torch.randint(3, 99, (2, 7), generator=torch.Generator().manual_seed(0))
    assert_same_answers(logits_of(again, {"input_ids": ids}), logits_of(model, {"input_ids": ids}))
    saved, loaded = model.state_dict(), again.state_dict()
    assert list(saved) == list(loaded)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    """The encoder came back in half precision and its heads in float32, or the other way round."""
    model = tiny_model("bert").to(dtype)
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    batch = packed(model, random_examples())
    assert_same_answers(logits_of(again, batch), logits_of(model, batch))
    full = MultiTaskModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}
    assert all(torch.equal(tensor, model.state_dict()[name].float()) for name, tensor in full.state_dict().items())


def test_a_model_of_version_1_comes_back(tmp_path: Path) -> None:
    """A model saved by version 0.1 would not load any more: its ``config.json`` has the old names of the fields."""
    tiny_model("bert").save_pretrained(tmp_path)
    model = MultiTaskModel.from_pretrained(tmp_path).eval()
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    old = {new: name for name, new in RENAMED.items()}
    config["tasks"] = {
        name: {old.get(key, key): value for key, value in task.items()} for name, task in config["tasks"].items()
    }
    assert {"text", "label", "labels"} <= set(config["tasks"]["topic"])
    path.write_text(json.dumps({**config, "lora_base": None, "lora_only": False}), encoding="utf-8")
    loaded = MultiTaskModel.from_pretrained(tmp_path).eval()
    assert loaded.config.tasks == model.config.tasks
    assert not {"lora_base", "lora_only"} & loaded.config.to_dict().keys()
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.inference_mode():
        expected, found = model(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert list(expected) == list(found) == list(TASKS)
    for name in TASKS:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_a_larger_vocabulary_comes_back(tmp_path: Path) -> None:
    """Tokens were added, and the saved configuration still had the old number: nothing could load the model."""
    model = tiny_model("bert")
    model.resize_token_embeddings(105, mean_resizing=False)
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight.shape[0] == again.config.encoder_config.vocab_size == 105


def test_heads_begin_small() -> None:
    """`post_init` was forgotten or drew the encoder's weights a second time."""
    config = MultiTaskConfig(encoder_config=family_config("bert", initializer_range=0.02), tasks=TASKS)
    model = MultiTaskModel(config)
    for head in heads_of(model):
        assert (head.linear.bias == 0).all()
        assert head.linear.weight.abs().max() < 0.12
        assert head.linear.weight.std() > 0.005


@pytest.mark.parametrize(
    ("family", "settings", "dropout"),
    [
        ("bert", {"hidden_dropout_prob": 0.3}, 0.3),
        ("bert", {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.2}, 0.2),
        ("distilbert", {"seq_classif_dropout": 0.25}, 0.25),
        ("albert", {"classifier_dropout_prob": 0.15}, 0.15),
        ("modernbert", {"classifier_dropout": 0.05}, 0.05),
    ],
)
def test_heads_have_the_dropout_that_the_encoder_names(family: str, settings: dict[str, float], dropout: float) -> None:
    """Each family has its own name for it, and one that was not known fell to another layer's."""
    model = tiny_model(family_config(family, **settings))
    assert {head.dropout.p for head in heads_of(model)} == {dropout}


# -- in other processes -----------------------------------------------------------------------------------------------


def run_python(code: str, *arguments: Any, **environment: str) -> dict[str, Any]:
    """Runs code in a fresh interpreter, without network, and returns the JSON of its last line."""
    blank = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**blank, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


WITHOUT_THE_PACKAGE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_async_mtl":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, attn_implementation="eager")
batch = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    packed = model(**batch)
    plain = model(batch["input_ids"])
model.save_pretrained(sys.argv[3])
print(json.dumps({
    "module": type(model).__module__,
    "ours": [name for name in sys.modules if name.split(".")[0] == "hf_async_mtl"],
    "packs": model.packs,
    "order": list(model.heads),
    "labels": [task.label_names for task in model.config.task_configs.values()],
    "packed": {name: logits.tolist() for name, logits in packed.logits.items()},
    "plain": {name: logits.tolist() for name, logits in plain.logits.items()},
}))
"""


def test_a_saved_model_carries_its_code(tmp_path: Path) -> None:
    """Whoever has not installed us could not load the model: a file was missing beside it, or imported the package."""
    model = tiny_model("roberta")
    model.save_pretrained(tmp_path / "model")
    batch = packed(model, random_examples())
    torch.save(batch, tmp_path / "batch.pt")
    found = run_python(
        WITHOUT_THE_PACKAGE,
        tmp_path / "model",
        tmp_path / "batch.pt",
        tmp_path / "again",
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    assert found["ours"] == []
    assert found["module"].startswith("transformers_modules.")
    assert found["packs"] is True
    assert found["order"] == list(TASKS)
    assert found["labels"] == [task.label_names for task in TASKS.values()]
    expected = logits_of(model, batch), logits_of(model, {"input_ids": batch["input_ids"]})
    for way, logits in zip(("packed", "plain"), expected, strict=True):
        assert_same_answers({name: torch.tensor(values) for name, values in found[way].items()}, logits)
    # What was loaded so and saved again is whole, too.
    assert AutoConfig.from_pretrained(tmp_path / "again").task_order == list(TASKS)
    code = {path.name: path.read_bytes() for path in (tmp_path / "model").glob("*.py")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").glob("*.py")} == code
    assert set(code) == {"configuration_multitask.py", "modeling_multitask.py", "heads.py", "losses.py", "packing.py"}


def test_a_reader_has_little_code_to_trust(tmp_path: Path) -> None:
    """Who sets `trust_remote_code` was asked to read presets, label discovery and all that only training needs."""
    tiny_model("bert").save_pretrained(tmp_path)
    code = list(tmp_path.glob("*.py"))
    assert len(code) == 5
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in code) <= 1350


INFERENCE = """
import json, sys
import torch
import hf_async_mtl
model = hf_async_mtl.MultiTaskModel.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(torch.tensor([[5, 6, 7]])).logits
print(json.dumps({"modules": sorted(sys.modules), "heads": list(logits)}))
"""


def test_inference_imports_the_model_alone(tmp_path: Path) -> None:
    """A server that only predicts had to install datasets, evaluate and all that trains."""
    tiny_model("bert").save_pretrained(tmp_path)
    found = run_python(INFERENCE, tmp_path, PYTHONPATH=str(SOURCES))
    assert found["heads"] == list(TASKS)
    ours = {name for name in found["modules"] if name.startswith("hf_async_mtl.")}
    assert {name.split(".")[1] for name in ours} <= {
        "modeling",
        "inference",
        "registration",
        "tasks",
        "utils",
        "validation",
    }
    assert "hf_async_mtl.modeling.modeling_multitask" in ours
    assert not {"datasets", "evaluate"} & set(found["modules"])
