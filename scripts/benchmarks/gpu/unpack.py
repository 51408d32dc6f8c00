"""Unpack what ``pack.sh`` made: wheels, data, scripts and the encoder. Needs the standard library and numpy alone.

python unpack.py PACKED_FOLDER OUTPUT

``run.sh`` calls it.
"""

from __future__ import annotations

import json
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np


def unpack(packed: Path, output: Path) -> None:
    """Unpack the archives of a folder, and write the weights of the encoder as a safetensors file."""
    for archive in sorted(packed.glob("*.tar.xz")):
        with tarfile.open(archive, "r:xz") as opened:
            opened.extractall(output, filter="data")
    write_weights(output / "encoder")


def write_weights(folder: Path) -> None:
    """Write ``model.safetensors`` from ``weights.json`` and the planes of its bytes (see ``pack.py``).

    A safetensors file is the size of its header, the header in JSON, and the tensors.
    """
    shapes: dict[str, list[int]] = json.loads((folder / "weights.json").read_text(encoding="utf-8"))
    planes = [np.frombuffer((folder / f"weights.{name}").read_bytes(), dtype=np.uint8) for name in ("low", "high")]
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    encoded += b" " * (-len(encoded) % 8)
    content = np.stack(planes, axis=1).tobytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded + content)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
