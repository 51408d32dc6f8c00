"""A second virtual environment, for what must work where this package is not installed."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def without_package(folder: Path) -> Path:
    """Make a virtual environment with all that is installed here but this package, and give its Python."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        # An editable package is a file that names its folder.
        if (
            not any(word in entry.name for word in ("hf_async_mtl", "__editable__"))
            and not (site / entry.name).exists()
        ):
            (site / entry.name).symlink_to(entry)
    python = folder / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import hf_async_mtl"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "No module named 'hf_async_mtl'" in found.stderr, found.stderr
    assert Path(sys.prefix) != folder
    return python
