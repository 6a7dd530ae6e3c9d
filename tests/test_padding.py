"""Padding: models that can tell it read texts of one length at a time, so that a filling does not depend on its batch."""

from typing import Any

import pytest
import torch
from families import CAUSAL, MASKED, TELL, tiny
from transformers import pipeline

from textdiff.checkpoint import DiffusionConfig
from textdiff.denoiser import Parallel, head
from textdiff.denoiser.embedded import Embedded
from textdiff.denoiser.feeding import Stream, goes_on
from textdiff.denoiser.padding import by_length
from textdiff.filling import start_state
from textdiff.gaps import parse
from textdiff.leak import reads_padding
from textdiff.pipelines import TextInfillingPipeline
from textdiff.process.encoder import Latent
from textdiff.tokenizer import prepare_tokenizer, specials

LONG = "one two three four five six " * 4
TEXTS = ["one two [GAP:2] three", "one [GAP:2] three [GAP:1-2] five four", f"{LONG}[GAP:2] three [GAP:1-2] five"]


def filler(name: str) -> Any:
    """In float64: what padding changes is then no rounding."""
    model, tokenizer = tiny(name, MASKED)
    return pipeline("text-infilling", model=model.double(), tokenizer=tokenizer, device="cpu")


def together_and_alone(fill: Any) -> list[tuple[Any, Any]]:
    """What becomes of each text in one batch, and by itself."""
    together = fill(TEXTS, batch_size=len(TEXTS), seed=0)
    return [(found[0], fill(text, seed=0)[0]) for text, found in zip(TEXTS, together, strict=True)]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["generated_text"] == other["generated_text"] and abs(one["score"] - other["score"]) < 1e-6


@pytest.mark.parametrize("name", sorted(TELL))
def test_a_model_that_can_tell_padding_reads_none(name: str) -> None:
    fill = filler(name)
    assert "texts of one length at a time" in fill.explain()
    assert all(same(one, other) for one, other in together_and_alone(fill))


def test_padding_would_change_what_they_say() -> None:
    """The negative control: FNet given it all the same."""
    fill = filler("fnet")
    fill.route.denoiser.feed._apart = False
    assert not all(same(one, other) for one, other in together_and_alone(fill))


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm", "longformer", "perceiver", "reformer", "squeezebert"])
def test_the_others_read_texts_together(name: str) -> None:
    """Masks hide padding from them, whether they count positions from it, read in blocks, or answer more than was asked."""
    model, tokenizer = tiny(name, MASKED)
    assert not reads_padding(model, tokenizer.pad_token_id, 128)


def test_a_model_that_fails_on_padding_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny("bert", MASKED)
    assert not reads_padding(model, 0)
    monkeypatch.setattr(model.cls, "forward", lambda hidden: torch.zeros(1, hidden.shape[1] % 5, 3))
    assert reads_padding(model, 0)


def test_by_length_is_the_same_places_in_the_same_order() -> None:
    model, _ = tiny("bert", MASKED)
    model, draw = model.double(), torch.Generator().manual_seed(0)
    sizes = torch.tensor([7, 3, 9, 3, 7])
    valid = torch.arange(11) < sizes[:, None]
    where = valid & (torch.rand(valid.shape, generator=draw) < 0.4)
    where[1] = False
    inputs = {"input_ids": torch.randint(5, 400, valid.shape, generator=draw), "attention_mask": valid.long()}
    with torch.no_grad():
        found, expected = by_length(model, where, sizes, **inputs), head.logits_at(model, where, **inputs)
    torch.testing.assert_close(found, expected)


def test_a_checkpoint_is_asked_when_there_first_is_padding() -> None:
    """Vectors are read by length like tokens; a text alone needs no asking."""
    model, tokenizer = tiny("fnet", MASKED)
    prepare_tokenizer(tokenizer, 8)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model, ids = model.double(), specials(tokenizer)
    states = start_state([parse(text) for text in ("one [GAP:2] two", f"{LONG}[GAP:3]")], tokenizer, ids)
    size = int(states.valid[0].sum())
    alone = states[:1].take(torch.arange(size)[None], ids.pad)
    z = torch.randn(*states.ids.shape, model.config.hidden_size, dtype=torch.float64)
    parallel, embedded = Parallel(model, ids).eval(), Embedded(model, ids).eval()
    with torch.no_grad():
        asked = alone.ids == ids.mask
        one = parallel.logits(alone, asked), embedded(Latent(alone, z[:1, :size]), torch.ones(1)).logits
        assert parallel.feed._apart is None
        both = parallel.logits(states, states.ids == ids.mask), embedded(Latent(states, z), torch.ones(2)).logits
    assert parallel.feed.apart
    for before, after in zip(one, both, strict=True):
        torch.testing.assert_close(after[: len(before)], before)


@pytest.mark.parametrize("name", ["mistral", "bamba", "llama"])
def test_writers_of_our_own_kind_go_on_right_after_the_text(name: str) -> None:
    """A window of 16 columns, and a recurrent state, see the text whatever it is batched with: padding is on its left."""
    model, tokenizer = tiny(name, CAUSAL)
    prepare_tokenizer(tokenizer, 8)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = DiffusionConfig(denoiser="autoregressive")
    fill = TextInfillingPipeline(model=model.double(), tokenizer=tokenizer, diffusion_config=config)
    assert all(same(one, other) for one, other in together_and_alone(fill))


def test_what_is_kept_in_mind_is_read_whole_beyond() -> None:
    """Doge, beyond the tokens that it keeps, says otherwise from a cache; within them it does not."""
    model, _ = tiny("doge", CAUSAL)
    ids = torch.randint(100, 300, (40,), generator=torch.Generator().manual_seed(0)).tolist()

    def differs() -> bool:
        whole, kept = (Stream(model, [ids[:20]], None, cached) for cached in (False, True))
        whole.feed([ids[20]])
        kept.feed([ids[20]])
        return bool((whole.logits - kept.logits).abs().max() > 0.01 * whole.logits.std())

    assert differs() and not goes_on(model)
    model.config.keep_window_size = model.config.max_position_embeddings
    for layer in model.model.layers:
        layer.self_attn.keep_window_size = model.config.keep_window_size
    assert not differs() and goes_on(model)
