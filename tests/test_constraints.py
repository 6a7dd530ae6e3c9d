"""Draws under a constraint against laws that are enumerated, and the tokens that an autoregressive writer may choose from.

False alarms: every statistical test demands p > 1e-6 of 1500 draws (chi-square).
"""

from itertools import product

import pytest
import torch
from scipy import stats

from textdiff.constraints import Automaton, Constraint, Unsatisfiable, draw_run
from textdiff.drawing import draw_tokens
from textdiff.keys import Key
from textdiff.posterior import Decode

DRAWS, ALARM = 800, 1e-6
SEEDS = range(9)
EVEN = Automaton(torch.tensor([[1, -1], [0, 0]]), torch.tensor([True, False]))  # a, then anything, in pairs


def machine(seed: int, size: int = 4) -> Automaton:
    """Three states; for odd seeds the tokens come in three kinds, the last of which may hold several or none."""
    noise = torch.Generator().manual_seed(seed)
    kinds = 3 if seed % 2 else size
    step = torch.randint(0, 3, (3, kinds), generator=noise)
    step = step.masked_fill(torch.rand(3, kinds, generator=noise) < 0.35, -1)
    accept = torch.rand(3, generator=noise) < 0.5
    accept[int(torch.randint(0, 3, (1,), generator=noise))] = True
    return Automaton(step, accept, torch.randint(0, 3, (size,), generator=noise) if seed % 2 else None)


def accepts(a: Automaton, text: tuple[int, ...]) -> bool:
    state = 0
    for token in text:
        state = int(a.step[state, token if a.kind is None else a.kind[token]])
        if state < 0:
            return False
    return bool(a.accept[state])


def language(a: Automaton, n: int, size: int = 4) -> list[tuple[int, ...]]:
    texts = [((), 0)]
    for _ in range(n):
        texts = [
            ((*text, token), to)
            for text, state in texts
            for token in range(size)
            if (to := int(a.step[state, token if a.kind is None else a.kind[token]])) >= 0
        ]
    return [text for text, state in texts if a.accept[state]]


def law(a: Automaton, scores: torch.Tensor, given: torch.Tensor) -> dict[tuple[int, ...], float]:
    """By enumeration; the score of what is given does not count."""
    weights = {}
    for text in language(a, *scores.shape):
        if all(g in (-1, w) for g, w in zip(given.tolist(), text, strict=True)):
            log = sum(float(scores[i, w]) for i, w in enumerate(text) if given[i] < 0)
            weights[text] = float(torch.tensor(log, dtype=torch.float64).exp())
    total = sum(weights.values())
    return {text: weight / total for text, weight in weights.items() if weight} if total else {}


def case(seed: int, n: int = 3) -> tuple[Automaton, torch.Tensor, torch.Tensor]:
    """Scores of three places with one -inf among them; every third seed has a given token."""
    noise = torch.Generator().manual_seed(100 + seed)
    scores = 1.5 * torch.randn(n, 4, generator=noise, dtype=torch.float64)
    scores[seed % n, seed % 4] = -torch.inf
    given = torch.full((n,), -1)
    if seed % 3 == 0:
        given[seed % n] = (seed + 1) % 4
    return machine(seed), scores, given


def fit(draws: list[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """The chance of draws as far from the law as these (chi-square, cells of fewer than 10 pooled)."""
    if any(text not in expected for text in draws):
        return 0.0
    cells, rare = [], [0.0, 0.0]
    for text, chance in expected.items():
        seen, due = draws.count(text), len(draws) * chance
        if due >= 10:
            cells.append((seen, due))
        else:
            rare = [rare[0] + seen, rare[1] + due]
    cells += [tuple(rare)] if rare[1] else []
    return stats.chi2.sf(sum((s - d) ** 2 / d for s, d in cells), len(cells) - 1) if len(cells) > 1 else 1.0


def left_to_right(a: Automaton, scores: torch.Tensor, given: torch.Tensor, u: torch.Tensor) -> tuple[int, ...]:
    """The usual masking: every token from its own scores among those after which an end is in reach."""
    constraint, state, text = Constraint(automaton=a), torch.zeros(1, dtype=torch.int64), []
    for i, row in enumerate(scores):
        rest = given[i:].clone()
        ok = constraint.fitting(state, rest, scores.shape[1])
        row = torch.zeros_like(row) if given[i] >= 0 else row
        word = draw_tokens(row.masked_fill(~ok, -torch.inf)[None], u[i : i + 1], Decode())[0]
        state = constraint.next(state, word)
        text.append(int(word))
    return tuple(text)


def laws() -> list[int]:
    """The seeds whose law has something to choose."""
    return [seed for seed in SEEDS if len(law(*case(seed))) > 2]


def sample(a: Automaton, scores: torch.Tensor, given: torch.Tensor) -> list[tuple[int, ...]]:
    noise = Key.of(0, DRAWS).uniform(len(scores))
    return [tuple(draw_run(Constraint(automaton=a), scores, given, u).tolist()) for u in noise]


def test_there_are_laws_to_test():
    assert len(laws()) >= 5
    assert any(seed % 3 == 0 for seed in laws()) and any(seed % 2 for seed in laws())


@pytest.mark.parametrize("seed", laws()[:5])
def test_the_law_of_draws(seed):
    assert fit(sample(*case(seed)), law(*case(seed))) > ALARM


def test_left_to_right_masking_has_another_law():
    """a b | b a | b b: after a only b, and it is unlikely; masking does not see that when it chooses a."""
    a = Automaton(torch.tensor([[1, 2], [-1, 3], [3, 3], [-1, -1]]), torch.tensor([False, False, False, True]))
    scores, given = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64), torch.full((2,), -1)
    exact = law(a, scores, given)
    noise = Key.of(0, DRAWS).uniform(2)
    assert fit(sample(a, scores, given), exact) > ALARM
    assert fit([left_to_right(a, scores, given, u) for u in noise], exact) < ALARM


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_is_the_most_probable_string(seed):
    a, scores, given = case(seed)
    expected = law(a, scores, given)
    if not expected:
        with pytest.raises(Unsatisfiable):
            draw_run(Constraint(automaton=a), scores, given, torch.full((3,), 0.5), greedy=True)
        return
    best = tuple(draw_run(Constraint(automaton=a), scores, given, torch.full((3,), 0.5), greedy=True).tolist())
    assert best == max(expected, key=expected.get)


def test_greedy_by_place_is_another_string():
    """What the test above would not forgive: the best token of every place, of those that may stand there."""
    a = Automaton(torch.tensor([[1, 2], [-1, 3], [3, 3], [-1, -1]]), torch.tensor([False, False, False, True]))
    scores, given = torch.tensor([[0.1, 0.0], [3.0, 0.0]], dtype=torch.float64), torch.full((2,), -1)
    assert draw_run(Constraint(automaton=a), scores, given, torch.zeros(2), greedy=True).tolist() == [1, 0]
    ok = Constraint(automaton=a).fitting(torch.zeros(1, dtype=torch.int64), given, 2)
    assert int(scores[0].masked_fill(~ok, -torch.inf).argmax()) == 0


def test_without_an_automaton_it_is_the_plain_draw():
    noise = torch.Generator().manual_seed(3)
    scores = 5 * torch.randn(40, 7, generator=noise)
    u = torch.rand(40, generator=noise, dtype=torch.float64)
    free = torch.full((40,), -1)
    anything = Automaton(torch.zeros(1, 7, dtype=torch.int64), torch.tensor([True]))
    for constraint in (Constraint(), Constraint(automaton=anything)):
        assert torch.equal(draw_run(constraint, scores, free, u), draw_tokens(scores, u, Decode())[0])
        kept = free.index_fill(0, torch.tensor([5, 9]), 2)
        drawn = draw_run(constraint, scores, kept, u)
        assert drawn[[5, 9]].tolist() == [2, 2]
        assert torch.equal(drawn[kept < 0], draw_tokens(scores, u, Decode())[0][kept < 0])


def test_the_ends_of_the_unit_interval():
    """No rounding leads to a token without probability, wherever it stands."""
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]], dtype=torch.float64)
    for u, word in ((2.0**-60, 1), (1 - 2.0**-53, 3), (1.0, 3)):
        assert int(draw_run(Constraint(), scores, torch.tensor([-1]), torch.tensor([u], dtype=torch.float64))) == word


def test_long_runs_do_not_underflow():
    scores = torch.full((900, 2), -400.0)
    even = draw_run(Constraint(automaton=EVEN), scores, torch.full((900,), -1), torch.rand(900))
    assert accepts(EVEN, tuple(even.tolist()))


def test_what_cannot_be_drawn():
    free, u = torch.full((2,), -1), torch.full((2,), 0.5)
    scores = torch.zeros(2, 2)
    scores[0, 0] = -torch.inf  # the first token can only be 0
    with pytest.raises(Unsatisfiable, match="2 tokens"):
        draw_run(Constraint(automaton=EVEN), scores, free, u)
    with pytest.raises(Unsatisfiable):
        draw_run(Constraint(automaton=EVEN), torch.zeros(3, 2), torch.full((3,), -1), torch.full((3,), 0.5))
    with pytest.raises(Unsatisfiable):
        draw_run(Constraint(), torch.full((2, 2), -torch.inf), free, u)
    with pytest.raises(Unsatisfiable):
        draw_run(Constraint(automaton=EVEN), torch.zeros(2, 2), torch.tensor([1, -1]), u)
    assert draw_run(Constraint(automaton=EVEN), scores, torch.tensor([0, -1]), u)[0] == 0  # given, its score not read
    empty = torch.zeros(0, dtype=torch.int64)
    assert draw_run(Constraint(automaton=EVEN), torch.zeros(0, 2), empty, u[:0]).tolist() == []
    with pytest.raises(Unsatisfiable):
        never = Automaton(EVEN.step, torch.tensor([False, True]))
        draw_run(Constraint(automaton=never), torch.zeros(0, 2), empty, u[:0])


@pytest.mark.parametrize("seed", SEEDS)
def test_lengths_by_enumeration(seed):
    a = machine(seed)
    possible = [n for n in range(6) if language(a, n)]
    assert Constraint(automaton=a).lengths(5) == possible
    assert Constraint(2, 4, a).lengths(5) == [n for n in possible if 2 <= n <= 4]
    assert Constraint(0, 9, a).lengths(3) == [n for n in possible if n <= 3]
    assert Constraint(2, 4).lengths(3) == [2, 3]
    assert Constraint(5, None, a).lengths(3) == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("low", "high", "room"), [(0, None, 3), (2, 3, 9), (1, 4, 2), (3, None, 3)])
def test_allowed_tokens_by_enumeration(seed, low, high, room):
    """After every prefix exactly the tokens that some accepted string of an allowed length goes on with."""
    a = machine(seed)
    constraint, texts = Constraint(low, high, a), [t for n in range(6) for t in language(a, n)]
    for count in range(3):  # so no allowed text is longer than 5
        for prefix in product(range(4), repeat=count):
            state = constraint.begin()
            for token in prefix:
                state = constraint.next(state, torch.tensor([token]))
            top = min(count + room, 9 if high is None else high)
            expected = {t[count] for t in texts if max(low, count + 1) <= len(t) <= top and t[:count] == prefix}
            ok = constraint.allowed(state, torch.tensor([count]), 4, room=room)
            assert set(ok[0].nonzero()[:, 0].tolist()) == expected
            ended = count >= low and (high is None or count <= high) and accepts(a, prefix)
            assert bool(constraint.may_end(state, torch.tensor([count]))) == ended


@pytest.mark.parametrize("seed", SEEDS)
def test_walks_end_well_at_exactly_n(seed):
    constraint = Constraint(automaton=machine(seed))
    noise = torch.Generator().manual_seed(seed)
    for n in constraint.lengths(7):
        state = constraint.begin(16)
        for written in range(n):
            ok = constraint.allowed(state, torch.full((16,), written), 6, length=n)
            assert not ok[:, 4:].any()  # ids beyond the automaton's
            state = constraint.next(state, torch.multinomial(ok.double(), 1, generator=noise)[:, 0])
        assert constraint.may_end(state, torch.full((16,), n)).all()


def test_rows_with_counts_of_their_own():
    constraint = Constraint(0, None, EVEN)
    written, length = torch.tensor([0, 0, 1, 2]), torch.tensor([2, 1, 2, 2])
    state = torch.tensor([0, 0, 1, 0])
    ok = constraint.allowed(state, written, 2, length=length)
    assert ok.tolist() == [[True, False], [False, False], [True, True], [False, False]]
    free = Constraint(1, 3).allowed(constraint.begin(3), torch.tensor([0, 2, 3]), 5, room=torch.tensor([9, 0, 9]))
    assert free.tolist() == [[True] * 5, [False] * 5, [False] * 5]


@pytest.mark.parametrize("seed", SEEDS)
def test_fitting_tokens_by_enumeration(seed):
    a, _, _ = case(seed)
    constraint = Constraint(automaton=a)
    for rest in ([-1, -1, -1], [-1, 2, -1], [-1, -1, 1], [0, -1, -1], [-1]):
        texts = [t for t in language(a, len(rest)) if all(g in (-1, w) for g, w in zip(rest, t, strict=True))]
        ok = constraint.fitting(constraint.begin(), torch.tensor(rest), 4)
        assert set(ok.nonzero()[:, 0].tolist()) == {t[0] for t in texts}


def test_dead_states_stay_dead():
    constraint = Constraint(automaton=EVEN)
    state = constraint.next(torch.tensor([0, 0, -1]), torch.tensor([1, 7, 0]))
    assert state.tolist() == [-1, -1, -1]
    assert not constraint.allowed(state, torch.zeros(3, dtype=torch.int64), 2).any()
    assert not constraint.may_end(state, torch.zeros(3, dtype=torch.int64)).any()
    assert not constraint.fitting(state[:1], torch.tensor([-1, -1]), 2).any()


def test_endless_room_takes_no_endless_table():
    constraint = Constraint(5, None, EVEN)
    assert constraint.allowed(constraint.begin(), torch.zeros(1, dtype=torch.int64), 2).tolist() == [[True, False]]
    assert len(EVEN._rows) < 20
