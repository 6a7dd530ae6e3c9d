"""Writing on from prompts: the law, the limits, what a prompt says, and transformers' own interfaces to it."""

from collections import Counter
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from scipy import stats
from tiny import KINDS, tiny_checkpoint
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextDiffusionStreamer,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

import textdiff
from textdiff import continuation
from textdiff.automata import text_automaton
from textdiff.checkpoint import Checkpoint, load
from textdiff.continuation import Size, write
from textdiff.denoiser import Oracle
from textdiff.filling import infill
from textdiff.gaps import Gap
from textdiff.generation import generate
from textdiff.process import Deletion
from textdiff.rules import fresh, posterior
from textdiff.rules import partial as redraw
from textdiff.spelling import read_on
from textdiff.streaming import BatchStreamer
from textdiff.tokenizer import encode
from textdiff.tokens import Specials, Tokens


def whole_text(tokenizer: Any, specials: Specials) -> Any:
    """What keeps the words of a gap whole characters, as the pipelines ask of every gap."""
    return text_automaton(tokenizer, specials.size, specials.not_text)


NASTY = ["", "We the ", "We [MASK] [GAP] \\[GAP]", "a\n\n  b\t", "\u00fc\u4e2d\u200b", " ", "  ", "<|2|>[END][PAD]"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_checkpoint(kind, max_gap=5).save(folder / kind)
    tiny_checkpoint("parallel", max_gap=5, process="replacement").save(folder / "replacement")
    return {kind: folder / kind for kind in (*KINDS, "replacement")}


@pytest.fixture(scope="module")
def writers(folders: dict[str, Path]) -> dict[str, Any]:
    """The pipelines, opened by their task's name."""
    return {kind: pipeline("text-diffusion", model=str(folder)) for kind, folder in folders.items()}


@pytest.fixture
def causal(folders: dict[str, Path]) -> Checkpoint:
    return load(folders["autoregressive"])


def texts(output: list[dict]) -> list[str]:
    return [sequence["generated_text"] for sequence in output]


# The law and the limits

IDS = Specials(pad=0, bos=1, mask=2, gap=3, size=7)
DATA = [[1, 4], [1, 4, 5], [1, 4, 6], [1, 4, 5, 6], [1, 4, 6, 6], [1, 4, 5, 6, 5]]


class Known(Oracle):
    """An oracle with a parameter, whose device the loop asks for."""

    def __init__(self) -> None:
        data = Tokens.from_rows(DATA, IDS.pad)
        fixed, sealed = data.fixed.clone(), torch.zeros_like(data.fixed)
        fixed[:, 1], sealed[:, 0] = True, True
        super().__init__(Deletion(IDS, staged=True), data.with_(fixed=fixed, sealed=sealed, part=data.valid.long()))
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    @property
    def longest(self) -> int:
        return 16


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize(("steps", "rule"), [(1, posterior), (3, posterior), (3, redraw(0.5)), (3, fresh)])
def test_the_law(steps: int, rule: Any, staged: bool) -> None:
    """With the true q(x0 | xt) every text of the data that begins with the prompt comes equally often, in any number of
    steps. N = 6000, chi-square at 1e-6; the control, a twentieth of the texts being the first one, fails."""
    count = 6000
    oracle, process = Known(), Deletion(IDS, staged=staged)
    found = [*write([[4]] * count, Size(5), denoiser=oracle, process=process, specials=IDS, steps=steps, rule=rule,
                    numbers=range(count))][-1]  # fmt: skip
    times = Counter(tuple([1, 4, *text.ids]) for text in found)
    assert set(times) == {tuple(row) for row in DATA}
    observed = [times[tuple(row)] for row in DATA]
    assert stats.chisquare(observed).pvalue > 1e-6
    control = [observed[0] + count // 20, *(n - count // 100 for n in observed[1:])]
    assert stats.chisquare(control).pvalue < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_infilling(kind: str, folders: dict) -> None:
    """In one step a prompt is a text with a gap at its end: the same tokens from the same seed."""
    checkpoint = load(folders[kind])
    tools = checkpoint.tools()
    prompts = ["We the ", "", "It is 1787"]
    filled = infill([[p, Gap()] if p else [Gap()] for p in prompts], decode=checkpoint.config.decode(), seed=3, **tools)
    tokenizer = tools.pop("tokenizer")
    decode = replace(checkpoint.config.decode(), text=whole_text(tokenizer, tools["specials"]))
    ids = [encode(tokenizer, prompt.removesuffix(" ")) for prompt in prompts]
    (found,) = write(ids, Size(5), seed=3, decode=decode, **tools)
    for (expected,), text, prompt in zip(filled, found, ids, strict=True):
        assert read_on(tokenizer, prompt, text.ids).removeprefix(" ") == expected.gaps[0].text.removeprefix(" ")
        assert text.score == pytest.approx(expected.score)


@pytest.mark.parametrize("kind", ["parallel", "autoregressive"])
def test_the_limit_holds_in_every_step(kind: str, folders: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than max_new_tokens, in any draft; were a text free to grow again, some would be longer."""
    tools = load(folders[kind]).tools()
    tools.pop("tokenizer")

    def longest(steps: int, count: int = 60) -> int:
        drafts = write([[50, 60]] * count, Size(3), steps=steps, numbers=range(count), **tools)
        return max(len(text.ids) for texts in drafts for text in texts)

    assert longest(1) == longest(5) == 3
    monkeypatch.setattr(continuation, "_Settled", lambda denoiser: denoiser)
    assert longest(5) > 3


@pytest.mark.parametrize("kind", ["parallel", "autoregressive", "replacement"])
def test_a_given_number_of_tokens(kind: str, folders: dict) -> None:
    """min = max is exactly so many; a model that keeps lengths writes max_new_tokens always. Up to what the model reads."""
    tools = load(folders[kind]).tools()
    tools.pop("tokenizer")
    exact = kind == "replacement"
    for steps in (1, 3):
        *_, last = write([[50], []], Size(4, 0 if exact else 4, exact), steps=steps, **tools)
        assert [len(text.ids) for text in last] == [4, 4]
    (last,) = write([[50] * 60], Size(9, 0 if exact else 9, exact), **tools)
    assert len(last[0].ids) == tools["denoiser"].longest - 61
    with pytest.raises(ValueError, match="the prompt has 64 tokens, the model reads 6"):
        next(write([[50] * 64], Size(4), **tools))


# The pipeline


@pytest.mark.parametrize("kind", [*KINDS, "replacement"])
def test_prompts_come_back_byte_for_byte(kind: str, writers: dict) -> None:
    for steps in (1, 3):
        for prompt, found in zip(NASTY, writers[kind](NASTY, num_steps=steps, num_return_sequences=2), strict=True):
            assert len(found) == 2
            for sequence in found:
                assert sequence.keys() == {"generated_text", "score"} and sequence["score"] <= 0
                assert sequence["generated_text"].startswith(prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_batches(kind: str, writers: dict) -> None:
    """The same seed is the same text, whatever the batch; the text alone is among several; other seeds are other texts."""
    write = writers[kind]
    alone = [texts(write(prompt, num_return_sequences=2)) for prompt in NASTY]
    for size in (1, 3, 64):
        assert list(map(texts, write(NASTY, num_return_sequences=2, batch_size=size))) == alone
    (single,) = texts(write("We"))
    assert single in texts(write("We", num_return_sequences=3)) and single == texts(write(["We"])[0])[0]
    assert len(set(texts(write("We", num_return_sequences=4)))) == 4
    assert texts(write("We", seed=1)) != texts(write("We"))


def test_options_at_construction(folders: dict, writers: dict) -> None:
    """They are defaults that a call overrides."""
    write = pipeline("text-diffusion", model=str(folders["parallel"]), num_return_sequences=2, return_full_text=False)
    assert texts(write("We ")) == texts(writers["parallel"]("We ", num_return_sequences=2, return_full_text=False))
    assert len(write("We ", num_return_sequences=1)) == 1


def test_return_full_text(writers: dict) -> None:
    whole, new = (writers["parallel"]("We the ", return_full_text=full)[0]["generated_text"] for full in (True, False))
    assert whole == "We the " + new and new


def test_greedy_has_no_chance_in_it(writers: dict) -> None:
    for kind in ("parallel", "autoregressive"):
        greedy = texts(writers[kind]("We", temperature=0.0, min_new_tokens=5))
        assert greedy == texts(writers[kind]("We", temperature=0.0, min_new_tokens=5, seed=9))
        assert (
            greedy
            == texts(writers[kind]("We", top_k=1, min_new_tokens=5))
            != texts(writers[kind]("We", min_new_tokens=5))
        )


def test_stop_strings(writers: dict) -> None:
    """A text ends with the first stop string; its score is that of the tokens that are left."""
    write = writers["autoregressive"]
    (whole,) = write("We", return_full_text=False, min_new_tokens=5, seed=4)
    text = whole["generated_text"]
    stop = next(c for c in text[1:-1] if c.isascii())
    (cut,) = write("We", return_full_text=False, min_new_tokens=5, seed=4, stop_strings=[stop, "not in the text"])
    assert cut["generated_text"] == text[: text.index(stop) + 1] != text
    assert whole["score"] < cut["score"] < 0
    assert write("We", return_full_text=False, min_new_tokens=5, seed=4, stop_strings="not in it") == [whole]


CHAT = [{"role": "system", "content": "Be [MASK]."}, {"role": "user", "content": "Who?"}]
TEMPLATE = (
    "{% for m in messages %}[FILL]{{ m.role }} {{ m.content }}{% if not loop.last or add_generation_prompt %}[END]"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[FILL]{% endif %}"
)


def test_chats(folders: dict) -> None:
    """The messages with the assistant's; the template's special tokens are special; a message cannot spell them."""
    write = pipeline("text-diffusion", model=str(folders["parallel"]))
    with pytest.raises(ValueError, match="the tokenizer has no chat template; give a prompt as a string"):
        write(CHAT)
    write.tokenizer.chat_template = TEMPLATE
    with pytest.raises(ValueError, match=r"a message spells the special token '\[MASK\]'"):
        write(CHAT)
    chat = [CHAT[0] | {"content": "Be brief."}, CHAT[1]]
    (sequence,) = write(chat)
    *before, last = sequence["generated_text"]
    assert before == chat and last["role"] == "assistant"
    assert write(chat, return_full_text=False)[0]["generated_text"] == last["content"]
    ids, fill = write.preprocess(chat)["ids"], write.tools["specials"].fill
    assert ids.count(fill) == 3 and ids[-1] == fill
    assert [found[0]["generated_text"][:-1] for found in write([chat, chat[1:]])] == [chat, chat[1:]]
    prefilled = [*chat, {"role": "assistant", "content": "We are"}]
    (sequence,) = write(prefilled)
    assert sequence["generated_text"][:-1] == chat and sequence["generated_text"][-1]["content"].startswith("We are")
    assert write.tokenizer("[FILL]", add_special_tokens=False)["input_ids"] != [fill]  # elsewhere it is text as before


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (3, {}, "the input must be a text, or a list of texts; got 3"),
        ([3], {}, 'a prompt, or messages with "role" and "content", must be a string; got 3'),
        ("x", {"colour": 1}, "unknown option colour; there are max_new_tokens, max_time, min_new_tokens"),
        ("x", {"max_new_token": 1}, "unknown option max_new_token, did you mean max_new_tokens"),
        ("x", {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1; got 0"),
        ("x", {"min_new_tokens": 6}, "min_new_tokens 6 is not between 0 and max_new_tokens 5"),
        (
            "x",
            {"min_new_tokens": 2},
            "min_new_tokens 2 below max_new_tokens 5 cannot be kept; give both the same number",
        ),
        ("x", {"num_return_sequences": 0}, "num_return_sequences must be a whole number from 1 to 10000; got 0"),
        ("x", {"num_steps": 0}, "num_steps must be a whole number from 1, .*; got 0"),
        ("x", {"rule": "best"}, "unknown rule 'best'"),
        ("x", {"temperature": -1}, "temperature must be a number of at least 0; got -1"),
        ("x", {"stop_strings": ""}, r"stop_strings\[0\] must be a string with some text"),
        ("x y " * 100, {}, r"the prompt has \d+ tokens, the model reads 64"),
    ],
)
def test_bad_input(prompt: Any, options: dict, message: str, writers: dict) -> None:
    with pytest.raises(ValueError, match=message):
        writers["parallel"](prompt, **options)


# model.generate(custom_generate=...)


class Recorder:
    """A streamer that writes down what it is told. Without drafts where it has no put_draft."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def put(self, value: torch.Tensor) -> None:
        self.told.append(("put", value.clone()))

    def end(self) -> None:
        self.told.append(("end", None))


class Drafts(Recorder):
    def put_draft(self, value: torch.Tensor) -> None:
        self.told.append(("draft", value.clone()))


PROMPTS = torch.tensor([[1, 50, 60, 70], [0, 0, 1, 50], [0, 50, 60, 70]])
THERE = (PROMPTS != 0).long()


def run(made: Checkpoint, prompts: torch.Tensor = PROMPTS, there: torch.Tensor = THERE, **options: Any) -> Any:
    options = {"max_new_tokens": 5, "do_sample": True, "top_k": 0, "seed": 1} | options
    return made.model.generate(prompts, attention_mask=there, custom_generate=generate, **options)


def test_it_is_the_pipeline(causal: Checkpoint, writers: dict) -> None:
    """The same texts as text-diffusion's, from the same seed."""
    prompt = "We the people"
    ids = torch.tensor([[1, *encode(causal.tokenizer, prompt)]])
    for steps in (1, 3):
        found = run(causal, ids, torch.ones_like(ids), num_denoising_steps=steps)
        text = read_on(causal.tokenizer, ids[0].tolist(), found[0, ids.shape[1] :].tolist())
        assert prompt + text == texts(writers["autoregressive"](prompt, seed=1, num_steps=steps))[0]


def test_padding(causal: Checkpoint) -> None:
    """A row of a left-padded batch is written as it is alone; prompts stay as they are; new tokens are right-padded."""
    together = run(causal, PROMPTS[:2], THERE[:2], num_denoising_steps=3)
    assert torch.equal(together[:, :4], PROMPTS[:2]) and 4 < together.shape[1] <= 9
    for row, prompt, there in zip(together, PROMPTS[:2], THERE[:2], strict=True):
        ids = prompt[there.bool()][None]
        alone = run(causal, ids, torch.ones_like(ids), num_denoising_steps=3)[0, ids.shape[1] :]
        assert torch.equal(row[4 : 4 + len(alone)], alone) and not bool(row[4 + len(alone) :].any())
    # BOS belongs to the state, whether the prompt has it or not
    assert torch.equal(run(causal, PROMPTS[:1], THERE[:1])[0, 4:], run(causal, PROMPTS[2:], THERE[2:])[0, 4:])


def test_a_prompt_given_twice(causal: Checkpoint) -> None:
    """Has two samples, the first of them its own."""
    twice = run(causal, PROMPTS[[0, 0]], THERE[[0, 0]], min_new_tokens=5)
    assert torch.equal(twice[:1], run(causal, PROMPTS[:1], THERE[:1], min_new_tokens=5))
    assert not torch.equal(twice[0], twice[1])


def test_seeds_of_generate(causal: Checkpoint) -> None:
    def drawn(**options: Any) -> list[list[int]]:
        return run(causal, seed=None, **options).tolist()

    assert drawn(generator=torch.Generator().manual_seed(3)) == drawn(generator=torch.Generator().manual_seed(3))
    assert drawn(generator=torch.Generator().manual_seed(3)) != drawn(generator=torch.Generator().manual_seed(4))
    torch.manual_seed(5)
    first = drawn()
    assert drawn() != first
    torch.manual_seed(5)
    assert drawn() == first
    several = run(causal, PROMPTS[:1], THERE[:1], num_return_sequences=3)
    assert len({tuple(row) for row in several.tolist()}) == 3
    assert torch.equal(
        run(causal, PROMPTS[:1], THERE[:1])[0], several[0][: run(causal, PROMPTS[:1], THERE[:1]).shape[1]]
    )


def test_where_the_options_may_stand(causal: Checkpoint) -> None:
    """In the call, in GenerationConfig, under either name; max_length counts the prompt."""
    config = causal.model.generation_config
    expected = run(causal, num_denoising_steps=4)
    assert torch.equal(run(causal, max_denoising_steps=4), expected)
    assert torch.equal(run(causal, max_new_tokens=None, max_length=9, num_denoising_steps=4), expected)
    assert not torch.equal(run(causal, num_denoising_steps=2), expected)
    config.num_denoising_steps, config.seed = 4, 1
    assert torch.equal(run(causal, seed=None), expected)


def test_greedy_and_truncated(causal: Checkpoint) -> None:
    """Without do_sample there is no chance; top_k reaches the words through transformers' own processors, once."""
    assert torch.equal(run(causal, do_sample=False), run(causal, do_sample=False, seed=9))
    model, ids = causal.model, torch.tensor([[1, 50, 60]])
    cool = run(causal, ids, torch.ones_like(ids), temperature=0.05)
    checkpoint = load(model.config._name_or_path)
    length = cool.shape[1] - 3
    decode = textdiff.Decode(temperature=0.05, text=whole_text(checkpoint.tokenizer, checkpoint.specials))
    words = write([[50, 60]], Size(length, length), seed=1, decode=decode,
                  **{k: v for k, v in checkpoint.tools().items() if k != "tokenizer"})  # fmt: skip
    # given its length, the text is that of temperature 0.05; twice applied, it would be another
    both = run(causal, ids, torch.ones_like(ids), temperature=0.05, min_new_tokens=length, max_new_tokens=length)
    assert both[0, 3:].tolist() == next(words)[0].ids
    warm = run(causal, ids, torch.ones_like(ids), min_new_tokens=length, max_new_tokens=length)
    cold = run(causal, ids, torch.ones_like(ids), temperature=0.0025, min_new_tokens=length, max_new_tokens=length)
    assert both.tolist() not in (warm.tolist(), cold.tolist())


class Only(LogitsProcessor):
    """One word alone; it writes down what it was shown."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids.clone())
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([77]), 0.0)


def test_processors(causal: Checkpoint) -> None:
    """They are asked for every word, with what stands left of it, left-padded."""
    only = Only()
    found = run(causal, logits_processor=LogitsProcessorList([only]), min_new_tokens=5, do_sample=False)
    assert bool((found[:, 4:] == 77).all()) and found.shape == (3, 9)
    assert len(only.seen) == 5 and all(ids.shape[0] == 3 for ids in only.seen)
    assert only.seen[2].tolist() == [[1, 50, 60, 70, 77, 77], [0, 0, 1, 50, 77, 77], [1, 50, 60, 70, 77, 77]]


def test_processors_of_a_parallel_model() -> None:
    checkpoint, only = tiny_checkpoint("parallel", max_gap=5), Only()
    config = textdiff.Decode(processors=(only,))
    tools = {name: tool for name, tool in checkpoint.tools().items() if name != "tokenizer"}
    (found,) = write([[50], [60, 70]], Size(2, 2), decode=config, **tools)
    assert [text.ids for text in found] == [[77, 77], [77, 77]]
    mask = tools["specials"].mask
    assert only.seen[0].tolist() == [[0, 0, 1, 50], [0, 1, 50, mask], [0, 1, 60, 70], [1, 60, 70, mask]]


class Twice(StoppingCriteria):
    """Done for the first text after the second draft; for all after the fourth."""

    def __init__(self) -> None:
        self.drafts: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **rest: Any) -> torch.Tensor:
        assert scores is None
        self.drafts.append(input_ids.clone())
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[0] = len(self.drafts) >= 2
        return done | (len(self.drafts) >= 4)


def test_stopping_criteria(causal: Checkpoint) -> None:
    """Asked between steps with the prompt and the draft; a text that is done stays; when all are, the loop ends."""
    criterion = Twice()
    found = run(causal, num_denoising_steps=9, stopping_criteria=StoppingCriteriaList([criterion]))
    assert len(criterion.drafts) == 4
    second, last = criterion.drafts[1], criterion.drafts[-1]
    assert torch.equal(second[0], found[0]) and torch.equal(last, found)
    assert not torch.equal(second[1:], last[1:])
    free = run(causal, num_denoising_steps=9)
    assert not torch.equal(free, found)


def test_stop_strings_of_generate(causal: Checkpoint) -> None:
    whole = run(causal, min_new_tokens=5)
    stop = causal.tokenizer.decode(whole[0, 6:7].tolist())
    criterion = StopStringCriteria(tokenizer=causal.tokenizer, stop_strings=[stop])
    cut = run(causal, min_new_tokens=5, stopping_criteria=StoppingCriteriaList([criterion]))
    assert torch.equal(cut[0, :7], whole[0, :7]) and not bool(cut[0, 7:].any())


def test_the_output(causal: Checkpoint) -> None:
    found = run(causal, return_dict_in_generate=True, num_denoising_steps=1)
    plain = run(causal, num_denoising_steps=1)
    assert torch.equal(found.sequences, plain) and bool((found.sequences_scores < 0).all())
    new = (plain[:, 4:] != 0).sum(1)
    # one call for the lengths, one to read, then one for each word of the longest; and once more where a text was no text
    calls = new / found.tokens_per_forward
    assert calls.tolist() == pytest.approx([float(calls[0])] * len(new))
    assert round(float(calls[0])) in range(2 + int(new.max()), 2 * (2 + int(new.max())))


@pytest.mark.parametrize("streamer", [Recorder, Drafts])
def test_the_streamer_protocol(streamer: type, causal: Checkpoint) -> None:
    """Prompt, drafts where it takes them, the new tokens, the end."""
    record = streamer()
    custom = partial(generate, streamer=record, tokenizer=causal.tokenizer)
    found = causal.model.generate(PROMPTS, attention_mask=THERE, custom_generate=custom, max_new_tokens=5, seed=1,
                                  num_denoising_steps=3, do_sample=True)  # fmt: skip
    names = [name for name, _ in record.told]
    assert names == ["put", *(["draft"] * 3 if streamer is Drafts else []), "put", "end"]
    assert torch.equal(record.told[0][1], PROMPTS) and torch.equal(record.told[-2][1], found[:, 4:])
    if streamer is Drafts:
        assert torch.equal(record.told[3][1], found[:, 4:]) and not torch.equal(record.told[1][1], found[:, 4:])


def test_transformers_streamers(causal: Checkpoint, writers: dict, capsys: pytest.CaptureFixture) -> None:
    """Those for one text, here and in the pipeline."""
    ids, tokenizer = torch.tensor([[1, *encode(causal.tokenizer, "We the")]]), causal.tokenizer

    def stream(streamer: Any) -> str:
        found = generate(causal.model, ids, streamer=streamer, seed=2, num_denoising_steps=2)
        return str(tokenizer.decode(found[0].tolist(), skip_special_tokens=True))

    for kind in (TextStreamer, TextDiffusionStreamer):
        text = stream(kind(tokenizer, skip_special_tokens=True))
        said = capsys.readouterr().out
        assert said.endswith(text[-2:] + "\n") and ("\033[33m" in said) == (kind is TextDiffusionStreamer)
    pieces = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=9, skip_special_tokens=True)
    text = stream(pieces)
    assert "We the" + "".join(pieces) == text
    record = Drafts()
    writers["parallel"](["We", "We the"], streamer=record, num_steps=2, batch_size=2)
    assert [name for name, _ in record.told] == ["put", "draft", "draft", "put", "end"]


def test_an_encoder_decoder(folders: dict) -> None:
    """The prompt is what the encoder reads; several sequences; the same texts as the pipeline's."""
    checkpoint = load(folders["seq2seq"])
    found = run(checkpoint, num_return_sequences=2, num_denoising_steps=2)
    assert torch.equal(found[:, :4], PROMPTS.repeat_interleave(2, 0)) and not torch.equal(found[0], found[1])


def test_a_masked_language_model(folders: dict, writers: dict) -> None:
    """Has no generate of its own; the function serves it."""
    checkpoint = load(folders["parallel"])
    ids = torch.tensor([[1, *encode(checkpoint.tokenizer, "We the")]])
    options = GenerationConfig(do_sample=True, temperature=1.0, top_p=1.0, max_new_tokens=5)
    for given in ({}, {"checkpoint": checkpoint}, {"tokenizer": checkpoint.tokenizer}):
        found = generate(checkpoint.model, ids, None, None, options, seed=1, **given)
        text = read_on(checkpoint.tokenizer, ids[0].tolist(), found[0, ids.shape[1] :].tolist())
        assert "We the" + text == texts(writers["parallel"]("We the", seed=1))[0]
    assert torch.equal(generate(checkpoint.model, ids, seed=1), generate(checkpoint.model, ids, seed=2))  # greedy


def test_training_goes_on(causal: Checkpoint) -> None:
    causal.model.train()
    run(causal)
    assert causal.model.training


def test_where_the_process_comes_from(causal: Checkpoint) -> None:
    """The folder; a checkpoint; a prepared tokenizer. Else one line says what to pass."""
    fresh = tiny_checkpoint("autoregressive", max_gap=5)
    with pytest.raises(ValueError, match="the model was not loaded from a folder; or pass checkpoint="):
        run(fresh)
    expected = run(causal, num_denoising_steps=1)
    assert torch.equal(run(fresh, checkpoint=fresh), expected)
    custom = partial(generate, tokenizer=fresh.tokenizer, seed=1)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 5}
    assert torch.equal(fresh.model.generate(PROMPTS, attention_mask=THERE, custom_generate=custom, **options), expected)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([[1, 50, 2]], {}, r"input_ids hold \[MASK\] or \[GAP\]"),
        ([[1, 50, 3]], {}, r"input_ids hold \[MASK\] or \[GAP\]"),
        ([[1, 50]], {"rule": "best"}, "unknown rule 'best'"),
        ([[1, 50]], {"num_denoising_steps": 0}, "num_steps must be a whole number from 1, .*; got 0"),
        ([[1] + [50] * 63], {}, "the prompt has 63 tokens, the model reads 63"),
    ],
)
def test_bad_input_of_generate(ids: list, options: dict, message: str, causal: Checkpoint) -> None:
    with pytest.raises(ValueError, match=message):
        run(causal, torch.tensor(ids), torch.ones(1, len(ids[0]), dtype=torch.int64), **options)


# The streamer for batches


def test_lines_where_there_is_no_terminal(writers: dict) -> None:
    """A line for each text of each draft, and then the texts; a step in which no text changes has no draft."""
    page = StringIO()
    write = writers["parallel"]
    found = write(
        "We the ", num_steps=3, num_return_sequences=2, streamer=BatchStreamer(write.tokenizer, Console(file=page))
    )
    said = [text.replace("\n", " ") for text in texts(found)]
    counts = {page.getvalue().count(f"{number} We the") for number in (1, 2)}
    assert len(counts) == 1 and counts <= {2, 3, 4}
    assert all(text.split()[-1] in page.getvalue() for text in said if text.isascii())


def test_a_terminal(writers: dict) -> None:
    """Drafts stand in place, coloured; prompts are no markup; a streamer serves again."""
    page = StringIO()
    write = writers["autoregressive"]
    console = Console(
        file=page, force_terminal=True, color_system="standard", width=200, highlight=False, soft_wrap=True
    )
    streamer = BatchStreamer(write.tokenizer, console)
    for _ in range(2):
        write("[bold]x[/bold]", num_steps=2, streamer=streamer, num_return_sequences=3)
    assert "[bold]x[/bold]" in page.getvalue()
    assert "\x1b[33m" in page.getvalue() and "\x1b[1;32m" in page.getvalue() and "\x1b[2K" in page.getvalue()
