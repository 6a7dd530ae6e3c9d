"""Models side by side: likelihood in bits per byte and gaps filled, beside n-gram and constant baselines."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from textdiff.checkpoint import Checkpoint, load
from textdiff.data import load_texts, windows
from textdiff.evaluation import Case, GapScore, bound, finite, gap_cases, gap_score, score_answers
from textdiff.filling import infill
from textdiff.gaps import Gap, Parts
from textdiff.ngram import trigram_nll, unigram_nll
from textdiff.posterior import Decode
from textdiff.rulebook import rule_of
from textdiff.spelling import read_text
from textdiff.tokenizer import encode
from textdiff.udm import UDM
from textdiff.validation import check_integer

Row = dict[str, Any]


def compare(
    models: Sequence[str], dataset: str, split: str, train_split: str | None, *, text_column: str = "text",
    gaps: int = 200, context: int = 64, count: int = 500, seed: int = 0,
) -> list[Row]:  # fmt: skip
    """A row per model, after the baselines. n-grams speak the first model's tokens; bits per byte compare across models."""
    for name, value in {"gaps": gaps, "windows": count}.items():
        check_integer(name, value, least=1)
    check_integer("context", context, least=2)
    texts = list(load_texts(dataset, split, text_column=text_column)["text"])
    one = gap_cases(texts, gaps, words=(1, 1), seed=seed)
    some = gap_cases(texts, gaps, words=(1, 5), seed=seed)
    if not one or not some:
        raise ValueError(
            f"{dataset}, split {split}, has no sentence long enough to take words out of; give other texts"
        )
    checkpoints = [load(path) for path in models]
    rows: list[Row] = []
    if train_split is not None:
        known = list(load_texts(dataset, train_split, text_column=text_column)["text"])
        rows += _ngrams(checkpoints[0], known, texts, context, count)
        rows.append(_constant(known, one, some))
    for path, checkpoint in zip(models, checkpoints, strict=True):
        rows.append(
            {"model": path, **_likelihood(checkpoint, texts, context, count, seed), **_gaps(checkpoint, one, some)}
        )
    return [finite(row) for row in rows]


def _cut(checkpoint: Checkpoint, texts: list[str], context: int, count: int) -> tuple[list[list[int]], list[int]]:
    """Windows as token rows, evenly from all texts, and their sizes in bytes."""
    rows = windows(texts, checkpoint.tokenizer, context=context, shortest=min(16, context))["ids"][:]
    rows = rows[:: max(1, len(rows) // count)]
    return rows, [len(read_text(checkpoint.tokenizer, row[1:]).encode()) for row in rows]


def _ngrams(checkpoint: Checkpoint, known: list[str], texts: list[str], context: int, count: int) -> list[Row]:
    held, sizes = _cut(checkpoint, texts, context, count)
    train, _ = _cut(checkpoint, known, context, 10**9)
    rows = []
    for name, score in (("unigram, add-one", unigram_nll), ("trigram, interpolated", trigram_nll)):
        found = score(train, held, len(checkpoint.tokenizer))
        bits = found.nats * found.tokens / math.log(2) / sum(sizes)
        rows.append({"model": name, "nats": found.nats, "bits_per_byte": bits, "likelihood": "exact"})
    return rows


def _constant(known: list[str], one: list[Case], some: list[Case]) -> Row:
    """Always the most frequent word of the training texts: the floor."""
    word = Counter(word for text in known for word in text.split()).most_common(1)[0][0]
    floor = [score_answers([case.answer for case in cases], [word] * len(cases)) for cases in (one, some)]
    return {"model": f"always {word!r}", **_shown("one_word", floor[0]), **_shown("unknown_length", floor[1])}


def _likelihood(checkpoint: Checkpoint, texts: list[str], context: int, count: int, seed: int) -> Row:
    rows, sizes = _cut(checkpoint, texts, context, count)
    tools = checkpoint.tools()
    process, kind = checkpoint.config.likelihood(checkpoint.specials, checkpoint.model)
    found = bound(UDM(process, tools["denoiser"]), rows, sizes, pad=checkpoint.specials.pad, seed=seed, draws=2)
    error = found.error if len(rows) > 1 else None  # one window cannot tell
    return {"nats": found.nats, "error": error, "bits_per_byte": found.bits_per_byte, "likelihood": kind}


def _gaps(checkpoint: Checkpoint, one: list[Case], some: list[Case]) -> Row:
    """Greedy fillings of one word (length given and not) and of one to five words (not given)."""
    row: Row = {}
    for name, cases, given in (
        ("one_word_given", one, True),
        ("one_word", one, False),
        ("unknown_length", some, False),
    ):
        if given or (checkpoint.specials.lengths and not checkpoint.config.keeps_lengths):
            row |= _shown(name, gap_score(cases, fill_cases(checkpoint, cases, given)))
    return row


def fill_cases(checkpoint: Checkpoint, cases: Sequence[Case], given: bool, batch: int = 50) -> list[Any]:
    """The most probable filling of every case; `given` tells the number of tokens."""
    config, filled = checkpoint.config, []
    tools = checkpoint.tools()
    for begin in range(0, len(cases), batch):
        texts: list[Parts] = []
        for case in cases[begin : begin + batch]:
            length = len(encode(checkpoint.tokenizer, " " + case.answer))
            texts.append([case.left, Gap.of(length) if given else Gap(), case.right])
        decode = Decode(temperature=0.0, max_gap=20)
        results = infill(texts, steps=config.num_steps, rule=rule_of(config.rule), decode=decode, **tools)
        filled += [sequences[0] for sequences in results]
    return filled


def _shown(name: str, score: GapScore) -> Row:
    return {
        name: score.exact,
        f"{name}_interval": [round(score.low, 4), round(score.high, 4)],
        f"{name}_length_error": score.length_error,
        f"{name}_gaps": score.count,
    }


_COLUMNS = {
    "model": "model",
    "nats": "nats/token",
    "bits_per_byte": "bits/byte",
    "likelihood": "likelihood",
    "one_word_given": "1 word, length given",
    "one_word": "1 word",
    "unknown_length": "1-5 words",
    "unknown_length_length_error": "length error, words",
}


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; shares as percentages with their 95 % intervals."""
    lines = ["| " + " | ".join(_COLUMNS.values()) + " |", "|" + "---|" * len(_COLUMNS)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row, name) for name in _COLUMNS) + " |")
    return "\n".join(lines)


def _cell(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if f"{name}_interval" in row:
        low, high = row[f"{name}_interval"]
        return f"{value:.1%} [{low:.1%}, {high:.1%}]"
    error = f" ± {row['error']:.2f}" if name == "nats" and row.get("error") is not None else ""
    return f"{value:.2f}{error}"
