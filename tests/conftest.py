"""No test touches a network, the user's caches, or more than one core."""

import os
import tempfile
from pathlib import Path

# Set before anything of Hugging Face is imported: the libraries read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-async-mtl-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny models lose more to waiting for threads than they gain."""
    torch.set_num_threads(1)


# Folders and files whose tests start processes or train whole runs. All other tests are the quick group.
SLOW = (
    *(
        "invariants",
        "docs",
        "scripts",
        "building",
        "export",
        "convergence/test_switch.py",
        "convergence/test_actions.py",
    ),
    *("balancing/test_balancing_training.py", "cli/test_bad_inputs.py", "cli/test_cli.py", "cli/test_demo.py"),
    *(
        "cli/test_hostile_files.py",
        "cli/test_push.py",
        "cli/test_rows.py",
        "cli/test_startup.py",
        "data/test_loading.py",
    ),
    *("distillation/test_external.py", "distillation/test_teachers.py", "inference/test_pipeline.py"),
    *("inference/test_predict.py", "report/test_card.py", "report/test_page.py", "tasks/test_properties.py"),
    *("tasks/test_task_types.py", "test_optuna_search.py", "test_registration.py", "test_run.py"),
    *("training/test_trackers.py", "training/test_trainer.py", "training/test_trainer_predict.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test as quick or slow."""
    folder = Path(__file__).parent
    slow = [folder / name for name in SLOW]
    for item in items:
        is_slow = any(place in (item.path, *item.path.parents) for place in slow)
        item.add_marker(pytest.mark.slow if is_slow else pytest.mark.quick)
