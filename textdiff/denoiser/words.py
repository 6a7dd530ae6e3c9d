"""Words for open places, drawn so that every constraint on a gap is kept.

Said all at once, the words of a constrained gap are one draw from the product of their distributions given that the
automaton accepts them (`draw_run`); written one by one, each is drawn among those after which an accepted end is in reach.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from textdiff.constraints import Constraint, Unsatisfiable, draw_run
from textdiff.drawing import draw_tokens, truncate, words_before
from textdiff.posterior import Decode
from textdiff.tokens import Tokens

_ROWS = 64


def processed(logits: Tensor, prefix: Tensor, decode: Decode) -> Tensor:
    """Logits (S, V) as the user's processors leave them; `prefix` (S, n) is what they see of each text.

    What could not be said before (special tokens) cannot be said after them either.
    """
    if not decode.processors:
        return logits
    mute = logits == -torch.inf
    for process in decode.processors:
        logits = process(prefix, logits)
    return logits.masked_fill(mute, -torch.inf)


def at_once(
    x: Tokens, mask: Tensor, pieces: Iterable[Tensor], decode: Decode, u: Tensor, pad: int,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A word for each of the S open places of x, `mask` (B, L), from logits in pieces (s, V), and u (B, L): its id, and its
    log-probability. That is the model's own, whatever the processors did. device: of the logits, if that is another.
    """
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
    """(n,) the words of a gap; what top_k and top_p leave may spell nothing that is accepted, then all words count."""
    if decode.temperature == 0:
        return draw_run(constraint, log_prob, given, u, greedy=True)
    scores = log_prob / decode.temperature
    begins = constraint.fitting(constraint.begin().to(given.device), given, scores.shape[-1])
    scores = torch.cat([scores[:1].masked_fill(~begins, -torch.inf), scores[1:]])
    try:
        return draw_run(constraint, truncate(scores, decode), given, u)
    except Unsatisfiable:
        return draw_run(constraint, scores, given, u)


def one_by_one(
    x: Tokens, ids: Tensor, mask: Tensor, column: Tensor, live: Tensor, logits: Tensor, decode: Decode, pad: int
) -> Tensor:
    """Logits (B, V) of the words for column (B,) of each row that is `live` (B,), without those that lead nowhere.

    `ids` (B, L) is the text as far as it is written, `mask` (B, L) its places that were open. Unsatisfiable where nothing
    that the model can say is left.
    """
    rows = torch.arange(len(x), device=ids.device)
    if decode.processors:
        logits = processed(logits, words_before(ids, rows, column, pad), decode)
    if not decode.spells:
        return logits
    bound = _bound(x, decode)
    if not bool((live & bound[rows, column]).any()):
        return logits
    logits = logits.clone()
    found: dict[tuple[Constraint, int, tuple[int, ...]], Tensor] = {}  # mostly, many rows ask the same
    for row in (live & bound[rows, column]).nonzero()[:, 0].tolist():
        place = int(column[row])
        constraint = decode.constraints[int(x.slot[row, place]) - 1]
        columns = ((x.slot[row] == x.slot[row, place]) & x.valid[row]).nonzero()[:, 0]
        behind = columns[columns < place]
        state = constraint.begin().to(ids.device)
        for token in ids[row, behind]:
            state = constraint.next(state, token[None])
        rest = columns[columns >= place]
        given = torch.where(mask[row, rest], -1, ids[row, rest])
        asked = constraint, int(state), tuple(given.tolist())
        if asked not in found:
            found[asked] = ~constraint.fitting(state, given, logits.shape[-1])
        logits[row].masked_fill_(found[asked], -torch.inf)
        if bool((logits[row] == -torch.inf).all()):
            raise Unsatisfiable("no word that the model can say here fits what is asked of the gap; ask for less")
    return logits


def _bound(x: Tokens, decode: Decode) -> Tensor:
    """(B, L) bool: what is written under an automaton."""
    strings = torch.tensor([False, *(constraint.automaton is not None for constraint in decode.constraints)])
    return strings.to(x.slot.device)[x.slot]
