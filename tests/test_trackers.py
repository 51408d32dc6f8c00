"""What TensorBoard and its like get of a run: each task's loss, metric, phase and weight, under names that group."""

from pathlib import Path

import pytest
from runs import tiny_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SIZES = {"polarity": 16, "overlap": 16}
# Polarity converges at the second evaluation, overlap never does.
SCRIPT = {"polarity": [0.5, 0.4, 0.4, 0.4], "overlap": [0.1, 0.2, 0.3, 0.4]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*", "ignore::DeprecationWarning:google.*")
def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a curve is missing, or all tasks are in one long list."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = tiny_trainer(
        tmp_path / "run",
        SIZES,
        SCRIPT,
        report_to="tensorboard",
        num_train_epochs=4,
        balancing={"method": "uw"},
    )
    trainer.train()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    wanted = {f"eval/{name}_loss" for name in SIZES} | {f"train/{name}_loss" for name in SIZES}
    wanted |= {f"train/{kind}/{name}" for kind in ("phase", "weight") for name in SIZES}
    assert wanted | {"eval/polarity_accuracy", "eval/overlap_pearson", "eval/average", "train/loss"} <= curves.keys()
    assert [value for _, value in curves["eval/polarity_accuracy"]] == pytest.approx(SCRIPT["polarity"])
    # Learning is 1, distilling 2; the phase moves at the evaluation of step 8, after the log of that step.
    assert curves["train/phase/polarity"] == [(4, 1.0), (8, 1.0), (12, 2.0), (16, 2.0)]
    assert {value for _, value in curves["train/phase/overlap"]} == {1.0}
    # Who distils has left the balanced set, and the other has all of it.
    first, last = curves["train/weight/overlap"][0], curves["train/weight/overlap"][-1]
    assert first[1] != pytest.approx(last[1], abs=0.05)
    assert [step for step, _ in curves["train/weight/polarity"]] == [4, 8]
