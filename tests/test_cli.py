"""The command line: what it prints, and that bad input is one complaint with the value in it and exit code 2."""

import io
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny import SHAPE, tiny_checkpoint

from textdiff.checkpoint import CONFIG_NAME
from textdiff.cli import main
from textdiff.commands import Sampling
from textdiff.models import SIZES

WORDS = "we the people of a strong union go on with work and hope for peace in every town".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a data set, tiny models of two kinds, and broken copies of things."""
    folder, draw = tmp_path_factory.mktemp("world"), random.Random(0)
    (folder / "texts").mkdir()
    for split in ("train", "validation", "test"):
        texts = [" ".join(" ".join(draw.choices(WORDS, k=14)).capitalize() + "." for _ in range(4)) for _ in range(6)]
        lines = "".join(json.dumps({"text": text, "body": text}) + "\n" for text in texts)
        (folder / "texts" / f"{split}.jsonl").write_text(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", replace(SIZES["tiny"], **SHAPE))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        for kind in ("parallel", "autoregressive"):
            checkpoint = tiny_checkpoint(kind, texts, vocab=320, lengths=16, max_gap=4)
            checkpoint.save(folder / kind)
        checkpoint.save(folder / "plain")
        (folder / "plain" / CONFIG_NAME).unlink()
        checkpoint.save(folder / "short")
        weights = folder / "short" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        yield folder


@pytest.fixture
def run(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> object:
    """`run(*words)`: the exit code and what was said, in the folder with the models."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setenv("COLUMNS", "300")  # tyro wraps its boxes

    def call(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return code, *capsys.readouterr()

    return call


INFILL, REFINE = ("infill", "parallel"), ("refine", "parallel")
AUTOREGRESSIVE = ("--diffusion.denoiser", "autoregressive")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), ["textdiff COMMAND --help"]),
        (("fill",), ["unknown command 'fill'", "train, infill, refine, generate, score, evaluate"]),
        ((*INFILL, ""), ["the text is empty", "give a text with a [GAP]"]),
        ((*INFILL, "no gap"), ["no gap in 'no gap'", "mark the missing text with [GAP]"]),
        ((*INFILL, "[GAP][GAP:2-3]"), ["two gaps touch", "put text between them"]),
        ((*INFILL, "a [GAP:1] b [GAP:/(/]"), ["gap 2, after ' b ': the pattern '(' cannot be used"]),
        ((*INFILL, "[GAP:x]"), ["'[GAP:x]' at character 0: 'x' says nothing of a gap", "[GAP:3]"]),
        ((*INFILL, "[GAP:0]"), ["a gap of 0-0 tokens cannot be filled", "give at least 1"]),
        ((*INFILL, "x y " * 100 + "[GAP]"), ["the model reads 64", "shorten the text"]),
        (
            (*INFILL, "a [GAP]", "--num-steps", "0"),
            ["num_steps must be a whole number from 1,", "got 0"],
        ),
        ((*INFILL, "a [GAP]", "--num-steps", "-3"), ["num_steps must be", "got -3"]),
        ((*INFILL, "a [GAP]", "--num-steps", "many"), ["many"]),
        ((*INFILL, "a [GAP]", "--rule", "best"), ["unknown rule 'best'", "fresh, posterior, partial:RHO"]),
        (
            (*INFILL, "a [GAP]", "--rule", "partial:7"),
            ["rule 'partial:7': rho 7.0 is not a share", "write partial:RHO"],
        ),
        ((*INFILL, "a [GAP]", "--temperature", "-1"), ["temperature must be a number of at least 0; got -1.0"]),
        ((*INFILL, "a [GAP]", "--colour", "red"), ["unknown option --colour; --help lists those there are"]),
        ((*REFINE, "a b", "--seeds", "3"), ["unknown option --seeds; did you mean --seed?"]),
        (("generate", "--max-new-tokens", "5", "--max-gap", "3"), ["--max-new-tokens 5 and --max-gap 3", "leave one"]),
        (("infill", "short", "a [GAP]"), ["model.safetensors is not the file that was saved", "copy the model again"]),
        (
            ("infill", "missing", "a [GAP]"),
            ["missing cannot be opened as a language model", "name a folder or a hub model"],
        ),
        (
            ("evaluate", "parallel", "--dataset", "texts", "--rules", "x"),
            ["--rules ('x',): the models are of texts; leave"],
        ),
        (
            ("evaluate", "parallel", "--dataset", "texts", "--samples", "3"),
            ["--samples 3: the models are of texts; leave"],
        ),
        (("evaluate", "parallel"), ["the default data set data/sotu does not exist here", "--dataset"]),
        (("infill", "/no/such/folder", "a [GAP]"), ["/no/such/folder: no such folder; name a folder or a hub model"]),
        (("infill",), ["no text to fill; give one, or a line each on standard input"]),
        (("infill", "No gap."), ["no text to fill", "if 'No gap.' is one, mark the missing text with [GAP]"]),
        ((*REFINE, "a b", "--t", "0"), ["t must be a number above 0, at most 1; got 0.0"]),
        ((*REFINE, "a b", "--keep", "c"), ["'c' is in no draft", "copy it"]),
        ((*REFINE, "a b", "--keep", "a b"), ["nothing to rewrite"]),
        ((*REFINE, "x y " * 100), ["the model reads 64"]),
        (("evaluate", "plain"), [f"plain has no {CONFIG_NAME}"]),
        (
            ("generate", "parallel", "--num-return-sequences", "0"),
            ["num_return_sequences must be a whole number", "got 0"],
        ),
        (("evaluate",), ["name at least one model"]),
        (("evaluate", "parallel", "--dataset", "texts", "--text-column", "words"), ["no column 'words'", "text, body"]),
        (
            ("evaluate", "parallel", "--dataset", "texts", "--split", "dev"),
            ["no split 'dev'", "train, validation, test"],
        ),
        (("evaluate", "parallel", "--dataset", "missing.jsonl"), ["no file missing.jsonl"]),
        (("evaluate", "short", "--dataset", "texts"), ["model.safetensors is not the file that was saved"]),
        (
            ("evaluate", "parallel", "--dataset", "texts", "--gaps", "0"),
            ["gaps must be a whole number", "got 0"],
        ),
        (
            ("evaluate", "parallel", "--dataset", "texts", "--windows", "0"),
            ["windows must be a whole number"],
        ),
        (("train", "--trainer.steps", "0"), ["trainer.steps must be a whole number from 1", "got 0"]),
        (("train", "--trainer.steps", "-5"), ["trainer.steps must be a whole number from 1", "got -5"]),
        (("train", "--trainer.embedding-lr", "-1"), ["trainer.embedding_lr must be a number from 0 to 1000; got -1.0"]),
        (("train", "--trainer.lr", "fast"), ["trainer.lr", "fast"]),
        (("train", "--trainer.optimizer", "sgd"), ["sgd", "adamw"]),
        (("train", "--diffusion.denoiser", "magic"), ["magic", "parallel", "autoregressive", "seq2seq"]),
        (("train", "--diffusion.rule", "best"), ["unknown rule 'best'"]),
        (("train", "--diffusion.rule", "sde:1"), ["Deletion is no Gaussian process, so it has no SDE"]),
        (("train", "--diffusion.process", "encoder", "--diffusion.rule", "ranked"), ["Encoder has no noise per token"]),
        (("train", "--diffusion.process", "smudge"), ["unknown process 'smudge'", "masking, deletion, replacement"]),
        (("train", "--diffusion.process", "0*masking+edit"), ["write masking, or a mixture such as"]),
        (("train", "--diffusion.process", "masking+encoder"), ["states are vectors", "cannot be mixed"]),
        (("train", *AUTOREGRESSIVE, "--diffusion.process", "edit"), ["edit has words corrected", "denoiser parallel"]),
        (
            ("train", "--diffusion.self-conditioning"),
            [
                "self_conditioning is for denoiser parallel with process masking",
                "not parallel with deletion and block 0",
            ],
        ),
        (("train", "--diffusion.counts"), ["counts is for process masking or replacement, not deletion"]),
        (
            ("train", "--diffusion.process", "masking", "--diffusion.masked", "0.5"),
            ["masked is for process replacement"],
        ),
        (("train", "--diffusion.process", "replacement", "--diffusion.masked", "1"), ["masked 1.0 is not a share"]),
        (("train", "--diffusion.process", "edit", "--diffusion.edits", "1", "1", "1", "0"), ["must sum to 1"]),
        (("train", "--diffusion.process", "edit", "--diffusion.edits", "1", "0", "0", "1"), ["insert 1.0 is not in"]),
        (("train", "--data.dataset", "texts", "--data.text-column", "words"), ["no column 'words'", "text_column"]),
        (("train", "--data.dataset", "nowhere/"), ["nowhere"]),
        (
            ("train", "--data.dataset", "texts", "--data.context", "1"),
            ["data.context must be a whole number from 2", "got 1"],
        ),
        (("train", "--data.dataset", "texts", "--model.preset", "huge"), ["huge", "tiny", "small", "base"]),
        (("train", "--data.dataset", "texts", "--model.path", "texts"), ["texts cannot be loaded as a parallel model"]),
        (
            (
                "train",
                "--data.dataset",
                "texts",
                "--model.path",
                "autoregressive",
                "--diffusion.denoiser",
                "autoregressive",
            ),
            ["data.context 64 is more than the model reads", "give up to 63"],
        ),
        (
            ("train", "--data.dataset", "texts", "--tokenizer.vocab", "9"),
            ["tokenizer.vocab must be a whole number from 262", "got 9"],
        ),
        (("train", "--config", "missing.yaml"), ["missing.yaml is not a file", "--config takes a YAML file"]),
        (("train", "--config"), ["--config needs a file"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_bad_input(words: tuple[str, ...], named: list[str], run: object, world: Path) -> None:
    """Exit code 2; the value that is wrong and what to do are named; no traceback, nothing is written."""
    code, out, err = run(*words)
    said = " ".join((out + err).split())
    assert code == 2, said
    assert all(part in said for part in named), said
    assert "Traceback" not in said and not (world / "runs").exists()


@pytest.mark.parametrize(
    "words", [("infill", "{}", "a [GAP]"), ("refine", "{}", "a"), ("generate", "{}"), ("evaluate", "{}")]
)
def test_a_run_that_has_not_ended_is_told_as_one(
    words: tuple[str, ...], run: object, world: Path, tmp_path: Path
) -> None:
    (tmp_path / "states").mkdir()
    code, _, err = run(*(word.format(tmp_path) for word in words))
    assert (
        code == 2 and f"{tmp_path} is a run that has not ended; the command that began it goes on with --resume" in err
    )


NAMELESS = "the name of the model is empty; name a folder or a hub model"


@pytest.mark.parametrize("word", ["", " "])
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("infill", "{}", "We [GAP:1] go."), NAMELESS),
        (("infill", "--model", "{}", "We [GAP:1] go."), NAMELESS),
        (("infill", "{}"), NAMELESS),
        (("refine", "{}", "We go."), NAMELESS),
        (("generate", "{}"), NAMELESS),
        (("score", "--model", "{}", "We go."), NAMELESS),
        (("evaluate", "parallel", "{}"), NAMELESS),
        (("evaluate", "parallel", "--dataset", "{}"), "--dataset is empty; name a data set"),
        (("generate", "parallel", "--out", "{}"), "--out is empty; name a folder"),
    ],
    ids=" ".join,
)
def test_an_empty_name_is_no_name_left_out(words: tuple[str, ...], named: str, word: str, run: object) -> None:
    """As "$MODEL" is where MODEL is not set: nothing else is taken in its place."""
    code, out, err = run(*(part.format(word) for part in words))
    assert code == 2 and out == "" and named in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [("",), ("", "We go.")])
def test_an_empty_first_word_of_score(words: tuple[str, ...], run: object) -> None:
    """Before texts it may be meant as a model; alone, or with --model, it is a text."""
    code, out, err = run("score", *words)
    assert code == (2 if len(words) > 1 else 0)
    assert len(words) == 1 or out == "" and "the first word is empty; name a folder" in err
    code, out, _ = run("score", "--model", "parallel", *words, "--json")
    assert code == 0 and [json.loads(line)["text"] for line in out.splitlines()] == list(words)


SAMPLING = {
    "infill": (*INFILL, "We [GAP:1] on."),
    "refine": (*REFINE, "We go on."),
    "generate": ("generate", "parallel"),
}
VALUES = {"num_steps": "2", "rule": "posterior", "top_p": "0.9", "min_p": "0.1", "tune": "compile", "seed": "1"}


@pytest.mark.parametrize(
    ("command", "option"),
    [(name, field.name) for name in SAMPLING for field in fields(Sampling)] + [("infill", "candidates")],
)
def test_each_option_that_is_offered_is_taken(command: str, option: str, run: object, monkeypatch: Any) -> None:
    """What the help of a command lists no model of texts refuses as unknown."""
    monkeypatch.setattr("textdiff.tuning.tune", lambda model, *ways: model)
    model = "autoregressive" if option == "candidates" else "parallel"
    words = [model if word == "parallel" else word for word in SAMPLING[command]]
    code, _, err = run(*words, "--" + option.replace("_", "-"), VALUES.get(option, "2"))
    assert code == 0, err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("trainer: {lr: fast}", ["trainer.lr", "fast"]),
        ("trainer: {steps: 2.5}", ["trainer.steps", "2.5"]),
        ("trainer: {colour: red}", ["file.yaml, line 1", "unknown option trainer.colour"]),
        ("data: {streaming: perhaps}", ["perhaps"]),
        ("diffusion: {num_steps: 0}", ["num_steps must be a whole number", "got 0"]),
        ("- 1\n- 2", ["file.yaml must hold sections"]),
        ("trainer: {lr: [", ["file.yaml, line 1 is not YAML"]),
        ("", ["file.yaml must hold sections"]),
    ],
)
def test_bad_yaml(content: str, named: list[str], run: object, world: Path, tmp_path: Path) -> None:
    """Values in a file are checked like options."""
    (tmp_path / "file.yaml").write_text(content)
    code, out, err = run("train", "--config", str(tmp_path / "file.yaml"))
    said = " ".join((out + err).split())
    assert code == 2 and all(part in said for part in named), said
    assert "Traceback" not in said and not (world / "runs").exists()


def test_a_blank_page_is_legitimate(run: object) -> None:
    code, out, _ = run(*INFILL, "[GAP]")
    assert code == 0 and out.endswith("\n")


def test_infill_prints_json_lines(run: object) -> None:
    """One line per text, of the pipeline's dictionaries; the same seed gives the same line."""
    words = (*INFILL, "We [GAP:2] on.", "[GAP] \u00fc\u4e2d", "--json", "--num-return-sequences", "2", "--seed", "4")
    code, out, _ = run(*words)
    lines = [json.loads(line) for line in out.split("\n")[:-1]]
    assert code == 0 and [len(line) for line in lines] == [2, 2]
    assert all(sequence["generated_text"].endswith("\u00fc\u4e2d") for sequence in lines[1])
    assert run(*words)[1] == out


def test_infill_reads_lines(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("We [GAP:1] on.\nA [GAP:1] town.\n"))
    code, out, _ = run(*INFILL, "--json")
    assert code == 0 and len(out.splitlines()) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = run(*INFILL)
    assert code == 2 and "no text to fill; give one" in err


def test_infill_prints_texts(run: object) -> None:
    code, out, _ = run("infill", "autoregressive", "We [GAP:2] on.", "--temperature", "0")
    assert code == 0 and out.startswith("We ") and " on." in out


def test_infill_writes_what_must_be_written(run: object) -> None:
    code, out, _ = run("infill", "autoregressive", "We [GAP:must=hope] on [GAP].", "--must", "pe", "--json")
    first, second = json.loads(out)[0]["gaps"]
    assert code == 0 and "hope" in first["text"] and "pe" in second["text"]
    assert "--must" in run("infill", "--help")[1]


def test_brackets_of_the_user_are_no_markup(run: object) -> None:
    code, out, _ = run(*INFILL, "[bold]x[/bold] [/] [GAP:1]")
    assert code == 0 and out.startswith("[bold]x[/bold] [/] ")


def test_refine(run: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept stays, the rest may change; drafts come from the line or from standard input."""
    words = ("refine", "autoregressive", "we the people go on", "--t", "0.9", "--keep", "the people", "--json")
    code, out, _ = run(*words, "--num-return-sequences", "3")
    texts = [sequence["generated_text"] for sequence in json.loads(out)]
    assert code == 0 and len(texts) == 3 and all("the people" in text for text in texts)
    assert any(text != "we the people go on" for text in texts)
    monkeypatch.setattr("sys.stdin", io.StringIO("we go\non and on\n"))
    code, out, _ = run(*REFINE, "--json")
    assert code == 0 and len(out.splitlines()) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = run(*REFINE)
    assert code == 2 and "no text to refine; give one" in err


@pytest.mark.parametrize("model", ["parallel", "autoregressive"])
def test_generate(model: str, run: object) -> None:
    code, out, _ = run("generate", model, "--json", "--num-return-sequences", "2")
    assert code == 0 and len(json.loads(out)) == 2
    code, out, _ = run("generate", model, "--prompt", "My fellow Americans,", "--json")
    assert code == 0 and json.loads(out)[0]["generated_text"].startswith("My fellow Americans,")


def test_evaluate(run: object) -> None:
    """Baselines first, then a row per model; as JSON the same rows."""
    words = (
        "evaluate",
        "parallel",
        "autoregressive",
        "--dataset",
        "texts",
        "--gaps",
        "4",
        "--windows",
        "6",
        "--context",
        "16",
    )
    code, out, _ = run(*words)
    lines = out.splitlines()
    assert code == 0 and all(line.startswith("|") and line.endswith("|") for line in lines)
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 3 + 2
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["parallel", "autoregressive"]
    code, out, _ = run(*words, "--json", "--train-split", "None")
    assert code == 0 and [row["model"] for row in json.loads(out)] == ["parallel", "autoregressive"]
    assert {row["one_word_gaps"] for row in json.loads(out)} == {4}
    code, out, err = run(
        "evaluate", "parallel", "--dataset", "texts", "--gaps", "10000", "--windows", "2", "--context", "16"
    )
    (found,) = map(int, re.findall(r"the texts have sentences for (\d+) gaps, not 10000", err))
    assert code == 0 and 0 < found < 10000 and out.startswith("|")


@pytest.mark.parametrize("command", ["train", "infill", "refine", "generate", "score", "evaluate"])
def test_help(command: str, run: object) -> None:
    code, out, err = run(command, "--help")
    assert code == 0 and f"  textdiff {command} " in out and "Examples:" in out


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_the_commands(word: str, run: object) -> None:
    code, out, _ = run(word)
    assert code == 0 and all(
        f"textdiff {name}" in out for name in ("train", "infill", "refine", "generate", "score", "evaluate")
    )


def test_yaml_and_options_train(run: object, world: Path, tmp_path: Path) -> None:
    """A file of sections, overridden by options; the checkpoint it makes can be used. A second run is refused."""
    (tmp_path / "file.yaml").write_text(
        "data: {dataset: texts, context: 16, packed: true}\n"
        "model: {path: autoregressive}\ndiffusion: {denoiser: autoregressive, max_gap: 4}\n"
        "trainer: {steps: 9, batch: 4, measure_every: 0, show-every: 0}\nexamples: ['We [GAP] on.']\n"
    )
    out = str(tmp_path / "run")
    words = ("train", "--config", str(tmp_path / "file.yaml"), "--trainer.steps", "2", "--trainer.out", out)
    code, said, err = run(*words)
    assert code == 0 and f"saved {out}" in said, err
    assert run("infill", out, "We [GAP] on.")[0] == 0
    told = ("--diffusion.process", "masking", "--diffusion.self-conditioning", "--trainer.overwrite")
    code, _, err = run(*words, *told, "--diffusion.denoiser", "parallel", "--model.path", "parallel")
    assert code == 0 and json.loads((Path(out) / CONFIG_NAME).read_text())["self_conditioning"] is True, err
    assert run("infill", out, "We [GAP:2] on.", "--num-steps", "3")[0] == 0
    code, _, err = run(*words)
    assert code == 2 and "already holds a run" in err and "--overwrite" in err
