"""Texts watched while they are denoised, several at once: a streamer of transformers' protocol for batches.

put(prompt), put_draft(value=draft) at every step, put(the new tokens), end(); values are (B, L) int64, right-padded.
transformers' own TextDiffusionStreamer shows one text.
"""

import os
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class BatchStreamer:
    """Drafts of a batch of texts, on a terminal in place, elsewhere a line for each text of each draft.

    What changed since the draft before is yellow, what was written in the end green. console: rich's, standard output
    unless given. Each text has its number before it, from 1, where there are several.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", console: Console | None = None) -> None:
        self.tokenizer = tokenizer
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._prompts: list[str] | None = None
        self._texts: list[str] = []
        self._live: Live | None = None

    def put(self, value: Tensor) -> None:
        """The prompts, and, the second time, the new tokens."""
        if self._prompts is None:
            self._prompts = self._decoded(value)
            self._texts = [""] * len(self._prompts)
            return
        self._show([_line(p, text, 0, len(text), "bold green") for p, text in self._pairs(value)], last=True)

    def put_draft(self, value: Tensor) -> None:
        """The new tokens as they are now."""
        lines, texts = [], []
        for number, (prompt, text) in enumerate(self._pairs(value)):
            old = self._texts[number]
            begin = len(os.path.commonprefix([old, text]))
            same = len(os.path.commonprefix([old[begin:][::-1], text[begin:][::-1]]))
            lines.append(_line(prompt, text, begin, len(text) - same, "yellow"))
            texts.append(text)
        self._show(lines)
        self._texts = texts

    def end(self) -> None:
        """The texts stay on the screen; what comes next is another batch."""
        if self._live is not None:
            self._live.stop()
        self._prompts, self._texts, self._live = None, [], None

    def _pairs(self, value: Tensor) -> list[tuple[str, str]]:
        return list(zip(self._prompts or [""] * len(value), self._decoded(value), strict=True))

    def _decoded(self, value: Tensor) -> list[str]:
        return [self._decode(row) for row in (value if value.dim() > 1 else value[None]).tolist()]

    def _decode(self, row: list[int]) -> str:
        return str(self.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _show(self, lines: list[Text], last: bool = False) -> None:
        if len(lines) > 1:
            lines = [Text.assemble((f"{number} ", "dim"), line) for number, line in enumerate(lines, 1)]
        if not self.console.is_terminal:
            for line in lines:
                self.console.print(line)
            return
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        if last:  # all of them, also where they are more than the screen is high
            self._live.vertical_overflow = "visible"
        self._live.update(Group(*lines), refresh=True)


def _line(prompt: str, text: str, begin: int, end: int, style: Any) -> Text:
    """Prompt and text, the characters [begin, end) of the text in the style."""
    line = Text(prompt + text)
    line.stylize(style, len(prompt) + begin, len(prompt) + end)
    return line
