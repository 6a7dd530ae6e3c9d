"""When an option of training has an effect: a run does what it is told, or says that it cannot.

`EFFECTS` says of every option that not all runs heed which of them do. Another value than the default is refused where it
would change nothing. `ALWAYS` are heeded by all; `ELSEWHERE` are refused by what they are read with (`zoo.check`,
`ModelConfig`, `PictureDiffusion`, `reading`). A test holds that every option is in one of the three.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from textdiff.config import settings_of
from textdiff.spectral import STARTS
from textdiff.zoo import parts

_TRAINER = """trainer.out trainer.steps trainer.minutes trainer.batch trainer.accumulate trainer.optimizer trainer.lr
    trainer.embedding_lr trainer.weight_decay trainer.beta2 trainer.warmup trainer.clip trainer.ema trainer.seed
    trainer.precision trainer.compile trainer.log_every trainer.measure_every trainer.save_every trainer.keep trainer.resume
    trainer.overwrite"""
_TEXT = """data.dataset data.split data.validation_split data.text_column data.streaming data.context data.shortest
    tokenizer.path model.path diffusion.denoiser diffusion.process diffusion.schedule diffusion.num_steps diffusion.rule
    diffusion.temperature diffusion.top_k diffusion.top_p diffusion.max_gap examples"""
_IMAGE = """data.dataset data.split data.validation_split data.label_column data.size data.mode model.path diffusion.process
    diffusion.loss diffusion.clip diffusion.num_steps diffusion.rule trainer.show_every variance"""
ALWAYS = {"text": {*_TRAINER.split(), *_TEXT.split()}, "image": {*_TRAINER.split(), *_IMAGE.split()}}
_TEXT_ELSEWHERE = """data.config model.weights model.lora diffusion.staged diffusion.counts diffusion.different
    diffusion.masked diffusion.backbone diffusion.shift diffusion.block diffusion.self_conditioning"""
_IMAGE_ELSEWHERE = "diffusion.schedule diffusion.highest diffusion.noise diffusion.predict"
ELSEWHERE = {"text": {*_TEXT_ELSEWHERE.split()}, "image": {*_IMAGE_ELSEWHERE.split()}}


class Effect(NamedTuple):
    """Whether a run (its options by their dotted names) heeds an option, and which runs do, in words."""

    heeded: Callable[[Mapping[str, Any]], bool]
    by: str


def _names(run: Mapping[str, Any]) -> set[str]:
    return {name for _, name in parts(run["diffusion.process"])}


def _starts(run: Mapping[str, Any]) -> bool:
    """Whether a model begins from the bigrams of the texts, unless told not to."""
    causal = run["diffusion.backbone"] == "causal"
    known = causal or run["diffusion.denoiser"] in STARTS
    return run["model.path"] is None and known and (not causal or run["diffusion.shift"])


_SCRATCH = Effect(lambda run: run["model.path"] is None, "models from scratch, not model.path")
_DRAWN = Effect(
    lambda run: run["objective.blank"] < 1 and run["objective.steps"] != 1, "times that are drawn, not t = 1 alone"
)
_BOTH = {
    "objective.power": _DRAWN,
    "objective.blank": Effect(
        lambda run: run["objective.steps"] != 1, "objective.steps other than 1, whose time is t = 1"
    ),
    "objective.steps": Effect(lambda run: run["objective.blank"] < 1, "objective.blank below 1, at which t = 1 always"),
    "trainer.muon_lr": Effect(lambda run: run["trainer.optimizer"] == "muon", "trainer.optimizer muon"),
    "trainer.floor": Effect(lambda run: run["trainer.warmup"] < 1, "trainer.warmup below 1"),
}
EFFECTS = {
    "text": {
        **_BOTH,
        "data.packed": Effect(
            lambda run: run["trainer.batch"] > run["trainer.accumulate"], "micro-batches of several windows (trainer.batch)"
        ),
        "tokenizer.vocab": Effect(
            lambda run: run["tokenizer.path"] is None and run["model.path"] is None, "tokenizers that are learned"
        ),
        "model.preset": _SCRATCH,
        "model.start": Effect(_starts, "models from scratch that begin from bigrams: causal and masked ones"),
        "model.context": Effect(
            lambda run: run["diffusion.denoiser"] == "autoregressive"
            and (not run["diffusion.bidirectional"] or run["model.context"] == 0),
            "denoiser autoregressive, not bidirectional",
        ),
        "diffusion.edits": Effect(lambda run: "edit" in _names(run), "process edit"),
        "diffusion.bidirectional": Effect(
            lambda run: run["diffusion.denoiser"] == "autoregressive", "denoiser autoregressive"
        ),
        "diffusion.candidates": Effect(
            lambda run: run["diffusion.denoiser"] == "autoregressive" and not run["diffusion.bidirectional"],
            "denoiser autoregressive, not bidirectional: other models cannot compare whole texts",
        ),
        "noise.spans": Effect(
            lambda run: "deletion" in _names(run) or ("masking" in _names(run) and not run["diffusion.counts"]),
            "process deletion, or masking without counts",
        ),
        "noise.counted": Effect(lambda run: bool(_names(run) & {"deletion", "edit"}), "process deletion or edit"),
        "objective.weighted": Effect(lambda run: _names(run) == {"masking"}, "process masking; others weigh all alike"),
        "trainer.show_every": Effect(lambda run: bool(run["examples"]), "runs with examples"),
    },
    "image": {
        **_BOTH,
        "data.config": Effect(lambda run: run["data.dataset"] != "digits", "data sets other than digits"),
        "data.image_column": Effect(lambda run: run["data.dataset"] != "digits", "data sets other than digits"),
        "model.family": _SCRATCH,
        "model.channels": _SCRATCH,
        "model.layers": _SCRATCH,
        "model.dropout": _SCRATCH,
        "model.attention": Effect(
            lambda run: run["model.path"] is None and run["model.family"] == "unet", "model.family unet, from scratch"
        ),
        "objective.weighted": Effect(lambda run: False, "process masking, of texts"),
    },
}  # fmt: skip


def check_effects(recipe: Any, kind: str) -> None:
    """Refuse an option that differs from its default and changes nothing; a run that goes on is as it was.

    Args:
        recipe: The options of a whole run, a dataclass with a section per field.
        kind: text or image.

    Raises:
        ValueError: Naming the option, its value, and the runs that it is for.
    """
    if recipe.trainer.resume:
        return
    run, default = settings_of(recipe), _defaults(recipe)
    for name, effect in EFFECTS[kind].items():
        if run[name] != default[name] and not effect.heeded(run):
            value = " ".join(map(str, run[name])) if isinstance(run[name], list) else run[name]
            raise ValueError(f"{name} {value} has no effect in this run: it is for {effect.by}; leave it out")


def _defaults(recipe: Any) -> dict[str, Any]:
    sections = {entry.name: entry.default_factory for entry in fields(recipe) if entry.default_factory is not MISSING}
    return {
        f"{section}.{name}": value for section, make in sections.items() for name, value in settings_of(make()).items()
    }
