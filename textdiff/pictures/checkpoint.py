"""An image checkpoint is a stock diffusers model and `diffusion_config.json`: it opens in plain diffusers, too.

Weights are safetensors, never pickle; no code is loaded from a checkpoint.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from textdiff import schedule
from textdiff.checkpoint import (
    CONFIG_NAME,
    FORMAT,
    chosen,
    config_file,
    read_values,
)
from textdiff.denoiser.image import Pixels
from textdiff.images import Images
from textdiff.keys import Key
from textdiff.loading import from_diffusers
from textdiff.manifest import verify_folder, write_folder
from textdiff.options import Range, check_options
from textdiff.posterior import Draw
from textdiff.process import Blur, Pixelation, PixelMask, VarianceExploding, VariancePreserving
from textdiff.process.gaussian import Affine
from textdiff.rulebook import rule_of
from textdiff.validation import check_integer, check_items, check_number, check_strings

KIND = "image"
SCHEDULES: dict[str, Callable[[], schedule.Schedule]] = {
    "cosine": schedule.SquaredCosine,
    "betas": schedule.Betas,
    "linear": schedule.Linear,
}
GAUSSIAN = ("vp", "ve")


@dataclass
class PictureDiffusion:
    """What turns a stock model of diffusers into a denoiser, and how it is sampled by default.

    Attributes:
        process: How images are corrupted: vp and ve by Gaussian noise (DDPM, NCSN); the others are cold.
        schedule: How fast, of vp alone.
        highest: The last standard deviation of ve, or the last width of the blur in pixels; None for the process's own.
        noise: Standard deviation of the little Gaussian noise that a cold process adds.
        predict: What the model's output is: the noise, the image, or a mixture (v). A cold process needs x0.
        loss: Squared errors or absolute ones.
        clip: Keep x0_hat in [-1, 1].
        num_steps: Turns of the reverse process.
        rule: Which noise goes back in: posterior, fresh, partial:RHO, or sde:SCALE and ode for Gaussian processes.
    """

    process: Literal["vp", "ve", "blur", "pixelation", "pixel-mask"] = "vp"
    schedule: Literal["cosine", "betas", "linear"] = "cosine"
    highest: Annotated[float | None, Range(above=0, most=1e6)] = None
    noise: Annotated[float, Range(least=0, most=1e3)] = 0.0
    predict: Literal["eps", "x0", "v"] = "eps"
    loss: Literal["l2", "l1"] = "l2"
    clip: bool = True
    num_steps: Annotated[int, Range(least=1, most=10**6)] = 50
    rule: str = "posterior"

    def __post_init__(self) -> None:
        check_options(self, "diffusion")
        if self.process in GAUSSIAN and self.noise:
            raise ValueError(f"noise {self.noise} is for cold processes, {self.process} is noise itself; leave it out")
        if self.process not in ("ve", "blur") and self.highest is not None:
            raise ValueError(f"highest {self.highest} is of ve and blur, not of {self.process}; leave it out")
        if self.process != "vp" and self.schedule != "cosine":
            raise ValueError(f"schedule {self.schedule} is of vp, not of {self.process}; leave it out")
        if self.process not in GAUSSIAN and self.predict != "x0":
            raise ValueError(f"predict {self.predict} needs a Gaussian process, {self.process} is none; give x0")
        self.check_rule(self.rule)

    def build_process(self) -> Affine:
        """The process. ValueError where its schedule does not reach the prior."""
        return _BUILDERS[self.process](self)

    def check_rule(self, name: str) -> None:
        """ValueError for a rule that this process does not know."""
        rule, process, key = rule_of(name), self.build_process(), Key.of(0, 1)
        grey, t = Images.of(torch.zeros(1, 1, 8, 8)), torch.full((1,), 0.5, dtype=torch.float64)
        rule(process, grey, Draw(grey, torch.empty(0, dtype=torch.int64), torch.zeros(())), t, t * 0.99, key)


def _highest(config: PictureDiffusion) -> dict[str, float]:
    return {} if config.highest is None else {"highest": config.highest}


_BUILDERS: dict[str, Callable[[PictureDiffusion], Affine]] = {
    "vp": lambda config: VariancePreserving(SCHEDULES[config.schedule]()),
    "ve": lambda config: VarianceExploding(**_highest(config)),
    "blur": lambda config: Blur(**_highest(config), noise=config.noise),
    "pixelation": lambda config: Pixelation(noise=config.noise),
    "pixel-mask": lambda config: PixelMask(noise=config.noise),
}


@dataclass
class PictureConfig:
    """`diffusion_config.json` of an image model.

    Attributes:
        model: The class of diffusers that the weights are of.
        channels: Of the images; so height and width, in pixels.
        names: Of the classes; none where it was trained without.
        grey: Mean over the images of each channel's mean in [-1, 1]: where cold processes start from.
        spread: Standard deviation of these means over the images.
        variance: The optimal variance of x0 given x_t (Bao et al., arXiv:2201.06503) at times 0, 1/n, ..., 1; or nothing.
    """

    model: str
    channels: int
    height: int
    width: int
    diffusion: PictureDiffusion = field(default_factory=PictureDiffusion)
    names: list[str] = field(default_factory=list)
    grey: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    variance: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        chosen(self.model, dict.fromkeys(MODELS), "model")
        for name in ("channels", "height", "width"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("grey", "spread", "variance"):
            values = check_items(name, getattr(self, name), example="[0.1]")
            for place, value in enumerate(values):
                check_number(f"{name}[{place}]", value)
            if name != "variance" and len(values) != self.channels:
                raise ValueError(f"{name} must have a number for each of the {self.channels} channels; got {values!r}")
        check_strings("names", self.names)

    def build_denoiser(self, model: Any) -> Pixels:
        """The denoiser around a stock model. ValueError where the process and `predict` do not fit."""
        diffusion = self.diffusion
        process = diffusion.build_process()
        variance = torch.tensor(self.variance, dtype=torch.float64) if self.variance else None
        return Pixels(model, process, diffusion.predict, diffusion.loss, variance, diffusion.clip)

    def start(self, labels: Tensor, key: Key) -> Images:
        """x_1 for labels (B,): constant images of drawn greys, corrupted as far as can be.

        What noise or a mask leaves nothing of does not mind; blur and pixelation leave an image its mean, which has to
        be drawn from the images' (Bansal et al., arXiv:2208.09392).
        """
        normal = key.fold(0).normal(self.channels)
        grey = normal.new_tensor(self.grey) + normal.new_tensor(self.spread) * normal
        pixels = grey.clamp(-1, 1).float()[:, :, None, None].expand(-1, -1, self.height, self.width).contiguous()
        return self.diffusion.build_process().prior(Images(pixels, labels), key.fold(1))

    @classmethod
    def read(cls, path: Path) -> "PictureConfig":
        """From a file. ValueError for what is no configuration of this version."""
        values = read_values(cls, path, KIND)
        try:
            if not isinstance(inner := values.pop("diffusion", None), dict):
                raise ValueError("it has no section 'diffusion'")
            return cls(diffusion=PictureDiffusion(**inner), **values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """As a file."""
        values = {"format": FORMAT, "kind": KIND, **asdict(self)}
        path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


MODELS = ("UNet2DModel", "DiTTransformer2DModel")


@dataclass
class PictureCheckpoint:
    """A loaded image checkpoint. `card` is the text of its model card."""

    model: Any
    config: PictureConfig
    card: str = field(default="", repr=False)

    def save(self, path: str | Path) -> None:
        """Write the checkpoint (`manifest.write_folder`); other files of the folder stay."""

        def write(folder: Path) -> None:
            self.model.save_pretrained(folder)
            self.config.write(folder / CONFIG_NAME)
            (folder / "README.md").write_text(self.card, encoding="utf-8")

        write_folder(path, write)


def load_checkpoint(path: str | Path) -> PictureCheckpoint:
    """Open an image checkpoint. ValueError with the remedy where it is none, or is damaged."""
    file = config_file(path)
    verify_folder(file.parent)
    config = PictureConfig.read(file)
    loader = getattr(diffusers(), config.model)
    try:
        model, notes = from_diffusers(loader, path, output_loading_info=True, low_cpu_mem_usage=False)
    except Exception as error:  # diffusers and safetensors raise all sorts over a damaged file
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is cut short or damaged ({reason}); copy it again, or train again") from error
    if notes["missing_keys"]:
        raise ValueError(f"{path} lacks weights, such as {min(notes['missing_keys'])}; copy it again, or train again")
    return PictureCheckpoint(model.eval(), config)


def diffusers() -> Any:
    """The library, or a ValueError that says how to get it."""
    try:
        import diffusers
    except ImportError as error:
        raise ValueError("image models are those of diffusers; pip install 'textdiff[image]'") from error
    return diffusers
