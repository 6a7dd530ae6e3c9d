"""How a run begins and ends: launches that would silently not do what they look like are refused; signals stop in order.

| signal | exit code | while it starts | while it trains |
|---|---|---|---|
| SIGINT (Ctrl-C) | 130 | stops at once | finishes the step, saves, stops; the second one stops at once |
| SIGTERM | 143 | stops at once | finishes the step, saves, stops |
| SIGHUP, unless ignored (nohup) | 129 | stops at once | finishes the step, saves, stops |

Each ends with one line on standard error. Bad input ends with code 2. No run ends because nobody reads what it says.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from textdiff.terminal import hold_places, lasting, settle

LAUNCHED = "TORCHELASTIC_RUN_ID"  # in the environment of processes that torchrun started
AGAIN = 0.5  # seconds after which a signal that was swallowed ends what runs all the same


class Interrupted(KeyboardInterrupt):
    """A signal ended the run, in order.

    Attributes:
        code: The exit code that a shell expects, 128 and the signal's number.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.code = 128 + int(number)


def run_command(command: Callable[[], int | None], prog: str, *, trains: bool = True) -> int:
    """Run a command to its exit code, and tell errors of input and signals in one line.

    Args:
        command: What is to be done, its imports included: loading takes seconds, in which signals come, too. It may return
            an exit code.
        prog: The name that the line begins with.
        trains: Whether it goes on where nobody takes its standard output any more. Others then end, without a word where
            it is the reader who has enough.
    """
    hold_places()
    came: list[int] = []
    with lasting(output=trains), _stopping_at_once(came):
        try:
            code = _done(command)
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt as stop:
            came.clear()
            code = _stopped(stop, prog)
        except Exception as error:  # an import that a signal broke off may swallow it, and fail later
            number = came[0] if came else 0
            came.clear()
            code = _stopped(_interrupted(number), prog) if number else _failed(error, prog, trains)
    settle()
    return code


def _done(command: Callable[[], int | None]) -> int:
    try:
        return command() or 0
    except SystemExit as leave:  # tyro has said what is wrong, or what --help asked for
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)


def _stopped(stop: KeyboardInterrupt, prog: str) -> int:
    message = str(stop) or ("stopped" if type(stop) is KeyboardInterrupt else "")
    if message and _is_first():
        print(f"\n{prog}: {message}", file=sys.stderr)
    return stop.code if isinstance(stop, Interrupted) else 130


def _failed(error: Exception, prog: str, trains: bool) -> int:
    """One line of an error of input, of the disk or of memory; any other is a bug, and raised."""
    if isinstance(error, BrokenPipeError) and not trains:  # whoever read the output has enough
        return 0
    if not isinstance(error, ValueError | OSError | ImportError | MemoryError):
        raise error
    from textdiff.config import complain

    return complain(error if str(error) else type(error)("not enough memory"), prog)


def _interrupted(number: int) -> Interrupted:
    return Interrupted("stopped" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}", number)


@contextmanager
def _stopping_at_once(came: list[int]) -> Iterator[None]:
    """Signals end what runs, and are written down. In the main thread; no other may say what signals do.

    What a signal raises may be swallowed, by a bare `except` of an import or where Python cannot raise (a destructor). So it
    is raised again, each half second, unless it is on its way up: what is on its way is what is being handled.
    """
    before: dict[int, Any] = {}
    told = sys.unraisablehook

    def stop(number: int, frame: Any) -> None:
        came.append(number)
        signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
        raise _interrupted(number)

    def again(number: int, frame: Any) -> None:
        handled: BaseException | None = sys.exc_info()[1]
        while handled is not None and not isinstance(handled, Interrupted):
            handled = handled.__context__
        if came and handled is None:
            raise _interrupted(came[0])

    def tell(lost: Any) -> None:
        if not isinstance(lost.exc_value, Interrupted):
            told(lost)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, again)
        sys.unraisablehook = tell
    try:
        yield
    finally:
        if before:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = told
        for known, handler in before.items():
            signal.signal(known, signal.SIG_DFL if handler is None else handler)


def say(line: str) -> None:
    """Print a line, of several processes in the first alone."""
    if _is_first():
        print(line, flush=True)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def check_launch(processes: int | None = None) -> None:
    """ValueError with the right command for a wrong launch. Once before, once after the Accelerator counted processes."""
    asked = world_size()
    if processes is not None and processes != asked:
        raise ValueError(
            f"{asked} processes were launched but train apart from each other ({processes} in each group): on CPUs use "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N train.py"
        )
    wanted = _asked_of_accelerate()
    if wanted > 1 and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"accelerate launch --cpu started one process, not {wanted}; use "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {wanted} train.py"
        )


def world_size() -> int:
    """Return how many processes a launcher has started, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _asked_of_accelerate() -> int:
    """The --num_processes of the `accelerate launch` above this process, 1 where there is none (or no /proc to ask)."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return 1
    if not any(Path(word).name.startswith("accelerate") for word in words[:3]) or "launch" not in words:
        return 1
    for number, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__num_processes":
            value = value or words[number + 1]
            return int(value) if value.isdecimal() else 1
    return 1


class Stoppable(Protocol):
    """What is asked to stop.

    Attributes:
        stop: Set by the first signal: stop after the present step.
        signal: The number of that signal.
        idle: Whether no step is being made and nothing written, so that the run may be left right away.
        at_once: Set where the user does not want to wait.
    """

    stop: bool
    signal: int
    idle: bool
    at_once: bool


class Signals:
    """SIGINT, SIGTERM and SIGHUP ask for a stop after the step; a second Ctrl-C stops at once."""

    def __init__(self, running: Stoppable) -> None:
        self.running = running
        self.before: dict[int, Any] = {}
        # of one Ctrl-C a process under torchrun gets two: the terminal's, and torchrun's own
        self.patience = 2 if LAUNCHED in os.environ else 1

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._answer)

    def _answer(self, number: int, frame: Any) -> None:
        running = self.running
        if number == signal.SIGINT:
            self.patience -= 1
            running.at_once = self.patience < 0
        if not running.stop:
            running.stop, running.signal = True, number
        if running.at_once or running.idle:
            running.idle = False
            raise Interrupted("", running.signal)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
