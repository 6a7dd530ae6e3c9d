"""q(x0 | xt), the only thing that is learned: any transformer, autoregressive or not; and the exact one, for tests."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textdiff.denoiser.shared import lock_of
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process.base import Process
from textdiff.tokens import Tokens


class Denoiser(nn.Module, ABC):
    """Wraps a stock model. One instance serves every process whose states it can read.

    timeless: it is told neither t nor its last guess, so a step that leaves a state as it is need not be taken
        (`sampler.sample`).
    joint: its guess is of all words together, each given those before, so that one step loses nothing.
    """

    model: Any  # the stock model, whichever its class
    timeless: bool = False
    joint: bool = False

    @abstractmethod
    def forward(self, xt: Any, t: Tensor) -> Posterior:
        """q(x0 | xt) for states xt at times t (B,)."""

    def open(self, x: Any, decode: Decode, key: Key) -> Any:
        """The start state with all that has to be decided before the loop, such as lengths that the model cannot say."""
        return x

    def reminded(self, xt: Any, t: Tensor, key: Key) -> Any:
        """The states that are learned from, with what the model itself would know of them in reverse; here nothing."""
        return xt

    def fluency(self, x0: Any) -> Tensor:
        """(B,) how well whole texts read, in nats: what several fillings of one text are compared by, more is better."""
        raise ValueError("this model cannot compare whole texts, so it fills each once; leave candidates at 1")

    def session(self) -> "Denoiser":
        """Return a denoiser of the same model for one call, with a memory of its own where it has one.

        What a call returns depends on neither the calls before it nor those of other threads.
        """
        return self

    @property
    def lock(self) -> Any:
        """The lock of the model. Whoever runs the denoiser holds it, a step of the loop at a time."""
        return lock_of(getattr(self, "model", self))

    @property
    def home(self) -> torch.device:
        """Where the states that it reads are kept: with the model, unless it says otherwise."""
        return device_of(self)

    @property
    def longest(self) -> int | None:
        """How many tokens of a text the model reads, None where it does not say."""
        config = getattr(self.model.config, "text_config", self.model.config)
        longest = getattr(config, "max_position_embeddings", None)
        if longest is None or longest < 1:  # XLNet says -1
            return None
        return longest - _offset(self.model)


def device_of(model: Any) -> torch.device:
    """Where a model's first weights are; the host for one without any."""
    weight = next(model.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def _offset(model: nn.Module) -> int:
    """How many rows of its position embeddings no token has: RoBERTa counts positions from padding_idx + 1."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


_NEVER = torch.iinfo(torch.int64).max  # the code of states without probability


class Oracle(Denoiser):
    """The exact posterior of a finite data set, by enumerating the process: what a perfect model would answer.

    data: Tokens whose rows are the data set, equally likely. Only for toys: the cost is exponential in the length.
    """

    def __init__(self, process: Process, data: Tokens) -> None:
        super().__init__()
        self.process, self.data = process, data
        self._tables: dict[float, _Ways] = {}

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        time = float(t[0])
        if not bool((t == time).all()):
            raise ValueError("the oracle reads one time per batch")
        if time not in self._tables:
            self._tables[time] = self._table(t[:1])
        return _OraclePosterior(self.data, xt, self._tables[time])

    def _table(self, t: Tensor) -> "_Ways":
        states, texts, places, chances = [], [], [], []
        for number in range(len(self.data)):
            x0 = self.data[number : number + 1]
            noise, chance = self.process.cells(x0, t)
            x0 = x0[torch.zeros(len(chance), dtype=torch.long)]
            time = t.expand(len(chance))
            place = self.process.align(x0, noise, time).place
            states.append(self.process.corrupt(x0, noise, time).codes())
            texts.append(torch.full_like(states[-1], number))
            places.append(place if place.numel() else torch.arange(x0.ids.shape[1]).expand_as(x0.ids))
            chances.append(chance)
        state, text, place, chance = map(torch.cat, (states, texts, places, chances))
        state, order = state.masked_fill(chance == 0, _NEVER).sort(stable=True)
        order = order[state != _NEVER]
        state = state[state != _NEVER]
        codes, sizes = state.unique_consecutive(return_counts=True)
        text, place, chance = (part[order] for part in (text, place, chance))
        return _Ways(codes, sizes, text, place, chance)


class _Ways(NamedTuple):
    """How states come about: `codes` (S,) sorted, each with `sizes` (S,) consecutive rows of text, place and chance."""

    codes: Tensor
    sizes: Tensor
    text: Tensor
    place: Tensor
    chance: Tensor


class _OraclePosterior(Posterior):
    def __init__(self, data: Tokens, xt: Tokens, ways: _Ways) -> None:
        self.data, self.xt, self.ways = data, xt, ways
        codes = xt.codes()
        self.group = torch.searchsorted(ways.codes, codes).clamp_max(len(ways.codes) - 1)
        strange = ways.codes[self.group] != codes
        if bool(strange.any()):
            raise ValueError(f"no text of the data set can look like {xt.ids[strange][0].tolist()} at this time")
        self.end = ways.sizes.cumsum(0)

    def sample(self, decode: Decode, key: Key) -> Draw:
        # a distribution function per state, one after the other: state g is the interval [g, g + 1)
        weight = self.ways.chance / self._total().repeat_interleave(self.ways.sizes)
        cdf = weight.cumsum(0)
        u = key.uniform(1)[:, 0] + self.group
        chosen = torch.searchsorted(cdf, u, right=True)
        first = (self.end - self.ways.sizes)[self.group]
        chosen = chosen.maximum(first).minimum(self.end[self.group] - 1)  # whatever rounding moved across a border
        x0 = self.data[self.ways.text[chosen]]
        x0 = x0.with_(part=torch.where(x0.valid, self.xt.part[:, :1], 0))
        return Draw(x0, self.ways.place[chosen], x0.score)

    def log_prob(self, truth: Draw) -> Tensor:
        result = torch.zeros(truth.x0.ids.shape, dtype=torch.float64)
        texts = self.data.codes()[self.ways.text]
        total, codes = self._total(), truth.x0.with_(part=torch.zeros_like(truth.x0.part)).codes()
        for row, group in enumerate(self.group.tolist()):
            mine = slice(int(self.end[group] - self.ways.sizes[group]), int(self.end[group]))
            result[row, 0] = (self.ways.chance[mine][texts[mine] == codes[row]].sum() / total[group]).log()
        return result

    def _total(self) -> Tensor:
        """(S,) the probability of each state."""
        group = torch.arange(len(self.end)).repeat_interleave(self.ways.sizes)
        return torch.zeros(len(self.end), dtype=torch.float64).scatter_add(0, group, self.ways.chance)
