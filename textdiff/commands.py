"""What the commands take, and the help that teaches them."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

USAGE = """textdiff: train diffusion models of text, fill gaps of unknown length; and of images.

  textdiff train     learn from a data set         textdiff train --config data/demo.yaml
  textdiff infill    fill the gaps of a text       textdiff infill "We must [GAP] the economy."
  textdiff refine    rewrite a draft               textdiff refine runs/demo "We must act on the jobs." --t 0.3
  textdiff generate  write texts, draw images      textdiff generate runs/demo --prompt "My fellow Americans,"
  textdiff score     how likely texts are          textdiff score "We go on." "On go we." --rank
  textdiff evaluate  how good a model is           textdiff evaluate runs/demo --dataset data/sotu --split test

textdiff COMMAND --help explains each one."""


@dataclass
class Sampling:
    """How texts, or images, are drawn. What is left out is what the model was saved with."""

    num_steps: str | None = None
    """Turns of the reverse process; more look again in between. auto chooses; inf takes one word after the other, where
    masks are revealed."""
    rule: str | None = None
    """Which noise goes back in between two turns (docs/rules.md): posterior, partial:0.3, ranked:margin, ...; of images ode,
    sde:1."""
    temperature: float | None = None
    """0 takes the most probable token."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    """Words less probable than this share of the most probable one are left out."""
    max_time: float | None = None
    """Seconds, after which what is still hidden is drawn at once."""
    max_gap: int | None = None
    """The longest content of a gap that asks for no more, in tokens."""
    num_return_sequences: int | None = None
    """One text, or ten images of each class, unless it is given."""
    seed: int = 0
    tune: tyro.conf.UseAppendAction[tuple[Literal["compile", "int8", "bf16", "graphs"], ...]] = ()
    """Make a language model's calls quicker; may be given several times: bf16 weights where the machine multiplies them,
    int8 ones by torchao, compiled layers, CUDA graphs. docs/decoding.md has what each gains and costs."""

    def options(self) -> dict[str, Any]:
        """Those that were given, of how to draw."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "tune"}


@dataclass
class Infill:
    """Fill the gaps of texts."""

    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[MODEL] TEXT ...")]
    """A model, unless it is to be the one in the package: a folder or a hub name, of textdiff or any other language model.
    Then texts with [GAP], [GAP:2-6], [GAP:2-6w], [GAP:name=city], [GAP:yes|no], [GAP:/regex/], [GAP:must=word], or the
    model's own mask token; \\[GAP] is the text itself. None: a line each from stdin, and a line each, and sequence, out."""
    model: str | None = None
    """A folder or a hub name, whatever it looks like; then all words are texts."""
    json: bool = False
    """One JSON value per text, the list of its sequences, for programs."""
    explain: bool = False
    """Say first which way the model fills gaps, and why."""
    banned: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A string that no gap may contain; may be given several times, as may --must."""
    must: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A string that every gap has to contain; [GAP:must=word] asks it of one."""
    on_error: Literal["return", "raise"] = "return"
    """Of several texts: fill the others where one cannot be filled, and end with status 1; or fill none."""
    max_calls: int | None = None
    """Texts that may be tried for each one, to find out how long its gaps are (models that cannot say lengths)."""
    candidates: int | None = None
    """Fillings drawn for each one that is given, the most fluent; for autoregressive checkpoints."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)


@dataclass
class Refine:
    """Rewrite drafts."""

    model: tyro.conf.Positional[str]
    """A trained model: a folder or a hub name."""
    texts: tyro.conf.Positional[tuple[str, ...]]
    """Drafts. None: a line each from stdin."""
    t: float = 0.3
    """The noise level to start from, in (0, 1]: about the share of the text that may change. A model of deletion
    may put more in than there was, up to --max-gap tokens in each place; a text can become two to four times as
    long, and --max-gap tokens more."""
    keep: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A phrase that stays as it is; may be given several times."""
    json: bool = False
    """One JSON value per text, the list of its sequences, for programs."""
    on_error: Literal["return", "raise"] = "return"
    """Of several drafts: rewrite the others where one cannot be, and end with status 1; or rewrite none."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)


@dataclass
class Generate:
    """Write texts from a blank page or go on from a prompt; or draw images, whichever the model was trained on."""

    model: tyro.conf.Positional[str | None] = None
    """A folder or a hub name, of textdiff or any other language model; the one in the package unless given."""
    prompt: str = ""
    max_new_tokens: int | None = None
    """The most tokens that a text has after its prompt; --max-gap is another name for it."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A string that ends a text, and stays in it; may be given several times, the first that comes ends it."""
    watch: bool = False
    """Show the texts while they are denoised, in 16 steps unless --num-steps says otherwise."""
    json: bool = False
    label: str | None = None
    """The class of the images, by name; all of them in turn unless it is given."""
    out: str | None = None
    """The folder that grid.png and strip.png, the images on their way, are written to; samples unless it is given."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)


@dataclass
class Score:
    """How likely texts are under a model, in nats and bits per byte: exact, or a bound with its standard error."""

    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[MODEL] TEXT ...")] = ()
    """A folder, or a hub name that is in the cache, of textdiff or any other language model. Then texts. Anything else is a
    text, and the model is that of --model, or the one in the package. No text: a line each from stdin."""
    model: str | None = None
    """A folder or a hub name, whatever it looks like; then all words are texts."""
    within: str | None = None
    """A text with one [GAP]: the texts are fillings of it, and it is they that are scored, given the rest."""
    rank: bool = False
    """The likeliest first; fillings always are."""
    draws: int | None = None
    """Looks at each text where the figure is a bound, 16 by default; the error falls with their square root."""
    window: int | None = None
    """Cut longer texts into stretches of so many tokens, each scored by itself."""
    seed: int = 0
    json: bool = False
    """One JSON object per text, for programs; {"nats": null, "refused": why} for one that has no score, but not with --rank
    or --within."""


@dataclass
class Evaluate:
    """Texts: the likelihood bound in bits per byte, and gaps of one to five words filled, beside trivial baselines.

    Images: how many samples a classifier of real images recognises, and how far they are from real ones.
    """

    model: tyro.conf.Positional[tuple[str, ...]]
    """One or more models; each is a row of the table."""
    dataset: str | None = None
    """data/sotu for texts and digits for images, unless it is given."""
    split: str = "test"
    """The texts or images to measure on."""
    train_split: str | None = "train"
    """The texts the n-gram baselines learn from, None leaves them out; or the images the classifier learns from."""
    text_column: str = "text"
    image_column: str = "image"
    label_column: str = "label"
    gaps: int = 200
    context: int = 64
    """Windows that the likelihood is measured on, in tokens of each model."""
    windows: int = 500
    samples: int = 500
    """Images drawn for each row of the table."""
    rules: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A rule and steps to draw by, such as sde:1@250; may be given several times; for images. All of the table's unless
    given."""
    seed: int = 0
    json: bool = False


EXAMPLES = {
    "infill": """Fill the gaps of texts, by the model in the package or by any language model. [GAP] stands for missing text.

Examples:
  textdiff infill "We choose to go to the [GAP] in this decade."
  textdiff infill "The [GAP:1-2w] said [GAP:yes|no|maybe] in [GAP:/1[89][0-9]{2}/]." --num-return-sequences 3
  textdiff infill "We have [GAP:3-8w,must=peace,must=war] in our time."
  textdiff infill google-bert/bert-base-cased "Paris is the [MASK] of [MASK]." --explain
  textdiff infill runs/demo "My fellow [GAP], the state of our union is [GAP]."
  textdiff infill runs/demo "We must [GAP:2] the economy." --temperature 0
  textdiff infill runs/demo --num-return-sequences 3 --num-steps 8 --rule ranked "[GAP] and thank you."
  textdiff infill runs/demo --json < texts.txt""",
    "refine": """Rewrite drafts: corrupt them to noise level t and run the reverse process from there.

Examples:
  textdiff refine runs/demo "We must act on the jobs of our people." --t 0.3
  textdiff refine runs/demo "We must act on jobs." --t 0.6 --keep "We must" --keep jobs --num-return-sequences 3
  textdiff refine runs/demo --json < drafts.txt""",
    "generate": """Write texts from a blank page or go on from a prompt; or draw images, whichever the model was trained on.

Examples:
  textdiff generate --prompt "It was a dark and"
  textdiff generate runs/demo --num-return-sequences 3 --top-p 0.9
  textdiff generate runs/demo --prompt "My fellow Americans,"
  textdiff generate runs/demo --prompt "My fellow Americans," --num-steps 8 --rule partial:0.3 --json
  textdiff generate runs/demo --prompt "We must" --max-new-tokens 20 --stop . --num-return-sequences 4 --watch
  textdiff generate runs/digits --num-return-sequences 100 --out samples
  textdiff generate runs/digits --label 3 --num-steps 250 --rule sde:1""",
    "score": """How likely texts are under a model, in nats and in bits per byte; with a standard error where it is a bound.

Examples:
  textdiff score "We go on." "On go we." --rank
  textdiff score --model gpt2 "We go on." "On go we."
  textdiff score runs/demo --within "We must [GAP] the economy." grow break strengthen
  textdiff score runs/demo --draws 64 --json < texts.txt""",
    "evaluate": """Measure models on texts they have not seen, or beside images they have not seen.

Examples:
  textdiff evaluate runs/demo
  textdiff evaluate runs/demo runs/demo-box --gaps 200
  textdiff evaluate runs/mine --dataset texts.jsonl --split train --text-column body --train-split None --json
  textdiff evaluate runs/digits runs/digits-blur --samples 500""",
}
