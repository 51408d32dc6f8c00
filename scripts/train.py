"""``hf-async-mtl train`` on several processes: ``accelerate launch scripts/train.py CONFIG.yaml ...``."""

import sys

from hf_async_mtl.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
