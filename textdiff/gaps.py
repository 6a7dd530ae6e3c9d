"""Text with gaps <-> the start state of the loop <-> the filled text.

`[GAP]` in a text opens a gap of any length, `[GAP:3]` one of exactly three tokens, `\\[GAP]` is the five characters
themselves. A list such as `["My fellow ", Gap(), "."]` says the same and parses nothing. Only this syntax opens gaps:
whatever else the text contains, the tokenizer's own special tokens included, is text and comes back byte for byte.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process.base import Process
from textdiff.rules import Rule, posterior
from textdiff.sampler import sample
from textdiff.tokenizer import encode
from textdiff.tokens import Specials, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textdiff.denoiser.base import Denoiser

TOUCHING = "two gaps touch; put text between them, or use one [GAP]"
_SYNTAX = re.compile(r"(\\)?\[GAP(?::([^\]]*))?\]")


@dataclass(frozen=True)
class Gap:
    """Missing text: of exactly `length` tokens, or of any length, possibly none."""

    length: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ValueError(f"a gap of length {self.length} cannot be filled; give 1 or more, or leave the length out")


Parts = Sequence[str | Gap]


@dataclass(frozen=True)
class Filled:
    """One gap's content, its place [start, end) in the whole text, and its words' log-probability in nats.

    The score is that of the words given how many there are, as the model drew them: scores of one length compare.
    """

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Infill:
    """A filled text, its gaps in order, and the sum of their scores."""

    text: str
    gaps: list[Filled]
    score: float


def parse(text: str) -> list[str | Gap]:
    """The parts of a text with gap syntax. ValueError for a length that is no number."""
    parts: list[str | Gap] = []
    literal, end = "", 0
    for found in _SYNTAX.finditer(text):
        literal += text[end : found.start()]
        end = found.end()
        if found[1]:  # the escape
            literal += found[0][1:]
            continue
        if found[2] is not None and not found[2].isdecimal():
            raise ValueError(
                f"{found[0]!r} is no gap: write [GAP], [GAP:3] for three tokens, or \\[GAP] for the text itself"
            )
        parts += [literal, Gap(None if found[2] is None else int(found[2]))]
        literal = ""
    return [part for part in [*parts, literal + text[end:]] if part != ""]


def check(parts: Parts) -> None:
    """ValueError, naming the remedy, where there is nothing to fill or two gaps touch."""
    parts = tidy(parts)
    if not parts:
        raise ValueError("the text is empty; give a text with a [GAP] in it, or [GAP] alone for a blank page")
    if not any(isinstance(part, Gap) for part in parts):
        shown = "".join(str(part) for part in parts)
        raise ValueError(f"no gap in {shown[:60]!r}; mark the missing text with [GAP]")
    if any(isinstance(left, Gap) and isinstance(right, Gap) for left, right in pairwise(parts)):
        raise ValueError(TOUCHING)


def tidy(parts: Parts) -> list[str | Gap]:
    """The same text without empty parts, and with strings that follow each other joined."""
    result: list[str | Gap] = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(result[-1], str):
            result[-1] += part
        elif part != "":
            result.append(part)
    return result


def tokens_of(parts: Sequence[str | Gap], number: int, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens of a part that is text. A word's space belongs to the word: the one before a gap is the gap's to write."""
    text = str(parts[number])
    apart = text == " " and number > 0  # this one holds two gaps apart
    left = number + 1 < len(parts) and text.endswith(" ") and not apart
    return encode(tokenizer, text[:-1] if left else text)


def start_state(texts: Sequence[Parts], tokenizer: "PreTrainedTokenizerBase", specials: Specials) -> Tokens:
    """The states at t = 1 of texts with gaps: the user's tokens fixed, and nothing may come between them."""
    return _batch([_row(parts, tokenizer, specials) for parts in texts], specials)


# ids, fixed, counted, sealed: what a token of the start state is
_Element = tuple[int, bool, bool, bool]


def _row(parts: Parts, tokenizer: "PreTrainedTokenizerBase", specials: Specials) -> list[_Element]:
    check(parts)
    parts = tidy(parts)
    row: list[_Element] = [(specials.bos, True, False, True)]
    for number, part in enumerate(parts):
        if isinstance(part, str):
            row += [(token, True, False, True) for token in tokens_of(parts, number, tokenizer)]
        elif not row[-1][1]:  # the tokenizer has no token for the text in between
            raise ValueError(TOUCHING)
        elif part.length is not None:
            row += [(specials.mask, False, True, True)] * part.length
        else:
            token, fixed, counted, _ = row[-1]
            row[-1] = (token, fixed, counted, False)
            row.append((specials.gap, False, False, False))
    return row


def _batch(rows: list[list[_Element]], specials: Specials) -> Tokens:
    length = max(map(len, rows))
    padded = [row + [(specials.pad, False, False, False)] * (length - len(row)) for row in rows]
    columns = [torch.tensor([[element[k] for element in row] for row in padded]) for k in range(4)]
    ids, fixed, counted, sealed = columns
    size = torch.tensor([len(row) for row in rows])[:, None]
    doc = torch.where(torch.arange(length)[None] < size, 0, -1)
    page = Tokens.of(ids, doc, fixed, counted, sealed)
    return page.with_(part=(doc >= 0).long())  # of a mixture, the first process fills what a user left open


def read_result(
    parts: Parts, ids: Tensor, fixed: Tensor, score: Tensor, tokenizer: "PreTrainedTokenizerBase"
) -> Infill:
    """The filled text of one row without its padding. The user's text is copied, never decoded."""
    # a gap's content is the run of written tokens after as many fixed ones as the start state had before it
    before = fixed.long().cumsum(0)
    text, gaps, seen = "", [], 1  # BOS
    parts = tidy(parts)
    for number, part in enumerate(parts):
        if isinstance(part, str):
            text += part
            seen += len(tokens_of(parts, number, tokenizer))
            continue
        mine = (before == seen) & ~fixed
        content = tokenizer.decode(ids[mine].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if text.endswith(" "):
            content = content.removeprefix(" ")
        gaps.append(Filled(content, len(text), len(text) + len(content), float(score[mine].sum())))
        text += content
    return Infill(text, gaps, sum(gap.score for gap in gaps))


def infill(
    texts: Sequence[Parts],
    *,
    denoiser: "Denoiser",
    process: Process,
    tokenizer: "PreTrainedTokenizerBase",
    specials: Specials,
    steps: int = 1,
    rule: Rule = posterior,
    decode: Decode | None = None,
    seed: int = 0,
    samples: int = 1,
) -> list[list[Infill]]:
    """Fill every text `samples` times, jointly over its gaps. Text i's samples do not depend on what else is in the batch.

    ValueError for a text that is longer than the model reads; none grows beyond that.
    """
    start = start_state(texts, tokenizer, specials)
    check_size(start, denoiser)
    rows = torch.arange(len(texts)).repeat_interleave(samples)
    # the key is that of (seed, number of the sample) and of the text itself, not of its place in the batch
    key = Key(Key.of(seed, torch.arange(samples).repeat(len(texts))).state ^ start.codes()[rows])
    device = next(denoiser.parameters()).device
    x, key = start[rows].to(device), key.to(device)
    decode = replace(decode or Decode(), longest=denoiser.longest)
    x = process.prior(x, key.fold(PRIOR))
    for step in sample(denoiser, process, x, steps=steps, rule=rule, decode=decode, key=key):
        x0 = step.draw.x0  # at t = 0 the state
    return read_results(texts, x0, rows, tokenizer)


PRIOR = 1 << 40  # the use of a key that no step of the loop has


def check_size(x: Tokens, denoiser: "Denoiser") -> None:
    """ValueError where a text is longer than the model reads."""
    size, longest = int(x.valid.sum(1).max()), denoiser.longest
    if longest is not None and size > longest:
        raise ValueError(f"the text has {size} tokens, the model reads {longest}; shorten the text or split it")


def read_results(
    texts: Sequence[Parts], x0: Tokens, rows: Tensor, tokenizer: "PreTrainedTokenizerBase"
) -> list[list[Infill]]:
    """The filled texts: row i of x0 is a sample of text rows[i], and those of one text follow each other."""
    x0 = x0.to("cpu")
    results: list[list[Infill]] = [[] for _ in texts]
    for row, number in enumerate(rows.tolist()):
        valid = x0.valid[row]
        ids, fixed, score = x0.ids[row][valid], x0.fixed[row][valid], x0.score[row][valid]
        results[number].append(read_result(texts[number], ids, fixed, score, tokenizer))
    return results
