"""Runs that make their own model, and searches for hyperparameters with Optuna: each trial is a run of its own."""

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from runs import ScriptedTrainer, different, log_of, some_rows, tiny_model, tiny_trainer, weights
from tiny import task_configs, tiny_encoder
from torch import Tensor
from transformers import AutoTokenizer, SchedulerType, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments, ConfigurationError, MultiTaskModel

PAIR = {"polarity": 16, "overlap": 16}
# Polarity is at its best at step 4, overlap at step 8.
SCRIPT = {"polarity": [0.9, 0.4, 0.3], "overlap": [0.1, 0.8, 0.2]}


def new_model() -> Callable[[], MultiTaskModel]:
    """Makes models whose weights are from the global random state, as those of new heads are."""
    config = tiny_model(list(PAIR)).config
    return lambda: MultiTaskModel(copy.deepcopy(config))


def trainer_of(folder: Path, script: Mapping[str, Any] | None = None, **settings: Any) -> ScriptedTrainer:
    return tiny_trainer(folder, PAIR, script, model_init=new_model(), **settings)


class Beginnings(TrainerCallback):
    """Keeps what is there when a run begins."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.rates: list[set[float]] = []
        self.steps: list[int] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.weights.append({name: x.detach().clone() for name, x in kwargs["model"].state_dict().items()})
        self.rates.append({group["initial_lr"] for group in kwargs["optimizer"].param_groups})
        self.steps.append(state.max_steps)


class InOrder(optuna.samplers.RandomSampler):
    """Takes the settings of each trial from a list."""

    def __init__(self, trials: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.trials = trials

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self.trials[trial.number][param_name]


def search(
    trainer: ScriptedTrainer, trials: Sequence[Mapping[str, Any]], **settings: Any
) -> tuple[Any, list[optuna.trial.FrozenTrial]]:
    """Search over these settings, in this order; also returns what Optuna keeps of the trials."""
    choices: dict[str, list[Any]] = {}
    for trial in trials:
        for name, value in trial.items():
            choices.setdefault(name, []).append(value)

    def space(trial: optuna.Trial) -> dict[str, Any]:
        return {name: trial.suggest_categorical(name, choices[name]) for name in trials[trial.number]}

    storage = optuna.storages.InMemoryStorage()
    best = trainer.hyperparameter_search(
        space, n_trials=len(trials), storage=storage, study_name="s", sampler=InOrder(trials), **settings
    )
    return best, optuna.load_study(study_name="s", storage=storage).trials


def told(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "convergence.json").read_text())


def averages(report: Mapping[str, Any]) -> list[float]:
    histories = [[value for _, value in task["history"]] for task in report["tasks"].values()]
    return [sum(values) / len(values) for values in zip(*histories, strict=True)]


# -- model_init -------------------------------------------------------------------------------------------------------


def test_a_run_that_makes_its_model_equals_one_that_is_given_it(tmp_path: Path) -> None:
    """Bug: the loss, the callback or a teacher holds on to the model that was made first, which nobody trains; or
    dropout hangs on how many random numbers the model has drawn."""
    make = new_model()
    torch.manual_seed(7)
    given = tiny_trainer(tmp_path / "given", PAIR, SCRIPT, model=make(), balancing={"method": "pcgrad"})
    given.train()
    made = trainer_of(tmp_path / "made", SCRIPT, balancing={"method": "pcgrad"})
    begun = weights(made)
    made.train()
    assert different(weights(given), weights(made)) == []
    assert log_of(given) == log_of(made)
    assert given.report() == made.report()
    assert {event.event for event in made.schedule.events} == {"converged"}
    # Again: from the beginning, and not from where it ended.
    assert different(begun, weights(made))
    made.train()
    assert different(weights(given), weights(made)) == []
    assert log_of(given) == log_of(made)


def test_a_run_that_makes_its_model_is_resumed(tmp_path: Path) -> None:
    """Bug: what a checkpoint brings is put into the model that was made first."""
    whole = trainer_of(tmp_path, SCRIPT)
    whole.train()
    resumed = trainer_of(tmp_path, SCRIPT)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert different(weights(whole), weights(resumed)) == []
    assert whole.report() == resumed.report()


def same_again() -> Callable[[], MultiTaskModel]:
    model = tiny_model(list(PAIR))
    return lambda: model


def other_tasks() -> Callable[[], MultiTaskModel]:
    tasks = iter([list(PAIR), [*PAIR, "colors"]])
    return lambda: tiny_model(next(tasks))


def other_length() -> Callable[[], MultiTaskModel]:
    short, long = tiny_model(list(PAIR)), tiny_model(list(PAIR))
    long.config.max_length = 40
    models = iter([short, long])
    return lambda: next(models)


@pytest.mark.parametrize(
    ("model_init", "message"),
    [
        (same_again(), "must make a new model at each call; it returned the same one again"),
        (other_tasks(), "must make models of the same `tasks`"),
        (
            other_length(),
            "must make models of the same `max_length`, for which the data are tokenized once; found 40 after 32",
        ),
    ],
)
def test_a_model_that_is_not_new_is_refused(
    model_init: Callable[[], MultiTaskModel], message: str, tmp_path: Path
) -> None:
    """Bug: a trial goes on from the weights of the last one; or the data were tokenized for other tasks."""
    trainer = tiny_trainer(tmp_path, PAIR, model_init=model_init)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        trainer.train()


def test_what_makes_no_model_is_refused(tmp_path: Path) -> None:
    """Bug: a function that forgets to return, or the encoder alone, is a traceback from within."""
    with pytest.raises(ConfigurationError, match="`model_init` must return a MultiTaskModel; found Linear"):
        tiny_trainer(tmp_path, PAIR, model_init=lambda: torch.nn.Linear(1, 1))


# -- searches ---------------------------------------------------------------------------------------------------------


def test_the_best_trial_has_the_greatest_average(tmp_path: Path) -> None:
    """Bug: the objective is the sum of all metrics, losses among them; it is minimized; or it is that of the last
    weights, where the run ends with the best."""
    trainer = trainer_of(tmp_path)
    best, trials = search(trainer, [{"learning_rate": rate} for rate in (1e-6, 3e-3, 1e-3)])
    reports = [told(tmp_path / f"run-{number}") for number in range(3)]
    assert [trial.value for trial in trials] == pytest.approx([max(averages(report)) for report in reports])
    assert best.objective == pytest.approx(max(max(averages(report)) for report in reports))
    assert best.objective > trials[0].value
    assert best.hyperparameters == trials[int(best.run_id)].params


def test_a_trial_is_judged_by_the_weights_that_it_ends_with(tmp_path: Path) -> None:
    """Bug: it is judged by its last evaluation, and the best weights in between count for nothing."""
    _, trials = search(trainer_of(tmp_path / "best", SCRIPT), [{}])
    assert trials[0].value == pytest.approx((0.4 + 0.8) / 2)
    last = trainer_of(tmp_path / "last", SCRIPT, save_strategy="no", load_best_model_at_end=False)
    _, trials = search(last, [{}], compute_objective=lambda metrics: metrics["eval_polarity_accuracy"])
    assert trials[0].value == pytest.approx(0.3)
    assert not [*(tmp_path / "last").rglob("checkpoint-*")]


def test_settings_take_effect_and_are_taken_back(tmp_path: Path) -> None:
    """Bug: a setting is ignored, for it is a section's or was read when the trainer was made; or it stays for the next
    trial, which sets another."""
    seen = Beginnings()
    trainer = trainer_of(tmp_path, SCRIPT, callbacks=[seen])
    before = copy.deepcopy(trainer.args.to_dict())
    temperatures, methods = [], []

    def model_init(trial: optuna.Trial | None) -> MultiTaskModel:
        temperatures.append(trainer.teachers.config.temperature)
        methods.append(trainer.args.balancing_config.method)
        return new_model()()

    trainer.model_init = model_init
    search(
        trainer,
        [
            {"learning_rate": 2e-3, "num_train_epochs": 2, "per_device_train_batch_size": 4, "balancing.method": "uw"},
            {"head_learning_rate": 5e-3, "convergence.patience": 2, "distillation.temperature": 3.0},
            {"convergence.tasks.overlap.patience": 7},
        ],
    )
    assert seen.rates == [{2e-3}, {1e-3, 5e-3}, {1e-3}]
    # 32 rows: 8 steps an epoch of 4 rows, 4 of 8.
    assert seen.steps == [16, 12, 12]
    assert (temperatures, methods) == ([1.0, 3.0, 1.0], ["uw", "sum", "sum"])
    switches = [
        [task["converged_step"] for task in told(tmp_path / f"run-{number}")["tasks"].values()] for number in range(3)
    ]
    assert switches == [[8, 12], [12, None], [8, None]]
    assert trainer.args.to_dict() == before
    for start in seen.weights[1:]:
        assert different(seen.weights[0], start) == []


def test_a_trial_equals_a_plain_run(tmp_path: Path) -> None:
    """Bug: a trial begins with the seed, the batch size or the phases of the one before, and its score is nobody's."""
    found = {"learning_rate": 2e-3, "seed": 3, "per_device_train_batch_size": 4, "convergence.patience": 2}
    trainer = trainer_of(tmp_path / "search")
    _, trials = search(trainer, [{"seed": 11, "num_train_epochs": 1}, found, {"num_train_epochs": 1}])
    plain = trainer_of(
        tmp_path / "plain",
        learning_rate=2e-3,
        seed=3,
        per_device_train_batch_size=4,
        convergence={"patience": 2, "final_evaluations": None},
    )
    plain.train()
    assert trials[1].value == plain.evaluate()["eval_average"]
    assert told(tmp_path / "search" / "run-1") == told(tmp_path / "plain")
    # The settings that were found, in the trainer that has found them.
    trainer.args.update(found)
    trainer.train()
    assert different(weights(trainer), weights(plain)) == []
    assert told(tmp_path / "search") == told(tmp_path / "plain")


def test_trials_keep_to_their_folders(tmp_path: Path) -> None:
    """Bug: a trial overwrites the checkpoints or the report of another, or is taught by its teachers."""
    phases: list[dict[str, str]] = []

    class Phases(TrainerCallback):
        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            phases.append({**trainer.schedule.phases, **trainer.teachers._opened})

    trainer = trainer_of(tmp_path, SCRIPT, callbacks=[Phases()])
    search(trainer, [{"convergence.patience": 1}, {"convergence.patience": 9}])
    assert phases == [dict.fromkeys(PAIR, "learning")] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0", "run-1"]
    for folder, has_teachers in ((tmp_path / "run-0", True), (tmp_path / "run-1", False)):
        assert sorted(path.name for path in folder.iterdir()) == [
            "checkpoint-12",
            "checkpoint-4",
            "checkpoint-8",
            "convergence.json",
        ]
        assert any(folder.glob("checkpoint-12/_teachers/logits-*")) is has_teachers
        state = json.loads((folder / "checkpoint-12" / "trainer_state.json").read_text())
        assert Path(state["best_model_checkpoint"]) == folder / "checkpoint-8"
    named = trainer_of(tmp_path / "named", SCRIPT)
    search(named, [{}], hp_name=lambda trial: f"try-{trial.number}")
    assert (tmp_path / "named" / "try-0" / "convergence.json").is_file()


class PruneSecond(optuna.pruners.BasePruner):
    """Ends the second trial at its second evaluation, when polarity has converged."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number == 1 and trial.last_step == 8


def test_a_pruned_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    """Bug: after a trial that was ended within `train` the next one finds its phases, its teachers or its settings, or
    its files stay; or its report lacks the evaluation that it was ended for."""
    trainer = trainer_of(tmp_path, SCRIPT)
    before = copy.deepcopy(trainer.args.to_dict())
    _, trials = search(
        trainer, [{}, {"learning_rate": 9e-3, "convergence.patience": 1, "seed": 1}, {}], pruner=PruneSecond()
    )
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert told(tmp_path / "run-0") == told(tmp_path / "run-2")
    first, last = (
        torch.load(tmp_path / run / "checkpoint-12" / "optimizer.pt", weights_only=True)["state"]
        for run in ("run-0", "run-2")
    )
    assert all(torch.equal(first[key]["exp_avg"], last[key]["exp_avg"]) for key in first)
    pruned = told(tmp_path / "run-1")
    assert [step for step, _ in pruned["tasks"]["polarity"]["history"]] == [4, 8]
    assert pruned["tasks"]["polarity"]["phase"] == "distilling"
    assert not (tmp_path / "run-1" / "_teachers").exists()
    assert trainer.args.to_dict() == before
    # As the last one, too.
    search(trainer, [{}, {}], pruner=PruneSecond())
    assert not trainer.is_in_train
    trainer.train()
    assert told(tmp_path)["tasks"] == told(tmp_path / "run-0")["tasks"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"convergence.patienc": 2},
            "Unknown key `convergence.patienc`. The nearest known key is `patience`",
        ),
        ({"learning_rat": 1e-3}, "Unknown key `learning_rat`. The nearest known key is `learning_rate`"),
        ({"label_smoothing_factor": 0.1}, "`training.label_smoothing_factor` has no effect here"),
        ({"convergence.tasks.colors.patience": 2}, "`convergence.tasks` must name tasks of the model"),
        ({"distillation.teachers.polarity": "x"}, "must name the tasks that it named when the trainer was made"),
        ({"head_learning_rate": -1.0}, "`training.head_learning_rate` must be a number above 0; found -1.0"),
    ],
)
def test_a_setting_that_does_not_fit_ends_the_search(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Bug: a misspelt setting is a warning, and all trials of a night are the same one."""
    trainer = trainer_of(tmp_path)
    before = copy.deepcopy(trainer.args.to_dict())
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        search(trainer, [settings])
    assert trainer.args.to_dict() == before
    assert trainer.hp_search_backend is None
    assert not tmp_path.joinpath("run-0").exists()


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"backend": "ray"}, "`backend` must be optuna; found 'ray'"),
        ({}, {"n_jobs": 2}, "A search must run in one job"),
        ({"push_to_hub": True}, {}, "A search must not push"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(
    settings: dict[str, Any], arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Bug: two trials train one model at once; a trial's teachers go to the Hub; another backend fails midway."""
    trainer = trainer_of(tmp_path)
    trainer.args.update(settings)
    with pytest.raises(ConfigurationError, match=message):
        trainer.hyperparameter_search(n_trials=1, **arguments)


def test_a_search_needs_a_function(tmp_path: Path) -> None:
    """Bug: the second trial goes on with the weights of the first."""
    with pytest.raises(ConfigurationError, match="A search needs a new model for each trial, and this trainer has one"):
        tiny_trainer(tmp_path, PAIR).hyperparameter_search(n_trials=1)


def test_the_search_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the README's search names what is not there, or the model that it ends with is not the trial's."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "hyperparameter_search" in block
    )
    encoder = tiny_encoder(tmp_path / "encoder", max_position_embeddings=128)
    short = {
        "google-bert/bert-base-uncased": encoder,
        "n_trials=20": "n_trials=2",
        "eval_steps=200": "eval_steps=4, max_steps=8, use_cpu=True, disable_tqdm=True",
    }
    for long, replacement in short.items():
        assert long in code
        code = code.replace(long, replacement)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        **{item.__name__: item for item in (AsyncMTLTrainer, AsyncMTLTrainingArguments, MultiTaskModel, AutoTokenizer)},
        "tasks": {name: task_configs()[name] for name in PAIR},
        "train": some_rows(PAIR),
        "validation": some_rows(PAIR, seed=1),
    }
    exec(code, names)
    best = names["best"]
    assert told(tmp_path / "runs" / "best") == told(tmp_path / "runs" / "search" / f"run-{best.run_id}")


# -- settings by name -------------------------------------------------------------------------------------------------


def test_arguments_are_updated_as_a_whole_or_not_at_all() -> None:
    """Bug: half of the settings are taken over; a word stands where upstream has an enumeration; or the section that
    was given is changed, which another run shares."""
    section = {"patience": 3, "tasks": {"polarity": {"patience": 4}}}
    args = AsyncMTLTrainingArguments("out", convergence=section, use_cpu=True)
    before = dict(vars(args))
    with pytest.raises(ConfigurationError, match=r"`distillation\.temperature` must be a number above 0; found 0"):
        args.update({"learning_rate": 1.0, "distillation.temperature": 0})
    with pytest.raises(ConfigurationError, match="`output_dir` must be a section, for a key in it to be set; found"):
        args.update({"learning_rate": 1.0, "output_dir.x": 0})
    with pytest.raises(ConfigurationError, match="`bf16` must be given when the arguments are made"):
        args.update({"learning_rate": 1.0, "bf16": True})
    with pytest.raises(ValueError, match="no_such"):
        args.update({"learning_rate": 1.0, "lr_scheduler_type": "no_such"})
    assert vars(args) == before
    args.update(
        {"lr_scheduler_type": "cosine", "convergence.tasks.polarity.patience": 9, "distillation.label_share": 1}
    )
    assert args.lr_scheduler_type is SchedulerType.COSINE
    assert args.convergence_of("polarity").patience == 9
    assert args.convergence_of("overlap").patience == 3
    assert args.distillation_config.label_share == 1
    assert section == {"patience": 3, "tasks": {"polarity": {"patience": 4}}}
