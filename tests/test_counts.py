"""Su's "t of l tokens" (kexue.fm archives 9271), schedules of a text's own, the bound of spans, and Su's second step.

Chi-square tests are asserted at p > 1e-6, their rate of false alarm, and each is asserted to reject a planted fault.
"""

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy import stats
from test_laws import SPECIALS, code, fit, many, tally, time

from textdiff.denoiser import Changes, Denoiser
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Deletion, Masking, Replacement
from textdiff.process.uniform import Uniform
from textdiff.rules import fresh, partial, posterior
from textdiff.schedule import Power
from textdiff.tokens import Tokens
from textdiff.udm import UDM

WORD = 4
COUNT = 50_000
N = 5  # free tokens of the text
T, S = 0.8, 0.4  # 4 of 5, then 2 of 5
RULES = [pytest.param(rule, id=name) for name, rule in (("fresh", fresh), ("0", posterior), (".3", partial(0.3)))]


def text() -> Tokens:
    """Five words, one that is the user's between them, and padding."""
    x0 = Tokens.from_rows([[1] + [WORD] * 6, [1] * 9], SPECIALS.pad)[:1]
    fixed = x0.fixed.clone()
    fixed[:, 3] = True
    return x0.with_(fixed=fixed)


def masks(x: Tokens) -> torch.Tensor:
    return x.ids == SPECIALS.mask


def test_exactly_as_many_as_said() -> None:
    """round(beta n) tokens, whatever the text; the user's and the padding are not counted. Alone as in a batch."""
    process = Masking(SPECIALS, counts=True)
    x0, key = many(text(), 500), Key.of(0, 500)
    for t in (0.0, 0.05, 0.15, 0.35, 0.55, 0.75, 0.95, 1.0):
        xt = process.corrupt(x0, process.noise(x0, key), time(500, t))
        assert bool((masks(xt).sum(1) == math.ceil(t * N - 0.5)).all())
        assert process.uniform.count(x0, time(500, t)[:, None]).unique().tolist() == [math.ceil(t * N - 0.5)]
        assert not bool((masks(xt) & (xt.fixed | ~xt.valid)).any())
        cells, chance = process.cells(text(), time(1, t))  # and the same number by enumeration
        listed = process.corrupt(many(text(), len(cells)), cells, time(len(cells), t))
        assert (
            masks(listed).sum(1).unique().tolist() == [math.ceil(t * N - 0.5)] and abs(float(chance.sum()) - 1) < 1e-12
        )
        narrow = x0.take(torch.arange(7).expand(500, -1), SPECIALS.pad)
        assert torch.equal(masks(process.corrupt(narrow, process.noise(narrow, key), time(500, t))), masks(xt)[:, :7])
    for half in (0.1, 0.3, 0.5, 0.7, 0.9):  # one more or less, as beta is rounded, but the same wherever it is counted
        counts = process.uniform.count(x0, process.schedule.beta(time(500, half))[:, None])
        assert torch.equal(masks(process.corrupt(x0, process.noise(x0, key), time(500, half))).sum(1), counts)
    loose = Masking(SPECIALS)
    xt = loose.corrupt(x0, loose.noise(x0, key), time(500, 0.5))
    assert len(masks(xt).sum(1).unique()) > 1  # the control: independent tokens


def subsets(outer: int, inner: int) -> dict[tuple[int, int], float]:
    """The law of (what is hidden at t, what of it at s), as bit sets: uniform over sets, then over their subsets."""
    law = {}
    for big in itertools.combinations(range(N), outer):
        for small in itertools.combinations(big, inner):
            law[sum(1 << i for i in big), sum(1 << i for i in small)] = (
                1 / math.comb(N, outer) / math.comb(outer, inner)
            )
    return law


def test_ranks_that_are_known_in_part_are_dealt_anew() -> None:
    """Each rank once, with those of hidden words the lowest, whatever of them is known."""
    x0, key = many(text(), 300), Key.of(7, 300)
    free = x0.valid & ~x0.fixed
    known = Uniform(counts=True).draw(x0, key)
    hidden = (known < 0.4) & free
    low, high = torch.where(hidden, 0.0, 0.4).double(), torch.where(hidden, 0.4, 1.0).double()
    partly = known.masked_fill(key.fold(1).uniform(known.shape[1]) < 0.5, -1.0)
    for eps in (known, partly):
        u = Uniform(counts=True).infer(x0, low, high, key.fold(2), eps)
        assert (u[free].view(300, N).sort(1).values - (torch.arange(N).double() + 0.5) / N).abs().max() < 1e-12
        assert torch.equal((u < 0.4) & free, hidden)
    assert torch.equal(Uniform(counts=True).infer(x0, low, high, key.fold(2), known)[free], known[free])


def bits(x: Tokens) -> list[int]:
    free = torch.tensor([1, 2, 4, 5, 6])
    return (masks(x)[:, free].long() << torch.arange(N)).sum(1).tolist()


def test_a_step_hides_a_uniform_subset() -> None:
    """Identity 15: of what x_t hides x_s hides a uniform subset, so that the overlap with any set is hypergeometric.

    N = 50,000, chi-square over 5 * 6 = 30 pairs of sets and over the overlap; false alarm 1e-6 each.
    """
    process, x0, key = Masking(SPECIALS, counts=True), many(text(), COUNT), Key.of(1, COUNT)
    t, s = time(COUNT, T), time(COUNT, S)
    noise = process.noise(x0, key.fold(0))
    xt = process.corrupt(x0, noise, t)
    xt = xt.with_(eps=torch.full_like(xt.eps, -1.0))  # so that the noise has to be inferred
    xs = process.corrupt(x0, process.infer(xt, process.align(x0, noise, t), t, key.fold(1)), s)
    pairs = Counter(zip(bits(xt), bits(xs), strict=True))
    assert fit(pairs, subsets(4, 2)) > 1e-6
    overlap = Counter((masks(xs)[:, [1, 2, 4]]).sum(1)[~masks(xt)[:, 6]].tolist())  # three of the four that are hidden
    assert fit(overlap, {k: float(stats.hypergeom.pmf(k, 4, 3, 2)) for k in range(4)} | {0: 0.0}) > 1e-6
    # the control: independent tokens hide anything
    loose = Masking(SPECIALS)
    free = loose.corrupt(x0, loose.infer(xt, process.align(x0, noise, t), t, key.fold(1)), s)
    assert fit(Counter(zip(bits(xt), bits(free), strict=True)), subsets(4, 2)) < 1e-6


def test_independent_tokens_given_their_number() -> None:
    """Identity 15: among the draws of independent tokens that hide 4 at t and 2 at s the law is the counted one.

    About 30,000 of N = 200,000; false alarm 1e-6.
    """
    count = 200_000
    process, x0, key = Masking(SPECIALS), many(text(), count), Key.of(2, count)
    t, s = time(count, T), time(count, S)
    noise = process.noise(x0, key.fold(0))
    xt = process.corrupt(x0, noise, t)
    xt = xt.with_(eps=torch.full_like(xt.eps, -1.0))  # so that the noise has to be inferred
    xs = process.corrupt(x0, process.infer(xt, process.align(x0, noise, t), t, key.fold(1)), s)
    pairs = Counter(zip(bits(xt), bits(xs), strict=True))
    given = {pair: number for pair, number in pairs.items() if pair[0].bit_count() == 4 and pair[1].bit_count() == 2}
    assert sum(given.values()) > 25_000 and fit(given, subsets(4, 2)) > 1e-6
    uneven = {pair: chance * (1.1 if pair[1] & 1 else 1 - 0.1 * 2 / 3) for pair, chance in subsets(4, 2).items()}
    total = sum(uneven.values())
    assert fit(given, {pair: chance / total for pair, chance in uneven.items()}) < 1e-6


def law(process: Masking | Deletion, x0: Tokens, t: float) -> dict[int, float]:
    noise, chances = process.cells(x0, time(1, t))
    states = code(process.corrupt(many(x0, len(chances)), noise, time(len(chances), t)).ids).tolist()
    result: Counter = Counter()
    for state, chance in zip(states, chances.tolist(), strict=True):
        result[state] += chance
    return result


class Restless(Masking):
    """The control for `infer`: the ranks are dealt out anew among all tokens but the last."""

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> torch.Tensor:
        return self.uniform.infer(draw.x0, (torch.arange(xt.ids.shape[1]) == 6).double()[None], time(1, 1.0), key)


def stepped(process: Masking, rule, x0: Tokens, key: Key) -> dict[int, int]:
    t, s = time(len(x0), T), time(len(x0), S)
    noise = process.noise(x0, key.fold(0))
    xt, draw = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    return tally(process.corrupt(draw.x0, rule(process, xt, draw, t, s, key.fold(1)), s).ids)


@pytest.mark.parametrize("rule", RULES)
def test_consistency_of_counts(rule) -> None:
    """Identity 2, Su's law, for ranks: through x_t to q(x_s | x_0), by enumeration. N = 50,000, false alarm 1e-6."""
    process, x0, key = Masking(SPECIALS, counts=True), many(text(), COUNT), Key.of(3, COUNT)
    assert sum(law(process, text(), S).values()) == pytest.approx(1, abs=1e-12)
    assert fit(stepped(process, rule, x0, key), law(process, text(), S)) > 1e-6
    if rule is posterior:
        assert fit(stepped(Restless(SPECIALS, counts=True), rule, x0, key), law(process, text(), S)) < 1e-6


def test_counts_and_spans_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"spans \(1, 3\) cannot be counted"):
        Uniform((1, 3), counts=True)


@pytest.mark.parametrize("rule", RULES)
def test_every_text_has_its_own_schedule(rule) -> None:
    """A tensor of powers: every row keeps its pace, and Su's law holds in it. N = 40,000 each, false alarm 1e-6."""
    powers, count = (0.5, 1.0, 3.0), 40_000
    x0, key = many(text(), count * 3), Key.of(4, count * 3)
    process = Masking(SPECIALS, Power(torch.tensor(powers).repeat_interleave(count).double()))
    t, s = time(len(x0), T), time(len(x0), S)
    noise = process.noise(x0, key.fold(0))
    xt, draw = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    ids = process.corrupt(x0, rule(process, xt, draw, t, s, key.fold(1)), s).ids
    for number, power in enumerate(powers):
        alone = Masking(SPECIALS, Power(power))
        mine = slice(number * count, (number + 1) * count)
        assert fit(tally(xt.ids[mine]), law(alone, text(), T)) > 1e-6
        assert fit(tally(ids[mine]), law(alone, text(), S)) > 1e-6
        assert fit(tally(ids[mine]), law(Masking(SPECIALS, Power(powers[number - 1])), text(), S)) < 1e-6


class Surprise(Denoiser):
    """-log q_i by the set of masks alone: a table (masks, tokens)."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _Surprise(self.table, masks(xt)[:, 1:])


class _Surprise(Posterior):
    factorised = True

    def __init__(self, table: torch.Tensor, hidden: torch.Tensor) -> None:
        self.table, self.hidden = table, hidden

    def sample(self, decode: Decode, key: Key) -> Draw:
        raise NotImplementedError  # likelihoods draw nothing

    def log_prob(self, truth: Draw) -> torch.Tensor:
        number = (self.hidden.long() << torch.arange(self.hidden.shape[1])).sum(1)
        return torch.cat([torch.zeros(len(number), 1), -self.table[number] * self.hidden], 1)


def partitions(mean: float, size: int) -> list[tuple[list[int], float]]:
    """Every way to cut `size` tokens into spans, as the number of the span of each token, with its probability."""
    result = []
    for cuts in itertools.product((0, 1), repeat=size - 1):
        spans = [0, *itertools.accumulate(cuts)]
        result.append((spans, (1 / mean) ** sum(cuts) * (1 - 1 / mean) ** (size - 1 - sum(cuts))))
    return result


def span_bound(table: torch.Tensor, spans: tuple[float, ...], size: int) -> float:
    """int dbeta/beta E[sum_masked -log q]: of m spans with u each, h are hidden, int beta^(h-1) (1-beta)^(m-h) = B."""
    total = 0.0
    for mean in spans:
        for cut, chance in partitions(mean, size):
            number = cut[-1] + 1
            for hidden in itertools.product((False, True), repeat=number):
                if h := sum(hidden):
                    tokens = [i for i in range(size) if hidden[cut[i]]]
                    cost = sum(float(table[sum(1 << i for i in tokens), i]) for i in tokens)
                    beta = math.gamma(h) * math.gamma(number - h + 1) / math.gamma(number + 1)
                    total += chance / len(spans) * beta * cost
    return total


def agrees(draws: torch.Tensor, exact: float) -> bool:
    """Within 4.9 standard errors: false alarm 1e-6."""
    return abs(float(draws.mean()) - exact) < 4.9 * float(draws.std()) / len(draws) ** 0.5


@pytest.mark.parametrize(("spans", "size"), [((3,), 2), ((1, 4), 3)])
def test_the_bound_of_spans(spans, size) -> None:
    """`probe` against the integral by hand, for a network that is consistent with nothing. N = 50,000, 1e-6.

    Controls: the law of other spans, and the K-uniform draw, which is not theirs.
    """
    table = 4 * Key.of(5, 2**size).uniform(size)
    x0, key = many(Tokens.from_rows([[1] + [WORD] * size], SPECIALS.pad), COUNT), Key.of(6, COUNT)
    flat = torch.full_like(table, math.log(3))
    assert span_bound(flat, spans, size) == pytest.approx(size * math.log(3))  # identity 9 holds for spans, too
    looks = UDM(Masking(SPECIALS, spans=spans), Surprise(table)).bound(x0, key)
    assert agrees(looks, span_bound(table, spans, size))
    assert not agrees(looks, span_bound(table, (1,), size))
    assert not agrees(UDM(Masking(SPECIALS), Surprise(table)).bound(x0, key), span_bound(table, spans, size))
    assert agrees(UDM(Masking(SPECIALS), Surprise(table)).bound(x0, key), span_bound(table, (1,), size))
    counted = UDM(Masking(SPECIALS, counts=True), Surprise(table)).bound(x0, key)
    assert agrees(counted, span_bound(table, (1,), size))  # counted and independent tokens share their bound


V = 3
EDIT = Replacement(SPECIALS, torch.arange(WORD, WORD + V), different=True, counts=True)


class Rows(Denoiser):
    """Each place has a law of its own, whatever is seen: log q (L, words). Words from WORD on."""

    def __init__(self, log_q: torch.Tensor) -> None:
        super().__init__()
        self.log_q = torch.nn.Parameter(log_q)

    def forward(self, xt: Tokens, t: torch.Tensor) -> "_Rows":
        return _Rows(self.log_q, xt)


class _Rows(Posterior):
    factorised = True

    def __init__(self, log_q: torch.Tensor, xt: Tokens) -> None:
        self.log_q, self.xt = log_q, xt

    def marginals(self) -> tuple[torch.Tensor, torch.Tensor]:
        where = self.xt.doubtful
        mute = torch.full((self.log_q.shape[0], WORD), -torch.inf, dtype=torch.float64)
        log_q = torch.cat([mute, self.log_q.log_softmax(1)], 1)
        return where, log_q.expand(len(self.xt), -1, -1)[where[:, 1:]]

    def sample(self, decode: Decode, key: Key) -> Draw:
        raise NotImplementedError  # only the words of it are asked for

    def log_prob(self, truth: Draw) -> torch.Tensor:
        raise NotImplementedError  # only the words of it are asked for


SIZE = 4
LOGITS = 3 * Key.of(7, SIZE).uniform(V)


def seen(count: int) -> Tokens:
    xt = many(Tokens.from_rows([[1, 4, 5, 6, 4]], SPECIALS.pad), count)
    return xt.with_(doubtful=~xt.fixed & xt.valid)


def everything() -> Tokens:
    words = itertools.product(range(WORD, WORD + V), repeat=SIZE)
    return Tokens.from_rows([[1, *row] for row in words], SPECIALS.pad)


def conditioned(log_q: torch.Tensor, count: int | None) -> dict[int, float]:
    """The product law of texts that differ from `seen` in `count` places (in any number: None), by enumeration."""
    x0 = everything()
    chance = log_q.log_softmax(1).exp()[torch.arange(SIZE), x0.ids[:, 1:] - WORD].prod(1)
    differ = (x0.ids != seen(1).ids).sum(1)
    chance = chance * (differ == count) if count is not None else chance
    return dict(zip(code(x0.ids).tolist(), (chance / chance.sum()).tolist(), strict=True))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_changes(number: int) -> None:
    """Identity 13: as many changes as the process says, always, and the draw's law is the product on that condition.

    N = 20,000, chi-square over the texts with so many changes; false alarm 1e-6. The control leaves the condition out.
    """
    count, denoiser = 20_000, Changes(Rows(LOGITS), EDIT)
    xt, t = seen(count), time(count, number / SIZE)
    with torch.no_grad():
        draw = denoiser(xt, t).sample(Decode(), Key.of(8, count))
    assert bool(((draw.x0.ids != xt.ids).sum(1) == number).all())
    law = {state: chance for state, chance in conditioned(LOGITS, number).items() if chance > 0}
    assert fit(tally(draw.x0.ids), law) > 1e-6
    assert fit(tally(draw.x0.ids), conditioned(LOGITS, None)) < 1e-6
    if number in (1, 2, 3):  # a control that keeps the number but not the law
        even = {state: 1 / len(law) for state in law}
        assert fit(tally(draw.x0.ids), even) < 1e-6


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_changes_are_a_law(number: int) -> None:
    """exp log_prob is the conditioned product, so it sums to one; minus infinity elsewhere; gradients flow."""
    x0, denoiser = everything(), Changes(Rows(LOGITS), EDIT)
    look = denoiser(seen(len(x0)), time(len(x0), number / SIZE))
    score = look.log_prob(Draw(x0, torch.empty(0), torch.zeros(()))).sum(1)
    expected = torch.tensor(list(conditioned(LOGITS, number).values()), dtype=torch.float64)
    torch.testing.assert_close(score.exp(), expected, atol=1e-12, rtol=1e-9)
    assert float(score.detach().exp().sum()) == pytest.approx(1, abs=1e-9)
    some = torch.isfinite(score)
    assert bool((some == (expected > 0)).all())
    score[some].sum().backward()
    gradient = denoiser.denoiser.log_q.grad
    assert gradient is not None and bool(gradient.isfinite().all())
    logits = LOGITS.clone().requires_grad_()  # the same by enumeration
    chance = logits.log_softmax(1)[torch.arange(SIZE), x0.ids[:, 1:] - WORD].sum(1)
    (chance[some].sum() - some.sum() * chance[some].logsumexp(0)).backward()
    torch.testing.assert_close(gradient, logits.grad)


def test_changes_where_the_model_is_certain() -> None:
    """Fewer places in doubt than changes: all of them; more places ruled out than changes: all of these."""
    sure = torch.full((SIZE, V), -torch.inf, dtype=torch.float64)
    sure[[0, 1, 2], [0, 1, 2]] = 0.0  # as seen
    sure[3] = 0.0
    never = torch.zeros(SIZE, V, dtype=torch.float64)
    never[[0, 1, 2], [0, 1, 2]] = -torch.inf
    for table, number, expected in ((sure, 3, 1), (never, 1, 3), (never, 4, 4), (sure, 0, 0)):
        denoiser, xt = Changes(Rows(table), EDIT), seen(50)
        with torch.no_grad():
            look = denoiser(xt, time(50, number / SIZE))
            for decode in (Decode(), Decode(temperature=0)):
                draw = look.sample(decode, Key.of(0, 50))
                assert (draw.x0.ids != xt.ids).sum(1).unique().tolist() == [expected]
                assert bool(look.log_prob(draw).sum(1).isfinite().all())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_likeliest_changes(number: int) -> None:
    """Temperature 0 is the most probable text of the conditioned law."""
    law = conditioned(LOGITS, number)
    draw = Changes(Rows(LOGITS), EDIT)(seen(1), time(1, number / SIZE)).sample(Decode(temperature=0), Key.of(0, 1))
    assert int(code(draw.x0.ids)) == max(law, key=lambda state: law[state])


def test_a_step_keeps_count() -> None:
    """Identity 13: after the step from 3 of 4 to s, round(4 s) differences from x0_hat are left."""
    xt, t = seen(2000), time(2000, 3 / SIZE)
    with torch.no_grad():
        draw = Changes(Rows(LOGITS), EDIT)(xt, t).sample(Decode(), Key.of(9, 2000))
    noise = posterior(EDIT, xt, draw, t, t, Key.of(10, 2000))
    for left in (3, 2, 1, 0):
        xs = EDIT.corrupt(draw.x0, noise, time(2000, left / SIZE))
        assert (xs.ids != draw.x0.ids).sum(1).unique().tolist() == [left]
        assert bool(((xs.ids == xt.ids) | (xs.ids == draw.x0.ids)).all())
    loose = Replacement(SPECIALS, torch.arange(WORD, WORD + V), different=True)  # the control
    xs = loose.corrupt(draw.x0, posterior(loose, xt, draw, t, t, Key.of(10, 2000)), time(2000, 2 / SIZE))
    assert len((xs.ids != draw.x0.ids).sum(1).unique()) > 1


def test_changes_need_a_number() -> None:
    with pytest.raises(ValueError, match="different=True, counts=False leave the number of changes open"):
        Changes(Rows(LOGITS), Replacement(SPECIALS, torch.arange(4, 7), different=True))
