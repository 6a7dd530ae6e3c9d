"""Feeding a stock language model token by token, with what it has read of each text kept in its cache.

Texts of different lengths are padded on the left where the model lets positions be named; where it does not (learned
positions in decoders, ALiBi), those of one length go together. So no text is ever read at another's positions.

Not every model goes on from a cache as if it had read the text whole: some keep states that nothing can be taken back from
(Mamba), some have caches of their own kind, some count positions from elsewhere (RoBERTa). So every model is asked once
whether both say the same (`goes_on`), and where they do not, texts are read whole each time.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser.head import logits_at
from textdiff.denoiser.memory import cache_name
from textdiff.denoiser.words import own
from textdiff.leak import FAILURES, vocabulary

_PIECE = 1 << 25  # how many logits are held at once where many tokens are scored


class Stream:
    """S texts that one model goes on writing. `logits` (S, V) are what it says comes next.

    prompts: tokens that have been fed, at least one each. sources: what the encoder reads beside each; None for models
    without one. cached: whether what was read is kept, see `goes_on`. Equal prompts are read once.
    """

    @torch.no_grad()
    def __init__(
        self, model: Any, prompts: list[list[int]], sources: list[list[int]] | None = None, cached: bool = True
    ) -> None:
        if not all(prompts):
            raise ValueError("the text begins with a gap and the model has no first token; begin with a word")
        self.size = len(prompts)
        told = _takes_positions(model) if sources is None else told_positions(model) is not None
        padding = not cached or told
        groups: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            groups.setdefault(0 if padding else len(prompt), []).append(number)
        kind = _Batch if cached else _Whole
        self.batches = [
            kind(model, rows, [prompts[r] for r in rows], sources and [sources[r] for r in rows])
            for rows in groups.values()
        ]
        self.logits = self._gathered([batch.logits for batch in self.batches])

    @torch.no_grad()
    def feed(self, ids: list[int | None]) -> None:
        """One token to each text; None to those that are done."""
        self.logits = self._gathered([batch.feed([ids[row] for row in batch.rows]) for batch in self.batches])

    @torch.no_grad()
    def ahead(self, runs: list[list[int]]) -> Tensor:
        """(S,) float64 log-probability of run[1:] given all that was fed and run[0]; nothing stays fed."""
        return self._gathered([batch.ahead([runs[row] for row in batch.rows]) for batch in self.batches])

    def back(self, count: int) -> None:
        """Take back the last `count` tokens of every text; `logits` are then out of date."""
        for batch in self.batches:
            batch.back(count)

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        order = torch.tensor([row for batch in self.batches for row in batch.rows], device=parts[0].device)
        return torch.cat(parts)[order.argsort()]


class _Batch:
    """Texts that are fed together: padded on the left, or of one length."""

    def __init__(self, model: Any, rows: list[int], prompts: list[list[int]], sources: list[list[int]] | None) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        self.model, self.rows, self.device = model, rows, model.device
        names = [(tuple(prompt), tuple(sources[k]) if sources else ()) for k, prompt in enumerate(prompts)]
        unique = list(dict.fromkeys(names))
        # without the model's config no layer forgets what a window hides, so that tokens can be taken back
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if sources else DynamicCache()
        self.beside: dict[str, Tensor] = {}
        if sources:
            self.beside = dict(zip(("encoded", "seen"), encode(model, [list(name[1]) for name in unique]), strict=True))
        ids, live = padded([list(name[0]) for name in unique], model.device, left=True)
        self.mask = live.new_zeros((len(unique), 0))
        last = torch.zeros_like(live, dtype=torch.bool)
        last[:, -1] = True
        logits = self.read(ids, live, last)
        number = {name: k for k, name in enumerate(unique)}
        index = torch.tensor([number[name] for name in names], device=model.device)
        self.cache.reorder_cache(index)
        self.mask, self.logits = self.mask[index], logits[index]
        self.beside = {name: value[index] for name, value in self.beside.items()}
        self.turns: list[int] = []  # how many tokens each feeding put into the cache: 1, or 0 where all texts were done

    def feed(self, ids: list[int | None]) -> Tensor:
        """One token more to each; logits (S, V) after it."""
        live_rows = any(number is not None for number in ids)
        self.turns.append(int(live_rows))
        if not live_rows:  # else positions would run on beyond what the model has while other batches are written
            return self.logits
        token = torch.tensor([[number or 0] for number in ids], device=self.device)
        live = torch.tensor([[number is not None] for number in ids], device=self.device)
        self.logits = self.read(token, live.long(), torch.ones_like(live))
        return self.logits

    def read(self, ids: Tensor, live: Tensor, where: Tensor) -> Tensor:
        """Feed ids (S, m), those that are `live` (S, m) of them; logits at `where` (S, m)."""
        self.mask = torch.cat([self.mask, live], 1)
        inputs: dict[str, Any] = {cache_name(self.model): self.cache, "use_cache": True}
        position = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        if self.beside:
            inputs |= {"decoder_input_ids": ids, **_encoder_inputs(**self.beside)}
            told = told_positions(self.model)
            if told is None:
                return logits_at(self.model, where, **inputs)
            with _telling(told, position):
                return logits_at(self.model, where, decoder_attention_mask=self.mask, **inputs)
        if _takes_positions(self.model):
            inputs["position_ids"] = position
        return logits_at(self.model, where, input_ids=ids, attention_mask=self.mask, **inputs)

    def back(self, count: int) -> None:
        if count:
            self._crop(sum(self.turns[-count:]))
            del self.turns[-count:]

    def _crop(self, count: int) -> None:
        if count:
            self.cache.crop(-count)
            self.mask = self.mask[:, :-count]

    def ahead(self, runs: list[list[int]]) -> Tensor:
        total = torch.zeros(len(runs), dtype=torch.float64, device=self.device)
        longest = max(map(len, runs)) - 1
        if longest < 1:
            return total
        ids, live = padded(runs, self.device)
        width = max(1, _PIECE // (len(runs) * self.model.get_output_embeddings().weight.shape[0]))
        for begin in range(0, longest, width):
            part = slice(begin, min(begin + width, longest))
            shifted = slice(part.start + 1, part.stop + 1)
            where = live[:, shifted].bool()
            score = own(self.read(ids[:, part], live[:, part], where), ids[:, shifted][where])
            total.index_add_(0, where.nonzero()[:, 0], score)
        self._crop(longest)
        return total


class _Whole:
    """Texts that are read from their beginning each time, those of one length together, so that none is ever padded."""

    def __init__(self, model: Any, rows: list[int], prompts: list[list[int]], sources: list[list[int]] | None) -> None:
        self.model, self.rows, self.sources = model, rows, sources
        self.fed: list[list[int | None]] = [list(prompt) for prompt in prompts]
        self.logits = self._after([[] for _ in rows], [1] * len(rows))

    def feed(self, ids: list[int | None]) -> Tensor:
        for row, number in zip(self.fed, ids, strict=True):
            row.append(number)
        return self._after([[] for _ in ids], [1] * len(ids))

    def back(self, count: int) -> None:
        for row in self.fed if count else ():
            del row[-count:]

    def ahead(self, runs: list[list[int]]) -> Tensor:
        counts = [max(len(run) - 1, 0) for run in runs]
        total = torch.zeros(len(runs), dtype=torch.float64, device=self.model.device)
        if any(counts):
            logits = self._after([run[:-1] for run in runs], counts)
            truth = torch.tensor([token for run in runs for token in run[1:]], device=logits.device)
            row = torch.tensor([row for row, count in enumerate(counts) for _ in range(count)], device=logits.device)
            total.index_add_(0, row, own(logits, truth))
        return total

    def _after(self, runs: list[list[int]], counts: list[int]) -> Tensor:
        """Logits (N, V) after the last counts[k] tokens of each text with its run; what is equal is read once."""
        names = []
        for k, (row, run, count) in enumerate(zip(self.fed, runs, counts, strict=True)):
            text = (*(number for number in row if number is not None), *run)
            names.append((text, tuple(self.sources[k]) if self.sources else (), count))
        groups: dict[tuple[int, int], list[Any]] = {}
        for name in dict.fromkeys(name for name in names if name[2]):
            groups.setdefault((len(name[0]), len(name[1])), []).append(name)
        found: dict[Any, Tensor] = {}
        for (size, _), group in groups.items():
            asked = [list(range(size - count, size)) for *_, count in group]
            sources = [list(source) for _, source, _ in group] if self.sources else None
            logits = answers(self.model, [list(text) for text, *_ in group], asked, sources)
            found.update(zip(group, logits.split([len(columns) for columns in asked]), strict=True))
        return torch.cat([found[name] for name in names if name[2]])


@torch.no_grad()
def goes_on(model: Any) -> bool:
    """Whether the model says the same after a text that it went on reading, beside a longer one, with tokens taken back,
    as after one that it read whole. ValueError, with the reason, for one that does not read plain text, or reads ahead."""
    rows = vocabulary(model)
    ids = torch.randint(
        rows // 4, max(rows // 2, min(rows, 8)), (9,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    prompts, runs = [ids[:2], ids[:4]], [ids[4:7], ids[5:8]]
    sources = [ids[3:6], ids[:5]] if model.config.is_encoder_decoder else None

    def said(cached: bool) -> tuple[Tensor, Tensor]:
        stream = Stream(model, prompts, sources, cached)
        parts = [stream.logits]
        stream.feed([ids[7], ids[8]])
        ahead = stream.ahead(runs)
        stream.back(1)
        stream.feed([ids[8], ids[6]])
        return torch.cat([*parts, stream.logits]).float(), ahead

    training, name = model.training, type(model).__name__
    model.eval()
    try:
        logits, ahead = said(False)
        first = answers(model, [ids[:3], ids[:1] + ids[3:5]], [[0], [0]], sources and [sources[0]] * 2).float()
    except FAILURES as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{name} does not read plain text: {reason}") from error
    near = torch.finfo(model.dtype).eps ** 0.5  # between rounding and any mistake that matters
    if (first[0] - first[1]).abs().max() > near * first.std():
        raise ValueError(f"{name} sees what follows, so it cannot write word by word; give a model that is causal")
    if _forgets(model):
        model.train(training)
        return False
    try:
        other, further = said(True)
    except FAILURES:
        return False
    finally:
        model.train(training)
    same = (logits - other).abs().max() <= near * logits.std()
    return bool(same and (ahead - further).abs().max() <= near * ahead.abs().max())


def _forgets(model: Any) -> bool:
    """Whether a text may be longer than what the model keeps in mind and chooses anew at each place (Doge).

    It chooses otherwise from a cache; a text so long is too long to ask it by.
    """
    kept, longest = (own_id(model, name) for name in ("keep_window_size", "max_position_embeddings"))
    return kept is not None and (longest is None or kept < longest)


def _takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def told_positions(model: Any) -> Any:
    """The module that embeds the decoder's positions, if it can be told them: BART's and its kin's; else None."""
    for name, module in model.named_modules():
        if name.endswith("decoder.embed_positions") and "position_ids" in inspect.signature(module.forward).parameters:
            ids = torch.zeros(2, 3, dtype=torch.int64, device=model.device)
            with torch.no_grad(), suppress(*FAILURES):
                usual = module(ids[:1], 1, position_ids=torch.arange(1, 4, device=model.device)).view(1, 3, -1)
                with _telling(module, torch.arange(1, 4, device=model.device).expand(2, -1)):
                    if torch.equal(module(ids, 0, position_ids=None), usual.expand(2, -1, -1)):
                        return module
    return None


@contextmanager
def _telling(module: Any, position: Tensor) -> Iterator[None]:
    """The module embeds `position` (S, m), whatever it is asked for: it thinks of one row."""

    def before(module: Any, args: Any, inputs: dict[str, Any]) -> Any:
        return args, inputs | {"position_ids": position.flatten()}

    def after(module: Any, args: Any, output: Tensor) -> Tensor:
        return output.view(*position.shape, -1)

    handles = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def answers(model: Any, rows: list[list[int]], asked: list[list[int]], sources: list[list[int]] | None) -> Tensor:
    """Logits (N, V) after the tokens `asked` of each row, in order, from one plain forward; gradients flow."""
    ids, live = padded(rows, model.device)
    where = torch.zeros_like(live, dtype=torch.bool)
    for number, columns in enumerate(asked):
        where[number, columns] = True
    if sources is None:
        return logits_at(model, where, input_ids=ids, attention_mask=live, use_cache=False)
    given = _encoder_inputs(*encode(model, sources))
    return logits_at(model, where, decoder_input_ids=ids, use_cache=False, **given)


def encode(model: Any, sources: list[list[int]]) -> tuple[Tensor, Tensor]:
    """What the encoder makes of the sources (S, E, D), and where they are not padding (S, E)."""
    ids, live = padded(sources, model.device)
    return model.get_encoder()(input_ids=ids, attention_mask=live).last_hidden_state, live


def _encoder_inputs(encoded: Tensor, seen: Tensor) -> dict[str, Any]:
    from transformers.modeling_outputs import (
        MoeModelOutputWithPast,
    )  # mixtures of experts ask for router_logits, be it None

    return {"encoder_outputs": MoeModelOutputWithPast(last_hidden_state=encoded), "attention_mask": seen}


def own_id(model: Any, name: str) -> Any:
    """A special id that the model's config names, or a list of them; None where it does not, or has no row for it."""
    found, rows = getattr(model.config.get_text_config(decoder=True), name, None), vocabulary(model)
    if isinstance(found, int):
        return found if found < rows else None
    return [number for number in found if number < rows] or None if found else found


def decoder_start(model: Any) -> int:
    """What an encoder-decoder's decoder is fed first. mBART's is the end token, where nothing else is said."""
    names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
    found = [own for own in (getattr(model.config, name, None) for name in names) if isinstance(own, int)]
    if not found:
        raise ValueError("the model's config has no decoder_start_token_id; set it to what its decoder is fed first")
    return found[0]


def padded(rows: list[list[int]], device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """ids and int64 mask (S, m) of rows, with token 0 where there is none."""
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    live = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        part = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, part] = torch.tensor(row, dtype=torch.int64)
        live[number, part] = 1
    return ids.to(device), live.to(device)
