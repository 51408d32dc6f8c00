"""Write the card of a run again, from what is in its folder: after a change of the template, or under another name.

python scripts/render_card.py RUN_DIR [--name user/model] [--output README.md]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_async_mtl.report.saved_card import render_card


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--name", help="default: the name that the card has")
    parser.add_argument("--output", type=Path, help="default: RUN_DIR/README.md")
    args = parser.parse_args()
    render_card(args.run, args.name).save(args.output or args.run / "README.md")


if __name__ == "__main__":
    main()
