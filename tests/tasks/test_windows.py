"""Long texts in windows: no token is lost, and the logits of a text are those of its windows."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import GradientRecorder, tiny_trainer
from tiny import WORDS, WORDS_IN_PIECES, byte_level_tokenizer, tiny_tokenizer
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from hf_async_mtl import ConfigurationError, MultiTaskConfig, MultiTaskModel, MultiTaskPipeline, TaskConfig
from hf_async_mtl.data.collator import MultiTaskCollator
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.distillation.external import load_external_teachers
from hf_async_mtl.export.onnx_module import OnnxModule
from hf_async_mtl.inference.predict import predict_rows
from hf_async_mtl.modeling.losses import IGNORE

TOKENIZER = tiny_tokenizer()
TASKS = {
    "mood": TaskConfig("classification", ["text"], label_names=["neg", "pos"], max_length=16, doc_stride=4),
    "score": TaskConfig(
        "regression", ["left", "text"], "score", target_mean=5.0, target_std=2.0, max_length=20, doc_stride=3
    ),
    "topics": TaskConfig(
        "multilabel", ["text"], "topics", label_names=["cat", "dog"], max_length=12, doc_stride=0, doc_pooling="max"
    ),
    "colors": TaskConfig(
        "token_classification", ["words"], "tags", label_names=["O", "B-c"], max_length=12, doc_stride=4
    ),
}


def some_rows(count: int = 4, words: tuple[int, int] = (5, 40), seed: int = 0) -> Dataset:
    """Rows with the columns of all tasks; the first text is the longest."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        size = words[1] if index == 0 else generator.randint(*words)
        text = [generator.choice([*WORDS, *WORDS_IN_PIECES]) for _ in range(size)]
        rows.append(
            {
                "text": " ".join(text),
                "left": " ".join(text[:4]),
                "words": text,
                "label": "pos" if index % 2 else "neg",
                "score": float(index),
                "topics": [word for word in ("cat", "dog") if word in text[:3]],
                "tags": ["B-c" if word in ("red", "blue") else "O" for word in text],
            }
        )
    return Dataset.from_list(rows)


def model_of(packing: str = "auto", **changes: Any) -> MultiTaskModel:
    """A model of all tasks without dropout, its heads drawn wide."""
    torch.manual_seed(0)
    encoder = BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tasks = {name: {**task.to_dict(), **changes} for name, task in TASKS.items()}
    model = MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=tasks, packing=packing, max_length=64))
    for head in model.heads.values():
        torch.nn.init.normal_(head.linear.weight, std=0.5)
    return model.eval()


def batch_of(name: str, rows: Dataset, with_labels: bool = True) -> dict[str, Any]:
    encoded = encode(rows, name, TASKS[name], TOKENIZER, TASKS[name].max_length or 0, with_labels=with_labels)
    examples = TaskDataset(name, list(TASKS).index(name), TASKS[name], encoded)
    collate = MultiTaskCollator({name: task.type for name, task in TASKS.items()}, 64, 0)
    batch = collate([examples[index] for index in range(len(rows))])
    batch.pop("example_ids")
    return batch


@torch.no_grad()
def by_window(model: Any, name: str, rows: Dataset, **options: Any) -> list[Tensor]:
    """The logits of each window of each row, by plain calls."""
    encoded = encode(rows, name, TASKS[name], TOKENIZER, TASKS[name].max_length or 0, with_labels=False)
    found = []
    for row in encoded:
        windows = []
        for ids, types in zip(row["input_ids"], row["token_type_ids"], strict=True):
            logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([types]), **options).logits
            windows.append((logits if isinstance(logits, Tensor) else logits[name])[0])
        found.append(torch.stack(windows) if name != "colors" else torch.cat(windows))
    return found


@pytest.mark.parametrize("name", ["mood", "score", "topics"])
@pytest.mark.parametrize("packing", ["auto", "off"])
def test_logits_of_a_text_are_pooled_from_its_windows(name: str, packing: str) -> None:
    """Bug: the first window alone is read, padding counts as one, or the mean is over all windows of a batch."""
    model, rows = model_of(packing), some_rows()
    found = by_window(model, name, rows, tasks=[name])
    assert len(found[0]) > 2
    expected = torch.stack([windows.amax(0) if name == "topics" else windows.mean(0) for windows in found])
    with torch.no_grad():
        logits = model(**batch_of(name, rows)).logits[name]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_level_tokenizer()], ids=["wordpiece", "byte_level"])
@pytest.mark.parametrize("stride", [0, 3, 1000])
@pytest.mark.parametrize("columns", [["text"], ["left", "text"]])
def test_windows_lose_no_token(tokenizer: Any, stride: int, columns: list[str]) -> None:
    """Bug: the text is shortened before it is cut into windows, or a stride crashes the tokenizer."""
    task = TaskConfig("classification", columns, label_names=["neg", "pos"], max_length=16, doc_stride=stride)
    rows, is_pair = some_rows(), len(columns) == 2
    room = 16 - tokenizer.num_special_tokens_to_add(pair=is_pair)
    kinds = set()
    for raw, row in zip(rows, encode(rows, "mood", task, tokenizer, 16), strict=True):
        first, text = (tokenizer(raw[column], add_special_tokens=False)["input_ids"] for column in ("left", "text"))
        cut = is_pair and len(first) > room // 2
        assert row["truncated"] == cut
        kept = (first[: room // 2] if cut else first) if is_pair else []
        own = room - len(kept)
        step = own - min(stride, room // (4 if is_pair else 2))
        starts = [start for start in range(0, len(text), step) if start == 0 or start + own - step < len(text)]
        expected = [[*kept, *text[start : start + own]] for start in starts]
        found = [[token for token in ids if token not in tokenizer.all_special_ids] for ids in row["input_ids"]]
        assert found == expected
        assert all(len(ids) <= 16 for ids in row["input_ids"])
        kinds.add(len(starts) > 1)
    assert True in kinds


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_level_tokenizer(True)], ids=["wordpiece", "byte_level"])
@pytest.mark.parametrize("stride", [0, 3, 5])
def test_a_word_is_read_where_it_is_most_central(tokenizer: Any, stride: int) -> None:
    """Bug: a word is read at the edge of a window, twice, at a later sub-word, or not at all."""
    task = TaskConfig(**{**TASKS["colors"].to_dict(), "doc_stride": stride})
    rows = some_rows()
    encoded = encode(rows, "colors", task, tokenizer, 12)
    room = 12 - 2
    for raw, row in zip(rows, encoded, strict=True):
        words = [raw["words"][0], *(f" {word}" for word in raw["words"][1:])] if tokenizer is not TOKENIZER else None
        tokens = tokenizer(words or raw["words"], is_split_into_words=True, add_special_tokens=False)
        ids, word_ids = tokens["input_ids"], tokens.word_ids()
        firsts = [word_ids.index(word) for word in range(len(raw["words"]))]
        starts = [start for start in range(0, len(ids), room - stride) if start == 0 or start + stride < len(ids)]
        windows = [list(range(start, min(start + room, len(ids)))) for start in starts]
        assert [window[1:-1] for window in row["input_ids"]] == [[ids[i] for i in window] for window in windows]
        expected = [IGNORE] * sum(len(window) + 2 for window in windows)
        for word, first in enumerate(firsts):
            best = max(
                (min(1 + window.index(first), len(window) - window.index(first)), -number)
                for number, window in enumerate(windows)
                if first in window
            )
            number = -best[1]
            before = sum(len(window) + 2 for window in windows[:number])
            expected[before + 1 + windows[number].index(first)] = word
        assert row["words"] == expected
        labels = [IGNORE if word == IGNORE else ["O", "B-c"].index(raw["tags"][word]) for word in expected]
        assert row["labels"] == labels


def test_predictions_of_long_texts() -> None:
    """Bug: words behind the first window have no label, or the label of a word in another window."""
    model, rows = model_of(), some_rows()
    answers = list(predict_rows(model, TOKENIZER, rows, list(TASKS)))
    scores = by_window(model, "mood", rows, tasks=["mood"])
    for answer, windows in zip(answers, scores, strict=True):
        probabilities = windows.mean(0).softmax(-1)
        assert answer["mood"]["label"] == ["neg", "pos"][int(probabilities.argmax())]
        assert answer["mood"]["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)
    encoded = encode(rows, "colors", TASKS["colors"], TOKENIZER, 12, with_labels=False)
    for raw, answer, row, logits in zip(rows, answers, encoded, by_window(model, "colors", rows), strict=True):
        labels = {word: ["O", "B-c"][int(logits[i].argmax())] for i, word in enumerate(row["words"]) if word != IGNORE}
        assert answer["colors"]["labels"] == [labels[word] for word in range(len(raw["words"]))]


def test_texts_of_one_window_are_as_without_windows() -> None:
    """Bug: the option changes the logits of texts that fit."""
    rows = some_rows(words=(2, 2))
    with torch.no_grad():
        for name in TASKS:
            found = model_of()(**batch_of(name, rows))
            expected = model_of(doc_stride=None, doc_pooling=None)(**batch_of(name, rows))
            assert torch.equal(found.logits[name], expected.logits[name])
            assert torch.equal(found.losses[name], expected.losses[name])


def test_batches_with_windows_do_not_matter(tmp_path: Path) -> None:
    """Bug: a loss per window, so that a long text weighs more; or a step depends on how it is divided or packed."""
    sets = {name: some_rows(3, seed=index) for index, name in enumerate(TASKS)}
    found = []
    settings: dict[str, Any] = {"max_steps": 1, "max_grad_norm": 0.0, "eval_steps": 1}
    for packing, batch, accumulation in (("auto", 12, 1), ("off", 3, 4)):
        recorder = GradientRecorder()
        trainer = tiny_trainer(
            tmp_path / packing,
            dict.fromkeys(TASKS, 3),
            model=model_of(packing),
            train=sets,
            evaluation=sets,
            callbacks=[recorder],
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **settings,
        )
        trainer.train()
        found += recorder.steps
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)
        assert gradient.abs().sum() > 0 or "key.bias" in name, name


def test_a_task_with_windows_distills(tmp_path: Path) -> None:
    """Bug: a teacher's logits are recorded per window, and belong to other rows than those of the student."""
    sets = {name: some_rows(6, seed=index) for index, name in enumerate(TASKS)}
    script = {name: [0.5, 0.4, 0.4, 0.4] for name in TASKS}
    sizes = dict.fromkeys(TASKS, 6)
    settings: dict[str, Any] = {"max_steps": 8, "eval_steps": 2, "learning_rate": 0.0, "weight_decay": 0.0}
    trainer = tiny_trainer(tmp_path, sizes, script, model=model_of(), train=sets, evaluation=sets, **settings)
    trainer.train()
    assert set(trainer.schedule.phases.values()) == {"distilling"}
    # The weights have not moved, so that the student is its teacher.
    logs = [log for log in trainer.state.log_history if "phase/mood" in log]
    assert [log["phase/mood"] for log in logs][-1] > 0
    assert all(logs[-1][f"{name}_loss"] == pytest.approx(0, abs=1e-6) for name in TASKS)
    assert all(logs[0][f"{name}_loss"] > 1e-3 for name in TASKS)


def test_an_external_teacher_reads_windows(tmp_path: Path) -> None:
    """Bug: a stock model gives logits per window, and the rows behind the first long text have those of others."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.5,
        id2label={0: "neg", 1: "pos"},
        label2id={"neg": 0, "pos": 1},
    )
    stock = BertForSequenceClassification(config).eval()
    stock.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    rows = some_rows()
    teacher = load_external_teachers({"mood": TASKS["mood"]}, {"mood": str(tmp_path)}, {"mood": rows}, TOKENIZER)[
        "mood"
    ]
    parts = list(teacher.logits(rows, 16, batch_size=3, device=torch.device("cpu")))
    ids, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    expected = torch.stack([windows.mean(0) for windows in by_window(stock, "mood", rows)])
    torch.testing.assert_close(logits[ids.argsort()], expected, atol=1e-5, rtol=1e-5)


def test_an_exported_graph_answers_per_window() -> None:
    """Bug: the graph takes the rows of a batch for windows of one text."""
    model, rows = model_of(), some_rows()
    encoded = encode(rows, "mood", TASKS["mood"], TOKENIZER, 16, with_labels=False)
    windows = list(itertools.chain.from_iterable(encoded["input_ids"]))
    padded = TOKENIZER.pad({"input_ids": windows}, return_tensors="pt")
    module = OnnxModule(model)
    with torch.no_grad():
        logits = module(padded["input_ids"], padded["attention_mask"], torch.zeros_like(padded["input_ids"]))[0]
    expected = torch.cat(by_window(model, "mood", rows, tasks=["mood"]))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_pipeline_sends_long_texts_elsewhere() -> None:
    """Bug: a text that the model was trained to read in windows is cut in silence."""
    pipe = MultiTaskPipeline(model=model_of(), tokenizer=TOKENIZER, device="cpu")
    with pytest.raises(ConfigurationError, match=r"found 'mood'\. `hf-async-mtl predict` predicts tasks of all types"):
        pipe("a cat", tasks=["mood"])


@pytest.mark.parametrize(("name", "value"), [("mood", "cat " * 16_001), ("colors", ["cat"] * 12_001)])
def test_a_text_without_end_is_refused(name: str, value: Any) -> None:
    """Bug: all windows of a text are in one batch: a dump of 10 MB takes all memory, or hours."""
    (column,), length = TASKS[name].input_columns, TASKS[name].max_length or 0
    rows = Dataset.from_list([{column: value}])
    with pytest.raises(ConfigurationError, match=r"in windows must have no more than 1\d,000 tokens"):
        encode(rows, name, TASKS[name], TOKENIZER, length, with_labels=False)


@pytest.mark.parametrize(("second", "cut"), [(3, False), (5, True), (40, True)])
def test_the_first_text_of_a_pair_is_cut_only_where_it_must_be(second: int, cut: bool) -> None:
    """Bug: a long question loses its end although the pair fits into one window."""
    rows = Dataset.from_dict({"left": ["cat " * 13], "text": ["dog " * second], "score": [1.0]})
    (row,) = encode(rows, "score", TASKS["score"], TOKENIZER, 20)
    assert row["truncated"] == cut
    cat, dog = TOKENIZER.convert_tokens_to_ids(["cat", "dog"])
    assert {ids.count(cat) for ids in row["input_ids"]} == {8 if cut else 13}
    assert max(ids.count(dog) for ids in row["input_ids"]) == min(second, 9)
