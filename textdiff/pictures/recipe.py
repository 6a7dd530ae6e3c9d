"""A training run on images as data, and its parts, built: the same steps, trainer and loop as for texts."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch

from textdiff.config import settings_of
from textdiff.data import Batches
from textdiff.denoiser import optimal_variance
from textdiff.images import Images
from textdiff.keys import Key
from textdiff.launch import check_launch, world_size
from textdiff.loading import from_diffusers
from textdiff.options import PATH, Range, check_options
from textdiff.pictures.card import picture_card
from textdiff.pictures.checkpoint import MODELS, PictureCheckpoint, PictureConfig, PictureDiffusion, diffusers
from textdiff.pictures.data import Pictures, PicturesConfig, check_pictures, load_pictures
from textdiff.pictures.samples import draw_grid, in_turn, paint
from textdiff.posterior import Decode
from textdiff.report import Words
from textdiff.resuming import compare_settings, fingerprint_of_model
from textdiff.rulebook import rule_of
from textdiff.run_folder import RunFolder
from textdiff.saving import newest_state, read_facts
from textdiff.trainer import Feed, Job, Trainer, TrainerConfig
from textdiff.udm import UDM, Objective

WORDS = Words("values", "-log q per value, up to a constant", "loss", "validation")
SAMPLES = "samples.png"
LOOKS = 4  # times at which each held-out image is looked at


@dataclass
class PictureModelConfig:
    """Any model of diffusers that denoises pixels, or one from scratch.

    Attributes:
        family: The kind of a model from scratch: unet (UNet2DModel) or dit (DiTTransformer2DModel).
        path: A model of diffusers to go on from instead, a folder or hub name.
        channels: Of a unet's levels, each half as large as the one before; of a dit the last is its width.
        layers: Blocks per level of a unet, blocks of a dit.
        attention: Attend within the lowest level of a unet.
        dropout: Share of the activations that are dropped.
    """

    family: Literal["unet", "dit"] = "unet"
    path: Annotated[str | None, PATH] = None
    channels: Annotated[tuple[int, ...], Range(least=1, most=10**5)] = (32, 64)
    layers: Annotated[int, Range(least=1, most=1000)] = 1
    attention: bool = True
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0

    def __post_init__(self) -> None:
        check_options(self, "model")
        if not self.channels:
            raise ValueError("model.channels must have at least one entry, the width of the first level; such as 32 64")


class Split(NamedTuple):
    """The images to learn from and those to measure on."""

    train: Pictures
    held: Pictures

    def __str__(self) -> str:
        channels, height, width = self.train.values.shape[1:]
        return f"{len(self.train):,} images of {channels} x {height} x {width}, {len(self.train.names)} classes"


@dataclass
class PictureRecipe:
    """A whole training run on images.

    Attributes:
        variance: Times at which the optimal variance of x0 is measured after training; 0 samples the mean.
    """

    data: PicturesConfig = field(default_factory=PicturesConfig)
    model: PictureModelConfig = field(default_factory=PictureModelConfig)
    diffusion: PictureDiffusion = field(default_factory=PictureDiffusion)
    objective: Objective = field(default_factory=Objective)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(weight_decay=0.01, ema=0.999))
    variance: Annotated[int, Range(least=0, most=10_000)] = 0

    def __post_init__(self) -> None:
        check_options(self)
        if self.trainer.compile:
            raise ValueError("trainer.compile is for models of transformers; leave it out for images")

    def build(self) -> Trainer:
        """Everything built and ready to run."""
        data = self.prepare()
        model = self.make_model(data)
        udm = self.make_udm(model, data)
        return Trainer(udm, self.make_job(model, data), self.trainer)

    def prepare(self) -> Split:
        """The images of both splits. ValueError where they are not of one kind, and for what stands in the run's way."""
        check_launch()
        self.trainer.check_world(world_size())
        diffusers()
        folder = RunFolder(self.trainer.out)
        folder.check(resume=self.trainer.resume, overwrite=self.trainer.overwrite)
        if self.trainer.resume and (state := newest_state(folder.states, weights=False)[0]) is not None:
            compare_settings(state, read_facts(state), settings_of(self))
        if self.model.path is not None:
            _check_model(self.model.path)
        for split in (self.data.split, self.data.validation_split):
            check_pictures(self.data, split)
        train, held = (load_pictures(self.data, split) for split in (self.data.split, self.data.validation_split))
        if train.values.shape[1:] != held.values.shape[1:]:
            shapes = [tuple(part.values.shape[1:]) for part in (train, held)]
            raise ValueError(
                f"{self.data.dataset} has images of {shapes[0]} and of {shapes[1]}; set data.size, data.mode"
            )
        if train.names and int(held.label.max()) >= len(train.names):
            raise ValueError(
                f"label {int(held.label.max())} of {self.data.validation_split!r} is none of the {len(train.names)} "
                f"classes of {self.data.split!r}; set data.label_column None"
            )
        return Split(train, held)

    def make_model(self, data: Split) -> Any:
        """A model drawn under the run's seed, or the one named."""
        torch.manual_seed(self.trainer.seed)
        if self.model.path is not None:
            return _open_model(self.model.path)
        build = {"unet": _unet, "dit": _dit}[self.model.family]
        try:
            return build(self.model, data.train)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"no {self.model.family} can be made so: {_first_line(error)}; see model.channels"
            ) from error

    def describe(self, model: Any, data: Split) -> PictureConfig:
        """`diffusion_config.json`."""
        channels, height, width = data.train.values.shape[1:]
        grey, spread = data.train.greys()
        names = list(data.train.names)
        return PictureConfig(type(model).__name__, channels, height, width, self.diffusion, names, grey, spread)

    def make_udm(self, model: Any, data: Split) -> UDM:
        """The process and the denoiser. ValueError where the model cannot take these images, found out on one of them."""
        denoiser = self.describe(model, data).build_denoiser(model)
        udm = UDM(denoiser.process, denoiser, self.objective)
        one = data.train.batch([int(data.train.label.argmax())])
        try:
            with torch.no_grad():
                udm(one, Key.of(self.trainer.seed, 1))
        except RuntimeError as error:
            shape = tuple(one.pixels.shape[1:])
            raise ValueError(
                f"the model cannot take images of {shape} ({_first_line(error)}); set data.size or model.channels"
            ) from error
        return udm

    def make_job(self, model: Any, data: Split) -> Job:
        """Feeding, measuring, showing and saving, for images."""
        config = self.describe(model, data)
        held = data.held.batch(range(0, len(data.held), -(-len(data.held) // 512)))

        def collate(batch: Sequence[int], key: Key) -> tuple[Images, Key]:
            return data.train.batch(batch), key

        def show(udm: UDM) -> list[str]:
            classes, steps = len(config.names), self.diffusion.num_steps
            labels, path = in_turn(5 * classes or 10, classes), Path(self.trainer.out) / SAMPLES
            device = next(udm.parameters()).device
            painted = paint(
                config, udm.denoiser, labels.to(device), steps=steps, rule=rule_of(self.diffusion.rule), seed=0
            )
            draw_grid(painted.to("cpu"), path)
            return [f"{path}: {len(labels)} samples in {steps} steps by the rule {self.diffusion.rule}"]

        def export(path: Path, facts: dict[str, Any]) -> None:
            if self.variance:
                known = data.train.batch(range(0, len(data.train), -(-len(data.train) // 512)))
                device = next(model.parameters()).device
                batches = [(known.to(device), Key.of(self.trainer.seed, len(known)).to(device))]
                plain = config.build_denoiser(model).to(device)
                config.variance = optimal_variance(plain, batches, self.variance).tolist()
            card = picture_card(self.trainer.out, config, asdict(self), facts)
            PictureCheckpoint(model, config, card).save(path)

        fingerprints = {"images": data.train.fingerprint, "model": fingerprint_of_model(model)}
        return Job(
            self.feed(data.train), collate, partial(measure, held), show, export, WORDS,
            recipe=self, kind="image", fingerprints=fingerprints, files=(SAMPLES,),
        )  # fmt: skip

    def feed(self, train: Pictures) -> Feed:
        """The numbers of images, every one once per epoch."""
        batch, seed = self.trainer.batch, self.trainer.seed

        def numbers(start: int, rank: int, world: int) -> Iterator[list[tuple[int, int]]]:
            for step in Batches(len(train), batch, seed, rank, world, start):
                yield [(number, number) for number in step]

        return numbers


def measure(held: Images, udm: UDM) -> dict[str, float]:
    """The loss per value, and the mean squared error of x0_hat, at fixed times and noise."""
    device = next(udm.parameters()).device
    x0, key = held.to(device), Key.of(0, len(held)).to(device)
    loss = error = count = 0.0
    for look in range(LOOKS):
        # the times of all looks and images lie evenly in (0, 1)
        t = (torch.arange(len(x0), device=device, dtype=torch.float64) * LOOKS + look + 0.5) / (LOOKS * len(x0))
        noise = udm.process.noise(x0, key.fold(look))
        xt = udm.process.corrupt(x0, noise, t)
        posterior = udm.denoiser(xt, t)
        draw = posterior.sample(Decode(temperature=0), key)
        loss -= float(posterior.log_prob(udm.process.align(x0, noise, t)).double().sum())
        error += float((draw.x0.pixels - x0.pixels).double().square().sum())
        count += x0.pixels.numel()
    return {"loss": loss / count, "squared_error": error / count}


# ---------------------------------------------------------------------------------------------------------------- models


def _unet(config: PictureModelConfig, train: Pictures) -> Any:
    channels, height, width = train.values.shape[1:]
    levels = len(config.channels)
    if any(size % 8 or size < 8 for size in config.channels):
        raise ValueError(f"channels {config.channels} are not all multiples of 8")
    if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
        raise ValueError(f"{height} x {width} cannot be halved {levels - 1} times; give fewer channels, or data.size")
    low = "Attn" if config.attention else ""
    return diffusers().UNet2DModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers,
        down_block_types=(*["DownBlock2D"] * (levels - 1), f"{low}DownBlock2D"),
        up_block_types=(f"{low}UpBlock2D", *["UpBlock2D"] * (levels - 1)),
        add_attention=config.attention,
        attention_head_dim=8,
        norm_num_groups=8,
        dropout=config.dropout,
        num_class_embeds=len(train.names) or None,
    )


def _dit(config: PictureModelConfig, train: Pictures) -> Any:
    channels, height, width = train.values.shape[1:]
    if not train.names:
        raise ValueError("it needs classes, set data.label_column or model.family unet")
    if height != width or height % 2 or config.channels[-1] % 16:
        raise ValueError(f"{height} x {width} must be an even square, and {config.channels[-1]} a multiple of 16")
    return diffusers().DiTTransformer2DModel(
        num_attention_heads=config.channels[-1] // 16,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=channels,
        num_layers=config.layers,
        sample_size=height,
        patch_size=2,
        dropout=config.dropout,
        num_embeds_ada_norm=len(train.names),
    )


def _check_model(path: str) -> str:
    """The class of a model to go on from. ValueError where it is not one of ours."""
    try:
        name = str(diffusers().UNet2DModel.load_config(path)["_class_name"])
    except Exception as error:  # diffusers raises all sorts
        raise ValueError(f"{path} is no model of pixels to go on from ({_first_line(error)})") from error
    if name not in MODELS:
        raise ValueError(f"{path} is no model of pixels to go on from (a {name}, not one of {', '.join(MODELS)})")
    return name


def _open_model(path: str) -> Any:
    name = _check_model(path)
    try:
        return from_diffusers(getattr(diffusers(), name), path)
    except Exception as error:
        raise ValueError(f"{path} is no model of pixels to go on from ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
