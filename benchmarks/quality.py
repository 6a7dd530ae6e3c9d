"""What each rule gives, and what it costs: gaps and pages of known length in texts that the model has never seen.

    OMP_NUM_THREADS=1 python benchmarks/quality.py --model runs/demo [--part one three pages shortcuts] [--out FILE]

one, three: gaps in a sentence, at temperature 0 what is right, at temperature 1 what the model says of its own words. pages:
texts from nothing. shortcuts: what is left out to save time changes no word, or no law of the words; a chi-square test of
two samples, which finds a difference where there is none once in a million times.

Calls are how often the model read a text, on average over texts. A chain is -log q(word | the text, and the words before it
in a random order), the same order for all rules. A star stands where a figure differs from that of `posterior` with
infinitely many steps on the same texts, by a bootstrap over texts, once in 500 by chance.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from infilling import Text, f1, spans
from scipy import stats
from torch import Tensor
from tqdm import tqdm
from writing import Model, nats, write

from textdiff.checkpoint import load
from textdiff.clocks import narrowed
from textdiff.data import load_texts
from textdiff.denoiser import Denoiser
from textdiff.evaluation import gap_cases, score_answers
from textdiff.filling import start_state
from textdiff.gaps import Gap
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.rulebook import ORDERS
from textdiff.tokenizer import encode
from textdiff.tokens import Tokens

DATA = "data/sotu"
PARTS = ("one", "three", "pages", "shortcuts")
PAGE = 48  # tokens
CLASSES = 5  # the most frequent words, and all others
GAP, FEW = 2, 2  # tokens in the gap of a text of a test; texts
LEAST = 10  # samples of both kinds in a cell of a table
LEVEL = 1e-6  # how often a test that finds a difference where there is none
OFTEN = 64  # steps of rules that end by themselves
REFERENCE = ("posterior", math.inf)
GAPS: list[tuple[str, float]] = [
    *(("posterior", n) for n in (1, 2, 4, 8, math.inf)),
    *((f"ranked:{order}", n) for order in ORDERS for n in (2, math.inf)),
    *((name, OFTEN) for name in ("top:1", "top:2", "threshold:0.9", "threshold:0.5", "budget:0.1", "budget:1")),
    *((name, 16) for name in ("remdm-cap:0.1", "remdm-rescale:0.3", "remdm-conf:0.5", "remdm-loop:0.3", "doubt:0.1")),
    ("forward-backward", 24), ("gibbs:8", 24), ("mask-predict", 8),
]  # fmt: skip
PAGES: list[tuple[str, float]] = [
    *(("posterior", n) for n in (1, 4, 16, 64, math.inf)), ("ranked:drawn", 16), ("ranked:drawn", math.inf),
    ("threshold:0.9", OFTEN), ("gibbs:8", 32), ("mask-predict", 16),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- figures


def ratio(above: np.ndarray, below: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """sum(above) / sum(below) over texts, with a 95 % interval by bootstrap."""
    pick = np.random.default_rng(0).integers(0, len(above), (draws, len(above)))
    found = above[pick].sum(1) / below[pick].sum(1)
    return (float(above.sum() / below.sum()), *map(float, np.quantile(found, [0.025, 0.975])))


def differs(mine: np.ndarray, other: np.ndarray, draws: int = 5000) -> bool:
    """Whether the difference of two sums over the same texts has a side, but for one time in 500."""
    pick = np.random.default_rng(1).integers(0, len(mine), (draws, len(mine)))
    low, high = np.quantile((mine - other)[pick].sum(1), [0.001, 0.999])
    return bool(low > 0 or high < 0)


def jackknife(figure: Callable[[np.ndarray], float], texts: int, groups: int = 20) -> tuple[float, float]:
    """A figure of the texts with these numbers, for all, and 1.96 standard errors by leaving out groups of texts."""
    group = np.arange(texts) % groups
    found = np.array([figure(np.flatnonzero(group != left)) for left in range(groups)])
    error = math.sqrt((groups - 1) / groups * float(((found - found.mean()) ** 2).sum()))
    return figure(np.arange(texts)), 1.96 * error


def entropy(words: Sequence[Any]) -> float:
    """Of the words' frequencies, in nats."""
    share = np.array([*Counter(words).values()]) / len(words)
    return float(-(share * np.log(share)).sum())


def variety(ids: Tensor, where: Tensor) -> dict[str, tuple[float, float]]:
    """Of what was written, with 1.96 standard errors: entropy, share of distinct words and of distinct neighbours."""
    rows = [[int(token) for token in row[here]] for row, here in zip(ids, where, strict=True)]
    beside = where[:, 1:] & where[:, :-1]
    pairs = [[(int(a), int(b)) for a, b in zip(row[:-1][here], row[1:][here], strict=True)]
             for row, here in zip(ids, beside, strict=True)]  # fmt: skip

    def over(kinds: list[Any], figure: Callable[[list[Any]], float]) -> tuple[float, float]:
        return jackknife(lambda texts: figure([w for text in texts for w in kinds[text]]), len(kinds))

    def distinct(words: list[Any]) -> float:
        return len({*words}) / max(1, len(words))

    return {"entropy": over(rows, entropy), "distinct1": over(rows, distinct), "distinct2": over(pairs, distinct)}


def right(model: Model, texts: Sequence[Text], x: Tokens, ids: Tensor) -> dict[str, Any]:
    """Of gaps filled at temperature 0, by text: how many are exactly right, their words' F1, and intervals."""
    exact, share, count, pairs = [], [], [], []
    for number, text in enumerate(texts):
        written = iter(ids[number][x.ids[number] == model.specials.mask].tolist())
        sizes = [len(encode(model.tokenizer, " " + answer)) for answer in text.answers]
        given = [model.tokenizer.decode([next(written) for _ in range(n)]).strip() for n in sizes]
        pairs += zip(text.answers, given, strict=True)
        exact.append(sum(a.strip() == g for a, g in zip(text.answers, given, strict=True)))
        share.append(sum(f1(a, g) for a, g in zip(text.answers, given, strict=True)))
        count.append(len(sizes))
    found = {"exact": ratio(np.array(exact), np.array(count)), "f1": ratio(np.array(share), np.array(count))}
    if max(count) == 1:  # else the gaps of a text are no independent trials
        wilson = score_answers([a for a, _ in pairs], [g for _, g in pairs])
        found["exact"] = (wilson.exact, wilson.low, wilson.high)
    return {**found, "by_text": {"exact": np.array(exact, dtype=float), "f1": np.array(share)}}


def own(model: Model, x: Tokens, ids: Tensor) -> dict[str, Any]:
    """Of words drawn at temperature 1: the model's own nats a word, and how varied they are."""
    where = x.ids == model.specials.mask
    chain = nats(model, x, ids)
    count = where.sum(1).numpy()
    inside = [entropy(row[here].tolist()) for row, here in zip(ids, where, strict=True)]
    return {
        "chain": ratio(chain, count), **variety(ids, where),
        "inside": ratio(np.array(inside), np.ones(len(x))), "by_text": {"chain": chain},
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- tables


def shown(found: dict[str, Any], name: str, base: dict[str, Any] | None, percent: bool = False) -> str:
    """A figure, its star, and its interval or 1.96 standard errors."""
    form = "{:.1%}" if percent else "{:.2f}"
    star = base is not None and name in found["by_text"] and differs(found["by_text"][name], base["by_text"][name])
    mark, values = "*" if star else "", [form.format(value) for value in found[name]]
    return f"{values[0]}{mark} [{values[1]}, {values[2]}]" if len(values) == 3 else f"{values[0]}{mark} ± {values[1]}"


def steps_of(steps: float) -> str:
    return "∞" if math.isinf(steps) else str(steps)


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Without what is of single texts."""
    return {name: value for name, value in found.items() if name != "by_text"}


def gaps(model: Model, name: str, texts: Sequence[Text], samples: int, rules: Sequence[str]) -> Iterator[str]:
    """A table of rules on texts with gaps, line by line, after the words that were there and what stars compare with."""
    x, truth = model.start(texts)
    many, found = x[torch.arange(len(x)).repeat_interleave(samples)], {}
    yield f"\n### {name}: {len(texts)} texts, {int((x.ids == model.specials.mask).sum())} tokens\n"
    yield "| rule | steps | calls | exact | word F1 | chain, nats | entropy | distinct 1 | distinct 2 |"
    yield "|" + "---|" * 9
    columns, real = ("chain", "entropy", "distinct1", "distinct2"), own(model, x, truth)
    yield "| the words that were there | | | | | " + " | ".join(shown(real, key, None) for key in columns) + " |"
    chosen = [REFERENCE, *(pair for pair in GAPS if pair != REFERENCE and (not rules or pair[0] in rules))]
    for rule, steps in tqdm(chosen, desc=name, dynamic_ncols=True):
        greedy, spent = write(model, x, rule, steps, 0, temperature=0.0)
        drawn, calls = write(model, many, rule, steps, 0)
        good, mine = right(model, texts, x, greedy), own(model, many, drawn)
        mine["by_text"] = {key: value.reshape(-1, samples).sum(1) for key, value in mine["by_text"].items()}
        found[rule, steps] = good, mine
        best, base = found[REFERENCE]
        cells = [
            shown(good, "exact", best, True),
            shown(good, "f1", best),
            *(shown(mine, key, base) for key in columns),
        ]
        yield f"| `{rule}` | {steps_of(steps)} | {spent:.1f}, {calls:.1f} | " + " | ".join(cells) + " |"


def pages(model: Model, count: int, rules: Sequence[str]) -> Iterator[str]:
    """A table of some rules that write whole texts, at temperature 1."""
    x = start_state([[Gap.of(PAGE)]] * count, model.tokenizer, model.specials)
    held = [encode(model.tokenizer, text)[:PAGE] for text in load_texts(DATA, "test")["text"] for text in blocks(text)]
    held = [row for row in held if len(row) == PAGE][:: max(1, len(held) // count)][:count]
    real = x[: len(held)]
    ids = real.ids.masked_scatter(real.ids == model.specials.mask, torch.tensor(held))
    yield f"\n### {count} texts of {PAGE} tokens from a blank page\n"
    yield "| rule | steps | calls | chain, nats | entropy within a text | entropy of all | distinct 2 |"
    yield "|" + "---|" * 7
    keys = ("chain", "inside", "entropy", "distinct2")
    found = own(model, real, ids)
    yield f"| {len(held)} texts as they are | | | " + " | ".join(shown(found, key, None) for key in keys) + " |"
    chosen = [pair for pair in PAGES if not rules or pair[0] in rules]
    for rule, steps in tqdm(chosen, desc="pages", dynamic_ncols=True):
        drawn, calls = write(model, x, rule, steps, 0)
        found = own(model, x, drawn)
        cells = " | ".join(shown(found, key, None) for key in keys)
        yield f"| `{rule}` | {steps_of(steps)} | {calls:.1f} | {cells} |"


def blocks(text: str, words: int = 60) -> Iterator[str]:
    """So many words at a time."""
    parts = text.split()
    yield from (" ".join(parts[begin : begin + words]) for begin in range(0, len(parts), words))


# ----------------------------------------------------------------------------------------------------------- shortcuts


class Whole(Denoiser):
    """The same denoiser, every word of whose guesses is drawn, whether or not a step shows it."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.timeless = inner, inner.timeless

    def forward(self, xt: Any, t: Tensor) -> Posterior:
        return WholePosterior(self.inner(xt, t))


class WholePosterior(Posterior):
    """A posterior that does not wait to be asked."""

    def __init__(self, inner: Posterior) -> None:
        self.inner = inner

    def sample(self, decode: Decode, key: Key) -> Draw:
        return self.inner.sample(decode, key)

    def log_prob(self, truth: Draw) -> Tensor:
        return self.inner.log_prob(truth)


def cells(words: Tensor, classes: int = CLASSES) -> Tensor:
    """(N,) the cell of a pair of words (N, 2): each is one of the most frequent words at its place, or another."""
    kinds = []
    for column in words.unbind(1):
        kind, count = column.unique(return_counts=True)
        common = kind[count.argsort(descending=True)[: classes - 1]]
        hit = column[:, None] == common
        kinds.append(torch.where(hit.any(1), hit.long().argmax(1), classes - 1))
    return kinds[0] * classes + kinds[1]


def told_apart(one: Tensor, two: Tensor, texts: int) -> tuple[float, int, float]:
    """Chi-square, its degrees of freedom and p for two samples (N, n) of the words of a gap, row i of text i mod `texts`.

    Every sample is in one cell of one table: that of its text and of two neighbours, which differ from sample to sample.
    Cells with few samples count together.
    """
    total, freedom, row = 0.0, 0, torch.arange(len(one))
    for text in range(texts):
        for first in range(one.shape[1] - 1):
            mine = (row % texts == text) & (row // texts % (one.shape[1] - 1) == first)
            split = int(mine.sum())
            both = cells(torch.cat([one[mine], two[mine]])[:, first : first + 2])
            table = torch.stack([part.bincount(minlength=CLASSES**2) for part in (both[:split], both[split:])])
            few = table.sum(0) < LEAST
            table = torch.cat([table[:, ~few], table[:, few].sum(1, keepdim=True)], 1)
            test = stats.chi2_contingency(table[:, table.sum(0) > 0].numpy(), correction=False)
            total, freedom = total + float(test.statistic), freedom + int(test.dof)
    return total, freedom, float(stats.chi2.sf(total, freedom))


def arms(model: Model) -> dict[str, dict[str, Any]]:
    """Ways to call `write`, by name."""
    patient = type(model.denoiser)(model.denoiser.model, model.specials).eval()
    patient.timeless = False
    usual: dict[str, Any] = {"steps": 16}
    return {
        "16 steps": usual,
        "16 steps, also those without a change": usual | {"denoiser": patient},
        "16 steps, words drawn whole": usual | {"denoiser": Whole(model.denoiser)},
        "16 steps, text by text": usual | {"single": True},
        "1,000 steps": {"steps": 1000},
        "infinitely many steps": {"steps": math.inf},
        "16 steps, temperature 0.9": usual | {"temperature": 0.9},
        "1 step": {"steps": 1},
    }


PAIRS = [("16 steps", name) for name in ("16 steps, also those without a change", "16 steps, words drawn whole",
         "16 steps, text by text")] + [("1,000 steps", "infinitely many steps")] + [
         ("16 steps", name) for name in ("16 steps, temperature 0.9", "1 step")]  # fmt: skip


def shortcuts(model: Model, texts: Sequence[Text], draws: int) -> Iterator[str]:
    """What is saved changes no word where the seed is the same, and no law where it is another."""
    x, _ = model.start(texts)
    chosen = ((x.ids == model.specials.mask).sum(1) == GAP).nonzero()[:, 0]
    chosen = chosen[x.valid.sum(1)[chosen].argsort(stable=True)[:FEW]]
    many = narrowed(x[chosen], model.specials)[torch.arange(draws) % len(chosen)]
    alike, words = {}, {}
    for seed, (name, way) in enumerate(tqdm(arms(model).items(), desc="shortcuts", dynamic_ncols=True)):
        alike[name] = write(model, x, "posterior", seed=100, **way)[0]
        now = many[: draws // 10 if "single" in way else draws]
        ids, _ = write(model, now, "posterior", seed=seed, **way)
        words[name] = ids[now.ids == model.specials.mask].view(-1, GAP)
    yield f"\n### `posterior` two ways: the {len(chosen)} shortest texts with a gap of {GAP} tokens\n"
    yield "| | | texts filled alike by one seed | samples of each | chi-square | degrees of freedom | p | told apart |"
    yield "|" + "---|" * 8
    for one, two in PAIRS:
        size = min(len(words[one]), len(words[two]))
        found, freedom, p = told_apart(words[one][:size], words[two][:size], len(chosen))
        same, verdict = int((alike[one] == alike[two]).all(1).sum()), "yes" if p < LEVEL else "no"
        yield f"| {one} | {two} | {same} of {len(x)} | {size:,} | {found:.0f} | {freedom} | {p:.2g} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo", help="folder of a parallel checkpoint of this library")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="what to do")
    parser.add_argument("--rules", nargs="+", default=[], help="these rules alone, of gaps and pages")
    parser.add_argument("--cases", type=int, default=240, help="gaps in each of the two sets")
    parser.add_argument("--samples", type=int, default=1, help="how often each text is filled at temperature 1")
    parser.add_argument("--pages", type=int, default=40, help="texts from a blank page")
    parser.add_argument("--draws", type=int, default=8000, help="samples of each kind in a test")
    parser.add_argument("--out", type=Path, help="file for the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Model(**load(options.model).tools())
    _ = model.denoiser.feed.apart  # asks the model whether it can tell padding: no call of a rule's
    texts = list(load_texts(DATA, "test")["text"])
    one = [Text((c.left, c.right), (c.answer,)) for c in gap_cases(texts, options.cases, words=(1, 5), seed=0)]
    three = spans(3, (1, 3), bool, options.cases // 3, 1)
    parts = {
        "one": lambda: gaps(model, "One gap of 1-5 words", one, options.samples, options.rules),
        "three": lambda: gaps(model, "Three gaps of 1-3 words", three, options.samples, options.rules),
        "pages": lambda: pages(model, options.pages, options.rules),
        "shortcuts": lambda: shortcuts(model, one, options.draws),
    }
    for part in options.part:
        for line in parts[part]():
            print(line, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
