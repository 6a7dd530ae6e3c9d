"""A training run as data: what to learn from, which tokenizer, model and process, how long; and its parts, built.

`train.py` puts the parts together step by step, to be read and copied; `Recipe.build` is the same in one call. Whether a
run is on texts or on images is decided here, in `read_recipe`, and nowhere after.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

import torch

from textdiff.card import model_card
from textdiff.checkpoint import Checkpoint, DiffusionConfig
from textdiff.config import parse_one_of, settings_of
from textdiff.data import (
    Batches,
    DataConfig,
    fingerprint_of_windows,
    load_texts,
    pack,
    sizes_of,
    to_tokens,
    windows,
)
from textdiff.effects import check_effects
from textdiff.evaluation import bound
from textdiff.filling import Page, infill, prepare, start_state
from textdiff.gaps import Gap, check, parse
from textdiff.holding_out import hold_out_texts, hold_out_windows
from textdiff.keys import Key
from textdiff.launch import check_launch, say, world_size
from textdiff.lora import add_lora, need_peft, trained
from textdiff.models import check_pretrained, new_model, pretrained_model, saved_dtype
from textdiff.options import PATH, Range, check_options
from textdiff.pictures.recipe import PictureRecipe
from textdiff.reading import MissingSplit, each
from textdiff.resuming import compare_settings, fingerprint_of_model, fingerprint_of_tokenizer
from textdiff.rulebook import rule_of
from textdiff.run_folder import RunFolder
from textdiff.saving import TOKENIZER, newest_state, read_facts
from textdiff.sentences import learnable
from textdiff.spectral import STARTS
from textdiff.spelling import check_tokenizer, read_text
from textdiff.tokenizer import BYTES, load_tokenizer, prepare_tokenizer, specials, train_tokenizer
from textdiff.tokens import Tokens
from textdiff.trainer import Feed, Job, Trainer, TrainerConfig
from textdiff.udm import UDM, Objective
from textdiff.zoo import says_lengths

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

HELP = """Train a diffusion model of text, or with --kind image of images, on any Hugging Face data set.

Examples:
  textdiff train --config data/demo.yaml
  textdiff train --config data/demo.yaml --out runs/mine --minutes 20 --trainer.lr 0.001
  textdiff train --dataset texts.jsonl --text-column body --diffusion.denoiser autoregressive --out runs/mine
  textdiff train --config data/demo.yaml --resume
  textdiff train --model-name-or-path FacebookAI/roberta-base --dataset texts.jsonl --out runs/mine
  textdiff train --config data/adapt-smollm2.yaml --model-name-or-path HuggingFaceTB/SmolLM2-135M --model.lora 16
  textdiff train --config data/digits.yaml
  textdiff train --kind image --dataset /usr/share/datasets/fashion-mnist --out runs/mine

textdiff train --kind image --help explains the options for images.
Short for the most used: --model-name-or-path, --dataset, --text-column, --image-column, --label-column, --streaming, --out,
  --steps, --minutes, --resume, --overwrite."""

SHORT = {
    "--model-name-or-path": "--model.path",
    "--model_name_or_path": "--model.path",
    "--dataset": "--data.dataset",
    "--text-column": "--data.text-column",
    "--image-column": "--data.image-column",
    "--label-column": "--data.label-column",
    "--streaming": "--data.streaming",
    "--out": "--trainer.out",
    "--steps": "--trainer.steps",
    "--minutes": "--trainer.minutes",
    "--resume": "--trainer.resume",
    "--overwrite": "--trainer.overwrite",
}

VALIDATION = "validation"  # the split that is measured on where none is named
READS = 2048  # positions that a model from scratch has at least: windows are shorter, texts to fill may be longer
VOCAB, PIECES = 4000, 3000  # entries of a tokenizer that is learned; of them, those that are pieces of text at least
NAMES = 6  # special tokens of a tokenizer that is learned, beside those for lengths


@dataclass
class TokenizerConfig:
    """Any tokenizer, or one trained on the texts.

    Attributes:
        path: An AutoTokenizer, a folder or hub name. Left out, a byte-level BPE is trained.
        vocab: Entries of the trained one, special tokens included. Left out: 4,000, or as many as leave 3,000 for pieces of
            text beside the special tokens (with context 4096, which takes 4,097 tokens for lengths, 7,359).
    """

    path: Annotated[str | None, PATH] = None
    vocab: Annotated[int | None, Range(least=BYTES + NAMES, most=10**7)] = None

    def __post_init__(self) -> None:
        check_options(self, "tokenizer")


@dataclass
class ModelConfig:
    """Any model, or one from scratch.

    Attributes:
        preset: The size of a model from scratch: tiny (3 M weights with 4,000 tokens), mini (6 M with 6,000), small (30 M)
            or base (91 M).
        path: A pretrained model instead, a folder or hub name, with its tokenizer.
        weights: Start from the weights of `path`; else from its architecture alone, drawn at random.
        lora: Train updates of this rank and the new tokens alone (LoRA, needs peft); 0 trains every weight.
        start: How a model from scratch begins: from the bigrams of the texts (see `spectral`), or random.
        context: How much an autoregressive model also learns the visible text (see `Autoregressive`).
    """

    preset: Literal["tiny", "mini", "small", "base"] = "tiny"
    path: Annotated[str | None, PATH] = None
    weights: bool = True
    lora: Annotated[int, Range(least=0, most=10**4)] = 0
    start: Literal["bigrams", "random"] = "bigrams"
    context: Annotated[float, Range(least=0, most=1e3)] = 1.0

    def __post_init__(self) -> None:
        check_options(self, "model")
        if self.path is None and self.lora:
            raise ValueError(
                f"model.lora {self.lora} adapts a pretrained model; name one by --model-name-or-path (model.path)"
            )
        if self.path is None and not self.weights:
            raise ValueError("model.weights is for a pretrained model; name one by --model-name-or-path (model.path)")


@dataclass
class NoiseConfig:
    """What is hidden while training.

    Attributes:
        spans: Mean lengths of hidden spans, one drawn per example: 1 hides single tokens, 64 whole passages. For masking and
            deletion; counted tokens, replacement and edits are always single.
        counted: Share of the examples whose gaps have known lengths: they teach words alone, and cost less.
    """

    spans: Annotated[tuple[float, ...], Range(least=1, most=1e6)] = (1, 2, 4, 8, 16, 64)
    counted: Annotated[float, Range(least=0, most=1)] = 0.6

    def __post_init__(self) -> None:
        check_options(self, "noise")
        if not self.spans:
            raise ValueError("noise.spans must have at least one length; 1 hides single tokens")


class Windows(NamedTuple):
    """What a model of text learns from: windows of token ids, columns `ids` and `index`, and their tokenizer.

    held: windows that it is measured on.
    """

    rows: Any
    tokenizer: "PreTrainedTokenizerBase"
    held: Any

    def __str__(self) -> str:
        return f"{len(self.tokenizer):,} tokens"


@dataclass
class Recipe:
    """A whole training run.

    Attributes:
        examples: Texts to fill now and then while training; gaps of any length, unless the process keeps lengths.
    """

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    objective: Objective = field(default_factory=Objective)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    examples: tuple[str, ...] = (
        "My fellow [GAP], the state of our union is [GAP].",
        "We must [GAP] the economy.",
        "[GAP]",
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_options(self.diffusion, "diffusion")
        for place, text in enumerate(self.examples):
            try:
                check(parse(text))
            except ValueError as error:
                raise ValueError(f"examples[{place}]: {error}") from error
        if self.diffusion.backbone == "causal" and self.model.path is None and not self.diffusion.block:
            raise ValueError("backbone causal adapts a pretrained causal model; name one by --model-name-or-path")
        if self.tokenizer.vocab is not None and self.tokenizer.vocab < BYTES + self.specials:
            raise ValueError(
                f"tokenizer.vocab {self.tokenizer.vocab} is too small: {BYTES} bytes and {self.specials} special tokens "
                f"({self.lengths} of them for the lengths of gaps, data.context {self.data.context}) need "
                f"{BYTES + self.specials}; give more, or leave it out"
            )

    @property
    def lengths(self) -> int:
        """How many tokens for lengths of gaps the tokenizer gets: up to the longest window, where the process needs them."""
        return self.data.context + 1 if says_lengths(self.diffusion.process, self.diffusion.denoiser) else 0

    @property
    def specials(self) -> int:
        """How many special tokens a tokenizer that is learned has."""
        return NAMES + self.lengths

    def build(self) -> Trainer:
        """Everything built and ready to run."""
        data = self.prepare()
        model = self.make_model(data)
        say(
            f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} weights, {trained(model):,} trained"
        )
        udm = self.make_udm(model, data)
        return Trainer(udm, self.make_job(model, data), self.trainer)

    def check_setup(self) -> None:
        """Refuse what can be refused before anything is loaded: options without effect, the run's folder, the model.

        Raises:
            ValueError: With the remedy.
        """
        check_effects(self, "text")
        check_launch()
        self.trainer.check_world(world_size())
        if self.model.lora:
            need_peft()
        folder = RunFolder(self.trainer.out)
        folder.check(resume=self.trainer.resume, overwrite=self.trainer.overwrite)
        if self.trainer.resume and (state := newest_state(folder.states, weights=False)[0]) is not None:
            compare_settings(state, read_facts(state), settings_of(self))
        if self.model.path is not None:
            check_pretrained(self.diffusion, self.model.path, self.data.context)

    def prepare(self) -> Windows:
        """Texts, from any data set; a tokenizer, any or trained on them; the texts cut into windows of its tokens.

        Windows are cut at sentences and of varying length, so that no model can count its way to a gap's length. The
        tokenizer gets [MASK], [GAP] and the like. Where there is nothing to measure on, a part is held out.
        """
        self.check_setup()
        data = self.data
        texts = self.texts(data.split)
        held = self._validation()  # before anything is prepared
        halves = hold_out_texts(texts, data.streaming, data.dataset) if held is None else None
        learned = texts if halves is None else halves.train
        tokenizer = self.make_tokenizer(learned)
        rows = self.make_windows(learned, tokenizer)
        if held is not None:
            return Windows(rows, tokenizer, self.cut(held, tokenizer, data.validation_split or VALIDATION))
        if halves is not None:
            kept = self.cut(halves.held, tokenizer, data.split)
        else:
            halves = hold_out_windows(rows, data.streaming, data.dataset)
            rows, kept = halves.train, halves.held
        say(
            f"{data.dataset} has no split {VALIDATION!r}: {halves.size} are held out to measure on; "
            "--data.validation-split names a split instead"
        )
        return Windows(rows, tokenizer, kept)

    def _validation(self) -> "Dataset | IterableDataset | None":
        """The texts to measure on; None where no split is named and there is none of the usual name."""
        try:
            return self.texts(self.data.validation_split or VALIDATION)
        except MissingSplit:
            if self.data.validation_split is not None:
                raise
            return None

    def texts(self, split: str) -> "Dataset | IterableDataset":
        """The documents of a split, column `text`."""
        data = self.data
        return load_texts(
            data.dataset, split, text_column=data.text_column, config=data.config, streaming=data.streaming
        )

    def make_tokenizer(self, texts: Any) -> "PreTrainedTokenizerBase":
        """The run's own where it goes on; else the model's, the one named, or one trained on the texts.

        Of a stream it is trained on the first 10,000.
        """
        if self.trainer.resume and (own := self._own_tokenizer()) is not None:
            return own
        most = max(self.lengths - 1, 0)
        path = self.tokenizer.path or self.model.path
        if path is not None:
            try:
                check_tokenizer(tokenizer := load_tokenizer(path))
                return prepare_tokenizer(tokenizer, most)
            except (OSError, ValueError) as error:
                reason = str(error).strip().split("\n")[0]
                raise ValueError(f"{path} has no tokenizer to load ({reason}); name one by --tokenizer.path") from error
        rows = each(texts.take(10_000) if self.data.streaming else texts, self.data.dataset)
        vocab = self.tokenizer.vocab or max(VOCAB, BYTES + self.specials + PIECES)
        return train_tokenizer(learnable(row["text"] for row in rows), vocab, most)

    def _own_tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer of the run that goes on: another one would read other pieces by the trained rows."""
        out = Path(self.trainer.out)
        state, _ = newest_state(RunFolder(out).states, weights=False)
        places = [state / TOKENIZER, out] if state is not None else []
        for place in places:
            if (place / "tokenizer_config.json").is_file():
                return load_tokenizer(place)
        if self.tokenizer.path or self.model.path:
            return None
        raise ValueError(
            f"{state} was written by an older version and does not hold its tokenizer, which cannot be learned again; give "
            "the folder that has it by --tokenizer.path"
        )

    def make_windows(self, texts: Any, tokenizer: "PreTrainedTokenizerBase") -> "Dataset | IterableDataset":
        """The texts cut into windows of token ids, columns `ids` and `index`."""
        rows = self.cut(texts, tokenizer, self.data.split, self.trainer.seed)
        if not self.data.streaming and len(rows) == 0:
            raise ValueError(self._nothing(self.data.split))
        return rows

    def cut(self, texts: Any, tokenizer: "PreTrainedTokenizerBase", split: str, seed: int = 0) -> Any:
        """Windows of texts that are of a split."""
        data = self.data
        where = f"split {split!r} of {data.dataset}"
        return windows(texts, tokenizer, context=data.context, shortest=data.shortest, seed=seed, where=where)

    def _nothing(self, split: str) -> str:
        data = self.data
        return f"{data.dataset} has no text in split {split!r}; every row of {data.text_column} is empty"

    def make_model(self, data: Windows) -> Any:
        """A preset drawn under the run's seed, started from the windows' bigrams; or a pretrained model."""
        rows, tokenizer = data.rows, data.tokenizer
        ids, causal = specials(tokenizer), self.diffusion.backbone == "causal"
        kind = "autoregressive" if causal else self.diffusion.denoiser  # the architecture of a model from scratch
        torch.manual_seed(self.trainer.seed)  # new tokens of a pretrained model are drawn, too
        if self.model.path is not None:
            known = len(load_tokenizer(self.tokenizer.path or self.model.path))
            model = pretrained_model(self.diffusion, self.model.path, tokenizer, known, self.model.weights)
            if self.model.lora:
                add_lora(model, self.model.lora, list(range(known, len(tokenizer))), saved_dtype(self.model.path))
            return model
        reads = max(READS, 2 * self.data.context)
        model = new_model(kind, self.model.preset, ids, len(tokenizer), reads)
        # read in place, a causal model has no such start: what it begins as says the next token
        if self.model.start == "bigrams" and kind in STARTS and (not causal or self.diffusion.shift):
            sample = rows.take(50_000) if self.data.streaming else rows
            STARTS[kind](model, [row["ids"] for row in each(sample, self.data.dataset)])
        return model

    def make_udm(self, model: Any, data: Windows) -> UDM:
        """The process and the denoiser, with the noise and the objective of training."""
        ids = specials(data.tokenizer)
        context = 0.0 if self.diffusion.bidirectional else self.model.context
        process = self.diffusion.build_process(ids, model, tuple(self.noise.spans))
        denoiser = self.diffusion.build_denoiser(model, ids, context)
        if denoiser.longest is not None and self.data.context > denoiser.longest:
            limit = denoiser.longest
            raise ValueError(f"data.context {self.data.context} is more than the model reads; give up to {limit}")
        return UDM(process, denoiser, self.objective)

    def make_job(self, model: Any, learned: Windows) -> Job:
        """Feeding, measuring, showing and saving, for text."""
        tokenizer, data = learned.tokenizer, self.data
        ids = specials(tokenizer)
        rows = [row["ids"] for row in each(spread(learned.held, 256), data.dataset)]
        if not rows:
            raise ValueError(f"{self._nothing(data.validation_split or VALIDATION)}; set data.validation_split")
        checkpoint = Checkpoint(model, tokenizer, self.diffusion)
        pages = make_pages(self.examples, checkpoint)

        def collate(batch: Sequence[list[int]], key: Key) -> tuple[Tokens, Key]:
            if not data.packed:
                return know_places(to_tokens(list(batch), ids.pad), key, self.noise.counted), key
            packed = pack(list(batch), data.context)
            # a packed row takes the noise of its first window
            place = {id(window): number for number, window in enumerate(batch)}
            key = key[torch.tensor([place[id(row[0])] for row in packed])]
            return know_places(to_tokens(packed, ids.pad), key, self.noise.counted), key

        def measure(udm: UDM) -> dict[str, float]:
            sizes = [len(read_text(tokenizer, row[1:]).encode()) for row in rows]
            found = bound(UDM(self.diffusion.likelihood(ids, model)[0], udm.denoiser), rows, sizes, pad=ids.pad)
            return {"nats": found.nats, "error": found.error, "bits_per_byte": found.bits_per_byte}

        def show(udm: UDM) -> list[str]:
            tools = checkpoint.tools() | {"denoiser": udm.denoiser}
            steps, rule, decode = self.diffusion.num_steps, rule_of(self.diffusion.rule), self.diffusion.decode()
            filled = infill(pages, steps=steps, rule=rule, decode=decode, **tools)
            return [results[0].text for results in filled]

        def export(path: Path, facts: dict[str, Any]) -> None:
            checkpoint.card = model_card(self.trainer.out, self.diffusion, asdict(self), facts)
            checkpoint.save(path)

        fingerprints = {
            "windows": fingerprint_of_windows(learned.rows, data.streaming),
            "tokenizer": fingerprint_of_tokenizer(tokenizer),
            "model": fingerprint_of_model(model),
        }
        return Job(
            self.feed(learned.rows), collate, measure, show, export,
            recipe=self, fingerprints=fingerprints, attach=tokenizer.save_pretrained,
        )  # fmt: skip

    def feed(self, rows: "Dataset | IterableDataset") -> Feed:
        """Windows for the trainer: dealt out by length from a data set, in order of arrival from a stream."""
        batch, seed = self.trainer.batch, self.trainer.seed

        def from_data_set(start: int, rank: int, world: int) -> Iterator[list[tuple[int, list[int]]]]:
            sizes = sizes_of(rows)
            for numbers in Batches(len(sizes), batch, seed, rank, world, start, sizes):
                found = rows[numbers]["ids"]
                yield list(zip(numbers, found, strict=True))

        def from_stream(start: int, rank: int, world: int) -> Iterator[list[tuple[int, list[int]]]]:
            group: list[tuple[int, list[int]]] = []
            past = start * batch  # epochs are joined: what was seen before `start` is passed over, whole epochs at once
            while True:
                count = 0
                for count, row in enumerate(each(rows, self.data.dataset), 1):  # noqa: B007
                    if past:
                        past -= 1
                        continue
                    group.append((row["index"], row["ids"]))
                    if len(group) == batch:
                        yield group[rank::world]
                        group = []
                if not count:
                    raise ValueError(self._nothing(self.data.split))
                past %= count

        if next(each(rows, self.data.dataset), None) is None:
            raise ValueError(self._nothing(self.data.split))
        return from_stream if self.data.streaming else from_data_set


AnyRecipe: TypeAlias = Recipe | PictureRecipe


def read_recipe(args: Sequence[str], prog: str) -> AnyRecipe:
    """The recipe of the kind that `--kind` or a file's `kind:` names, text where neither does. ValueError for bad input."""
    kinds = {"text": Recipe, "image": PictureRecipe}
    recipe = parse_one_of(kinds, args, prog=prog, description=HELP.replace("textdiff train", prog), short=SHORT)
    check_effects(recipe, "text" if isinstance(recipe, Recipe) else "image")
    return recipe


def make_pages(examples: Sequence[str], checkpoint: Checkpoint) -> list[Page]:
    """Return texts with gaps, ready to be filled; of a process that says no lengths, free gaps have three tokens.

    Raises:
        ValueError: For an example that this process or this model cannot fill, naming it.
    """
    tools, config, pages = checkpoint.tools(), checkpoint.config, []
    tokenizer, ids = checkpoint.tokenizer, checkpoint.specials
    for place, text in enumerate(examples):
        parts = parse(text)
        if config.keeps_lengths or not ids.lengths:
            parts = [Gap.of(3, part.name) if isinstance(part, Gap) and part.free else part for part in parts]
        try:
            page = prepare(parts, tokenizer, ids, longest=tools["denoiser"].longest)
            if not ids.lengths and any(element[0] == ids.gap for element in page.row):
                raise ValueError(f"process {config.process} says no lengths; give each gap its length, as in [GAP:3]")
            tools["process"].prior(start_state([parts], tokenizer, ids), Key.of(0, 1))
        except ValueError as error:
            raise ValueError(f"examples[{place}] {text[:60]!r}: {error}") from error
        pages.append(page)
    return pages


def spread(rows: Any, count: int) -> Any:
    """At most `count` rows, evenly from all of them; of a stream the first."""
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        return rows.take(count)
    return rows.select(range(0, len(rows), -(-len(rows) // count))) if len(rows) else rows


def know_places(x0: Tokens, key: Key, share: float) -> Tokens:
    """In a share of the rows it is known where tokens are: these are masked, not deleted, and no marker shows up."""
    known = (key.uniform(1) < share) & x0.valid
    return x0.with_(counted=known & ~x0.fixed, sealed=x0.sealed | known)
