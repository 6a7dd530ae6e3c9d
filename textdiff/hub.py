"""Checkpoints for others: a complete folder with its card, and the same on the Hugging Face hub.

No code is written beside the weights. A second copy of this library's code would grow old there and would ask of everyone
to trust it; instead the weights are a stock model, which plain transformers opens (fill-mask, text-generation), and the
package reads `diffusion_config.json`. So `trust_remote_code` is never needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from textdiff.card import model_card, renamed
from textdiff.checkpoint import Checkpoint


def save(checkpoint: Checkpoint, path: str | Path, name: str | None = None) -> None:
    """Write model, tokenizer, configuration and card to a folder; `name` is what the card loads it by, the path itself
    unless given. A card that the checkpoint came with is kept, and renamed."""
    name = name or str(path)
    card = checkpoint.card or came_with(checkpoint.model.config._name_or_path)
    card = renamed(card, name) if card else model_card(name, checkpoint.config)
    replace(checkpoint, card=card).save(path)


def push(
    write: Callable[[Path, str], None], repo_id: str, *, private: bool | None = None, token: str | bool | None = None,
    commit_message: str = "Upload a textdiff checkpoint", revision: str | None = None, create_pr: bool = False,
) -> str:  # fmt: skip
    """Upload what `write` writes to a folder for a repository of this name, which is made where there is none.

    Returns the repository's address.
    """
    from huggingface_hub import HfApi

    if not repo_id or repo_id.count("/") > 1:
        raise ValueError(f"{repo_id!r} is no name of a repository; write NAME or USER/NAME")
    api = HfApi(token=token)
    options: Mapping[str, Any] = {"commit_message": commit_message, "revision": revision, "create_pr": create_pr}
    with TemporaryDirectory() as folder:
        # made first: it says how the name is in full, which the card has to say
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        write(Path(folder), made.repo_id)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, **options)
    return str(made)


def came_with(path: str) -> str:
    """The card in the folder or hub repository that a model was loaded from; "" where there is none."""
    from transformers.utils.hub import cached_file

    if not path:
        return ""
    if Path(path).is_dir():
        found: str | Path | None = Path(path) / "README.md"
    else:
        found = cached_file(path, "README.md", _raise_exceptions_for_missing_entries=False)
    return Path(found).read_text(encoding="utf-8") if found is not None and Path(found).is_file() else ""
