"""What is asked of a gap is bounded before it is worked out, and what was asked once does not pile up."""

import random
import resource
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch
from test_automata import tokenizer
from tiny import tiny_checkpoint

from textdiff import automata, patterns
from textdiff.automata import MAX_STRINGS, compile_gap
from textdiff.caching import Cache
from textdiff.filling import prepare
from textdiff.gaps import Gap, parse
from textdiff.patterns import compile_pattern
from textdiff.wordcount import MOST

HUGE = [
    "a{100000}",
    "((a{50}){50}){50}",
    "(a|b)*a(a|b){25}",
    r"\w{2000}",
    "a" * 30_000,
    "(" * 5000 + "a" + ")" * 5000,
    "(a{0,999}b{0,999}){0,999}",
]


@pytest.mark.parametrize("pattern", HUGE, ids=lambda pattern: pattern[:20])
def test_a_pattern_that_is_too_large_is_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within its own time and memory, in a process of its own; this one takes less than 200 MB more."""
    monkeypatch.setattr(patterns, "SECONDS", 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"the pattern .* (needs|cannot be used)") as raised:
        compile_pattern(pattern)
    assert len(str(raised.value)) < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_patterns_of_a_usual_size_serve() -> None:
    for pattern in (
        r"\d{4}-\d{2}",
        r"\w{1,10}",
        "a{500}",
        "(foo|bar){0,40}",
        r"[[a-z]&&[^aeiou]]+",
        r"\p{Han}{2,4}",
        "[]a]+",
        r"[^\]]",
    ):
        assert bool(compile_pattern(pattern).accept.any())


@pytest.mark.parametrize(
    "pattern", ["(", "a)(b", "[", "*", "a{2,1}", "(?=a)", "^a", r"\b", r"(a)\1", "\U0010ffff", "[z-a]", "(?P<n"]
)
def test_a_pattern_that_cannot_be_read(pattern: str) -> None:
    with pytest.raises(ValueError, match="the pattern"):
        compile_pattern(pattern)


def test_a_pattern_starts_no_process_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    t, runs = tokenizer("bytes"), []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: (runs.append(1), run(*args, **kwargs))[1])
    for _ in range(3):
        compile_gap(t, len(t), pattern="never before[0-9]")
    assert len(runs) == 1


@pytest.mark.parametrize(
    "asked",
    [
        {"choices": ["x" * (MAX_STRINGS + 1)]},
        {"choices": [f"{number:06}" for number in range(MAX_STRINGS // 6 + 1)]},
        {"banned": ["y" * (MAX_STRINGS + 1)]},
        {"must": ["z" * 30_000]},
        {"must": [chr(97 + k) * 40 for k in range(20)]},
        {"words": (1, MOST + 1)},
        {"words": (10**12, None)},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_strings_and_numbers_that_are_too_large_are_refused(asked: dict[str, Any]) -> None:
    t = tokenizer("bytes")
    with pytest.raises(ValueError) as raised:
        compile_gap(t, len(t), **asked)
    assert "give" in str(raised.value) or "ask for" in str(raised.value)
    assert len(str(raised.value)) < 700


LONG = ["[GAP:1000000000]", "[GAP:1000000000-]", "[GAP:1000000000w]", "[GAP:5-999999999999w]"]


@pytest.mark.parametrize("text", LONG)
def test_a_gap_that_no_model_reads_is_refused(text: str) -> None:
    checkpoint = tiny_checkpoint("parallel")
    with pytest.raises(ValueError, match="give (a shorter gap|fewer)"):
        prepare(parse(f"We {text} on."), checkpoint.tokenizer, checkpoint.specials, longest=64)


@pytest.mark.slow
def test_it_is_refused_before_it_is_made() -> None:
    """In a process that may have no more than 6 GB; the row of so many masks alone has 8."""
    code = (
        "import resource, transformers, textdiff\n"
        "fill = transformers.pipeline('text-infilling')\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        f"for text in {LONG}:\n"
        "    try: fill(f'We {text} on.')\n"
        "    except ValueError as error: print('refused:', error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.count("refused: gap 1") == len(LONG), run.stderr[-500:]


def test_digits_without_end_are_no_length() -> None:
    for text in ("We [GAP:" + "9" * 5000 + "] on.", "We [GAP:1-" + "9" * 5000 + "w] on."):
        with pytest.raises(ValueError, match="says nothing of a gap"):
            parse(text)


def test_what_was_asked_once_is_kept_up_to_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 other choices and patterns: the cache never holds more than its limit, and what was just asked for is there."""
    t, cache = tokenizer("bytes"), Cache[Any](2 << 20, automata._bytes)
    monkeypatch.setattr(automata, "_AUTOMATA", cache)
    for number in range(80):
        one = compile_gap(t, len(t), choices=[f"the {number} of {number * 7919}"])
        assert cache.bytes <= cache.limit
        assert compile_gap(t, len(t), choices=[f"the {number} of {number * 7919}"]) is one
    assert cache.bytes > cache.limit // 4


def test_a_cache_forgets_what_was_asked_for_longest_ago() -> None:
    made: list[str] = []
    cache = Cache[str](10, len)

    def ask(key: str, text: str) -> str:
        return cache.get(key, lambda: (made.append(key), text)[1])

    assert [ask("a", "1234"), ask("b", "1234"), ask("a", "1234"), ask("c", "1234"), ask("a", "1234")] == ["1234"] * 5
    assert made == ["a", "b", "c"] and cache.bytes == 8
    ask("b", "1234")
    assert made == ["a", "b", "c", "b"]
    ask("large", "x" * 11)
    ask("large", "x" * 11)
    assert made[-2:] == ["large", "large"] and cache.bytes == 8  # more than all that is kept: not kept


def test_a_cache_is_the_same_for_all_threads() -> None:
    """8 threads ask for 50 keys in other orders: each gets what the key makes, and the count of bytes is right."""
    cache, wrong = Cache[str](60, len), []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(500):
            key = draw.randrange(50)
            found = cache.get(key, lambda key=key: (time.sleep(0), str(key) * 3)[1])
            if found != str(key) * 3:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and cache.bytes == sum(size for _, size in cache._kept.values()) <= 60


def test_a_forbidden_length_costs_nothing() -> None:
    """The tables of a gap are never larger than MAX_TABLE, whatever is asked of it together."""
    t = tokenizer("bytes")
    machine = compile_gap(t, len(t), words=(1, 40), banned=["the", "of"], must=["people"])
    assert machine is not None and machine.step.numel() <= automata.MAX_TABLE and machine.step.dtype == torch.int64
    assert Gap(1, 40, unit="words", must=("people",)).must == ("people",)
