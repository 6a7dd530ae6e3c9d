"""Every cell of process and rule in docs/rules.md is what the page says: exact, or refused; the others run.

Exact is Su's law, x_s through x_t as directly, backward in time and forward too where a rule goes there. The guess is the
truth with its words held back, as models hold them (test_lazy.py). Two samples of 20,000 texts, chi-square at p > 1e-6, its
rate of false alarm; the controls, insertions that end and tied tokens that are hidden one by one, fail it.
"""

import importlib.util
from functools import cache
from pathlib import Path

import pytest
import torch
from test_block_laws import NAMES, REFUSED
from test_laws import SPECIALS, A, B, forgetful, many, patterned, plain, same, tally, time
from test_lazy import PROCESSES, after, held_back, scored
from torch import nn

from textdiff.images import Images
from textdiff.keys import Key
from textdiff.posterior import Draw
from textdiff.process import Deletion, Edit, Encoder, Process, Replacement, VariancePreserving
from textdiff.process.edit import EditNoise
from textdiff.rulebook import RULES, rule_of
from textdiff.rules import Rule
from textdiff.tokens import Tokens

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("make_rules", ROOT / "docs" / "make_rules.py")
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)

OF = {
    "masks": ("masking", "counts", "spans", "staged"),
    "deletion": ("deletion", "bare"),
    "spans deleted": ("deletion of spans",),
    "replacement": ("replacement", "replacement B", "replacement with masks", "replacement B with masks"),
    "counted replacement": ("replacement, counted", "replacement A, counted"),
    "edit": ("edit with insertions", "edit", "edit by masks", "edit, open-ended"),
}
ALL = PROCESSES | {"replacement A, counted": Replacement(SPECIALS, torch.tensor([A, B]), counts=True)}
# enough is hidden again to tell; by default little is
LOUD = {"partial": "partial:0.3", "gibbs": "gibbs:1", "doubt": "doubt:0.5"} | {
    name: f"{name}:0.5" for name in ("remdm-cap", "remdm-rescale", "remdm-conf", "remdm-loop")
}
COUNT, EARLY, LATE = 20_000, 0.45, 0.8
QUICK = {
    ("edit with insertions", "forward-backward"), ("edit with insertions", "remdm-cap"), ("replacement", "remdm-cap"),
    ("deletion", "forward-backward"), ("masking", "partial"),
}  # fmt: skip
RUNS = [
    pytest.param(kind, of, rule, marks=[pytest.mark.slow] * (cell == "exact" and (of, rule) not in QUICK))
    for rule, row in page.CELLS.items()
    for kind, cell in zip(page.KINDS, row, strict=True)
    for of in OF.get(kind, ())
]


def test_the_page_is_up_to_date() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run python docs/make_rules.py"
    assert set(page.CELLS) == set(page.ROWS) == set(RULES) and set(page.KINDS) == {*OF, "encoder, images", "in blocks"}


def test_the_cells_of_models_that_write_in_blocks() -> None:
    """Each is accepted, or refused, in test_block_laws.py."""
    said = {name: dict(zip(page.KINDS, row, strict=True))["in blocks"] for name, row in page.CELLS.items()}
    taken = {name.partition(":")[0].partition("@")[0] for name in NAMES}
    assert {name for name, cell in said.items() if cell != "refused"} == taken
    assert {name for name, cell in said.items() if cell == "refused"} - {"sde", "ode"} == {
        name.partition(":")[0] for name in REFUSED
    }


@cache
def directly(name: str, text, s: float) -> dict[int, int]:
    process, x0 = ALL[name], many(text(), COUNT)
    return tally(process.corrupt(x0, process.noise(x0, Key.of(9, COUNT)), time(COUNT, s)).ids[:, :22])


@cache
def halfway(name: str, text, t: float, count: int) -> tuple[Tokens, Draw]:
    """x_t and the truth as a guess, its words held back."""
    process, x0 = ALL[name], many(text(), count)
    noise = process.noise(x0, Key.of(5, count))
    xt = forgetful(process.corrupt(x0, noise, time(count, t)))
    return xt, held_back(xt, scored(xt, process.align(x0, noise, time(count, t))))


def consistency(name: str, process: Process, rule: Rule, text, t: float, s: float) -> float:
    """The chance of x_s through x_t and x_s directly as far apart as they are."""
    xt, draw = halfway(name, text, t, COUNT)
    return same(tally(after(process, rule, xt, draw, t, s).ids[:, :22]), directly(name, text, s))


@pytest.mark.parametrize(("kind", "of", "name"), RUNS)
def test_a_cell_is_what_the_page_says(kind: str, of: str, name: str) -> None:
    """Identity 2, for every process and rule. (Counts and spans of masks are kept by rules that keep the noise.)"""
    cell, rule = page.CELLS[name][page.KINDS.index(kind)], rule_of(LOUD.get(name, name))
    xt, draw = halfway(of, patterned, LATE, 20)
    if cell == "refused":
        with pytest.raises(ValueError, match="; use "):
            after(ALL[of], rule, xt, draw, LATE, EARLY)
        return
    after(ALL[of], rule, xt, draw, LATE, EARLY)
    if cell == "exact" and not (of in ("counts", "spans") and name.startswith("remdm")) and name != "gibbs":
        assert consistency(of, ALL[of], rule, plain, LATE, EARLY) > 1e-6
        if not name.startswith("remdm"):  # which only go back
            assert consistency(of, ALL[of], rule, patterned, EARLY, LATE) > 1e-6


@pytest.mark.parametrize("name", page.CELLS)
def test_the_cells_of_gaussian_noise(name: str) -> None:
    cell = page.CELLS[name][page.KINDS.index("encoder, images")]
    rule, key, t, s = rule_of(LOUD.get(name, name)), Key.of(0, 2), time(2, 0.6), time(2, 0.5)
    x0 = many(plain(), 2)
    text, pictures = Encoder(nn.Embedding(8, 4), SPECIALS), VariancePreserving()
    images = Images.of(torch.zeros(2, 1, 2, 2))
    for process, clean in ((text, x0), (pictures, images)):
        with torch.no_grad():
            noise = process.noise(clean, key)
            xt, draw = process.corrupt(clean, noise, t), process.align(clean, noise, t)
            if cell == "refused":
                with pytest.raises(ValueError, match="; use "):
                    rule(process, xt, draw, t, s, key)
            else:
                process.corrupt(clean, rule(process, xt, draw, t, s, key), s)


class Barren(Edit):
    """A control: after t no word comes in."""

    def infer(self, xt: Tokens, draw: Draw, t: torch.Tensor, key: Key) -> EditNoise:
        noise = super().infer(xt, draw, t, key)
        return noise._replace(when=noise.when.masked_fill(noise.when >= self._reach(t)[:, None, None], 1.0))


class Loose(Deletion):
    """A control: tokens that spans tie together pass for tokens by themselves."""

    tied = False


class LooseReplacement(Replacement):
    """The same, of words that are counted."""

    tied = False


def test_what_breaks_the_law_is_noticed() -> None:
    made, remdm = ALL["edit with insertions"], rule_of(LOUD["remdm-cap"])
    assert isinstance(made, Edit)
    barren = Barren(SPECIALS, made.words, kinds=made.kinds, insert=made.insert)
    assert consistency("edit with insertions", barren, rule_of("forward-backward"), plain, EARLY, LATE) < 1e-6
    loose = Loose(SPECIALS, spans=(3,), empty=1)
    assert consistency("deletion of spans", loose, remdm, plain, LATE, EARLY) < 1e-6
    counted = LooseReplacement(SPECIALS, torch.tensor([A, B]), counts=True)
    assert consistency("replacement A, counted", counted, remdm, plain, LATE, EARLY) < 1e-6
