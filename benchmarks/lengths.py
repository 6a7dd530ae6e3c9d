"""How a masked language model that knows no lengths can tell how many tokens are missing: criteria, floors, ceiling.

    python benchmarks/lengths.py runs/long [--cases 200] [--pairs 100] [--split test] [--out runs/lengths]

Gaps of 1 to 5 words (at most 8 tokens) in single sentences of the validation and test years. Each criterion chooses one of
the lengths 1..8, or says p(n); the words are then written surest first, at temperature 0. What is calibrated is calibrated
on the validation years, the table is of the test years. Length tokens, where the model has them, are used in one row
alone. Answers are kept in --out, a file for each model and split, and not asked for again.
"""

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from textdiff.checkpoint import Checkpoint, load
from textdiff.data import load_texts
from textdiff.denoiser import Parallel
from textdiff.denoiser.search import LONGEST, evidence, opened, prior, search
from textdiff.evaluation import gap_cases
from textdiff.filling import start_state
from textdiff.gaps import Gap, Parts
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.tokenizer import encode
from textdiff.tokens import Tokens, concatenate

N = torch.arange(1, LONGEST + 1)


@dataclass
class Question:
    """A text with gaps and their answers: text, and tokens."""

    parts: Parts
    answers: list[str]
    tokens: list[list[int]]


def questions(texts: Sequence[str], tokenizer: object, count: int, words: tuple[int, int]) -> list[Question]:
    """One gap each, of at most LONGEST tokens."""
    found = []
    for case in gap_cases(texts, 2 * count, words=words):
        answer = (" " if case.left.endswith(" ") else "") + case.answer
        found.append(Question(case.parts, [case.answer], [encode(tokenizer, answer)]))
    return [q for q in found if 1 <= len(q.tokens[0]) <= LONGEST][:count]


def pairs(texts: Sequence[str], tokenizer: object, count: int) -> list[Question]:
    """Two gaps of 1 to 3 words in one sentence, three words or more apart."""
    found, chance = [], random.Random(1)
    for case in gap_cases(texts, 4 * count, words=(1, 3), seed=1):
        rest = case.right.split(" ")
        size = chance.randint(1, 3)
        begin = chance.randint(4, max(len(rest) - size - 2, 4))
        second = " ".join(rest[begin : begin + size]).rstrip(".,;:!?\"')")
        if len(rest) < begin + size + 2 or not second:
            continue
        middle = " ".join(rest[:begin]) + " "
        right = case.right[len(middle) + len(second) :]
        first = (" " if case.left.endswith(" ") else "") + case.answer
        tokens = [encode(tokenizer, first), encode(tokenizer, " " + second)]
        if max(map(len, tokens)) <= LONGEST:
            found.append(Question([case.left, Gap(), middle, Gap(), right], [case.answer, second], tokens))
    return found[:count]


class Model:
    """A checkpoint without its length tokens."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tokenizer, own = checkpoint.tokenizer, checkpoint.specials
        self.specials = replace(own, lengths=(), banned=(*own.banned, *own.lengths))
        self.denoiser = Parallel(checkpoint.model, self.specials).eval()
        self.asked = Parallel(checkpoint.model, own).eval() if own.lengths else None

    def state(self, parts: Parts) -> Tokens:
        return start_state([parts], self.tokenizer, self.specials)

    def write(self, x: Tokens) -> tuple[Tokens, Tensor, Tensor]:
        """x (B, L) with every mask written, surest first; each word's log-probability then, and at the first look."""
        first: Tensor | None = None
        sure = torch.zeros(x.ids.shape)
        while bool((where := x.ids == self.specials.mask).any()):
            score, word = self.denoiser.logits(x, where).float().log_softmax(-1).max(-1)
            at, ids = torch.full(where.shape, -torch.inf), x.ids.clone()
            at[where], ids[where] = score, word
            first = at.masked_fill(~where, 0.0) if first is None else first
            best = torch.zeros_like(where).scatter(1, at.argmax(1, keepdim=True), True) & where
            sure = torch.where(best, at, sure)
            x = x.with_(ids=torch.where(best, ids, x.ids))
        return x, sure, first if first is not None else sure

    def given(self, x: Tokens, lengths: Sequence[int]) -> Tokens:
        """One text (1, L) with its gaps opened to these lengths."""
        counts = torch.ones_like(x.ids)
        counts[x.ids == self.specials.gap] = torch.tensor(lengths)
        return opened(x, counts, self.specials)

    def neighbours(self, x: Tokens, states: list[Tokens]) -> list[float]:
        """The pseudo-log-likelihood of the word on either side, all others visible."""
        column = int((x.ids[0] == self.specials.gap).nonzero())
        rows, scores = concatenate(states, self.specials.pad), torch.zeros(len(states))
        for right in (False, True):
            where = torch.zeros_like(rows.fixed)
            for row, state in enumerate(states):
                at = column + 1 + state.ids.shape[1] - x.ids.shape[1] if right else column - 1
                where[row, at % where.shape[1]] = 1 <= at < state.ids.shape[1]
            if bool(where.any()):
                state = rows.with_(ids=rows.ids.masked_fill(where, self.specials.mask))
                said = self.denoiser.logits(state, where).float().log_softmax(-1)
                scores[where.any(1)] += said.gather(1, rows.ids[where][:, None])[:, 0]
        return scores.tolist()

    def ask(self, q: Question) -> dict:
        """All that the criteria need to know of a question with one gap: lists over the lengths 1..LONGEST."""
        x = self.state(q.parts)
        states = [self.given(x, [n]) for n in N.tolist()]
        done, sure, first = self.write(concatenate(states, self.specials.pad))
        column = (x.ids[0] == self.specials.gap).nonzero()[:, 0]
        all_, room = [N.tolist()], 10**6
        told = {n: evidence(self.denoiser, x, column, all_, all_, n, room)[0].tolist() for n in (1, 2, 8)}
        own = None
        if self.asked is not None:
            said = self.asked.logits(x, x.ids == self.specials.gap)[0]
            own = said[list(self.asked.specials.lengths[1 : LONGEST + 1])].float().log_softmax(-1).tolist()
        return {
            "length": len(q.tokens[0]),
            "words": [done.ids[i, column : column + n].tolist() for i, n in enumerate(N.tolist())],
            "answer": q.tokens[0],
            "sum": first.sum(1).tolist(),
            "surest": sure.sum(1).tolist(),
            "neighbours": self.neighbours(x, states),
            "one row": told[1],
            "two rows": told[2],
            "eight rows": told[8],
            "own": own,
        }


def cached(
    out: Path, model: str, split: str, kind: str, found: list[Question], ask: Callable[[Question], dict]
) -> list[dict]:
    """The answers to questions, from the file where they are, and kept there."""
    file = out / f"{Path(model).name}-{hashlib.sha256(model.encode()).hexdigest()[:6]}-{split}-{kind}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {line["id"]: line["answer"] for line in map(json.loads, lines)}
    names = []
    with file.open("a", encoding="utf-8") as sink:
        for q in found:
            name = hashlib.sha256(json.dumps(asdict(q), default=str).encode()).hexdigest()[:16]
            if name not in known:
                with torch.inference_mode():
                    known[name] = ask(q)
                sink.write(json.dumps({"id": name, "answer": known[name]}) + "\n")
                sink.flush()
            names.append(name)
    return [known[name] for name in names]


def f1(given: list[int], answer: list[int]) -> float:
    """Of tokens, as bags."""
    both = sum((Counter(given) & Counter(answer)).values())
    return 2 * both / max(len(given) + len(answer), 1)


def criteria(rows: list[dict], held: list[dict]) -> dict[str, tuple[Tensor, bool]]:
    """Scores (C, N) of every criterion, and whether their softmax is a p(n); `held`: where some are calibrated."""
    get = lambda part, name: torch.tensor([row[name] for row in part], dtype=torch.float64)  # noqa: E731
    share = torch.tensor([sum(r["length"] == n for r in held) for n in N.tolist()], dtype=torch.float64) + 0.5
    frequency = (share / share.sum()).log()
    flat = torch.zeros(len(rows), len(N), dtype=torch.float64)
    fixed = lambda n: flat.index_fill(1, torch.tensor([n - 1]), 1.0)  # noqa: E731
    middle = int((share.cumsum(0) / share.sum() < 0.5).sum()) + 1
    total, base = get(rows, "sum"), get(held, "sum")
    result = {
        "true length (ceiling)": (torch.stack([fixed(r["length"])[0] for r in rows]), False),
        "always 1": (fixed(1), False),
        "always the median": (fixed(middle), False),
        "frequencies of the validation years alone": (flat + frequency, True),
        "prior 0.8^n alone": (flat + prior(N), True),
        "words, sum": (total, True),
        "words, mean": (total / N, True),
        "words, sum, surest first": (get(rows, "surest"), True),
        "words, mean, surest first": (get(rows, "surest") / N, True),
        "words, sum, z-score per length": ((total - base.mean(0)) / base.std(0), True),
        "words, sum, likelihood ratio per length": (ratio(total, base, held), True),
        "neighbours given all else, 1 + 1 (PLL)": (get(rows, "neighbours"), True),
    }
    for name in ("one row", "two rows", "eight rows"):
        result[f"context, {name} a length"] = (get(rows, name), True)
        result[f"context, {name}, prior 0.8^n"] = (get(rows, name) + prior(N), True)
    told, held_told = get(rows, "eight rows"), get(held, "eight rows")
    result["context, eight rows, frequencies of the validation years"] = (told + frequency, True)
    truth = torch.tensor([r["length"] for r in held]) - 1
    weights = fitted([held_told, get(held, "surest"), frequency.expand(len(held), -1)], truth)
    result["fitted: " + ", ".join(f"{w:.2f}" for w in weights) + " of context, words surest first, frequencies"] = (
        weights[0] * told + weights[1] * get(rows, "surest") + weights[2] * frequency,
        True,
    )
    if rows[0]["own"] is not None:
        result["the model's own length tokens"] = (get(rows, "own"), True)
    return result


def ratio(total: Tensor, base: Tensor, held: list[dict]) -> Tensor:
    """log of the score's normal density where n is right over that where it is not."""
    scores = []
    for n in N.tolist():
        right = torch.tensor([r["length"] == n for r in held])
        centre = base[:, n - 1].mean()
        means = [(base[r, n - 1].sum() + centre) / (r.sum() + 1) for r in (right, ~right)]
        laws = [torch.distributions.Normal(at, base[:, n - 1].std()) for at in means]
        scores.append(laws[0].log_prob(total[:, n - 1]) - laws[1].log_prob(total[:, n - 1]))
    return torch.stack(scores, 1)


def fitted(scores: list[Tensor], truth: Tensor) -> list[float]:
    """Weights (P,) under which the softmax of the weighted scores (C, N) is the likeliest."""
    stack = torch.stack(scores, 2)
    weights = torch.zeros(len(scores), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(stack @ weights, truth)
        value.backward()
        return value

    optimizer.step(loss)
    return weights.tolist()


Figure = Callable[[list[int], list[int]], float]


def figures(decode: Callable[[list[int]], str]) -> dict[str, Figure]:
    """What is measured of the tokens given and those of the answer."""
    return {
        "length right": lambda g, a: float(len(g) == len(a)),
        "error, tokens": lambda g, a: abs(len(g) - len(a)),
        "error, words": lambda g, a: abs(len(decode(g).split()) - len(decode(a).split())),
        "text right": lambda g, a: float(g == a),
        "token F1": f1,
    }


def measured(
    rows: list[dict], scores: Tensor, chance: bool, wanted: dict[str, Figure]
) -> dict[str, tuple[float, float]]:
    """Mean and standard error of every figure."""
    both = [(row["words"][n], row["answer"]) for row, n in zip(rows, scores.argmax(1).tolist(), strict=True)]
    values = {name: [figure(g, a) for g, a in both] for name, figure in wanted.items()}
    if chance:
        at = torch.tensor([len(a) for _, a in both])[:, None] - 1
        values["-log p(length)"] = (-scores.log_softmax(1).gather(1, at)[:, 0]).tolist()
    return {name: mean(torch.tensor(each, dtype=torch.float64)) for name, each in values.items()}


def mean(values: Tensor) -> tuple[float, float]:
    """With its standard error."""
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def table(title: str, rows: dict[str, dict[str, tuple[float, float]]]) -> str:
    """As Markdown."""
    names = list(max((row for row in rows.values()), key=len))
    lines = [f"\n{title}\n", "| | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for name, row in rows.items():
        cells = [f"{row[n][0]:.3f} ± {row[n][1]:.3f}" if n in row else "" for n in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def several(model: Model, q: Question) -> dict:
    """A text with any number of gaps under `search` with all and with few calls, and under fixed lengths."""
    x, right = model.state(q.parts), [len(t) for t in q.tokens]
    greedy, key = Decode(temperature=0.0), Key.of(0, 1)
    ways = {"true lengths (ceiling)": model.given(x, right)}
    ways |= {f"always {n}": model.given(x, [n] * len(right)) for n in (1, 3, 4)}
    ways |= {
        f"search, {n} calls": search(model.denoiser, x, replace(greedy, max_calls=n), key) for n in (8, 16, 64, 256)
    }
    result = {}
    for name, state in ways.items():
        done = model.write(state)[0]
        marks = (state.ids == model.specials.mask)[0].tolist()
        runs = groupby(range(len(marks)), key=marks.__getitem__)
        result[name] = [done.ids[0, [*run]].tolist() for mark, run in runs if mark]
    return {"answer": q.tokens, "given": result}


def many(rows: list[dict], wanted: dict[str, Figure]) -> dict[str, dict[str, tuple[float, float]]]:
    """The table of `several`, gap by gap; standard errors over texts."""
    result = {}
    for name in rows[0]["given"]:
        texts = [list(zip(row["given"][name], row["answer"], strict=True)) for row in rows]
        result[name] = {
            figure: mean(torch.tensor([sum(score(g, a) for g, a in gaps) / len(gaps) for gaps in texts]))
            for figure, score in wanted.items()
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="data/sotu")
    parser.add_argument("--split", default="test", help="which texts the table is of; validation is for calibration")
    parser.add_argument("--cases", type=int, default=200, help="gaps of 1 to 5 words, of each split")
    parser.add_argument("--pairs", type=int, default=100, help="texts with two gaps, and gaps of one word")
    parser.add_argument("--out", type=Path, default=Path("runs/lengths"))
    args = parser.parse_args()
    model = Model(load(args.model))
    texts = {split: list(load_texts(args.data, split)["text"]) for split in ("validation", args.split)}
    told = {}
    for split in texts:
        asked = questions(texts[split], model.tokenizer, args.cases, (1, 5))
        told[split] = cached(args.out, args.model, split, "one", asked, model.ask)
    wanted = figures(model.tokenizer.decode)
    scores = criteria(told[args.split], told["validation"])
    report = {
        f"{len(told[args.split])} gaps of 1 to 5 words, split {args.split}": {
            name: measured(told[args.split], *score, wanted) for name, score in scores.items()
        }
    }
    sets = {
        "of 1 word": questions(texts[args.split], model.tokenizer, args.pairs, (1, 1)),
        "of 1 to 3 words, two in each text": pairs(texts[args.split], model.tokenizer, args.pairs),
    }
    for kind, found in sets.items():
        rows = cached(args.out, args.model, args.split, kind.split()[-1], found, lambda q: several(model, q))
        if rows:
            report[f"{len(rows)} texts with gaps {kind}, split {args.split}"] = many(rows, wanted)
    for title, rows in report.items():
        print(table(title, rows))
    (args.out / f"{Path(args.model).name}-{args.split}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
