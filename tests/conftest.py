"""No test touches a network, the user's caches, or more than one core."""

import os
import tempfile

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
