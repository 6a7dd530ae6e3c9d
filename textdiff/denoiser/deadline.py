"""What becomes of words for which a deadline left no time: gaps of unknown length are cut where they may end."""

import torch
from torch import Tensor

from textdiff.constraints import Constraint
from textdiff.posterior import Decode, Draw
from textdiff.tokens import Specials, Tokens, repeat


def shortened(xt: Tokens, draw: Draw, late: Tensor, decode: Decode, specials: Specials) -> Draw:
    """Return the guess with each gap cut after the last word that was written in time, or as soon after as it may end.

    Args:
        xt: (B, L) the state; its markers are the gaps that may be cut.
        draw: The guess, (B, M), all of its words drawn.
        late: (B, M) bool, words that were drawn without reading what stands before them. In each gap they come last.
        decode: Whose constraints say where a gap may end.
        specials: The ids of markers and padding.
    """
    counts = draw.x0.valid.long()
    for row in late.any(1).nonzero()[:, 0].tolist():
        for column in (xt.ids[row] == specials.gap).nonzero()[:, 0].tolist():
            written = ((draw.place[row] == column) & draw.x0.valid[row]).nonzero()[:, 0]
            slot = int(xt.slot[row, column])
            constraint = decode.constraints[slot - 1] if slot else Constraint()
            in_time = int((~late[row, written]).sum())
            counts[row, written[_end(constraint, draw.x0.ids[row, written], in_time) :]] = 0
    index = repeat(counts)
    source = index.clamp_min(0)
    log_prob = draw.log_prob.gather(1, source).masked_fill(index < 0, 0.0)
    return Draw(draw.x0.take(index, specials.pad), draw.place.gather(1, source), log_prob)


def _end(constraint: Constraint, words: Tensor, least: int) -> int:
    """How many of the words (N,) stay: at least `least` of them, and as many as the gap needs to end there."""
    state = constraint.begin().to(words.device)
    for count in range(len(words)):
        if count >= least and bool(constraint.may_end(state, torch.tensor([count], device=words.device))):
            return count
        state = constraint.next(state, words[count : count + 1])
    return len(words)
