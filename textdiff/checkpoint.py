"""A checkpoint is a stock model, its tokenizer and `diffusion_config.json`: it opens in plain transformers, too.

Weights are safetensors, never pickle; no code is loaded from a checkpoint.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textdiff import rules, schedule
from textdiff.denoiser import Autoregressive, Denoiser, Parallel
from textdiff.posterior import Decode
from textdiff.process import Deletion, Masking, Process
from textdiff.tokenizer import load_tokenizer, specials
from textdiff.tokens import Specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG_NAME = "diffusion_config.json"
FORMAT = 1

# the names users write, resolved here once
SCHEDULES: dict[str, Callable[[], schedule.Schedule]] = {"linear": schedule.Linear, "cosine": schedule.Cosine}
PROCESSES: dict[str, Callable[..., Process]] = {"deletion": Deletion, "masking": Masking}
AUTO_CLASSES = {
    "parallel": "AutoModelForMaskedLM",
    "autoregressive": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


def rule_of(name: str) -> rules.Rule:
    """The rule a user named: fresh, posterior, ranked, or partial:RHO such as partial:0.3."""
    if name.startswith("partial"):
        try:
            return rules.partial(float(name.partition(":")[2] or 0.3))
        except ValueError as error:
            raise ValueError(f"rule {name!r}: write partial:RHO with RHO in [0, 1], such as partial:0.3") from error
    known = {"fresh": rules.fresh, "posterior": rules.posterior, "ranked": rules.ranked}
    return chosen(name, known, "rule", more="partial:RHO")


def chosen(name: str, known: dict[str, Any], what: str, more: str = "") -> Any:
    """known[name], or a ValueError that lists what there is."""
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join([*known, more] if more else known)}")
    return known[name]


@dataclass
class DiffusionConfig:
    """What turns a stock model into a denoiser, and how it is decoded by default: `diffusion_config.json`.

    Attributes:
        denoiser: How the model guesses: all words at once, or one after the other.
        process: How texts are corrupted.
        schedule: How fast.
        staged: Fill by drawing the lengths of gaps first and their words after (delete-then-mask), with deletion.
        bidirectional: Let an autoregressive denoiser see the whole visible text from everywhere (needs model.context 0).
        num_steps: Turns of the reverse process.
        rule: Which noise goes back in: fresh, posterior, ranked, or partial:RHO.
        temperature: 0 takes the most probable token.
        top_k: Tokens to choose from; 0 for all.
        top_p: Share of the probability to choose from.
        max_gap: The longest content of a gap, in tokens.
    """

    denoiser: Literal["parallel", "autoregressive", "seq2seq"] = "parallel"
    process: Literal["deletion", "masking"] = "deletion"
    schedule: Literal["linear", "cosine"] = "linear"
    staged: bool = False
    bidirectional: bool = False
    num_steps: int = 1
    rule: str = "posterior"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_gap: int = 64

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, default = getattr(self, entry.name), entry.default
            number = isinstance(default, float) and isinstance(value, int)
            if type(value) is not type(default) and not number:
                raise ValueError(f"{entry.name} {value!r} is not {type(default).__name__}, as in {default!r}")
        chosen(self.denoiser, AUTO_CLASSES, "denoiser")
        chosen(self.process, PROCESSES, "process")
        chosen(self.schedule, SCHEDULES, "schedule")
        if self.staged and self.process != "deletion":
            raise ValueError(f"staged is for process deletion, not {self.process}: masks have their lengths already")
        rule_of(self.rule)
        self.decode()
        if self.num_steps < 1:
            raise ValueError(f"num_steps {self.num_steps} is not positive; 1 fills everything at once")

    def decode(self) -> Decode:
        """How x0_hat is drawn."""
        return Decode(self.temperature, self.top_k, self.top_p, self.max_gap)

    def build_process(self, ids: Specials, **options: Any) -> Process:
        """The process, for training with `options` such as spans; `decode_process` is the one for decoding."""
        return PROCESSES[self.process](ids, SCHEDULES[self.schedule](), **options)

    def decode_process(self, ids: Specials) -> Process:
        """The process that is run in reverse to fill."""
        return self.build_process(ids, **({"staged": True} if self.staged else {}))

    def build_denoiser(self, model: Any, ids: Specials, context: float = 0.0) -> Denoiser:
        """The denoiser around a stock model."""
        if self.denoiser == "parallel":
            return Parallel(model, ids)
        return Autoregressive(model, ids, context, self.bidirectional)

    def likelihood(self, ids: Specials) -> tuple[Process, str]:
        """The process whose bound measures this denoiser, and what the figure is.

        A parallel one by masks, at given length; an autoregressive one in a single step, where it is exact.
        """
        if self.denoiser == "parallel" or self.process == "masking":
            return Masking(ids), "bound, length given"
        return self.build_process(ids), "exact, in one step"

    @classmethod
    def read(cls, path: Path) -> "DiffusionConfig":
        """From a file. ValueError for what is no configuration of this version."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error}); copy the checkpoint again") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not of format {FORMAT}; it needs another version of textdiff")
        unknown = sorted(set(values) - {entry.name for entry in fields(cls)})
        if unknown:
            raise ValueError(f"{path} has unknown keys {', '.join(unknown)}; remove them")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """As a file."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n", encoding="utf-8")


@dataclass
class Checkpoint:
    """A loaded checkpoint. `card` is the text of its model card."""

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    config: DiffusionConfig
    card: str = field(default="", repr=False)

    @property
    def specials(self) -> Specials:
        """The ids of the tokens that the process speaks with."""
        return specials(self.tokenizer)

    def tools(self) -> dict[str, Any]:
        """What `gaps.infill` needs of it."""
        ids = self.specials
        return {
            "denoiser": self.config.build_denoiser(self.model, ids).eval(),
            "process": self.config.decode_process(ids),
            "tokenizer": self.tokenizer,
            "specials": ids,
        }

    def save(self, path: str | Path) -> None:
        """Write the checkpoint; other files of the folder stay. Each file is replaced whole or not at all."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        part = path / ".part"
        shutil.rmtree(part, ignore_errors=True)
        self.model.save_pretrained(part)
        self.tokenizer.save_pretrained(part)
        _plain(part / "tokenizer_config.json")
        self.config.write(part / CONFIG_NAME)
        (part / "README.md").write_text(self.card, encoding="utf-8")
        for file in sorted(part.iterdir()):
            os.replace(file, path / file.name)
        part.rmdir()


def _plain(path: Path) -> None:
    """Let transformers' own pipelines read [MASK] in a text as the mask. This library never does (`load_tokenizer`)."""
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"split_special_tokens": False}, indent=2) + "\n", encoding="utf-8")


def load(path: str | Path) -> Checkpoint:
    """Open a checkpoint, a folder or a hub name. ValueError with the remedy where it is none, or is damaged."""
    import torch
    import transformers

    config = DiffusionConfig.read(config_file(path))
    loader = getattr(transformers, AUTO_CLASSES[config.denoiser])
    try:
        # textdiff computes in the precision of the machine, not in that of the file
        model, notes = loader.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        tokenizer = load_tokenizer(path)
    except Exception as error:  # transformers and tokenizers raise all sorts over a damaged file
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is cut short or damaged ({reason}); copy it again, or train again") from error
    if notes["missing_keys"]:
        raise ValueError(f"{path} lacks weights, such as {min(notes['missing_keys'])}; copy it again, or train again")
    return Checkpoint(model.eval(), tokenizer, config)


def config_file(path: str | Path) -> Path:
    """The `diffusion_config.json` of a folder or of a hub repository."""
    from transformers.utils.hub import cached_file

    folder = Path(path)
    if folder.is_dir():
        found: str | Path | None = folder / CONFIG_NAME if (folder / CONFIG_NAME).is_file() else None
    elif folder.exists() or str(path).count("/") != 1 or str(path).startswith((".", "/", "runs/")):
        raise ValueError(f"{path} is not a folder; name the folder of a trained model, such as runs/demo")
    else:
        try:
            found = cached_file(str(path), CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            raise ValueError(f"{path} is neither a folder nor a model that can be reached on the hub") from error
    if found is None:
        raise ValueError(f"{path} has no {CONFIG_NAME}, so it is not a textdiff model; make one with `textdiff train`")
    return Path(found)
