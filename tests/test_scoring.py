"""Scores of texts and of fillings: exact where they say so, and within their error of the enumerated bound elsewhere."""

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from tiny import KINDS, tiny_checkpoint
from transformers import pipeline

from textdiff.checkpoint import Checkpoint
from textdiff.cli import main
from textdiff.filling import infill, start_state
from textdiff.gaps import Gap, parse
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw
from textdiff.process import Deletion, Masking
from textdiff.scoring import Score, filled_state, lines, measure, rank, score, scorer
from textdiff.tokenizer import encode
from textdiff.tokens import Tokens

TEXT = "We go"  # three tokens
ONE = torch.ones(1, dtype=torch.float64)


@pytest.fixture(scope="module")
def made() -> dict[str, Checkpoint]:
    """The weights are made larger: as they are drawn, every word is as likely as another."""
    result = {kind: tiny_checkpoint(kind, max_gap=4, lengths=12) for kind in KINDS}
    for checkpoint in result.values():
        with torch.no_grad():
            for weights in checkpoint.model.parameters():
                weights.mul_(3 if weights.dim() > 1 else 1)
    return result


@pytest.fixture(scope="module")
def tools(made: dict[str, Checkpoint]) -> dict[str, dict[str, Any]]:
    return {kind: scorer(checkpoint) for kind, checkpoint in made.items()}


def hidden(x0: Tokens, mask: torch.Tensor, ids: Any) -> Tokens:
    return x0.with_(ids=x0.ids.masked_fill(mask, ids.mask))


def enumerated(x0: Tokens, tool: dict[str, Any]) -> float:
    """The masking bound of the tokens that are not fixed, over all their subsets: a subset of k of n has weight
    n/k at the chance 1 / (n C(n, k)); in nats, lengths aside."""
    free = (~x0.fixed & x0.valid)[0].nonzero()[:, 0].tolist()
    total, n = 0.0, len(free)
    for k in range(1, n + 1):
        for chosen in itertools.combinations(free, k):
            mask = torch.zeros_like(x0.fixed)
            mask[0, list(chosen)] = True
            place = torch.arange(x0.ids.shape[1])[None]
            with torch.no_grad():
                nll = -tool["denoiser"](hidden(x0, mask, tool["specials"]), ONE / 2).log_prob(Draw(x0, place, x0.score))
            total += float(nll.double().sum()) / (k * math.comb(n, k))
    return total


def lengths(x0: Tokens, start: Tokens, tool: dict[str, Any]) -> float:
    """-log q of the lengths of the gaps of `start` alone, from the logits at its markers."""
    gap = start.ids == tool["specials"].gap
    counts = [sum(1 for _ in run) for free, run in itertools.groupby((~x0.fixed)[0].tolist()) if free]
    with torch.no_grad():
        logits = tool["denoiser"].logits(start, gap).double()[:, list(tool["specials"].lengths)].log_softmax(-1)
    return -sum(float(row[count]) for row, count in zip(logits, counts, strict=True))


@pytest.mark.parametrize("kind", ["autoregressive", "seq2seq"])
def test_autoregressive_scores_are_exact(kind: str, made: dict, tools: dict) -> None:
    """-log q(text | [GAP]) by hand: the length's, and each word's from the stock model fed with those before it."""
    tool, ids = tools[kind], made[kind].specials
    words = encode(tool["tokenizer"], TEXT)
    (found,) = score([TEXT], **tool)
    x0 = Tokens.from_rows([[ids.bos, *words]], ids.pad)
    start = start_state([[Gap()]], tool["tokenizer"], ids)
    place = torch.tensor([[0, 1, 1, 1]])
    with torch.no_grad():
        whole = -tool["denoiser"](start, ONE).log_prob(Draw(x0, place, x0.score)).double().sum()
    assert found.nats == pytest.approx(float(whole), rel=1e-6) and found.error == 0
    assert found.kind == "exact, in one step" and found.tokens == 3
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / 5)

    def log_q(logits: torch.Tensor, allowed: list[int], chosen: int) -> float:
        return float(logits[allowed].double().log_softmax(-1)[allowed.index(chosen)])

    model, text, total = made[kind].model, [i for i in range(ids.size) if i not in ids.not_text], 0.0
    with torch.no_grad():
        for place, word in enumerate([ids.lengths[3], *words]):
            state = [ids.bos, ids.gap] if place == 0 else [ids.bos, *[ids.mask] * (3 if kind == "seq2seq" else 1)]
            fed = [ids.gap] if place == 0 else [ids.fill if kind == "seq2seq" else ids.bos, *words[: place - 1]]
            if kind == "seq2seq":
                logits = model(torch.tensor([state]), decoder_input_ids=torch.tensor([fed])).logits[0, -1]
            else:
                at = [0, 1, 2, 1] if place == 0 else [0, 1, 4, *range(len(fed))]
                row = torch.tensor([[*state, ids.end, *fed]])
                logits = model(row, position_ids=torch.tensor([at])).logits[0, -1]
            total -= log_q(logits, [*ids.lengths] if place == 0 else text, word)
    assert found.nats == pytest.approx(total, rel=1e-5)


def test_autoregressive_scores_add_up(made: dict, tools: dict) -> None:
    """exp(-nats) over all texts of one token is the chance of the length 1."""
    tool, ids = tools["autoregressive"], made["autoregressive"].specials
    rows = [Tokens.from_rows([[ids.bos, word]], ids.pad) for word in ids.words.tolist()]
    parts = {name: tool[name] for name in ("denoiser", "process", "specials", "kind")}
    nats, variance = measure(rows, draws=1, seed=0, batch=64, **parts)
    start = start_state([[Gap()]], tool["tokenizer"], ids)
    with torch.no_grad():
        denoiser, gap = tool["denoiser"], start.ids == ids.gap
        logits = denoiser.reader.score(start, denoiser.reader.feed(start, start.ids), gap, torch.zeros_like(gap))[0]
        chance = logits[0, list(ids.lengths)].double().softmax(-1)[1]
    assert float((-nats).exp().sum()) == pytest.approx(float(chance), rel=1e-5) and not bool(variance.any())


def test_the_bound_is_within_its_error(tools: dict) -> None:
    """3000 draws of a text of three tokens: within 4.9 standard errors of the enumeration, false alarm 1e-6; at 5 % less, or
    without the length, it is not."""
    tool = tools["parallel"]
    (found,) = score([TEXT], draws=3000, **tool)
    x0 = filled_state([Gap()], [TEXT], tool["tokenizer"], tool["specials"])
    length = lengths(x0, start_state([[Gap()]], tool["tokenizer"], tool["specials"]), tool)
    exact = enumerated(x0, tool) + length

    def agrees(nats: float) -> bool:
        return abs(nats - exact) < 4.9 * found.error

    assert found.kind == "bound" and found.error > 0 and agrees(found.nats)
    assert not agrees(found.nats * 0.95) and not agrees(found.nats - length)


def test_the_error_is_the_error(tools: dict) -> None:
    """Over 100 seeds of 16 draws the mean leaves the enumeration by as much as is said: the mean square deviation over the
    mean square error has chi-square of 100 degrees of freedom, and is outside (0.45, 1.85) once in 10^6; errors twice as
    large or half as large would be. And the error falls like the square root of the draws."""
    tool = tools["parallel"]
    x0 = filled_state([Gap()], [TEXT], tool["tokenizer"], tool["specials"])
    exact = enumerated(x0, tool) + lengths(x0, start_state([[Gap()]], tool["tokenizer"], tool["specials"]), tool)
    found = [score([TEXT], draws=16, seed=seed, **tool)[0] for seed in range(100)]
    deviation = torch.tensor([s.nats - exact for s in found])
    said = torch.tensor([s.error for s in found])
    low, high = (q / 100 for q in stats.chi2.ppf([5e-7, 1 - 5e-7], 100))
    ratio = float(deviation.square().mean() / said.square().mean())
    assert low < ratio < high and not low < ratio / 4 < high and not low < ratio * 4 < high
    few, many = (score([TEXT], draws=draws, **tool)[0].error for draws in (100, 1600))
    assert few / many == pytest.approx(4, rel=0.3)


def test_masking_alone_is_given_the_length() -> None:
    checkpoint = tiny_checkpoint("parallel", process="masking")
    tool = scorer(checkpoint)
    (found,) = score([TEXT], draws=400, **tool)
    x0 = filled_state([Gap.of(3)], [TEXT], tool["tokenizer"], tool["specials"])
    assert isinstance(tool["process"], Masking) and found.kind == "bound, length given"
    assert abs(found.nats - enumerated(x0, tool)) < 4.9 * found.error


# Fillings


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_the_filling_of_a_blank_page(kind: str, tools: dict) -> None:
    (found,) = score([TEXT], draws=64, **tools[kind])
    (filled,) = rank("[GAP]", [TEXT], draws=64, **tools[kind])
    assert filled.filling == (TEXT,) and filled.score.tokens == 3
    assert filled.score.nats == pytest.approx(found.nats, abs=5 * 1.42 * found.error + 1e-9)


@pytest.mark.parametrize("kind", ["autoregressive", "seq2seq"])
def test_what_infilling_drew_costs_what_it_said(kind: str, made: dict, tools: dict) -> None:
    """Its score is of the words given their number; so it is -nats where the lengths are given. The words are of letters
    that the tokenizer always spells as they were drawn."""
    tool = made[kind].tools()
    letters = encode(tool["tokenizer"], "xXqQ")

    def known(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_copy(1, torch.tensor(letters), scores[:, letters])

    parts = ["We", Gap.of(1), " on", Gap.of(2), "."]
    (filled,) = infill([parts], seed=0, samples=20, decode=Decode(processors=(known,)), **tool)
    assert len({result.text for result in filled}) > 5
    for result in filled:
        (found,) = rank(parts, [[gap.text for gap in result.gaps]], **tools[kind])
        assert found.score.nats == pytest.approx(-result.score, rel=1e-4)


def test_the_bound_of_fillings(tools: dict) -> None:
    """Only the gaps' own tokens are masked, and both gaps' lengths are counted: within 4.9 errors of the enumeration."""
    tool = tools["parallel"]
    parts, filling = ["We", Gap(), " on", Gap(), "."], (" go", "!")
    (found,) = rank(parts, [filling], draws=3000, **tool)
    x0 = filled_state(parts, filling, tool["tokenizer"], tool["specials"])
    start = start_state([parts], tool["tokenizer"], tool["specials"])
    exact = enumerated(x0, tool) + lengths(x0, start, tool)
    assert found.score.tokens == int((~x0.fixed).sum()) == 3
    assert abs(found.score.nats - exact) < 4.9 * found.score.error
    assert abs(found.score.nats * 0.95 - exact) > 4.9 * found.score.error
    (one,) = rank(["We", Gap.of(1), "."], [("!",)], **tool)
    assert one.score.error == 0  # a single masked token leaves nothing to draw


@pytest.mark.parametrize("kind", KINDS)
def test_the_filled_state_is_the_text(kind: str, tools: dict) -> None:
    """The words that the text has when it is filled, spaces included, and the user's fixed; at t = 1 the start state."""
    tool = tools[kind]
    ids, tokenizer = tool["specials"], tool["tokenizer"]
    cases = [
        ("We [GAP] on[GAP:3].", ("the", " xx"), "We the on xx."),
        ("[GAP]", ("",), ""),
        ("[GAP] [GAP]", ("a", "b"), "a b"),
        ("We [GAP] on", ("",), "We  on"),
        (["a", Gap()], (" \u00fc",), "a \u00fc"),
    ]
    for text, filling, whole in cases:
        parts = parse(text) if isinstance(text, str) else text
        x0 = filled_state(parts, filling, tokenizer, ids)
        assert tokenizer.decode(x0.ids[0, 1:].tolist(), skip_special_tokens=True) == whole
        start = start_state([parts], tokenizer, ids)
        one = Deletion(ids).prior(x0, Key.of(0, 1))
        assert one.ids[one.valid].tolist() == start.ids[0].tolist()


def test_ranking(tools: dict) -> None:
    """Likeliest first; each as it is alone."""
    for tool in tools.values():
        found = rank("We [GAP].", ["go", "it", "people", "", "go on and on"], **tool)
        nats = [ranked.score.nats for ranked in found]
        assert nats == sorted(nats) and {ranked.filling[0] for ranked in found} == {
            "go",
            "it",
            "people",
            "",
            "go on and on",
        }
        (alone,) = rank("We [GAP].", [found[2].filling], **tool)
        assert alone.score.nats == pytest.approx(found[2].score.nats, rel=1e-5)
        assert next(ranked.score.bits_per_byte for ranked in found if ranked.filling == ("",)) is None


def test_scores_do_not_depend_on_the_batch(tools: dict) -> None:
    for tool in tools.values():
        texts = ["We", "people of the", "", TEXT]
        together = score(texts, **tool)
        for text, found in zip(texts, together, strict=True):
            (alone,) = score([text], batch=3, **tool)
            assert alone.nats == pytest.approx(found.nats, rel=1e-5) and alone.tokens == found.tokens
        assert together[0] != score(["We"], seed=1, **tool)[0] or together[0].error == 0
        assert score([], **tool) == []


def test_windows(tools: dict) -> None:
    """Each stretch by itself: sums, and errors that add up by their squares."""
    for tool in tools.values():
        text = "We the people. " * 8
        ids = encode(tool["tokenizer"], text)
        with pytest.raises(
            ValueError, match=rf"the text has {len(ids)} tokens, the model scores 12; shorten it, or set window 12"
        ):
            score([text], **tool)
        (found,) = score([text], window=5, **tool)
        pieces = [tool["tokenizer"].decode(ids[begin : begin + 5]) for begin in range(0, len(ids), 5)]
        parts = score(pieces, **tool)
        assert found.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-5)
        assert found.error == pytest.approx(sum(part.error**2 for part in parts) ** 0.5, rel=1e-4)
        assert found.tokens == len(ids)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tool: score(["a"], draws=1, **tool), "draws 1 cannot tell an error; give 2 or more"),
        (lambda tool: score(["a"], window=0, **tool), "window 0 is not between 1 and what the model scores at once, 12 "),
        (lambda tool: score(["a"], window=13, **tool), "window 13 is not between 1"),
        (lambda tool: rank("We [GAP] [GAP]", ["a"], **tool), r"\('a',\) is 1 strings for 2 gaps; give one for each gap"),
        (lambda tool: rank("We [GAP:3].", ["a"], **tool), "'a' has 1 tokens and its gap 3|'a' has 2 tokens and its gap 3"),
        (lambda tool: rank("We", ["a"], **tool), "no gap in|is 1 strings for 0 gaps"),
        (lambda tool: rank("We [GAP].", ["x y " * 50], **tool), r"the text has \d+ tokens, the model reads 64"),
        (lambda tool: score(["\ud800"], **tool), "lone surrogate"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, message: str, tools: dict) -> None:
    with pytest.raises(ValueError, match=message):
        call(tools["parallel"])


# The pipeline and the command


@pytest.fixture(scope="module")
def folder(made: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind, checkpoint in made.items():
        checkpoint.save(folder / kind)
    return folder


def test_the_pipeline_scores(folder: Path, tools: dict) -> None:
    write = pipeline("text-diffusion", model=str(folder / "autoregressive"))
    (expected,) = score([TEXT], **tools["autoregressive"])
    assert write.score(TEXT)["nats"] == pytest.approx(expected.nats, rel=1e-6)
    assert [found["tokens"] for found in write.score([TEXT, ""])] == [3, 0]


def test_the_command(folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(folder / "parallel")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["score", *words])
        return code, *capsys.readouterr()

    code, out, _ = run(model, "We go", "on", "a | b", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["text"] for row in found] == ["We go", "on", "a | b"]
    assert found[0].keys() == {"text", "nats", "error", "bits_per_byte", "tokens", "kind"}
    code, out, _ = run(model, "We go", "on", "a | b", "--rank", "--draws", "4")
    rows = out.splitlines()
    assert (
        code == 0 and len(rows) == 5 and rows[-1].count(" \u00b1 ") == 1 and {row.count("|") for row in rows} == {6, 7}
    )
    nats = [float(row.split()[1]) for row in rows[2:]]
    assert nats == sorted(nats)
    code, _, said = run(str(folder / "autoregressive"), "We go", "--draws", "4")
    assert code == 2 and "draws has no effect: the scores of this model are exact" in said
    code, out, _ = run(model, "--within", "We [GAP].", "go", "it", "--json")
    assert code == 0 and {json.loads(line)["text"] for line in out.splitlines()} == {"go", "it"}
    monkeypatch.setattr("sys.stdin", io.StringIO("We go\nWe go on\n"))
    code, out, _ = run(model, "--json")
    assert code == 0 and len(out.splitlines()) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(model)[0::2] == (2, "textdiff score: no text to score; give one, or a line each on standard input\n")
    assert "no gap in 'We'" in run(model, "--within", "We", "go")[2]


def test_generate_options_of_the_command(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """max-new-tokens and its other name; stop strings; watching ends with the texts and prints nothing twice."""
    model = str(folder / "autoregressive")
    said = []
    for option in ("--max-new-tokens", "--max-gap"):
        assert main(["generate", model, "--prompt", "We", option, "2", "--json"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and json.loads(said[0])[0].keys() == {"generated_text", "score"}
    assert (
        main(["generate", model, "--prompt", "We", "--watch", "--num-steps", "2", "--num-return-sequences", "2"]) == 0
    )
    page = capsys.readouterr().out
    assert page.count("1 We") == page.count("2 We") == 3
    assert main(["generate", model, "--prompt", "We [x]"]) == 0
    assert capsys.readouterr().out.startswith("We [x]")


def test_lines_of_a_table() -> None:
    rows = lines([("a\nb", Score(1.5, 0.0, None, 2, "bound")), ("c", Score(2.0, 0.25, 3.0, 1, "bound"))])
    assert rows[2:] == ["| 1.50 |  | 2 | bound | a b |", "| 2.00 \u00b1 0.25 | 3.000 | 1 | bound | c |"]


def test_decoding_options_do_not_matter(made: dict) -> None:
    """A score is of the model, not of how it is decoded."""
    assert Decode(temperature=0.5) != Decode()
    checkpoint = tiny_checkpoint("autoregressive", temperature=0.5, top_k=2, max_gap=2)
    plain = tiny_checkpoint("autoregressive")
    assert score([TEXT], **scorer(checkpoint)) == score([TEXT], **scorer(plain))
