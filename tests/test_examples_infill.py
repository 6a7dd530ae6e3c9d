"""The examples of infilling run as they are: by the model in the package, and by stock models of every kind."""

import runpy
import sys
from pathlib import Path

import pytest
from families import CAUSAL, MASKED, SEQ2SEQ, tiny

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("infill_*.py"))
MODELS = {"bert": MASKED, "t5": SEQ2SEQ, "bart": SEQ2SEQ, "qwen2": CAUSAL}


@pytest.fixture(scope="module", params=["box", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What stands on the command line."""
    if request.param == "box":
        return []
    folder = tmp_path_factory.mktemp(request.param)
    for part in tiny(request.param, MODELS[request.param]):
        part.save_pretrained(folder)
    return [str(folder)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40
    monkeypatch.setattr(sys, "argv", [str(example), *model])
    runpy.run_path(str(example), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 2
