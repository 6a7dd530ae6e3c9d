"""q(x0 | xt), the only thing that is learned: any transformer, autoregressive or not; and the exact one, for tests."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process.base import Process
from textdiff.tokens import Tokens


class Denoiser(nn.Module, ABC):
    """Wraps a stock model. One instance serves every process whose states it can read."""

    model: Any  # the stock model, whichever its class

    @abstractmethod
    def forward(self, xt: Any, t: Tensor) -> Posterior:
        """q(x0 | xt) for states xt at times t (B,)."""

    @property
    def longest(self) -> int | None:
        """How many tokens of a text the model reads, None where it does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)


class Oracle(Denoiser):
    """The exact posterior of a finite data set, by enumerating the process: what a perfect model would answer.

    data: Tokens whose rows are the data set, equally likely. Only for toys: the cost is exponential in the length.
    """

    def __init__(self, process: Process, data: Tokens, pad: int) -> None:
        super().__init__()
        self.process, self.data, self.pad = process, data, pad
        self._tables: dict[float, dict[tuple[int, ...], list[tuple[int, tuple[int, ...], float]]]] = {}

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        time = float(t[0])
        if not bool((t == time).all()):
            raise ValueError("the oracle reads one time per batch")
        if time not in self._tables:
            self._tables[time] = self._table(t[:1])
        return _OraclePosterior(self, xt, self._tables[time])

    def _table(self, t: Tensor) -> dict[tuple[int, ...], list[tuple[int, tuple[int, ...], float]]]:
        """state -> [(row of the data, place of each of its tokens, joint probability)]."""
        table: dict[tuple[int, ...], dict[tuple[int, tuple[int, ...]], float]] = {}
        for number in range(len(self.data)):
            x0 = self.data[number : number + 1]
            length = int(x0.valid.sum())
            for noise, chance in self.process.cells(x0, t):
                if chance == 0:
                    continue
                state = _text(self.process.corrupt(x0, noise, t))[0]
                place = self.process.align(x0, noise, t).place
                places = tuple(range(length)) if not place.numel() else tuple(place[0, :length].tolist())
                ways = table.setdefault(state, {})
                ways[number, places] = ways.get((number, places), 0.0) + chance
        return {state: [(n, p, chance) for (n, p), chance in ways.items()] for state, ways in table.items()}


class _OraclePosterior(Posterior):
    def __init__(self, oracle: Oracle, xt: Tokens, table: dict) -> None:
        self.oracle, self.xt, self.table = oracle, xt, table

    def sample(self, decode: Decode, key: Key) -> Draw:
        u = key.uniform(1)[:, 0]
        # column by column: torch.unique over whole rows sorts far slower
        which = torch.zeros(len(u), dtype=torch.long)
        for column in self.xt.ids.T:
            which = torch.unique(which * (int(self.xt.ids.max()) + 1) + column, return_inverse=True)[1]
        first = torch.zeros(int(which.max()) + 1, dtype=torch.long).scatter(0, which, torch.arange(len(u)))
        states = self.xt.ids[first]
        chosen = torch.zeros(len(u), dtype=torch.long)
        ways: list[tuple[int, tuple[int, ...], float]] = []
        for number, state in enumerate(states.tolist()):
            found = self.table[tuple(i for i in state if i != self.oracle.pad)]
            cdf = torch.tensor([way[2] for way in found], dtype=torch.float64).cumsum(0)
            rows = (which == number).nonzero()[:, 0]
            chosen[rows] = len(ways) + torch.searchsorted(cdf, u[rows] * cdf[-1]).clamp_max(len(found) - 1)
            ways.extend(found)
        return self._draw(ways, chosen)

    def _draw(self, ways: list[tuple[int, tuple[int, ...], float]], chosen: Tensor) -> Draw:
        data = self.oracle.data
        place = torch.zeros((len(ways), data.ids.shape[1]), dtype=torch.long)
        for number, (_, places, _) in enumerate(ways):
            place[number, : len(places)] = torch.tensor(places)
        x0 = data[torch.tensor([way[0] for way in ways])[chosen]]
        return Draw(x0, place[chosen], x0.score)

    def log_prob(self, truth: Draw) -> Tensor:
        result = torch.zeros(truth.x0.ids.shape, dtype=torch.float64)
        texts = _text(self.oracle.data)
        for row, (state, text) in enumerate(zip(_text(self.xt), _text(truth.x0), strict=True)):
            ways = self.table[state]
            mine = sum(way[2] for way in ways if texts[way[0]] == text)
            result[row, 0] = torch.tensor(mine / sum(way[2] for way in ways)).log()
        return result


def _text(x: Tokens) -> list[tuple[int, ...]]:
    return [tuple(ids[valid].tolist()) for ids, valid in zip(x.ids, x.valid, strict=True)]
