"""A run that is pushed to the Hub: what becomes public, and what must not."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands_here import refused
from fake_hub import Commit, python, serving
from other_environment import without_package
from task_sets import task_set_config, write_config, write_task_set
from tiny import task_configs

import hf_async_mtl.modeling
from hf_async_mtl import MultiTaskModel

ROOT = Path(__file__).parents[2]
REPOSITORY = "user/model"
TOKEN = "hf_of_nobody"
TASKS = ("polarity", "overlap")
LAST = "End of training"
UNUSED = {"__init__.py"}
"""Files that do not travel with a model."""


@dataclass(frozen=True)
class Pushed:
    """A finished run, and the commits that the Hub has seen of it."""

    run: Path
    commits: list[Commit]

    @property
    def final(self) -> dict[str, bytes]:
        """What the last push has brought; a large one may come in parts."""
        return {k: v for commit in self.commits if commit.summary.startswith(LAST) for k, v in commit.files.items()}


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    """A run that pushes each checkpoint, and its end; a task converges on the way, so that there is a teacher."""
    folder = tmp_path_factory.mktemp("push")
    write_task_set(folder / "task_set", TASKS)
    config = task_set_config(TASKS)
    # A token may be a setting too, and `every_save` pushes in the middle of the run, from an own list of files.
    hub = {
        "push_to_hub": True,
        "hub_token": TOKEN,
        "hub_model_id": REPOSITORY,
        "hub_strategy": "every_save",
        "hub_always_push": True,
    }
    config["training"] |= hub
    path = write_config(folder / "task_set", config)
    commits: list[Commit] = []
    with serving(REPOSITORY, {}, "model", commits) as address:
        command = ("-m", "hf_async_mtl.cli.commands", "train", path, "--output-dir", folder / "run")
        python(folder, address, *command, PYTHONPATH=str(ROOT / "src"))
    return Pushed(folder / "run", commits)


def test_the_last_push_is_what_the_contract_names(pushed: Pushed) -> None:
    """A push before the results and the card, as upstream's `save_model` makes one, must not be the last."""
    code = {path.name for path in Path(hf_async_mtl.modeling.__file__).parent.glob("*.py")} - UNUSED
    promised = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    promised |= {
        "convergence.json",
        "all_results.json",
        "plots/curves.png",
        "plots/retention.png",
        *code,
    }
    assert set(pushed.final) == promised
    for name in promised:
        assert pushed.final[name] == (pushed.run / name).read_bytes(), name


def test_the_public_card_has_the_results(pushed: Pushed) -> None:
    """The card is pushed by each save; the one without results would stay."""
    card, results = pushed.final["README.md"].decode(), json.loads(pushed.final["all_results.json"])
    assert card.startswith("---\n")
    for name in TASKS:
        assert f"{results[f'test_{name}_{task_configs()[name].monitored}']:.4f}" in card


def test_teachers_and_checkpoints_stay_here(pushed: Pushed) -> None:
    """Each is as large as the model, and a teacher under another name than `_...` is public with the next save."""
    assert list(pushed.run.glob("checkpoint-*/_teachers/*"))
    assert any(commit.summary.startswith("Training in progress") for commit in pushed.commits)
    for commit in pushed.commits:
        for name in commit.files:
            assert not any(part.startswith(("_", "checkpoint-")) for part in Path(name).parts), commit.summary
            assert "checkpoint" not in name
            assert name == "model.safetensors" or not name.endswith((".safetensors", ".pt", ".pth"))


@pytest.mark.parametrize("last", [True, False])
def test_nothing_public_names_a_folder_of_this_machine_or_the_token(pushed: Pushed, last: bool) -> None:
    """Paths hold names of users and of projects. What a push on the way has brought stays in the history."""
    private = [str(pushed.run.parent), str(ROOT), sys.prefix, TOKEN]
    for commit in pushed.commits:
        for name, content in commit.files.items():
            if last == commit.summary.startswith(LAST):
                assert [text for text in private if text.encode() in content] == [], (commit.summary, name)


SAY = """
import json, sys
said = [{name: values.tolist() for name, values in found.items()} for found in (inputs, out.logits)]
print(json.dumps([type(model).__module__.split(".")[0], "hf_async_mtl" in sys.modules, *said]))
"""


@pytest.fixture(scope="module")
def loaded(pushed: Pushed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a reader of the public card sees who runs its first example, without this package."""
    example = pushed.final["README.md"].decode().split("```python\n")[1].split("```")[0]
    folder = tmp_path_factory.mktemp("reader")
    reader = without_package(folder / "venv")
    with serving(REPOSITORY, pushed.final, "model") as address:
        return python(folder, address, "-c", example + SAY, executable=reader, PYTHONPATH="")


def test_the_public_model_loads_as_its_card_says(pushed: Pushed, loaded: str) -> None:
    """The code must be pushed with the weights, whole, and the card must name the repository, not the run's folder."""
    package, ours, inputs, logits = json.loads(loaded[loaded.index('["') :])
    assert (package, ours) == ("transformers_modules", False)
    model = MultiTaskModel.from_pretrained(pushed.run).eval()
    with torch.no_grad():
        expected = model(**{name: torch.tensor(values) for name, values in inputs.items()}).logits
    assert logits
    for task, values in logits.items():
        torch.testing.assert_close(torch.tensor(values), expected[task])


def test_the_card_does_not_make_its_reader_answer_questions(loaded: str) -> None:
    """A tokenizer reads the model's configuration, and asks whether to trust it: a script waits for an answer."""
    assert "[y/N]" not in loaded


# -- on the way, and later --------------------------------------------------------------------------------------------


def test_what_is_pushed_on_the_way_loads(pushed: Pushed, tmp_path: Path) -> None:
    """Bug: until the run has ended the repository has weights and no code, and no card."""
    first = next(commit for commit in pushed.commits if commit.summary.startswith("Training in progress"))
    assert {path.name for path in Path(hf_async_mtl.modeling.__file__).parent.glob("*.py")} - set(first.files) == UNUSED
    assert "was not finished when this card was written" in first.files["README.md"].decode()
    for name, content in first.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    code = """
import sys
from transformers import AutoModel
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
"""
    reader = without_package(tmp_path / "venv")
    python(tmp_path, "http://127.0.0.1:9", "-c", code, tmp_path, executable=reader, PYTHONPATH="")


def push(run: Path, commits: list[Commit], name: str = "else/where", token: str = TOKEN, *options: str) -> str:
    """Push a folder with the command, to a server of its own; what it said."""
    with serving("else/where", {}, "model", commits) as address:
        command = ("-m", "hf_async_mtl.cli.commands", "push", run, name, *options)
        return python(run.parent, address, *command, PYTHONPATH=str(ROOT / "src"), HF_TOKEN=token)


@pytest.fixture(scope="module")
def later(pushed: Pushed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Commit]]:
    """The same run's folder, elsewhere and with odd things in it, pushed by hand under another name."""
    folder = tmp_path_factory.mktemp("later") / "run"
    shutil.copytree(pushed.run, folder)
    (folder / "notes.doc").write_text("mine")
    # What trackers and other commands leave in a run's folder.
    for name in ("wandb/files/wandb-metadata.json", "onnx/tokenizer.json", "answers.json", "runs/events.out", "a/x.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    commits: list[Commit] = []
    assert push(folder, commits).strip().endswith("/else/where/commit/0000000000000000000000000000000000000001")
    return folder, commits


def test_a_run_is_pushed_later(pushed: Pushed, later: tuple[Path, list[Commit]]) -> None:
    """Bug: what is pushed by hand lacks a file of what the trainer pushes, or has one more."""
    folder, (card, commit) = later
    assert card.files.keys() == {"README.md"}
    assert commit.files.keys() | card.files.keys() == pushed.final.keys()
    assert all(content == pushed.final[name] for name, content in commit.files.items())
    # The run's own card is left as it is.
    assert (folder / "README.md").read_bytes() == pushed.final["README.md"]


def test_the_card_has_the_name_of_the_repository(pushed: Pushed, later: tuple[Path, list[Commit]]) -> None:
    """Bug: the first example of the public card loads a folder of the author's machine."""
    card, before = later[1][0].files["README.md"].decode(), pushed.final["README.md"].decode()
    assert 'from_pretrained("else/where"' in card
    assert REPOSITORY not in card
    unsigned = [text.rpartition("\n<!--")[0].replace("where", "model") for text in (card, before)]
    assert unsigned[0].replace("else/model", REPOSITORY) == unsigned[1]


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("else/where", "", "To get write access, log in with `hf auth login`, or set HF_TOKEN."),
        ("user/of/three", TOKEN, "could not be pushed to 'user/of/three'"),
    ],
)
def test_a_push_that_fails_says_why(later: tuple[Path, list[Commit]], name: str, token: str, message: str) -> None:
    """Bug: a traceback of the client; or the card was written over, and nothing pushed."""
    before = (later[0] / "README.md").read_bytes()
    with pytest.raises(AssertionError) as caught:
        push(later[0], [], name, token)
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert (later[0] / "README.md").read_bytes() == before


def test_a_card_that_its_author_has_changed_is_pushed_as_it_is(pushed: Pushed, tmp_path: Path) -> None:
    """Bug: limits and thanks that somebody wrote are gone."""
    shutil.copytree(pushed.run, tmp_path / "run")
    with (tmp_path / "run" / "README.md").open("a", encoding="utf-8") as card:
        card.write("\nThanks to all annotators.\n")
    commits: list[Commit] = []
    push(tmp_path / "run", commits)
    assert commits[0].files["README.md"] == (tmp_path / "run" / "README.md").read_bytes()


def test_what_is_no_run_is_not_pushed(tmp_path: Path) -> None:
    """Bug: an empty repository is made."""
    assert "it has no convergence.json" in refused("push", tmp_path, "user/model")
