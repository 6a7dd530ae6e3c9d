"""Writes docs/models.md: what becomes of a text with gaps in every type of model that transformers has a class for.

Run: python docs/make_models.py (a few minutes). Every line is a run: a tiny model of the type with random weights, built
by tests/families.py, fills a text through `pipeline("text-infilling")`, or says why it does not.
"""

import contextlib
import gc
import io
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
TITLES = {
    "masked": "Masked language models (`AutoModelForMaskedLM`)",
    "seq2seq": "Encoder-decoders (`AutoModelForSeq2SeqLM`)",
    "causal": "Causal language models (`AutoModelForCausalLM`)",
}
WAYS = {
    "Parallel": "lengths by search, then one word after the other, the surest first",
    "Sentinels": "T5's span corruption: the encoder reads the text, the decoder writes all gaps in order",
    "Middle": "the model's own fill-in-the-middle tokens, for types whose tokenizer has them",
    "Continuing": "the model's own law from left to right, weighed by the words to the right",
}


INTRO = """# Which models fill gaps

Written by `python docs/make_models.py`. Every model type that transformers {version} maps to masked, seq2seq or causal
language modelling, as a tiny model with random weights and a tokenizer such as its type has, is given
`one [GAP:2] three [GAP:1-2] five` by `pipeline("text-infilling")`.

- fills: the user's words stay, the gaps have the lengths asked for, and no special token is written;
- refused: a ValueError says why, when the pipeline is made or the text is read.

Of {total} entries: {counts}. A type can stand in more than one list. Random weights say nothing about quality.
`tests/test_families.py` (slow) runs every line.
"""
TURNED = """The last column is for training: does the model read in both directions once `is_causal` is False? Found by
asking whether the last token changes the logits of the first. {counts}.
"""


class Row(NamedTuple):
    """A line of a table. way: the denoiser; turned: what `is_causal = False` does, for causal models."""

    mapping: str
    name: str
    kind: str
    way: str
    result: str
    turned: str

    def line(self) -> str:
        cells = [f"`{self.name}`", f"`{self.kind}`", self.way, self.result.replace("|", "\\|")]
        return f"| {' | '.join(cells + [self.turned] * (self.mapping == 'causal'))} |"


def row(mapping: str, name: str) -> Row:
    """Build, fill, forget."""
    import families

    kind = families.NAMES[mapping][name]
    if (known := families.NOT_BUILT.get(f"{mapping} {name}")) is not None:
        return Row(mapping, name, kind, "", f"not built: {known.reason}", "")
    model, tokenizer = families.tiny(name, mapping)
    try:
        filled = families.fillings(model, tokenizer)
        way, result = filled["denoiser"], "fills" if families.is_filled(filled, tokenizer) else "WRONG"
    except ValueError as error:
        way, result = "", f"refused: {error}"
    turned = families.both_ways(model) if mapping == "causal" else ""
    return Row(mapping, name, kind, way, result, turned)


def listed(count: Counter[str]) -> str:
    """What there is how often, the most frequent first."""
    return ", ".join(f"{what} {n}" for what, n in count.most_common())


def page(rows: list[Row]) -> str:
    """The whole page."""
    import transformers

    results = [r.result.partition(":")[0] for r in rows]
    ways = Counter(r.way for r in rows if r.result == "fills")
    lines = [
        INTRO.format(version=transformers.__version__, total=len(rows), counts=listed(Counter(results))),
        "| way | entries | |",
        "|---|---|---|",
        *(f"| `{way}` | {ways[way]} | {said} |" for way, said in WAYS.items()),
        "",
    ]
    for mapping, title in TITLES.items():
        mine = [r for r in rows if r.mapping == mapping]
        causal = mapping == "causal"
        lines += [f"## {title}", ""]
        if causal:
            lines += [TURNED.format(counts=listed(Counter(r.turned for r in mine if r.turned)))]
        head = ["type", "class", "way", "result"] + ["`is_causal = False`"] * causal
        lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(r.line() for r in mine), ""]
    return "\n".join(lines)


def main() -> None:
    import torch
    import transformers
    from families import TYPES

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for number, (mapping, name) in enumerate(TYPES):
        with contextlib.redirect_stdout(io.StringIO()):
            rows.append(row(mapping, name))
        if rows[-1].result != "fills":
            print(f"{mapping} {name}: {rows[-1].result}", flush=True)
        if number % 32 == 0:
            gc.collect()
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
