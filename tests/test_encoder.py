"""The encoder model: text through Gaussian noise on trained embeddings, by the same loop."""

import itertools

import pytest
import torch
from test_laws import BERT, NAMED, X, Y, bert, fit, seeded, words_of
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from textdiff.denoiser import Denoiser
from textdiff.denoiser.embedded import Embedded
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process.encoder import Encoder, Latent
from textdiff.rules import fresh, ode, partial, posterior, sde
from textdiff.sampler import sample
from textdiff.schedule import Linear, Power, Schedule
from textdiff.udm import UDM

WORDS = [[X, X]] * 3 + [[Y, Y]] * 2 + [[X, Y]]
RULES = {"fresh": fresh, "posterior": posterior, "rho": partial(0.3), "ode": ode, "sde": sde(1.0), "half": sde(0.5)}


def process(schedule: Schedule | None = None) -> Encoder:
    embedding = nn.Embedding(12, 3).double()
    with torch.no_grad():
        embedding.weight.copy_(Key.of(0, 12).normal(3))
    return Encoder(embedding.requires_grad_(False), NAMED, schedule)


class Exact(Denoiser):
    """q(x0 | z) of a finite data set, by Bayes."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.data = encoder, words_of(WORDS)

    def forward(self, xt: Latent, t: torch.Tensor) -> Posterior:
        return _Exact(self, xt, t)


class _Exact(Posterior):
    def __init__(self, exact: Exact, xt: Latent, t: torch.Tensor) -> None:
        clean = exact.encoder.encode(exact.data.ids)[:, 1:].flatten(1)
        alpha = exact.encoder.schedule.alpha(t)[:, None, None]
        far = (xt.z[:, None, 1:].flatten(2) - alpha.sqrt() * clean).square().sum(-1)
        self.weights, self.data = (-far / (2 * (1 - alpha[..., 0]))).softmax(-1), exact.data

    def sample(self, decode: Decode, key: Key) -> Draw:
        chosen = torch.searchsorted(self.weights.cumsum(-1), key.uniform(1)).clamp_max(len(self.data) - 1)[:, 0]
        return Draw(self.data[chosen], torch.empty(0, dtype=torch.int64), torch.zeros(()))

    def log_prob(self, truth: Draw) -> torch.Tensor:
        raise NotImplementedError  # nothing is trained


def sampled(rule, steps: int, count: int = 50_000, schedule: Schedule | None = None) -> dict[int, int]:
    encoder = process(schedule)
    key = Key.of(1, count)
    page = words_of([[NAMED.mask] * 2])[torch.zeros(count, dtype=torch.long)]
    x = encoder.prior(page, key)
    *_, last = sample(Exact(encoder), encoder, x, steps=steps, key=key, rule=rule)
    assert torch.equal(last.x.tokens.ids, last.draw.x0.ids)  # at t = 0 the state is the text
    values, counts = (last.x.tokens.ids[:, 1] * 100 + last.x.tokens.ids[:, 2]).unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


LAW = {X * 101: 3 / 6, Y * 101: 2 / 6, X * 100 + Y: 1 / 6}


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        pytest.param(rule, steps, marks=[pytest.mark.slow] * (steps == 8 or rule in ("half", "fresh")))
        for rule, steps in itertools.product(RULES, (1, 2, 8))
    ],
)
def test_a_perfect_denoiser_samples_the_data(rule: str, steps: int) -> None:
    """Identity 3 through continuous states. N = 50,000, chi-square, false alarm 1e-6."""
    assert fit(sampled(RULES[rule], steps), LAW) > 1e-6


class Late(Encoder):
    """The control: the inferred noise is taken for more than it is."""

    def infer(self, xt: Latent, draw: Draw, t: torch.Tensor, key: Key) -> torch.Tensor:
        return 1.2 * super().infer(xt, draw, t, key)


def test_a_wrong_noise_is_noticed() -> None:
    encoder = process()
    wrong, count = Late(encoder.embedding, NAMED), 50_000
    key, page = Key.of(1, count), words_of([[NAMED.mask] * 2])[torch.zeros(count, dtype=torch.long)]
    *_, last = sample(Exact(encoder), wrong, encoder.prior(page, key), steps=8, key=key, rule=posterior)
    values, counts = (last.x.tokens.ids[:, 1] * 100 + last.x.tokens.ids[:, 2]).unique(return_counts=True)
    assert fit(dict(zip(values.tolist(), counts.tolist(), strict=True)), LAW) < 1e-6


def test_the_ends_and_the_users_tokens() -> None:
    """t = 0 is the text, t = 1 says nothing of it, and what is fixed has no noise at any time."""
    encoder, x0 = process(), words_of([[X, Y, X, Y], [Y]])
    x0 = x0.with_(fixed=x0.fixed | (torch.arange(5) == 2) & x0.valid)
    noise, clean = encoder.noise(x0, Key.of(0, 2)), encoder.encode(x0.ids)
    start, end = (encoder.corrupt(x0, noise, torch.full((2,), t, dtype=torch.float64)) for t in (0.0, 1.0))
    assert torch.equal(start.tokens.ids, x0.ids)
    torch.testing.assert_close(start.z, clean)
    free = x0.valid & ~x0.fixed
    torch.testing.assert_close(end.z[free], noise[free])
    torch.testing.assert_close(end.z[x0.fixed], clean[x0.fixed])
    assert bool((end.tokens.ids[free] == NAMED.mask).all())
    wide = encoder.noise(words_of([[X] * 9]), Key.of(0, 2)[torch.tensor([0])])
    torch.testing.assert_close(wide[:, :5], noise[:1])  # noise belongs to the token, whatever the padding


def test_it_cannot_grow() -> None:
    """F is of fixed length however long its vectors are: the loss cannot be lowered by drowning the noise."""
    encoder = process()
    before = encoder.encode(torch.tensor([[X, Y]]))
    encoder.embedding.weight.mul_(100)
    torch.testing.assert_close(encoder.encode(torch.tensor([[X, Y]])), before)
    torch.testing.assert_close(before.square().mean(-1), torch.ones(1, 2, dtype=torch.float64))


def test_it_is_trained_and_decoded_with_a_stock_model() -> None:
    """The gradient reaches F through x_t; a small model learns a tiny language and writes it."""
    model = seeded(BertForMaskedLM, BertConfig(**BERT, max_position_embeddings=32, hidden_dropout_prob=0.0))
    denoiser = Embedded(model, NAMED)
    encoder = Encoder(model.get_input_embeddings(), NAMED, Linear())
    udm, optimizer = UDM(encoder, denoiser), torch.optim.Adam(model.parameters(), 3e-3)
    x0 = words_of([[X, X, X]] * 8 + [[Y, Y, Y]] * 8)
    first = udm(x0, Key.of(0, 16))
    first.total.backward()
    assert float(model.get_input_embeddings().weight.grad[[X, Y]].abs().sum()) > 0
    for turn in range(60):
        optimizer.zero_grad()
        loss = udm(x0, Key.of(turn, 16))
        (loss.total / loss.size).backward()
        optimizer.step()
    page = words_of([[NAMED.mask] * 3])[torch.zeros(200, dtype=torch.long)]
    key = Key.of(9, 200)
    *_, last = sample(denoiser.eval(), encoder, encoder.prior(page, key), steps=8, key=key)
    alike = (last.draw.x0.ids[:, 1:] == last.draw.x0.ids[:, 1:2]).all(1).float().mean()
    assert float(alike) > 0.8  # by chance 1 in 4
    assert float((last.draw.x0.ids[:, 1] == X).float().mean()) == pytest.approx(0.5, abs=0.2)


def test_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"keeps lengths.*\[GAP:3\]"):
        process().prior(words_of([[NAMED.gap]]), Key.of(0, 1))
    with pytest.raises(ValueError, match="leaves 0.9 of the data"):
        process(Timid())
    with pytest.raises(ValueError, match="packed"):
        x = words_of([[X, Y]])
        latent = process().corrupt(x, process().noise(x, Key.of(0, 1)), torch.ones(1, dtype=torch.float64))
        Embedded(bert(), NAMED)(Latent(x.with_(doc=torch.tensor([[0, 0, 1]])), latent.z), torch.ones(1))


class Timid(Power):
    """A schedule that does not reach its end."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return 1 - 0.1 * t
