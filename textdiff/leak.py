"""Which way a model reads, found out by asking it: does what comes later change the logits of the first token?

A causal model made bidirectional by `config.is_causal = False` may go on being causal without a word (stablelm, gpt_neo in
transformers 5.23), and would then fill gaps blind to their right; a bidirectional one that is read as causal sees the very
words it is asked for. So nothing is believed, everything is probed when it is loaded.

And whether padding shows, which attention masks are there to hide: FNet mixes all columns, ConvBERT, Nystromformer and Yoso
have convolutions that reach into it, Funnel pools it. Texts would then be filled by what they are batched with.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

LENGTH = 8
PADDED = ((5, 9), (30, 47))  # tokens of a text, and columns with its padding
FAILURES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)  # of a model that cannot do what it is asked to
NOISE = 100.0  # times a model's own noise: what padding changes is no rounding above it
ROUNDING = 1e-5  # relative: a later token has an influence above it even on a model that has learned nothing


@torch.no_grad()
def looks_ahead(model: Any) -> bool:
    """Whether the logits of the first of 8 random tokens change with the 7 after it. Runs the model once, in eval mode."""
    rows, device = vocabulary(model), next(model.parameters()).device
    ids = torch.randint(rows // 2, rows, (2, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
    ids[1, 0] = ids[0, 0]
    training = model.training
    model.eval()
    try:
        plain = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        one, other = model(input_ids=ids, attention_mask=torch.ones_like(ids), **plain).logits[:, 0].float()
    finally:
        model.train(training)
    return bool((one - other).abs().max() > ROUNDING * one.abs().max()) or _leans(model, ids[:1])


def _leans(model: Any, ids: Tensor) -> bool:
    """Whether the logits of the first token have a gradient at later ones. Masks give exactly 0; a model that has learned
    little may give what no difference of logits shows."""
    seen: list[Tensor] = []

    def held(module: Any, args: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    training, handle = model.training, model.get_input_embeddings().register_forward_hook(held)
    model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = model(input_ids=ids.clone(), attention_mask=torch.ones_like(ids)).logits[:, 0].float()
            (pull,) = torch.autograd.grad(logits.square().sum(), seen[0], allow_unused=True)
    except FAILURES:
        return False
    finally:
        handle.remove()
        model.train(training)
    return pull is not None and bool((pull[:, 1:] != 0).any())


@torch.no_grad()
def reads_padding(model: Any, pad: int, longest: int | None = None) -> bool:
    """Whether the logits of a text depend on how many tokens `pad` stand right of it, and are masked.

    Padding changes the kernels, and with them the rounding, which a deep model amplifies. So the difference is compared with
    the model's own noise: what rounding its input embeddings anew changes. Of models that hide padding the ratio was at most
    2, of those that read it at least 3,000. Runs in eval mode on a short text and a longer one, as far as the model reads
    `longest`. A model that fails is taken for one that reads it: it gets no padding either.
    """
    rows, device, training = vocabulary(model), next(model.parameters()).device, model.training
    generator, near = torch.Generator().manual_seed(0), torch.finfo(model.dtype).eps ** 0.5
    plain = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    model.eval()
    try:
        for size, width in PADDED:
            width = width if longest is None else min(width, longest)
            ids = torch.randint(rows // 2, rows, (1, width), generator=generator).to(device)
            ids[:, size:] = pad
            live = (torch.arange(width, device=device) < size).long()[None]
            beside = model(input_ids=ids, attention_mask=live, **plain).logits[0, :size].float()
            alone = model(input_ids=ids[:, :size], attention_mask=live[:, :size], **plain).logits[0, :size].float()
            apart = float((beside - alone).abs().max())
            if not apart <= near * float(alone.std()) and not apart <= NOISE * _noise(
                model, ids[:, :size], live[:, :size], plain
            ):
                return True
    except (IndexError, RuntimeError, TypeError, ValueError):
        return True
    finally:
        model.train(training)
    return False


def _noise(model: Any, ids: Tensor, live: Tensor, plain: dict[str, Any]) -> float:
    """Return the largest change of logits when input embeddings are rounded anew, 0 for a model that takes none."""
    inner = model.get_input_embeddings()(ids)
    generator, most = torch.Generator().manual_seed(0), 0.0
    try:
        base = model(inputs_embeds=inner, attention_mask=live, **plain).logits.float()
        for _ in range(3):
            rounding = torch.randn(inner.shape, generator=generator).to(inner) * torch.finfo(inner.dtype).eps
            again = model(inputs_embeds=inner * (1 + rounding), attention_mask=live, **plain).logits.float()
            most = max(most, float((again - base).abs().max()))
    except FAILURES:
        return 0.0
    return most


def vocabulary(model: Any) -> int:
    """How many ids the model reads. I-BERT's and Perceiver's embeddings are no nn.Embedding."""
    table = model.get_input_embeddings()
    return int(getattr(table, "num_embeddings", 0) or getattr(model.config.get_text_config(), "vocab_size", 1))


def need_bidirectional(model: Any) -> None:
    """ValueError for a model that is to fill gaps and does not see what comes after them."""
    kind = model.config.model_type
    try:
        sees = looks_ahead(model)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{kind} cannot be read in both directions ({reason}); use denoiser autoregressive") from error
    if not sees:
        raise ValueError(
            f"{kind} stays causal whatever config.is_causal says, so it cannot see what follows a gap; use denoiser "
            "autoregressive, or another model"
        )


def need_causal(model: Any) -> None:
    """ValueError for a model that is to write word by word and sees the words that it is to write."""
    if looks_ahead(model):
        raise ValueError(
            f"{model.config.model_type} sees what follows (config.is_causal is "
            f"{getattr(model.config, 'is_causal', None)}), so it cannot write word by word; use denoiser parallel, with "
            "backbone causal where it was a causal model"
        )
