"""A checkpoint is a stock model, its tokenizer and `diffusion_config.json`: it opens in plain transformers, too.

Weights are safetensors, never pickle; no code is loaded from a checkpoint.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textdiff.clocks import steps_of
from textdiff.denoiser import Autoregressive, Denoiser
from textdiff.denoiser.reach import need_blocks
from textdiff.leak import need_bidirectional, need_causal
from textdiff.loading import from_pretrained, need_finite
from textdiff.lora import merged
from textdiff.manifest import CARD, verify_folder, write_folder
from textdiff.posterior import Decode
from textdiff.process import Process
from textdiff.rulebook import rule_of
from textdiff.tokenizer import GAP, load_tokenizer, specials, stock_specials
from textdiff.tokens import Specials
from textdiff.zoo import check, chosen, keeps_lengths, likelihood, make_process, parallel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG_NAME = "diffusion_config.json"
FORMAT = 1

AUTO_CLASSES = {
    "parallel": "AutoModelForMaskedLM",
    "autoregressive": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


def same_types(config: Any) -> None:
    """ValueError for a value of a dataclass that is not of its default's type; None is of any."""
    for entry in fields(config):
        value, default = getattr(config, entry.name), entry.default
        if default is None:
            number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
            expected = "a number"
        else:
            number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
            expected = f"{type(default).__name__}, as in {default!r}"
        if type(value) is not type(default) and not number:
            raise ValueError(f"{entry.name} {value!r} is not {expected}")


def read_json(path: Path) -> dict[str, Any]:
    """What a configuration holds. ValueError where it is damaged or of another version."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy the checkpoint again") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}; it needs another version of textdiff")
    return values


def kind_of(path: str | Path) -> str:
    """What a checkpoint makes: text or image."""
    kind = str(read_json(config_file(path)).get("kind", "text"))
    return str(chosen(kind, {"text": "text", "image": "image"}, f"kind of model in {path}:"))


def read_values(config: type, path: Path, kind: str) -> dict[str, Any]:
    """The values of a configuration of this kind. ValueError for another kind and for unknown keys."""
    values = read_json(path)
    if (found := values.pop("kind", "text")) != kind:
        raise ValueError(f"{path} is of a model of {found}s, not of {kind}s; name another model")
    unknown = sorted(set(values) - {entry.name for entry in fields(config)})
    if unknown:
        raise ValueError(f"{path} has unknown keys {', '.join(unknown)}; remove them")
    return values


@dataclass
class DiffusionConfig:
    """What turns a stock model into a denoiser, and how it is decoded by default: `diffusion_config.json`.

    Attributes:
        denoiser: How the model guesses: all words at once, or one after the other.
        process: How texts are corrupted: masking, deletion, replacement, edit or encoder, or a mixture of them, one drawn
            for each text, such as 3*deletion+1*edit; the first is what fills a page.
        schedule: How fast.
        staged: Fill by drawing the lengths of gaps first and their words after (delete-then-mask), with deletion.
        counts: Exactly as many tokens as the time says, not each by chance, with masking and replacement.
        different: The word that replaces another is never the same, with replacement.
        masked: The share of replaced words that become [MASK], with replacement.
        edits: The shares of deletion, masking and replacement, and how readily words come in, below 1, with edit.
        backbone: What a parallel denoiser reads with: a masked model, or a causal one opened to both sides.
        shift: The logits at i - 1 say token i, as a causal model was trained to (Dream), not those at i (LLaDA).
        block: Tokens of a block: within it all are denoised together, across blocks from left to right with a cache; 0 for
            no blocks. With backbone causal and masking.
        self_conditioning: Read the guess of the step before beside the text (Analog Bits), with denoiser parallel and
            process masking; learned with a guess in half of the texts.
        bidirectional: Let an autoregressive denoiser see the whole visible text from everywhere (needs model.context 0).
        num_steps: Turns of the reverse process.
        rule: Which noise goes back in (docs/rules.md): posterior, partial:0.3, ranked:margin, threshold:0.9@32, ...
        temperature: 0 takes the most probable token.
        top_k: Tokens to choose from; 0 for all.
        top_p: Share of the probability to choose from.
        max_gap: The longest content of a gap, in tokens.
        candidates: Fillings drawn for each one that is given, the most fluent, with denoiser autoregressive.
    """

    denoiser: Literal["parallel", "autoregressive", "seq2seq"] = "parallel"
    process: str = "deletion"
    schedule: Literal["linear", "cosine"] = "linear"
    staged: bool = False
    counts: bool = False
    different: bool = False
    masked: float = 0.0
    edits: tuple[float, float, float, float] = (0.25, 0.25, 0.5, 0.1)
    backbone: Literal["masked", "causal"] = "masked"
    shift: bool = False
    block: int = 0
    self_conditioning: bool = False
    bidirectional: bool = False
    num_steps: int = 1
    rule: str = "posterior"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_gap: int = 64
    candidates: int = 1

    def __post_init__(self) -> None:
        same_types(self)
        chosen(self.denoiser, AUTO_CLASSES, "denoiser")
        chosen(self.backbone, {"masked": 0, "causal": 0}, "backbone")
        check(self, self.denoiser, rule_of(self.rule))
        self.decode()
        steps_of(self.num_steps)

    @property
    def keeps_lengths(self) -> bool:
        """Whether it fills only gaps whose length is given."""
        return keeps_lengths(self.process) or self.block > 0

    def decode(self) -> Decode:
        """How x0_hat is drawn."""
        return Decode(self.temperature, self.top_k, self.top_p, self.max_gap)

    def build_process(self, ids: Specials, model: Any = None, spans: tuple[float, ...] = (1,)) -> Process:
        """The process, for training with `spans`; `decode_process` is the one for decoding."""
        return make_process(self, ids, spans=spans, embedding=_embeddings(model))

    def decode_process(self, ids: Specials, model: Any = None) -> Process:
        """The process that is run in reverse to fill."""
        return make_process(self, ids, embedding=_embeddings(model), staged=True)

    def build_denoiser(self, model: Any, ids: Specials, context: float = 0.0) -> Denoiser:
        """The denoiser around a stock model."""
        if self.denoiser != "parallel":
            return Autoregressive(model, ids, context, self.bidirectional)
        return parallel(self, model, ids)

    def likelihood(self, ids: Specials, model: Any = None) -> tuple[Process, str]:
        """The process whose bound measures this denoiser, and what the figure is.

        A parallel one with length tokens as delete-then-mask, lengths included, whatever else it was trained on; an
        autoregressive one in a single step, where it is exact.
        """
        return likelihood(self, self.denoiser, ids, _embeddings(model))

    @classmethod
    def read(cls, path: Path) -> "DiffusionConfig":
        """From a file. ValueError for what is no configuration of this version."""
        values = read_values(cls, path, "text")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
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
        """The ids of the tokens that the process speaks with; those of a stock model where the tokenizer has no [GAP]."""
        if GAP not in self.tokenizer.get_added_vocab():
            return stock_specials(self.tokenizer, self.model)
        ids, head = specials(self.tokenizer), self.model.get_output_embeddings()
        rows = head.weight.shape[0] if head is not None else ids.size
        roles = [ids.pad, ids.bos, ids.mask, ids.gap, ids.fill, ids.end, *ids.lengths]
        if max(roles) >= rows or len({*roles}) < len(roles):
            names = self.tokenizer.convert_ids_to_tokens(roles)
            raise ValueError(
                f"the tokenizer's special tokens do not fit the model, which has {rows} rows: "
                f"{dict(zip(names, roles, strict=True))}; copy the model again"
            )
        # rows that the tokenizer has no entry for are never written
        return replace(ids, banned=(*ids.banned, *range(ids.size, rows)), size=rows) if rows > ids.size else ids

    def tools(self) -> dict[str, Any]:
        """What `gaps.infill` needs of it."""
        ids = self.specials
        return {
            "denoiser": self.config.build_denoiser(self.model, ids).eval(),
            "process": self.config.decode_process(ids, self.model),
            "tokenizer": self.tokenizer,
            "specials": ids,
        }

    def save(self, path: str | Path) -> None:
        """Write the checkpoint (`manifest.write_folder`); other files of the folder stay."""

        def write(part: Path) -> None:
            write_stock(self.model, self.tokenizer, part)
            self.config.write(part / CONFIG_NAME)
            (part / CARD).write_text(self.card, encoding="utf-8")

        write_folder(path, write)


def _embeddings(model: Any) -> Any:
    return None if model is None else model.get_input_embeddings()


def write_stock(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a stock model, with its adapters merged, and its tokenizer, as plain transformers opens them."""
    merged(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _plain(folder / "tokenizer_config.json")


def _plain(path: Path) -> None:
    """Let transformers' own pipelines read [MASK] in a text as the mask. This library never does (`load_tokenizer`)."""
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"split_special_tokens": False}, indent=2) + "\n", encoding="utf-8")


def load(path: str | Path) -> Checkpoint:
    """Open a checkpoint, a folder or a hub name. ValueError with the remedy where it is none, or is damaged."""
    file = config_file(path)
    verify_folder(file.parent)
    config = DiffusionConfig.read(file)
    try:
        model, notes = open_model(path, config)
        tokenizer = load_tokenizer(path)
    except Exception as error:  # transformers and tokenizers raise all sorts over a damaged file
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is cut short or damaged ({reason}); copy it again, or train again") from error
    if notes["missing_keys"]:
        raise ValueError(f"{path} lacks weights, such as {min(notes['missing_keys'])}; copy it again, or train again")
    need_finite(model)
    probe(model, config)
    return Checkpoint(model.eval(), tokenizer, config)


def find_config(path: str | Path) -> Path | None:
    """The `diffusion_config.json` of a folder or of a hub repository, None for a model without one."""
    from transformers.utils.hub import cached_file

    if not str(path):
        return None
    if Path(path).exists():
        file = Path(path) / CONFIG_NAME
        return file if file.is_file() else None
    try:
        found = cached_file(str(path), CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    except OSError:  # no such repository, or no way to it
        return None
    return None if found is None else Path(found)


def check_ended(path: str | Path) -> None:
    """ValueError for the folder of a run that has states and no model yet."""
    folder = Path(path)
    if (folder / "states").is_dir() and not (folder / "config.json").exists():
        raise ValueError(f"{path} is a run that has not ended; the command that began it goes on with --resume")


def open_model(path: str | Path, config: DiffusionConfig) -> tuple[Any, dict[str, Any]]:
    """The stock model for a denoiser, and transformers' notes on loading it.

    Its attention is opened for backbone causal, but not for blocks: there every call says which tokens see which.
    """
    import torch
    import transformers

    name, settings = AUTO_CLASSES[config.denoiser], {}
    if config.backbone == "causal":
        name = AUTO_CLASSES["autoregressive"]
        settings["config"] = from_pretrained(transformers.AutoConfig, path)
        if not config.block:
            both_ways(settings["config"])
    # textdiff computes in the precision of the machine, not in that of the file
    loader = getattr(transformers, name)
    return from_pretrained(loader, path, dtype=torch.float32, output_loading_info=True, **settings)


def same_reading(path: str | Path, config: DiffusionConfig) -> None:
    """ValueError where a folder is a checkpoint for a parallel denoiser and is to be read in another way than it learned."""
    file = Path(path) / CONFIG_NAME
    if not file.is_file() or config.denoiser != "parallel":
        return
    found = DiffusionConfig.read(file)
    if found.denoiser == "parallel" and (found.backbone, found.shift) != (config.backbone, config.shift):
        raise ValueError(
            f"{path} was trained with backbone {found.backbone} and shift {found.shift}, not {config.backbone} and "
            f"{config.shift}; give the same"
        )


def both_ways(config: Any) -> None:
    """Open the attention of a causal model to both sides; it is saved with the model."""
    config.is_causal, config.use_cache = False, False


def check_kind(model: Any, config: DiffusionConfig) -> None:
    """ValueError for a model of another kind than its denoiser reads."""
    encodes = bool(model.config.is_encoder_decoder)
    writes = config.denoiser == "autoregressive" or config.backbone == "causal"
    if encodes != (config.denoiser == "seq2seq") or (writes and not model.can_generate()):
        raise ValueError(
            f"{CONFIG_NAME} says denoiser {config.denoiser}, backbone {config.backbone}, and the model is "
            f"{type(model).__name__}: they do not belong together; copy the model again"
        )


def probe(model: Any, config: DiffusionConfig) -> None:
    """ValueError for a model that does not see what its denoiser needs to see, or sees what it must not."""
    if config.block:
        need_blocks(model)
    elif config.denoiser == "parallel":
        need_bidirectional(model)
    elif config.denoiser == "autoregressive":
        need_causal(model)


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
        check_ended(path)
        raise ValueError(f"{path} has no {CONFIG_NAME}, so it is not a textdiff model; make one with `textdiff train`")
    return Path(found)
