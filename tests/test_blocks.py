"""Block diffusion: one law whether kept keys are used or not, the causal model at one end and the open one at the other.

What a model says block by block is written down a second time here, text by text, without padding or cache (`told`), and
everything is held against it: logits, samples by enumeration, bounds. Chi-square tests are asserted at p > 1e-6, their rate
of false alarm, and each is asserted to reject a planted fault.
"""

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from test_cli import world  # noqa: F401
from tiny import SHAPE, tiny_checkpoint
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from textdiff.checkpoint import DiffusionConfig, load
from textdiff.cli import main as cli
from textdiff.denoiser import Blocks, Parallel
from textdiff.denoiser.memory import Memory
from textdiff.denoiser.reach import fault, need_blocks
from textdiff.drawing import draw_tokens
from textdiff.filling import infill
from textdiff.gaps import Gap, parse
from textdiff.keys import Key
from textdiff.models import SIZES
from textdiff.posterior import Decode
from textdiff.process import Masking
from textdiff.revealing import at_random, lanes, leftmost, most_likely, ranked, threshold
from textdiff.rulebook import rule_of
from textdiff.rules import Rule, partial, posterior
from textdiff.sampler import finished, sample
from textdiff.tokens import Specials, Tokens, in_order
from textdiff.udm import UDM

PAD, BOS, MASK, GAP, WORD, SIZE = 0, 1, 2, 3, 4, 24
SPECIALS = Specials(pad=PAD, bos=BOS, mask=MASK, gap=GAP, size=SIZE)
WORDS = torch.arange(WORD, SIZE)
MASKING = Masking(SPECIALS)
SHAPES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ROLES = {"vocab_size": SIZE, "bos_token_id": BOS, "eos_token_id": PAD, "pad_token_id": PAD}


@cache
def model(kind: str, size: int = SIZE, **more: Any) -> Any:
    """A tiny random one; its weights are large, so that every word it sees makes a difference."""
    makes: dict[str, Callable[..., Any]] = {
        "llama": lambda **roles: LlamaForCausalLM(LlamaConfig(**SHAPES, num_key_value_heads=2, **roles)),
        "qwen3": lambda **roles: Qwen3ForCausalLM(Qwen3Config(**SHAPES, num_key_value_heads=2, head_dim=8, **roles)),
        "gpt2": lambda **roles: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **roles)),
    }
    torch.manual_seed(0)
    return makes[kind](**ROLES | {"vocab_size": size, "initializer_range": 0.3}, **more).eval()


KINDS = ("llama", "qwen3", "gpt2")
shifted = pytest.mark.parametrize("shift", [False, True], ids=["in place", "shifted"])
every_kind = pytest.mark.parametrize("kind", KINDS)


def texts(rows: list[list[int]], fixed: list[list[int]]) -> Tokens:
    x0 = Tokens.from_rows(rows, PAD)
    mine = x0.fixed.clone()
    for row, columns in enumerate(fixed):
        mine[row, columns] = True
    return x0.with_(fixed=mine)


def mixed() -> Tokens:
    """Of several lengths: a long left context, words of the user's within and at the end of later blocks, a blank page."""
    draw = torch.Generator().manual_seed(0)
    rows = [[BOS, *torch.randint(WORD, SIZE, (n,), generator=draw).tolist()] for n in (17, 12, 15, 4)]
    return texts(rows, [[1, 2, 3, 4, 5, 6], [7, 12], [], [2]])


def told(stock: Any, ids: list[int], number: int, block: int, shift: bool) -> dict[int, Tensor]:
    """What the model says of each column of block `number` of a text, float64 (V,) by column. No cache, no padding."""
    size = min((number + 1) * block, len(ids))
    sees = torch.tensor([[key // block <= query // block for key in range(size)] for query in range(size)])
    mask = torch.zeros(1, 1, size, size).masked_fill(~sees, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = stock(
            input_ids=torch.tensor([ids[:size]]), attention_mask=mask, position_ids=torch.arange(size)[None]
        ).logits[0]
    return {column: logits[column - shift].double() for column in range(max(number * block, int(shift)), size)}


# ---------------------------------------------------------------------------------------------------------- the cache


def figures(looks: Any, open_: Tensor, projection: Tensor) -> Tensor:
    """(S,) one number from all logits of words at each of the places."""
    return looks.measure(lambda logits: logits[:, WORD:].double() @ projection, open_)


@shifted
@every_kind
def test_logits_with_kept_keys_are_those_without(kind: str, shift: bool) -> None:
    """At every turn of a run, at every hidden place of each row's first block: to 1e-5 of a text read alone and anew."""
    stock, block = model(kind), 4
    denoiser, x = Blocks(stock, SPECIALS, block, shift), mixed()
    projection = torch.linspace(-1, 1, SIZE - WORD, dtype=torch.float64)
    key, seen = Key.of(0, len(x)), 0
    x = MASKING.prior(x, key)
    run = sample(denoiser, MASKING, x, steps=8, key=key, rule=ranked(at_random, block))
    for step in itertools.chain([None], run):
        x = x if step is None else step.x[~step.done]
        if not len(x):
            continue
        hidden = x.ids == MASK
        number = torch.arange(x.ids.shape[1]).expand_as(x.ids) // block
        first = number.masked_fill(~hidden, 99).amin(1, keepdim=True)
        where = hidden & (number == first)
        with torch.inference_mode():
            draw = denoiser(x, torch.ones(len(x))).draft(Decode(), Key.of(1, len(x)))
            where = where[:, : draw.x0.ids.shape[1]]  # columns that are padding in all rows are gone
            found = figures(draw.look, where, projection).tolist()
        wanted = []
        for row in range(len(x)):
            said = told(stock, x.ids[row][x.valid[row]].tolist(), int(first[row]), block, shift)
            wanted += [float(said[c][WORD:] @ projection) for c in where[row].nonzero()[:, 0].tolist()]
        assert found == pytest.approx(wanted, abs=1e-5, rel=1e-5)
        seen += len(found)
    assert seen > 40


@shifted
@every_kind
def test_few_places_of_a_long_block(kind: str, shift: bool) -> None:
    """Where few are asked a model's last layer may answer for them alone; what it keeps is of all, and stays right."""
    draw, block = torch.Generator().manual_seed(1), 40
    x = texts([[BOS, *torch.randint(WORD, SIZE, (n,), generator=draw).tolist()] for n in (49, 59)], [[], []])
    stock, projection = model(kind), torch.linspace(-1, 1, SIZE - WORD, dtype=torch.float64)
    denoiser = Blocks(stock, SPECIALS, block, shift)
    for column in (36, 37, 39, 44, 47, 41):  # the second block is first read with the first, then by itself, then again
        x0 = x.with_(ids=torch.where(x.valid & (torch.arange(60) >= column), MASK, x.ids))
        where = torch.zeros_like(x.fixed)
        where[:, [column, column + 1]] = True
        where &= torch.arange(60) // block == column // block
        with torch.inference_mode():
            found = figures(denoiser(x0, torch.ones(2)).draft(Decode(), Key.of(0, 2)).look, where, projection).tolist()
        wanted = []
        for row in range(2):
            said = told(stock, x0.ids[row][x0.valid[row]].tolist(), column // block, block, shift)
            wanted += [float(said[c][WORD:] @ projection) for c in where[row].nonzero()[:, 0].tolist()]
        assert found == pytest.approx(wanted, abs=1e-5, rel=1e-5)


RULES = {
    "ranked": ranked(at_random, 4),
    "threshold": threshold(0.2, 4),
    "smaller": most_likely(1, block=2),
    "larger": threshold(0.2, 64),
    "posterior": posterior,
    "taken back": partial(0.3),
}


def written(denoiser: Any, x: Tokens, rule: Rule, numbers: list[int]) -> list[list[int]]:
    """The texts `numbers` of x, filled in six steps, each by random numbers of its own."""
    x, key = x[torch.tensor(numbers)], Key.of(3, torch.tensor(numbers))
    run = sample(denoiser, MASKING, MASKING.prior(x, key), steps=6, key=key, rule=rule)
    done = in_order(list(finished(run)), PAD)
    return [ids[valid].tolist() for ids, valid in zip(done.ids, done.valid, strict=True)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("kind", "shift"), [("llama", False), ("qwen3", True), ("gpt2", False)])
def test_texts_with_kept_keys_are_those_without(
    kind: str, shift: bool, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any batch, in a second run, alone; by rules that ask block by block, in smaller steps, in all blocks at once."""
    denoiser, x = Blocks(model(kind), SPECIALS, 4, shift), mixed()
    found = written(denoiser, x, RULES[rule], [0, 1, 2, 3])
    assert written(denoiser, x, RULES[rule], [2, 0, 3, 1]) == [found[row] for row in (2, 0, 3, 1)]
    assert [written(denoiser, x, RULES[rule], [row])[0] for row in range(len(x))] == found
    hold = Memory.hold

    def anew(self: Memory, ids: Tensor, most: Tensor, block: int) -> Tensor:
        self.forget()
        return hold(self, ids, most, block)

    monkeypatch.setattr(Memory, "hold", anew)
    assert written(denoiser, x, RULES[rule], [0, 1, 2, 3]) == found


def test_of_a_changed_text_what_is_still_true_is_kept() -> None:
    """Rows are known by their ids: another order, a longer batch, a word taken back, other weights."""
    stock, block = copy.deepcopy(model("llama")), 4
    denoiser, x = Blocks(stock, SPECIALS, block), mixed()[:1]
    clean = torch.cat([x.ids, x.ids, x.ids])
    clean[1, 6] = WORD + (clean[1, 6] - WORD + 1) % (SIZE - WORD)
    clean[2, 1] = WORD + (clean[2, 1] - WORD + 1) % (SIZE - WORD)
    x = x[torch.tensor([0, 0, 0])]
    rows, third = torch.arange(3), torch.full((3,), 3)

    def read(order: list[int]) -> list[int]:
        """Read the fourth block; what was kept of those before, by row."""
        most = torch.full((len(order),), 3 * block)
        kept = denoiser.memory.hold(clean[order], most, block).tolist()
        for window in denoiser.read(clean[order], x[: len(order)], rows[: len(order)], third[: len(order)]):
            list(window.pieces((torch.arange(x.ids.shape[1]) // block == 3).expand(len(window.rows), -1)))
        return kept

    assert read([0]) == [0]
    assert read([0]) == [12]
    assert read([0, 1]) == [12, 4]  # they differ in the second block
    assert read([1, 2, 0]) == [12, 0, 12]
    assert read([0, 2]) == [12, 12]
    with torch.no_grad():
        stock.lm_head.weight.mul_(1.0)
    assert read([0, 2]) == [0, 0]
    denoiser.train().eval()
    assert read([0, 2]) == [0, 0]
    with torch.autocast("cpu", torch.bfloat16):
        assert read([0, 2]) == [0, 0]
    assert read([0, 2]) == [0, 0]
    assert read([2, 0]) == [12, 12]


@pytest.mark.parametrize("name", ["top:1", "top:1@", "posterior"])
@pytest.mark.parametrize(("shift", "block"), [(False, 4), (True, 4), (False, 1), (True, 1)])
def test_a_turn_costs_a_block(shift: bool, block: int, name: str) -> None:
    """Tokens that go through the body, a row: as many as a block has; once for each block those of the one before, too."""
    denoiser, lengths, more = Blocks(model("llama"), SPECIALS, block, shift), 12, int(shift)
    x = texts([[BOS] + [WORD] * (lengths - 1)] * 2, [[], []])
    spent: list[int] = []
    handle = denoiser.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: spent.append(args[0].numel() // 2)
    )
    key, rule = Key.of(0, 2), rule_of(f"{name}{block}" if name.endswith("@") else name)
    try:
        list(sample(denoiser, MASKING, MASKING.prior(x, key), steps=math.inf, key=key, rule=rule))
    finally:
        handle.remove()
    if (
        block == 1
    ):  # shifted, the word before is all that is read; in place a word is read twice, as itself and as a mask
        assert spent == [1] * 11 if shift else [2] * 11
        return
    assert spent == [4] * 3 + [8] + [4 + more] * 3 + [8] + [4 + more] * 3


def test_words_that_nobody_asks_for_are_not_drawn() -> None:
    """Of the block asked about the places asked, and those of the blocks before it."""
    denoiser, x = Blocks(model("llama"), SPECIALS, 4), texts([[BOS] + [MASK] * 11], [[]])
    ends = {5: [1, 2, 3, 5], 1: [1], 11: [*range(1, 8), 11]}
    for column, due in ends.items():
        look = denoiser(x, torch.ones(1)).draft(Decode(), Key.of(0, 1)).look
        with torch.inference_mode():
            look.words((torch.arange(12) == column)[None])
        assert (~look.open & (x.ids == MASK))[0].nonzero()[:, 0].tolist() == due


# ----------------------------------------------------------------------------------------------------- the two ends


def word_log_probs(logits: Tensor) -> Tensor:
    """(..., V) of words alone, since nothing else can be said."""
    forbidden = torch.ones(SIZE, dtype=torch.bool)
    forbidden[WORD:] = False
    return logits.masked_fill(forbidden, -torch.inf).log_softmax(-1)


def corrupted(x0: Tokens, t: float = 0.6) -> tuple[Tokens, Any, Tensor]:
    """xt, the truth, and the times."""
    times, noise = torch.full((len(x0),), t, dtype=torch.float64), MASKING.noise(x0, Key.of(5, len(x0)))
    return MASKING.corrupt(x0, noise, times), MASKING.align(x0, noise, times), times


@pytest.mark.parametrize("t", [0.6, 1.0])
@every_kind
def test_block_1_shifted_is_the_causal_model(kind: str, t: float) -> None:
    """log_prob is the causal LM's own, of plain `model(input_ids)`; by the same random numbers it writes the same words."""
    stock, x0 = model(kind), mixed()
    denoiser = Blocks(stock, SPECIALS, 1, shift=True)
    xt, truth, times = corrupted(x0, t)
    with torch.no_grad():
        said = word_log_probs(stock(input_ids=x0.ids, attention_mask=x0.valid.long()).logits)
        own = said[:, :-1].gather(2, x0.ids[:, 1:, None])[..., 0]
        found = denoiser(xt, times).log_prob(truth)
    wanted = torch.where(xt.ids[:, 1:] == MASK, own, 0.0)
    assert int((xt.ids == MASK).sum()) > 10
    torch.testing.assert_close(found[:, 1:], wanted, atol=1e-5, rtol=1e-5)
    assert not bool(found[:, 0].any())
    draw, u = denoiser(xt, times).sample(Decode(), Key.of(7, 4)), Key.of(7, 4).fold(1).uniform(xt.ids.shape[1])
    ids = xt.ids.clone()
    for column in range(1, ids.shape[1]):
        with torch.no_grad():
            logits = word_log_probs(stock(input_ids=ids[:, :column]).logits[:, -1])
        words = draw_tokens(logits, u[:, column], Decode())[0]
        ids[:, column] = torch.where((ids[:, column] == MASK) & xt.valid[:, column], words, ids[:, column])
    assert draw.x0.ids.tolist() == ids.tolist()


@shifted
@every_kind
def test_all_in_one_block_is_the_open_model(kind: str, shift: bool) -> None:
    """`Parallel` on the same weights with config.is_causal = False: equal log-probabilities, equal texts."""
    stock = model(kind)
    open_ = copy.deepcopy(stock)
    open_.config.is_causal, open_.config.use_cache = False, False
    blocks, parallel = Blocks(stock, SPECIALS, 32, shift), Parallel(open_, SPECIALS, shift)
    xt, truth, times = corrupted(mixed())
    with torch.no_grad():
        found, wanted = blocks(xt, times).log_prob(truth), parallel(xt, times).log_prob(truth)
        other = Blocks(stock, SPECIALS, 4, shift)(xt, times).log_prob(truth)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert bool((found - other).abs().max() > 0.1)
    for rule in ("posterior", "threshold", "taken back"):
        assert written(blocks, mixed(), RULES[rule], [0, 1, 2, 3]) == written(
            parallel, mixed(), RULES[rule], [0, 1, 2, 3]
        )


def test_whether_the_config_says_causal_makes_no_difference() -> None:
    stock = model("llama")
    open_ = copy.deepcopy(stock)
    open_.config.is_causal, open_.config.use_cache = False, False
    xt, truth, times = corrupted(mixed())
    with torch.no_grad():
        one, other = (Blocks(m, SPECIALS, 4)(xt, times).log_prob(truth) for m in (stock, open_))
    assert bool((one == other).all())
    assert written(Blocks(open_, SPECIALS, 4), mixed(), RULES["ranked"], [0, 1]) == written(
        Blocks(stock, SPECIALS, 4), mixed(), RULES["ranked"], [0, 1]
    )


# --------------------------------------------------------------------------------------------------------- log_prob


@shifted
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_prob_is_that_of_each_block_after_the_truth(kind: str, shift: bool) -> None:
    """Both streams in one call, against each block of each text alone: the true text, then the block as xt shows it."""
    stock, x0, block = model(kind), mixed(), 4
    xt, truth, times = corrupted(x0)
    with torch.no_grad():
        found = Blocks(stock, SPECIALS, block, shift)(xt, times).log_prob(truth)
    for row in range(len(x0)):
        hidden = (xt.ids[row] == MASK).nonzero()[:, 0].tolist()
        for column in hidden:
            number = column // block
            read = (
                x0.ids[row, : number * block].tolist()
                + xt.ids[row, number * block :][xt.valid[row, number * block :]].tolist()
            )
            said = word_log_probs(told(stock, read, number, block, shift)[column])
            assert float(found[row, column]) == pytest.approx(float(said[x0.ids[row, column]]), abs=1e-5)


@shifted
def test_packed_texts_are_read_as_if_they_were_alone(shift: bool) -> None:
    denoiser, x0 = Blocks(model("llama"), SPECIALS, 4, shift), mixed()
    rows = [x0.ids[row][x0.valid[row]] for row in range(3)]
    packed = Tokens.of(
        torch.cat(rows)[None],
        torch.cat([torch.full_like(ids, number) for number, ids in enumerate(rows)])[None],
        torch.cat([x0.fixed[row][x0.valid[row]] for row in range(3)])[None],
    )
    xt, truth, times = corrupted(x0)
    together = packed.with_(ids=torch.cat([xt.ids[row][xt.valid[row]] for row in range(3)])[None])
    with torch.no_grad():
        wanted = denoiser(xt, times).log_prob(truth)
        found = denoiser(together, times[:1]).log_prob(MASKING.align(packed, None, times[:1]))
    torch.testing.assert_close(
        found[0], torch.cat([wanted[row][x0.valid[row]] for row in range(3)]), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ValueError, match="one text per row"):
        denoiser(together, times[:1]).draft(Decode(), Key.of(0, 1))


@shifted
def test_a_model_without_a_first_token_counts_from_the_next(shift: bool) -> None:
    """A BOS that the model has no row for is not fed: all is as if the text began after it."""
    stock, x0 = model("llama"), mixed()
    x0 = x0.with_(fixed=x0.fixed | (torch.arange(x0.ids.shape[1]) == 1) & x0.valid)
    virtual = x0.with_(ids=x0.ids.masked_fill(x0.ids == BOS, SIZE))
    shorter = x0.take(torch.arange(1, x0.ids.shape[1]).expand(len(x0), -1), PAD)
    without = Blocks(stock, replace(SPECIALS, bos=SIZE, banned=(BOS,)), 4, shift)
    denoiser = Blocks(stock, SPECIALS, 4, shift)
    noise, times = MASKING.noise(virtual, Key.of(5, 4)), torch.full((4,), 0.6, dtype=torch.float64)
    with torch.no_grad():
        found = without(MASKING.corrupt(virtual, noise, times), times).log_prob(MASKING.align(virtual, noise, times))
        wanted = denoiser(MASKING.corrupt(shorter, noise[:, 1:], times), times).log_prob(
            MASKING.align(shorter, noise[:, 1:], times)
        )
    torch.testing.assert_close(found[:, 1:], wanted, atol=1e-5, rtol=1e-5)
    one = torch.ones(4)
    draw = without(MASKING.prior(virtual, Key.of(0, 4)), one).sample(Decode(temperature=0.0), Key.of(1, 4))
    other = denoiser(MASKING.prior(shorter, Key.of(0, 4)), one).sample(Decode(temperature=0.0), Key.of(1, 4))
    assert draw.x0.ids[:, 1:].tolist() == other.x0.ids.tolist()
    assert draw.lane is not None and draw.lane[0].tolist()[:10] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]


@shifted
def test_later_blocks_do_not_show_in_earlier_ones(shift: bool) -> None:
    """Whoever wrote them: a word that the user has fixed in a later block is not seen either."""
    denoiser, x0 = Blocks(model("llama"), SPECIALS, 4, shift), mixed()
    xt, truth, times = corrupted(x0)
    changed = xt.with_(ids=torch.where((torch.arange(18) >= 12) & (xt.ids >= WORD), WORD, xt.ids))
    other = replace(truth, x0=x0.with_(ids=torch.where((torch.arange(18) >= 12) & (x0.ids >= WORD), WORD, x0.ids)))
    with torch.no_grad():
        one, two = denoiser(xt, times).log_prob(truth), denoiser(changed, times).log_prob(other)
    assert bool((one[:, :12] == two[:, :12]).all()) and not bool((one[:, 12:] == two[:, 12:]).all())


# ----------------------------------------------------------------------------------------------------------- its law


TOY, COUNT = Specials(pad=PAD, bos=BOS, mask=MASK, gap=GAP, size=WORD + 2), 2_000
ONE_TEXT = [BOS] + [WORD] * 5  # blocks of two: BOS and a word, two words, two words
Text = tuple[int, ...]


@cache
def chances(text: Text, number: int) -> dict[int, float]:
    """P(second word) at each column of a block of the toy, in place, the text before it given."""
    said = told(model("llama", WORD + 2), list(text), number, 2, False)
    return {column: float(logits[WORD:].softmax(-1)[1]) for column, logits in said.items()}


def ways(text: Text, number: int) -> list[tuple[Text, float]]:
    """A block's hidden words, drawn at once: every outcome and its chance."""
    open_ = [column for column in (2 * number, 2 * number + 1) if text[column] == MASK]
    found = []
    for words in itertools.product((0, 1), repeat=len(open_)):
        chance, filled = 1.0, list(text)
        for column, word in zip(open_, words, strict=True):
            p = chances(text, number)[column]
            chance, filled[column] = chance * (p if word else 1 - p), WORD + word
        found.append((tuple(filled), chance))
    return found


@cache
def law(text: Text, order: str) -> dict[Text, float]:
    """Of whole texts, a word revealed at a time, of the first block that hides any: from the left, or any."""
    hidden = [column for column, token in enumerate(text) if token == MASK]
    if not hidden:
        return {text: 1.0}
    near = [column for column in hidden if column // 2 == hidden[0] // 2]
    near = near[:1] if order == "from the left" else near
    result: Counter[Text] = Counter()
    for column in near:
        p = chances(text, column // 2)[column]
        for word, chance in ((WORD, 1 - p), (WORD + 1, p)):
            for whole, rest in law((*text[:column], word, *text[column + 1 :]), order).items():
                result[whole] += chance * rest / len(near)
    return dict(result)


def at_once() -> dict[Text, float]:
    """All in one step, block after block."""
    drawn = [((BOS, *[MASK] * 5), 1.0)]
    for number in range(3):
        drawn = [(way, p * q) for part, p in drawn for way, q in ways(part, number)]
    return dict(drawn)


def fits(rule: Rule, steps: float, expected: dict[Text, float]) -> float:
    """The chance of samples as far from a law as these (chi-square; cells that expect fewer than ten are pooled)."""
    x, key = texts([ONE_TEXT], [[]])[torch.zeros(COUNT, dtype=torch.int64)], Key.of(1, COUNT)
    denoiser = Blocks(model("llama", WORD + 2), TOY, 2)
    run = sample(denoiser, Masking(TOY), Masking(TOY).prior(x, key), steps=steps, key=key, rule=rule)
    counts = Counter(tuple(row) for _, x0 in finished(run) for row in x0.ids.tolist())
    assert set(counts) <= set(expected) and math.isclose(sum(expected.values()), 1)
    cells = [(counts[text], COUNT * chance) for text, chance in expected.items()]
    large, small = [c for c in cells if c[1] >= 10], [c for c in cells if c[1] < 10]
    large += [(sum(c[0] for c in small), sum(c[1] for c in small))] if small else []
    return float(stats.chi2.sf(sum((seen - due) ** 2 / due for seen, due in large), len(large) - 1))


BLANK = (BOS, *[MASK] * 5)


def test_block_after_block_has_the_models_law() -> None:
    left = law(BLANK, "from the left")
    assert fits(ranked(leftmost, 2), math.inf, left) > 1e-6
    assert fits(ranked(at_random, 2), math.inf, law(BLANK, "in any order")) > 1e-6
    assert fits(posterior, 1, at_once()) > 1e-6
    assert fits(posterior, 1, left) < 1e-6  # the control: words drawn at once do not know of each other


def test_the_default_rule_has_the_models_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise says when a word is shown, the blocks which one: that of all rules is in test_block_laws.py."""
    expected = law(BLANK, "in any order")
    assert fits(posterior, math.inf, expected) > 1e-6
    # the control: what was read last, while words were hidden, is taken for what now stands there
    hold = Memory.hold
    with monkeypatch.context() as patch:
        patch.setattr(Memory, "hold", lambda self, ids, most, block: hold(self, ids, most, block) * 0 + most)
        assert fits(posterior, math.inf, expected) < 1e-6


# ---------------------------------------------------------------------------------------------------------- its bound


def any_order(text: Text, block: int) -> float:
    """-log q of a toy text in nats, the mean over all orders of each block's words, exact."""
    total = 0.0
    for number in range(-(-len(text) // block)):
        columns = [c for c in range(number * block, min((number + 1) * block, len(text))) if c > 0]
        orders = list(itertools.permutations(columns))
        for order in orders:
            seen = list(text[: number * block]) + [
                MASK if c in columns else text[c] for c in range(number * block, len(text))
            ]
            for column in order:
                said = told(model("llama", WORD + 2), seen, number, block, block == 1)[column]
                total -= float(said[WORD:].log_softmax(-1)[text[column] - WORD]) / len(orders)
                seen[column] = text[column]
    return total


def measured(text: Text, block: int, shift: bool, draws: int = 10_000) -> tuple[float, float]:
    """The bound, the mean of so many looks, and its standard error."""
    x0 = Tokens.from_rows([list(text)], PAD)[torch.zeros(draws, dtype=torch.int64)]
    found = UDM(Masking(TOY), Blocks(model("llama", WORD + 2), TOY, block, shift)).bound(x0, Key.of(2, draws))
    return float(found.mean()), float(found.std()) / draws**0.5


def test_the_bound_is_a_bound_and_exact_for_single_words() -> None:
    """10,000 looks, within 4.5 standard errors (a false alarm of 7e-6): block 1 has the chain rule, others the mean of
    all orders, which is above -log p of the text that block decoding in random order writes, by Jensen's inequality."""
    text = (BOS, WORD, WORD + 1, WORD + 1, WORD, WORD)
    stock = model("llama", WORD + 2)
    with torch.no_grad():
        logits = stock(input_ids=torch.tensor([text])).logits[0, :-1, WORD:].double().log_softmax(-1)
    exact = -float(logits.gather(1, torch.tensor(text[1:])[:, None] - WORD).sum())
    bound, error = measured(text, 1, True)
    assert abs(bound - exact) < 4.5 * error < 0.2
    assert any_order(text, 1) == pytest.approx(exact, abs=1e-5)
    bound, error = measured(text, 2, False)
    mean, true = any_order(text, 2), -math.log(law(BLANK, "in any order")[text])
    assert abs(bound - mean) < 4.5 * error < 0.2
    assert mean > true + 0.02


def test_learning_lowers_the_loss() -> None:
    stock = copy.deepcopy(model("llama")).train()
    udm, x0 = UDM(MASKING, Blocks(stock, SPECIALS, 4)), mixed()
    tuned = torch.optim.AdamW(stock.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        loss = udm(x0, Key.of(step, len(x0)))
        losses.append(float(loss.total.detach() / loss.size))
        tuned.zero_grad()
        loss.total.backward()
        tuned.step()
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


# ------------------------------------------------------------------------------------------------------------- lanes


def test_a_rule_counts_its_blocks_in_those_of_the_model() -> None:
    """Wherever a prompt ends: no turn asks in two of the model's blocks, and none stops short of one where it need not."""
    x0 = texts([[BOS, *[WORD] * 15]], [[1, 2, 3, 4, 5, 9]])  # blocks of 4: 0-3, 4-7, 8-11, 12-15
    xt = MASKING.prior(x0, Key.of(0, 1))
    draw = Blocks(model("llama"), SPECIALS, 4)(xt, torch.ones(1)).draft(Decode(), Key.of(0, 1))
    free = ~draw.x0.fixed[0]
    for block, wanted in {
        4: [1, 1, 2, 2, 2, 3, 3, 3, 3],
        64: [1, 1, 2, 2, 2, 3, 3, 3, 3],
        2: [1, 1, 2, 2, 2.5, 3, 3, 3.5, 3.5],
    }.items():
        assert [
            lane / 16 if block != 2 else lane // 16 + lane % 16 / 2 for lane in lanes(draw, block)[0, free].tolist()
        ] == wanted
    assert not bool(lanes(draw, 0).any())
    plain = replace(draw, lane=None)  # other models: over what is not the user's
    assert lanes(plain, 4)[0, free].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]


# ----------------------------------------------------------------------------------------------------- what is refused


@every_kind
def test_what_can_be_read_block_by_block(kind: str) -> None:
    assert fault(model(kind)) is None


def neo() -> Any:
    torch.manual_seed(0)
    roles = {"vocab_size": SIZE, "attention_types": [[["global", "local"], 1]]}
    return GPTNeoForCausalLM(GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, **roles)).eval()


def deaf(change: Callable[[dict[str, Any]], Any]) -> Any:
    """A Llama that is not told something it needs to know."""
    stock = copy.deepcopy(model("llama"))
    told_ = stock.forward
    stock.forward = lambda **inputs: told_(**{**inputs, **change(inputs)})
    return stock


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (neo, "gpt_neo cannot be read block by block (the words of a block do not see each other)"),
        (lambda: deaf(lambda inputs: {"attention_mask": None}), "do not see each other"),
        (
            lambda: deaf(lambda inputs: {"attention_mask": torch.zeros_like(inputs["attention_mask"])}),
            "a block sees the words of later ones",
        ),
        (lambda: deaf(lambda inputs: {"position_ids": None}), "it says something else"),
    ],
)
def test_what_cannot_is_refused(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(ValueError) as error:
        need_blocks(make())
    assert named in str(error.value) and "use block 0" in str(error.value)


def test_states_that_are_refused() -> None:
    denoiser, x = Blocks(model("llama"), SPECIALS, 4, shift=True), mixed()
    one, key = torch.ones(len(x)), Key.of(0, len(x))
    with pytest.raises(ValueError, match=r"give the length, as in \[GAP:3\]"):
        denoiser(x.with_(ids=x.ids.index_fill(1, torch.tensor([3]), GAP)), one)
    with pytest.raises(ValueError, match="written, not corrected"):
        denoiser(x.with_(doubtful=x.valid), one)
    masked = x.with_(ids=x.ids.index_fill(1, torch.tensor([0]), MASK))
    with pytest.raises(ValueError, match="begin the text with a word"):
        denoiser(masked, one).sample(Decode(), key)
    with pytest.raises(ValueError, match="begin the text with a word"):
        denoiser(masked, one).log_prob(MASKING.align(x, None, one))
    with pytest.raises(ValueError, match="block 0 is not positive"):
        Blocks(model("llama"), SPECIALS, 0)


BLOCKED = {"process": "masking", "backbone": "causal", "block": 8}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"process": "deletion"}, "block 8 is for denoiser parallel with backbone causal and process masking"),
        ({"process": "masking+masking"}, "not parallel, causal and masking"),
        ({"backbone": "masked"}, "not parallel, masked and masking"),
        ({"denoiser": "autoregressive", "backbone": "masked"}, "not autoregressive, masked and masking"),
        ({"block": -1}, "block -1 is negative"),
        ({"block": 2.5}, "block 2.5 is not int"),
        ({"rule": "gibbs:1"}, "hides single words again wherever they stand.*; use posterior"),
        ({"rule": "remdm-conf"}, "hides single words again wherever they stand"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DiffusionConfig(**BLOCKED | changed)


# ------------------------------------------------------------------------------------------------------ from end to end


OPTIONS = ("--diffusion.process", "masking", "--diffusion.backbone", "causal", "--diffusion.block", "8")


def train(folder: Path, out: Path, *words: str) -> int:
    options = ["--dataset", "texts", "--data.context", "24", "--data.shortest", "8", "--out", str(out)]
    options += ["--trainer.batch", "4", "--trainer.steps", "4", "--trainer.log-every", "2"]
    options += [] if "--model-name-or-path" in words else ["--tokenizer.vocab", "320"]
    return cli(["train", *options, *OPTIONS, *words])


@pytest.fixture
def folder(world: Path, monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> Path:  # noqa: F811
    monkeypatch.chdir(world)
    monkeypatch.setitem(SIZES, "tiny", replace(SIZES["tiny"], **SHAPE))
    return world


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--diffusion.shift",), ("--model-name-or-path", "plain")])
def test_trained_saved_and_opened(folder: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """From scratch or from a causal model, by the command line; what it then says is what it said when it was saved."""
    assert train(folder, tmp_path / "run", *words) == 0
    found = load(tmp_path / "run")
    assert found.config.block == 8 and found.config.keeps_lengths and found.model.config.model_type == "llama"
    assert getattr(found.model.config, "is_causal", True)
    found.save(tmp_path / "again")
    pages = [parse("We [GAP:9] on and [GAP:3]."), [Gap(min=7, max=7), " the people"]]
    for rule in (posterior, threshold(0.5, 8), ranked(at_random, 3)):
        one, other = (
            infill(pages, steps=3, rule=rule, samples=2, **checkpoint.tools())
            for checkpoint in (found, load(tmp_path / "again"))
        )
        assert [[r.text for r in rows] for rows in one] == [[r.text for r in rows] for rows in other]
        assert all(r.text.startswith("We ") and " on and " in r.text for r in one[0])
        assert all(len(r.gaps[0].tokens) == 9 and len(r.gaps[1].tokens) == 3 for r in one[0])
    assert "block by block" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"give the length, as in \[GAP:3\]"):
        infill([parse("We [GAP] on.")], **found.tools())


@pytest.mark.slow
def test_written_by_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train(folder, tmp_path / "run") == 0
    capsys.readouterr()
    run = str(tmp_path / "run")
    assert cli(["generate", run, "--prompt", "We the", "--max-new-tokens", "20", "--rule", "threshold:0.9@8"]) == 0
    assert cli(["infill", run, "We [GAP:12] on."]) == 0
    assert cli(["score", run, "We the people."]) == 0
    said = capsys.readouterr().out
    assert "We the" in said and " on." in said


def test_a_constraint_holds_across_blocks() -> None:
    """The gap is drawn in three blocks; of each, words after which the rest of the gap can still be right."""
    checkpoint = tiny_checkpoint("autoregressive")
    config = DiffusionConfig(process="masking", backbone="causal", block=4)
    tools = replace(checkpoint, config=config).tools()
    page = ["It is ", Gap(min=9, max=9, pattern="[0-9]+-[a-z]+"), "; we go on."]
    for rule in (posterior, ranked(at_random, 4), threshold(0.9)):
        for found in infill([page], steps=4, rule=rule, samples=8, **tools)[0]:
            first, _, second_ = found.gaps[0].text.partition("-")
            assert first.isdigit() and second_.isalpha() and len(found.gaps[0].tokens) == 9
