"""Texts watched while they are denoised, several at once: a streamer of transformers' protocol for batches.

put(prompt), put_draft(value=draft) at every step, put(the new tokens), end(); values are (B, L) int64, right-padded.
transformers' own TextDiffusionStreamer shows one text.
"""

import os
from typing import TYPE_CHECKING, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from torch import Tensor

from textdiff.spelling import read_on, read_text
from textdiff.terminal import write_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class BatchStreamer:
    """Drafts of a batch of texts, on a terminal in place, elsewhere a line for each text of each draft.

    What changed since the draft before is yellow; the finished texts are written byte for byte, what was written green.
    console: rich's, standard output unless given. prompt: what the user wrote before all texts, shown as it is; tokens of a
    prompt do not always tell. Each text has its number in its batch before it, from 1, where a batch (batch_size)
    has several.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", console: Console | None = None, prompt: str | None = None
    ) -> None:
        self.tokenizer, self.prompt = tokenizer, prompt
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._prompts: list[str] | None = None
        self._heads: list[list[int]] = []
        self._texts: list[str] = []
        self._live: Live | None = None

    def put(self, value: Tensor) -> None:
        """The prompts, and, the second time, the new tokens."""
        if self._prompts is None:
            self._heads = _rows(value)
            self._prompts = [read_text(self.tokenizer, row) for row in self._heads]
            self._texts = [""] * len(self._prompts)
            return
        self._stop()
        for number, (prompt, text) in enumerate(self._pairs(value), 1):
            label = self._label(number, len(self._prompts))
            span = (len(label) + len(prompt), len(label) + len(prompt) + len(text))
            colour = self.console.is_terminal and not self.console.no_color
            write_line(label + prompt + text, [span], cast(TextIO, self.console.file), colour)

    def put_draft(self, value: Tensor) -> None:
        """The new tokens as they are now."""
        pairs, lines, texts = self._pairs(value), [], []
        for number, (prompt, text) in enumerate(pairs, 1):
            old, label = self._texts[number - 1], self._label(number, len(pairs))
            begin = len(os.path.commonprefix([old, text]))
            same = len(os.path.commonprefix([old[begin:][::-1], text[begin:][::-1]]))
            lines.append((label + prompt, text, begin, len(text) - same))
            texts.append(text)
        self._show(lines)
        self._texts = texts

    def end(self) -> None:
        """The texts stay on the screen; what comes next is another batch."""
        self._stop()
        self._prompts, self._heads, self._texts = None, [], []

    def _stop(self) -> None:
        """The drafts leave the screen."""
        if self._live is not None:
            self._live.stop()
        self._live = None

    @staticmethod
    def _label(number: int, count: int) -> str:
        return f"{number} " if count > 1 else ""

    def _pairs(self, value: Tensor) -> list[tuple[str, str]]:
        rows = _rows(value)
        heads = self._heads or [[]] * len(rows)
        texts = [read_on(self.tokenizer, head, row) for head, row in zip(heads, rows, strict=True)]
        if self.prompt is None:
            return list(zip(self._prompts or [""] * len(value), texts, strict=True))
        # the space that ends a prompt is the model's to write
        return [(self.prompt, text.removeprefix(" ") if self.prompt.endswith(" ") else text) for text in texts]

    def _show(self, lines: list[tuple[str, str, int, int]]) -> None:
        """Lines of (prompt, text, begin, end): the characters [begin, end) of the text have changed."""
        if not self.console.is_terminal:
            for prompt, text, *_ in lines:
                write_line(prompt + text, stream=cast(TextIO, self.console.file))
            return
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        shown = []
        for prompt, text, begin, end in lines:
            line = Text(prompt + text)
            line.stylize("yellow", len(prompt) + begin, len(prompt) + end)
            shown.append(line)
        self._live.update(Group(*shown), refresh=True)


def _rows(value: Tensor) -> list[list[int]]:
    return (value if value.dim() > 1 else value[None]).tolist()
