"""The model card of a run: its metadata as the Hub reads it, and its text."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_report import fake_report
from huggingface_hub import ModelCard
from tiny import task_configs as tiny_tasks
from tiny import tiny_encoder
from transformers import AutoTokenizer

from hf_async_mtl import MultiTaskModel
from hf_async_mtl.modeling.configuration_multitask import TaskConfig
from hf_async_mtl.report.model_card import MISSING, RunCard, card_for_repository, installed_versions, write_card
from hf_async_mtl.tasks.registry import TASK_TYPES

TASKS = {
    "match": TaskConfig(
        type="classification",
        text_columns=["left", "right"],
        label_names=["different", "same"],
        metrics=["f1", "accuracy"],
    ),
    "category": TaskConfig(
        type="classification", text_columns=["title"], label_names=[f"shelf {i}" for i in range(10)]
    ),
    "stars": TaskConfig(type="regression", text_columns=["review"], metrics=["pearson", "spearman"]),
    "aspects": TaskConfig(
        type="token_classification", text_columns=["tokens"], label_column="tags", label_names=["O", "B-a|b", "I-a|b"]
    ),
    "counterfactual": TaskConfig(
        type="classification", text_columns=["text"], label_names=["0", "1"], metrics=["matthews_correlation"]
    ),
}
RESULTS = {
    "eval_match_f1": 0.9,
    "eval_match_accuracy": 0.88,
    "eval_category_accuracy": 0.85,
    "eval_stars_pearson": 0.73,
    "eval_stars_spearman": None,
    "eval_aspects_seqeval_f1": 0.68,
    "eval_counterfactual_matthews_correlation": 0.6,
    "test_match_f1": 0.89,
    "test_match_accuracy": 0.87,
    "test_category_accuracy": 0.84,
    "test_stars_pearson": math.nan,
    "test_stars_spearman": 0.7,
    "test_average": math.nan,
}


def make_card(**changes: Any) -> RunCard:
    fields: dict[str, Any] = {
        "model_name": "user/shop",
        "tasks": TASKS,
        "report": fake_report(),
        "results": RESULTS,
        "encoder": "google-bert/bert-base-uncased",
        "training": {"learning_rate": 5e-5, "convergence": {"patience": 3, "on_convergence": "distill"}},
    }
    return RunCard(**(fields | changes))


@pytest.fixture(scope="module")
def model_and_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    encoder = tiny_encoder(tmp_path_factory.mktemp("card"))
    model = MultiTaskModel.from_encoder(encoder, tiny_tasks(), max_length=32)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = 32
    return model, tokenizer


def model_index(card: RunCard) -> dict[tuple[str, str], tuple[dict[str, Any], float]]:
    """(metric's name, split) -> dataset and value, read back from the card's own text."""
    header = str(card.to_model_card()).split("---\n")[1]
    results = yaml.safe_load(header)["model-index"][0]["results"]
    return {
        (metric["name"], result["dataset"]["split"]): (result["dataset"], metric["value"])
        for result in results
        for metric in result["metrics"]
    }


def table_rows(text: str, section: str) -> list[list[str]]:
    """The cells of a section's table, below its header."""
    body = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_metadata_survives_a_round_trip(tmp_path: Path) -> None:
    """Bug: the YAML block does not parse, and the Hub shows no licence, no library and no results."""
    write_card(tmp_path / "README.md", make_card(), {"license": "apache-2.0", "language": "en"})
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.license, data.language) == ("transformers", "apache-2.0", "en")
    assert data.base_model == "google-bert/bert-base-uncased"
    assert data.tags == ["hf_async_mtl", "multi-task", "knowledge-distillation"]
    assert data.metrics == ["accuracy", "f1", "matthews_correlation", "pearsonr", "spearmanr"]
    assert data.model_name == "shop"


def test_model_index_prefers_test_and_leaves_out_what_is_no_number() -> None:
    """Bug: `.nan` in the model index, or validation figures under the name of a test split."""
    assert {(*key, value) for key, (_, value) in model_index(make_card()).items()} == {
        ("match f1", "test", 0.89),
        ("match accuracy", "test", 0.87),
        ("category accuracy", "test", 0.84),
        ("stars spearman", "test", 0.7),
        ("aspects seqeval_f1", "validation", 0.68),
        ("counterfactual matthews_correlation", "validation", 0.6),
    }


def test_hub_datasets_are_named_and_files_are_not() -> None:
    """Bug: the Hub's validation split, used for testing, is called 'test'; or a local path is published."""
    data = {
        "match": {"hub": "nyu-mll/glue", "name": "mrpc", "validation": {"from_train": 0.1}, "test": "validation"},
        "category": {"train": "/home/someone/train.jsonl", "test": "/home/someone/test.jsonl"},
    }
    card = make_card(data=data)
    index = model_index(card)
    assert index["match f1", "validation"][0] == {
        "name": "match",
        "type": "nyu-mll/glue",
        "config": "mrpc",
        "split": "validation",
    }
    assert index["category accuracy", "test"][0] == {"name": "category", "type": "category", "split": "test"}
    assert card.metadata().datasets == ["nyu-mll/glue"]
    assert "someone" not in str(card.to_model_card())


def test_two_tasks_on_one_dataset_keep_their_own_results() -> None:
    """Bug: the Hub merges results of the same dataset and split, and two tasks' accuracies cannot be told apart."""
    hub = {"hub": "user/shop", "name": "en"}
    index = model_index(make_card(data={"match": hub, "category": hub}))
    assert index["match accuracy", "test"][1] == RESULTS["test_match_accuracy"]
    assert index["category accuracy", "test"][1] == RESULTS["test_category_accuracy"]


def test_no_absolute_path_is_published(tmp_path: Path) -> None:
    """Bug: a pushed card tells the world the author's home folder."""
    training = {
        "output_dir": str(tmp_path / "run"),
        "nested": {"logging_dir": tmp_path / "logs", "files": [f"{tmp_path}/a", "C:\\Users\\someone\\b"]},
    }
    card = make_card(model_name=str(tmp_path / "model"), encoder=str(tmp_path / "minilm"), training=training)
    text = str(card.to_model_card())
    assert str(tmp_path) not in text
    assert "someone" not in text
    assert card.base_model is None
    assert "base_model" not in text
    assert "`minilm`" in text
    assert all(f"`{name}`" in text for name in ("run", "logs", "a", "b"))


def test_folder_that_looks_like_a_hub_id_is_no_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the folder `demo/encoder` becomes a link to a stranger's repository on the Hub."""
    (tmp_path / "demo" / "encoder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card = make_card(encoder="demo/encoder")
    assert card.base_model is None
    assert "huggingface.co" not in str(card.to_model_card())


def test_results_table_has_every_metric_and_dashes() -> None:
    """Bug: secondary metrics are dropped, or None and NaN are printed as such."""
    card = make_card()
    text = str(card.to_model_card())
    rows = table_rows(text, "Results")
    assert [(row[0], row[1]) for row in rows] == [
        ("`match`", "`f1` of `same`"),
        ("", "`accuracy`"),
        ("`category`", "`accuracy`"),
        ("`stars`", "`pearson`"),
        ("", "`spearman`"),
        ("`aspects`", "`seqeval_f1`"),
        ("`counterfactual`", "`matthews_correlation`"),
        ("**average**", "monitored"),
    ]
    final = card.report["final"]["tasks"]["match"]
    best = card.report["tasks"]["match"]["best"]
    assert rows[0][2:] == [f"{final['value']:.4f}", f"{best:.4f}", f"{100 * final['retention']:.1f}%", "0.8900"]
    assert (rows[3][5], rows[4][2], rows[5][5], rows[7][5]) == (MISSING,) * 4
    assert not re.search(r"\b(nan|None)\b", text, flags=re.IGNORECASE)


def test_conflicts_are_shown_where_they_were_measured() -> None:
    """Bug: the card has a broken picture, or lacks the one that there is."""
    plain = str(make_card().to_model_card())
    assert "conflicts.png" not in plain
    report = fake_report()
    report["conflicts"] = {"tasks": list(report["tasks"])}
    text = str(make_card(report=report).to_model_card())
    assert "plots/conflicts.png" in text


def test_convergence_table_names_the_teacher_only_after_convergence() -> None:
    """Bug: the candidate of a task that never converged is called its teacher."""
    rows = {row[0]: row for row in table_rows(str(make_card().to_model_card()), "Convergence")}
    tasks = fake_report()["tasks"]
    assert rows["`aspects`"][1:5] == ["learning", MISSING, MISSING, MISSING]
    match = tasks["match"]
    assert rows["`match`"][1:5] == [
        "distilling",
        str(match["converged_step"]),
        str(match["teacher_step"]),
        f"{match['teacher_value']:.4f}",
    ]


def test_card_says_whether_the_tasks_peak_apart() -> None:
    """The card lacked the answer, or that of a running run was an empty section."""
    report = fake_report()
    text = str(make_card(report=report).to_model_card())
    assert report["diagnosis"]["answer"] in text
    step = str(report["tasks"]["stars"]["teacher_step"])
    rows = {row[0]: row for row in table_rows(text, "Do the tasks peak apart?")}
    assert rows["`stars`"] == ["`stars`", step, "2.5", "-0.0123", "0.0042"]
    assert "peak apart" not in str(make_card(report=fake_report(ended=False)).to_model_card())


def test_card_claims_distillation_only_where_there_was_some() -> None:
    """Bug: the card of a plain multi-task run (`on_convergence: continue`) says that it was distilled."""
    report = fake_report()
    assert "asynchronous convergence" in str(make_card(report=report).to_model_card())
    for task in report["tasks"].values():
        task["phase"] = "learning"
    text = str(make_card(report=report).to_model_card())
    assert "without distillation" in text
    assert "asynchronous convergence" not in text
    assert "4 of 5 tasks converged" in text


def test_labels_cannot_break_a_table() -> None:
    """Bug: a `|`, a line break or a backtick in a label cuts its row; 150 labels fill the page."""
    labels = ["a|b", "c\nd", "e`f", *(f"intent {i}" for i in range(147))]
    tasks = TASKS | {"category": TaskConfig(type="classification", text_columns=["a|b"], label_names=labels)}
    text = str(make_card(tasks=tasks).to_model_card())
    rows = table_rows(text, "Tasks")
    assert all(len(row) == 4 for row in rows)
    assert rows[1][3].startswith("`a\\|b`, `c d`, `` e`f ``, `intent 0`")
    assert rows[1][3].endswith("(150 in all)")
    assert "intent 20" not in text


def test_every_type_has_a_card() -> None:
    """Bug: a task whose inputs are no list, or a model without a plainly callable head, has no card."""
    tasks = {
        "copa": TaskConfig(
            type="multiple_choice", text_columns={"prompt": ["premise"], "choices": ["choice1", "choice2"]}
        ),
        "squad": TaskConfig(type="question_answering", text_columns=["question", "context"], label_column="answers"),
    }
    report = fake_report(2)
    report["tasks"] = dict(zip(tasks, report["tasks"].values(), strict=True))
    report["final"]["tasks"] = dict(zip(tasks, report["final"]["tasks"].values(), strict=True))
    text = str(make_card(tasks=tasks, report=report, results={}).to_model_card())
    rows = table_rows(text, "Tasks")
    assert rows[0][1:] == ["multiple choice", "`premise` with each of `choice1`, `choice2`", MISSING]
    assert rows[1][1:] == ["question answering", "`question`, `context`", MISSING]
    assert "no test results" in text
    assert "model-index" not in text


def test_card_of_a_running_run() -> None:
    """Bug: a push at every save fails for want of a final checkpoint, or the card links a missing plot."""
    text = str(make_card(report=fake_report(ended=False)).to_model_card())
    assert "was not finished" in text
    assert "plots/retention.png" not in text
    assert table_rows(text, "Results")[0][2:5] == ["0.9000", "0.9100", MISSING]


def test_usage_example_is_valid_python() -> None:
    """Bug: a column name with a quote in it breaks the code that a reader copies."""
    tasks = TASKS | {
        "match": TaskConfig(type="classification", text_columns=['the "left"', "right"], label_names=["0", "1"])
    }
    text = str(make_card(tasks=tasks).to_model_card())
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'tokenizer(["the left ..."], ["right ..."],' in code
    assert 'tasks=["match"]' in code


def test_the_data_and_how_it_was_mixed() -> None:
    """Bug: a reader cannot tell what a task has learned from, or a private file's path is published as its source."""
    data = {"match": {"hub": "user/pairs", "name": "shop"}, "category": {"train": "/home/me/secret.csv"}}
    rows = {"match": {"train": 100, "validation": 10}, "stars": {"train": 7}}
    text = str(make_card(data=data, rows=rows).to_model_card())
    found = {row[0]: row[1:] for row in table_rows(text, "Training")}
    assert found["`match`"] == ["`user/pairs`, `shop`", "100", "10"]
    assert found["`category`"] == [MISSING] * 3
    assert found["`stars`"] == [MISSING, "7", MISSING]
    assert "secret" not in text
    assert "each training row of each task once" in text
    uniform = str(make_card(training={"mixing": {"strategy": "uniform"}}).to_model_card())
    assert "equally often" in uniform


@pytest.mark.parametrize("name", tiny_tasks())
def test_each_tasks_example_runs(name: str, model_and_tokenizer: tuple[Any, Any]) -> None:
    """Bug: the code that a card gives for a type of task has an error, or answers another question."""
    model, tokenizer = model_and_tokenizer
    task = model.config.task_configs[name]
    *lines, last = TASK_TYPES[task.type].card_example(name, task)
    scope = {"model": model, "tokenizer": tokenizer, "torch": torch}
    exec("\n".join(lines), scope)
    answer = eval(last, scope)
    if task.type == "classification":
        assert set(answer) <= set(task.label_names)
        assert len(answer) == 1
    elif task.type == "multilabel":
        assert set(answer[0]) <= set(task.label_names)
    elif task.type == "token_classification":
        assert set(answer) <= set(task.label_names)
        assert len(answer) > 2
    elif task.type == "question_answering":
        assert isinstance(answer, str)
    else:
        assert len(answer) == 1


def test_a_card_names_what_its_layers_need() -> None:
    """Bug: a reader of a checkpoint with low-rank layers meets an ImportError that the card does not mention."""
    lora = {"lora": {"r": 4}}
    assert "pip install peft" in str(make_card(training=lora, report=fake_report(ended=False)).to_model_card())
    assert "peft" not in str(make_card(training=lora).to_model_card())
    assert "peft" not in str(make_card().to_model_card())


def test_versions_are_of_installed_packages_only() -> None:
    """Bug: a source tree that is not installed cannot write a card."""
    versions = installed_versions()
    assert {"torch", "transformers"} <= set(versions)
    assert f"torch {versions['torch']}" in str(make_card().to_model_card())


def generated(tmp_path: Path, **changes: Any) -> str:
    write_card(tmp_path / "README.md", make_card(**changes))
    return (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_card_takes_the_id_of_its_repository(tmp_path: Path) -> None:
    """Bug: the public card loads a folder of the author's machine; or prose with the folder's name is changed."""
    # A word that stands elsewhere in the card too.
    card = card_for_repository(generated(tmp_path, model_name="model"), "user/products")
    assert 'AutoModel.from_pretrained("user/products", trust' in card
    assert "hf-async-mtl predict user/products --input" in card
    assert not re.search(r"predict model |[\"']model[\"']", card)
    assert "\n# products\n" in card
    assert ModelCard(card).data.model_name == "products"
    assert card == generated(tmp_path, model_name="user/products")
    assert card_for_repository(card, "user/model") == generated(tmp_path, model_name="user/model")


@pytest.mark.parametrize("change", [lambda card: card + "Thanks.\n", lambda card: card.replace("## Limits", "## Bugs")])
def test_an_edited_card_is_kept(change: Callable[[str], str], tmp_path: Path) -> None:
    """Bug: limits and thanks that somebody wrote are lost or changed by a push."""
    edited = change(generated(tmp_path, model_name="model"))
    assert card_for_repository(edited, "user/products") == edited
    assert card_for_repository("# Mine\n", "user/products") == "# Mine\n"


def test_more_metadata_is_added(tmp_path: Path) -> None:
    """Bug: tags given by the user replace those of the card, or are dropped."""
    write_card(tmp_path / "README.md", make_card(), {"tags": "mine", "pipeline_tag": "text-classification"})
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.tags == ["hf_async_mtl", "knowledge-distillation", "mine", "multi-task"]
    assert data.pipeline_tag == "text-classification"
