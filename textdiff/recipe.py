"""A training run as data: what to learn from, which tokenizer, model and process, how long; and its parts, built.

`train.py` puts the parts together step by step, to be read and copied; `Recipe.build` is the same in one call. Whether a
run is on texts or on images is decided here, in `read_recipe`, and nowhere after.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch

from textdiff.card import model_card
from textdiff.checkpoint import Checkpoint, DiffusionConfig
from textdiff.config import parse_one_of
from textdiff.data import Batches, DataConfig, load_texts, pack, to_tokens, windows
from textdiff.evaluation import bound
from textdiff.filling import infill
from textdiff.gaps import parse
from textdiff.keys import Key
from textdiff.lora import add_lora, trained
from textdiff.models import new_model, pretrained_model
from textdiff.pictures.recipe import PictureRecipe
from textdiff.rulebook import rule_of
from textdiff.spectral import STARTS
from textdiff.tokenizer import load_tokenizer, prepare_tokenizer, specials, train_tokenizer
from textdiff.tokens import Tokens
from textdiff.trainer import Feed, Job, Trainer, TrainerConfig
from textdiff.udm import UDM, Objective

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

READS = 2048  # positions that a model from scratch has: windows are shorter, texts to fill may be longer


@dataclass
class TokenizerConfig:
    """Any tokenizer, or one trained on the texts.

    Attributes:
        path: An AutoTokenizer, a folder or hub name. Left out, a byte-level BPE is trained.
        vocab: Entries of the trained one, special tokens included.
    """

    path: str | None = None
    vocab: int = 4000


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
    path: str | None = None
    weights: bool = True
    lora: int = 0
    start: Literal["bigrams", "random"] = "bigrams"
    context: float = 1.0


@dataclass
class NoiseConfig:
    """What is hidden while training.

    Attributes:
        spans: Mean lengths of hidden spans, one drawn per example: 1 hides single tokens, 64 whole passages. For masking and
            deletion; counted tokens, replacement and edits are always single.
        counted: Share of the examples whose gaps have known lengths: they teach words alone, and cost less.
    """

    spans: tuple[float, ...] = (1, 2, 4, 8, 16, 64)
    counted: float = 0.6


class Windows(NamedTuple):
    """What a model of text learns from: windows of token ids, columns `ids` and `index`, and their tokenizer."""

    rows: Any
    tokenizer: "PreTrainedTokenizerBase"

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

    def build(self) -> Trainer:
        """Everything built and ready to run."""
        data = self.prepare()
        model = self.make_model(data)
        print(
            f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} weights, {trained(model):,} trained"
        )
        udm = self.make_udm(model, data)
        return Trainer(udm, self.make_job(model, data), self.trainer)

    def prepare(self) -> Windows:
        """Texts, from any data set; a tokenizer, any or trained on them; the texts cut into windows of its tokens.

        Windows are cut at sentences and of varying length, so that no model can count its way to a gap's length. The
        tokenizer gets [MASK], [GAP] and the like.
        """
        texts = self.texts(self.data.split)
        tokenizer = self.make_tokenizer(texts)
        return Windows(self.make_windows(texts, tokenizer), tokenizer)

    def texts(self, split: str) -> "Dataset | IterableDataset":
        """The documents of a split, column `text`."""
        data = self.data
        return load_texts(
            data.dataset, split, text_column=data.text_column, config=data.config, streaming=data.streaming
        )

    def make_tokenizer(self, texts: Any) -> "PreTrainedTokenizerBase":
        """The model's, the one named, or one trained on the texts (of a stream: on its first 10,000)."""
        lengths = self.data.context
        path = self.tokenizer.path or self.model.path
        if path is not None:
            try:
                return prepare_tokenizer(load_tokenizer(path), lengths)
            except (OSError, ValueError) as error:
                reason = str(error).strip().split("\n")[0]
                raise ValueError(f"{path} has no tokenizer to load ({reason}); name one by --tokenizer.path") from error
        sample = texts.take(10_000) if self.data.streaming else texts
        return train_tokenizer((row["text"] for row in sample), self.tokenizer.vocab, lengths)

    def make_windows(self, texts: Any, tokenizer: "PreTrainedTokenizerBase") -> "Dataset | IterableDataset":
        """The texts cut into windows of token ids, columns `ids` and `index`."""
        data = self.data
        rows = windows(texts, tokenizer, context=data.context, shortest=data.shortest, seed=self.trainer.seed)
        if not data.streaming and len(rows) == 0:
            raise ValueError(f"{data.dataset} has no text to learn from; every row of {data.text_column} is empty")
        return rows

    def make_model(self, data: Windows) -> Any:
        """A preset drawn under the run's seed, started from the windows' bigrams; or a pretrained model."""
        rows, tokenizer = data
        ids, causal = specials(tokenizer), self.diffusion.backbone == "causal"
        kind = "autoregressive" if causal else self.diffusion.denoiser  # the architecture of a model from scratch
        torch.manual_seed(self.trainer.seed)  # new tokens of a pretrained model are drawn, too
        if causal and self.model.path is None and not self.diffusion.block:
            raise ValueError("backbone causal adapts a pretrained causal model; name one by --model-name-or-path")
        if self.model.path is not None:
            known = len(load_tokenizer(self.tokenizer.path or self.model.path))
            model = pretrained_model(self.diffusion, self.model.path, tokenizer, known, self.model.weights)
            if self.model.lora:
                add_lora(model, self.model.lora, list(range(known, len(tokenizer))))
            return model
        if self.model.lora:
            raise ValueError(
                f"model.lora {self.model.lora} adapts a pretrained model; name one by --model-name-or-path"
            )
        model = new_model(kind, self.model.preset, ids, len(tokenizer), READS)
        # read in place, a causal model has no such start: what it begins as says the next token
        if self.model.start == "bigrams" and kind in STARTS and (not causal or self.diffusion.shift):
            sample = rows.take(50_000) if self.data.streaming else rows
            STARTS[kind](model, [row["ids"] for row in sample])
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
        cuts = {"context": data.context, "shortest": data.shortest}
        held = windows(self.texts(data.validation_split), tokenizer, **cuts)
        rows = [row["ids"] for row in (held.take(256) if data.streaming else spread(held, 256))]
        if not rows:
            raise ValueError(f"{data.dataset} has no text in {data.validation_split!r}; set data.validation_split")
        checkpoint = Checkpoint(model, tokenizer, self.diffusion)
        examples = [parse(_counted(text) if self.diffusion.keeps_lengths else text) for text in self.examples]

        def collate(batch: Sequence[list[int]], key: Key) -> tuple[Tokens, Key]:
            if not data.packed:
                return know_places(to_tokens(list(batch), ids.pad), key, self.noise.counted), key
            packed = pack(list(batch), data.context)
            # a packed row takes the noise of its first window
            place = {id(window): number for number, window in enumerate(batch)}
            key = key[torch.tensor([place[id(row[0])] for row in packed])]
            return know_places(to_tokens(packed, ids.pad), key, self.noise.counted), key

        def measure(udm: UDM) -> dict[str, float]:
            sizes = [len(tokenizer.decode(row[1:]).encode()) for row in rows]
            found = bound(UDM(self.diffusion.likelihood(ids, model)[0], udm.denoiser), rows, sizes, pad=ids.pad)
            return {"nats": found.nats, "error": found.error, "bits_per_byte": found.bits_per_byte}

        def show(udm: UDM) -> list[str]:
            tools = checkpoint.tools() | {"denoiser": udm.denoiser}
            steps, rule, decode = self.diffusion.num_steps, rule_of(self.diffusion.rule), self.diffusion.decode()
            filled = infill(examples, steps=steps, rule=rule, decode=decode, **tools)
            return [results[0].text for results in filled]

        def export(path: Path, facts: dict[str, Any]) -> None:
            checkpoint.card = model_card(str(path), self.diffusion, asdict(self), facts)
            checkpoint.save(path)

        return Job(self.feed(learned.rows), collate, measure, show, export)

    def feed(self, rows: "Dataset | IterableDataset") -> Feed:
        """Windows for the trainer: dealt out by length from a data set, in order of arrival from a stream."""
        batch, seed = self.trainer.batch, self.trainer.seed
        nothing = f"{self.data.dataset} has no text to learn from; every row of {self.data.text_column} is empty"

        def from_data_set(start: int, rank: int, world: int) -> Iterator[list[tuple[int, list[int]]]]:
            lengths = [len(row) for row in rows["ids"]]
            for numbers in Batches(len(lengths), batch, seed, rank, world, start, lengths):
                found = rows[numbers]["ids"]
                yield list(zip(numbers, found, strict=True))

        def from_stream(start: int, rank: int, world: int) -> Iterator[list[tuple[int, list[int]]]]:
            group: list[tuple[int, list[int]]] = []
            past = start * batch  # epochs are joined: what was seen before `start` is passed over, whole epochs at once
            while True:
                count = 0
                for count, row in enumerate(rows, 1):  # noqa: B007
                    if past:
                        past -= 1
                        continue
                    group.append((row["index"], row["ids"]))
                    if len(group) == batch:
                        yield group[rank::world]
                        group = []
                if not count:
                    raise ValueError(nothing)
                past %= count

        if not self.data.streaming and len(rows) == 0:
            raise ValueError(nothing)
        return from_stream if self.data.streaming else from_data_set


AnyRecipe: TypeAlias = Recipe | PictureRecipe


def read_recipe(args: Sequence[str], prog: str) -> AnyRecipe:
    """The recipe of the kind that `--kind` or a file's `kind:` names, text where neither does. ValueError for bad input."""
    kinds = {"text": Recipe, "image": PictureRecipe}
    return parse_one_of(kinds, args, prog=prog, description=HELP.replace("textdiff train", prog), short=SHORT)


def _counted(text: str) -> str:
    """Gaps of three tokens for gaps of any length."""
    return text.replace("[GAP]", "[GAP:3]")


def spread(rows: "Dataset", count: int) -> "Dataset":
    """At most `count` rows, evenly from all of them."""
    return rows.select(range(0, len(rows), -(-len(rows) // count))) if len(rows) else rows


def know_places(x0: Tokens, key: Key, share: float) -> Tokens:
    """In a share of the rows it is known where tokens are: these are masked, not deleted, and no marker shows up."""
    known = (key.uniform(1) < share) & x0.valid
    return x0.with_(counted=known & ~x0.fixed, sealed=x0.sealed | known)
