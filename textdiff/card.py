"""The model card that goes with a checkpoint."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textdiff.checkpoint import DiffusionConfig

_PLAIN = {
    "parallel": 'It is a stock masked language model: `pipeline("fill-mask")` of plain transformers opens it, too.',
    "autoregressive": "It is a stock causal language model: `AutoModelForCausalLM` of plain transformers opens it, too.",
    "seq2seq": "It is a stock encoder-decoder: `AutoModelForSeq2SeqLM` of plain transformers opens it, too.",
}
_BOUND = {
    "parallel": "masking bound at given length",
    "autoregressive": "exact, in one step",
    "seq2seq": "exact, in one step",
}

_TEXT = """
# {name}

A diffusion model of text: it fills gaps of unknown length, several at once, and writes from a blank page.

```python
import textdiff
from transformers import pipeline

fill = pipeline("text-infilling", model="{name}")
print(fill("My fellow [GAP], the state of our union is [GAP]."))
```

{plain}

| | |
|---|---|
| denoiser | {denoiser} |
| process | {process}, {schedule} schedule |
| trained on | `{dataset}`, split `{split}`, windows of up to {context} tokens |
| steps, seconds | {steps}, {seconds} |
| validation ({bound}) | {nats:.3f} nats per token, {bits_per_byte:.3f} bits per byte |

It writes what its training texts are like, true or not. Its fillings are samples, not facts.
"""


def model_card(name: str, config: "DiffusionConfig", recipe: dict[str, Any], facts: dict[str, Any]) -> str:
    """The text of README.md: what the model is, what it was trained on, what it reached, how to load it."""
    from huggingface_hub import ModelCardData

    tag = {"parallel": "fill-mask", "autoregressive": "text-generation", "seq2seq": "text-generation"}[config.denoiser]
    data = ModelCardData(library_name="textdiff", pipeline_tag=tag, tags=["text-diffusion", "infilling"])
    body = _TEXT.format(
        name=name,
        plain=_PLAIN[config.denoiser],
        denoiser=config.denoiser,
        process=config.process,
        schedule=config.schedule,
        dataset=recipe["data"]["dataset"],
        split=recipe["data"]["split"],
        context=recipe["data"]["context"],
        bound=_BOUND[config.denoiser],
        **{key: facts[key] for key in ("steps", "seconds", "nats", "bits_per_byte")},
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"
