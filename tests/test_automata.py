"""Patterns, choices, numbers of words and banned strings against Python's own reading of the text that tokens spell.

For each family of tokenizers, trained on a few lines: byte-level BPE, WordPiece, Unigram, and BPE with byte fallback.
"""

import re
from functools import cache
from itertools import product

import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from textdiff.automata import compile_gap
from textdiff.constraints import Automaton, Constraint, draw_run
from textdiff.patterns import compile_pattern
from textdiff.spelling import SOFT, joined, lead_of, openings, pieces, read_gap
from textdiff.tokenizer import encode, train_tokenizer

TEXTS = [
    "We the People of the United States, in Order to form a more perfect Union.",
    "café and wine, red or green: don't stop; 1787-09, 2024-05 (so it is)",
    "日本 語 日本 🙂 naïve yes no maybe Yes No",
]
FAMILIES = ("bytes", "wordpiece", "unigram", "fallback")
PATTERNS = (
    r"[0-9]{4}-[0-9]{2}",
    r"[A-Z][a-z]+",
    r"(red|green|blue)( wine)?",
    r".{0,5}",
    r"a|ab|abc( d)*",
    r"[^ \n]+, [^,]*",
    r"(?i)yes|no",
    r"é|日本?|🙂+",
    r"\d*",
    r"[^ \n]+ [^ \n]+\.?",
)


@cache
def tokenizer(family: str) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if family == "bytes":
        return train_tokenizer(TEXTS, 330, lengths=2)
    if family == "wordpiece":
        inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer = normalizers.BertNormalizer(lowercase=False)
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=140, special_tokens=special, show_progress=False)
    elif family == "unigram":
        inner = Tokenizer(models.Unigram())
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="[UNK]", show_progress=False)
    else:  # characters, and bytes for what is none of them
        letters = sorted({*"".join(TEXTS[:2])} - {" "})
        names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
        vocabulary = {name: number for number, name in enumerate(names)}
        inner = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="[UNK]"))
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        inner.decoder = decoders.Sequence(parts)
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]"
        )
    inner.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]", cls_token="[CLS]"
    )


def text_ids(family: str) -> list[int]:
    spelt = pieces(tokenizer(family), len(tokenizer(family)))
    return [number for number, piece in enumerate(spelt) if piece is not None]


def decoded(family: str, ids: list[int]) -> str:
    """As transformers does, but for the spaces that a WordPiece decoder puts around letters which have none in writing."""
    text = tokenizer(family).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return re.sub(" ?([日本語]) ?", r"\1", text) if family == "wordpiece" else text


def accepts(a: Automaton, ids: tuple[int, ...]) -> bool:
    state = 0
    for number in ids:
        state = int(a.step[state, a.kind[number]])
        if state < 0:
            return False
    return bool(a.accept[state])


def draws(a: Automaton, count: int) -> list[tuple[int, ...]]:
    """Strings of up to 9 tokens that the automaton accepts, by random scores."""
    noise, rows = torch.Generator().manual_seed(1), []
    lengths, size = Constraint(automaton=a).lengths(9), len(a.kind)
    for number in range(count):
        n = lengths[number % len(lengths)]
        scores, u = 2 * torch.randn(n, size, generator=noise), torch.rand(n, generator=noise, dtype=torch.float64)
        rows.append(tuple(draw_run(Constraint(automaton=a), scores, torch.full((n,), -1), u).tolist()))
    return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", [*TEXTS, "é", "We go", "don't (we) go"])
def test_pieces_of_a_text_are_what_decode_says(family, text):
    spelt = pieces(tokenizer(family), len(tokenizer(family)))
    ids = [number for number in encode(tokenizer(family), text) if spelt[number] is not None]
    text = joined([spelt[number] for number in ids])
    assert text.lstrip(" ") == decoded(family, ids).lstrip(" ")
    assert text.strip() or family == "unigram"


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.sampled_from(FAMILIES), st.data())
def test_pieces_of_any_tokens_are_what_decode_says(family, data):
    spelt = pieces(tokenizer(family), len(tokenizer(family)))
    ids = data.draw(st.lists(st.sampled_from(text_ids(family)), min_size=1, max_size=12))
    if family == "wordpiece":
        ids = [number for number in encode(tokenizer(family), "We") if spelt[number]] + ids
    if family == "fallback":  # of broken characters it shows another number of replacement characters
        ids = [number for number in ids if spelt[number].isascii() or len(spelt[number]) > 1]
    parts = [spelt[number] for number in ids]
    text = joined(parts) if family == "wordpiece" else b"".join(parts).decode("utf-8", "replace")
    assert text.lstrip(" ") == decoded(family, ids).lstrip(" ")


def test_what_is_no_text_has_no_piece():
    for family in FAMILIES:
        t = tokenizer(family)
        spelt = pieces(t, len(t) + 3)
        assert len(spelt) == len(t) + 3 and spelt[-3:] == (None,) * 3
        assert all(spelt[number] is None for number in t.all_special_ids)
        assert sum(piece is None for piece in spelt[:-3]) < 30
    assert (
        len(set(pieces(tokenizer("bytes"), 400)) & {bytes([byte]) for byte in range(256)}) == 256 - 13
    )  # no text has the rest


def test_added_words_are_text():
    t = train_tokenizer(TEXTS, 300)
    t.add_tokens(["<b>", "日本語"])
    ids = t.convert_tokens_to_ids(["<b>", "日本語"])
    spelt = pieces(t, len(t))
    assert [spelt[number].decode() for number in ids] == ["<b>", "日本語"] == [t.decode([number]) for number in ids]


def test_without_a_decoder_words_stand_apart():
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    t = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    assert pieces(t, 3) == (None, b" a", b" b") and openings(t, 3) == (None, b"a", b"b")
    assert t.decode([1, 2, 1]) == "a b a" == read_gap(t, [1, 2, 1], " ")


def test_tokenizers_that_cannot_be_read():
    inner = Tokenizer(models.BPE())
    inner.decoder = decoders.BPEDecoder()
    with pytest.raises(ValueError, match="decoder is a BPEDecoder"):
        pieces(PreTrainedTokenizerFast(tokenizer_object=inner), 4)


def test_where_a_gap_brings_its_space():
    t = tokenizer("bytes")
    assert [lead_of(t, before) for before in ("", "We", "We ", "(", "We\n")] == ["", "", " ", "", ""]
    t = tokenizer("wordpiece")
    assert [lead_of(t, before) for before in ("", "We", "We ", "(", "日")] == [" ", "", " ", " ", " "]
    for family in ("unigram", "fallback"):
        assert [lead_of(tokenizer(family), before) for before in ("", "We", "We ", "(")] == [" ", "", " ", ""]


@pytest.mark.parametrize("pattern", [*PATTERNS, r"a*?b*?", r"(a|b)*abb", "", "a|", "(ab|a)(bc|c)?", r"[^a]", r"\w+ ?"])
def test_patterns_are_python_s(pattern):
    """Byte by byte, of every string of up to three characters, and of words that the patterns know."""
    machine = compile_pattern(pattern)
    step, accept = machine.step.tolist(), machine.accept.tolist()
    texts = {"".join(t) for n in range(4) for t in product("ab1 éY日🙂\n,.", repeat=n)}
    texts |= {
        "red",
        "red wine",
        "green win",
        "2024-05",
        "2024-5",
        "Wet",
        "abc d d",
        "yES",
        "No",
        "aabb",
        "x, y",
        "12345",
    }
    for text in texts:
        state = 0
        for byte in text.encode():
            state = step[state][byte] if state >= 0 else -1
        assert (state >= 0 and accept[state]) == bool(re.fullmatch(pattern, text)), text


def keeps(text: str, pattern: str | None, choices: tuple, words: tuple | None, banned: tuple, must: tuple) -> bool:
    return (
        (pattern is None or re.fullmatch(pattern, text) is not None)
        and (not choices or text in choices)
        and (words is None or (words[0] <= number_of_words(text) <= words[1] and text == " ".join(text.split())))
        and not any(string in text for string in banned)
        and all(
            regex.search(f"{apart(string[0], '<!')}{string}{apart(string[-1], '!')}", text, regex.V1) for string in must
        )
    )


UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"


KNOWN = r"[À-ÖØ-öø-ɏΑ-Ωа-яא-ת\p{Han}\p{Hiragana}\p{Katakana}🙂\ufffd]"


def apart(end: str, look: str) -> str:
    """That no letter joins what ends in a letter of a script with spaces."""
    letter = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]"
    return f"(?{look}{letter})" if regex.match(letter, end, regex.V1) else ""


def number_of_words(text: str) -> int:
    """Between spaces, and each of the letters that are written without, with the signs that follow it."""
    letter = rf"[[{UNSPACED}]--[\p{{M}}]]"
    return len(regex.findall(rf"{letter}[[\S]--[\p{{L}}\p{{N}}_]]*|(?:(?!{letter})\S)+", text, regex.V1))


ASKED = [
    {"pattern": r"[A-Z][a-z]+"},
    {"pattern": r".{0,3}"},
    {"pattern": r"(?i)yes|no|[é日].?", "banned": ("N", "es")},
    {"choices": ("yes", "no", "the People", "", "日本")},
    {"words": (0, 1)},
    {"words": (2, 2), "banned": ("e", "it")},
    {"words": (1, 3), "pattern": r"[a-z ]+"},
    {"banned": ("e", "the", " a", "日")},
    {"banned": ("the", "h"), "pattern": "[a-z]*"},  # the one inside the other
    {"must": ("th", "he")},
    {"must": ("a", "日"), "banned": ("b",)},
    {"must": ("é",), "banned": ("f",), "pattern": ".{1,4}"},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lead", ["", " "])
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_exactly_the_texts_asked_for(family, lead, asked):
    """Both ways: accepted if and only if its text keeps all. Every string of one token, random ones of two and three,
    and some that were drawn, each also with one token changed.
    """
    t, noise = tokenizer(family), torch.Generator().manual_seed(0)
    what = {"pattern": None, "choices": (), "words": None, "banned": (), "must": ()} | asked
    spelt, first = pieces(t, len(t)), openings(t, len(t)) if lead else pieces(t, len(t))
    ids = torch.tensor(text_ids(family))
    rows = [()] + [(i,) for i in range(len(t))]
    for n in (2, 3):
        rows += map(tuple, ids[torch.randint(len(ids), (300, n), generator=noise)].tolist())
    try:
        a = compile_gap(t, len(t), lead=lead, **asked)
        drawn = draws(a, 40)
    except ValueError as error:
        assert "spell" in str(error)
        a = None
        drawn = []
    for row in filter(len, drawn):
        other, place = int(ids[torch.randint(len(ids), (1,), generator=noise)]), len(row) // 2
        rows += [row, (*row[:place], other, *row[place + 1 :])]
    right = 0
    for row in rows:
        bytes_of = [first[row[0]], *(spelt[i] for i in row[1:])] if row else []
        try:
            text = None if None in bytes_of else joined(bytes_of)
            if text is not None:
                b"".join(bytes_of).replace(SOFT, b" ").decode()
        except UnicodeDecodeError:
            text = None
        if text is not None and any(ord(c) > 0x7F and not regex.match(KNOWN, c, regex.V1) for c in text):
            continue  # a rare sign, see `characters.kinds`
        expected = text is not None and keeps(text, **what)
        assert (a is not None and accepts(a, row)) == expected, (row, text)
        assert not expected or read_gap(t, row, lead) == text
        right += expected
    assert bool(right) == (a is not None)


@settings(deadline=None, derandomize=True, max_examples=120)
@given(
    st.sampled_from(FAMILIES),
    st.sampled_from([{"pattern": p} for p in PATTERNS] + ASKED),
    st.sampled_from(["", " "]),
    st.integers(0, 2**32),
)
def test_what_is_drawn_reads_as_asked(family, asked, lead, seed):
    """And decode says the same text, but for its leading spaces."""
    t, noise = tokenizer(family), torch.Generator().manual_seed(seed)
    try:
        a = compile_gap(t, len(t), lead=lead, **asked)
    except ValueError as error:
        assert "spell" in str(error) and family in ("wordpiece", "unigram")
        return
    lengths = Constraint(0, None, a).lengths(9)
    n = lengths[seed % len(lengths)]
    scores, u = torch.randn(n, len(t), generator=noise), torch.rand(n, generator=noise, dtype=torch.float64)
    ids = draw_run(Constraint(automaton=a), scores, torch.full((n,), -1), u).tolist()
    text = read_gap(t, ids, lead)
    assert keeps(text, **{"pattern": None, "choices": (), "words": None, "banned": (), "must": ()} | asked)
    continues = family == "wordpiece" and lead == "" and ids and not pieces(t, len(t))[ids[0]].startswith(b" ")
    assert continues or decoded(family, ids).lstrip(" ") == text.lstrip(" ")


def test_a_word_of_another_kind_would_be_seen():
    """The reading of the test above tells a text that was asked for from one that was not."""
    assert not keeps("2024-5", PATTERNS[0], (), None, (), ()) and not keeps("ab", None, (), None, (), ("ba",))
    assert not keeps("a  b", None, (), (2, 2), (), ()) and not keeps("a the", None, (), None, ("the",), ())


def test_the_space_before_a_gap_is_no_part_of_it():
    t = tokenizer("bytes")
    a = compile_gap(t, len(t), choices=("the",), lead=" ")
    assert accepts(a, tuple(encode(t, " the"))) and not accepts(a, tuple(encode(t, "the")))
    a = compile_gap(t, len(t), choices=("the",))
    assert accepts(a, tuple(encode(t, "the"))) and not accepts(a, tuple(encode(t, " the")))
    t = tokenizer("wordpiece")  # where the first token has to begin a word, and writes no space
    a = compile_gap(t, len(t), choices=("the", "People", "."), lead=" ")
    for text in ("the", "People", "."):
        assert accepts(a, tuple(encode(t, text)))
    assert not any(
        name.startswith("##")
        for i, name in enumerate(t.convert_ids_to_tokens(range(len(t))))
        if a.step[0, a.kind[i]] >= 0
    )


def test_without_a_token_that_begins_with_a_space_none_is_asked_for():
    names = ["[PAD]", *"abc"]
    inner = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    inner.decoder = decoders.Fuse()
    t = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]")
    a = compile_gap(t, 4, pattern="ab+", lead=" ")
    assert accepts(a, (1, 2, 2)) and not accepts(a, (2,)) and read_gap(t, [1, 2], " ") == "ab"


def test_forbidden_tokens_are_never_allowed():
    t = tokenizer("bytes")
    (word,) = [number for number in encode(t, " the")]
    a = compile_gap(t, len(t), choices=("the",), lead=" ", forbidden=[word])
    assert not accepts(a, (word,)) and Constraint(automaton=a).lengths(9)
    special = [number for number in range(len(t)) if number not in text_ids("bytes")]
    assert (compile_gap(t, len(t), banned=["zz"]).step[:, a.kind[special]] < 0).all()


def test_nothing_asked_is_no_automaton_and_the_same_is_compiled_once():
    t = tokenizer("bytes")
    assert compile_gap(t, len(t)) is None and compile_gap(t, len(t), forbidden=[3], lead=" ") is None
    assert compile_gap(t, len(t), choices=["a", "b"]) is compile_gap(t, len(t), choices=("a", "b"))
    assert compile_gap(t, len(t), choices=["a", "b"]) is not compile_gap(t, len(t), choices=("b",))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pattern": "["}, r"'\[' cannot be used"),
        ({"pattern": "a)(b"}, "cannot be used"),
        ({"pattern": "^a$"}, "without anchors"),
        ({"pattern": r"(?=a)b"}, "look-around"),
        ({"pattern": r"(a)\1"}, "back-references"),
        ({"pattern": r"[a&&b]"}, "matches nothing"),
        ({"pattern": "a+", "banned": ["a"]}, "no text keeps pattern 'a\\+', banned \\('a',\\) all at once"),
        ({"choices": ["yes"], "words": (2, 3)}, "no text keeps"),
        ({"words": (3, 2)}, "give two whole numbers"),
        ({"words": (-1, 2)}, "give two whole numbers"),
        ({"words": (0, 0)}, "give two whole numbers"),
        ({"choices": "yes"}, "give a list"),
        ({"banned": "yes"}, "give a list"),
        ({"banned": [""]}, "leave it out"),
        ({"must": [""]}, "must contains '', which occurs in every text; leave it out"),
        ({"must": "yes"}, "give a list"),
        ({"pattern": "a", "lead": "x"}, "neither empty nor one space"),
    ],
)
def test_what_cannot_be_asked_for(asked, message):
    t = tokenizer("bytes")
    with pytest.raises(ValueError, match=message) as raised:
        compile_gap(t, len(t), **asked)
    assert "\n" not in str(raised.value)


def test_tables_have_a_limit(monkeypatch):
    t = train_tokenizer(TEXTS, 300)
    monkeypatch.setattr("textdiff.patterns.MAX_STATES", 40)
    monkeypatch.setattr("textdiff.joining.MAX_STATES", 40)
    for asked in ({"pattern": "a{50}"}, {"pattern": "[ab]{30}", "banned": ["a" * 20]}):
        with pytest.raises(ValueError, match="ask for (less|a shorter)"):
            compile_gap(t, len(t), **asked)
    assert compile_gap(t, len(t), pattern="a{30}") is not None
    monkeypatch.setattr("textdiff.automata.MAX_TABLE", 100)
    with pytest.raises(ValueError, match=r"tables for pattern 'a\{31\}' are too large"):
        compile_gap(t, len(t), pattern="a{31}")


def test_what_a_tokenizer_cannot_write():
    t = tokenizer("unigram")
    with pytest.raises(ValueError, match="no tokens that spell a text with pattern 'Ω\\+'"):
        compile_gap(t, len(t), pattern="Ω+")
