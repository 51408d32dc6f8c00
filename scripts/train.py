"""The same as ``hf-async-mtl train``, for ``accelerate launch scripts/train.py CONFIG.yaml ...`` on several processes."""

import sys

from hf_async_mtl.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
