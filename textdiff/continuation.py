"""Writing on: a prompt and one gap after it, of any length up to a limit, run through the one loop.

    x_1 = prompt [GAP],  x0_hat ~ q(x_0 | x_t),  x_s = F_s(x0_hat, eps'), ... down to t = 0

How long the text becomes is decided in the first step and not again, so a limit on it holds through all later ones: what
was written there can be masked and written anew, it is never deleted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textdiff.clocks import Steps, clocks
from textdiff.constraints import Constraint
from textdiff.denoiser.base import Denoiser
from textdiff.filling import OPEN, PRIOR
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process.base import Process
from textdiff.rules import Rule, posterior
from textdiff.sampler import Stop, never, sample
from textdiff.spelling import read_on
from textdiff.tokens import Specials, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Written:
    """What was written after a prompt: token ids, and the log-probability of each in nats, as the model drew it."""

    ids: list[int]
    scores: list[float]

    @property
    def score(self) -> float:
        """log q of the words, given how many there are."""
        return float(sum(self.scores))

    @property
    def per_token(self) -> float:
        """The score for each word; minus infinity where there is none."""
        return self.score / len(self.ids) if self.ids else -math.inf


@dataclass(frozen=True)
class Size:
    """How many tokens are written: between low and high, or exactly high. `exact` is for models that keep lengths."""

    high: int
    low: int = 0
    exact: bool = False

    def __post_init__(self) -> None:
        if self.high < 1:
            raise ValueError(f"max_new_tokens {self.high} leaves no room for text; give 1 or more")
        if not 0 <= self.low <= self.high:
            raise ValueError(f"min_new_tokens {self.low} is not between 0 and max_new_tokens {self.high}")
        if 0 < self.low < self.high and not self.exact:
            raise ValueError(
                f"min_new_tokens {self.low} below max_new_tokens {self.high} cannot be kept; give both the same number"
            )

    @property
    def known(self) -> bool:
        """Whether the number of tokens is given, rather than for the model to say."""
        return self.exact or self.low == self.high


def write(
    prompts: Sequence[Sequence[int]], size: Size, *, denoiser: Denoiser, process: Process, specials: Specials,
    steps: Steps = 1, rule: Rule = posterior, decode: Decode | None = None, seed: int = 0,
    numbers: Sequence[int] | None = None, heads: Sequence[int] | None = None, whole: bool = False,
    stop: Stop = never,
) -> Iterator[list[Written]]:  # fmt: skip
    """Go on from every prompt (token ids without BOS): the drafts of every step, the last of which are the texts.

    steps: turns of the loop, as in `infill`. stop: which rows end before their time (`sampler.Stop`).
    numbers: which sample each is of its prompt, 0 unless given; sample k of a prompt under a seed is the same text whatever
    else is in the batch. heads: what each text begins with, BOS unless given, as of a chat whose template has another.
    whole: drafts are whole guesses, for who looks on; without it words that are not settled yet show the mask token.
    ValueError for a prompt that leaves the model no room.
    """
    x = start_state(prompts, size, specials, denoiser.longest, heads)
    key = Key(Key.of(seed, torch.tensor(list(numbers or [0] * len(prompts)))).state ^ x.codes())
    denoiser = denoiser.session()
    device = denoiser.home
    x, key = x.to(device), key.to(device)
    decode = decode or Decode()
    decode = replace(
        decode, longest=denoiser.longest, max_gap=size.high, constraints=(Constraint(size.low, size.high),)
    )
    with denoiser.lock, torch.inference_mode():
        opened = denoiser.open(x, decode, key.fold(OPEN))
        x = process.prior(opened, key.fold(PRIOR))
    if not size.known:  # a corruption makes markers of its own
        x = x.with_(slot=torch.where(x.ids == specials.gap, 1, x.slot))
    begins = [len(prompt) + 1 for prompt in prompts]
    drafts = [Written([], []) for _ in prompts]
    turns = clocks(opened, specials, steps, rule, denoiser.joint)
    for step in sample(_Settled(denoiser), process, x, steps=turns, rule=rule, decode=decode, key=key, stop=stop):
        with denoiser.lock, torch.inference_mode():
            x0 = (step.draw.drawn() if whole else step.draw).x0.to("cpu")
        for place, (row, end) in enumerate(zip(step.rows.tolist(), x0.valid.sum(1).tolist(), strict=True)):
            part = slice(begins[row], end - len(specials.tail))
            drafts[row] = Written(x0.ids[place, part].tolist(), x0.score[place, part].tolist())
        yield [*drafts]


def start_state(
    prompts: Sequence[Sequence[int]], size: Size, specials: Specials, longest: int | None,
    heads: Sequence[int] | None = None,
) -> Tokens:  # fmt: skip
    """(B, L) BOS, the prompt, both fixed, and one [GAP], or as many [MASK] as there will be words; then what ends texts."""
    rows, given = [], []
    for head, prompt in zip(heads or [specials.bos] * len(prompts), prompts, strict=True):
        left = size.high if longest is None else longest - 1 - len(prompt) - len(specials.tail)
        if left < 1:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, the model reads {longest} with BOS and what it writes; shorten it"
            )
        open_ = [specials.mask] * min(size.high, left) if size.known else [specials.gap]
        rows.append([head, *prompt, *open_, *specials.tail])
        given.append((1 + len(prompt), 1 + len(prompt) + len(open_)))
    x = Tokens.from_rows(rows, specials.pad)
    first, last = torch.tensor(given)[:, :, None].unbind(1)
    column = torch.arange(x.ids.shape[1])[None]
    written = (column >= first) & (column < last)
    return x.with_(
        fixed=x.valid & ~written,
        counted=written & size.known,
        sealed=x.valid & (size.known | (column < first - 1) | (column >= last)),
        part=x.valid.long(),  # of a mixture, the first process fills what a user left open
        slot=(written & (not size.known)).long(),
    )


class _Settled(Denoiser):
    """A denoiser whose words stay where they are: once written, a token can be masked, never deleted."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.timeless, self.joint = denoiser, denoiser.timeless, denoiser.joint

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return _SettledPosterior(self.denoiser(xt, t))

    def open(self, x: Any, decode: Decode, key: Key) -> Any:
        return self.denoiser.open(x, decode, key)

    @property
    def lock(self) -> Any:
        return self.denoiser.lock

    @property
    def longest(self) -> int | None:
        return self.denoiser.longest


class _SettledPosterior(Posterior):
    def __init__(self, inner: Posterior) -> None:
        self.inner = inner

    def sample(self, decode: Decode, key: Key) -> Draw:
        return self.draft(decode, key).drawn()

    def draft(self, decode: Decode, key: Key) -> Draw:
        draw = self.inner.draft(decode, key)
        free = draw.x0.valid & ~draw.x0.fixed
        x0 = draw.x0.with_(counted=draw.x0.counted | free, sealed=draw.x0.valid)
        return replace(draw, x0=x0)

    def log_prob(self, truth: Draw) -> Tensor:
        return self.inner.log_prob(truth)


def settled(tokenizer: "PreTrainedTokenizerBase", specials: Specials, strings: Sequence[str]) -> Stop:
    """Texts end as soon as one of the strings stands in what is written without a hole: later words cannot matter.

    A word that is in doubt may become another one, so it is a hole.
    """

    def stop(state: Any, t: Tensor) -> Tensor:
        x: Tokens = getattr(state, "tokens", state)  # of vectors, what is known of the text
        open_ = (x.ids == specials.mask) | (x.ids == specials.gap) | x.doubtful | x.surplus
        written = x.valid & ~x.fixed & ~(open_.long().cumsum(1) > 0)
        texts = [read_on(tokenizer, [], ids[own].tolist()) for ids, own in zip(x.ids, written, strict=True)]
        return torch.tensor([any(string in text for string in strings) for text in texts], device=t.device)

    return stop


def until(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], written: Written, stops: Sequence[str]) -> str:
    """The text up to its first stop string, that included; all of it where there is none."""
    text = read_on(tokenizer, prompt, written.ids)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def cut(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], written: Written, text: str) -> Written:
    """The fewest of the tokens that hold `text`, the beginning of what was written."""
    for count in range(len(written.ids) + 1):
        if read_on(tokenizer, prompt, written.ids[:count]).startswith(text):
            return Written(written.ids[:count], written.scores[:count])
    return written
