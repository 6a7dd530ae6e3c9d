"""What the pipelines of texts have in common: a model's route, its scores, how it samples, and saving."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from textdiff.checkpoint import Checkpoint, DiffusionConfig, find_config
from textdiff.choosing import choose, few
from textdiff.clocks import steps_of
from textdiff.denoiser import Denoiser, Guided
from textdiff.filling import Infill, Page
from textdiff.gaps import Parts, parse
from textdiff.hub import push, save
from textdiff.posterior import Decode
from textdiff.rulebook import rule_of
from textdiff.sampler import after
from textdiff.scoring import rank, score, scorer
from textdiff.stock import Likelihood, Route, checkpoint_route, stock_route

SAMPLED = 0.7  # the temperature of several sequences by a model whose default is the most probable one


@dataclass(frozen=True)
class Opened:
    """A model as a pipeline uses it: the way that it goes, and the checkpoint where it is one."""

    route: Route
    checkpoint: Checkpoint | None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, config: DiffusionConfig | None) -> "Opened":
        """By `config`, else by the `diffusion_config.json` beside the model, else by the kind of stock model.

        The model gets the precision of the machine, not of the file. ValueError, with the reason, for one that cannot serve.
        """
        if model.device.type == "cpu" and model.dtype in (torch.float16, torch.bfloat16):
            model.float()
        path = None if config is not None else find_config(model.config._name_or_path)
        if path is not None:
            config = DiffusionConfig.read(path)
        if config is None:
            return cls(stock_route(model, tokenizer), None)
        checkpoint = Checkpoint(model, tokenizer, config)
        return cls(checkpoint_route(checkpoint), checkpoint)

    @cached_property
    def scorer(self) -> dict[str, Any]:
        """What scores need."""
        return scorer(self.route)

    def score(self, texts: str | Sequence[str], **options: Any) -> Any:
        """See `scoring.score`. A list of texts gives a list."""
        found = score([texts] if isinstance(texts, str) else texts, **self.scorer, **options)
        results = [asdict(result) for result in found]
        return results[0] if isinstance(texts, str) else results

    def rank(self, text: str | Parts, fillings: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
        """See `scoring.rank`; the model's own mask token is a gap of one token, as in infilling."""
        parts = parse(text, self.route.tokenizer.mask_token) if isinstance(text, str) else text
        found = rank(parts, fillings, **self.scorer, **options)
        return [{"filling": list(one.filling), **asdict(one.score)} for one in found]

    def choose(self, page: Page, decode: Decode, seed: int, samples: int) -> list[Infill] | None:
        """See `choosing.choose`; None where something else than choices is open, or no exact score compares them."""
        found = self._likelihood
        if found.refusal or not found.kind.startswith("exact") or not few(page):
            return None
        tools = {name: self.scorer[name] for name in ("denoiser", "process", "tokenizer", "specials", "kind")}
        return choose(page, decode=decode, seed=seed, samples=samples, **tools)

    @cached_property
    def _likelihood(self) -> Likelihood:
        return self.route.likelihood()

    def sampling(self, options: dict[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """steps, rule, seed, stop; and those of `names` that say how words are drawn: as asked for, else the route's own."""
        route, samples = self.route, options.get("num_return_sequences", 1)
        if samples < 1:
            raise ValueError(f"num_return_sequences {samples} is not positive; 1 gives one text")
        drawn: dict[str, Any] = {name: options[name] for name in names if name in options}
        if samples > 1 and route.decode.temperature == 0:
            drawn = {"temperature": SAMPLED, **drawn}
        wanted: dict[str, Any] = {
            "steps": steps_of(options.get("num_steps", route.steps)),
            "seed": options.get("seed", 0),
        }
        if (seconds := options.get("max_time")) is not None:
            wanted["stop"] = after(seconds)
        return wanted | {"rule": rule_of(options.get("rule", route.rule))}, drawn

    def denoiser(self, options: dict[str, Any]) -> Denoiser:
        """The route's denoiser, guided where that is asked for (`guided.Guided`)."""
        if (scale := options.get("guidance")) is None:
            return self.route.denoiser
        return Guided.of(self.route.denoiser, scale, options.get("guidance_schedule", "constant"))

    def save(self, folder: str | Path, options: dict[str, Any]) -> None:
        """A complete checkpoint with its card (`hub.save`); options are those of push_to_hub, for push_to_hub=True."""
        if options.pop("push_to_hub", False):
            self.push(options.pop("repo_id", Path(folder).name), **options)
        elif options:
            raise ValueError(
                f"unknown option {', '.join(sorted(options))}; there is push_to_hub=True, with its options"
            )
        save(self._need("save_pretrained"), folder)

    def push(self, repo_id: str, **options: Any) -> str:
        """Upload the checkpoint with its card (`hub.push`); returns the repository's address."""
        return push(self._need("push_to_hub"), repo_id, **options)

    def _need(self, what: str) -> Checkpoint:
        if self.checkpoint is None:
            raise ValueError(f"{what} is for textdiff checkpoints; this model has no diffusion_config.json")
        return self.checkpoint
