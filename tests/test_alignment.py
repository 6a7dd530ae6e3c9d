"""Embeddings and the pair-HMM against exact integers, enumeration and simulation.

Chi-square tests are asserted at p > 1e-6, their rate of false alarm, and reject a planted fault.
"""

import itertools
import math
from collections import defaultdict
from functools import cache

import pytest
import test_laws as laws
import torch
from scipy import stats
from test_laws import fit, many, time

from textdiff.denoiser import Denoiser, Oracle
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Deletion, Edit, deletion
from textdiff.process.alignment import Alignments, Weights, closed, count_embeddings, draw_embedding
from textdiff.process.deletion import DeletionNoise
from textdiff.rules import fresh, partial, posterior
from textdiff.sampler import sample
from textdiff.tokens import Specials, Tokens

SPECIALS = Specials(pad=0, bos=1, mask=2, gap=3)
A, B, C = 4, 5, 6
WORDS = torch.tensor([A, B, C])


def exact(x0: list[int], y: list[int]) -> int:
    """The number of embeddings, in Python's integers."""
    row = [1] + [0] * len(y)
    for token in x0:
        row = [1] + [row[j] + (y[j - 1] == token) * row[j - 1] for j in range(1, len(y) + 1)]
    return row[-1]


def log_of(count: int) -> float:
    return math.log(count) if count else -math.inf


def test_counts_of_all_small_texts() -> None:
    """All 364 texts of up to 5 letters a, b, c with all 40 of up to 3, in one padded batch; relative error 1e-12."""
    texts = [list(t) for n in range(6) for t in itertools.product(range(3), repeat=n)]
    others = [list(t) for n in range(4) for t in itertools.product(range(3), repeat=n)]
    pairs = list(itertools.product(texts, others))
    x0 = torch.tensor([x + [7] * (5 - len(x)) for x, _ in pairs])
    y = torch.tensor([y + [7] * (3 - len(y)) for _, y in pairs])
    sizes, lengths = (torch.tensor([len(p[k]) for p in pairs]) for k in (0, 1))
    counts = count_embeddings(x0, y, sizes, lengths)
    expected = torch.tensor([exact(*p) for p in pairs], dtype=torch.float64)
    torch.testing.assert_close(counts.exp(), expected, rtol=1e-12, atol=0)
    alignment, found = draw_embedding(x0, y, Key.of(0, len(pairs)), sizes, lengths)
    assert bool((found == (expected > 0)).all())
    for row in found.nonzero()[:, 0].tolist():
        seen = alignment.seen[row]
        assert x0[row][seen].tolist() == pairs[row][1] and alignment.column[row][seen].tolist() == list(
            range(sum(seen))
        )


def test_counts_of_long_texts() -> None:
    """L = 400 and counts of up to 1e119, beyond 2 ** 53: logarithms within 1e-10 of the exact integers'."""
    u = Key.of(1, 6).uniform(400)
    x0 = (u * torch.tensor([[1], [2], [2], [3], [2], [4]])).long()
    for length in (60, 200):
        y = x0[:, ::2][:, :length] if length < 200 else x0[:, :length]
        counts = count_embeddings(x0, y).tolist()
        expected = [log_of(exact(*p)) for p in zip(x0.tolist(), y.tolist(), strict=True)]
        assert counts == pytest.approx(expected, rel=1e-10) and min(expected) > 40
    assert max(expected) > 270
    assert counts != pytest.approx([value * (1 + 1e-9) for value in expected], rel=1e-10)  # the tolerance bites
    alignment, _ = draw_embedding(x0, y, Key.of(2, 6))
    assert bool((alignment.seen.sum(1) == 200).all())
    assert all(torch.equal(x0[i][alignment.seen[i]], y[i]) for i in range(6))


def ways(x0: list[int], y: list[int]) -> dict[int, float]:
    """Every set of seen elements that makes y, as a number, all alike."""
    sets = [s for s in itertools.combinations(range(len(x0)), len(y)) if [x0[i] for i in s] == y]
    return {sum(2**i for i in s): 1 / len(sets) for s in sets}


@pytest.mark.parametrize(("x0", "y"), [("abaab", "ab"), ("aaaa", "aa"), ("abcabcabc", "abc"), ("abab", "")])
def test_embeddings_are_drawn_uniformly(x0: str, y: str) -> None:
    """Identity 7: chi-square over all N embeddings, 20,000 draws, false alarm 1e-6; the leftmost is not among the laws."""
    count, first, second = 20_000, [ord(c) for c in x0], [ord(c) for c in y]
    alignment, found = draw_embedding(
        torch.tensor([first]).expand(count, -1), torch.tensor([second]).long().expand(count, -1), Key.of(3, count)
    )
    assert bool(found.all())
    sets = (alignment.seen * 2 ** torch.arange(len(x0))).sum(1)
    counts = dict(zip(*(part.tolist() for part in sets.unique(return_counts=True)), strict=True))
    assert fit(counts, ways(first, second)) > 1e-6
    if len(ways(first, second)) > 1:
        leftmost = min(ways(first, second))  # the smallest number has its bits furthest left
        assert fit({leftmost: count}, ways(first, second)) < 1e-6


def test_a_draw_that_rounds_up_takes_a_move_that_there_is() -> None:
    """With u the largest number below 1, times the sum of three moves, of which the last is impossible."""
    x0 = torch.tensor([[A] * 6])
    for length in range(1, 6):
        y = torch.tensor([[A] * length])
        ways = Alignments(_weights(x0, y), torch.tensor([6]), torch.tensor([length]))
        for i, j in itertools.product(range(1, 7), range(1, length + 1)):
            if j <= i:
                last = ways._choose(torch.tensor([i]), torch.tensor([j]), torch.tensor([1 - 2.0**-53]).double())
                assert int(last) in ((0, 1) if j < i else (0,))


def _weights(x0: torch.Tensor, y: torch.Tensor) -> Weights:
    """Those of embeddings, with logarithms that are no round numbers."""
    shape = (len(x0), x0.shape[1], y.shape[1])
    drop = torch.full((shape[0], shape[1], shape[2] + 1), math.log(0.3), dtype=torch.float64)
    never = torch.full((shape[0], shape[1] + 1, shape[2]), -torch.inf, dtype=torch.float64)
    return Weights(torch.full(shape, math.log(0.7), dtype=torch.float64), drop, never)


def state_codes(ids: torch.Tensor, base: int = 8) -> torch.Tensor:
    """One number per row, of its words and masks alone."""
    kept = (ids > 0) & (ids != SPECIALS.gap)
    order = (~kept).long().argsort(dim=1, stable=True)
    ids = (ids * kept).gather(1, order)[:, :20]
    return (ids * base ** torch.arange(ids.shape[1])).sum(1)


def strings(letters: list[int], longest: int) -> list[list[int]]:
    return [list(row) for n in range(longest + 1) for row in itertools.product(letters, repeat=n)]


def bare(rows: list[list[int]], gaps: bool) -> Tokens:
    """States as `Edit` makes them, with a marker at every place or none."""
    full = [[1, 3] + [v for token in row for v in (token, 3)] if gaps else [1, *row] for row in rows]
    return Tokens.from_rows(full, SPECIALS.pad)


def enumerated(process: Edit, x0: Tokens, t: float) -> dict[int, float]:
    noise, chances = process.cells(x0, time(1, t))
    states = state_codes(process.corrupt(many(x0, len(chances)), noise, time(len(chances), t)).ids).tolist()
    law: dict[int, float] = defaultdict(float)
    for state, chance in zip(states, chances.tolist(), strict=True):
        law[state] += chance
    return law


@pytest.mark.parametrize("kinds", [(0.3, 0.2, 0.5), (1, 0, 0), (0, 0.4, 0.6)])
def test_the_likelihood_without_insertions(kinds) -> None:
    """The pair-HMM's total is the enumerated law, on all states of up to 3 words and masks, to 1e-12; and sums to 1."""
    process, text = Edit(SPECIALS, WORDS, kinds=kinds), [A, A, B]
    x0, rows = Tokens.from_rows([[1, *text]], SPECIALS.pad), strings([2, A, B, C], 3)
    xt = bare(rows, gaps=kinds[0] > 0)
    for t in (0.3, 0.8):
        total = process.log_likelihood(xt, many(x0, len(xt)), time(len(xt), t)).exp()
        law = enumerated(process, x0, t)
        expected = torch.tensor([law.get(code, 0.0) for code in state_codes(xt.ids).tolist()], dtype=torch.float64)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-15)
        assert float(total.sum()) == pytest.approx(1, abs=1e-12)
        wrong = process.log_likelihood(xt, many(x0, len(xt)), time(len(xt), t + 0.01)).exp()
        assert float((wrong - expected).abs().max()) > 1e-3


def test_the_likelihood_with_insertions() -> None:
    """Against 50,000 direct draws, chi-square over all states of up to 4 and the rest, false alarm 1e-6."""
    process, count, t = Edit(SPECIALS, WORDS, kinds=(0.3, 0.2, 0.5), insert=0.4), 50_000, 0.6
    x0 = Tokens.from_rows([[1, A, B]], SPECIALS.pad)
    copies = many(x0, count)
    states = state_codes(process.corrupt(copies, process.noise(copies, Key.of(4, count)), time(count, t)).ids)
    rows = strings([2, A, B, C], 4)
    xt = bare(rows, gaps=True)
    codes = state_codes(xt.ids).tolist()

    def law(time_: float) -> dict[int, float]:
        total = process.log_likelihood(xt, many(x0, len(xt)), time(len(xt), time_)).exp().tolist()
        law = dict(zip(codes, total, strict=True))
        law[-1] = 1 - sum(total)
        assert 0 < law[-1] < 0.2
        return law

    known, counts = set(codes), defaultdict(int)
    for state, number in zip(*(part.tolist() for part in states.unique(return_counts=True)), strict=True):
        counts[state if state in known else -1] += number
    assert fit(counts, law(t)) > 1e-6
    assert fit(counts, law(t + 0.04)) < 1e-6


def geometric(gamma: float) -> dict[int, float]:
    law = {k: (1 - gamma) * gamma**k for k in range(60)}
    return law | {60: 1 - sum(law.values())}


def test_insertions_survive_by_their_odds() -> None:
    """Identity 15: geometric at every time, and from t to s each word stays with the chance odds_s / odds_t.

    50,000 texts of one open place. The number at t by chi-square; of the survivors given the number at t, the same.
    """
    process, count, t, s = Edit(SPECIALS, WORDS, insert=0.6), 50_000, 0.8, 0.3
    x0 = Tokens.from_rows([[1]] * count, SPECIALS.pad)
    noise = process.noise(x0, Key.of(5, count))
    at_t, at_s = ((process.corrupt(x0, noise, time(count, when)).ids >= A).sum(1) for when in (t, s))
    gamma = {when: 0.6 * when for when in (t, s)}
    for when, number in ((t, at_t), (s, at_s)):
        counts = dict(zip(*(part.tolist() for part in number.unique(return_counts=True)), strict=True))
        assert fit(counts, geometric(gamma[when])) > 1e-6
        assert fit(counts, geometric(gamma[when] + 0.02)) < 1e-6
    odds = {when: g / (1 - g) for when, g in gamma.items()}

    def survivors(chance: float) -> bool:
        results = []
        for k in (1, 2, 3):
            seen = at_s[at_t == k]
            counts = dict(zip(*(part.tolist() for part in seen.unique(return_counts=True)), strict=True))
            results.append(fit(counts, {j: float(stats.binom.pmf(j, k, chance)) for j in range(k + 1)}) > 1e-6)
        return all(results)

    assert survivors(odds[s] / odds[t])
    assert not survivors(gamma[s] / gamma[t])


# Deletion without markers: a marker at every place says nothing.
BARE = Deletion(SPECIALS, empty=0)


@pytest.fixture
def leftmost(monkeypatch) -> None:
    """A control: going back from the end, what can be dropped is, so that everything is seen as early as it can be."""
    choose = Alignments._choose
    monkeypatch.setattr(Alignments, "_choose", lambda ways, i, j, u: choose(ways, i, j, torch.full_like(u, 1 - 1e-9)))


def unplaced(draw: Draw) -> Draw:
    return Draw(draw.x0, torch.empty(0, dtype=torch.int64), draw.log_prob)


def reached() -> dict[int, int]:
    """x_s, without markers, of x_0 = 01001 and x_t = 01, by 50,000 draws of `infer` without places."""
    count = 50_000
    x0, xt = (many(Tokens.from_rows([row], 0), count) for row in ([1, A, B, A, A, B], [1, 3, A, 3, B, 3]))
    noise = BARE.infer(xt, unplaced(Draw(x0, x0.ids, x0.score)), time(count, 0.7), Key.of(6, count))
    states = state_codes(BARE.corrupt(x0, noise, time(count, 0.4)).ids)
    return dict(zip(*(part.tolist() for part in states.unique(return_counts=True)), strict=True))


def stated() -> dict[int, float]:
    """Identity 6, by the closed form N N / N (beta_s / beta_t)^(L - m) r^(m - n), over all subsequences of x_0."""
    x0, y, r = [A, B, A, A, B], [A, B], 1 - 0.4 / 0.7
    law = {}
    for m in range(2, 6):
        for z in {tuple(x0[i] for i in chosen) for chosen in itertools.combinations(range(5), m)}:
            chance = exact(list(z), y) * exact(x0, list(z)) / exact(x0, y) * (0.4 / 0.7) ** (5 - m) * r ** (m - 2)
            if chance:
                law[int(state_codes(torch.tensor([[1, *z]])))] = chance
    return law


def test_bare_deletion_by_its_numbers() -> None:
    """Identity 6, x_0 = 01001 and x_t = 01, beta .7 -> .4: N, the likelihood, and every x_s with its chance."""
    x0, y = torch.tensor([[A, B, A, A, B]]), torch.tensor([[A, B]])
    count = float(count_embeddings(x0, y).exp())
    assert count == pytest.approx(4) and count * 0.7**3 * 0.3**2 == pytest.approx(0.12348, abs=1e-12)
    law = stated()
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    shares = {(A, B): 64, (A, A, B): 72, (A, B, A, B): 54, (A, B, A, A, B): 27}
    for text, share in shares.items():
        assert law[int(state_codes(torch.tensor([[1, *text]])))] == pytest.approx(share / 343)
    assert fit(reached(), law) > 1e-6


def test_the_leftmost_embedding_is_noticed(leftmost) -> None:
    assert fit(reached(), stated()) < 1e-6


@pytest.mark.parametrize("rule", [fresh, posterior, partial(0.3)], ids=["fresh", "posterior", "partial"])
def test_bare_deletion_is_consistent(rule) -> None:
    """Su's law without places, N = 25,000; and nothing but markers tells the state from its words."""
    count, t, s = 25_000, time(25_000, 0.8), time(25_000, 0.45)
    xt, draw = laws.halfway(BARE, laws.plain, count)
    xs = BARE.corrupt(draw.x0, rule(BARE, xt, unplaced(draw), t, s, Key.of(1, count)), s)
    assert fit(laws.tally(xs.ids), laws.law(BARE, laws.plain, 0.45)) > 1e-6
    assert torch.equal(xs.ids[:, 1::2] == SPECIALS.gap, xs.valid[:, 1::2])


def test_an_inconsistent_alignment_is_noticed(leftmost) -> None:
    test = test_bare_deletion_is_consistent
    with pytest.raises(AssertionError):
        test(posterior)


SPANNED = Deletion(SPECIALS, empty=0, spans=(3,))


def forth(process: Deletion, text) -> float:
    """The chance of x_s through x_t, where places have to be found, and x_s directly as far apart as they are."""
    count, t, s = 25_000, time(25_000, 0.8), time(25_000, 0.45)
    xt, draw = laws.halfway(process, text, count)
    xs = process.corrupt(draw.x0, posterior(process, xt, unplaced(draw), t, s, Key.of(1, count)), s)
    direct = process.corrupt(draw.x0, process.noise(draw.x0, Key.of(2, count)), s)
    return laws.same(laws.tally(xs.ids), laws.tally(direct.ids))


def test_spans_whose_places_are_not_known_take_the_baseline(monkeypatch) -> None:
    """Su's law: which embedding is likelier hangs on the spans. The control takes all for alike. N = 25,000, 1e-6."""
    assert forth(SPANNED, laws.plain) > 1e-6
    monkeypatch.setattr(type(SPANNED.uniform), "independent", property(lambda self: True))
    assert forth(SPANNED, laws.plain) < 1e-6


def sealed() -> Tokens:
    """a a b a, and nothing may be missing before the first: a marker there says that it went."""
    x0 = laws.plain()
    return x0.with_(sealed=(torch.arange(x0.ids.shape[1]) == 0)[None])


def test_what_a_sealed_place_says_is_not_forgotten(monkeypatch) -> None:
    """Su's law: before a word that may go a sealed place has a marker just if it went, which no alignment sees."""
    assert forth(BARE, sealed) > 1e-6
    monkeypatch.setattr(deletion, "closed", lambda x0, loose: torch.ones(len(x0), dtype=torch.bool))
    assert forth(BARE, sealed) < 1e-6


@pytest.mark.parametrize(
    ("sealed", "loose", "docs", "expected"),
    [
        ([1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], False),
        ([0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], True),  # the next one stays
        ([0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1], True),  # the next one is of another text
        ([0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0], True),  # nothing comes after it
        ([0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0], False),
    ],
)
def test_closed(sealed: list[int], loose: list[int], docs: list[int], expected: bool) -> None:
    x0 = Tokens.from_rows([[1, A, A, A]], SPECIALS.pad)
    x0 = x0.with_(sealed=torch.tensor([sealed]).bool(), doc=torch.tensor([docs]))
    assert closed(x0, torch.tensor([loose]).bool()).tolist() == [expected]


def test_time_0_has_no_markers() -> None:
    x0 = laws.plain()
    noise = BARE.noise(x0, Key.of(0, 1))
    assert torch.equal(BARE.corrupt(x0, noise, time(1, 0.0)).ids, x0.ids)
    assert BARE.corrupt(x0, noise, time(1, 1.0)).ids.tolist() == [[1, SPECIALS.gap]]


def test_a_guess_that_does_not_contain_the_state_takes_the_baseline() -> None:
    """Fresh noise, row by row: the noise of the two rows is not that of one interval."""
    count, t = 4000, time(4000, 0.5)
    xt = Tokens.from_rows([[1, 3, A, 3], [1, 3, B, 3]] * (count // 2), 0)
    x0 = Tokens.from_rows([[1, A, A]] * count, 0)
    u = BARE.infer(xt, unplaced(Draw(x0, x0.ids, x0.score)), t, Key.of(7, count)).u[:, 1:]
    contained = u[::2] < 0.5
    assert bool((contained.sum(1) == 1).all())
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], count // 2, 0.25)  # false alarm 1e-6
    assert low < int((u[1::2] < 0.5).all(1).sum()) < high


class Blind(Denoiser):
    """An oracle that keeps the places to itself."""

    def __init__(self, oracle: Denoiser) -> None:
        super().__init__()
        self.oracle = oracle

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Blind(self.oracle(xt, t))


class _Blind(Posterior):
    def __init__(self, oracle: Posterior) -> None:
        self.oracle = oracle

    def sample(self, decode: Decode, key: Key) -> Draw:
        return unplaced(self.oracle.sample(decode, key))

    def log_prob(self, truth: Draw) -> torch.Tensor:
        return self.oracle.log_prob(truth)


class Partisan(Deletion):
    """A control: of what is hidden, one word comes back before the other."""

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> DeletionNoise:
        noise, beta = super().infer(xt, draw, t, key), self.schedule.beta(t)[:, None]
        return noise._replace(u=torch.where((noise.u < beta) & (draw.x0.ids == B), 0.0, noise.u))


# 81 texts of four letters, the later ones up to three times as likely; and texts of any length.
SPACE = [
    [A + v for v in row]
    for number, row in enumerate(itertools.product(range(3), repeat=4))
    for _ in range(1 + number % 3)
]
# Texts of repeated letters: a state is part of them in many ways, so it shows which of these is taken.
REPEATS = [[A, A, A, B], [A, B, A, A], [A, A, A, A], [B, A, A, A]]
DATA = {"space": SPACE, "lengths": laws.ANY_LENGTH, "repeats": REPEATS}
FORMS = {
    "bare": (BARE, False),
    "bare-aligned": (BARE, True),
    "marked": (Deletion(SPECIALS), False),
    "staged": (Deletion(SPECIALS, staged=True), False),
    "staged-aligned": (Deletion(SPECIALS, staged=True), True),
}


@cache
def oracle(form: str, words: str) -> Denoiser:
    process, blind = FORMS[form]
    made = Oracle(process, laws.data(DATA[words]))
    return Blind(made) if blind else made


def drawn(denoiser: Denoiser, process: Deletion, words: str, rule, steps: int) -> dict[int, int]:
    """50,000 samples."""
    key = Key.of(8, 50_000)
    x = process.prior(many(laws.data(DATA[words])[-1:], len(key)), key)
    *_, last = sample(denoiser, process, x, steps=steps, key=key, rule=rule)
    return state_counts(last.x.ids)


def state_counts(ids: torch.Tensor) -> dict[int, int]:
    return dict(zip(*(part.tolist() for part in state_codes(ids).unique(return_counts=True)), strict=True))


def law_of(words: str) -> dict[int, float]:
    return {state: n / len(DATA[words]) for state, n in state_counts(laws.data(DATA[words]).ids).items()}


def needed(form: str, words: str, rule: str, steps: int) -> bool:
    """Each law once: a single step asks no rule, fresh noise asks for no place, and repeats are for who has to find it."""
    if steps == 1:
        return words == "space" and rule == "fresh"
    if form.endswith("aligned"):
        return rule != "fresh" and (words == "repeats" or steps == 2)
    return words == "space" or (words == "lengths" and steps == 2)


QUICK = ("bare-aligned", "lengths", "partial", 2)
EVERY = [
    pytest.param(form, words, rule, steps, id=f"{form}-{words}-{name}-{steps}", marks=[pytest.mark.slow] * heavy)
    for form in FORMS
    for words in DATA
    for name, rule in (("fresh", fresh), ("posterior", posterior), ("partial", partial(0.3)))
    for steps in (1, 2, 8)
    if needed(form, words, name, steps)
    for heavy in [(form, words, name, steps) != QUICK]
]


@pytest.mark.parametrize(("form", "words", "rule", "steps"), EVERY)
def test_a_perfect_denoiser_samples_the_data(form: str, words: str, rule, steps: int) -> None:
    """Identity 3: whatever the form of deletion, the rule and the steps. Chi-square, N = 50,000, false alarm 1e-6."""
    assert fit(drawn(oracle(form, words), FORMS[form][0], words, rule, steps), law_of(words)) > 1e-6


@pytest.mark.slow
def test_a_leftmost_sampler_is_noticed(leftmost) -> None:
    """By the repeats; the other texts hardly tell (p > 1e-6 there)."""
    assert fit(drawn(oracle("bare-aligned", "repeats"), BARE, "repeats", posterior, 8), law_of("repeats")) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bare", "marked", "staged"])
def test_a_partisan_sampler_is_noticed(form: str) -> None:
    process = FORMS[form][0]
    control = Partisan(SPECIALS, empty=process.empty, staged=process.staged)
    assert fit(drawn(oracle(form, "space"), control, "space", posterior, 2), law_of("space")) < 1e-6
