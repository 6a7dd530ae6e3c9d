"""Writes docs/rules.md: every rule by name, the paper it is from, whether it samples the data, what proves it, its lines.

Run: python docs/make_rules.py. A test compares.
"""

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from textdiff import remasking, revealing, rules
from textdiff.rulebook import RULES

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "rules.md"
LAWS, TESTS = "test_laws.py::test_a_perfect_denoiser_samples_the_data", "test_rules.py::"
DATA, ONE = f"{TESTS}test_a_perfect_denoiser_samples_the_data", f"{TESTS}test_orders_of_one_token_a_step"
BIASED = f"{TESTS}test_what_looks_at_words_is_biased"
EXACT = "exact"
LOOSE = (
    "exact where tokens have a noise each, and for masks; refused where spans are deleted, or replaced words counted"
)
MASKS = "exact for masks and delete-then-mask; with plain deletion a heuristic, whose history the model does not know"
ORDER = "exact for masks where the order looks at x_t alone and a step reveals one word; `drawn` is biased"
PICK = "exact for masks where a step reveals one word; several at once err by what these words share"


class Row(NamedTuple):
    """What the page says of a rule. code: the functions whose lines it is."""

    paper: str
    law: str
    proof: str
    code: tuple[Callable[..., object], ...]


ROWS = {
    "fresh": Row("Su, kexue.fm archives 9262; Cold Diffusion's Naive Sampling", EXACT, LAWS, (rules._fresh,)),
    "posterior": Row(
        "D3PM-absorbing (arXiv:2107.03006), MDLM (2406.07524), DDIM (2010.02502); first-hitting (2409.02908) with "
        "infinitely many steps", EXACT, LAWS, (rules._posterior,),
    ),
    "partial": Row("ReMDM with sigma = RHO (1 - alpha_s) (2503.00307)", EXACT, LAWS, (rules._partial,)),
    "remdm-cap": Row("ReMDM-cap (2503.00307)", LOOSE, DATA, (remasking.capped, remasking._remasking)),
    "remdm-rescale": Row("ReMDM-rescale (2503.00307)", LOOSE, DATA, (remasking.rescaled, remasking._remasking)),
    "remdm-conf": Row(
        "ReMDM-conf (2503.00307)", "biased: what is hidden again depends on the words", BIASED,
        (remasking.least_sure, remasking._remasking),
    ),
    "remdm-loop": Row("ReMDM-loop (2503.00307)", LOOSE, DATA, (remasking.looped, remasking._remasking)),
    "forward-backward": Row(
        "corrector steps (Campbell et al., 2205.14987)", EXACT, DATA, (remasking.forward_backward, remasking._markov)
    ),
    "gibbs": Row("leave-one-out Gibbs sampling after the posterior", MASKS, DATA, (remasking.gibbs, remasking._one_again)),
    "mask-predict": Row(
        "Mask-Predict (1904.09324)", "biased: the least probable words are drawn again", BIASED, (remasking._mask_predict,)
    ),
    "doubt": Row(
        "self-correction: improbable words are hidden again", "biased: what is hidden again depends on the words", BIASED,
        (remasking.doubting, remasking._remasking),
    ),
    "ranked": Row(
        "MaskGIT (2202.04200), LLaDA (2502.09992): `drawn`; Kim et al. (2502.06768): `margin`; Dream (2508.15487): "
        "`entropy`; any-order and left-to-right autoregression", ORDER, ONE, (revealing._ranked,),
    ),
    "threshold": Row("Fast-dLLM (2505.22618)", PICK, ONE, (revealing.threshold, revealing._revealing)),
    "budget": Row(
        "entropy-bounded unmasking (2505.24857)", f"{PICK}, by no more than GAMMA nats a step", ONE,
        (revealing.within_budget, revealing._revealing),
    ),
    "top": Row(
        "a fixed number of words a step, as in LLaDA and Dream", PICK, ONE, (revealing.most_likely, revealing._revealing)
    ),
    "sde": Row(
        "DDPM (2006.11239) at 1, DDIM at ETA: Gaussian noise", "exact as steps get small",
        "test_images.py::test_small_steps_are_an_sde", (rules._sde,),
    ),
    "ode": Row(
        "the probability-flow ODE's first-order step: Gaussian noise", "exact as steps get small",
        "test_diffusers.py::test_ddim", (rules._sde,),
    ),
}  # fmt: skip

# What a rule is for each kind of process: exact, one (where a step reveals one word), biased, heuristic, refused.
KINDS = (
    "masks",
    "deletion",
    "spans deleted",
    "replacement",
    "counted replacement",
    "edit",
    "encoder, images",
    "in blocks",
)
EVERYWHERE = ("exact",) * 8
NO_TIES = ("exact", "exact", "refused", "exact", "refused", "exact", "refused", "exact")
BY_SCORE = ("biased", "biased", "refused", "biased", "refused", "biased", "refused", "refused")
REVEALED = ("one", "heuristic", "heuristic", "heuristic", "heuristic", "heuristic", "refused", "one")
CELLS = {
    "fresh": EVERYWHERE,
    "posterior": EVERYWHERE,
    "partial": EVERYWHERE,
    "remdm-cap": NO_TIES,
    "remdm-rescale": NO_TIES,
    "remdm-conf": BY_SCORE,
    "remdm-loop": NO_TIES,
    "forward-backward": ("exact",) * 6 + ("refused", "exact"),
    "gibbs": ("exact",) + ("heuristic",) * 2 + ("refused",) * 5,
    "mask-predict": ("biased",) * 6 + ("refused", "refused"),
    "doubt": BY_SCORE,
    "ranked": REVEALED,
    "threshold": REVEALED,
    "budget": REVEALED,
    "top": REVEALED,
    "sde": ("refused",) * 6 + ("small steps", "refused"),
    "ode": ("refused",) * 6 + ("small steps", "refused"),
}

INTRO = """# Rules: which noise goes back in

Written by `python docs/make_rules.py`; a test compares. A rule is given by name, on the command line (`--rule`), in
pipelines (`rule=`) and in `diffusion_config.json`; from Python `textdiff.rule_of(name)` makes it. A number that is left out
is the one in the second column.

"Exact" means: with the true q(x0 | xt) the samples are the data, in any number of steps. The tests enumerate toys and assert
it by chi-square with 100,000 samples, with a control that fails; what is biased is shown to be so, by the same test.
Lines are those of the rule's code, without docstrings.

| rule | if left out | from | law | proof | lines |
|---|---|---|---|---|---|
"""
REST = """
## Which rule for which process

Masks are `Masking`, of single tokens, spans or counts, and delete-then-mask, `Deletion(staged=True)`. Deletion is with
markers or without; edits are with insertions or without. A mixture has what all of its parts have. In blocks is a model that
writes so (`Blocks`), whatever its text: a block is begun when those before it are done, and a rule that hides words again
hides the last ones. "one": exact where a step reveals one word, in an order chosen from x_t (`ranked:drawn` is biased);
`ranked:random` is exact wherever tokens have a noise of their own. Where masks are counted `remdm-*` keeps their number on
average alone, which q(x0 | xt) does not depend on. "refused" is an error before the first word is written.
`tests/test_cells.py` asserts every cell, with words drawn late, as models draw them.

| rule | {kinds} |
|---|{lines_of_kinds}
{cells}

## Blocks

`@N` after the name reveals in blocks of N of the tokens that are the model's to write, from left to right:
`ranked:drawn@32` is LLaDA's semi-autoregressive decoding, `threshold:0.9@32` Fast-dLLM's. {blocks} have blocks.
A model that writes in blocks (`--diffusion.block`) goes from one of its own blocks to the next by every rule that it takes;
`@N` then counts anew in each of these.

## Steps

`num_steps` says how finely time is cut. Where the model is not told t (all of text) and a rule keeps the noise
(`posterior`, `ranked`), the noise says beforehand at which steps a row changes, and it is read at these alone: 1,000 steps
of `[GAP:20]` cost at most 20 calls. So it is where lengths are unknown and come in stages of masks (`--diffusion.staged`); a
model of plain deletion decides at every step anew how much is missing where, so that N steps cost some 2 N calls: bound
them by `max_time`. With `num_steps="inf"` words come one by one, at the moments of continuous
time (first-hitting). `threshold`, `budget` and `top` end when nothing is hidden any more, and take infinitely many steps,
too. `num_steps="auto"` takes so many that a word is drawn together with half another one on average
(`textdiff/clocks.py`). Rows of a batch go at clocks of their own, and none waits for another.

- Words that a step does not show are not drawn; the head, and in models where a trial finds that it may, the last layer
  speak of the places asked alone.
- `forward-backward` and `gibbs` go back in time: of their steps every third, and every second of the last 2 ROUNDS, only
  hide, and call no model where masks show what is hidden.
- Replacement and edits compare the guess with the text to see what is wrong, so all words in doubt are drawn at each step.

## A rule of your own

A rule is a function. This one reveals what stands beside a visible word first, in {lines} lines (`examples/new_rule.py`):

```python
{example}
```

`process.infer` is the noise that explains x_t, `process.deal(noise, x0, hide, s, key)` changes it so that just `hide` is
hidden at s, `process.rank(noise, xt, draw, score)` reveals the largest scores first, `draw.measured(measure, where)` asks
the model about places before a word is drawn, `draw.drawn(where)` draws there.
"""


def lines(*functions: Callable[..., object]) -> int:
    """How many lines of code these have, docstrings and blank lines aside."""
    count = 0
    for function in functions:
        tree = ast.parse(inspect.getsource(function).strip()).body[0]
        assert isinstance(tree, ast.FunctionDef)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(node, ast.FunctionDef) and isinstance(body, list) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        count += len(ast.unparse(tree).splitlines())
    return count


def example() -> str:
    """The rule of examples/new_rule.py, as it stands there."""
    source = (ROOT / "examples" / "new_rule.py").read_text(encoding="utf-8")
    (node,) = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "beside"]
    rule = next(line for line in source.splitlines() if line.startswith("BESIDE"))
    return "\n".join([*source.splitlines()[node.lineno - 1 : node.end_lineno], "", "", rule])


def page() -> str:
    """The whole page."""
    rows = []
    for name, row in ROWS.items():
        usage, default = RULES[name].usage.replace("|", "\\|"), RULES[name].default
        rows.append(f"| `{usage}` | {default} | {row.paper} | {row.law} | `{row.proof}` | {lines(*row.code)} |")
    blocks = ", ".join(f"`{name}`" for name, entry in RULES.items() if entry.blocks)
    text = example()
    cells = "\n".join(f"| `{name}` | {' | '.join(row)} |" for name, row in CELLS.items())
    columns = {"kinds": " | ".join(KINDS), "lines_of_kinds": "---|" * len(KINDS), "cells": cells}
    rest = REST.format(blocks=blocks, example=text, lines=sum(map(bool, text.splitlines())), **columns)
    return INTRO + "\n".join(rows) + "\n" + rest


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
