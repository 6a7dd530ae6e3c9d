"""Which way a model fills gaps, and why: one a textdiff checkpoint names, or the one its kind of stock model has.

masked language model        lengths by search, then one word after the other, the surest first
encoder-decoder, sentinels   T5: <extra_id_0> ... <extra_id_1> ...
encoder-decoder, <mask>      BART: rewrites the text; its law given the user's words, by sequential Monte Carlo
causal, fill-in-the-middle   prefix, suffix, middle
causal                       its own law given the words to the right, by sequential Monte Carlo

How likely it finds texts, the best figure there is: a masked model a bound, E[n/k sum of -log q of k hidden words], with k
uniform on 1..n and which words drawn (any order, arXiv:2110.02037); the others the chain rule, exactly.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from textdiff.checkpoint import Checkpoint
from textdiff.clocks import Steps
from textdiff.denoiser import Continuing, Denoiser, Middle, Onward, Parallel, Sentinels, fim_tokens, sentinel_ids
from textdiff.denoiser.feeding import own_id
from textdiff.leak import looks_ahead, need_bidirectional
from textdiff.posterior import Decode
from textdiff.process import Deletion, Masking, Process
from textdiff.spelling import check_tokenizer
from textdiff.tokenizer import stock_specials
from textdiff.tokens import Specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_GAP = 24  # tokens that a stock model writes into one gap, unless more are asked for


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds texts: a denoiser and the process whose bound measures it, and what the figure is in words.

    whole: it is of the whole text, the user's words as well; else of fillings alone. goes_on: a text that no gap ends may
    be the beginning of a longer one, so that its end costs nothing.
    refusal: why there is no figure; "" where there is one.
    """

    denoiser: Denoiser
    process: Process
    kind: str
    whole: bool = False
    goes_on: bool = False
    refusal: str = ""


@dataclass(frozen=True)
class Route:
    """How a model fills: what `infill` needs, its defaults, and the reason in words.

    likelihood: how likely it finds texts. onward: what writes on after a text, for causal models without particles.
    keeps_lengths: it writes exactly as much as is asked. spaced, beside: see `prepare`. candidates: see `infill`.
    """

    denoiser: Denoiser
    process: Process
    tokenizer: "PreTrainedTokenizerBase"
    specials: Specials
    steps: Steps
    rule: str
    decode: Decode
    spaced: bool
    reason: str
    likelihood: Callable[[], Likelihood]  # both are made when they are asked for: they may try the model out
    onward: Callable[[], Denoiser]
    keeps_lengths: bool = False
    beside: bool = False
    candidates: int = 1

    @property
    def searches(self) -> bool:
        """Whether the lengths of gaps are found out by trying them (`denoiser.search`)."""
        return isinstance(self.denoiser, Parallel) and not self.specials.lengths


def unwrapped(model: Any) -> Any:
    """Return the stock model in a model that torch.compile or peft wraps; peft's adapters stay in its layers.

    Raises:
        ValueError: For adapters that change what is fed (prompt tuning), which live in the wrapper alone.
    """
    model = getattr(model, "_orig_mod", model)
    peft = sys.modules.get("peft")  # who has such a model has loaded it
    if peft is None or not isinstance(model, peft.PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{type(model.active_peft_config).__name__} adapters write into the prompt, which gaps do not have; use LoRA"
        )
    return model.get_base_model()


def checkpoint_route(checkpoint: Checkpoint) -> Route:
    """The way that a `diffusion_config.json` names."""
    tokenizer = checkpoint.tokenizer
    check_tokenizer(tokenizer)
    tokenizer.split_special_tokens = True  # user text that spells a special token stays text
    config, tools = checkpoint.config, checkpoint.tools()
    reason = (
        f"diffusion_config.json: {config.denoiser} denoiser, process {config.process}, rule {config.rule}, "
        f"{config.num_steps} steps"
    )
    return Route(
        tools["denoiser"], tools["process"], tokenizer, tools["specials"], config.num_steps, config.rule, config.decode(),
        checkpoint.config.num_steps == 1 or not tools["specials"].lengths, reason,
        lambda: Likelihood(tools["denoiser"], *config.likelihood(tools["specials"], checkpoint.model)),
        lambda: tools["denoiser"], config.keeps_lengths, candidates=config.candidates,
    )  # fmt: skip


def stock_route(model: Any, tokenizer: "PreTrainedTokenizerBase") -> Route:
    """The way of a stock model. ValueError, with the reason, for one that cannot fill gaps. The tokenizer stays as it is."""
    if tokenizer is None:
        raise ValueError("the model has no tokenizer; name one by tokenizer=")
    check_tokenizer(tokenizer)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.split_special_tokens = True  # what the user writes is text, whatever it spells
    ids, name = stock_specials(tokenizer, model), type(model).__name__
    kind = _kind(model, name)
    if kind == "seq2seq":
        return _seq2seq(model, tokenizer, ids, name)
    if kind == "masked":
        if ids.mask >= ids.size:
            raise ValueError(f"{name} has no mask token in its tokenizer; give the tokenizer it was trained with")
        if not looks_ahead(model):
            raise ValueError(f"{name} does not read what stands right of a gap, on {model.device}; try another model")
        reason = f"{name} is a masked language model: lengths by search, words in turn, the surest first"
        return _words(Parallel(model.eval(), ids), tokenizer, ids, reason)
    return _causal(model, tokenizer, ids, name)


def _kind(model: Any, name: str) -> str:
    """seq2seq, masked or causal."""
    from transformers.models.auto import modeling_auto as auto

    def among(mapping: Any) -> bool:
        names = (entry if isinstance(entry, tuple) else (entry,) for entry in mapping.values())
        return any(kind.__name__ in entry for entry in names for kind in type(model).__mro__)

    if among(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES):
        if model.config.is_encoder_decoder:
            return "seq2seq"
        return "causal"  # speech models: a decoder that reads sound as tokens, or text alone
    if among(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        return "masked"
    if among(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return "causal"
    raise ValueError(
        f"{name} cannot fill gaps: it has no language-model head; load weights that have one with AutoModelForMaskedLM, "
        "AutoModelForSeq2SeqLM or AutoModelForCausalLM"
    )


def _words(denoiser: Parallel, tokenizer: Any, ids: Specials, reason: str) -> Route:
    """Every open token has a turn of its own."""
    if denoiser.feed.apart:
        reason += "; padding shows in what it says, so texts of one length at a time"
    decode, process = Decode(temperature=0.0, max_gap=MAX_GAP), Masking(ids, counts=True)
    found = Likelihood(denoiser, process, "bound, any order, length given")
    return Route(
        denoiser, process, tokenizer, ids, None, "ranked", decode, True, reason, lambda: found, lambda: denoiser,
        keeps_lengths=True, beside=True,
    )  # fmt: skip


def _gaps(
    denoiser: Denoiser, tokenizer: Any, ids: Specials, reason: str, likelihood: Callable[[], Likelihood],
    onward: Callable[[], Denoiser],
) -> Route:  # fmt: skip
    """All gaps are written in one turn, word by word."""
    decode = Decode(temperature=0.0, max_gap=MAX_GAP)
    return Route(denoiser, Deletion(ids), tokenizer, ids, 1, "posterior", decode, True, reason, likelihood, onward)


def _seq2seq(model: Any, tokenizer: Any, ids: Specials, name: str) -> Route:
    sentinels = sentinel_ids(tokenizer)
    if sentinels:
        reason = f"{name} has sentinels: the encoder reads the text, the decoder writes all gaps in order"
        writer = Sentinels(model.eval(), ids, sentinels)
        found = Likelihood(writer, Deletion(ids), "exact, fillings and their lengths")
        return _gaps(writer, tokenizer, ids, reason, lambda: found, lambda: writer)
    if ids.mask < ids.size:
        reason = f"{name} reads a mask per gap and rewrites the text: continuations weighed by the words to their right"
        rewriter = Continuing(model.eval(), ids)
        kind = "exact, whole text as it is rewritten"
        return _gaps(rewriter, tokenizer, ids, reason, lambda: _chain(rewriter, kind), lambda: Onward(rewriter))
    raise ValueError(f"{name} cannot fill gaps: its tokenizer has neither <extra_id_0> nor a mask token")


def _causal(model: Any, tokenizer: Any, ids: Specials, name: str) -> Route:
    if getattr(model.config, "is_causal", True) is False and ids.mask < ids.size:
        need_bidirectional(model)
        reason = f"{name} sees both sides (is_causal is false): lengths by search, words in turn, the surest first"
        return _words(Parallel(model.eval(), ids), tokenizer, ids, reason)
    ends, marks = _ends(model, tokenizer), fim_tokens(tokenizer)
    if marks is not None:
        reason = f"{name} has fill-in-the-middle tokens: each gap is written in sight of what follows"
        writer = Middle(model.eval(), ids, marks)
        plain = cache(lambda: Continuing(model, ids))
        return _gaps(writer, tokenizer, ids, reason, lambda: _chain(plain()), lambda: Onward(plain(), ends))
    reason = f"{name} reads from left to right: continuations weighed by the words to their right"
    denoiser = Continuing(model.eval(), ids)
    return _gaps(denoiser, tokenizer, ids, reason, lambda: _chain(denoiser), lambda: Onward(denoiser, ends))


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """All that ends a text, or an answer in a chat."""
    said = [own_id(model, "eos_token_id"), tokenizer.eos_token_id]
    said += [model.generation_config.eos_token_id] if model.can_generate() else []
    ids = (number for entry in said for number in (entry if isinstance(entry, list) else [entry]))
    return tuple(dict.fromkeys(number for number in ids if number is not None))


def _chain(denoiser: Continuing, kind: str = "exact, whole text") -> Likelihood:
    """By the chain rule over a whole text: of its fillings a joint score, up to what is the same for all of them."""
    refusal = ""
    if not denoiser.reading.first and denoiser.specials.bos >= denoiser.specials.size:
        refusal = "the model has no token that begins a text, so nothing says its first word; set tokenizer.bos_token"
    alone = not denoiser.model.config.is_encoder_decoder
    return Likelihood(denoiser, Deletion(denoiser.specials), kind, whole=True, goes_on=alone, refusal=refusal)
