"""q(x0 | xt) by a stock T5: its pre-training task, span corruption, is gap filling (Raffel et al., arXiv:1910.10683).

The encoder reads the text with `<extra_id_k>` in place of gap k. The decoder writes `<extra_id_0> words <extra_id_1> words
...`, where the next sentinel ends a gap:

    q(words | xt) = prod_gaps prod_i q(w_i | xt, all before) q(sentinel or </s> | xt, all before)

A joint law over all gaps and their lengths, by one model, in one sequence, with no training.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.feeding import Stream, answers, decoder_start, goes_on, own_id
from textdiff.denoiser.pages import Page, draw_of, holes_of, lies_of, pages_of
from textdiff.denoiser.writing import Booked, booked, text_of, write
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.tokens import Specials, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPELLINGS = ("<extra_id_{}>", "▁<extra_id_{}>")  # mT5 has its own as pieces, with a space


def sentinel_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The ids of <extra_id_0>, <extra_id_1>, ... as far as the tokenizer has them; empty where it has none."""
    vocabulary = tokenizer.get_vocab()
    for spelling in _SPELLINGS:
        ids: list[int] = []
        while (name := spelling.format(len(ids))) in vocabulary:
            ids.append(vocabulary[name])
        if ids:
            return tuple(ids)
    return ()


class Sentinels(Denoiser):
    """T5 and its kin (mT5, umT5, LongT5, CodeT5, ...): any `AutoModelForSeq2SeqLM` pre-trained with sentinels.

    sentinels: their ids, in order (`sentinel_ids`). eos: the token that ends a text, by default what the config says.
    """

    timeless = joint = True

    def __init__(self, model: Any, specials: Specials, sentinels: tuple[int, ...], eos: int | None = None) -> None:
        super().__init__()
        if not sentinels:
            raise ValueError("no sentinels: this model marks no gaps by <extra_id_0>; use another denoiser for it")
        self.model, self.specials, self.sentinels = model, specials, tuple(sentinels)
        self.cached = goes_on(model)
        self.eos = own_id(model, "eos_token_id") if eos is None else eos

    @property
    def ends(self) -> list[int]:
        """What ends a gap: the end of the text, or any sentinel."""
        return [self.eos, *self.sentinels]

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return _SentinelPosterior(self, xt)

    def source(self, page: Page) -> list[int]:
        """What the encoder reads."""
        text, column = [], 0
        for number, hole in enumerate(page.holes):
            text += [*page.between(column, hole.begin), self.sentinels[number]]
            column = hole.end
        text += page.between(column, len(page.ids))
        return text if text[-1:] == [self.eos] else [*text, self.eos]  # stock texts bring their own


class _SentinelPosterior(Posterior):
    def __init__(self, denoiser: Sentinels, xt: Tokens) -> None:
        self.denoiser, self.xt, self.specials = denoiser, xt, denoiser.specials
        self.holes = holes_of(xt, self.specials)
        most = max(map(len, self.holes), default=0)
        if most > len(denoiser.sentinels):
            raise ValueError(
                f"{most} gaps, and this model marks {len(denoiser.sentinels)} at most; fill the text in parts"
            )

    def _text(self) -> Tensor:
        model = self.denoiser.model
        size = model.get_output_embeddings().weight.shape[0]
        return text_of(self.specials, size, self.xt.ids.device, tuple(self.denoiser.ends))

    def sample(self, decode: Decode, key: Key) -> Draw:
        """x0's scores are those of its words; what the ends of gaps cost is in `log_prob`."""
        pages = pages_of(self.xt, self.holes, self.specials, decode)
        rows = [row for row, holes in enumerate(self.holes) if holes]
        if rows:
            denoiser, todo = self.denoiser, [pages[row] for row in rows]
            start = [decoder_start(denoiser.model), denoiser.sentinels[0]]
            stream = Stream(
                denoiser.model, [start for _ in todo], [denoiser.source(page) for page in todo], denoiser.cached
            )
            gaps, number = [range(len(page.holes)) for page in todo], torch.tensor(rows, device=key.device)
            write(stream, todo, gaps, lambda gap: [denoiser.sentinels[gap]], self._text(), denoiser.ends, key[number])
        return draw_of(self.xt, pages, self.specials)

    def log_prob(self, truth: Draw) -> Tensor:
        """Every word's on the word, given all words before it; a gap's end on the token left of its marker."""
        denoiser, lies, ids = self.denoiser, lies_of(truth, self.holes), truth.x0.ids.tolist()
        fed: list[list[int]] = []
        asked: list[list[int]] = []
        target: list[Booked] = []
        rows = [row for row, holes in enumerate(self.holes) if holes]
        for row in rows:
            fed.append([decoder_start(denoiser.model)])
            asked.append([])
            for number, (hole, lie) in enumerate(zip(self.holes[row], lies[row], strict=True)):
                fed[-1].append(denoiser.sentinels[number])
                words = range(lie.first, lie.stop)
                asked[-1] += range(len(fed[-1]) - 1, len(fed[-1]) + len(words) - hole.known)
                fed[-1] += [ids[row][element] for element in words]
                target += [Booked(row, element, ids[row][element], hole.known) for element in words]
                target += [] if hole.known else [Booked(row, lie.left, denoiser.eos, False)]
        result = torch.zeros(truth.x0.ids.shape, device=self.xt.ids.device)
        if not rows:
            return result
        blank = pages_of(self.xt, self.holes, self.specials, Decode())
        logits = answers(denoiser.model, fed, asked, [denoiser.source(blank[row]) for row in rows])
        return result + booked(logits, target, self._text(), denoiser.ends, result.shape)
