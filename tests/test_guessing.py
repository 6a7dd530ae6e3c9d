"""Self-conditioning: what the model reads, how its guess travels, what is learned with it, and where it is told of none."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_rules import IDS, bert
from tiny import tiny_checkpoint
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from textdiff.checkpoint import DiffusionConfig, load
from textdiff.denoiser import Guided, Parallel
from textdiff.filling import infill
from textdiff.gaps import parse
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process import Masking
from textdiff.rulebook import rule_of
from textdiff.sampler import Step, finished, sample
from textdiff.tokens import Specials, Tokens, concatenate, in_order
from textdiff.udm import UDM

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
NAMES = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
FEW = Specials(pad=0, bos=1, mask=2, gap=3, size=40)


def stock(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "modernbert":
        # two spellings of the same wish, one for each part of the model
        return ModernBertForMaskedLM(ModernBertConfig(**SMALL, **NAMES, initializer_cutoff_factor=2.0)).eval()
    if kind == "roberta":
        return RobertaForMaskedLM(RobertaConfig(**SMALL, **NAMES)).eval()
    return BertForMaskedLM(BertConfig(**SMALL)).eval()


def texts() -> Tokens:
    """Three texts of several lengths; the user's words are 5, the third has none hidden."""
    rows = [[1, 5, 2, 2, 5, 2], [1, 2, 2, 2, 2, 2, 2, 5, 2], [1, 5, 7]]
    x = Tokens.from_rows(rows, 0)
    return x.with_(fixed=x.ids.eq(1) | x.ids.eq(5))


def conditioned() -> Parallel:
    return Parallel(bert().model, IDS, conditioned=True)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "roberta"])
def test_without_a_guess_it_is_the_plain_model(kind: str) -> None:
    """Bit for bit, beside padding too; with one it is what the model makes of E[mask] + E[guess], at masks alone."""
    model, x = stock(kind), texts()
    plain, told = Parallel(model, FEW), Parallel(model, FEW, conditioned=True)
    where = x.ids == 2
    with torch.no_grad():
        assert torch.equal(told.logits(x, where), plain.logits(x, where))
        guess = torch.where(x.valid, torch.randint(4, 40, x.ids.shape, generator=torch.Generator().manual_seed(1)), -1)
        guess[1, 3] = -1
        table = model.get_input_embeddings().weight
        seen = table[x.ids] + torch.where((where & (guess >= 0))[:, :, None], table[guess.clamp_min(0)], 0)
        due = model(inputs_embeds=seen, attention_mask=x.valid.long()).logits[where]
        said = told.logits(x.with_(guess=guess), where)
        torch.testing.assert_close(said[:, 4:], due[:, 4:], atol=1e-5, rtol=1e-5)
        assert torch.equal(plain.logits(x.with_(guess=guess), where), plain.logits(x, where))
        assert not torch.allclose(said[:, 4:], plain.logits(x, where)[:, 4:], atol=1e-2)


def pages(process: Masking, sizes: list[int]) -> tuple[Tokens, Key]:
    """Blank pages of so many words."""
    key = Key.of(8, len(sizes))
    return process.prior(Tokens.from_rows([[1] + [7] * size for size in sizes], 0), key), key


def fed(denoiser: Parallel, steps: Any) -> tuple[list[Step], list[torch.Tensor]]:
    """The steps of a run, and the embeddings that its model has read in each of them."""
    read: list[torch.Tensor] = []
    handle = denoiser.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs.get("inputs_embeds")), with_kwargs=True
    )
    found = list(steps)
    handle.remove()
    return found, [one for one in read if one is not None]  # before them it was tried out what padding does


def test_the_guess_travels() -> None:
    """Each step reads the last one's guess, all of it, for the rows that are left; the words not shown stay masks.

    Rows leave after 1, 4 and 6 steps, with a rule that hides words again.
    """
    denoiser, process = conditioned(), Masking(IDS)
    x, key = pages(process, [6, 9, 4])
    steps = torch.tensor([1, 6, 4])
    assert bool((x.guess == -1).all())
    run, read = fed(denoiser, sample(denoiser, process, x, steps=steps, key=key, rule=rule_of("partial:0.5")))
    assert [len(step.rows) for step in run] == [3, 2, 2, 2, 1, 1] and len(read) == 6
    table = denoiser.model.get_input_embeddings().weight
    state = x
    for step, embeds in zip(run, read, strict=True):
        known = (state.ids == 2) & (state.guess >= 0)
        asked = ((state.ids == 2) & state.valid).any(1)
        due = table[state.ids] + torch.where(known[:, :, None], table[state.guess.clamp_min(0)], 0)
        torch.testing.assert_close(embeds, due[asked])
        whole = step.draw.drawn().x0
        assert bool((whole.ids != 2).all())
        assert torch.equal(step.x.guess[step.x.valid], whole.ids[step.x.valid])
        assert bool((step.draw.x0.ids == whole.ids)[step.x.ids != 2].all())
        hidden = step.draw.open & (step.x.ids == 2)
        assert bool((step.draw.x0.ids[hidden] == 2).all())
        state = step.x[~step.done]
    one, two = run[1].x, run[2].x  # made anew in each step
    assert bool(((one.ids == 2) & (two.ids == 2) & (one.guess != two.guess)).any())


def test_every_step_is_taken() -> None:
    """One that reveals nothing still makes a new guess, so two words in 40 steps are read in each until both are shown."""
    process, (plain, told) = Masking(IDS), (bert(), conditioned())
    x, key = pages(process, [2])
    last = int((40 * (1 - x.eps[x.ids == 2].min())).ceil())
    told_run, read = fed(told, sample(told, process, x, steps=40, key=key))
    assert len(told_run) == 40 and len(read) == last > 3
    assert len(list(sample(plain, process, x, steps=40, key=key))) == 3  # the last one has nothing left to say
    with pytest.raises(ValueError, match="give a number of steps"):
        list(sample(told, process, x, steps=math.inf, key=key))


@pytest.mark.parametrize("name", ["posterior", "partial:0.3", "ranked:margin", "ranked:drawn", "threshold:0.5"])
def test_a_row_is_the_same_text_whatever_the_batch(name: str) -> None:
    denoiser, process = conditioned(), Masking(IDS)
    x, key = pages(process, [5, 12, 30, 9])

    def run(rows: torch.Tensor) -> torch.Tensor:
        found = sample(denoiser, process, x[rows], steps=6, key=key[rows], rule=rule_of(name))
        return in_order(list(finished(found)), 0).ids

    together = run(torch.arange(4))
    for row, size in enumerate((5, 12, 30, 9)):
        assert torch.equal(run(torch.tensor([row]))[0, : size + 1], together[row, : size + 1])


def test_guidance_hides_what_the_last_guess_knows() -> None:
    """The user's words, which are in every guess, are not read where guidance masks them; the guess of the others is."""
    denoiser, x = Parallel(stock("bert"), FEW, conditioned=True), texts()
    guided, where = Guided.of(denoiser, 1.0), x.ids == 2
    assert not guided.timeless and Guided.of(bert(), 1.0).timeless
    whole = torch.where(x.valid, torch.where(where, 9, x.ids), -1)
    with torch.no_grad():
        said = guided.read(x.with_(guess=whole)).logits(where)
        torch.testing.assert_close(said, guided.read(x.with_(guess=whole.masked_fill(x.fixed, -1))).logits(where))
        assert not torch.allclose(said[:, 4:], guided.read(x).logits(where)[:, 4:], atol=1e-2)
        draw = guided(x, torch.ones(3)).draft(Decode(), Key.of(0, 3))
    assert bool((draw.x0.guess[where] >= 4).all())


def rows_of(count: int) -> tuple[Tokens, Key]:
    noise = torch.Generator().manual_seed(2)
    rows = [[1, *torch.randint(4, 40, (9,), generator=noise).tolist()] for _ in range(count)]
    return Tokens.from_rows(rows, 0), Key.of(3, count)


def test_half_of_the_rows_learn_with_a_guess() -> None:
    """Which ones, and what they guess, says each row's own key. 2,000 rows, of which 1,000 are within five deviations."""
    denoiser, (x0, key) = Parallel(stock("bert"), FEW, conditioned=True), rows_of(2000)
    process, t = Masking(FEW), torch.full((2000,), 0.6, dtype=torch.float64)
    xt = process.corrupt(x0, process.noise(x0, key), t)
    told = denoiser.reminded(xt, t, key)
    has = (told.guess >= 0).any(1)
    assert abs(int(has.sum()) - 1000) < 5 * 500**0.5
    assert bool((told.guess[has] >= 1).all()) and bool((told.guess[~has] == -1).all())
    shown = has[:, None] & (xt.ids != 2)
    assert torch.equal(told.guess[shown], xt.ids[shown])
    some = torch.tensor([11, 3, 500])
    assert torch.equal(denoiser.reminded(xt[some], t[some], key[some]).guess, told.guess[some])
    assert bert().reminded(xt, t, key) is xt


def test_gradients_are_of_the_second_reading() -> None:
    """Those of the loss of a state that has its guesses, as if somebody else had made them."""
    denoiser, (x0, key), process = Parallel(stock("bert"), FEW, conditioned=True), rows_of(32), Masking(FEW)
    udm = UDM(process, denoiser)
    names = [name for name, _ in denoiser.model.named_parameters()]

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        found = torch.autograd.grad(loss, list(denoiser.model.parameters()), allow_unused=True)
        return [torch.zeros(1) if one is None else one for one in found]

    learned = gradients(udm(x0, key).total)
    t, noise = udm.objective.times(key.fold(0)), process.noise(x0, key.fold(1))
    xt, truth = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    told = denoiser.reminded(xt, t, key.fold(2))
    assert bool((told.guess >= 0).any()) and not told.guess.requires_grad
    for name, one, two in zip(
        names, learned, gradients(-denoiser(told, t).log_prob(truth).double().sum()), strict=True
    ):
        assert torch.equal(one, two), name
    plain = gradients(-denoiser(xt, t).log_prob(truth).double().sum())
    assert any(not torch.allclose(one, two) for one, two in zip(learned, plain, strict=True))


def test_bounds_are_told_of_no_guess() -> None:
    model, (x0, key) = stock("bert"), rows_of(8)
    bounds = [UDM(Masking(FEW), Parallel(model, FEW, conditioned=told)).bound(x0, key, 2) for told in (False, True)]
    assert torch.equal(*bounds)


def near(width: int = 8, length: int = 16) -> tuple[Any, Specials]:
    """One layer that sees a place and its two neighbours, and the names of its words."""
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=4 + width, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=2 * length, layer_types=["sliding_attention"], local_attention=2, **NAMES,
    )  # fmt: skip
    return ModernBertForMaskedLM(config), Specials(pad=0, bos=1, mask=2, gap=3, size=4 + width)


def test_it_learns_to_use_its_guess() -> None:
    """Texts of one word 16 times: what the model sees through its neighbours' guesses is too far for one reading.

    1,000 texts at t = 0.7: it is better with its guess by more than five standard errors, and not with another text's.
    """
    model, ids = near()
    denoiser, process = Parallel(model, ids, conditioned=True), Masking(ids)
    udm, optimizer = UDM(process, denoiser).train(), torch.optim.AdamW(model.parameters(), lr=1e-2)

    def data(count: int, seed: int) -> Tokens:
        word = torch.randint(4, 12, (count, 1), generator=torch.Generator().manual_seed(seed))
        return Tokens.from_rows(torch.cat([torch.ones_like(word), word.expand(-1, 16)], 1).tolist(), 0)

    for step in range(200):
        loss = udm(data(64, step), Key.of(0, torch.arange(64) + 64 * step))
        (loss.total / loss.size).backward()
        optimizer.step()
        optimizer.zero_grad()
    udm.eval()
    x0, key, t = data(1000, 1 << 20), Key.of(1, 1000), torch.full((1000,), 0.7, dtype=torch.float64)
    noise = process.noise(x0, key.fold(0))
    xt, truth = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    with torch.no_grad():
        own = denoiser(xt, t).sample(Decode(), key.fold(1)).x0.ids
        none, mine, other = (
            -denoiser(xt.with_(guess=guess), t).log_prob(truth).sum(1) for guess in (xt.guess, own, own.roll(1, 0))
        )
    gain = none - mine
    assert float(gain.mean()) > 5 * float(gain.std()) / 1000**0.5
    assert float(other.mean()) > float(none.mean())


def test_guesses_in_a_batch_of_texts() -> None:
    """The column moves with its tokens: taken, padded, joined."""
    x = texts()
    x = x.with_(guess=torch.where(x.valid, x.ids + 1, -1))
    index = torch.tensor([[0, 2, -1]]).expand(3, -1)
    assert x.take(index, 0).guess.tolist() == [[2, 3, -1]] * 2 + [[2, 8, -1]]
    both = concatenate([x[2:], x[:1].take(torch.tensor([[0, 1]]), 0)], 0)
    assert both.guess[0, :3].tolist() == [2, 6, 8] and both.guess[1].tolist()[:2] == [2, 6]
    assert bool((both.guess[both.doc < 0] == -1).all())


def test_a_checkpoint_keeps_it(tmp_path: Any) -> None:
    """Saved and loaded it fills alike, the user's words stay, and plain transformers opens it."""
    made = tiny_checkpoint("parallel", process="masking", self_conditioning=True, num_steps=5)
    made.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.config == made.config and loaded.config.self_conditioning
    tools = loaded.tools()
    assert tools["denoiser"].conditioned and not tools["denoiser"].timeless
    page, options = [parse("We [GAP:3] on [GAP:4].")], {"steps": 5, "samples": 3}
    found = infill(page, **options, **made.tools())
    assert infill(page, **options, **tools) == found
    assert all(one.text.startswith("We ") and " on" in one.text and one.text.endswith(".") for one in found[0])
    plain = replace(loaded, config=replace(loaded.config, self_conditioning=False))
    assert infill(page, **options, **plain.tools()) != found
    (alone,) = infill(page, steps=1, **tools)
    assert alone == infill(page, steps=1, **plain.tools())[0]


@pytest.mark.parametrize(
    "config",
    [
        {"denoiser": "autoregressive", "process": "masking"},
        {"process": "deletion"},
        {"process": "masking+replacement"},
        {"process": "replacement"},
        {"process": "encoder"},
        {"process": "masking", "backbone": "causal", "block": 4},
    ],
    ids=str,
)
def test_what_it_is_not_for(config: dict) -> None:
    with pytest.raises(ValueError, match="self_conditioning is for denoiser parallel with process masking"):
        DiffusionConfig(**config, self_conditioning=True)
