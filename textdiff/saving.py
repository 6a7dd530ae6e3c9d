"""Training states on disk: complete or absent, verified before they are trusted, and without pickle.

A state is written to a temporary folder, its manifest (sha256 of every file) last, everything is flushed to the disk, and
only then does the folder get its name. The newest state whose manifest verifies is the one that training goes on from.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})")


def write_state(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any], keep: int) -> Path:
    """Write `folder/step-NNNNNNNN` with one safetensors file per entry of `tensors`, keep the newest `keep` states."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    final, part = folder / f"step-{step:08d}", folder / f".part-{step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, content in tensors.items():
        save_file({key: value.contiguous() for key, value in content.items()}, part / f"{name}.safetensors")
    (part / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    files = {file.name: _digest(file) for file in sorted(part.iterdir())}
    (part / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
    for file in part.iterdir():
        _flush(file)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    _flush(folder)
    for old in sorted(_states(folder), reverse=True)[keep:]:
        shutil.rmtree(old[1])
    return final


def newest_state(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest state that verifies (None where there is none), and the newer ones that do not."""
    damaged = []
    for _, state in sorted(_states(folder), reverse=True):
        if verify(state):
            return state, damaged
        damaged.append(state)
    return None, damaged


def verify(state: Path) -> bool:
    """Whether every file of the state is there and is what was written."""
    try:
        files = json.loads((state / MANIFEST).read_text(encoding="utf-8"))
        return bool(files) and all(_digest(state / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def read_state(state: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The tensors and the facts of a state."""
    from safetensors.torch import load_file

    tensors = {file.stem: load_file(file) for file in state.glob("*.safetensors")}
    return tensors, json.loads((state / "facts.json").read_text(encoding="utf-8"))


def split_tensors(nested: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A flat state dict as its tensors and the rest, which JSON can hold."""
    tensors = {key: value for key, value in nested.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in nested.items() if key not in tensors}


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


def _states(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    named = [(_NAME.fullmatch(entry.name), entry) for entry in folder.iterdir()]
    return [(int(match[1]), entry) for match, entry in named if match]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
