"""A monitored metric that is better when smaller: evaluations, best checkpoint, teacher and report agree on it."""

import json
from pathlib import Path

import pytest
from runs import tiny_model, tiny_trainer
from tiny import task_configs

from hf_async_mtl import MultiTaskConfig, MultiTaskModel


def test_log_loss_is_monitored(tmp_path: Path) -> None:
    """Bug: the greatest loss is the best value, and the checkpoint that is kept is the worst."""
    config = tiny_model(["polarity"], dropout=0.0).config
    tasks = {"polarity": {**task_configs()["polarity"].to_dict(), "metrics": ["log_loss", "roc_auc", "recall"]}}
    model = MultiTaskModel(MultiTaskConfig(encoder_config=config.encoder_config, tasks=tasks, max_length=32))
    convergence = {"criterion": "plateau", "patience": 1, "final_evaluations": 2}
    settings = {"max_steps": 48, "learning_rate": 5e-3, "lr_scheduler_type": "constant"}
    trainer = tiny_trainer(tmp_path, {"polarity": 16}, model=model, convergence=convergence, **settings)
    trainer.controller.constant_tasks = type(trainer.controller).constant_tasks.__get__(trainer.controller)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "eval_polarity_log_loss" in log]
    for log in logs:
        assert log["eval_polarity_log_loss"] == pytest.approx(log["eval_polarity_loss"], rel=1e-5)
    report = json.loads((tmp_path / "convergence.json").read_text())
    task = report["tasks"]["polarity"]
    values = [value for _, value in task["history"]]
    assert task["best"] == min(values) < max(values)
    assert dict(task["history"])[task["best_step"]] == task["best"]
    assert task["converged_step"] is not None
    assert task["teacher_value"] == min(value for step, value in task["history"] if step <= task["converged_step"])
    assert report["final"] == {
        "step": task["best_step"],
        "average": -task["best"],
        "tasks": {"polarity": {"value": task["best"], "retention": 1.0}},
    }
    averages = [log["eval_average"] for log in trainer.state.log_history if "eval_average" in log]
    assert averages[: len(values)] == pytest.approx([-value for value in values])
