"""``hf-async-mtl push``: upload a finished run to the Hub, without checkpoints, teachers and other local files."""

from __future__ import annotations

import argparse
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from .. import modeling
from ..report.model_card import card_for_repository
from ..validation import ConfigurationError

# Full names: in a pattern of the Hub's client, `*` matches a `/` too. All other files in the folder stay local.
_PUBLIC = (
    *("config.json", "convergence.json", "all_results.json", "plots/*.png"),
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
_CODE = sorted(path.name for path in Path(modeling.__file__).parent.glob("[a-z]*.py"))


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    for name in ("convergence.json", "README.md"):
        if not (args.run / name).is_file():
            raise ConfigurationError(
                f"{args.run} must be the folder of a run, as `hf-async-mtl train` leaves it; it has no {name}."
            )
    if not any(args.run.glob("*.safetensors")):
        raise ConfigurationError(f"{args.run} has no weights yet: push a run that has ended.")
    try:
        print(_upload(args.run, args.repository, args.revision, args.private))
    except (HFValidationError, LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigurationError(
            f"{args.run} could not be pushed to {args.repository!r}: {' '.join(str(error).split())} To get write "
            "access, log in with `hf auth login`, or set HF_TOKEN."
        ) from error


def _upload(run: Path, repository: str, revision: str | None, private: bool) -> str:
    """Return the address of the last commit."""
    api = HfApi()
    message = f"Upload {repository.split('/')[-1]}"
    api.create_repo(repository, private=private or None, exist_ok=True)
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
    # In a commit of its own: the local card keeps the name that it has.
    card = card_for_repository((run / "README.md").read_text(encoding="utf-8"), repository)
    api.upload_file(
        repo_id=repository,
        path_or_fileobj=card.encode(),
        path_in_repo="README.md",
        revision=revision,
        commit_message=message,
    )
    return api.upload_folder(
        repo_id=repository,
        folder_path=run,
        allow_patterns=[*_PUBLIC, *_CODE],
        revision=revision,
        commit_message=message,
    ).commit_url
