"""``hf-async-mtl export``: a model as an ONNX file for other engines."""

from __future__ import annotations

import argparse

from ..building.lora import merge_lora
from ..export.onnx import export_onnx, quantize
from ..run import load_model


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    model, tokenizer = load_model(args.model)
    if model.config.lora is not None:
        # Low-rank layers beside the others would only cost time.
        merge_lora(model)
    files = [args.output / "model.onnx"]
    # Few engines compute in half precision.
    export_onnx(model.float(), files[0])
    if args.int8:
        files.append(args.output / "model.int8.onnx")
        quantize(*files)
    tokenizer.save_pretrained(args.output)
    for file in files:
        # A large graph has its weights beside it.
        size = sum(part.stat().st_size for part in args.output.glob(f"{file.name}*"))
        print(f"{file}: {size / 2**20:.1f} MiB")
