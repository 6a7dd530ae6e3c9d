"""Texts that a causal model reads again and again, each from where it differs from what it has read.

    keys and values of token i depend on (id, position) of the tokens 0..i alone

From step to step of the reverse process a state stays as it is up to its first change, the questions about lengths are asked
of the text that is then written, and all fillings of a text begin alike. So what was read is kept (`memory`), by the ids
and the positions of its tokens: a run of masks is one token, hence its column says not where a token stands.

Not every model goes on from there as if it had read the text whole: some keep states that nothing can be taken back from
(Mamba), forget what a window hides, or count positions by themselves (ALiBi). So each is tried out (`Prefixes.able`), once
for texts of up to 16, 32, 64, ... tokens, since a window shows only in texts that are longer.
"""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from textdiff.denoiser.head import Reading
from textdiff.denoiser.memory import Aim, Memory, cache_name
from textdiff.denoiser.reader import Going, everyone
from textdiff.denoiser.swapping import probing
from textdiff.leak import vocabulary

SHORTEST, ROOM = 16, 64  # tokens of a trial, and in how many at a time the memory grows
_POSITION = 1 << 32  # no vocabulary is as large
_KNOWN: "WeakKeyDictionary[nn.Module, dict[int, bool]]" = WeakKeyDictionary()


class Text(NamedTuple):
    """What a causal model is fed, right-padded: ids and position (B, C), and how many tokens each row has, size (B,)."""

    ids: Tensor
    position: Tensor
    size: Tensor

    def of(self, rows: Tensor) -> "Text":
        """Some of the rows."""
        return Text(self.ids[rows], self.position[rows], self.size[rows])

    def keys(self) -> Tensor:
        """(B, C) a number for each token and its position; -1 on padding."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (self.ids + self.position * _POSITION).masked_fill(column >= self.size[:, None], -1)


class Prefixes:
    """What a model has read of the last texts it was given, a row for each."""

    def __init__(self, model: Any) -> None:
        self.model, self.memory = model, Memory(model)

    def forget(self) -> None:
        """Keep nothing."""
        self.memory.forget()

    def able(self, length: int) -> bool:
        """Whether the model goes on with texts of up to `length` tokens as if it had read them whole. In eval mode.

        Tried out once for each model, at lengths that double.
        """
        known, tried = _KNOWN.setdefault(self.model, {}), SHORTEST
        while tried < length:
            tried *= 2
        if any(same and size >= tried for size, same in known.items()):
            return True
        if tried not in known:
            try:
                with probing(self.model):
                    known[tried] = False not in known.values() and _alike(self.model, tried)
            except Exception:  # whatever a family of models makes of it
                known[tried] = False
        return known[tried]

    def score(self, text: Text, asked: Tensor) -> Tensor:
        """Logits (S, V) after the tokens `asked` (B, C) of the texts."""
        here = self._hold(text, 0)
        first = torch.where(asked.any(1), asked.long().argmax(1), text.size - 1)
        rows = torch.arange(len(here), device=here.device)
        window = self._window(text, rows, here.minimum(first))
        place = window.columns.clamp_max(asked.shape[1] - 1)
        where = asked.gather(1, place) & (window.columns < text.size[:, None])
        logits = Reading(self.model, where.shape, **window.inputs).logits(where)
        self.memory.keep(rows, text.keys(), text.size)
        return logits

    def begin(self, text: Text, one: Tensor, room: int) -> Going:
        """Read texts, those numbered `one` (U,), of which all others are copies; at most `room` words follow."""
        here, first = self._hold(text, room), text.of(one)
        if bool((here[one] < first.size).any()):
            window = self._window(first, one, here[one])
            self.model.base_model(**window.inputs)
            self.memory.keep(one, first.keys(), first.size)
        if len(one) < len(here):
            self._hold(text, room)  # to the copies
        self.memory.latest = _Kept(self.memory, text.size)
        return self.memory.latest

    def _hold(self, text: Text, room: int) -> Tensor:
        """The memory's rows become those of the texts: how many tokens of each are there (B,)."""
        width = -(-(text.ids.shape[1] + room) // ROOM) * ROOM
        keys = nn.functional.pad(text.keys(), (0, width - text.ids.shape[1]), value=-1)
        here = self.memory.hold(keys, text.size, 1)
        self.memory.latest = None
        return here

    def _window(self, text: Text, rows: Tensor, start: Tensor) -> "_Window":
        """The texts, of these `rows` (B,) of memory, from column `start` (B,) on, as the model reads them next."""
        end = text.size
        columns = start[:, None] + torch.arange(int((end - start).max()), device=end.device)
        live, place = columns < end[:, None], columns.clamp_max(text.ids.shape[1] - 1)
        inputs = _aimed(self.memory, rows, columns, live)
        inputs["input_ids"] = text.ids.gather(1, place).masked_fill(~live, 0)
        inputs["position_ids"] = text.position.gather(1, place).masked_fill(~live, 0)
        return _Window(columns, inputs)


class _Window(NamedTuple):
    columns: Tensor  # (B, w) of the texts
    inputs: dict[str, Any]


class _Kept(Going):
    """Words are written behind the texts, where the next reading writes over them."""

    def __init__(self, memory: Memory, size: Tensor) -> None:
        self.memory, self.rows, self.size = memory, torch.arange(len(size), device=size.device), size

    def advance(self, ids: Tensor, position: Tensor) -> Tensor:
        if self.memory.latest is not self:
            raise RuntimeError("other texts were read meanwhile; finish these before the next are begun")
        slots = self.size[:, None]
        inputs = _aimed(self.memory, self.rows, slots, torch.ones_like(slots, dtype=torch.bool))
        output = self.memory.model(input_ids=ids[:, None], position_ids=position[:, None], **inputs)
        self.size = self.size + 1
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        if not everyone(rows, len(self.rows)):
            self.rows, self.size = self.rows[rows], self.size[rows]


def _aimed(memory: Memory, rows: Tensor, columns: Tensor, live: Tensor) -> dict[str, Any]:
    """The memory, ready for tokens in these columns (R, w) of the rows, those that are `live`; and what each token sees."""
    low, high = (int(edge) for edge in columns[:, 0].aminmax())
    reach = int(columns.masked_fill(~live, 0).max()) + 1
    slots = columns.masked_fill(~live, memory.ids.shape[1])
    memory.write(Aim(rows, slots, low if low == high else -1, reach), columns[:, 0])
    bias = torch.zeros(*columns.shape, reach, dtype=memory.model.dtype, device=columns.device)
    later = torch.arange(reach, device=columns.device) > columns[:, :, None]
    bias.masked_fill_(later, torch.finfo(bias.dtype).min)
    return {memory.name: memory, "use_cache": True, "attention_mask": bias[:, None]}


class Grown(Going):
    """Texts that were read whole, in a cache of the model's own kind, which grows with every word.

    bias: what is added to attention scores (B, 1, C, C), where it is not causal.
    """

    def __init__(self, model: Any, text: Text, bias: Tensor | None = None) -> None:
        width = text.ids.shape[1]
        # padding goes to the left: what is written follows the text, for windows and recurrent states as well
        order = torch.arange(width, device=text.ids.device) - (width - text.size[:, None])
        self.model, self.name, self.seen = model, cache_name(model), (order >= 0).long()
        order = order % width
        if bias is not None:
            row = torch.arange(len(order), device=order.device)[:, None, None]
            bias = bias[row, 0, order[:, :, None], order[:, None, :]][:, None]
        read = model.base_model(
            input_ids=text.ids.gather(1, order),
            attention_mask=self.seen if bias is None else bias,
            position_ids=text.position.gather(1, order),
            use_cache=True,
        )
        self.cache = getattr(read, self.name)

    def advance(self, ids: Tensor, position: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, torch.ones_like(ids)[:, None]], 1)
        output = self.model(
            input_ids=ids[:, None],
            attention_mask=self.seen,
            position_ids=position[:, None],
            use_cache=True,
            **{self.name: self.cache},
        )
        self.cache = getattr(output, self.name)
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        if not everyone(rows, len(self.seen)):
            self.seen = self.seen[rows]
            self.cache.reorder_cache(rows)


def _alike(model: Any, length: int) -> bool:
    """Whether both ways of going on say the same after two texts, of which others like them were read before."""
    weight = model.get_input_embeddings().weight
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary(model), (2, length), generator=draw).to(weight.device)
    column = torch.arange(length, device=ids.device)
    position = column + 2 * (column > length // 2)  # after a run of masks
    position = (position.clamp_max(limit - 1) if limit > 0 else position).expand(2, -1)
    text = Text(ids, position, torch.tensor([length - 2, length // 2 + 1], device=ids.device))
    changed = ids.roll(1, 0)
    changed[0, : length // 3], changed[1, : length // 4] = ids[0, : length // 3], ids[1, : length // 4]
    prefixes, everybody = Prefixes(model), torch.arange(2, device=ids.device)
    prefixes.begin(text._replace(ids=changed), everybody, 2)
    whole, again = Grown(model, text), prefixes.begin(text, everybody, 2)
    # of its own accord a model may keep less than all, sooner or later
    forgets = any(getattr(whole.cache, "is_sliding", [True]))
    said = [
        torch.stack([going.advance(ids[:, turn], position[:, turn + 1]) for turn in range(2)])
        for going in (whole, again)
    ]
    near = torch.finfo(said[0].dtype).eps ** 0.5  # between rounding and any mistake that matters
    return not forgets and bool((said[0] - said[1]).abs().max() <= near * said[0].std())
