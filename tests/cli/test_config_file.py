"""The configuration file: every key of the contract has its effect, and every mistake is told in words."""

import copy
from pathlib import Path
from typing import Any

import pytest
from task_sets import task_set_config, write_config

from hf_async_mtl.cli.config_file import RunConfig, load_config
from hf_async_mtl.cli.yaml_file import read_yaml
from hf_async_mtl.tasks.loss import LossConfig
from hf_async_mtl.tasks.presets import PRESETS
from hf_async_mtl.training.arguments import REFUSED
from hf_async_mtl.validation import REMOVED, ConfigurationError

# The example of the contract, as far as it does not ask for files of the Hub.
EXAMPLE = """
encoder: google-bert/bert-base-uncased
seed: 42
max_length: 128
pooling: cls                                # cls | mean | max
packing: off
tasks:
  mrpc:
    preset: glue/mrpc
  match:
    type: classification
    data: {train: train.jsonl, validation: dev.jsonl, test: test.jsonl}
    text_columns: [left, right]
    label_column: label
    metrics: [f1, accuracy]
    max_samples: {train: 2000}
    max_length: 64
    weight: 2.0
    loss: {class_weights: balanced, label_smoothing: 0.1}
    convergence: {patience: 5}
  rte:
    preset: glue/rte
    data: {hub: nyu-mll/glue, name: rte, validation: {from_train: 0.1}, test: validation, train: train}
schedule: {mode: joint}
convergence: {criterion: plateau, patience: 4, min_delta: 0.01, min_steps: 10, on_convergence: stop}
distillation: {temperature: 2.0, hard_label_weight: 0.5}
mixing: {strategy: temperature, temperature: 3.0}
balancing: {method: sum}
training:
  learning_rate: 5e-5
  head_learning_rate: 5.0e-4
  per_device_train_batch_size: 32
  num_train_epochs: 10
  eval_steps: 200
  use_cpu: true
"""


@pytest.fixture
def example(tmp_path):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").touch()
    path = tmp_path / "example.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with all that `task_set_config` names, empty."""
    (tmp_path / "encoder").mkdir()
    for name in ("polarity", "overlap"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            (tmp_path / "data" / name / f"{split}.jsonl").touch()
    return tmp_path


GONE = object()


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration with some keys, as ``a.b.c``, set or gone."""
    config: dict[str, Any] = copy.deepcopy(task_set_config())
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = config
        for key in parents:
            section = section.setdefault(key, {})
        if value is GONE:
            del section[last]
        else:
            section[last] = value
    return config


def load(folder: Path, changes: dict[str, Any], *overrides: str) -> RunConfig:
    return load_config(write_config(folder, changed(changes)), overrides)


def refused(folder: Path, changes: dict[str, Any], *overrides: str) -> str:
    """The message that a configuration is refused with, by the file's reader or by the arguments that it makes."""
    with pytest.raises(ConfigurationError) as caught:
        load(folder, changes, *overrides).arguments(folder / "out")
    assert not (folder / "out").exists()
    return str(caught.value)


def refused_text(folder: Path, text: str) -> str:
    path = folder / "text.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_config(path)
    return str(caught.value)


# -- the contract's example -------------------------------------------------------------------------------------------


def test_every_key_of_the_example_arrives(example, tmp_path):
    """A key that parses and is then dropped has no effect, and nobody is told."""
    config = load_config(example)
    assert (config.name, config.encoder, config.seed, config.data_seed) == (
        "example",
        "google-bert/bert-base-uncased",
        42,
        42,
    )
    assert config.model == {"max_length": 128, "pooling": "cls", "packing": "off", "lora": None, "new_heads": []}
    assert list(config.tasks) == ["mrpc", "match", "rte"]
    match = config.tasks["match"]
    assert (match.type, match.text_columns, match.label_column, match.metrics, match.max_length) == (
        "classification",
        ["left", "right"],
        "label",
        ["f1", "accuracy"],
        64,
    )
    assert config.sources["match"].splits["train"] == tmp_path / "train.jsonl"
    assert config.sources["match"].max_samples == {"train": 2000}
    rte = config.sources["rte"]
    assert (rte.hub, rte.name) == ("nyu-mll/glue", "rte")
    assert rte.splits == {"train": "train", "validation": {"from_train": 0.1}, "test": "validation"}


def test_every_section_of_the_example_reaches_the_arguments(example, tmp_path):
    """The sections are the Trainer's: there they have their effect."""
    args = load_config(example).arguments(tmp_path / "out")
    assert (args.learning_rate, args.head_learning_rate) == (5e-5, 5e-4)
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.eval_steps) == (32, 10, 200)
    assert args.seed == 42
    assert (args.distillation_config.temperature, args.distillation_config.hard_label_weight) == (2.0, 0.5)
    assert (args.mixing_config.strategy, args.mixing_config.temperature) == ("temperature", 3.0)
    for task, patience in (("mrpc", 4), ("match", 5), ("rte", 4)):
        own = args.convergence_of(task)
        assert (own.patience, own.min_delta, own.min_steps, own.on_convergence) == (patience, 0.01, 10, "stop")
    assert args.balancing_config.weights == {"match": 2.0}
    assert args.loss_configs == {"match": LossConfig(class_weights="balanced", label_smoothing=0.1)}


def test_defaults_are_those_of_the_contract(folder):
    """Changed here and not in the contract, they would change every user's runs."""
    config = load(folder, {"seed": GONE, "max_length": GONE, "convergence": GONE, "training": {"use_cpu": True}})
    args = config.arguments(folder / "out")
    assert (config.seed, config.data_seed) == (42, 42)
    # 128 and cls; `from_encoder` says it, for a trained model has its own.
    assert config.model == {"max_length": None, "pooling": None, "packing": "auto", "lora": None, "new_heads": []}
    assert config.output_dir is None
    own = args.convergence_of("polarity")
    assert (own.criterion, own.patience, own.min_delta, own.min_steps, own.on_convergence) == (
        "decline",
        3,
        0.0,
        0,
        "distill",
    )
    assert (args.eval_strategy, args.save_strategy) == ("steps", "steps")
    assert args.save_steps == args.eval_steps
    assert args.load_best_model_at_end
    assert args.metric_for_best_model == "average"


def test_data_has_a_seed_of_its_own(folder):
    """Runs with other seeds on the same rows are how noise is measured."""
    config = load(folder, {"data_seed": 7})
    assert (config.seed, config.data_seed) == (3, 7)


# -- presets ----------------------------------------------------------------------------------------------------------


def test_keys_beside_a_preset_override_it(folder):
    """And only they: the rest stays the preset's, and the preset itself stays for the next task."""
    before = copy.deepcopy(PRESETS)
    own = {"preset": "glue/mrpc", "metrics": ["accuracy"], "label_names": ["no", "yes"], "max_samples": {"train": 5}}
    config = load(folder, {"tasks.paraphrase": own, "tasks.mrpc": {"preset": "glue/mrpc"}})
    mine, whole = config.tasks["paraphrase"], config.tasks["mrpc"]
    assert (mine.metrics, mine.label_names) == (["accuracy"], ["no", "yes"])
    assert (mine.text_columns, mine.type) == (whole.text_columns, whole.type)
    assert whole.metrics == PRESETS["glue/mrpc"]["metrics"]
    assert config.sources["paraphrase"].hub == config.sources["mrpc"].hub == PRESETS["glue/mrpc"]["data"]["hub"]
    assert config.sources["paraphrase"].max_samples == {"train": 5}
    assert before == PRESETS


def test_data_beside_a_preset_replaces_all_of_its_data(folder):
    """Mixed with the preset's, a file for `train` would be validated on the Hub's rows."""
    data = {"train": "data/polarity/train.jsonl", "validation": "data/polarity/validation.jsonl"}
    config = load(folder, {"tasks.mrpc": {"preset": "glue/mrpc", "data": data}})
    assert config.sources["mrpc"].hub is None
    assert set(config.sources["mrpc"].splits) == {"train", "validation"}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_makes_a_task(folder, preset):
    """A preset that the file's reader refuses can only be used from Python."""
    config = load(folder, {"tasks.one": {"preset": preset}})
    assert config.tasks["one"].type == PRESETS[preset]["type"]


@pytest.mark.parametrize("preset", ["glue/mprc", 5, ["glue/mrpc"]])
def test_an_unknown_preset_lists_the_known(folder, preset):
    """Their names are not the Hub's, and nobody knows them by heart."""
    message = refused(folder, {"tasks.mrpc": {"preset": preset}})
    assert "glue/mrpc" in message
    assert "tasks.mrpc.preset" in message


# -- YAML as people mean it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("5e-5", 5e-5),
        ("1e3", 1000.0),
        ("-2E+1", -20.0),
        ("5.e-3", 5e-3),
        ("1.5e5", 1.5e5),
        ("5.0e-5", 5e-5),
        ("7", 7),
        ("0.1", 0.1),
        ("true", True),
        ("False", False),
        ("null", None),
        # YAML 1.1 makes booleans and dates of these.
        ("off", "off"),
        ("no", "no"),
        ("On", "On"),
        ("yes", "yes"),
        ("y", "y"),
        ("2024-01-01", "2024-01-01"),
        ("e5", "e5"),
    ],
)
def test_values_are_what_people_mean(folder, written, meant):
    """PyYAML reads 5e-5 as text and `packing: off` as False, and labels `[no, yes]` as booleans."""
    path = folder / "text.yaml"
    path.write_text(f"distillation: {{temperature: {written}}}\n", encoding="utf-8")
    found = read_yaml(path)["distillation"]["temperature"]
    assert found == meant
    assert type(found) is type(meant)


def test_label_names_stay_as_written(folder):
    """`label_names: [no, yes]` must not become False and True: no row has such a label."""
    config = load(folder, {}, "tasks.polarity.label_names=[no, yes, off]")
    assert config.tasks["polarity"].label_names == ["no", "yes", "off"]


def test_a_section_may_be_merged_from_an_anchor(folder):
    """Anchors and merges are how YAML users share a section between tasks."""
    tasks = """
encoder: encoder
tasks:
  polarity: &base
    type: classification
    text_columns: [text]
    data: {train: data/polarity/train.jsonl, validation: data/polarity/validation.jsonl}
  again:
    <<: *base
    text_columns: [other]
"""
    path = folder / "text.yaml"
    path.write_text(tasks, encoding="utf-8")
    config = load_config(path)
    assert config.tasks["again"].type == "classification"
    assert config.tasks["again"].text_columns == ["other"]


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("seed: 1\nencoder: x\nseed: 2\n", "seed", 3),
        ("tasks:\n  a: {type: classification}\n  a: {type: regression}\n", "a", 3),
        ("training: {max_steps: 1, max_steps: 2}\n", "max_steps", 1),
    ],
)
def test_a_key_that_is_written_twice_is_refused(tmp_path, text, key, line):
    """YAML takes the last one silently: a whole task would be gone."""
    message = refused_text(tmp_path, text)
    assert f"`{key}` is written twice" in message
    assert f"line {line}" in message


@pytest.mark.parametrize(
    "text",
    [
        "a: [1\n",
        "a: b: c\n",
        "\tencoder: x\n",
        "? [a]\n: b\n",
        "max_samples: {{train: 1}}\n",
        "a: !!python/object:os.system x\n",
    ],
)
def test_what_is_no_yaml_is_refused(tmp_path, text):
    """Also keys that cannot be keys, and tags that would run code."""
    message = refused_text(tmp_path, text)
    assert "text.yaml must be YAML" in message


@pytest.mark.parametrize("text", ["", "# nothing\n", "encoder\n", "- encoder\n", "5\n"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    """An empty file parses."""
    assert "mapping with `encoder` and `tasks`" in refused_text(tmp_path, text)


def test_what_is_no_text_is_refused(tmp_path):
    """The model in the place of its configuration is a slip of one word."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load_config(path)


def test_a_missing_file_is_named(tmp_path):
    """A folder is no file either."""
    for path in (tmp_path / "nope.yaml", tmp_path):
        with pytest.raises(ConfigurationError, match=r"no configuration file .*" + path.name):
            load_config(path)


# -- unknown keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("sead", 1, "seed"),
        ("task", {}, "tasks"),
        ("tasks.polarity.label_nmaes", ["a", "b"], "label_names"),
        ("tasks.polarity.data.tset", "x.jsonl", "test"),
        ("tasks.polarity.convergence.patiense", 3, "patience"),
        ("convergence.patients", 3, "patience"),
        ("distillation.temprature", 2, "temperature"),
        ("mixing.startegy", "uniform", "strategy"),
        ("balancing.methods", "sum", "method"),
        ("schedule.modes", "joint", "mode"),
        ("training.learning_rat", 1e-3, "learning_rate"),
        ("training.head_learning_rates", 1e-3, "head_learning_rate"),
        ("training.num_epochs", 3, "num_train_epochs"),
    ],
)
def test_an_unknown_key_names_the_nearest_at_every_level(folder, key, value, nearest):
    """A misspelt key that is ignored trains with the default, and nobody sees it."""
    message = refused(folder, {key: value})
    assert f"Unknown key `{key}`" in message
    assert f"`{nearest}`" in message


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("tasks.polarity.text", "text_columns"),
        ("tasks.polarity.label", "label_column"),
        ("tasks.polarity.labels", "label_names"),
        ("tasks.polarity.limit", "max_samples"),
        ("tasks.polarity.stride", "doc_stride"),
        ("distillation.label_share", "hard_label_weight"),
    ],
)
def test_a_key_of_version_1_is_answered_with_its_new_name(folder, key, new):
    """The nearest known key of `label` may be `label_names`, which means something else."""
    old = key.split(".")[-1]
    assert refused(folder, {key: 1}) == f"`{key}`: `{old}` is now `{new}`. Rename the key."


@pytest.mark.parametrize(
    ("key", "way_out"),
    [
        ("convergence.min_delta_mode", "in the units of the metric"),
        ("tasks.polarity.convergence.min_delta_mode", "in the units of the metric"),
        ("convergence.renew_teacher", "best evaluation"),
        ("convergence.return_below", "does not return"),
        ("convergence.watch", "`log_loss`"),
        ("tasks.polarity.data.revision", "`hub: <id>@<revision>`"),
        ("tasks.polarity.data.stream", "`scripts/examples/streaming.py`"),
        ("distillation.annealing", "`hard_label_weight`"),
        ("distillation.keep_gradient_norm", "`tasks.<name>.weight`"),
        ("distillation.ramp_steps", "at once"),
        ("distillation.snapshots", "single best evaluation"),
        ("training.on_nonfinite", "always stops the run"),
    ],
)
def test_a_key_that_was_removed_says_what_to_do(folder, key, way_out):
    """The nearest known key of one that is gone means something else: `temperature` for `annealing`."""
    message = refused(folder, {key: 1})
    assert message.startswith(f"`{key}` has been removed. ")
    assert way_out in message


def test_every_removed_key_has_its_case():
    """A key is removed, and nobody tries its message."""
    (cases,) = test_a_key_that_was_removed_says_what_to_do.pytestmark
    assert {".".join(key.split(".")[-2:]) for key, _ in cases.args[1]} == set(REMOVED)


def test_a_limit_names_the_splits_that_there_are(folder):
    """`max_samples: {trian: 5}` would limit nothing."""
    message = refused(folder, {"tasks.polarity.max_samples": {"trian": 5}})
    assert "tasks.polarity.max_samples" in message
    assert "train, validation, test" in message


@pytest.mark.parametrize("key", ["encoder", "tasks"])
def test_a_missing_key_is_named(folder, key):
    """The two without which there is no run."""
    assert f"must have the key `{key}`" in refused(folder, {key: GONE})


@pytest.mark.parametrize("key", ["type", "text_columns", "data"])
def test_a_task_without_preset_needs_its_keys(folder, key):
    """Their absence must not show as a TypeError of a constructor."""
    message = refused(folder, {f"tasks.polarity.{key}": GONE})
    assert f"`tasks.polarity` must have `{key}`" in message


# -- fields that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_a_field_without_effect_is_refused_by_name(folder, field):
    """Even with its default value: the user believes that it does something."""
    message = refused(folder, {f"training.{field}": None})
    assert f"`training.{field}` has no effect here" in message
    assert REFUSED[field] in message


@pytest.mark.parametrize("field", ["seed", "data_seed", "convergence", "balancing"])
def test_what_stands_at_the_top_is_sent_there(folder, field):
    """`training.seed` would rule the order alone, and `seed` the model: one of them silently."""
    message = refused(folder, {f"training.{field}": {} if field in ("convergence", "balancing") else 1})
    assert f"`training.{field}` must stand at the top of the file" in message


@pytest.mark.parametrize(
    ("section", "key", "way"),
    [("convergence", "tasks", "convergence"), ("balancing", "weights", "weight"), ("training", "losses", "loss")],
)
def test_what_stands_with_a_task_is_sent_there(folder, section, key, way):
    """Given in both places, one would win silently."""
    assert f"tasks.<name>.{way}" in refused(folder, {f"{section}.{key}": {"polarity": {}}})


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_a_strategy_that_uploads_teachers_is_refused(folder, strategy):
    """Everything in a checkpoint would go public."""
    assert f"hub_strategy: {strategy}" in refused(folder, {"training.hub_strategy": strategy})


def test_a_run_without_evaluations_is_refused(folder):
    """Nothing could ever converge."""
    assert "eval_strategy" in refused(folder, {"training.eval_strategy": "no"})


def test_a_loss_of_another_type_is_refused_before_the_data_are_read(folder):
    """A run reads its data for minutes and then says that its task has no such option."""
    message = refused(folder, {"tasks.polarity.loss": {"huber": 1.0}})
    assert message.startswith("`tasks.polarity.loss.huber` needs a task of type regression; found type classification.")


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "one"),
        ("seed", -1),
        ("seed", True),
        ("seed", 2**32),
        ("data_seed", 1.5),
        ("max_length", 4),
        ("max_length", "64"),
        ("encoder", 5),
        ("encoder", ""),
        ("tasks", []),
        ("tasks", ["polarity"]),
        ("tasks.polarity", None),
        ("tasks.polarity", "glue/mrpc"),
        ("tasks.polarity.type", ["classification"]),
        ("tasks.polarity.type", "clasification"),
        ("tasks.polarity.metrics", 5),
        ("tasks.polarity.metrics", [["f1"]]),
        ("tasks.polarity.metrics", [5]),
        ("tasks.polarity.metrics", []),
        ("tasks.polarity.metrics", ["f1", "f1"]),
        ("tasks.polarity.text_columns", 5),
        ("tasks.polarity.text_columns", ["a", "b", "c"]),
        ("tasks.polarity.label_column", 5),
        ("tasks.polarity.label_names", "neg"),
        ("tasks.polarity.label_names", ["neg"]),
        ("tasks.polarity.label_names", ["neg", "neg"]),
        ("tasks.polarity.max_length", "64"),
        ("tasks.polarity.doc_stride", -3),
        ("tasks.polarity.doc_pooling", "cls"),
        ("tasks.polarity.weight", 0),
        ("tasks.polarity.weight", "x"),
        ("tasks.polarity.weight", None),
        ("tasks.polarity.convergence", 3),
        ("tasks.polarity.convergence", [3]),
        ("tasks.polarity.convergence", {"patience": 0}),
        ("tasks.polarity.data", "train.jsonl"),
        ("convergence", [1]),
        ("convergence", 0),
        ("convergence", {"criterion": "platau"}),
        ("convergence", {"on_convergence": "distil"}),
        ("convergence", {"final_evaluations": -1}),
        ("distillation", {"temperature": 0}),
        ("distillation", {"hard_label_weight": 1.5}),
        ("mixing", {"strategy": "random"}),
        ("mixing", {"temperature": 0.5}),
        ("balancing", {"method": "pcgrd"}),
        ("schedule", {"mode": "later"}),
        ("training", 5),
        ("training", []),
        ("training.learning_rate", "fast"),
        ("training.learning_rate", -1.0),
        ("training.head_learning_rate", 0),
        ("training.per_device_train_batch_size", 0),
        ("training.per_device_train_batch_size", 2.5),
        ("training.per_device_eval_batch_size", -1),
        ("training.gradient_accumulation_steps", 0),
        ("training.num_train_epochs", 0),
        ("training.num_train_epochs", True),
        ("training.eval_steps", 0),
        ("training.eval_steps", "often"),
        ("training.save_steps", -4),
        ("training.save_steps", 5),
        ("training.logging_steps", 0),
        ("training.save_total_limit", 0),
        ("training.bf16", "yes"),
        ("training.use_cpu", 1),
        ("training.lr_scheduler_type", "linaer"),
        ("training.optim", "adam"),
        ("training.report_to", 5),
        ("training.report_to", "no_such_tracker"),
        ("training.output_dir", 5),
        ("training.save_strategy", "epoch"),
    ],
)
def test_a_value_that_does_not_fit_is_told_before_anything_is_loaded(folder, key, value):
    """Upstream takes any value and fails at its first use: in the middle of a run, or not at all."""
    message = refused(folder, {key: value})
    # Upstream's own sentences name the value at least.
    assert any(word in message for word in (key.split(".")[-1], str(value), "polarity"))


@pytest.mark.parametrize(
    "name", ["Polarity", "2nd", "a-b", "a b", "type", "keys", "train", "eval", "test", "average", ""]
)
def test_a_name_that_cannot_be_one_is_refused(folder, name):
    """Names become attributes of a module and keys of a log."""
    tasks = {**task_set_config()["tasks"], name: task_set_config()["tasks"]["polarity"]}
    assert repr(name) in refused(folder, {"tasks": tasks})


@pytest.mark.parametrize("name", [1, True, None])
def test_a_name_that_yaml_made_something_else_is_refused(folder, name):
    """`1:` is a number, and `null:` nothing."""
    tasks = {**task_set_config()["tasks"], name: task_set_config()["tasks"]["polarity"]}
    assert repr(name) in refused(folder, {"tasks": tasks})


def test_tasks_that_would_log_under_one_key_are_refused(folder):
    """`eval_a_macro_f1` would be both, and the last one would win."""
    polarity = task_set_config()["tasks"]["polarity"]
    tasks = {"a": {**polarity, "metrics": ["macro_f1"]}, "a_macro": {**polarity, "metrics": ["f1"]}}
    message = refused(folder, {"tasks": tasks})
    assert "'a_macro_f1'" in message
    assert "Rename" in message


@pytest.mark.parametrize("split", ["validation_x", "validation_x_y"])
def test_a_further_set_that_reads_as_another_task_is_refused(folder, split):
    """The set `polarity_x` of task polarity would replace the one of a task polarity_x, or be scored by its head."""
    polarity = task_set_config()["tasks"]["polarity"]
    section = {**polarity, "data": {**polarity["data"], split: "data/polarity/test.jsonl"}}
    message = refused(folder, {"tasks": {"polarity": section, "polarity_x": polarity}})
    assert f"tasks.polarity.data.{split}" in message
    assert "'polarity_x'" in message


# -- folders ----------------------------------------------------------------------------------------------------------


def test_folders_are_relative_to_the_file(folder, monkeypatch, tmp_path_factory):
    """A configuration must mean the same wherever the command is run."""
    path = write_config(folder, changed({"training.output_dir": "../out"}))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    config = load_config(path)
    assert config.encoder == str(folder / "encoder")
    assert config.sources["polarity"].splits["train"] == folder / "data" / "polarity" / "train.jsonl"
    assert config.output_dir is not None
    assert config.output_dir.resolve() == folder.parent / "out"
    assert "output_dir" not in config.training


def test_folders_may_name_environment_variables(folder, monkeypatch):
    """The encoder, data and output lie elsewhere on every machine."""
    monkeypatch.setenv("SOME_PLACE", str(folder))
    config = load(folder, {"encoder": "${SOME_PLACE}/encoder", "training.output_dir": "$SOME_PLACE/out"})
    assert config.encoder == str(folder / "encoder")
    assert config.output_dir == folder / "out"


@pytest.mark.parametrize("encoder", ["./nope", "../nope", "/nope/nope", "~/nope/nope"])
def test_an_encoder_that_can_only_be_a_folder_must_be_there(folder, encoder):
    """Asked for on the Hub, it would be an id of the wrong form."""
    assert "there is no folder" in refused(folder, {"encoder": encoder})


def test_several_encoders_are_refused(folder):
    """Bug: a list of models, which version 0.1 merged, is a traceback."""
    message = refused(folder, {"encoder": ["encoder", "other"]})
    assert "`encoder` must be a Hub id or a folder; found ['encoder', 'other']." in message


@pytest.mark.parametrize("key", ["encoder", "tasks.polarity.data.train", "training.output_dir"])
def test_a_variable_that_is_not_set_is_named_with_its_key(folder, monkeypatch, key):
    """It would read as a folder of that name."""
    monkeypatch.delenv("SOME_PLACE", raising=False)
    message = refused(folder, {key: "${SOME_PLACE}/x.jsonl"})
    assert "${SOME_PLACE}" in message
    assert key in message


def test_data_of_all_tasks_stands_at_the_top(folder):
    """Bug: one table of several tasks is named once per task; or it replaces the data of a task or a preset."""
    (folder / "table.jsonl").touch()
    top = {"train": "table.jsonl", "validation": {"from_train": 0.1}}
    config = load(folder, {"data": top, "tasks.polarity.data": GONE, "tasks.rte": {"preset": "glue/rte"}})
    assert config.sources["polarity"].splits == {"train": folder / "table.jsonl", "validation": {"from_train": 0.1}}
    assert config.sources["overlap"].splits["train"] == folder / "data" / "overlap" / "train.jsonl"
    assert config.sources["rte"].hub == "nyu-mll/glue"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"train": "none.jsonl", "validation": {"from_train": 0.1}}}, "`data.train`: there is no file"),
        ({"data": {"vaildation": "x"}}, "Unknown key `data.vaildation`"),
        ({"data": "table.jsonl"}, "`data` must name the splits of the task"),
        ({}, "`tasks.polarity` must have `data`, or a `preset` that has it. For one table of several tasks, `data`"),
    ],
)
def test_a_mistake_in_data_of_all_tasks_is_named(folder, changes, message):
    """Bug: the key of a task is blamed, which is not in the file."""
    assert message in refused(folder, {**changes, "tasks.polarity.data": GONE})


def test_data_that_no_task_uses_is_refused(folder):
    """Bug: a table at the top is never read, since each task has data of its own, and nobody says so."""
    top = {"train": "data/overlap/train.jsonl", "validation": {"from_train": 0.1}}
    assert "`data` must be used by a task" in refused(folder, {"data": top})


# -- --set ------------------------------------------------------------------------------------------------------------


def test_settings_change_what_the_file_says(folder):
    """At every level, with values in YAML, also where the file has no such section."""
    config = load(
        folder,
        {},
        "seed=9",
        "training.learning_rate=2e-4",
        "tasks.polarity.max_samples={train: 5}",
        "tasks.polarity.convergence.patience=7",
        "distillation.temperature=4",
        "tasks.overlap.metrics=[spearman, mae]",
        "training.run_name=a=b",
    )
    args = config.arguments(folder / "out")
    assert (config.seed, args.seed, args.learning_rate, args.run_name) == (9, 9, 2e-4, "a=b")
    assert config.sources["polarity"].max_samples == {"train": 5}
    assert config.tasks["overlap"].metrics == ["spearman", "mae"]
    assert args.convergence_of("polarity").patience == 7
    assert args.convergence_of("overlap").patience == 1
    assert args.distillation_config.temperature == 4


def test_the_last_of_two_settings_counts(folder):
    """As in every other command line."""
    assert load(folder, {}, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize("setting", ["seed", "=5", "", "seed=[1"])
def test_a_setting_that_is_none_is_refused(folder, setting):
    """It must not be taken for another key, or for nothing."""
    assert "override" in refused(folder, {}, setting)


@pytest.mark.parametrize("setting", ["sead=1", "training.lr=1", "..=1", "tasks.polarity.lables=[a, b]"])
def test_a_setting_is_checked_as_the_file_is(folder, setting):
    """A misspelt override would be a run with the file's value."""
    assert "Unknown key" in refused(folder, {}, setting)


def test_a_setting_inside_of_a_value_is_refused(folder):
    """`seed.x` makes no sense, and must not pass for a seed."""
    assert "`seed`" in refused(folder, {}, "seed.x=1")
