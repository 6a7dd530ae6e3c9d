"""Scores of texts and fillings by stock models: the chain rule where they say exact, laws that add up, and honest bounds.

Toy models of three words; all that is exact is held against a plain forward of the model, by hand.
"""

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stock import STOCK, filler
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
)
from writers import LAYERS, bart

from textdiff.cli import main
from textdiff.filling import spelt
from textdiff.gaps import Gap, parse
from textdiff.scoring import filled_state, measure, rank, score, scorer
from textdiff.spelling import lead_of, read_gap
from textdiff.stock import stock_route
from textdiff.tokens import Tokens

PAD, EOS, MASK, BOS = 0, 1, 2, 3
A, B, C = 4, 5, 6
WORDS = {"a": A, "b": B, "c": C}
SENTINELS = (7, 8, 9)


def tokenizer(around: str = "<bos> $A", marks: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Words between spaces, which no token spells."""
    names = ["<pad>", "</s>", "<mask>", "<bos>", *WORDS, *marks]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken(name, special=True) for name in (*names[:4], *marks)])
    ids = [(name, names.index(name)) for name in around.split() if name != "$A"]
    inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
    roles |= {"cls_token": "<bos>", "bos_token": "<bos>"} if around.startswith("<bos>") else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=list(marks), **roles)


COMMON = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": BOS}
FIM = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")


def made(kind: str) -> tuple[Any, PreTrainedTokenizerFast]:
    torch.manual_seed(3)
    if kind in ("causal", "middle"):
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
        config = GPT2Config(**COMMON, **shape, vocab_size=10 if kind == "middle" else 7)
        return GPT2LMHeadModel(config).eval(), tokenizer(marks=FIM if kind == "middle" else ())
    if kind == "masked":
        config = BertConfig(**COMMON, **LAYERS, vocab_size=7, max_position_embeddings=32, initializer_range=0.3)
        return BertForMaskedLM(config).eval(), tokenizer("<bos> $A </s>")
    if kind == "rewriting":
        model = BartForConditionalGeneration(bart().config)
        return model.eval(), tokenizer("<bos> $A </s>")
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "initializer_factor": 1.5}
    model = T5ForConditionalGeneration(T5Config(**COMMON, **shape, vocab_size=10, decoder_start_token_id=PAD))
    return model.eval(), tokenizer("$A </s>", ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>"))


@pytest.fixture(scope="module")
def tools() -> dict[str, dict[str, Any]]:
    return {kind: scorer(stock_route(*made(kind))) for kind in ("causal", "middle", "masked", "rewriting", "sentinels")}


EXACT = ("causal", "middle", "rewriting")
CONTENTS = [" ".join(words) for n in (1, 2) for words in itertools.product("abc", repeat=n)]


def law(tool: dict[str, Any], fed: list[int], source: list[int] | None) -> torch.Tensor:
    """(N, V) log-probabilities after each token fed, from a plain forward."""
    model, ids = tool["denoiser"].model, torch.tensor([fed])
    with torch.no_grad():
        if source is None:
            return model(input_ids=ids).logits[0].double().log_softmax(-1)
        return model(input_ids=torch.tensor([source]), decoder_input_ids=ids).logits[0].double().log_softmax(-1)


def ids_of(text: str) -> list[int]:
    return [WORDS[word] for word in text.split()]


def chain(tool: dict[str, Any], kind: str, text: str, gaps: str | None = None, end: bool = False) -> float:
    """log p of a whole text by hand; `gaps`: the text as BART's encoder reads it."""
    words = ids_of(text)
    if kind == "rewriting":
        marked = "[GAP]" if gaps is None else gaps
        source = [BOS, *(MASK if word == "[GAP]" else WORDS[word] for word in marked.split()), EOS]
        fed, after = [EOS, BOS, *words], [*words, EOS]
        found = law(tool, fed, source)[1:]
    else:
        fed, after = [BOS, *words], [*words, *([EOS] if end else [])]
        found = law(tool, fed, None)
    return sum(float(row[token]) for row, token in zip(found, after, strict=False))


@pytest.mark.parametrize("kind", EXACT)
def test_whole_texts_by_the_chain_rule(kind: str, tools: dict) -> None:
    texts = ["a", "b c a", "c c", ""]
    for text, found in zip(texts, score(texts, **tools[kind]), strict=True):
        assert found.nats == pytest.approx(-chain(tools[kind], kind, text), abs=1e-4)
        assert found.error == 0 and found.kind.startswith("exact, whole text") and found.tokens == len(text.split())
    assert found.bits_per_byte is None


@pytest.mark.parametrize("kind", ["causal", "middle"])
def test_whole_texts_add_up(kind: str, tools: dict) -> None:
    """Over all sequences of two tokens exp(-nats) is 1, over those that are text less; by their words alone, each in sight
    of the other, it would not be."""
    tool = tools[kind]
    size, fixed = tool["specials"].size, torch.tensor([[True, False, False]])
    rows = [
        Tokens.of(torch.tensor([[BOS, v, w]]), torch.zeros(1, 3).long(), fixed, ~fixed, torch.ones(1, 3).bool())
        for v, w in itertools.product(range(size), repeat=2)
    ]
    parts = {name: tool[name] for name in ("denoiser", "process", "specials", "kind")}
    nats, variance = measure(rows, draws=1, seed=0, batch=64, **parts)
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-5) and not bool(variance.any())
    texts = [" ".join(words) for words in itertools.product("abc", repeat=2)]
    total = sum(math.exp(-found.nats) for found in score(texts, **tool))
    assert 0 < total < 1
    swapped = sum(math.exp(-n) for n in (-nats).roll(1).tolist())
    assert swapped != pytest.approx(1, abs=1e-2)  # what is no law does not add up


def posterior(weights: dict[str, float]) -> dict[str, float]:
    total = torch.tensor([*weights.values()], dtype=torch.float64).softmax(0).tolist()
    return dict(zip(weights, total, strict=True))


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("text", ["a [GAP] b c", "c [GAP]", "[GAP] b a"])
def test_fillings_are_ranked_by_the_models_posterior(kind: str, text: str, tools: dict) -> None:
    """Of all 12 fillings of one or two words: the same law, and so the same order, as by enumeration. The law of what is
    left of the gap alone is another one, and orders them differently."""
    tool = tools[kind]
    found = rank(text, CONTENTS, **tool)
    nats = {one.filling[0]: -one.score.nats for one in found}
    end = text.endswith("[GAP]")
    exact = {w: chain(tool, kind, text.replace("[GAP]", w), text, end) for w in CONTENTS}
    for word, value in posterior(exact).items():
        assert posterior(nats)[word] == pytest.approx(value, rel=1e-3)
    assert [one.filling[0] for one in found] == sorted(CONTENTS, key=exact.__getitem__, reverse=True)
    assert found[0].score.nats == pytest.approx(-max(exact.values()), abs=1e-4)
    assert found[0].score.tokens == len(text.replace("[GAP]", found[0].filling[0]).split())
    left = {w: chain(tool, kind, text.partition("[GAP]")[0] + w, text) for w in CONTENTS}
    if kind != "rewriting" and not end:
        assert sorted(CONTENTS, key=left.__getitem__) != sorted(CONTENTS, key=exact.__getitem__)


def test_sentinels_add_up_and_are_the_decoders(tools: dict) -> None:
    """Over all texts of a given number of words exp(-nats) is 1; over all contents of a gap, with its end, at most 1, and
    nearer with longer ones. By hand: words and end from a plain forward, over words and ends."""
    tool = tools["sentinels"]
    for n in (1, 2):
        texts = [" ".join(words) for words in itertools.product("abc", repeat=n)]
        found = rank(["a ", Gap.of(n), " b"], texts, **tool)
        assert sum(math.exp(-one.score.nats) for one in found) == pytest.approx(1, abs=1e-5)
    shares = []
    for longest in (1, 2, 3):
        texts = [" ".join(words) for n in range(longest + 1) for words in itertools.product("abc", repeat=n)]
        shares.append(sum(math.exp(-one.score.nats) for one in rank("a [GAP] b", texts, **tool)))
    assert 0 < shares[0] < shares[1] < shares[2] < 1
    fed = [PAD, SENTINELS[0], C, A]
    logits = law(tool, fed, [A, SENTINELS[0], B, EOS])[1:]
    ends = [EOS, *SENTINELS]
    said = torch.cat([logits[:, [A, B, C]], logits[:, ends].logsumexp(1, keepdim=True)], 1).log_softmax(1)
    (one,) = rank("a [GAP] b", ["c a"], **tool)
    assert one.score.nats == pytest.approx(-float(said[0, 2] + said[1, 0] + said[2, 3]), abs=1e-4)
    assert one.score.kind == "exact, fillings and their lengths" and one.score.tokens == 2
    (whole,) = score(["c a"], **tool)
    assert whole.nats == pytest.approx(rank("[GAP]", ["c a"], **tool)[0].score.nats, rel=1e-6)


def given(tool: dict[str, Any], words: list[int], hidden: set[int]) -> list[float]:
    """log q of each hidden word of a text, from a plain forward: over words alone."""
    fed = [BOS, *(MASK if i in hidden else word for i, word in enumerate(words)), EOS]
    with torch.no_grad():
        logits = tool["denoiser"].model(input_ids=torch.tensor([fed])).logits[0, 1:-1].double()
    said = logits[:, [A, B, C]].log_softmax(-1)
    return [float(said[i, words[i] - A]) if i in hidden else 0.0 for i in range(len(words))]


def test_the_bound_of_a_masked_model_is_one(tools: dict) -> None:
    """Two words: the law of a model that writes in a random order adds up to 1 and the bound, enumerated, is above -log of
    it for every text. 500 draws are within 4.9 errors of it, false alarm 1e-6; at 15 % less, or of pseudo-likelihood, all
    texts together are not."""
    tool = tools["masked"]
    texts = [" ".join(words) for words in itertools.product("abc", repeat=2)]
    found = score(texts, draws=500, **tool)
    total = bounds = 0.0
    away, lower, pseudo = [], [], []
    for text, one in zip(texts, found, strict=True):
        words = ids_of(text)
        both, first, second = (given(tool, words, hidden) for hidden in ({0, 1}, {0}, {1}))
        orders = (math.exp(both[0] + second[1]) + math.exp(both[1] + first[0])) / 2
        bound = -(sum(both) + first[0] + second[1]) / 2  # n/k sum over sets of k: k = 2 once, k = 1 each word
        assert bound >= -math.log(orders) - 1e-9
        total, bounds = total + orders, bounds + math.exp(-bound)
        away.append(abs(one.nats - bound) / one.error)
        lower.append(abs(one.nats * 0.85 - bound) / one.error)
        pseudo.append(abs(one.nats + first[0] + second[1]) / one.error)
        assert one.kind == "bound, any order, length given" and one.tokens == 2
    assert total == pytest.approx(1, abs=1e-5) and bounds < 1
    assert max(away) < 4.9 < max(lower) and max(pseudo) > 4.9


def test_fillings_of_a_masked_model(tools: dict) -> None:
    """One word is exact, and ranked by the model's own law there; the tokens around the text are not counted."""
    found = rank("a [GAP] c", ["a", "b", "c"], **tools["masked"])
    exact = {word: given(tools["masked"], [A, WORDS[word], C], {1})[1] for word in "abc"}
    assert [one.filling[0] for one in found] == sorted("abc", key=exact.__getitem__, reverse=True)
    for one in found:
        assert one.score.nats == pytest.approx(-exact[one.filling[0]], abs=1e-5)
        assert one.score.error == 0 and one.score.tokens == 1
    assert sum(math.exp(-one.score.nats) for one in found) == pytest.approx(1, abs=1e-5)


def test_the_mask_token_is_a_gap_of_one_token() -> None:
    fill = filler("masked, WordPiece")
    masked, counted = (fill.rank(f"We {gap} of", ["the", "form"]) for gap in ("[MASK]", "[GAP:1]"))
    assert masked == counted and masked[0]["nats"] < masked[1]["nats"]


# Every kind of tokenizer and model


@pytest.mark.parametrize("path", STOCK)
def test_scores_do_not_depend_on_the_batch(path: str) -> None:
    fill = filler(path)
    texts = ["We the People of", "", "a more perfect Union", "form a"]
    together = fill.score(texts)
    assert together == fill.score(texts)
    for text, found in zip(texts, together, strict=True):
        assert found["nats"] == pytest.approx(fill.score(text)["nats"], rel=1e-5)
        assert math.isfinite(found["nats"]) and (found["bits_per_byte"] is None) == (text == "")
    ranked = fill.rank("We [GAP] of [GAP].", [["the People", "wine"], ["so", "Order"]])
    assert {tuple(one["filling"]) for one in ranked} == {("the People", "wine"), ("so", "Order")}
    (alone,) = fill.rank("We [GAP] of [GAP].", [ranked[1]["filling"]])
    assert alone["nats"] == pytest.approx(ranked[1]["nats"], rel=1e-5) and ranked[0]["nats"] < alone["nats"]


@pytest.mark.parametrize("path", STOCK)
def test_fillings_are_spelt_so_that_they_can_be_read_back(path: str) -> None:
    route = filler(path).route
    for text, content in [
        ("We [GAP] of", "the"), ("We[GAP]", " the"), ("un[GAP] it", "form"), ("[GAP] of", "We"), ("(so [GAP])", "it is"),
        ("We [GAP]", "wine, red"),
    ]:  # fmt: skip
        parts = parse(text)
        number = next(n for n, part in enumerate(parts) if isinstance(part, Gap))
        ids = spelt(content, parts, number, route.tokenizer, route.specials)
        lead = lead_of(route.tokenizer, str(parts[number - 1]) if number else "")
        assert read_gap(route.tokenizer, ids, lead) == content
        x0 = filled_state(parts, [content], route.tokenizer, route.specials)
        assert x0.ids[0, (~x0.fixed)[0]].tolist() == ids
        tail = list(route.specials.tail)
        assert not tail or x0.ids[0, -len(tail) :].tolist() == tail


def test_what_is_refused() -> None:
    """A text that the tokenizer cannot read; one too long; a model that nothing begins."""
    fill = filler("masked, WordPiece")
    with pytest.raises(ValueError, match=r"the tokenizer reads \[UNK\] in 'We €', which is no text to the model"):
        fill.score("We €")
    with pytest.raises(
        ValueError, match=r"the text has \d+ tokens, the model scores 254; shorten it, or set window 254"
    ):
        fill.score("We the " * 200)
    assert fill.score("We the " * 200, window=254)["tokens"] == 400
    model, words = made("causal")
    bare = tokenizer("$A")
    bare.eos_token, model.config.bos_token_id = None, None
    assert words.bos_token and bare.bos_token is None
    with pytest.raises(ValueError, match="no token that begins a text, so nothing says its first word; set"):
        scorer(stock_route(model, bare))


# The command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a stock model, by its place or by --model; the model in the package where none is named."""
    fill = filler("causal, bytes")
    fill.model.save_pretrained(tmp_path / "gpt")
    fill.tokenizer.save_pretrained(tmp_path / "gpt")

    def run(*words: str) -> list[dict[str, Any]]:
        assert main(["score", *words, "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    folder = str(tmp_path / "gpt")
    first = run(folder, "We the", "People")
    assert first == run("--model", folder, "We the", "People") and [one["text"] for one in first] == [
        "We the",
        "People",
    ]
    assert first[0]["nats"] == pytest.approx(fill.score("We the")["nats"], rel=1e-4)
    ranked = run(folder, "--within", "We [GAP] of", "the", "form")
    assert {one["text"] for one in ranked} == {"the", "form"} and ranked[0]["nats"] < ranked[1]["nats"]
    assert all(one["kind"] == "exact, whole text" for one in first + ranked)
    boxed = run("We go on.", "On go we.", "--rank")
    assert [one["text"] for one in boxed] == ["We go on.", "On go we."]
    monkeypatch.setattr("sys.stdin", io.StringIO("We go\n"))
    assert [one["text"] for one in run()] == ["We go"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert [one["text"] for one in run("and/or", "x")] == ["and/or", "x"]  # a text, unless the hub's cache has it
    assert main(["score", "--model", "no/such-folder", "x"]) == 2
    assert "no/such-folder cannot be opened as a language model" in capsys.readouterr().err
    opened = pipeline("text-diffusion", model=folder)
    assert opened.score("We the")["nats"] == pytest.approx(first[0]["nats"], rel=1e-6)
