"""Texts pass standard streams byte for byte, in any order of words; one bad line costs no other; JSON is JSON."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_checkpoint

from textdiff.cli import main
from textdiff.commands import Evaluate, Generate, Infill, Refine, Score
from textdiff.terminal import to_json, write_line
from textdiff.words import in_order

NASTY = [
    "a\tb  c",
    "tab\t\tand form\x0cfeed",
    "bell\x07 back\x08space \x1b[31mred\x1b[0m",
    "carriage\rreturn",
    "nul\x00l",
    "e\u0301 combining, \U0001f468\u200d\U0001f469\u200d\U0001f467 joined, \u202eright\u202c to left",
    "line\u2028separator and \x85 next line",
    "[bold]markup[/bold] \\[red] :smile:",
    " leading and trailing ",
    "日本語 and ไทย",
    "--looks like -an option",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_checkpoint("autoregressive", max_gap=3, lengths=250, vocab=600, reads=1024).save(folder)
    return str(folder)


class Stdin:
    """Standard input with bytes behind it."""

    def __init__(self, content: bytes) -> None:
        self.buffer, self.closed = io.BytesIO(content), False

    def isatty(self) -> bool:
        return False


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> Any:
    """`run(*words, stdin=b"")`: the exit code, the bytes of standard output, and standard error."""

    def call(*words: str, stdin: Any = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", Stdin(stdin) if isinstance(stdin, bytes) else stdin)
        code = main(words)
        out, err = capfdbinary.readouterr()
        return code, out, err.decode()

    return call


def filled(text: str, out: bytes) -> bool:
    """Whether the output is the text with something in its gap, and one line end."""
    before, after = (part.encode() for part in text.split("[GAP:1]"))
    return out.startswith(before) and out.endswith(after + b"\n") and len(out) > len(before) + len(after)


CASES = [pytest.param(text, marks=pytest.mark.slow) for text in NASTY]
TOGETHER = " | ".join(text for text in NASTY if "\x00" not in text)


@pytest.mark.parametrize("text", [TOGETHER, *CASES])
def test_every_command_keeps_a_text_byte_for_byte(model: str, run: Any, text: str) -> None:
    gap = f"{text} [GAP:1] {text}"
    if "\x00" not in text:  # no argument can hold it
        code, out, _ = run("infill", model, gap)
        assert code == 0 and filled(gap, out)
        code, out, _ = run("generate", model, "--prompt", text, "--max-new-tokens", "2")
        assert code == 0 and out.startswith(text.encode()) and out.endswith(b"\n")
        code, out, _ = run("generate", model, "--prompt", text, "--watch", "--num-steps", "1", "--max-new-tokens", "2")
        assert code == 0 and out.startswith(text.encode())
        code, out, _ = run("refine", model, f"We go {text} on", "--keep", text, "--t", "0.5")
        assert code == 0 and text.encode() in out
    code, out, _ = run("infill", model, stdin=f"{gap}\n{gap}\r\n".encode())
    first, second = out[: len(out) // 2], out[len(out) // 2 :]
    assert code == 0 and first == second and filled(gap, first)  # one line end of either kind is none of the text
    code, out, _ = run("infill", model, "--json", stdin=f"{gap}\n".encode())
    (sequence,) = json.loads(out)
    assert code == 0 and filled(gap, sequence["generated_text"].encode() + b"\n")
    code, out, _ = run("score", model, "--json", "--window", "200", stdin=f"{text}\n".encode())
    assert code == 0 and json.loads(out)["text"] == text


def test_lines_of_both_kinds_score_alike(model: str, run: Any) -> None:
    _, out, _ = run("score", model, "--json", stdin=b"We go.\nWe go.\r\nWe go.\r\r\nWe go.")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == ["We go.", "We go.", "We go.\r", "We go."]
    assert rows[0] == rows[1] == rows[3] and rows[2]["nats"] > rows[0]["nats"]


def test_a_byte_order_mark_is_text(model: str, run: Any) -> None:
    """Wherever it stands: a line is a text byte for byte."""
    _, out, _ = run("score", model, "--json", stdin="\ufeffWe go.\n\ufeffWe go.\n".encode())
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["\ufeffWe go."] * 2


BAD = b"We [GAP:1] on\n\xff [GAP:1]\n\nno gap\n[GAP\nWe [GAP:1] on\n"


def test_one_bad_line_costs_no_other(model: str, run: Any) -> None:
    code, out, err = run("infill", model, stdin=BAD)
    good, *bad, again = out.splitlines()
    assert code == 1 and good == again and good.startswith(b"We ") and bad == [b""] * 4
    for number, reason in {2: "lone surrogate", 3: "the text is empty", 4: "no gap in", 5: "unclosed gap"}.items():
        assert f"textdiff infill: text {number}: {reason}" in err
    code, out, _ = run("infill", model, "--json", stdin=BAD)
    rows = [json.loads(line)[0] for line in out.splitlines()]
    assert code == 1 and ["error" in row for row in rows] == [False, True, True, True, True, False]
    code, out, err = run("infill", model, "--on-error", "raise", stdin=BAD)
    assert code == 2 and out == b"" and "text 2: lone surrogate" in err
    code, out, err = run("refine", model, stdin=b"We go on\n\nWe go on\n")
    assert code == 1 and [*map(bool, out.splitlines())] == [True, False, True] and "text 2" in err


def test_a_line_comes_out_for_each_line_and_sequence(model: str, run: Any) -> None:
    """A line end that the model writes is a space there, and itself in JSON, and for a text that is an argument."""
    options = ("--num-return-sequences", "2", "--must", "\n")
    code, out, _ = run("infill", model, *options, stdin=b"We\r [GAP] on\n\nand [GAP].\n")
    lines = out.split(b"\n")
    assert code == 1 and len(lines) == 7 and lines.pop() == b"" and lines[2:4] == [b"", b""]
    assert all(line.startswith(b"We\r ") and b"\r" not in line[3:] for line in lines[:2])
    code, out, _ = run("infill", model, *options, "--json", stdin=b"We\r [GAP] on\n\nand [GAP].\n")
    texts = [row.get("generated_text", "") for line in out.splitlines() for row in json.loads(line)]
    assert texts[0].count("\n") and [text.replace("\n", " ").encode() for text in texts] == [
        *lines[:2],
        b"",
        *lines[4:],
    ]
    code, out, _ = run("infill", model, *options, "We\r [GAP] on")
    assert code == 0 and out.decode() == "".join(f"{text}\n" for text in texts[:2])
    code, out, _ = run("refine", model, *options[:2], "--t", "1", stdin=b"We go on\nand on\n")
    assert code == 0 and out.count(b"\n") == 4


@pytest.mark.parametrize("options", [[], ["--json"], ["--rank"], ["--rank", "--json"], ["--within", "We [GAP] on"]])
def test_one_bad_line_costs_no_other_score(model: str, run: Any, options: list[str], monkeypatch: Any) -> None:
    """One that is not UTF-8, one that is too long; each is named, whatever it is scored together with."""
    monkeypatch.setattr("textdiff.cli.SCORED", 3)
    lines = [b"we go", b"on", b"\xff", b"go " * 2000, b"we go on"]
    code, out, err = run("score", model, *options, stdin=b"\n".join(lines))
    _, expected, _ = run("score", model, *options, "--", "we go", "on", "we go on")
    rows = [json.loads(line) for line in out.splitlines()] if options == ["--json"] else []
    errors = [
        f"textdiff score: text {number}: {row['refused']}" for number, row in enumerate(rows, 1) if "refused" in row
    ]
    out = b"".join(line for line in out.splitlines(True) if b'"refused"' not in line)
    assert code == 1 and out == expected and len(rows) in (0, 5)
    first, second = errors or err.splitlines()
    assert first.startswith("textdiff score: text 3: lone surrogate")
    assert second.startswith("textdiff score: text 4: ") and "shorten it" in second
    code, out, err = run("score", model, *options, stdin=b"\xff\n\xfe\n")
    told = out.decode() if rows else err
    assert code == 2 and told.count("\n") == 2 and not (out if told == err else err)
    code, out, err = run("score", model, *options, "go " * 2000)
    assert code == 2 and out == b"" and "text 1" not in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--draws", "1000000000"], "draws 1000000000 is more than 100,000"),
        (["--draws", "0"], "draws must be a whole number of at least 1; got 0"),
        (["--window", "0"], "window 0 is not between 1 and"),
    ],
)
def test_a_wrong_option_is_told_once(model: str, run: Any, options: list[str], named: str) -> None:
    """Not for each text."""
    code, out, err = run("score", model, *options, stdin=b"we\ngo\non\n")
    assert code == 2 and out == b"" and err.count("\n") == 1 and named in err


COMMANDS = [
    ("infill", "We [GAP:1] on"),
    ("infill", "We [GAP:1] on", "--json"),
    ("refine", "We go on"),
    ("generate", "--max-new-tokens", "2"),
    ("generate", "--max-new-tokens", "2", "--watch"),
    ("score", "We go on"),
    ("score", "We go on", "--json"),
    ("evaluate",),
    ("infill", "--help"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_closed_output_is_told_before_any_work(model: str, run: Any, words: tuple[str, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    code, _, err = run(words[0], model, *words[1:])
    assert code == 2 and err.count("\n") == 1 and "standard output is closed" in err and "send it to a file" in err


def broken(error: OSError) -> io.TextIOWrapper:
    class Raw(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            raise error

    return io.TextIOWrapper(io.BufferedWriter(Raw()), "utf-8")


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != ("evaluate",)], ids=" ".join)
def test_output_that_cannot_be_written(model: str, run: Any, words: tuple[str, ...], monkeypatch: Any) -> None:
    """A reader who has enough ends a command quietly; a full disk is one line; neither fails again as Python leaves."""
    for error, code, said in ((BrokenPipeError(32, "Broken pipe"), 0, ""), (OSError(28, "full"), 2, "[Errno 28] full")):
        monkeypatch.setattr(sys, "stdout", broken(error))
        found, _, err = run(words[0], model, *words[1:])
        assert found == code and err == (f"textdiff {words[0]}: {said}\n" if said else "")


def test_errors_that_nobody_reads_cost_nothing(model: str, run: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stderr", broken(OSError(28, "full")))
    code, out, _ = run("infill", model, stdin=BAD)
    assert code == 1 and len([*filter(None, out.splitlines())]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["infill", "refine", "score"])
def test_a_signal_ends_a_command_in_one_line(model: str, run: Any, command: str, number: int) -> None:
    class Slow(Stdin):
        def isatty(self) -> bool:
            signal.raise_signal(number)
            return False

    code, out, err = run(command, model, stdin=Slow(b"We [GAP:1] on\n"))
    assert code == 128 + number and out == b"" and err.startswith(f"\ntextdiff {command}: stopped")


@pytest.mark.parametrize("stdin", [None, b""], ids=["closed", "empty"])
@pytest.mark.parametrize("command", ["infill", "refine", "score"])
def test_nothing_on_standard_input_is_told(model: str, run: Any, command: str, stdin: Any) -> None:
    code, out, err = run(command, model, stdin=stdin)
    assert code == 2 and out == b"" and err.count("\n") == 1 and "give one, or a line each on standard input" in err


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(model: str) -> None:
    program = f"import sys; from textdiff.cli import main; sys.exit(main(['infill', {model!r}]))"
    lines = b"We [GAP:1] on\n" * 200
    run = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout is not None and run.stdin is not None
    run.stdout.close()
    run.stdin.write(lines)
    run.stdin.close()
    assert run.wait(timeout=120) == 0


def test_options_and_texts_in_any_order(model: str, run: Any) -> None:
    words = ("--seed", "3", "--num-steps", "1", "--json")
    _, expected, _ = run("infill", *words, model, "We [GAP:1] on")
    text = "We [GAP:1] on"
    for order in ((model, *words, text), (model, text, *words), (*words[:2], model, *words[2:], text)):
        assert run("infill", *order)[1] == expected


@pytest.mark.parametrize(
    ("kind", "args", "expected"),
    [
        (Infill, ["m", "--json", "--a [GAP]"], ["--json", "--", "m", "--a [GAP]"]),
        (Infill, ["--banned", "-x", "t [GAP]"], ["--banned=-x", "--", "t [GAP]"]),
        (Infill, ["--num_steps=3", "--", "--json"], ["--num-steps=3", "--", "--json"]),
        (Generate, ["--prompt", "--flag", "m"], ["--prompt=--flag", "--", "m"]),
        (Generate, ["--prompt"], ["--prompt"]),
        (Score, ["-", "--rank", "-two words"], ["--rank", "--", "-", "-two words"]),
        (Refine, ["m", "--t", "0.3", "d", "-h", "x"], ["--t=0.3", "-h", "--", "m", "d", "x"]),
        (Evaluate, ["--rules", "a@1", "--rules", "b@2", "m"], ["--rules=a@1", "--rules=b@2", "--", "m"]),
    ],
)
def test_the_order_of_words(kind: type, args: list[str], expected: list[str]) -> None:
    assert in_order(kind, args) == expected


@pytest.mark.parametrize("words", [("and/or",), ("yes/no", "black/white"), (" ",)])
def test_a_text_with_a_slash_is_a_text(run: Any, words: tuple[str, ...]) -> None:
    """Of several the first could have been meant as a model, and that is said."""
    code, out, err = run("score", *words, "--json")
    assert code == 0 and [json.loads(line)["text"] for line in out.splitlines()] == list(words)
    said = f"{words[0]!r} is scored as a text; for a model of this name use --model" in err
    assert said == (len(words) > 1)


def test_json_has_no_word_for_what_is_no_number() -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1.5, (float("-inf"),)], "c": "NaN", "d": True}
    assert json.loads(to_json(value)) == {"a": None, "b": [None, 1.5, [None]], "c": "NaN", "d": True}


def test_colour_is_for_terminals() -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, pipe = Screen(), io.StringIO()
    write_line("a b c", [(2, 3)], screen)
    write_line("a b c", [(2, 3)], pipe)
    assert screen.getvalue() == "a \033[1;32mb\033[0m c\n" and pipe.getvalue() == "a b c\n"


def test_the_version_and_the_module(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-m", "textdiff", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("textdiff ") and run.stdout.split()[1][0].isdigit()
