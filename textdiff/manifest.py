"""Exported folders: written whole or not at all, nothing of a user's replaced, and read back as they were written.

`diffusion_manifest.json` holds the sha256 of every file of an export. What is loaded is compared with it, so a flipped byte,
a half-finished copy or a file of another model is an error, not another answer. Folders without one are loaded as they are.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "diffusion_manifest.json"
CARD = "README.md"
_PART = ".textdiff-part-"
_LEGACY = "diffusion_config.json"  # an export without a manifest, by an earlier version
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


def write_folder(path: str | Path, write: Callable[[Path], None]) -> None:
    """Export files to a folder, each replaced whole or not at all, the manifest last. Other files stay.

    A README.md that no export wrote, or that was changed since, stays, too.

    Args:
        path: The folder; it is made where there is none.
        write: Writes the files into the empty folder that it is given.

    Raises:
        ValueError: For a path that is a file, and for a folder that holds a file which no export of this library wrote.
        OSError: Where nothing can be written.
    """
    folder = Path(path)
    if not str(path) or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"cannot save to {str(path)!r}: it must be a folder, or a name that is free")
    folder.mkdir(parents=True, exist_ok=True)
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
    entries = {name: digest(part / name) for name in names}
    (part / MANIFEST).write_text(json.dumps({"format": 1, "files": entries}, indent=1) + "\n", encoding="utf-8")
    for name in [*names, MANIFEST]:
        flush(part / name)
    for name in [*names, MANIFEST]:
        (folder / name).parent.mkdir(exist_ok=True)  # of templates, which transformers may put in a folder of their own
        os.replace(part / name, folder / name)
    flush(folder)


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
    """Raise ValueError where a file of an export is missing or is not what was written; the model card may change.

    A folder that is as it was the last time is not read again.
    """
    path = Path(folder)
    entries = read_manifest(path)
    if entries is None:
        return
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
