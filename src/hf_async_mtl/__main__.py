"""``python -m hf_async_mtl``: the command line, also for launchers that start a module on several processes."""

import sys

from hf_async_mtl.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
