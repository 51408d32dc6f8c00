"""The command line, from a configuration file to the files of a run, and back: what the contract promises its users."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands_here import call, done, refused
from safetensors.torch import load_file
from task_sets import task_set_config, write_config, write_rows, write_task_set
from tiny import raw_sets, task_configs
from transformers import AutoModel, TrainerControl, TrainerState, TrainingArguments

import hf_async_mtl.modeling
from hf_async_mtl import AsyncMTLTrainer, MultiTaskModel
from hf_async_mtl.cli import train
from hf_async_mtl.cli.commands import main
from hf_async_mtl.cli.interruption import CheckpointOnSignal
from hf_async_mtl.metrics import compute
from hf_async_mtl.training.distributed import newest_checkpoint

ROOT = Path(__file__).parents[2]
ALL = tuple(task_configs())
CLOCK = ("runtime", "per_second")


def process(*arguments: Any, **settings: Any) -> subprocess.Popen[str]:
    """Start a command as a process of its own."""
    # A command that ran here before has set the libraries' own variables.
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_DISABLE_PROGRESS_BARS")}
    environment["PYTHONPATH"] = str(ROOT / "src")
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def valid_json(text: str) -> Any:
    """Parse JSON as its standard has it: without NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def read(path: Path) -> Any:
    return valid_json(path.read_text(encoding="utf-8"))


def figures(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if not key.endswith(CLOCK)}


def same_end(left: Path, right: Path) -> None:
    """Two runs have ended alike: weights to the last bit, phases, history and figures."""
    ours, theirs = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert read(left / "convergence.json") == read(right / "convergence.json")
    results = [figures(read(path / "all_results.json")) for path in (left, right)]
    for result in results:
        # Of the steps since the last start alone, as upstream has it.
        result.pop("train_loss")
        result.pop("total_flos")
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    """A configuration of all task types, as a file."""
    return write_task_set(tmp_path_factory.mktemp("all_types"), ALL)


@pytest.fixture(scope="module")
def run(config_path, tmp_path_factory):
    """A finished run of it; its folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done("train", config_path, "--output-dir", folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A configuration of two tasks, as a file."""
    return write_task_set(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def pair_run(pair, tmp_path_factory):
    """A finished, uninterrupted run of it; its folder."""
    folder = tmp_path_factory.mktemp("runs") / "pair"
    done("train", pair, "--output-dir", folder)
    return folder


# -- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_contract_names(run):
    """Files that nobody promised are pushed to the Hub, and kept for ever because someone may read them."""
    code = {path.name for path in Path(hf_async_mtl.modeling.__file__).parent.glob("*.py")}
    # The pipeline is no modelling code, nor is what it needs: what it saves carries both.
    code -= {"__init__.py", "pipeline_multitask.py"}
    promised = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    promised |= {"convergence.json", "all_results.json", "plots", *code}
    found = {path.name for path in run.iterdir()}
    # The Trainer's own `save_model` writes the last one.
    assert {name for name in found if not name.startswith("checkpoint-")} == promised
    assert {name for name in found if name.startswith("checkpoint-")} == {f"checkpoint-{step}" for step in (4, 8, 12)}
    assert {path.name for path in (run / "plots").iterdir()} == {"curves.png", "retention.png"}


def test_results_are_flat_and_whole(run):
    """Scripts read `test_<task>_<metric>`; a nested or missing key breaks them."""
    results = read(run / "all_results.json")
    assert all(isinstance(value, float | int | None) for value in results.values())
    for split in ("eval", "test"):
        monitored = [results[f"{split}_{name}_{task.monitored}"] for name, task in task_configs().items()]
        assert results[f"{split}_average"] == pytest.approx(sum(monitored) / len(monitored))


def test_the_report_speaks_of_the_saved_weights(run):
    """`final` must be the figures of the weights on disk, not of the last step."""
    report, results = read(run / "convergence.json"), read(run / "all_results.json")
    assert report["version"] == 1
    assert report["final"]["average"] == pytest.approx(results["eval_average"])
    for name, task in report["tasks"].items():
        assert report["final"]["tasks"][name]["value"] == pytest.approx(results[f"eval_{name}_{task['metric']}"])
        assert [step for step, _ in task["history"]] == [4, 8, 12]


def test_plots_are_pictures(run):
    """An empty file has the right name too."""
    for path in (run / "plots").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000


def test_the_card_names_every_task_and_its_test_figure(run):
    """The card is written before the results where the order of the last steps is wrong."""
    card, results = (run / "README.md").read_text(encoding="utf-8"), read(run / "all_results.json")
    for name, task in task_configs().items():
        assert f"`{name}`" in card
        assert f"{results[f'test_{name}_{task.monitored}']:.4f}" in card
    assert "plots/curves.png" in card
    assert "plots/retention.png" in card


def test_nothing_that_goes_public_names_a_folder_of_this_machine(run, config_path):
    """Paths hold names of users and of projects."""
    texts = [path for path in run.iterdir() if path.suffix in (".json", ".md", ".py")]
    assert len(texts) > 6
    for path in texts:
        text = path.read_text(encoding="utf-8")
        for place in (run.parent, config_path.parent, Path.home() / "x"):
            assert str(place) not in text, path.name


def test_the_model_loads_by_itself(run, config_path):
    """What `train` leaves is the model with its heads, by our class and by AutoModel."""
    model = MultiTaskModel.from_pretrained(run)
    assert list(model.config.tasks) == list(ALL)
    assert model.config.task_configs["polarity"].label_names == ["neg", "pos"]
    assert isinstance(AutoModel.from_pretrained(run), MultiTaskModel)


def test_an_undefined_metric_is_null(tmp_path):
    """Pearson against a constant is NaN, and a file with NaN in it is no JSON: most readers refuse it all.

    In the average it counts as its worst value.
    """
    config = write_task_set(tmp_path, rows=8)
    constant = [{**row, "score": 1.0} for row in raw_sets(8)["overlap"]]
    for split in ("validation", "test"):
        write_rows(tmp_path / "data" / "overlap" / f"{split}.jsonl", constant)
    done("train", config, "--output-dir", tmp_path / "out", "--set", "training.max_steps=4")
    results = read(tmp_path / "out" / "all_results.json")
    assert results["test_overlap_pearson"] is None
    assert results["eval_average"] == (results["eval_polarity_accuracy"] - 1) / 2
    assert read(tmp_path / "out" / "convergence.json")["average"] is None
    assert valid_json(done("evaluate", tmp_path / "out", config))["test_overlap_pearson"] is None


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_prints_the_figures_of_the_run_and_nothing_else(run, config_path):
    """`hf-async-mtl evaluate ... | jq` must work, and say what the run has said."""
    printed = valid_json(done("evaluate", run, config_path))
    results = read(run / "all_results.json")
    assert printed == {key: value for key, value in figures(results).items() if key.startswith("test_")}


def test_evaluate_of_the_validation_split(run, config_path):
    """Its keys are the run's own, `eval_...`, so that both can be compared."""
    printed = valid_json(done("evaluate", run, config_path, "--split", "validation"))
    results = read(run / "all_results.json")
    assert printed == {key: value for key, value in figures(results).items() if key.startswith("eval_")}


def test_evaluate_some_tasks(run, config_path):
    """A configuration may name a part of the model's tasks."""
    path = write_config(config_path.parent, task_set_config(["overlap"]), "overlap")
    printed = valid_json(done("evaluate", run, path))
    results = read(run / "all_results.json")
    assert printed["test_average"] == printed["test_overlap_pearson"] == results["test_overlap_pearson"]
    assert not any("polarity" in key for key in printed)


def test_evaluate_leaves_nothing_behind(run, config_path, tmp_path, monkeypatch):
    """The Trainer makes its output folder in the working directory."""
    monkeypatch.chdir(tmp_path)
    before = sorted(run.rglob("*"))
    done("evaluate", run, config_path)
    assert list(tmp_path.iterdir()) == []
    assert sorted(run.rglob("*")) == before


# -- predict ----------------------------------------------------------------------------------------------------------


def answers(run: Path, path: Path, *options: Any) -> list[dict[str, Any]]:
    return [valid_json(line) for line in done("predict", run, "--input", path, *options).splitlines()]


@pytest.mark.parametrize("name", ALL)
def test_predictions_score_as_the_run_has_scored(run, tmp_path, name):
    """Rows out of order, another truncation or another class than the metrics': each moves the score."""
    task, rows = task_configs()[name], raw_sets(24, 2)[name]
    path = write_rows(tmp_path / "rows.jsonl", rows.remove_columns(task.target_columns))
    found = [answer[name] for answer in answers(run, path, "--task", name)]
    assert len(found) == len(rows)
    references: list[Any]
    if task.type == "classification":
        assert all(0.5 <= answer["score"] <= 1 for answer in found)
        predictions = [["neg", "pos"].index(answer["label"]) for answer in found]
        references = [["neg", "pos"].index(row["label"]) for row in rows]
    elif task.type == "regression":
        predictions, references = [answer["value"] for answer in found], list(rows["score"])
    elif task.type == "token_classification":
        predictions, references = [answer["labels"] for answer in found], list(rows["tags"])
        assert [len(labels) for labels in predictions] == [len(row["tokens"]) for row in rows]
    elif task.type == "multiple_choice":
        predictions, references = [answer["choice"] for answer in found], list(rows["label"])
    elif task.type == "multilabel":
        names = list(task.label_names or ())
        for answer in found:
            assert answer["labels"] == [label for label in names if answer["scores"][label] > 0.5]
        predictions = [[int(label in answer["labels"]) for label in names] for answer in found]
        references = [[int(label in row["topics"]) for label in names] for row in rows]
    else:
        predictions, references = [answer["answer"] for answer in found], [row["answers"]["text"] for row in rows]
    value = compute([task.monitored], task.type, predictions, references, task.label_names)[task.monitored]
    assert value == pytest.approx(read(run / "all_results.json")[f"test_{name}_{task.monitored}"], abs=1e-5)


def all_rows(count: int) -> list[dict[str, Any]]:
    """Rows with the columns of all tasks."""
    sets = raw_sets(count, 5)
    return [{key: value for rows in sets.values() for key, value in rows[i].items()} for i in range(count)]


def test_rows_are_answered_by_every_task_that_fits_them(run, tmp_path):
    """By default all; tasks whose columns are not there are no error."""
    path = write_rows(tmp_path / "rows.jsonl", all_rows(3))
    assert [list(answer) for answer in answers(run, path)] == [list(ALL)] * 3
    path = write_rows(tmp_path / "texts.jsonl", [{"text": "good", "other": 1}])
    assert [list(answer) for answer in answers(run, path)] == [["polarity", "topics"]]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--task", "colors"], ["colors"]),
        (["--task", "overlap", "colors"], ["overlap", "colors"]),
        (["--task", "overlap", "--task", "colors"], ["overlap", "colors"]),
    ],
)
def test_tasks_can_be_chosen(run, tmp_path, options, names):
    """Several after one option, or one option each."""
    path = write_rows(tmp_path / "rows.jsonl", all_rows(2))
    assert [list(answer) for answer in answers(run, path, *options)] == [names] * 2


def test_answers_come_in_the_order_of_the_rows(run, tmp_path):
    """More rows than a batch, of different lengths: packing sorts and cuts them."""
    rows = all_rows(70)
    forth = answers(run, write_rows(tmp_path / "forth.jsonl", rows), "--task", "overlap")
    back = answers(run, write_rows(tmp_path / "back.jsonl", rows[::-1]), "--task", "overlap")
    values = [answer["overlap"]["value"] for answer in forth]
    assert len(set(values)) > 35
    assert values == pytest.approx([answer["overlap"]["value"] for answer in back[::-1]], abs=1e-5)


def test_answers_go_to_a_file(run, tmp_path):
    """With `--output` nothing is printed, and folders are made."""
    path = write_rows(tmp_path / "rows.jsonl", all_rows(2))
    printed = done("predict", run, "--input", path)
    assert done("predict", run, "--input", path, "--output", tmp_path / "new" / "answers.jsonl") == ""
    assert (tmp_path / "new" / "answers.jsonl").read_text(encoding="utf-8") == printed


def test_words_without_an_answer_are_null(run, tmp_path):
    """Words that were cut off, or that have no token, must not shift the labels of the others."""
    rows = [{"tokens": ["sofa"] * 20}, {"tokens": ["red", "", "hat"]}]
    cut, gap = (answer["colors"]["labels"] for answer in answers(run, write_rows(tmp_path / "rows.jsonl", rows)))
    known = [label is not None for label in cut]
    # 30 tokens remain, and a sofa has four.
    assert known == [True] * 8 + [False] * 12
    assert [label is None for label in gap] == [False, True, False]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("in.csv", 'text\n"1984"\n"2001"\n', ()),
        ("in.tsv", "text\tyear\n1984\t1\n2001\t2\n", ()),
        ("in.csv", "text;year\n1984;1\n2001;2\n", ("--separator", ";")),
        ("in.csv", "text\tyear\n1984\t1\n2001\t2\n", ("--separator", "\\t")),
        ("in.json", '{"text": {"0": "1984", "1": "2001"}}', ()),
        ("in.jsonl", '{"text": "1984"}\n{"text": "2001"}\n', ()),
    ],
)
def test_texts_that_are_numbers_are_texts(run, tmp_path, name, content, options):
    """Bug: a CSV file whose texts are all numbers is refused; or other forms of a file are, that training reads."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    expected = answers(run, write_rows(tmp_path / "rows.jsonl", [{"text": "1984"}, {"text": "2001"}]))
    assert answers(run, tmp_path / name, *options) == expected
    assert "polarity" in expected[0]


def test_a_separator_of_no_csv_file_is_refused(run, tmp_path):
    """Bug: the option is passed over where it has no effect, or pandas reads it as a pattern."""
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "good"}])
    assert "`--separator` is for CSV files" in refused("predict", run, "--input", path, "--separator", ";")
    assert "`--separator` must be one character" in refused("predict", run, "--input", path, "--separator", ";;")


@pytest.mark.parametrize("content", ["", "\n\n", "{}\n", "1\n", '{"text": \n', "\xff"])
def test_an_input_that_is_no_rows_is_refused(run, tmp_path, content):
    """Each kind of nothing fails elsewhere in the reader."""
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="latin-1")
    assert str(path) in refused("predict", run, "--input", path)


def test_input_that_fits_no_task_says_what_would(run, tmp_path):
    """The user sees the columns that each task wants, and those that the file has."""
    path = write_rows(tmp_path / "rows.jsonl", [{"sentence": "good"}])
    message = refused("predict", run, "--input", path)
    assert "overlap: left, right" in message
    assert "it has sentence" in message
    assert "'text'" in refused("predict", run, "--input", path, "--task", "polarity")
    assert "polarity, overlap" in refused("predict", run, "--input", path, "--task", "polarty")
    assert "missing" in refused("predict", run, "--input", tmp_path / "nope.jsonl")


def test_a_row_that_cannot_be_read_costs_no_earlier_answers(run, tmp_path):
    """An output file that is opened first would be empty after the error."""
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "good"}, {"text": None}])
    (tmp_path / "answers.jsonl").write_text("before", encoding="utf-8")
    message = refused("predict", run, "--input", path, "--output", tmp_path / "answers.jsonl")
    assert "row 1" in message
    assert (tmp_path / "answers.jsonl").read_text(encoding="utf-8") == "before"
    refused("predict", run, "--input", path, "--output", tmp_path / "new" / "answers.jsonl")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("model", ["nope", "encoder", "data"])
def test_a_model_that_is_none_is_refused(config_path, command, model):
    """A missing folder, a plain encoder, a folder of something else: none may end in a traceback."""
    rest = (
        [config_path] if command == "evaluate" else ["--input", config_path.parent / "data" / "polarity" / "test.jsonl"]
    )
    refused(command, config_path.parent / model, *rest)


def test_evaluate_refuses_what_it_cannot_score(run, config_path):
    """A task of another configuration, or a split that no task has."""
    config = task_set_config(["polarity"])
    other = write_config(config_path.parent, {**config, "tasks": {"other": config["tasks"]["polarity"]}}, "other")
    assert "'other'" in refused("evaluate", run, other)
    del config["tasks"]["polarity"]["data"]["test"]
    assert "test split" in refused("evaluate", run, write_config(config_path.parent, config, "no_test"))


# -- report -----------------------------------------------------------------------------------------------------------


def test_report_of_a_finished_run(run, tmp_path):
    """The table has the final values and retention, and the plots are drawn anew."""
    shutil.copy(run / "convergence.json", tmp_path)
    printed = done("report", tmp_path)
    for name in ALL:
        assert name in printed
    assert "retention" in printed
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"curves.png", "retention.png"}


def test_report_of_a_running_run(run, tmp_path):
    """Nothing is final yet: no retention, no plot of it."""
    report = read(run / "convergence.json")
    del report["final"]
    (tmp_path / "convergence.json").write_text(json.dumps(report), encoding="utf-8")
    printed = done("report", tmp_path)
    assert "phase" in printed
    assert "retention" not in printed
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"curves.png"}


def test_report_of_what_is_no_run(tmp_path):
    """No folder, an empty one, and one with something else."""
    assert "no convergence.json" in refused("report", tmp_path / "nope")
    assert "no convergence.json" in refused("report", tmp_path)
    (tmp_path / "convergence.json").write_text("{", encoding="utf-8")
    assert "convergence.json" in refused("report", tmp_path)


# -- output folder and resuming ---------------------------------------------------------------------------------------


def test_an_output_folder_that_is_not_empty_is_refused(pair, tmp_path):
    """A run of last week would be mixed with this one."""
    (tmp_path / "note").write_text("keep", encoding="utf-8")
    message = refused("train", pair, "--output-dir", tmp_path)
    assert str(tmp_path) in message
    assert "--resume" in message
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    assert "note" in refused("train", pair, "--output-dir", tmp_path / "note")


def test_which_output_folder(pair, tmp_path, monkeypatch):
    """The option, relative to here, beats the configured one, relative to its file, which beats `runs/<name>`."""
    monkeypatch.chdir(tmp_path)
    places = [tmp_path / "option", pair.parent / "configured", tmp_path / "runs" / "config"]
    for place in places:
        place.mkdir(parents=True)
        (place / "note").touch()
    configured = ["--set", "training.output_dir=configured"]
    assert str(places[0]) in refused("train", pair, *configured, "--output-dir", places[0])
    assert str(places[1]) in refused("train", pair, *configured)
    assert "runs/config must be empty" in refused("train", pair)


def test_resume_without_a_checkpoint_starts_afresh(pair, pair_run, tmp_path):
    """The same command with --resume is right for a job that may be restarted at any time, its first time too."""
    done("train", pair, "--output-dir", tmp_path / "new", "--resume")
    same_end(tmp_path / "new", pair_run)


def test_resume_of_a_finished_run_changes_nothing(pair, pair_run, tmp_path):
    """One more step than the budget, and one more evaluation, would end in other weights."""
    shutil.copytree(pair_run, tmp_path / "run")
    done("train", pair, "--output-dir", tmp_path / "run", "--resume")
    same_end(tmp_path / "run", pair_run)


def test_resume_from_a_checkpoint_elsewhere(pair, pair_run, tmp_path):
    """A checkpoint that was copied alone to another machine is all that a run needs."""
    shutil.copytree(pair_run / "checkpoint-8", tmp_path / "checkpoint-8")
    done("train", pair, "--output-dir", tmp_path / "out", "--resume", tmp_path / "checkpoint-8")
    same_end(tmp_path / "out", pair_run)


@pytest.mark.parametrize("checkpoint", ["nope", "data"])
def test_resume_from_what_is_no_checkpoint_is_refused(pair, tmp_path, checkpoint):
    """Starting afresh instead would throw the user's steps away."""
    message = refused("train", pair, "--output-dir", tmp_path / "out", "--resume", pair.parent / checkpoint)
    assert "complete checkpoint" in message
    assert not (tmp_path / "out").exists()


def test_resume_of_a_run_of_version_1_is_refused(pair, tmp_path):
    """The run began again at step 0, in the folder of the old one, and replaced what was there."""
    checkpoint = tmp_path / "out" / "checkpoint-8"
    checkpoint.mkdir(parents=True)
    state = checkpoint / "trainer_state.json"
    state.write_text(json.dumps({"global_step": 8, "stateful_callbacks": {"ConvergenceCallback": {}}}))
    message = refused("train", pair, "--output-dir", tmp_path / "out", "--resume")
    assert "was written by version 0.1" in message
    assert [path.name for path in checkpoint.iterdir()] == [state.name]


def test_resume_with_other_tasks_is_refused(config_path, pair_run, tmp_path):
    """Weights and phases of other tasks must not be taken for these."""
    options = ["--output-dir", tmp_path / "out", "--resume", pair_run / "checkpoint-8"]
    for name, tasks in (("more", ["polarity", "overlap", "colors"]), ("fewer", ["polarity"])):
        refused("train", write_config(config_path.parent, task_set_config(tasks), name), *options)
        assert not (tmp_path / "out").exists()


# -- interruption -----------------------------------------------------------------------------------------------------


class ToldAt(CheckpointOnSignal):
    """Is sent a signal while it makes a step."""

    step, number = 0, signal.SIGTERM

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("step", "number"), [(2, signal.SIGTERM), (8, signal.SIGINT), (10, signal.SIGTERM), (12, signal.SIGTERM)]
)
def test_a_run_that_is_interrupted_goes_on_as_if_it_was_not(pair, pair_run, tmp_path, monkeypatch, step, number):
    """Before the first evaluation, at one, after a switch, at the last step: no step is lost, none is made twice."""
    monkeypatch.setattr(ToldAt, "step", step)
    monkeypatch.setattr(ToldAt, "number", number)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(train, "CheckpointOnSignal", ToldAt)
        status, _, stderr = call("train", pair, "--output-dir", tmp_path)
    assert status == 143
    assert f"interrupted at step {step}" in stderr
    assert "--resume" in stderr
    assert newest_checkpoint(tmp_path) == tmp_path / f"checkpoint-{step}"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not (tmp_path / "model.safetensors").exists()
    done("train", pair, "--output-dir", tmp_path, "--resume")
    same_end(tmp_path, pair_run)


def test_sigterm_of_a_process(pair, tmp_path):
    """What a cluster does: the process ends with 143, says so in one sentence, and resumes to the same end."""
    settings = ["--set", "training.max_steps=48", "--set", "tasks.overlap.convergence.patience=99"]
    command = ["train", pair, *settings, "--output-dir"]
    running = process("-m", "hf_async_mtl.cli.commands", *command, tmp_path / "out")
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "convergence.json").exists() and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=120)
    assert running.returncode == 143, stderr
    assert "Traceback" not in stderr
    assert stderr.count("hf-async-mtl: ") == 1
    checkpoint = newest_checkpoint(tmp_path / "out")
    assert checkpoint is not None
    assert f"interrupted at step {checkpoint.name.removeprefix('checkpoint-')}," in stderr
    done(*command, tmp_path / "out", "--resume")
    done(*command, tmp_path / "whole")
    same_end(tmp_path / "out", tmp_path / "whole")


# -- errors of the user -----------------------------------------------------------------------------------------------


def no_training(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the mistake was found too late: training has begun")


Rows = list[dict[str, Any]]


def with_label(value: Any, place: int = 5) -> Rows:
    rows = raw_sets(12)["polarity"].to_list()
    rows[place]["label"] = value
    return rows


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([{**row, "label": "neutral"} for row in with_label("pos")], {"label_names": ["neg", "pos"]}, "'neutral'"),
        (with_label(3), {}, "3"),
        ([{**row, "text": None} for row in with_label("pos")], {}, "column 'text', row 0"),
        ([{"text": row["text"], "lable": row["label"]} for row in with_label("pos")], {}, "The nearest is 'lable'"),
        ([], {}, "must have rows"),
        (with_label("?"), {"type": "regression"}, "must be a number"),
    ],
    ids=["labels unknown", "label of two types", "no text", "no column", "no rows", "no number"],
)
def test_a_mistake_in_the_data_is_found_before_training(pair, tmp_path, monkeypatch, split, rows, settings, words):
    """A label of the test split that cannot be used would show after a night of training, with no result left."""
    monkeypatch.setattr(AsyncMTLTrainer, "train", no_training)
    if settings.get("type") == "regression":
        good = [{**row, "label": float(i)} for i, row in enumerate(with_label("pos"))]
    else:
        good = with_label("pos")
    config = task_set_config()
    config["encoder"] = str(pair.parent / "encoder")
    config["tasks"]["overlap"]["data"] = dict.fromkeys(
        ("train", "validation"), str(pair.parent / "data/overlap/test.jsonl")
    )
    config["tasks"]["polarity"] |= settings
    for name in ("train", "validation", "test"):
        write_rows(tmp_path / "data" / "polarity" / f"{name}.jsonl", rows if name == split else good)
    message = refused("train", write_config(tmp_path, config), "--output-dir", tmp_path / "out")
    assert "polarity" in message
    assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["tasks.polarity.max_samples.train=1"], "two classes"),
        (["tasks.polarity.max_samples.train=1", "tasks.polarity.label_names=[neg, pos]"], "two classes"),
        (["tasks.overlap.max_samples.train=1"], "targets that differ"),
        (["tasks.polarity.metrics=[pearson]"], "pearson"),
        (["tasks.polarity.metrics=[acuracy]"], "Did you mean 'accuracy'"),
        (["tasks.topics.type=classification"], "label"),
        (["tasks.choice.type=multilabel", "tasks.choice.text_columns=[prompt]"], "must have a list"),
        (["tasks.overlap.label_column=left"], "must be a number"),
        (["tasks.colors.label_column=tokens", "tasks.colors.label_names=[O, B-color]"], "A label must be"),
        (["tasks.answer.label_column=context"], "`answers` must be"),
        (["tasks.choice.label_column=prompt"], "one of [first, second]"),
        (["tasks.polarity.text_columns=[txt]"], "The nearest is 'text'"),
        (["encoder=data"], "tokenizer"),
        (["encoder=nobody/nothing"], "'nobody/nothing'"),
        (["pooling=median"], "pooling"),
        (["packing=no"], "packing"),
        (["training.metric_for_best_model=polarity_acc"], "polarity_accuracy"),
        (["tasks.polarity.data.validation=null"], "from_train"),
        (["tasks.polarity.data.train=nope.jsonl"], "nope.jsonl"),
        (["training.learning_rte=1"], "`learning_rate`"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_of_the_user_is_one_message(config_path, tmp_path, monkeypatch, changes, words):
    """Status 2, one message, no traceback, nothing left behind, before any training."""
    monkeypatch.setattr(AsyncMTLTrainer, "train", no_training)
    monkeypatch.chdir(tmp_path)
    settings = [part for change in changes for part in ("--set", change)]
    assert words in refused("train", config_path, *settings)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_empty_folder(pair, tmp_path):
    """What is not the user's mistake raises; the next try must not ask for --resume because of an empty folder."""
    settings = ["--set", "training.lr_scheduler_kwargs={no_such: 1}"]
    with pytest.raises(TypeError):
        call("train", pair, *settings, "--output-dir", tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_a_folder_that_was_there_stays(pair, tmp_path):
    """An empty folder that the user has made is the user's."""
    with pytest.raises(TypeError):
        call("train", pair, "--set", "training.lr_scheduler_kwargs={no_such: 1}", "--output-dir", tmp_path)
    assert tmp_path.is_dir()


def test_a_mistake_as_a_process_sees_it(pair, tmp_path):
    """The real stderr has the message and nothing else: no warning of a library, no bar, no traceback."""
    command = ["train", pair, "--output-dir", tmp_path / "out", "--set", "training.learning_rte=1"]
    running = process("-m", "hf_async_mtl.cli.commands", *command)
    stdout, stderr = running.communicate(timeout=120)
    assert running.returncode == 2
    assert stdout == ""
    assert stderr.splitlines() == [
        "hf-async-mtl: Unknown key `training.learning_rte`. The nearest known key is `learning_rate`."
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["evaluate", "x"], ["predict", "x"], ["report"]])
def test_an_incomplete_command_is_a_mistake_of_the_user(arguments, capsys):
    """argparse's own status is the contract's."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# -- several processes ------------------------------------------------------------------------------------------------


def launched(*arguments: Any) -> tuple[int, str]:
    options = [
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    running = process("-m", "accelerate.commands.launch", *options, ROOT / "scripts" / "train.py", *arguments)
    _, stderr = running.communicate(timeout=200)
    return running.returncode, stderr


def test_accelerate_launches_the_same_run(pair, pair_run, tmp_path):
    """`accelerate launch scripts/train.py` is `hf-async-mtl train`; its log has no bars."""
    status, stderr = launched(pair, "--output-dir", tmp_path / "out")
    assert status == 0, stderr
    same_end(tmp_path / "out", pair_run)
    assert "it/s" not in stderr
    assert "%|" not in stderr
