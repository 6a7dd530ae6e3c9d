"""Texts all of whose gaps are choices: the whole law of what may stand there, where it is small and the score is exact.

    q(c_1, .., c_G | text) = exp(-nats(c)) / sum over all choices of exp(-nats)

Nothing is written word by word and so nothing has to guess how many tokens a choice will have: at temperature 0 it is the
most probable one, else one drawn in proportion. Each choice counts in the one way in which the tokenizer spells it.
"""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textdiff.constraints import Constraint
from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.shared import counting
from textdiff.drawing import draw_tokens
from textdiff.filling import Filled, Infill, Page
from textdiff.gaps import Gap
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process.base import Process
from textdiff.scoring import filled_state, measure
from textdiff.tokens import Specials, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEW = 64  # combinations of choices, at most


def few(page: Page) -> bool:
    """Whether all gaps of a page are choices, and their combinations are few enough to try them all."""
    gaps = [part for part in page.parts if isinstance(part, Gap)]
    return all(gap.choices for gap in gaps) and prod(len(gap.choices) for gap in gaps) <= FEW


def choose(
    page: Page, *, denoiser: Denoiser, process: Process, tokenizer: "PreTrainedTokenizerBase", specials: Specials,
    kind: str, decode: Decode, seed: int = 0, samples: int = 1,
) -> list[Infill] | None:  # fmt: skip
    """Different samples of a page, the likeliest first, by the score of each combination (`scoring.scorer`, exact).

    Fewer than `samples` where there are no others; None where none fits.

    A gap's score is the log-probability of its choice, given those left of it, among the combinations that fit: what the
    tokenizer can spell, what is not banned, what the model can read.
    """
    found = _fitting(page, tokenizer, specials, denoiser.longest)
    if not found:
        return None
    with counting(denoiser.model) as calls:
        nats, _ = measure([x0 for _, x0 in found], denoiser, process, specials, kind, 1, seed, FEW)
    law = (-nats).log_softmax(0)
    u = Key(Key.of(seed, samples).state ^ found[0][1].codes()).uniform(1)[:, 0]
    chosen = sorted(_drawn(law, u, decode), key=law.__getitem__, reverse=True)
    read = {number: _read(page, found, law, number, calls[0]) for number in {*chosen}}
    return [read[number] for number in chosen]


def _drawn(law: Tensor, u: Tensor, decode: Decode) -> list[int]:
    """As many different combinations as there are u, or all: each in proportion to the law among those that are left."""
    left, chosen = law.clone(), list[int]()
    for one in u[: len(law)]:
        chosen.append(int(draw_tokens(left[None], one[None], decode)[0]))
        left[chosen[-1]] = -torch.inf
    return chosen


def _fitting(
    page: Page, tokenizer: "PreTrainedTokenizerBase", specials: Specials, longest: int | None
) -> list[tuple[tuple[str, ...], Tokens]]:
    """The combinations that fit, each with its filled text (1, L)."""
    gaps, found = [part for part in page.parts if isinstance(part, Gap)], []
    for contents in product(*(dict.fromkeys(gap.choices) for gap in gaps)):
        try:
            x0 = filled_state(page.parts, contents, tokenizer, specials)
        except ValueError:  # the tokenizer cannot spell it
            continue
        if longest is not None and x0.ids.shape[1] > longest or not _kept(page, x0):
            continue
        found.append((contents, x0))
    return found


def _kept(page: Page, x0: Tokens) -> bool:
    """Whether the words of each gap, in order, keep what is asked of it. The user's words part the gaps."""
    runs: list[list[int]] = []
    before = True
    for token, fixed in zip(x0.ids[0].tolist(), x0.fixed[0].tolist(), strict=True):
        if not fixed:
            runs += [[]] if before else []
            runs[-1].append(token)
        before = fixed
    asked = [page.constraints[slot - 1] for slot in page.slots]
    return len(runs) == len(asked) and all(map(_accepts, asked, runs))


def _accepts(constraint: Constraint, run: Sequence[int]) -> bool:
    state = constraint.begin()
    for token in run:
        state = constraint.next(state, torch.tensor([token]))
    return bool(constraint.may_end(state, torch.tensor([len(run)])))


def _read(page: Page, found: list[tuple[tuple[str, ...], Tokens]], law: Tensor, number: int, calls: int) -> Infill:
    """The filled text; a choice is one event, however many tokens it has."""
    contents, text, gaps, before = found[number][0], "", list[Filled](), law.new_zeros(())
    for part in page.parts:
        if isinstance(part, str):
            text += part
            continue
        content = contents[len(gaps)]
        same = [other[: len(gaps) + 1] == contents[: len(gaps) + 1] for other, _ in found]
        so_far = law[torch.tensor(same)].logsumexp(0).clamp_max(0)
        score = float(so_far - before)
        end = len(text) + len(content)
        gaps.append(Filled(content, len(text), end, score, part.name, (content,), (float((so_far - before).exp()),)))
        text, before = text + content, so_far
    return Infill(text, gaps, sum(gap.score for gap in gaps), calls)
