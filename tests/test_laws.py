"""The laws of the reverse step, on toys that can be enumerated: whatever the rule, nothing but the data comes out.

Su's law (kexue.fm archives 9262), for each process and each rule that claims it,

    sum_{x_t} p(x_s | x_t, x_0) q(x_t | x_0) = q(x_s | x_0),

what follows from it with a perfect denoiser, and the identities that tie the code to closed forms. The exact law of a
state is the enumeration `Process.cells`; the empirical one comes from the code that the sampler runs.

Every chi-square test is asserted at p > 1e-6, which is its rate of false alarm (cells that expect fewer than ten are
pooled first, so that the chi-square law holds). Every criterion is also asserted to reject a planted fault.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache

import pytest
import torch
from scipy import stats
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from textdiff.denoiser import Autoregressive, Denoiser, Oracle, Parallel
from textdiff.denoiser.head import logits_at
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Deletion, Masking, Process
from textdiff.revealing import ranked
from textdiff.rules import Rule, fresh, partial, posterior
from textdiff.sampler import Step, sample
from textdiff.tokens import Specials, Tokens
from textdiff.udm import UDM

SPECIALS = Specials(pad=0, bos=1, mask=2, gap=3)
A, B = 4, 5
BASE = 6  # ids are below it
T, S = 0.8, 0.45  # where the step starts and where it ends
COUNT = 50_000  # texts, unless said otherwise
RULES = [pytest.param(partial(rho), id=f"rho={rho}") for rho in (0, 0.3, 1)]

MASKING, DELETION = Masking(SPECIALS), Deletion(SPECIALS)
STAGED = Deletion(SPECIALS, staged=True)  # lengths first, then words
OFTEN = Deletion(SPECIALS, empty=1)  # many markers, so that several noises explain one state and the alignment matters


def code(ids: torch.Tensor) -> torch.Tensor:
    """One number per row, whatever its padding: counting distinct numbers is faster than counting distinct rows."""
    return (ids * BASE ** torch.arange(ids.shape[1])).sum(1)


def tally(ids: torch.Tensor) -> dict[int, int]:
    values, counts = code(ids).unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def fit(counts: dict[int, int], law: dict[int, float]) -> float:
    """The chance of counts as far from the law as these (chi-square)."""
    assert abs(sum(law.values()) - 1) < 1e-9
    if any(law.get(state, 0) == 0 for state in counts):
        return 0.0
    n, pooled = sum(counts.values()), [0.0, 0.0]
    cells = []
    for state, chance in law.items():
        cell = (counts.get(state, 0), n * chance)
        if cell[1] >= 10:
            cells.append(cell)
        else:
            pooled = [pooled[0] + cell[0], pooled[1] + cell[1]]
    cells += [tuple(pooled)] if pooled[1] > 0 else []
    if len(cells) == 1:
        return 1.0
    return stats.chi2.sf(sum((seen - due) ** 2 / due for seen, due in cells), len(cells) - 1)


def same(first: dict[int, int], second: dict[int, int]) -> float:
    """The chance of two samples of one law as far apart as these (chi-square, two samples)."""
    states = sorted({*first, *second})
    table = torch.tensor([[sample.get(state, 0) for state in states] for sample in (first, second)]).double()
    rare = table.sum(0) < 20
    table = torch.cat([table[:, ~rare], table[:, rare].sum(1, keepdim=True)], 1)
    return stats.chi2_contingency(table[:, table.sum(0) > 0].numpy()).pvalue


def time(count: int, t: float) -> torch.Tensor:
    return torch.full((count,), t, dtype=torch.float64)


def many(x0: Tokens, count: int) -> Tokens:
    return x0[torch.arange(len(x0)).repeat_interleave(count)]


def plain() -> Tokens:
    """Repetitions make embeddings ambiguous: aab, with markers around."""
    return Tokens.from_rows([[1, A, A, B, A]], SPECIALS.pad)


def patterned() -> Tokens:
    """A user's word in the middle, a counted token, a sealed place."""
    x0 = Tokens.from_rows([[1, A, A, B, A, A]], SPECIALS.pad)
    yes = torch.ones(1, dtype=torch.bool)
    columns = torch.arange(6)
    return x0.with_(
        fixed=(columns == 0) | (columns == 3) & yes[:, None],
        counted=((columns == 2) & yes)[None],
        sealed=((columns == 4) & yes)[None],
    )


@cache
def law(process: Process, text: Callable[[], Tokens], t: float) -> dict[int, float]:
    """q(x_t | x_0), by enumeration."""
    result: dict[int, float] = defaultdict(float)
    noise, chances = process.cells(text(), time(1, t))
    states = code(process.corrupt(many(text(), len(chances)), noise, time(len(chances), t)).ids)
    for state, chance in zip(states.tolist(), chances.tolist(), strict=True):
        result[state] += chance
    return result


@cache
def halfway(process: Process, text: Callable[[], Tokens], count: int) -> tuple[Tokens, Draw]:
    """x_t of `count` copies of one text, and the perfect draw; all rules go on from the same ones."""
    x0, key, t = many(text(), count), Key.of(0, count), time(count, T)
    noise = process.noise(x0, key)
    return forgetful(process.corrupt(x0, noise, t)), process.align(x0, noise, t)


def forgetful(xt: Tokens) -> Tokens:
    """The state without the noise that it was made by, so that it has to be inferred."""
    return xt.with_(eps=torch.full_like(xt.eps, -1.0))


def step(process: Process, text: Callable[[], Tokens], rule: Rule, change=lambda xt, draw, t: draw) -> dict[int, int]:
    """Counts of x_s after one step from x_t with a perfect draw, which `change` may spoil."""
    xt, draw = halfway(process, text, COUNT)
    draw, t, s = change(xt, draw, T), time(COUNT, T), time(COUNT, S)
    return tally(process.corrupt(draw.x0, rule(process, xt, draw, t, s, Key.of(1, COUNT)), s).ids)


class Leftmost:
    """The control for alignments: every visible token is found where it fits first, as a greedy search does."""

    def __init__(self, process: Process, texts: Tokens) -> None:
        self.process, self.texts = process, texts
        self.tables: dict[float, dict[tuple[int, int], list[int]]] = {}

    def table(self, t: float) -> dict[tuple[int, int], list[int]]:
        result: dict[tuple[int, int], list[int]] = {}
        for number in range(len(self.texts)):
            x0 = self.texts[number : number + 1]
            noise, chances = self.process.cells(x0, time(1, t))
            x0, times = many(x0, len(chances)), time(len(chances), t)
            states = code(self.process.corrupt(x0, noise, times).ids).tolist()
            places = self.process.align(x0, noise, times).place.tolist()
            for state, text, place in zip(states, code(x0.ids).tolist(), places, strict=True):
                # an early token is at a place that lies further right in x_t
                result[state, text] = max(place, result.get((state, text), place))
        return result

    def __call__(self, xt: Tokens, draw: Draw, t: float) -> Draw:
        if t not in self.tables:
            self.tables[t] = self.table(t)
        table = self.tables[t]
        pairs, which = torch.stack([code(xt.ids), code(draw.x0.ids)], 1).unique(dim=0, return_inverse=True)
        place = torch.tensor([table[a, b] for a, b in pairs.tolist()])[which]
        return Draw(draw.x0, place, draw.log_prob)


class Forgetful(Masking):
    """The control for `infer`: a masked token's u is drawn from all of [0, 1), as if x_t said nothing of it."""

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> torch.Tensor:
        hidden = (xt.ids == self.specials.mask) & ~xt.fixed
        return torch.where(hidden, key.fold(9).uniform(xt.ids.shape[1]), super().infer(xt, draw, t, key))


CASES = [
    pytest.param(process, text, id=f"{name}-{text.__name__}")
    for name, process, texts in (
        ("masking", MASKING, (plain, patterned)),
        ("deletion", DELETION, (plain,)),
        ("deletion-often-empty", OFTEN, (plain, patterned)),
        ("deletion-staged", STAGED, (plain, patterned)),
    )
    for text in texts
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("process", "text"), CASES)
def test_consistency(process: Process, text, rule: Rule) -> None:
    """Su's law: the way through x_t leads to q(x_s | x_0)."""
    # N = 50,000 texts, false alarm 1e-6
    assert fit(step(process, text, rule), law(process, text, S)) > 1e-6


def test_inconsistency_is_noticed() -> None:
    spoiled = step(OFTEN, plain, posterior, Leftmost(OFTEN, plain()))
    assert fit(spoiled, law(OFTEN, plain, S)) < 1e-6
    assert fit(step(Forgetful(SPECIALS), plain, posterior), law(MASKING, plain, S)) < 1e-6


SPANNED = [
    pytest.param(family(SPECIALS, spans=(1, 3)), text, id=f"{family.__name__}-{text.__name__}")
    for family in (Masking, Deletion)
    for text in (plain, patterned)
]


@cache
def directly(process: Process, text: Callable[[], Tokens]) -> dict[int, int]:
    x0 = many(text(), COUNT)
    return tally(process.corrupt(x0, process.noise(x0, Key.of(2, COUNT)), time(COUNT, S)).ids)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("process", "text"), SPANNED)
def test_consistency_of_spans(process: Process, text, rule: Rule) -> None:
    """Spans cannot be enumerated: the law through x_t against direct corruption at s."""
    # two samples of 50,000 texts, false alarm 1e-6
    assert same(step(process, text, rule), directly(process, text)) > 1e-6


class Scattered(Masking):
    """The control for spans: they are forgotten on the way back."""

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> torch.Tensor:
        return Masking(self.specials).infer(xt, draw, t, key)


def test_forgotten_spans_are_noticed() -> None:
    process = Scattered(SPECIALS, spans=(1, 3))
    assert same(step(process, plain, posterior), directly(process, plain)) < 1e-6


@pytest.mark.parametrize("family", [Masking, Deletion])
def test_partial_is_remdm(family) -> None:
    """Identity 1: alpha .3 -> .6 with rho .5: visible -> gone .2, gone stays .4857142857. The token is 1 of 400,000."""
    process, count = family(SPECIALS), 400_000
    x0 = many(Tokens.from_rows([[1, A]], SPECIALS.pad), count)
    key, t, s = Key.of(4, count), time(count, 0.7), time(count, 0.4)
    noise = process.noise(x0, key.fold(0))
    xt, draw = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    visible = xt.ids.gather(1, draw.place)[:, 1] == A

    def within(rho: float) -> list[bool]:
        """Whether each of the two counts lies in the bounds that a binomial leaves with chance 1e-6."""
        xs = process.corrupt(x0, partial(rho)(process, xt, draw, t, s, key.fold(1)), s)
        gone, answers = ~(xs.ids == A).any(1), []
        for group, share in ((visible, 0.2), (~visible, 0.4857142857)):
            low, high = stats.binom.ppf([5e-7, 1 - 5e-7], int(group.sum()), share)
            answers.append(bool(low <= int((gone & group).sum()) <= high))
        return answers

    assert within(0.5) == [True, True]
    assert within(0.45) == [False, False]


def numbered() -> Tokens:
    """x_0 = 01001 of identity 6, its places sealed: no markers but for what is gone."""
    x0 = Tokens.from_rows([[1, A, B, A, A, B]], SPECIALS.pad)
    return x0.with_(sealed=torch.ones_like(x0.fixed))


def unmarked(ids: torch.Tensor) -> torch.Tensor:
    """Codes of the rows with their markers hidden."""
    words = ids >= A
    order = (~words).long().argsort(dim=1, stable=True)
    return code((ids * words).gather(1, order))


def test_deletion_by_its_numbers() -> None:
    """Identities 6 and 7: x_t = 01, beta .7 -> .4. Bare deletion is ours with the markers hidden."""
    process, x0 = Deletion(SPECIALS), numbered()
    target = int(code(torch.tensor([[A, B]])))
    ways: dict[tuple[bool, ...], float] = {}
    noise, chances = process.cells(x0, time(1, 0.7))
    copies, times = many(x0, len(chances)), time(len(chances), 0.7)
    xt, place = process.corrupt(copies, noise, times), process.align(copies, noise, times).place
    mine = unmarked(xt.ids) == target
    kept = (xt.ids.gather(1, place) == copies.ids)[mine]
    for pattern, chance in zip(map(tuple, kept.tolist()), chances[mine].tolist(), strict=True):
        ways[pattern] = ways.get(pattern, 0) + chance
    assert len(ways) == 4 and sum(ways.values()) == pytest.approx(0.12348, abs=1e-12)
    assert all(chance == pytest.approx(0.12348 / 4) for chance in ways.values())

    # 24,700 of N = 200,000 texts have this x_t; chi-square over five cells, false alarm 1e-6
    count = 200_000
    texts, key, t, s = many(x0, count), Key.of(6, count), time(count, 0.7), time(count, 0.4)
    noise = process.noise(texts, key.fold(0))
    xt, draw = process.corrupt(texts, noise, t), process.align(texts, noise, t)
    xs = process.corrupt(texts, posterior(process, xt, draw, t, s, key.fold(1)), s)
    shares = {(A, B): 64, (A, A, B): 72, (A, B, A, B): 54, (A, B, A, A, B): 27}
    expected = {int(code(torch.tensor([text]))): share / 343 for text, share in shares.items()}
    expected[-1] = 1 - sum(expected.values())
    counts: dict[int, int] = defaultdict(int)
    for state in unmarked(xs.ids)[unmarked(xt.ids) == target].tolist():
        counts[state if state in expected else -1] += 1
    assert sum(counts.values()) > 24_000 and fit(counts, expected) > 1e-6
    uneven = {state: chance + (0.04 if state == -1 else -0.01) for state, chance in expected.items()}
    assert fit(counts, uneven) < 1e-6


# Texts of one length whose tokens depend on each other, and texts of any length, the empty one among them. Rows that
# repeat make the multiplicities unequal.
FIXED_LENGTH = [[A, A, A]] * 3 + [[B, B, B]] * 2 + [[A, B, A]]
ANY_LENGTH = [[], [A], [A, A], [A, A], [B, A, A], [A, B]]
ORACLES = [
    pytest.param(MASKING, FIXED_LENGTH, id="masking"),
    pytest.param(DELETION, ANY_LENGTH, id="deletion"),
    pytest.param(STAGED, ANY_LENGTH, id="staged"),
]


def data(words: list[list[int]]) -> Tokens:
    return Tokens.from_rows([[1, *row] for row in words], SPECIALS.pad)


def law_of(words: list[list[int]]) -> dict[int, float]:
    return {state: count / len(words) for state, count in tally(data(words).ids).items()}


def samples(
    denoiser: Denoiser, process: Process, words: list[list[int]], rule: Rule, steps: int, count: int = COUNT
) -> dict[int, int]:
    """What the sampler makes of the prior, which is a point (test_contract.py)."""
    key = Key.of(8, count)
    x = process.prior(many(data(words)[-1:], count), key)
    last = list(sample(denoiser, process, x, steps=steps, key=key, rule=rule))[-1]
    return tally(last.x.ids)


@pytest.fixture(scope="module")
def oracles() -> dict[str, Oracle]:
    """Their tables are by far the dearest part of them, so all the tests share them."""
    made = {}
    for parameters in ORACLES:
        process, words = parameters.values
        made[name_of(process)] = Oracle(process, data(words))
    return made


def name_of(process: Process) -> str:
    return "Staged" if process is STAGED else type(process).__name__


SAMPLERS = [
    # partial, a mixture of the other two, stands for them in the long run and in `make test`
    pytest.param(rule, steps, id=f"{name}-{steps}", marks=[pytest.mark.slow] * (steps != 2 and name != "partial"))
    for name, rule in (("fresh", fresh), ("posterior", posterior), ("partial", partial(0.3)))
    for steps in (1, 2, 8)
]


@pytest.mark.parametrize(("rule", "steps"), SAMPLERS)
@pytest.mark.parametrize(("process", "words"), ORACLES)
def test_a_perfect_denoiser_samples_the_data(process, words, rule, steps, oracles) -> None:
    """Identity 3: every rule that keeps Su's law gives the data exactly, in any number of steps, in one as well."""
    # N = 50,000 texts, false alarm 1e-6
    assert fit(samples(oracles[name_of(process)], process, words, rule, steps), law_of(words)) > 1e-6


class Spoiled(Denoiser):
    """A denoiser whose draws a function (oracle, xt, t, key, draw) spoils."""

    def __init__(self, oracle: Oracle, spoil) -> None:
        super().__init__()
        self.oracle, self.spoil = oracle, spoil

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Spoiled(self, xt, t)


class _Spoiled(Posterior):
    def __init__(self, denoiser: Spoiled, xt: Tokens, t: torch.Tensor) -> None:
        self.denoiser, self.xt, self.t = denoiser, xt, t
        self.exact = denoiser.oracle(xt, t)

    def sample(self, decode: Decode, key: Key) -> Draw:
        draw = self.exact.sample(decode, key)
        return self.denoiser.spoil(self.exact, self.xt, float(self.t[0]), key, draw)

    def log_prob(self, truth: Draw) -> torch.Tensor:
        return self.exact.log_prob(truth)


def factorised(exact: Posterior, xt: Tokens, t: float, key: Key, draw: Draw) -> Draw:
    """Every token from its own marginal, as a network says them that speaks all of them at once."""
    others = [exact.sample(Decode(), key.fold(column)).x0.ids[:, column] for column in range(draw.x0.ids.shape[1])]
    return Draw(draw.x0.with_(ids=torch.stack(others, 1)), draw.place, draw.log_prob)


def confident(exact: Posterior, xt: Tokens, t: float, key: Key, draw: Draw) -> Draw:
    """An exact draw with a confidence that depends on what was drawn."""
    return Draw(draw.x0, draw.place, (draw.x0.ids == B).float())


def test_imperfect_samplers_are_noticed(oracles) -> None:
    """The wrong alignment, by 100,000 texts; tokens without their joint law; the ranking by the drawn token's confidence."""
    words = [[A, A, B], [B, A, A]]  # which A is left says where the B was: a greedy search is wrong there
    oracle, leftmost = Oracle(OFTEN, data(words)), Leftmost(OFTEN, data(words))
    greedy = Spoiled(oracle, lambda exact, xt, t, key, draw: leftmost(xt, draw, t))
    assert fit(samples(oracle, OFTEN, words, posterior, 4, 100_000), law_of(words)) > 1e-6
    assert fit(samples(greedy, OFTEN, words, posterior, 4, 100_000), law_of(words)) < 1e-6

    words = FIXED_LENGTH
    spoiled = Spoiled(oracles["Masking"], factorised)
    assert fit(samples(spoiled, MASKING, words, posterior, 1), law_of(words)) < 1e-6
    spoiled = Spoiled(oracles["Masking"], confident)
    assert fit(samples(spoiled, MASKING, words, posterior, 2), law_of(words)) > 1e-6
    assert fit(samples(spoiled, MASKING, words, ranked(), 2), law_of(words)) < 1e-6


def test_a_perfect_denoiser_knows_the_likelihood(oracles) -> None:
    """The bound of one step is exact where the denoiser speaks of whole texts: minus the log of each one's share."""
    udm, x0 = UDM(Deletion(SPECIALS), oracles["Deletion"]), data(ANY_LENGTH)
    shares = torch.tensor([ANY_LENGTH.count(row) / len(ANY_LENGTH) for row in ANY_LENGTH], dtype=torch.float64)
    torch.testing.assert_close(udm.bound(x0, Key.of(0, len(x0))), -shares.log())


# From here on, stock models with random weights: q(x0 | xt) as they say it is one law, however it is asked for.
NAMED = Specials(pad=0, bos=1, mask=2, gap=3, fill=4, end=5, lengths=(6, 7, 8), banned=(9,))
X, Y = 10, 11
SIZE = 12  # two words
SMALL = {"vocab_size": SIZE, "pad_token_id": 0}
BERT = {**SMALL, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def seeded(model_class, config) -> torch.nn.Module:
    """Weights large enough for the words' probabilities to differ by a lot."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def bert():
    return seeded(BertForMaskedLM, BertConfig(**BERT, max_position_embeddings=32))


def modernbert():
    ids = {"bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
    return seeded(ModernBertForMaskedLM, ModernBertConfig(**BERT, **ids))


def distilbert():
    config = DistilBertConfig(**SMALL, dim=16, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=32)
    return seeded(DistilBertForMaskedLM, config)


def llama():
    return seeded(LlamaForCausalLM, LlamaConfig(**BERT, bos_token_id=1, eos_token_id=None))


def t5():
    sizes = {"d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2, "d_kv": 8}
    return seeded(T5ForConditionalGeneration, T5Config(**SMALL, **sizes, decoder_start_token_id=0, dropout_rate=0.0))


def bart():
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    sizes = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32}
    ids = {"bos_token_id": 1, "eos_token_id": 5, "decoder_start_token_id": 5}
    return seeded(BartForConditionalGeneration, BartConfig(**SMALL, **heads, **sizes, **ids))


DENOISERS = {
    "parallel": lambda: Parallel(bert(), NAMED),
    "causal": lambda: Autoregressive(llama(), NAMED),
    "bidirectional": lambda: Autoregressive(llama(), NAMED, context=0, bidirectional=True),
    "t5": lambda: Autoregressive(t5(), NAMED),
}
every_denoiser = pytest.mark.parametrize("denoiser", [pytest.param(make, id=name) for name, make in DENOISERS.items()])


@pytest.mark.parametrize("model", [bert, modernbert, distilbert, llama, t5, bart])
def test_the_head_at_chosen_places(model) -> None:
    """Bit for bit what slicing the full logits gives; and the hook is gone afterwards."""
    network = model()
    ids = (Key.of(0, 3).uniform(9) * SIZE).long().clamp_min(1)
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(9) < torch.tensor([[9], [5], [7]])).long()}
    if network.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(1)
    where = (Key.of(1, 3).uniform(9) < 0.4) & inputs["attention_mask"].bool()
    with torch.no_grad():
        full = network(**inputs).logits
        assert torch.equal(logits_at(network, where, **inputs), full[where])
        assert torch.equal(network(**inputs).logits, full)


def words_of(rows: list[list[int]]) -> Tokens:
    return Tokens.from_rows([[1, *row] for row in rows], NAMED.pad)


def plain_nll(model, row: list[int]) -> float:
    """-log p(n) of a blank page's length, and -log p of its words as language modelling has it, written out by hand.

    A causal model reads [BOS] [GAP] [END] and, fed [GAP], says n; reads [BOS] [MASK] [END], the end as far away as the
    text is long, and goes on as in running text. An encoder reads the gap, then n masks; the decoder is fed.
    """
    count = len(row)
    if model.config.is_encoder_decoder:
        length = model(input_ids=torch.tensor([[1, NAMED.gap]]), decoder_input_ids=torch.tensor([[NAMED.gap]])).logits[
            0
        ]
        page, fed = torch.tensor([[1, *[NAMED.mask] * count]]), torch.tensor([[NAMED.fill, *row][: max(count, 1)]])
        words = model(input_ids=page, decoder_input_ids=fed).logits[0, :count]
    else:
        page, place = [1, NAMED.gap, NAMED.end, NAMED.gap], [0, 1, 2, 1]
        length = model(input_ids=torch.tensor([page]), position_ids=torch.tensor([place])).logits[0, -1:]
        page, place = [1, NAMED.mask, NAMED.end, 1, *row], [0, 1, count + 1, 0, *range(1, count + 1)]
        words = model(input_ids=torch.tensor([page]), position_ids=torch.tensor([place])).logits[0, 3 : 3 + count]
    asked = torch.tensor([*row], dtype=torch.long)
    words[:, NAMED.not_text] = -torch.inf
    words_nll = torch.nn.functional.cross_entropy(words, asked, reduction="sum")
    return float(words_nll - length[:, NAMED.lengths].log_softmax(-1)[0, count])


@pytest.mark.parametrize("model", [llama, t5])
def test_one_step_is_language_modelling(model) -> None:
    """Identity 17: the bound of one step is the plain likelihood, of the empty text, too, and in any batch."""
    denoiser, rows = Autoregressive(model(), NAMED).eval(), [[X, Y], [], [Y], [X, X]]
    bound = UDM(Deletion(NAMED), denoiser).bound(words_of(rows), Key.of(0, len(rows)))
    with torch.no_grad():
        expected = torch.tensor([plain_nll(denoiser.model, row) for row in rows]).double()
    torch.testing.assert_close(bound, expected, atol=1e-4, rtol=1e-5)
    assert float((bound - bound.flip(0)).abs().min()) > 0.01  # the texts' likelihoods do differ


def shown() -> Tokens:
    """States with gaps and masks of every kind: as corruption makes them, and as a user writes them."""
    x0 = words_of([[X, Y, X, X, Y, Y], [Y] * 3, [], [X, X, Y, Y, X]] * 30)
    counted = (Key.of(7, len(x0)).uniform(x0.ids.shape[1]) < 0.3) & ~x0.fixed & x0.valid
    process, t = Deletion(NAMED, empty=1), Key.of(8, len(x0)).uniform(1)[:, 0]
    x0 = x0.with_(counted=counted)
    return process.corrupt(x0, process.noise(x0, Key.of(9, len(x0))), t)


@every_denoiser
def test_draws_contain_what_is_seen(denoiser) -> None:
    """x0_hat is a supersequence of x_t, and its place says how: in order, all that is seen and one token per mask."""
    xt = shown()
    with torch.no_grad():
        draw = denoiser().eval()(xt, time(len(xt), 0.5)).sample(Decode(max_gap=4), Key.of(0, len(xt)))
    seen, valid = xt.ids.gather(1, draw.place), draw.x0.valid
    gap, mask = (seen == NAMED.gap) & valid, (seen == NAMED.mask) & valid
    assert bool((draw.x0.ids == seen)[valid & ~gap & ~mask].all())
    assert bool((draw.x0.ids[valid & (draw.x0.ids != 1)] >= X).all())
    assert bool((draw.place.diff(dim=1)[valid[:, 1:]] >= 0).all())
    filled = torch.zeros_like(xt.ids).scatter_add(1, draw.place, valid.long())
    assert bool((filled == 1)[xt.valid & (xt.ids != NAMED.gap)].all())
    assert int(filled[xt.ids == NAMED.gap].max()) >= 2 and int(filled.max()) <= 4


@every_denoiser
def test_a_draw_is_scored_as_it_was_drawn(denoiser) -> None:
    """log_prob of a draw is what the draw says of itself, on all it wrote. (Lengths are booked left of their gap.)"""
    xt, model = shown(), denoiser().eval()
    with torch.no_grad():
        look = model(xt, time(len(xt), 0.5))
        draw = look.sample(Decode(max_gap=6), Key.of(1, len(xt)))
        scored = look.log_prob(draw)
    seen = xt.ids.gather(1, draw.place)
    after = xt.ids.gather(1, (draw.place + 1).clamp_max(xt.ids.shape[1] - 1))
    wrote = ((seen == NAMED.gap) | ((seen == NAMED.mask) & (after != NAMED.gap))) & draw.x0.valid
    assert int(wrote.sum()) > 100
    torch.testing.assert_close(scored[wrote], draw.log_prob[wrote], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(draw.x0.score[wrote], draw.log_prob[wrote])
    assert not bool(scored[~draw.x0.valid].any())


def fillings(xt_row: list[int], longest: int) -> tuple[list[list[int]], list[list[int]]]:
    """Every way to fill the gaps of a state with up to `longest` words each and its masks with one; and the places."""
    contents = [list(row) for n in range(longest + 1) for row in itertools.product((X, Y), repeat=n)]
    options = [contents if i == NAMED.gap else [[X], [Y]] if i == NAMED.mask else [[i]] for i in xt_row]
    ways = list(itertools.product(*options))
    places = [[column for column, part in enumerate(way) for _ in part] for way in ways]
    return [sum(way, []) for way in ways], places


def chances(model: Denoiser, xt_row: list[int], longest: int) -> dict[int, float]:
    """exp log_prob of each filling. Different fillings of these states are different texts."""
    rows, places = fillings(xt_row, longest)
    x0 = Tokens.from_rows(rows, NAMED.pad)
    place = torch.zeros_like(x0.ids)
    for number, row in enumerate(places):
        place[number, : len(row)] = torch.tensor(row)
    xt = many(Tokens.from_rows([xt_row], NAMED.pad), len(rows))
    with torch.no_grad():
        total = model(xt, time(len(rows), 0.5)).log_prob(Draw(x0, place, torch.zeros(()))).double().sum(1).exp()
    codes = wide_code(x0.ids).tolist()
    assert len(set(codes)) == len(codes)
    return dict(zip(codes, total.tolist(), strict=True))


def wide_code(ids: torch.Tensor) -> torch.Tensor:
    return (ids * SIZE ** torch.arange(ids.shape[1])).sum(1)


MASKS, GAPS = [1, 2, 2, X, 2], [1, 3, 9, 2, X, 3]  # 9, a stray special token, keeps the fillings of GAPS apart


@every_denoiser
def test_a_posterior_is_a_law(denoiser) -> None:
    """exp log_prob sums to one over all outputs: over words, and with gaps over lengths, as far as they can be said."""
    model = denoiser().eval()
    assert sum(chances(model, MASKS, 0).values()) == pytest.approx(1, abs=1e-5)
    assert sum(chances(model, GAPS, 2).values()) == pytest.approx(1, abs=1e-5)


@every_denoiser
def test_a_length_that_cannot_be_said_is_no_likelihood(denoiser) -> None:
    """Three words on a blank page, where two are the most that there is a token for."""
    udm = UDM(Deletion(NAMED), denoiser())
    assert bool(udm.bound(words_of([[X, Y]]), Key.of(0, 1)).isfinite().all())
    with pytest.raises(ValueError, match=r"3 tokens are missing in a gap, more than this model has a length for \(2\)"):
        udm.bound(words_of([[X, Y], [X, Y, Y]]), Key.of(0, 2))


@every_denoiser
def test_draws_follow_the_posterior(denoiser) -> None:
    """The empirical law of `sample` is exp log_prob. N = 10,000 draws, chi-square, false alarm 1e-6."""
    model, count = denoiser().eval(), 10_000
    for row, longest in ((MASKS, 0), (GAPS, 2)):
        law = chances(model, row, longest)
        total = sum(law.values())
        law = {state: chance / total for state, chance in law.items()}
        xt = many(Tokens.from_rows([row], NAMED.pad), count)
        with torch.no_grad():
            draw = model(xt, time(count, 0.5)).sample(Decode(max_gap=5), Key.of(2, count))
        counts: dict[int, int] = defaultdict(int)
        for state in wide_code(draw.x0.ids[:, :16]).tolist():
            counts[state] += 1
        assert fit(counts, law) > 1e-6
        cooler = {state: chance**0.5 for state, chance in law.items()}  # the control: a law of another temperature
        assert fit(counts, {state: chance / sum(cooler.values()) for state, chance in cooler.items()}) < 1e-6


def patterns(count: int, gaps: bool) -> tuple[Tokens, list[tuple[re.Pattern, re.Pattern]]]:
    """Random rows as a user writes them, and what every state and the result must look like, as regular expressions.

    Each place is a word of the user's, a mask, or, not twice in a row, a gap; elsewhere nothing may come between.
    """
    choice, word = Key.of(12, count).uniform(7), Key.of(13, count).uniform(7)
    rows, flags, looks = [], [], []
    for picks, values in zip(choice.tolist(), (X + 2 * word).long().tolist(), strict=True):
        row, kinds, half, full = [1], [True], [letter(1)], [letter(1)]
        for pick, value in zip(picks, values, strict=True):
            if pick < 0.4:
                part = (value, True, letter(value), letter(value))
            elif pick < 0.7 or not gaps or row[-1] == NAMED.gap:
                part = (NAMED.mask, False, f"[{WORDS}{letter(NAMED.mask)}]", f"[{WORDS}]")
            else:
                part = (NAMED.gap, False, f"[{WORDS}{letter(NAMED.gap)}]*", f"[{WORDS}]*")
            for column, value_of in zip((row, kinds, half, full), part, strict=True):
                column.append(value_of)
        rows.append(row)
        flags.append(kinds)
        looks.append((re.compile("".join(half)), re.compile("".join(full))))
    ids, fixed = torch.tensor(rows), torch.tensor(flags)
    before_gap = torch.cat([ids[:, 1:] == NAMED.gap, torch.zeros(count, 1, dtype=torch.bool)], 1)
    x = Tokens.from_rows(rows, NAMED.pad)
    gap = ids == NAMED.gap
    return x.with_(fixed=fixed, counted=ids == NAMED.mask, sealed=~before_gap & ~gap), looks


def letter(number: int) -> str:
    return chr(ord("a") + number)


WORDS = letter(X) + letter(Y)


def offences(run: Iterable[Step], looks: list[tuple[re.Pattern, re.Pattern]]) -> int:
    """How many rows are not what the user asked for, at any time."""
    wrong = [False] * len(looks)
    for step in run:
        parts = (step.rows, step.done, step.x.ids, step.x.valid.sum(1))
        for i, done, ids, size in zip(*(part.tolist() for part in parts), strict=True):
            wrong[i] |= not looks[i][done].fullmatch("".join(map(letter, ids[:size])))
    return sum(wrong)


@pytest.mark.parametrize(
    "rule", [fresh, posterior, partial(0.3), ranked()], ids=["fresh", "posterior", "rho", "ranked"]
)
def test_the_users_text_never_changes(rule: Rule) -> None:
    """Identity 18, on 10,000 rows in all: fixed words, closed places and counts survive every process and rule."""
    denoiser = DENOISERS["parallel"]().eval()
    for process, gaps, count in ((Deletion(NAMED), True, 2000), (Masking(NAMED, spans=(1, 3)), False, 500)):
        x, looks = patterns(count, gaps)
        run = sample(denoiser, process, x, steps=3, key=Key.of(14, count), rule=rule)
        assert offences(run, looks) == 0


@pytest.mark.parametrize("process", [Deletion(NAMED), Masking(NAMED, spans=(1, 3))], ids=["deletion", "masking"])
def test_a_change_of_the_users_text_is_noticed(process) -> None:
    """The control: the same texts, and nothing in them is the user's."""
    x, looks = patterns(500, isinstance(process, Deletion))
    loose = x.with_(fixed=x.fixed & (torch.arange(x.ids.shape[1]) == 0))
    run = sample(DENOISERS["parallel"]().eval(), process, loose, steps=3, key=Key.of(14, 500), rule=fresh)
    assert offences(run, looks) > 0
