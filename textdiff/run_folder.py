"""The folder of a run: nothing of a user's is deleted or overwritten that a run did not write.

`run.json` lists the files that runs wrote here, with their sha256, and those that a run is writing, without. A file is
replaced or removed only if it is on that list and as it was written. What stands in the way is found by `check`, which
changes nothing, before any work begins.
One run at a time holds the folder: a lock of the operating system, which goes with the process.
"""

import fnmatch
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from textdiff.manifest import MANIFEST, digest, is_read, is_root
from textdiff.saving import damage, foreign_in, newest_state, remove_states

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has no such locks: runs are not held against each other there
    fcntl = None

MARK, LOCK, STATES, BOARD = "run.json", "run.lock", "states", "tensorboard"
LOG, RECIPE, CURVE = "log.jsonl", "recipe.yaml", "loss.png"
# the names that runs write; a foreign file of such a name is in the way
WRITTEN = (
    MARK, LOG, RECIPE, CURVE, MANIFEST, "samples.png", "README.md", "config.json", "generation_config.json",
    "diffusion_config.json",
    "model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model*",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja",
)  # fmt: skip
PATIENCE = 2.0  # seconds; another process may be looking whether the folder is held
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_EXPORT = ".export-"
_EVENTS = re.compile(r"events\.out\.tfevents\..*")


class RunFolder:
    """The folder of one run.

    Args:
        path: The folder; it need not exist yet.
        name: The option that errors name.
    """

    def __init__(self, path: str | Path, name: str = "trainer.out") -> None:
        self.path, self.name = Path(path), name
        self.states = self.path / STATES

    def check(self, *, resume: bool = False, overwrite: bool = False, held: bool = False) -> None:
        """Refuse what stands in the way of a run. Changes nothing.

        Args:
            held: Whether the caller holds the folder.

        Raises:
            ValueError: For what is not a folder, is the root, cannot be written, is held by another run, holds files of
                others that the run would replace, or that would be read with its checkpoint, or holds a run that neither
                `resume` nor `overwrite` was given for.
        """
        check_writable(self.path, self.name)
        if is_root(self.path):
            raise ValueError(f"{self.name} {self.path} is the root folder; give a folder of the run's own")
        if not self.path.is_dir():
            if resume:
                raise ValueError(self._nothing_to_resume())
            return
        if not held:
            self._check_lock()
        own = self._own()
        if own and not resume and not overwrite and self._holds_run(own):
            raise ValueError(
                f"{self.name} {self.path} already holds a run: --resume goes on with it, --overwrite begins anew"
            )
        if resume and newest_state(self.states, weights=False)[0] is None:
            raise ValueError(self._nothing_to_resume())
        if (strange := self._in_the_way(own)) is not None:
            changed = strange.relative_to(self.path).as_posix() in (own or {})
            reason = "was changed since the run wrote it" if changed else "was not written by a run"
            fate = "it is not written over" if changed or _is_written(strange.name) else "it may not lie beside a model"
            raise ValueError(
                f"{self.name} {self.path}: {strange.relative_to(self.path)} {reason}, so {fate}; move it, or give another "
                "folder"
            )

    def _nothing_to_resume(self) -> str:
        _, damaged = newest_state(self.states, weights=False)
        if damaged:
            what = damage(damaged[0], weights=False)
            return f"{damaged[0]} is damaged ({what}); copy it again, or begin anew with --overwrite"
        return f"{self.name} {self.path} has no training state to resume; leave --resume out to begin"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, which is made where it is missing, against other runs.

        Raises:
            ValueError: Where another run holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = self._taken()
        except OSError as error:
            raise ValueError(f"{self.name} {self.path} cannot be written ({error.strerror})") from error
        try:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            with suppress(OSError):
                self._seal()
            with suppress(OSError):
                os.unlink(self.path / LOCK)
            os.close(descriptor)

    def begin(self, keep: bool) -> None:
        """Mark the folder as a run's. Unless `keep`, what an earlier run wrote goes; nothing else does."""
        own = self._own() or {}
        if not keep:
            remove_states(self.states)
            for name in own:
                if self._is_own(name, own):
                    (self.path / name).unlink(missing_ok=True)
        for name in own:
            if name.startswith(_EXPORT):  # of a run that ended while it exported
                shutil.rmtree(self.path / name, ignore_errors=True)
        own = own if keep else {}
        board = self.path / BOARD
        if board.is_dir() and not board.is_symlink() and not any(board.iterdir()):
            board.rmdir()
        self._mark({name: digest for name, digest in own.items() if os.path.lexists(self.path / name)})

    def claim(self, name: str) -> Path:
        """Return the path of a file that the run is about to write.

        Raises:
            ValueError: Where a file of that name is there that no run wrote.
        """
        own = self._own() or {}
        if os.path.lexists(self.path / name) and not self._is_own(name, own):
            raise ValueError(f"{self.path / name} was not written by a run; move it, or give another {self.name}")
        self._mark(own | {name: None})
        return self.path / name

    def _seal(self) -> None:
        """Write down what the files are that the run has been writing, as it ends; what is not there is not its."""
        own = self._own()
        if own is not None:
            there = {name: known for name, known in own.items() if os.path.lexists(self.path / name)}
            self._mark({name: known or _digest(self.path / name) for name, known in there.items()})

    def write(self, name: str, text: str) -> None:
        """Write a small file of text, whole or not at all."""
        path = self.claim(name)
        _replace_text(path, text)
        self._mark((self._own() or {}) | {name: _digest(path)})

    def record_board(self) -> None:
        """List what TensorBoard's writer has made."""
        found = [file for file in (self.path / BOARD).glob("*") if _EVENTS.fullmatch(file.name)]
        mine: dict[str, str | None] = {
            f"{BOARD}/{file.name}": None for file in found if f".{os.getpid()}." in file.name
        }
        self._mark((self._own() or {}) | mine)

    @contextmanager
    def exported(self) -> Iterator[Path]:
        """An empty folder for a checkpoint, whose files take their places in the run's folder at the end.

        Raises:
            ValueError: Where a file of others has come into their way meanwhile; the checkpoint then stays where it is.
        """
        part = Path(tempfile.mkdtemp(prefix=_EXPORT, dir=self.path))
        self._mark((self._own() or {}) | {part.name: None})
        try:
            yield part
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # it may be what fills the disk
            raise
        own, files = self._own() or {}, sorted(part.iterdir())
        for file in files:
            if os.path.lexists(self.path / file.name) and not self._is_own(file.name, own):
                raise ValueError(
                    f"{self.path / file.name} was not written by the run, so the checkpoint stays in {part}; move one"
                )
        self._mark(own | {file.name: _digest(file) for file in files})
        for file in sorted(files, key=lambda file: file.name == MANIFEST):  # last: it says what all others are
            os.replace(file, self.path / file.name)
        part.rmdir()
        own = self._own() or {}
        self._mark({name: digest for name, digest in own.items() if name != part.name})

    # -------------------------------------------------------------------------------------------------- what is whose

    def _own(self) -> dict[str, str | None] | None:
        """Return the files that runs wrote here, with the sha256 of the small ones; None for a folder of no run."""
        try:
            content = json.loads((self.path / MARK).read_text(encoding="utf-8"))
            if content["written_by"] != "textdiff":
                return self._adopted()
            files = content["files"]
            names = {str(name): digest for name, digest in files.items() if _inside(str(name))}
            return {MARK: None, **names}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return self._adopted()

    def _adopted(self) -> dict[str, str | None] | None:
        """Return what a run of a version without `run.json` wrote; such a folder is known by a state or by its log."""
        log = self.path / LOG
        try:
            with log.open(encoding="utf-8") as lines:
                logged = "step" in json.loads(lines.readline(10_000))
        except (OSError, ValueError, TypeError):
            logged = False
        if not logged and newest_state(self.states, weights=False)[0] is None:
            return None
        files = [entry for entry in self.path.iterdir() if _is_written(entry.name) and entry.is_file()]
        card = self.path / "README.md"
        if card in files and "textdiff" not in card.read_text(encoding="utf-8", errors="replace"):
            files.remove(card)
        board = [file for file in (self.path / BOARD).glob("*") if _EVENTS.fullmatch(file.name)]
        return {file.relative_to(self.path).as_posix(): None for file in [*files, *board]}

    def _is_own(self, name: str, own: dict[str, str | None]) -> bool:
        path = self.path / name
        return name in own and path.is_file() and own[name] in (None, _digest(path))

    def _holds_run(self, own: dict[str, str | None]) -> bool:
        """Whether something was trained: a state, or a checkpoint."""
        if newest_state(self.states, weights=False)[0] is not None:
            return True
        return any((self.path / name).exists() for name in own if name.endswith("config.json"))

    def _in_the_way(self, own: dict[str, str | None] | None) -> Path | None:
        """Return something that no run wrote and that a run would replace, or that would be read with its checkpoint."""
        for entry in sorted(self.path.iterdir()):
            beside = _is_written(entry.name) or (is_read(entry.name) and not entry.is_dir())
            if beside and not self._is_own(entry.name, own or {}):
                return entry
        board = self.path / BOARD
        if os.path.lexists(board) and not (board.is_dir() and (own is not None or not any(board.iterdir()))):
            return board
        return foreign_in(self.states, of_a_run=own is not None)

    def _mark(self, files: dict[str, str | None]) -> None:
        listed = {name: digest for name, digest in files.items() if name != MARK}
        _replace_text(self.path / MARK, json.dumps({"written_by": "textdiff", "files": listed}, indent=1) + "\n")

    # ------------------------------------------------------------------------------------------------------- the lock

    def _check_lock(self) -> None:
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDONLY | _NOFOLLOW)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ValueError(f"{self.path / LOCK} is not a run's lock ({error.strerror}); move it") from error
        try:
            self._check_content(descriptor)
            if not _locked(descriptor, exclusive=False):
                raise ValueError(self._held_by(descriptor))
        finally:
            os.close(descriptor)

    def _taken(self) -> int:
        """Return the descriptor of the lock, which this process then has."""
        path, patience = self.path / LOCK, time.monotonic() + PATIENCE
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NOFOLLOW, 0o644)
            try:
                self._check_content(descriptor)
                if _locked(descriptor, exclusive=True):
                    # the run before may have removed the file between opening and locking
                    if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                        return descriptor
                elif time.monotonic() > patience:
                    raise ValueError(self._held_by(descriptor))
                else:
                    time.sleep(0.05)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _check_content(self, descriptor: int) -> None:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not is_file or not re.fullmatch(rb"\d*\n?", _read(descriptor)):
            raise ValueError(f"{self.path / LOCK} is not a run's lock; move it, or give another {self.name}")

    def _held_by(self, descriptor: int) -> str:
        process = _read(descriptor).decode("utf-8", "replace").strip() or "unknown"
        return (
            f"{self.name} {self.path} is held by another run (process {process}); wait for it, or give another folder"
        )


def _read(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 64)


def _locked(descriptor: int, exclusive: bool) -> bool:
    """Take the lock, if the file system has any; False where another process has it."""
    if fcntl is None:
        return True
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return True
    return True


def check_writable(folder: Path, name: str) -> None:
    """Refuse a path that is not a folder, or cannot be made or written to. Leaves no trace.

    Raises:
        ValueError: Naming the option, and what is in the way.
    """
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} {str(folder)[:80]} cannot be a folder ({error}); give another path") from error
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        what = "a link to nothing" if place.is_symlink() and not place.exists() else "not a folder"
        raise ValueError(f"{name} {folder} cannot be a folder: {place} is {what}; give another path")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"{name} {folder} cannot be written: {place} ({error.strerror}); give another path") from error


def _inside(name: str) -> bool:
    return bool(name) and ".." not in Path(name).parts and not Path(name).is_absolute()


def _is_written(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in WRITTEN)


def _digest(file: Path) -> str | None:
    """Return the sha256 of a file, None for what is not one."""
    if not file.is_file():
        return None
    found = file.stat()
    return _digest_once(file, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_once(file: Path, *stands: int) -> str:
    """The weights may be large, and are asked after several times as a run begins."""
    return digest(file)


def _replace_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with part.open("x", encoding="utf-8") as file:  # never over a file that is there
            file.write(text)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
