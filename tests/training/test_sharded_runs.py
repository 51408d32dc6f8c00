"""What a run on sharded weights, or with too small a disk, is told before it trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import tiny_trainer

from hf_async_mtl import ConfigurationError
from hf_async_mtl.convergence import ConvergenceConfig
from hf_async_mtl.distillation import logits
from hf_async_mtl.training.inputs import check_sharding, check_task_settings

PAIR = {"polarity": 16, "overlap": 16}


def accelerator(**plugin: Any) -> Any:
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**plugin) if plugin else None))


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ({"fsdp_version": 1, "state_dict_type": "FULL_STATE_DICT"}, "FSDP must be of version 2; found 1"),
        ({"fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT"}, "`fsdp_state_dict_type: FULL_STATE_DICT`"),
    ],
)
def test_shards_that_cannot_be_gathered(plugin: dict[str, Any], message: str) -> None:
    """Bug: the first checkpoint or teacher has a part of the weights, hours after the start."""
    with pytest.raises(ConfigurationError, match=message):
        check_sharding(accelerator(**plugin))


def test_shards_that_can_be_gathered() -> None:
    """Bug: what the documentation advises is refused, or a run without shards is asked for a plugin."""
    check_sharding(accelerator(fsdp_version=2, state_dict_type="StateDictType.FULL_STATE_DICT"))
    check_sharding(accelerator())


def test_deepspeed_cannot_roll_back() -> None:
    """Bug: the weights return to a task's best, and at the next step DeepSpeed's own copy of the later ones is back."""
    # DeepSpeed itself is not installed where the tests run.
    args: Any = SimpleNamespace(section=lambda name: {}, loss_configs={}, sharded_by="DeepSpeed")
    args.convergence_of = lambda name: ConvergenceConfig(on_convergence="rollback")
    with pytest.raises(
        ConfigurationError, match="`on_convergence: rollback` of task 'a' cannot be used with DeepSpeed"
    ):
        check_task_settings(["a"], args)
    args.sharded_by = None
    check_task_settings(["a"], args)


def test_teachers_that_do_not_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the run ends at its first convergence, when the logits are recorded."""
    trainer = tiny_trainer(tmp_path, PAIR)
    monkeypatch.setattr(logits.shutil, "disk_usage", lambda folder: SimpleNamespace(free=16))
    with pytest.raises(
        ConfigurationError, match=r"Recording the teachers' logits needs .* MiB in .*; its disk has 0.0"
    ):
        trainer.train()
