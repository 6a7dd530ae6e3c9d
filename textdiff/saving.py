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


def write_state(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any], keep: int
) -> Path:
    """Write `folder/step-NNNNNNNN` with one safetensors file per entry of `tensors`, keep the newest `keep` states."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    final, part = folder / f"step-{step:08d}", folder / f".part-{step:08d}"
    if verify(final):  # a finished run was resumed: one run has one state at a step
        return final
    for stale in folder.glob(".part-*"):
        shutil.rmtree(stale)
    part.mkdir(parents=True)
    for name, content in tensors.items():
        try:
            save_file({key: value.contiguous() for key, value in content.items()}, part / f"{name}.safetensors")
        except SafetensorError as error:
            raise OSError(f"{part} cannot be written ({error}); is the disk full?") from error
    (part / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    files = {file.name: _digest(file) for file in sorted(part.iterdir())}
    (part / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")
    for file in part.iterdir():
        _flush(file)
    _flush(part)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    _flush(folder)
    # what claims to be newer was damaged, and passed over when this run went on
    past = sorted((state for state in _states(folder) if state[0] <= step), reverse=True)
    for _, other in set(_states(folder)) - set(past[:keep]):
        shutil.rmtree(other)
    return final


def newest_state(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest state that verifies (None where there is none), and the newer ones that do not."""
    damaged: list[Path] = []
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
