"""`pipeline("text-infilling")`: many gaps of unknown length, filled jointly, by any language model."""

from collections.abc import Callable, Sequence
from typing import Any

from textdiff.drafts import Span, find, refine
from textdiff.filling import Infill, Page, infill, prepare
from textdiff.gaps import Gap, Parts, parse
from textdiff.pipelines.base import TextPipeline, fill
from textdiff.pipelines.options import SAMPLING, given_options
from textdiff.posterior import Decode
from textdiff.sequences import ROUNDS, draw_different
from textdiff.validation import check_items, check_number, check_several, check_strings, check_text

TASK = "text-infilling"
_GUIDANCE = ("guidance", "guidance_schedule", "logits_processor")
_OPTIONS = (*SAMPLING, *_GUIDANCE, "candidates", "select", "max_gap", "max_calls", "banned", "must")
_REFINING = (*SAMPLING, *_GUIDANCE, "max_gap")


class TextInfillingPipeline(TextPipeline):
    """Fill the gaps of texts, by a textdiff checkpoint or by any masked, encoder-decoder or causal language model.

    Input: a text with gaps (`textdiff.gaps` has the language: `[GAP]`, `[GAP:2-6]`, `[GAP:name=city,1-3w]`,
    `[GAP:yes|no]`, `[GAP:/regex/]`, `[GAP:must=word]`, or the model's own mask token), or a list of parts such as
    `["My fellow ", Gap(), "."]`; or a list of either. Options, at construction or at the call:

    num_return_sequences: how many different fillings at most, the best first (a gap with a choice of two has no third).
    seed: which. candidates: of how many drawn each is the best; select: by what, fluent, likely or mbr
    (`textdiff.selecting`).
    num_steps: turns of the reverse process, "auto" or "inf" (`textdiff.clocks`). rule: a name of
    docs/rules.md, or a `Rule`.
    max_time: seconds for a batch. After it the model is called no more than once for each gap: open words are drawn at once
    and gaps of unknown length end.
    temperature (0: the most probable), top_k, top_p, min_p: how words are drawn. guidance: a scale from 0 on, and
    guidance_schedule: constant, rising or falling (`textdiff.denoiser.guided`).
    max_gap: the longest content of a gap that asks for no more, in tokens. max_calls: texts that may be tried for each to
    find its gaps' lengths.
    banned, must: strings that no gap may contain, and that every gap has to, beside its own (`Gap.must`, or `Gap.forced` in
    token ids). logits_processor: transformers' LogitsProcessorList.
    on_error: "raise" names the text that cannot be filled before any is; "return" fills the others, and has
    [{"error": ...}] in its place. batch_size: texts at once, 32 of a list and 1 of an iterator unless it is given.
    None stands for an option that is not given.

    Output per text: one dict per sequence, {"generated_text", "score", "calls", "named", "gaps"}; a gap is {"text", "start",
    "end", "score", "name", "tokens", "probabilities"}. Scores are log-probabilities in nats of the words, given how many
    there are; offsets count characters of generated_text; "calls" is how often the model was run until
    this text was filled, with others of its batch.
    Where all gaps of a text are choices, of at most 64 combinations, and scores are exact, nothing is written word by word:
    each combination is scored, and a choice with all its tokens is one event.
    `explain()` says which way the model fills, and why. One pipeline serves several threads; it can be pickled.
    """

    batch = 32

    def is_input(self, inputs: Any) -> bool:
        """A string, or a list with a Gap in it: the parts of one text. A list of strings is several texts."""
        return isinstance(inputs, str) or (isinstance(inputs, list | tuple) and any(isinstance(p, Gap) for p in inputs))

    def size(self, prepared: dict[str, Any]) -> int:
        """The tokens of the start state."""
        return len(prepared["page"].row)

    def rank(self, text: str | Parts, fillings: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
        """Return given fillings of a text with gaps, the likeliest first, see `scoring.rank`."""
        return self.opened.rank(text, fillings, **options)

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        given = given_options(options, _OPTIONS)
        before = {name: given.pop(name) for name in ("banned", "must", "on_error") if name in given}
        return before, given, {}

    def preprocess(
        self, inputs: str | Parts, banned: Sequence[str] = (), must: Sequence[str] = (), **options: Any
    ) -> dict[str, Any]:
        """Return the start state of a text or of a list of parts. ValueError for one that cannot be filled."""
        route = self.route
        parts = parse(inputs, route.tokenizer.mask_token) if isinstance(inputs, str) else _check_parts(inputs)
        page = prepare(
            parts,
            route.tokenizer,
            route.specials,
            banned=tuple(banned),
            must=tuple(must),
            spaced=route.spaced,
            beside=route.beside,
            longest=route.denoiser.longest,
        )
        return {"page": page}

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        pages = [prepared["page"] for prepared in inputs["batch"]]
        wanted = self.opened.sampling(options)
        whole = self._chosen(pages, options, wanted)
        rest = [place for place, chosen in enumerate(whole) if chosen is None]
        candidates = self._candidates(options)
        denoiser, samples = self.opened.denoiser(options), options.get("num_return_sequences", 1)

        if "max_calls" in options and not self.route.searches:
            raise ValueError("max_calls has no effect: this model needs no search for lengths; leave max_calls out")

        def draw(places: list[int], first: int, count: int) -> list[list[Infill]]:
            mine, each = [pages[rest[place]] for place in places], candidates["candidates"]
            # the best of many is mostly the same one: who lacks others gets the best of fewer, of other numbers
            fewer = max(1, each >> 2 * (first // samples))
            number = first * (each // fewer)
            return infill(
                mine, samples=count, first=number, denoiser=denoiser, candidates=fewer, select=candidates["select"],
                **wanted, **self._tools(),
            )  # fmt: skip

        least = ROUNDS if candidates["candidates"] > 1 and samples > 1 else 0
        for place, filled in zip(rest, _different(draw, len(rest), samples, wanted, least), strict=True):
            whole[place] = filled
        return {"batch": whole}

    def _chosen(self, pages: list[Page], options: dict[str, Any], wanted: dict[str, Any]) -> list[Any]:
        """Of texts all of whose gaps are choices the whole result; None for others, and where words are to be drawn."""
        if {"num_steps", "rule", "logits_processor", "guidance", "candidates"} & {*options}:
            return [None] * len(pages)
        samples = options.get("num_return_sequences", 1)
        return [self.opened.choose(page, wanted["decode"], wanted["seed"], samples) for page in pages]

    def _candidates(self, options: dict[str, Any]) -> dict[str, Any]:
        """How many candidates, and which is given."""
        candidates = options.get("candidates", self.route.candidates)
        if candidates == 1 and "select" in options:
            raise ValueError("select has no effect on a single candidate; give candidates=8, or leave select out")
        return {"candidates": candidates, "select": options.get("select", "fluent")}

    def postprocess(self, filled: list[Infill], **options: Any) -> list[dict[str, Any]]:
        """Return the sequences of one text as plain data."""
        return [as_dict(result) for result in filled]

    def _tools(self) -> dict[str, Any]:
        route = self.route
        return {"process": route.process, "tokenizer": route.tokenizer, "specials": route.specials}

    def refine(self, texts: str | Sequence[str], t: float, keep: Sequence[str] = (), **options: Any) -> list[Any]:
        """Rewrite drafts from noise level t in (0, 1]: small t changes little.

        Args:
            texts: A draft, or a list of drafts, which gives a list of results.
            t: The noise level.
            keep: Phrases that stay as they are, wherever they stand; each has to be in one of the drafts.
            options: num_return_sequences, seed, num_steps (16 unless given), max_time, rule, guidance, guidance_schedule,
                temperature, top_k, top_p, min_p, max_gap, logits_processor, on_error, as in a call. The gaps' own options
                (banned, must, candidates, select, max_calls) are refused.

        Returns:
            As a call does; "gaps" are the stretches that were free to change.

        Raises:
            ValueError: For a t outside (0, 1], a phrase that is not in the draft, and an option that has no effect here.
        """
        given = given_options(options, _REFINING)
        returns, samples = given.pop("on_error", "raise") == "return", given.get("num_return_sequences", 1)
        check_number("t", t, above=0, most=1)
        drafts = [texts] if isinstance(texts, str) else check_several("texts", texts, example='["a draft", "another"]')
        phrases = check_strings("keep", keep)
        if "guidance" in given and not phrases:
            raise ValueError("guidance has no effect without text that stays; name some by keep, or leave guidance out")
        for phrase in phrases:
            if not any(isinstance(draft, str) and phrase in draft for draft in drafts):
                raise ValueError(f"{phrase!r} is in no draft, so it cannot be kept; copy it as it stands there")

        def prepare(draft: Any) -> tuple[str, list[Span]]:
            text = check_text("a draft", draft)
            return text, find(text, [phrase for phrase in phrases if phrase in text])

        def run(batch: list[tuple[str, list[Span]]]) -> list[Any]:
            wanted, denoiser = self.opened.sampling({"num_steps": 16, **given}), self.opened.denoiser(given)

            def draw(places: list[int], first: int, count: int) -> list[list[Infill]]:
                mine, spans = zip(*(batch[place] for place in places), strict=True)
                return refine(
                    mine, t, keep=spans, samples=count, first=first, denoiser=denoiser, **wanted, **self._tools()
                )

            return [[as_dict(result) for result in found] for found in _different(draw, len(batch), samples, wanted)]

        results = list(fill(drafts, prepare, run, lambda pair: len(pair[0]), self.batch, returns, total=len(drafts)))
        return results[0] if isinstance(texts, str) else results


def _different(
    draw: Callable[[list[int], int, int], list[list[Infill]]],
    texts: int,
    samples: int,
    wanted: dict[str, Any],
    least: int = 0,
) -> list[list[Infill]]:
    """Up to `samples` different texts of each, the best first (`sequences.draw_different`)."""
    decode: Decode = wanted["decode"]
    return draw_different(
        draw,
        texts,
        samples,
        name=lambda r: r.text,
        merit=lambda r: r.per_token if least else r.merit,
        expired=lambda: decode.expired,
        least=least,
    )


def _check_parts(inputs: Any) -> Parts:
    example = '"My fellow [GAP]", or a list of strings and Gap objects'
    if isinstance(inputs, str | bytes) or not isinstance(inputs, list | tuple):
        return [check_text("the text", inputs)]
    return list(check_items("the text", inputs, example=example))


def as_dict(result: Infill) -> dict[str, Any]:
    """Return a filled text as plain data."""
    gaps = [{**vars(gap), "tokens": list(gap.tokens), "probabilities": list(gap.probabilities)} for gap in result.gaps]
    named = {gap.name: gap.text for gap in result.gaps if gap.name is not None}
    return {
        "generated_text": result.text,
        "score": result.score,
        "calls": result.calls,
        "named": named,
        "gaps": gaps,
    }
