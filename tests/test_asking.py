"""What is asked is taken as it was meant, or refused: fillings to rank, gaps with two lengths, numbers of samples."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_checkpoint

import textdiff
from textdiff.gaps import parse
from textdiff.pipelines import TextInfillingPipeline
from textdiff.sequences import AT_ONCE, ROUNDS, draw_different


@pytest.fixture(scope="module")
def fill() -> Any:
    checkpoint = tiny_checkpoint("autoregressive", max_gap=4)
    return TextInfillingPipeline(
        model=checkpoint.model, tokenizer=checkpoint.tokenizer, diffusion_config=checkpoint.config
    )


FILLINGS: list[Any] = [
    ["the people", "a union"], ("the people", "a union"), np.array(["the people", "a union"]),
    pd.Series(["the people", "a union"]), [["the people"], ("a union",)], [{"what": "the people"}, {"what": "a union"}],
]  # fmt: skip
ALONE: list[Any] = ["the people", {"what": "the people"}, ["the people"]]
NO_FILLINGS: list[Any] = [
    None, 3, {"the people", "a union"}, pd.DataFrame({"what": ["the people"]}), iter(["the people"]), [None], [3],
    [{"a", "b"}], [b"the people"], [["the people", "a union"]], [[]], [{"other": "the people"}], [{"what": 3}],
    {"other": "x"}, [float("nan")],
]  # fmt: skip


@pytest.mark.parametrize("fillings", FILLINGS, ids=lambda value: type(value).__name__)
def test_fillings_are_taken_whole(fill: Any, fillings: Any) -> None:
    expected = fill.rank("We [GAP:name=what] go on.", ["the people", "a union"])
    assert fill.rank("We [GAP:name=what] go on.", fillings) == expected


@pytest.mark.parametrize("fillings", ALONE, ids=lambda value: type(value).__name__)
def test_a_string_is_one_filling(fill: Any, fillings: Any) -> None:
    assert [one["filling"] for one in fill.rank("We [GAP:name=what] go on.", fillings)] == [["the people"]]


@pytest.mark.parametrize("fillings", NO_FILLINGS, ids=map(str, range(len(NO_FILLINGS))))
def test_what_is_no_filling_is_refused(fill: Any, fillings: Any) -> None:
    with pytest.raises(ValueError, match="fillings|strings for") as raised:
        fill.rank("We [GAP:name=what] go on.", fillings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", [None, 3, {"text": "We [GAP]"}, ["We", 3], b"We [GAP]"])
def test_no_text_to_fill_is_refused(fill: Any, text: Any) -> None:
    with pytest.raises(ValueError, match="parts of a text|no gap"):
        fill.rank(text, ["the"])


@pytest.mark.parametrize(
    ("gap", "right", "wrong"),
    [
        ("[GAP:yes|no]", "yes", "maybe"), ("[GAP:1w]", "people", "the people"), ("[GAP:2-3w]", "the people", "people"),
        ("[GAP:must=people]", "the people", "the peoples"), ("[GAP:/[0-9]{4}/]", "1787", "178"),
        ("[GAP:1]", "the", "the people"),
    ],
)  # fmt: skip
def test_a_filling_is_what_its_gap_asks(fill: Any, gap: str, right: str, wrong: str) -> None:
    assert fill.rank(f"We {gap} go on.", [right])[0]["filling"] == [right]
    with pytest.raises(ValueError, match="is not what gap 1|its gap"):
        fill.rank(f"We {gap} go on.", [right, wrong])


@pytest.mark.parametrize("asked", ["5,2", "2-3,4-5", "/a/,/b/", "name=a,name=b", "a|b,c|d", "3,name=x,3"])
def test_what_can_be_asked_once_is_asked_once(asked: str) -> None:
    with pytest.raises(ValueError, match="is a second"):
        parse(f"We [GAP:{asked}] go on.")


@pytest.mark.parametrize(
    ("asked", "low", "high"), [("0000000000012", 12, 12), ("007-009", 7, 9), ("-4", None, 4), ("4-", 4, None)]
)
def test_numbers_are_read_whole(asked: str, low: int | None, high: int | None) -> None:
    (gap,) = parse(f"[GAP:{asked}]")
    assert isinstance(gap, textdiff.Gap) and (gap.min, gap.max) == (low, high)


def test_numbers_of_numpy_are_numbers(fill: Any) -> None:
    one, two = (
        fill("We [GAP:1] go.", seed=3, candidates=2),
        fill("We [GAP:1] go.", seed=np.int64(3), candidates=np.int32(2)),
    )
    assert one == two
    assert fill.score("We go.", seed=np.int64(1)) == fill.score("We go.", seed=1)


def test_an_option_of_another_model_is_refused(fill: Any) -> None:
    with pytest.raises(ValueError, match="max_calls has no effect"):
        fill("We [GAP] go.", max_calls=4)


@pytest.mark.parametrize("option", ["num_return_sequences", "candidates"])
def test_more_samples_than_memory_holds_are_refused(fill: Any, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a whole number from 1 to"):
        fill("We [GAP:1] go.", **{option: 10**9})


def test_samples_are_drawn_a_few_at_a_time() -> None:
    """A text of 100 different results, 1,000 asked for: never more than 64 at once, and an end where nothing new comes."""
    asked: list[tuple[int, int]] = []

    def draw(texts: list[int], first: int, count: int) -> list[list[int]]:
        asked.append((first, count))
        return [[number % 100 for number in range(first, first + count)] for _ in texts]

    found = draw_different(draw, 2, 1000, name=str, merit=float, expired=lambda: False)
    assert [len(results) for results in found] == [100, 100] and found[0] == sorted(found[0], reverse=True)
    assert all(count <= AT_ONCE for _, count in asked) and asked[0] == (0, AT_ONCE) and len(asked) <= 4
    asked.clear()
    assert draw_different(draw, 1, 3, name=str, merit=float, expired=lambda: False) == [[2, 1, 0]]
    assert asked == [(0, 3)] and ROUNDS == 4


def test_refining_counts_its_calls(fill: Any) -> None:
    assert fill.refine("We the people go on.", 0.5, num_steps=2)[0]["calls"] > 0


def test_the_default_of_both_tasks_is_the_model_in_the_package() -> None:
    from transformers.pipelines import check_task

    for task in ("text-infilling", "text-diffusion"):
        assert "textdiff" in str(check_task(task)[1]["default"]["model"][0])


def test_generation_refuses_what_it_does_not_do() -> None:
    """Beams, forced words; and an empty continuation is one of no tokens."""
    checkpoint = tiny_checkpoint("autoregressive", max_gap=4)
    model, ids = checkpoint.model, torch.tensor([[1, 50, 60]])
    run = partial(textdiff.generate, checkpoint=checkpoint)
    for option, message in (
        ({"num_beams": 3}, "no beams"),
        ({"force_words_ids": [[50]]}, "force_words_ids has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(ids, custom_generate=run, max_new_tokens=2, **option)
    for seed in range(30):
        found = model.generate(ids, custom_generate=partial(run, seed=seed), max_new_tokens=1, do_sample=True)
        assert found.shape in ((1, 3), (1, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda fill: textdiff.Gap(choices=[]), "choices are an empty list"),
        (lambda fill: textdiff.Gap(choices=["x\ud800"]), "lone surrogate"),
        (lambda fill: textdiff.Gap(name=""), "name is empty"),
        (lambda fill: fill("We [GAP] go.", banned=["x\ud800"]), "lone surrogate"),
        (lambda fill: fill("We [GAP] go.", temperature=0, top_k=5), "top_k has no effect at temperature 0"),
        (lambda fill: fill.score("We go.", draws=3), "draws has no effect"),
        (lambda fill: fill.rank("We [GAP] go.", ["the"], draws=3), "draws has no effect"),
        (lambda fill: fill.save_pretrained(3), "the folder to save to must be a string"),
        (lambda fill: fill.save_pretrained("/proc/x"), "cannot save to '/proc/x'"),
        (lambda fill: textdiff.tune(3, "bf16"), "model must be a torch module"),
        (lambda fill: generated(fill, checkpoint=3), "checkpoint must be a Checkpoint"),
        (lambda fill: generated(fill, tokenizer=3), "tokenizer must be a PreTrainedTokenizerBase"),
        (lambda fill: generated(fill, generator=3), "generator must be a Generator"),
        (lambda fill: generated(fill, inputs_embeds=torch.zeros(1, 2, 32)), "inputs_embeds cannot be read"),
        (lambda fill: generated(fill, ids=[[1, 10**6]]), "the model knows ids below"),
        (lambda fill: generated(fill, ids=[[1, -3]]), "input_ids must be a tensor"),
        (lambda fill: generated(fill, ids=[1, 3]), "input_ids must be a tensor"),
        (lambda fill: generated(fill, attention_mask=5), "attention_mask must be a tensor"),
        (lambda fill: generated(fill, inputs_tensor=5), "inputs_tensor must be a tensor"),
        (lambda fill: generated(fill, streamer=5), "streamer must have put"),
        (lambda fill: generated(fill, generation_config=5), "generation_config must be a GenerationConfig"),
        (lambda fill: textdiff.generate(None, torch.tensor([[1, 50]])), "model must be a Module"),
        (lambda fill: textdiff.scorer(5), "Route or a Checkpoint"),
    ],
)
def test_what_would_have_no_effect_or_no_sense_is_refused(fill: Any, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        call(fill)
    assert "\n" not in str(raised.value)


def generated(fill: Any, ids: list[list[int]] = [[1, 50]], **options: Any) -> Any:  # noqa: B006
    given = {"checkpoint": fill.checkpoint} | options
    return textdiff.generate(fill.model, torch.tensor(ids), **given)


def test_a_stock_model_is_told_where_it_writes_on() -> None:
    """Its tokenizer lacks what a checkpoint's has; the remedy is one that works."""
    from stock import filler

    fill = filler("causal, bytes")
    with pytest.raises(ValueError, match=r'writes on by pipeline\("text-diffusion"'):
        textdiff.generate(fill.model, torch.tensor([[5, 6]]), tokenizer=fill.tokenizer)


def test_models_without_a_token_for_what_stands_around_a_text() -> None:
    """Lengths are searched, and texts filled, though no token begins a text; an id beyond the vocabulary is none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, pipeline

    names = ["[PAD]", "[UNK]", "[MASK]", *"the sea of war we king peace go on a".split()]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    t = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForMaskedLM(BertConfig(vocab_size=len(t), max_position_embeddings=64, **shape)).eval()
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(t), n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()
    for model, texts in (
        (bert, ("the [GAP] sea", "[GAP] sea", "the [GAP]", "the sea of [GAP:1-3] the war we", "x [GAP:2] y [GAP:1-2]")),
        (gpt2, ("the [GAP:2] sea", "the [GAP:1-3] sea of war")),
    ):
        fill = pipeline("text-infilling", model=model, tokenizer=t)
        for text in texts:
            assert fill(text.replace("x", "we").replace("y", "go"))[0]["gaps"]


def test_others_are_found_where_the_best_of_many_is_one() -> None:
    """Of 32 candidates the best is the same word every time; four different ones are given, the likeliest first."""
    from transformers import pipeline

    found = pipeline("text-infilling")("the [GAP:1] ran", num_return_sequences=4)
    words = [one["gaps"][0]["text"] for one in found]
    scores = [one["score"] for one in found]
    assert len({*words}) == 4 and scores == sorted(scores, reverse=True)


def test_gaps_leave_room_for_those_that_follow() -> None:
    """Five gaps of a word in a text of 21 tokens, by a model that reads 32: filled, whatever the seed."""
    from stock import filler

    fill = filler("causal, bytes")
    longest = fill.route.denoiser.longest
    assert longest is not None
    text = " ".join(f"{letter} [GAP:1w]" for letter in "abcdefgh") + " i"
    size = len(fill.tokenizer(text.replace("[GAP:1w]", ""))["input_ids"])
    text = "a " * max(0, longest - size - 12) + text
    for seed in range(3):
        assert len(fill(text, seed=seed)[0]["gaps"]) == 8
