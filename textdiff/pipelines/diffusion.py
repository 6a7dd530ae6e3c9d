"""`pipeline("text-diffusion")`: texts from a blank page, from a prompt, or as the answer in a chat."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.pipelines import PIPELINE_REGISTRY

from textdiff.box import FOLDER
from textdiff.checkpoint import DiffusionConfig
from textdiff.continuation import Size, Written, cut, settled, until, write
from textdiff.pipelines.base import CLASSES, TextPipeline
from textdiff.pipelines.chat import checked_chat, is_chat, render
from textdiff.pipelines.options import SAMPLING, check_stops, given_options
from textdiff.sequences import draw_different
from textdiff.tokenizer import check_rows, encode, panics_are_errors
from textdiff.validation import check_text

TASK = "text-diffusion"
_OPTIONS = (*SAMPLING, "max_new_tokens", "min_new_tokens", "streamer", "stop_strings", "return_full_text")


class TextDiffusionPipeline(TextPipeline):
    """Write on from prompts, by a textdiff checkpoint or by any masked, encoder-decoder or causal language model.

    Input: a prompt, "" for a blank page; a chat, a list of {"role", "content"}, where the tokenizer has a chat template; or
    a list of either. Options, at construction or at the call: max_new_tokens (the checkpoint's max_gap unless given, 24 for
    other models; exactly that many where the model keeps lengths, as masked ones do), min_new_tokens,
    num_return_sequences (how many different texts at most, the most probable first), num_steps (also "auto", "inf"),
    max_time (seconds for a batch), rule, temperature, top_k, top_p, min_p, seed, stop_strings (a text ends with the first
    of them, and is written no further once one is settled), return_full_text (the prompt with it, as is usual), streamer
    (see `generation.generate`), on_error ("return" has {"error": ...} in the place of a prompt that fails), batch_size.
    Output per prompt: one dict per sequence, {"generated_text", "score"}, for a chat with the messages and the
    assistant's as generated_text; the score is the log-probability in nats of the words written, given how many there are.
    What a prompt spells is text, and comes back byte for byte. In a chat special tokens are the template's alone: a message
    that spells one is a ValueError.
    """

    def _open(self, config: DiffusionConfig | None) -> None:
        super()._open(config)
        route = self.route
        self.tokenizer: Any = route.tokenizer
        self.tools: dict[str, Any] = {"denoiser": route.onward(), "process": route.process, "specials": route.specials}

    def is_input(self, inputs: Any) -> bool:
        """A string or a chat."""
        return isinstance(inputs, str) or is_chat(inputs)

    def size(self, prepared: dict[str, Any]) -> int:
        """The tokens of the prompt."""
        return len(prepared["ids"])

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        given = given_options(options, _OPTIONS)
        before = {"on_error": given.pop("on_error")} if "on_error" in given else {}
        after = {name: given[name] for name in ("stop_strings", "return_full_text") if name in given}
        given.pop("return_full_text", None)
        return before, given, after

    def preprocess(self, inputs: Any, **options: Any) -> dict[str, Any]:
        """Return the tokens of a prompt or of a chat. ValueError for what is neither."""
        bos = self.route.specials.bos
        if is_chat(inputs):
            messages = checked_chat(inputs)
            text = render(self.tokenizer, messages)
            with panics_are_errors():
                ids = list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])
            check_rows(ids, self.tokenizer, self.route.specials)
            # a template says how a chat begins; a stand-in for the BOS that the tokenizer lacks does not
            own = ids[:1] == [bos] or (self._stands_in(bos) and len(ids) > 0)
            return {"prompt": messages, "head": ids[0] if own else bos, "ids": ids[1:] if own else ids}
        prompt = check_text('a prompt, or messages with "role" and "content",', inputs)
        # a word's space belongs to the word: the one that ends a prompt is the model's to write
        ids = encode(self.tokenizer, prompt.removesuffix(" "))
        check_rows(ids, self.tokenizer, self.route.specials)
        return {"prompt": prompt, "head": bos, "ids": ids}

    def _stands_in(self, bos: int) -> bool:
        """Whether a stock model's BOS is another token of its tokenizer, such as the end of a text."""
        own = (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        return self.opened.checkpoint is None and bos < self.route.specials.size and bos not in own

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        batch, samples, streamer = inputs["batch"], options.get("num_return_sequences", 1), options.get("streamer")
        size, wanted = self._wanted(options)
        decode = wanted["decode"]

        def draw(places: list[int], first: int, count: int) -> list[list[Written]]:
            prompts = [batch[place]["ids"] for place in places for _ in range(count)]
            heads = [batch[place]["head"] for place in places for _ in range(count)]
            numbers = [number for _ in places for number in range(first, first + count)]
            # who looks on sees the first draw; what is drawn again in place of copies is not shown
            texts = self._written(prompts, heads, numbers, size, wanted, None if first else streamer)
            return [texts[begin : begin + count] for begin in range(0, len(texts), count)]

        split = draw_different(
            draw, len(batch), samples, name=lambda text: str(text.ids), merit=lambda text: text.per_token,
            expired=lambda: decode.expired,
        )  # fmt: skip
        return {"batch": [prepared | {"written": written} for prepared, written in zip(batch, split, strict=True)]}

    def _written(
        self, prompts: list[list[int]], heads: list[int], numbers: list[int], size: Size, wanted: dict[str, Any],
        streamer: Any,
    ) -> list[Written]:  # fmt: skip
        """The texts after the prompts, their drafts shown to the streamer."""
        if streamer is not None:
            streamer.put(self._padded(prompts))
        show = getattr(streamer, "put_draft", None)  # transformers' own capability check
        texts: list[Written] = []
        for texts in write(prompts, size, numbers=numbers, heads=heads, whole=show is not None, **wanted, **self.tools):
            if show is not None:
                show(value=self._padded([text.ids for text in texts]))
        if streamer is not None:
            streamer.put(self._padded([text.ids for text in texts]))
            streamer.end()
        return texts

    def _wanted(self, options: dict[str, Any]) -> tuple[Size, dict[str, Any]]:
        """How much and how to write: what was asked for, and of the rest what the model's way of filling says."""
        route = self.route
        most = options.get("max_new_tokens", route.decode.max_gap)
        size = Size(most, options.get("min_new_tokens", 0), route.keeps_lengths)
        wanted = self.opened.sampling(options)
        if strings := check_stops(options.get("stop_strings", ())):
            wanted["stop"] = settled(self.tokenizer, route.specials, strings)
        return size, wanted

    def _padded(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, longest) int64, right-padded."""
        longest, pad = max(map(len, rows)), self.tools["specials"].pad
        ids = [[*row, *[pad] * (longest - len(row))] for row in rows]
        return torch.tensor(ids, dtype=torch.int64).view(len(rows), longest)

    def postprocess(
        self, outputs: dict[str, Any], stop_strings: str | Sequence[str] = (), return_full_text: bool = True
    ) -> list[dict[str, Any]]:
        """Return the sequences of one prompt as plain data."""
        stops, prompt, ids, results = check_stops(stop_strings), outputs["prompt"], outputs["ids"], []
        for written in outputs["written"]:
            text = until(self.tokenizer, ids, written, stops)
            score = cut(self.tokenizer, ids, written, text).score if stops else written.score
            if isinstance(prompt, str) and prompt.endswith(" "):
                text = text.removeprefix(" ")
            results.append({"generated_text": _whole(prompt, text) if return_full_text else text, "score": score})
        return results


def _whole(prompt: str | Sequence[Mapping[str, str]], text: str) -> str | list[dict[str, str]]:
    """The prompt with what was written; the messages with the assistant's."""
    if isinstance(prompt, str):
        return prompt + text
    *before, last = [dict(message) for message in prompt]
    if last["role"] == "assistant":
        return [*before, last | {"content": last["content"] + text}]
    return [*before, last, {"role": "assistant", "content": text}]


# on import: `textdiff._register` imports this module as soon as transformers' pipelines are there
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=TextDiffusionPipeline,
    pt_model=CLASSES,
    default={"model": (str(FOLDER), "main")},
    type="text",
)
