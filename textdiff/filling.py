"""Parts with gaps -> the start state of the loop -> the filled text.

What the user wrote becomes fixed tokens and is copied into the result, never decoded: it comes back byte for byte. A gap of
which nothing is asked is one marker; a gap of exactly n tokens is n masks; any other is a marker under a constraint.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textdiff.asked import constraint_of
from textdiff.automata import LONG, text_automaton
from textdiff.clocks import Steps, clocks, narrowed, portions
from textdiff.constraints import Constraint
from textdiff.denoiser.base import device_of
from textdiff.denoiser.shared import counting
from textdiff.gaps import TOUCHING, Gap, Parts, check, place, tidy
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process.base import Process
from textdiff.rules import Rule, posterior
from textdiff.sampler import Stop, finished, never, sample
from textdiff.selecting import SELECTS, Select
from textdiff.spelling import SOFT, as_asked, lead_of, pieces, read_gap
from textdiff.tokenizer import check_rows, encode
from textdiff.tokens import Specials, Tokens
from textdiff.validation import check_items

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textdiff.denoiser.base import Denoiser

PRIOR, OPEN = 1 << 40, 1 << 41  # uses of a key that no step of the loop has


@dataclass(frozen=True)
class Filled:
    """One gap's content, its place [start, end) in the whole text, and its words' log-probability in nats.

    The score is that of the words given how many there are, as the model drew them: scores of one length compare.
    `tokens` are the content as the model wrote it, token by token, with the probability of each.
    """

    text: str
    start: int
    end: int
    score: float
    name: str | None = None
    tokens: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Infill:
    """A filled text, its gaps in order, and the sum of their scores.

    calls: how often the model was run until this text was filled; of several candidates, until all of them were. merit: what
    fillings of one text are compared by, more is better: `per_token`, or what `select` says of the best candidate.
    """

    text: str
    gaps: list[Filled]
    score: float
    calls: int = 0
    merit: float = 0.0

    @property
    def per_token(self) -> float:
        """The score for each token that was written; minus infinity where none was."""
        written = sum(len(gap.tokens) for gap in self.gaps)
        return self.score / written if written else -math.inf


# ids, fixed, counted, sealed, slot: what a token of the start state is
_Element = tuple[int, bool, bool, bool, int]


@dataclass(frozen=True)
class Page:
    """A text ready to be filled. Slots count from 1 within the page; `slots` has that of each gap, 0 for none."""

    parts: list[str | Gap]
    row: list[_Element]
    constraints: tuple[Constraint, ...]
    slots: tuple[int, ...]


def tokens_of(parts: Sequence[str | Gap], number: int, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens of a part that is text. A word's space belongs to the word: the one before a gap is the gap's to write."""
    text = str(parts[number])
    left = number + 1 < len(parts) and text.endswith(" ")
    if left and text == " " and number > 0 and all(_open(parts[side]) for side in (number - 1, number + 1)):
        left = False  # this one holds two gaps apart
    return encode(tokenizer, text[:-1] if left else text)


def _open(part: str | Gap) -> bool:
    return isinstance(part, Gap) and part.length is None


def prepare(
    parts: Parts, tokenizer: "PreTrainedTokenizerBase", specials: Specials, *, banned: tuple[str, ...] = (),
    must: tuple[str, ...] = (), spaced: bool = False, beside: bool = False, longest: int | None = None,
) -> Page:  # fmt: skip
    """The start state of a text: the user's tokens fixed, and nothing may come between them.

    banned: strings that no gap may contain; must: that each of them has to. spaced: a gap after a space begins with the
    token of a new word, and has its length decided once, as models without length tokens need it. beside: two gaps may
    touch, where the tokenizer has no token for the space between them. ValueError for what cannot be filled.
    """
    check(parts)
    parts = tidy(parts)
    row: list[_Element] = [(specials.bos, True, False, True, 0)]
    constraints: list[Constraint] = []
    slots: list[int] = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            ids = tokens_of(parts, number, tokenizer)
            check_rows(ids, tokenizer, specials)
            row += [(token, True, False, True, 0) for token in ids]
            continue
        most = LONG if longest is None else longest
        if max(part.length or 0, part.min or 0) > most:
            raise ValueError(
                f"{place(parts, number)}: a gap of {part.length or part.min} {part.unit}, the model reads {most} tokens; "
                "give a shorter gap"
            )
        try:
            constraint = constraint_of(
                part, tokenizer, specials, _lead(parts, number, tokenizer),
                banned=banned, must=must, spaced=spaced, longest=longest,
                spell=partial(spelt, parts=parts, number=number, tokenizer=tokenizer, specials=specials),
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{place(parts, number)}: {error}") from error
        constraints += [] if constraint is None else [constraint]
        slot = len(constraints) if constraint else 0
        slots.append(slot)
        if part.length is not None:
            row += [(specials.mask, False, True, True, slot)] * part.length
        elif row[-1][0] == specials.gap and not beside:  # the tokenizer has no token for the text in between
            raise ValueError(f"{place(parts, number)}: {TOUCHING}")
        else:
            row[-1] = (*row[-1][:3], False, row[-1][4])
            row.append((specials.gap, False, False, False, slot))
    row += [(token, True, False, True, 0) for token in specials.tail]
    if longest is not None and len(row) > longest:
        raise ValueError(f"the text has {len(row)} tokens, the model reads {longest}; shorten the text or split it")
    asked = [replace(part, must=(*part.must, *must)) if isinstance(part, Gap) else part for part in parts]
    return Page(asked, row, tuple(constraints), tuple(slots))


def _lead(parts: Sequence[str | Gap], number: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Whether the first token of a gap brings a space that is not the gap's own: the one before it, or one by custom."""
    before = parts[number - 1] if number else ""
    return lead_of(tokenizer, before) if isinstance(before, str) else ""


def spelt(
    content: str, parts: Parts, number: int, tokenizer: "PreTrainedTokenizerBase", specials: Specials
) -> list[int]:
    """The tokens of a gap's content, as the tokenizer spells it there; `filling` reads the content back from them.

    Where a tokenizer puts a space before every text, or spells what runs on in another way, the text before is put before.
    """
    before = parts[number - 1] if number else ""
    before = before if isinstance(before, str) else ""
    own = before.endswith(" ") and tokens_of(parts, number - 1, tokenizer) != encode(tokenizer, before)
    first = encode(tokenizer, " " + content if own else content)
    lead = lead_of(tokenizer, before)
    starts = iter((before[-32:].removesuffix(" "), "x", "a"))
    runs = (encode(tokenizer, start + lead + content) for start in starts)
    ends = (run[begin:] for run in runs for begin in range(len(run)))
    for ids in (first, encode(tokenizer, content), *ends):
        if read_gap(tokenizer, ids, lead).casefold() == content.casefold():
            return readable(ids, content, tokenizer, specials)
    return readable(first, content, tokenizer, specials)


def readable(ids: list[int], text: str, tokenizer: "PreTrainedTokenizerBase", specials: Specials) -> list[int]:
    """The ids themselves. ValueError where one is no text, as [UNK] is, or is beyond the model's rows."""
    check_rows(ids, tokenizer, specials)
    strange = sorted({*ids} & {*specials.not_text})
    if strange:
        name = tokenizer.convert_ids_to_tokens(strange[0])
        raise ValueError(f"the tokenizer reads {name} in {text[:60]!r}, which is no text to the model; leave it out")
    return ids


def start_state(texts: Sequence[Parts], tokenizer: "PreTrainedTokenizerBase", specials: Specials) -> Tokens:
    """The states at t = 1 of texts with gaps, right-padded; of what is asked of gaps only lengths that are exact."""
    state, _ = _batch([prepare(parts, tokenizer, specials) for parts in texts], specials)
    return state.with_(slot=torch.zeros_like(state.slot))


def _batch(pages: Sequence[Page], specials: Specials) -> tuple[Tokens, tuple[Constraint, ...]]:
    """The start states, and the constraints that their slots count."""
    constraints: list[Constraint] = []
    rows = []
    for page in pages:
        shift = len(constraints)
        rows.append([(*element[:4], element[4] + shift if element[4] else 0) for element in page.row])
        constraints += page.constraints
    length = max(map(len, rows))
    padded = [row + [(specials.pad, False, False, False, 0)] * (length - len(row)) for row in rows]
    columns = [torch.tensor([[element[k] for element in row] for row in padded]) for k in range(5)]
    ids, fixed, counted, sealed, slot = columns
    size = torch.tensor([len(row) for row in rows])[:, None]
    doc = torch.where(torch.arange(length)[None] < size, 0, -1)
    state = Tokens.of(ids, doc, fixed, counted, sealed)
    # of a mixture, the first process fills what a user left open
    return state.with_(part=(doc >= 0).long(), slot=slot), tuple(constraints)


def read_result(
    page: Page, ids: Tensor, fixed: Tensor, score: Tensor, slot: Tensor, tokenizer: "PreTrainedTokenizerBase"
) -> Infill:
    """The filled text of one row (L,) without its padding. The user's text is copied, never decoded.

    A gap's content are the tokens under its slot; of a gap without one, the run of written tokens after as many fixed
    ones as the start state had before it.
    """
    before = fixed.long().cumsum(0)
    gaps: list[Filled] = []
    text, seen = "", 1  # BOS
    spelt = pieces(tokenizer, len(tokenizer))
    parts = page.parts
    for number, part in enumerate(parts):
        if isinstance(part, str):
            text += part
            seen += len(tokens_of(parts, number, tokenizer))
            continue
        mine = slot == page.slots[len(gaps)] if page.slots[len(gaps)] else (before == seen) & ~fixed & (slot == 0)
        content = read_gap(tokenizer, ids[mine].tolist(), _lead(parts, number, tokenizer))
        content = as_asked(tokenizer, content, part.choices, part.must)
        tokens = tuple(
            (spelt[token] or b"").replace(SOFT, b" ").decode("utf-8", "replace") for token in ids[mine].tolist()
        )
        probabilities = tuple(float(p) for p in score[mine].double().exp())
        end = len(text) + len(content)
        gaps.append(Filled(content, len(text), end, float(score[mine].sum()), part.name, tokens, probabilities))
        text += content
    return Infill(text, gaps, sum(gap.score for gap in gaps))


def infill(
    texts: Sequence[Parts | Page],
    *,
    denoiser: "Denoiser",
    process: Process,
    tokenizer: "PreTrainedTokenizerBase",
    specials: Specials,
    steps: Steps = 1,
    rule: Rule = posterior,
    decode: Decode | None = None,
    seed: int = 0,
    samples: int = 1,
    candidates: int = 1,
    select: str = "fluent",
    stop: Stop = never,
    first: int = 0,
) -> list[list[Infill]]:
    """Fill every text `samples` times, jointly over its gaps. Text i's samples do not depend on what else is in the batch.

    steps: turns of the loop; None for one per open token, so that each is drawn in sight of all others drawn before; "auto"
    chooses (`clocks`). candidates: each sample is the best of as many, by `select` (`selecting.SELECTS`).
    stop: which rows end before their time (`sampler.Stop`). first: the number of the first sample; under one seed samples of
    different numbers are independent.
    Past `decode.deadline` each sample is the best of the candidates that are finished, and one is finished for each.
    ValueError for a text that is longer than the model reads; none grows beyond that.
    """
    check_items("texts", texts, example="[gaps.parse(text)]")
    pages = [t if isinstance(t, Page) else prepare(t, tokenizer, specials, longest=denoiser.longest) for t in texts]
    start, constraints = _batch(pages, specials)
    drawn = samples * candidates
    rows = torch.arange(len(pages)).repeat_interleave(drawn)
    # the key is that of (seed, number of the sample) and of the text itself, not of its place in the batch
    numbers = torch.arange(first * candidates, first * candidates + drawn)
    key = Key(Key.of(seed, numbers.repeat(len(pages))).state ^ start.codes()[rows])
    x, key = start[rows].to(denoiser.home), key.to(denoiser.home)
    text = text_automaton(tokenizer, specials.size, specials.not_text)
    decode = replace(decode or Decode(), longest=denoiser.longest, constraints=constraints, text=text)
    denoiser, choice, filled = denoiser.session(), SELECTS[select], _Filled(len(rows), candidates)
    with counting(denoiser.model) as calls, torch.inference_mode():
        with denoiser.lock:
            x = denoiser.open(x, decode, key.fold(OPEN))
        opening = calls[0]
        turns = clocks(x, specials, steps, rule, denoiser.joint)
        for portion in portions(x, device_of(denoiser)):
            mine = filled.needed(portion) if decode.expired else portion
            if not len(mine):
                continue
            calls[0] = opening
            now = process.prior(narrowed(x[mine], specials), key[mine].fold(PRIOR))
            run = sample(denoiser, process, now, steps=turns[mine], rule=rule, decode=decode, key=key[mine], stop=stop)
            for ended, x0 in finished(run):
                filled.add(mine[ended].tolist(), x0, calls[0])
                if candidates > 1 and not decode.expired:
                    with denoiser.lock:
                        filled.compare(mine[ended].tolist(), choice.note(denoiser, x0))
            filled.spend(mine, calls[0] - opening)
    results = filled.results(choice, opening, pages, rows, tokenizer)
    return [results[begin : begin + samples] for begin in range(0, len(results), samples)]


class _Filled:
    """The rows of a batch as they come to their end: which are finished, by what they compare, what each cost."""

    def __init__(self, rows: int, candidates: int) -> None:
        self.candidates = candidates
        self.parts: list[tuple[list[int], Tokens]] = []
        self.ended: dict[int, int] = {}  # the calls until each row was finished
        self.notes: list[Any] = [None] * rows
        self.spent = [0] * (rows // candidates)

    def needed(self, rows: Tensor) -> Tensor:
        """One row for each sample that has none yet."""
        have = {row // self.candidates for row in self.ended}
        firsts = {row // self.candidates: row for row in reversed(rows.tolist())}
        return torch.tensor([row for number, row in firsts.items() if number not in have], dtype=rows.dtype)

    def add(self, rows: list[int], x0: Tokens, calls: int) -> None:
        """Finished rows and their texts."""
        self.parts.append((rows, x0))
        self.ended |= dict.fromkeys(rows, calls)

    def compare(self, rows: list[int], notes: list[Any]) -> None:
        """What finished rows are compared by."""
        for row, note in zip(rows, notes, strict=True):
            self.notes[row] = note

    def spend(self, rows: Tensor, calls: int) -> None:
        """Calls that were made for rows together."""
        for number in (rows // self.candidates).unique().tolist():
            self.spent[number] += calls

    def calls(self, row: int, opening: int) -> int:
        """Of one row; of several candidates all of them, since none is given before they are compared."""
        return self.ended[row] if self.candidates == 1 else opening + self.spent[row // self.candidates]

    def best(self, choice: Select) -> list[tuple[int, float]]:
        """Of each sample the row of the best candidate, among those that are finished and noted, and its merit."""
        result = []
        for begin in range(0, len(self.notes), self.candidates):
            rows = [row for row in range(begin, begin + self.candidates) if row in self.ended]
            noted = [row for row in rows if self.notes[row] is not None]
            merits = choice.merits([self.notes[row] for row in noted])
            result.append(max(zip(noted, merits, strict=True), key=lambda pair: pair[1], default=(rows[0], -math.inf)))
        return result

    def results(
        self, choice: Select, opening: int, pages: Sequence[Page], owners: Tensor, tokenizer: "PreTrainedTokenizerBase"
    ) -> list[Infill]:
        """The best candidate of each sample, with its merit and what it cost; `opening` calls were made for all."""
        best = self.best(choice)
        texts = self.read([row for row, _ in best], pages, owners, tokenizer)
        return [
            replace(
                texts[row],
                merit=texts[row].per_token if self.candidates == 1 else merit,
                calls=self.calls(row, opening),
            )
            for row, merit in best
        ]

    def read(
        self, wanted: list[int], pages: Sequence[Page], owners: Tensor, tokenizer: "PreTrainedTokenizerBase"
    ) -> dict[int, Infill]:
        """What the wanted rows say; of the others nothing is read. owners: (rows,) the page of each."""
        texts: dict[int, Infill] = {}
        for rows, x0 in self.parts:
            here = [place for place, row in enumerate(rows) if row in {*wanted}]
            chosen = torch.tensor([rows[place] for place in here], dtype=torch.int64)
            part = x0[torch.tensor(here, dtype=torch.int64, device=x0.ids.device)]
            texts |= dict(zip(chosen.tolist(), _read(pages, part, owners[chosen], tokenizer), strict=True))
        return texts


def _read(pages: Sequence[Page], x0: Tokens, rows: Tensor, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Infill]:
    """The filled texts: row i of x0 is a sample of page rows[i]."""
    x0, shifts = x0.to("cpu"), [0]
    for page in pages:
        shifts.append(shifts[-1] + len(page.constraints))
    for row, number in enumerate(rows.tolist()):
        valid = x0.valid[row]
        ids, fixed, score, slot = (column[row][valid] for column in (x0.ids, x0.fixed, x0.score, x0.slot))
        slot = torch.where(slot > 0, slot - shifts[number], 0)
        yield read_result(pages[number], ids, fixed, score, slot, tokenizer)


def read_results(
    texts: Sequence[Parts], x0: Tokens, rows: Tensor, tokenizer: "PreTrainedTokenizerBase"
) -> list[list[Infill]]:
    """The filled texts: row i of x0 is a sample of text rows[i], and those of one text follow each other."""
    pages = [Page(tidy(parts), [], (), (0,) * len(parts)) for parts in texts]
    results: list[list[Infill]] = [[] for _ in texts]
    for number, found in zip(rows.tolist(), _read(pages, x0, rows, tokenizer), strict=True):
        results[number].append(found)
    return results


def check_size(x: Tokens, denoiser: "Denoiser") -> None:
    """ValueError where a text is longer than the model reads."""
    size, longest = int(x.valid.sum(1).max()), denoiser.longest
    if longest is not None and size > longest:
        raise ValueError(f"the text has {size} tokens, the model reads {longest}; shorten the text or split it")
