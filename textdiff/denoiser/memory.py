"""What a causal model has read of texts that go on: keys and values, kept by column, with the ids they belong to.

    slot of a key = column of its token,   kept of a text = the longest common prefix of the ids kept and of its own

Nothing is believed of who comes next: rows are known by their ids alone, so a batch may lose rows, change their order or
bring others. To crop is to count less; new tokens are written over the old. Unlike a cache that grows by concatenation, a
call copies nothing of what it keeps.
"""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Aim(NamedTuple):
    """Where a call writes its keys and values, and how far it sees.

    rows: (R,) of the memory. slots: (R, w), one for every token; the last one of the memory is for padding. first: the slot
    of the first token where that is the same in all rows, and the others follow; else -1. reach: how many slots are seen.
    """

    rows: Tensor
    slots: Tensor
    first: int
    reach: int


class Memory:
    """Stands where a transformers model expects its cache. A row holds one text.

    ids: (B, C), what the keys of each column were made from; -1 before any was. size: (B,), how many columns count.
    latest: the last to have written, for whoever wants to know whether it is still as it was. What is kept stays until other
    texts take its place; `forget` lets it go.
    """

    is_compileable, is_initialized = False, True  # what transformers asks of a cache

    def __init__(self, model: Any) -> None:
        self.model, self.name = model, cache_name(model)
        self.forget()

    def forget(self) -> None:
        """Keep nothing."""
        self.ids, self.size = torch.empty(0, 0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self.kept: list[tuple[Tensor, Tensor] | None] = []
        self.weights: list[Tensor] = []
        self.said_by: tuple[Any, ...] = ()
        self.latest: Any = None
        self.aim = Aim(self.size, self.ids, 0, 0)
        self.span: slice | None = None

    def hold(self, ids: Tensor, most: Tensor, block: int) -> Tensor:
        """Make the rows those of texts `ids` (B, L): how many columns of each are here (B,), in blocks, at most `most`."""
        self._check(ids)
        known = self.ids.shape[0] == len(ids) and self.ids.shape[1] >= ids.shape[1]
        here = self._common(ids) if known else most.new_zeros(len(ids))
        # rows of blocks are worth moving where they have none; token by token any row may have more of a text
        if not known or bool(((here < block) & (most > 0)).any()) or (block == 1 and bool((here < most).any())):
            self._arrange(ids, block)
            here = self._common(ids)
        return here.minimum(most) // block * block

    def write(self, aim: Aim, start: Tensor) -> None:
        """A call is next that writes from column `start` (R,) on."""
        # before it has come to its end, nothing of what it writes over counts
        self.aim, self.size[aim.rows] = aim, self.size[aim.rows].minimum(start)
        first, count = int(aim.rows[0]), len(aim.rows)
        follow = bool((aim.rows == torch.arange(first, first + count, device=aim.rows.device)).all())
        self.span = slice(first, first + count) if follow else None  # rows in a row are read where they are

    def keep(self, rows: Tensor, ids: Tensor, size: Tensor) -> None:
        """The call is done: of rows (R,) the first columns, `size` (R,), of ids (R, L) are here."""
        self.ids[rows, : ids.shape[1]], self.size[rows] = ids, size

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values (R, H, w, D) of a layer: all that the call sees, (R, H, reach, D) of each.

        Those of fewer tokens are no news: a layer that runs once more, for some of the places (`last`).
        """
        self.kept += [None] * (layer_idx + 1 - len(self.kept))
        # zeros, since a key that is not a number would show through any mask
        held = self.kept[layer_idx] or (self._empty(keys), self._empty(values))
        self.kept[layer_idx] = held
        rows, slots, first, reach = self.aim
        for part, new in zip(held, (keys, values), strict=True):
            if new.shape[2] != slots.shape[1]:
                continue
            if self.span is not None and first >= 0:
                part[self.span, :, first : first + new.shape[2]] = new
            else:
                part[rows[:, None], :, slots] = new.transpose(1, 2)
        seen = rows if self.span is None else self.span
        return held[0][seen, :, :reach], held[1][seen, :, :reach]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many slots the next call sees that it does not write, if every row is as far as the others."""
        return self.aim.reach - self.aim.slots.shape[1]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The slot of the next call's first token, if so."""
        return self.get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many slots a mask is for, and the first of them."""
        return self.aim.reach, 0

    def _empty(self, like: Tensor) -> Tensor:
        rows, width = self.ids.shape
        return like.new_zeros(rows, like.shape[1], width + 1, like.shape[3])

    def _common(self, ids: Tensor) -> Tensor:
        """(B,) how many columns that count here are those of `ids` (B, L), row by row."""
        same = self.ids[:, : ids.shape[1]] == ids
        return same.long().cumprod(1).sum(1).minimum(self.size)

    def _check(self, ids: Tensor) -> None:
        """Forget what other weights have said, or in another precision, and what is where it cannot be written."""
        stuck = self.ids.is_inference() and not torch.is_inference_mode_enabled()
        if stuck or self.ids.device != ids.device or self.said_by != _speaker(self.weights, ids.device):
            self.forget()
        if not len(self.ids):
            self.weights = list(self.model.parameters())
            self.said_by = _speaker(self.weights, ids.device)

    def _arrange(self, ids: Tensor, block: int) -> None:
        """Every row of `ids` (B, L) gets the row that has most of it, a copy where several want the same."""
        (rows, width), held = ids.shape, len(self.ids)
        shared = min(width, self.ids.shape[1])
        source = _sources(ids, self.ids, self.size, block).to(ids.device)
        fits = rows == held and shared == width
        moved = (source != torch.arange(rows, device=ids.device)).nonzero()[:, 0] if fits else source
        if fits and not len(moved):
            return
        self.latest = None
        if fits:  # the others stay where they are
            source = source[moved]
            end = int(self.size[source].max())
            self.ids[moved, :end], self.size[moved] = self.ids[source, :end], self.size[source]
            for part in (part for pair in self.kept if pair is not None for part in pair):
                part[moved, :, :end] = part[source, :, :end]
            return
        old, size, kept, self.kept = self.ids, self.size, self.kept, []
        self.ids = torch.full_like(ids, -1)
        self.size = torch.zeros(rows, dtype=torch.int64, device=ids.device)
        if held:
            self.ids[:, :shared], self.size = old[source, :shared], size[source].clamp_max(shared)
            self.kept = [
                None if pair is None else (self._moved(pair[0], source), self._moved(pair[1], source)) for pair in kept
            ]

    def _moved(self, part: Tensor, source: Tensor) -> Tensor:
        moved, end = self._empty(part), int(self.size.max())
        moved[:, :, :end] = part[source, :, :end]
        return moved


def _sources(ids: Tensor, held: Tensor, size: Tensor, block: int) -> Tensor:
    """(B,) for each text (B, L) the one of those held (M, C), `size` (M,) columns of them, that has most of its blocks.

    What is where it belongs stays there. Any of them for a text of which none has a block.
    """
    width, count = min(ids.shape[1], held.shape[1]), len(ids)
    texts, common = ids[:, :width].cpu().numpy(), [torch.zeros(count, dtype=torch.int64)] * (not len(held))
    for row, end in zip(held[:, :width].cpu().numpy(), size.tolist(), strict=True):
        same = texts == row
        first = torch.from_numpy(same.argmin(1)) if width else torch.zeros(count, dtype=torch.int64)
        first[torch.from_numpy(same.all(1))] = width
        common.append(first.clamp_max(end) // block * block)
    found = torch.stack(common, 1)  # (B, M)
    most, source = found.max(1)
    own = torch.arange(count) * (torch.arange(count) < found.shape[1])
    stays = found.gather(1, own[:, None])[:, 0] == most
    return torch.where(stays, own, source)


def _speaker(weights: list[Tensor], device: torch.device) -> tuple[Any, ...]:
    """What changes when weights do, where they are and how often they were written; and the precision of autocast."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return autocast, *((weight.data_ptr(), weight.is_inference() or weight._version) for weight in weights)


def cache_name(model: Any) -> str:
    """What the model calls its cache: transformers 5.24 renamed it, warns of the old name and will drop it."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
