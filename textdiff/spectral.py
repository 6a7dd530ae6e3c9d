"""A start from bigram statistics: a new model's embeddings as the factors of the log ratio P(next | word) / P(next).

    A[w, v] = log(1 + C[w, v] / (a p(v)))        C counts neighbours in the training texts, p single words
    A ~ X Y^T                                    weighted truncated SVD (Levy, Goldberg: "Neural word embedding as implicit
                                                 matrix factorization", NeurIPS 2014)

The residual stream of a transformer carries its input embedding to the head, so with X as input and Y as output
embeddings an untrained causal model already is a smoothed bigram model, up to the rank; one more dimension that is
constant carries log p(v). What the body has to learn is only what bigrams do not know. On a corpus of two megabytes this
is worth the first minutes of training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CONSTANT = 3.0  # the constant dimension, where the stream has a root mean square of 1
SHARPNESS = 40.0  # the score of the neighbour that a head looks at, before the softmax


def count_pairs(rows: Sequence[Sequence[int]], vocab: int) -> Tensor:
    """Sparse (V, V) float64: how often each token is followed by each."""
    flat = torch.tensor([token for row in rows for token in row])
    ends = torch.tensor([len(row) for row in rows]).cumsum(0) - 1
    inside = torch.ones(len(flat) - 1, dtype=torch.bool)
    inside[ends[:-1]] = False
    pairs = torch.stack([flat[:-1], flat[1:]])[:, inside]
    return torch.sparse_coo_tensor(
        pairs, torch.ones(pairs.shape[1], dtype=torch.float64), (vocab, vocab), check_invariants=False
    ).coalesce()


def factors(counts: Tensor, rank: int, smoothing: float = 50.0) -> tuple[Tensor, Tensor, Tensor]:
    """X (V, rank), Y (V, rank) with X Y^T ~ A, and log p (V,), from sparse counts (V, V)."""
    before, after = counts.sum(1).to_dense(), counts.sum(0).to_dense()
    p = (after + 0.5) / (after.sum() + 0.5 * len(after))
    row, column = counts.indices()
    left, right = (before + 5).sqrt(), (after + 5).sqrt()  # frequent words are to be right, rare ones may be rough
    values = torch.log1p(counts.values() / (smoothing * p[column])) * left[row] * right[column]
    weighted = torch.sparse_coo_tensor(counts.indices(), values.float(), counts.shape, check_invariants=False)
    u, s, v = torch.svd_lowrank(weighted, q=min(rank + 12, len(p)), niter=3)
    root, more = s[:rank].sqrt(), max(rank - len(s), 0)  # a small vocabulary has no more factors than words
    x, y = u[:, :rank] * root / left[:, None].float(), v[:, :rank] * root / right[:, None].float()
    return torch.nn.functional.pad(x, (0, more)), torch.nn.functional.pad(y, (0, more)), p.log().float()


@torch.no_grad()
def start_from_bigrams(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Let a new Llama begin as what the word before says of the next one, times what the word after a gap says of its last.

    The stream hands the embedding, bigram factors, on to the head. One head of the first layer looks two to the right: fed
    the word before the last of a gap, it sees the gap's right neighbour there, and copies what that says of the word before
    it; where it sees nothing, it looks at BOS, which says nothing. The rest of the body begins as the identity.

    The rows begin with BOS, and the model's end token is read after them. ValueError where input and output embeddings are
    one matrix.
    """
    source, target = _embeddings(model)
    vocab, width = source.shape
    size = width // model.config.num_attention_heads
    aside = size // 2
    end = [model.config.eos_token_id]
    counts = count_pairs([[*row, *end] for row in rows], vocab)
    after, after_out, log_p = factors(counts, width - 2 * aside - 3)
    before, before_out, _ = factors(counts.t().coalesce(), aside)
    first = torch.zeros(vocab, 1)
    first[rows[0][0]] = CONSTANT
    nothing, offset = torch.zeros(vocab, aside), (log_p - log_p.mean())[:, None] / CONSTANT
    # what is copied from the right gets a place of its own, for a word says nothing of the one before itself
    x, stretch = _even(torch.cat([after, nothing, before, first], 1), width)
    source.copy_(x)
    target.copy_(torch.cat([after_out * stretch, before_out * stretch, nothing, first * 0, offset, first * 0], 1))
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    _look_ahead(model.model.layers[0].self_attn, model.model.rotary_emb.inv_freq, x[rows[0][0]], width, size)


def _look_ahead(attention: Any, frequency: Tensor, bos: Tensor, width: int, size: int) -> None:
    """One head that looks two to the right, and at BOS where nothing is there: a little weaker, and from everywhere."""
    aside, constant = size // 2, width - 2
    query, key = _glance(frequency, size, 2.0)
    slow = torch.zeros(size)
    slow[size // 2 - 3 : size // 2] = (0.92 * SHARPNESS * size**0.5 / 3) ** 0.5
    for matrix in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
        matrix[:size].zero_()
    attention.q_proj.weight[:size, constant] = (query + slow) / CONSTANT
    attention.k_proj.weight[:size, constant] = key / CONSTANT
    attention.k_proj.weight[:size, constant - 1] = slow / bos[constant - 1]
    copied = torch.arange(aside)
    attention.v_proj.weight[copied, width - 3 - aside + copied] = 1.0
    attention.o_proj.weight[width - 3 - 2 * aside + copied, copied] = 1.0


def _glance(frequency: Tensor, size: int, step: float) -> tuple[Tensor, Tensor]:
    """A constant query and key (size,) of a head that looks `step` places to the right: one is the other, rotated."""
    sharp = (frequency > 0.1).float()  # slow rotations hardly tell neighbours apart
    gain = (SHARPNESS * size**0.5 / sharp.sum()) ** 0.5
    query = torch.cat([sharp, torch.zeros(size // 2)])
    key = torch.cat([sharp * (frequency * step).cos(), -sharp * (frequency * step).sin()])
    return query * gain, key * gain


@torch.no_grad()
def start_from_neighbours(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Let a new ModernBERT begin as the product of what the left and the right neighbour say of a masked word.

    Half of the embedding is what a word says of the next one, half what it says of the one before. The first layer's heads
    look one to the left (the first half of them) and one to the right, and copy that part; the other layers begin as the
    identity. ValueError where input and output embeddings are one matrix.
    """
    source, target = _embeddings(model)
    vocab, width = source.shape
    heads = model.config.num_attention_heads
    size, half = width // heads, (heads // 2) * (width // heads)
    counts = count_pairs(rows, vocab)
    after, after_out, log_p = factors(counts, half - 1)
    before, before_out, _ = factors(counts.t().coalesce(), width - half - 1)
    gap = torch.zeros(vocab, 1)
    x, stretch = _even(torch.cat([after, before], 1), width)
    # the constant and the slack take the last place of each half
    x = torch.cat([x[:, : half - 1], x[:, -2:-1], x[:, half - 1 : -2], x[:, -1:]], 1)
    source.copy_(x)
    target.copy_(torch.cat([after_out * stretch, gap, before_out * stretch, gap], 1))
    model.decoder.bias.copy_(log_p)
    model.head.dense.weight.copy_(torch.eye(width))
    for layer in model.model.layers:
        layer.attn.Wo.weight.zero_()
        layer.mlp.Wo.weight.zero_()
    _look_aside(model.model.layers[0].attn, model, half - 1, heads, size)


def _look_aside(attention: Any, model: Any, constant: int, heads: int, size: int) -> None:
    """Heads that look at the neighbour, the first half of them at the left one, and copy their part of it."""
    frequency = model.model.rotary_emb.sliding_attention_inv_freq if _sliding(model) else None
    if frequency is None:
        frequency = model.model.rotary_emb.full_attention_inv_freq
    weight, width = attention.Wqkv.weight, heads * size
    weight.zero_()
    for head in range(heads):
        query, key = _glance(frequency, size, -1.0 if head < heads // 2 else 1.0)
        rows = torch.arange(head * size, (head + 1) * size)
        weight[rows, constant] = query / CONSTANT
        weight[width + rows, constant] = key / CONSTANT
        weight[2 * width + rows, rows] = 1.0
        attention.Wo.weight[rows, rows] = 1.0
    # the constant is every token's own already
    attention.Wo.weight[constant, constant] = 0.0
    attention.Wo.weight[width - 1, width - 1] = 0.0


def _sliding(model: Any) -> bool:
    return model.config.layer_types[0] == "sliding_attention"


def _embeddings(model: Any) -> tuple[Tensor, Tensor]:
    source, target = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if source is target:
        raise ValueError("a bigram start needs separate input and output embeddings; set tie_word_embeddings to false")
    return source, target


def _even(x: Tensor, width: int) -> tuple[Tensor, float]:
    """Rows with a constant and a slack dimension appended, all of length sqrt(width); and by how much x was shrunk.

    The final norm of the model then scales all words alike. The longest twentieth of the rows is cut to length.
    """
    norm = x.norm(dim=1)
    # of a large vocabulary and few texts most rows are 0
    longest = float(norm.quantile(0.95)) or float(norm.max()) or 1.0
    scale = (width - CONSTANT**2) ** 0.5
    x = x / norm.clamp_min(longest)[:, None] * scale
    slack = (scale**2 - x.square().sum(1)).clamp_min(0).sqrt()
    return torch.cat([x, torch.full((len(x), 1), CONSTANT), slack[:, None]], 1), longest / scale


# what a model from scratch of each kind begins from; an encoder-decoder begins random
STARTS: dict[str, Callable[[Any, Sequence[Sequence[int]]], None]] = {
    "autoregressive": start_from_bigrams,
    "parallel": start_from_neighbours,
}
