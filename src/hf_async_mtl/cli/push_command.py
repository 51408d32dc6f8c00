"""`hf-async-mtl push`: a finished run to the Hub, without what is nobody else's."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ..modeling.configuration_multitask import ConfigurationError
from ..report.saved_card import render_card

__all__ = ["add_push"]

# By name, so that what a user or another program leaves in the folder stays here.
_FILES = (
    "config.json",
    "convergence.json",
    "all_results.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "model.safetensors.index.json",
)
_KINDS = ("*.safetensors", "*.py", "*.model", "plots/*.png")


def add_push(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    push = commands.add_parser("push", help="upload a finished run to the Hub")
    push.add_argument("run", type=Path, metavar="RUN_DIR")
    push.add_argument("repository", metavar="USER/NAME")
    push.add_argument("--private", action="store_true", help="where the repository is new")
    push.add_argument("--revision", help="default: main")
    push.set_defaults(command=_push)


def _push(args: argparse.Namespace) -> None:
    card = CommitOperationAdd("README.md", _card(args.run, args.repository))
    if not any(args.run.glob("*.safetensors")):
        raise ConfigurationError(f"{args.run} has no weights yet: push a run that has ended.")
    files = _files(args.run)
    _upload(args, [*(CommitOperationAdd(name, path) for name, path in sorted(files.items())), card])


def _files(folder: Path) -> dict[str, Path]:
    """Name in the repository -> file."""
    paths = {path for pattern in (*_FILES, *_KINDS) for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _upload(args: argparse.Namespace, operations: list[CommitOperationAdd]) -> None:
    api = HfApi()
    try:
        api.create_repo(args.repository, private=args.private or None, exist_ok=True)
        if args.revision is not None:
            api.create_branch(args.repository, branch=args.revision, exist_ok=True)
        commit = api.create_commit(
            args.repository,
            operations,
            commit_message=f"Upload {args.repository.split('/')[-1]}",
            revision=args.revision,
        )
    except (HFValidationError, LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigurationError(
            f"{args.run} could not be pushed to {args.repository!r}: {' '.join(str(error).split())} Who may write "
            "there logs in with `hf auth login`, or sets HF_TOKEN."
        ) from error
    print(commit.commit_url)


def _card(run: Path, name: str) -> bytes:
    """The card under the repository's name; one that its author has changed, as it is."""
    file = run / "README.md"
    if file.is_file() and file.read_bytes() != _bytes_of(render_card(run)):
        return file.read_bytes()
    return _bytes_of(render_card(run, name))


def _bytes_of(card: ModelCard) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        card.save(Path(folder, "README.md"))
        return Path(folder, "README.md").read_bytes()
