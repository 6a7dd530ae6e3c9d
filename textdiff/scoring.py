"""How likely a text is under a model, and which of several fillings of its gaps is likeliest.

    -log p(x_0) <= E[sum over looks of weight * -log q(x_0 | x_t)]

with the best bound that the checkpoint has: exact and in one call for autoregressive denoisers, by unbiased draws for
parallel ones, whose mean comes with its standard error. A text with gaps is the same with the user's words held fixed: what
is corrupted, and so counted, is the filling alone, and the figure is -log q(fillings | text with gaps), lengths included
where the model says them. Both are of the one way in which the tokenizer spells the text, so they bound -log p of the
string from above.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textdiff.checkpoint import Checkpoint
from textdiff.denoiser.base import Denoiser
from textdiff.filling import start_state, tokens_of
from textdiff.gaps import Gap, Parts, parse, tidy
from textdiff.keys import Key
from textdiff.process import Deletion
from textdiff.process.base import Process
from textdiff.tokenizer import encode
from textdiff.tokens import Specials, Tokens, concatenate
from textdiff.udm import UDM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def scorer(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `score` and `rank` need of a checkpoint."""
    process, kind = checkpoint.config.likelihood(checkpoint.specials, checkpoint.model)
    tools = checkpoint.tools()
    return {name: tools[name] for name in ("denoiser", "tokenizer", "specials")} | {"process": process, "kind": kind}


def score(
    texts: Sequence[str], *, denoiser: Denoiser, process: Process, tokenizer: "PreTrainedTokenizerBase",
    specials: Specials, kind: str, draws: int = 16, window: int | None = None, seed: int = 0, batch: int = 64,
) -> list[Score]:  # fmt: skip
    """Whole texts, whatever gaps they spell. Text i's score does not depend on what else is scored.

    window: cut texts into stretches of so many tokens, each scored as a text of its own; None takes texts whole.
    ValueError for a text that is longer than the model can score.
    """
    longest = _longest(denoiser, process, specials)
    if window is not None and not 1 <= window <= (longest or window):
        raise ValueError(f"window {window} is not between 1 and what the model scores at once, {longest} tokens")
    rows, owner = [], []
    for number, text in enumerate(texts):
        ids = encode(tokenizer, text)
        if window is None and longest is not None and len(ids) > longest:
            raise ValueError(
                f"the text has {len(ids)} tokens, the model scores {longest}; shorten it, or set window {longest}"
            )
        step = window or max(len(ids), 1)
        for begin in range(0, max(len(ids), 1), step):
            rows.append(Tokens.from_rows([[specials.bos, *ids[begin : begin + step]]], specials.pad))
            owner.append(number)
    nats, variance = _measure(rows, denoiser, process, specials, kind, draws, seed, batch)
    tokens = torch.tensor([row.sizes.item() for row in rows], dtype=torch.float64)
    sums = torch.zeros(3, len(texts), dtype=torch.float64)
    sums.index_add_(1, torch.tensor(owner, dtype=torch.int64), torch.stack([nats, variance, tokens]))
    return [
        _score(nats, variance, count, len(text.encode()), kind)
        for (nats, variance, count), text in zip(sums.T.tolist(), texts, strict=True)
    ]


def rank(
    text: str | Parts, fillings: Sequence[str | Sequence[str]], *, denoiser: Denoiser, process: Process,
    tokenizer: "PreTrainedTokenizerBase", specials: Specials, kind: str, draws: int = 16, seed: int = 0, batch: int = 64,
) -> list[Ranked]:  # fmt: skip
    """Fillings of a text with gaps, likeliest first: nats are -log q(fillings | text with gaps).

    A filling is a string for each gap, or a string alone where there is one gap. Where kind says "length given", fillings of
    different lengths are not compared fairly: how likely the lengths are is not counted. ValueError for a filling that has
    not as many strings as there are gaps, or not the tokens of a gap of known length.
    """
    parts = tidy(parse(text) if isinstance(text, str) else text)
    given = [(filling,) if isinstance(filling, str) else tuple(filling) for filling in fillings]
    rows = [filled_state(parts, filling, tokenizer, specials) for filling in given]
    longest = denoiser.longest
    for row, filling in zip(rows, given, strict=True):
        if longest is not None and row.ids.shape[1] > longest:
            raise ValueError(
                f"with {filling!r} the text has {row.ids.shape[1]} tokens, the model reads {longest}; shorten it"
            )
    nats, variance = _measure(rows, denoiser, process, specials, kind, draws, seed, batch)
    result = []
    for number, (row, filling) in enumerate(zip(rows, given, strict=True)):
        size = sum(len(content.encode()) for content in filling)
        found = _score(float(nats[number]), float(variance[number]), float(row.sizes), size, kind)
        result.append(Ranked(filling, found))
    return sorted(result, key=lambda ranked: ranked.score.nats)


def filled_state(
    parts: Parts, filling: Sequence[str], tokenizer: "PreTrainedTokenizerBase", specials: Specials
) -> Tokens:
    """(1, L) a text with its gaps filled: the user's words fixed, and text missing nowhere but in the gaps."""
    parts = tidy(parts)
    gaps = [number for number, part in enumerate(parts) if isinstance(part, Gap)]
    if len(filling) != len(gaps):
        raise ValueError(f"{filling!r} is {len(filling)} strings for {len(gaps)} gaps; give one for each gap")
    start = start_state([parts], tokenizer, specials)
    contents = iter(zip(filling, gaps, strict=True))
    row: list[tuple[int, bool, bool, bool]] = []
    for (open_, _), columns in groupby(range(start.ids.shape[1]), key=lambda column: _stretch(start, column)):
        here = list(columns)
        if not open_:
            flags = (start.ids, start.fixed, start.counted, start.sealed)
            row += [tuple(flag[0, column].item() for flag in flags) for column in here]  # type: ignore[misc]
            continue
        content, number = next(contents)
        ids = encode(tokenizer, _lead(parts, number, tokenizer) + content)
        known = bool(start.counted[0, here[0]])
        if known and len(ids) != len(here):
            raise ValueError(
                f"{content!r} has {len(ids)} tokens and its gap {len(here)}; give text of that length, or [GAP]"
            )
        row += [(token, False, known, known) for token in ids]
    ids_, fixed, counted, sealed = (torch.tensor([list(column)]) for column in zip(*row, strict=True))
    x = Tokens.of(ids_, torch.zeros_like(ids_), fixed, counted, sealed)
    return x.with_(part=torch.ones_like(ids_))


def _stretch(start: Tokens, column: int) -> tuple[bool, int]:
    """Whether the column is of a gap, and which stretch it belongs to."""
    before = start.fixed[0, :column].sum()
    return not bool(start.fixed[0, column]), int(before) if not bool(start.fixed[0, column]) else -1


def _lead(parts: Parts, number: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The space that `gaps.tokens_of` leaves to the gap to write."""
    before = parts[number - 1] if number else ""
    if not isinstance(before, str) or not before.endswith(" "):
        return ""
    return "" if tokens_of(parts, number - 1, tokenizer) == encode(tokenizer, before) else " "


def _measure(
    rows: Sequence[Tokens], denoiser: Denoiser, process: Process, specials: Specials, kind: str, draws: int, seed: int,
    batch: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(N,) float64 the mean of the draws for each of N rows (1, L), in nats, and the variance of that mean."""
    exact = kind.startswith("exact")
    if draws < 2 and not exact:
        raise ValueError(f"draws {draws} cannot tell an error; give 2 or more")
    draws = 1 if exact else draws
    udm, device = UDM(process, denoiser), next(denoiser.parameters()).device
    values = torch.zeros(len(rows) * draws, dtype=torch.float64)
    # shortest first, so that little is padded; the noise is that of the text and the draw, not of the batch
    order = sorted(range(len(values)), key=lambda place: rows[place // draws].ids.shape[1])
    for begin in range(0, len(order), batch):
        mine = order[begin : begin + batch]
        x0 = concatenate([rows[place // draws] for place in mine], specials.pad)
        key = Key(Key.of(seed, torch.tensor([place % draws for place in mine])).state ^ x0.codes())
        values[mine] = udm.bound(x0.to(device), key.to(device)).cpu()
    values = values.view(len(rows), draws)
    spread = values - values.mean(1, keepdim=True)
    return values.mean(1), spread.square().sum(1) / max(draws - 1, 1) / draws


def lines(found: Sequence[tuple[str, Score]], as_json: bool = False) -> list[str]:
    """Texts and their scores as the lines of a Markdown table, or as a JSON object each."""
    if as_json:
        return [json.dumps({"text": text, **asdict(score)}, ensure_ascii=False) for text, score in found]
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
    """How many tokens of text are scored at once: what the model reads beside BOS, and what it has a length for."""
    limits = [] if denoiser.longest is None else [denoiser.longest - 1]
    if isinstance(process, Deletion) and specials.lengths:
        limits.append(len(specials.lengths) - 1)
    return min(limits, default=None)
