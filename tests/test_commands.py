"""The docs and the help say nothing that does not run: every command is run, every block of Python, every script read.

Models, data sets and folders that commands name are tiny ones under the same names; training takes a step. What a command
says of its own (its model, its options, the order of its words) is what is tried.
"""

import argparse
import ast
import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import datasets
import pytest
from accelerate.state import AcceleratorState
from stock import STOCK
from test_pictures import recipe as picture_recipe
from test_pictures import write_idx
from tiny import SHAPE, tiny_checkpoint

from textdiff import cli, commands, config, recipe
from textdiff.card import model_card
from textdiff.checkpoint import DiffusionConfig
from textdiff.models import SIZES
from textdiff.pictures.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "train.py",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "data").glob("*.md")),
    *sorted((ROOT / "data").glob("*.yaml")),
    *sorted((ROOT / "data").glob("*.py")),
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    ROOT / "textdiff" / "box" / "README.md",
]
HELP = "\n".join([commands.USAGE, *commands.EXAMPLES.values(), recipe.HELP])
CARD = model_card("runs/demo", DiffusionConfig())

_COMMAND = re.compile(r"(?:^|[\s:])(textdiff (?:train|infill|refine|generate|score|evaluate) .*)")
_FENCE = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_SCRIPT = re.compile(r"python ((?:docs|data|examples|benchmarks)/\w+\.py|train\.py)([^`\n|]*)")
_TARGET = re.compile(r"`make ([a-z-]+)`|^\s*make ([a-z-]+)", re.MULTILINE)


def commands_in(text: str) -> list[str]:
    """The commands of a text: lines of code blocks and of help, comments that end in one, and inline code.

    Those that leave something out ("...", FOLDER) only show a form.
    """
    prose = _FENCE.sub("", text)
    inline = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]  # it may run over a line's end
    lines = [line for fence in _FENCE.findall(text) for line in fence.split("\n")]
    lines += [line for line in re.sub(r"`[^`]+`", "", prose).split("\n") if line.count("textdiff ") == 1]
    found = [match[1] for line in (*inline, *lines) if (match := _COMMAND.search(line))]
    words = [re.split(r"\s{3,}|\s+# ", command)[0].strip() for command in found]
    form = re.compile(r"\.\.\.|\b(FOLDER|PATH|MODEL|COMMAND)\b|^textdiff \w+ [a-z ,]+$|--help explains|--(config|out)$")
    return [command for command in words if not form.search(command)]


def sources() -> dict[str, list[str]]:
    """The commands of each page."""
    texts = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in PAGES}
    found = {name: commands_in(text) for name, text in (texts | {"--help": HELP, "card": CARD}).items()}
    for line in commands.USAGE.split("\n"):  # what a command does stands before its example
        found["--help"] += ["textdiff " + line.rsplit("textdiff ", 1)[1]] if line.count("textdiff ") > 1 else []
    return found


COMMANDS = sorted({command for found in sources().values() for command in found})
TRAINING = [command for command in COMMANDS if command.startswith("textdiff train")]
OTHERS = [command for command in COMMANDS if command not in TRAINING]
ANEW = ["textdiff infill runs/demo --json < texts.txt", 'textdiff score "We go on." "On go we." --rank']


def test_the_pages_have_commands() -> None:
    """The net that commands are caught in holds: README, help, docs and configurations have some, and forms are left out."""
    found = sources()
    assert len(found["README.md"]) > 12 and len(found["--help"]) > 25 and len(found["docs/processes.md"]) > 20
    assert found["data/demo.yaml"] == ["textdiff train --config data/demo.yaml --minutes 20"]
    assert len(TRAINING) > 30 and len(OTHERS) > 35 and {*ANEW} <= {*OTHERS}
    text = 'Use `textdiff infill ... --tune int8`, or\n`OMP=1 textdiff score\n"a|b" --rank` (twice).\n'
    text += "```\ntextdiff refine runs/m We.  # x\n```"
    assert commands_in(text) == ['textdiff score "a|b" --rank', "textdiff refine runs/m We."]


class _Parsed(Exception):
    pass


@pytest.mark.parametrize("command", COMMANDS)
def test_the_words_of_a_command_are_read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command, as far as its options are read."""
    words = shlex.split(command.split(" < ")[0])[1:]
    monkeypatch.chdir(ROOT)
    if words[0] == "train":
        recipe.read_recipe(words[1:], "textdiff train")
        return
    real = config.parse

    def parse(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise _Parsed

    monkeypatch.setattr(config, "parse", parse)
    with pytest.raises(_Parsed):
        cli.main(words)


def short(file: Path) -> list[str]:
    """The beginnings of a few texts."""
    lines = file.read_text("utf-8").splitlines()[:4]
    return [json.loads(line)["text"][:3000] for line in lines]


def write_texts(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps({"text": text, "body": text}) + "\n" for text in texts), "utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that commands name."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(ROOT / "data", folder / "data", ignore=shutil.ignore_patterns("*.py"))
    for file in (folder / "data" / "sotu").glob("*.jsonl"):
        write_texts(file, short(file))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", replace(SIZES["tiny"], **SHAPE))
        patch.setitem(SIZES, "mini", replace(SIZES["mini"], **SHAPE))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.chdir(folder)
        parallel = tiny_checkpoint("parallel", max_gap=4, staged=True, lengths=64, vocab=400, reads=256)
        for name in ("demo", "mine", "long", "told"):
            parallel.save(folder / "runs" / name)
        tiny_checkpoint("autoregressive", max_gap=4, candidates=2, lengths=64, vocab=400, reads=256).save(
            folder / "runs" / "demo-box"
        )
        tiny_checkpoint("parallel", process="deletion+edit", num_steps=3, lengths=64, vocab=400, reads=256).save(
            folder / "runs" / "demo-edit"
        )
        for name, path in {
            "google-bert/bert-base-cased": "masked, WordPiece",
            "FacebookAI/roberta-base": "masked, bytes",
            "HuggingFaceTB/SmolLM2-135M": "causal, bytes",
            "gpt2": "causal, bytes",
        }.items():
            model, tokenizer = STOCK[path]()
            model.float().save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        for name in ("digits", "digits-blur"):
            picture_recipe(folder / "runs" / name).build().run()
            AcceleratorState._reset_state(reset_partial_state=True)
        write_idx(folder / "fashion-mnist")
        shutil.copytree(ROOT / "textdiff" / "box", folder / "textdiff" / "box")
        shutil.copytree(folder / "data" / "sotu", folder / "runs" / "mix")
        write_texts(folder / "texts.jsonl", short(ROOT / "data" / "sotu" / "test.jsonl"))
        (folder / "texts.txt").write_text("We [GAP] on.\nAnd [GAP:2] again.\n")
        (folder / "drafts.txt").write_text("We go on.\nAnd on.\n")
        yield folder


@pytest.fixture
def run(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    monkeypatch.chdir(world)

    def call(command: str, *more: str) -> None:
        words = shlex.split(command)[1:]
        if "<" in words:
            at = words.index("<")
            monkeypatch.setattr(sys, "stdin", io.StringIO((world / words[at + 1]).read_text()))
            del words[at : at + 2]
        code = cli.main([*words, *more])
        output = capsys.readouterr()
        assert code == 0, f"{command}\n{output.err[-2000:]}"
        assert output.out.strip()

    return call


@pytest.mark.slow
@pytest.mark.parametrize("command", OTHERS)
def test_a_command_runs(run: Any, command: str) -> None:
    quick = ("--samples", "40", "--rules", "posterior@2") if "digits" in command else ("--gaps", "5", "--windows", "5")
    more = quick if command.startswith("textdiff evaluate") else ()
    run(command, *more, *(("--num-steps", "2") if "generate runs/digits" in command else ()))


@pytest.mark.slow
@pytest.mark.parametrize("command", ANEW)
def test_a_command_runs_in_a_process_of_its_own(world: Path, command: str) -> None:
    """As a shell takes it: its quotes, its <, what the process prints."""
    places = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=world, env={**os.environ, **places}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") > 1, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING)
def test_a_training_command_runs(world: Path, run: Any, command: str, fresh_accelerator: None) -> None:
    """One step each; `--resume` goes on with the run that the same command without it began."""
    command = command.replace("/usr/share/datasets/", "")
    images = "--kind image" in command or "digits" in command
    out = ("--out", f"runs/try-{crc32(command.encode())}")
    small = ("--trainer.batch", "4", "--trainer.measure-every", "0", "--trainer.show-every", "0")
    if images:
        small += ("--model.channels", "8") if "dit" not in command else ()
    else:
        small += ("--data.context", "16", "--data.shortest", "8")
        deletes = "--diffusion.process" not in command and "--diffusion.counts" not in command
        small += ("--noise.spans", "1") if deletes and "--config" not in command else ()
        small += () if "--dataset" in command or "--config" in command else ("--dataset", "data/sotu")
        small += ("--tokenizer.vocab", "400") if "model" not in command and "demo-box" not in command else ()
    if "--resume" in command:
        run(command.replace(" --resume", ""), *out, *small, "--steps", "1")
        AcceleratorState._reset_state(reset_partial_state=True)
    run(command, *out, *small, "--steps", "2" if "--resume" in command else "1")
    assert (world / out[1] / "diffusion_config.json").is_file()


SCRIPTS = sorted({(page, *match) for page in PAGES for match in _SCRIPT.findall(page.read_text("utf-8"))}, key=str)


@pytest.mark.parametrize(("page", "script", "args"), SCRIPTS, ids=lambda value: str(getattr(value, "name", value))[:60])
def test_the_words_of_a_script_are_read(
    page: Path, script: str, args: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scripts that take hours are run as far as their arguments are read; [--option] is given, too."""
    assert (ROOT / script).is_file()
    if "ArgumentParser" not in (ROOT / script).read_text("utf-8"):
        return  # it takes no options
    words = [word for word in args.replace("[", "").replace("]", "").split() if word != "..."]
    if "." in words[-1:]:
        words = words[:-1]
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, given: Any = None, namespace: Any = None) -> Any:
        real(self, given, namespace)
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / script.split("/")[0]))
    monkeypatch.syspath_prepend(str(ROOT))
    with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(_Parsed):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as error:
            raise AssertionError(f"{page.name}: python {script} {args}: {said.getvalue()[-500:]}") from error


def test_targets_of_make_are_there() -> None:
    targets = {*re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)}
    for page in PAGES:
        if page.suffix == ".md":
            for match in _TARGET.findall(page.read_text("utf-8")):
                assert next(filter(None, match)) in targets, (page.name, match)


def blocks(text: str) -> list[str]:
    """The blocks of Python that stand by themselves: they import what they use."""
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block for block in found if "import " in block]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["README.md", "card", "picture card"])
def test_blocks_of_python_run(world: Path, run: Any, source: str, capsys: pytest.CaptureFixture) -> None:
    texts = {
        "README.md": (ROOT / "README.md").read_text("utf-8"),
        "card": CARD,
        "picture card": (world / "runs" / "digits" / "README.md").read_text("utf-8"),
    }
    for block in blocks(texts[source]):
        ast.parse(block)
        exec(block, {})
    if source == "picture card":
        (command,) = commands_in(texts[source].replace("```", "`"))
        run(re.sub(r"generate \S+", "generate runs/digits", command), "--num-steps", "2")
        assert load_checkpoint(world / "runs" / "digits")


def test_the_first_block_prints_what_the_page_says(capsys: pytest.CaptureFixture) -> None:
    """To the letter: what the model in the package fills is the same on every machine, but for sums in another order."""
    page = (ROOT / "README.md").read_text("utf-8")
    (said,) = re.findall(r"It prints:\n\n```\n(.*?)```", page, re.DOTALL)
    exec(blocks(page)[0], {})
    assert capsys.readouterr().out == said


def test_configurations_hold_options_that_there_are() -> None:
    for file in sorted((ROOT / "data").glob("*.yaml")):
        recipe.read_recipe(["--config", str(file)], "textdiff train")
