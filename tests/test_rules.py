"""Rules by name: which of them sample the data, which are biased, and how often any of them calls the model.

Two toys. `Oracle` guesses whole texts by their true joint law: whatever keeps Su's law then gives the data in any number of
steps. `Ideal` says the true law of every word, each alone, as the best network could that says all at once: then what
reveals one word a step gives the data, in any order that is chosen from x_t. N = 50,000 texts and a false alarm of 1e-6
each, unless said otherwise; controls fail the same test.
"""

import math
import random
from dataclasses import replace

import pytest
import torch
from scipy import stats
from test_laws import COUNT, FIXED_LENGTH, MASKING, SPECIALS, A, B, Spoiled, data, fit, law_of, many, samples, tally
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForMaskedLM

from textdiff import drawing
from textdiff.denoiser import Denoiser, Oracle, Parallel
from textdiff.denoiser.head import PIECE
from textdiff.denoiser.parallel import ParallelPosterior
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Look, Posterior
from textdiff.process import Deletion, Edit, Masking, Replacement
from textdiff.revealing import ranked
from textdiff.rulebook import ORDERS, RULES, rule_of
from textdiff.rules import posterior
from textdiff.sampler import finished, sample
from textdiff.tokens import Specials, Tokens, in_order

ALARM = 1e-6
ENDLESS = math.inf
WORDS = [[A, A, A]] * 3 + [[B, B, A]] * 2 + [[A, B, A]]
COUNTED = Masking(SPECIALS, counts=True)


class Ideal(Denoiser):
    """Of texts of one length the true law of every hidden word given the visible ones, each alone."""

    timeless = True

    def __init__(self, words: list[list[int]] = WORDS, timeless: bool = True) -> None:
        super().__init__()
        self.data, self.specials, self.timeless = data(words).ids, SPECIALS, timeless
        self.rows = self.calls = 0

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return ParallelPosterior(self, xt)

    def read(self, x: Tokens) -> "Ideal._Read":
        self.rows, self.calls = self.rows + len(x), self.calls + 1
        fits = ((x.ids[:, None] == self.data) | (x.ids[:, None] == SPECIALS.mask)).all(2).double()
        words = torch.nn.functional.one_hot(self.data, 6).double()
        return Ideal._Read(torch.einsum("bd,dlv->blv", fits, words).log())

    class _Read:
        def __init__(self, logits: torch.Tensor) -> None:
            self.table = logits

        def logits(self, where: torch.Tensor) -> torch.Tensor:
            return self.table[where]

        def pieces(self, where: torch.Tensor):
            yield from self.logits(where).split(1 << 16)


def start(process, words: list[list[int]], count: int, seed: int = 8) -> tuple[Tokens, Key]:
    key = Key.of(seed, count)
    return process.prior(many(data(words)[-1:], count), key), key


def written(denoiser: Denoiser, process, rule, steps: float, words=WORDS, count: int = COUNT) -> Tokens:
    x, key = start(process, words, count)
    return in_order(list(finished(sample(denoiser, process, x, steps=steps, key=key, rule=rule))), SPECIALS.pad)


STAGED = Deletion(SPECIALS, staged=True)
LOOSE = Deletion(SPECIALS, empty=1)
LENGTHS = [[], [A], [A, A], [A, A], [B, A, A], [A, B]]


@pytest.fixture(scope="module")
def oracles() -> dict:
    return {
        "masking": (MASKING, FIXED_LENGTH, Oracle(MASKING, data(FIXED_LENGTH))),
        "staged": (STAGED, LENGTHS, Oracle(STAGED, data(LENGTHS))),
        "deletion": (LOOSE, LENGTHS, Oracle(LOOSE, data(LENGTHS))),
    }


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("remdm-cap:0.4", 4),
        ("remdm-rescale:0.8", 4),
        ("remdm-loop:0.8", 8),
        ("forward-backward", 7),
        ("gibbs:2", 6),
        ("ranked:random", 3),
        ("ranked:left", 3),
        ("ranked:left@2", 3),
    ],
)
@pytest.mark.parametrize("kind", ["masking", pytest.param("staged", marks=pytest.mark.slow)])
def test_a_perfect_denoiser_samples_the_data(kind: str, name: str, steps: int, oracles) -> None:
    """Identity 3, for the rules that hide again, and for orders that do not look at words."""
    process, words, oracle = oracles[kind]
    assert fit(samples(oracle, process, words, rule_of(name), steps), law_of(words)) > ALARM


@pytest.mark.parametrize(
    "name", ["remdm-cap:0.4", "remdm-rescale:0.8", "remdm-loop:0.8", "forward-backward", "ranked:random"]
)
def test_the_same_for_deletion(name: str, oracles) -> None:
    process, words, oracle = oracles["deletion"]
    assert fit(samples(oracle, process, words, rule_of(name), 4), law_of(words)) > ALARM


@pytest.mark.parametrize("name", ["ranked:left", "gibbs:1"])
def test_deletion_has_its_own_order(name: str, oracles) -> None:
    """A state with gaps does not show how much is missing, so that depends on how it came to be: from left to right, or one
    token at a time, is another history than the one the model knows. Masks do not mind."""
    process, words, oracle = oracles["deletion"]
    assert fit(samples(oracle, process, words, rule_of(name), 4), law_of(words)) < ALARM


def doubtful(exact: Posterior, xt: Tokens, t: float, key: Key, draw: Draw) -> Draw:
    """The exact draw, of which words A are said to be improbable."""
    score = torch.where(draw.x0.ids == A, -3.0, -0.01)
    return Draw(draw.x0.with_(score=torch.where(draw.x0.valid & ~draw.x0.fixed, score, 0.0)), draw.place, score)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        pytest.param("remdm-conf:1", 500_000, marks=pytest.mark.slow),
        ("mask-predict", COUNT),
        ("doubt:0.5", COUNT),
        ("ranked:drawn", COUNT),
    ],
)
def test_what_looks_at_words_is_biased(name: str, count: int, oracles) -> None:
    """Even with a perfect denoiser; in ReMDM-conf, which cares least for the words, by .5 percent. The posterior is not."""
    process, words, oracle = oracles["masking"]
    denoiser = Spoiled(oracle, doubtful)
    assert fit(tally(written(denoiser, process, rule_of(name), 4, words, count).ids), law_of(words)) < ALARM
    assert fit(tally(written(denoiser, process, posterior, 4, words).ids), law_of(words)) > ALARM


ONE_A_STEP = [
    ("posterior", ENDLESS, True),
    *((f"ranked:{order}", ENDLESS, order != "drawn") for order in ORDERS),
    ("ranked:margin@2", ENDLESS, True),
    ("top:1", 8, True),
    ("top:1", ENDLESS, True),
    ("threshold:1", ENDLESS, True),
    ("top:1@2", 3, True),
    ("threshold:1", 8, True),
    ("budget:0", 8, True),
    ("threshold:0", 8, False),
    ("budget:9", 8, False),
    ("top:3", 8, False),
    ("posterior", 2, False),
]


QUICK = {
    ("posterior", ENDLESS),
    ("ranked:drawn", ENDLESS),
    ("ranked:margin", ENDLESS),
    ("threshold:1", ENDLESS),
    ("top:1@2", 3),
    ("budget:0", 8),
    ("threshold:0", 8),
    ("posterior", 2),
}


@pytest.mark.parametrize(
    ("name", "steps", "exact"),
    [pytest.param(*case, marks=[] if case[:2] in QUICK else pytest.mark.slow) for case in ONE_A_STEP],
)
def test_orders_of_one_token_a_step(name: str, steps: float, exact: bool) -> None:
    """Identity 4, by the ideal network: exact where one word is drawn at a time in an order taken from x_t; else not."""
    chance = fit(tally(written(Ideal(), MASKING, rule_of(name), steps).ids), law_of(WORDS))
    assert chance > ALARM if exact else chance < ALARM


def test_infinitely_many_steps_are_first_hitting() -> None:
    """Every row is read once for each of its words, whatever the batch; and states come about at the right times.

    The time at which the first of three words is revealed is U^(1/3) (arXiv:2409.02908): Kolmogorov-Smirnov, N = 20,000.
    """
    ideal, count = Ideal(), 20_000
    x, key = start(MASKING, WORDS, count)
    run = list(sample(ideal, MASKING, x, steps=ENDLESS, key=key))
    assert ideal.rows == 3 * count and ideal.calls == 3
    first = run[0].s.numpy()
    assert stats.kstest(first, lambda t: t**3).pvalue > ALARM
    assert stats.kstest(first, lambda t: t**2.8).pvalue < ALARM


@pytest.mark.parametrize("steps", [1, 2, 5, 16, 300])
@pytest.mark.parametrize("name", ["posterior", "ranked:margin", "ranked:drawn@2"])
def test_a_row_is_read_at_its_moments_alone(name: str, steps: int) -> None:
    """Calls for a row are its distinct reveal steps, counted from its noise; and not one word comes out otherwise than
    where every step is taken."""
    count, rule = 400, rule_of(name)
    x, key = start(MASKING, WORDS, count)
    due = (steps * (1 - x.eps[:, 1:])).ceil().long().clamp_min(1)
    distinct = sum(len({*row}) for row in due.tolist())
    quick, slow = Ideal(), Ideal(timeless=False)
    found, every = (written(denoiser, MASKING, rule, steps, count=count) for denoiser in (quick, slow))
    assert torch.equal(found.ids, every.ids)
    assert quick.rows == distinct and quick.calls <= min(steps, 3)
    assert slow.calls <= steps and slow.calls >= quick.calls
    assert not torch.equal(found.ids, written(Ideal(), MASKING, rule, steps + 1, count=count).ids)


def test_a_denoiser_that_is_told_the_time_is_asked_at_every_step() -> None:
    """The control: one that answers by t would be sampled wrongly if steps were left out."""

    class Telling(Ideal):
        def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
            self.seen = {*getattr(self, "seen", ()), *t.tolist()}
            return super().forward(xt, t)

    told, free = Telling(timeless=False), Telling()
    for denoiser in (told, free):
        written(denoiser, MASKING, posterior, 64, count=3)
    assert told.seen == {1 - k / 64 for k in range(64)} and len(free.seen) < 20


def test_steps_without_a_known_moment_are_refused() -> None:
    x, key = start(LOOSE, LENGTHS, 3)
    with pytest.raises(ValueError, match="num_steps inf is for masks .*; give a number of steps"):
        list(sample(Oracle(LOOSE, data(LENGTHS)), LOOSE, x, steps=ENDLESS, key=key))
    x, key = start(MASKING, WORDS, 3)
    with pytest.raises(ValueError, match="give a number of steps"):
        list(sample(Ideal(), MASKING, x, steps=ENDLESS, key=key, rule=rule_of("partial:0.5")))


def test_ten_thousand_configurations_end() -> None:
    """Rows of all kinds, each with a number of steps of its own, under every rule: no mask is left, the user's words stay,
    turns are at most steps, and a row that keeps its noise is read at most once a hidden word."""
    choose, total = random.Random(0), 0
    ideal = Ideal([list(row) for row in ((A, B, A, B, A), (A, A, B, B, B), (B, A, A, B, A))])
    names = [name for name in RULES if name not in ("sde", "ode")] + [f"ranked:{order}@2" for order in ORDERS]
    for batch in range(100):
        name, count = names[batch % len(names)], 100
        process = COUNTED if choose.random() < 0.3 else MASKING
        x = Tokens.from_rows([[1, A, B, A, B, A]], SPECIALS.pad)[torch.zeros(count, dtype=torch.long)]
        fixed = x.fixed | (torch.rand(x.ids.shape, generator=torch.manual_seed(batch)) < choose.random())
        x, key = x.with_(fixed=fixed), Key.of(batch, count)
        steps = torch.tensor([choose.choice([1, 2, 3, 7, 40]) for _ in range(count)])
        steps = steps.clamp_min(17) if name == "gibbs" else steps  # eight rounds need as many
        decode = Decode(temperature=choose.choice([0.0, 0.7, 1.0]), top_k=choose.choice([0, 1]))
        ideal.rows = turns = 0
        state, hidden = process.prior(x, key), (~fixed & x.valid).sum(1)
        found = []
        for step in sample(ideal, process, state, steps=steps, key=key, rule=rule_of(name), decode=decode):
            turns += 1
            found += [(step.rows[step.done], step.x[step.done])]
        ids = in_order(found, SPECIALS.pad).ids
        assert not bool((ids == SPECIALS.mask).any()), name
        assert torch.equal(ids[fixed], x.ids[fixed]) and turns <= int(steps.max())
        if name in ("posterior", "threshold", "budget", "top") or name.startswith("ranked"):
            assert ideal.rows <= int(hidden.minimum(steps).sum()), name
        total += count
    assert total == 10_000


IDS = Specials(pad=0, bos=1, mask=2, gap=3, size=3000)


def bert(vocabulary: int = 3000, width: int = 16) -> Parallel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    return Parallel(BertForMaskedLM(config).eval(), Specials(pad=0, bos=1, mask=2, gap=3, size=vocabulary))


@pytest.mark.parametrize("name", ["posterior", "partial:0.3", "ranked:margin", "ranked:drawn@4", "threshold:0.5"])
def test_a_row_is_the_same_text_whatever_the_batch(name: str) -> None:
    """Alone, beside others that are longer, and at clocks of their own."""
    denoiser, rows = bert(), [[1] + [7] * n for n in (5, 12, 30, 9)]
    x0, key = Tokens.from_rows(rows, 0), Key.of(3, len(rows))
    process = Masking(IDS)
    steps = torch.tensor([3, 8, 5, 64])

    def run(rows: torch.Tensor, width: int) -> Tokens:
        x = process.prior(x0[rows].take(torch.arange(width).expand(len(rows), -1), 0), key[rows])
        found = sample(denoiser, process, x, steps=steps[rows], key=key[rows], rule=rule_of(name))
        return in_order(list(finished(found)), 0)

    whole = run(torch.arange(4), 31)
    for row, size in enumerate((6, 13, 31, 10)):
        assert run(torch.tensor([row]), size).ids[0].tolist() == whole.ids[row, :size].tolist()
    assert not torch.equal(whole.ids[1, 1:6], whole.ids[0, 1:6])


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                self.size = max(self.size, one.numel())
        return made


@pytest.mark.parametrize("name", ["posterior", "ranked:drawn", "ranked:entropy", "mask-predict", "threshold:0.9@16"])
def test_no_tensor_is_as_wide_as_the_vocabulary_at_every_place(name: str) -> None:
    """Not even where all places are compared: the head speaks of a few at a time. The control is the model's own forward."""
    vocabulary, batch, length = 40_000, 4, 64
    denoiser = bert(vocabulary, width=8)
    process, key = Masking(denoiser.specials), Key.of(0, batch)
    x = process.prior(Tokens.from_rows([[1] + [7] * (length - 1)] * batch, 0), key)
    with Largest() as largest:
        list(sample(denoiser, process, x, steps=3, key=key, rule=rule_of(name)))
    assert largest.size <= PIECE < batch * length * vocabulary / 4
    with Largest() as largest, torch.inference_mode():
        denoiser.model(input_ids=x.ids)
    assert largest.size >= batch * length * vocabulary


def test_the_head_says_the_same_in_pieces_and_again() -> None:
    """What a reading says of a few places is what it says of all; the body runs once."""
    denoiser, runs = bert(), []
    denoiser.model.base_model.register_forward_hook(lambda *_: runs.append(1))
    x = Tokens.from_rows([[1] + [2] * 20, [1] + [2] * 9], 0)
    where = x.ids == 2
    denoiser.read(x)  # the first time, the model is asked whether it can tell padding
    runs.clear()
    read = denoiser.read(x)
    with torch.inference_mode():
        whole = read.logits(where)
        assert torch.equal(torch.cat(list(read.pieces(where))), whole) and len(runs) == 1
        few = torch.zeros_like(where)
        few[0, 3] = few[1, 5] = True
        torch.testing.assert_close(read.logits(few), whole[[2, 24]])
    assert len(runs) == 1


@pytest.mark.slow
def test_a_rare_word_comes_as_often_as_it_should() -> None:
    """0.999 on one word and 0.001 spread over 50,256 others, 20,000 draws: 20 others are due, 5 to 40 with chance 0.9999
    (Poisson). Float32 Gumbel noise, the control, gives fewer than 5 (arXiv:2409.02908)."""
    size, draws = 50_257, 20_000
    logits = torch.full((1, size), math.log(0.001 / (size - 1)))
    logits[0, 0] = math.log(0.999)
    u = Key.of(1, draws).uniform(1)[:, 0]
    others = sum(int((drawing.draw_tokens(logits.expand(len(p), -1), p, Decode())[0] > 0).sum()) for p in u.split(100))
    assert 5 <= others <= 40
    torch.manual_seed(0)
    noise, wrong = torch.empty(100, size), 0
    for _ in range(draws // 100):
        noise.uniform_().clamp_min_(1e-10).log_().neg_().clamp_min_(1e-10).log_().neg_()
        wrong += int((noise.add_(logits).argmax(1) > 0).sum())
    assert wrong < 5


def test_words_are_drawn_by_their_probabilities() -> None:
    """100,000 draws from 300 words, some of probability 0; temperature, top-k, top-p and min-p by their definitions."""
    torch.manual_seed(1)
    logits = torch.randn(300)
    logits[::7] = -torch.inf
    u = Key.of(2, 100_000).uniform(1)[:, 0]

    def drawn(decode: Decode) -> dict[int, int]:
        ids = torch.cat([drawing.draw_tokens(logits.expand(len(p), -1), p, decode)[0] for p in u.split(5000)])
        values, counts = ids.unique(return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def law(kept: torch.Tensor, temperature: float = 1.0) -> dict[int, float]:
        p = (logits.double() / temperature).masked_fill(~kept, -torch.inf).softmax(0)
        return {word: float(p[word]) for word in range(300) if p[word] > 0}

    p, every = logits.double().softmax(0), torch.isfinite(logits)
    ordered, order = p.sort(descending=True)
    nucleus = torch.zeros(300, dtype=torch.bool).scatter(0, order, ordered.cumsum(0) - ordered < 0.5)
    plain = drawn(Decode())
    assert fit(plain, law(every)) > ALARM
    assert fit(plain, law(every, 1.05)) < ALARM
    assert fit(drawn(Decode(temperature=0.7)), law(every, 0.7)) > ALARM
    assert fit(drawn(Decode(top_k=5)), law(logits >= logits.topk(5).values[-1])) > ALARM
    assert fit(drawn(Decode(top_p=0.5)), law(nucleus)) > ALARM
    assert fit(drawn(Decode(min_p=0.2)), law(p >= 0.2 * p.max())) > ALARM
    assert drawn(Decode(temperature=0)) == {int(logits.argmax()): 100_000}


def test_measures_by_their_definitions() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert drawing.probability(p.log()).exp().tolist() == pytest.approx([0.5, 0.25])
    assert drawing.margin(p.log()).tolist() == pytest.approx([0.2, 0.0])
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    assert (-drawing.certainty(p.log())).tolist() == pytest.approx([entropy, math.log(4)])


def test_banned_words_do_not_come() -> None:
    denoiser, key = bert(), Key.of(0, 2)
    process, allowed = Masking(IDS), {40, 41, 42}
    x = process.prior(Tokens.from_rows([[1] + [7] * 20] * 2, 0), key)
    decode = Decode(banned=tuple(set(range(4, 3000)) - allowed))
    (step,) = sample(denoiser, process, x, steps=1, key=key, decode=decode)
    assert {*step.x.ids[:, 1:].flatten().tolist()} <= allowed


def test_corrections_come_surest_first() -> None:
    """Replacement, too: what the guess says otherwise is hidden, and is put right in order."""
    process = Replacement(SPECIALS, torch.tensor([A, B]))
    x = many(data([[A, A, A]]), 50)
    x = x.with_(ids=x.ids.masked_fill(torch.arange(4) > 0, B))
    guess = Draw(many(data([[A, A, A]]), 50), torch.empty(0), torch.tensor([0.0, -1.0, -0.1, -2.0]).expand(50, -1))
    t, s = torch.full((50,), 0.9, dtype=torch.float64), torch.full((50,), 0.5, dtype=torch.float64)
    rule = ranked()
    xs = process.corrupt(guess.x0, rule(process, x, guess, t, s, Key.of(0, 50)), s)
    right = xs.ids[:, 1:] == A
    counts = right.sum(1)
    assert (
        bool(right[counts >= 1][:, 1].all()) and bool(right[counts >= 2][:, 0].all()) and {*counts.tolist()} >= {1, 2}
    )


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_its_default(name: str) -> None:
    assert rule_of(name) == rule_of(f" {name} ") or callable(rule_of(name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", "unknown rule 'best'; there are fresh, posterior, partial:RHO"),
        ("partial:2", r"rule 'partial:2': rho 2.0 is not a share in \[0, 1\].*; write partial:RHO"),
        ("fresh:3", "rule 'fresh:3': nothing stands after the colon, not '3'; write fresh"),
        ("ranked:best", "rule 'ranked:best': no order is called 'best'; there are drawn, probability, margin"),
        ("partial:0.3@8", "rule 'partial:0.3@8' does not reveal in blocks; ranked, threshold, budget, top do"),
        ("threshold:7", "rule 'threshold:7': threshold 7.0 is not a probability"),
        ("gibbs:0", "0 rounds correct nothing"),
        ("gibbs:many", "rule 'gibbs:many': .*; write gibbs:ROUNDS"),
        ("top:0", "0 words a step would never end"),
        ("budget:-1", "gamma -1.0 is no number of nats"),
        ("ranked@x", "unknown rule 'ranked@x'"),
    ],
)
def test_what_is_no_rule(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_of(name)


def test_a_loop_that_is_dropped_leaves_nothing_behind() -> None:
    """Between its steps, and after it was left, gradients are computed as before."""
    x, key = start(MASKING, WORDS, 3)
    run = sample(bert(), Masking(IDS), Masking(IDS).prior(x, key), steps=3, key=key)
    next(run)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    held = [run]  # as an exception's traceback does
    weight = torch.ones(1, requires_grad=True)
    (2 * weight).sum().backward()
    assert held and weight.grad is not None


def test_rounds_that_do_not_fit() -> None:
    x, key = start(MASKING, WORDS, 3)
    with pytest.raises(
        ValueError, match="4 steps are too few for gibbs:2, which takes two a round and one before; give at least 5"
    ):
        list(sample(Ideal(), MASKING, x, steps=4, key=key, rule=rule_of("gibbs:2")))


def test_a_corrector_goes_forward_and_back() -> None:
    """Seven steps: to 2/3; to 1/3, back to 2/3, to 1/3 again; to 0, back to 1/3, and to 0."""
    x, key = start(MASKING, WORDS, 3)
    run = sample(Ideal(timeless=False), MASKING, x, steps=7, key=key, rule=rule_of("forward-backward"))
    assert [float(step.s[0]) for step in run] == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 3, 0, 1 / 3, 0])


def test_a_model_that_writes_in_order_cannot_be_asked_before() -> None:
    x, key = start(MASKING, FIXED_LENGTH, 3)
    with pytest.raises(ValueError, match="nothing to rank them by before they are drawn"):
        list(sample(Oracle(MASKING, data(FIXED_LENGTH)), MASKING, x, steps=2, key=key, rule=rule_of("ranked:margin")))


class Asked(Look):
    """Places that are measured, by the figures given (B, M), and which those were."""

    def __init__(self, figures: torch.Tensor) -> None:
        self.figures, self.where = figures, torch.zeros(figures.shape, dtype=torch.bool)

    def words(self, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(where[where], A).long(), torch.zeros_like(where[where]).float()

    def measure(self, measure, where: torch.Tensor) -> torch.Tensor:
        self.where |= where
        return self.figures[where]


def masked(figures: list[float]) -> tuple[Tokens, Draw, Asked]:
    """A page of masks, and the guess of a model that says these figures of them."""
    count = len(figures)
    x = Tokens.from_rows([[1] + [SPECIALS.mask] * count], SPECIALS.pad)
    look = Asked(torch.tensor([[0.0, *figures]]))
    place = torch.arange(count + 1)[None]
    return x, Draw(x, place, torch.zeros(1, count + 1), ~x.fixed, look), look


def hidden_by(rule, figures: list[float], s: float) -> tuple[list[bool], Asked]:
    """Which of the words are hidden after a step from .9 to s, and what was measured."""
    x, draw, look = masked(figures)
    t, s_ = torch.tensor([0.9], dtype=torch.float64), torch.tensor([s], dtype=torch.float64)
    noise = rule(MASKING, x, draw, t, s_, Key.of(0, 1))
    return (MASKING.corrupt(x.with_(ids=x.ids.masked_fill(~x.fixed, A)), noise, s_).ids == SPECIALS.mask)[
        0, 1:
    ].tolist(), look


def test_a_budget_is_spent_without_the_last_word() -> None:
    """Of entropies .1, .2, .3, .4 a budget of .31 reveals three words, one of .29 two, and none one."""
    for gamma, count in ((0.31, 3), (0.29, 2), (0.0, 1), (0.61, 4)):
        hidden, _ = hidden_by(rule_of(f"budget:{gamma}"), [-0.3, -0.1, -0.4, -0.2], 0.8)
        assert hidden == [rank >= count for rank in (2, 0, 3, 1)]


def test_a_threshold_takes_what_is_just_as_probable() -> None:
    hidden, _ = hidden_by(rule_of("threshold:0.5"), [math.log(0.49), math.log(0.5), math.log(0.9)], 0.8)
    assert hidden == [True, False, False]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_mask_predict_hides_the_least_probable_words(share: float) -> None:
    """round(beta_s n) of them, whether they were hidden or not; the user's words aside."""
    x0 = data([[A, B, A, B, A, B]])
    fixed = x0.fixed | (torch.arange(7) == 4)
    score = torch.tensor([[0.0, -3.0, -1.0, -2.0, -9.0, -0.5, -4.0]])
    x0 = x0.with_(fixed=fixed, score=score)
    t, s = torch.tensor([1.0], dtype=torch.float64), torch.tensor([share], dtype=torch.float64)
    x = MASKING.prior(x0, Key.of(0, 1))
    noise = rule_of("mask-predict")(MASKING, x, Draw(x0, torch.arange(7)[None], score), t, s, Key.of(1, 1))
    hidden = (MASKING.corrupt(x0, noise, s).ids == SPECIALS.mask)[0].nonzero()[:, 0].tolist()
    assert hidden == sorted([6, 1, 3, 2, 5][: round(share * 5)])


@pytest.mark.parametrize("due", [0, 1, 2, 3])
def test_a_rule_in_blocks_looks_no_further_than_it_reveals(due: int) -> None:
    """`due` of four words in blocks of two are due: of the second block nothing is asked while the first has enough."""
    x, draw, look = masked([0.4, 0.3, 0.2, 0.1])
    u = torch.tensor([[1.0, 0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    x = x.with_(eps=u.masked_fill(x.fixed, -1.0))
    s = torch.tensor([(0.45 - 0.1 * due)], dtype=torch.float64)
    rule_of("ranked:margin@2")(MASKING, x, replace(draw, x0=x), torch.tensor([0.9]).double(), s, Key.of(0, 1))
    assert look.where[0].tolist() == [False, due > 0, due > 0, due > 2, due > 2]


@pytest.mark.parametrize("name", ["masking", "counts", "deletion", "replacement", "edit"])
def test_a_noise_that_is_dealt_out_hides_just_what_it_should(name: str) -> None:
    """And is as it was wherever it was on the right side, and uniform on that side elsewhere (Kolmogorov-Smirnov, 1e-6)."""
    words = torch.tensor([A, B])
    process = {
        "masking": MASKING,
        "counts": COUNTED,
        "deletion": LOOSE,
        "replacement": Replacement(SPECIALS, words, different=True),
        "edit": Edit(SPECIALS, words),
    }[name]
    x0, key, s = many(data([[A, B, A, B]]), 3000), Key.of(2, 3000), torch.full((3000,), 0.4, dtype=torch.float64)
    fixed = x0.fixed | (torch.arange(5) == 2)
    x0, noise = x0.with_(fixed=fixed), process.noise(x0.with_(fixed=fixed), key)
    hide = (key.fold(1).uniform(5) < 0.5) & ~fixed
    dealt = process.deal(noise, x0, hide, s, key.fold(9))
    place, xs = process.align(x0, dealt, s).place, process.corrupt(x0, dealt, s)
    assert torch.equal(xs.ids.gather(1, place) != x0.ids, hide)
    before, after = (n if isinstance(n, torch.Tensor) else n.u for n in (noise, dealt))
    same = (before < 0.4) == hide
    assert torch.equal(before[same], after[same])
    for side, low, width in ((hide, 0, 0.4), (~hide, 0.4, 0.6)):
        fresh = after[side & ~same & ~fixed]
        assert stats.kstest(((fresh - low) / width).numpy(), "uniform").pvalue > 1e-6 and len(fresh) > 1000


def hidden_again(name: str, t: float, s: float, eps: float = -1.0) -> float:
    """The share of 20,000 visible words that a step hides; with the noise that they are said to carry."""
    count = 20_000
    x0 = many(data([[A, B, A, B]]), count // 4)
    x = x0.with_(eps=torch.full(x0.ids.shape, eps, dtype=torch.float64).masked_fill(x0.fixed, -1.0))
    draw = Draw(x0, torch.arange(5).expand_as(x0.ids), x0.score)
    at, then = (torch.full((len(x0),), value, dtype=torch.float64) for value in (t, s))
    noise = rule_of(name)(MASKING, x, draw, at, then, Key.of(3, len(x0)))
    return float((MASKING.corrupt(x0, noise, then).ids == SPECIALS.mask).sum() / count)


@pytest.mark.parametrize(
    ("name", "t", "s", "due"),
    [
        ("remdm-rescale:0.5", 0.5, 0.2, 0.5 * 0.2 / 0.5),
        ("remdm-rescale:0.5", 0.9, 0.8, 0.5),  # the most is 1
        ("remdm-cap:0.3", 0.5, 0.4, 0.3),
        ("remdm-cap:0.9", 0.5, 0.1, 0.1 / 0.5),
        ("remdm-loop:0.5", 0.5, 0.2, 0.0),  # on its way down it hides nothing
        ("remdm-loop:0.5", 0.3, 0.3, 0.5 * 0.3 / 0.7),
        ("forward-backward", 0.3, 0.8, 0.5 / 0.7),
        ("partial:0.5", 0.5, 0.2, 0.5 * 0.2),
    ],
)
def test_visible_words_are_hidden_as_often_as_it_says(name: str, t: float, s: float, due: float) -> None:
    """By their formulas (arXiv:2503.00307, 2205.14987); of 20,000, within 5 standard errors (6e-7)."""
    spread = 5 * (due * (1 - due) / 20_000) ** 0.5
    assert abs(hidden_again(name, t, s) - due) <= spread
    assert abs(hidden_again(name, t, s) - (due + 0.03)) > spread


@pytest.mark.parametrize("eps", [0.35, 0.75, 0.95])
def test_a_corrector_forgets_what_it_has_revealed_before(eps: float) -> None:
    """Forward from .3 to .8, 5/7 of the visible words are hidden, whenever they came; the posterior hides those it knows."""
    assert abs(hidden_again("forward-backward", 0.3, 0.8, eps) - 5 / 7) < 0.016
    assert hidden_again("posterior", 0.3, 0.8, eps) == float(eps < 0.8)
