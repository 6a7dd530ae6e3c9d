"""Exported folders: written whole or not at all, nothing of a user's replaced, and read back as they were written.

`diffusion_manifest.json` holds the sha256 of every file of an export. What is loaded is compared with it, so a flipped byte,
a half-finished copy or a file of another model is an error, not another answer. So is a file beside an export that is not in
its manifest and that transformers, peft or diffusers would read with it (`READ`); notes, logs, pictures and states may stand
there. Folders without a manifest are loaded as they are.
"""

import fnmatch
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from textdiff.options import checked_path

MANIFEST = "diffusion_manifest.json"
CARD = "README.md"
_PART = ".textdiff-part-"
_LEGACY = "diffusion_config.json"  # an export without a manifest, by an earlier version
# what is read beside a config.json if it is there: weights, adapters, tokenizers, settings and templates. Weights in other
# formats are not read where there are safetensors, and code never is
READ = (
    "*.safetensors", "*.index.json",
    "config.json", "config.*.json", "*_config.json", "model_index.json",
    "*vocab*", "merges*.txt", "tokenizer*", "*.tokenizer", "*.model", "*.spm", "*.tiktoken", "tekken.json", "bpe.codes",
    "dict.txt", "emoji.json", "normalizer.json", "byte_maps.json", "word_shape.json", "word_pronunciation.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.jinja",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"
_verified: dict[Path, Any] = {}


def digest(file: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file, or the names of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_read(name: str) -> bool:
    """Whether a file of this name is read with a model that it lies beside."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in READ) and not name.startswith(".")


def read_beside(folder: Path) -> list[str]:
    """Return the names of the files of a folder that are read with a model in it."""
    found = [file.name for file in folder.iterdir() if is_read(file.name) and not file.is_dir()]
    return sorted(found + [f"{TEMPLATES}/{file.name}" for file in (folder / TEMPLATES).glob("*") if is_read(file.name)])


def write_folder(path: str | Path, write: Callable[[Path], None]) -> None:
    """Export files to a folder, each replaced whole or not at all, the manifest last. Other files stay.

    A README.md that no export wrote, or that was changed since, stays, too. What an earlier export wrote and this one does
    not, goes: it would be read with the new model.

    Args:
        path: The folder; it is made where there is none.
        write: Writes the files into the empty folder that it is given.

    Raises:
        ValueError: For a path that is a file, for the root folder, and for a folder that holds a file which no export of
            this library wrote and which would be replaced, or read with the model.
        OSError: Where nothing can be written.
    """
    folder = Path(checked_path("the folder to save to", path))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cannot save to {str(path)!r}: it must be a folder, or a name that is free")
    if is_root(folder):
        raise ValueError(f"cannot save to {str(path)!r}, the root folder; name a folder in it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot save to {str(path)!r} ({error.strerror}); name a folder that can be written"
        ) from None
    for stale in folder.glob(f"{_PART}*"):
        shutil.rmtree(stale, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=folder, prefix=_PART))
    try:
        write(part)
        _install(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _install(part: Path, folder: Path) -> None:
    names = sorted(file.relative_to(part).as_posix() for file in part.rglob("*") if file.is_file())
    foreign = foreign_files(folder, names, part)
    if CARD in foreign:
        names.remove(CARD)
        foreign.remove(CARD)
    if foreign:
        raise ValueError(
            f"{folder / foreign[0]} was not written by textdiff, and saving would replace it; save to another folder, or "
            "move that file away"
        )
    stale = _stale(folder, names)
    entries = {name: digest(part / name) for name in names}
    (part / MANIFEST).write_text(json.dumps({"format": 1, "files": entries}, indent=1) + "\n", encoding="utf-8")
    like(part / MANIFEST, [part / name for name in names])
    for name in [*names, MANIFEST]:
        flush(part / name)
    for name in stale:
        (folder / name).unlink()
    for name in [*names, MANIFEST]:
        (folder / name).parent.mkdir(exist_ok=True)  # of templates, which transformers may put in a folder of their own
        os.replace(part / name, folder / name)
    flush(folder)


def _stale(folder: Path, names: list[str]) -> list[str]:
    """What would be read with a new export of these names, and was written by an earlier one. ValueError if it was not."""
    stale = [name for name in read_beside(folder) if name not in names]
    if foreign := foreign_files(folder, stale):
        raise ValueError(
            f"{folder / foreign[0]} was not written by textdiff, and would be read with the model; save to another folder, "
            "or move that file away"
        )
    return stale


def like(model: Path, files: Iterable[Path]) -> None:
    """Give files the permissions of another: safetensors writes for the owner alone, whatever the umask."""
    mode = stat.S_IMODE(model.stat().st_mode)
    for file in files:
        file.chmod(mode)


def is_root(folder: Path) -> bool:
    """Whether a folder is the root of the file system, or of a drive."""
    place = folder.resolve()
    return place == place.parent


def foreign_files(folder: Path, names: list[str], part: Path | None = None) -> list[str]:
    """Return those of the names that stand in the folder and that no export wrote, or that were changed since.

    part: a folder with the files that would replace them; equal ones are not foreign.
    """
    entries = read_manifest(folder)
    if entries is None and (folder / _LEGACY).is_file():
        return []
    foreign = []
    for name in names:
        file = folder / name
        if file.exists() or file.is_symlink():
            content = digest(file) if file.is_file() else ""
            same = part is not None and (part / name).is_file() and content == digest(part / name)
            if not same and (entries or {}).get(name) != content:
                foreign.append(name)
    return foreign


def read_manifest(folder: Path) -> dict[str, str] | None:
    """Return the sha256 of each file of an export, None where the folder has no manifest. ValueError for a damaged one."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["files"]
        return {str(name): str(value) for name, value in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); copy the model again") from error


def verify_folder(folder: str | Path) -> None:
    """Raise ValueError where a file of an export is missing, added, or not what was written; the model card may change.

    A folder that is as it was the last time is not read again.
    """
    path = Path(folder)
    entries = read_manifest(path)
    if entries is None:
        return
    if added := next((name for name in read_beside(path) if name not in entries and name != MANIFEST), None):
        raise ValueError(
            f"{path / added} would be read with the model, and is not in its {MANIFEST}; move that file away, or delete "
            f"{MANIFEST} if you added it yourself"
        )
    # a folder of the hub's cache holds the files that were asked for
    cached = path.parent.name == "snapshots"
    present = {name: path / name for name in entries if name != CARD and ((path / name).is_file() or not cached)}
    state = {name: _stamp(file) for name, file in [*present.items(), (MANIFEST, path / MANIFEST)]}
    if _verified.get(path) == state:
        return
    for name, file in present.items():
        if not file.is_file():
            raise ValueError(f"{path} lacks {name}; copy the model again")
        if digest(file) != entries[name]:
            raise ValueError(
                f"{file} is not the file that was saved (its sha256 differs from {MANIFEST}); copy the model again, or "
                f"delete {MANIFEST} if you changed the file yourself"
            )
    _verified[path] = state


def _stamp(file: Path) -> Any:
    """What changes when a file does."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
