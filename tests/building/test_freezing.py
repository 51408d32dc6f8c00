"""What is frozen stays to the bit; what is not learns, whatever the action, the method and the number of layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands_here import done, refused
from families import FAMILIES, packed, random_examples, tiny_model
from task_sets import task_set_config, write_config, write_task_set
from tiny import raw_sets, task_configs, tiny_encoder, tiny_tokenizer
from transformers import AutoModel

from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments, ConfigurationError, MultiTaskModel
from hf_async_mtl.building.freezing import encoder_layers

TASKS = ("polarity", "overlap", "colors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("freezing")
    write_task_set(folder, TASKS)
    return folder


def train(folder: Path, name: str, *overrides: str) -> MultiTaskModel:
    """The model that a run ends with; its last step's, whatever was best."""
    config = {**task_set_config(TASKS)}
    config["training"] |= {"load_best_model_at_end": False, "head_learning_rate": 0.01}
    path = write_config(folder, config, name)
    done("train", path, "--output-dir", folder / name, *(part for text in overrides for part in ("--set", text)))
    return MultiTaskModel.from_pretrained(folder / name)


def moved(model: MultiTaskModel, folder: Path) -> set[str]:
    """The names of the encoder's weights that are not the ones that the run began with."""
    begun = AutoModel.from_pretrained(folder / "encoder", add_pooling_layer=False).state_dict()
    return {name for name, tensor in model.encoder.state_dict().items() if not torch.equal(tensor, begun[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layer_of_every_family(family: str) -> None:
    """Bug: in one family the embeddings learn on below frozen layers, or what follows the last layer is frozen too."""
    model = tiny_model(family)
    model.freeze_encoder(1)
    output = model(**packed(model, random_examples()))
    output.loss.backward()
    layers = encoder_layers(model.encoder)
    assert len(layers) == (1 if family == "albert" else 2)
    assert not any(p.requires_grad for p in [*model.get_input_embeddings().parameters(), *layers[0].parameters()])
    # A key's bias has no gradient, in any attention.
    above = [p for layer in layers[1:] for p in layer.parameters() if p.dim() > 1]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in above)
    names = [name for name, p in model.encoder.named_parameters() if not p.requires_grad]
    assert not any("final" in name or "rel_embeddings" in name or "relative" in name for name in names), names


def test_a_run_with_frozen_layers(folder: Path) -> None:
    """Bug: weight decay, a snapshot or the optimizer moves what is frozen; or all is frozen."""
    found = moved(train(folder, "layer", "freeze=1"), folder)
    assert found
    assert all(name.startswith("encoder.layer.1.") for name in found), found


def test_a_run_with_a_frozen_encoder(folder: Path) -> None:
    """Bug: without a gradient in the encoder the run dies, at the conflicts' measurement or at a teacher's record."""
    model = train(folder, "encoder-frozen", "freeze=encoder", "training.conflict_steps=2")
    assert moved(model, folder) == set()
    report = json.loads((folder / "encoder-frozen" / "convergence.json").read_text(encoding="utf-8"))
    assert "conflicts" not in report
    # The heads have learned: an untrained one of polarity would not be taken for a teacher.
    assert any(event["event"] == "converged" for event in report["events"])


def test_the_card_says_how_much_was_trained(folder: Path) -> None:
    """Bug: the card of a model whose encoder is the original's, to the bit, tells of a fine-tuned one."""
    model, card = train(folder, "few", "freeze=encoder"), (folder / "few" / "README.md").read_text(encoding="utf-8")
    heads = sum(parameter.numel() for parameter in model.heads.parameters())
    assert f"| `trained_weights` | `{heads:,} of {model.num_parameters():,}` |" in card
    train(folder, "all")
    assert "trained_weights" not in (folder / "all" / "README.md").read_text(encoding="utf-8")


def test_a_rollback_with_frozen_layers(folder: Path) -> None:
    """Bug: a return to an earlier step thaws what was frozen."""
    found = moved(train(folder, "rollback", "freeze=1", "convergence.on_convergence=rollback"), folder)
    assert found
    assert all(name.startswith("encoder.layer.1.") for name in found)


def test_a_frozen_head(folder: Path) -> None:
    """Bug: a frozen head learns; or nobody says that what it reads changes under it."""
    train(folder, "first")
    begun = MultiTaskModel.from_pretrained(folder / "first").heads.state_dict()
    model = train(folder, "second", "encoder=first", "tasks.overlap.head=frozen", "distillation.teachers.overlap=null")
    ended = model.heads.state_dict()
    assert torch.equal(ended["overlap.linear.weight"], begun["overlap.linear.weight"])
    assert not torch.equal(ended["polarity.linear.weight"], begun["polarity.linear.weight"])
    assert moved(model, folder)


@pytest.mark.parametrize("setting", ["freeze=encoder", "freeze=null", "lora={r: 4}"])
def test_resumed_with_what_it_had(folder: Path, setting: str) -> None:
    """Bug: a run goes on with other weights that learn, under the moments of the first ones, or dies of them."""
    if not (folder / "half").exists():
        train(folder, "half", "freeze=1")
    command = ["train", folder / "half.yaml", "--output-dir", folder / "half", "--resume"]
    other = ["--set", setting] if "lora" not in setting else ["--set", "freeze=null", "--set", setting]
    assert "must be resumed with the weights that learn in it" in refused(*command, *other)


def trainer(model: MultiTaskModel, folder: Path) -> AsyncMTLTrainer:
    rows = {name: data for name, data in raw_sets().items() if name in model.config.tasks}
    args = AsyncMTLTrainingArguments(str(folder), use_cpu=True, report_to="none")
    return AsyncMTLTrainer(model, args, processing_class=tiny_tokenizer(), train_dataset=rows, eval_dataset=rows)


def test_an_optimizer_has_no_group_of_nothing(tmp_path: Path) -> None:
    """Bug: sharded, a run whose encoder is frozen cannot be resumed: torch refuses a group without a weight."""
    model = MultiTaskModel.from_encoder(
        tiny_encoder(tmp_path / "encoder"), {"polarity": task_configs()["polarity"]}, max_length=32
    )
    model.freeze_encoder()
    made = trainer(model, tmp_path / "run")
    made.args.head_learning_rate = 0.01
    groups = made.create_optimizer().param_groups
    assert [parameter for group in groups for parameter in group["params"]]
    assert all(group["params"] and group["lr"] == 0.01 for group in groups)


def test_what_is_frozen_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a frozen head on a moving encoder loses its task, and nobody says why; or one that cannot is warned of."""
    chosen = {name: task_configs()[name] for name in ("polarity", "overlap")}
    model = MultiTaskModel.from_encoder(tiny_encoder(tmp_path / "encoder"), chosen, max_length=32)
    model.heads["overlap"].requires_grad_(False)
    trainer(model, tmp_path / "a")
    assert "heads of overlap are frozen, and the encoder is trained" in caplog.text
    caplog.clear()
    model.freeze_encoder()
    trainer(model, tmp_path / "b")
    assert "frozen" not in caplog.text
    model.heads["polarity"].requires_grad_(False)
    with pytest.raises(ConfigurationError, match="the encoder and all heads are frozen"):
        trainer(model, tmp_path / "c")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("freeze=3", "from 1 to 2; found 3"),
        ("freeze=0", "`freeze` must be `encoder`, or a number of its first layers; found 0."),
        ("freeze=true", "found True"),
        ("freeze=embeddings", "`freeze` must be `encoder`, or a number of its first layers; found 'embeddings'"),
        ("tasks.polarity.head=frozen", "`tasks.polarity.head: frozen` needs a head that has been trained"),
        ("tasks.polarity.head=cold", "`tasks.polarity.head` must be one of kept, new, frozen; found 'cold'"),
    ],
)
def test_refused(folder: Path, setting: str, words: str) -> None:
    """Bug: a freeze that cannot be is passed over, and all learns."""
    assert words in refused("train", folder / "config.yaml", "--output-dir", folder / "refused", "--set", setting)
    assert not (folder / "refused").exists()


@pytest.mark.parametrize("layers", [0, 3, True, 1.5])
def test_refused_in_python(layers: Any) -> None:
    """Bug: a wrong number freezes all, or nothing."""
    with pytest.raises(ConfigurationError, match="from 1 to 2"):
        tiny_model("bert").freeze_encoder(layers)
