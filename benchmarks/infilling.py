"""Gaps in texts that the model has never seen: what a masked language model fills in, by fill-mask and by this library.

    OMP_NUM_THREADS=1 python benchmarks/infilling.py --model runs/long --writer runs/demo-autoregressive [--cases 500]

One text at a time the methods take turns, for what each costs; then all texts are filled for what each gets right. The model
is used as a stock one: what it has learned of lengths is left out, but for the row that names it.
"""

import argparse
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from textdiff.checkpoint import load
from textdiff.data import load_texts, sentences
from textdiff.evaluation import gap_cases, score_answers
from textdiff.filling import infill, start_state
from textdiff.gaps import Gap, Parts
from textdiff.revealing import ranked
from textdiff.stock import Route, checkpoint_route, stock_route
from textdiff.tokenizer import encode

BATCH = 25  # texts at once where time is not taken
WORD = re.compile(r"\S+")
IN_TURN, OURS = "fill-mask, a call for each gap in turn", "ours, surest first, lengths by oracle"


@dataclass(frozen=True)
class Text:
    """A text with gaps: what stands between them, and what belongs in them."""

    fixed: tuple[str, ...]
    answers: tuple[str, ...]

    def parts(self, gaps: Sequence[Gap]) -> Parts:
        """The text with these gaps."""
        whole: list[str | Gap] = [self.fixed[0]]
        for gap, after in zip(gaps, self.fixed[1:], strict=True):
            whole += [gap, after]
        return whole


@dataclass(frozen=True)
class Method:
    """fill: the contents of every gap of every text, and how often the model was run for each text, on average."""

    name: str
    fill: Callable[[Sequence[Text]], tuple[list[list[str]], float]]


# ---------------------------------------------------------------------------------------------------------------- texts


def spans(count: int, words: tuple[int, int], known: Callable[[str], bool], total: int, seed: int) -> list[Text]:
    """`total` held-out sentences without `count` stretches of `words` words, each of which is `known`, and none touching."""
    chance, found = random.Random(seed), []
    texts = load_texts("data/sotu", "test")["text"]
    pool = [s.strip() for text in texts for s in sentences(text)]
    pool = [s for s in pool if len(WORD.findall(s)) >= count * (words[1] + 2) + 6 and len(s) <= 220]
    chance.shuffle(pool)
    for sentence in pool:
        places = list(WORD.finditer(sentence))
        sizes = [chance.randint(*words) for _ in range(count)]
        # stars and bars: starts are uniform among those that leave a word between
        free = len(places) - 1 - sum(sizes) - (count - 1)
        marks = sorted(chance.randint(0, free) for _ in range(count))
        starts = [1 + mark + sum(sizes[:k]) + k for k, mark in enumerate(marks)]
        cuts = [(places[a].start(), places[a + n - 1].end()) for a, n in zip(starts, sizes, strict=True)]
        answers = [sentence[a:b].rstrip(".,;:!?\"')") for a, b in cuts]
        if all(answer and known(answer) for answer in answers):
            ends = [0, *(a + len(answer) for (a, _), answer in zip(cuts, answers, strict=True))]
            fixed = [sentence[a:b] for a, b in zip(ends, [*(a for a, _ in cuts), len(sentence)], strict=True)]
            found.append(Text(tuple(fixed), tuple(answers)))
        if len(found) == total:
            break
    return found


def in_a_row(count: int, known: Callable[[str], bool], total: int, seed: int) -> list[Text]:
    """The same with `count` words next to each other, a gap for each."""
    found = spans(1, (count, count), lambda words: all(map(known, words.split())), total, seed)
    return [
        Text((t.fixed[0], *[" "] * (count - 1), t.fixed[1]), tuple(t.answers[0].split()))
        for t in found
        if len(t.answers[0].split()) == count
    ]


def sets_of(tokenizer: Any, total: int) -> dict[str, list[Text]]:
    """The sets of texts by name."""
    texts = list(load_texts("data/sotu", "test")["text"])
    one, some = (gap_cases(texts, total, words=words, seed=0) for words in ((1, 1), (1, 5)))

    def single(word: str) -> bool:
        return len(encode(tokenizer, " " + word)) == 1

    return {
        "one word": [Text((case.left, case.right), (case.answer,)) for case in one],
        "1-5 words": [Text((case.left, case.right), (case.answer,)) for case in some],
        "two gaps of 1-3 words": spans(2, (1, 3), bool, total, 1),
        "four masks": spans(4, (1, 1), single, total, 2),
        "four masks in a row": in_a_row(4, single, total, 3),
    }


# -------------------------------------------------------------------------------------------------------------- methods


class Mask:
    """Methods that share one masked language model."""

    def __init__(self, path: str) -> None:
        self.model = AutoModelForMaskedLM.from_pretrained(path).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.tokenizer.split_special_tokens = False
        self.fill_mask = pipeline("fill-mask", model=self.model, tokenizer=self.tokenizer, device="cpu")
        self.route = stock_route(self.model, self.tokenizer)

    def sizes(self, text: Text) -> list[int]:
        """How many tokens every answer has."""
        return [len(encode(self.route.tokenizer, " " + answer)) for answer in text.answers]

    def _asked(self, text: Text, sizes: Sequence[int]) -> list[list[int]]:
        """fill-mask's first guess at every mask, by gap."""
        masks = [self.tokenizer.mask_token * n for n in sizes]
        found = self.fill_mask(
            "".join([text.fixed[0], *(m + f for m, f in zip(masks, text.fixed[1:], strict=True))]), top_k=1
        )
        guesses = [guess[0] if isinstance(guess, list) else guess for guess in found]
        ids = iter([guess["token"] for guess in guesses])
        return [[next(ids) for _ in range(n)] for n in sizes]

    def _read(self, ids: list[list[int]]) -> list[str]:
        return [self.tokenizer.decode(gap, skip_special_tokens=True) for gap in ids]

    def one_mask(self, texts: Sequence[Text]) -> tuple[list[list[str]], float]:
        """One call, one mask a gap."""
        return [self._read(self._asked(text, [1] * len(text.answers))) for text in texts], 1.0

    def oracle_masks(self, texts: Sequence[Text]) -> tuple[list[list[str]], float]:
        """One call, as many masks as the answer has tokens, each guessed by itself."""
        return [self._read(self._asked(text, self.sizes(text))) for text in texts], 1.0

    def gap_by_gap(self, texts: Sequence[Text]) -> tuple[list[list[str]], float]:
        """A call for each gap, from left to right: its masks are guessed at once and put in before the next call."""
        results, calls = [], 0
        for text in texts:
            done, sizes = text, self.sizes(text)
            found: list[str] = []
            while done.answers:
                words = self._read(self._asked(done, sizes)[:1])[0]
                fixed = (done.fixed[0] + words.removeprefix(" ") + done.fixed[1], *done.fixed[2:])
                done, sizes, calls = Text(fixed, done.answers[1:]), sizes[1:], calls + 1
                found.append(words)
            results.append(found)
        return results, calls / len(texts)

    def left_to_right(self, texts: Sequence[Text]) -> tuple[list[list[str]], float]:
        """A run of the model for every token, the first that is open."""
        route, results, calls = self.route, [], 0
        for begin in range(0, len(texts), BATCH):
            part = texts[begin : begin + BATCH]
            gaps = [[Gap.of(n) for n in self.sizes(text)] for text in part]
            x = start_state([t.parts(g) for t, g in zip(part, gaps, strict=True)], route.tokenizer, route.specials)
            opened, rows = x.ids == route.specials.mask, torch.arange(len(part))
            calls += int(opened.sum())
            while bool((hidden := x.ids == route.specials.mask).any()):
                where = hidden & (hidden.long().cumsum(1) == 1)
                with torch.inference_mode():
                    words = route.denoiser.logits(x, where).argmax(-1)
                x = x.with_(ids=x.ids.masked_scatter(where, words))
            for row, text in zip(rows.tolist(), part, strict=True):
                ids = iter(x.ids[row][opened[row]].tolist())
                results.append(self._read([[next(ids) for _ in range(n)] for n in self.sizes(text)]))
        return results, calls / len(texts)

    def ours(
        self, known: bool, search: Route | None = None, **changes: Any
    ) -> Callable[..., tuple[list[list[str]], float]]:
        """This library: one word after the other, the surest first; lengths by search, where they are not `known`."""

        def fill(texts: Sequence[Text]) -> tuple[list[list[str]], float]:
            gaps = [[Gap.of(n) if known else Gap() for n in self.sizes(text)] for text in texts]
            return run(search or self.route, [t.parts(g) for t, g in zip(texts, gaps, strict=True)], **changes)

        return fill


def run(route: Route, texts: Sequence[Parts], **changes: Any) -> tuple[list[list[str]], float]:
    """The most probable fillings by a route."""
    how = {
        "steps": route.steps, "decode": replace(route.decode, temperature=0.0), "rule": ranked(), "denoiser": route.denoiser,
        "process": route.process, "tokenizer": route.tokenizer, "specials": route.specials, **changes,
    }  # fmt: skip
    found = []
    for begin in range(0, len(texts), BATCH):
        found += [results[0] for results in infill(texts[begin : begin + BATCH], **how)]
    return [[gap.text for gap in result.gaps] for result in found], statistics.mean(result.calls for result in found)


def methods_of(mask: Mask, path: str, writer: str | None, name: str) -> list[Method]:
    """What is compared on a set."""
    four = name.startswith("four masks")
    found = [Method("fill-mask, one call, one mask a gap", mask.one_mask)]
    if not four:
        found.append(Method("fill-mask, one call, masks by oracle", mask.oracle_masks))
    if name == "two gaps of 1-3 words" or four:
        found.append(Method(IN_TURN + ("" if four else ", masks by oracle"), mask.gap_by_gap))
    found.append(Method("left to right, lengths by oracle", mask.left_to_right))
    found.append(Method(OURS, mask.ours(True)))
    if four:
        return found
    found.append(Method("ours, lengths by search", mask.ours(False)))
    if (Path(path) / "diffusion_config.json").exists():
        route = replace(checkpoint_route(load(path)), steps=8)
        found.append(Method("ours, lengths by the tokens it was trained with", mask.ours(False, route)))
    if writer:
        route = replace(checkpoint_route(load(writer)), steps=1)
        found.append(Method("one shot, autoregressive checkpoint", mask.ours(False, route)))
    return found


# --------------------------------------------------------------------------------------------------------------- scores


def f1(answer: str, given: str) -> float:
    """The harmonic mean of precision and recall of words, as bags."""
    truth, guess = Counter(answer.split()), Counter(given.split())
    common = (truth & guess).total()
    return 2 * common / (truth.total() + guess.total()) if common else 0.0


def scored(texts: Sequence[Text], given: list[list[str]]) -> dict[str, Any]:
    """Of all gaps of a set, and of whole texts."""
    pairs = [(a, g) for text, found in zip(texts, given, strict=True) for a, g in zip(text.answers, found, strict=True)]
    answers, guesses = [a for a, _ in pairs], [g for _, g in pairs]
    score = score_answers(answers, guesses)
    whole = [
        all(a.strip() == g.strip() for a, g in zip(t.answers, f, strict=True))
        for t, f in zip(texts, given, strict=True)
    ]
    all_right = score_answers(["1"] * len(whole), [str(int(right)) for right in whole])
    return {
        "gaps": len(pairs), "exact": score.exact, "interval": [score.low, score.high],
        "f1": statistics.mean(f1(a, g) for a, g in pairs), "length_error": score.length_error,
        "texts": len(texts), "whole": all_right.exact, "whole_interval": [all_right.low, all_right.high],
    }  # fmt: skip


def against(texts: Sequence[Text], ours: list[list[str]], theirs: list[list[str]]) -> str:
    """How many gaps one way alone gets right, and the chance of so uneven a count where neither is better (sign test)."""
    answers = [a for text in texts for a in text.answers]
    right = [[a.strip() == g.strip() for a, g in zip(answers, sum(way, []), strict=True)] for way in (ours, theirs)]
    won, lost = (sum(a and not b for a, b in zip(*pair, strict=True)) for pair in (right, right[::-1]))
    return f"{won} against {lost}, p = {stats.binomtest(won, won + lost).pvalue:.2g}" if won + lost else "0 against 0"


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds and seconds of one call, and its result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def costs(methods: list[Method], texts: Sequence[Text]) -> dict[str, dict[str, float]]:
    """Medians over texts, one at a time and the methods by turns: of the ratio to the first method, and of the calls."""
    seconds: dict[str, list[tuple[float, float]]] = {method.name: [] for method in methods}
    calls: dict[str, list[float]] = {method.name: [] for method in methods}
    for number, text in enumerate(texts):
        for method in methods[number % len(methods) :] + methods[: number % len(methods)]:
            cpu, wall, (_, count) = timed(lambda method=method, text=text: method.fill([text]))
            seconds[method.name].append((cpu, wall))
            calls[method.name].append(count)
    first = seconds[methods[0].name]
    result = {}
    for method in methods:
        mine = seconds[method.name]
        ratios = [[a[k] / b[k] for a, b in zip(mine, first, strict=True)] for k in (0, 1)]
        result[method.name] = {
            "relative_cpu": statistics.median(ratios[0]), "relative_wall": statistics.median(ratios[1]),
            "cpu": statistics.median(cpu for cpu, _ in mine), "calls": statistics.mean(calls[method.name]),
        }  # fmt: skip
    return result


COLUMNS = "set method exact F1 length error calls time"
HEAD = "| texts | method | exact match of a gap | whole texts | word F1 | length error, words | model calls | time |"


def row(name: str, method: str, found: dict[str, Any]) -> str:
    low, high = found["interval"]
    whole = f"{found['whole']:.1%}" if found["gaps"] > found["texts"] else ""
    time = f"{found['relative_cpu']:.1f}" if "relative_cpu" in found else ""
    calls = f"{found['calls']:.1f}" if "calls" in found else ""
    return (
        f"| {name} | {method} | {found['exact']:.1%} [{low:.1%}, {high:.1%}] | {whole} | {found['f1']:.3f} "
        f"| {found['length_error']:.2f} | {calls} | {time} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub name of a masked language model")
    parser.add_argument("--writer", help="folder of an autoregressive checkpoint of this library")
    parser.add_argument("--cases", type=int, default=500, help="texts in each set")
    parser.add_argument("--timed", type=int, default=40, help="of these, how many are timed")
    parser.add_argument("--only", help="one set of texts alone, such as 'four masks in a row'")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    mask = Mask(options.model)
    figures: dict[str, Any] = {}
    print(HEAD + "\n|" + "---|" * 8, flush=True)
    for name, texts in sets_of(mask.route.tokenizer, options.cases).items():
        if options.only not in (None, name):
            continue
        methods = methods_of(mask, options.model, options.writer, name)
        for method in methods:
            method.fill(texts[:1])
        cost = costs(methods, texts[: options.timed])
        common = Counter(w for t in load_texts("data/sotu", "train")["text"] for w in t.split()).most_common(1)[0][0]
        given = {f"always {common!r}": [[common] * len(text.answers) for text in texts]}
        figures[name] = {floor: scored(texts, found) for floor, found in given.items()}
        for method in methods:
            given[method.name] = method.fill(texts)[0]
            figures[name][method.name] = scored(texts, given[method.name]) | cost[method.name]
        for method_name, found in figures[name].items():
            print(row(f"{name} ({len(texts)})", method_name, found), flush=True)
        if name.startswith("four masks"):
            counts = against(texts, given[OURS], given[IN_TURN])
            print(f"{name}, right by ours alone against by fill-mask in turn alone: {counts}")
        if options.json:
            Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
