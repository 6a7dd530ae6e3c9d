"""Training states on disk: complete or absent, verified before they are trusted, and without pickle.

A state is written to a temporary folder, its manifest (sha256 of every file) last, everything is flushed to the disk, and
only then does the folder get its name. The newest state whose manifest verifies is the one that training goes on from.
What is removed is known by name, file by file: a folder of states may hold other things, and they stay.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textdiff.manifest import digest, flush, like

MANIFEST, FACTS, TOKENIZER = "manifest.json", "facts.json", "tokenizer"
_NAME, _PART = re.compile(r"step-(\d{8,})"), re.compile(r"\.part-\d{8,}")
_OURS = re.compile(rf"{MANIFEST}|{FACTS}|(model|ema|optimizer\d+)\.safetensors")


def state_path(folder: Path, step: int) -> Path:
    """Return the folder of a state."""
    return folder / f"step-{step:08d}"


def write_state(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    facts: dict[str, Any],
    keep: int,
    attach: Callable[[Path], None] | None = None,
) -> Path:
    """Write `folder/step-NNNNNNNN` and remove all but the newest `keep` states.

    Args:
        tensors: The content of one safetensors file each, by the file's name.
        facts: What JSON can hold.
        attach: Writes what else belongs to the state, such as the tokenizer, to a folder in it.

    Raises:
        OSError: Where it cannot be written; earlier states are then as they were.
    """
    final, part = state_path(folder, step), folder / f".part-{step:08d}"
    if verify(final):  # a finished run was resumed: one run has one state at a step
        return final
    for stale in _matching(folder, _PART):
        remove_state(stale)
    try:
        _write(part, tensors, facts, attach)
        remove_state(final)
        _publish(part, final)
    except BaseException:
        remove_state(part)  # it may be what fills the disk
        raise
    flush(folder)
    # what claims to be newer was damaged, and passed over when this run went on
    past = sorted((state for state in _states(folder) if state[0] <= step), reverse=True)
    for _, other in set(_states(folder)) - set(past[:keep]):
        remove_state(other)
    return final


def _write(
    part: Path, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any], attach: Callable[[Path], None] | None
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part.mkdir(parents=True)
    for name, content in tensors.items():
        try:
            save_file({key: value.contiguous() for key, value in content.items()}, part / f"{name}.safetensors")
        except SafetensorError as error:
            raise OSError(f"{part} cannot be written ({error}); see whether the disk is full") from error
    (part / FACTS).write_text(json.dumps(facts, indent=1, allow_nan=False), encoding="utf-8")
    like(part / FACTS, (part / f"{name}.safetensors" for name in tensors))
    if attach is not None:
        attach(part / TOKENIZER)
    files = {file.relative_to(part).as_posix(): digest(file) for file in sorted(_files(part))}
    (part / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
    for file in _files(part):
        flush(file)
    flush(part)


def _publish(part: Path, final: Path) -> None:
    """Give a state its name; beside files of others, if there are any, its manifest comes last."""
    if not final.exists():
        os.replace(part, final)
        return
    for file in sorted(_files(part), key=lambda file: file.name == MANIFEST):
        target = final / file.relative_to(part)
        target.parent.mkdir(exist_ok=True)
        os.replace(file, target)
    remove_state(part)


def newest_state(folder: Path, *, weights: bool = True) -> tuple[Path | None, list[Path]]:
    """Return the newest state that verifies (None where there is none), and the newer ones that do not.

    Args:
        weights: False to leave the large files unread.
    """
    damaged: list[Path] = []
    for _, state in sorted(_states(folder), reverse=True):
        if verify(state, weights=weights):
            return state, damaged
        damaged.append(state)
    return None, damaged


def verify(state: Path, *, weights: bool = True) -> bool:
    """Whether every file of the state is there and is what was written."""
    return damage(state, weights=weights) is None


def damage(state: Path, *, weights: bool = True) -> str | None:
    """Return what is wrong with a state: the first file that is missing or is not what was written; None for nothing."""
    try:
        files = dict(json.loads((state / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} is missing or cannot be read"
    if not files:
        return f"{MANIFEST} names no files"
    for name, expected in files.items():
        try:
            if (weights or not name.endswith(".safetensors")) and digest(state / name) != expected:
                return f"{name} is not what was written"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({getattr(error, 'strerror', None) or error})"
    return None


def read_facts(state: Path) -> dict[str, Any]:
    """Return the facts of a state."""
    return dict(json.loads((state / FACTS).read_text(encoding="utf-8")))


def read_state(state: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors and the facts of a state."""
    from safetensors.torch import load_file

    names = [name for name in _listed(state) if _OURS.fullmatch(name) and name.endswith(".safetensors")]
    tensors = {name.removesuffix(".safetensors"): load_file(state / name) for name in names}
    return tensors, read_facts(state)


def remove_state(state: Path) -> None:
    """Remove the files that `write_state` writes, and the folders that are empty then."""
    if state.is_symlink() or not (_is_state(state) or (_PART.fullmatch(state.name) and _is_bare(state))):
        return
    written = [state / name for name in _listed(state)]
    if _PART.fullmatch(state.name):  # it may have no manifest yet
        written += _files(state / TOKENIZER)
    written += (entry for entry in state.iterdir() if _OURS.fullmatch(entry.name) and not entry.is_dir())
    for file in written:
        file.unlink(missing_ok=True)
    folders = [entry for entry in state.rglob("*") if entry.is_dir() and not entry.is_symlink()]
    for folder in [*sorted(folders, reverse=True), state]:
        if _is_empty(folder):
            folder.rmdir()


def _listed(state: Path) -> list[str]:
    """Return the files that a manifest names, if they lie in its folder."""
    try:
        names = json.loads((state / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute()]


def remove_states(folder: Path) -> None:
    """Remove every state, and what is left of one that was being written; other things in the folder stay."""
    for state in [*_matching(folder, _NAME), *_matching(folder, _PART)]:
        remove_state(state)
    if not folder.is_symlink() and _is_empty(folder):
        folder.rmdir()


def foreign_in(folder: Path, *, of_a_run: bool) -> Path | None:
    """Return something in a folder of states that is not a state and stands in the way of one, None where nothing does.

    Args:
        of_a_run: Whether a run has written states here; then only what has the name of a state is in the way.
    """
    if not folder.is_dir():
        return folder if os.path.lexists(folder) else None
    for entry in sorted(folder.iterdir()):
        named = bool(_NAME.fullmatch(entry.name) or _PART.fullmatch(entry.name))
        if not (named or of_a_run) or (named and not (_is_state(entry) or _is_bare(entry))):
            return entry
    return None


def _is_state(folder: Path) -> bool:
    """Whether a folder is, or was to be, a state: its facts are there, or its manifest names them."""
    if not folder.is_dir() or not (_NAME.fullmatch(folder.name) or _PART.fullmatch(folder.name)):
        return False
    weights = any(_OURS.fullmatch(entry.name) for entry in folder.iterdir())
    return FACTS in _listed(folder) or (folder / FACTS).is_file() or (bool(_PART.fullmatch(folder.name)) and weights)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _is_bare(folder: Path) -> bool:
    """Whether a folder holds nothing but folders that hold nothing."""
    return folder.is_dir() and all(entry.is_dir() and not entry.is_symlink() for entry in folder.rglob("*"))


def flatten(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state dict as its tensors, `weight.name`, and its groups, which JSON can hold."""
    tensors = {f"{weight}.{name}": value for weight, own in optimizer["state"].items() for name, value in own.items()}
    return tensors, optimizer["param_groups"]


def unflatten(tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        weight, _, name = key.rpartition(".")
        state.setdefault(weight, {})[name] = value
    return {"state": state, "param_groups": groups}


def without_ties(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that share their memory (tied embeddings) written once, under their first name."""
    seen: set[tuple[int, torch.Size]] = set()
    result = {}
    for name, tensor in weights.items():
        mark = (tensor.untyped_storage().data_ptr(), tensor.shape)
        if mark not in seen:
            result[name] = tensor
        seen.add(mark)
    return result


def fits(expected: dict[str, Tensor], found: dict[str, Tensor]) -> bool:
    """Whether the same weights are there, in the same shapes."""
    return {key: value.shape for key, value in expected.items()} == {key: value.shape for key, value in found.items()}


def not_finite(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity, None where none does."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def _states(folder: Path) -> list[tuple[int, Path]]:
    return [(int(entry.name.removeprefix("step-")), entry) for entry in _matching(folder, _NAME)]


def _matching(folder: Path, name: re.Pattern[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    return [entry for entry in folder.iterdir() if name.fullmatch(entry.name) and entry.is_dir()]


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())
