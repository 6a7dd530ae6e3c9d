"""The last layer at chosen places: the same logits, for every family that can, and the usual way for those that cannot."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from textdiff.denoiser import head, last

SMALL = {
    "vocab_size": 500,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
BERT = SMALL | {"initializer_range": 0.3}
NAMED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
MODELS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**BERT, pad_token_id=1)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**BERT, embedding_size=16)),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**SMALL, **NAMED, global_attn_every_n_layers=1, local_attention=64)
    ),
    "modernbert, windows": lambda: ModernBertForMaskedLM(ModernBertConfig(**SMALL, **NAMED, local_attention=8)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=500, dim=32, n_layers=3, n_heads=4, hidden_dim=64, initializer_range=0.3)
    ),
    "llama, open": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, is_causal=False)),
}
OTHERS = {
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**BERT, embedding_size=16)),  # one layer, many times
    "deberta": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**BERT)),  # its attention knows where it stands
    "esm": lambda: EsmForMaskedLM(EsmConfig(**BERT, pad_token_id=0, position_embedding_type="rotary")),
    "eager": lambda: BertForMaskedLM(BertConfig(**BERT, attn_implementation="eager")),
}


def texts() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Three texts, one with padding, and a fifth of their places."""
    torch.manual_seed(3)
    ids, seen = torch.randint(5, 500, (3, 64)), torch.ones(3, 64, dtype=torch.long)
    seen[1, 40:] = 0
    return {"input_ids": ids, "attention_mask": seen}, (torch.rand(3, 64) < 0.2) & seen.bool()


def built(make) -> torch.nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_it_says_what_the_whole_layer_says(name: str) -> None:
    """At the chosen places, at a part of them, and, read once more, at others."""
    model = built(MODELS[name])
    inputs, where = texts()
    whole = model(**inputs).logits
    alone = {"use_cache": False} if name == "llama, open" else {}
    read = head.Reading(model, where.shape, **inputs, **alone)
    torch.testing.assert_close(read.logits(where), whole[where], atol=1e-4, rtol=1e-4)
    assert read._chosen is not None and read._chosen.used
    part = where & (torch.arange(3)[:, None] > 0)
    torch.testing.assert_close(read.logits(part), whole[part], atol=1e-4, rtol=1e-4)
    other = ~where & inputs["attention_mask"].bool()
    torch.testing.assert_close(read.logits(other), whole[other], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_others_go_the_usual_way(name: str) -> None:
    model = built(OTHERS[name])
    inputs, where = texts()
    read = head.Reading(model, where.shape, **inputs)
    torch.testing.assert_close(read.logits(where), model(**inputs).logits[where], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cache_is_written_once() -> None:
    """A model that remembers what it read goes the usual way: its last layer must not run twice."""
    model = built(MODELS["llama, open"])
    inputs, where = texts()
    whole = model(**inputs, use_cache=True)
    assert last.able(model)
    seen: list[int] = []
    model.base_model.register_forward_hook(lambda m, a, output: seen.append(output.past_key_values.get_seq_length(2)))
    read = head.Reading(model, where.shape, **inputs, use_cache=True)
    torch.testing.assert_close(read.logits(where), whole.logits[where], atol=1e-5, rtol=1e-5)
    assert seen[-1] == 64 and read._chosen is None


@torch.no_grad()
def test_a_layer_that_mixes_its_places_is_found_out() -> None:
    """The trial's own control: a last layer whose output at a place depends on the place beside it."""
    model = built(MODELS["bert"])
    assert last.able(model)
    other = built(MODELS["bert"])
    other.base_model.encoder.layer[-1].output.register_forward_hook(
        lambda module, args, output: output + output.roll(1, 1)
    )
    assert not last.able(other)


@torch.no_grad()
def test_pieces_are_of_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces, and whether the places are few or all: the body runs once."""
    model, runs = built(MODELS["bert"]), []
    inputs, few = texts()
    last.able(model)
    monkeypatch.setattr(head, "PIECE", 500 * 7)
    model.base_model.register_forward_hook(lambda *_: runs.append(1))
    for where in (few, inputs["attention_mask"].bool()):
        runs.clear()
        read = head.Reading(model, where.shape, **inputs)
        said = torch.cat(list(read.pieces(where)))
        assert len(runs) == 1
        torch.testing.assert_close(said, model(**inputs).logits[where], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_fewer_places_cost_less() -> None:
    """As many rows go through the last layer as places are asked of a text, at most."""
    model, rows = built(MODELS["bert"]), []
    inputs, where = texts()
    last.able(model)
    model.base_model.encoder.layer[-1].intermediate.register_forward_hook(
        lambda m, a, output: rows.append(output.shape[1])
    )
    head.Reading(model, where.shape, **inputs).logits(where)
    assert rows == [int(where.sum(1).max())] and rows[0] < 32
    model(**inputs)
    assert rows[-1] == 64


def test_training_is_not_touched() -> None:
    model = built(MODELS["bert"]).train()
    inputs, where = texts()
    logits = head.logits_at(model, where, **inputs)
    logits.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None and model not in last._KNOWN
