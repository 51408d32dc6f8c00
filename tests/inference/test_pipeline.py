"""Trained models in stock code: views of one task, and a pipeline that runs all tasks in one pass of the encoder."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import raw_sets, task_configs, tiny_encoder, tiny_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    TextClassificationPipeline,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from hf_async_mtl import ConfigurationError, MultiTaskModel, MultiTaskPipeline
from hf_async_mtl.inference.predict import predict_rows
from hf_async_mtl.inference.single_task import SequenceView, TaskViewConfig, TokenView

TEXTS = ["the red sofa is good", "a cat", "not the big blue hat very bad dog red shoe"]
SEQUENCES = ["polarity", "overlap", "topics"]
PAIR = {"text": "the red sofa", "text_pair": "a small cat is big"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MultiTaskModel:
    """All six types of task on one encoder, their heads drawn wide, so that answers differ."""
    encoder = tiny_encoder(tmp_path_factory.mktemp("encoder"))
    found = MultiTaskModel.from_encoder(encoder, task_configs(), max_length=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for head in found.heads.values():
            torch.nn.init.normal_(head.linear.weight, std=0.5)
    return found


@pytest.fixture(scope="module")
def folder(model: MultiTaskModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as it is saved, with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def pipe(model: MultiTaskModel) -> MultiTaskPipeline:
    return MultiTaskPipeline(model=model, tokenizer=tiny_tokenizer(), device="cpu")


def test_words_outside_are_no_entities(tmp_path: Path) -> None:
    """Bug: an outside tag in lower case, which the stock pipeline does not know, is an entity."""
    task = dataclasses.replace(task_configs()["colors"], label_names=["other", "b-color"])
    model = MultiTaskModel.from_encoder(tiny_encoder(tmp_path), {"colors": task}, max_length=32)
    torch.nn.init.zeros_(model.heads["colors"].linear.weight)
    model.heads["colors"].linear.bias.data = torch.tensor([1.0, 0.0])
    pipe = MultiTaskPipeline(model=model, tokenizer=tiny_tokenizer(), device="cpu")
    assert pipe(TEXTS[0]) == {"colors": {"entities": []}}


def close(found: Any, expected: Any) -> None:
    """Answers are the same but for the last digits of their scores."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            close(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    elif isinstance(expected, float | np.floating):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


# -- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["polarity", "topics", "overlap"])
def test_a_view_has_the_logits_of_its_task(name: str, model: MultiTaskModel) -> None:
    """Bug: a view asks another head, or gives a regression in standard deviations."""
    batch = tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, found = model(**batch).logits[name], model.as_sequence_classifier(name)(**batch).logits
    assert torch.equal(found, expected.view(3, -1))
    assert found.shape == (3, model.as_sequence_classifier(name).config.num_labels)


def test_a_view_of_tokens(model: MultiTaskModel) -> None:
    """Bug: tokens and padding change places."""
    batch = tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model.as_token_classifier("colors")(**batch).logits, model(**batch).logits["colors"])


def test_a_view_copies_nothing(model: MultiTaskModel) -> None:
    """Bug: eight views take eight encoders' memory, or show the weights of before the training."""
    view = model.as_sequence_classifier("polarity")
    assert {p.data_ptr() for p in view.parameters()} == {p.data_ptr() for p in model.parameters()}
    assert view.training == model.training
    assert not any(isinstance(module, SequenceView) for module in model.modules())


def test_stock_pipelines_take_views(model: MultiTaskModel, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: labels are LABEL_0, a score goes through a sigmoid, or Transformers says that it cannot use the model."""
    stock: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "device": "cpu"}
    with caplog.at_level(logging.WARNING):
        classes = pipeline("text-classification", model=model.as_sequence_classifier("polarity"), **stock)
        score = pipeline("text-classification", model=model.as_sequence_classifier("overlap"), **stock)
        labels = pipeline("text-classification", model=model.as_sequence_classifier("topics"), **stock)
        tokens = pipeline("token-classification", model=model.as_token_classifier("colors"), **stock)
        two = classes(TEXTS[0], top_k=None)
        number = score(PAIR)
        three = labels(TEXTS[0], top_k=None)
        entities = tokens(TEXTS[2])
    assert caplog.text == ""
    assert {answer["label"] for answer in two} == {"neg", "pos"}
    assert sum(answer["score"] for answer in two) == pytest.approx(1)
    batch = tiny_tokenizer()(PAIR["text"], PAIR["text_pair"], return_tensors="pt")
    with torch.no_grad():
        expected = float(model(**batch).logits["overlap"])
    assert number == {"label": "overlap", "score": pytest.approx(expected)}
    assert {answer["label"] for answer in three} == {"cat", "dog", "hat"}
    assert {entity["entity"] for entity in entities} <= {"B-color"}


def test_views_are_known_to_the_auto_classes() -> None:
    """Bug: code that looks the class up by the configuration finds none."""
    assert AutoModelForSequenceClassification._model_mapping[TaskViewConfig] is SequenceView
    assert AutoModelForTokenClassification._model_mapping[TaskViewConfig] is TokenView


def test_a_view_of_another_type_is_refused(model: MultiTaskModel) -> None:
    """Bug: the head of choices answers as if it had classes."""
    with pytest.raises(ConfigurationError, match=r"'choice' is of type multiple_choice\. The model has: polarity, ov"):
        model.as_sequence_classifier("choice")
    with pytest.raises(ConfigurationError, match=r"'colours' is unknown\. The model has: colors"):
        model.as_token_classifier("colours")


def test_a_view_is_not_saved_alone(model: MultiTaskModel, tmp_path: Path) -> None:
    """Bug: a folder is written that nothing can load."""
    with pytest.raises(ConfigurationError, match="Save the `MultiTaskModel`"):
        model.as_sequence_classifier("polarity").save_pretrained(tmp_path / "view")
    assert not (tmp_path / "view").exists()


# -- all tasks at once ------------------------------------------------------------------------------------------------


def test_the_predictions_are_those_of_the_stock_pipelines(pipe: MultiTaskPipeline, model: MultiTaskModel) -> None:
    """Bug: a task gets the logits of another, a score is computed in another way, or a word gets a sub-word's label."""
    stock: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "device": "cpu"}
    alone = {name: TextClassificationPipeline(model=model.as_sequence_classifier(name), **stock) for name in SEQUENCES}
    tokens = pipeline("token-classification", model=model.as_token_classifier("colors"), **stock)
    for text in TEXTS:
        found = pipe(text)
        assert list(found) == ["polarity", "colors", "topics"]
        close([found["polarity"]], alone["polarity"](text, top_k=1))
        scores = {answer["label"]: answer["score"] for answer in alone["topics"](text, top_k=None)}
        close(found["topics"]["scores"], {label: scores[label] for label in found["topics"]["scores"]})
        assert found["topics"]["labels"] == [label for label in found["topics"]["scores"] if scores[label] > 0.5]
        close(found["colors"], {"entities": tokens(text, aggregation_strategy="first")})
    close([{"label": "overlap", "score": pipe(PAIR)["overlap"]["value"]}], alone["overlap"](PAIR, top_k=1))


def test_the_predictions_are_those_of_predict(pipe: MultiTaskPipeline, model: MultiTaskModel) -> None:
    """Bug: the pipeline and `predict` answer in two formats, pad and pack differently, or cut texts in another way."""
    rows = Dataset.from_list([{"text": text, "left": PAIR["text"], "right": PAIR["text_pair"]} for text in TEXTS])
    for text, expected in zip(TEXTS, predict_rows(model, tiny_tokenizer(), rows, SEQUENCES), strict=True):
        close({**pipe(text, tasks=["polarity", "topics"]), **pipe(PAIR)}, expected)


def test_entities_are_those_of_predict(pipe: MultiTaskPipeline, model: MultiTaskModel) -> None:
    """Bug: the label of a word is read at a sub-word that was never trained."""
    rows = raw_sets(20)["colors"]
    for row, expected in zip(rows, predict_rows(model, tiny_tokenizer(), rows, ["colors"]), strict=True):
        text, ends = " ".join(row["tokens"]), np.cumsum([len(word) + 1 for word in row["tokens"]]) - 1
        marked = set()
        for entity in pipe(text, tasks="colors")["colors"]["entities"]:
            marked |= {end for end in ends.tolist() if entity["start"] < end <= entity["end"]}
        labels = expected["colors"]["labels"]
        assert marked == {end for end, label in zip(ends.tolist(), labels, strict=True) if label == "B-color"}


def test_all_tasks_cost_one_pass(pipe: MultiTaskPipeline, model: MultiTaskModel) -> None:
    """Bug: each task runs the encoder by itself."""
    calls = []
    hook = model.encoder.register_forward_hook(lambda *args: calls.append(1))
    pipe(TEXTS[0])
    assert len(calls) == 1
    pipe(TEXTS, batch_size=3)
    assert len(calls) == 2
    hook.remove()


def test_a_batch_answers_as_each_alone(pipe: MultiTaskPipeline) -> None:
    """Bug: padding is read, answers change places, or texts and pairs do not go together."""
    inputs: list[Any] = [*TEXTS, PAIR, {"text": TEXTS[0]}]
    alone = [pipe(one) for one in inputs]
    close(pipe(inputs, batch_size=4), alone)
    close(list(pipe((one for one in inputs), batch_size=2)), alone)
    assert alone[3].keys() == {"overlap"}
    assert alone[4] == alone[0]
    close(list(pipe(KeyDataset(Dataset.from_dict({"text": TEXTS}), "text"), batch_size=2)), alone[:3])


def test_tasks_may_be_chosen(pipe: MultiTaskPipeline, model: MultiTaskModel) -> None:
    """Bug: heads that nobody asked for answer all the same; or a choice holds for one call only."""
    assert pipe(TEXTS[0], tasks=["topics"]).keys() == {"topics"}
    some = MultiTaskPipeline(model=model, tokenizer=tiny_tokenizer(), device="cpu", tasks="polarity")
    assert some(TEXTS[0]).keys() == {"polarity"}


def test_a_long_text_is_cut(pipe: MultiTaskPipeline) -> None:
    """Bug: a text beyond the encoder's positions is an error of the embedding."""
    assert pipe("cat " * 500).keys() == {"polarity", "colors", "topics"}
    close(pipe("cat " * 500), pipe("cat " * 30))


def test_long_texts_are_read_to_their_limit(pipe: MultiTaskPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: all that is cut off is kept, of a pair every piece with every other: two texts of 40 kB take 9 GB."""
    given: list[str] = []
    tokenize = PreTrainedTokenizerFast.__call__

    def counted(self: Any, *texts: Any, **kwargs: Any) -> Any:
        given.extend(text for text in texts if text is not None)
        return tokenize(self, *texts, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)

    def answers(times: int) -> list[Any]:
        text, pair = "a small cat is big " * times, "the red sofa is good " * times
        return [pipe(text), pipe({"text": text, "text_pair": pair})]

    close(answers(500), answers(20))
    assert max(map(len, given)) <= 16 * 32


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (TEXTS[0], {"tasks": "overlap"}, "Task 'overlap' reads a pair of texts; found a text. A pair is"),
        (PAIR, {"tasks": "polarity"}, "Task 'polarity' reads a text; found a pair of texts"),
        (TEXTS[0], {"tasks": "colour"}, "`tasks` must be among polarity, overlap, colors, topics; found 'colour'"),
        (TEXTS[0], {"tasks": "answer"}, "`hf-async-mtl predict` predicts tasks of all types"),
        (3, {}, "An input must be a text or .* found 3"),
        ({"text": "a", "text_pair": 3}, {}, "An input must be a text or .* both of them strings"),
        ({"sentence": "a"}, {}, "An input must be a text or"),
    ],
)
def test_what_cannot_be_answered_is_told(
    inputs: Any, options: dict[str, Any], message: str, pipe: MultiTaskPipeline
) -> None:
    """Bug: a head of pairs answers for half of one, and nobody knows."""
    with pytest.raises(ConfigurationError, match=message):
        pipe(inputs, **options)


def test_a_model_without_pairs_says_so(tmp_path: Path) -> None:
    """Bug: an empty answer."""
    model = MultiTaskModel.from_encoder(tiny_encoder(tmp_path), {"polarity": task_configs()["polarity"]}, max_length=32)
    with pytest.raises(ConfigurationError, match="No task of this model reads a pair of texts; they read a text"):
        MultiTaskPipeline(model=model, tokenizer=tiny_tokenizer(), device="cpu")(PAIR)


def test_an_unknown_option_is_told(pipe: MultiTaskPipeline) -> None:
    """Bug: a typing error goes unnoticed, as the option is swallowed."""
    with pytest.raises(TypeError, match="takes `tasks`; found top_k"):
        pipe(TEXTS[0], top_k=3)


def test_the_name_of_the_pipeline(folder: Path, pipe: MultiTaskPipeline) -> None:
    """Bug: `transformers.pipeline` does not know the task, or asks to run code that is installed here."""
    found = pipeline("multi-task-text", model=str(folder), device="cpu")
    assert isinstance(found, MultiTaskPipeline)
    close(found(TEXTS), pipe(TEXTS))


def test_a_saved_pipeline_is_the_model_and_its_tokenizer(pipe: MultiTaskPipeline, tmp_path: Path) -> None:
    """Bug: the folder names code of a pipeline that does not go with it, and cannot be loaded."""
    pipe.save_pretrained(str(tmp_path))
    assert not hasattr(MultiTaskModel.from_pretrained(tmp_path).config, "custom_pipelines")
    close(pipeline("multi-task-text", model=str(tmp_path), device="cpu")(TEXTS), pipe(TEXTS))
