"""The loop against diffusers: the same network, the same noise, 50 steps, and every state agrees.

`Steps([1, *alphas_cumprod])` is diffusers' schedule of 1000 steps: t = k/1000 is the state after k of them, whose index
there is k - 1. The sampler's 50 equal steps of time are then the timesteps 999, 979, ..., 19 that diffusers calls
"trailing", and its last one leads to alpha = 1. `Pixels` tells the network the same 999, 979, ..., 19.
The tolerance is 1e-5 in float32 and 1e-9 in float64, of the largest pixel of a state where it is above 1: a network with
random weights knows nothing of noise, and x0_hat = (x_t - w eps) / A runs away unless it is clipped.
"""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor, nn

from textdiff.denoiser import Pixels
from textdiff.images import Images
from textdiff.keys import Key
from textdiff.process import VariancePreserving
from textdiff.rules import sde
from textdiff.sampler import sample
from textdiff.schedule import Betas, Steps
from textdiff.udm import UDM

STEPS, COUNT = 50, 3
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
}
DIT = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}


def seeded(family, settings: dict) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = family(**settings).eval()
        for parameter in model.parameters():  # a DiT begins as the zero function
            torch.nn.init.normal_(parameter, std=0.1)
    return model


class Wave(nn.Module):
    """A function in closed form with the face of a UNet2DModel; float64 stays float64."""

    config = SimpleNamespace(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=None)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        slow = timestep.to(sample.dtype).view(-1, 1, 1, 1) / 1000
        return SimpleNamespace(sample=0.9 * sample + 0.3 * torch.sin(3 * sample.roll(1, 3) + slow))


def scheduler(family, predict: str, clip: bool, **settings):
    made = family(
        clip_sample=clip,
        timestep_spacing="trailing",
        prediction_type={"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[predict],
        **settings,
    )
    made.alphas_cumprod = made.alphas_cumprod.double()  # so that its coefficients, too, are exact
    made.set_timesteps(STEPS)
    return made


def ours(model: nn.Module, made, start: Images, key: Key, eta: float, predict: str, clip: bool) -> list[Tensor]:
    process = VariancePreserving(Steps([1, *made.alphas_cumprod.tolist()]))
    denoiser = Pixels(model, process, predict=predict, clip=clip)
    return [step.x.pixels for step in sample(denoiser, process, start, steps=STEPS, key=key, rule=sde(eta))]


def theirs(model: nn.Module, made, start: Images, noises: list[Tensor], monkeypatch, eta: float) -> list[Tensor]:
    x, states = start.pixels, []
    labels = start.label if int(start.label.max()) >= 0 else None
    for noise, t in zip(noises, made.timesteps, strict=True):
        with torch.no_grad():
            said = model(x, timestep=t.expand(len(x)), class_labels=labels).sample
        if isinstance(made, DDIMScheduler):
            extra = {"eta": eta, "variance_noise": noise if eta else None, "use_clipped_model_output": True}
        else:
            extra = {}
            monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, noise=noise, **__: noise)
        x = made.step(said, t, x, **extra).prev_sample.to(x.dtype)
        states.append(x)
    return states


def apart(model, family, eta, monkeypatch, predict="eps", clip=False, dtype=torch.float64, labels=None) -> float:
    """The largest difference of any pixel in any of the 50 states, relative to the state's largest pixel (or 1)."""
    made = scheduler(family, predict, clip)
    key = Key.of(0, COUNT)
    start = Images(key.fold(99).normal(64).view(-1, 1, 8, 8).to(dtype), torch.full((COUNT,), -1))
    start = start if labels is None else Images(start.pixels, labels)
    # where the rule `sde` draws: use 1 of the key of this step's second use
    noises = [key.fold(2 * number + 1).fold(1).normal(64).view(-1, 1, 8, 8).to(dtype) for number in range(STEPS)]
    mine = ours(model, made, start, key, eta, predict, clip)
    other = theirs(model, made, start, noises, monkeypatch, eta)
    assert len(mine) == len(other) == STEPS and float(other[-1].std()) > 0.05
    assert all(bool(state.isfinite().all()) for state in (*mine, *other))
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(mine, other, strict=True))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float, monkeypatch) -> None:
    """DDIMScheduler at eta is the rule sde(eta); eta = 0 is `ode`, eta = 1 DDPM."""
    assert apart(Wave(), DDIMScheduler, eta, monkeypatch) < 1e-9
    if eta == 0.5:  # a network of theirs takes much longer, and knows nothing of eta
        assert apart(seeded(UNet2DModel, UNET), DDIMScheduler, eta, monkeypatch, dtype=torch.float32) < 1e-5


def test_ddpm(monkeypatch) -> None:
    """DDPMScheduler with its small variance is the rule sde(1)."""
    assert apart(seeded(UNet2DModel, UNET), DDPMScheduler, 1.0, monkeypatch, dtype=torch.float32) < 1e-5
    assert apart(Wave(), DDPMScheduler, 1.0, monkeypatch) < 1e-9


@pytest.mark.parametrize("family", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_whatever_the_network_says(family, predict: str, monkeypatch) -> None:
    """eps, x0 and v, with x0_hat kept within [-1, 1]: its noise is then the one that goes with the clipped x0_hat."""
    assert apart(Wave(), family, 1.0, monkeypatch, predict, clip=True) < 1e-9


def test_a_transformer_of_classes(monkeypatch) -> None:
    model = seeded(DiTTransformer2DModel, DIT)
    labels = torch.tensor([3, 0, 9])
    assert apart(model, DDIMScheduler, 0.5, monkeypatch, dtype=torch.float32, labels=labels) < 1e-5
    blank = torch.tensor([4, 4, 4])  # the labels do matter
    start = Images(Key.of(0, 3).normal(64).view(-1, 1, 8, 8).float(), labels)
    made = scheduler(DDIMScheduler, "eps", False)
    run = [
        ours(model, made, Images(start.pixels, label), Key.of(0, 3), 0, "eps", False)[-1] for label in (labels, blank)
    ]
    assert float((run[0] - run[1]).abs().max()) > 1e-3


def test_differences_are_noticed(monkeypatch) -> None:
    """Another eta, and the schedule one of 1000 steps away."""
    made = scheduler(DDIMScheduler, "eps", False)
    key = Key.of(0, COUNT)
    start = Images(key.normal(64).view(-1, 1, 8, 8), torch.full((COUNT,), -1))
    noises = [key.fold(2 * number + 1).fold(1).normal(64).view(-1, 1, 8, 8) for number in range(STEPS)]
    other = theirs(Wave(), made, start, noises, monkeypatch, 0.5)[-1]
    assert float((ours(Wave(), made, start, key, 0.5, "eps", False)[-1] - other).abs().max()) < 1e-9
    assert float((ours(Wave(), made, start, key, 0.55, "eps", False)[-1] - other).abs().max()) > 1e-3
    made.alphas_cumprod = made.alphas_cumprod.roll(1).index_fill(0, torch.tensor(0), 1 - 1e-6)
    assert float((ours(Wave(), made, start, key, 0.5, "eps", False)[-1] - other).abs().max()) > 1e-4


def test_betas_are_ddpms() -> None:
    """The continuous schedule `Betas` is DDPM's of 1000 steps, within 1e-3 of the share of variance."""
    steps = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(Betas().alpha(steps), DDPMScheduler().alphas_cumprod.double(), atol=1e-3)


@pytest.mark.parametrize(("family", "settings"), [(UNet2DModel, UNET), (DiTTransformer2DModel, DIT)])
def test_every_weight_learns(family, settings: dict) -> None:
    """One training step reaches the whole stock model. (Labels that the batch lacks have no gradient of their own.)"""
    pixels = (Key.of(6, COUNT).uniform(64) * 2 - 1).view(-1, 1, 8, 8).float()
    model, x0 = seeded(family, settings), Images.of(pixels, torch.arange(COUNT))
    udm = UDM(process := VariancePreserving(), Pixels(model, process))
    loss = udm(x0, Key.of(5, COUNT))
    loss.total.backward()
    assert float(loss.size) == COUNT * 64
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
