"""A weighted mixture of processes: q(x_t | x_0) = sum_c w_c q_c(x_t | x_0), the component c drawn per text.

One model learns to fill, to lengthen and to correct. x_t carries its component (`Tokens.part`), as side information that
denoisers need not read, so every rule stays within it: Su's law holds because it holds for each component.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw, Posterior
from textdiff.process.base import PRIOR, Noise, Process
from textdiff.tokens import Tokens, concatenate
from textdiff.validation import check_items, check_number


class MixedNoise(NamedTuple):
    """choice (B,): the component of each row. parts: for each component the noise of its rows, None where it has none."""

    choice: Tensor
    parts: list[Any]


class Mixture(Process):
    """Processes of one kind of text, with weights.

    The first one is what a user's own page starts from, and what the likelihood bound is of. ValueError for weights that
    are not positive.
    """

    def __init__(self, parts: Sequence[tuple[float, Process]], pad: int) -> None:
        parts = check_items("parts", parts, example="[(1, masking), (2, edit)]")
        weights = [check_number("the weight of a process", weight) for weight, _ in parts]
        if len(weights) < 2 or min(weights) <= 0:
            shown = ", ".join(f"{weight:g} {type(process).__name__}" for weight, process in parts)
            raise ValueError(f"a mixture of ({shown}) needs two processes or more, each with a weight above 0")
        self.weights = [weight / sum(weights) for weight in weights]
        self.processes, self.pad = [process for _, process in parts], pad

    def noise(self, x0: Tokens, key: Key) -> MixedNoise:
        dealt = x0.part[:, 0]  # a guess belongs to the component of the state it was made from
        choice = torch.where(dealt > 0, dealt - 1, self._drawn(key.fold(0)))
        mine = key.fold(1)
        return self._split(choice, lambda c, rows: self.processes[c].noise(x0[rows], mine[rows]))

    def corrupt(self, x0: Tokens, noise: MixedNoise, t: Tensor) -> Tokens:
        states, order = [], []
        for number, rows in self._rows(noise):
            xt = self.processes[number].corrupt(x0[rows], noise.parts[number], t[rows])
            dealt = torch.where((t[rows] > 0)[:, None] & xt.valid, number + 1, 0)
            states.append(xt.with_(part=dealt))
            order.append(rows)
        return concatenate(states, self.pad)[torch.cat(order).argsort()]

    def align(self, x0: Tokens, noise: MixedNoise, t: Tensor) -> Draw:
        place = torch.arange(x0.ids.shape[1], device=x0.ids.device).expand_as(x0.ids).clone()
        for number, rows in self._rows(noise):
            found = self.processes[number].align(x0[rows], noise.parts[number], t[rows]).place
            if found.numel():
                place[rows] = found
        return Draw(x0.with_(part=torch.where(x0.valid, noise.choice[:, None] + 1, 0)), place, x0.score)

    def infer(self, xt: Tokens, draw: Draw, t: Tensor, key: Key) -> MixedNoise:
        draw = draw.drawn(self._read(_choice(xt), draw))
        # of data, at t = 0, nothing tells the component
        choice = torch.where((t == 0) & (xt.part[:, 0] == 0), self._drawn(key.fold(PRIOR)), _choice(xt))
        return self._split(
            choice, lambda c, rows: self.processes[c].infer(xt[rows], _take(draw, rows), t[rows], key[rows])
        )

    def reads(self, draw: Draw) -> Tensor:
        return self._read(_choice(draw.x0), draw)

    def blend(self, inferred: MixedNoise, fresh: MixedNoise, rho: float | Tensor, key: Key) -> MixedNoise:
        if not bool((inferred.choice == fresh.choice).all()):
            raise ValueError(
                "noises of different components cannot be blended; a guess must keep the part of its state"
            )
        share = torch.as_tensor(rho)

        def make(c: int, rows: Tensor) -> Noise:
            mine = share[rows] if share.dim() else rho
            return self.processes[c].blend(inferred.parts[c], fresh.parts[c], mine, key[rows])

        return self._split(inferred.choice, make)

    def prior(self, x: Tokens, key: Key) -> Tokens:
        return super().prior(x, key.fold(PRIOR))

    @property
    def tied(self) -> bool:
        """Whether one of the processes is."""
        return any(process.tied for process in self.processes)

    def beta(self, t: Tensor) -> Tensor:
        shares = [process.beta(t) for process in self.processes]
        if any(not torch.equal(shares[0], other) for other in shares[1:]):
            raise ValueError("the processes of this mixture have schedules of their own; use the posterior rule")
        return shares[0]

    def shown(self, x0: Tokens, noise: MixedNoise, s: Tensor) -> Tensor:
        def of(c: int, rows: Tensor) -> Tensor:
            found = self.processes[c].shown(x0[rows], noise.parts[c], s[rows])
            return x0.valid[rows] if found is None else found

        return self._gathered(noise.choice, of)

    def moment(self, x: Tokens, t: Tensor) -> Tensor:
        return self._gathered(_choice(x), lambda c, rows: self.processes[c].moment(x[rows], t[rows]))

    def hidden(self, xt: Tokens, draw: Draw) -> Tensor:
        draw = draw.drawn(self._read(_choice(xt), draw))
        return self._gathered(_choice(xt), lambda c, rows: self.processes[c].hidden(xt[rows], _take(draw, rows)))

    def rank(self, noise: MixedNoise, xt: Tokens, draw: Draw, score: Tensor, lane: Tensor | None = None) -> MixedNoise:
        draw = draw.drawn(self._read(noise.choice, draw))

        def of(c: int, rows: Tensor) -> Noise:
            lanes = None if lane is None else lane[rows]
            return self.processes[c].rank(noise.parts[c], xt[rows], _take(draw, rows), score[rows], lanes)

        return self._split(noise.choice, of)

    def deal(self, noise: MixedNoise, x0: Tokens, hide: Tensor, s: Tensor, key: Key) -> MixedNoise:
        def of(c: int, rows: Tensor) -> Noise:
            return self.processes[c].deal(noise.parts[c], x0[rows], hide[rows], s[rows], key[rows])

        return self._split(noise.choice, of)

    def in_turn(self, noise: MixedNoise, x0: Tokens, lane: Tensor) -> MixedNoise:
        return self._split(
            noise.choice, lambda c, rows: self.processes[c].in_turn(noise.parts[c], x0[rows], lane[rows])
        )

    def weight(self, t: Tensor) -> Tensor:
        weights = [process.weight(t) for process in self.processes]
        if any(not torch.equal(weights[0], other) for other in weights[1:]):
            raise ValueError("the processes of this mixture weigh times differently; leave objective.weighted out")
        return weights[0]

    def price(self, posterior: Posterior, truth: Draw, xt: Tokens, t: Tensor) -> Tensor:
        return self.processes[0].price(posterior, truth, xt, t)

    def probe(self, x0: Tokens, key: Key) -> Iterator[tuple[MixedNoise, Tensor, Tensor]]:
        """The first component's bound: all of them are bounds of the same model, run by that process alone."""
        others: list[Any] = [None] * (len(self.processes) - 1)
        for noise, t, weight in self.processes[0].probe(x0, key):
            yield MixedNoise(torch.zeros(len(x0), dtype=torch.long, device=t.device), [noise, *others]), t, weight

    def size(self, x0: Tokens) -> Tensor:
        return x0.sizes

    def cells(self, x0: Tokens, t: Tensor) -> tuple[MixedNoise, Tensor]:
        found = [process.cells(x0, t) for process in self.processes]
        chance = torch.cat([weight * chances for weight, (_, chances) in zip(self.weights, found, strict=True)])
        sizes = torch.tensor([len(chances) for _, chances in found])
        choice = torch.arange(len(found)).repeat_interleave(sizes)
        return MixedNoise(choice, [noise for noise, _ in found]), chance

    def _read(self, choice: Tensor, draw: Draw) -> Tensor:
        """(B, M) which words are read, row by row, by the components `choice` (B,)."""

        def of(c: int, rows: Tensor) -> Tensor:
            words = self.processes[c].reads(_take(draw, rows))
            return draw.x0.valid[rows] if words is None else words

        return self._gathered(choice, of)

    def _drawn(self, key: Key) -> Tensor:
        """(B,) a component by its weight."""
        cdf = torch.tensor(self.weights, dtype=torch.float64, device=key.device).cumsum(0)
        return torch.searchsorted(cdf, key.uniform(1)[:, 0]).clamp_max(len(cdf) - 1)

    def _rows(self, noise: MixedNoise) -> Iterator[tuple[int, Tensor]]:
        for number in range(len(self.processes)):
            rows = (noise.choice == number).nonzero()[:, 0]
            if len(rows):
                yield number, rows

    def _split(self, choice: Tensor, make: Callable[[int, Tensor], Noise]) -> MixedNoise:
        """The noise made by each component for its rows."""
        parts: list[Noise] = [None] * len(self.processes)
        for number, rows in self._rows(MixedNoise(choice, parts)):
            parts[number] = make(number, rows)
        return MixedNoise(choice, parts)

    def _gathered(self, choice: Tensor, make: Callable[[int, Tensor], Tensor]) -> Tensor:
        """What each component says of its rows, in their order."""
        found = [(rows, make(number, rows)) for number, rows in self._rows(MixedNoise(choice, []))]
        return torch.cat([said for _, said in found])[torch.cat([rows for rows, _ in found]).argsort()]


def _choice(x: Tokens) -> Tensor:
    """(B,) the component of each text; a user's page is of the first."""
    return (x.part[:, 0] - 1).clamp_min(0)


def _take(draw: Draw, rows: Tensor) -> Draw:
    """Some rows of a draw, those words drawn that their component reads."""
    place = draw.place[rows] if draw.place.numel() else draw.place
    return Draw(draw.x0[rows], place, draw.log_prob[rows] if draw.log_prob.dim() else draw.log_prob)
