"""The model card that goes with an image checkpoint."""

from typing import Any

from textdiff.pictures.checkpoint import PictureConfig

_MEASURED = "-log q {loss:.4f} per value up to a constant, mean squared error of x0 {squared_error:.4f}"
_PICTURE = """
# {name}

A diffusion model of images{classes}.

```
textdiff generate {name} --num-return-sequences 100 --out samples
```

It is a stock model of diffusers: `{model}.from_pretrained("{name}")` of plain diffusers opens it, too. What it reads is
{scaled}, at the time 1000 t - 1; what it says is {predict}.

| | |
|---|---|
| process | {process}{details} |
| trained on | `{dataset}`, split `{split}`, {channels} x {height} x {width} |
| steps, seconds | {steps}, {seconds} |
| validation | {measured} |

Its images are like those it was trained on, and show nothing that ever was.
"""


def picture_card(name: str, config: PictureConfig, recipe: dict[str, Any], facts: dict[str, Any]) -> str:
    """The text of README.md of an image model."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(library_name="diffusers", pipeline_tag="unconditional-image-generation", tags=["textdiff"])
    diffusion = config.diffusion
    details = {"vp": f", {diffusion.schedule} schedule"}.get(diffusion.process, "")
    body = _PICTURE.format(
        name=name,
        classes=f" in {len(config.names)} classes" if config.names else "",
        model=config.model,
        scaled="x_t over the standard deviation of its pixels" if diffusion.process == "ve" else "x_t",
        predict=diffusion.predict,
        process=diffusion.process,
        details=details + (f", noise {diffusion.noise:g}" if diffusion.noise else ""),
        dataset=recipe["data"]["dataset"],
        split=recipe["data"]["split"],
        channels=config.channels,
        height=config.height,
        width=config.width,
        steps=facts["steps"],
        seconds=facts["seconds"],
        measured=_MEASURED.format(**facts) if {"loss", "squared_error"} <= facts.keys() else "not measured",
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"
