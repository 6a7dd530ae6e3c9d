"""Processes of text by the names that users write, the denoisers that can read their states, and what bounds them.

A name is one process, `masking`, or a mixture with weights, `deletion+replacement`, `3*deletion+1*edit`: each text is then
corrupted by one of them, the first is what a page with gaps starts from.
"""

import re
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from textdiff import schedule
from textdiff.denoiser import Blocks, Changes, Denoiser, Embedded, Parallel
from textdiff.keys import Key
from textdiff.posterior import Draw, Look, Measure
from textdiff.process import Deletion, Edit, Encoder, Masking, Mixture, Process, Replacement
from textdiff.rules import Rule
from textdiff.tokens import Specials, Tokens

SCHEDULES: dict[str, Callable[[], schedule.Schedule]] = {"linear": schedule.Linear, "cosine": schedule.Cosine}
NAMES = ("masking", "deletion", "replacement", "edit", "encoder")
KEEP_LENGTHS = ("replacement", "encoder")  # they cannot fill [GAP], only [GAP:3]
SAY_LENGTHS = ("deletion", "edit")  # a model of these learns to say how many tokens are missing
CORRECT = ("replacement", "edit", "encoder")  # every word is in doubt: the denoiser answers everywhere, in parallel


class Settings(Protocol):
    """What a process is made of, as `DiffusionConfig` has it."""

    process: str
    schedule: Any
    staged: bool
    counts: bool
    different: bool
    masked: float
    edits: tuple[float, float, float, float]
    backbone: Any
    shift: bool
    block: int
    self_conditioning: bool


def chosen(name: str, known: dict[str, Any], what: str, more: str = "") -> Any:
    """known[name], or a ValueError that lists what there is."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join([*known, more] if more else known)}")
    return known[name]


def parts(name: str) -> list[tuple[float, str]]:
    """The weight and the name of each process of a mixture. ValueError for what cannot be read, or is not known."""
    result = []
    for part in name.split("+"):
        found = re.fullmatch(r"\s*(?:([\d.]+)\s*\*)?\s*([\w-]+)\s*", part)
        try:
            weight = float(found[1] or 1) if found else 0.0
        except ValueError:
            weight = 0.0
        if found is None or weight <= 0:
            raise ValueError(f"process {name!r}: write masking, or a mixture such as 3*deletion+1*edit")
        chosen(found[2], dict.fromkeys(NAMES), "process")
        result.append((weight, found[2]))
    return result


def check(settings: Settings, denoiser: str, rule: Rule) -> None:
    """ValueError for options these processes lack or cannot take, and for a denoiser or rule that cannot serve them."""
    names = {name for _, name in parts(settings.process)}
    chosen(settings.schedule, SCHEDULES, "schedule")
    asked = {
        "staged": (settings.staged, {"deletion"}),
        "counts": (settings.counts, {"masking", "replacement"}),
        "different": (settings.different, {"replacement"}),
        "masked": (settings.masked, {"replacement"}),
    }
    for option, (value, families) in asked.items():
        if value and not names & families:
            raise ValueError(f"{option} is for process {' or '.join(sorted(families))}, not {settings.process}")
    if settings.backbone == "causal" and denoiser != "parallel":
        raise ValueError(f"backbone causal is for denoiser parallel, not {denoiser}, which takes its model as it is")
    if settings.shift and (settings.backbone != "causal" or "encoder" in names):
        raise ValueError("shift is for backbone causal, with processes of tokens; a masked model is read in place")
    if settings.block < 0:
        raise ValueError(f"block {settings.block} is negative; 0 is for no blocks, 32 writes as many tokens at once")
    kind = denoiser, settings.backbone, [name for _, name in parts(settings.process)]
    if settings.block and kind != ("parallel", "causal", ["masking"]):
        raise ValueError(
            f"block {settings.block} is for denoiser parallel with backbone causal and process masking, not {denoiser}, "
            f"{settings.backbone} and {settings.process}"
        )
    if settings.self_conditioning and (kind[0], kind[2], settings.block) != ("parallel", ["masking"], 0):
        raise ValueError(
            f"self_conditioning is for denoiser parallel with process masking, whose states keep lengths, and block 0, not "
            f"{denoiser} with {settings.process} and block {settings.block}"
        )
    if "encoder" in names and len(names) > 1:
        raise ValueError(
            f"process {settings.process}: the encoder's states are vectors, it cannot be mixed with others"
        )
    wrong = sorted(names & {*CORRECT})
    if wrong and denoiser != "parallel":
        raise ValueError(
            f"process {', '.join(wrong)} has words corrected, which the {denoiser} denoiser cannot; use denoiser parallel"
        )
    process = make_process(settings, Specials(0, 1, 2, 3, size=8), embedding=nn.Embedding(8, 2))
    _try(process, rule, denoiser != "parallel", settings.block > 0)


def _try(process: Process, rule: Rule, one_by_one: bool, blocks: bool) -> None:
    """One step of two words: what a process refuses, it refuses here and not when the first samples are due."""
    x0, key = Tokens.from_rows([[1, 4, 5]], 0), Key.of(0, 1)
    t = torch.full((1,), 0.5, dtype=torch.float64)
    with torch.no_grad():
        noise = process.noise(x0, key)
        xt, truth = process.corrupt(x0, noise, t), process.align(x0, noise, t)
        open_, look = torch.zeros_like(x0.fixed), None if one_by_one else _Anything()
        lane = torch.zeros_like(x0.ids) if blocks else None
        rule(process, xt, Draw(truth.x0, truth.place, torch.zeros(x0.ids.shape), open_, look, lane), t, t / 2, key)


class _Anything(Look):
    """All that a parallel model can be asked, with no model behind it."""

    def words(self, where: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(where[where]).long(), torch.zeros_like(where[where]).float()

    def measure(self, measure: Measure, where: Tensor) -> Tensor:
        return torch.zeros_like(where[where]).float()


def make_process(
    settings: Settings, ids: Specials, *, spans: tuple[float, ...] = (1,), embedding: nn.Module | None = None,
    staged: bool = False,
) -> Process:  # fmt: skip
    """The process that the settings name. staged: as it is run to fill, where the settings say that it is staged then."""
    alpha = SCHEDULES[settings.schedule]()

    def masking() -> Process:
        return Masking(ids, alpha, (1,) if settings.counts else spans, settings.counts)

    def deletion() -> Process:
        return Deletion(ids, alpha, spans, staged=staged and settings.staged)

    def replacement() -> Process:
        return Replacement(ids, ids.words, alpha, settings.different, settings.masked, settings.counts)

    def edit() -> Process:
        *kinds, insert = settings.edits
        return Edit(ids, ids.words, alpha, (kinds[0], kinds[1], kinds[2]), insert)

    def encoder() -> Process:
        if embedding is None:
            raise ValueError("the encoder process needs the model whose embeddings it trains")
        return Encoder(embedding, ids, alpha)

    makers = {"masking": masking, "deletion": deletion, "replacement": replacement, "edit": edit, "encoder": encoder}
    made = [(weight, makers[name]()) for weight, name in parts(settings.process)]
    return made[0][1] if len(made) == 1 else Mixture(made, ids.pad)


def keeps_lengths(name: str) -> bool:
    """Whether only gaps of given length can be filled: the first process keeps lengths, or none teaches to say them."""
    names = [process for _, process in parts(name)]
    return names[0] in KEEP_LENGTHS or not {*names} & {*SAY_LENGTHS}


def says_lengths(name: str, denoiser: str) -> bool:
    """Whether a model needs tokens for lengths: its process teaches them, or its likelihood is that of filling a gap."""
    return denoiser != "parallel" or bool({process for _, process in parts(name)} & {*SAY_LENGTHS})


def parallel(settings: Settings, model: Any, ids: Specials) -> Denoiser:
    """The parallel denoiser that reads the states of this process."""
    if settings.process == "encoder":
        return Embedded(model, ids)
    if settings.block:
        return Blocks(model, ids, settings.block, settings.shift)
    process, denoiser = make_process(settings, ids), Parallel(model, ids, settings.shift, settings.self_conditioning)
    if isinstance(process, Replacement) and settings.counts and settings.different:
        return Changes(denoiser, process)
    return denoiser


def likelihood(settings: Settings, denoiser: str, ids: Specials, embedding: nn.Module | None) -> tuple[Process, str]:
    """The process whose bound measures a denoiser, and what the figure is."""
    name = parts(settings.process)[0][1]
    if name == "replacement":
        return make_process(settings, ids), "bound, length given"
    if name == "encoder":
        return make_process(settings, ids, embedding=embedding), "loose bound of one step, length given"
    if denoiser != "parallel":  # masks included: a chain rule has no bound token by token
        return Deletion(ids), "exact, in one step"
    return (Masking(ids), "bound, length given") if name == "masking" else (Deletion(ids, staged=True), "bound")
