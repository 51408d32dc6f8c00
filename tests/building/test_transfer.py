"""A trained model that gets one more task: the old heads stay, and the model itself is their teacher."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands_here import done, refused
from task_sets import task_set_config, write_config, write_data, write_rows, write_task_set
from tiny import raw_sets, task_configs, tiny_encoder, tiny_tokenizer
from transformers import AutoTokenizer

from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments, ConfigurationError, MultiTaskModel, TaskConfig
from hf_async_mtl.cli.config_file import load_config
from hf_async_mtl.data.loading import is_unlabeled
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.distillation.external import with_placeholders
from hf_async_mtl.run import inherit_tasks

OLD = ("polarity", "overlap", "colors", "choice", "answer")
NEW = "topics"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of some tasks, and a run of three tasks in `old`."""
    folder = tmp_path_factory.mktemp("grow")
    config = write_task_set(folder, OLD)
    done("train", config, "--output-dir", folder / "old", "--set", "pooling=mean", "--set", "max_length=24")
    write_data(folder, [*OLD, NEW])
    return folder


def config_of(folder: Path, tasks: Any = (*OLD, NEW), **changes: Any) -> Path:
    """A configuration that starts from the trained model."""
    config = {**task_set_config(tasks), "encoder": "old", **changes}
    if "max_length" not in changes:
        del config["max_length"]
    return write_config(folder, config, "grown")


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "convergence.json").read_text(encoding="utf-8"))


def logits_of(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    batch = tiny_tokenizer()(["the red cat", "a very big sofa is not good"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits


# -- the model --------------------------------------------------------------------------------------------------------


def test_heads_are_taken_over(trained: Path, tmp_path: Path) -> None:
    """Bug: an old head is drawn anew, reads another pooling, or its regression another scale."""
    old = MultiTaskModel.from_pretrained(trained / "old").eval()
    tasks = {**task_configs(), "overlap": TaskConfig("regression", ["left", "right"], target_mean=9.0, target_std=9.0)}
    # Another order, one task less, one more.
    chosen = {name: tasks[name] for name in (NEW, "overlap", "polarity")}
    model = MultiTaskModel.from_encoder(str(trained / "old"), chosen)
    assert list(model.heads) == list(chosen)
    assert (model.config.pooling, model.config.max_length) == ("mean", 24)
    assert not model.training
    before, after = logits_of(old), logits_of(model)
    for name in ("overlap", "polarity"):
        assert torch.equal(after[name], before[name]), name
    model.save_pretrained(tmp_path)
    again = logits_of(MultiTaskModel.from_pretrained(tmp_path).eval())
    assert all(torch.equal(again[name], after[name]) for name in chosen)
    assert model.config.encoder_config._name_or_path == "./old"


def test_a_head_may_begin_anew(trained: Path) -> None:
    """Bug: who wants another head of the same name gets the old one."""
    tasks = {"polarity": task_configs()["polarity"], "colors": task_configs()["colors"]}
    old = MultiTaskModel.from_pretrained(trained / "old").eval()
    model = MultiTaskModel.from_encoder(str(trained / "old"), tasks, new_heads=["polarity"])
    assert torch.equal(logits_of(model)["colors"], logits_of(old)["colors"])
    assert not torch.equal(logits_of(model)["polarity"], logits_of(old)["polarity"])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            TaskConfig("classification", ["text"], label_names=["bad", "good"]),
            {},
            "has the labels neg, pos, in that order",
        ),
        (
            TaskConfig("classification", ["text"], label_names=["pos", "neg"]),
            {},
            "found pos, neg. Rename the task",
        ),
        (TaskConfig("regression", ["text"], target_mean=0.0, target_std=1.0), {}, "is of type classification; found"),
        (task_configs()["polarity"], {"pooling": "cls"}, "`pooling` must be mean, with which the heads of"),
        (task_configs()["polarity"], {"new_heads": ["polarty"]}, "must name tasks (polarity); found 'polarty'"),
        (task_configs()["polarity"], {"max_length": 500}, "`max_length` must be at most 64"),
    ],
)
def test_what_does_not_fit_a_head_is_refused(
    trained: Path, task: TaskConfig, options: dict[str, Any], message: str
) -> None:
    """Bug: classes change their names while their weights stay."""
    with pytest.raises(ConfigurationError) as caught:
        MultiTaskModel.from_encoder(str(trained / "old"), {"polarity": task}, **options)
    assert message in str(caught.value)


# -- the run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(trained: Path) -> Path:
    """The task set, with one more task."""
    done("train", config_of(trained), "--output-dir", trained / "new")
    return trained / "new"


def test_old_tasks_are_taught_by_the_trained_model(run: Path) -> None:
    """Bug: the old tasks learn from labels again, and drift."""
    report = told(run)
    phases = {name: task["phase"] for name, task in report["tasks"].items()}
    assert phases.keys() == {*OLD, NEW}
    assert all(phases[name] == "distilling" for name in OLD)
    switched = [event["task"] for event in report["events"] if event["event"] == "converged"]
    assert not set(switched) & set(OLD)


def test_what_old_tasks_could_do_before_is_told(trained: Path, run: Path) -> None:
    """Bug: nobody sees what an old task has lost; or the start is not the model that was published."""
    before = json.loads((trained / "old" / "all_results.json").read_text())
    report = told(run)
    for name in OLD:
        step, value = report["tasks"][name]["history"][0]
        assert step == 0
        assert value == pytest.approx(before[f"eval_{name}_{task_configs()[name].monitored}"], abs=1e-6), name
    assert "before" in done("report", run).splitlines()[1]


def test_a_grown_run_goes_on(trained: Path, run: Path) -> None:
    """Bug: a resumed run asks the trained model again, or takes its weights for the checkpoint's."""
    again = trained / "again"
    (again).mkdir()
    (run / "checkpoint-4").rename(again / "checkpoint-4")
    done("train", config_of(trained), "--output-dir", again, "--resume")
    one, two = (MultiTaskModel.from_pretrained(folder).state_dict() for folder in (run, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_labels_of_the_head_hold_whatever_the_data_has(trained: Path) -> None:
    """Bug: data in which a class is missing makes a head of one class less, or another scale of a regression."""
    old = MultiTaskModel.from_pretrained(trained / "old").config.task_configs
    tasks = inherit_tasks(load_config(config_of(trained))).tasks
    assert tasks["polarity"].label_names == ["neg", "pos"]
    assert (tasks["overlap"].target_mean, tasks["overlap"].target_std) == (
        old["overlap"].target_mean,
        old["overlap"].target_std,
    )
    assert tasks[NEW].label_names is None


def test_a_task_may_learn_from_labels(trained: Path, tmp_path: Path) -> None:
    """Bug: there is no way to say so, and plain fine-tuning cannot be compared."""
    teachers = {"polarity": None, "colors": str(trained / "old")}
    config = load_config(config_of(trained, distillation={"teachers": teachers}))
    arguments = inherit_tasks(config).arguments(tmp_path)
    assert arguments.distillation_config.teachers == dict.fromkeys(OLD[1:], str(trained / "old"))
    assert arguments.eval_on_start
    new = load_config(config_of(trained), ["tasks.polarity.head=new", "training.eval_on_start=false"])
    arguments = inherit_tasks(new).arguments(tmp_path)
    assert set(arguments.distillation_config.teachers) == set(OLD[1:])
    assert not arguments.eval_on_start


def test_a_plain_encoder_grows_nothing(trained: Path, tmp_path: Path) -> None:
    """Bug: an ordinary run is evaluated before its first step, or loses a setting or a default of the contract."""
    encoder = tiny_encoder(tmp_path, max_position_embeddings=128)
    model = MultiTaskModel.from_encoder(encoder, {"polarity": task_configs()["polarity"]})
    assert (model.config.pooling, model.config.max_length) == ("cls", 128)
    config = load_config(write_config(trained, task_set_config(OLD), "plain"))
    assert inherit_tasks(config) is config


def test_mistakes_are_told_before_training(trained: Path) -> None:
    """Bug: a traceback, or an hour of training with a head that is not what was meant."""
    config = config_of(trained)
    out = ["--output-dir", trained / "refused"]
    labels = ["--set", "tasks.polarity.label_names=[bad, good]"]
    assert "has the labels neg, pos, in that order; found bad, good" in refused("train", config, *out, *labels)
    head = ["--set", "tasks.polarity.head=old"]
    assert "must be one of kept, new, frozen; found 'old'" in refused("train", config, *out, *head)
    message = refused("train", config, *out, "--set", "distillation.teachers.polarty=null")
    assert "`distillation.teachers` must name tasks (polarity, overlap" in message
    assert "must be a mapping: task" in refused("train", config, *out, "--set", "distillation.teachers=old")
    assert "`pooling` must be mean" in refused("train", config, *out, "--set", "pooling=max")
    assert not (trained / "refused").exists()


def test_no_path_of_a_trained_model_goes_public(trained: Path, tmp_path: Path) -> None:
    """Bug: the arguments that upstream pickles and pushes tell where the teacher lay on this machine."""
    arguments = inherit_tasks(load_config(config_of(trained))).arguments(tmp_path)
    torch.save(arguments, tmp_path / "arguments.bin")
    assert str(trained).encode() not in (tmp_path / "arguments.bin").read_bytes()
    assert arguments.distillation_config.teachers["polarity"] == str(trained / "old")


def test_growing_in_python(trained: Path, tmp_path: Path) -> None:
    """Bug: what the command line does cannot be done without it."""
    sets = raw_sets(16)
    tasks = {name: task_configs()[name] for name in ("polarity", NEW)}
    old = str(trained / "old")
    trainer = AsyncMTLTrainer(
        model=MultiTaskModel.from_encoder(old, tasks),
        args=AsyncMTLTrainingArguments(
            str(tmp_path),
            max_steps=2,
            eval_steps=2,
            eval_on_start=True,
            use_cpu=True,
            report_to="none",
            distillation={"teachers": {"polarity": old}},
        ),
        processing_class=AutoTokenizer.from_pretrained(old),
        train_dataset={name: sets[name] for name in tasks},
        eval_dataset={name: sets[name] for name in tasks},
    )
    trainer.train()
    assert trainer.schedule.phases == {"polarity": "distilling", NEW: "learning"}


# -- without the old labels -------------------------------------------------------------------------------------------


def without_labels(folder: Path) -> dict[str, Any]:
    """What is changed in a configuration so that the old tasks train on rows without labels."""
    changes = {}
    for name in OLD:
        task = task_configs()[name]
        rows = raw_sets(24, 0)[name].remove_columns(task.target_columns)
        changes[f"tasks.{name}.data.train"] = str(write_rows(folder / f"{name}.jsonl", rows))
    return changes


def test_old_tasks_need_no_labels(trained: Path, run: Path, tmp_path: Path) -> None:
    """Bug: a label that means nothing finds its way into a loss, an order or a hash."""
    changes = [part for key, value in without_labels(tmp_path).items() for part in ("--set", f"{key}={value}")]
    done("train", config_of(trained), "--output-dir", tmp_path / "out", *changes)
    with_labels, without = (MultiTaskModel.from_pretrained(folder).state_dict() for folder in (run, tmp_path / "out"))
    assert all(torch.equal(with_labels[name], without[name]) for name in with_labels)
    # Neither does who evaluates, unless that is on those rows.
    results = json.loads(done("evaluate", run, config_of(trained), *changes))
    assert {f"test_{name}_loss" for name in OLD} <= results.keys()
    assert set(json.loads(done("evaluate", run, config_of(trained), *changes, "--split", "train"))) == {
        f"train_{NEW}_loss",
        f"train_{NEW}_micro_f1",
        "train_average",
    }
    for name in OLD:
        assert told(tmp_path / "out")["tasks"][name]["history"] == told(run)["tasks"][name]["history"]


@pytest.mark.parametrize("name", list(task_configs()))
def test_places_for_labels_are_valid(name: str) -> None:
    """Bug: the place of a label is refused as a label, row by row."""
    task, rows = task_configs()[name], raw_sets(8)[name]
    bare = rows.remove_columns(task.target_columns)
    assert is_unlabeled(bare, task)
    assert not is_unlabeled(rows, task)
    encoded = encode(with_placeholders(bare, task), name, task, tiny_tokenizer(), 24)
    assert encoded.features == encode(rows, name, task, tiny_tokenizer(), 24).features
    assert len(encoded) == 8


def test_what_needs_labels_is_refused(trained: Path, tmp_path: Path) -> None:
    """Bug: a task learns from labels that nobody gave."""
    config = config_of(trained)
    changes = [part for key, value in without_labels(tmp_path).items() for part in ("--set", f"{key}={value}")]
    out = ["--output-dir", tmp_path / "out"]
    message = refused("train", config, *out, *changes, "--set", "distillation.hard_label_weight=0.5")
    assert "`distillation.hard_label_weight` needs labels, and the training rows of polarity, overlap" in message
    # A task without a teacher needs its labels as ever.
    message = refused("train", config, *out, *changes, "--set", "distillation.teachers.polarity=null")
    assert "reads the column 'label', and its train split has text" in message
    # So does one whose labels nobody knows.
    new = write_rows(tmp_path / "new.jsonl", [{"text": "a"}] * 4)
    teacher = ["--set", f"distillation.teachers.{NEW}={trained / 'old'}", "--set", f"tasks.{NEW}.data.train={new}"]
    assert "Training rows without labels do not say what the labels are" in refused("train", config, *out, *teacher)
    assert not (tmp_path / "out").exists()
    blank = write_rows(tmp_path / "blank.jsonl", [{"question": "is it", "context": " "}])
    message = refused("train", config, *out, *changes, "--set", f"tasks.answer.data.train={blank}")
    assert "Column 'context': a context must be a text with an answer in it" in message
    empty = write_rows(tmp_path / "empty.jsonl", [{"tokens": ["a"]}, {"tokens": None}])
    message = refused("train", config, *out, *changes, "--set", f"tasks.colors.data.train={empty}")
    assert "column 'tokens', row 1: the text must be a list of words" in message
