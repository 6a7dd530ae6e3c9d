"""What the pipelines of texts have in common: a model's route, its scores, how it samples, and saving."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from textdiff.automata import text_automaton
from textdiff.checkpoint import Checkpoint, DiffusionConfig, check_kind, find_config, write_stock
from textdiff.choosing import choose, few
from textdiff.clocks import steps_of
from textdiff.denoiser import Denoiser, Guided
from textdiff.filling import Infill, Page
from textdiff.gaps import Parts, parse
from textdiff.hub import push, save
from textdiff.loading import need_finite
from textdiff.manifest import verify_folder, write_folder
from textdiff.pipelines.options import DRAWING, check_rule, given_options
from textdiff.posterior import Decode
from textdiff.scoring import rank, score, scorer
from textdiff.stock import Likelihood, Route, checkpoint_route, stock_route, unwrapped
from textdiff.tuning import HALVED

_DECODE = (*DRAWING, "max_gap", "max_calls")
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
        model = unwrapped(model)
        need_finite(model)
        half = model.dtype in (torch.float16, torch.bfloat16) and not getattr(model, HALVED, False)
        if half and model.device.type == "cpu":
            model.float()
        source = model.config._name_or_path
        path = None if config is not None else find_config(source)
        if path is not None:
            verify_folder(path.parent)
            config = DiffusionConfig.read(path)
        elif source and Path(source).is_dir():
            verify_folder(source)
        if config is None:
            return cls(stock_route(model, tokenizer), None)
        check_kind(model, config)
        checkpoint = Checkpoint(model, tokenizer, config)
        return cls(checkpoint_route(checkpoint), checkpoint)

    @cached_property
    def scorer(self) -> dict[str, Any]:
        """What scores need."""
        return scorer(self.route)

    def score(self, texts: str | Sequence[str], **options: Any) -> Any:
        """See `scoring.score`. A list of texts gives a list."""
        given = given_options(options, ("draws", "window", "seed"))
        self.check_draws(given)
        found = score([texts] if isinstance(texts, str) else texts, **self.scorer, **given)
        results = [asdict(result) for result in found]
        return results[0] if isinstance(texts, str) else results

    def check_draws(self, given: dict[str, Any]) -> None:
        """ValueError where draws are given to a model that draws nothing."""
        if "draws" in given and self.scorer["kind"].startswith("exact"):
            raise ValueError("draws has no effect: the scores of this model are exact; leave draws out")

    def rank(self, text: str | Parts, fillings: Sequence[Any], **options: Any) -> list[dict[str, Any]]:
        """See `scoring.rank`; the model's own mask token is a gap of one token, as in infilling."""
        parts = parse(text, self.route.tokenizer.mask_token) if isinstance(text, str) else text
        given = given_options(options, ("draws", "seed"))
        self.check_draws(given)
        found = rank(parts, fillings, **self.scorer, **given)
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

    def sampling(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return steps, rule, seed and decode: as the options ask, else the route's own. The time of max_time begins now."""
        route = self.route
        drawn = {name: options[name] for name in _DECODE if name in options}
        if options.get("num_return_sequences", 1) > 1 and route.decode.temperature == 0:
            drawn = {"temperature": SAMPLED, **drawn}
        heat = drawn.get("temperature", route.decode.temperature)
        idle = [name for name in ("top_k", "top_p", "min_p") if name in options]
        if heat == 0 and idle:
            raise ValueError(f"{idle[0]} has no effect at temperature 0; give temperature=1.0, or leave {idle[0]} out")
        processors = tuple(options.get("logits_processor", ()))
        deadline = Decode.within(options.get("max_time"))
        text = text_automaton(route.tokenizer, route.specials.size, route.specials.not_text)
        return {
            "steps": steps_of(options.get("num_steps", route.steps)),
            "rule": check_rule(options.get("rule", route.rule)),
            "seed": options.get("seed", 0),
            "decode": replace(route.decode, **drawn, text=text, processors=processors, deadline=deadline),
        }

    def denoiser(self, options: dict[str, Any]) -> Denoiser:
        """The route's denoiser, guided where that is asked for (`guided.Guided`)."""
        if (scale := options.get("guidance")) is None:
            if "guidance_schedule" in options:
                raise ValueError("guidance_schedule has no effect without guidance; give guidance=1.0, or leave it out")
            return self.route.denoiser
        return Guided.of(self.route.denoiser, scale, options.get("guidance_schedule", "constant"))

    def save(self, folder: str | Path, options: dict[str, Any]) -> None:
        """A checkpoint with its card (`hub.save`), or a stock model as it is; options are those of push_to_hub=True."""
        upload = options.pop("push_to_hub", False)
        if options and not upload:
            raise ValueError(
                f"unknown option {', '.join(sorted(options))}; there is push_to_hub=True, with its options"
            )
        if self.checkpoint is not None:
            save(self.checkpoint, folder)
        else:
            write_folder(folder, self._write_stock)
        if upload:
            self.push(options.pop("repo_id", Path(folder).name), **options)

    def _write_stock(self, folder: Path) -> None:
        write_stock(self.route.denoiser.model, self.route.tokenizer, folder)

    def push(self, repo_id: str, **options: Any) -> str:
        """Upload what `save` writes (`hub.push`); returns the repository's address."""
        checkpoint = self.checkpoint

        def write(folder: Path, name: str) -> None:
            if checkpoint is None:
                write_folder(folder, self._write_stock)
            else:
                save(checkpoint, folder, name)

        return push(write, repo_id, **options)
