"""The command line: textdiff train | infill | generate | evaluate."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from textdiff.config import complain, parse

_USAGE = """textdiff: train diffusion models of text, fill gaps of unknown length.

  textdiff train     learn from a data set         textdiff train --config data/demo.yaml
  textdiff infill    fill the gaps of a text       textdiff infill runs/demo "We must [GAP] the economy."
  textdiff generate  write texts, or go on         textdiff generate runs/demo --prompt "My fellow Americans,"
  textdiff evaluate  likelihood and gaps filled    textdiff evaluate runs/demo --dataset data/sotu --split test

textdiff COMMAND --help explains each one."""


@dataclass
class Sampling:
    """How texts are drawn. What is left out is what the model was saved with."""

    num_steps: int | None = None
    """Turns of the reverse process; more look again in between."""
    rule: str | None = None
    """fresh, posterior, ranked, or partial:RHO."""
    temperature: float | None = None
    """0 takes the most probable token."""
    top_k: int | None = None
    top_p: float | None = None
    max_gap: int | None = None
    """The longest content of a gap, in tokens."""
    num_return_sequences: int = 1
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Those that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class Infill:
    """Fill the gaps of texts."""

    model: tyro.conf.Positional[str]
    """A trained model: a folder or a hub name."""
    texts: tyro.conf.Positional[tuple[str, ...]]
    """Texts with [GAP], or [GAP:3] for exactly three tokens; \\[GAP] is the text itself. None: a line each from stdin."""
    json: bool = False
    """One JSON object per text, for programs."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)


@dataclass
class Generate:
    """Write texts from a blank page, or go on from a prompt."""

    model: tyro.conf.Positional[str]
    prompt: str = ""
    json: bool = False
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)


@dataclass
class Evaluate:
    """The likelihood bound in bits per byte, and gaps of one to five words filled, beside trivial baselines."""

    model: tyro.conf.Positional[tuple[str, ...]]
    """One or more models; each is a row of the table."""
    dataset: str = "data/sotu"
    split: str = "test"
    """The texts to measure on."""
    train_split: str | None = "train"
    """The texts the n-gram baselines learn from; None leaves them out."""
    text_column: str = "text"
    gaps: int = 200
    context: int = 64
    """Windows that the likelihood is measured on, in tokens of each model."""
    windows: int = 500
    seed: int = 0
    json: bool = False


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if words else 2
    if words[0] not in _COMMANDS:
        return complain(ValueError(f"unknown command {words[0]!r}; there are {', '.join(_COMMANDS)}"), "textdiff")
    prog = f"textdiff {words[0]}"
    try:
        return _COMMANDS[words[0]](words[1:], prog)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leave:  # tyro has said what is wrong, or what --help asked for
        return int(leave.code or 0)
    except (ValueError, OSError) as error:
        return complain(error, prog)


def train(args: list[str], prog: str) -> int:
    """textdiff train."""
    from textdiff.recipe import HELP, SHORT, Recipe

    recipe = parse(Recipe, args, prog=prog, description=HELP, short=SHORT)
    _quiet()
    figures = recipe.build().run()
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(f"saved {recipe.trainer.out} ({shown}); the curve is {recipe.trainer.out}/loss.png")
    return 0


def infill(args: list[str], prog: str) -> int:
    """textdiff infill."""
    command = parse(Infill, args, prog=prog, description=_EXAMPLES["infill"])
    texts = list(command.texts) or [line.rstrip("\n") for line in sys.stdin]
    if not texts:
        raise ValueError("no text to fill; give one, or a line each on standard input")
    from textdiff.gaps import check
    from textdiff.gaps import parse as parse_gaps

    for text in texts:  # before the model is loaded
        check(parse_gaps(text))
    _write(_pipeline(command.model)(texts, **command.sampling.options()), command.json)
    return 0


def generate(args: list[str], prog: str) -> int:
    """textdiff generate."""
    command = parse(Generate, args, prog=prog, description=_EXAMPLES["generate"])
    from textdiff.gaps import Gap

    parts = [command.prompt, Gap()] if command.prompt else [Gap()]
    _write([_pipeline(command.model)(parts, **command.sampling.options())], command.json)
    return 0


def evaluate(args: list[str], prog: str) -> int:
    """textdiff evaluate."""
    command = parse(Evaluate, args, prog=prog, description=_EXAMPLES["evaluate"])
    if not command.model:
        raise ValueError("name at least one model, such as runs/demo")
    _quiet()
    from textdiff.compare import compare, table

    rows = compare(
        command.model,
        command.dataset,
        command.split,
        command.train_split,
        text_column=command.text_column,
        gaps=command.gaps,
        context=command.context,
        count=command.windows,
        seed=command.seed,
    )
    print(json.dumps(rows, indent=1) if command.json else table(rows))
    return 0


_COMMANDS: dict[str, Callable[[list[str], str], int]] = {
    "train": train,
    "infill": infill,
    "generate": generate,
    "evaluate": evaluate,
}

_EXAMPLES = {
    "infill": """Fill the gaps of texts. [GAP] stands for missing text of any length.

Examples:
  textdiff infill runs/demo "My fellow [GAP], the state of our union is [GAP]."
  textdiff infill runs/demo "We must [GAP:2] the economy." --temperature 0
  textdiff infill runs/demo --num-return-sequences 3 --num-steps 8 --rule ranked "[GAP] and thank you."
  textdiff infill runs/demo --json < texts.txt""",
    "generate": """Write texts from a blank page, or go on from a prompt.

Examples:
  textdiff generate runs/demo --num-return-sequences 3 --top-p 0.9
  textdiff generate runs/demo --prompt "My fellow Americans,"
  textdiff generate runs/demo --prompt "My fellow Americans," --num-steps 8 --rule partial:0.3 --json""",
    "evaluate": """Measure models on texts they have not seen.

Examples:
  textdiff evaluate runs/demo
  textdiff evaluate runs/demo runs/demo-autoregressive --gaps 200
  textdiff evaluate runs/mine --dataset texts.jsonl --split train --text-column body --train-split None --json""",
}


def _quiet() -> None:
    """Keep the libraries' bars and notices away from ours."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _pipeline(model: str) -> Any:
    from textdiff.checkpoint import load
    from textdiff.pipelines import TextInfillingPipeline

    _quiet()
    checkpoint = load(model)
    return TextInfillingPipeline(
        model=checkpoint.model,
        tokenizer=checkpoint.tokenizer,
        diffusion_config=checkpoint.config,
        task="text-infilling",
    )


def _write(results: list[list[dict[str, Any]]], as_json: bool) -> None:
    """Texts with their filled parts in colour, or one JSON object per text."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for sequences in results:
        if as_json:
            print(json.dumps(sequences, ensure_ascii=False))
            continue
        for sequence in sequences:
            line = Text(sequence["generated_text"])
            for gap in sequence["gaps"]:
                line.stylize("bold green", gap["start"], gap["end"])
            console.print(line)


if __name__ == "__main__":
    sys.exit(main())
