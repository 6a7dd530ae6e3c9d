"""The model card that goes with a checkpoint."""

import re
from typing import TYPE_CHECKING, Any

from torch import nn

from textdiff.tokens import Specials
from textdiff.zoo import likelihood

if TYPE_CHECKING:
    from textdiff.checkpoint import DiffusionConfig

_PLAIN = {
    "parallel": 'It is a stock masked language model: `pipeline("fill-mask")` of plain transformers opens it, too.',
    "autoregressive": "It is a stock causal language model: `AutoModelForCausalLM` of plain transformers opens it, too, and "
    "`model.generate(..., custom_generate=textdiff.generate)` writes by diffusion.",
    "seq2seq": "It is a stock encoder-decoder: `AutoModelForSeq2SeqLM` of plain transformers opens it, too, and "
    "`model.generate(..., custom_generate=textdiff.generate)` writes by diffusion.",
}
_BOTH_WAYS = (
    "It is a stock causal language model whose attention is open to both sides (`is_causal` in config.json is false): "
    "`AutoModelForCausalLM` of plain transformers opens it, but it does not write from left to right any more."
)
_BLOCKS = (
    "It is a stock causal language model that reads block by block: `AutoModelForCausalLM` of plain transformers opens it, "
    "but does not write with it as it learned to."
)
_TAGS = {"parallel": "fill-mask", "autoregressive": "text-generation", "seq2seq": "text-generation"}

_TEXT = """
# {name}

A diffusion model of text: it fills gaps{gaps}, several at once, and writes from a blank page.

```python
import textdiff
from transformers import pipeline

fill = pipeline("text-infilling", model="{name}")
print(fill("{example}"))

write = pipeline("text-diffusion", model="{name}")
print(write("My fellow"))
```

{plain} No code comes with it, and none is needed: the package `textdiff` reads `diffusion_config.json`.

| | |
|---|---|
{rows}

It writes what its training texts are like, true or not. Its fillings are samples, not facts.
"""


def model_card(
    name: str, config: "DiffusionConfig", recipe: dict[str, Any] | None = None, facts: dict[str, Any] | None = None
) -> str:
    """The text of README.md: what the model is, what it was trained on, what it reached, how to load it.

    recipe, facts: how it was trained, and what came of it; what is not known is left out.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="textdiff", pipeline_tag=_TAGS[config.denoiser], tags=["text-diffusion", "infilling"]
    )
    rows = [("denoiser", config.denoiser), ("process", f"{config.process}, {config.schedule} schedule")]
    rows.append(("decoding", f"{config.num_steps} steps by the rule {config.rule}, temperature {config.temperature:g}"))
    if recipe is not None:
        trained = recipe["data"]
        windows = f"windows of up to {trained['context']} tokens"
        rows.append(("trained on", f"`{trained['dataset']}`, split `{trained['split']}`, {windows}"))
    kind = likelihood_kind(config)
    if facts is None:
        rows.append(("likelihood", f"{kind}; `textdiff score` measures it"))
    else:
        reached = "not measured"
        if {"nats", "bits_per_byte"} <= facts.keys():
            reached = f"{facts['nats']:.3f} nats per token, {facts['bits_per_byte']:.3f} bits per byte"
        rows += [("steps, seconds", f"{facts['steps']}, {facts['seconds']}"), (f"validation ({kind})", reached)]
    body = _TEXT.format(
        name=name,
        gaps=" of known length" if config.keeps_lengths else " of unknown length",
        example="My fellow [GAP:2], the state of our union is [GAP:2]."
        if config.keeps_lengths
        else "My fellow [GAP], the state of our union is [GAP].",
        plain=_BLOCKS if config.block else _BOTH_WAYS if config.backbone == "causal" else _PLAIN[config.denoiser],
        rows="\n".join(f"| {left} | {right} |" for left, right in rows),
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


def likelihood_kind(config: "DiffusionConfig") -> str:
    """What the likelihood of such a checkpoint is: exact, or which bound."""
    return likelihood(config, config.denoiser, Specials(0, 1, 2, 3, size=8), nn.Embedding(8, 2))[1]


def renamed(card: str, name: str) -> str:
    """The card with another name to load the model by, and as its heading where the old name was that."""
    found = re.search(r'model="([^"]+)"', card)
    if found is None:
        return card
    old = found[1]
    card = card.replace(f'model="{old}"', f'model="{name}"')
    return re.sub(rf"^# {re.escape(old)}$", lambda _: f"# {name}", card, count=1, flags=re.MULTILINE)
