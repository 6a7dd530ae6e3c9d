"""Every process of text by its name: trained for a moment, saved, loaded, measured, and run in reverse."""

from pathlib import Path

import pytest
import torch
from tiny import WORDS, tiny_checkpoint

from textdiff.checkpoint import DiffusionConfig, load
from textdiff.data import to_tokens
from textdiff.drafts import refine
from textdiff.filling import infill
from textdiff.gaps import parse
from textdiff.keys import Key
from textdiff.process import Deletion, Edit, Masking, Mixture, Replacement
from textdiff.recipe import know_places
from textdiff.revealing import ranked
from textdiff.rules import fresh, partial, posterior
from textdiff.tokenizer import encode
from textdiff.tokens import Specials
from textdiff.udm import UDM
from textdiff.zoo import parts

ZOO = [
    {"process": "masking"},
    {"process": "masking", "counts": True, "schedule": "cosine"},
    {"process": "deletion"},
    {"process": "deletion", "staged": True},
    {"process": "replacement"},
    {"process": "replacement", "masked": 0.5},
    {"process": "replacement", "counts": True, "different": True},
    {"process": "edit"},
    {"process": "edit", "edits": (0.5, 0.5, 0.0, 0.0)},
    {"process": "encoder"},
    {"process": "deletion+edit", "staged": True},
    {"process": "2*masking + replacement"},
]
TEXT = "We the people. It is 1787; we go on."
KEPT = "people. It"
each = pytest.mark.parametrize("settings", ZOO, ids=lambda s: "-".join(map(str, s.values())).replace(" ", ""))


def texts(checkpoint, rows=WORDS) -> torch.Tensor:
    ids = checkpoint.specials
    return to_tokens([[ids.bos, *encode(checkpoint.tokenizer, row)] for row in rows], ids.pad)


@each
def test_it_is_learned(settings: dict) -> None:
    """The loss falls, and every weight that can tell words apart moves with it."""
    checkpoint = tiny_checkpoint(lengths=32, **settings)
    config, ids = checkpoint.config, checkpoint.specials
    process = config.build_process(ids, checkpoint.model, (1, 4))
    udm = UDM(process, config.build_denoiser(checkpoint.model, ids))
    optimizer = torch.optim.Adam(checkpoint.model.parameters(), 3e-3)
    x0 = texts(checkpoint)
    losses = []
    for turn in range(40):
        key = Key.of(0, len(x0)).fold(turn % 4)  # the same four looks again and again, so that losses compare
        loss = udm(know_places(x0, key, 0.3), key.fold(0))
        (loss.total / loss.size).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.total.detach() / loss.size))
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


@each
def test_it_is_saved_and_measured(settings: dict, tmp_path: Path) -> None:
    """A loaded checkpoint is the one that was saved, and its likelihood, or bound, is a number above that of no surprise."""
    made = tiny_checkpoint(lengths=32, **settings)
    made.save(tmp_path)
    found = load(tmp_path)
    assert found.config == made.config
    ids = found.specials
    process, kind = found.config.likelihood(ids, found.model)
    denoiser = found.tools()["denoiser"]
    nats = UDM(process, denoiser).bound(texts(found), Key.of(0, len(WORDS)), draws=8)
    assert bool(nats.isfinite().all()) and float(nats.mean()) > 10 and kind


@each
@pytest.mark.parametrize("rule", [fresh, posterior, partial(0.3)], ids=["fresh", "posterior", "rho"])
def test_it_fills_and_rewrites(settings: dict, rule) -> None:
    """Identity 18 for every process: what is the user's comes back byte for byte; counted gaps hold what was counted."""
    checkpoint = tiny_checkpoint(lengths=32, **settings)
    tools = checkpoint.tools()
    page = parse("We the [GAP:3] people, é [GAP:1] go.")
    for result in infill([page], steps=3, rule=rule, samples=4, **tools)[0]:
        assert result.text.startswith("We the ") and " people, é " in result.text and result.text.endswith(" go.")
    if not checkpoint.config.keeps_lengths:
        result = infill([parse("We [GAP] people, [GAP:2] on.")], steps=3, rule=rule, **tools)[0][0]
        assert result.text.startswith("We ") and " people, " in result.text and result.text.endswith(" on.")
    start = TEXT.index(KEPT)
    for t in (0.3, 1.0):
        found = refine([TEXT], t, keep=[[(start, start + len(KEPT))]], steps=3, rule=rule, samples=4, **tools)[0]
        assert all(KEPT in result.text for result in found)
    assert any(result.text != TEXT for result in found)


@pytest.mark.parametrize("process", ["replacement", "encoder"])
def test_lengths_that_have_to_be_given(process: str) -> None:
    checkpoint = tiny_checkpoint(process=process)
    assert checkpoint.config.keeps_lengths
    with pytest.raises(ValueError, match=r"keeps lengths, so it cannot fill \[GAP\]; give the length, as in \[GAP:3\]"):
        infill([parse("We [GAP] on.")], **checkpoint.tools())


def test_ranked_is_for_noise_per_token() -> None:
    for settings in ({"process": "masking"}, {"process": "deletion"}, {"process": "replacement"}):
        checkpoint = tiny_checkpoint(**settings)
        assert infill([parse("We [GAP:2] on.")], steps=2, rule=ranked(), **checkpoint.tools())
    with pytest.raises(
        ValueError, match="Encoder has no noise per token to deal out by confidence; use the posterior rule"
    ):
        infill([parse("We [GAP:2] on.")], steps=2, rule=ranked(), **tiny_checkpoint(process="encoder").tools())


def test_names() -> None:
    assert parts("masking") == [(1.0, "masking")]
    assert parts(" 3*deletion + 0.5 * edit ") == [(3.0, "deletion"), (0.5, "edit")]
    ids = Specials(0, 1, 2, 3, size=8)
    made = DiffusionConfig(process="deletion+edit+masking").build_process(ids)
    assert isinstance(made, Mixture) and [type(p) for p in made.processes] == [Deletion, Edit, Masking]
    assert isinstance(DiffusionConfig(process="replacement").build_process(ids), Replacement)
    for name in ("", "+", "masking+", "x*masking", "1.2.3*masking", "masking,edit"):
        with pytest.raises(ValueError, match="process"):
            parts(name)
