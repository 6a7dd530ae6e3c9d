"""q(x0 | xt) by a causal model that was trained to fill in the middle (Bavarian et al., arXiv:2207.14255).

    q(words | xt) = prod_gaps prod_i q(w_i | <PRE> prefix <SUF> suffix <MID> w_<i) q(end | ...)

Gaps are filled from left to right. The prefix is all text left of the gap, earlier gaps filled; the suffix is all text right
of it with later gaps left out, so that whatever the user wrote is read. The chain rule over gaps makes it a joint law.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.denoiser.feeding import Stream, answers, goes_on
from textdiff.denoiser.pages import Page, draw_of, holes_of, lies_of, pages_of
from textdiff.denoiser.writing import Booked, booked, text_of, write
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.tokens import Specials, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How model families spell prefix, suffix and middle; read in this order before the words.
SPELLINGS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, StableCode, Granite
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    ("<PRE>", "<SUF>", "<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder, with full-width bars
    ("<|fim▁begin|>", "<|fim▁hole|>", "<|fim▁end|>"),
)
# With these a middle ends, beside the tokenizer's end of text.
ENDS = (
    "<|endoftext|>", "<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|file_sep|>", "<file_sep>", "<|file_separator|>",
    "<|repo_name|>", "<repo_name>", "<EOT>", "▁<EOT>", "<|EOT|>",
)  # fmt: skip


@dataclass(frozen=True)
class FimTokens:
    """The ids by which a model fills in the middle: three that open its parts, and those with which a middle ends."""

    prefix: int
    suffix: int
    middle: int
    ends: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ends:
            raise ValueError("no token ends a middle; name the model's end of text")


def fim_tokens(tokenizer: "PreTrainedTokenizerBase") -> FimTokens | None:
    """The tokenizer's own, None where it has none. ValueError where nothing says that a middle ends."""
    vocabulary = tokenizer.get_vocab()
    for names in SPELLINGS:
        if all(name in vocabulary for name in names):
            parts = [vocabulary[name] for name in names]
            own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            ends = dict.fromkeys([*own, *(vocabulary[name] for name in ENDS if name in vocabulary)])
            return FimTokens(parts[0], parts[1], parts[2], tuple(ends))
    return None


class Middle(Denoiser):
    """Any `AutoModelForCausalLM` whose tokenizer has fill-in-the-middle tokens (`fim_tokens`)."""

    timeless = joint = True

    def __init__(self, model: Any, specials: Specials, fim: FimTokens) -> None:
        super().__init__()
        self.model, self.specials, self.fim = model, specials, fim
        self.cached = goes_on(model)

    @property
    def longest(self) -> int | None:
        limit = super().longest
        return limit if limit is None else limit - 3  # prefix, suffix and middle are read, too

    def forward(self, xt: Tokens, t: Tensor) -> Posterior:
        return _MiddlePosterior(self, xt)

    def prompt(self, page: Page, gap: int) -> list[int]:
        """What the model reads before it writes a gap: BOS where the text has one, then its parts."""
        hole, fim = page.holes[gap], self.fim
        bos, prefix = page.between(0, 1), page.between(1, hole.begin)
        suffix: list[int] = []
        column = hole.end
        for later in page.holes[gap + 1 :]:
            suffix += page.between(column, later.begin)
            column = later.end
        suffix += page.between(column, len(page.ids))
        return [*bos, fim.prefix, *prefix, fim.suffix, *suffix, fim.middle]


class _MiddlePosterior(Posterior):
    def __init__(self, denoiser: Middle, xt: Tokens) -> None:
        self.denoiser, self.xt, self.specials = denoiser, xt, denoiser.specials
        self.holes = holes_of(xt, self.specials)

    @property
    def ends(self) -> list[int]:
        """What ends a gap."""
        return list(self.denoiser.fim.ends)

    def _text(self) -> Tensor:
        fim, model = self.denoiser.fim, self.denoiser.model
        size = model.get_output_embeddings().weight.shape[0]
        return text_of(self.specials, size, self.xt.ids.device, (fim.prefix, fim.suffix, fim.middle, *fim.ends))

    def sample(self, decode: Decode, key: Key) -> Draw:
        """x0's scores are those of its words; what the ends of gaps cost is in `log_prob`."""
        pages = pages_of(self.xt, self.holes, self.specials, decode)
        for gap in range(max(map(len, self.holes), default=0)):
            rows = [row for row, holes in enumerate(self.holes) if len(holes) > gap]
            todo = [pages[row] for row in rows]
            stream = Stream(
                self.denoiser.model, [self.denoiser.prompt(page, gap) for page in todo], None, self.denoiser.cached
            )
            number = torch.tensor(rows, device=key.device)
            write(stream, todo, [range(gap, gap + 1)] * len(rows), _nothing, self._text(), self.ends, key[number])
        return draw_of(self.xt, pages, self.specials)

    def log_prob(self, truth: Draw) -> Tensor:
        """Every word's on the word, given the gaps left of it; a gap's end on the token left of its marker."""
        lies, ids = lies_of(truth, self.holes), truth.x0.ids.tolist()
        pages = pages_of(self.xt, self.holes, self.specials, Decode())
        fed: list[list[int]] = []
        asked: list[list[int]] = []
        target: list[Booked] = []
        for row, page in enumerate(pages):
            for gap, (hole, lie) in enumerate(zip(page.holes, lies[row], strict=True)):
                prompt, words = self.denoiser.prompt(page, gap), ids[row][lie.first : lie.stop]
                fed.append([*prompt, *words])
                asked.append(list(range(len(prompt) - 1, len(fed[-1]) - hole.known)))
                target += [Booked(row, lie.first + k, word, hole.known) for k, word in enumerate(words)]
                target += [] if hole.known else [Booked(row, lie.left, self.ends[0], False)]
                page.words[gap] = words
        result = torch.zeros(truth.x0.ids.shape, device=self.xt.ids.device)
        if not fed:
            return result
        logits = answers(self.denoiser.model, fed, asked, None)
        return result + booked(logits, target, self._text(), self.ends, result.shape)


def _nothing(gap: int) -> list[int]:
    """A stream holds one gap."""
    return []
