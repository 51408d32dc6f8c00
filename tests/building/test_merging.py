"""One bundle out of several: a mean of weights, heads side by side, and each model as the teacher of its tasks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import bundle_config, write_bundle, write_config
from commands_here import done, refused
from families import FAMILIES, tiny_model
from tiny import task_configs, tiny_encoder

from hf_async_mtl import ConfigurationError, MultiTaskModel
from hf_async_mtl.modeling.merging import average

TASKS = ("polarity", "overlap", "colors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and the runs `polarity` and `rest`, of one encoder."""
    folder = tmp_path_factory.mktemp("merging")
    write_bundle(folder, TASKS)
    for name, tasks in (("polarity", TASKS[:1]), ("rest", TASKS[1:])):
        config = bundle_config(tasks)
        config["training"]["load_best_model_at_end"] = False
        done("train", write_config(folder, config, name), "--output-dir", folder / name)
    return folder


def weights(source: Path) -> dict[str, torch.Tensor]:
    return MultiTaskModel.from_pretrained(source).state_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_of_weights(family: str) -> None:
    """Bug: a weight is left out, added twice where layers share it, or rounded on the way."""
    models = [tiny_model(family) for _ in range(3)]
    with torch.no_grad():
        for step, model in enumerate(models):
            for parameter in model.encoder.parameters():
                parameter += step * torch.ones_like(parameter)
    expected = {name: tensor.clone() for name, tensor in models[1].encoder.state_dict().items()}
    mean = average([model.encoder for model in models])
    assert mean is models[0].encoder
    for name, tensor in mean.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


def test_equal_models_are_their_mean() -> None:
    """Bug: a mean of one and the same is something else."""
    models = [tiny_model("bert") for _ in range(2)]
    before = {name: tensor.clone() for name, tensor in models[0].encoder.state_dict().items()}
    after = average([model.encoder for model in models]).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_merged_model(folder: Path) -> None:
    """Bug: a head of the second model is drawn anew, or the encoder is the first model's."""
    chosen = {name: task_configs()[name] for name in (*TASKS, "topics")}
    sources = [folder / "polarity", folder / "rest"]
    model = MultiTaskModel.from_encoder([str(source) for source in sources], chosen)
    first, second, merged = *map(weights, sources), model.state_dict()
    for name, tensor in merged.items():
        if name.startswith("encoder."):
            torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, rtol=0, atol=1e-6)
        elif not name.startswith("heads.topics"):
            assert torch.equal(tensor, (first if "polarity" in name else second)[name]), name
    assert model.config.encoder_config._name_or_path == "./encoder"
    assert model.config.max_length == 32


def test_a_run_distils_from_each(folder: Path) -> None:
    """Bug: one model teaches the tasks of all, with an untrained head; or nobody sees what merging cost."""
    config = {**bundle_config(TASKS), "encoder": ["polarity", "rest"]}
    done("train", write_config(folder, config, "merged"), "--output-dir", folder / "merged")
    report = json.loads((folder / "merged" / "convergence.json").read_text(encoding="utf-8"))
    for name in TASKS:
        assert report["tasks"][name]["phase"] == "distilling", name
        assert report["tasks"][name]["history"][0][0] == 0
    assert report["tasks"].keys() == set(TASKS)


def mistakes(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Changes of a configuration, and what is said to each."""
    both, rest = ["polarity", "rest"], ["rest"]
    return {
        "one": ({"encoder": rest}, "a list of two or more; found ['rest']"),
        "twice": ({"encoder": rest * 2}, "a list of two or more"),
        "no bundle": ({"encoder": [*rest, "encoder"]}, "must be trained bundles;"),
        "a task twice": ({"encoder": ["polarity", "again"]}, "must have different tasks;"),
        "another encoder": ({"encoder": [*rest, "other"]}, "in num_hidden_layers. Name"),
        "another vocabulary": ({"encoder": [*rest, "words"]}, "must have one vocabulary;"),
        "another pooling": ({"encoder": both, "pooling": "max"}, "`pooling` must be cls, which the heads of"),
    }


@pytest.fixture(scope="module")
def odd(folder: Path) -> Path:
    """Further runs beside those of `folder`: of a deeper encoder, and of another vocabulary."""
    config = bundle_config(TASKS)
    done("train", write_config(folder, config, "again"), "--output-dir", folder / "again")
    tiny_encoder(folder / "deeper", num_hidden_layers=3)
    for name, encoder in (("other", "deeper"), ("words", "encoder")):
        config = {**bundle_config(TASKS[:1]), "encoder": encoder}
        done("train", write_config(folder, config, name), "--output-dir", folder / name)
    tokens = folder / "words" / "tokenizer.json"
    tokens.write_text(tokens.read_text(encoding="utf-8").replace('"lamp"', '"lump"').replace('"dog"', '"dug"'))
    return folder


@pytest.mark.parametrize("name", mistakes(Path()))
def test_what_cannot_be_merged(odd: Path, name: str) -> None:
    """Bug: a mean over weights that have nothing to do with each other, or a traceback."""
    change, words = mistakes(odd)[name]
    config = write_config(odd, {**bundle_config(TASKS), **change}, "mistake")
    assert words in refused("train", config, "--output-dir", odd / "out")
    assert not (odd / "out").exists()


def test_another_origin_is_told(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: models that began with other weights are averaged to noise in silence."""
    tiny_encoder(tmp_path / "stranger", seed=1)
    chosen = {"choice": task_configs()["choice"]}
    MultiTaskModel.from_encoder(str(tmp_path / "stranger"), chosen, max_length=32).save_pretrained(tmp_path / "run")
    sources = [str(folder / "polarity"), str(tmp_path / "run")]
    MultiTaskModel.from_encoder(sources, {**chosen, "polarity": task_configs()["polarity"]})
    assert "began with './encoder' and './stranger'" in caplog.text
    with pytest.raises(ConfigurationError, match="must be trained bundles"):
        MultiTaskModel.from_encoder([sources[0], str(tmp_path / "stranger")], chosen)
