"""Deletion with gap markers: a token is dropped where u_i < beta(t); one [GAP] stands where text may be missing.

Every run of dropped tokens leaves one marker, and an empty place shows one, too, where a noise e < gamma(t) says so: the
model has to learn that nothing may belong there. gamma(1) = 1, so every text, the empty one included, ends as one [GAP] at
t = 1: the prior is a single point and no length has to be guessed beforehand. Tokens whose place is known (`counted`)
are masked instead, so that one state may hold gaps of known and of unknown length.

The truth's alignment is known from the noise, and a model that fills gaps knows its own; given it, the posterior of the
noise is the interval that each token's state implies (Su's F_t of archives 9262, which names deletion and leaves it open).

Deletion without markers is `empty=0`: gamma = beta ** 0 = 1, a marker at every place at every t > 0 says nothing that the
words do not say. So it is one process more and no code more, and every denoiser that fills gaps serves it. Where a guess
comes without its alignment, as from a model that rewrites the whole text, that is drawn uniformly over the embeddings of
x_t in it (see `alignment`); a guess that does not contain x_t takes Su's baseline.

Two likelihood bounds in more than one step are known. Delete-then-mask draws lengths at t = 1 and is masking from there
on: -log q(lengths | x_1) + the bound of masking. Deletion without markers has, for rates of insertion lambda_j per gap,

    int beta'/beta E[sum_j lambda_j - (L - n) - sum_missing log(lambda_j p_j(x_0,i))] dt

with one alignment drawn per look. It has no k log k: over all paths of insertions that constant integrates to 0, and with
it the bound would be looser by as much.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw, Posterior
from textdiff.process.alignment import closed, embeddings, without_markers
from textdiff.process.base import PRIOR, Process
from textdiff.process.masking import Masking
from textdiff.process.uniform import Uniform, either, sides
from textdiff.schedule import Linear, Schedule, reaching
from textdiff.tokens import Specials, Tokens, repeat
from textdiff.validation import check_flag, check_number


class DeletionNoise(NamedTuple):
    """u (B, L): when each token goes. e (B, L): when a marker appears after it though nothing is missing there."""

    u: Tensor
    e: Tensor


class Deletion(Process):
    """Delete tokens, leave gap markers.

    spans: as in `Masking`. empty: the power in gamma = beta ** empty; the larger, the rarer empty gaps; 0 is deletion
    without markers, which stand everywhere then.
    staged: delete at t = 1 alone, and mask before (delete-then-mask). In reverse the lengths of gaps are drawn in the first
    step and their words in all steps, which is how a parallel denoiser fills best.
    """

    def __init__(
        self,
        specials: Specials,
        schedule: Schedule | None = None,
        spans: tuple[float, ...] = (1,),
        empty: float = 16.0,
        staged: bool = False,
    ) -> None:
        check_flag("staged", staged)
        if check_number("empty", empty) < 0:
            raise ValueError(
                f"empty {empty} is no power; 0 puts a marker at every place, large numbers where text is missing"
            )
        self.specials = specials
        self.schedule = reaching(schedule or Linear())
        self.uniform = Uniform(spans)
        self.empty, self.staged = empty, staged

    def noise(self, x0: Tokens, key: Key) -> DeletionNoise:
        e = key.fold(1).uniform(x0.ids.shape[1]).masked_fill(x0.sealed, 1.0)
        return DeletionNoise(self.uniform.draw(x0, key.fold(0)), e)

    def corrupt(self, x0: Tokens, noise: DeletionNoise, t: Tensor) -> Tokens:
        counts, masked = self._counts(x0, noise, t)
        under = _after(x0.slot.masked_fill(counts > 0, 0), x0.joined())  # what is asked of a gap is asked of its marker
        x0 = x0.with_(
            ids=x0.ids.masked_fill(masked, self.specials.mask),
            score=x0.score.masked_fill(masked, 0.0),
            eps=noise.u.masked_fill(x0.fixed, -1.0),
        )
        index = repeat(counts)
        marker = torch.zeros_like(index, dtype=torch.bool)
        marker[:, 1:] = (index[:, 1:] == index[:, :-1]) & (index[:, 1:] >= 0)  # the second copy of a token
        xt = x0.take(index, self.specials.pad)
        return xt.with_(
            ids=xt.ids.masked_fill(marker, self.specials.gap),
            fixed=xt.fixed & ~marker,
            counted=xt.counted & ~marker,
            sealed=xt.sealed & ~marker,
            score=xt.score.masked_fill(marker, 0.0),
            eps=xt.eps.masked_fill(marker, -1.0),
            slot=torch.where(marker, under.gather(1, index.clamp_min(0)), xt.slot),
        )

    def align(self, x0: Tokens, noise: DeletionNoise, t: Tensor) -> Draw:
        counts, _ = self._counts(x0, noise, t)
        end = counts.cumsum(1)
        # a kept token is at its first copy; a dropped one belongs to the last element before it, the marker
        place = torch.where(counts > 0, end - counts, end - 1).clamp_min(0)
        return Draw(x0, place, x0.score)

    def infer(self, xt: Tokens, draw: Draw, t: Tensor, key: Key) -> DeletionNoise:
        if not draw.place.numel():
            return self._placed(xt, draw, t, key)
        x0, place, beta = draw.x0, draw.place, self.schedule.beta(t)[:, None]
        seen = xt.ids.gather(1, place)
        gone = (seen == self.specials.gap) & x0.valid
        hidden = gone | (seen == self.specials.mask)
        low, high = torch.where(hidden, 0.0, beta), torch.where(hidden, beta, 1.0)
        u = self.uniform.infer(x0, low, high, key.fold(0), xt.eps.gather(1, place))
        marked = _next(xt.ids == self.specials.gap, xt.joined()).gather(1, place)
        silent = gone | _next(gone, x0.joined())  # inside a run of missing tokens e shows nothing
        gamma = self._gamma(t)
        low = torch.where(silent | marked, 0.0, gamma)
        high = torch.where(marked & ~silent, gamma, 1.0)
        e = low + key.fold(1).uniform(x0.ids.shape[1]) * (high - low)
        return DeletionNoise(u, e.masked_fill(x0.sealed, 1.0))

    def _placed(self, xt: Tokens, draw: Draw, t: Tensor, key: Key) -> DeletionNoise:
        """`infer` for a guess without places, whose flags are its own: by a uniform embedding of x_t.

        Fresh noise where x_t is not contained in the guess; and wherever some embeddings may be likelier than others, by
        markers (0 < gamma < 1, or at sealed places) or by spans.
        """
        draw = draw.drawn()
        x0, seen = draw.x0, without_markers(xt, self.specials.gap, self.specials.pad)
        masked = ~x0.fixed[:, :, None] & (seen.y.ids == self.specials.mask)[:, None, :]
        match = seen.agree(x0) & (masked | (x0.ids[:, :, None] == seen.y.ids[:, None, :]))
        loose = ~(x0.fixed | x0.counted)
        ways = embeddings(match, seen.drops(loose), x0.valid.sum(1), seen.y.valid.sum(1))
        gamma = self._gamma(t)[:, 0]
        alike = (gamma == 0) | (t == 1) | ((gamma == 1) & self.uniform.independent)
        exact = (ways.total > -torch.inf) & alike & closed(x0, loose)
        place = seen.place(ways.draw(key.fold(2))) * exact[:, None]
        inferred = self.infer(xt, Draw(x0, place, draw.log_prob), t, key.fold(3))
        fresh = self.noise(x0, key.fold(4))
        return DeletionNoise(*(torch.where(exact[:, None], *both) for both in zip(inferred, fresh, strict=True)))

    def blend(self, inferred: DeletionNoise, fresh: DeletionNoise, rho: float | Tensor, key: Key) -> DeletionNoise:
        if not self.uniform.independent:  # spans: the whole row, u and e together, is redrawn or kept
            pick = key.uniform(1) < rho
            return DeletionNoise(*(torch.where(pick, new, old) for new, old in zip(fresh, inferred, strict=True)))
        e = torch.where(key.fold(1).uniform(inferred.e.shape[1]) < rho, fresh.e, inferred.e)
        return DeletionNoise(self.uniform.blend(inferred.u, fresh.u, rho, key.fold(0)), e)

    def reads(self, draw: Draw) -> Tensor | None:
        return torch.zeros_like(draw.x0.fixed) if draw.place.numel() else None  # words tell what is where

    def prior(self, x: Tokens, key: Key) -> Tokens:
        return super().prior(x, key.fold(PRIOR))

    @property
    def tied(self) -> bool:
        """Spans: neighbours that are gone together tell how much is missing. Of masks, as staged ones are, nothing does."""
        return not (self.uniform.independent or self.staged)

    def beta(self, t: Tensor) -> Tensor:
        return self.schedule.beta(t)

    def shown(self, x0: Tokens, noise: DeletionNoise, s: Tensor) -> Tensor:
        return noise.u >= self.schedule.beta(s)[:, None]

    def moment(self, x: Tokens, t: Tensor) -> Tensor:
        open_ = (x.ids == self.specials.mask) & ~x.fixed | (x.ids == self.specials.gap)
        return self.uniform.moment(x.eps, open_, t, self.schedule)

    def hidden(self, xt: Tokens, draw: Draw) -> Tensor:
        if not draw.place.numel():
            return super().hidden(xt, draw)
        seen = draw.seen(xt.ids)
        return ((seen == self.specials.gap) | (seen == self.specials.mask)) & ~draw.x0.fixed & draw.x0.valid

    def rank(
        self, noise: DeletionNoise, xt: Tokens, draw: Draw, score: Tensor, lane: Tensor | None = None
    ) -> DeletionNoise:
        return noise._replace(u=self.uniform.rank(noise.u, self.hidden(xt, draw), score, lane))

    def deal(self, noise: DeletionNoise, x0: Tokens, hide: Tensor, s: Tensor, key: Key) -> DeletionNoise:
        return noise._replace(u=self.uniform.deal(noise.u, x0, hide, self.schedule.beta(s)[:, None], key))

    def in_turn(self, noise: DeletionNoise, x0: Tokens, lane: Tensor) -> DeletionNoise:
        return noise._replace(u=self.uniform.rank(noise.u, x0.valid & ~x0.fixed, noise.u, lane))

    def probe(self, x0: Tokens, key: Key) -> Iterator[tuple[DeletionNoise, Tensor, Tensor]]:
        """Staged: a look at the words, by `Masking.probe`, and one at the lengths, at t = 1. Else the bound of one step.

        ValueError where a counted token is followed by an open place: what its length and its word cost is one number.
        """
        if not self.staged:
            yield from super().probe(x0, key)
            return
        if bool((x0.counted & ~x0.sealed & x0.valid).any()):
            raise ValueError("text may be missing right after a counted token; seal that place, or have no bound")
        for u, t, weight in Masking(self.specials, self.schedule).probe(x0, key.fold(0)):
            yield DeletionNoise(u, torch.ones_like(u)), t, weight
        one = torch.ones(len(x0), dtype=torch.float64, device=x0.ids.device)
        yield self.noise(x0, key.fold(1)), one, one

    def price(self, posterior: Posterior, truth: Draw, xt: Tokens, t: Tensor) -> Tensor:
        """Staged, the words at t < 1 and the lengths at t = 1: what is booked on tokens that are there to be seen.

        A posterior that is no product over words, and so has no bound word by word, prices both at t = 1, exactly.
        """
        nll, end = -posterior.log_prob(truth).double(), (t == 1)[:, None]
        if self.staged:
            seen = xt.ids.gather(1, truth.place)
            hidden = (seen == self.specials.gap) | (seen == self.specials.mask)
            nll = nll.masked_fill(hidden & end if posterior.factorised else ~end, 0.0)
        return nll.sum(1)

    def size(self, x0: Tokens) -> Tensor:
        return x0.sizes

    def cells(self, x0: Tokens, t: Tensor) -> tuple[DeletionNoise, Tensor]:
        gamma = float(self._gamma(t))
        u, chance = self.uniform.cells(x0, float(self.schedule.beta(t)))
        places = (x0.valid & ~x0.sealed)[0]
        shown = sides(int(places.sum()))
        e = torch.ones(len(shown), len(places), dtype=torch.float64)
        e[:, places] = either(shown, gamma / 2, (1 + gamma) / 2)
        chances = either(shown, gamma, 1 - gamma).prod(1)
        noise = DeletionNoise(u.repeat_interleave(len(e), 0), e.repeat(len(u), 1))
        return noise, (chance[:, None] * chances).flatten()

    def _counts(self, x0: Tokens, noise: DeletionNoise, t: Tensor) -> tuple[Tensor, Tensor]:
        """How many elements each token leaves (0 dropped, 1 kept, 2 kept with a marker after it); which are masked."""
        beta = self.schedule.beta(t)[:, None]
        hidden = (noise.u < beta) & x0.valid
        gone = hidden & ~x0.counted & (t == 1)[:, None] if self.staged else hidden & ~x0.counted
        kept = x0.valid & ~gone
        empty = ~x0.sealed & (noise.e < self._gamma(t))
        marker = kept & (_next(gone, x0.joined()) | empty)
        return kept.long() + marker.long(), hidden & ~gone

    def _gamma(self, t: Tensor) -> Tensor:
        """(B, 1) how probable a marker is at a place where nothing is missing."""
        beta = self.schedule.beta(t)[:, None]
        if self.staged:
            return (t == 1)[:, None].double()
        return torch.where(beta > 0, beta**self.empty, 0.0)  # 0 ** 0 is 1, and t = 0 is the data


def _next(flag: Tensor, joined: Tensor) -> Tensor:
    """Whether the next token, of the same text, has the flag."""
    result = torch.zeros_like(flag)
    result[:, :-1] = flag[:, 1:]
    return result & joined


def _after(values: Tensor, joined: Tensor) -> Tensor:
    """The value of the next token, of the same text; else 0."""
    result = torch.zeros_like(values)
    result[:, :-1] = values[:, 1:]
    return result * joined


class Rates(Protocol):
    """What the bound of deletion in continuous time asks of a posterior."""

    def rates(self, truth: Draw) -> tuple[Tensor, Tensor]:
        """How many tokens are thought to be missing in each gap: lambda_j, and lambda_j p_j(v) of them the word v.

        Returns the sum of all lambda_j (B,), and (B, M) of each missing element of the truth log lambda_j p_j(x_0,i), of
        the gap that it is missing in; 0 on all others.
        """


def insertion_price(posterior: Rates, truth: Draw, missing: Tensor) -> Tensor:
    """(B,) sum_j lambda_j - k - sum_missing log(lambda_j p_j(x_0,i)), k = `missing` (B,) in all; it may be negative."""
    expected, log_rate = posterior.rates(truth)
    return expected.double() - missing - log_rate.double().sum(1)


def insertion_bound(process: Deletion, look: Callable[[Tokens, Tensor], Rates], x0: Tokens, key: Key) -> Tensor:
    """(B,) one unbiased draw of the bound in continuous time, in nats, from a posterior (xt, t) with rates.

    Times are drawn as t = u ** 2, under which the weight beta'/beta has a variance. ValueError for a process whose
    markers say more than its words, or whose spans tie tokens together.
    """
    if process.staged or process.empty or not process.uniform.independent:
        raise ValueError("rates of insertion bound deletion without markers alone; make it Deletion(specials, empty=0)")
    u = key.fold(0).uniform(1)[:, 0]
    t, noise = u**2, process.noise(x0, key.fold(1))
    xt, truth = process.corrupt(x0, noise, t), process.align(x0, noise, t)
    missing = ((xt.ids.gather(1, truth.place) == process.specials.gap) & x0.valid).sum(1)
    price = insertion_price(look(xt, t), truth, missing) * process.schedule.weight(t) * 2 * u
    return torch.where(process.schedule.beta(t) > 0, price, 0.0)  # too small a t for float64, where nothing is lost
