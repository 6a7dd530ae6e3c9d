"""`pipeline("text-infilling")`: many gaps of unknown length, filled jointly, in transformers' own interface."""

from collections.abc import Sequence
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    Pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from textdiff.checkpoint import Checkpoint, DiffusionConfig, config_file, rule_of
from textdiff.drafts import find, refine
from textdiff.gaps import Gap, Infill, check, infill, parse
from textdiff.posterior import Decode
from textdiff.tokenizer import prepare_tokenizer

TASK = "text-infilling"


class TextInfillingPipeline(Pipeline):
    """Fill the gaps of texts.

    Input: a text with `[GAP]`, or a list of parts such as `["My fellow ", Gap(), "."]`, or a list of either. Options, at
    construction or at the call: num_return_sequences, num_steps, rule, temperature, top_k, top_p, max_gap, seed.
    Output per text: one dict per sequence, {"generated_text", "score", "gaps": [{"text", "start", "end", "score"}]}, the
    scores being log-probabilities in nats of the words, given how many there are; offsets count characters of
    generated_text.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, diffusion_config: DiffusionConfig | None = None, **kwargs: Any) -> None:
        model: Any = kwargs.get("model", args[0] if args else None)
        self.diffusion_config = diffusion_config or DiffusionConfig.read(config_file(model.config._name_or_path))
        super().__init__(*args, **kwargs)
        # user text that spells a special token stays text
        self.tokenizer: Any = prepare_tokenizer(kwargs["tokenizer"])
        self.checkpoint = Checkpoint(self.model, self.tokenizer, self.diffusion_config)
        self.tools = self.checkpoint.tools()

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        known = {"num_return_sequences", "num_steps", "rule", "temperature", "top_k", "top_p", "max_gap", "seed"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"unknown option {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return {}, options, {}

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See the class. A list of texts gives a list of results; a list of parts is one text."""
        if isinstance(inputs, Sequence) and not isinstance(inputs, str) and _is_parts(inputs):
            return super().__call__({"parts": list(inputs)}, **options)
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            inputs = [{"parts": list(text)} if not isinstance(text, str) else text for text in inputs]
            if not inputs:
                raise ValueError("no texts to fill; give at least one")
        return super().__call__(inputs, **options)

    def preprocess(self, text: Any, **options: Any) -> dict[str, Any]:
        parts = parse(text) if isinstance(text, str) else text["parts"]
        check(parts)
        return {"parts": parts}

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        texts = inputs["parts"] if inputs.get("batched") else [inputs["parts"]]
        filled = infill(texts, **self._sampling(options), **self.tools)
        return {"filled": filled if inputs.get("batched") else filled[0]}

    def _sampling(self, options: dict[str, Any]) -> dict[str, Any]:
        """How to sample: what was asked for, and of the rest what the checkpoint says."""
        config = self.diffusion_config
        decode = ("temperature", "top_k", "top_p", "max_gap")
        samples = options.get("num_return_sequences", 1)
        if samples < 1:
            raise ValueError(f"num_return_sequences {samples} is not positive; 1 gives one text")
        return {
            "steps": options.get("num_steps", config.num_steps),
            "rule": rule_of(options.get("rule", config.rule)),
            "decode": Decode(**{name: options.get(name, getattr(config, name)) for name in decode}),
            "seed": options.get("seed", 0),
            "samples": samples,
        }

    def refine(self, texts: str | Sequence[str], t: float, keep: Sequence[str] = (), **options: Any) -> list[Any]:
        """Rewrite drafts from noise level t in (0, 1]: small t changes little. `keep`: phrases that stay as they are.

        Options and output are those of a call, in 16 steps unless num_steps says otherwise; "gaps" are the stretches that
        were free to change. A list of texts gives a list of results.
        """
        self._sanitize_parameters(**options)
        drafts = [texts] if isinstance(texts, str) else list(texts)
        spans = [find(text, [phrase for phrase in keep if len(drafts) == 1 or phrase in text]) for text in drafts]
        chosen = self._sampling({"num_steps": 16, **options})
        results = [[as_dict(r) for r in found] for found in refine(drafts, t, keep=spans, **chosen, **self.tools)]
        return results[0] if isinstance(texts, str) else results

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, preprocess_params: dict, forward_params: dict,
        postprocess_params: dict,
    ) -> Any:  # fmt: skip
        """Texts in batches of `batch_size`; gaps are no tensors, so transformers' own padding does not apply."""
        prepared = [self.preprocess(text, **preprocess_params)["parts"] for text in inputs]
        for begin in range(0, len(prepared), batch_size):
            batch = {"parts": prepared[begin : begin + batch_size], "batched": True}
            for filled in self.forward(batch, **forward_params)["filled"]:
                yield self.postprocess({"filled": filled}, **postprocess_params)

    def postprocess(self, outputs: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
        return [as_dict(result) for result in outputs["filled"]]


def as_dict(result: Infill) -> dict[str, Any]:
    """A filled text as plain data."""
    gaps = [{"text": g.text, "start": g.start, "end": g.end, "score": g.score} for g in result.gaps]
    return {"generated_text": result.text, "score": result.score, "gaps": gaps}


def _is_parts(inputs: Sequence[Any]) -> bool:
    """A list with a Gap object in it is the parts of one text; a list of strings is several texts."""
    return any(isinstance(part, Gap) for part in inputs)


# on import: `textdiff._register` imports this module as soon as transformers' pipelines are there
PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=TextInfillingPipeline,
    pt_model=(AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM),
    type="text",
)
