"""The steps of ``pack.sh`` that need Python: what is absent, smaller wheels, a smaller encoder, archives.

python pack.py absent FOLDER TORCH_VERSION CONSTRAINTS.txt   # empty wheels; writes the constraints to stdout
python pack.py strip FOLDER                                  # every wheel in it
python pack.py rest FOLDER ROOT DATA ENCODER                 # scripts, data and encoder
python pack.py compress ARCHIVE.tar.xz FOLDER NAME code|text

``pack.sh`` says why.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILTER_OF = {"code": [{"id": lzma.FILTER_X86}], "text": []}

# What a machine with PyTorch has, as images for scientific work do. The versions of other packages than torch are those
# that it would need at least.
IMAGE = {
    **{"numpy": "2.4.6", "sympy": "1.14.0", "networkx": "3.6.1", "jinja2": "3.1.6", "filelock": "4.3.1"},
    **{"fsspec": "2026.9.0", "typing_extensions": "4.16.0", "mpmath": "1.3.0", "markupsafe": "3.0.4"},
    **{"setuptools": "81.0.0", "scipy": "1.17.1", "scikit_learn": "1.9.1", "joblib": "1.5.2", "threadpoolctl": "3.6.0"},
    **{"pandas": "3.1.1", "python_dateutil": "2.9.0", "six": "1.17.0", "matplotlib": "3.11.2", "contourpy": "1.3.3"},
    **{"cycler": "0.12.1", "fonttools": "4.60.0", "kiwisolver": "1.4.9", "pillow": "12.0.0", "pyparsing": "3.2.5"},
    **{"narwhals": "2.10.0"},
}
# Required by metadata, and imported by no part of the benchmark.
LEFT_OUT = {
    "hf-xet": ("1.8.0", "downloads from the Hub"),
    "typer": ("0.29.2", "the command line of transformers; pydantic would come with it"),
    "aiohttp": ("3.14.5", "remote files of fsspec"),
}

DROPPED_EVERYWHERE = r"(^|/)tests?/|/include/|\.(pyi|pyx|pxd|pxi|h|hpp|c|cc|cpp|a|lib|afm)$"
DROPPED = {
    "pyarrow": r"(flight|/_substrait|libarrow_s3|_s3fs|_gcsfs|_azurefs|_hdfs|[/_]orc|_cpp_tests)[^/]*\.(so|so\..*)$"
    r"|/src/|libarrow_python[a-z_]*\.so(\.\d+\.\d+\.\d+)?$",
    "pygments": r"pygments/(lexers|styles)/(?!__init__|_mapping|python|special|text|default)",
    # Tokenizers are searched in all models, whose `__init__` must be there.
    "transformers": r"transformers/cli/|transformers/models/"
    r"(?!(auto|bert|roberta|distilbert|modernbert|encoder_decoder)/)[^/]+/(?!__init__\.py$)",
}

SOURCES = (
    *("glue/stsb", "glue/sst2", "glue/qnli", "glue/mrpc"),
    *("ecommerce/counterfactual", "ecommerce/stars", "ecommerce/aspects"),
    *("weak/chemprot", "weak/wikigold"),
)
TRAINED_ON = ("glue/cola", "glue/rte")
CONFIGS = ("quality.yaml", "noisy5.yaml", "natural5.yaml", "distant5.yaml")
ENCODER_LAYERS, LONGEST = 3, 128  # layers, and tokens of a sequence


# -- wheels -----------------------------------------------------------------------------------------------------------


def write_empty_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel without any files but its metadata."""
    info = f"{name}-{version}.dist-info"
    content = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: pack.py\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    encoded = {path: text.encode() for path, text in content.items()}
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, data in encoded.items():
            wheel.writestr(path, data)
        wheel.writestr(f"{info}/RECORD", record(encoded, info))


def record(files: dict[str, bytes], info: str) -> str:
    """Return the list of a wheel's files, with hashes and sizes."""
    rows = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f'"{path}",sha256={digest},{len(data)}')
    return "\n".join([*rows, f"{info}/RECORD,,", ""])


def write_absent(folder: Path, torch: str, constraints: Path) -> None:
    """Write an empty wheel for each package that is on the machine or left out, and show the constraints of pip."""
    versions = {"torch": f"{torch}+image", **{name: f"{version}+image" for name, version in IMAGE.items()}}
    versions |= {name.replace("-", "_"): f"{version}+absent" for name, (version, _) in LEFT_OUT.items()}
    for name, version in versions.items():
        write_empty_wheel(folder, name, version)
        print(f"{name}=={version}")
    for line in constraints.read_text(encoding="utf-8").splitlines():
        pinned = re.match(r"([A-Za-z0-9_.-]+)==", line)
        if pinned and pinned[1].lower().replace("-", "_") not in versions:
            print(line)


def strip_wheels(folder: Path) -> None:
    """Write each wheel anew, without what no part needs, and not compressed."""
    for path in sorted(folder.glob("*.whl")):
        before, name = path.stat().st_size, path.name.split("-")[0]
        files = dict(kept_files(path, name))
        info = next(file.split("/")[0] for file in files if file.split("/")[0].endswith(".dist-info"))
        files.pop(f"{info}/RECORD", None)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as wheel:
            for file, data in files.items():
                wheel.writestr(file, data)
            wheel.writestr(f"{info}/RECORD", record(files, info))
        print(f"{name}: {before / 2**20:.1f} MiB; {path.stat().st_size / 2**20:.1f} MiB, not compressed")


def kept_files(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a wheel that are kept, shared libraries without their symbol tables.

    A wheel with a folder ``*.libs`` has libraries that auditwheel has rewritten, which ``strip`` may break.
    """
    with zipfile.ZipFile(path) as wheel:
        rewritten = any(".libs/" in file for file in wheel.namelist())
        for entry in wheel.infolist():
            file = entry.filename
            dropped = name in DROPPED and re.search(DROPPED[name], file)
            if entry.is_dir() or dropped or (re.search(DROPPED_EVERYWHERE, file) and ".dist-info/" not in file):
                continue
            data = wheel.read(entry)
            yield file, without_symbols(data) if ".so" in Path(file).name and not rewritten else data


def without_symbols(library: bytes) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        subprocess.run(["strip", "--strip-unneeded", file.name], check=True)
        return Path(file.name).read_bytes()


# -- the rest ---------------------------------------------------------------------------------------------------------


def write_rest(folder: Path, root: Path, data: Path, encoder: Path) -> None:
    """Write ``scripts``, ``data`` and ``encoder``, as run.sh finds them."""
    shutil.copytree(
        root / "scripts" / "benchmarks", folder / "scripts" / "benchmarks", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "scripts" / "configs").mkdir()
    for name in CONFIGS:
        shutil.copy(root / "scripts" / "configs" / name, folder / "scripts" / "configs")
    for source in SOURCES:
        shutil.copytree(data / source, folder / "data" / source, copy_function=shutil.copyfile)
    for source in TRAINED_ON:
        (folder / "data" / source).mkdir(parents=True)
        shutil.copyfile(data / source / "train.jsonl", folder / "data" / source / "train.jsonl")
    write_encoder(folder / "encoder", encoder, [folder / "data" / source for source in SOURCES])


def write_encoder(folder: Path, encoder: Path, texts: list[Path]) -> None:
    """Write an encoder: its configuration, its tokenizer, and its first layers as two planes of bytes.

    The bytes of bfloat16 compress better apart: one has the exponent, the other the digits. Rows of word pieces that no
    text has are zero, and those of positions after `LONGEST`.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(encoder, num_hidden_layers=ENCODER_LAYERS, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.save_pretrained(folder)
    shutil.copyfile(encoder / "config.json", folder / "config.json")
    known = sorted(used_pieces(tokenizer, texts))
    words: Any = model.get_input_embeddings().weight
    rows = torch.zeros_like(words)
    rows[known] = words[known]
    words.data = rows
    weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for name, tensor in weights.items():
        if name.endswith("position_embeddings.weight"):
            tensor[LONGEST:] = 0
    flat = torch.cat([tensor.flatten() for tensor in weights.values()]).view(torch.uint8).reshape(-1, 2)
    (folder / "weights.low").write_bytes(flat[:, 0].numpy().tobytes())
    (folder / "weights.high").write_bytes(flat[:, 1].numpy().tobytes())
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    (folder / "weights.json").write_text(json.dumps(shapes), encoding="utf-8")
    print(f"encoder: {len(known)} of {len(words)} word pieces are in the texts")


def used_pieces(tokenizer: Any, folders: list[Path]) -> set[int]:
    """Return the ids of the word pieces of all texts, and of the special tokens."""
    found = set(tokenizer.all_special_ids)
    for file in sorted(file for folder in folders for file in folder.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            texts = [value for line in lines for value in json.loads(line).values() if isinstance(value, str)]
        for first in range(0, len(texts), 4096):
            for ids in tokenizer(texts[first : first + 4096], truncation=False)["input_ids"]:
                found.update(ids)
    return found


def compress(archive: Path, folder: Path, name: str, kind: str) -> None:
    """Write an archive of a file or a folder, for code with the filter that finds the targets of jumps."""
    filters = [*FILTER_OF[kind], {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**24}]
    with lzma.open(archive, "wb", filters=filters) as file, tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(folder, arcname=name)
    print(f"{archive.name}: {archive.stat().st_size / 2**20:.2f} MiB")


def main() -> None:
    """Run one step."""
    command, *given = sys.argv[1:]
    paths = [Path(item) for item in given]
    if command == "absent":
        write_absent(paths[0], given[1], paths[2])
    elif command == "strip":
        strip_wheels(paths[0])
    elif command == "rest":
        write_rest(*paths)
    else:
        compress(paths[0], paths[1], given[2], given[3])


if __name__ == "__main__":
    main()
