"""The text state: token ids with what has to travel beside them.

A text starts with one token that is never corrupted (BOS, CLS), so every place where text can be missing is the place
*after* some token. One `[GAP]` marks text of unknown length, possibly none; one `[MASK]` marks exactly one token.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from textdiff.keys import Key


@dataclass(frozen=True)
class Specials:
    """Ids of the tokens that processes and denoisers speak with. None of them is ever text.

    `lengths[k]` is the token by which a parallel denoiser says "k tokens are missing here"; empty where it is not used.
    `banned` are further ids that are no text either (CLS, SEP, UNK, ...). `size`: how many ids there are, all told. `tail`:
    what a stock model expects after a text ([SEP], </s>), also among the banned.
    """

    pad: int
    bos: int
    mask: int
    gap: int
    fill: int = -1
    end: int = -1
    lengths: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()
    size: int = 0
    tail: tuple[int, ...] = ()

    def mute(self, size: int, device: torch.device) -> Tensor:
        """(size,) bool, of that many ids those which are no text."""
        if (size, device) not in self._mutes:
            with torch.inference_mode(False):  # it outlives the call, and training uses it as well
                mute = torch.zeros(size, dtype=torch.bool, device=device)
                mute[self.not_text] = True
            self._mutes[size, device] = mute
        return self._mutes[size, device]

    @cached_property
    def _mutes(self) -> dict[tuple[int, torch.device], Tensor]:
        return {}

    @property
    def words(self) -> Tensor:
        """(V,) the ids that are text."""
        return torch.tensor(sorted({*range(self.size)} - {*self.not_text}), dtype=torch.int64)

    @property
    def not_text(self) -> list[int]:
        """Every id that a denoiser must not write as a word, of those that it has (from `size` on they are virtual)."""
        ids = {self.pad, self.bos, self.mask, self.gap, self.fill, self.end, *self.lengths, *self.banned}
        return sorted(number for number in ids if number >= 0 and not 0 < self.size <= number)


@dataclass(frozen=True)
class Tokens:
    """A batch of texts, right-padded; every field has shape (B, L).

    ids: int64 token ids.
    doc: int64, the number of the document within the row (packing puts several in one row), -1 on padding.
    fixed: bool, the user's own tokens, and BOS: no process corrupts them, whatever the rule.
    counted: bool, the user knows that a token is here, not which: it can be masked, never deleted.
    sealed: bool, nothing may be missing after this token.
    score: float32, the log-probability with which the model drew the token; 0 where the user wrote it.
    doubtful: bool, the word seen here may be another one: the model has to say which belongs here.
    surplus: bool, the token seen here may be one too many: the model has to say whether it belongs here.
    part: int64, which process of a mixture corrupts this text, the same along a row; 0 where there is one.
    slot: int64, the number from 1 of the constraint that this token, or this gap, is written under; 0 where there is none.
    eps: float64, the noise in (0, 1) that put this token into this state, where it is known and says nothing of the words
        behind masks; -1 elsewhere. With it a state knows when it changes next (`Process.moment`).
    guess: int64, the id that the last guess x0_hat had here, where the model reads it again (`denoiser.guessing`); -1
        where there was none.
    """

    ids: Tensor
    doc: Tensor
    fixed: Tensor
    counted: Tensor
    sealed: Tensor
    score: Tensor
    doubtful: Tensor
    surplus: Tensor
    part: Tensor
    slot: Tensor
    eps: Tensor
    guess: Tensor

    @classmethod
    def from_rows(cls, rows: list[list[int]], pad: int) -> "Tokens":
        """Texts to learn from: each row begins with its BOS, which is fixed; everything else may be corrupted."""
        if not all(rows):
            raise ValueError("an empty row: every text begins with a BOS token")
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), pad)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.as_tensor(row)
        sizes = torch.tensor([len(row) for row in rows])[:, None]
        column = torch.arange(length)[None]
        doc = torch.where(column < sizes, 0, -1)
        fixed = (column == 0).expand(len(rows), -1).clone()
        return cls.of(ids, doc, fixed)

    @classmethod
    def of(
        cls, ids: Tensor, doc: Tensor, fixed: Tensor, counted: Tensor | None = None, sealed: Tensor | None = None
    ) -> "Tokens":
        """Texts as the user gives them: nothing written by a model yet, nothing in doubt."""
        no, none = torch.zeros_like(fixed), torch.full_like(ids, -1)
        counted, sealed = (no if flag is None else flag for flag in (counted, sealed))
        return cls(ids, doc, fixed, counted, sealed, no.float(), no, no, no.long(), no.long(), none.double(), none)

    @property
    def valid(self) -> Tensor:
        """(B, L) bool: not padding."""
        return self.doc >= 0

    @property
    def sizes(self) -> Tensor:
        """(B,) float64: how many tokens of each row are the model's to explain."""
        return (self.valid & ~self.fixed).sum(1).double()

    @cached_property
    def packed(self) -> bool:
        """Whether some row holds more than one document."""
        return bool((self.doc > 0).any())

    def joined(self) -> Tensor:
        """(B, L) bool: the next token exists and belongs to the same document."""
        follows = torch.zeros_like(self.fixed)
        follows[:, :-1] = (self.doc[:, 1:] == self.doc[:, :-1]) & (self.doc[:, 1:] >= 0)
        return follows

    def codes(self) -> Tensor:
        """(B,) int64, a number for each text, the same whatever its padding and whatever it is batched with."""
        code = self.part[:, 0]
        for column in range(self.ids.shape[1]):
            mixed = Key(code).fold(0).state ^ self.ids[:, column]
            code = torch.where(self.valid[:, column], mixed, code)
        return code

    def distinct(self) -> tuple[Tensor, Tensor]:
        """The first of each kind of equal rows (U,), scores and noise aside, and which of these each row is (B,)."""
        columns = [getattr(self, f.name).long() for f in fields(self) if f.name not in ("score", "eps")]
        kinds: dict[bytes, int] = {}  # `Tensor.unique` sorts the rows, at twice the cost
        back = [kinds.setdefault(row.tobytes(), len(kinds)) for row in torch.cat(columns, 1).cpu().numpy()]
        first = {kind: row for row, kind in reversed([*enumerate(back)])}
        firsts = [first[kind] for kind in range(len(kinds))]
        return torch.tensor(firsts, device=self.ids.device), torch.tensor(back, device=self.ids.device)

    def take(self, index: Tensor, pad: int) -> "Tokens":
        """Elements `index` (B, M) of each row; -1 gives padding."""
        empty, source = index < 0, index.clamp_min(0)
        values = {f.name: getattr(self, f.name).gather(1, source) for f in fields(self)}
        fill = {
            "ids": pad,
            "doc": -1,
            "fixed": False,
            "counted": False,
            "sealed": False,
            "score": 0.0,
            "doubtful": False,
            "surplus": False,
            "part": 0,
            "slot": 0,
            "eps": -1.0,
            "guess": -1,
        }
        return Tokens(**{name: value.masked_fill(empty, fill[name]) for name, value in values.items()})

    def with_(self, **changes: Tensor) -> "Tokens":
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> "Tokens":
        """The same texts on another device."""
        return Tokens(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __getitem__(self, rows: Tensor | slice) -> "Tokens":
        return Tokens(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.ids)


def concatenate(parts: list[Tokens], pad: int) -> Tokens:
    """The rows of all parts, padded to the longest."""
    length = max(part.ids.shape[1] for part in parts)
    columns = [torch.arange(length, device=p.ids.device).expand(len(p), -1) for p in parts]
    parts = [p.take(c.masked_fill(c >= p.ids.shape[1], -1), pad) for p, c in zip(parts, columns, strict=True)]
    return Tokens(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Tokens)})


def in_order(parts: list[tuple[Tensor, Tokens]], pad: int) -> Tokens:
    """One batch of rows that were finished at different times, each part with the numbers (N,) of its rows."""
    rows = torch.cat([numbers for numbers, _ in parts])
    return concatenate([part for _, part in parts], pad)[rows.argsort()]


def repeat(counts: Tensor) -> Tensor:
    """Index (B, M) that holds column i of each row `counts[:, i]` times in order; -1 on padding.

    0 drops an element, 1 keeps it, more makes room: deletion, gap markers and length tokens are all this one move.
    """
    rows, columns = counts.shape
    sizes = counts.sum(1)
    source = torch.repeat_interleave(torch.arange(rows * columns, device=counts.device), counts.flatten())
    row = source // columns
    place = torch.arange(len(source), device=counts.device) - (sizes.cumsum(0) - sizes)[row]
    index = torch.full((rows, int(sizes.max()) if rows else 0), -1, device=counts.device)
    index[row, place] = source % columns
    return index
