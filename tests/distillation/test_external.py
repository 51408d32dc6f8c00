"""Teachers from outside: their own logits for each example, a run that they do not touch, and refusals in words."""

import gc
import itertools
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from runs import (
    ALL,
    InterruptedRunError,
    Interruption,
    ScriptedTrainer,
    different,
    log_of,
    some_rows,
    tiny_model,
    tiny_trainer,
    weights,
)
from tiny import SPECIAL, WORDS, WORDS_IN_PIECES, raw_sets, task_configs, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from hf_async_mtl import ConfigurationError, MultiTaskConfig, MultiTaskModel, TaskConfig
from hf_async_mtl.cli.config_file import load_config
from hf_async_mtl.data.collator import MultiTaskCollator
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.tokenization import encode, unit_counts
from hf_async_mtl.distillation.external import ExternalTeacher, load_external_teachers
from hf_async_mtl.training import controller as converging

CPU = torch.device("cpu")
GROWING = [i / 100 for i in range(1, 100)]
LAST_WEIGHTS: dict[str, Any] = {"save_strategy": "no", "load_best_model_at_end": False}


def multi_task_teacher(folder: Path, tasks: Sequence[str], seed: int = 5, **settings: Any) -> MultiTaskModel:
    """A model of some tasks, saved with its tokenizer; its heads are far from 0, so that mistakes show."""
    model = tiny_model(tasks, seed=seed, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in model.heads.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model.eval()


def stock_teacher(folder: Path, names: Sequence[str] | None, outputs: int = 2, **settings: Any) -> Any:
    """A stock model for sequence classification, saved with its tokenizer."""
    config = BertConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        **{"max_position_embeddings": 64, "initializer_range": 0.3, **settings},
    )
    config.num_labels = outputs
    if names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model.eval()


def load(name: str, source: Path, rows: Dataset, **changes: Any) -> Any:
    task = TaskConfig(**{**task_configs()[name].to_dict(), **changes})
    return load_external_teachers({name: task}, {name: str(source)}, {name: rows}, tiny_tokenizer())[name]


def answers_of(teacher: ExternalTeacher, rows: Dataset, length: int, batch_size: int, ranks: int = 1) -> list[Any]:
    """The teacher's logits of each row, as processes share them out."""
    counts = unit_counts(teacher.task, teacher.encode(rows, length))
    found: dict[int, np.ndarray] = {}
    shares = [list(teacher.logits(rows, length, batch_size, CPU, rank, ranks)) for rank in range(ranks)]
    # Each gathers with the others after each batch.
    assert len({len(batches) for batches in shares}) == 1
    for places, logits in itertools.chain.from_iterable(shares):
        parts = np.split(logits.numpy(), np.cumsum(counts[places])[:-1])
        found.update(zip(places.tolist(), parts, strict=True))
    return [found[place] for place in range(len(rows))]


def packed_logits(model: MultiTaskModel, head: str, name: str, rows: Dataset, max_length: int = 32) -> list[Tensor]:
    """A model's own logits of each row, by the way that evaluation takes."""
    task = task_configs()[name]
    data = TaskDataset(
        name, model.config.task_order.index(head), task, encode(rows, name, task, tiny_tokenizer(), max_length)
    )
    types = {other: config.type for other, config in model.config.task_configs.items()}
    collator = MultiTaskCollator(types, max_length, 0)
    found = []
    for example in range(len(data)):
        batch = collator([data[example]])
        batch.pop("example_ids")
        with torch.no_grad():
            found.append(model(**batch).logits[head])
    return found


# -- whose logits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("alone", [False, True], ids=["same-name", "other-name"])
@pytest.mark.parametrize("name", ALL)
def test_logits_are_the_teachers_own(tmp_path: Path, name: str, alone: bool, packing: str) -> None:
    """Bug: another head's, another row's, those of padding, or in the order in which rows were batched."""
    head = name
    teacher = multi_task_teacher(tmp_path, ALL, packing=packing)
    if alone:
        head = "renamed"
        config = MultiTaskConfig(
            encoder_config=teacher.config.encoder_config,
            tasks={head: task_configs()[name]},
            max_length=32,
            packing=packing,
        )
        one = MultiTaskModel(config)
        one.encoder.load_state_dict(teacher.encoder.state_dict())
        one.heads[head].load_state_dict(teacher.heads[name].state_dict())
        shutil.rmtree(tmp_path)
        one.save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        teacher = one.eval()
    assert teacher.packs == (packing == "auto")
    rows = raw_sets(11, seed=3)[name]
    length = task_configs()[name].max_length or 32
    expected = packed_logits(teacher, head, name, rows, length)
    if name == "answer":
        segments = encode(rows, name, task_configs()[name], tiny_tokenizer(), length)["input_ids"]
        assert len({len(windows) for windows in segments}) > 1
    loaded = load(name, tmp_path, rows)
    for batch_size, ranks in ((1, 1), (4, 1), (64, 1), (2, 3), (64, 2)):
        found = answers_of(loaded, rows, length, batch_size, ranks)
        assert len(found) == len(rows)
        for own, given in zip(expected, found, strict=True):
            assert given.dtype == np.float32
            # As the head's own, an example's rows first.
            shape = own.shape if loaded.task.type != "regression" else (1,)
            assert given.shape == tuple(shape)
            torch.testing.assert_close(torch.from_numpy(given).view(own.shape), own, atol=1e-5, rtol=1e-5)
    # Far enough from each other that one example's logits would not do for another.
    assert max(float(np.abs(found[0][:1] - row[:1]).max()) for row in found[1:]) > 1e-3


def stock_logits(model: Any, texts: Sequence[Sequence[str]]) -> Tensor:
    rows = []
    for text in texts:
        with torch.no_grad():
            rows.append(model(**tiny_tokenizer()(*text, return_tensors="pt")).logits)
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("names", "order"),
    [(["neg", "pos"], [0, 1]), (["pos", "neg"], [1, 0]), (None, [0, 1])],
    ids=["as-the-task", "reordered", "generic"],
)
def test_a_stock_models_labels_are_found_by_name(tmp_path: Path, names: list[str] | None, order: list[int]) -> None:
    """Bug: a teacher that has the classes in another order teaches the opposite."""
    model = stock_teacher(tmp_path, names)
    rows = raw_sets(7, seed=3)["polarity"]
    expected = stock_logits(model, [[text] for text in rows["text"]])[:, order]
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-2
    found = answers_of(load("polarity", tmp_path, rows), rows, 32, 3)
    assert {row.shape for row in found} == {(1, 2)}
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), expected, atol=1e-5, rtol=1e-5)


def test_a_stock_models_multilabel_order(tmp_path: Path) -> None:
    """Bug: the inverse of the order is taken, which is right for two labels and wrong for three."""
    model = stock_teacher(tmp_path, ["hat", "cat", "dog"], 3, problem_type="multi_label_classification")
    rows = raw_sets(7, seed=3)["topics"]
    expected = stock_logits(model, [[text] for text in rows["text"]])[:, [1, 2, 0]]
    found = answers_of(load("topics", tmp_path, rows), rows, 32, 3)
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["polarity", "topics", "colors"])
def test_a_multi_task_teachers_labels_are_found_by_name(tmp_path: Path, name: str) -> None:
    """Bug: the labels of a `MultiTaskModel`, or of a task on tokens, are taken in the teacher's order."""
    teacher = multi_task_teacher(tmp_path, [name])
    rows = raw_sets(5, seed=3)[name]
    labels = task_configs()[name].label_names
    assert labels is not None
    turned = [*labels[1:], labels[0]]
    found = answers_of(load(name, tmp_path, rows, label_names=turned), rows, 32, 2)
    for own, given in zip(packed_logits(teacher, name, name, rows), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(given), own.roll(-1, dims=-1), atol=1e-5, rtol=1e-5)


def test_a_stock_regression(tmp_path: Path) -> None:
    """Bug: `[B, 1]` of a stock model is another shape than a head's, or the second text is left out."""
    model = stock_teacher(tmp_path, None, 1)
    rows = raw_sets(7, seed=3)["overlap"]
    expected = stock_logits(model, list(zip(rows["left"], rows["right"], strict=True))).flatten()
    found = answers_of(load("overlap", tmp_path, rows), rows, 32, 3)
    assert {row.shape for row in found} == {(1,)}
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), expected, atol=1e-5, rtol=1e-5)


def test_a_teacher_is_given_what_it_takes(tmp_path: Path) -> None:
    """Bug: a tokenizer that makes token types fails with an encoder that has none."""
    config = DistilBertConfig(
        vocab_size=len(tiny_tokenizer()), dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64
    )
    model = DistilBertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    rows = raw_sets(5, seed=3)["polarity"]
    found = answers_of(load("polarity", tmp_path, rows), rows, 32, 2)
    with torch.no_grad():
        expected = [
            model(input_ids=torch.tensor([tiny_tokenizer()(text)["input_ids"]])).logits for text in rows["text"]
        ]
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_a_teacher_with_fewer_positions_reads_less(tmp_path: Path) -> None:
    """Bug: an index behind the last position ends the run, on a long text in the middle of the recording."""
    model = stock_teacher(tmp_path, None, max_position_embeddings=8)
    rows = Dataset.from_list([{"text": "good " * 20, "label": "pos"}, {"text": "bad", "label": "neg"}])
    found = answers_of(load("polarity", tmp_path, rows), rows, 32, 4)
    expected = stock_logits(model, [["good " * 6], ["bad"]])
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), expected, atol=1e-5, rtol=1e-5)


def test_half_precision_weights_answer_in_full(tmp_path: Path) -> None:
    """Bug: logits are rounded to the three digits of the type that a checkpoint happens to be stored in."""
    model = stock_teacher(tmp_path / "full", None).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    rows = raw_sets(5, seed=3)["polarity"]
    found = answers_of(load("polarity", tmp_path / "half", rows), rows, 32, 2)
    expected = stock_logits(model.float(), [[text] for text in rows["text"]])
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), expected, atol=1e-5, rtol=1e-5)


def test_nothing_random_is_drawn(tmp_path: Path) -> None:
    """Bug: loading or asking a teacher moves the random numbers of the run, or its dropout is on."""
    multi_task_teacher(tmp_path, ALL)
    rows = raw_sets(5, seed=3)["polarity"]
    before = torch.get_rng_state()
    found = [answers_of(load("polarity", tmp_path, rows), rows, 32, 2) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(np.array_equal(left, right) for left, right in zip(*found, strict=True))


# -- in a run ---------------------------------------------------------------------------------------------------------

SIZES = {"polarity": 11, "overlap": 9, "colors": 7, "answer": 5}


def run(folder: Path, teachers: dict[str, Path], sizes: dict[str, int] = SIZES, **settings: Any) -> ScriptedTrainer:
    distillation = {"teachers": {name: str(path) for name, path in teachers.items()}}
    return tiny_trainer(
        folder,
        sizes,
        **{
            "convergence": {"patience": 1, "final_evaluations": None},
            **settings,
            "distillation": {**distillation, **settings.get("distillation", {})},
        },
    )


def test_tasks_distil_from_the_first_step(tmp_path: Path) -> None:
    """Bug: the first steps are taken on labels, the logits are the student's own, or the task converges once more."""
    teacher = multi_task_teacher(tmp_path / "teacher", list(SIZES))
    names = ["polarity", "colors", "answer"]
    trainer = run(
        tmp_path / "run",
        dict.fromkeys(names, tmp_path / "teacher"),
        script={"polarity": GROWING, "colors": [0.5, 0.4], "answer": [0.1], "overlap": GROWING},
        per_device_eval_batch_size=4,
        **LAST_WEIGHTS,
    )
    given: dict[tuple[str, int], Tensor] = {}
    steps = set()
    real = trainer.teachers.losses

    def losses(task: str, head: Any, logits: Tensor, example_ids: list[int], *args: Any) -> Tensor:
        steps.add((trainer.state.global_step, task))
        for example in example_ids:
            given[task, example] = trainer.teachers._loaded[task].lookup([example])
        return real(task, head, logits, example_ids, *args)

    trainer.teachers.losses = losses  # type: ignore[method-assign]
    assert trainer.schedule.phases == {**dict.fromkeys(names, "distilling"), "overlap": "learning"}
    trainer.train()
    assert {name for step, name in steps if step == 0} == set(names)
    assert given.keys() == {(name, example) for name in names for example in range(SIZES[name])}
    raw = some_rows(SIZES)
    for name in names:
        length = task_configs()[name].max_length or 32
        for example, own in enumerate(packed_logits(teacher, name, name, raw[name], length)):
            torch.testing.assert_close(given[name, example].view(own.shape), own, atol=1e-5, rtol=1e-5)
    report = trainer.report()
    for name in names:
        assert report["tasks"][name]["phase"] == "distilling"
        assert (report["tasks"][name]["converged_step"], report["tasks"][name]["teacher_step"]) == (0, None)
    assert report["tasks"]["overlap"]["phase"] == "learning"
    assert report["events"] == []


def test_the_recording_leaves_the_run_alone(tmp_path: Path) -> None:
    """Bug: the student's weights, its random numbers, or the order of its examples are moved by the recording."""
    multi_task_teacher(tmp_path / "teacher", list(SIZES))
    outside = run(
        tmp_path / "outside",
        dict.fromkeys(SIZES, tmp_path / "teacher"),
        distillation={"hard_label_weight": 1.0},
        **LAST_WEIGHTS,
    )
    before = weights(outside)
    outside.train()
    plain = tiny_trainer(
        tmp_path / "plain",
        SIZES,
        convergence={"patience": 1, "final_evaluations": None, "on_convergence": "continue"},
        **LAST_WEIGHTS,
    )
    assert different(before, weights(plain)) == []
    plain.train()
    assert set(outside.schedule.phases.values()) == {"distilling"}
    assert different(weights(outside), weights(plain)) == []
    logs = [
        [{key: value for key, value in entry.items() if not key.startswith("phase/")} for entry in log_of(trainer)]
        for trainer in (outside, plain)
    ]
    assert logs[0] == logs[1]


def test_a_resumed_run_does_not_need_the_teacher(tmp_path: Path) -> None:
    """Bug: a checkpoint that was copied to another machine asks for a folder that is not there."""
    multi_task_teacher(tmp_path / "teacher", list(SIZES))
    teachers = {"polarity": tmp_path / "teacher", "answer": tmp_path / "teacher"}
    whole = run(tmp_path / "whole", teachers)
    whole.train()
    killed = run(tmp_path / "killed", teachers, callbacks=[Interruption(6)])
    with pytest.raises(InterruptedRunError):
        killed.train()
    shutil.rmtree(tmp_path / "teacher")
    resumed = run(tmp_path / "killed", teachers, model=tiny_model(list(SIZES), seed=99))
    resumed.train(resume_from_checkpoint=True)
    assert different(weights(resumed), weights(whole)) == []
    assert resumed.report() == whole.report()


def test_a_run_is_resumed_with_the_teachers_that_it_began_with(tmp_path: Path) -> None:
    """Bug: a task that has learned so far is said to distil, from logits that there are not."""
    multi_task_teacher(tmp_path / "teacher", list(SIZES))
    killed = run(tmp_path / "run", {}, callbacks=[Interruption(6)])
    with pytest.raises(InterruptedRunError):
        killed.train()
    resumed = run(tmp_path / "run", {"polarity": tmp_path / "teacher"})
    with pytest.raises(ConfigurationError, match="polarity must be resumed as it began"):
        resumed.train(resume_from_checkpoint=True)


def test_a_teacher_of_several_tasks_is_one_and_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a model is in memory once a task that it teaches, all at the same time, or for the whole run."""
    multi_task_teacher(tmp_path / "teacher", list(SIZES))
    models: weakref.WeakSet[Any] = weakref.WeakSet()
    counts: list[int] = []

    def load_and_note(*args: Any, **kwargs: Any) -> Any:
        teachers = load_external_teachers(*args, **kwargs)
        models.update(teacher.model for teacher in teachers.values())
        counts.extend([len(teachers), len(models)])
        return teachers

    monkeypatch.setattr(converging, "load_external_teachers", load_and_note)
    trainer = run(tmp_path / "run", dict.fromkeys(SIZES, tmp_path / "teacher"), **LAST_WEIGHTS)
    trainer.train()
    gc.collect()
    assert counts == [len(SIZES), 1]
    assert len(models) == 0


def test_a_model_card_of_taught_tasks(tmp_path: Path) -> None:
    """Bug: a task without a teacher's step or value has no place in the tables; or a local folder goes public."""
    multi_task_teacher(tmp_path / "secret" / "teacher", list(SIZES))
    trainer = run(tmp_path / "run", dict.fromkeys(SIZES, tmp_path / "secret" / "teacher"))
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "run" / "README.md").read_text()
    assert str(tmp_path) not in card


# -- refusals ---------------------------------------------------------------------------------------------------------


def refused(folder: Path, name: str, source: Any, words: str, sizes: dict[str, int] | None = None) -> None:
    """A run with such a teacher ends with these words, and has written nothing."""
    output = folder / "run"
    with pytest.raises(ConfigurationError, match=words):
        run(output, {name: source}, sizes or {"polarity": 4, "overlap": 4, "colors": 4}).train()
    assert list(output.rglob("*")) == []


def without(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink()

    return change


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "damage",
    [shutil.rmtree, without("config.json"), without("tokenizer.json"), without("model.safetensors"), cut_weights],
    ids=["folder", "config", "tokenizer", "weights", "cut"],
)
@pytest.mark.parametrize("stock", [False, True])
def test_a_folder_without_a_whole_model(tmp_path: Path, damage: Callable[[Path], None], stock: bool) -> None:
    """Bug: a traceback of the library that reads the file, after the data was prepared; or random weights teach."""
    folder = tmp_path / "teacher"
    if stock:
        stock_teacher(folder, None)
    else:
        multi_task_teacher(folder, ["polarity"])
    damage(folder)
    refused(
        tmp_path, "polarity", folder, r"^`distillation\.teachers\.polarity` must be a folder or a Hub id of a model"
    )


def test_an_encoder_is_no_teacher(tmp_path: Path) -> None:
    """Bug: a plain encoder gets a random head, and the task is taught noise."""
    folder = tmp_path / "teacher"
    config = BertConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    refused(tmp_path, "polarity", folder, r"must hold all weights of its model; .* lacks 2 \(classifier\.bias, ")


@pytest.mark.parametrize(
    ("names", "outputs", "settings", "words"),
    [
        (None, 3, {}, r"must have 2 outputs, as the task has; .* has 3\."),
        (["good", "bad"], 2, {}, r"must have the labels of the task \(neg, pos\); .* has good, bad\."),
        (["LABEL_1", "LABEL_0"], 2, {}, r"must have the labels of the task \(neg, pos\); .* has LABEL_1, LABEL_0\."),
        (["NEG", "POS"], 2, {}, r"must have the labels of the task \(neg, pos\); .* has NEG, POS\."),
        (
            ["neg", "pos"],
            2,
            {"problem_type": "multi_label_classification"},
            r"must be a model for single_label_classification; .* is one for multi_label_classification\.",
        ),
    ],
)
def test_a_stock_model_of_other_labels(
    tmp_path: Path, names: list[str] | None, outputs: int, settings: dict[str, Any], words: str
) -> None:
    """Bug: outputs that mean something else are taken for the task's."""
    stock_teacher(tmp_path / "teacher", names, outputs, **settings)
    refused(tmp_path, "polarity", tmp_path / "teacher", r"^`distillation\.teachers\.polarity` " + words)


def test_a_classifier_is_no_regression(tmp_path: Path) -> None:
    """Bug: the first of several outputs is taken for a number."""
    stock_teacher(tmp_path / "teacher", None, 2)
    refused(tmp_path, "overlap", tmp_path / "teacher", r"must have 1 outputs, as the task has; .* has 2\.")


def test_a_stock_model_has_no_tokens(tmp_path: Path) -> None:
    """Bug: a stock model for sequences is asked for the logits of tokens."""
    stock_teacher(tmp_path / "teacher", None)
    refused(
        tmp_path,
        "colors",
        tmp_path / "teacher",
        r"of a token_classification task must be a MultiTaskModel; .* is of type 'bert'\.",
    )


def test_a_model_of_other_tasks(tmp_path: Path) -> None:
    """Bug: of several tasks, the first is taken."""
    multi_task_teacher(tmp_path / "teacher", ["topics", "choice"])
    refused(
        tmp_path, "polarity", tmp_path / "teacher", r"must be a model of the task 'polarity'; .* has topics, choice\."
    )


@pytest.mark.parametrize(("has", "found"), [("overlap", "a regression task with 1"), ("topics", "a multilabel task")])
def test_a_model_of_a_task_of_another_type(tmp_path: Path, has: str, found: str) -> None:
    """Bug: logits of another type are of a shape that fits, or fail at the first step."""
    multi_task_teacher(tmp_path / "teacher", [has])
    refused(
        tmp_path,
        "polarity",
        tmp_path / "teacher",
        rf"must be a model of a classification task with 2 outputs; task '{has}' of .* is {found}",
    )


def other_tokenizer() -> PreTrainedTokenizerFast:
    """As `tiny_tokenizer`, but some words that are many tokens there are one here."""
    vocabulary = [*SPECIAL.values(), *WORDS, *WORDS_IN_PIECES]
    ids = {token: index for index, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


@pytest.mark.parametrize("name", ["colors", "answer"])
def test_a_task_on_tokens_needs_the_students_tokens(tmp_path: Path, name: str) -> None:
    """Bug: a teacher's logits of other tokens are laid over the student's."""
    multi_task_teacher(tmp_path / "teacher", [name])
    other_tokenizer().save_pretrained(tmp_path / "teacher")
    kind = task_configs()[name].type
    words = rf"of a {kind} task must cut text into the same tokens as the student"
    refused(tmp_path, name, tmp_path / "teacher", words, {name: 4})


def test_tokens_are_compared_to_the_last_row(tmp_path: Path) -> None:
    """Bug: a difference behind the rows that were looked at shifts the logits of all rows after it."""
    multi_task_teacher(tmp_path, ["colors"])
    other_tokenizer().save_pretrained(tmp_path)
    # "good" is one token in both.
    same, other = ({"tokens": [word], "tags": ["O"]} for word in ("good", "sofa"))
    rows = Dataset.from_list([*[same] * 300, other])
    loaded = load("colors", tmp_path, rows)
    with pytest.raises(ConfigurationError, match="must cut text into the same tokens"):
        answers_of(loaded, rows, 32, 64)
    assert len(answers_of(loaded, rows.select(range(300)), 32, 64)) == 300


def test_a_token_task_is_read_to_the_students_length(tmp_path: Path) -> None:
    """Bug: a teacher with fewer positions has fewer logits than the student has tokens."""
    multi_task_teacher(tmp_path / "teacher", ["colors"])
    shutil.rmtree(tmp_path / "teacher")
    encoder = BertConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=8,
    )
    config = MultiTaskConfig(encoder_config=encoder, tasks={"colors": task_configs()["colors"]}, max_length=8)
    MultiTaskModel(config).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    rows = Dataset.from_list([{"tokens": ["good"] * 20, "tags": ["O"] * 20}] * 2)
    loaded = load("colors", tmp_path / "teacher", rows)
    with pytest.raises(ConfigurationError, match="at least as many positions"):
        answers_of(loaded, rows, 32, 2)
    assert [len(row) for row in answers_of(loaded, rows, 8, 2)] == [8, 8]


def test_other_tokens_will_do_for_a_sequence(tmp_path: Path) -> None:
    """Bug: a teacher with a tokenizer of its own is refused where nothing is laid over tokens."""
    model = multi_task_teacher(tmp_path, ["polarity"])
    other_tokenizer().save_pretrained(tmp_path)
    rows = raw_sets(3, seed=3)["polarity"]
    found = answers_of(load("polarity", tmp_path, rows), rows, 32, 2)
    with torch.no_grad():
        expected = [model(**other_tokenizer()(text, return_tensors="pt")).logits["polarity"] for text in rows["text"]]
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_a_tokenizer_without_padding(tmp_path: Path) -> None:
    """Bug: the first batch of two rows ends the run in a message of the tokenizer."""
    stock_teacher(tmp_path / "teacher", None)
    special = {key: value for key, value in SPECIAL.items() if key != "pad_token"}
    backend = tiny_tokenizer().backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path / "teacher")
    refused(tmp_path, "polarity", tmp_path / "teacher", "must have a tokenizer with a padding token")


def test_logits_are_finite(tmp_path: Path) -> None:
    """Bug: a teacher with damaged weights makes the run NaN, at a step that says nothing of the teacher."""
    model = stock_teacher(tmp_path / "teacher", None)
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    model.save_pretrained(tmp_path / "teacher")
    refused(tmp_path, "polarity", tmp_path / "teacher", "must give finite logits; those of training row 0 are not")


def test_a_teacher_of_no_task(tmp_path: Path) -> None:
    """Bug: a misspelt name leaves its task without a teacher, without a word."""
    multi_task_teacher(tmp_path / "teacher", ["polarity"])
    words = r"`distillation\.teachers` must name tasks of the model \(polarity, overlap, colors\); found 'polarty'"
    refused(tmp_path, "polarty", tmp_path / "teacher", words)


@pytest.mark.parametrize("teachers", [["polarity"], "teacher", {"polarity": 3}, {"polarity": ""}])
def test_teachers_are_a_dictionary(tmp_path: Path, teachers: Any) -> None:
    """Bug: a list of names, or a task without a folder, fails far from the key that is wrong."""
    with pytest.raises(ConfigurationError, match=r"`distillation\.teachers` must be a mapping: task -> folder or"):
        tiny_trainer(tmp_path, {"polarity": 4}, distillation={"teachers": teachers})


# -- in a configuration file ------------------------------------------------------------------------------------------


def configuration(folder: Path, teacher: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text('{"text": "good", "label": "pos"}\n')
    path = folder / "run.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "encoder": "some/encoder",
                "tasks": {
                    "polarity": {
                        "type": "classification",
                        "text_columns": ["text"],
                        "data": {"train": "train.jsonl", "validation": "train.jsonl"},
                    }
                },
                "distillation": {"teachers": {"polarity": teacher}},
            }
        )
    )
    return path


def test_folders_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a teacher's folder is looked for where the command was given, unlike the encoder's."""
    (tmp_path / "file" / "models" / "teacher").mkdir(parents=True)
    monkeypatch.setenv("MODELS", str(tmp_path / "file" / "models"))
    expected = str(tmp_path / "file" / "models" / "teacher")
    for given in ("models/teacher", "./models/teacher", "$MODELS/teacher", expected):
        config = load_config(configuration(tmp_path / "file", given))
        assert config.training["distillation"]["teachers"] == {"polarity": expected}
    config = load_config(configuration(tmp_path / "file", "x"), ["distillation.teachers.polarity=models/teacher"])
    assert config.training["distillation"]["teachers"] == {"polarity": expected}


def test_a_hub_id_stays(tmp_path: Path) -> None:
    """Bug: a Hub id becomes a path."""
    config = load_config(configuration(tmp_path, "user/teacher"))
    assert config.training["distillation"]["teachers"] == {"polarity": "user/teacher"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("./nowhere", r"`distillation\.teachers\.polarity` must be a Hub id or a folder; there is no folder .*nowhere"),
        (3, r"`distillation\.teachers.*` must be .* found {'polarity': 3}"),
    ],
)
def test_a_folder_that_is_not_there(tmp_path: Path, given: Any, words: str) -> None:
    """Bug: a misspelt folder is asked for at the Hub."""
    with pytest.raises(ConfigurationError, match=words):
        load_config(configuration(tmp_path, given)).arguments(tmp_path / "out")
