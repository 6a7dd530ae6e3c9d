"""The command line: textdiff train | infill | refine | generate | score | evaluate."""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from textdiff.commands import EXAMPLES, USAGE, Evaluate, Generate, Infill, Refine, Score
from textdiff.config import complain, parse


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
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
    from textdiff.recipe import read_recipe

    recipe = read_recipe(args, prog)
    _quiet()
    figures = recipe.build().run()
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(f"saved {recipe.trainer.out} ({shown}); the curve is {recipe.trainer.out}/loss.png")
    return 0


def infill(args: list[str], prog: str) -> int:
    """textdiff infill."""
    command = parse(Infill, args, prog=prog, description=EXAMPLES["infill"])
    texts = list(command.words)
    model = texts.pop(0) if texts and "[GAP" not in texts[0] else None
    unfilled = f"; if {model!r} is one, mark the missing text with [GAP]" if model else ""
    texts = texts or _lines("fill", unfilled)
    from textdiff.gaps import parse as parse_gaps

    for text in texts:  # before the model is loaded
        parse_gaps(text)
    fill = _pipeline(model, command.sampling.tune)
    if command.explain:
        print(fill.explain(), file=sys.stderr)
    options = command.sampling.options() | {"banned": command.banned, "must": command.must}
    if command.max_calls is not None:
        options["max_calls"] = command.max_calls
    _write(fill(texts, **options), command.json)
    return 0


def _lines(what: str, remedy: str = "") -> list[str]:
    """The lines of standard input. ValueError where there are none; nobody waits for somebody to type them."""
    texts = [] if sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin]
    if not texts:
        raise ValueError(f"no text to {what}; give one, or a line each on standard input{remedy}")
    return texts


def refine(args: list[str], prog: str) -> int:
    """textdiff refine."""
    command = parse(Refine, args, prog=prog, description=EXAMPLES["refine"])
    texts = list(command.texts) or _lines("refine")
    rewrite = _pipeline(command.model, command.sampling.tune).refine
    _write(rewrite(texts, command.t, command.keep, **command.sampling.options()), command.json)
    return 0


def generate(args: list[str], prog: str) -> int:
    """textdiff generate."""
    command = parse(Generate, args, prog=prog, description=EXAMPLES["generate"])
    from textdiff.checkpoint import find_config, kind_of

    kind = kind_of(command.model) if command.model and find_config(command.model) else "text"
    {"text": _generate_texts, "image": _generate_images}[kind](command)
    return 0


def _generate_texts(command: Generate) -> None:
    if command.label is not None:
        raise ValueError(f"--label {command.label}: {command.model} is a model of texts, which have no classes")
    options = command.sampling.options()
    length = options.pop("max_gap", None) if command.max_new_tokens is None else command.max_new_tokens
    write = _text_diffusion(command.model, command.sampling.tune)
    options |= {"stop_strings": command.stop} | ({} if length is None else {"max_new_tokens": length})
    if command.watch:
        from textdiff.streaming import BatchStreamer

        options = {"num_steps": 16, "streamer": BatchStreamer(write.tokenizer), **options}
    results = write(command.prompt, **options)
    if command.json:
        print(json.dumps(results, ensure_ascii=False))
    elif not command.watch:  # there they stand already
        spans = [{"start": len(command.prompt), "end": len(result["generated_text"])} for result in results]
        _write([[result | {"gaps": [span]} for result, span in zip(results, spans, strict=True)]], as_json=False)


def _generate_images(command: Generate) -> None:
    from textdiff.pictures.show import show

    if command.prompt:
        raise ValueError(f"--prompt {command.prompt!r}: {command.model} is a model of images; leave it out")
    if command.sampling.tune:
        raise ValueError(f"--tune {command.sampling.tune[0]}: {command.model} is a model of images; leave it out")
    said = show(command.model or "", command.out, label=command.label, progress=_bar, **command.sampling.options())
    print(json.dumps(said) if command.json else f"wrote {said['grid']} ({said['shows']}) and {said['strip']}")


def score(args: list[str], prog: str) -> int:
    """textdiff score."""
    command = parse(Score, args, prog=prog, description=EXAMPLES["score"])
    texts, model = [command.first, *command.texts] if command.first or command.texts else [], command.model
    if model is None and texts and _names_model(texts[0]):
        model = texts.pop(0)
    texts = texts or _lines("score")
    from textdiff.scoring import lines, rank
    from textdiff.scoring import score as score_texts

    if command.within is not None:
        from textdiff.gaps import check
        from textdiff.gaps import parse as parse_gaps

        check(parse_gaps(command.within))  # before the model is loaded
    tools: dict[str, Any] = _pipeline(model).opened.scorer | {"draws": command.draws, "seed": command.seed}
    if command.within is None:
        found = list(zip(texts, score_texts(texts, window=command.window, **tools), strict=True))
        found = sorted(found, key=lambda pair: pair[1].nats) if command.rank else found
    else:
        found = [(ranked.filling[0], ranked.score) for ranked in rank(command.within, texts, **tools)]
    for line in lines(found, command.json):
        print(line)
    return 0


def _names_model(word: str) -> bool:
    """Whether a word is a folder, or looks like the path of one, or like OWNER/NAME on the hub."""
    return os.path.isdir(word) or bool(re.fullmatch(r"[\w.~-]*(/[\w.-]+)+", word))


def evaluate(args: list[str], prog: str) -> int:
    """textdiff evaluate."""
    command = parse(Evaluate, args, prog=prog, description=EXAMPLES["evaluate"])
    if not command.model:
        raise ValueError("name at least one model, such as runs/demo")
    from textdiff.checkpoint import kind_of

    kinds = {kind_of(model) for model in command.model}
    if len(kinds) > 1:
        raise ValueError("models of texts and of images cannot be compared; name models of one kind")
    _quiet()
    rows, shown = {"text": _evaluate_texts, "image": _evaluate_images}[kinds.pop()](command)
    print(json.dumps(rows, indent=1) if command.json else shown)
    return 0


def _evaluate_texts(command: Evaluate) -> tuple[list[dict[str, Any]], str]:
    from textdiff.compare import compare, table

    rows = compare(
        command.model,
        command.dataset or "data/sotu",
        command.split,
        command.train_split,
        text_column=command.text_column,
        gaps=command.gaps,
        context=command.context,
        count=command.windows,
        seed=command.seed,
    )
    return rows, table(rows)


def _evaluate_images(command: Evaluate) -> tuple[list[dict[str, Any]], str]:
    from textdiff.pictures.data import DIGITS, PicturesConfig
    from textdiff.pictures.scores import score, table

    if command.train_split is None:
        raise ValueError("train_split None leaves nothing that a classifier could learn from; name a split")
    data = PicturesConfig(
        command.dataset or DIGITS,
        split=command.train_split,
        validation_split=command.split,
        image_column=command.image_column,
        label_column=command.label_column,
    )
    runs = []
    for word in command.rules:
        rule, _, steps = word.partition("@")
        if not steps.isdigit() or not int(steps):
            raise ValueError(f"rules {word!r}: write RULE@STEPS, such as posterior@50")
        runs.append((rule, int(steps)))
    rows = score(command.model, data, runs, count=command.samples, seed=command.seed, progress=_bar)
    return rows, table(rows)


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, dynamic_ncols=True, leave=False)


_COMMANDS: dict[str, Callable[[list[str], str], int]] = {
    "train": train,
    "infill": infill,
    "refine": refine,
    "generate": generate,
    "score": score,
    "evaluate": evaluate,
}


def _quiet() -> None:
    """Keep the libraries' bars and notices away from ours."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _pipeline(model: str | None, ways: Sequence[str] = ()) -> Any:
    from textdiff.pipelines import open_infilling

    _quiet()
    return _tuned(open_infilling(model), ways)


def _text_diffusion(model: str | None, ways: Sequence[str] = ()) -> Any:
    from textdiff.pipelines import open_diffusion

    _quiet()
    return _tuned(open_diffusion(model), ways)


def _tuned(pipeline: Any, ways: Sequence[str]) -> Any:
    from textdiff.tuning import tune

    tune(pipeline.model, *ways)
    return pipeline


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
