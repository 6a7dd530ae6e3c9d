"""max_time is kept: past the deadline no model is called more than once for each gap, and what comes out is a whole result.

Clocks are not looked at: time is what the tests say it is, a tick for each look at it.
"""

from typing import Any

import pytest
import torch
from stock import PATHS, filler
from tiny import KINDS, tiny_checkpoint
from transformers import pipeline

from textdiff import posterior
from textdiff.denoiser.deadline import shortened
from textdiff.pipelines import TextInfillingPipeline
from textdiff.pipelines.chat import render
from textdiff.posterior import Decode, Draw
from textdiff.tokens import Specials, Tokens

TEXT = "We [GAP:2-20] the [GAP] and [GAP:3] on."


class Clock:
    """time.monotonic that goes on by one second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(posterior, "time", made)
    return made


def check(result: dict[str, Any]) -> None:
    """The user's words, and gaps that keep what is asked of them."""
    texts = [gap["text"] for gap in result["gaps"]]
    joined = f"We {texts[0]} the {texts[1]} and {texts[2]} on."
    assert result["generated_text"] == joined
    assert 2 <= len(result["gaps"][0]["tokens"]) <= 20 and len(result["gaps"][2]["tokens"]) == 3


@pytest.mark.parametrize("path", PATHS)
def test_every_way_of_filling_keeps_its_time(path: str, clock: Clock) -> None:
    """Out of time from the start, it costs less than with time, and no more than a few calls a gap."""
    fill = filler(path)
    options = {"temperature": 1.0, "max_gap": 20, "seed": 2}
    if path in ("parallel", "masked, bytes", "both ways"):
        options["num_steps"] = 30
    (whole,) = fill(TEXT, **options)
    (late,) = fill(TEXT, max_time=0.5, **options)
    check(whole)
    check(late)
    assert late["calls"] <= whole["calls"] and late["calls"] <= 12
    lengths = [len(result["gaps"][1]["tokens"]) for result in (whole, late)]
    assert (
        lengths[1] <= lengths[0] or path == "parallel" or path.startswith(("masked", "both"))
    )  # these draw lengths first


@pytest.mark.parametrize("path", PATHS)
def test_time_that_ends_on_the_way(path: str, clock: Clock) -> None:
    """At any look at the clock; the later, the more calls."""
    fill = filler(path)
    results = [fill(TEXT, max_time=float(time), temperature=1.0, seed=2)[0] for time in (1, 4, 10, 1000)]
    for result in results:
        check(result)
    calls = [result["calls"] for result in results]
    assert calls[0] <= calls[-1] and max(calls) == calls[-1]


@pytest.mark.parametrize("path", PATHS)
def test_writing_on_keeps_its_time(path: str, clock: Clock) -> None:
    fill = filler(path)
    config = None if fill.checkpoint is None else fill.checkpoint.config
    write = pipeline("text-diffusion", model=fill.model, tokenizer=fill.tokenizer, diffusion_config=config)
    (late,) = write("We", max_new_tokens=30, max_time=0.5, temperature=1.0)
    assert late["generated_text"].startswith("We")


def test_candidates_are_those_that_there_was_time_for(clock: Clock) -> None:
    """A sample has a filling whenever time ends, and with all the time the best of all."""
    fill = filler("autoregressive")
    whole = fill("We [GAP:1-3] on", candidates=6)[0]
    for time in (0.5, 3, 8, 20):
        result = fill("We [GAP:1-3] on", candidates=6, max_time=time)[0]
        assert result["calls"] <= whole["calls"]
    assert fill("We [GAP:1-3] on", candidates=6, max_time=1e6)[0] == whole


def test_late_words_leave_gaps_that_may_end() -> None:
    """Cut after the last word that was in time; the shortest that its constraint takes where none was."""
    from textdiff.constraints import Constraint

    ids = Specials(pad=0, bos=1, mask=2, gap=3)
    xt = Tokens.from_rows([[1, 3, 7, 3]], 0)
    xt = xt.with_(fixed=xt.ids != 3, slot=torch.tensor([[0, 1, 0, 0]]))
    x0 = Tokens.from_rows([[1, 10, 11, 12, 13, 7, 20, 21]], 0)
    x0 = x0.with_(fixed=torch.tensor([[True, False, False, False, False, True, False, False]]))
    place = torch.tensor([[0, 1, 1, 1, 1, 2, 3, 3]])
    draw = Draw(x0, place, torch.arange(8.0)[None])
    decode = Decode(constraints=(Constraint(3, 9),))

    def cut(late: list[int]) -> list[int]:
        flags = torch.zeros(1, 8, dtype=torch.bool)
        flags[0, late] = True
        result = shortened(xt, draw, flags, decode, ids)
        assert result.x0.ids.shape == result.place.shape == result.log_prob.shape
        assert result.place[0].tolist() == sorted(result.place[0].tolist())
        return result.x0.ids[0].tolist()

    assert cut([]) == [1, 10, 11, 12, 13, 7, 20, 21]
    assert cut([4, 6, 7]) == [1, 10, 11, 12, 7]  # the second gap may be empty
    assert cut([2, 3, 4, 7]) == [1, 10, 11, 12, 7, 20]  # the first needs three


class Chatty:
    """A tokenizer whose template is a program of its own."""

    added_tokens_decoder: dict[int, Any] = {}

    def __init__(self, template: str) -> None:
        from transformers import PreTrainedTokenizerFast

        self.chat_template = template
        self.inner = PreTrainedTokenizerFast

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        options.pop("tokenize")
        rendered, _ = render_jinja_template([messages], chat_template=self.chat_template, **options)
        return rendered[0]


MESSAGES = [{"role": "user", "content": "go"}]


def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any thread; one that is quick is not."""
    monkeypatch.setattr("textdiff.pipelines.chat.TEMPLATE_SECONDS", 0.3)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match=r"the tokenizer's chat template took longer than 0\.3 s, so it was stopped"):
        render(Chatty(endless), MESSAGES)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="took longer"):
            pool.submit(render, Chatty(endless), MESSAGES).result()
        assert pool.submit(render, Chatty("{{ messages[0].content }}"), MESSAGES).result() == "go"
    assert render(Chatty("{{ messages[0].content }}"), MESSAGES) == "go"


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0].content + 3 }}", "{{ raise_exception('no') }}", "{{ 1 // 0 }}", "{% if %}", "{{ x.y.z }}"],
)
def test_a_template_that_fails_is_one_line(template: str) -> None:
    with pytest.raises(ValueError, match="the tokenizer's chat template cannot write these messages") as caught:
        render(Chatty(template), MESSAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_that_leaves_nothing_open_is_refined_in_time(kind: str) -> None:
    """Of ten drafts at a small noise level some have nothing to write: with time left and without."""
    checkpoint = tiny_checkpoint(kind)
    fill = TextInfillingPipeline(
        model=checkpoint.model, tokenizer=checkpoint.tokenizer, diffusion_config=checkpoint.config
    )
    for seed in range(10):
        for seconds in (5, 1e-6):
            assert fill.refine("We go.", 0.1, seed=seed, num_steps=2, max_time=seconds)[0]["generated_text"] is not None
