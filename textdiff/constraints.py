"""What a user asks of a gap: how many tokens, and which strings of them, kept exactly while a model writes.

    p(w | w in L) = 1[w in L] prod_i p_i(w_i) / Z        for words said all at once, p_i = softmax(scores_i)

L is the language of a finite automaton over tokens. Its backward messages beta_i(s) = log sum_w p_i(w) e^beta_{i+1}(s.w)
are the probability that words not yet drawn lead from state s to an accepted end; drawing w_i in proportion to
p_i(w) e^beta_{i+1}(s.w) is then a draw from the conditioned law itself, not left-to-right masking (which draws from
another one). Forward filtering, backward sampling: Rabiner 1989; for text, Ctrl-G (arXiv:2406.13892).
A model that writes word by word gets the tokens after which an accepted end is still in reach.

A constraint belongs to the elements whose `Tokens.slot` is its number, counted from 1: `Decode.constraints[slot - 1]`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

KEPT_TOTALS = 1 << 22  # entries of `Automaton._total` that are kept


class Unsatisfiable(ValueError):
    """No string of that many tokens has a finite score, keeps the given ones and is accepted."""


@dataclass(frozen=True, eq=False)
class Automaton:
    """Strings of tokens. State 0 is where they begin.

    step: (S, C) int64, the state after a token of each kind; -1 where such a token cannot stand.
    accept: (S,) bool, where a string may end.
    kind: (V,) int64, which of the C columns is each token's; None where every token has its own, C = V.
    fresh: (V,) bool, of a gap whose length is in words: the tokens that begin one. None elsewhere.
    """

    step: Tensor
    accept: Tensor
    kind: Tensor | None = None
    fresh: Tensor | None = None

    def to(self, device: torch.device | str) -> "Automaton":
        """The same automaton on another device; moved once."""
        device = torch.device(device)
        if device == self.step.device:
            return self
        if device not in self._copies:
            kind, fresh = (None if part is None else part.to(device) for part in (self.kind, self.fresh))
            self._copies[device] = Automaton(self.step.to(device), self.accept.to(device), kind, fresh)
        return self._copies[device]

    @property
    def size(self) -> int:
        """V, how many ids it knows."""
        return self.step.shape[1] if self.kind is None else len(self.kind)

    @cached_property
    def _copies(self) -> dict[torch.device, "Automaton"]:
        return {}

    def table(self, size: int) -> tuple[Tensor, Tensor]:
        """The steps (S, C+1), S for what cannot stand, and the columns (size,) of ids 0..size-1; the last is never open."""
        if size not in self._columns:
            kinds = self.step.shape[1]
            kind = torch.arange(kinds, device=self.step.device) if self.kind is None else self.kind
            column = torch.full((size,), kinds, device=self.step.device)
            column[: len(kind)] = kind[:size]
            self._columns[size] = column
        return self._steps, self._columns[size]

    @cached_property
    def _steps(self) -> Tensor:
        states = len(self.step)
        step = torch.cat([self.step, self.step.new_full((states, 1), -1)], 1)
        return step.masked_fill(step < 0, states)

    @cached_property
    def _columns(self) -> dict[int, Tensor]:
        return {}

    @cached_property
    def partial(self) -> Tensor:
        """(V,) bool: tokens that alone are no string that is accepted."""
        kind = torch.arange(self.size, device=self.step.device) if self.kind is None else self.kind
        after = self.step[0, kind]
        return (after < 0) | ~self.accept[after.clamp_min(0)]

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether a string of tokens is accepted."""
        state = self.after(tokens)
        return state >= 0 and bool(self.accept[state])

    def after(self, tokens: Sequence[int]) -> int:
        """The state after a string of tokens; -1 where one of them cannot stand."""
        state = 0
        for token in tokens:
            if state < 0 or not 0 <= token < self.size:
                return -1
            state = int(self.step[state, token if self.kind is None else self.kind[token]])
        return state

    def reads(self, tokens: list[int | None]) -> bool:
        """Whether a string of tokens, None for any one, can be accepted."""
        alive = torch.zeros_like(self.accept)
        alive[0] = True
        left, right = self._edges
        for token in tokens:
            after = torch.zeros_like(alive)
            if token is None:
                after[right[alive[left]]] = True
            elif 0 <= token < self.size:
                found = self.step[alive, token if self.kind is None else self.kind[token]]
                after[found[found >= 0]] = True
            alive = after
        return bool((alive & self.accept).any())

    def reach(self, count: int) -> Tensor:
        """(K+1, S) bool, K <= count: the states from which some k = 0..K tokens lead to an accepted end.

        Where K < count, the last row holds for all greater k, too.
        """
        rows = self._rows
        while len(rows) <= count and not (len(rows) > 1 and torch.equal(rows[-1], rows[-2])):
            rows.append(self.back(rows[-1]))
        return torch.stack(rows[: count + 1])

    def back(self, states: Tensor) -> Tensor:
        """(S,) bool: where some token leads into `states` (S,) bool."""
        left, right = self._edges
        result = torch.zeros_like(states)
        result[left[states[right]]] = True
        return result

    @cached_property
    def _rows(self) -> list[Tensor]:
        return [self.accept]

    @cached_property
    def _edges(self) -> Tensor:
        """(2, E): the pairs of states that some token joins."""
        left, column = (self.step >= 0).nonzero(as_tuple=True)
        states = len(self.step)
        pairs = (left * states + self.step[left, column]).unique()
        return torch.stack([pairs // states, pairs % states])

    def window(self, least: Tensor, most: Tensor) -> Tensor:
        """(R, S) bool: the states from which least..most (R,) tokens, in some number, lead to an accepted end."""
        # a way of at least k tokens exists only if one of fewer than k + S does: it need not go round in circles
        most = most.minimum(least + len(self.accept))
        total = self._total(int(most.max().clamp_min(0)))
        last = len(total) - 2
        first, end = least.clamp_max(last), most.clamp(-1, last) + 1
        return (total[end] > total[first]) & (most >= least)[:, None]

    def _total(self, count: int) -> Tensor:
        """(K+2, S) int32, K >= count or as in `reach`: of how many k below each row some k tokens lead to an end.

        Kept, as far as it is small: it is asked for at every token of a gap, with fewer tokens left each time.
        """
        total, enough = self._totals.get("total", (None, 0.0))
        if total is not None and count <= enough:
            return total
        reach = self.reach(count).int()
        total = torch.cat([torch.zeros_like(reach[:1]), reach.cumsum(0, dtype=torch.int32)])
        if total.numel() <= KEPT_TOTALS:
            self._totals["total"] = total, math.inf if len(reach) <= count else float(count)
        return total

    @cached_property
    def _totals(self) -> dict[str, tuple[Tensor, float]]:
        return {}


@dataclass(frozen=True)
class Constraint:
    """Between low and high tokens (None: no limit), accepted by an automaton (None: any); `whole`: see `decided`.

    States are of whole gaps: a gap's first token is read in state 0, whatever stands left of it. (R,) are rows, one gap
    each, all under this constraint. Everything works on the device of its arguments.
    """

    low: int = 0
    high: int | None = None
    automaton: Automaton | None = None
    whole: int | None = None

    def decided(self, longest: int) -> list[int]:
        """The `lengths` to choose among before the words are known: up to `whole`, where some are.

        A gap of three words whose five tokens are decided has to join tokens to words that they do not belong to.
        """
        few = [] if self.whole is None else self.lengths(min(longest, self.whole))
        return few or self.lengths(longest)

    def lengths(self, longest: int) -> list[int]:
        """The numbers of tokens n with low <= n <= high and n <= longest of which some string is accepted, rising."""
        top = longest if self.high is None else min(longest, self.high)
        numbers = range(max(self.low, 0), top + 1)
        if self.automaton is None or not numbers:
            return [*numbers]
        possible = self.automaton.reach(top)[:, 0].tolist()
        return [n for n in numbers if possible[min(n, len(possible) - 1)]]

    def begin(self, rows: int = 1) -> Tensor:
        """(R,) int64, the state before the first token."""
        return torch.zeros(rows, dtype=torch.int64)

    def next(self, state: Tensor, token: Tensor) -> Tensor:
        """(R,) the states after tokens (R,); -1 where one cannot stand, and from -1 on."""
        if self.automaton is None:
            return state
        machine = self.automaton.to(state.device)
        step, column = machine.table(machine.size)
        known = (token >= 0) & (token < machine.size)
        state = torch.where(state < 0, state, step[state.clamp_min(0), column[token.clamp(0, machine.size - 1)]])
        return state.masked_fill((state == len(step)) | ~known, -1)

    def allowed(
        self,
        state: Tensor,
        written: Tensor,
        size: int,
        room: Tensor | int | None = None,
        length: Tensor | int | None = None,
    ) -> Tensor:
        """(R, size) bool: tokens after which the gap can still end well. `written` (R,) tokens stand in it already.

        With `length` (R,), how many tokens the whole gap has: those after which an accepted end can be reached in exactly
        length - written - 1 more (low and high are not asked again). Without: in some number that keeps low and high and
        writes at most `room` (R,) more, this one counted (None: no limit). Whoever begins with a length of `lengths`, or
        room for one, and writes allowed tokens only, never meets a row without one before the gap may end.
        """
        if length is not None:
            least = most = torch.as_tensor(length, device=state.device) - written
        else:
            endless = torch.full_like(written, torch.iinfo(torch.int64).max)
            least = (self.low - written).clamp_min(1)
            most = endless if self.high is None else self.high - written
            most = most if room is None else most.minimum(torch.as_tensor(room, device=state.device))
        some = (most >= least) & (least >= 1) & (state >= 0)
        if self.automaton is None:
            return some[:, None].expand(-1, size).clone()
        machine = self.automaton.to(state.device)
        step, column = machine.table(size)
        ends = machine.window((least - 1).clamp_min(0), most - 1)
        ends = torch.cat([ends, torch.zeros_like(ends[:, :1])], 1)
        return ends.gather(1, step[state.clamp_min(0)])[:, column] & some[:, None]

    def fitting(self, state: Tensor, rest: Tensor, size: int) -> Tensor:
        """(size,) bool: tokens for the first of the n places left, rest (n,), -1 or the id that is given there already.

        Those with which an accepted end can be reached in exactly n tokens, the given ones among them. `state` has one
        element.
        """
        free = torch.arange(size, device=rest.device)
        wanted = (free == rest[0]) | (rest[0] < 0)
        if self.automaton is None:
            return wanted
        machine = self.automaton.to(rest.device)
        step, column = machine.table(size)
        ends = machine.accept
        for token in reversed(rest[1:].tolist()):
            ends = machine.back(ends) if token < 0 else _padded(ends)[step[:, column[token]]]
        alive = int(state) >= 0
        return wanted & _padded(ends)[step[int(state), column[:size]]] & alive

    def may_end(self, state: Tensor, written: Tensor) -> Tensor:
        """(R,) bool: whether the gap may end here, with `written` (R,) tokens in it."""
        enough = (written >= self.low) & (state >= 0)
        if self.high is not None:
            enough &= written <= self.high
        return enough if self.automaton is None else enough & self.automaton.to(state.device).accept[state.clamp_min(0)]


def draw_run(constraint: Constraint, scores: Tensor, given: Tensor, u: Tensor, greedy: bool = False) -> Tensor:
    """(n,) int64 w ~ prod_i softmax(scores_i)[w_i], given that the automaton accepts w and that w_i = given_i. Exact.

    scores: (n, V), any float, computed in float64; may hold -inf (banned, truncated). All places of one gap, in order.
    given: (n,) int64, the id that stands there already, or -1; its score is not read.
    u: (n,) in (0, 1), one for each place. With no automaton the draw is that of `posterior.draw_tokens`, place by place.
    greedy: the most probable accepted string instead (Viterbi); u is not read.
    That n lies between low and high is the caller's to see to, with `lengths`. Raises Unsatisfiable where no accepted
    string has a finite score: where the scores were truncated, draw again from those that were not.
    """
    scores = _with_given(scores.double(), given)
    if constraint.automaton is None:
        ahead = None
        dead = bool((scores == -torch.inf).all(-1).any())
    else:
        machine = constraint.automaton.to(scores.device)
        step, column = machine.table(scores.shape[1])
        ahead = _messages(step, machine.accept, _by_kind(scores, column, step.shape[1], greedy), greedy)
        dead = bool(ahead[0, 0] == -torch.inf)
    if dead:
        raise Unsatisfiable(
            f"no string of {len(scores)} tokens keeps the constraint and the given tokens with scores left to it; "
            "allow another length, or truncate the scores less (top_k, top_p)"
        )
    words, state = [], torch.zeros((), dtype=torch.int64, device=scores.device)
    for place, row in enumerate(scores):
        if ahead is not None:
            row = row + ahead[place + 1][step[state, column]]
        words.append(row.argmax() if greedy else _invert(row, u[place]))
        if ahead is not None:
            state = step[state, column[words[-1]]]
    return torch.stack(words) if words else given.clone()


def _padded(states: Tensor) -> Tensor:
    """(S+1,): False for the state of what cannot stand."""
    return torch.cat([states, torch.zeros_like(states[:1])])


def _with_given(scores: Tensor, given: Tensor) -> Tensor:
    """Scores (n, V) that leave nothing but the given tokens where there are some."""
    here = (given >= 0)[:, None]
    ids = torch.arange(scores.shape[1], device=scores.device)
    only = torch.zeros_like(scores).masked_fill(ids != given[:, None], -torch.inf)
    return torch.where(here, only, scores)


def _by_kind(scores: Tensor, column: Tensor, kinds: int, greedy: bool) -> Tensor:
    """(n, C+1): log of the summed exponentials of scores (n, V) over the tokens of each kind, or the best of them."""
    index = column.expand(len(scores), -1)
    best = scores.new_full((len(scores), kinds), -torch.inf).scatter_reduce(1, index, scores, "amax")
    if greedy:
        return best
    shift = best.masked_fill(best == -torch.inf, 0)
    return torch.zeros_like(best).scatter_add(1, index, (scores - shift.gather(1, index)).exp()).log() + shift


def _messages(step: Tensor, accept: Tensor, mass: Tensor, greedy: bool) -> Tensor:
    """beta (n+1, S+1), log: what the places from i on give to strings that lead from state s to an accepted end."""
    never = mass.new_full((1,), -torch.inf)
    ahead = [torch.cat([torch.where(accept, 0.0, never), never])]
    for row in mass.flip(0):
        through = row + ahead[-1][step]
        here = through.amax(1) if greedy else through.logsumexp(1)
        ahead.append(torch.cat([here, never]))
    return torch.stack(ahead[::-1])


def _invert(row: Tensor, u: Tensor) -> Tensor:
    """The token at u in (0, 1) of the distribution function of softmax(row)."""
    cdf = row.softmax(-1).cumsum(-1)
    found = torch.searchsorted(cdf, (u * cdf[-1])[None], right=True)[0]
    return found.minimum(torch.searchsorted(cdf, cdf[-1:])[0])  # never beyond the last token that has probability
