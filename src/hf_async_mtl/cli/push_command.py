"""`hf-async-mtl push`: a finished run to the Hub, without what is nobody else's."""

from __future__ import annotations

import argparse
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ..model.configuration_multitask import ConfigurationError
from ..report.saved_card import render_card

__all__ = ["add_push"]

# By name, so that what a user or another program leaves in the folder stays here.
_PUBLIC = ["*.json", "*.safetensors", "*.py", "*.txt", "*.model", "README.md", "plots/*.png"]
_PRIVATE = ["_*", "checkpoint-*", "*/*.safetensors", "trainer_state.json"]


def add_push(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    push = commands.add_parser("push", help="upload a finished run to the Hub")
    push.add_argument("run", type=Path, metavar="RUN_DIR")
    push.add_argument("repository", metavar="USER/NAME")
    push.add_argument("--private", action="store_true", help="where the repository is new")
    push.add_argument("--revision", help="default: main")
    push.set_defaults(command=_push)


def _push(args: argparse.Namespace) -> None:
    card = render_card(args.run, args.repository)
    if not any(args.run.glob("*.safetensors")):
        raise ConfigurationError(f"{args.run} has no weights yet: push a run that has ended.")
    api = HfApi()
    try:
        api.create_repo(args.repository, private=args.private or None, exist_ok=True)
        card.save(args.run / "README.md")
        commit = api.upload_folder(
            repo_id=args.repository,
            folder_path=args.run,
            revision=args.revision,
            commit_message=f"Upload {args.repository.split('/')[-1]}",
            allow_patterns=_PUBLIC,
            ignore_patterns=_PRIVATE,
        )
    except (HFValidationError, LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigurationError(
            f"{args.run} could not be pushed to {args.repository!r}: {' '.join(str(error).split())} Who may write "
            "there logs in with `hf auth login`, or sets HF_TOKEN."
        ) from error
    print(commit.commit_url)
