"""Replacement: x_i becomes another word where u_i < beta(t) (Su's 编辑模型, kexue.fm archives 9271; multinomial diffusion).

    x_t,i = v_i  where u_i < beta(t),  x_0,i elsewhere;  v uniform over the words (version A), or over all but x_0,i (B)

Posterior of the noise: a word that differs from x_0 was replaced; in version A one that equals it was so, too, with
probability (beta/V) / (alpha + beta/V), in version B never. So a step leaves what differs from x_0 as it is with
probability beta_s / beta_t, makes it x_0 otherwise, and touches nothing else: the multinomial DDIM at its sigma =
beta_s / beta_t (Song et al., arXiv:2010.02502, App. A), DNDM (arXiv:2312.09193); `partial(rho)` is sigma = (1 - rho)
beta_s / beta_t. D3PM's Markov posterior (arXiv:2107.03006) is no member: it redraws a part of the words that differ. In
spite of its name `DiscreteDDIMScheduler` of diffusers is that one: it is the same kernel as ours in the step from t = 1
(as the rule `fresh`) and in the one to s = 0, and between them it is not.

The model draws x0_hat and then takes this step, a mixture over x0_hat; `price` is the bound of that. D3PM, SEDD and UDLM
plug the mean of x_0 into the posterior instead; `jumps` has the bound of either for Markov noise.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw, Posterior
from textdiff.process.base import Process
from textdiff.process.uniform import Uniform, either, shuffled
from textdiff.schedule import Linear, Schedule, reaching
from textdiff.tokens import Specials, Tokens
from textdiff.validation import check_flag, check_integer, check_number


class ReplacementNoise(NamedTuple):
    """u (B, L): when each token goes. word (B, L) int64: the number of the word that comes, -1 for [MASK].

    Where the word has to differ it is counted from x_0's own: 1 is the next one, V - 1 the one before.
    """

    u: Tensor
    word: Tensor


class Replacement(Process):
    """Replace tokens by random words; lengths stay. Every token that is not the user's is then in doubt (`Tokens.doubtful`).

    words: the ids that can come, (V,); or the size of the vocabulary, of which all but `specials.not_text` are words.
    different: the word that comes is never x_0's own (Su's version B).
    masked: the share of the corrupted tokens that become [MASK] instead (VQ-Diffusion, GIDD, arXiv:2503.04482).
    counts: exactly round(beta n) of the n tokens of a text are corrupted (Su's "t of l").
    steps: how many equal steps `probe` bounds the likelihood of; 0 for continuous time, which is finite only for a model
        that is told t: near t = 0 it has to know that almost no word is wrong.

    The bound holds for models that speak of each token alone (parallel). With `counts` it is Su's loss summed over the
    changes of single tokens, -log q(x_0 | x_t), which holds for every model and is loose.
    """

    def __init__(
        self,
        specials: Specials,
        words: int | Tensor,
        schedule: Schedule | None = None,
        different: bool = False,
        masked: float = 0.0,
        counts: bool = False,
        steps: int = 128,
    ) -> None:
        check_flag("different", different)
        if not 0 <= check_number("masked", masked) < 1:
            raise ValueError(f"masked {masked} is not a share in [0, 1); where all tokens are masked use Masking")
        if check_integer("steps", steps) < 0:
            raise ValueError(f"steps {steps} of the bound is negative; 0 is continuous time")
        self.specials = specials
        self.words = _words(specials, words)
        self.schedule = reaching(schedule or Linear())
        self.uniform = Uniform((1,), counts)
        self.different, self.masked, self.steps = different, masked, steps

    def noise(self, x0: Tokens, key: Key) -> ReplacementNoise:
        return ReplacementNoise(self.uniform.draw(x0, key.fold(0)), self._draw(x0, key.fold(1), self.different))

    def corrupt(self, x0: Tokens, noise: ReplacementNoise, t: Tensor) -> Tokens:
        free = x0.valid & ~x0.fixed
        gone = (noise.u < self.schedule.beta(t)[:, None]) & free
        number = noise.word + self._number(x0.ids).clamp_min(0) if self.different else noise.word
        word = self.words.to(x0.ids.device)[number % len(self.words)]
        ids = torch.where(gone, word.masked_fill(noise.word < 0, self.specials.mask), x0.ids)
        doubtful = free & (ids != self.specials.mask) & (t > 0)[:, None]
        return x0.with_(ids=ids, doubtful=doubtful, score=x0.score.masked_fill(gone, 0.0))

    def infer(self, xt: Tokens, draw: Draw, t: Tensor, key: Key) -> ReplacementNoise:
        draw = draw.drawn()
        x0, beta = draw.x0, self.schedule.beta(t)[:, None]
        free = x0.valid & ~x0.fixed
        shown = draw.seen(xt.ids)
        gone = (shown != x0.ids) & free
        if not self.different:
            gone = gone | self._unnoticed(x0, ~gone & free & (self._number(x0.ids) >= 0), gone, beta, key.fold(0))
        seen = self._number(shown)
        number = (seen - self._number(x0.ids).clamp_min(0)) % len(self.words) if self.different else seen
        fresh = self._draw(x0, key.fold(1), self.different)
        word = torch.where(gone, torch.where(seen < 0, -1, number), fresh)
        u = self.uniform.infer(x0, torch.where(gone, 0.0, beta), torch.where(gone, beta, 1.0), key.fold(2))
        return ReplacementNoise(u, word)

    def align(self, x0: Tokens, noise: ReplacementNoise, t: Tensor) -> Draw:
        place = torch.arange(x0.ids.shape[1], device=x0.ids.device).expand_as(x0.ids)
        return Draw(x0, place, x0.score)

    def blend(
        self, inferred: ReplacementNoise, fresh: ReplacementNoise, rho: float | Tensor, key: Key
    ) -> ReplacementNoise:
        pick = key.uniform(inferred.u.shape[1] if self.uniform.independent else 1) < rho
        return ReplacementNoise(*(torch.where(pick, new, old) for new, old in zip(fresh, inferred, strict=True)))

    @property
    def tied(self) -> bool:
        """Counts: x_t has a known number of wrong words."""
        return self.uniform.counts

    def beta(self, t: Tensor) -> Tensor:
        return self.schedule.beta(t)

    def hidden(self, xt: Tokens, draw: Draw) -> Tensor:
        """What the guess says otherwise than x_t: nothing else shows which words are wrong."""
        draw = draw.drawn()
        return (draw.x0.ids != draw.seen(xt.ids)) & ~draw.x0.fixed & draw.x0.valid

    def rank(
        self, noise: ReplacementNoise, xt: Tokens, draw: Draw, score: Tensor, lane: Tensor | None = None
    ) -> ReplacementNoise:
        """The surest of the guesses that differ from x_t come first."""
        return noise._replace(u=self.uniform.rank(noise.u, self.hidden(xt, draw), score, lane))

    def deal(self, noise: ReplacementNoise, x0: Tokens, hide: Tensor, s: Tensor, key: Key) -> ReplacementNoise:
        return noise._replace(u=self.uniform.deal(noise.u, x0, hide, self.schedule.beta(s)[:, None], key))

    def prior(self, x: Tokens, key: Key) -> Tokens:
        """Random words (and masks, if any) for every token of x that is not the user's, its masks included."""
        if bool((x.ids == self.specials.gap).any()):
            raise ValueError("replacement keeps lengths, so it cannot fill [GAP]; give the length, as in [GAP:3]")
        one = torch.ones(len(x), dtype=torch.float64, device=x.ids.device)
        blank = x.with_(ids=torch.where(x.valid & ~x.fixed, int(self.words[0]), x.ids))
        return self.corrupt(blank, ReplacementNoise(one.new_zeros(x.ids.shape), self._draw(x, key.fold(1), False)), one)

    def probe(self, x0: Tokens, key: Key) -> Iterator[tuple[ReplacementNoise, Tensor, Tensor]]:
        """Two looks: antithetic steps; or, in continuous time, one below and one above the row's least u.

        Below it nothing is replaced yet and the integrand goes to 0, so that beta is drawn uniformly there, and from
        dbeta/beta above. With `counts` it is one look, in which K of the n tokens are replaced, K uniform on 1..n.
        """
        noise, u, size = self.noise(x0, key.fold(1)), key.fold(0).uniform(2), x0.sizes
        if self.uniform.counts:
            yield noise, self.schedule.reach(((u[:, 0] * size).floor() + 1) / size.clamp_min(1)), size
        elif self.steps:
            for share in (u[:, 0], 1 - u[:, 0]):
                yield noise, ((share * self.steps).floor() + 1) / self.steps, torch.full_like(share, self.steps / 2)
        else:
            least = noise.u.masked_fill(~x0.valid, 1.0).min(1).values
            yield noise, self.schedule.reach(least ** u[:, 0]), -least.log()
            yield noise, self.schedule.reach(least * u[:, 1]), 1 / u[:, 1]

    def price(self, posterior: Posterior, truth: Draw, xt: Tokens, t: Tensor) -> Tensor:
        """KL of a step's exact posterior from the mixture over q, and the prior's gap, spread over the steps.

        In continuous time, where it is counted per dbeta/beta,

            1(x_t != x_0) (-log q(x_0) - q(x_t)) + 1(x_t = x_0) (1 - q(x_t))      summed over the tokens.
        """
        x0, free = truth.x0, truth.x0.valid & ~truth.x0.fixed
        right = posterior.log_prob(truth).double()
        if self.uniform.counts:
            return -right.sum(1) + self.gap(x0) / x0.sizes.clamp_min(1)
        shown = truth.seen(xt.ids)
        posterior.need_product("replacement")
        stay = posterior.log_prob(Draw(x0.with_(ids=shown), truth.place, truth.log_prob)).double().exp()
        stay = stay.masked_fill(shown == self.specials.mask, 0.0)
        changed = shown != x0.ids
        if not self.steps:
            cost = torch.where(changed, -right - stay, 1 - stay)
            return (cost * free).sum(1) + self.gap(x0) * self.schedule.beta(t)  # int beta dbeta/beta = 1
        before = self.schedule.beta((t - 1 / self.steps).clamp_min(0)) / self.schedule.beta(t)
        left = before[:, None].expand_as(stay)  # what is wrong stays so with this probability
        unmoved = left + (1 - left) * stay
        kept = torch.where(left > 0, left * (left.log() - unmoved.log()), 0.0)
        cost = torch.where(changed, kept - (1 - left) * right, -unmoved.log())
        return (cost * free).sum(1) + self.gap(x0) / self.steps

    def gap(self, x0: Tokens) -> Tensor:
        """(B,) KL(q(x_1 | x_0), prior) in nats: log(V / (V - 1)) per word where the new word has to differ, else 0."""
        words = (x0.valid & ~x0.fixed & (self._number(x0.ids) >= 0)).sum(1).double()
        size = len(self.words)
        return words * (1 - self.masked) * (math.log(size / (size - 1)) if self.different else 0.0)

    def size(self, x0: Tokens) -> Tensor:
        return x0.sizes

    def count(self, x: Tokens, t: Tensor) -> Tensor:
        """(B,) how many tokens are corrupted at times t (B,), where they are counted."""
        return self.uniform.count(x, self.schedule.beta(t)[:, None])

    def cells(self, x0: Tokens, t: Tensor) -> tuple[ReplacementNoise, Tensor]:
        beta = float(self.schedule.beta(t))
        free = (x0.valid & ~x0.fixed)[0]
        options = []
        for number in self._number(x0.ids[0, free]).tolist():
            shifts = range(1 if self.different and number >= 0 else 0, len(self.words))
            ways = [(1.0, float(word), (1 - self.masked) / len(shifts)) for word in shifts]
            options.append([(0.0, 0.0, 1.0), *ways] + ([(1.0, -1.0, self.masked)] if self.masked else []))
        table = torch.tensor(list(itertools.product(*options)), dtype=torch.float64).view(-1, int(free.sum()), 3)
        chance = self.uniform.chance(table[..., 0] == 1, beta) * table[..., 2].prod(1)
        u = torch.ones(len(table), len(free), dtype=torch.float64)
        u[:, free] = either(table[..., 0] == 1, beta / 2, (1 + beta) / 2)
        word = torch.zeros(u.shape, dtype=torch.int64)
        word[:, free] = table[..., 1].long()
        return ReplacementNoise(u[chance > 0], word[chance > 0]), chance[chance > 0]

    def _draw(self, x0: Tokens, key: Key, different: bool) -> Tensor:
        """(B, L) the number of a random word, or -1; from 1 on where it has to differ from a word of x0."""
        u = key.uniform(x0.ids.shape[1])
        first = ((self._number(x0.ids) >= 0) & different).long()
        among = len(self.words) - first
        word = first + ((u - self.masked) / (1 - self.masked) * among).long().clamp_min(0).minimum(among - 1)
        return word.masked_fill(u < self.masked, -1)

    def _number(self, ids: Tensor) -> Tensor:
        """The number of each word, -1 for what is none."""
        words = self.words.to(ids.device)
        number = torch.searchsorted(words, ids.contiguous()).clamp_max(len(words) - 1)
        return torch.where(words[number] == ids, number, -1)

    def _unnoticed(self, x0: Tokens, same: Tensor, gone: Tensor, beta: Tensor, key: Key) -> Tensor:
        """(B, L) which of the `same` words have been replaced by themselves, given which are `gone` for all to see."""
        if self.uniform.counts:
            return same & (shuffled(same, key) < self.uniform.count(x0, beta)[:, None] - gone.sum(1, keepdim=True))
        itself = beta * (1 - self.masked) / len(self.words)
        return same & (key.uniform(same.shape[1]) * (1 - beta + itself) < itself)


def jumps(theta: Tensor, x0: Tensor, xt: Tensor, alpha: Tensor, plug_in: bool = True) -> Tensor:
    """What the continuous-time bound of Markov noise (D3PM-uniform, SEDD, UDLM) counts per -dlog alpha, in nats, (S,).

        sum_{z != x_t} R_theta(z) - R(z) + R(z) log(R(z) / R_theta(z)),  R(z | x_0) = q(z | x_0) / (V q(x_t | x_0))

    theta: (S, V) a law of x_0; x0, xt: (S,) words from 0 to V - 1; alpha: (S,) the share left.
    plug_in: R_theta = q(z | theta) / (V q(x_t | theta)), UDLM's (arXiv:2412.10193); False: the mean of R over theta, which
    is what a sampler does that draws x0_hat first. For one theta they differ; they agree where one is the `tilted` other.
    """
    size = theta.shape[1]
    alpha = alpha[:, None]
    eye = torch.eye(size, dtype=theta.dtype, device=theta.device)
    ahead = alpha * eye[x0] + (1 - alpha) / size  # q(z | x_0)
    rate = ahead / ahead.gather(1, xt[:, None]) / size
    if plug_in:
        ahead = alpha * theta + (1 - alpha) / size
        guess = ahead / ahead.gather(1, xt[:, None]) / size
    else:
        here = alpha * eye[xt] + (1 - alpha) / size  # q(x_t | k) for every word k
        share = theta / here
        guess = (alpha * share + (1 - alpha) / size * share.sum(1, keepdim=True)) / size
    cost = guess - rate + rate * (rate.log() - guess.log())
    return cost.masked_fill(eye[xt].bool(), 0.0).sum(1)


def tilted(theta: Tensor, xt: Tensor, alpha: Tensor) -> Tensor:
    """q(x_0 | x_t) (S, V) from a law theta of x_0 that has not seen its own x_t: theta(k) q(x_t | k), normalised."""
    size = theta.shape[1]
    here = alpha[:, None] * torch.eye(size, dtype=theta.dtype, device=theta.device)[xt] + (1 - alpha[:, None]) / size
    return theta * here / (theta * here).sum(1, keepdim=True)


def _words(specials: Specials, words: int | Tensor) -> Tensor:
    if isinstance(words, int):
        words = torch.tensor(sorted({*range(words)} - {*specials.not_text}), dtype=torch.int64)
    ids = words.to("cpu", torch.int64).unique()
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} words are too few to replace one by another; give at least two ids")
    wrong = sorted({*specials.not_text} & {*ids.tolist()})
    if wrong:
        raise ValueError(f"ids {wrong} are no words but special tokens; leave them out of words")
    return ids
