"""q(x0 | xt) by any model that writes from left to right, with the text right of a gap as evidence.

The law is the model's own, restricted to texts that hold the user's tokens in order, gaps of n = low..high words between:

    q(x0 | xt) = p(x0) / sum over such texts

It is drawn by sequential Monte Carlo (Del Moral, Doucet, Jasra 2006; for language models arXiv:2306.03081). Gap by gap, each
of K particles draws one continuation w ~ r(. | left), r the model's law on the words that may stand there, and *every cut*
of it is a candidate (n, w_1..w_n), with the weight

    W(n, w) = prod_{i<=n} p(w_i) / r(w_i)  p(text right of the gap, as far as the next one | left, w_1..w_n).

Since w_1..w_n of a continuation has the law prod r, for every f

    E sum_n W(n, w) f(n, w) = sum_n sum_w p(w_1..w_n | left) p(right | left, w_1..w_n) f(n, w):

cuts of one continuation depend on each other, which leaves the sum unbiased; so resampling K particles from all cuts in
proportion to W is consistent as K grows. p/r is how much of p the words that may stand there have, and does not know w_i.

The first tokens on the right weigh every cut; the rest, where there are more, the particles that were kept. The end of a
text is evidence where a gap of unknown length ends it, and nowhere else: what a user gives may be part of a longer text.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.feeding import Stream, answers, decoder_start, goes_on, own_id
from textdiff.denoiser.pages import Leash, Page, draw_of, holes_of, lies_of, open_words, pages_of, pushed
from textdiff.denoiser.writing import choose, text_of
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.tokens import Specials, Tokens

_WINDOW = 8  # tokens on the right that weigh every cut
_STREAMS = 64  # continuations that are written at once


class Reading(ABC):
    """What a model is given before the text: nothing, or the text with its gaps."""

    @property
    @abstractmethod
    def first(self) -> list[int]:
        """What is fed before the state's own tokens."""

    @abstractmethod
    def source(self, page: Page) -> list[int] | None:
        """What its encoder reads; None where it has none."""


class Continuing(Denoiser):
    """Any `AutoModelForCausalLM`; and BART and its kin, whose encoder reads the text with a mask for each gap.

    particles: K; the law is the model's own in the limit, and the cost is in proportion.
    eos: the tokens that end a text, by default what the config says.

    At temperature 0 nothing is drawn: the particles are the K most probable first words, each followed by what is most
    probable then, and that cut is taken which makes the first word and the text on the right most probable. This is a search
    of K candidates, and may miss the most probable filling. Where the length is not given the words after the first are not
    counted, as they are not where continuations are drawn: the most probable filling would be the shortest one.
    At other temperatures and with top_k, top_p, words are drawn from the law so changed; the evidence is always the model's
    own.
    """

    timeless = joint = True

    def __init__(self, model: Any, specials: Specials, particles: int = 8, eos: tuple[int, ...] | None = None) -> None:
        super().__init__()
        if particles < 1:
            raise ValueError(f"particles {particles} is not positive; 8 is usual, more come closer to the model's law")
        self.model, self.specials, self.particles = model, specials, particles
        self.cached = goes_on(model)
        found = own_id(model, "eos_token_id") if eos is None else list(eos)
        self.ends: list[int] = [] if found is None else [found] if isinstance(found, int) else list(found)

    @property
    def reading(self) -> Reading:
        """The way this model is given a text."""
        if self.model.config.is_encoder_decoder:
            return _Rewriting(decoder_start(self.model), self.ends, self.specials)
        return _Alone(own_id(self.model, "bos_token_id"), self.specials)

    @property
    def longest(self) -> int | None:
        limit = super().longest
        return limit if limit is None or not self.model.config.is_encoder_decoder else limit - 1

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return _ContinuingPosterior(self, xt)


class _Alone(Reading):
    def __init__(self, bos: int | None, specials: Specials) -> None:
        own = not 0 < specials.size <= specials.bos  # the state brings one that the model knows
        self._first = [] if own or bos is None else [bos]

    @property
    def first(self) -> list[int]:
        return self._first

    def source(self, page: Page) -> list[int] | None:
        return None


class _Rewriting(Reading):
    def __init__(self, start: int, ends: list[int], specials: Specials) -> None:
        if 0 < specials.size <= specials.mask:
            raise ValueError("the model has no mask token, so its encoder cannot be shown a gap; use another denoiser")
        self.start, self.ends, self.specials = start, ends, specials

    @property
    def first(self) -> list[int]:
        return [self.start]

    def source(self, page: Page) -> list[int] | None:
        text, column = [], 0
        for hole in page.holes:
            text += [*page.between(column, hole.begin), self.specials.mask]
            column = hole.end
        text += page.between(column, len(page.ids))
        return text if text[-1:] == self.ends[:1] else [*text, *self.ends[:1]]  # stock texts bring their own


@dataclass
class _Draft:
    """One continuation of a particle: its words, and for each cut (0, 1, ...) the log of its weight."""

    page: Page
    gap: int
    leash: Leash
    right: list[int]
    words: list[int]
    scores: list[float]
    cuts: list[float]
    mass: float = 0.0

    def cut(self, count: int) -> Page:
        """The text with the first `count` words in the gap."""
        page = self.page.copy()
        page.words[self.gap], page.scores[self.gap] = self.words[:count], self.scores[:count]
        return page


class _ContinuingPosterior(Posterior):
    def __init__(self, denoiser: Continuing, xt: Tokens) -> None:
        self.denoiser, self.xt, self.specials = denoiser, xt, denoiser.specials
        self.reading, self.holes = denoiser.reading, holes_of(xt, denoiser.specials)
        if not denoiser.ends and any(page.is_last(len(page.holes) - 1) for page in self._blank(Decode())):
            raise ValueError("the model has no end token, so a text cannot end in a gap; give the gap's length")

    def _blank(self, decode: Decode) -> list[Page]:
        return pages_of(self.xt, self.holes, self.specials, decode)

    def sample(self, decode: Decode, key: Key) -> Draw:
        """x0's scores are the model's own of its words, given all that is left of each."""
        pages, each = self._blank(decode), max(1, _STREAMS // self.denoiser.particles)
        rows = [row for row, holes in enumerate(self.holes) if holes]
        for begin in range(0, len(rows), each):
            part = rows[begin : begin + each]
            keys = key[torch.tensor(part, device=key.device)]
            for row, page in zip(part, _Swarm(self, [pages[row] for row in part], decode, keys).fill(), strict=True):
                pages[row] = page
        return draw_of(self.xt, pages, self.specials)

    def stream(self, pages: list[Page], texts: list[list[int]]) -> Stream:
        """Texts to go on from, each of its page."""
        sources = [self.reading.source(page) for page in pages]
        known = [source for source in sources if source is not None]
        return Stream(
            self.denoiser.model, [[*self.reading.first, *text] for text in texts], known or None, self.denoiser.cached
        )

    def text(self) -> Tensor:
        """(V,) bool: the ids that may be written."""
        size = self.denoiser.model.get_output_embeddings().weight.shape[0]
        return text_of(self.specials, size, self.xt.ids.device, tuple(self.denoiser.ends))

    def log_prob(self, truth: Draw) -> Tensor:
        """log p(x0) by the chain rule, not divided by p(xt): every token's on itself, the user's own as well, BOS excepted.

        So a row's sum is a joint score of all its fillings, up to what is the same for all of them. Where a gap of unknown
        length ends the text, the end's is on the token left of its marker.
        """
        blank, first, lies = self._blank(Decode()), self.reading.first, lies_of(truth, self.holes)
        fed: list[list[int]] = []
        asked: list[list[int]] = []
        target: list[tuple[int, int, list[int]]] = []
        for row, page in enumerate(blank):
            fed.append([*first])
            asked.append([])
            for element, token in enumerate(truth.x0.ids[row][truth.x0.valid[row]].tolist()):
                if 0 < self.specials.size <= token:
                    continue
                if element and fed[-1]:
                    asked[-1].append(len(fed[-1]) - 1)
                    target.append((row, element, [token]))
                fed[-1].append(token)
            if page.is_last(len(page.holes) - 1):
                asked[-1].append(len(fed[-1]) - 1)
                target.append((row, lies[row][-1].left, self.denoiser.ends))
        result = torch.zeros(truth.x0.ids.shape, device=self.xt.ids.device)
        if not target:
            return result
        sources = [source for page in blank if (source := self.reading.source(page)) is not None]
        law = answers(self.denoiser.model, fed, asked, sources or None).double().log_softmax(-1)
        score = torch.stack([law[number, tokens].logsumexp(0) for number, (*_, tokens) in enumerate(target)]).float()
        place = tuple(
            torch.tensor(part, device=law.device) for part in zip(*[entry[:2] for entry in target], strict=True)
        )
        return result.index_put(place, score, accumulate=True)


class _Swarm:
    """The particles of some texts: K copies of each page, with the log of what each weighs."""

    def __init__(self, posterior: _ContinuingPosterior, pages: list[Page], decode: Decode, key: Key) -> None:
        self.posterior, self.decode, self.key, self.text = posterior, decode, key, posterior.text()
        self.count = posterior.denoiser.particles
        self.pages = [[page.copy() for _ in range(self.count)] for page in pages]
        self.weight = [[0.0] * self.count for _ in pages]

    def fill(self) -> list[Page]:
        """One filled page of each text."""
        for gap in range(max(len(swarm[0].holes) for swarm in self.pages)):
            live = [row for row, swarm in enumerate(self.pages) if len(swarm[0].holes) > gap]
            drafts = self._continue(live, gap)
            if not self.decode.expired:
                drafts = self._weigh(drafts)
            u = self.key.fold(3 * gap + 1).uniform(self.count)
            for number, row in enumerate(live):
                mine = drafts[number * self.count : (number + 1) * self.count]
                self._keep(row, mine, u[row])
            if not self.decode.expired:
                self._rest(live, gap)
        u = self.key.fold(2).uniform(1)
        return [
            swarm[_chosen(torch.tensor(self.weight[row], dtype=torch.float64), u[row], self.decode)[0]]
            for row, swarm in enumerate(self.pages)
        ]

    def _continue(self, live: list[int], gap: int) -> list[_Draft]:
        """A continuation of every particle, and the weight of its cuts as far as the first token on the right."""
        pages = [page for row in live for page in self.pages[row]]
        left = [page.left(gap) for page in pages]
        rank = (
            [] if self.decode.temperature else [left[k - k % self.count : k].count(text) for k, text in enumerate(left)]
        )
        drafts = [_Draft(page, gap, page.leash(gap), page.right(gap), [], [], []) for page in pages]
        stream = self.posterior.stream(pages, left)
        self.stream, turn, going = stream, 0, list(range(len(drafts)))
        widest = max(draft.leash.longest for draft in drafts) + 1
        dice = [self.key.fold(3 * gap).fold(k).uniform(widest).tolist() for k in range(self.count)]
        while True:
            logits = stream.logits[going].double()
            for k, sure in zip(going, self._first([drafts[k] for k in going], logits), strict=True):
                drafts[k].cuts.append(sure)
            late = self.decode.expired  # then nothing is fed, and whoever may end here or before does
            if late:
                stay = [place for place, k in enumerate(going) if max(drafts[k].cuts) == -torch.inf]
                going, logits = [going[place] for place in stay], logits[stay]
            if not going:
                return drafts
            words = open_words([drafts[k].leash for k in going], self.text)
            more = words.any(1).nonzero()[:, 0]
            if not self.decode.temperature:
                more = more[
                    ~self._complete([drafts[going[number]] for number in more.tolist()], logits[more], words[more])
                ]
            going, words, logits = [going[number] for number in more.tolist()], words[more], logits[more]
            if not going:
                return drafts
            u = torch.tensor([dice[k % self.count][live[k // self.count]][turn] for k in going], dtype=torch.float64)
            read = [left[k] + drafts[k].words for k in going] if self.decode.processors else []
            branch = [rank[k] for k in going] if turn == 0 and rank else None
            choice = choose(logits, words, read, self.decode, u.to(self.text.device), branch)
            fed: list[int | None] = [None] * len(drafts)
            for k, word, sure, mass in zip(going, *(part.tolist() for part in choice), strict=True):
                draft, fed[k] = drafts[k], word
                draft.words.append(word)
                draft.scores.append(sure)
                # at temperature 0 the first word is a choice, the others follow; fillings of one length compare whole
                counts = turn == 0 or draft.leash.known
                draft.mass += mass if self.decode.temperature else sure if counts else 0.0
            after = pushed([drafts[k].leash for k in going], choice.ids.tolist())
            for k, leash in zip(going, after, strict=True):
                drafts[k].leash = leash
            if not late:
                stream.feed(fed)
            turn += 1

    def _complete(self, drafts: list[_Draft], logits: Tensor, words: Tensor) -> Tensor:
        """(S,) bool: gaps of so many words whose last word is complete: most probable is another one, which cannot stand."""
        result = torch.zeros(len(drafts), dtype=torch.bool, device=words.device)
        if all(draft.leash.constraint.automaton is None for draft in drafts):
            return result
        best = logits.masked_fill(~self.text[: logits.shape[1]], -torch.inf).argmax(1)
        for row, draft in enumerate(drafts):
            machine = draft.leash.constraint.automaton
            if machine is not None and machine.fresh is not None and draft.leash.may_end and not draft.leash.known:
                token = int(best[row])
                result[row] = token < machine.size and bool(machine.fresh[token]) and not bool(words[row, token])
        return result

    def _first(self, drafts: list[_Draft], logits: Tensor) -> list[float]:
        """The log weight of a cut here, by logits (S, V), as far as the first token on the right, or the text's end."""
        total, ends = logits.logsumexp(-1), self.posterior.denoiser.ends
        after = torch.tensor([draft.right[0] if draft.right else 0 for draft in drafts], device=logits.device)
        sure = (logits.gather(1, after[:, None])[:, 0] - total).tolist()
        over = (logits[:, ends].logsumexp(-1) - total).tolist() if ends else []
        result, may_end = [], {leash: leash.may_end for leash in {draft.leash for draft in drafts}}
        for k, draft in enumerate(drafts):
            next_ = sure[k] if draft.right else over[k] if draft.page.is_last(draft.gap) else 0.0
            result.append(draft.mass + next_ if may_end[draft.leash] else -torch.inf)
        return result

    def _weigh(self, drafts: list[_Draft]) -> list[_Draft]:
        """The other tokens of the window, for every cut, from the longest to the shortest."""
        for count in reversed(range(max(len(draft.cuts) for draft in drafts))):
            here = [count < len(draft.cuts) and draft.cuts[count] > -torch.inf for draft in drafts]
            runs = [draft.right[:_WINDOW] if cut else [] for draft, cut in zip(drafts, here, strict=True)]
            if max(map(len, runs)) > 1:
                for draft, more, cut in zip(drafts, self.stream.ahead(runs).tolist(), here, strict=True):
                    if cut:
                        draft.cuts[count] += more
            self.stream.back(min(count, 1))
        return drafts

    def _keep(self, row: int, drafts: list[_Draft], u: Tensor) -> None:
        """K particles from all cuts of a text."""
        # all empty gaps first, then those of one word, ...: so that every stratum of `_chosen` is of much the same length
        found = sorted(((k, n) for k, draft in enumerate(drafts) for n in range(len(draft.cuts))), key=lambda kn: kn[1])
        weight = torch.tensor([self.weight[row][k] + drafts[k].cuts[n] for k, n in found], dtype=torch.float64)
        if not self.decode.temperature:  # of one particle, an empty gap is one cut, whatever would follow
            seen: set[tuple[int, ...]] = set()
            for number, (k, n) in enumerate(found):
                text = tuple(drafts[k].cut(n).left(drafts[k].gap))
                if text in seen:
                    weight[number] = -torch.inf
                seen.add(text)
        if not bool(weight.isfinite().any()):
            raise ValueError("no continuation keeps the gap's constraint; loosen it, or allow more with max_gap")
        chosen = _chosen(weight, u, self.decode)
        self.pages[row] = [drafts[found[c][0]].cut(found[c][1]) for c in chosen]
        self.weight[row] = [0.0 if self.decode.temperature else float(weight[c]) for c in chosen]

    def _rest(self, live: list[int], gap: int) -> None:
        """What is right of the window weighs the particles that were kept."""
        owners = [(row, k) for row in live for k in range(self.count)]
        owners = [(row, k) for row, k in owners if len(self.pages[row][k].right(gap)) > _WINDOW]
        if not owners:
            return
        pages = [self.pages[row][k] for row, k in owners]
        right = [page.right(gap) for page in pages]
        stream = self.posterior.stream(
            pages, [page.left(gap) + run[:_WINDOW] for page, run in zip(pages, right, strict=True)]
        )
        law = stream.logits.double().log_softmax(-1)
        more = stream.ahead([run[_WINDOW:] for run in right])
        for number, (row, k) in enumerate(owners):
            self.weight[row][k] += float(more[number] + law[number, right[number][_WINDOW]])


def _chosen(weight: Tensor, u: Tensor, decode: Decode) -> list[int]:
    """As many of the candidates as there are u (K,) by their log weights (C,); at temperature 0 the best.

    Stratified: the k-th from the k-th part of the distribution function. One u for all of them (systematic resampling)
    would fall into step with candidates that come in equal groups, and choose the same of each.
    """
    if not decode.temperature:
        order = weight.argsort(dim=0, descending=True, stable=True)[: int(weight.isfinite().sum())].tolist()
        return [order[k % len(order)] for k in range(len(u))]
    cdf = weight.softmax(0).cumsum(0)
    points = (torch.arange(len(u), dtype=torch.float64) + u.cpu()) / len(u)
    return torch.searchsorted(cdf, points * cdf[-1], right=True).clamp_max(len(weight) - 1).tolist()
