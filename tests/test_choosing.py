"""Texts of choices alone: the enumerated law of the model, one event a choice, and what is asked of gaps is kept."""

import itertools
import math
from collections import Counter

import pytest
import torch
from stock import STOCK, filler
from test_laws import fit
from test_stock_scoring import chain, made, posterior
from tiny import tiny_checkpoint
from transformers import pipeline

import textdiff.pipelines  # noqa: F401  (makes the task known)
from textdiff import asked, choosing
from textdiff.filling import Infill, prepare, spelt
from textdiff.gaps import Gap, parse
from textdiff.keys import Key
from textdiff.pipelines import TextInfillingPipeline
from textdiff.posterior import Decode
from textdiff.spelling import SOFT, pieces

CHOICES = ("a", "b b", "c a b", "c")
TEXT = "b [GAP:a|b b|c a b|c] c [GAP:a|c c] a"
EXACT = ("causal", "middle", "rewriting", "sentinels")


def enumerated(kind: str) -> tuple[TextInfillingPipeline, dict[tuple[str, str], float]]:
    """The law of both choices, from plain forwards; by the scores themselves for sentinels, whose law others tests hold."""
    fill = pipeline("text-infilling", model=(parts := made(kind))[0], tokenizer=parts[1])
    weights, tool = {}, fill.opened.scorer
    for pair in itertools.product(CHOICES, ("a", "c c")):
        if kind == "sentinels":
            weights[pair] = -fill.rank("b [GAP] c [GAP] a", [pair])[0]["nats"]
        else:
            weights[pair] = chain(tool, kind, f"b {pair[0]} c {pair[1]} a", "b [GAP] c [GAP] a")
    return fill, posterior(weights)


@pytest.mark.parametrize("kind", EXACT)
def test_choices_have_the_enumerated_law(kind: str) -> None:
    """8 combinations, all of them, the likeliest first; each score is the log of its part of the law."""
    fill, law = enumerated(kind)
    (best,) = fill(TEXT, temperature=0.0)
    assert tuple(gap["text"] for gap in best["gaps"]) == max(law, key=law.__getitem__)
    found = fill(TEXT, temperature=1.0, num_return_sequences=9)
    pairs = [tuple(gap["text"] for gap in one["gaps"]) for one in found]
    assert pairs == sorted(law, key=law.__getitem__, reverse=True)
    for pair, one in zip(pairs, found, strict=True):
        first = sum(p for other, p in law.items() if other[0] == pair[0])
        assert math.exp(one["score"]) == pytest.approx(law[pair], rel=1e-3)
        assert math.exp(one["gaps"][0]["score"]) == pytest.approx(first, rel=1e-3)
        assert one["gaps"][1]["probabilities"] == pytest.approx((law[pair] / first,), rel=1e-3)
        assert one["gaps"][0]["tokens"] == [pair[0]] and one["calls"] >= 1


def test_choices_are_drawn_without_replacement() -> None:
    """1,500 draws of two of four: the first by the law, the second by the law of what is left (chi-square, p > 1e-6, with
    the law turned round and another temperature as controls)."""
    law = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    u = Key.of(0, 1500).uniform(2)

    def seen(temperature: float) -> Counter[tuple[int, ...]]:
        decode = Decode(temperature=temperature)
        return Counter(tuple(choosing._drawn(law.log(), row, decode)) for row in u)

    pairs = {(i, j): float(law[i] * law[j] / (1 - law[i])) for i in range(4) for j in range(4) if i != j}
    drawn = seen(1.0)
    assert fit(drawn, pairs) > 1e-6
    assert fit(drawn, {(j, i): p for (i, j), p in pairs.items()}) < 1e-6
    assert fit(seen(3.0), pairs) < 1e-6
    assert choosing._drawn(law.log(), torch.ones(9) / 2, Decode(temperature=0.0)) == [0, 1, 2, 3]


@pytest.mark.parametrize("path", [name for name in STOCK if not name.startswith(("masked", "both"))])
def test_every_tokenizer_that_scores_exactly(path: str) -> None:
    """Text, offsets, seeds and batches as ever; banned strings and what cannot be spelt are no choice."""
    fill, text = filler(path), "We [GAP:the People|form] of [GAP:wine|red|green]."
    together = fill([text, "We [GAP:1] of", text + " [GAP:yes|no]"], num_return_sequences=3)
    assert len(together[0]) == len(together[2]) == 3
    assert together[0] == fill(text, num_return_sequences=3)
    drawn = [fill(text, num_return_sequences=2, temperature=50.0, seed=seed) for seed in range(9)]
    assert any(one != drawn[0] for one in drawn) and drawn[0] == fill(text, num_return_sequences=2, temperature=50.0)
    every = fill(text, num_return_sequences=9)  # there are six
    assert len({one["generated_text"] for one in every}) == len(every) == 6
    assert [one["score"] for one in every] == sorted((one["score"] for one in every), reverse=True)
    for one in together[0]:
        words = [gap["text"] for gap in one["gaps"]]
        assert one["generated_text"] == f"We {words[0]} of {words[1]}." and one["score"] <= 0
        assert all(one["generated_text"][gap["start"] : gap["end"]] == gap["text"] for gap in one["gaps"])
    for one in fill(text, num_return_sequences=9, banned=["w", "P"], temperature=2.0):
        assert one["gaps"][0]["text"] == "form" and one["gaps"][1]["text"] in ("red", "green")


def test_when_words_are_written_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another gap is open, combinations are many, a bound is all there is, or the user says how to write."""
    asked: list[bool] = []

    def watch(*args: object, **options: object) -> list[Infill] | None:
        asked.append(True)
        return choosing.choose(*args, **options)

    monkeypatch.setattr("textdiff.pipelines.opened.choose", watch)
    fill = filler("causal, bytes")
    few = "We [GAP:form|the] of"
    assert fill(few, temperature=0.0)[0]["gaps"][0]["text"] in ("form", "the") and len(asked) == 1
    many = "[GAP:a|b|c] and [GAP:a|b|c] or [GAP:a|b|c] in [GAP:a|b|c]"
    for text, options in [
        (few + " [GAP:1]", {}), (few, {"num_steps": 1}), (few, {"rule": "posterior"}), (many, {"max_gap": 2})
    ]:  # fmt: skip
        assert fill(text, **options)[0]["gaps"][0]["text"] in ("form", "the", "a", "b", "c")
    assert filler("masked, bytes")(few)[0]["gaps"][0]["text"] in ("form", "the")
    assert len(asked) == 1


def test_what_does_not_fit_is_no_choice() -> None:
    """What the automaton of a gap refuses, what is too long for the model; nothing left is nothing chosen."""
    opened, fill = filler("causal, bytes").opened, filler("causal, bytes")
    route = fill.route

    def page(text: str, banned: tuple[str, ...] = ()) -> object:
        return prepare(parse(text), route.tokenizer, route.specials, banned=banned, spaced=True, longest=256)

    chosen = opened.choose(page("We [GAP:form|the] of", ("f",)), route.decode, 0, 5)
    assert {one.text for one in chosen} == {"We the of"}
    long = "the " * 125 + "[GAP:form|" + "the " * 200 + "x]"
    assert {one.gaps[0].text for one in opened.choose(page(long), route.decode, 0, 5)} == {"form"}
    made = tiny_checkpoint("autoregressive")
    own = TextInfillingPipeline(model=made.model, tokenizer=made.tokenizer, diffusion_config=made.config)
    ranked = own.rank("We [GAP:go|it is].", ["go", "it is"])
    assert own("We [GAP:go|it is].", temperature=0.0)[0]["gaps"][0]["text"] == ranked[0]["filling"][0]
    weights = torch.tensor([-one["nats"] for one in ranked], dtype=torch.float64).softmax(0)
    assert own("We [GAP:go|it is].", temperature=0.0)[0]["score"] == pytest.approx(float(weights[0].log()), rel=1e-4)


def spellings(name: str, text: str) -> tuple[set[tuple[str, ...]], list[list[str]]]:
    """How a model's tokenizer spells the choices of the first gap of a text, and how 8 draws have it."""
    if name in STOCK:
        fill = filler(name)
    else:
        made = tiny_checkpoint(name)
        fill = TextInfillingPipeline(made.model, made.tokenizer, diffusion_config=made.config)
    parts, tokenizer = parse(text), fill.route.tokenizer
    names = pieces(tokenizer, len(tokenizer))
    ids = [spelt(choice, parts, 1, tokenizer, fill.route.specials) for choice in parts[1].choices]
    natural = {tuple((names[one] or b"").replace(SOFT, b" ").decode() for one in choice) for choice in ids}
    drawn = [fill(text, temperature=1.0, seed=seed, max_gap=8)[0]["gaps"][0]["tokens"] for seed in range(8)]
    return natural, drawn


@pytest.mark.parametrize("name", ["parallel", "autoregressive", *STOCK])
def test_choices_are_written_as_the_tokenizer_spells_them(name: str) -> None:
    """Beside an open gap, where they are written token by token: no "t", "h", "e" to fill a length that was drawn."""
    natural, drawn = spellings(name, "We [GAP:form|the|more perfect] of [GAP]")
    assert {tuple(tokens) for tokens in drawn} <= natural


def test_without_spellings_choices_are_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: what the automaton of bytes alone would write."""
    monkeypatch.setattr(asked, "_as_spelt", lambda automaton, *_: automaton)
    natural, drawn = spellings("parallel", "We [GAP:form|the|more perfect] of [GAP]")
    assert not {tuple(tokens) for tokens in drawn} <= natural


def test_choices_that_the_tokenizer_does_not_spell_so_are_written_as_they_can_be() -> None:
    """What is banned is no choice; what must stand in it, token ids that the spelling has not, is kept in any tokens."""
    route = filler("masked, bytes").route
    text = ["We ", Gap(choices=["form", "the"]), " of"]
    page = prepare(text, route.tokenizer, route.specials, banned=("f",), spaced=True)
    the = spelt("the", text, 1, route.tokenizer, route.specials)
    assert page.constraints[0].automaton.accepts(the) and page.constraints[0].lengths(9) == [len(the)]
    letter = route.tokenizer.convert_tokens_to_ids("h")
    page = prepare(["We ", Gap(choices=["the"], forced=[letter]), " of"], route.tokenizer, route.specials, spaced=True)
    assert not page.constraints[0].automaton.accepts(the) and page.constraints[0].lengths(9)
