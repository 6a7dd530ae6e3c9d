"""A pattern -> the automaton over bytes that accepts what all of it matches (by outlines_core, arXiv:2307.09702).

How large the automaton of a pattern becomes shows only when it is made: (a|b)*a(a|b){20} has a million states. So a pattern
is compiled in a process of its own, which has SECONDS and MEMORY and no more: whoever sends patterns to a server can have
them refused, and nothing else.
"""

import json
import os
import re
import subprocess
import sys
from typing import Any

import torch

from textdiff.constraints import Automaton
from textdiff.joining import MAX_STATES
from textdiff.validation import shown

SECONDS, MEMORY = 5, 1 << 30  # of processor time, and bytes
_STOP, _END = 256, "\U0010ffff"  # outlines' own end of a text, and a character that is none
_REMEDY = "ask for a shorter text, or for [0-9a-z], not \\w"
_PROGRAM = """
import json, sys
paths, pattern, most, seconds, memory = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError):
    pass
sys.path[:] = paths
from outlines_core import Index, Vocabulary
try:
    index = Index(pattern, Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)}))
except ValueError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit(0)
moves, final, start = index.get_transitions(), index.get_final_states(), index.get_initial_state()
if len(moves) > most:
    print(json.dumps({"states": len(moves)}))
else:
    edges = [[s, byte, to] for s, row in moves.items() for byte, to in row.items()]
    print(json.dumps({"start": start, "final": list(final), "edges": edges}))
"""


def compile_pattern(pattern: str) -> Automaton:
    """The automaton of the pattern, in the syntax of Rust's regex without anchors, look-around and back-references.

    outlines_core 0.2.14 stops at the first place where a text may end, unless the byte in hand goes on to another one:
    (red)( wine)? matches "red" alone. With a character behind it that no text has, no match ends early.
    ValueError where the pattern cannot be read, matches nothing, or needs more than MAX_STATES states, SECONDS or MEMORY.
    """
    if _END in pattern:
        raise ValueError(f"the pattern {shown(pattern)} holds U+10FFFF, which is no character; leave it out")
    largest = max((int(n) for n in re.findall(r"\d{1,9}", " ".join(_counts(pattern)))), default=0)
    if len(pattern) > MAX_STATES or largest > MAX_STATES:
        raise _too_large(pattern, f"more than {MAX_STATES} states")
    found = _compiled(f"(?:{pattern}){_END}") if _balanced(pattern) else {"error": ""}
    if found is None:
        raise _too_large(pattern, f"more than {SECONDS} s or {MEMORY >> 20} MB to compile")
    if "states" in found:
        raise _too_large(pattern, f"{found['states']} states, more than {MAX_STATES}")
    if "error" in found:
        fault = "matches nothing" if "vocabulary" in found["error"] else "cannot be used"
        raise ValueError(
            f"the pattern {shown(pattern)} {fault}; it describes a whole text, in the syntax of Rust's regex without "
            "anchors (^, $, \\b), look-around and back-references"
        )
    return _read(found)


def _too_large(pattern: str, needs: str) -> ValueError:
    return ValueError(f"the pattern {shown(pattern)} needs {needs}; {_REMEDY}")


def _counts(pattern: str) -> list[str]:
    """The repetition counts {n}, {n,m} in a pattern."""
    return re.findall(r"\{([\d,\s]*)\}", re.sub(r"\\[pPxuU]\{[^}]*\}", "", pattern))


def _compiled(pattern: str) -> dict[str, Any] | None:
    """What the program says; None where it came to one of its limits."""
    asked = json.dumps([[path or os.getcwd() for path in sys.path], pattern, MAX_STATES, SECONDS, MEMORY])
    try:
        run = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=asked, capture_output=True, text=True, encoding="utf-8", timeout=3 * SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    if run.returncode < 0 or "MemoryError" in run.stderr:
        return None
    if run.returncode:
        raise RuntimeError(f"the pattern could not be compiled: {run.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def _read(found: dict[str, Any]) -> Automaton:
    edges = torch.tensor(found["edges"], dtype=torch.int64).view(-1, 3)
    start, final = int(found["start"]), torch.tensor(found["final"], dtype=torch.int64)
    ended = torch.isin(edges[:, 2], final)
    moves: dict[tuple[int, int], int] = {(s, byte): to for s, byte, to in edges.tolist()}
    states = sorted({start, *edges[:, 0].tolist()} - {*final.tolist()} - {start})
    states = [start, *states]
    number = torch.zeros(int(edges[:, [0, 2]].max()) + 1 if len(edges) else start + 1, dtype=torch.int64)
    number[torch.tensor(states)] = torch.arange(len(states))
    step = torch.full((len(states), 256), -1)
    kept = edges[~ended & (edges[:, 1] < 256)]
    step[number[kept[:, 0]], kept[:, 1]] = number[kept[:, 2]]
    finals = {*final.tolist()}
    return Automaton(step, torch.tensor([_walk(moves, state, _END.encode()) in finals for state in states]))


def _walk(moves: dict[tuple[int, int], int], state: int | None, text: bytes) -> int | None:
    for byte in text:
        state = None if state is None else moves.get((state, byte))
    return state


def _balanced(pattern: str) -> bool:
    """Whether no bracket closes that was not opened: in brackets "a)(b" could be read."""
    depth, inside, place = 0, 0, 0
    while place < len(pattern):
        sign = pattern[place]
        if sign == "\\":
            place += 1
        elif inside:
            if sign == "[":  # classes within classes
                inside += 1
            elif sign == "]" and not _first(pattern, place):
                inside -= 1
        elif sign == "[":
            inside = 1
        else:
            depth += (sign == "(") - (sign == ")")
            if depth < 0:
                return False
        place += 1
    return True


def _first(pattern: str, place: int) -> bool:
    """Whether a closing bracket is the first of its class, and so a letter."""
    return pattern[place - 1] == "[" or pattern[place - 2 : place] == "[^"
