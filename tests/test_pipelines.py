"""`pipeline("text-infilling")`: transformers' interface to infilling, whichever package is imported first."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import KINDS, tiny_checkpoint
from transformers import pipeline

import textdiff  # noqa: F401  (makes the task known)
from textdiff.checkpoint import load
from textdiff.filling import infill, prepare
from textdiff.gaps import Gap, parse
from textdiff.wordcount import count_words

TEXT = "We [GAP:4] on [GAP]."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_checkpoint(kind, max_gap=4).save(folder / kind)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def fills(folders: dict[str, Path]) -> dict[str, Any]:
    """The pipelines, opened by their task's name."""
    return {kind: pipeline("text-infilling", model=str(folder)) for kind, folder in folders.items()}


def texts(output: list[dict]) -> list[str]:
    return [sequence["generated_text"] for sequence in output]


@pytest.mark.parametrize("kind", KINDS)
def test_the_output(kind: str, fills: dict) -> None:
    """A list of sequences; offsets count characters of the text, scores are log-probabilities."""
    output = fills[kind](TEXT)
    assert isinstance(output, list) and len(output) == 1
    (sequence,) = output
    assert sequence.keys() == {"generated_text", "score", "calls", "named", "gaps"} and len(sequence["gaps"]) == 2
    assert sequence["calls"] > 0 and sequence["named"] == {}
    assert sequence["score"] == pytest.approx(sum(gap["score"] for gap in sequence["gaps"]))
    for gap in sequence["gaps"]:
        assert gap.keys() == {"text", "start", "end", "score", "name", "tokens", "probabilities"}
        assert "".join(gap["tokens"]).strip(" \ufffd") == gap["text"].strip(" \ufffd")
        assert sum(map(math.log, gap["probabilities"])) == pytest.approx(gap["score"], abs=1e-4)
        assert sequence["generated_text"][gap["start"] : gap["end"]] == gap["text"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_infill_of_the_loaded_checkpoint(kind: str, fills: dict, folders: dict) -> None:
    """The same tokenizer, model and decode defaults as `textdiff.load` gives."""
    checkpoint = load(folders[kind])
    tools = checkpoint.tools()
    page = prepare(parse(TEXT), tools["tokenizer"], tools["specials"], spaced=True)  # after a space begins a word
    expected = infill([page], seed=5, samples=3, decode=checkpoint.config.decode(), **tools)[0]
    expected = sorted(expected, key=lambda result: result.merit, reverse=True)
    output = fills[kind](TEXT, seed=5, num_return_sequences=3)
    assert texts(output) == [result.text for result in expected]
    assert [sequence["score"] for sequence in output] == pytest.approx([result.score for result in expected])


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_and_seeds(kind: str, fills: dict) -> None:
    three = texts(fills[kind](TEXT, num_return_sequences=3))
    assert len(set(three)) == 3 and three == texts(fills[kind](TEXT, num_return_sequences=3))
    assert texts(fills[kind](TEXT))[0] in three and texts(fills[kind](TEXT)) != texts(fills[kind](TEXT, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_lists_and_batches(kind: str, fills: dict) -> None:
    """One result per text, the same whatever the batch size; a list of one text is a list."""
    several = [TEXT, "[GAP]", "[GAP:2] and [GAP:2] and [GAP:2]", "\\[GAP] \\[MASK] [GAP]"]
    alone = [fills[kind](text) for text in several]
    for size in (1, 2, 4, 64):
        together = fills[kind](several, batch_size=size)
        assert list(map(texts, together)) == list(map(texts, alone))
    assert list(map(texts, fills[kind]([TEXT]))) == [texts(alone[0])]
    assert alone[3][0]["generated_text"].startswith("[GAP] [MASK] ")


def test_lists_of_parts(fills: dict) -> None:
    """Parts with a Gap are one text, lists of them several."""
    fill, parts = fills["parallel"], ["We ", Gap.of(4), " on ", Gap(), "."]
    assert texts(fill(parts)) == texts(fill(TEXT))
    assert list(map(texts, fill([parts, TEXT]))) == [texts(fill(TEXT))] * 2


def test_decoding_options(fills: dict) -> None:
    """temperature 0 has no chance in it; top_k=1 and a tiny top_p are the same greedy choice; steps and rules run."""
    fill = fills["parallel"]
    greedy = texts(fill(TEXT, temperature=0.0))
    for options in ({"temperature": 0.0, "seed": 9}, {"top_k": 1}, {"top_p": 1e-9}, {"temperature": 0}):
        assert texts(fill(TEXT, **options)) == greedy
    assert texts(fill(TEXT, top_p=0.9)) != greedy
    for rule in ("fresh", "posterior", "partial:0.5"):
        assert fill(TEXT, num_steps=3, rule=rule)[0]["generated_text"].startswith("We ")


def test_the_rule_ranked(fills: dict) -> None:
    for kind in KINDS:
        assert fills[kind](TEXT, num_steps=2, rule="ranked")[0]["generated_text"].startswith("We ")


def test_options_at_construction(folders: dict, fills: dict) -> None:
    """They are defaults that a call overrides."""
    fill = pipeline("text-infilling", model=str(folders["parallel"]), num_return_sequences=2, temperature=0.0)
    assert texts(fill(TEXT)) == texts(fills["parallel"](TEXT, temperature=0.0))  # there is one most probable filling
    assert len(fill(TEXT, temperature=1.0)) == 2 and len(fill(TEXT, num_return_sequences=1)) == 1


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (TEXT, {"colour": 1}, "unknown option colour; there are banned, candidates, guidance"),
        (
            TEXT,
            {"num_steps": 0},
            "num_steps must be a whole number from 1, .* to 1,000,000, or auto, or inf; got 0",
        ),
        (TEXT, {"num_return_sequences": 0}, "num_return_sequences must be a whole number from 1 to 10000; got 0"),
        (TEXT, {"rule": "best"}, "unknown rule 'best'; there are fresh, posterior, partial:RHO"),
        (TEXT, {"temperature": -1}, "temperature must be a number of at least 0; got -1"),
        (TEXT, {"temperature": float("nan")}, "temperature must be a number of at least 0; got nan"),
        (TEXT, {"top_p": 1.5}, "top_p must be a number above 0, at most 1; got 1.5"),
        (TEXT, {"top_k": -1}, "top_k must be a whole number of at least 0; got -1"),
        (TEXT, {"max_gap": 0}, "max_gap must be a whole number of at least 1; got 0"),
        ("", {}, "the text is empty; give a text with a"),
        ("no gap", {}, "no gap in 'no gap'; mark the missing text with"),
        ("[GAP][GAP]", {}, "two gaps touch; put text between them"),
        ("x y " * 100 + "[GAP]", {}, r"the text has \d+ tokens, the model reads 64; shorten the text"),
    ],
)
def test_bad_input(text: Any, options: dict, message: str, fills: dict) -> None:
    with pytest.raises(ValueError, match=message):
        fills["parallel"](text, **options)


def test_a_bad_text_is_named_and_loses_none_of_the_others(fills: dict) -> None:
    """on_error="raise" says which before any is filled, "return" fills the others as if it were not there."""
    fill, bad = fills["parallel"], "a [GAP b"
    with pytest.raises(ValueError, match="text 2 of 3: unclosed gap at character 2"):
        fill([TEXT, bad, TEXT])
    first, second, third = fill([TEXT, bad, TEXT], on_error="return")
    assert texts(first) == texts(third) == texts(fill(TEXT)) and second[0]["error"].startswith("unclosed gap")
    assert fill(bad, on_error="return")[0]["error"].startswith("unclosed gap")
    with pytest.raises(ValueError, match="on_error must be one of raise, return; got 'skip'"):
        fill(TEXT, on_error="skip")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_of_a_gap_is_kept(kind: str, fills: dict) -> None:
    """By every rule, in every step; named gaps are in `named`."""
    text = "We [GAP:yes|no|may be], [GAP:/[0-9]{2,3}-[a-z]/,name=code] and [GAP:2-3w] or [GAP:2-4]."
    for rule, steps in (("posterior", 1), ("fresh", 3), ("ranked", 4), ("partial:0.5", 3)):
        (sequence,) = fills[kind](text, rule=rule, num_steps=steps, banned=["e", " n"])
        choice, code, words, tokens = sequence["gaps"]
        assert choice["text"] == "no" and code["text"] == sequence["named"]["code"]
        assert re.fullmatch("[0-9]{2,3}-[a-z]", code["text"]) and 2 <= count_words(words["text"]) <= 3
        assert 2 <= len(tokens["tokens"]) <= 4
        assert not any(ban in gap["text"] for gap in sequence["gaps"] for ban in ("e", " n"))


def test_processors_of_transformers(fills: dict) -> None:
    """They change what is drawn, and cannot bring special tokens in."""
    from transformers import LogitsProcessorList

    def force(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([2, word]), 0.0)  # 2 is special

    for kind in KINDS:
        tokenizer = fills[kind].tokenizer
        word = tokenizer(" on", add_special_tokens=False)["input_ids"][0]
        (sequence,) = fills[kind]("We [GAP:3]", logits_processor=LogitsProcessorList([force]))
        assert sequence["generated_text"] == "We" + tokenizer.decode([word]) * 3


def test_scores_ranks_and_saving(fills: dict, tmp_path: Path) -> None:
    """The pipeline's own scorer; what it saves opens and fills alike."""
    fill = fills["autoregressive"]
    one, two = fill.score(["We", "We go"])
    assert 0 < one["nats"] < two["nats"] and one["error"] == 0 and fill.score("We") == one
    ranked = fill.rank("We [GAP] on.", [["go"], ["the the the"]])
    assert [r["nats"] for r in ranked] == sorted(r["nats"] for r in ranked)
    fill.save_pretrained(tmp_path / "saved")
    again = pipeline("text-infilling", model=str(tmp_path / "saved"))
    assert texts(again(TEXT)) == texts(fill(TEXT))


ORDERS = {
    "textdiff first": "import textdiff\nfrom transformers import pipeline",
    "transformers first": "from transformers import pipeline\nimport textdiff",
    "the module first": "import textdiff.pipelines\nfrom transformers import pipeline",
}


@pytest.mark.parametrize(
    "order", [pytest.param(name, marks=pytest.mark.slow if name != "textdiff first" else ()) for name in ORDERS]
)
def test_import_orders(order: str, folders: dict, tmp_path: Path) -> None:
    """Each in an interpreter of its own."""
    use = 'import sys\nprint(pipeline("text-infilling", model=sys.argv[1])("We [GAP]")[0]["generated_text"][:3])'
    command = [sys.executable, "-c", f"{ORDERS[order]}\n{use}", str(folders["parallel"])]
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "PATH": "", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == "We \n", result.stderr[-2000:]
