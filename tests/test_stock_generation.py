"""Writing on by stock models: the law by which a causal model ends its texts, the limits, prompts and chats."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stock import STOCK, filler
from test_laws import fit
from writers import BOS, EOS, GAP, MASK, SPECIALS, bart, gpt2, plain, qwen2, state, tally

from textdiff.cli import main
from textdiff.continuation import Size, write
from textdiff.denoiser import Continuing, Onward
from textdiff.keys import Key
from textdiff.pipelines import TextDiffusionPipeline
from textdiff.posterior import Decode
from textdiff.process import Deletion
from textdiff.tokens import Specials

IDS = Specials(pad=0, bos=BOS, mask=MASK, gap=GAP, banned=(EOS,), size=6)
FEW, COUNT = (3, 4, 5), 3_000
ONE = torch.ones(1, dtype=torch.float64)


def after(model: Any, text: list[int], words: tuple[int, ...] = FEW) -> dict[int, float]:
    """p of each word, and of the end, given a text, from a plain forward."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([text])).logits[0, -1].double()
    p = logits[[*words, EOS]].softmax(0).tolist()
    return dict(zip((*words, EOS), p, strict=True))


def law(model: Any, prompt: list[int], longest: int, ends: bool = True) -> dict[tuple, float]:
    """Of what is written after a prompt, by enumeration: it ends with the end token, or cut off at its longest."""
    found, todo = {}, [((), 1.0)]
    while todo:
        words, chance = todo.pop()
        if len(words) == longest:
            found[(words,)] = chance
            continue
        step = after(model, [EOS, *prompt, *words])
        if ends:
            found[(words,)] = chance * step[EOS]
        rest = 1.0 if ends else 1 - step[EOS]
        todo += [((*words, word), chance * step[word] / rest) for word in FEW]
    return found


def drawn(denoiser: Any, row: list[int], decode: Decode, slots: list[int] | None = None) -> dict:
    x = state([row], None if slots is None else [slots])[torch.zeros(COUNT, dtype=torch.long)]
    with torch.inference_mode():
        return tally(x, denoiser(x, ONE.expand(COUNT)).sample(decode, Key.of(0, COUNT)))


def test_the_law_of_writing_on() -> None:
    """3,000 texts of at most two words, 13 of them possible: they end as the model ends them, by a single pass. Of a known
    number of words, none ends. Each law is not the other, nor that of words of another temperature."""
    model = plain()
    denoiser = Onward(Continuing(model, IDS))
    free = law(model, [3, 4], 2)
    assert abs(sum(free.values()) - 1) < 1e-9 and len(free) == 13
    seen = drawn(denoiser, [BOS, 3, 4, GAP], Decode(max_gap=2))
    assert fit(seen, free) > 1e-6
    known = law(model, [3, 4], 2, ends=False)
    given = drawn(denoiser, [BOS, 3, 4, MASK, MASK], Decode())
    assert fit(given, known) > 1e-6
    assert fit(given, free) < 1e-6 and fit(seen, {**dict.fromkeys(free, 0.0), **known}) < 1e-6
    assert fit(drawn(denoiser, [BOS, 3, 4, GAP], Decode(max_gap=2, temperature=0.4)), free) < 1e-6


def test_log_prob_is_what_was_drawn() -> None:
    """Words as they were drawn, and the end on the word before the gap: together the law."""
    model = plain()
    denoiser, x = Onward(Continuing(model, IDS)), state([[BOS, 3, 4, GAP]])[torch.zeros(50, dtype=torch.long)]
    with torch.inference_mode():
        posterior = denoiser(x, ONE.expand(50))
        draw = posterior.sample(Decode(max_gap=2), Key.of(1, 50))
        score = posterior.log_prob(draw)
    word = draw.log_prob != 0
    torch.testing.assert_close(score[word], draw.log_prob[word], atol=1e-4, rtol=0)
    endless = law(model, [3, 4], 6)
    for row in range(50):
        words = tuple(draw.x0.ids[row, 3 : int(draw.x0.valid[row].sum())].tolist())
        assert float(score[row].sum().exp()) == pytest.approx(endless[(words,)], rel=1e-3)


@pytest.mark.parametrize("make", [gpt2, qwen2, bart])
def test_the_most_probable_words_are_those_of_transformers(make: Any) -> None:
    """Temperature 0 is greedy search by `model.generate`, which is told what is text."""
    model, ids = make(), SPECIALS
    rewrites = model.config.is_encoder_decoder
    silent = [number for number in range(ids.size) if number in ids.not_text and number != EOS]
    denoiser = Onward(Continuing(model, ids))
    for prompt in ([3, 4, 5], [8], [6, 6]):
        (written,) = [*write([prompt], Size(9), denoiser=denoiser, process=Deletion(ids), specials=ids,
                             decode=Decode(temperature=0.0))][-1]  # fmt: skip
        options = {"max_new_tokens": 9, "do_sample": False, "suppress_tokens": silent, "bos_token_id": None}
        if rewrites:
            source = torch.tensor([[*prompt, MASK, EOS]])
            start = torch.tensor([[EOS, *prompt]])
            found = model.generate(source, decoder_input_ids=start, forced_eos_token_id=None, num_beams=1, **options)
        else:
            start = torch.tensor([[EOS, *prompt]])
            found = model.generate(start, attention_mask=torch.ones_like(start), **options)
        new = found[0, start.shape[1] :].tolist()
        assert written.ids == [*itertools.takewhile(lambda word: word != EOS, new)]


def test_where_words_follow_it_is_the_other() -> None:
    """Not at the end, or in later steps, when the middle is open: by particles. Two gaps at t = 1 are refused."""
    denoiser = Onward(Continuing(plain(), IDS))
    x = state([[BOS, 3, GAP, 4]])
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="this writes at the end of a text; give one gap there"),
    ):
        denoiser(x, ONE)
    with torch.inference_mode():
        assert denoiser(x, ONE / 2).sample(Decode(max_gap=2), Key.of(0, 1)).x0.ids[0, -1] == 4
    for steps in (1, 4):
        *_, last = write(
            [[3], [4, 5]] * 9, Size(3), denoiser=denoiser, process=Deletion(IDS), specials=IDS, steps=steps
        )
        assert max(len(text.ids) for text in last) == 3


# The pipeline


def writer(path: str) -> TextDiffusionPipeline:
    fill = filler(path)
    return TextDiffusionPipeline(model=fill.model, tokenizer=fill.tokenizer, task="text-diffusion")


def texts(output: list[dict]) -> list[str]:
    return [sequence["generated_text"] for sequence in output]


PROMPTS = ["We the People of", "We the ", "", "so it is [MASK] </s>"]


@pytest.mark.parametrize("path", STOCK)
def test_a_prompt_in_any_of_them_gives_text(path: str) -> None:
    """It comes back byte for byte; batches do not matter; seeds do, where something is drawn; 24 tokens at the most."""
    write = writer(path)
    masked = path.startswith("masked") or path == "both ways"
    options = {"max_new_tokens": 4}
    alone = [write(prompt, **options) for prompt in PROMPTS]
    assert write(PROMPTS, **options, batch_size=3) == write(PROMPTS, **options) == alone
    assert [write(prompt, seed=5, **options) for prompt in PROMPTS] == alone  # nothing is drawn
    for prompt, found in zip(PROMPTS, alone, strict=True):
        assert found[0]["generated_text"].startswith(prompt) and found[0]["score"] <= 0
    three = write(PROMPTS[0], num_return_sequences=3, **options)
    assert len({*texts(three)}) > 1 and three == write(PROMPTS[0], num_return_sequences=3, **options)
    (batch,) = write._forward({"batch": [write.preprocess(PROMPTS[0])]})["batch"]
    (long,) = batch["written"]
    assert len(long.ids) == 24 if masked else 0 < len(long.ids) <= 24
    (exact,) = write._forward({"batch": [batch]}, max_new_tokens=3, min_new_tokens=3)["batch"]
    assert len(exact["written"][0].ids) == 3
    assert not {*long.ids} & {*write.route.specials.not_text}


def test_a_chat_ends_where_the_answer_ends() -> None:
    """With the template's tokens before it; any of the tokenizer's, the model's and its generation config's end tokens."""
    write = writer("middle")
    write.tokenizer.bos_token = write.tokenizer.cls_token = None
    write.tokenizer.chat_template = "{% for m in messages %}<|endoftext|>{{ m.role }} {{ m.content }}{% endfor %} we "
    chat = [{"role": "user", "content": "We the People"}]
    (sequence,) = write(chat, max_new_tokens=4)
    assert sequence["generated_text"][:1] == chat and sequence["generated_text"][1]["role"] == "assistant"
    # where the end of a text stands in for a BOS that the tokenizer lacks, the template alone says how a chat begins
    middle = write.tokenizer.convert_tokens_to_ids("<fim_middle>")
    write.tokenizer.chat_template = "<fim_middle>{% for m in messages %}{{ m.content }}{% endfor %}"
    assert [write.preprocess(one)["head"] for one in (chat, "We")] == [middle, write.route.specials.bos]
    assert write.preprocess(chat)["ids"] == write.preprocess("We the People")["ids"]
    write(chat, max_new_tokens=4)
    model, fill = writer("causal, byte fallback").model, filler("causal, byte fallback")
    old, model.generation_config.eos_token_id = model.generation_config.eos_token_id, [2, 70]
    ends = TextDiffusionPipeline(model=model, tokenizer=fill.tokenizer, task="text-diffusion").tools["denoiser"].ends
    model.generation_config.eos_token_id = old
    assert ends == [2, 70]


@pytest.mark.parametrize(
    ("path", "prompt", "options", "message"),
    [
        ("sentinels", "We", {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1; got 0"),
        ("causal, bytes", "We", {"min_new_tokens": 2}, "min_new_tokens 2 below max_new_tokens 24 cannot be kept"),
        ("masked, bytes", "We the " * 200, {}, r"the prompt has \d+ tokens, the model reads 256"),
        ("rewriting", [{"role": "user", "content": "a"}], {}, "the tokenizer has no chat template"),
        (
            "masked, WordPiece",
            "We",
            {"num_return_sequences": 0},
            "num_return_sequences must be a whole number from 1 to 10000; got 0",
        ),
    ],
)
def test_bad_input(path: str, prompt: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        writer(path)(prompt, **options)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fill = filler("masked, WordPiece")
    fill.model.save_pretrained(tmp_path / "bert")
    fill.tokenizer.save_pretrained(tmp_path / "bert")
    words = ["--prompt", "We the", "--max-new-tokens", "3", "--json"]
    assert main(["generate", str(tmp_path / "bert"), *words]) == 0
    assert json.loads(capsys.readouterr().out)[0]["generated_text"].startswith("We the")
    assert main(["generate", *words]) == 0  # the model in the package
    assert json.loads(capsys.readouterr().out)[0]["generated_text"].startswith("We the")
