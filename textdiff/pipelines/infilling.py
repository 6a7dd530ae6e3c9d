"""`pipeline("text-infilling")`: many gaps of unknown length, filled jointly, by any language model."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import Pipeline

from textdiff.checkpoint import DiffusionConfig
from textdiff.drafts import find, refine
from textdiff.filling import Infill, Page, infill, prepare
from textdiff.gaps import Gap, Parts, parse
from textdiff.pipelines.opened import Opened
from textdiff.posterior import Processor
from textdiff.selecting import SELECTS

TASK = "text-infilling"
BATCH = 32  # texts filled at once, unless batch_size says otherwise
_DECODE = ("temperature", "top_k", "top_p", "min_p", "max_gap", "max_calls")
_OPTIONS = (
    *(
        "num_return_sequences",
        "candidates",
        "select",
        "num_steps",
        "max_time",
        "rule",
        "guidance",
        "guidance_schedule",
        *_DECODE,
        "seed",
        "banned",
        "must",
        "logits_processor",
        "on_error",
    ),
)


class TextInfillingPipeline(Pipeline):
    """Fill the gaps of texts, by a textdiff checkpoint or by any masked, encoder-decoder or causal language model.

    Input: a text with gaps (`textdiff.gaps` has the language: `[GAP]`, `[GAP:2-6]`, `[GAP:name=city,1-3w]`,
    `[GAP:yes|no]`, `[GAP:/regex/]`, `[GAP:must=word]`, or the model's own mask token), or a list of parts such as
    `["My fellow ", Gap(), "."]`; or a list of either. Options, at construction or at the call:

    num_return_sequences, seed: how many fillings, and which. candidates: of how many drawn each is the best; select: by
    what, fluent, likely or mbr (`textdiff.selecting`).
    num_steps: turns of the reverse process, "auto" or "inf" (`textdiff.clocks`). rule: docs/rules.md has the names.
    max_time: seconds, after which what is still hidden of a batch is drawn at once.
    temperature (0: the most probable), top_k, top_p, min_p: how words are drawn. guidance: a scale from 0 on, and
    guidance_schedule: constant, rising or falling (`textdiff.denoiser.guided`).
    max_gap: the longest content of a gap, in tokens. max_calls: texts that may be tried for each to find its gaps' lengths.
    banned, must: strings that no gap may contain, and that every gap has to, beside its own (`Gap.must`, or `Gap.forced` in
    token ids). logits_processor: transformers' LogitsProcessorList.
    on_error: "raise" names the text that cannot be filled before any is; "return" fills the others, and has
    {"error": ...} in its place. batch_size: texts at once.

    Output per text: one dict per sequence, {"generated_text", "score", "calls", "named", "gaps"}; a gap is {"text", "start",
    "end", "score", "name", "tokens", "probabilities"}. Scores are log-probabilities in nats of the words, given how many
    there are; offsets count characters of generated_text; "calls" is how often the model was run until
    this text was filled, with others of its batch.
    Where all gaps of a text are choices, of at most 64 combinations, and scores are exact, nothing is written word by word:
    each combination is scored, and a choice with all its tokens is one event.
    `explain()` says which way the model fills, and why.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, diffusion_config: DiffusionConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.opened = Opened.of(self.model, self.tokenizer, diffusion_config)
        self.route, self.checkpoint = self.opened.route, self.opened.checkpoint

    def explain(self) -> str:
        """Which way this model fills gaps, and why."""
        return self.route.reason

    def score(self, texts: str | Sequence[str], **options: Any) -> Any:
        """How likely texts are by the best bound there is, see `scoring.score`. A list of texts gives a list."""
        return self.opened.score(texts, **options)

    def rank(self, text: str | Parts, fillings: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
        """Given fillings of a text with gaps, the likeliest first, see `scoring.rank`."""
        return self.opened.rank(text, fillings, **options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """A complete checkpoint with its card (`hub.save`); of a stock model what transformers writes."""
        if self.checkpoint is None:
            super().save_pretrained(save_directory, **options)
        else:
            self.opened.save(save_directory, options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the checkpoint with its card to the hub (`hub.push`); returns the repository's address."""
        return self.opened.push(repo_id, **options)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ValueError(f"unknown option {', '.join(unknown)}; there are {', '.join(sorted(_OPTIONS))}")
        if options.get("on_error", "raise") not in ("raise", "return"):
            raise ValueError(f"on_error {options['on_error']!r} is neither raise nor return")
        pre = {name: options[name] for name in ("banned", "must") if name in options}
        for name, strings in pre.items():
            if isinstance(strings, str) or not all(strings):
                raise ValueError(f"{name} {strings!r} is not a list of strings, each with some text")
        return pre, {name: value for name, value in options.items() if name not in pre}, {}

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See the class. A list of texts gives a list of results, a generator an iterator; a list of parts is one text."""
        if isinstance(inputs, str) or (isinstance(inputs, Sequence) and _is_parts(inputs)):
            return next(iter(super().__call__([_Text(inputs)], **options)))
        options = {"batch_size": self._batch_size or BATCH, **options}
        if isinstance(inputs, Sequence):
            if not inputs:
                raise ValueError("no texts to fill; give at least one")
            return super().__call__([_Text(text) for text in inputs], **options)
        return super().__call__((_Text(text) for text in inputs), **options)

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, preprocess_params: dict, forward_params: dict,
        postprocess_params: dict,
    ) -> Any:  # fmt: skip
        """Texts in batches of `batch_size`; gaps are no tensors, so transformers' own padding does not apply."""
        if isinstance(inputs, Sequence):  # all are read before the first is filled: a bad one costs nothing
            yield from self._fill([self.preprocess(t, **preprocess_params) for t in inputs], batch_size, forward_params)
            return
        for chunk in _chunks(inputs, batch_size):
            yield from self._fill([self.preprocess(t, **preprocess_params) for t in chunk], batch_size, forward_params)

    def preprocess(
        self, inputs: "_Text", banned: Sequence[str] = (), must: Sequence[str] = (), **options: Any
    ) -> dict[str, Any]:
        route, text = self.route, inputs.text
        try:
            page = prepare(
                parse(text, route.tokenizer.mask_token) if isinstance(text, str) else text,
                route.tokenizer,
                route.specials,
                banned=tuple(banned),
                must=tuple(must),
                spaced=route.spaced,
                beside=route.beside,
                longest=route.denoiser.longest,
            )
        except ValueError as error:
            return {"error": error}
        return {"page": page}

    def _fill(self, prepared: list[dict[str, Any]], batch_size: int, params: dict[str, Any]) -> Iterator[Any]:
        """The results of prepared texts in their order. Texts of similar length share a batch: less of it is padding."""
        results: list[Any] = [None] * len(prepared)
        if params.get("on_error", "raise") == "raise":
            for number, one in enumerate(prepared):
                if "error" in one:
                    raise _named(one["error"], number, len(prepared))
        for number, one in enumerate(prepared):
            results[number] = one.get("error")
        good = sorted(
            (n for n, one in enumerate(prepared) if "page" in one), key=lambda n: len(prepared[n]["page"].row)
        )
        for begin in range(0, len(good), batch_size):
            mine = good[begin : begin + batch_size]
            for number, result in zip(mine, self._attempt([prepared[n]["page"] for n in mine], params), strict=True):
                if isinstance(result, ValueError) and params.get("on_error", "raise") == "raise":
                    raise _named(result, number, len(prepared))
                results[number] = result
        for result in results:
            yield self.postprocess({"filled": result})

    def _attempt(self, pages: list[Page], params: dict[str, Any]) -> list[Any]:
        """What each page becomes; where the batch cannot be filled, each alone, so that one loses none of the others."""
        try:
            return list(self.forward({"pages": pages}, **params)["filled"])
        except ValueError as error:
            if len(pages) == 1:
                return [error]
        return [result for page in pages for result in self._attempt([page], params)]

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        pages, wanted = inputs["pages"], self._sampling(options)
        own, tools = {name: wanted[name] for name in ("decode", "seed", "samples")}, self._tools()
        # who asks how words are to be written gets them written
        said = {"num_steps", "rule", "logits_processor", "guidance"} & {*options}
        whole = [None if said else self.opened.choose(page, **own) for page in pages]
        rest = [page for page, found in zip(pages, whole, strict=True) if found is None]
        tools["denoiser"] = self.opened.denoiser(options)
        others = iter(infill(rest, **wanted, **tools) if rest else ())
        return {"filled": [next(others) if found is None else found for found in whole]}

    def postprocess(self, outputs: dict[str, Any]) -> Any:
        filled = outputs["filled"]
        return [{"error": str(filled)}] if isinstance(filled, ValueError) else [as_dict(result) for result in filled]

    def _tools(self) -> dict[str, Any]:
        route = self.route
        return {
            "denoiser": route.denoiser,
            "process": route.process,
            "tokenizer": route.tokenizer,
            "specials": route.specials,
        }

    def _sampling(self, options: dict[str, Any]) -> dict[str, Any]:
        """How to sample: what was asked for, and of the rest what the model's way of filling says."""
        wanted, drawn = self.opened.sampling(options, _DECODE)
        candidates = options.get("candidates", self.route.candidates)
        if candidates < 1:
            raise ValueError(f"candidates {candidates} is not positive; 1 takes each filling as it is drawn")
        processors: Sequence[Processor] = options.get("logits_processor") or ()
        return wanted | {
            "decode": replace(self.route.decode, **drawn, processors=tuple(processors)),
            "samples": options.get("num_return_sequences", 1),
            "candidates": candidates,
            "select": _known(options.get("select", "fluent")),
        }

    def refine(self, texts: str | Sequence[str], t: float, keep: Sequence[str] = (), **options: Any) -> list[Any]:
        """Rewrite drafts from noise level t in (0, 1]: small t changes little. `keep`: phrases that stay as they are.

        Options and output are those of a call, in 16 steps unless num_steps says otherwise; "gaps" are the stretches that
        were free to change. A list of texts gives a list of results.
        """
        _, options, _ = self._sanitize_parameters(**options)
        drafts = [texts] if isinstance(texts, str) else list(texts)
        spans = [find(text, [phrase for phrase in keep if len(drafts) == 1 or phrase in text]) for text in drafts]
        wanted = self._sampling({"num_steps": 16, **options})
        del wanted["candidates"], wanted["select"]
        tools = self._tools() | {"denoiser": self.opened.denoiser(options)}
        results = [[as_dict(r) for r in found] for found in refine(drafts, t, keep=spans, **wanted, **tools)]
        return results[0] if isinstance(texts, str) else results


@dataclass(frozen=True)
class _Text:
    """A text as given; in a class of its own, so that transformers does not take a list of parts for anything else."""

    text: str | Parts


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of up to `size` items, until there are none left."""
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


def _named(error: ValueError, number: int, total: int) -> ValueError:
    """The error with the number of its text, where there are several."""
    return error if total == 1 else ValueError(f"text {number + 1} of {total}: {error}")


def as_dict(result: Infill) -> dict[str, Any]:
    """A filled text as plain data."""
    gaps = [{**vars(gap), "tokens": list(gap.tokens), "probabilities": list(gap.probabilities)} for gap in result.gaps]
    named = {gap.name: gap.text for gap in result.gaps if gap.name is not None}
    return {
        "generated_text": result.text,
        "score": result.score,
        "calls": result.calls,
        "named": named,
        "gaps": gaps,
    }


def _known(select: str) -> str:
    if select not in SELECTS:
        raise ValueError(f"unknown select {select!r}; there are {', '.join(SELECTS)}")
    return select


def _is_parts(inputs: Sequence[Any]) -> bool:
    """A list with a Gap object in it is the parts of one text; a list of strings is several texts."""
    return any(isinstance(part, Gap) for part in inputs)
