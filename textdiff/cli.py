"""The command line: textdiff train | infill | refine | generate | score | evaluate."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

from textdiff.launch import run_command, say
from textdiff.terminal import in_one_line, read_lines, to_json, write_line
from textdiff.validation import check_integer

if TYPE_CHECKING:
    from textdiff.commands import Evaluate, Generate, Infill, Refine, Score

SPEECHES = "data/sotu"  # what models of texts are measured on
BATCH = 32  # lines of standard input that are filled together
SCORED = 256  # lines that are scored together, less where they are looked at often
LOOKS, DRAWS = 1 << 20, 16
MOST_DRAWS = 100_000
Ask: TypeAlias = Callable[[list[str]], list[tuple[str, Any]]]  # texts -> texts and their scores


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0; 1 where some of several texts failed; 2 for bad input; 128 and the signal's number after one,
        130 after Ctrl-C (see `launch`).
    """
    words = list(sys.argv[1:] if args is None else args)
    prog = " ".join(["textdiff", *(word for word in words[:1] if word in _COMMANDS)])
    return run_command(lambda: _run(words), prog, trains=words[:1] == ["train"])


def _run(words: Sequence[str]) -> int:
    if {"-h", "--help"} & {*words}:
        _need_output()
    if not words or words[0] in ("-h", "--help"):
        from textdiff.commands import USAGE

        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"textdiff {version('textdiff')}")
        return 0
    if words[0] not in _COMMANDS:
        raise ValueError(f"unknown command {words[0]!r}; there are {', '.join(_COMMANDS)}")
    return _COMMANDS[words[0]](list(words[1:]), f"textdiff {words[0]}")


def _asked(name: str, args: Sequence[str], prog: str) -> Any:
    """What was asked of a command, as its dataclass of `commands` has it."""
    from textdiff import commands
    from textdiff.config import parse
    from textdiff.words import in_order

    kind = getattr(commands, name.capitalize())
    asked = parse(kind, in_order(kind, args), prog=prog, description=commands.EXAMPLES[name])
    for option in _EMPTY:
        value = getattr(asked, option, None)
        for word in (value,) if isinstance(value, str) else value or ():
            _check_named(option, word)
    return asked


_EMPTY = {
    "model": "the name of the model is empty; name a folder or a hub model",
    "dataset": "--dataset is empty; name a data set, or leave it out",
    "out": "--out is empty; name a folder, or leave it out",
}


def _check_named(option: str, word: str) -> str:
    """The word itself. ValueError for an empty one, as a variable is that is not set: nothing else stands in for it."""
    if not word.strip():
        raise ValueError(_EMPTY[option])
    return word


def train(args: list[str], prog: str) -> int:
    """textdiff train."""
    from textdiff.recipe import read_recipe

    recipe = read_recipe(args, prog)
    _quiet()
    figures = recipe.build().run()
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    say(f"saved {recipe.trainer.out} ({shown}); the curve is {recipe.trainer.out}/loss.png")
    return 0


def infill(args: list[str], prog: str) -> int:
    """textdiff infill."""
    command: Infill = _asked("infill", args, prog)
    texts, model = list(command.words), command.model
    if model is None and texts and "[GAP" not in texts[0]:
        model = _check_named("model", texts.pop(0))
    unfilled = f"; if {model!r} is one, mark the missing text with [GAP], or use --model"
    if model is None or os.path.isdir(model):
        unfilled = ""
    lines = _given(texts, "fill", unfilled)
    from textdiff.gaps import parse as parse_gaps

    for text in texts if len(texts) == 1 or command.on_error == "raise" else ():  # before the model is loaded
        parse_gaps(text)
    fill = _pipeline(model, command.sampling.tune, unfilled)
    if command.explain:
        print(fill.explain(), file=sys.stderr)
    options = command.sampling.options() | {"banned": command.banned, "must": command.must}
    for name in ("max_calls", "candidates"):
        if (value := getattr(command, name)) is not None:
            options[name] = value
    if len(texts) == 1:
        return _show([fill(texts[0], **options)], command.json, prog)
    results = fill(iter(lines), batch_size=BATCH, on_error=command.on_error, **options)
    return _show(results, command.json, prog, _per_line(command, texts))


def _given(texts: Sequence[str], verb: str, remedy: str = "") -> Iterator[str]:
    """The texts of the command line, or the lines of standard input. ValueError where there are none at all."""
    lines = iter(texts) if texts else read_lines()
    for first in lines:
        return chain([first], lines)
    raise ValueError(f"no text to {verb}; give one, or a line each on standard input{remedy}")


def _per_line(command: "Infill | Refine", texts: Sequence[str]) -> int:
    """How many lines come out for each line that came in; 0 where texts are arguments."""
    return 0 if texts else command.sampling.num_return_sequences or 1


def refine(args: list[str], prog: str) -> int:
    """textdiff refine."""
    command: Refine = _asked("refine", args, prog)
    unread = "" if os.path.exists(command.model) else f"; the first word, {command.model!r}, is the model"
    drafts = list(_given(command.texts, "refine", unread))
    pipeline = _pipeline(command.model, command.sampling.tune, "; the first word is the model")
    alone = len(command.texts) == 1
    options = command.sampling.options() | ({} if alone else {"on_error": command.on_error})
    results = pipeline.refine(drafts[0] if alone else drafts, command.t, command.keep, **options)
    return _show([results] if alone else results, command.json, prog, _per_line(command, command.texts))


def generate(args: list[str], prog: str) -> int:
    """textdiff generate."""
    command: Generate = _asked("generate", args, prog)
    from textdiff.checkpoint import find_config, kind_of

    kind = kind_of(command.model) if command.model and find_config(command.model) else "text"
    {"text": _generate_texts, "image": _generate_images}[kind](command)
    return 0


def _generate_texts(command: "Generate") -> None:
    for name, value in {"label": command.label, "out": command.out}.items():
        if value is not None and command.model and not os.path.exists(command.model):
            raise ValueError(f"{command.model}: no such folder; --{name} is for the folder of a model of images")
        if value is not None:
            raise ValueError(f"--{name} {value}: {command.model or 'the model'} is a model of texts; leave it out")
    if command.json and command.watch:
        raise ValueError("--watch shows texts to people, --json to programs; leave one of them out")
    options = command.sampling.options()
    length, other = command.max_new_tokens, options.pop("max_gap", None)
    if length is not None and other is not None:
        raise ValueError(f"--max-new-tokens {length} and --max-gap {other} say the same here; leave one of them out")
    length = other if length is None else length
    write = _text_diffusion(command.model, command.sampling.tune)
    options |= {"stop_strings": command.stop} | ({} if length is None else {"max_new_tokens": length})
    if command.watch:
        from textdiff.streaming import BatchStreamer

        options = {"num_steps": 16, "streamer": BatchStreamer(write.tokenizer, prompt=command.prompt), **options}
    results = write(command.prompt, **options)
    if command.json:
        write_line(to_json(results))
    elif not command.watch:  # there they stand already
        for result in results:
            text = result["generated_text"]
            write_line(text, [(len(command.prompt), len(text))])


def _generate_images(command: "Generate") -> None:
    from textdiff.pictures.show import show

    for name, value in {"prompt": command.prompt, "stop": command.stop, "tune": command.sampling.tune}.items():
        if value:
            raise ValueError(f"--{name}: {command.model} is a model of images; leave it out")
    if command.watch or command.max_new_tokens is not None:
        raise ValueError(f"--watch and --max-new-tokens are of texts, and {command.model} is of images; leave them out")
    options, out = command.sampling.options(), "samples" if command.out is None else command.out
    said = show(command.model or "", out, label=command.label, progress=_bar, **options)
    print(to_json(said) if command.json else f"wrote {said['grid']} ({said['shows']}) and {said['strip']}")


def score(args: list[str], prog: str) -> int:
    """textdiff score."""
    command: Score = _asked("score", args, prog)
    texts, model = list(command.words), command.model
    if model is None and len(texts) > 1 and not texts[0]:
        raise ValueError(
            "the first word is empty; name a folder or a hub model, or use --model: then all words are texts"
        )
    if model is None and texts and _is_model(texts[0]):
        model = texts.pop(0)
    elif model is None and len(texts) > 1 and _looks_like_a_model(texts[0]):
        print(f"{prog}: {texts[0]!r} is scored as a text; for a model of this name use --model", file=sys.stderr)
    given = _given(texts, "score")
    if command.draws is not None and check_integer("draws", command.draws, least=1) > MOST_DRAWS:
        raise ValueError(
            f"draws {command.draws} is more than {MOST_DRAWS:,}; the error falls with their root, give fewer"
        )
    ask = _scorer(command, model)
    return _show_scores(
        ask(list(given)) if len(texts) == 1 else _scored(given, ask, command.draws or DRAWS), command, prog
    )


def _scorer(command: "Score", model: str | None) -> Ask:
    """What scores texts, or fillings, together. ValueError for a model or options that cannot score any."""
    from textdiff.scoring import rank
    from textdiff.scoring import score as score_texts

    within = command.within
    if within is not None:
        from textdiff.gaps import check
        from textdiff.gaps import parse as parse_gaps

        check(parse_gaps(within))  # before the model is loaded
        if command.window is not None:
            raise ValueError("--window cuts texts, and --within scores the fillings of one; leave one of them out")
    opened, given = _pipeline(model).opened, {} if command.draws is None else {"draws": command.draws}
    opened.check_draws(given)
    tools: dict[str, Any] = opened.scorer | given | {"seed": command.seed}

    def ask(texts: list[str]) -> list[tuple[str, Any]]:
        if within is None:
            return list(zip(texts, score_texts(texts, window=command.window, **tools), strict=True))
        return [(ranked.filling[0], ranked.score) for ranked in rank(within, texts, **tools)]

    ask([])  # what is wrong with the options is wrong with no text
    return ask


def _scored(texts: Iterator[str], ask: Ask, draws: int) -> Iterator[tuple[str, Any]]:
    """Texts and their scores; a text that has none costs no other, and has the ValueError in its place."""
    size = max(1, min(SCORED, LOOKS // max(draws, 1)))
    while group := list(islice(texts, size)):
        yield from _halved(group, ask)


def _halved(group: list[str], ask: Ask) -> list[tuple[str, Any]]:
    try:
        return ask(group)
    except ValueError as error:
        half = len(group) // 2
        return [*_halved(group[:half], ask), *_halved(group[half:], ask)] if half else [(group[0], error)]


def _show_scores(found: Iterable[tuple[str, Any]], command: "Score", prog: str) -> int:
    """A table, or a JSON object a line, written as it comes if it may be, with errors; else these on standard error."""
    from textdiff.scoring import lines

    ranked, failed, number, kept = command.rank or command.within is not None, 0, 0, list[tuple[str, Any]]()
    for number, (text, score) in enumerate(found, 1):
        if isinstance(score, ValueError):
            failed += 1
            if command.json and not ranked:
                write_line(to_json({"nats": None, "refused": str(score)}))
            else:
                print(f"{prog}: text {number}: {score}", file=sys.stderr)
        elif command.json and not ranked:
            write_line(lines([(text, score)], as_json=True)[0])
        else:
            kept.append((text, score))
    if ranked:
        kept.sort(key=lambda pair: pair[1].nats)
    for line in lines(kept, command.json) if kept else ():
        write_line(line)
    return _code(failed, number)


def _is_model(word: str) -> bool:
    """Whether a word is the folder of a model, or OWNER/NAME of one that the hub's cache holds. The hub is not asked."""
    if os.path.isdir(word):
        return True
    if not _looks_like_a_model(word):
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(word, "config.json"), str)


def _looks_like_a_model(word: str) -> bool:
    import re

    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", word))


def evaluate(args: list[str], prog: str) -> int:
    """textdiff evaluate."""
    command: Evaluate = _asked("evaluate", args, prog)
    if not command.model:
        raise ValueError("name at least one model, such as runs/demo")
    from textdiff.checkpoint import kind_of

    kinds = {kind_of(model) for model in command.model}
    if kinds == {"text"} and command.dataset is None and not os.path.exists(SPEECHES):
        raise ValueError(f"the default data set {SPEECHES} does not exist here; name a data set with --dataset")
    if len(kinds) > 1:
        raise ValueError("models of texts and of images cannot be compared; name models of one kind")
    (kind,) = kinds
    for name in {"text": _OF_IMAGES, "image": _OF_TEXTS}[kind]:
        if (value := getattr(command, name)) != getattr(type(command), name):
            raise ValueError(f"--{name.replace('_', '-')} {value}: the models are of {kind}s; leave it out")
    _need_output()
    _quiet()
    rows, shown = {"text": _evaluate_texts, "image": _evaluate_images}[kind](command)
    write_line(to_json(rows, indent=1) if command.json else shown)
    return 0


_OF_TEXTS = ("text_column", "gaps", "context", "windows")  # options of evaluate
_OF_IMAGES = ("image_column", "label_column", "samples", "rules")


def _evaluate_texts(command: "Evaluate") -> tuple[list[dict[str, Any]], str]:
    from textdiff.compare import compare, table

    rows = compare(
        command.model,
        command.dataset or SPEECHES,
        command.split,
        command.train_split,
        text_column=command.text_column,
        gaps=command.gaps,
        context=command.context,
        count=command.windows,
        seed=command.seed,
    )
    counts = [value for row in rows for name, value in row.items() if name.endswith("_gaps")]
    found = min(counts, default=command.gaps)
    if found < command.gaps:
        print(f"textdiff evaluate: the texts have sentences for {found} gaps, not {command.gaps}", file=sys.stderr)
    return rows, table(rows)


def _evaluate_images(command: "Evaluate") -> tuple[list[dict[str, Any]], str]:
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


def _need_output() -> None:
    """Refuse to work for nobody. ValueError where standard output is closed."""
    if sys.stdout is None or sys.stdout.closed:
        raise ValueError(
            "standard output is closed, and the results are written there; leave it open, or send it to a file"
        )


def _pipeline(model: str | None, ways: Sequence[str] = (), remedy: str = "") -> Any:
    from textdiff.pipelines import open_infilling

    _need_output()
    _quiet()
    try:
        return _tuned(open_infilling(model), ways)
    except ValueError as error:
        raise ValueError(f"{error}{remedy}") from error


def _text_diffusion(model: str | None, ways: Sequence[str] = ()) -> Any:
    from textdiff.pipelines import open_diffusion

    _need_output()
    _quiet()
    try:
        return _tuned(open_diffusion(model), ways)
    except ValueError as error:
        prompt = "" if model is None or os.path.exists(model) else f"; if {model!r} is a prompt, use --prompt"
        raise ValueError(f"{error}{prompt}") from error


def _tuned(pipeline: Any, ways: Sequence[str]) -> Any:
    from textdiff.tuning import tune

    tune(pipeline.model, *ways)
    return pipeline


def _show(results: Iterable[list[dict[str, Any]]], as_json: bool, prog: str, per_line: int = 0) -> int:
    """Texts with their filled parts in colour, or one JSON value per text; errors on standard error. The exit code.

    per_line: Lines that are written for each text, whatever becomes of it, for then line n of what came in is known by its
        number: one that failed is as many empty lines, a line end that the model wrote a space. 0: texts as they are.
    """
    failed = number = 0
    for number, sequences in enumerate(results, 1):
        bad = "error" in sequences[0]
        failed += bad
        if as_json:
            write_line(to_json(sequences))
        elif bad:
            print(f"{prog}: text {number}: {sequences[0]['error']}", file=sys.stderr)
            for _ in range(per_line):
                write_line("")
        else:
            for sequence in sequences:
                spans = [(gap["start"], gap["end"]) for gap in sequence["gaps"]]
                text = sequence["generated_text"]
                write_line(in_one_line(text, spans) if per_line else text, spans)
    return _code(failed, number)


def _code(failed: int, number: int) -> int:
    """The exit code where so many of so many texts failed."""
    return 0 if not failed else 1 if failed < number else 2


if __name__ == "__main__":
    sys.exit(main())
