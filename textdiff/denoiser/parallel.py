"""Parallel q(x0 | xt): a stock masked language model, which says all words of all gaps at once.

    q(words | xt) = prod_i q(w_i | xt)

Where lengths are known this is BERT, MDLM, LLaDA; where they are not, they are drawn first (see `lengths`). A causal model
whose attention was opened to both sides (`config.is_causal = False`) is read in the same way: LLaDA (arXiv:2502.09992) in
place, Dream (arXiv:2508.15487) shifted, so that the logits at i - 1 go on saying token i, as they were trained to.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser, device_of
from textdiff.denoiser.guessing import Guessing, embedded, reminded
from textdiff.denoiser.lengths import LengthFirst, possible, words_alone
from textdiff.denoiser.padding import Feed
from textdiff.denoiser.search import search
from textdiff.denoiser.words import at_once, together
from textdiff.keys import Key
from textdiff.posterior import Decode, Look, Measure, Posterior
from textdiff.tokens import Specials, Tokens


class Parallel(Denoiser):
    """Any `AutoModelForMaskedLM`, or an `AutoModelForCausalLM` that looks both ways. It is not told t: for masks the
    posterior does not depend on it.

    shift: the logits at i - 1 say token i, not those at i. The first token of a text, BOS, can then not be asked for.
    conditioned: it reads its last guess beside the text (`guessing`), for models that have learned to. A step that reveals
    nothing then still makes a new guess, so it is taken.
    """

    def __init__(self, model: Any, specials: Specials, shift: bool = False, conditioned: bool = False) -> None:
        super().__init__()
        self.model, self.specials, self.shift = model, specials, shift
        self.conditioned, self.timeless = conditioned, not conditioned
        self.feed = Feed(self)

    @property
    def home(self) -> torch.device:
        """The host, wherever the model is: a turn is many operations on few numbers, and a GPU takes as long to be told of
        each as the host to do it. Only ids go to the model, and only words come back."""
        return torch.device("cpu")

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return self.remember(ParallelPosterior(self, xt))

    def remember(self, said: Posterior) -> Posterior:
        """What is said of a state, whose guesses are read again in the next step where the model is conditioned."""
        return Guessing(said) if self.conditioned else said

    def reminded(self, xt: Tokens, t: Tensor, key: Key) -> Tokens:
        return reminded(self, xt, t, key) if self.conditioned else xt

    def open(self, x: Tokens, decode: Decode, key: Key) -> Tokens:
        """Gaps of a model without length tokens are opened by search."""
        if self.specials.lengths or not bool((x.ids == self.specials.gap).any()):
            return x
        there = device_of(self.model)  # it looks at all the logits
        return search(self, x.to(there), decode, key.to(there)).to(x.ids.device)

    def logits(self, x: Tokens, where: Tensor) -> Tensor:
        """(S, V) at `where` (B, L), with everything that cannot be said there forbidden."""
        return self.read(x).logits(where)

    def read(self, x: Tokens) -> "Reading":
        """Texts as the model reads them, once, to be asked wherever a word is wanted."""
        # a BOS that the model has no token for is not fed
        first = int(self._virtual(self.specials.bos))
        if first and x.packed:
            raise ValueError("packed texts begin with BOS, which this model lacks; set data.packed to false")
        seen = torch.ones_like(x.valid) if x.packed else x.valid  # packed rows bring a mask of their own
        said = self.feed.read(seen[:, first:], **self._inputs(x, first))
        return Reading(x, self.specials, said, first, self.shift)

    def _virtual(self, number: int) -> bool:
        """Whether the model has no row for an id; `specials.size` 0 does not say."""
        return 0 < self.specials.size <= number

    def _inputs(self, x: Tokens, first: int = 0) -> dict[str, Any]:
        """What the model is fed, from column `first` on."""
        ids, opened = x.ids.masked_fill(~x.valid, self.feed.pad), not getattr(self.model.config, "is_causal", True)
        alone: dict[str, Any] = {"use_cache": False} if opened else {}  # nothing is gone on with
        words = {"input_ids": ids[:, first:]}
        if self.conditioned:
            # guidance hides the user's words, which the last guess has, too
            hidden = (x.ids == self.specials.mask) & ~x.fixed
            guess = x.guess.masked_fill(~hidden, -1)[:, first:]
            words = {"inputs_embeds": embedded(self.model.get_input_embeddings(), ids[:, first:], guess)}
        if not x.packed:
            return words | {"attention_mask": x.valid[:, first:].long(), **alone}
        same = (x.doc[:, :, None] == x.doc[:, None, :])[:, None]  # (B, 1, L, L): padding sees padding, harmlessly
        dtype = self.model.dtype
        bias = torch.zeros(same.shape, dtype=dtype, device=x.ids.device).masked_fill(~same, torch.finfo(dtype).min)
        inputs = words | {"attention_mask": bias}
        if not opened:
            return inputs
        column = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        starts = torch.ones_like(x.fixed)
        starts[:, 1:] = x.doc[:, 1:] != x.doc[:, :-1]
        # causal models number the tokens of each text from 0, as when it is alone
        return inputs | alone | {"position_ids": column - column.masked_fill(~starts, 0).cummax(1).values}


class Said(Protocol):
    """A batch that a model has read, or will when it is asked."""

    def logits(self, where: Tensor) -> Tensor:
        """(S, V) at `where` (B, L)."""

    def pieces(self, where: Tensor) -> Iterator[Tensor]:
        """The same, in pieces (s, V)."""


class Reading:
    """What a model says of texts x (B, L), with everything that cannot be said at a place forbidden there. It says it where
    it is, wherever x is.

    first: how many columns of x are not fed. shift: the answer for a column stands one to its left.
    """

    def __init__(self, x: Tokens, specials: Specials, said: Said, first: int = 0, shift: bool = False) -> None:
        self.x, self.specials, self.said, self.first, self.shift = x, specials, said, first, shift

    def logits(self, where: Tensor) -> Tensor:
        """(S, V) at `where` (B, L)."""
        return self._possible(self.said.logits(self._fed(where)), where)

    def pieces(self, where: Tensor) -> Iterator[Tensor]:
        """The same, in pieces (s, V)."""
        begin, (row, column) = 0, where.nonzero(as_tuple=True)
        for logits in self.said.pieces(self._fed(where)):
            part = slice(begin, begin := begin + len(logits))
            yield self._possible(logits, (row[part], column[part]))

    def _fed(self, where: Tensor) -> Tensor:
        at = where[:, self.first :]
        if not self.shift:
            return at
        if bool(at[:, 0].any()):
            raise ValueError("logits one to the left say nothing of the first token; begin the text with a word")
        return at.roll(-1, 1)

    def _possible(self, logits: Tensor, where: Any) -> Tensor:
        if not self.specials.lengths:  # no number can be asked for
            return words_alone(logits, self.specials)
        gap, surplus = self.x.ids[where] == self.specials.gap, self.x.surplus[where]
        return possible(logits, gap.to(logits.device), self.specials, surplus.to(logits.device))


class Reader(Protocol):
    """A parallel denoiser, as its posterior asks it."""

    specials: Specials

    def read(self, x: Tokens) -> Any:
        """A `Reading` of x."""

    def parameters(self) -> Iterator[Any]:
        """The weights of its model."""


class ParallelPosterior(LengthFirst):
    """q(words | xt) = prod_i q(w_i | xt), of whatever can read."""

    factorised = True

    def __init__(self, denoiser: Reader, xt: Tokens) -> None:
        super().__init__(xt, denoiser.specials)
        self.denoiser = denoiser

    def ask(self, x: Tokens, where: Tensor) -> Tensor:
        return self.denoiser.read(x).logits(where).to(where.device)

    def look(self, x: Tokens, decode: Decode, u: Tensor) -> Look:
        return _Apart(self.denoiser, x, decode, u)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """The S places (B, L) bool where a word has to be said, and the log-probability of every word there (S, V)."""
        where = (self.xt.ids == self.specials.mask) | self.xt.doubtful
        return where, self.ask(self.xt, where).float().log_softmax(-1)

    def answer(self, states: Tokens, where: Tensor, truth: Tensor) -> Tensor:
        logits = self.ask(states, where).float()
        chosen = logits.log_softmax(-1).gather(1, truth[where][:, None])[:, 0]
        return torch.zeros(where.shape, device=chosen.device).masked_scatter(where, chosen)


class _Apart(Look):
    """Words that are drawn each alone: only rows that are asked about are read, and only once."""

    def __init__(self, denoiser: Reader, x: Tokens, decode: Decode, u: Tensor) -> None:
        self.denoiser, self.x, self.decode, self.u = denoiser, x, decode, u
        self._read: tuple[Tensor | slice, Tokens, Any] | None = None
        self._asked = torch.zeros(len(x), dtype=torch.bool)

    def words(self, where: Tensor) -> tuple[Tensor, Tensor]:
        wanted = together(self.x, where, self.decode, self.denoiser.specials.mask)
        rows, x, said = self._reading(wanted)
        mask = wanted[rows]
        device, specials = device_of(self.denoiser), self.denoiser.specials
        words, sure = at_once(x, mask, said.pieces, self.decode, self.u[rows], specials, device)
        if wanted is where:
            return words, sure
        here = where[rows][mask]
        return words[here], sure[here]

    def measure(self, measure: Measure, where: Tensor) -> Tensor:
        rows, _, said = self._reading(where)
        return torch.cat([measure(logits) for logits in said.pieces(where[rows])]).to(where.device)

    def _reading(self, where: Tensor) -> tuple[Tensor | slice, Tokens, Any]:
        """The rows with any such place, and how they are read: those of last time again, if all are among them."""
        asked = where.any(1)
        if self._read is None or bool((asked & ~self._asked).any()):
            rows: Tensor | slice = slice(None)
            if not bool(asked.all()):
                rows = asked.nonzero()[:, 0]
            x = self.x if isinstance(rows, slice) else self.x[rows]
            self._asked, self._read = asked, (rows, x, self.denoiser.read(x))
        return self._read
