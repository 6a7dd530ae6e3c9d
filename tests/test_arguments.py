"""A value of the wrong kind is refused by name at every entrance, and an option that is accepted has an effect."""

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from rich.console import Console
from stock import filler
from tiny import tiny_checkpoint
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import textdiff
from textdiff.pipelines.diffusion import _OPTIONS as WRITING
from textdiff.pipelines.infilling import _OPTIONS as FILLING
from textdiff.pipelines.infilling import _REFINING as REFINING
from textdiff.rulebook import rule_of

TEXT, DRAFT = "We [GAP:2] on [GAP:1].", "We go on and on, and then we go on again."

# For every option values that it cannot have. None stands for an option that is not given, so it is never among them.
NO_INTEGER: list[Any] = [0, -1, 1.5, "2", True, math.nan, [1]]
NO_NUMBER: list[Any] = ["0.5", True, math.nan, math.inf, [1.0], -1]
NO_STRINGS: list[Any] = ["yes", {"yes": 1}, {"yes"}, 3, [""], [None], ["a", 3]]
WRONG: dict[str, list[Any]] = {
    "num_return_sequences": NO_INTEGER,
    "candidates": NO_INTEGER,
    "select": ["best", 3, ["fluent"]],
    "num_steps": [0, -1, 2.5, "many", math.nan, [1], 10**6 + 1, 1e9, "1e12"],
    "max_time": [*NO_NUMBER, 0],
    "rule": ["best", 3, ["posterior"], "partial:7", "partial:nan"],
    "guidance": NO_NUMBER,
    "guidance_schedule": ["up", 3],
    "temperature": NO_NUMBER,
    "top_k": [-1, 1.5, "2", True, math.nan],
    "top_p": [*NO_NUMBER, 0, 1.5],
    "min_p": [*NO_NUMBER, 1.5],
    "max_gap": NO_INTEGER,
    "max_calls": [-1, 1.5, "2", True, math.nan],
    "seed": [1.5, "2", True, math.nan, [1], 2**63, -(2**63) - 1],
    "banned": NO_STRINGS,
    "must": NO_STRINGS,
    "logits_processor": ["x", {"a": 1}, [3], 3],
    "on_error": ["skip", 3, True],
    "draws": NO_INTEGER,
    "window": NO_INTEGER,
    "max_new_tokens": NO_INTEGER,
    "min_new_tokens": [-1, 1.5, "2", True],
    "stop_strings": ["", {"a": 1}, 3, [""], [None]],
    "return_full_text": ["no", 1, 0],
    "streamer": ["x", 3],
    "batch_size": NO_INTEGER,
}


@pytest.fixture(scope="module")
def fill() -> Any:
    made = tiny_checkpoint("parallel", max_gap=4)
    return pipeline("text-infilling", model=made.model, tokenizer=made.tokenizer, diffusion_config=made.config)


@pytest.fixture(scope="module")
def write(fill: Any) -> Any:
    config = fill.checkpoint.config
    return pipeline("text-diffusion", model=fill.model, tokenizer=fill.tokenizer, diffusion_config=config)


def entrances(fill: Any, write: Any) -> dict[str, tuple[Callable[..., Any], tuple[str, ...]]]:
    """Every way to pass options, and the options that it takes."""
    made = {"model": fill.model, "tokenizer": fill.tokenizer, "diffusion_config": fill.checkpoint.config}
    return {
        "infilling": (lambda **options: fill(TEXT, **options), (*FILLING, "batch_size")),
        "infilling, list": (lambda **options: fill([TEXT, TEXT], **options), (*FILLING, "batch_size")),
        "infilling, iterator": (lambda **options: list(fill(iter([TEXT]), **options)), (*FILLING, "batch_size")),
        "infilling, construction": (
            lambda **options: pipeline("text-infilling", **made, **options),
            (*FILLING, "batch_size"),
        ),
        "refine": (lambda **options: fill.refine(DRAFT, 0.5, **options), REFINING),
        "score": (lambda **options: fill.score("We go", **options), ("draws", "window", "seed")),
        "rank": (lambda **options: fill.rank("We [GAP] on", ["go", "are"], **options), ("draws", "seed")),
        "diffusion": (lambda **options: write("We", **options), (*WRITING, "batch_size")),
        "diffusion, construction": (
            lambda **options: pipeline("text-diffusion", **made, **options),
            (*WRITING, "batch_size"),
        ),
    }


NAMES = (
    "infilling",
    "infilling, list",
    "infilling, iterator",
    "infilling, construction",
    "refine",
    "score",
    "rank",
    "diffusion",
    "diffusion, construction",
)


@pytest.mark.parametrize("entrance", NAMES)
def test_wrong_values_are_refused_by_name(fill: Any, write: Any, entrance: str) -> None:
    """All of them, before anything is filled; and every option has its wrong values in the table."""
    call, names = entrances(fill, write)[entrance]
    assert set(names) <= set(WRONG)
    for name in names:
        for value in WRONG[name]:
            with pytest.raises(ValueError) as caught:
                call(**{name: value})
            assert name in str(caught.value), (name, value, str(caught.value))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entrance", NAMES)
def test_unknown_options_are_named_with_those_there_are(fill: Any, write: Any, entrance: str) -> None:
    call, names = entrances(fill, write)[entrance]
    with pytest.raises(ValueError, match=r"unknown option sed, did you mean seed\?; there are "):
        call(sed=1)
    for name in set(WRONG) - set(names) - {"batch_size"}:
        with pytest.raises(ValueError, match=f"unknown option {name}"):
            call(**{name: 1})


@pytest.mark.parametrize("entrance", ["infilling", "refine", "score", "rank", "diffusion"])
def test_none_is_not_given(fill: Any, write: Any, entrance: str) -> None:
    call, names = entrances(fill, write)[entrance]
    assert call(**dict.fromkeys(names)) == call()


# An option, a value of it, and what else has to be said for it to matter.
EFFECTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "num_return_sequences": (3, {}),
    "candidates": (6, {"candidates": 2, "select": "likely"}),
    "select": ("mbr", {"candidates": 6, "select": "likely"}),
    "num_steps": (4, {"rule": "fresh"}),
    "max_time": (1e-9, {"num_steps": 30, "rule": "fresh"}),
    "rule": ("ranked:left", {"num_steps": 4}),
    "guidance": (200.0, {}),
    "guidance_schedule": ("rising", {"guidance": 200.0, "num_steps": 3}),
    "temperature": (0.0, {}),
    "top_k": (1, {}),
    "top_p": (0.1, {}),
    "min_p": (1.0, {}),
    "seed": (7, {}),
    "banned": (["e", "o", "a"], {}),
    "must": (["z"], {}),
    "max_gap": (1, {}),
    "max_new_tokens": (9, {}),
    "min_new_tokens": (5, {"max_new_tokens": 5}),
    "stop_strings": (["e", "a", "o", " ", ",", "."], {"max_new_tokens": 9}),
    "return_full_text": (False, {}),
}


@pytest.mark.parametrize("option", EFFECTS)
def test_an_option_that_is_accepted_has_an_effect(fill: Any, write: Any, option: str) -> None:
    """On some of forty seeds, at every entrance that takes it."""
    value, beside = EFFECTS[option]
    text = "We [GAP] on and [GAP:3-6] again."

    def texts(results: list[dict[str, Any]]) -> list[str]:
        return [result["generated_text"] for result in results]

    calls: dict[str, Callable[..., list[dict[str, Any]]]] = {}
    if option in FILLING:
        calls["infilling"] = lambda **options: fill(text, **options)
    if option in REFINING and option != "max_gap":
        calls["refine"] = lambda **options: fill.refine(DRAFT, 0.7, ["We go on and"], **options)
    if option in WRITING:
        calls["diffusion"] = lambda **options: write("We", **options)
    assert calls
    for name, call in calls.items():
        mine = {key: given for key, given in beside.items() if name == "infilling" or key in (*REFINING, *WRITING)}
        seeds = [{} if option == "seed" else {"seed": seed} for seed in range(1 if option == "seed" else 40)]
        assert any(texts(call(**mine, **seed)) != texts(call(**(mine | seed | {option: value}))) for seed in seeds), (
            name
        )


def test_options_without_effect_are_refused(fill: Any) -> None:
    with pytest.raises(ValueError, match="select has no effect on a single candidate"):
        fill(TEXT, select="likely")
    with pytest.raises(ValueError, match="guidance_schedule has no effect without guidance"):
        fill(TEXT, guidance_schedule="rising")
    with pytest.raises(ValueError, match="guidance has no effect without text that stays"):
        fill.refine(DRAFT, 0.5, guidance=1.0)
    with pytest.raises(ValueError, match="'zebra' is in no draft, so it cannot be kept"):
        fill.refine([DRAFT, "We go on"], 0.5, keep=["on", "zebra"])


def test_rules_are_names_or_objects(fill: Any, write: Any) -> None:
    for call in (lambda rule: fill(TEXT, rule=rule, num_steps=3), lambda rule: write("We", rule=rule, num_steps=3)):
        assert call("ranked:left") == call(rule_of("ranked:left"))


NO_TEXTS: list[Any] = [None, 3, 1.5, True, b"We [GAP:1]", {"text": TEXT}, {TEXT}, pd.DataFrame({"text": [TEXT]})]


@pytest.mark.parametrize("value", NO_TEXTS, ids=lambda value: type(value).__name__)
def test_what_is_no_text_is_refused(fill: Any, write: Any, value: Any) -> None:
    for call in (fill, write):
        with pytest.raises(ValueError, match="the input must be"):
            call(value)


@pytest.mark.parametrize("value", [None, 3, b"We [GAP:1]", {"text": TEXT}, [], ["We ", 3, textdiff.Gap()], ["We"]])
def test_one_that_is_no_text_costs_no_other(fill: Any, write: Any, value: Any) -> None:
    """With on_error="return"; else the error names its place."""
    for call, text in ((fill, TEXT), (write, "We")):
        first, wrong, last = call([text, value, text], on_error="return")
        assert first == last == call(text) and [*wrong[0]] == ["error"]
        with pytest.raises(ValueError, match="text 2 of 3: "):
            call([text, value, text])
        results = list(call(iter([text, value, text]), on_error="return"))
        assert results == [first, wrong, last]


def test_every_container_of_texts_serves(fill: Any, write: Any) -> None:
    """Lists, tuples, arrays, Series and columns give lists; iterators and data sets are read one by one."""
    for call, text in ((fill, TEXT), (write, "We")):
        expected = [call(text)] * 2
        texts = [text, text]
        column = Dataset.from_dict({"text": texts})
        for several in (texts, tuple(texts), np.array(texts), pd.Series(texts), column["text"]):
            assert call(several) == expected
        for several in (iter(texts), (text for text in texts), KeyDataset(column, "text")):
            assert list(call(several)) == expected
        assert call([]) == [] and list(call(iter([]))) == []


def test_an_iterator_is_read_no_further_than_it_is_asked(fill: Any) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield TEXT

    results = fill(endless())
    assert next(iter(results)) == fill(TEXT) and len(read) == 1


def test_a_failing_batch_is_tried_one_by_one(fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model raises over one text, as where memory ends, the others are filled."""
    real = type(fill).forward

    def forward(self: Any, inputs: dict[str, Any], **options: Any) -> Any:
        if any("boom" in str(prepared["page"].parts) for prepared in inputs["batch"]):
            raise RuntimeError("out of memory")
        return real(self, inputs, **options)

    monkeypatch.setattr(type(fill), "forward", forward)
    first, wrong, last = fill([TEXT, "boom [GAP:1]", TEXT], on_error="return")
    assert first == last == fill(TEXT) and wrong == [{"error": "out of memory"}]
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        fill([TEXT, "boom [GAP:1]", TEXT])
    assert caught.value.__notes__ == ["text 2 of 3"]


def test_sequences_differ_and_the_best_comes_first() -> None:
    """Fewer where there are no others; of a choice of two never three; each is one that a single draw can give."""
    fill = filler("causal, bytes")
    results = fill("We [GAP:1-2] on", num_return_sequences=5, temperature=1.0)
    texts = [result["generated_text"] for result in results]
    assert len({*texts}) == len(texts) == 5
    merits = [result["score"] / sum(len(gap["tokens"]) for gap in result["gaps"]) for result in results]
    assert merits == sorted(merits, reverse=True)
    assert len(fill("We [GAP:1] on", num_return_sequences=5, temperature=0.0)) == 1
    choice = fill("We [GAP:yes|no] on", num_return_sequences=3, num_steps=1, temperature=1.0)
    assert len({result["generated_text"] for result in choice}) == len(choice) <= 2


BROKEN: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "nothing left": (lambda ids, scores: torch.full_like(scores, -math.inf), "can stand in a gap; loosen"),
    "infinity": (
        lambda ids, scores: torch.full_like(scores, math.inf),
        "returned NaN or infinity; -inf alone leaves words out",
    ),
    "NaN": (lambda ids, scores: scores * math.nan, "returned NaN or infinity; -inf alone leaves words out"),
    "another shape": (
        lambda ids, scores: scores[:, :3],
        "must return scores of shape .*; got .*, 3",
    ),
    "None": (lambda ids, scores: None, r"must return scores of shape \(\d+, \d+\), as it got; got None"),
}


@pytest.mark.parametrize(
    "kind", ["masked, WordPiece", "encoder-decoder", "causal, bytes", "middle", "sentinels", "both ways"]
)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_processor_that_returns_no_scores_is_named(kind: str, broken: str) -> None:
    """By every way of filling; one that changes nothing is as none."""
    fill, (processor, named) = filler(kind), BROKEN[broken]
    for text in ("We [GAP:2] on.", "We [GAP:2w] on.", "We [GAP:/[a-z]{3}/] on."):
        try:
            plain = fill(text, seed=1)
        except ValueError:  # nothing that it knows spells this
            continue
        assert fill(text, seed=1, logits_processor=[lambda ids, scores: scores]) == plain
        with pytest.raises(ValueError, match=named):
            fill(text, seed=1, logits_processor=[processor])


def test_who_watches_a_batch_sees_its_texts_in_their_order() -> None:
    made = tiny_checkpoint("autoregressive", max_gap=8)
    write = pipeline("text-diffusion", model=made.model, tokenizer=made.tokenizer, diffusion_config=made.config)
    prompts, page = ["We the people of", "We", "We go on"], io.StringIO()
    streamer = textdiff.BatchStreamer(write.tokenizer, Console(file=page))
    found = write(prompts, batch_size=3, max_new_tokens=3, streamer=streamer)
    last = page.getvalue().splitlines()[-3:]
    assert [line[:2] for line in last] == ["1 ", "2 ", "3 "]
    assert last[2].startswith("3 We go on") and all(text[0]["generated_text"] for text in found)
