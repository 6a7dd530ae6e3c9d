"""How likely a text is under a model, and which of several fillings of its gaps is likeliest.

    -log p(x_0) <= E[sum over looks of weight * -log q(x_0 | x_t)]

with the best bound that the model has: exact and in one call for autoregressive denoisers, by unbiased draws for parallel
ones, whose mean comes with its standard error. A text with gaps is the same with the user's words held fixed: what is
corrupted, and so counted, is the filling alone, and the figure is -log q(fillings | text with gaps), lengths included
where the model says them. Stock models that write from left to right say -log p of the whole text instead:

    p(text with its gaps filled) = q(fillings | text with gaps) p(text with gaps)

so that fillings are ranked alike, and by how much. All are of the one way in which the tokenizer spells the text, so they
bound -log p of the string from above.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textdiff.asked import constraint_of
from textdiff.checkpoint import Checkpoint
from textdiff.denoiser.base import Denoiser
from textdiff.drawing import check_numbers
from textdiff.filling import readable, spelt, tokens_of
from textdiff.gaps import TOUCHING, Gap, Parts, check, parse, place, tidy
from textdiff.keys import Key
from textdiff.process import Deletion
from textdiff.process.base import Process
from textdiff.spelling import lead_of
from textdiff.stock import Route, checkpoint_route
from textdiff.terminal import to_json
from textdiff.tokenizer import encode
from textdiff.tokens import Specials, Tokens, concatenate
from textdiff.udm import UDM
from textdiff.validation import check_integer, check_items, check_seed, check_several, check_text, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_LOGITS = 1 << 25  # at most so many are held at once, unless one text alone has more


@dataclass(frozen=True)
class Score:
    """-log p of a text, or of fillings, in nats, or an upper bound on it.

    error: the standard error of nats over the draws, 0 where nothing is drawn. bits_per_byte: of the text in UTF-8, None
    where it has no byte. tokens: how many were explained. kind: what nats is, such as "exact, in one step".
    """

    nats: float
    error: float
    bits_per_byte: float | None
    tokens: int
    kind: str


@dataclass(frozen=True)
class Ranked:
    """Fillings of a text's gaps, one string for each gap, and how likely they are."""

    filling: tuple[str, ...]
    score: Score


def scorer(source: Route | Checkpoint) -> dict[str, Any]:
    """What `score` and `rank` need of a model. ValueError, with the remedy, for one that has no figure."""
    if not isinstance(source, Route | Checkpoint):
        raise ValueError(f"what is scored by must be a Route or a Checkpoint (textdiff.load); got {shown(source)}")
    route = checkpoint_route(source) if isinstance(source, Checkpoint) else source
    found = route.likelihood()
    if found.refusal:
        raise ValueError(found.refusal)
    return {
        "denoiser": found.denoiser, "process": found.process, "tokenizer": route.tokenizer, "specials": route.specials,
        "kind": found.kind, "whole": found.whole, "goes_on": found.goes_on,
    }  # fmt: skip


def score(
    texts: Sequence[str], *, denoiser: Denoiser, process: Process, tokenizer: "PreTrainedTokenizerBase",
    specials: Specials, kind: str, whole: bool = False, goes_on: bool = False, draws: int = 16,
    window: int | None = None, seed: int = 0, batch: int = 64,
) -> list[Score]:  # fmt: skip
    """Whole texts, whatever gaps they spell. Text i's score does not depend on what else is scored.

    By causal models a text may go on (`goes_on`): what it costs to end is not counted. Encoder-decoders take it for the
    filling of a blank page, which ends.
    window: cut texts into stretches of so many tokens, each scored as a text of its own; None takes texts whole.
    ValueError for a text that is longer than the model can score, or that its tokenizer cannot spell.
    """
    longest = _longest(denoiser, process, specials)
    texts = [check_text("a text", text) for text in check_several("texts", texts, example='["a text", "another"]')]
    check_seed(seed)
    check_integer("draws", draws, least=1)
    if window is not None and not 1 <= check_integer("window", window) <= (longest or window):
        raise ValueError(f"window {window} is not between 1 and what the model scores at once, {longest} tokens")
    rows, owner, counts = [], [], []
    for number, text in enumerate(texts):
        ids = readable(encode(tokenizer, text), text, tokenizer, specials)
        if window is None and longest is not None and len(ids) > longest:
            raise ValueError(
                f"the text has {len(ids)} tokens, the model scores {longest}; shorten it, or set window {longest}"
            )
        step = window or max(len(ids), 1)
        for begin in range(0, max(len(ids), 1), step):
            rows.append(_state([_Piece(ids[begin : begin + step], False, goes_on, goes_on)], specials))
            owner.append(number)
            counts.append(len(ids[begin : begin + step]))
    nats, variance = measure(rows, denoiser, process, specials, kind, draws, seed, batch)
    sums = torch.zeros(3, len(texts), dtype=torch.float64)
    figures = torch.stack([nats, variance, torch.tensor(counts, dtype=torch.float64)])
    sums.index_add_(1, torch.tensor(owner, dtype=torch.int64), figures)
    return [
        _score(nats, variance, count, len(text.encode()), kind)
        for (nats, variance, count), text in zip(sums.T.tolist(), texts, strict=True)
    ]


def rank(
    text: str | Parts, fillings: Sequence[str | Sequence[str]], *, denoiser: Denoiser, process: Process,
    tokenizer: "PreTrainedTokenizerBase", specials: Specials, kind: str, whole: bool = False, goes_on: bool = False,
    draws: int = 16, seed: int = 0, batch: int = 64,
) -> list[Ranked]:  # fmt: skip
    """Fillings of a text with gaps, likeliest first: nats are -log q(fillings | text with gaps).

    A filling is a string for each gap, or a string alone where there is one gap. Where kind says "whole text", nats are of
    the filled text: between two fillings they differ as -log q(fillings | text with gaps) does, with the cost of the text's
    end where a gap of unknown length ends it. Where kind says "length given", fillings of different lengths are not compared
    fairly: how likely the lengths are is not counted. Of named gaps a filling may be a mapping from name to string; one
    filling alone is a list of one. ValueError for a filling that has not a string for each gap, that is not what its gap
    asks, or that the tokenizer cannot spell.
    """
    parts = parse(text) if isinstance(text, str) else text
    check(parts)
    parts = tidy(parts)
    given = _fillings(fillings, [part.name for part in parts if isinstance(part, Gap)])
    check_seed(seed)
    check_integer("draws", draws, least=1)
    rows = [filled_state(parts, filling, tokenizer, specials) for filling in given]
    longest = denoiser.longest
    for row, filling in zip(rows, given, strict=True):
        if longest is not None and row.ids.shape[1] > longest:
            raise ValueError(
                f"with {filling!r} the text has {row.ids.shape[1]} tokens, the model reads {longest}; shorten it"
            )
    nats, variance = measure(rows, denoiser, process, specials, kind, draws, seed, batch)
    own = sum(len(part.encode()) for part in parts if isinstance(part, str)) if whole else 0
    result = []
    for number, (row, filling) in enumerate(zip(rows, given, strict=True)):
        size = own + sum(len(content.encode()) for content in filling)
        count = row.ids.shape[1] - 1 - len(specials.tail) if whole else float(row.sizes)
        result.append(Ranked(filling, _score(float(nats[number]), float(variance[number]), count, size, kind)))
    return sorted(result, key=lambda ranked: ranked.score.nats)


def _fillings(fillings: Any, names: list[str | None]) -> list[tuple[str, ...]]:
    """Each filling as a string for each gap."""
    alone = isinstance(fillings, str | Mapping)
    several = [fillings] if alone else check_several("fillings", fillings, example='["one filling", "another"]')
    result = []
    for number, filling in enumerate(several):
        which = f"fillings[{number}]"
        if isinstance(filling, str):
            strings = [filling]
        elif isinstance(filling, Mapping):
            if None in names or {*filling} != {*names}:
                raise ValueError(
                    f"{which} must name each gap of the text as it does, [GAP:name=...], and no other; got {shown(filling)}"
                )
            strings = [filling[name] for name in names]
        elif filling is None or isinstance(filling, int | float):
            raise ValueError(f"{which} must be a string, or a list of one string for each gap; got {shown(filling)}")
        else:
            strings = list(check_items(which, filling, example='["of the first gap", "of the second"]'))
        result.append(tuple(check_text(f"a string of {which}", string) for string in strings))
    return result


def _check_asked(
    ids: Sequence[int], content: str, parts: Parts, number: int, tokenizer: Any, specials: Specials
) -> None:
    """ValueError where a filling is not what its gap asks."""
    gap = parts[number]
    before = parts[number - 1] if number else ""
    if not isinstance(gap, Gap) or gap.free:
        return
    lead = lead_of(tokenizer, before) if isinstance(before, str) else ""
    constraint = constraint_of(gap, tokenizer, specials, lead)
    if constraint is None:
        return
    state = constraint.begin()
    for token in ids:
        state = constraint.next(state, torch.tensor([token]))
    if not bool(constraint.may_end(state, torch.tensor([len(ids)]))):
        raise ValueError(
            f"{content!r} is not what {place(parts, number)} asks; give a filling that is, or ask less of the gap"
        )


@dataclass(frozen=True)
class _Piece:
    """Tokens that follow each other, the user's own or a gap's; and whether their number is known, nothing missing there."""

    ids: Sequence[int]
    fixed: bool
    counted: bool
    sealed: bool


def _state(parts: Sequence[_Piece], specials: Specials) -> Tokens:
    """(1, L) a text with what stands around it: text is missing after a token only where the next piece is no sealed one."""
    around = (_Piece([specials.bos], True, False, True), _Piece(specials.tail, True, False, True))
    row: list[tuple[int, bool, bool, bool]] = []
    for piece in (around[0], *parts, around[1]):
        if not piece.sealed:
            row[-1] = (*row[-1][:3], False)
        row += [(token, piece.fixed, piece.counted, piece.sealed) for token in piece.ids]
    ids, fixed, counted, sealed = (torch.tensor([list(column)]) for column in zip(*row, strict=True))
    return Tokens.of(ids, torch.zeros_like(ids), fixed, counted, sealed).with_(part=torch.ones_like(ids))


def filled_state(
    parts: Parts, filling: Sequence[str], tokenizer: "PreTrainedTokenizerBase", specials: Specials
) -> Tokens:
    """(1, L) a text with its gaps filled: the user's words fixed, and text missing nowhere but in the gaps."""
    parts = tidy(parts)
    gaps = [part for part in parts if isinstance(part, Gap)]
    if len(filling) != len(gaps):
        raise ValueError(f"{filling!r} is {len(filling)} strings for {len(gaps)} gaps; give one for each gap")
    check(parts)
    contents, pieces_ = iter(filling), list[_Piece]()
    for number, part in enumerate(parts):
        if isinstance(part, str):
            if ids := tokens_of(parts, number, tokenizer):
                pieces_.append(_Piece(ids, True, False, True))
            continue
        content, known = next(contents), part.length is not None
        if not known and pieces_ and not pieces_[-1].sealed:  # the tokenizer has no token for the text in between
            raise ValueError(f"{place(parts, number)}: {TOUCHING}")
        ids = spelt(content, parts, number, tokenizer, specials)
        if known and len(ids) != part.length:
            raise ValueError(
                f"{content!r} has {len(ids)} tokens and its gap {part.length}; give text of that length, or [GAP]"
            )
        _check_asked(ids, content, parts, number, tokenizer, specials)
        pieces_.append(_Piece(ids, False, known, known))
    return _state(pieces_, specials)


def measure(
    rows: Sequence[Tokens], denoiser: Denoiser, process: Process, specials: Specials, kind: str, draws: int, seed: int,
    batch: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(N,) float64 the mean of the draws for each of N rows (1, L), in nats, and the variance of that mean."""
    exact = kind.startswith("exact")
    if draws < 2 and not exact:
        raise ValueError(f"draws {draws} cannot tell an error; give 2 or more")
    draws = 1 if exact else draws
    udm, device = UDM(process, denoiser.session()), next(denoiser.parameters()).device
    values = torch.zeros(len(rows) * draws, dtype=torch.float64)
    # shortest first, so that little is padded; the noise is that of the text and the draw, not of the batch
    order = sorted(range(len(values)), key=lambda place: rows[place // draws].ids.shape[1])
    while order:
        widest = rows[order[min(batch, len(order)) - 1] // draws].ids.shape[1]
        here = min(batch, max(1, _LOGITS // (widest * max(specials.size, 1))))
        mine, order = order[:here], order[here:]
        x0 = concatenate([rows[place // draws] for place in mine], specials.pad)
        key = Key(Key.of(seed, torch.tensor([place % draws for place in mine])).state ^ x0.codes())
        with denoiser.lock:
            values[mine] = udm.bound(x0.to(device), key.to(device)).cpu()
    check_numbers(values)
    values = values.view(len(rows), draws)
    spread = values - values.mean(1, keepdim=True)
    return values.mean(1), spread.square().sum(1) / max(draws - 1, 1) / draws


def lines(found: Sequence[tuple[str, Score]], as_json: bool = False) -> list[str]:
    """Texts and their scores as the lines of a Markdown table, or as a JSON object each."""
    if as_json:
        return [to_json({"text": text, **asdict(score)}) for text, score in found]
    result = ["| nats | bits/byte | tokens | what it is | text |", "|---|---|---|---|---|"]
    for text, score in found:
        bits = "" if score.bits_per_byte is None else f"{score.bits_per_byte:.3f}"
        error = f" ± {score.error:.2f}" if score.error else ""
        shown = " ".join(text.split()).replace("|", "\\|")
        result.append(f"| {score.nats:.2f}{error} | {bits} | {score.tokens} | {score.kind} | {shown} |")
    return result


def _score(nats: float, variance: float, tokens: float, size: int, kind: str) -> Score:
    return Score(nats, math.sqrt(variance), nats / math.log(2) / size if size else None, int(tokens), kind)


def _longest(denoiser: Denoiser, process: Process, specials: Specials) -> int | None:
    """How many tokens of text are scored at once: what the model reads beside BOS, and what it can say a length of."""
    limits = [] if denoiser.longest is None else [denoiser.longest - 1 - len(specials.tail)]
    if isinstance(process, Deletion) and specials.lengths:
        limits.append(len(specials.lengths) - 1)
    return min(limits, default=None)
