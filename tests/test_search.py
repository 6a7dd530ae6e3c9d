"""How many tokens belong in a gap: on a language whose masked model is exact, so that the right answers are known."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.test_laws import fit
from textdiff.constraints import Constraint
from textdiff.denoiser.parallel import Parallel
from textdiff.denoiser.search import ROWS, evidence, search
from textdiff.gaps import Gap
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.tokens import Specials, Tokens

PAD, BOS, MASK, GAP, FIRST = 0, 1, 2, 3, 4
KINDS, SAME = 9, 3  # kinds of words that follow each other in a circle, and how many words there are of each
SIZE = FIRST + KINDS * SAME
IDS = Specials(pad=PAD, bos=BOS, mask=MASK, gap=GAP, size=SIZE)


def circle(slips: float) -> Tensor:
    """(V, V) the chance of each word after each: of the next kind, with `slips` of any kind at all."""
    step = torch.full((KINDS, KINDS), slips / KINDS, dtype=torch.float64)
    step += (1 - slips) * torch.eye(KINDS, dtype=torch.float64).roll(1, 1)
    return step.repeat_interleave(SAME, 0).repeat_interleave(SAME, 1) / SAME


class Body(nn.Module):
    """p(x_i | all that is visible) of a Markov chain, by forward and backward messages: a perfect masked model."""

    def __init__(self, step: Tensor) -> None:
        super().__init__()
        self.step, self.seen = step, []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        self.seen.append(len(input_ids))
        rows, length = input_ids.shape
        words = torch.arange(FIRST, SIZE)
        fits = (input_ids[:, :, None] == words) | (input_ids < FIRST)[:, :, None]
        fits = fits.double()
        back, ahead = torch.ones(rows, length, len(words)).double(), torch.ones(rows, length, len(words)).double()
        for i in range(2, length):
            message = (back[:, i - 1] * fits[:, i - 1]) @ self.step
            back[:, i] = message / message.sum(1, keepdim=True)
        for i in reversed(range(1, length - 1)):
            message = (ahead[:, i + 1] * fits[:, i + 1]) @ self.step.T
            ahead[:, i] = message / message.sum(1, keepdim=True)
        logits = torch.full((rows, length, SIZE), -torch.inf, dtype=torch.float64)
        logits[:, :, FIRST:] = (back * ahead).log()
        return (logits,)


class Chain(nn.Module):
    """The same in the shape of a stock model."""

    def __init__(self, slips: float, reads: int = 100) -> None:
        super().__init__()
        self.base_model = Body(circle(slips))
        self.config = SimpleNamespace(max_position_embeddings=reads)

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.base_model(**inputs)[0])

    def get_output_embeddings(self) -> None:
        """The body says the words itself."""


def exact(slips: float = 0.1, reads: int = 100) -> Parallel:
    return Parallel(Chain(slips, reads), IDS)


def words(kinds: list[int], seed: int = 0) -> list[int]:
    """A word of each kind."""
    u = Key.of(seed, 1).uniform(len(kinds) + 1)[0]
    return [FIRST + kind % KINDS * SAME + int(u[i] * SAME) for i, kind in enumerate(kinds)]


def state(rows: list[list[int]], slots: dict[int, int] | None = None) -> Tokens:
    """The start state of rows in which GAP is a marker; slots: column -> slot, the same in every row."""
    x = Tokens.from_rows([[BOS, *row] for row in rows], PAD)
    marks = x.ids == GAP
    slot = torch.zeros_like(x.ids)
    for column, number in (slots or {}).items():
        slot[:, column] = number
    before = marks.roll(-1, 1)
    return x.with_(fixed=x.valid & ~marks, sealed=x.valid & ~marks & ~before, slot=slot)


def gapped(lengths: list[int], seed: int = 0, between: int = 3) -> list[int]:
    """A text round the circle with gaps of these lengths, `between` words around each."""
    row, kind = words(range(between), seed), between
    for number, length in enumerate(lengths):
        kind += length
        row += [GAP, *words(range(kind, kind + between), seed + number + 1)]
        kind += between
    return row


def found(x: Tokens, row: int = 0) -> list[int]:
    """The lengths of the runs of masks."""
    marks = "".join("m" if i == MASK else " " for i in x.ids[row].tolist())
    return [len(run) for run in marks.split()]


GREEDY = Decode(temperature=0.0)


def written(denoiser: Parallel, row: list[int], lengths: range) -> int:
    """The control: the length whose most probable words are the most probable altogether."""
    scores = {}
    for n in lengths:
        at = row.index(GAP)
        x = state([[*row[:at], *[MASK] * n, *row[at + 1 :]]])
        scores[n] = float(denoiser.logits(x, x.ids == MASK).log_softmax(-1).amax(-1).sum())
    return max(scores, key=lambda n: scores[n])


def test_right_lengths() -> None:
    """Every gap of 1 to 8 words, in texts of one, two and three gaps; the words' own probability says 1 to each."""
    denoiser = exact()
    for n in range(1, 9):
        other = n * 5 % 8 + 1
        for lengths in ([n], [n, other], [other, n, 2]):
            x = search(denoiser, state([gapped(lengths)]), replace(GREEDY, max_calls=200), Key.of(0, 1))
            assert found(x) == lengths
    right = [written(denoiser, gapped([n]), range(1, 9)) == n for n in range(1, 9)]
    assert right == [True] + [False] * 7


def test_evidence_is_exact() -> None:
    """Of a Markov chain the context says log P^(n+1)(left word, right word) of n: to 1e-9, whichever way it is asked.

    In one row a length (the word to the right), in two and in eight. Control: all words of a side asked at once count the
    same evidence again and again.
    """
    slips = 0.4
    row, step = gapped([3], between=4), circle(slips)
    text = state([row])
    column = (text.ids[0] == GAP).nonzero()[:, 0]
    left, right = (int(text.ids[0, column + i]) - FIRST for i in (-1, 1))
    lengths = list(range(1, 9))
    truth = torch.stack([torch.linalg.matrix_power(step, n + 1)[left, right].log() for n in lengths])
    denoiser = exact(slips)
    for each in (1, 2, 8):
        said = evidence(denoiser, text, column, [lengths], [lengths], each, 90)[0]
        assert said - said[0] == pytest.approx(truth - truth[0], abs=1e-9)
    at_once = []
    for n in lengths:
        x = state([[*row[:4], *[MASK] * n, *row[5:]]])
        hidden = torch.arange(x.ids.shape[1])[None] > 4 + n
        logits = denoiser.logits(x.with_(ids=x.ids.masked_fill(hidden, MASK)), hidden).log_softmax(-1)
        at_once.append(logits.gather(1, x.ids[hidden][:, None]).sum())
    assert at_once[2] - at_once[0] > 1.5 * (truth[2] - truth[0])


def test_drawn_by_bayes() -> None:
    """Lengths drawn at temperature 1 follow p(n) P^(n+1)(left word, right word), with p(n) ~ 0.8^n: 200 draws.

    Control: the uniform law on the same lengths.
    """
    slips, draws = 0.3, 200
    row, step = gapped([2], between=2), circle(slips)
    left, right = row[row.index(GAP) - 1] - FIRST, row[row.index(GAP) + 1] - FIRST
    chance = {n: float(torch.linalg.matrix_power(step, n + 1)[left, right]) * 0.8**n for n in range(1, 4)}
    law = {n: value / sum(chance.values()) for n, value in chance.items()}
    decode = Decode(constraints=(Constraint(1, 3),), max_calls=6)
    x = search(exact(slips), state([row] * draws, {row.index(GAP) + 1: 1}), decode, Key.of(3, draws))
    lengths = (x.ids == MASK).sum(1)
    counts = {n: int((lengths == n).sum()) for n in range(1, 4)}
    assert sum(counts.values()) == draws
    assert fit(counts, law) > 1e-6
    assert fit(counts, dict.fromkeys(range(1, 4), 1 / 3)) < 1e-6


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 7, 8, 16, 64])
def test_calls_are_bounded(calls: int) -> None:
    """No text costs more rows than it may, none of which go through the model too many at once."""
    denoiser = exact()
    seen = denoiser.model.base_model.seen
    for lengths in ([3], [3, 5], [1, 2, 3, 4, 5]):
        seen.clear()
        x = search(denoiser, state([gapped(lengths)]), replace(GREEDY, max_calls=calls), Key.of(0, 1))
        assert sum(seen) <= calls
        assert max(seen, default=0) <= ROWS
        assert len(found(x)) == len(lengths) and all(1 <= n <= 8 for n in found(x))
    if calls >= 16:  # enough for every length of the first text
        assert found(search(denoiser, state([gapped([3])]), replace(GREEDY, max_calls=calls), Key.of(0, 1))) == [3]


def test_long_ranges_are_thinned() -> None:
    """A gap of 1 to 60 tokens in 12 looks: lengths at growing distances, the last one among them."""
    row = gapped([3])
    decode = Decode(temperature=0.0, constraints=(Constraint(1, 60),), max_calls=12)
    denoiser = exact()
    x = search(denoiser, state([row], {row.index(GAP) + 1: 1}), decode, Key.of(0, 1))
    assert sum(denoiser.model.base_model.seen) <= 12
    assert 1 <= found(x)[0] <= 60


def test_batch_mates_change_nothing() -> None:
    """Alone, in another order, beside a long text or one without gaps: the same tokens, drawn at temperature 1."""
    denoiser, decode = exact(0.6), Decode(max_calls=32)
    rows = [gapped([2]), gapped([4, 1], 5), gapped([7], 9, between=9), words(range(12))]
    key = Key.of(1, 4)
    together = search(denoiser, state(rows), decode, key)
    for row in range(4):
        alone = search(denoiser, state(rows[row : row + 1]), decode, key[torch.tensor([row])])
        assert together.ids[row][together.valid[row]].tolist() == alone.ids[0].tolist()
    order = torch.tensor([3, 1, 0, 2])
    other = search(denoiser, state([rows[i] for i in order.tolist()]), decode, key[order])
    for new, old in enumerate(order.tolist()):
        assert other.ids[new][other.valid[new]].tolist() == together.ids[old][together.valid[old]].tolist()
    draws = {tuple(found(search(denoiser, state(rows[1:2]), decode, Key.of(seed, 1)))) for seed in range(20)}
    assert len(draws) > 1  # else nothing was drawn


def test_constraints_are_kept() -> None:
    """Bounds that exclude the truth, that leave one length, none to write, and a gap without bounds beside them."""
    row = gapped([2, 3, 4, 5])
    marks = [column + 1 for column, token in enumerate(row) if token == GAP]
    slots = dict(zip(marks, (1, 2, 3, 0), strict=True))
    constraints = (Constraint(4, 6), Constraint(3, 3), Constraint(0, 0))
    for seed in range(5):
        decode = Decode(constraints=constraints)
        x = search(exact(), state([row], slots), decode, Key.of(seed, 1))
        first, second, last = found(x)
        assert 4 <= first <= 6 and second == 3 and 1 <= last <= 8
        assert sorted(x.slot[0][x.ids[0] == MASK].tolist()) == sorted([1] * first + [2] * 3 + [0] * last)
    assert len(found(search(exact(), state([gapped([1])]), Decode(max_gap=1), Key.of(0, 1)))) == 1
    wide = Decode(max_gap=2, constraints=constraints)  # who asks for more than max_gap gets it
    assert 4 <= found(search(exact(), state([row], slots), wide, Key.of(0, 1)))[0] <= 6
    with pytest.raises(ValueError, match="fits what is asked of a gap"):
        search(exact(), state([row], slots), replace(wide, constraints=(Constraint(5, 4),) * 3), Key.of(0, 1))


def test_nothing_may_be_written() -> None:
    """A gap that may be empty and is: the words around it follow each other."""
    row = gapped([0])
    x = search(
        exact(), state([row], {row.index(GAP) + 1: 1}), replace(GREEDY, constraints=(Constraint(0, 8),)), Key.of(0, 1)
    )
    assert x.ids[0].tolist() == [BOS, *[token for token in row if token != GAP]]
    assert bool(x.sealed.all())


def test_same_state_as_given_lengths() -> None:
    """What comes out is what `[GAP:n]` starts from, flag for flag."""
    from tests.tiny import tiny_checkpoint
    from textdiff.filling import start_state

    checkpoint = tiny_checkpoint(lengths=0)
    ids = checkpoint.specials
    denoiser = Parallel(checkpoint.model, ids)
    parts = ["We ", Gap(), " people, ", Gap(), " on and on"]
    start = start_state([parts, ["We the ", Gap()], ["Go ", Gap.of(3), " on."]], checkpoint.tokenizer, ids)
    with torch.inference_mode():
        x = search(denoiser, start, GREEDY, Key.of(0, 3))
    lengths = found(SimpleNamespace(ids=x.ids.masked_fill(x.ids == ids.mask, MASK).masked_fill(x.ids != ids.mask, PAD)))
    given = ["We ", Gap.of(lengths[0]), " people, ", Gap.of(lengths[1]), " on and on"]
    last = int((x.ids[1] == ids.mask).sum())
    want = start_state([given, ["We the ", Gap.of(last)], ["Go ", Gap.of(3), " on."]], checkpoint.tokenizer, ids)
    for name in ("ids", "doc", "fixed", "counted", "sealed", "slot", "part", "score"):
        assert torch.equal(getattr(x, name), getattr(want, name)), name


def test_no_context_and_no_choice() -> None:
    """A blank page has no witness: the prior decides, in no calls."""
    denoiser = exact()
    x = search(denoiser, state([[GAP]]), GREEDY, Key.of(0, 1))
    assert found(x) == [1] and not denoiser.model.base_model.seen
    row = gapped([2])
    decode = Decode(constraints=(Constraint(5, 5),), max_calls=0)
    assert found(search(denoiser, state([row], {row.index(GAP) + 1: 1}), decode, Key.of(0, 1))) == [5]
    assert found(search(denoiser, state([[*words(range(3)), GAP]]), GREEDY, Key.of(0, 1)))[0] >= 1  # only a left side


def test_longest_text() -> None:
    """What the model cannot read is not tried; a text whose shortest gaps do not fit is refused."""
    row = gapped([5, 5])
    size = len(row) + 1 - 2
    for room in range(2, 12):
        x = search(exact(reads=size + room), state([row]), GREEDY, Key.of(0, 1))
        assert x.ids.shape[1] <= size + room
        assert found(x) == [5, 5] or room < 10
        y = search(exact(), state([row]), replace(GREEDY, longest=size + room), Key.of(0, 1))
        assert torch.equal(x.ids, y.ids)
    with pytest.raises(ValueError, match=f"the model reads {size + 1}"):
        search(exact(reads=size + 1), state([row]), GREEDY, Key.of(0, 1))
