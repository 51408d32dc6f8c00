"""The Trainer around the phases: what it evaluates, logs, writes and refuses."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from runs import ALL, ScriptedTrainer, different, log_of, some_rows, tiny_model, tiny_trainer, weights
from tiny import raw_sets, task_configs, tiny_tokenizer
from torch import Tensor
from transformers import EvalPrediction, TrainingArguments
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_async_mtl import AsyncMTLTrainer, AsyncMTLTrainingArguments, ConfigurationError, MultiTaskModel, TaskConfig
from hf_async_mtl.data.sampler import MultiTaskSampler
from hf_async_mtl.training.arguments import REFUSED
from hf_async_mtl.training.inputs import check_best_metric

PAIR = {"polarity": 8, "overlap": 8}
ONE_EVALUATION: dict[str, Any] = {"num_train_epochs": 1, "eval_steps": 2, "logging_steps": 2}


def told(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON.")

    return json.loads((folder / "convergence.json").read_text(), parse_constant=refuse)


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_looks_at_every_example_once(tmp_path: Path) -> None:
    """Bug: a last batch that is smaller weighs as much as the others, or is filled up with examples again."""
    evaluation = some_rows(dict.fromkeys(ALL, 7), seed=1)
    trainer = tiny_trainer(
        tmp_path, dict.fromkeys(ALL, 4), evaluation=evaluation, per_device_eval_batch_size=4, balancing={}
    )
    metrics = trainer.evaluate()
    model = trainer.model.eval()
    for name in ALL:
        losses = []
        for example in range(7):
            batch = trainer.data_collator([trainer.eval_dataset[name][example]])
            batch.pop("example_ids")
            with torch.no_grad():
                losses.append(model(**batch).loss.item())
        assert metrics[f"eval_{name}_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    # By plain calls, one text at a time: the same answers, each held against its own label.
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        scores = [
            model(**tokenizer(row["left"], row["right"], return_tensors="pt"), tasks=["overlap"])
            .logits["overlap"]
            .item()
            for row in evaluation["overlap"]
        ]
    expected = np.corrcoef(scores, evaluation["overlap"]["score"])[0, 1]
    assert metrics["eval_overlap_pearson"] == pytest.approx(expected, abs=1e-4)
    monitored = [metrics[f"eval_{name}_{task.monitored}"] for name, task in trainer.tasks.items()]
    assert metrics["eval_average"] == pytest.approx(np.mean(monitored))


def test_the_evaluation_batch_changes_nothing(tmp_path: Path) -> None:
    """Bug: predictions are paired with the labels of other examples, or the padding of tokens is scored."""
    results = []
    for size in (1, 3, 8):
        trainer = tiny_trainer(tmp_path, dict.fromkeys(ALL, 4), per_device_eval_batch_size=size)
        metrics = trainer.evaluate(some_rows(dict.fromkeys(ALL, 8), seed=3), metric_key_prefix="test")
        results.append({k: v for k, v in metrics.items() if not k.endswith(("runtime", "second", "time"))})
    # Rounding, which the correlation of nearly equal predictions makes larger.
    assert results[1] == pytest.approx(results[0], abs=1e-4)
    assert results[2] == pytest.approx(results[0], abs=1e-4)
    assert {"test_average", "test_answer_squad_f1", "test_colors_loss"} <= results[0].keys()


def test_further_sets_are_reported_and_not_averaged(tmp_path: Path) -> None:
    """Bug: MNLI's mismatched split counts as a task: in the average, or for convergence."""
    sets = some_rows({"polarity": 5, "overlap": 5}, seed=1)
    # Five rows, right where the others are wrong: the two scores differ.
    hard = sets["polarity"].map(lambda row: {"label": {"pos": "neg", "neg": "pos"}[row["label"]]})
    trainer = tiny_trainer(tmp_path, PAIR, evaluation={"polarity_hard": hard, **sets}, **ONE_EVALUATION)
    trainer.train()
    found = {key: value for entry in log_of(trainer) for key, value in entry.items()}
    assert found["eval_polarity_hard_accuracy"] == pytest.approx(1 - found["eval_polarity_accuracy"])
    assert found["eval_average"] == pytest.approx((found["eval_polarity_accuracy"] + found["eval_overlap_pearson"]) / 2)
    assert told(tmp_path)["tasks"]["polarity"]["history"] == [[2, found["eval_polarity_accuracy"]]]
    assert told(tmp_path)["tasks"].keys() == {"polarity", "overlap"}


def test_explicit_sets_are_not_mixed_up(tmp_path: Path) -> None:
    """Bug: with persistent workers the parent keeps one loader for all sets that it is given, the first one's."""
    sets = some_rows({"polarity": 6, "overlap": 4}, seed=1)
    plain = tiny_trainer(tmp_path, PAIR).evaluate(sets)
    kept = tiny_trainer(tmp_path, PAIR, dataloader_num_workers=1, dataloader_persistent_workers=True)
    for _ in range(2):
        found = kept.evaluate(sets)
        for key in ("eval_polarity_loss", "eval_overlap_loss", "eval_polarity_accuracy", "eval_average"):
            assert found[key] == pytest.approx(plain[key], abs=1e-6)


def test_a_trainer_evaluates_without_sets_of_its_own(tmp_path: Path) -> None:
    """Bug: to score a model on a test split one must invent a training set, or a validation set."""
    trainer = AsyncMTLTrainer(
        model=tiny_model(["polarity"]),
        args=AsyncMTLTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        processing_class=tiny_tokenizer(),
    )
    metrics = trainer.evaluate(some_rows({"polarity": 6}), metric_key_prefix="test")
    assert metrics["test_average"] == metrics["test_polarity_accuracy"]
    with pytest.raises(ConfigurationError, match=r"must have a set of a task \(polarity\); found none"):
        trainer.evaluate()
    with pytest.raises(ConfigurationError, match="found polarity_hard"):
        trainer.evaluate({"polarity_hard": some_rows({"polarity": 6})["polarity"]})
    with pytest.raises(ConfigurationError, match="`train_dataset` and `eval_dataset`"):
        trainer.train()


# -- metrics of the user's own ----------------------------------------------------------------------------------------


def test_a_function_sees_the_logits_and_labels_of_its_task(tmp_path: Path) -> None:
    """Bug: a function is called with another task's examples, in another order, or with padding that it cannot tell."""
    seen: dict[str, EvalPrediction] = {}

    def function(name: str) -> Callable[[EvalPrediction], dict[str, float]]:
        def own(prediction: EvalPrediction) -> dict[str, float]:
            seen[name] = prediction
            return {"own": float(len(prediction.label_ids))}

        return own

    names = list(task_configs())
    evaluation = {**raw_sets(6, 1), "polarity_again": raw_sets(4, 2)["polarity"]}
    trainer = AsyncMTLTrainer(
        model=tiny_model(names),
        args=AsyncMTLTrainingArguments(
            str(tmp_path),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            per_device_eval_batch_size=4,
            metric_for_best_model="topics_own",
        ),
        processing_class=tiny_tokenizer(),
        train_dataset=raw_sets(6),
        eval_dataset=evaluation,
        compute_metrics={name: function(name) for name in names},
    )
    metrics = trainer.evaluate({name: rows for name, rows in evaluation.items() if name in names})
    assert all(metrics[f"eval_{name}_own"] == 6 for name in names)
    polarity, overlap, colors, topics = (seen[name] for name in ("polarity", "overlap", "colors", "topics"))
    rows = raw_sets(6, 1)
    assert polarity.label_ids.tolist() == [["neg", "pos"].index(label) for label in rows["polarity"]["label"]]
    right = (polarity.predictions.argmax(-1) == polarity.label_ids).mean()
    assert metrics["eval_polarity_accuracy"] == pytest.approx(right)
    assert overlap.label_ids.tolist() == rows["overlap"]["score"]
    assert topics.label_ids.shape == topics.predictions.shape == (6, 3)
    assert colors.label_ids.shape == colors.predictions.shape[:2]
    assert [sum(row != -100) for row in colors.label_ids] == [len(tokens) for tokens in rows["colors"]["tokens"]]
    assert seen["answer"].label_ids == [answers["text"] for answers in rows["answer"]["answers"]]
    assert trainer.evaluate({"polarity": rows["polarity"].select([0])})["eval_polarity_own"] == 1


# -- the log ----------------------------------------------------------------------------------------------------------


def test_each_task_has_its_training_loss_in_the_log(tmp_path: Path) -> None:
    """Bug: a task's curve is that of another, a sum instead of a mean, or goes on from one window to the next."""
    sizes = {"polarity": 12, "overlap": 8, "colors": 4}
    trainer = tiny_trainer(tmp_path, sizes, logging_steps=3, eval_steps=3, num_train_epochs=3)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 3
    for entry in entries:
        # A window is an epoch: each example once, all steps of one size.
        assert entry["loss"] == pytest.approx(sum(entry[f"{n}_loss"] * size for n, size in sizes.items()) / 24)
    assert entries[0]["polarity_loss"] == pytest.approx(math.log(2), rel=0.2)


def spoil(trainer: ScriptedTrainer, task: str, after: int, value: float) -> None:
    """The task's loss becomes a number of no use after so many optimizer steps."""
    head: Any = trainer.model.heads[task]
    real = head.loss

    def loss(logits: Tensor, labels: Tensor, layout: Any) -> Tensor:
        losses = real(logits, labels, layout)
        return losses * value if trainer.model.training and trainer.state.global_step >= after else losses

    head.loss = loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("task", ["polarity", "overlap"])
def test_a_loss_that_is_not_finite_names_its_task(tmp_path: Path, task: str, value: float) -> None:
    """Bug: one task's NaN spoils all weights, and the first task is blamed; or the parent's filter hides it all."""
    trainer = tiny_trainer(tmp_path, PAIR, logging_steps=4, eval_steps=100, num_train_epochs=4)
    spoil(trainer, task, after=1, value=value)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    words = f"Every training loss must be finite; found task '{task}': {value} for the training examples "
    assert str(error.value).startswith(words)
    assert "at step 2, before any weight was changed." in str(error.value)
    # Those of the batch, of this task and no other.
    order = list(MultiTaskSampler(list(PAIR.values()), 7))[8:16]
    first = 0 if task == "polarity" else PAIR["polarity"]
    own = sorted(i - first for i in order if first <= i < first + PAIR[task])
    assert str(error.value)[len(words) :].split(" (indices")[0] == ", ".join(map(str, own))
    assert all(tensor.isfinite().all() for tensor in weights(trainer).values())


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """Bug: a loss is finite and its gradient is not, as at the square root of 0, and all weights become NaN."""
    trainer = tiny_trainer(tmp_path, PAIR)
    head: Any = trainer.model.heads["polarity"]
    real = head.loss
    head.loss = lambda *args: real(*args) + (real(*args) * 0).sqrt()
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match="its norm is nan, though every loss is finite, at step 1, before any"):
        trainer.train()
    assert different(before, weights(trainer)) == []


def test_a_gradient_whose_norm_overflows_ends_the_run(tmp_path: Path) -> None:
    """Bug: clipping by an infinite norm makes every gradient 0, and what is checked after it looks finite."""
    trainer = tiny_trainer(tmp_path, PAIR)
    before = weights(trainer)
    next(trainer.model.encoder.parameters()).register_hook(lambda gradient: gradient * 0 + 1e30)
    with pytest.raises(FloatingPointError, match="its norm is inf, though every loss is finite, at step 1, before any"):
        trainer.train()
    assert different(before, weights(trainer)) == []


@pytest.mark.parametrize("is_deferred", [False, True])
@pytest.mark.parametrize("step", [3, 4])
def test_a_loss_that_is_not_finite_writes_no_checkpoint(tmp_path: Path, is_deferred: bool, step: int) -> None:
    """Bug: where the log is rare, useless weights are evaluated, kept as a teacher's, and saved to resume from."""
    trainer = tiny_trainer(tmp_path, PAIR, logging_steps=100, eval_steps=2, num_train_epochs=4)
    # On a GPU the check is made one step later, or before an evaluation.
    trainer.multi_task_loss.finite.is_deferred = is_deferred
    spoil(trainer, "overlap", after=step - 1, value=math.nan)
    when = "found after it: the weights are spoiled" if is_deferred else "before any weight was changed"
    with pytest.raises(FloatingPointError, match=rf"task 'overlap': nan for .* at step {step}, {when}"):
        trainer.train()
    assert trainer.state.global_step == (4 if is_deferred else step) - (step == 3 or not is_deferred)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


class SaveAt(TrainerCallback):
    """A user's callback: it wants an evaluation and a checkpoint at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_evaluate = control.should_save = True


def test_a_checkpoint_that_a_callback_asks_for_is_checked_too(tmp_path: Path) -> None:
    """Bug: a callback that comes after ours saves weights that are not finite, and the run resumes from them."""
    trainer = tiny_trainer(tmp_path, PAIR, logging_steps=100, eval_steps=2, num_train_epochs=4)
    trainer.multi_task_loss.finite.is_deferred = True
    trainer.add_callback(SaveAt(3))
    spoil(trainer, "overlap", after=2, value=math.nan)
    with pytest.raises(FloatingPointError, match="at step 3, found after it"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_second_run_does_not_check_the_last_step_of_the_first(tmp_path: Path) -> None:
    """Bug: a run that was interrupted after a bad step ends the next one, which is sound."""
    trainer = tiny_trainer(tmp_path, PAIR, max_steps=2, eval_steps=2)
    finite = trainer.multi_task_loss.finite
    finite.is_deferred = True
    finite.add("overlap", torch.tensor([math.nan]), [0])
    finite.check(trainer.accelerator, 7, 1.0)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_batch_of_another_collator(tmp_path: Path) -> None:
    """Bug: a collator of the user's ends the run with a KeyError."""
    trainer = tiny_trainer(tmp_path, PAIR)
    collate = trainer.data_collator
    trainer.data_collator = lambda examples: {k: v for k, v in collate(examples).items() if k != "host"}
    with pytest.raises(ValueError, match="A batch must have `host`, a `HostBatch`"):
        trainer.train()


@pytest.mark.parametrize("balancing", ["uw", "pcgrad"])
def test_a_balanced_loss_that_is_not_finite_ends_the_run(tmp_path: Path, balancing: str) -> None:
    """Bug: a balancing method fails on a NaN before the task and its examples are named."""
    trainer = tiny_trainer(tmp_path, PAIR, balancing={"method": balancing}, gradient_accumulation_steps=2)
    spoil(trainer, "overlap", after=1, value=math.nan)
    with pytest.raises(FloatingPointError, match=r"task 'overlap': nan for the training examples .* at step"):
        trainer.train()


# -- what a run leaves ------------------------------------------------------------------------------------------------


def test_the_best_average_is_loaded(tmp_path: Path) -> None:
    """Bug: the run ends with the last weights, or with those that were best on a single task."""
    script = {"polarity": [0.1, 0.9, 0.1, 0.1], "overlap": [0.2, 0.3, 0.9, 0.1]}
    trainer = tiny_trainer(tmp_path, PAIR, script, num_train_epochs=4, eval_steps=2, convergence={"patience": 9})
    trainer.train()
    saved = MultiTaskModel.from_pretrained(tmp_path / "checkpoint-4")
    assert different(weights(trainer), saved.state_dict()) == []
    final = told(tmp_path)["final"]
    assert (final["step"], final["average"]) == (4, pytest.approx(0.6))
    assert final["tasks"]["overlap"] == {"value": 0.3, "retention": pytest.approx(0.3 / 0.9)}


def test_final_speaks_of_the_weights_that_are_saved(tmp_path: Path) -> None:
    """Bug: `final` has the figures of another step than that of the saved weights."""
    evaluation = some_rows(dict.fromkeys(ALL, 16), seed=1)
    trainer = tiny_trainer(
        tmp_path, dict.fromkeys(ALL, 24), evaluation=evaluation, eval_steps=6, num_train_epochs=3, learning_rate=3e-3
    )
    trainer.train()
    trainer.save_model()
    model = MultiTaskModel.from_pretrained(tmp_path)
    again = tiny_trainer(tmp_path / "again", dict.fromkeys(ALL, 4), model=model, evaluation=evaluation).evaluate()
    final = told(tmp_path)["final"]
    for name, task in trainer.tasks.items():
        assert final["tasks"][name]["value"] == pytest.approx(again[f"eval_{name}_{task.monitored}"], abs=1e-9)
    assert final["average"] == pytest.approx(again["eval_average"])


def test_a_best_evaluation_without_a_checkpoint(tmp_path: Path) -> None:
    """Bug: `final` names the step of the best evaluation, whose weights nobody kept."""
    script = {"polarity": [0.1, 0.5, 0.9, 0.2], "overlap": [0.1, 0.5, 0.9, 0.2]}
    settings: dict[str, Any] = {"eval_steps": 2, "save_steps": 4, "convergence": {"patience": 9}}
    trainer = tiny_trainer(tmp_path / "a", PAIR, script, num_train_epochs=4, **settings)
    trainer.train()
    assert told(tmp_path / "a")["final"]["step"] == 4
    saved = MultiTaskModel.from_pretrained(tmp_path / "a" / "checkpoint-4")
    assert different(weights(trainer), saved.state_dict()) == []
    # And what a later checkpoint brings to another folder are these.
    resumed = tiny_trainer(tmp_path / "b", PAIR, script, num_train_epochs=4, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-8"))
    assert different(weights(trainer), weights(resumed)) == []
    assert told(tmp_path / "b") == told(tmp_path / "a")


def test_the_end_by_convergence_is_saved(tmp_path: Path) -> None:
    """Bug: the run ends between two checkpoints, and its last and best weights are lost."""
    script = {"polarity": [0.5, 0.4, 0.9], "overlap": [0.5, 0.4, 0.9]}
    trainer = tiny_trainer(
        tmp_path,
        PAIR,
        script,
        num_train_epochs=6,
        eval_steps=2,
        save_steps=4,
        convergence={"patience": 1, "final_evaluations": 1},
    )
    trainer.train()
    assert trainer.state.global_step == 6
    assert told(tmp_path)["final"]["step"] == 6
    assert (tmp_path / "checkpoint-6" / "trainer_state.json").is_file()


def test_the_last_weights_are_evaluated(tmp_path: Path) -> None:
    """Bug: without `load_best_model_at_end`, `final` has the figures of the last evaluation before the end."""
    trainer = tiny_trainer(
        tmp_path,
        PAIR,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="no",
        load_best_model_at_end=False,
        max_steps=5,
    )
    trainer.train()
    assert trainer.state.global_step == 5
    final = told(tmp_path)["final"]
    metrics = trainer.evaluate()
    assert final["step"] == 5
    assert final["tasks"]["polarity"]["value"] == metrics["eval_polarity_accuracy"]


def test_plain_training_ends_with_an_answer(tmp_path: Path) -> None:
    """Only distilling runs kept the noise of their evaluations; or that of weights evaluated at the end was missing."""
    settings: Any = {"save_strategy": "no", "load_best_model_at_end": False, "max_steps": 11, "eval_steps": 2}
    plain = {"criterion": "plateau", "on_convergence": "continue"}
    trainer = tiny_trainer(tmp_path, {"polarity": 16}, convergence=plain, **settings)
    trainer.train()
    assert told(tmp_path)["final"]["step"] == 11
    diagnosis = told(tmp_path)["diagnosis"]
    assert diagnosis["answer"].startswith(("Nothing to hold was found: ", "Something to hold: "))
    assert all(value is not None for value in diagnosis["tasks"]["polarity"].values())


def test_convergence_json(tmp_path: Path) -> None:
    """Bug: the file is not JSON where a metric is undefined, or not what its readers expect."""
    script = {"polarity": [0.5, 0.4, math.nan, 0.6], "overlap": [math.nan, math.nan, 0.2, math.nan]}
    trainer = tiny_trainer(tmp_path, PAIR, script, num_train_epochs=4, eval_steps=2)
    trainer.train()
    found = told(tmp_path)
    diagnosis = found.pop("diagnosis")
    assert trainer.report()["diagnosis"] == diagnosis
    assert diagnosis["something_to_hold"] is None
    assert diagnosis["answer"].startswith("Not known: ")
    assert [*diagnosis["tasks"]["polarity"]] == ["peak_step", "fall_z", "headroom", "headroom_error"]
    assert diagnosis["tasks"]["polarity"]["peak_step"] == 2
    assert found == {
        "version": 1,
        "step": 8,
        "average": None,
        "tasks": {
            "polarity": {
                "type": "classification",
                "metric": "accuracy",
                "phase": "distilling",
                "teacher_value": 0.5,
                "teacher_step": 2,
                "converged_step": 4,
                "best": 0.6,
                "best_step": 8,
                "last": 0.6,
                "history": [[2, 0.5], [4, 0.4], [6, None], [8, 0.6]],
            },
            "overlap": {
                "type": "regression",
                "metric": "pearson",
                "phase": "distilling",
                "teacher_value": 0.2,
                "teacher_step": 6,
                "converged_step": 8,
                "best": 0.2,
                "best_step": 6,
                "last": None,
                "history": [[2, None], [4, None], [6, 0.2], [8, None]],
            },
        },
        "events": [
            {"step": 4, "task": "polarity", "event": "converged", "teacher_step": 2},
            {"step": 8, "task": "overlap", "event": "converged", "teacher_step": 6},
        ],
        # The best average has accuracy's worst value for the undefined one: 0.1, against -0.25 at step 2.
        "final": {
            "step": 6,
            "average": None,
            "tasks": {"polarity": {"value": None, "retention": None}, "overlap": {"value": 0.2, "retention": 1.0}},
        },
    }


class Watcher(TrainerCallback):
    """Looks into the output folder at every save."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(told(Path(args.output_dir)))


def test_convergence_json_is_written_at_every_evaluation(tmp_path: Path) -> None:
    """Bug: a running run cannot be looked at, or shows `final` before its end; teachers stay behind after it."""
    watcher = Watcher()
    script = {"polarity": [0.5, 0.4], "overlap": [0.5, 0.6, 0.7]}
    trainer = tiny_trainer(tmp_path, PAIR, script, callbacks=[watcher], eval_steps=2)
    trainer.train()
    assert [report["step"] for report in watcher.seen] == [2, 4, 6]
    assert not any("final" in report for report in watcher.seen)
    assert watcher.seen[1]["tasks"]["polarity"]["phase"] == "distilling"
    assert "final" in told(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "convergence.json",
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    }


# -- learning rates ---------------------------------------------------------------------------------------------------


def test_heads_have_a_learning_rate_of_their_own(tmp_path: Path) -> None:
    """Bug: a parameter is in two groups or in none, decays where it must not, or the schedule leaves the heads out."""
    trainer = tiny_trainer(
        tmp_path,
        PAIR,
        learning_rate=1e-3,
        head_learning_rate=1e-2,
        weight_decay=0.1,
        max_steps=4,
        save_strategy="no",
        load_best_model_at_end=False,
    )
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    trainer.create_optimizer_and_scheduler(10)
    groups = trainer.optimizer.param_groups
    found = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (1e-2 if name.startswith("heads.") else 1e-3)
            plain = name.endswith("bias") or "LayerNorm" in name
            assert group["weight_decay"] == (0.0 if plain else 0.1), name
    for _ in range(5):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert sorted({group["lr"] for group in groups}) == pytest.approx([5e-4, 5e-3])


@pytest.mark.parametrize(("rate", "groups"), [(None, [1e-3, 1e-3]), (1e-2, [1e-3, 1e-3, 1e-2, 1e-2])])
def test_a_run_has_the_learning_rates_that_are_set(tmp_path: Path, rate: float | None, groups: list[float]) -> None:
    """Bug: heads are split off where nobody asked for it, or are not in a run."""
    trainer = tiny_trainer(tmp_path, PAIR, head_learning_rate=rate, max_steps=1, eval_steps=1)
    trainer.train()
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == groups


# -- what is refused --------------------------------------------------------------------------------------------------

WITHOUT_EFFECT = {
    "label_smoothing_factor": 0.1,
    "remove_unused_columns": True,
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "auto_find_batch_size": True,
    "label_names": ["labels"],
    "prediction_loss_only": True,
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "include_for_metrics": ["loss"],
    "use_liger_kernel": True,
    "do_train": True,
    "do_predict": True,
    "resume_from_checkpoint": "checkpoint-8",
    "ddp_find_unused_parameters": True,
}


def test_the_list_of_refused_fields_is_whole() -> None:
    """Bug: a field is refused that upstream no longer has, or one is left out of the test below."""
    assert WITHOUT_EFFECT.keys() == REFUSED.keys()
    assert REFUSED.keys() <= {item.name for item in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_field_without_effect_is_refused(name: str, tmp_path: Path) -> None:
    """Bug: the user sets a field, it does nothing, and nobody says so."""
    with pytest.raises(ConfigurationError, match=f"`training.{name}` has no effect here: .* Remove the key"):
        AsyncMTLTrainingArguments(str(tmp_path), **{name: WITHOUT_EFFECT[name]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hub_strategy": "checkpoint"}, "would upload the teachers"),
        ({"hub_strategy": "all_checkpoints"}, "would upload the teachers"),
        ({"eval_strategy": "no"}, "must be steps or epoch: convergence is decided on evaluations; found 'no'"),
        ({"head_learning_rate": 0}, "head_learning_rate` must be a number above 0, or null; found 0"),
        ({"convergence": {"patiance": 2}}, "Unknown key `convergence.patiance`. The nearest known key is `patience`"),
        ({"convergence": {"patience": 0}}, "`convergence.patience` must be a whole number of at least 1"),
        ({"convergence": {"tasks": ["polarity"]}}, "`convergence.tasks` must be a mapping"),
        ({"convergence": [1]}, "`convergence` must be a mapping"),
        ({"distillation": {"temperature": 0}}, "`distillation.temperature` must be a number above 0; found 0"),
        (
            {"distillation": {"hard_label_weight": 1.1}},
            "`distillation.hard_label_weight` must be a number from 0 to 1; found 1.1",
        ),
        ({"distillation": {"hardlabelweight": 1}}, "nearest known key is `hard_label_weight`"),
        ({"mixing": {"strategy": "random"}}, "`mixing.strategy` must be one of proportional, temperature, uniform"),
        ({"mixing": {"temperature": "2"}}, "`mixing.temperature` must be a number of at least 1; found '2'"),
        ({"balancing": {"method": "pcgrd"}}, "The nearest is 'pcgrad'."),
        ({"balancing": {"weights": {"polarity": -1}}}, "`tasks.polarity.weight` must be a number above 0; found -1"),
        ({"balancing": {"weights": 2}}, "`balancing.weights` must be a mapping; found 2"),
        ({"schedule": {"mode": "parallel"}}, "`schedule.mode` must be one of joint, sequential; found 'parallel'"),
    ],
)
def test_a_wrong_value_is_refused_in_words(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Bug: a slip in a section is ignored, or found hours later by a traceback."""
    with pytest.raises(ConfigurationError) as caught:
        AsyncMTLTrainingArguments(str(tmp_path), **settings)
    assert message in str(caught.value)


def test_sections_may_come_as_json(tmp_path: Path) -> None:
    """Bug: on a command line, where a section is a string, it is taken for a dictionary or for nothing."""
    args = AsyncMTLTrainingArguments(
        str(tmp_path), convergence='{"patience": 7, "tasks": {"polarity": {"patience": 2}}}', use_cpu=True
    )
    assert (args.convergence_of("overlap").patience, args.convergence_of("polarity").patience) == (7, 2)


def test_the_defaults_differ_from_upstream_where_the_contract_says() -> None:
    """Bug: a run without settings evaluates never, saves at other steps, or ends with its last weights."""
    args = AsyncMTLTrainingArguments("out", eval_steps=30, use_cpu=True)
    assert (args.eval_strategy, args.save_strategy, args.save_steps) == ("steps", "steps", 30)
    assert (args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better) == (True, "average", True)
    assert args.final_evaluations == 3


def build(**changes: Any) -> AsyncMTLTrainer:
    train, evaluation = some_rows(PAIR), some_rows(PAIR, seed=1)
    given: dict[str, Any] = {
        "model": tiny_model(list(PAIR)),
        "processing_class": tiny_tokenizer(),
        "train_dataset": train,
        "eval_dataset": evaluation,
        **changes,
    }
    return AsyncMTLTrainer(**given)


def without_padding() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    return tokenizer


def rows(**columns: Any) -> Dataset:
    return Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": torch.nn.Linear(1, 1)}, "`model` must be a MultiTaskModel; found Linear. Make one with"),
        ({"model": None}, "`model` must be a MultiTaskModel; found NoneType"),
        (
            {"processing_class": without_padding()},
            "The tokenizer must have a pad token; that of '' has none. Set one, as in `tokenizer.pad_token = tok",
        ),
        ({"processing_class": None}, "`processing_class` must be the encoder's tokenizer; found None"),
        ({"data_collator": list}, "`data_collator` has no effect here"),
        (
            {"compute_metrics": len},
            "`compute_metrics` must be a dictionary: task -> function of an EvalPrediction; each",
        ),
        ({"compute_metrics": {"polarity": "f1"}}, "found dict. Write {name: function}"),
        ({"compute_metrics": {"colors": len}}, "`compute_metrics` must name tasks (polarity, overlap); found 'colors'"),
        ({"compute_loss_func": len}, "`compute_loss_func` has no effect here"),
        ({"model_init": len}, "`model_init` is not supported: give the `model` itself. To search for hyperparameters"),
        ({"preprocess_logits_for_metrics": len}, "`preprocess_logits_for_metrics` has no effect here"),
        (
            {"train_dataset": some_rows({"polarity": 4})},
            "`train_dataset` must have a set for each of polarity, overlap",
        ),
        ({"eval_dataset": some_rows({"overlap": 4})}, "`eval_dataset` must have a set for each of polarity, overlap"),
        ({"train_dataset": some_rows({**PAIR, "colors": 4})}, "must name tasks of the model (polarity, overlap)"),
        ({"eval_dataset": some_rows({**PAIR, "colors": 4})}, "named as a task (polarity, overlap) or <task>_<suffix>"),
        (
            {"train_dataset": some_rows(PAIR)["polarity"]},
            "must be a dictionary: task -> datasets.Dataset; found Dataset",
        ),
        ({"eval_dataset": {"polarity": [], "overlap": []}}, "found polarity: list, overlap: list"),
        (
            {"train_dataset": {**some_rows(PAIR), "overlap": some_rows(PAIR)["overlap"].to_iterable_dataset()}},
            "found polarity: Dataset, overlap: IterableDataset. Write the part of a stream to train on to disk with "
            "`Dataset.from_generator(partial(iter, stream.take(100_000)))`, as `scripts/examples/streaming.py` does.",
        ),
        (
            {"eval_dataset": {**some_rows(PAIR), "overlap": some_rows(PAIR)["overlap"].select([])}},
            "`eval_dataset` of task 'overlap' must have rows; found none",
        ),
        (
            {"train_dataset": {**some_rows(PAIR), "polarity": rows(text=["a"], target=["pos"])}},
            "Task 'polarity' reads the column 'label'; its data has text, target",
        ),
        (
            {"train_dataset": {**some_rows(PAIR), "polarity": rows(text=["a"], label=["so-so"])}},
            "Task 'polarity', train split, column 'label', row 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_training(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Bug: a wrong argument is found by a traceback from within, or a folder is left for a run that never was."""
    folder = tmp_path / "run"
    args = AsyncMTLTrainingArguments(str(folder), use_cpu=True, report_to="none")
    with pytest.raises(ConfigurationError) as caught:
        build(**{"args": args, **changes})
    assert message in str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"convergence": {"tasks": {"colors": {}}}}, "`convergence.tasks` must name tasks of the model"),
        ({"balancing": {"weights": {"colors": 2}}}, "`balancing.weights` must name tasks of the model"),
        (
            {"convergence": {"tasks": {"polarity": {"patience": 0}}}},
            "`tasks.polarity.convergence.patience` must be a whole number of at least 1; found 0.",
        ),
        ({"convergence": {"tasks": {"polarity": {"patienc": 1}}}}, "`tasks.polarity.convergence.patienc`"),
        ({"convergence": {"tasks": {"polarity": 3}}}, "`tasks.polarity.convergence` must be a mapping; found 3"),
        (
            {"metric_for_best_model": "averge"},
            "must be one of average, polarity_accuracy, polarity_loss, overlap_pearson, overlap_loss; found 'averge'",
        ),
    ],
)
def test_settings_of_tasks_are_checked_against_the_model(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Bug: a task's name or a metric's is misspelt, and its settings are never used."""
    folder = tmp_path / "run"
    with pytest.raises(ConfigurationError) as caught:
        build(args=AsyncMTLTrainingArguments(str(folder), use_cpu=True, report_to="none", **settings))
    assert message in str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize("metric", ["average", "eval_average", "overlap_pearson", "polarity_loss"])
def test_the_best_metric_may_be_any(metric: str, tmp_path: Path) -> None:
    """Bug: the check above refuses a metric that upstream takes."""
    build(args=AsyncMTLTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", metric_for_best_model=metric))


def test_plain_arguments_are_refused(tmp_path: Path) -> None:
    """Bug: upstream's own arguments are taken, and the first missing field is a traceback."""
    with pytest.raises(ConfigurationError, match="`args` must be AsyncMTLTrainingArguments; found TrainingArguments"):
        build(args=TrainingArguments(str(tmp_path), use_cpu=True))


def test_the_best_metric_has_its_own_direction(tmp_path: Path) -> None:
    """Bug: upstream maximizes every metric but a loss, and keeps the checkpoint with the greatest error."""
    sets = {"overlap": TaskConfig(type="regression", text_columns=["text"], metrics=["pearson", "mae"])}
    for metric, direction in (("overlap_loss", False), ("eval_overlap_mae", False), ("overlap_pearson", True)):
        args = AsyncMTLTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", metric_for_best_model=metric)
        check_best_metric(sets, args)
        assert args.greater_is_better is direction
    args.metric_for_best_model = "overlap_mse"
    with pytest.raises(ConfigurationError, match="must be one of average, overlap_pearson, overlap_mae, overlap_loss"):
        check_best_metric(sets, args)


def test_a_teacher_of_the_first_evaluation_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a task that has not begun to learn plateaus at its first score, and is trained from that in silence."""
    flat, rising = {"polarity": [0.5]}, {"polarity": [0.4, 0.5, 0.5]}
    for script, told in ((flat, True), (rising, False)):
        caplog.clear()
        tiny_trainer(tmp_path / str(told), {"polarity": 12}, script).train()
        assert (
            any("its first evaluation that counts: that is its teacher" in record.message for record in caplog.records)
            is told
        )


# -- what is not defined, and what follows from other settings --------------------------------------------------------


def test_an_undefined_metric_counts_as_the_worst(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: validation rows with one score make `eval_average` NaN, and no checkpoint of any task is ever the best."""
    evaluation = some_rows(dict.fromkeys(PAIR, 6), seed=1)
    evaluation["overlap"] = evaluation["overlap"].map(lambda row: {"score": 5.0})
    script = {"polarity": [0.4, 0.8, 0.6]}
    trainer = tiny_trainer(tmp_path, PAIR, script, evaluation=evaluation, eval_steps=2, convergence={"patience": 9})
    trainer.train()
    averages = [entry["eval_average"] for entry in trainer.state.log_history if "eval_average" in entry]
    assert averages[:3] == pytest.approx([-0.3, -0.1, -0.2])
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert told(tmp_path)["final"]["step"] == 4
    warned = [record.message for record in caplog.records if "is not defined" in record.message]
    assert warned == [
        "Task 'overlap': pearson is not defined on its eval rows (are all labels, or all predictions, the same?). It "
        "counts as -1 in `eval_average`."
    ]


@pytest.mark.parametrize("scheduler", ["reduce_lr_on_plateau", "greedy"])
def test_a_plateau_has_the_direction_of_its_metric(scheduler: str) -> None:
    """Bug: the learning rate falls while the average rises, and stays where it has a plateau."""

    sets = {"overlap": TaskConfig(type="regression", text_columns=["text"], metrics=["pearson", "mae"])}

    def mode(**settings: Any) -> str:
        args = AsyncMTLTrainingArguments("out", lr_scheduler_type=scheduler, use_cpu=True, **settings)
        check_best_metric(sets, args)
        return args.lr_scheduler_kwargs["mode"]

    assert mode() == "max"
    assert mode(metric_for_best_model="overlap_loss") == mode(metric_for_best_model="overlap_mae") == "min"
    assert mode(lr_scheduler_kwargs={"mode": "min"}) == "min"


@pytest.mark.parametrize(("scores", "falls"), [([0.1, 0.5, 0.9], False), ([0.9, 0.5, 0.1], True)])
def test_the_learning_rate_falls_where_the_average_does(scores: list[float], falls: bool, tmp_path: Path) -> None:
    """Bug: the mode that the arguments have does not reach the scheduler of the run."""
    scheduler = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}}
    settings = {"eval_steps": 1, "max_steps": 3, "convergence": {"patience": 9}, **scheduler}
    trainer = tiny_trainer(tmp_path, {"polarity": 8}, {"polarity": scores}, **settings)
    trainer.train()
    assert (trainer.optimizer.param_groups[0]["lr"] < trainer.args.learning_rate) is falls


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("steps", 500, "steps", 500, True)),
        ({"eval_strategy": "epoch"}, ("epoch", None, "epoch", 500, True)),
        ({"eval_strategy": IntervalStrategy.EPOCH}, ("epoch", None, "epoch", 500, True)),
        ({"save_strategy": "epoch"}, ("epoch", None, "epoch", 500, True)),
        ({"save_strategy": "no"}, ("steps", 500, "no", 500, False)),
        ({"save_strategy": "best", "eval_steps": 7}, ("steps", 7, "best", 7, True)),
        ({"eval_strategy": "epoch", "save_strategy": "no"}, ("epoch", None, "no", 500, False)),
        ({"logging_steps": 20}, ("steps", 20, "steps", 20, True)),
        ({"logging_steps": 20, "save_steps": 100}, ("steps", 20, "steps", 100, True)),
        ({"save_steps": 150}, ("steps", 150, "steps", 150, True)),
        ({"save_steps": 0.1}, ("steps", 0.1, "steps", 0.1, True)),
    ],
)
def test_defaults_follow_what_is_given(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """Bug: one setting is refused because of a default of ours, in the name of a flag that the user never set."""
    args = AsyncMTLTrainingArguments("out", use_cpu=True, **given)
    found = (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps, args.load_best_model_at_end)
    assert found == expected


def test_what_is_given_is_kept() -> None:
    """Bug: a default takes the place of a setting, and two settings that exclude each other pass."""
    with pytest.raises(ConfigurationError, match=r"found epoch \(5\) and steps \(5\)\. Change them, or set `load_best"):
        AsyncMTLTrainingArguments("out", use_cpu=True, eval_steps=5, save_strategy="epoch")
    with pytest.raises(ConfigurationError, match=r"found steps \(7\) and steps \(5\)"):
        AsyncMTLTrainingArguments("out", use_cpu=True, eval_steps=5, save_steps=7)
    args = AsyncMTLTrainingArguments(
        "out", use_cpu=True, eval_steps=5, save_strategy="epoch", load_best_model_at_end=False
    )
    assert (args.eval_strategy, args.save_strategy, args.eval_steps) == ("steps", "epoch", 5)


# -- what a GPU gets --------------------------------------------------------------------------------------------------


def test_batches_are_copied_while_the_device_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: each tensor of a batch waits for the device; or a user's own setting is overridden."""
    monkeypatch.setattr(AsyncMTLTrainingArguments, "device", torch.device("cuda"))
    args = AsyncMTLTrainingArguments(str(tmp_path))
    assert args.dataloader_pin_memory
    assert args.accelerator_config.non_blocking
    # One kernel for all parameters.
    assert args.optim == "adamw_torch_fused"
    for settings in ({"dataloader_pin_memory": False}, {"accelerator_config": {"split_batches": False}}):
        assert not AsyncMTLTrainingArguments(str(tmp_path), **settings).accelerator_config.non_blocking
    # Torch does not pin memory for it, and a copy that is not waited for would read what has been freed.
    monkeypatch.setattr(AsyncMTLTrainingArguments, "device", torch.device("mps"))
    assert not AsyncMTLTrainingArguments(str(tmp_path)).accelerator_config.non_blocking
    monkeypatch.undo()
    assert not AsyncMTLTrainingArguments(str(tmp_path), use_cpu=True).accelerator_config.non_blocking
