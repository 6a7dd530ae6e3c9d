"""On a GPU every kind of model says what it says on the host: the same seeds write the same texts."""

import copy

import pytest
import torch

from tests.tiny import KINDS, WORDS, tiny_checkpoint
from textdiff.checkpoint import Checkpoint
from textdiff.filling import infill
from textdiff.gaps import parse
from textdiff.keys import Key
from textdiff.rulebook import rule_of
from textdiff.scoring import score, scorer
from textdiff.tuning import Recorded, tune
from textdiff.udm import UDM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="it compares a CUDA device with the host")
TEXTS = [parse("We the [GAP] union, [GAP:2]."), parse("It is [GAP:3]; we go on.")]


def there(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights on the GPU, in full precision."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return Checkpoint(copy.deepcopy(checkpoint.model).cuda(), checkpoint.tokenizer, checkpoint.config)


def fill(checkpoint: Checkpoint, rule: str = "posterior", steps: int = 4, **options: object) -> list[list[str]]:
    found = infill(TEXTS, **checkpoint.tools(), steps=steps, rule=rule_of(rule), seed=3, samples=2, **options)
    return [[one.text for one in row] for row in found]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts(kind):
    checkpoint = tiny_checkpoint(kind)
    assert fill(there(checkpoint)) == fill(checkpoint)


@pytest.mark.parametrize("rule", ["ranked", "ranked:left", "forward-backward", "partial:0.3", "doubt:0.1"])
def test_every_kind_of_rule(rule):
    checkpoint = tiny_checkpoint(process="masking", staged=False)
    texts = [parse("It is [GAP:9]; we go on.")]
    found = [
        infill(texts, **one.tools(), steps=4, rule=rule_of(rule), seed=3, samples=3)
        for one in (checkpoint, there(checkpoint))
    ]
    assert [one.text for one in found[0][0]] == [one.text for one in found[1][0]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_scores(kind):
    checkpoint = tiny_checkpoint(kind)
    ours, theirs = (score(WORDS, **scorer(one), draws=2, window=8) for one in (checkpoint, there(checkpoint)))
    for one, other in zip(ours, theirs, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-3)


def test_recorded_calls_say_what_the_model_says():
    checkpoint = there(tiny_checkpoint())
    plain = fill(checkpoint, steps=8)
    tune(checkpoint.model, "graphs")
    body = checkpoint.model.base_model.forward
    assert isinstance(body, Recorded)
    assert fill(checkpoint, steps=8) == plain and len(body.kept) > 1
    ids = torch.randint(5, 200, (3, 20), device="cuda")
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    with torch.inference_mode():
        for seen in (None, torch.ones_like(ids), mask):
            said, right = (run(input_ids=ids, attention_mask=seen)[0] for run in (body, body.run))
            assert torch.allclose(said, right, atol=1e-5)
        first = body(input_ids=ids)[0]
        body(input_ids=ids.flip(1))
        assert torch.equal(first, body(input_ids=ids)[0])  # what was said is not written over


def test_half_precision_writes_whole_texts():
    checkpoint = there(tiny_checkpoint())
    tune(checkpoint.model, "bf16")
    assert all("[" not in text for row in fill(checkpoint) for text in row)


def test_a_step_of_training():
    checkpoint = there(tiny_checkpoint(process="masking"))
    ids = checkpoint.specials
    udm = UDM(checkpoint.config.build_process(ids), checkpoint.config.build_denoiser(checkpoint.model.train(), ids))
    from textdiff.tokens import Tokens

    x0 = Tokens.from_rows([[ids.bos, *range(20, 40)], [ids.bos, *range(50, 60)]], ids.pad).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = udm(x0, Key.of(0, 2).to("cuda"))
    loss.total.backward()
    assert torch.isfinite(loss.total) and checkpoint.model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_stock_model_that_calls_its_body_by_place_is_recorded():
    from transformers import BertConfig, BertForMaskedLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = tune(BertForMaskedLM(BertConfig(vocab_size=100, **shape)).eval().cuda(), "graphs")
    ids = torch.randint(5, 100, (2, 16), device="cuda")
    with torch.inference_mode():
        said, right = model(ids).logits, model(ids).logits
    assert len(model.base_model.forward.kept) == 1 and torch.allclose(said, right)
