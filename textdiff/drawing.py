"""A word from logits, exactly: by inverting the distribution function, for the rows asked for alone. Sums are of
128 words in the precision of the logits, and of those in float64: right to 1 in 10^7.

    w = min { v : sum_(k <= v) p_k > u },  u uniform

Float32 Gumbel noise over all places and words, as most samplers draw, lowers the temperature unasked (arXiv:2409.02908) and
costs one random number and two logarithms for each entry of (B, L, V); this costs one number for each word that is used.
"""

import math

import torch
from torch import Tensor

from textdiff.posterior import Decode

_SPAN = 128  # words whose probabilities are added up before any of them is looked at
_BELOW = 1 - 2.0**-50  # the largest share of a sum that is below the sum when multiplied by it


def draw_tokens(logits: Tensor, u: Tensor, decode: Decode) -> tuple[Tensor, Tensor]:
    """Tokens (S,) from logits (S, V) by u (S,), and their log-probability (S,): the model's own, before any truncation."""
    if decode.temperature == 0:
        best, ids = logits.max(-1)
        check_numbers(best)
        return ids, -(logits - best[:, None]).exp_().sum(-1).log().float()
    best = logits.amax(-1, keepdim=True)
    check_numbers(best)
    weights = (logits - best).exp_()  # each is right to 1 in 10^7, whatever its size
    spans = _spans(weights)
    if decode.truncates or decode.temperature != 1:
        kept = truncate((logits - best) / decode.temperature, decode).exp_()
        ids = _invert(kept, _spans(kept), u)
    else:
        ids = _invert(weights, spans, u)
    return ids, (weights.gather(-1, ids[:, None])[:, 0] / spans.sum(-1)).log_().float()


def check_numbers(best: Tensor) -> None:
    """Raise ValueError where the largest of some logits is NaN, as it is if any is: nothing can be drawn from these."""
    if bool(best.isnan().any()):
        raise ValueError(
            "the model's logits are NaN: its weights, or half precision, overflow; load it in float32, or use another model"
        )


def _spans(weights: Tensor) -> Tensor:
    """(S, ceil(V / 128)) float64, the sums of weights (S, V) over spans of words."""
    rows, size = weights.shape
    even = size // _SPAN * _SPAN
    sums = weights[:, :even].view(rows, even // _SPAN, _SPAN).sum(-1)
    return (sums if even == size else torch.cat([sums, weights[:, even:].sum(-1, keepdim=True)], 1)).double()


def _invert(weights: Tensor, spans: Tensor, u: Tensor) -> Tensor:
    """(S,) the first word at which the sum of weights (S, V) passes u (S,) of their total; words of weight 0 never come."""
    size, ends = weights.shape[1], spans.cumsum(-1)
    level = u[:, None].clamp_max(_BELOW).to(ends) * ends[:, -1:]
    span = torch.searchsorted(ends, level, right=True).clamp_max(ends.shape[1] - 1)  # where nothing has any weight
    share = 1 - (ends.gather(1, span) - level) / spans.gather(1, span)  # of this span, that is to be passed
    columns = span * _SPAN + torch.arange(_SPAN, device=weights.device)
    inside = weights.gather(1, columns.clamp_max(size - 1)).double()
    if size % _SPAN:
        inside.masked_fill_(columns >= size, 0.0)
    ends = inside.cumsum(-1)
    # below the end, whatever rounding did: so there is a word, and one that has some weight
    word = torch.searchsorted(ends, share.clamp(0, _BELOW) * ends[:, -1:], right=True)
    return (columns[:, :1] + word)[:, 0].clamp_max(size - 1)


def probability(logits: Tensor) -> Tensor:
    """(S,) log-probability of the most probable word: no (S, V) softmax, a maximum and a sum."""
    return logits.max(-1).values - logits.logsumexp(-1)


def margin(logits: Tensor) -> Tensor:
    """(S,) by how much the most probable word is ahead of the next."""
    best = (logits.topk(2, -1).values - logits.logsumexp(-1, keepdim=True)).exp()
    return best[:, 0] - best[:, 1]


def certainty(logits: Tensor) -> Tensor:
    """(S,) minus the entropy, in nats."""
    log_prob = logits.log_softmax(-1)
    return (log_prob.exp() * log_prob.masked_fill(log_prob == -torch.inf, 0.0)).sum(-1)


def words_before(ids: Tensor, row: Tensor, column: Tensor, pad: int) -> Tensor:
    """(S, n) what stands left of S places (row, column) (S,) of `ids` (B, L), the last of it last, left-padded."""
    longest = max(int(column.max()), 1) if len(column) else 1
    index = column[:, None] - longest + torch.arange(longest, device=ids.device)
    return ids[row[:, None], index.clamp_min(0)].masked_fill(index < 0, pad)


def truncate(scores: Tensor, decode: Decode) -> Tensor:
    """Scores (S, V) with everything outside top_k, top_p and min_p at minus infinity; the best token always stays."""
    if decode.top_k and decode.top_k < scores.shape[-1]:
        threshold = scores.topk(decode.top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    if decode.top_p < 1:
        scores = _nucleus(scores, decode.top_p)
    if decode.min_p > 0:  # arXiv:2407.01082
        least = scores.max(-1, keepdim=True).values + math.log(decode.min_p)
        scores = scores.masked_fill(scores < least, -torch.inf)
    return scores


def _nucleus(scores: Tensor, share: float, few: int = 256) -> Tensor:
    """Scores (S, V) with all but the most probable tokens that have this share together at minus infinity.

    The `few` most probable of a row are looked at first: mostly they have it, and a whole row need not be sorted.
    """
    probability = scores.softmax(-1)
    best, order = probability.topk(min(few, scores.shape[-1]), -1)
    before = best.cumsum(-1) - best
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before < share)
    more = (before[:, -1] < share).nonzero()[:, 0]
    if few < scores.shape[-1] and len(more):
        kept[more] = _nucleus(scores[more], share, scores.shape[-1]) > -torch.inf
    return scores.masked_fill(~kept, -torch.inf)
