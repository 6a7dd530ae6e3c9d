"""Rewrite a draft: corrupt it to noise level t, then run the reverse process from there.

    x_t = F_t(draft, eps),  then x0_hat ~ q(x_0 | x_t), x_s = F_s(x0_hat, eps'), ... down to t = 0

Small t changes little, t = 1 forgets the draft. With masks words are written anew in their places; replacement and edits
also find words that do not belong, and deletion lets the text grow and shrink. Spans that are kept stay byte for byte.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from textdiff.automata import text_automaton
from textdiff.clocks import Steps, clocks
from textdiff.denoiser.shared import counting
from textdiff.filling import PRIOR, Infill, check_size, read_results, tokens_of
from textdiff.gaps import Gap
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process.base import Process
from textdiff.rules import Rule, posterior
from textdiff.sampler import Stop, finished, never, sample
from textdiff.tokenizer import check_rows, encode
from textdiff.tokens import Specials, Tokens, in_order
from textdiff.validation import check_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textdiff.denoiser.base import Denoiser

Span = tuple[int, int]


def split(text: str, keep: Sequence[Span]) -> list[tuple[str, bool]]:
    """The text in stretches, each with whether it is kept. ValueError for spans outside the text or over one another."""
    stretches: list[tuple[str, bool]] = []
    end = 0
    for begin, stop in sorted(keep):
        if not end <= begin < stop <= len(text):
            raise ValueError(
                f"span ({begin}, {stop}) is empty, outside the text or over another; it has {len(text)} characters"
            )
        if begin == end and stretches:
            stretches[-1] = (stretches[-1][0] + text[begin:stop], True)
        else:
            stretches += [(text[end:begin], False), (text[begin:stop], True)]
        end = stop
    stretches = [stretch for stretch in [*stretches, (text[end:], False)] if stretch[0]]
    if all(kept for _, kept in stretches):
        raise ValueError("nothing to rewrite: the text is empty, or all of it is kept")
    return stretches


def find(text: str, phrases: Sequence[str]) -> list[Span]:
    """Where the phrases stand in the text, each wherever it does, with the space before. ValueError for one that does not.

    The space goes with the word, as it does in most tokenizers: else what is written before it may run into it.
    """
    spans: list[Span] = []
    for phrase in phrases:
        found = [(m.start(), m.end()) for m in re.finditer(r" ?" + re.escape(phrase), text)] if phrase else []
        if not found:
            raise ValueError(f"{phrase!r} is not in the text, so it cannot be kept; copy it as it stands there")
        spans += found
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def refine(
    texts: Sequence[str],
    t: float,
    *,
    keep: Sequence[Sequence[Span]] | None = None,
    denoiser: "Denoiser",
    process: Process,
    tokenizer: "PreTrainedTokenizerBase",
    specials: Specials,
    steps: Steps = 16,
    rule: Rule = posterior,
    decode: Decode | None = None,
    seed: int = 0,
    samples: int = 1,
    stop: Stop = never,
    first: int = 0,
) -> list[list[Infill]]:
    """Rewrite every text `samples` times from noise level t in (0, 1], samples numbered from `first` on.

    keep: for each text the spans (start, end) of characters that stay as they are. A result's `gaps` are the stretches
    between them, as they are now. A text becomes at most four times as long, and `decode.max_gap` tokens more. ValueError
    for a t or spans that cannot be, and for texts longer than the model reads.
    """
    check_number("t", t, above=0, most=1)
    parts = [split(text, spans) for text, spans in zip(texts, keep or [()] * len(texts), strict=True)]
    pages = [[stretch if kept else Gap() for stretch, kept in part] for part in parts]
    drafts = [_row(part, page, tokenizer) for part, page in zip(parts, pages, strict=True)]
    for draft in drafts:
        check_rows([token for token, _ in draft], tokenizer, specials)
    x0 = _batch(drafts, specials)
    rows = torch.arange(len(texts)).repeat_interleave(samples)
    key = Key(Key.of(seed, torch.arange(first, first + samples).repeat(len(texts))).state ^ x0.codes()[rows])
    device = denoiser.home
    x0, key = x0[rows].to(device), key.to(device)
    times = torch.full((len(key),), t, dtype=torch.float64, device=device)
    x = process.corrupt(x0, process.noise(x0, key.fold(PRIOR)), times)
    check_size(x if isinstance(x, Tokens) else x0, denoiser)
    text = text_automaton(tokenizer, specials.size, specials.not_text)
    decode = replace(decode or Decode(), longest=denoiser.longest, text=text)
    most = torch.tensor([_grown(len(draft), decode) for draft in drafts])[rows]
    denoiser = denoiser.session()
    done: list[tuple[torch.Tensor, Tokens]] = []
    with counting(denoiser.model) as calls:
        for longest in most.unique().tolist():
            mine = (most == longest).nonzero()[:, 0]
            turns = clocks((x if isinstance(x, Tokens) else x0)[mine], specials, steps, rule, denoiser.joint)
            own = replace(decode, longest=longest)
            run = sample(
                denoiser, process, x[mine], steps=turns, stop=stop, rule=rule, decode=own, key=key[mine], start=t
            )
            done += [(mine[numbers.cpu()], ended) for numbers, ended in finished(run)]
        x0 = in_order(done, specials.pad)
    results = read_results(pages, x0, rows, tokenizer)
    return [[replace(r, merit=r.per_token, calls=calls[0]) for r in found] for found in results]


def _grown(size: int, decode: Decode) -> int:
    """The longest text that a draft of so many tokens may become, in tokens: four times as many at most, and a gap more.

    Twice the next power of two: few lengths, so that drafts run together, and none decides on another's. Without a limit a
    model that writes too much in every place does so in each step again, up to all that it reads.
    """
    most = 2 * (1 << (size - 1).bit_length()) + decode.max_gap
    return most if decode.longest is None else min(most, decode.longest)


def _row(
    part: list[tuple[str, bool]], page: list[str | Gap], tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[int, bool]]:
    """The tokens of a draft, and whether each is kept. The space before a stretch to rewrite is the stretch's own."""
    row: list[tuple[int, bool]] = []
    for number, (text, kept) in enumerate(part):
        if kept:
            row += [(token, True) for token in tokens_of(page, number, tokenizer)]
        else:
            lead = " " if number and part[number - 1][0].endswith(" ") else ""
            row += [(token, False) for token in encode(tokenizer, lead + text)]
    return row


def _batch(rows: list[list[tuple[int, bool]]], specials: Specials) -> Tokens:
    x0 = Tokens.from_rows([[specials.bos, *(token for token, _ in row)] for row in rows], specials.pad)
    fixed = x0.fixed.clone()
    for number, row in enumerate(rows):
        fixed[number, 1 : len(row) + 1] = torch.tensor([kept for _, kept in row])
    inside = fixed.clone()  # between two kept tokens nothing is missing, and nothing after the last
    inside[:, :-1] &= fixed[:, 1:] | ~x0.valid[:, 1:]
    return x0.with_(fixed=fixed, sealed=inside)
