"""`model.generate(..., custom_generate=textdiff.generate)`: diffusion behind transformers' own way to write on.

transformers 5 hands a callable its prepared inputs, processors and criteria, but neither `streamer` nor `tokenizer`;
those come by `functools.partial`:

    model.generate(**inputs, custom_generate=textdiff.generate, max_new_tokens=20, num_denoising_steps=8)
    model.generate(**inputs, custom_generate=partial(textdiff.generate, streamer=TextDiffusionStreamer(tokenizer)))

Only models that inherit GenerationMixin have `generate`: causal and encoder-decoder ones. For masked language models call
`textdiff.generate(model, input_ids, ...)` itself, or use pipeline("text-diffusion").
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    MaxLengthCriteria,
    PreTrainedTokenizerBase,
    StopStringCriteria,
)
from transformers.utils import ModelOutput

from textdiff.automata import text_automaton
from textdiff.checkpoint import Checkpoint, DiffusionConfig, config_file
from textdiff.clocks import steps_of
from textdiff.continuation import Size, Written, write
from textdiff.denoiser.shared import counting, lock_of
from textdiff.posterior import Decode
from textdiff.rulebook import rule_of
from textdiff.rules import Rule
from textdiff.tokenizer import load_tokenizer
from textdiff.tokens import Specials
from textdiff.validation import check_seed, check_streamer, shown

_GROWTH = (MaxLengthCriteria, EosTokenCriteria, StopStringCriteria)  # they read a text that grows at its end


@dataclass
class DiffusionOutput(ModelOutput):
    """What `generate` returns with return_dict_in_generate.

    sequences: (B, L) int64, the prompt as it was given, then the new tokens, right-padded.
    sequences_scores: (B,) float64, log q of the new tokens in nats, given how many there are.
    tokens_per_forward: (B,) float64, new tokens for each call of the model.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    tokens_per_forward: Tensor | None = None


def generate(
    model: Any, input_ids: Tensor, logits_processor: Any = None, stopping_criteria: Any = None,
    generation_config: GenerationConfig | None = None, *, checkpoint: Checkpoint | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None, streamer: Any = None, seed: int | None = None,
    generator: torch.Generator | None = None, num_denoising_steps: int | None = None,
    max_denoising_steps: int | None = None, rule: str | Rule | None = None, inputs_tensor: Tensor | None = None,
    **model_inputs: Any,
) -> Tensor | DiffusionOutput:  # fmt: skip
    """Go on from `input_ids` (B, L), padding where attention_mask (B, L) is 0: the sequences (B, L + new), right-padded.

    Of generation_config count max_new_tokens, or max_length; do_sample (without it the most probable token is taken),
    temperature, top_k, top_p, through the processors that transformers makes of them; num_denoising_steps or
    max_denoising_steps, and seed, where the call does not say; return_dict_in_generate. The rest comes from the model's
    folder or hub repository, by `checkpoint`, or by a prepared `tokenizer`. Without a seed one is drawn from `generator`, or
    from torch's own, so torch.manual_seed decides as it does elsewhere in transformers. Encoder-decoder models return the
    prompt they read with the new tokens after it, too.

    A prompt that is there several times, as num_return_sequences makes it, has as many samples.

    Processors see the words before each place, left-padded, and the scores there. Criteria are asked between steps with
    (prompt + draft, None); a text whose criterion holds stays as it is drafted. Those that wait for the end of a growing
    text are not asked between steps: stop strings cut the finished text, END is never written. The streamer gets the
    prompt, then put_draft(value=draft) at each step if it has that, the new tokens, and end().
    """
    _check_given(model, input_ids, checkpoint, tokenizer, generator, streamer, generation_config)
    config = generation_config or (model.generation_config if model.can_generate() else GenerationConfig())
    _check_config(config)
    _check_inputs(model_inputs | {"inputs_tensor": inputs_tensor})
    # a parameter of that name would be taken away from transformers' own preparation
    prompt, mask = _prompt(input_ids, inputs_tensor, model_inputs.get("attention_mask"))
    _check_penalties(config, len(prompt))
    texts = checkpoint or _checkpoint(model, tokenizer)
    steps = _first(
        num_denoising_steps, max_denoising_steps, *_own(config, "num_denoising_steps", "max_denoising_steps")
    )
    valid = text_automaton(texts.tokenizer, texts.specials.size, texts.specials.not_text)
    wanted = {
        "steps": texts.config.num_steps if steps is None else steps_of(steps),
        "rule": rule if isinstance(rule, Rule) else rule_of(texts.config.rule if rule is None else rule),
        "decode": replace(_decode(config, logits_processor), text=valid, deadline=Decode.within(config.max_time)),
        "seed": _seed(_first(seed, *_own(config, "seed")), generator),
    }
    if streamer is not None:
        streamer.put(prompt.cpu())
    with lock_of(model), counting(model) as calls:
        final = _run(
            model, texts, prompt, mask, _size(config, input_ids, texts.config), wanted, stopping_criteria, streamer
        )
    new = _padded([written.ids for written in final], _first(config.pad_token_id, texts.specials.pad)).to(prompt.device)
    if streamer is not None:
        streamer.put(new.cpu())
        streamer.end()
    sequences = torch.cat([prompt, new], 1)
    return _output(sequences, final, calls[0]) if config.return_dict_in_generate else sequences


def _check_config(config: GenerationConfig) -> None:
    """Raise ValueError for settings that would have no effect here."""
    if (config.num_beams or 1) > 1:
        raise ValueError(f"num_beams {config.num_beams}: diffusion has no beams; call generate(..., num_beams=1)")
    for name in ("force_words_ids", "constraints", "penalty_alpha", "dola_layers", "prompt_lookup_num_tokens"):
        if getattr(config, name, None) is not None:
            hint = (
                "; gaps that must hold words are filled by text-infilling"
                if name in ("force_words_ids", "constraints")
                else ""
            )
            raise ValueError(f"{name} has no effect on diffusion; leave it out{hint}")
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise ValueError(f"{name} has no effect on diffusion; leave it out")


def _check_penalties(config: GenerationConfig, prompts: int) -> None:
    """Raise ValueError for penalties that need the whole batch of prompts: processors see a part of it at a time."""
    for name in ("repetition_penalty", "encoder_repetition_penalty"):
        if prompts > 1 and getattr(config, name, None) not in (None, 1.0):
            raise ValueError(
                f"{name} {getattr(config, name)} cannot serve {prompts} prompts together; give one at a time"
            )


def _check_given(
    model: Any, input_ids: Any, checkpoint: Any, tokenizer: Any, generator: Any, streamer: Any, config: Any
) -> None:
    """Raise ValueError for arguments of the wrong kind."""
    kinds: dict[str, tuple[Any, type]] = {
        "model": (model, torch.nn.Module),
        "checkpoint": (checkpoint, Checkpoint),
        "tokenizer": (tokenizer, PreTrainedTokenizerBase),
        "generator": (generator, torch.Generator),
        "generation_config": (config, GenerationConfig),
    }
    for name, (value, kind) in kinds.items():
        if not isinstance(value, kind) and (value is not None or name == "model"):
            raise ValueError(f"{name} must be a {kind.__name__}; got {shown(value)}")
    if streamer is not None:
        check_streamer(streamer)
    ids = input_ids if isinstance(input_ids, Tensor) else torch.zeros(0)
    if ids.dim() != 2 or ids.is_floating_point() or bool((ids < 0).any()):
        raise ValueError(f"input_ids must be a tensor (texts, tokens) of ids; got {shown(input_ids)}")


def _check_inputs(inputs: Mapping[str, Any]) -> None:
    """Raise ValueError for what a model would be fed that is no tensor, or no tokens."""
    for name in ("attention_mask", "inputs_tensor"):
        if inputs.get(name) is not None and not isinstance(inputs[name], Tensor):
            raise ValueError(f"{name} must be a tensor; got {shown(inputs[name])}")
    if inputs.get("inputs_embeds") is not None:
        raise ValueError("inputs_embeds cannot be read: diffusion writes tokens; give input_ids alone")


def _output(sequences: Tensor, final: list[Written], calls: int) -> DiffusionOutput:
    counts = torch.tensor([len(written.ids) for written in final], dtype=torch.float64)
    scores = torch.tensor([written.score for written in final], dtype=torch.float64)
    device = sequences.device
    return DiffusionOutput(sequences, scores.to(device), (counts / max(calls, 1)).to(device))


def _run(
    model: Any, texts: Checkpoint, prompt: Tensor, mask: Tensor, size: Size, wanted: dict[str, Any], criteria: Any,
    streamer: Any,
) -> list[Written]:  # fmt: skip
    """The loop, with what looks on from outside: criteria and streamer."""
    ids = texts.specials
    rows = [_words(row, ids) for row in (line[m].tolist() for line, m in zip(prompt.cpu(), mask.cpu(), strict=True))]
    between = [c for c in criteria or [] if not isinstance(c, _GROWTH)]
    show: Callable[..., None] | None = getattr(streamer, "put_draft", None)  # transformers' own capability check
    training, final = model.training, [Written([], [])] * len(rows)
    denoiser = texts.config.build_denoiser(model, ids).eval()
    tools = {"denoiser": denoiser, "process": texts.config.decode_process(ids, model), "specials": ids}
    done = torch.zeros(len(rows), dtype=torch.bool)
    try:
        for drafts in _numbered(rows, size, tools | wanted | {"whole": bool(between) or show is not None}):
            final = [old if stop else new for old, new, stop in zip(final, drafts, done.tolist(), strict=True)]
            value = _padded([written.ids for written in final], ids.pad)
            if show is not None:
                show(value=value)
            if between:
                whole = torch.cat([prompt, value.to(prompt.device)], 1)
                for criterion in between:
                    done = done | torch.as_tensor(criterion(whole, None)).cpu().expand(len(rows))
            if bool(done.all()):
                break
    finally:
        model.train(training)
    ends = [c for c in criteria or [] if isinstance(c, StopStringCriteria)]
    return [_until(line, written, ends) for line, written in zip(prompt, final, strict=True)]


def _numbered(rows: list[list[int]], size: Size, wanted: dict[str, Any]) -> Iterator[list[Written]]:
    """`write`, each prompt numbered among its equals."""
    times: dict[tuple[int, ...], int] = {}
    numbers = []
    for row in map(tuple, rows):
        numbers.append(times.get(row, 0))
        times[row] = numbers[-1] + 1
    return write(rows, size, numbers=numbers, **wanted)


def _prompt(input_ids: Tensor, inputs_tensor: Tensor | None, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The prompts (B, L) and which of their tokens are there. An encoder's input comes apart from its decoder's."""
    prompt = input_ids
    if inputs_tensor is not None and inputs_tensor.shape != input_ids.shape:
        prompt = inputs_tensor.repeat_interleave(len(input_ids) // len(inputs_tensor), 0)
    mask = torch.ones_like(prompt) if attention_mask is None else attention_mask
    if mask.shape != prompt.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)} is not of input_ids' shape {tuple(prompt.shape)}"
        )
    return prompt, mask.bool()


def _words(row: list[int], ids: Specials) -> list[int]:
    """A prompt without its BOS. ValueError for one with open places: those are for infilling."""
    row = row[1:] if row[:1] == [ids.bos] else row
    if row and ids.size and max(row) >= ids.size:
        raise ValueError(f"input_ids hold {max(row)}, and the model knows ids below {ids.size}; use its own tokenizer")
    if {ids.mask, ids.gap} & {*row}:
        raise ValueError("input_ids hold [MASK] or [GAP], and generate writes at the end; fill them by text-infilling")
    return row


def _checkpoint(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> Checkpoint:
    """What the model's folder says of its process, with the tokenizer given, or the folder's."""
    path = model.config._name_or_path
    try:
        if not path:
            raise ValueError("the model was not loaded from a folder")
        config = DiffusionConfig.read(config_file(path))
    except ValueError as error:
        if tokenizer is None:
            raise ValueError(
                f"{error}; or pass checkpoint=, or functools.partial(textdiff.generate, tokenizer=...)"
            ) from None
        config = DiffusionConfig("autoregressive" if model.can_generate() else "parallel")
        if model.config.is_encoder_decoder:
            config = DiffusionConfig("seq2seq")
    found = Checkpoint(model, tokenizer or load_tokenizer(path), config)
    if found.specials.mask >= found.specials.size or not (
        found.specials.lengths or config.denoiser != "autoregressive"
    ):
        raise ValueError(
            f"the tokenizer lacks the tokens of a textdiff checkpoint; {type(model).__name__} as it is writes on by "
            'pipeline("text-diffusion", model=...)'
        )
    return found


def _size(config: GenerationConfig, input_ids: Tensor, own: DiffusionConfig) -> Size:
    """max_new_tokens, or what max_length leaves; the longest gap of the checkpoint where neither is said."""
    high = config.max_new_tokens
    if high is None:
        high = own.max_gap if config.max_length is None else config.max_length - input_ids.shape[1]
    low = config.min_new_tokens or max((config.min_length or 0) - input_ids.shape[1], 0)
    return Size(high, low, own.keeps_lengths)


def _decode(config: GenerationConfig, processors: Any) -> Decode:
    """How words are drawn: by transformers' processors, which hold the temperature already; else by the configuration."""
    if not config.do_sample:
        return Decode(temperature=0.0, processors=tuple(processors or ()))
    if processors is not None:
        return Decode(processors=tuple(processors))
    return Decode(_first(config.temperature, 1.0), config.top_k or 0, _first(config.top_p, 1.0))


def _seed(seed: int | None, generator: torch.Generator | None) -> int:
    if seed is not None:
        return check_seed(seed)
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (1,), generator=generator, device=device))


def _own(config: GenerationConfig, *names: str) -> list[Any]:
    """Keys of a generation configuration that are not transformers' own."""
    values = config.to_dict()
    return [values.get(name) for name in names]


def _first(*values: Any) -> Any:
    """The first that is said, None where none is."""
    return next((value for value in values if value is not None), None)


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """(B, longest) int64, right-padded."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], dtype=torch.int64).view(
        len(rows), longest
    )


def _until(prompt: Tensor, written: Written, criteria: Sequence[Any]) -> Written:
    """The text up to where a stop string first ends."""
    for count in range(1, len(written.ids) + 1 if criteria else 0):
        text = torch.cat([prompt, torch.tensor(written.ids[:count], device=prompt.device)])[None]
        if any(bool(torch.as_tensor(criterion(text, None)).all()) for criterion in criteria):
            return replace(written, ids=written.ids[:count], scores=written.scores[:count])
    return written
