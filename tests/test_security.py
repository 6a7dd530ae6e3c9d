"""No code of a model folder runs: not by an option, not by a file, not by what stands on standard input."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_checkpoint

from textdiff.loading import refuse_questions

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "textdiff" / "loading.py"
CODE = """
from pathlib import Path
Path(r"{trace}").write_text("the folder's code ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "{kind}"
class Model(LlamaForCausalLM):
    config_class = Config
class Spelling(PreTrainedTokenizerFast):
    pass
"""


def bypasses(name: str, source: str) -> list[str]:
    """Calls that load a model, configuration or tokenizer by another way than `loading`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return sorted(f"{name}:{node.lineno}" for node in calls if node.attr in ("from_pretrained", "from_config"))


def test_everything_is_loaded_in_one_place():
    files = [file for file in (ROOT / "textdiff").rglob("*.py") if file != HOME]
    assert [fault for file in files for fault in bypasses(file.name, file.read_text("utf-8"))] == []


def test_a_second_place_is_seen():
    assert bypasses("x.py", "AutoConfig.from_pretrained(path)\nload = Auto.from_config") == ["x.py:1", "x.py:2"]


def hostile(folder: Path, trace: Path, kind: str, diffusion: bool) -> Path:
    """A folder whose configuration, model and tokenizer are classes of its own. kind: known to transformers or not."""
    tiny_checkpoint("autoregressive").save(folder)
    (folder / "strange.py").write_text(CODE.format(trace=trace, kind=kind), encoding="utf-8")
    for name, classes in {
        "config.json": {
            "AutoConfig": "strange.Config",
            "AutoModel": "strange.Model",
            "AutoModelForCausalLM": "strange.Model",
            "AutoModelForMaskedLM": "strange.Model",
        },
        "tokenizer_config.json": {"AutoTokenizer": ["strange.Spelling", "strange.Spelling"]},
    }.items():
        values = json.loads((folder / name).read_text("utf-8")) | {"auto_map": classes}
        values |= {"model_type": kind} if name == "config.json" else {"tokenizer_class": "Spelling"}
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    if not diffusion:
        (folder / "diffusion_config.json").unlink()
    return folder


CLI = "import sys; from textdiff.cli import main; sys.exit(main({words!r}))"
PYTHON = {
    "load": "import textdiff; textdiff.load({folder!r})",
    "infilling": "import textdiff; from transformers import pipeline; pipeline('text-infilling', model={folder!r})",
    "diffusion": "import textdiff; from transformers import pipeline; pipeline('text-diffusion', model={folder!r})",
}
TRAIN = ("--data.validation-split", "train", "--data.context", "16", "--trainer.steps", "1")


def entrances(folder: Path, texts: Path, out: Path) -> dict[str, str]:
    """A program for every way in."""
    data = ["train", "--dataset", str(texts), "--out", str(out), *TRAIN, "--diffusion.denoiser", "autoregressive"]
    words = {
        "infill": ["infill", str(folder)],
        "infill-text": ["infill", str(folder), "We [GAP] on."],
        "refine": ["refine", str(folder), "We go on."],
        "generate": ["generate", str(folder)],
        "score": ["score", "--model", str(folder)],
        "evaluate": ["evaluate", str(folder), "--dataset", str(texts), "--split", "train", "--train-split", "None"],
        "train-model": [*data, "--model-name-or-path", str(folder)],
        "train-architecture": [*data, "--model-name-or-path", str(folder), "--model.no-weights"],
        "train-tokenizer": [*data, "--tokenizer.path", str(folder)],
    }
    programs = {name: CLI.format(words=given) for name, given in words.items()}
    return programs | {name: code.format(folder=str(folder)) for name, code in PYTHON.items()}


TRY_ALL = """
import io, sys, json, pathlib
trace, ran = pathlib.Path(sys.argv[1]), []
for name, program in json.loads(sys.argv[2]).items():
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"y\\n" * 50))
    try:
        exec(program)
    except BaseException as error:
        print(name, type(error).__name__, str(error).split(chr(10))[0], file=sys.stderr)
    for module in [module for module in sys.modules if module.startswith("transformers_modules")]:
        del sys.modules[module]  # else the second entrance would find the code loaded, and not run it again
    if trace.exists():
        ran.append(name)
        trace.unlink()
print("RAN", ran)
"""


@pytest.mark.slow
@pytest.mark.parametrize("diffusion", [True, False], ids=["checkpoint", "stock"])
@pytest.mark.parametrize("kind", ["llama", "strange"])
def test_yes_on_standard_input_runs_nothing(tmp_path, kind, diffusion):
    trace = tmp_path / "trace"
    folder = hostile(tmp_path / "model", trace, kind, diffusion)
    (tmp_path / "texts.jsonl").write_text('{"text": "We the people go on."}\n' * 20, encoding="utf-8")
    programs = entrances(folder, tmp_path / "texts.jsonl", tmp_path / "out")
    words = [sys.executable, "-c", TRY_ALL, str(trace), json.dumps(programs)]
    run = subprocess.run(words, capture_output=True, timeout=600, cwd=tmp_path)
    assert run.stdout.decode().rstrip().endswith("RAN []"), run.stdout.decode() + run.stderr.decode()
    assert b"[y/N]" not in run.stdout + run.stderr


@pytest.mark.slow
def test_the_control_is_run_by_plain_transformers(tmp_path):
    """The folder is as hostile as it says: transformers alone, answered yes, runs its code."""
    trace = tmp_path / "trace"
    folder = hostile(tmp_path / "model", trace, "strange", False)
    program = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], input=b"y\n", capture_output=True, timeout=300, cwd=tmp_path)
    assert trace.exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_questions_are_asked_of_people_alone(monkeypatch, terminal):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    refuse_questions()
    assert dynamic_module_utils.TIME_OUT_REMOTE_CODE == (15 if terminal else 0)
    monkeypatch.setattr(sys, "stdin", None)  # closed, as under cron
    refuse_questions()
    assert dynamic_module_utils.TIME_OUT_REMOTE_CODE == 0
