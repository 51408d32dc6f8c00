"""The example of a search for hyperparameters runs as it stands, and the Trainer points to it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from runs import tiny_trainer
from task_sets import write_task_set

from hf_async_mtl import ConfigurationError

SCRIPT = Path(__file__).parents[1] / "scripts" / "examples" / "optuna_search.py"


def test_the_example_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Bug: the example names what is gone, its trials share a folder, or its score is not that of the final weights."""
    config, runs = write_task_set(tmp_path), tmp_path / "search"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(config), "--trials", "2", "--output-dir", str(runs)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    reports = [json.loads((runs / f"trial-{number}" / "convergence.json").read_text()) for number in range(2)]
    best = max(report["final"]["average"] for report in reports)
    assert f"Best eval_average: {best:.4f} with {{'learning_rate': " in capsys.readouterr().out


def test_the_trainer_points_to_it(tmp_path: Path) -> None:
    """Bug: upstream's search runs its trials with the phases and the teachers of the first one."""
    trainer = tiny_trainer(tmp_path, {"polarity": 4})
    with pytest.raises(ConfigurationError, match=r"not supported\. .* scripts/examples/optuna_search\.py"):
        trainer.hyperparameter_search(n_trials=1)
    assert SCRIPT.is_file()
