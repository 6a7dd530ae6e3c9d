"""Edits: a token is deleted, masked or replaced where u_i < beta(t), as its kind says, and words come in between.

    x_0,i -> (nothing | [MASK] | v_i != x_0,i) where u_i < beta(t);   after each token k ~ (1 - gamma_t) gamma_t^k words

with gamma_t = insert beta_t. Insertion is a Yule process seen at one time (a birth process, whose size is geometric). It is
one noise for all t by thinning: of k ~ (1 - gamma_1) gamma_1^k words each stays with chance r if u_j < r, and then

    E[z^k] = (1 - gamma_1) / (1 - gamma_1 (1 - r + r z)) = (1 - gamma) / (1 - gamma z),   odds(gamma) = r odds(gamma_1),

where odds(g) = g / (1 - g): geometric again. So word j is there at t iff u_j < odds_t / odds_1, and one that is there at t
is still there at s < t with chance odds_s / odds_t.

Where deletions may be, a marker stands at every open place, as in `Deletion(empty=0)`; a word that may be another is
doubtful, one that may have come in is surplus. Given where each element of x_0 is, the noise's posterior is an interval per
token. A guess without places is aligned by a pair-HMM (see `alignment`), whose total is q(x_t | x_0). It takes the baseline
where it cannot have become x_t, and where it has a sealed place before a token that may go.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw
from textdiff.process.alignment import Alignments, Seen, Weights, closed, log_of, without_markers
from textdiff.process.base import Process
from textdiff.process.uniform import Uniform
from textdiff.schedule import Linear, Schedule, reaching
from textdiff.tokens import Specials, Tokens, repeat
from textdiff.validation import check_flag, check_items, check_number

DELETE, MASK, REPLACE = 0, 1, 2
LATER = 1 << 20  # a use of a key that no word has


class EditNoise(NamedTuple):
    """u (B, L): when each token is edited; kind (B, L): how; word (B, L): what replaces it.

    when, what (B, L, K): of up to K words that come in after each token, in order; 1 where there is none.
    """

    u: Tensor
    kind: Tensor
    word: Tensor
    when: Tensor
    what: Tensor


class Edit(Process):
    """Delete, mask, replace and insert words, for parallel denoisers.

    words: (V,) ids that replace and come in. kinds: the shares of deletion, masking and replacement; they sum to 1.
    insert: gamma_1, in [0, 1): insert / (1 - insert) words come in at each place at t = 1.
    staged: at t = 1 all that is not the user's is gone, and a [GAP] stands for it: the prior is a point. False leaves the
    formula in force at t = 1; then x_1 tells the length of x_0, and whoever starts there has to know one.
    """

    def __init__(
        self,
        specials: Specials,
        words: Tensor,
        schedule: Schedule | None = None,
        kinds: tuple[float, float, float] = (0.25, 0.25, 0.5),
        insert: float = 0.0,
        staged: bool = True,
    ) -> None:
        check_flag("staged", staged)
        shares = [check_number("kinds", share) for share in check_items("kinds", kinds, example="(0.25, 0.25, 0.5)")]
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"kinds {kinds} are no shares of deletion, masking and replacement; they must sum to 1")
        if not 0 <= check_number("insert", insert) < 1:
            raise ValueError(f"insert {insert} is not in [0, 1); at 1 there would be no end of words that come in")
        self.words = words.unique()
        strange = sorted(set(self.words.tolist()) & set(specials.not_text))
        if strange or len(self.words) < 2:
            raise ValueError(f"words {strange or words.tolist()} will not do; give two or more ids, of text alone")
        self.specials, self.kinds, self.insert, self.staged = specials, tuple(kinds), insert, staged
        self.schedule = reaching(schedule or Linear())
        self.uniform = Uniform()

    def noise(self, x0: Tokens, key: Key) -> EditNoise:
        length = x0.ids.shape[1]
        kind = _pick(torch.tensor(self.kinds, dtype=torch.float64, device=x0.ids.device), key.fold(1).uniform(length))
        counts = torch.zeros_like(x0.ids)
        if self.insert:  # geometric by inversion: P(k >= m) = P(u < gamma ** m)
            counts = (key.fold(3).uniform(length).log() / math.log(self.insert)).long()
        counts = counts.masked_fill(x0.sealed | ~x0.valid, 0)
        most = int(counts.max())
        when, what = self._incoming(x0, most, key.fold(4))
        when = when.masked_fill(torch.arange(most, device=counts.device) >= counts[..., None], 1.0)
        return EditNoise(self.uniform.draw(x0, key.fold(0)), kind, self._other(x0.ids, key.fold(2)), when, what)

    def corrupt(self, x0: Tokens, noise: EditNoise, t: Tensor) -> Tokens:
        present, gone = self._slots(x0, noise, t)
        width = present.shape[2]
        index = repeat(present.flatten(1).long())
        source, slot = index.div(width, rounding_mode="floor"), (index % width).masked_fill(index < 0, 0)
        hidden, kind = self._edited(x0, noise, t)
        ids = torch.where(hidden & (kind == MASK), self.specials.mask, x0.ids)
        ids = torch.where(hidden & (kind == REPLACE) & ~gone, noise.word, ids)
        xt = x0.with_(ids=ids, score=x0.score.masked_fill(hidden, 0.0)).take(source, self.specials.pad)
        own = (slot == 0) & xt.valid
        blocks = torch.cat([ids[..., None], torch.full_like(ids, self.specials.gap)[..., None]], 2)
        come = torch.stack([noise.what, torch.full_like(noise.what, self.specials.gap)], 3).flatten(2)
        ids = torch.cat([blocks, come], 2).flatten(1).gather(1, index.clamp_min(0))
        ids = ids.masked_fill(index < 0, self.specials.pad)
        free = (ids != self.specials.gap) & (ids != self.specials.mask) & xt.valid
        free = free & ~(own & xt.fixed) & (t > 0)[:, None]
        return xt.with_(
            ids=ids,
            fixed=xt.fixed & own,
            counted=xt.counted & own,
            sealed=xt.sealed & own,
            score=xt.score.masked_fill(~own, 0.0),
            doubtful=free & (self.kinds[REPLACE] > 0),
            surplus=free & ~(own & xt.counted) & (self.insert > 0),
        )

    def align(self, x0: Tokens, noise: EditNoise, t: Tensor) -> Draw:
        present, gone = self._slots(x0, noise, t)
        before = (present.flatten(1).long().cumsum(1) - present.flatten(1).long()).view(present.shape)[:, :, 0]
        place = (before - gone.long()).clamp_min(0)  # what is gone belongs to the marker before it
        return Draw(x0, place.masked_fill(~x0.valid, 0), x0.score)

    def infer(self, xt: Tokens, draw: Draw, t: Tensor, key: Key) -> EditNoise:
        draw = draw.drawn()
        x0, fresh = draw.x0, self.noise(draw.x0, key.fold(0))
        place, known = draw.place, ~self._ended(t)
        if not place.numel():
            place, found = self._placed(xt, x0, t, key.fold(1))
            known = known & found
        inferred = self._given(xt, x0, place, t, fresh, key.fold(2))
        return self._rows(known, inferred, fresh)

    def blend(self, inferred: EditNoise, fresh: EditNoise, rho: float | Tensor, key: Key) -> EditNoise:
        """Whole rows, because what comes in has no element of x_0 to go by."""
        return self._rows((key.uniform(1) < rho)[:, 0], fresh, inferred)

    def beta(self, t: Tensor) -> Tensor:
        return self.schedule.beta(t)

    def hidden(self, xt: Tokens, draw: Draw) -> Tensor:
        if not draw.place.numel():
            return super().hidden(xt, draw)
        draw = draw.drawn()
        return (draw.seen(xt.ids) != draw.x0.ids) & ~draw.x0.fixed & draw.x0.valid

    def rank(self, noise: EditNoise, xt: Tokens, draw: Draw, score: Tensor, lane: Tensor | None = None) -> EditNoise:
        return noise._replace(u=self.uniform.rank(noise.u, self.hidden(xt, draw), score, lane))

    def deal(self, noise: EditNoise, x0: Tokens, hide: Tensor, s: Tensor, key: Key) -> EditNoise:
        return noise._replace(u=self.uniform.deal(noise.u, x0, hide, self.schedule.beta(s)[:, None], key))

    def in_turn(self, noise: EditNoise, x0: Tokens, lane: Tensor) -> EditNoise:
        return noise._replace(u=self.uniform.rank(noise.u, x0.valid & ~x0.fixed, noise.u, lane))

    def log_likelihood(self, xt: Tokens, x0: Tokens, t: Tensor) -> Tensor:
        """(B,) log q(x_t | x_0) of states before t = 1, float64: the pair-HMM's total.

        It does not see what a marker at a sealed place says, that something went there.
        """
        seen = without_markers(xt, self.specials.gap, self.specials.pad)
        places = (x0.valid & ~x0.sealed).sum(1)
        return self._alignments(seen, x0, t).total + places * torch.log1p(-self._gamma(t))

    def probe(self, x0: Tokens, key: Key) -> Iterator[tuple[EditNoise, Tensor, Tensor]]:
        if not self.staged:
            raise ValueError("staged=False leaves the length in x_1, so that one look is no bound; use staged=True")
        return super().probe(x0, key)

    def size(self, x0: Tokens) -> Tensor:
        return x0.sizes

    def cells(self, x0: Tokens, t: Tensor) -> tuple[EditNoise, Tensor]:
        if self.insert:
            return super().cells(x0, t)
        beta, free = float(self.schedule.beta(t)), (x0.valid & ~x0.fixed)[0].nonzero()[:, 0]
        options = [self._options(int(word), beta) for word in x0.ids[0, free]]
        every = list(itertools.product(*[range(len(option)) for option in options]))
        grid = torch.tensor(every, dtype=torch.int64).view(len(every), len(options))
        u = torch.ones(len(grid), x0.ids.shape[1], dtype=torch.float64)
        kind, word, chance = torch.zeros_like(u).long(), torch.zeros_like(u).long(), torch.ones_like(u[:, 0])
        for column, choice, option in zip(free.tolist(), grid.T, options, strict=True):
            rows = option[choice]
            u[:, column], kind[:, column], word[:, column] = rows[:, 0], rows[:, 1].long(), rows[:, 2].long()
            chance *= rows[:, 3]
        none = torch.zeros(*u.shape, 0)
        return EditNoise(u, kind, word, none.double(), none.long()), chance

    def _options(self, word: int, beta: float) -> Tensor:
        """(M, 4) u, kind, word and chance: all that can become of a token."""
        others = [v for v in self.words.tolist() if v != word]
        rows = [((1 + beta) / 2, 0, 0, 1 - beta)]
        rows += [(beta / 2, kind, others[0], beta * self.kinds[kind]) for kind in (DELETE, MASK)]
        rows += [(beta / 2, REPLACE, v, beta * self.kinds[REPLACE] / len(others)) for v in others]
        return torch.tensor([row for row in rows if row[3] > 0], dtype=torch.float64)

    def _ended(self, t: Tensor) -> Tensor:
        """(B,) bool: everything is gone."""
        return (t == 1) & self.staged

    def _gamma(self, t: Tensor) -> Tensor:
        return self.insert * self.schedule.beta(t)

    def _reach(self, t: Tensor) -> Tensor:
        """(B,) odds_t / odds_1: the words that have come in at t have their noise below it."""
        return self.schedule.beta(t) * (1 - self.insert) / (1 - self._gamma(t))

    def _edited(self, x0: Tokens, noise: EditNoise, t: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) which tokens are edited, and how: at the end all are deleted, but what is counted is masked instead."""
        hidden = (noise.u < self.schedule.beta(t)[:, None]) & x0.valid & ~x0.fixed
        kind = noise.kind.masked_fill(self._ended(t)[:, None], DELETE)
        return hidden, torch.where(x0.counted & (kind == DELETE), MASK, kind)

    def _slots(self, x0: Tokens, noise: EditNoise, t: Tensor) -> tuple[Tensor, Tensor]:
        """Which of a token, its marker, each word coming in, its marker are there (B, L, 2 + 2 K); what is gone (B, L)."""
        hidden, kind = self._edited(x0, noise, t)
        gone, open_ = hidden & (kind == DELETE), x0.valid & ~x0.sealed
        bare = ((t > 0) & (self.kinds[DELETE] > 0)) | self._ended(t)
        next_gone = torch.zeros_like(gone)
        next_gone[:, :-1] = gone[:, 1:]
        kept = x0.valid & ~gone
        marked = kept & ((next_gone & x0.joined()) | (open_ & bare[:, None]))
        come = (noise.when < self._reach(t)[:, None, None]) & open_[..., None] & ~self._ended(t)[:, None, None]
        pairs = torch.stack([come, come & bare[:, None, None]], 3).flatten(2)
        return torch.cat([kept[..., None], marked[..., None], pairs], 2), gone

    def _given(self, xt: Tokens, x0: Tokens, place: Tensor, t: Tensor, fresh: EditNoise, key: Key) -> EditNoise:
        """The posterior of the noise given where each element of x_0 is seen; `fresh` where x_t says nothing of it."""
        seen, beta = xt.ids.gather(1, place), self.schedule.beta(t)[:, None]
        gone, masked = seen == self.specials.gap, seen == self.specials.mask
        edited = seen != x0.ids
        u = self.uniform.infer(x0, torch.where(edited, 0.0, beta), torch.where(edited, beta, 1.0), key.fold(0))
        # a counted token with a mask may have been meant to go: it is shown as a mask either way
        kind = torch.where(edited, torch.where(gone, DELETE, torch.where(masked, MASK, REPLACE)), fresh.kind)
        word = torch.where(edited & ~gone & ~masked, seen, fresh.word)
        return EditNoise(u, kind, word, *self._came(xt, x0, place, t, key.fold(2)))

    def _came(self, xt: Tokens, x0: Tokens, place: Tensor, t: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """when, what (B, L, K) of the words that come in: those seen are no element of x_0, after the last one before them.

        Those that come after t are drawn as well, for a step that goes forward. Of k words, a seen and b not,

            P(b | a) ~ C(a + b, b) q^b,  q = gamma_1 (1 - r),  r = odds_t / odds_1,

        so that each of the a + 1 places between the seen ones has a geometric number of them, (1 - q) q^b.
        """
        taken = torch.zeros_like(xt.ids).scatter_add(1, place, x0.valid.long()) > 0
        extra = xt.valid & ~taken & (xt.ids != self.specials.gap)
        order = place.masked_fill(~x0.valid, torch.iinfo(torch.int64).max)
        column = torch.arange(xt.ids.shape[1], device=xt.ids.device).expand_as(xt.ids).contiguous()
        owner = (torch.searchsorted(order.contiguous(), column) - 1).clamp_min(0)
        counts = torch.zeros_like(x0.ids).scatter_add(1, owner, extra.long())
        number = extra.long().cumsum(1) - 1  # of the word among those of its row, then among those of its place
        number = number - (counts.cumsum(1) - counts).gather(1, owner)
        most = int(counts.max())
        when, what = self._incoming(x0, most, key)
        row, at = extra.nonzero().T
        what[row, owner[row, at], number[row, at]] = xt.ids[row, at]
        here = torch.arange(most, device=counts.device) < counts[..., None]
        when = torch.where(here, when * self._reach(t)[:, None, None], 1.0)
        return self._with_later(x0, when, what, here, t, key.fold(LATER)) if self.insert else (when, what)

    def _with_later(
        self, x0: Tokens, when: Tensor, what: Tensor, here: Tensor, t: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        """when, what (B, L, K) of the words seen at t, where `here` is set, and between them of those that come later."""
        reach = self._reach(t)[:, None, None]
        u = torch.stack([key.fold(j).uniform(x0.ids.shape[1]) for j in range(when.shape[2] + 1)], 2)
        between = (u.log() / (self.insert * (1 - reach)).log()).long()  # geometric, as in `noise`; none where q is 0
        open_ = torch.cat([x0.valid[..., None], here], 2)  # before and after each one seen
        before = between.masked_fill(~open_, 0).cumsum(2)
        total = (before[..., -1] + here.sum(2))[..., None]
        later, words = self._incoming(x0, int(total.max()), key.fold(LATER))
        later = reach + later * (1 - reach)
        later = later.masked_fill(torch.arange(later.shape[2], device=later.device) >= total, 1.0)
        row, token, number = here.nonzero(as_tuple=True)
        place = row, token, number + before[row, token, number]
        return later.index_put(place, when[here]), words.index_put(place, what[here])

    def _placed(self, xt: Tokens, x0: Tokens, t: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """A place for each element, drawn from all alignments; and the rows in which there is one."""
        seen = without_markers(xt, self.specials.gap, self.specials.pad)
        ways = self._alignments(seen, x0, t)
        may_go = x0.valid & ~x0.fixed & ~x0.counted & (self.kinds[DELETE] > 0)
        found = (ways.total > -torch.inf) & closed(x0, may_go)
        return seen.place(ways.draw(key)) * found[:, None], found

    def _alignments(self, seen: Seen, x0: Tokens, t: Tensor) -> Alignments:
        y, beta = seen.y, self.schedule.beta(t)[:, None, None]
        deleted, masked, replaced = self.kinds
        free, known = (x0.valid & ~x0.fixed)[:, :, None], torch.isin(x0.ids, self.words.to(x0.ids.device))
        word = torch.isin(y.ids, self.words.to(y.ids.device))[:, None, :]
        same = x0.ids[:, :, None] == y.ids[:, None, :]
        mask = (y.ids == self.specials.mask)[:, None, :]
        masks = beta * (masked + deleted * x0.counted.double()[:, :, None])
        swaps = beta * replaced / (len(self.words) - known.double())[:, :, None]
        weight = torch.where(mask, masks, torch.where(same, 1 - beta, swaps * word))
        match = torch.where(free, weight, same.double()).log() + log_of(seen.agree(x0))
        loose = free[:, :, 0] & ~x0.counted
        drop = (beta * deleted).log() + log_of(seen.drops(loose))
        first = torch.zeros_like(x0.sealed[:, :1])
        open_ = torch.cat([first, x0.valid & ~x0.sealed], 1)[:, :, None]
        came = word & ~(y.fixed | y.counted | y.sealed)[:, None, :] & open_
        insert = (self._gamma(t)[:, None, None] / len(self.words)).log() + log_of(came)
        return Alignments(Weights(match, drop, insert), x0.valid.sum(1), y.valid.sum(1))

    def _incoming(self, x0: Tokens, most: int, key: Key) -> tuple[Tensor, Tensor]:
        """Noise and words (B, L, most), column by column, so that they do not depend on what else is in the batch."""
        words, length = self.words.to(x0.ids.device), x0.ids.shape[1]
        none = torch.zeros(*x0.ids.shape, 0, device=x0.ids.device)
        when = [none.double()] + [key.fold(2 * j).uniform(length)[..., None] for j in range(most)]
        picks = [none.long()] + [
            (key.fold(2 * j + 1).uniform(length) * len(words)).long()[..., None] for j in range(most)
        ]
        return torch.cat(when, 2), words[torch.cat(picks, 2)]

    def _other(self, ids: Tensor, key: Key) -> Tensor:
        """(B, L) a word that is not the token's own, all alike."""
        words = self.words.to(ids.device)
        own = torch.searchsorted(words, ids).clamp_max(len(words) - 1)
        known = words[own] == ids
        pick = (key.uniform(ids.shape[1]) * (len(words) - known.double())).long()
        return words[pick + (known & (pick >= own)).long()]

    def _rows(self, pick: Tensor, yes: EditNoise, no: EditNoise) -> EditNoise:
        """The rows of one noise or another, with room for the words that come in in either."""
        most = max(yes.when.shape[2], no.when.shape[2])
        both = zip(_wide(yes, most), _wide(no, most), strict=True)
        return EditNoise(*(torch.where(pick.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in both))


def _wide(noise: EditNoise, most: int) -> EditNoise:
    more = (0, most - noise.when.shape[2])
    pad = torch.nn.functional.pad
    return noise._replace(when=pad(noise.when, more, value=1.0), what=pad(noise.what, more))


def _pick(shares: Tensor, u: Tensor) -> Tensor:
    """The number of the share that each u falls into."""
    edges = shares.cumsum(0)
    return torch.searchsorted((edges / edges[-1])[:-1].contiguous(), u, right=True)
