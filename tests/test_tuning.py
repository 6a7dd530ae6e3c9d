"""Ways to make a model's calls quicker: what they change, and what they refuse."""

import copy

import pytest
import torch
from stock import filler
from transformers import BertConfig, BertForMaskedLM, pipeline

from tests.tiny import tiny_checkpoint
from textdiff.denoiser import last
from textdiff.denoiser.head import Reading
from textdiff.tuning import MOST, WAYS, Recorded, tune


def bert(layers: int = 3) -> BertForMaskedLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForMaskedLM(BertConfig(vocab_size=500, initializer_range=0.3, **shape)).eval()


def logits(model: BertForMaskedLM, share: float) -> torch.Tensor:
    """At a share of the places: below a half the last layer answers for them alone."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 500, (2, 64), generator=generator)
    where = torch.rand(ids.shape, generator=generator) < share
    with torch.inference_mode():
        return Reading(model, ids.shape, input_ids=ids, attention_mask=torch.ones_like(ids)).logits(where)


def test_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="'int4'.*compile"):
        tune(bert(), "int4")


@pytest.mark.parametrize("way", ["compile", "int8"])
def test_models_without_layers_are_refused(way):
    if way == "int8":
        pytest.importorskip("torchao", reason="torchao is optional: pip install 'textdiff[int8]'")
    with pytest.raises(ValueError, match="no list of like layers"):
        tune(bert(layers=1), way)


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="the model is on cpu; leave graphs out"):
        tune(bert(), "graphs")


def test_int8_without_torchao(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match="int8 needs torchao; install it"):
        tune(bert(), "int8")


def test_half_precision_is_drawn_from_in_full():
    """Probabilities of bfloat16 logits are added up in float32: their sum is 1 to 1 in 10^5, not to 1 in 10^2."""
    from textdiff.denoiser.lengths import possible
    from textdiff.drawing import draw_tokens
    from textdiff.posterior import Decode
    from textdiff.tokens import Specials

    said = torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    scores = possible(said, torch.zeros(4, dtype=torch.bool), Specials(pad=0, bos=1, mask=2, gap=3))
    words, sure = draw_tokens(scores, torch.full((4,), 0.7, dtype=torch.float64), Decode())
    right = scores.double().log_softmax(-1).gather(1, words[:, None])[:, 0]
    assert torch.allclose(sure.double(), right, atol=1e-5)
    rough, none = draw_tokens(said, torch.full((4,), 0.7, dtype=torch.float64), Decode())
    assert not torch.allclose(none.double(), said.double().log_softmax(-1).gather(1, rough[:, None])[:, 0], atol=1e-5)


def test_bf16_fills():
    checkpoint = tiny_checkpoint()
    tune(checkpoint.model, "bf16")
    from textdiff.filling import infill
    from textdiff.gaps import parse

    found = infill([parse("We the [GAP:3] union[GAP].")], **checkpoint.tools(), steps=3)[0][0]
    assert found.text.startswith("We the ") and "[" not in found.text


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_compiled_layers_say_the_same(share):
    model = bert()
    compiled = tune(copy.deepcopy(model), "compile")
    assert last.able(compiled)
    assert torch.allclose(logits(compiled, share), logits(model, share), atol=1e-4)


@pytest.mark.slow
def test_eight_bits_are_near():
    """Off by rounding: not equal, and by less than a tenth of what logits differ by."""
    pytest.importorskip("torchao", reason="torchao is optional: pip install 'textdiff[int8]'")
    model = bert()
    rough, right = logits(tune(copy.deepcopy(model), "int8"), 0.9), logits(model, 0.9)
    assert 0 < float((rough - right).std()) < 0.1 * float(right.std())


def test_the_order_of_ways():
    """What changes weights comes before what compiles them, and that before what records."""
    assert list(WAYS) == ["bf16", "int8", "compile", "graphs"]


def test_the_command_line_tunes(capsys):
    from textdiff.cli import main

    assert main(["infill", "We choose to go to the [GAP].", "--tune", "bf16"]) == 0
    assert capsys.readouterr().out.startswith("We choose to go to the ")
    assert main(["infill", "We choose to go to the [GAP].", "--tune", "graphs"]) == 2
    assert "leave graphs out" in capsys.readouterr().err


class Replayed(Recorded):
    """On the host a graph is a function that is run again; what it says is in the same memory each time."""

    def _record(self, given, plain):
        held = {name: what.clone() for name, what in given.items()}
        output = self.run(**held, **plain)

        class Graph:
            def replay(self):
                output[0].copy_(run(**held, **plain)[0])

        run = self.run
        return Graph(), held, output


def test_calls_are_recorded_by_shape_and_say_what_the_body_says():
    body, ids = bert().base_model, torch.arange(5, 45).view(2, 20)
    recorded, mask = Replayed(body.forward), torch.ones_like(ids)
    part = mask.clone()
    part[1, 15:] = 0
    with torch.inference_mode():
        for args, named in (((ids,), {}), ((), {"input_ids": ids}), ((ids + 40, mask), {}), ((ids, part), {})):
            assert torch.allclose(recorded(*args, **named)[0], body.forward(*args, **named)[0], atol=1e-6)
        # by place, by name and beside a mask that hides nothing it is one call; one that hides something is another
        assert len(recorded.kept) == 2
        first = recorded(ids)[0]
        recorded(ids + 40)
        assert torch.equal(first, recorded(ids)[0])
        for width in range(1, MOST + 3):
            recorded(ids[:, :1].expand(-1, width))
        assert len(recorded.kept) == MOST
    assert recorded(ids)[0].grad_fn is not None  # whoever learns is not given a recording


def test_what_was_tuned_stays_in_a_pipeline():
    """A file's half precision is not kept on a CPU, and one that was asked for is."""
    fill = filler("causal, bytes")
    model = copy.deepcopy(fill.model)
    assert pipeline("text-infilling", model=model.half(), tokenizer=fill.tokenizer).model.dtype == torch.float32
    tune(model, "bf16")
    assert pipeline("text-infilling", model=model, tokenizer=fill.tokenizer).model.dtype == torch.bfloat16
