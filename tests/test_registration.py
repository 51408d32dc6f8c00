"""`import hf_async_mtl` is cheap, and Transformers knows our classes after it, whichever was imported first."""

import subprocess
import sys
from pathlib import Path

import pytest
from runs import tiny_model
from tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model and its tokenizer, without the modeling code that travels with it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(["polarity", "overlap"]).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    for path in folder.glob("*.py"):
        path.unlink()
    return folder


def python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_imports_nothing_heavy() -> None:
    """Bug: `--help` and a wrong key of the configuration take seconds, and so does every script that only parses."""
    code = (
        "import sys, hf_async_mtl; hf_async_mtl.__version__, hf_async_mtl.ConfigurationError; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'numpy') if name in sys.modules])"
    )
    assert python(code) == "[]"


LOAD = "assert type(AutoModel.from_pretrained(folder, trust_remote_code=False)).__module__ == MODULE; "
RUN = "assert list(pipeline('multi-task-text', model=folder, trust_remote_code=False)('a b')) == ['polarity']; "
READ = "assert list(AutoConfig.from_pretrained(folder, trust_remote_code=False).tasks) == ['polarity', 'overlap']; "


@pytest.mark.parametrize(
    ("imports", "use"),
    [
        ("import hf_async_mtl; from transformers import AutoConfig, AutoModel, pipeline", READ + LOAD + RUN),
        ("from transformers import AutoModel, pipeline; import hf_async_mtl", RUN + LOAD),
        ("import hf_async_mtl; from transformers import pipeline", RUN),
        ("import hf_async_mtl; from transformers import AutoTokenizer, Trainer, AutoModel", LOAD),
        ("from hf_async_mtl import MultiTaskModel; from transformers import AutoModel", LOAD),
    ],
)
def test_transformers_knows_our_classes(imports: str, use: str, folder: Path) -> None:
    """Bug: `AutoModel` asks for remote code, or an import fails half way, in one order of the imports."""
    code = f"import sys; folder, MODULE = sys.argv[1], 'hf_async_mtl.modeling.modeling_multitask'; {imports}; {use}"
    assert python(code + "print('done')", folder).endswith("done")
