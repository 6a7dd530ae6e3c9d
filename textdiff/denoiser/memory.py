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
        self.model = model
        # transformers 5.24 renamed the argument, and warns of the old name at every call
        known = inspect.signature(type(model).forward).parameters
        self.name = "cache" if "cache" in known else "past_key_values"
        self.forget()

    def forget(self) -> None:
        """Keep nothing."""
        self.ids, self.size = torch.empty(0, 0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self.kept: list[tuple[Tensor, Tensor] | None] = []
        self.weights: list[Tensor] = []
        self.said_by: tuple[Any, ...] = ()
        self.latest: Any = None
        self.aim = Aim(self.size, self.ids, 0, 0)

    def hold(self, ids: Tensor, most: Tensor, block: int) -> Tensor:
        """Make the rows those of texts `ids` (B, L): how many columns of each are here (B,), in blocks, at most `most`."""
        self._check(ids)
        if self.ids.shape[0] != len(ids) or self.ids.shape[1] < ids.shape[1]:
            self._arrange(ids, block)
        here = self._common(ids)
        if bool(((here < block) & (most > 0)).any()):
            self._arrange(ids, block)
            here = self._common(ids)
        return here.minimum(most) // block * block

    def write(self, aim: Aim, start: Tensor) -> None:
        """A call is next that writes from column `start` (R,) on."""
        # before it has come to its end, nothing of what it writes over counts
        self.aim, self.size[aim.rows] = aim, self.size[aim.rows].minimum(start)

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
        whole = len(rows) == len(self.size)
        for part, new in zip(held, (keys, values), strict=True):
            if new.shape[2] != slots.shape[1]:
                continue
            if whole and first >= 0:
                part[:, :, first : first + new.shape[2]] = new
            else:
                part[rows[:, None], :, slots] = new.transpose(1, 2)
        keys, values = held
        return (keys[:, :, :reach], values[:, :, :reach]) if whole else (keys[rows, :, :reach], values[rows, :, :reach])

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
        source = torch.tensor(_sources(ids[:, :shared], self.ids[:, :shared], self.size, block), device=ids.device)
        if rows == held and shared == width and bool((source == torch.arange(rows, device=ids.device)).all()):
            return
        old, size, kept, self.kept = self.ids, self.size, self.kept, []
        self.ids = torch.full_like(ids, -1)
        self.size = torch.zeros(rows, dtype=torch.int64, device=ids.device)
        self.latest = None
        if held:
            self.ids[:, :shared], self.size = old[source, :shared], size[source].clamp_max(shared)
            self.kept = [
                None if pair is None else (self._moved(pair[0], source), self._moved(pair[1], source)) for pair in kept
            ]

    def _moved(self, part: Tensor, source: Tensor) -> Tensor:
        moved, shared = self._empty(part), min(part.shape[2] - 1, self.ids.shape[1])
        moved[:, :, :shared] = part[source, :, :shared]
        return moved


def _sources(ids: Tensor, held: Tensor, size: Tensor, block: int) -> list[int]:
    """For each text (B, L) the one of those held (M, L), `size` (M,) columns of them, that has most of its blocks.

    What is where it belongs stays there. Any of them for a text of which none has a block.
    """
    known: dict[bytes, int] = {}
    texts, sizes = held.cpu().numpy(), size.tolist()
    for row, count in enumerate(sizes):
        for end in range(block, count + 1, block):
            known.setdefault(texts[row, :end].tobytes(), row)
    sources = []
    for row, text in enumerate(ids.cpu().numpy()):
        most, end = (row if row < len(texts) else 0), len(text) // block * block
        while end and text[:end].tobytes() not in known:
            end -= block
        # a copy elsewhere is no better than its own
        if end and not (row < len(texts) and sizes[row] >= end and (texts[row, :end] == text[:end]).all()):
            most = known[text[:end].tobytes()]
        sources.append(most)
    return sources


def _speaker(weights: list[Tensor], device: torch.device) -> tuple[Any, ...]:
    """What changes when weights do, where they are and how often they were written; and the precision of autocast."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    return autocast, *((weight.data_ptr(), weight.is_inference() or weight._version) for weight in weights)
