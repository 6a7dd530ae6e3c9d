"""Writing on: what a causal model does best, where nothing of the user's follows the gap.

    q(words, end | left) = prod_i p(w_i | left, w_<i) p(end | left, words),  cut off where the gap can hold no more

No word right of the gap weighs what is written, so one pass draws the law exactly, where `continuing` needs particles. A
text ends with one of the model's end tokens; its encoder, where it has one (BART), reads a mask at the end of the text.
"""

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.continuing import Continuing
from textdiff.denoiser.feeding import Stream, answers
from textdiff.denoiser.pages import Page, draw_of, holes_of, lies_of, pages_of
from textdiff.denoiser.writing import Booked, booked, text_of, write
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.tokens import Tokens


class Onward(Denoiser):
    """Writes the one gap that ends each text at t = 1; at other times, where words follow gaps, it is `continuing`.

    ends: the tokens that end a text; those of `continuing` unless given.
    """

    timeless = joint = True

    def __init__(self, continuing: Continuing, ends: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.continuing, self.model = continuing, continuing.model
        self.ends = list(ends) or continuing.ends

    @property
    def longest(self) -> int | None:
        return self.continuing.longest

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        if not self.ends or not bool((t == 1).all()):
            return self.continuing(xt, t)
        return _OnwardPosterior(self, xt)


class _OnwardPosterior(Posterior):
    def __init__(self, denoiser: Onward, xt: Tokens) -> None:
        self.denoiser, self.xt, self.specials = denoiser, xt, denoiser.continuing.specials
        self.reading, self.holes = denoiser.continuing.reading, holes_of(xt, self.specials)
        for page in self._blank(Decode()):
            after = page.between(page.holes[-1].end, len(page.ids)) if page.holes else []
            if len(page.holes) != 1 or {*after} - {*self.specials.tail}:
                raise ValueError("this writes at the end of a text; give one gap there, or use Continuing")

    def _blank(self, decode: Decode) -> list[Page]:
        return pages_of(self.xt, self.holes, self.specials, decode)

    def _text(self) -> Tensor:
        size = self.denoiser.model.get_output_embeddings().weight.shape[0]
        return text_of(self.specials, size, self.xt.ids.device, tuple(self.denoiser.ends))

    def _fed(self, page: Page) -> list[int]:
        return [*self.reading.first, *page.left(0)]

    def _sources(self, pages: list[Page]) -> list[list[int]] | None:
        return [source for page in pages if (source := self.reading.source(page)) is not None] or None

    def sample(self, decode: Decode, key: Key) -> Draw:
        """x0's scores are those of its words; what the end costs is in `log_prob`."""
        pages, inner = self._blank(decode), self.denoiser.continuing
        stream = Stream(inner.model, [self._fed(page) for page in pages], self._sources(pages), inner.cached)
        write(stream, pages, [range(1)] * len(pages), lambda gap: [], self._text(), self.denoiser.ends, key)
        return draw_of(self.xt, pages, self.specials)

    def log_prob(self, truth: Draw) -> Tensor:
        """Every word's on the word; the end's, where the length is not known, on the token left of the gap."""
        ids, lies, pages = truth.x0.ids.tolist(), lies_of(truth, self.holes), self._blank(Decode())
        sources, fed, asked, target = self._sources(pages), [], [], list[Booked]()
        for row, page in enumerate(pages):
            (lie,), hole, left = lies[row], page.holes[0], self._fed(page)
            words = ids[row][lie.first : lie.stop]
            fed.append([*left, *words])
            asked.append(list(range(len(left) - 1, len(fed[-1]) - hole.known)))
            target += [Booked(row, lie.first + k, word, hole.known) for k, word in enumerate(words)]
            target += [] if hole.known else [Booked(row, lie.left, self.denoiser.ends[0], False)]
        logits = answers(self.denoiser.model, fed, asked, sources)
        return booked(logits, target, self._text(), self.denoiser.ends, torch.Size(truth.x0.ids.shape))
