"""Gap syntax, and the promise of infilling: the user's text comes back byte for byte, whatever it contains."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import KINDS, WORDS, tiny_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from textdiff.checkpoint import Checkpoint, DiffusionConfig, rule_of
from textdiff.filling import infill, start_state
from textdiff.gaps import Gap, check, parse
from textdiff.models import SIZES, new_model
from textdiff.posterior import Decode
from textdiff.tokenizer import encode, prepare_tokenizer, specials, train_tokenizer

LITERALS = ["[MASK]", "[PAD]", "[BOS]", "[FILL]", "[END]", "<|2|>", "</s>", "[GAP", "GAP]", "\\"]


@pytest.fixture(scope="module")
def tools() -> dict[str, dict[str, Any]]:
    """What `infill` needs, of a tiny random model of each kind."""
    return {kind: tiny_checkpoint(kind, reads=512).tools() for kind in KINDS}


# ------------------------------------------------------------------------------------------------------------- syntax


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("no gap", ["no gap"]),
        ("[GAP]", [Gap()]),
        ("a [GAP] b", ["a ", Gap(), " b"]),
        ("[GAP:3]x[GAP]", [Gap.of(3), "x", Gap()]),
        ("\\[GAP]", ["[GAP]"]),
        ("a \\[GAP:x] b [GAP:12]", ["a [GAP:x] b ", Gap.of(12)]),
        ("[gap] [GAPS] [GAP-1]", ["[gap] [GAPS] [GAP-1]"]),
        ("[GAP:2-6] [GAP:-6] [GAP:2-]", [Gap(2, 6), " ", Gap(max=6), " ", Gap(2)]),
        ("[GAP:3w] [GAP:2-6w]", [Gap(3, 3, "words"), " ", Gap(2, 6, "words")]),
        ("[GAP:must=war]", [Gap(must=("war",))]),
        ("[GAP:2-6,must=a b,must=\\|\\,]", [Gap(2, 6, must=("a b", "|,"))]),
        ("[GAP:name=city,1-3w]", [Gap(1, 3, "words", name="city")]),
        ("[GAP:1-3w,name=city]", [Gap(1, 3, "words", name="city")]),
        ("[GAP:yes|no|may be]", [Gap(choices=("yes", "no", "may be"))]),
        ("[GAP:a\\|b|c\\]\\,d]", [Gap(choices=("a|b", "c],d"))]),
        ("[GAP:/[a-z]{2,3}]\\/x/,name=x]", [Gap(pattern="[a-z]{2,3}]/x", name="x")]),
        ("[GAP:/\\d{4}/,2]", [Gap(2, 2, pattern="\\d{4}")]),
        ("[MASK] \\n \\", ["[MASK] \\n \\"]),
    ],
)
def test_parse(text: str, parts: list) -> None:
    assert parse(text) == parts


@pytest.mark.parametrize("text", ["[GAP:]", "[GAP:x]", "[GAP:1.5]", "[GAP: 3]", "[GAP:2,x]", "[GAP:name=]"])
def test_a_gap_that_says_nothing(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"'\[GAP:.*' at character 2: '.*' says nothing of a gap; write \[GAP\], \[GAP:3\]"
    ):
        parse(f"a {text} b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a [GAP b", "unclosed gap at character 2 of 'a \\[GAP b'"),
        ("a [GAP:2 b", "unclosed gap at character 2"),
        ("a [GAP:/x", "unclosed gap at character 2"),
        ("a [GAP:[GAP]]", "a gap inside a gap at character 7"),
        ("[GAP:6-2]", "at character 0: a gap of at least 6 and at most 2 tokens cannot be; give the smaller first"),
        ("[GAP:0]", "a gap of 0-0 tokens cannot be filled; give at least 1"),
        ("[GAP:yes|no,3]", "a gap with choices has their lengths"),
        ("[GAP:2w,/x/]", "put the words into the pattern"),
        ("[GAP:yes||no]", "the gap's choices\\[1\\] must be a string with some text"),
        ("[GAP:must=]", "what the gap must hold\\[0\\] must be a string with some text"),
        ("[GAP:must=a|b]", "for all of them write must=a,must=b"),
    ],
)
def test_gaps_that_cannot_be_read_are_named_by_their_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_the_models_own_mask_is_a_gap_of_one_token_where_it_is_named() -> None:
    assert parse("a [MASK] [MASK].", "[MASK]") == ["a ", Gap.of(1), " ", Gap.of(1), "."]
    assert parse("a \\[MASK] b", "[MASK]") == ["a [MASK] b"]
    assert parse("a [MASK] b") == ["a [MASK] b"]


@pytest.mark.parametrize("length", [0, -3])
def test_a_length_that_is_not_positive(length: int) -> None:
    with pytest.raises(ValueError, match=f"a gap of {length}-{length} tokens cannot be filled; give at least 1"):
        Gap.of(length)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "the text is empty; give a text with a "),
        (["", ""], "the text is empty"),
        (["only ", "words"], "no gap in 'only words'; mark the missing text with"),
        ([Gap(), Gap(1, 2)], "gap 2: two gaps touch; put text between them"),
        (["a", Gap(), "", Gap()], "gap 2, after 'a': two gaps touch"),
    ],
)
def test_what_cannot_be_filled(parts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(parts)


def test_the_list_form_is_the_string_form(tools: dict) -> None:
    """Strings that follow each other are one text, and empty ones are nothing."""
    tools = tools["autoregressive"]
    texts = [
        "We [GAP] on [GAP:2].",
        ["We ", Gap(), " on ", Gap.of(2), "."],
        ["", "W", "e", " ", Gap(), " on", " ", Gap.of(2), "."],
    ]
    parts = [parse(text) if isinstance(text, str) else text for text in texts]
    results = infill(parts, **tools)
    assert results[0] == results[1] == results[2]


def test_text_that_the_tokenizer_has_no_token_for_does_not_part_two_gaps() -> None:
    """WordPiece drops white space: nothing would tell the contents of the two gaps apart."""
    model = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "a": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", cls_token="[CLS]"))
    with pytest.raises(ValueError, match="two gaps touch"):
        start_state([["a", Gap(), " ", Gap()]], tokenizer, specials(tokenizer))


# ------------------------------------------------------------------------------------------------- fixed text is fixed


def unicode_text(draw: random.Random, longest: int = 8) -> str:
    """Characters from everywhere, special-token literals, spaces of all sorts; never empty, never gap syntax."""
    ranges = [(0, 0x7F), (0x20, 0x7E), (0x300, 0x36F), (0x2000, 0x206F), (0x4E00, 0x9FFF), (0xE000, 0x10FFFF)]
    pieces = [chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(1, longest))]
    pieces += draw.choices([*LITERALS, " ", "  ", "\n", "\t ", "we"], k=draw.randint(0, 2))
    draw.shuffle(pieces)
    return "".join(pieces)


def random_parts(draw: random.Random) -> list[str | Gap]:
    """Texts and gaps by turns, sometimes with a lone space between two gaps."""
    gaps = [draw.choice([Gap(), Gap(), Gap.of(1), Gap.of(3)]) for _ in range(draw.randint(1, 3))]
    parts: list[str | Gap] = []
    for gap in gaps:
        parts += [draw.choice([" ", unicode_text(draw), unicode_text(draw) + " "]), gap]
    parts += draw.choice([[], [unicode_text(draw)]])
    return parts[1:] if draw.random() < 0.2 else parts


def assert_faithful(parts: list[str | Gap], result: Any) -> None:
    """The fixed parts are where they were, to the byte; each gap's offsets cut out its text."""
    text, end, gaps = result.text, 0, iter(result.gaps)
    for part in parts:
        if isinstance(part, str):
            assert text[end : end + len(part)].encode() == part.encode()
            end += len(part)
        else:
            gap = next(gaps)
            assert gap.start == end and text[gap.start : gap.end] == gap.text
            end = gap.end
    assert end == len(text) and next(gaps, None) is None


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_text_comes_back_byte_for_byte(kind: str, tools: dict) -> None:
    draw = random.Random(1)
    for turn in range(10):
        texts = [random_parts(draw) for _ in range(12)]
        rule = rule_of(draw.choice(["posterior", "fresh", "ranked", "partial:0.5"]))
        decode = Decode(max_gap=3, temperature=draw.choice([0.0, 1.0]))
        filled = infill(texts, steps=draw.choice([1, 2]), rule=rule, decode=decode, seed=turn, **tools[kind])
        for parts, results in zip(texts, filled, strict=True):
            assert_faithful(parts, results[0])


def test_special_token_literals_stay_text(tools: dict) -> None:
    """In fixed text they are characters; `[GAP]` itself is text behind a backslash."""
    text = "[MASK][PAD] [BOS] <|2|> \\[GAP] [FILL] [GAP] [END]</s>"
    for kind in KINDS:
        result = infill([parse(text)], decode=Decode(max_gap=4), **tools[kind])[0][0]
        assert_faithful(["[MASK][PAD] [BOS] <|2|> [GAP] [FILL] ", Gap(), " [END]</s>"], result)
        tokenizer = tools[kind]["tokenizer"]
        assert not set(encode(tokenizer, text)) & set(specials(tokenizer).not_text)


def test_nothing_special_is_ever_written(tools: dict) -> None:
    for kind in KINDS:
        for results in infill([[Gap()], ["We", Gap(), "on"]], samples=8, decode=Decode(max_gap=8), **tools[kind]):
            written = "".join(gap.text for result in results for gap in result.gaps)
            assert not any(name in written for name in ("[MASK]", "[GAP]", "[PAD]", "[END]", "[FILL]", "<|"))


def test_white_space_at_the_borders(tools: dict) -> None:
    """The user's space before a gap is there once: the content's own is not added to it. A space after a gap stays."""
    for kind in KINDS:
        for result in infill([["We ", Gap(), " on"]], samples=20, decode=Decode(max_gap=4), **tools[kind])[0]:
            content = result.gaps[0].text
            assert result.text == f"We {content} on" and result.gaps[0].start == 3


def test_two_gaps_with_a_space_between_are_two(tools: dict) -> None:
    """Each has contents of its own."""
    for kind in KINDS:
        result = infill([parse("[GAP:2] [GAP:3]")], **tools[kind])[0][0]
        assert_faithful([Gap.of(2), " ", Gap.of(3)], result)
        assert result.text == f"{result.gaps[0].text} {result.gaps[1].text}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_counted_gap_has_exactly_as_many_tokens(kind: str, tools: dict) -> None:
    """Read from the final state: letters here are one token each, so the text alone would tell it, too."""
    from textdiff.keys import Key
    from textdiff.sampler import sample

    mine = tools[kind]
    for length in (1, 2, 5):
        start = start_state([["We ", Gap.of(length), " on ", Gap(), "."]], mine["tokenizer"], mine["specials"])
        steps = list(
            sample(mine["denoiser"], mine["process"], start, steps=2, key=Key.of(0, 1), decode=Decode(max_gap=3))
        )
        x = steps[-1].x
        left = len(encode(mine["tokenizer"], "We")) + 1
        written = (~x.fixed & x.valid)[0].tolist()
        assert written[left : left + length] == [True] * length and not written[left + length]
        assert not {mine["specials"].mask, mine["specials"].gap} & set(x.ids[0].tolist())


# ------------------------------------------------------------------------------------------------------- batch and seed


@pytest.mark.parametrize("kind", KINDS)
def test_a_filling_does_not_depend_on_the_batch(kind: str, tools: dict) -> None:
    draw = random.Random(5)
    texts = [random_parts(draw) for _ in range(6)]
    together = infill(texts, steps=2, samples=2, decode=Decode(max_gap=3), seed=3, **tools[kind])
    for parts, results in zip(texts, together, strict=True):
        alone = infill([parts], steps=2, samples=2, decode=Decode(max_gap=3), seed=3, **tools[kind])[0]
        assert [result.text for result in alone] == [result.text for result in results]
        assert [result.score for result in alone] == pytest.approx([result.score for result in results], abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_seeds_differ(kind: str, tools: dict) -> None:
    parts: list = ["We ", Gap.of(4), " on ", Gap.of(4), "."]
    one = [result.text for result in infill([parts], samples=4, decode=Decode(max_gap=8), **tools[kind])[0]]
    assert len(set(one)) == 4
    assert one == [result.text for result in infill([parts], samples=4, decode=Decode(max_gap=8), **tools[kind])[0]]
    assert one[:2] == [result.text for result in infill([parts], samples=2, decode=Decode(max_gap=8), **tools[kind])[0]]
    assert not set(one) & {
        result.text for result in infill([parts], samples=4, seed=1, decode=Decode(max_gap=8), **tools[kind])[0]
    }


def test_the_score_is_the_sum_of_the_gaps(tools: dict) -> None:
    for kind in KINDS:
        result = infill([["We ", Gap.of(2), " on ", Gap.of(3), "."]], **tools[kind])[0][0]
        assert result.score == pytest.approx(sum(gap.score for gap in result.gaps)) and result.score < 0


def test_a_text_longer_than_the_model(tools: dict) -> None:
    with pytest.raises(ValueError, match=r"the text has \d+ tokens, the model reads 512; shorten the text"):
        infill([["x y" * 400, Gap()]], **tools["parallel"])


def test_a_lone_surrogate_is_refused(tools: dict) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at character 1"):
        infill([["a\ud800", Gap()]], **tools["parallel"])


def test_lengths_beyond_the_model_are_unknown_without_length_tokens(tmp_path: Path) -> None:
    """A parallel model without length tokens is asked by search; another one cannot, and names the remedy."""
    tokenizer = train_tokenizer(WORDS, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", replace(SIZES["tiny"], hidden=32, layers=1, heads=2, inner=32))
        made = {kind: new_model(kind, "tiny", specials(tokenizer), len(tokenizer), 64) for kind in KINDS[:2]}
    searched = infill([["a ", Gap()]], **Checkpoint(made["parallel"], tokenizer, DiffusionConfig()).tools())[0][0]
    assert 1 <= len(searched.gaps[0].tokens) <= 8
    tools = Checkpoint(made["autoregressive"], tokenizer, DiffusionConfig("autoregressive")).tools()
    with pytest.raises(ValueError, match=r"no length tokens, so it cannot fill \[GAP\]; give the length"):
        infill([["a ", Gap()]], **tools)
    assert len(infill([["a ", Gap.of(2)]], **tools)[0][0].gaps) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_never_outgrows_the_model(kind: str, tools: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step may open markers again between what it wrote: an untrained model would write without end."""
    parts, longest = ["We ", Gap(), " union, ", Gap(), "."], 16
    mine = tools[kind]
    free = [infill([parts], steps=6, seed=seed, **mine)[0][0] for seed in range(3)]
    assert max(len(result.text.encode()) for result in free) > 2 * longest  # the control
    monkeypatch.setattr(mine["denoiser"].model.config, "max_position_embeddings", longest, raising=False)
    for seed in range(3):
        result = infill([parts], steps=6, decode=Decode(max_gap=30), seed=seed, **mine)[0][0]
        written = start_state([[result.text, Gap()]], mine["tokenizer"], mine["specials"])
        assert_faithful(parts, result)
        # what is read back may be split into other tokens than were written, but not into fewer characters
        assert int(written.valid.sum()) <= 2 * longest


def test_a_model_with_learned_positions_is_filled_to_the_last(tools: dict) -> None:
    """A causal model reads [END] after the text: one place of its positions is for that."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer, limit = tools["autoregressive"]["tokenizer"], 24
    shape = {"n_positions": limit, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape)).eval()
    small = Checkpoint(model, tokenizer, DiffusionConfig(denoiser="autoregressive")).tools()
    assert small["denoiser"].longest == limit - 1
    for seed in range(5):
        assert_faithful(["We ", Gap(), "!"], infill([["We ", Gap(), "!"]], seed=seed, **small)[0][0])
    full = len(start_state([["We ", Gap.of(5), "!"]], tokenizer, small["specials"]).ids[0])
    assert len(infill([["We ", Gap.of(limit - 1 - full + 5), "!"]], **small)[0][0].gaps) == 1
    with pytest.raises(ValueError, match=f"the text has {limit} tokens, the model reads {limit - 1}"):
        infill([["We ", Gap.of(limit - full + 5), "!"]], **small)
