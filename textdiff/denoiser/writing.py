"""Writing into the gaps of a state one token at a time: what models that were never trained for it have in common.

    q(words, end | xt) = prod_i q(w_i | xt, w_<i) q(end | xt, w)

Where the length is known, words are drawn given that none is the end.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.denoiser.feeding import Stream
from textdiff.denoiser.pages import Leash, Page, open_words
from textdiff.drawing import check_numbers, draw_tokens
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.tokens import Specials


class Choice(NamedTuple):
    """Tokens (S,), the log-probability that the model's own law gives each, and log of how much of the law, at this
    temperature, was open to the draw; 0 at temperature 0, where nothing is drawn."""

    ids: Tensor
    log_prob: Tensor
    mass: Tensor


def text_of(specials: Specials, size: int, device: torch.device, banned: tuple[int, ...] = ()) -> Tensor:
    """(size,) bool: the ids that are text."""
    text = torch.ones(size, dtype=torch.bool, device=device)
    text[[number for number in {*specials.not_text, *banned} if number < size]] = False
    if specials.size:
        text[specials.size :] = False
    return text


def choose(
    scores: Tensor, words: Tensor, read: list[list[int]], decode: Decode, u: Tensor, rank: list[int] | None = None,
    shift: Tensor | None = None,
) -> Choice:  # fmt: skip
    """A token for each of S places.

    scores: (S, V) float64, the model's own law. words: (S, V) bool, what may stand there. read: the text left of each
    place, for processors. shift: (S, V), added to what the draw sees, see `words_end`.
    rank: instead of a draw, the token so many places below the most probable one, as far as there are any.
    """
    own, total = scores, scores.logsumexp(-1)
    check_numbers(total)
    scores = processed(scores, read, decode)
    masked = scores.masked_fill(~words, -torch.inf)
    masked = masked if shift is None else masked + shift
    if bool(masked.isneginf().all(1).any()):
        raise ValueError("no word of the model's can stand in a gap; loosen its constraint, or the processors")
    if rank is None and not decode.temperature:
        ids = masked.argmax(-1)
    elif rank is None:
        ids = draw_tokens(masked, u, decode)[0]
    else:
        place = torch.tensor(rank, device=masked.device).minimum((~masked.isneginf()).sum(1) - 1)
        ids = masked.argsort(dim=1, descending=True, stable=True).gather(1, place[:, None])[:, 0]
    sure = own.gather(1, ids[:, None])[:, 0] - total
    if not decode.temperature:
        return Choice(ids, sure, torch.zeros_like(sure))
    heat = decode.temperature
    mass = (masked / heat).logsumexp(-1) - (scores / heat).logsumexp(-1)
    return Choice(ids, sure, mass)


def processed(scores: Tensor, read: list[list[int]], decode: Decode) -> Tensor:
    """What processors make of scores (S, V), those of one length of text together, so that none sees padding."""
    if not decode.processors:
        return scores
    scores, sizes = scores.clone(), [len(text) for text in read]
    for size in sorted({*sizes}):
        rows = [row for row, n in enumerate(sizes) if n == size]
        part, ids = scores[rows], torch.tensor([read[row] for row in rows], dtype=torch.int64, device=scores.device)
        scores[rows] = decode.process(ids, part).to(scores.dtype)
    return scores


def ended(logits: Tensor, text: Tensor, ends: list[int], known: list[bool]) -> Tensor:
    """The law (S, V) over words and the end of the gap, unnormalised: all tokens that end it count as ends[0].

    Where the length is known there is no end. Nothing else can be said.
    """
    logits = logits.double()
    end = logits[:, ends].logsumexp(-1)
    end = end.masked_fill(torch.tensor(known, device=logits.device), -torch.inf)
    column = torch.zeros_like(text)
    column[ends[0]] = True
    return torch.where(column, end[:, None], logits.masked_fill(~text, -torch.inf))


class _Dice:
    """The random numbers of each gap, by row and by word, whatever is written in which turn."""

    def __init__(self, key: Key) -> None:
        self.key, self.known = key, dict[int, list[list[float]]]()

    def of(self, rows: list[int], gaps: list[int], leashes: list[Leash]) -> Tensor:
        """(S,) float64, for the next word of each row in its gap."""
        for gap in {*gaps}:
            widest = max(leash.longest for leash, its in zip(leashes, gaps, strict=True) if its == gap) + 1
            if gap not in self.known or len(self.known[gap][0]) < widest:
                self.known[gap] = self.key.fold(gap).uniform(widest).tolist()
        where = zip(rows, gaps, leashes, strict=True)
        return torch.tensor([self.known[gap][row][leash.written] for row, gap, leash in where], dtype=torch.float64)


def _next(
    logits: Tensor,
    leashes: list[Leash],
    text: Tensor,
    ends: list[int],
    left: list[list[int]],
    decode: Decode,
    u: Tensor,
) -> Choice:
    """A word for each gap, or its end where it may end there."""
    words = open_words(leashes, text)
    words[:, ends[0]] = torch.tensor([not leash.known and leash.may_end for leash in leashes], device=text.device)
    scores = ended(logits, text, ends, [leash.known for leash in leashes])
    return choose(scores, words, left, decode, u, shift=words_end(scores, words, leashes, ends[0]))


def words_end(scores: Tensor, words: Tensor, leashes: list[Leash], end: int) -> Tensor | None:
    """What a length in words adds to scores (S, V), of which `words` (S, V) may stand there; None where none is asked.

    Whether a word goes on is the model's to say, whatever may follow it: the probability of all that ends a word, the next
    word or the end of the gap, goes to those of them that are left. If the other words were merely struck out, the
    model would have to go on with a word that is complete.
    """
    shift = None
    for row, leash in enumerate(leashes):
        machine = leash.constraint.automaton
        if machine is None or machine.fresh is None or leash.known or not leash.written:
            continue
        over = torch.zeros_like(words[row])
        over[: machine.size] = machine.fresh.to(over.device)[: len(over)]
        over[end] = True
        left = over & words[row]
        more = scores[row, over].logsumexp(0) - scores[row, left].logsumexp(0) if bool(left.any()) else -torch.inf
        if bool(torch.as_tensor(more).isfinite()):
            shift = torch.zeros_like(scores) if shift is None else shift
            shift[row, left] = more
    return shift


def write(
    stream: Stream, pages: list[Page], gaps: list[range], bridge: Callable[[int], list[int]], text: Tensor,
    ends: list[int], key: Key,
) -> None:  # fmt: skip
    """Write the `gaps` of each page into it; `bridge` is fed before the words of a gap, but for the first, which was.

    A gap ends with any of the tokens `ends`, or where it can hold no more; none is fed. Past the deadline nothing is fed at
    all: gaps that may end do, and what the others need is drawn from the last logits.
    """
    decode = pages[0].decode
    dice = _Dice(key)
    at, queue = [r.start for r in gaps], [[] for _ in pages]  # type: list[int], list[list[int]]
    leash = [p.leash(g) for p, g in zip(pages, at, strict=True)]

    def close(row: int) -> None:
        """Go on to the next gap that has room."""
        at[row] += 1
        while at[row] < gaps[row].stop:
            queue[row] += bridge(at[row])
            leash[row] = pages[row].leash(at[row])
            if not leash[row].full:
                return
            at[row] += 1

    for row in range(len(pages)):
        if leash[row].full:
            close(row)
    while any(at[row] < gaps[row].stop for row in range(len(pages))):
        late = decode.expired
        for row in range(len(pages) if late else 0):
            queue[row].clear()
            while at[row] < gaps[row].stop and leash[row].may_end and not leash[row].known:
                close(row)
            queue[row].clear()
        asked = [row for row in range(len(pages)) if at[row] < gaps[row].stop and not queue[row]]
        if asked:
            mine = [leash[row] for row in asked]
            u = dice.of(asked, [at[row] for row in asked], mine)
            left = [pages[row].left(at[row]) for row in asked] if decode.processors else []
            choice = _next(stream.logits[asked], mine, text, ends, left, decode, u.to(text.device))
            for row, word, sure in zip(asked, choice.ids.tolist(), choice.log_prob.tolist(), strict=True):
                if word == ends[0]:
                    close(row)
                    continue
                pages[row].write(at[row], word, sure)
                leash[row] = leash[row].push(word)
                queue[row].append(word)
                if leash[row].full:
                    close(row)
        if not late and any(at[row] < gaps[row].stop for row in range(len(pages))):
            stream.feed([tokens.pop(0) if tokens else None for tokens in queue])


class Booked(NamedTuple):
    """A token of the truth, the row and element its log-probability is booked on, whether the gap's length is known."""

    row: int
    element: int
    token: int
    known: bool


def booked(logits: Tensor, target: list[Booked], text: Tensor, ends: list[int], shape: torch.Size) -> Tensor:
    """(B, M) the log-probability of each target under its logits (N, V), added up on its element."""
    row, element, token, known = (list(part) for part in zip(*target, strict=True))
    chosen = torch.tensor(token, device=logits.device)[:, None]
    score = ended(logits, text, ends, known).log_softmax(-1).gather(1, chosen)[:, 0].float()
    place = torch.tensor(row, device=logits.device), torch.tensor(element, device=logits.device)
    return torch.zeros(shape, device=logits.device).index_put(place, score, accumulate=True)
