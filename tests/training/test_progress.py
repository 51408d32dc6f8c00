"""What a user sees of a running training: a bar on a terminal, one table per evaluation in a log file."""

import re
import sys
from pathlib import Path

import pytest
from runs import tiny_trainer

from hf_async_mtl import AsyncMTLTrainingArguments


def test_a_log_has_one_table_per_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: a log has a line for each step of a bar, or no word of how far the run is, or it is in two streams."""
    trainer = tiny_trainer(
        tmp_path,
        {"polarity": 8, "overlap": 8},
        {"polarity": [0.5, 0.4], "overlap": [0.1, 0.2]},
        disable_tqdm=None,
        max_steps=4,
        eval_steps=2,
        save_strategy="no",
        load_best_model_at_end=False,
    )
    capsys.readouterr()
    trainer.train()
    output, errors = capsys.readouterr()
    lines = [re.sub(r"\d:\d\d:\d\d", "TIME", line) for line in output.splitlines() if line.startswith("step ")]
    assert lines == [
        "step 2 of 4   TIME   epoch 1.00   average 0.3000",
        "step 4 of 4   TIME   epoch 2.00   average 0.3000",
    ]
    assert "step" not in errors
    assert "it/s" not in errors
    assert "%|" not in errors.replace("Writing model shards: ", "")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_are_for_terminals(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a user at a terminal loses the bar, or one who asks for it in a log does not get it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert AsyncMTLTrainingArguments("out", use_cpu=True).disable_tqdm is not is_terminal
    assert AsyncMTLTrainingArguments("out", use_cpu=True, disable_tqdm=False).disable_tqdm is False
