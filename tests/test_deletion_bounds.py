"""The likelihood bounds of deletion, each by enumeration: lengths and then masks, and rates of insertion in continuous time.

    staged:  -log q(n | page) + sum_M B(K, n - K + 1) sum_masked -log q_i        (masking at a known length)
    bare:    int beta'/beta E[sum_j lambda_j - k - sum_missing log(lambda_j p_j)] dt
    delete and mask:  the same with placeholders, + the masks' own surprise

With the exact conditionals of a law each is the entropy of that law, on average over it; with any others it is more.
Integrals over t are Gauss-Legendre in t ** (1/4), where the integrands are smooth: 60 nodes, good to 1e-9.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import pytest
import test_laws as laws
import torch
from scipy import special
from test_laws import many, time

from textdiff.denoiser import Autoregressive, Denoiser, Oracle, Parallel
from textdiff.denoiser.lengths import LengthFirst
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Deletion
from textdiff.process.deletion import DeletionNoise, insertion_bound, insertion_price
from textdiff.schedule import Cosine, Power
from textdiff.tokens import Tokens
from textdiff.udm import UDM

X, Y = laws.X, laws.Y
NAMED = replace(laws.NAMED, lengths=(6, 7, 8, 9), banned=())
STAGED, BARE = Deletion(NAMED, staged=True), Deletion(NAMED, empty=0)
Text = tuple[int, ...]

# All 15 texts of up to three letters, none as likely as another.
TEXTS: list[Text] = [row for n in range(4) for row in itertools.product((X, Y), repeat=n)]
LAW = dict(zip(TEXTS, (4 * Key.of(3, 1).uniform(len(TEXTS))[0]).softmax(0).tolist(), strict=True))
ENTROPY = -sum(p * math.log(p) for p in LAW.values())


class Conditionals(Denoiser):
    """q(n | page) and q_i(v | what is seen, n) of the law; to a power below 1, they are consistent with nothing."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power, self.known = power, {}

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Conditionals(xt, self)

    def say(self, page: Text, column: int) -> dict[int, float]:
        """log of what is said at a column of a page of known length, or at the one gap of a blank one."""
        if (page, column) not in self.known:
            weights: dict[int, float] = defaultdict(float)
            for text, p in LAW.items():
                if page == (NAMED.gap,):
                    weights[NAMED.lengths[len(text)]] += p
                elif len(text) == len(page) and all(a in (b, NAMED.mask) for a, b in zip(page, text, strict=True)):
                    weights[text[column]] += p
            total = sum(w**self.power for w in weights.values())
            self.known[page, column] = {v: math.log(w**self.power / total) for v, w in weights.items()}
        return self.known[page, column]

    def bound(self, text: Text) -> float:
        """By hand: the length, and the average order."""
        total, n = -self.say((NAMED.gap,), 0)[NAMED.lengths[len(text)]], len(text)
        for order in itertools.permutations(range(n)):
            page = [NAMED.mask] * n
            for i in order:
                total -= self.say(tuple(page), i)[text[i]] / math.factorial(n)
                page[i] = text[i]
        return total


class _Conditionals(LengthFirst):
    factorised = True

    def __init__(self, xt: Tokens, owner: Conditionals) -> None:
        super().__init__(xt, NAMED)
        self.owner = owner

    def ask(self, x: Tokens, where: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError  # likelihoods draw nothing

    def write(
        self, x: Tokens, mask: torch.Tensor, decode: Decode, u: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def answer(self, states: Tokens, where: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        result = torch.zeros(where.shape, dtype=torch.float64)
        pages = [
            tuple(ids[1:size]) for ids, size in zip(states.ids.tolist(), states.valid.sum(1).tolist(), strict=True)
        ]
        for row, column in where.nonzero().tolist():
            result[row, column] = self.owner.say(pages[row], column - 1)[int(truth[row, column])]
        return result


def tokens(texts: list[Text]) -> Tokens:
    return Tokens.from_rows([[1, *text] for text in texts], NAMED.pad)


def looks(process: Deletion, text: Text) -> Iterator[tuple[DeletionNoise, float, float]]:
    """Every look that `probe` may take at a text, with t, and its chance times its weight."""
    n, ones = len(text), torch.ones(1, len(text) + 1, dtype=torch.float64)
    for hidden in itertools.product((False, True), repeat=n):
        if k := sum(hidden):
            u = ones.clone()
            u[0, 1:] = torch.where(torch.tensor(hidden), 0.1, 0.9).double()
            yield DeletionNoise(u, ones), 0.5, float(special.beta(k, n - k + 1))
    yield process.noise(tokens([text]), Key.of(0, 1)), 1.0, 1.0


def enumerated(denoiser: Denoiser, process: Deletion, text: Text) -> float:
    """The staged bound, of all looks."""
    x0, total = tokens([text]), 0.0
    for noise, t, weight in looks(process, text):
        xt, truth = process.corrupt(x0, noise, time(1, t)), process.align(x0, noise, time(1, t))
        total += weight * float(process.price(denoiser(xt, time(1, t)), truth, xt, time(1, t)))
    return total


def agrees(draws: torch.Tensor, exact: float) -> bool:
    """Within 4.9 standard errors: false alarm 1e-6."""
    return abs(float(draws.mean()) - exact) < 4.9 * float(draws.std()) / len(draws) ** 0.5


@pytest.mark.parametrize("power", [1.0, 0.4])
def test_lengths_and_then_masks(power: float) -> None:
    """All looks together are the length and the average order, to 1e-9, for any conditionals; and bound the entropy."""
    model, mean = Conditionals(power), 0.0
    for text, p in LAW.items():
        value = enumerated(model, STAGED, text)
        assert value == pytest.approx(model.bound(text), abs=1e-9)
        mean += p * value
        if power == 1:
            assert value == pytest.approx(-math.log(p), abs=1e-9)
    assert mean == pytest.approx(ENTROPY, abs=1e-9) if power == 1 else mean > ENTROPY + 0.05


def test_counted_words_cost_no_length_and_cost_once() -> None:
    """Masks whose places are known: all looks together are the average order, the one at t = 1 is of no length; to 1e-9."""
    model = Conditionals(0.4)
    for text in [(X, Y, Y), (Y, X)]:
        x0, total = tokens([text]), 0.0
        x0 = x0.with_(counted=~x0.fixed, sealed=torch.ones_like(x0.fixed))
        for noise, t, weight in looks(STAGED, text):
            xt, truth = STAGED.corrupt(x0, noise, time(1, t)), STAGED.align(x0, noise, time(1, t))
            total += weight * float(STAGED.price(model(xt, time(1, t)), truth, xt, time(1, t)))
        length = -model.say((NAMED.gap,), 0)[NAMED.lengths[len(text)]]
        assert total == pytest.approx(model.bound(text) - length, abs=1e-9) and length > 0.1


def test_the_looks_as_drawn() -> None:
    """`UDM.bound` is unbiased: N = 4,000 looks at each of three texts, false alarm 1e-6 each; for the empty one exact."""
    model = Conditionals(0.4)
    for text in [(X, Y, Y), (Y, X, X), (X, Y)]:
        draws = UDM(STAGED, model).bound(many(tokens([text]), 4000), Key.of(4, 4000))
        assert agrees(draws, model.bound(text))
        assert not agrees(draws * 0.9, model.bound(text))
    assert float(UDM(STAGED, model).bound(tokens([()]), Key.of(4, 1))) == pytest.approx(model.bound(()))


def test_a_chain_rule_is_priced_in_one_step() -> None:
    """What is no product over words is exact at t = 1, and no bound word by word."""
    rows = [[X, Y], [], [Y], [X, X]]
    model = Autoregressive(laws.llama(), laws.NAMED).eval()
    plain, staged = Deletion(laws.NAMED), Deletion(laws.NAMED, staged=True)
    x0, key = laws.words_of(rows), Key.of(0, len(rows))
    torch.testing.assert_close(UDM(staged, model).bound(x0, key), UDM(plain, model).bound(x0, key))
    parallel = Parallel(laws.bert(), laws.NAMED)
    assert float((UDM(staged, parallel).bound(x0, key) - UDM(plain, parallel).bound(x0, key)).abs().max()) > 0.01

    pair = tokens([(X, X), (Y, Y)])
    oracle = Oracle(STAGED, pair)
    assert UDM(STAGED, oracle).bound(pair, Key.of(1, 2)).tolist() == pytest.approx([math.log(2)] * 2)
    pretending = Pretending(oracle)
    draws = UDM(STAGED, pretending).bound(many(pair, 500), Key.of(1, 1000))
    assert float(draws.mean()) < 0.8 * math.log(2)  # the control: a chain rule that says it is a product


class Pretending(Denoiser):
    """A joint law that passes for a product: what it says of both words is booked on the second."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.oracle = oracle

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Pretending(self.oracle(xt, t))


class _Pretending(Posterior):
    factorised = True

    def __init__(self, exact: Posterior) -> None:
        self.exact = exact

    def sample(self, decode: Decode, key: Key) -> Draw:
        return self.exact.sample(decode, key)

    def log_prob(self, truth: Draw) -> torch.Tensor:
        return self.exact.log_prob(truth).flip(1)


def test_where_there_is_no_bound() -> None:
    x0 = tokens([(X, Y)])
    counted = x0.with_(counted=torch.tensor([[False, True, False]]))
    with pytest.raises(ValueError, match="seal that place"):
        UDM(STAGED, Conditionals()).bound(counted, Key.of(0, 1))
    for process in (STAGED, Deletion(NAMED), Deletion(NAMED, empty=0, spans=(1, 3))):
        with pytest.raises(ValueError, match="empty=0"):
            insertion_bound(process, lambda xt, t: Heads({(X,): 1.0}, xt, t), x0, Key.of(0, 1))


class Counts:
    """Optimal heads of a law, for states in which each word is seen, masked or gone.

    The weight of a way from x_0 to a state y is p(x_0) beta ** gone but for what all ways to y share, so that every
    expectation given y is a ratio of polynomials in beta: `total`, `gaps` and `words` hold coefficients by power.
    """

    def __init__(self, law: dict[Text, float]) -> None:
        self.total: dict[Text, list[float]] = defaultdict(lambda: [0.0] * 5)
        self.gaps: dict[tuple[Text, int, int], list[float]] = defaultdict(lambda: [0.0] * 5)
        self.words: dict[tuple[Text, int, int], list[float]] = defaultdict(lambda: [0.0] * 5)
        for text, p in law.items():
            for look in itertools.product(range(3), repeat=len(text)):
                self.add(text, p, look)

    def add(self, text: Text, p: float, look: tuple[int, ...]) -> None:
        y, gone = state(text, look)
        power = sum(len(words) for words in gone)
        self.total[y][power] += p
        for gap, words in enumerate(gone):
            for v in words:
                self.gaps[y, gap, v][power] += p
        for column, v in enumerate(v for v, kind in zip(text, look, strict=True) if kind < 2):
            self.words[y, column, v][power] += p

    def ratio(self, counts: list[float], y: Text, beta: float) -> float:
        powers = [beta**k for k in range(5)]
        return sum(map(lambda a, b: a * b, counts, powers)) / sum(map(lambda a, b: a * b, self.total[y], powers))

    def rate(self, y: Text, gap: int, v: int, beta: float) -> float:
        return self.ratio(self.gaps[y, gap, v], y, beta) if (y, gap, v) in self.gaps else 0.0

    def word(self, y: Text, column: int, v: int, beta: float) -> float:
        return self.ratio(self.words[y, column, v], y, beta)


def state(text: Text, look: tuple[int, ...]) -> tuple[Text, list[list[int]]]:
    """What is seen of a text (0: its word, 1: a mask, 2: nothing), and the words missing in each gap."""
    y: list[int] = []
    gone: list[list[int]] = [[]]
    for v, kind in zip(text, look, strict=True):
        if kind == 2:
            gone[-1].append(v)
        else:
            y.append(NAMED.mask if kind else v)
            gone.append([])
    return tuple(y), gone


class Heads:
    """The optimal rates at states of bare deletion, off by a factor where a control wants them so."""

    def __init__(self, law: "dict[Text, float] | Counts", xt: Tokens, t: torch.Tensor, factor: float = 1.0) -> None:
        self.counts = law if isinstance(law, Counts) else Counts(law)
        self.xt, self.beta, self.factor = xt, t.tolist(), factor

    def rates(self, truth: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        expected, log_rate = torch.zeros(len(self.beta)), torch.zeros(truth.place.shape)
        expected, log_rate = expected.double(), log_rate.double()
        seen = self.xt.ids.gather(1, truth.place)
        for row, (ids, beta) in enumerate(zip(self.xt.ids.tolist(), self.beta, strict=True)):
            y = tuple(v for v in ids if v in (X, Y))
            pairs = itertools.product(range(len(y) + 1), (X, Y))
            expected[row] = sum(self.counts.rate(y, gap, v, beta) for gap, v in pairs) * self.factor
            for column in ((seen[row] == NAMED.gap) & truth.x0.valid[row]).nonzero()[:, 0].tolist():
                gap = sum(v in (X, Y) for v in ids[: int(truth.place[row, column])])
                v = int(truth.x0.ids[row, column])
                log_rate[row, column] = math.log(self.counts.rate(y, gap, v, beta) * self.factor)
        return expected, log_rate


def nodes() -> Iterator[tuple[float, float]]:
    """t and its weight."""
    x, w = special.roots_legendre(60)
    for u, part in zip((x + 1) / 2, w / 2, strict=True):
        yield float(u**4), float(4 * u**3 * part)


# H of these; `aab` and `ab` say that two may be missing in one gap, and that one state has several alignments.
STRINGS: dict[Text, float] = {(): 0.1, (X,): 0.2, (X, Y): 0.25, (Y, X): 0.15, (X, X, Y): 0.3}
H = -sum(p * math.log(p) for p in STRINGS.values())


def continuous(process: Deletion, law: dict[Text, float], factor: float = 1.0, bregman: bool = False) -> float:
    """The mean over a law of the bound of bare deletion, by `Process.cells` and quadrature; with k log k or without."""
    counts, mean = Counts(law), 0.0
    for text, p in law.items():
        x0 = tokens([text])
        for t, part in nodes():
            noise, chances = process.cells(x0, time(1, t))
            keep = chances > 0
            noise, chances, rows = DeletionNoise(*(n[keep] for n in noise)), chances[keep], int(keep.sum())
            x, times = many(x0, rows), time(rows, t)
            xt, truth = process.corrupt(x, noise, times), process.align(x, noise, times)
            gone = (xt.ids.gather(1, truth.place) == NAMED.gap) & x.valid
            heads = Heads(counts, xt, process.schedule.beta(times), factor)
            price = insertion_price(heads, truth, gone.sum(1))
            if bregman:
                k = torch.zeros(xt.ids.shape).double().scatter_add(1, truth.place, gone.double())
                price = price + torch.special.xlogy(k, k).sum(1)
            mean += p * part * float(process.schedule.weight(times[:1])) * float((chances * price).sum())
    return mean


def test_rates_of_insertion_bound_tightly() -> None:
    """Identity 11: with optimal heads the bound is the entropy, to 1e-6; more with others, and with k log k."""
    assert continuous(BARE, STRINGS) == pytest.approx(H, abs=1e-6)
    assert continuous(BARE, STRINGS, factor=1.3) > H + 0.01
    assert continuous(BARE, STRINGS, bregman=True) > H + 0.1
    assert continuous(BARE, {(X, Y): 1.0}) == pytest.approx(0, abs=1e-6)
    assert continuous(BARE, {(X, X, X): 0.5, (X,): 0.5}) == pytest.approx(math.log(2), abs=1e-6)  # one letter


@pytest.mark.parametrize("schedule", [Cosine(), Power(0.5)], ids=["Cosine", "Power"])
def test_the_schedule_does_not_matter(schedule) -> None:
    assert continuous(Deletion(NAMED, schedule, empty=0), STRINGS) == pytest.approx(H, abs=1e-6)


def test_the_continuous_bound_as_drawn() -> None:
    """`insertion_bound` is unbiased: N = 8,000 texts of the law, false alarm 1e-6."""
    texts = [text for text, p in STRINGS.items() for _ in range(round(20 * p))]
    x0, counts = tokens(texts * 400), Counts(STRINGS)
    draws = insertion_bound(BARE, lambda xt, t: Heads(counts, xt, t), x0, Key.of(5, len(x0)))
    assert agrees(draws, H)
    assert not agrees(draws * 0.8, H)


def masks_too(law: dict[Text, float], bregman: bool = False) -> float:
    """The mean bound of deleting and masking, both at the rate 1 / beta: gone beta, masked -beta log beta, else seen."""
    counts, mean = Counts(law), 0.0
    for text, p in law.items():
        for beta, part in nodes():
            shares = (1 - beta + beta * math.log(beta), -beta * math.log(beta), beta)
            for look in itertools.product(range(3), repeat=len(text)):
                mean += (
                    p * part / beta * math.prod(shares[kind] for kind in look) * cost(counts, text, look, beta, bregman)
                )
    return mean


def cost(counts: Counts, text: Text, look: tuple[int, ...], beta: float, bregman: bool) -> float:
    y, gone = state(text, look)
    rates = [sum(counts.rate(y, gap, v, beta) for v in (X, Y)) for gap in range(len(gone))]
    log_rate = sum(len(words) * math.log(rate) for words, rate in zip(gone, rates, strict=True) if words)
    placeholders = Fixed(sum(rates), log_rate)
    missing = torch.tensor([sum(map(len, gone))])
    seen = [v for v, kind in zip(text, look, strict=True) if kind < 2]
    words = sum(math.log(counts.word(y, i, v, beta)) for i, v in enumerate(seen) if y[i] == NAMED.mask)
    extra = sum(len(words) * math.log(len(words)) for words in gone if words) if bregman else 0.0
    return float(insertion_price(placeholders, Draw(None, missing, missing), missing)) - words + extra


class Fixed:
    """Rates as given: of placeholders, whose words come later."""

    def __init__(self, expected: float, log_rate: float) -> None:
        self.expected, self.log_rate = expected, log_rate

    def rates(self, truth: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([self.expected]).double(), torch.tensor([[self.log_rate]]).double()


def test_deleting_and_masking() -> None:
    """Identity 12: rate x [masked surprise + sum_gaps (lambda - k - k log lambda)] is the entropy, to 1e-6."""
    assert masks_too(STRINGS) == pytest.approx(H, abs=1e-6)
    assert masks_too({(X, Y): 1.0}) == pytest.approx(0, abs=1e-6)
    assert masks_too(STRINGS, bregman=True) > H + 0.1
