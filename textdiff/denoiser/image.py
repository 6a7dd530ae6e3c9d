"""Images: q(x0 | xt) = N(x0; mean(xt), variance_t), by a stock diffusers model that says eps, x0 or v (kexue.fm 9262, 9271).

With v = (A eps - w x0) / u and u^2 = A^2 + w^2, the mean is x0 = (xt - w eps) / A or (A xt - w u v) / u^2. The loss is the
squared error of what the network says, which is -log q for the variance it implies (Su drops the coefficient); for cold
processes the absolute error, of a Laplace law. The variance of sampling is 0 (DDPM, DDIM), or what is measured
afterwards: E |x0 - mean|^2 / d is its best value (Analytic-DPM, arXiv:2201.06503; kexue.fm archives 9245).
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from textdiff.denoiser.base import Denoiser
from textdiff.images import Images
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process.gaussian import Affine, per_image

Space = Literal["eps", "x0", "v"]
Reader = Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]  # (model, pixels, t, labels) -> (B, C, H, W)

# What is left of the data where DDPM ends, sqrt(4e-5): below it, eps says nothing of x0, and dividing by A is noise.
LEAST_GAIN = 6e-3
# Less noise than this is lost in the rounding of float32 pixels, and cannot be asked for.
LEAST_SPREAD = 1e-3


class Pixels(Denoiser):
    """A stock `UNet2DModel` or `DiTTransformer2DModel` for images under a process.

    It is told the time as 1000 t - 1, the index of diffusers' alphas_cumprod. predict: what the network says; eps and v
    only where A_t is one number; where a schedule ends at 0, v and x0 are sound at t = 1 and eps is not. loss: l2, or l1.
    variance: (T + 1,) of x0 given xt, at t = 0, 1/T, ..., 1 (see `optimal_variance`); None is 0. clip: keep x0_hat within
    [-1, 1], as data is. ValueError for models and options that do not fit.

    In training a DiT forgets a tenth of its labels, for guidance, by torch's own generator and not by a `Key`.
    """

    def __init__(
        self,
        model: Any,
        process: Affine,
        predict: Space = "eps",
        loss: Literal["l2", "l1"] = "l2",
        variance: Tensor | None = None,
        clip: bool = True,
    ) -> None:
        super().__init__()
        if predict not in ("eps", "x0", "v"):
            raise ValueError(f"predict {predict!r} is not known; give 'eps', 'x0' or 'v'")
        if loss not in ("l2", "l1"):
            raise ValueError(f"loss {loss!r} is not known; give 'l2' or 'l1'")
        if predict != "x0":
            process.gain(torch.ones(1, dtype=torch.float64))  # says what is wrong where there is none
        self.model, self.process, self.predict, self.loss, self.clip = model, process, predict, loss, clip
        self.ask, self.classes = _reader(model)
        self.variance: Tensor | None
        self.register_buffer("variance", None if variance is None else _table(variance), persistent=False)

    @property
    def longest(self) -> int | None:
        """None: images have no length."""
        return None

    def forward(self, xt: Images, t: Tensor) -> Posterior:
        self._check(xt)
        seen = xt.pixels / per_image(self.process.scale(t), xt.pixels)
        return Normal(self, xt, t, self.ask(self.model, seen, t, xt.label if self.classes else None))

    def mean(self, said: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x0 that the network's word means, (B, C, H, W)."""
        if self.predict == "x0":
            return said
        gain, spread, scale = self._numbers(xt, t)
        if self.predict == "eps":
            return (xt - spread * said) / gain.clamp_min(LEAST_GAIN)
        return (gain * xt - spread * scale * said) / scale**2

    def target(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """What the network should say, (B, C, H, W)."""
        if self.predict == "x0":
            return x0
        gain, spread, scale = self._numbers(xt, t)
        if self.predict == "eps":
            return (xt - gain * x0) / spread
        return (gain * xt - scale**2 * x0) / (spread * scale)

    def deviation(self, t: Tensor) -> Tensor:
        """(B,) float64, the standard deviation of x0 around the mean."""
        if self.variance is None:
            return torch.zeros_like(t)
        place = t * (len(self.variance) - 1)
        left = place.floor().long().clamp(0, len(self.variance) - 2)
        low, high = self.variance[left], self.variance[left + 1]
        return (low + (place - left) * (high - low)).sqrt()

    def _numbers(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        process = self.process
        values = process.gain(t), process.spread(t).clamp_min(LEAST_SPREAD), process.scale(t)
        gain, spread, scale = (per_image(value, like) for value in values)
        return gain, spread, scale

    def _check(self, x: Images) -> None:
        config, shape = self.model.config, tuple(x.pixels.shape[1:])
        sides = config.sample_size
        sides = shape[1:] if sides is None else (sides, sides) if isinstance(sides, int) else tuple(sides)
        if shape != (config.in_channels, *sides):
            raise ValueError(
                f"images of {shape} channels and pixels are not what the model reads, {(config.in_channels, *sides)}; "
                "resize them, or configure the model's in_channels and sample_size for them"
            )
        if not self.classes or not len(x):
            return
        if bool((x.label == -1).any()):
            raise ValueError("images without a label for a model of classes; give labels, or a model without classes")
        if int(x.label.min()) < 0 or int(x.label.max()) >= self.classes:
            wrong = x.label[(x.label < 0) | (x.label >= self.classes)][0]
            raise ValueError(f"label {int(wrong)} is none of the model's classes, 0 to {self.classes - 1}")


class Normal(Posterior):
    """N(x0; mean, variance_t) around what the network said."""

    factorised = True

    def __init__(self, denoiser: Pixels, xt: Images, t: Tensor, said: Tensor) -> None:
        self.denoiser, self.xt, self.t, self.said = denoiser, xt, t, said

    def sample(self, decode: Decode, key: Key) -> Draw:
        x0 = self.denoiser.mean(self.said, self.xt.pixels, self.t)
        if self.denoiser.variance is not None:
            deviation = per_image(decode.temperature * self.denoiser.deviation(self.t), x0)
            x0 = x0 + deviation * key.normal(x0[0].numel()).view(x0.shape).to(x0.dtype)
        x0 = x0.clamp(-1, 1) if self.denoiser.clip else x0
        return Draw(self.xt.with_(x0), torch.empty(0, dtype=torch.int64, device=x0.device), torch.zeros(()))

    def log_prob(self, truth: Draw) -> Tensor:
        """(B, C H W), up to a constant: minus half the squared error of what was said; of l1, minus the absolute one."""
        error = (self.said - self.denoiser.target(truth.x0.pixels, self.xt.pixels, self.t)).flatten(1)
        return -error.abs() if self.denoiser.loss == "l1" else -(error**2) / 2


@torch.no_grad()
def optimal_variance(denoiser: Pixels, batches: Iterable[tuple[Images, Key]], times: int = 50) -> Tensor:
    """(times + 1,) float64, the mean of (x0 - mean)^2 per pixel at t = 0, 1/times, ..., 1, over batches of data and keys.

    The variance with which N(mean, variance) is closest to q(x0 | xt): give it to `Pixels`. ValueError for no data.
    """
    if times < 1:
        raise ValueError(f"times {times} is not positive; as many as steps of sampling are a good number")
    total, count = torch.zeros(times + 1, dtype=torch.float64), 0
    for x0, key in batches:
        for number in range(1, times + 1):  # at t = 0 the image is there
            t = torch.full((len(x0),), number / times, dtype=torch.float64, device=x0.pixels.device)
            xt = denoiser.process.corrupt(x0, denoiser.process.noise(x0, key.fold(number)), t)
            draw = denoiser(xt, t).sample(Decode(temperature=0), key)
            total[number] += (draw.x0.pixels - x0.pixels).double().pow(2).sum().cpu()
        count += x0.pixels.numel()
    if not count:
        raise ValueError("no images to measure the variance on; give batches of data")
    return total / count


def _reader(model: Any) -> tuple[Reader, int]:
    """How a model of this family is asked, and the number of its classes, 0 for none."""
    first = next(iter(inspect.signature(model.forward).parameters))
    if first not in ("sample", "hidden_states"):
        raise ValueError(f"{type(model).__name__} is no UNet2DModel and no DiTTransformer2DModel; give one of these")
    config = model.config
    if config.out_channels not in (None, config.in_channels):
        raise ValueError(
            f"the model reads {config.in_channels} channels and writes {config.out_channels}; give it as many out_channels"
        )
    if first == "sample":
        return _ask_unet, config.num_class_embeds or 0
    return _ask_dit, config.num_embeds_ada_norm


def _ask_unet(model: Any, pixels: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    return model(pixels, (1000 * t - 1).clamp_min(0).float(), class_labels=label).sample


def _ask_dit(model: Any, pixels: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
    return model(pixels, timestep=(1000 * t - 1).round().long().clamp(0, 999), class_labels=label).sample


def _table(variance: Tensor) -> Tensor:
    values = torch.as_tensor(variance, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2 or not bool((values >= 0).all()):
        raise ValueError(f"variance of shape {tuple(values.shape)} is no table (T + 1,) of numbers from 0 on")
    return values
