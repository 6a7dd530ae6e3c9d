"""Words for open places, drawn so that every constraint on a gap is kept.

Said all at once, the words of a constrained gap are one draw from the product of their distributions given that the
automaton accepts them (`draw_run`); written one by one, each is drawn among those after which an accepted end is in reach.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from textdiff.constraints import Constraint, Unsatisfiable, draw_run
from textdiff.drawing import draw_tokens, truncate, words_before
from textdiff.posterior import Decode
from textdiff.tokens import Specials, Tokens

_ROWS = 64


def processed(logits: Tensor, prefix: Tensor, decode: Decode) -> Tensor:
    """Logits (S, V) as the user's processors leave them; `prefix` (S, n) is what they see of each text.

    What could not be said before (special tokens) cannot be said after them either.
    """
    if not decode.processors:
        return logits
    mute = logits == -torch.inf
    logits = decode.process(prefix, logits).masked_fill(mute, -torch.inf)
    if bool(logits.isneginf().all(-1).any()):
        raise Unsatisfiable("the processors leave no word that can stand in a gap; loosen them")
    return logits


def at_once(
    x: Tokens, mask: Tensor, say: Callable[[Tensor], Iterable[Tensor]], decode: Decode, u: Tensor, specials: Specials,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A word for each of the S open places of x, `mask` (B, L), and u (B, L): its id, and its log-probability.

    say: the logits at open places (B, L), in pieces (s, V). The log-probability is the model's own, whatever the processors
    did. device: of the logits, if that is another. Gaps whose words make no text are drawn again, given that they do.
    """
    words, sure = _at_once(x, mask, say(mask), decode, u, specials.pad, device)
    found = broken(x, x.ids.masked_scatter(mask, words), (x.ids == specials.mask) & ~mask, decode, specials.mask)
    if found is None:
        return words, sure
    x, whole, decode = found
    try:
        again, its = _at_once(x, whole, say(whole), decode, another(u), specials.pad, device)
    except Unsatisfiable:
        return words, sure  # what stood there before cannot be mended; `spelling.joined` leaves broken characters out
    both = whole & mask
    words[both[mask]], sure[both[mask]] = again[both[whole]], its[both[whole]]
    return words, sure


def another(u: Tensor) -> Tensor:
    """Random numbers for a second draw where the first was refused: the digits of u that it did not read."""
    return (u * 2**20).frac().clamp(1e-9, 1 - 1e-9)


def broken(x: Tokens, ids: Tensor, open_: Tensor, decode: Decode, mask: int) -> tuple[Tokens, Tensor, Decode] | None:
    """The gaps of x, filled with `ids` (B, L) but where they are `open_`, that are no text, each under a slot of its own.

    Returns x, the places (B, L) of theirs that were open, and how they are drawn: under `decode.text`, and for them what
    top_k, top_p and min_p leave out is left out first, as it was when they were drawn before: so both draws together have
    one law, what is left given that it is text. None for none. Gaps under another automaton are not looked at.
    """
    text = decode.text
    if text is None:
        return None
    free = x.valid & ~x.fixed
    if decode.spells:
        free &= ~_bound(x, decode)
    known = free & ~open_ & (ids < text.size)
    partial = text.to(ids.device).partial[ids.masked_fill(~known, 0)] & known
    if not bool(partial.any()):
        return None
    slot, constraints = x.slot.clone(), list(decode.constraints)
    for row in partial.any(1).nonzero()[:, 0].tolist():
        first = torch.ones_like(free[row])
        first[1:] = ~free[row, :-1] | (x.slot[row, 1:] != x.slot[row, :-1])
        number = first.long().cumsum(0) * free[row]
        for run in number[partial[row]].unique().tolist():
            mine = number == run
            tokens = [
                None if hole else token
                for token, hole in zip(ids[row, mine].tolist(), open_[row, mine].tolist(), strict=True)
            ]
            if not text.reads(tokens):
                constraints.append(Constraint(automaton=text))
                slot[row, mine] = len(constraints)
    here = (slot > len(decode.constraints)) & (x.ids == mask)
    if not bool(here.any()):
        return None
    return x.with_(slot=slot), here, replace(decode, constraints=tuple(constraints))


def _at_once(
    x: Tokens, mask: Tensor, pieces: Iterable[Tensor], decode: Decode, u: Tensor, pad: int, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    bound = _bound(x, decode)[mask] if decode.spells else None
    row, column = mask.nonzero(as_tuple=True)
    said, kept, begin = [], [], 0
    level = u[row, column].to(device or u.device)  # before the model is called, see `head`
    for logits in pieces:
        part = slice(begin, begin := begin + len(logits))
        if decode.banned:
            logits = logits.index_fill(1, torch.tensor(decode.banned, device=logits.device), -torch.inf)
        before = words_before(x.ids, row[part], column[part], pad).to(logits.device) if decode.processors else None
        scores = logits if before is None else processed(logits.clone(), before, decode)
        words, sure = draw_tokens(scores, level[part].to(logits.device), decode)
        said.append((words, sure if scores is logits else own(logits, words).to(sure)))
        if bound is not None and bool(bound[part].any()):  # a gap's words are drawn together
            here = bound[part].to(logits.device)
            kept.append((logits[here].to(x.ids.device), scores[here].to(x.ids.device)))
    if not said:
        return row, u[mask].float()
    words, sure = (torch.cat(parts) for parts in zip(*said, strict=True)) if len(said) > 1 else said[0]
    words, sure = words.to(x.ids.device), sure.to(x.ids.device)
    if bound is not None and kept:
        logits, scores = (torch.cat(parts) for parts in zip(*kept, strict=True))
        words[bound] = _spelt(x, mask, bound, scores, decode, u)
        sure[bound] = own(logits, words[bound]).to(sure)
    return words, sure


def _spelt(x: Tokens, mask: Tensor, bound: Tensor, scores: Tensor, decode: Decode, u: Tensor) -> Tensor:
    """(N,) the words of the places that are `bound` (S,), among those open, `mask`, from scores (N, V): gap by gap."""
    log_prob = scores.double().log_softmax(-1)
    at = mask.masked_scatter(mask, bound)
    order = torch.full(mask.shape, -1, device=mask.device).masked_scatter(
        at, torch.arange(len(scores), device=mask.device)
    )
    words = torch.zeros(len(scores), dtype=torch.int64, device=mask.device)
    for row, slot in torch.stack([at.nonzero()[:, 0], x.slot[at]], 1).unique(dim=0).tolist():
        columns = ((x.slot[row] == slot) & x.valid[row]).nonzero()[:, 0]
        index = order[row, columns]
        given = torch.where(index < 0, x.ids[row, columns], -1)
        drawn = _draw(decode.constraints[slot - 1], log_prob[index.clamp_min(0)], given, u[row, columns], decode)
        words[index[index >= 0]] = drawn[index >= 0]
    return words


def together(x: Tokens, where: Tensor, decode: Decode, mask: int) -> Tensor:
    """(B, L) the places `where`, and with each one under an automaton all open ones of its gap: their words are one draw."""
    if not decode.spells:
        return where
    bound = _bound(x, decode) & (x.ids == mask)
    if not bool((where & bound).any()):
        return where
    gap = x.slot + torch.arange(len(x), device=where.device)[:, None] * (len(decode.constraints) + 1)
    return where | bound & torch.isin(gap, gap[where & bound])


def own(logits: Tensor, words: Tensor) -> Tensor:
    """(S,) float64, the log-probability of words (S,) by logits (S, V)."""
    if not len(logits):
        return logits.new_zeros(0, dtype=torch.float64)
    # a few rows at a time: what is in a cache is read again at no cost
    parts = zip(logits.split(_ROWS), words.split(_ROWS), strict=True)
    return torch.cat([_own(part.double(), chosen) for part, chosen in parts])


def _own(logits: Tensor, words: Tensor) -> Tensor:
    return logits.gather(-1, words[:, None])[:, 0] - logits.logsumexp(-1)


def _draw(constraint: Constraint, log_prob: Tensor, given: Tensor, u: Tensor, decode: Decode) -> Tensor:
    """(n,) the words of a gap; what top_k and top_p leave may spell nothing that is accepted, then all words count.

    They leave the best of what may begin the gap; where it is drawn again (`broken`), the best of all where that will do.
    """
    if decode.temperature == 0:
        return draw_run(constraint, log_prob, given, u, greedy=True)
    scores = log_prob / decode.temperature
    if decode.truncates and constraint.automaton is decode.text:
        with suppress(Unsatisfiable):
            return draw_run(constraint, truncate(scores, decode), given, u)
    begins = constraint.fitting(constraint.begin().to(given.device), given, scores.shape[-1])
    scores = torch.cat([scores[:1].masked_fill(~begins, -torch.inf), scores[1:]])
    try:
        return draw_run(constraint, truncate(scores, decode), given, u)
    except Unsatisfiable:
        return draw_run(constraint, scores, given, u)


def one_by_one(
    x: Tokens, ids: Tensor, mask: Tensor, column: Tensor, live: Tensor, logits: Tensor, decode: Decode, pad: int
) -> Tensor:
    """Logits (B, V) of the words that may be drawn for column (B,) of each row that is `live` (B,), -inf elsewhere.

    Left out are those that lead nowhere, and of the others what top_k, top_p and min_p say; where a gap is drawn again
    (`broken`), the latter first, as far as words are left. `ids` (B, L) is the text as far as it is written, `mask` (B, L)
    its places that were open. Unsatisfiable where nothing that the model can say is left.
    """
    rows = torch.arange(len(x), device=ids.device)
    if decode.processors:
        logits = processed(logits, words_before(ids, rows, column, pad), decode)
    bound = live & _bound(x, decode)[rows, column] if decode.spells else torch.zeros_like(live)
    if not bool(bound.any()):
        return _kept(logits, decode)
    fits = torch.ones_like(logits, dtype=torch.bool)
    first = torch.zeros_like(live)  # the rows whose words are left out by top_k before they are by what leads nowhere
    found: dict[tuple[Constraint, int, tuple[int, ...]], Tensor] = {}  # mostly, many rows ask the same
    for row in bound.nonzero()[:, 0].tolist():
        place = int(column[row])
        constraint = decode.constraints[int(x.slot[row, place]) - 1]
        columns = ((x.slot[row] == x.slot[row, place]) & x.valid[row]).nonzero()[:, 0]
        behind = columns[columns < place]
        machine = constraint.automaton
        state = torch.tensor([0 if machine is None else machine.after(ids[row, behind].tolist())], device=ids.device)
        rest = columns[columns >= place]
        given = torch.where(mask[row, rest], -1, ids[row, rest])
        asked = constraint, int(state), tuple(given.tolist())
        if asked not in found:
            found[asked] = constraint.fitting(state, given, logits.shape[-1])
        fits[row] = found[asked]
        first[row] = constraint.automaton is decode.text
    able = logits.masked_fill(~fits, -torch.inf)
    if bool((able == -torch.inf).all(-1).any()):
        raise Unsatisfiable("no word that the model can say here fits what is asked of the gap; ask for less")
    kept = _kept(able, decode)
    if decode.truncates and bool(first.any()):
        before = _kept(logits, decode).masked_fill(~fits, -torch.inf)
        kept = torch.where((first & ~before.isneginf().all(-1))[:, None], before, kept)
    return kept


def _kept(logits: Tensor, decode: Decode) -> Tensor:
    """Logits (B, V) without what top_k, top_p and min_p leave out at this temperature."""
    if not decode.truncates or decode.temperature == 0:
        return logits
    return logits.masked_fill(truncate(logits / decode.temperature, decode).isneginf(), -torch.inf)


def _bound(x: Tokens, decode: Decode) -> Tensor:
    """(B, L) bool: what is written under an automaton."""
    strings = torch.tensor([False, *(constraint.automaton is not None for constraint in decode.constraints)])
    return strings.to(x.slot.device)[x.slot]
