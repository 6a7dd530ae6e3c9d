"""docs/processes.md is what the code says; its proofs exist, its commands parse, and no process or rule is left out."""

import ast
import functools
import importlib.util
import shlex
from pathlib import Path

import pytest

from textdiff import process
from textdiff.config import parse
from textdiff.recipe import read_recipe
from textdiff.rulebook import RULES

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("make_processes", ROOT / "docs" / "make_processes.py")
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)


@functools.cache
def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_page_is_up_to_date() -> None:
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page(), "run python docs/make_processes.py"


@pytest.mark.parametrize("cell", pages.CELLS, ids=lambda cell: f"{cell.process}-{cell.rule}")
def test_proofs_exist_and_commands_parse(cell, monkeypatch) -> None:
    file, name = cell.proof.split("::")
    assert name in functions(file)
    if not cell.command:
        return
    monkeypatch.chdir(ROOT)
    program, command, *words = shlex.split(cell.command)
    assert program == "textdiff"
    if command == "train":
        read_recipe(words, "textdiff train")
    else:
        from textdiff import commands

        parse(
            {"generate": commands.Generate, "refine": commands.Refine}[command], words, prog="textdiff", description=""
        )


def test_no_process_and_no_rule_is_left_out() -> None:
    said = " ".join(cell.process + cell.rule for cell in pages.CELLS)
    assert [name for name in process.__all__ if name != "Process" and name not in said] == []
    page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    assert [name for name, entry in RULES.items() if f"`{entry.usage}`".replace("|", "\\|") not in page] == []


def test_every_identity_has_a_test() -> None:
    assert sorted(pages.STATED) == list(range(1, 22))
    assert sorted(set(pages.STATED) - set(pages.identities())) == []


def test_the_example_runs(capsys) -> None:
    """A process of one's own, in at most 25 lines, trained and run in reverse."""
    source = (ROOT / "examples" / "new_process.py").read_text(encoding="utf-8")
    (node,) = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)]
    assert node.end_lineno - node.lineno + 1 <= 25
    spec = importlib.util.spec_from_file_location("new_process", ROOT / "examples" / "new_process.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(steps=20)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 and "_" in lines[0] and "_" not in lines[-1]
