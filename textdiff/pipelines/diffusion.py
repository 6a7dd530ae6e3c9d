"""`pipeline("text-diffusion")`: texts from a blank page, from a prompt, or as the answer in a chat."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from textdiff.checkpoint import DiffusionConfig
from textdiff.continuation import Size, Written, cut, settled, until, write
from textdiff.pipelines.opened import Opened
from textdiff.sampler import either
from textdiff.tokenizer import encode

TASK = "text-diffusion"
_DRAWING = ("temperature", "top_k", "top_p", "min_p")
_WRITING = ("max_new_tokens", "min_new_tokens", "num_steps", "max_time", "rule", *_DRAWING, "seed")
_OPTIONS = {*_WRITING, "num_return_sequences", "streamer", "stop_strings", "return_full_text"}


class TextDiffusionPipeline(Pipeline):
    """Write on from prompts, by a textdiff checkpoint or by any masked, encoder-decoder or causal language model.

    Input: a prompt, "" for a blank page; a chat, a list of {"role", "content"}, where the tokenizer has a chat template; or
    a list of either. Options, at construction or at the call: max_new_tokens (the checkpoint's max_gap unless given, 24 for
    other models; exactly that many where the model keeps lengths, as masked ones do), min_new_tokens,
    num_return_sequences, num_steps (also "auto", "inf"), max_time (seconds for a batch), rule, temperature, top_k, top_p,
    min_p, seed, stop_strings (a text ends with the first of them, and is written no further once one is settled),
    return_full_text (the prompt with it, as is usual), streamer (see `generation.generate`), batch_size.
    Output per prompt: one dict per sequence, {"generated_text", "score"}, for a chat with the messages and the
    assistant's as generated_text; the score is the log-probability in nats of the words written, given how many there are.
    What a prompt spells is text, and comes back byte for byte. In a chat special tokens are the template's alone: a message
    that spells one is a ValueError.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, diffusion_config: DiffusionConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.opened = Opened.of(self.model, self.tokenizer, diffusion_config)
        route = self.route = self.opened.route
        self.tokenizer: Any = route.tokenizer
        self.tools: dict[str, Any] = {"denoiser": route.onward(), "process": route.process, "specials": route.specials}

    def explain(self) -> str:
        """Which way this model fills gaps, of which one at the end is what it writes, and why."""
        return self.route.reason

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            raise ValueError(f"unknown option {', '.join(unknown)}; there are {', '.join(sorted(_OPTIONS))}")
        shown = {name: options.pop(name) for name in ("stop_strings", "return_full_text") if name in options}
        return {}, options, shown

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See the class. A list of prompts, or of chats, gives a list of results."""
        alone = isinstance(inputs, str) or _is_chat(inputs) or not isinstance(inputs, Iterable)
        prompts = [inputs] if alone else list(inputs)
        if not prompts:
            raise ValueError('no prompts to go on from; give at least one, "" for a blank page')
        for prompt in prompts:
            if not isinstance(prompt, str) and not _is_chat(prompt):
                raise ValueError(f'{prompt!r} is no prompt; give a string, or messages with "role" and "content"')
        results = super().__call__([{"prompt": prompt} for prompt in prompts], **options)
        return results[0] if alone else results

    def preprocess(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        prompt = inputs["prompt"]
        bos = self.route.specials.bos
        if not isinstance(prompt, str):
            ids = self._chat(prompt)
            # a template says how a chat begins; a stand-in for the BOS that the tokenizer lacks does not
            own = ids[:1] == [bos] or (self._stands_in(bos) and len(ids) > 0)
            return {"prompt": prompt, "head": ids[0] if own else bos, "ids": ids[1:] if own else ids}
        # a word's space belongs to the word: the one that ends a prompt is the model's to write
        return {"prompt": prompt, "head": bos, "ids": encode(self.tokenizer, prompt.removesuffix(" "))}

    def _stands_in(self, bos: int) -> bool:
        """Whether a stock model's BOS is another token of its tokenizer, such as the end of a text."""
        own = (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
        return self.opened.checkpoint is None and bos < self.route.specials.size and bos not in own

    def _chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a chat by the tokenizer's template; a last message of the assistant is gone on with."""
        if not self.tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template; give a prompt as a string, or set chat_template")
        for message in messages:
            for token in self.tokenizer.added_tokens_decoder.values():
                if token.special and str(token) in str(message["content"]):
                    raise ValueError(
                        f"a message spells the special token {str(token)!r}; a template cannot hold it as text"
                    )
        goes_on = messages[-1]["role"] == "assistant"
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            tokenize=False,
        )
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, preprocess_params: dict, forward_params: dict,
        postprocess_params: dict,
    ) -> Any:  # fmt: skip
        """Prompts in batches of `batch_size`; they are padded in their own way, not by transformers."""
        prepared = [self.preprocess(prompt, **preprocess_params) for prompt in inputs]
        for begin in range(0, len(prepared), batch_size):
            batch = prepared[begin : begin + batch_size]
            for found in self.forward({"batch": batch}, **forward_params)["batch"]:
                yield self.postprocess(found, **postprocess_params)

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        batch, samples, streamer = inputs["batch"], options.get("num_return_sequences", 1), options.get("streamer")
        size, wanted = self._wanted(options)
        prompts = [found["ids"] for found in batch for _ in range(samples)]
        heads = [found["head"] for found in batch for _ in range(samples)]
        numbers = [number for _ in batch for number in range(samples)]
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
        split = [texts[begin : begin + samples] for begin in range(0, len(texts), samples)]
        return {"batch": [found | {"written": written} for found, written in zip(batch, split, strict=True)]}

    def _wanted(self, options: dict[str, Any]) -> tuple[Size, dict[str, Any]]:
        """How much and how to write: what was asked for, and of the rest what the model's way of filling says."""
        route = self.route
        most = options.get("max_new_tokens", route.decode.max_gap)
        size = Size(most, options.get("min_new_tokens", 0), route.keeps_lengths)
        wanted, drawn = self.opened.sampling(options, _DRAWING)
        if strings := options.get("stop_strings"):
            found = settled(self.tokenizer, route.specials, strings)
            wanted["stop"] = either(wanted["stop"], found) if "stop" in wanted else found
        return size, wanted | {"decode": replace(route.decode, **drawn)}

    def score(self, texts: str | Sequence[str], **options: Any) -> Any:
        """How likely texts are: for each {"nats", "error", "bits_per_byte", "tokens", "kind"}, see `scoring.score`.

        Options: draws, window, seed. A list of texts gives a list.
        """
        return self.opened.score(texts, **options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """A complete checkpoint with its card (`hub.save`), also to the hub; of a stock model what transformers writes."""
        if self.opened.checkpoint is None:
            super().save_pretrained(save_directory, **options)
        else:
            self.opened.save(save_directory, options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the checkpoint to the hub (`hub.push`); returns the repository's address."""
        return self.opened.push(repo_id, **options)

    def _padded(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """(B, longest) int64, right-padded."""
        longest, pad = max(map(len, rows)), self.tools["specials"].pad
        ids = [[*row, *[pad] * (longest - len(row))] for row in rows]
        return torch.tensor(ids, dtype=torch.int64).view(len(rows), longest)

    def postprocess(
        self, outputs: dict[str, Any], stop_strings: str | Sequence[str] = (), return_full_text: bool = True
    ) -> list[dict[str, Any]]:
        stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        if "" in stops:
            raise ValueError("a stop string is empty, and would stop before the first word; leave it out")
        prompt, ids, results = outputs["prompt"], outputs["ids"], []
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


def _is_chat(inputs: Any) -> bool:
    """Messages, each with a role and a content."""
    if not isinstance(inputs, Sequence) or isinstance(inputs, str) or not inputs:
        return False
    return all(isinstance(message, Mapping) and {"role", "content"} <= {*message} for message in inputs)


# on import: `textdiff._register` imports this module as soon as transformers' pipelines are there
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=TextDiffusionPipeline,
    pt_model=(AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM),
    type="text",
)
