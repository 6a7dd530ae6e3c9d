r"""What a filled text promises, whatever the text, the gaps, the model and the way it fills.

    fixed text      comes back byte for byte, and offsets cut out the gaps
    gaps            keep what was asked (tokens, words, choices, pattern, must, banned) and hold no special token
    randomness      a text's filling depends on its seed alone, not on what it is filled with, nor on padding

Texts are of any script, with white space, control characters, combining marks, and whatever spells a special token.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from stock import PATHS, filler

from textdiff.gaps import Gap, Parts, parse, tidy
from textdiff.wordcount import count_words

TEXTS, AGAIN = 16, 5  # filled by one call; of these, how many are filled again in another batch
CASES = 600  # of all paths together, in the quick form
MANY = int(os.environ.get("TEXTDIFF_CASES", "100000"))  # in the long form
SLOW = ("causal, bytes", "causal, byte fallback", "rewriting")  # get half as many cases
SHARE = 0.15  # of texts that may be refused, each for a reason in REASONS
REASONS = [
    r"two gaps touch; put text between them",
    r"this tokenizer has no tokens that spell a text with ",
    r"nothing of (exactly|up to) \d+ tokens fits ",
    r"no text keeps .* all at once; ask for less",
    r"\d+ gaps, and this model marks \d+ at most",
    r"no number of tokens .* fits what is asked of a gap",
    r"no text of up to \d+ tokens keeps what is asked",
]
LITERALS = """[MASK] [CLS] [SEP] [PAD] [UNK] <mask> <s> </s> <pad> <unk> <extra_id_0> <extra_id_7> <|endoftext|> <fim_middle>
    <|mdm_mask|> [GAP] [GAP:2] \\[GAP] [GAP [FILL] [END] [BOS] <|2|> <0x0A> ##s ▁ \\ \\\\ ] | /""".split()
BLOCKS = [
    (0x20, 0x7E),
    (0, 0x1F),
    (0x300, 0x36F),
    (0x590, 0x6FF),
    (0x2000, 0x206F),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1F6FF),
]
PATTERNS = (r"[a-z]+", r"[0-9]{1,2}", r"(red|green)( wine)?", r"[A-Z]?[a-z ]*", r".{0,6}", r"o|n|on( no)*", r"[^/]+")
WORDS = ("red", "green", "yes", "no", "maybe", "the people", "1787-09", "We", "don't", "union.")
ODD = ("日本", "naïve", "a|b", "[GAP]", "a,b]", "x/y", " in", "1|2", "\\", "[MASK]", "</s>")
RULES = ("posterior", "fresh", "ranked", "partial:0.3")


@dataclass(frozen=True)
class Case:
    """Texts that are filled by one call, and how."""

    texts: tuple[tuple[str | Gap, ...], ...]
    options: dict[str, Any]
    odd: int  # which of them is filled alone, too


# Strategies are made once: made in every draw, they take more time than the texts.
SOME = st.booleans()
SEVERAL = st.integers(0, 3)
SPACES = st.sampled_from(["", " ", " "])
WORD = st.sampled_from(WORDS)
CHOICES = st.lists(WORD, min_size=1, max_size=3)
PIECE = st.one_of(
    st.text(st.one_of(*(st.characters(min_codepoint=a, max_codepoint=b) for a, b in BLOCKS)), max_size=6),
    WORD,
    st.sampled_from(LITERALS),
    st.sampled_from(" \n\t\u00a0\u3000"),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)
STRETCH = st.one_of(
    st.lists(WORD, min_size=1, max_size=4).map(" ".join), st.lists(PIECE, min_size=1, max_size=4).map("".join)
)
KINDS = st.sampled_from("free free known tokens words choices pattern must".split())
ONE, FEW, PATTERN = st.sampled_from([0, 1, 2]), st.sampled_from([1, 1, 1, 2, 2, 3]), st.sampled_from(PATTERNS)
STRANGE = st.lists(st.sampled_from(ODD), max_size=1)
OPTIONS = {
    "seed": st.integers(0, 1 << 32),
    "temperature": st.sampled_from([0.0, 0.7, 1.0]),
    "max_gap": st.integers(1, 5),
    "max_calls": st.sampled_from([4, 12, 24]),
    "rule": st.sampled_from(RULES),
    "num_return_sequences": st.sampled_from([1, 1, 1, 2]),
}
STEPS = st.sampled_from([{}, {"num_steps": 1}, {"num_steps": 3}])
FURTHER = st.sampled_from(
    [{}, {}, {}, {"banned": ["e"]}, {"banned": ["[MASK]", "the", " n"]}, {"top_k": 5}, {"top_p": 0.5}]
)
NUMBER = st.integers(0, TEXTS - 1)


def gap(draw: st.DrawFn, name: str | None) -> Gap:
    kind, low, more = draw(KINDS), draw(SEVERAL), draw(SEVERAL)
    few = [(low, max(low + more, 1)), (low, None), (None, low + 1)][draw(ONE)]
    if kind == "free":
        return Gap(name=name)
    if kind == "known":
        return Gap.of(low + 1, name)
    if kind == "choices":
        return Gap(name=name, choices=(*draw(CHOICES), *draw(STRANGE)))
    if kind == "pattern":
        return Gap(name=name, pattern=draw(PATTERN))
    if kind == "must":
        return Gap(low, name=name, must=(draw(WORD),))
    return Gap(*few, unit="words" if kind == "words" else "tokens", name=name)


def parts(draw: st.DrawFn) -> tuple[str | Gap, ...]:
    """Text and gaps by turns; a gap may begin it and end it, and gaps of known length may touch."""
    made: list[str | Gap] = [draw(STRETCH)] if draw(SOME) else []
    count = draw(FEW)
    for number in range(count):
        made.append(gap(draw, f"n{number}" if draw(SOME) else None))
        if number + 1 < count or draw(SOME):
            made.append(draw(STRETCH) + draw(SPACES))
    space = draw(SPACES)
    made = [f"{part}{space}" if isinstance(part, str) and number == 0 else part for number, part in enumerate(made)]
    return tuple(made)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    options = {name: draw(strategy) for name, strategy in OPTIONS.items()} | draw(STEPS) | draw(FURTHER)
    return Case(tuple(parts(draw) for _ in range(TEXTS)), options, draw(NUMBER))


# ------------------------------------------------------------------------------------------------- as one string


def written(whole: Parts, mask: str | None) -> str | None:
    """The same text in the language of strings; None where that cannot say it."""
    text = ""
    for part in whole:
        if isinstance(part, str):
            marks = re.compile("|".join([r"\[GAP(?![\w-])", *([re.escape(mask)] if mask else [])]))
            text += marks.sub(lambda m: "\\" + m[0], part)
        elif text.endswith("\\"):
            return None
        else:
            text += _gap(part)
    return text if _said(text, mask) == tidy(whole) else None


def _said(text: str, mask: str | None) -> list[str | Gap] | None:
    try:
        return parse(text, mask)
    except ValueError:  # a mask token that two parts spell together
        return None


def _gap(gap: Gap) -> str:
    said = [f"name={gap.name}"] if gap.name else []
    if gap.pattern is not None:
        said.append("/" + gap.pattern.replace("/", "\\/") + "/")
    if gap.choices:
        escaped = [re.sub(r"([\\|,\]\[/])", r"\\\1", choice) for choice in gap.choices]
        said.append("|".join(escaped if len(escaped) > 1 else escaped * 2))
    said += ["must=" + re.sub(r"([\\|,\]\[/])", r"\\\1", string) for string in gap.must]
    if gap.min is not None or gap.max is not None:
        low, high = ("" if n is None else str(n) for n in (gap.min, gap.max))
        said.append((low if low == high else f"{low}-{high}") + ("w" if gap.unit == "words" else ""))
    return f"[GAP{':' if said else ''}{','.join(said)}]"


# ------------------------------------------------------------------------------------------------- what is promised


def stands(string: str, text: str) -> bool:
    """Whether the string is in the text, no letter before it or after it that would make it part of a longer word."""
    before, after = (r"(?<![^\W_])", r"(?![^\W_])")
    ends = before * string[0].isalnum() + re.escape(string) + after * string[-1].isalnum()
    return re.search(ends, text) is not None or bool(re.search("[\u0e00-\uffff]", text)) and string in text


def assert_kept(gap: Gap, found: dict[str, Any], options: dict[str, Any], once: bool) -> None:
    """What was asked of a gap, of its text and its tokens; `once`: its length was decided in one step."""
    count, text, words = len(found["tokens"]), found["text"], count_words(found["text"])
    if gap.unit == "tokens":
        assert (gap.min or 0) <= count and (gap.max is None or count <= gap.max), (gap, found)
    else:
        assert (gap.min or 0) <= words and (gap.max is None or words <= gap.max), (gap, found)
    if gap.free and once:
        assert count <= options["max_gap"], (gap, found)
    assert not gap.choices or text in gap.choices, (gap, found)
    assert gap.pattern is None or re.fullmatch(gap.pattern, text), (gap, found)
    assert all(stands(string, text) for string in gap.must), (gap, found)
    assert not any(string in text for string in options.get("banned", ())), (gap, found)
    assert found["name"] == gap.name


def assert_promises(
    whole: Parts, result: dict[str, Any], options: dict[str, Any], special: set[str], once: bool
) -> None:
    text, end, found = result["generated_text"], 0, iter(result["gaps"])
    for part in tidy(whole):
        if isinstance(part, str):
            assert text[end : end + len(part)].encode() == part.encode(), (whole, text)
            end += len(part)
            continue
        gap = next(found)
        assert gap["start"] == end and text[gap["start"] : gap["end"]] == gap["text"], (whole, gap)
        end = gap["end"]
        assert_kept(part, gap, options, once)
        assert not special & {*gap["tokens"]} and "" not in gap["tokens"], gap  # special tokens spell nothing
        assert len(gap["probabilities"]) == len(gap["tokens"]) and all(0 <= p <= 1 for p in gap["probabilities"]), gap
        assert gap["score"] <= 1e-6
    assert end == len(text) and next(found, None) is None
    assert result["named"] == {gap["name"]: gap["text"] for gap in result["gaps"] if gap["name"]}


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Two fillings of one text: the same words; scores to what float32 keeps."""
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys(), (left, right)
        if "error" in left:
            assert left == right
            continue
        assert left["generated_text"] == right["generated_text"], (left, right)
        assert [gap["tokens"] for gap in left["gaps"]] == [gap["tokens"] for gap in right["gaps"]]
        assert left["score"] == pytest.approx(right["score"], abs=1e-4)


def check(path: str, case: Case, tally: Counter[str]) -> None:
    fill = filler(path)
    special, mask = {*fill.route.tokenizer.all_special_tokens}, fill.route.tokenizer.mask_token
    once = fill.route.spaced or case.options.get("num_steps", fill.route.steps) == 1
    case = case if fill.route.searches else replace(case, options={**case.options} | {"max_calls": None})
    said = [written(whole, mask) if number % 2 else None for number, whole in enumerate(case.texts)]
    given = [list(whole) if text is None else text for text, whole in zip(said, case.texts, strict=True)]
    results = fill(given, on_error="return", **case.options)
    for whole, result in zip(case.texts, results, strict=True):
        tally["texts"] += 1
        if "error" in result[0]:
            reason = result[0]["error"]
            assert "\n" not in reason and any(re.search(known, reason) for known in REASONS), (whole, reason)
            tally["refused"] += 1
            continue
        texts = [filled["generated_text"] for filled in result]
        assert 1 <= len(texts) <= case.options["num_return_sequences"] and len({*texts}) == len(texts)
        for filled in result:
            assert_promises(whole, filled, case.options, special, once)
    # one of them alone, as parts; some of the others without it, the other way round
    rest = [(case.odd - number - 1) % TEXTS for number in range(AGAIN)]
    again = fill([list(case.texts[n]) for n in rest], on_error="return", **case.options)
    alone = fill([list(case.texts[case.odd])], on_error="return", **case.options)
    for number, result in zip([*rest, case.odd], [*again, *alone], strict=True):
        same(results[number], result)


def run(path: str, cases_in_all: int, number: int | None = None) -> Counter[str]:
    """Check so many cases; those of `number`, or any."""
    tally: Counter[str] = Counter()
    share = (1 if path in SLOW else 2) / (2 * len(PATHS) - len(SLOW))
    examples = max(1, round(cases_in_all * share / TEXTS))

    # a failure names its text; a smaller one would take hundreds of calls to find
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
        print_blob=number is None,
    )
    @given(cases())
    def of(case: Case) -> None:
        check(path, case, tally)

    (of if number is None else seed(number)(of))()
    print(f"{path}: {tally['texts']} texts, {tally['refused']} refused")
    assert tally["refused"] <= SHARE * tally["texts"]
    return tally


@pytest.mark.parametrize("path", PATHS)
def test_promises(path: str) -> None:
    run(path, CASES, 0)


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS)
def test_promises_at_length(path: str) -> None:
    run(path, MANY)
