"""The bigram start: what an untrained model says must be what the counts say."""

import pytest
import torch

from textdiff.denoiser import Autoregressive, Parallel
from textdiff.evaluation import bound
from textdiff.models import new_model
from textdiff.process import Deletion, Masking
from textdiff.spectral import STARTS, count_pairs, factors, start_from_bigrams, start_from_neighbours
from textdiff.tokenizer import specials, train_tokenizer
from textdiff.tokens import Specials
from textdiff.udm import UDM

IDS = Specials(pad=0, bos=1, mask=2, gap=3, fill=4, end=5, lengths=tuple(range(6, 16)))
VOCAB = 64


def markov_rows(seed: int, count: int = 400) -> list[list[int]]:
    """Texts in which w is followed by w + 1, but for one step in five."""
    chance = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        row = [IDS.bos, int(torch.randint(16, VOCAB, (1,), generator=chance))]
        for _ in range(20):
            jump = torch.rand(1, generator=chance) < 0.2
            row.append(int(torch.randint(16, VOCAB, (1,), generator=chance)) if jump else 16 + (row[-1] - 15) % 48)
        rows.append(row)
    return rows


def test_counts_stay_inside_rows() -> None:
    counts = count_pairs([[1, 20, 21], [1, 30]], VOCAB).to_dense()
    assert counts.sum() == 3
    assert counts[1, 20] == counts[20, 21] == counts[1, 30] == 1
    assert counts[21, 1] == 0  # the end of one row and the start of the next are no pair


def test_full_rank_factors_are_the_log_ratio() -> None:
    counts = count_pairs(markov_rows(0), VOCAB)
    x, y, log_p = factors(counts, VOCAB, smoothing=50.0)
    dense = counts.to_dense()
    wanted = torch.log1p(dense / (50.0 * log_p.double().exp()))
    torch.testing.assert_close((x @ y.T).double(), wanted, atol=2e-3, rtol=0)
    worse = factors(counts, 4, smoothing=50.0)
    assert ((worse[0] @ worse[1].T).double() - wanted).abs().max() > 0.1  # the control: rank 4 cannot


@pytest.mark.parametrize("kind", ["autoregressive", "parallel"])
def test_untrained_model_knows_bigrams(kind: str) -> None:
    """Held-out nats fall from about log 48 = 3.87 to near the source's entropy given a neighbour, without a step."""
    start = {"autoregressive": start_from_bigrams, "parallel": start_from_neighbours}[kind]
    nats = {}
    for begun in (False, True):
        torch.manual_seed(0)
        model = new_model(kind, "tiny", IDS, VOCAB, 256).eval()
        if begun:
            start(model, markov_rows(0))
        denoiser = Parallel(model, IDS) if kind == "parallel" else Autoregressive(model, IDS)
        process = Masking(IDS) if kind == "parallel" else Deletion(IDS)
        rows = [row[:10] for row in markov_rows(1, 64)]  # as long as there are length tokens for
        nats[begun] = bound(UDM(process, denoiser), rows, [len(row) for row in rows], pad=IDS.pad, draws=4).nats
    assert nats[False] > 3.6
    assert nats[True] < nats[False] - 0.8


@pytest.mark.parametrize("seed", range(4))
def test_first_layer_looks_at_neighbours(seed: int) -> None:
    """At every place, whatever the weights were: 0.66 or more over 40 seeds. The control: 0.05 at most before."""
    torch.manual_seed(seed)
    model = new_model("parallel", "tiny", IDS, VOCAB, 256)
    model.set_attn_implementation("eager")
    ids, inner = torch.tensor([markov_rows(1, 1)[0]]), torch.arange(2, 18)

    def looks() -> tuple[torch.Tensor, torch.Tensor]:
        attention = model(ids, output_attentions=True).attentions[0][0].detach()
        return attention[0, inner, inner - 1], attention[3, inner, inner + 1]

    assert all(share.max() < 0.3 for share in looks())
    start_from_neighbours(model, markov_rows(0))
    assert all(share.min() > 0.5 for share in looks())


def test_first_layer_looks_across_a_gap() -> None:
    """Fed the word before a gap's last, one head sees the gap's right neighbour; fed others, at most BOS or their like."""
    model = new_model("autoregressive", "tiny", IDS, VOCAB, 256)
    start_from_bigrams(model, markov_rows(0))
    model.set_attn_implementation("eager")
    ids = torch.tensor([[IDS.bos, 20, 21, IDS.mask, 25, 26, IDS.end, 21, 22, 40]])  # three words are missing after 21
    place = torch.tensor([[0, 1, 2, 3, 6, 7, 8, 2, 3, 4]])
    read = model(ids, position_ids=place, output_attentions=True)
    looks = read.attentions[0][0, 0].detach()
    assert looks[9, 4] > 0.9  # 40 at place 4 sees 25 at place 6
    assert looks[7, 4] < 0.01 and looks[7, 0] > 0.5
    assert looks[8, 4] < 0.5  # one place nearer, and it sees something already
    sure = read.logits[0, 9].log_softmax(-1)
    place[:, 4:7] += 1  # the control: one word more is missing, and 40 is fed for the last but one
    further = model(ids, position_ids=place).logits[0, 9].log_softmax(-1)
    assert sure[24] > further[24] + 1


def test_tied_embeddings_are_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True
    )
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        start_from_bigrams(LlamaForCausalLM(config), markov_rows(0))


@pytest.mark.parametrize("kind", sorted(STARTS))
def test_few_texts_and_many_entries_make_finite_weights(kind: str) -> None:
    """More than 19 in 20 rows have no neighbours at all, as with tokens for the lengths of a long context; or none has."""
    tokenizer = train_tokenizer(["We go on."], 2400, lengths=2000)
    ids = specials(tokenizer)
    for rows in ([[ids.bos, *tokenizer("We go on.", add_special_tokens=False)["input_ids"]]], [[ids.bos, 300]]):
        model = new_model(kind, "tiny", ids, len(tokenizer), 64)
        STARTS[kind](model, rows)
        assert all(bool(weight.isfinite().all()) for weight in model.parameters())
