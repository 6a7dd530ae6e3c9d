"""The shape of the code, read from its source: who may import whom, what the core leans on, how long things are.

Every check is a function of source text that returns complaints, so that each is also run on a planted fault. Imports
are read with `ast`, wherever they stand: at the top, in a function, under TYPE_CHECKING. What is not seen is an import
by a computed name (`importlib.import_module(name)`).
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From low to high. A module imports from its own row and from the rows above it here, never from the rows below.
# A name stands for the module and, if it is a package, for all that is in it.
LAYERS = (
    ("validation", "options", "keys", "tokens", "images", "schedule", "constraints"),
    ("process", "posterior", "drawing"),
    ("denoiser", "leak"),
    ("rules", "revealing", "remasking", "rulebook", "sampler", "udm"),
    (
        "saving",
        "run_folder",
        "resuming",
        "report",
        "ema",
        "optim",
        "launch",
        "yaml_options",
        "config",
        "loading",
        "limits",
        "sequences",
        "terminal",
        "lora",
        "manifest",
        "box",
        "_register",
        "caching",
        "file_rows",
    ),  # these need no module of ours
    (
        "tokenizer",
        "characters",
        "spelling",
        "joining",
        "patterns",
        "wordcount",
        "automata",
        "gaps",
        "asked",
        "clocks",
        "selecting",
        "filling",
        "drafts",
        "stock",
        "continuation",
        "choosing",
        "generation",
        "streaming",
        "scoring",
        "hub",
        "reading",
        "sentences",
        "effects",
        "holding_out",
        "data",
        "zoo",
        "checkpoint",
        "models",
        "spectral",
        "tuning",
        "card",
        "evaluation",
        "training_state",
        "trainer",
        "ngram",
        "compare",
    ),
    ("pictures",),  # the whole backend for images: data, checkpoint, recipe, samples, scores
    ("pipelines", "recipe", "replay"),
    ("commands", "words"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
CORE = {"validation", "options", "keys", "tokens", "constraints", "images", "schedule", "process", "posterior"}
CORE |= {"denoiser.base", "denoiser.shared"}
CORE |= {"drawing", "rules", "revealing", "remasking", "rulebook", "sampler", "udm"}
HEAVY = ("transformers", "datasets", "accelerate")
PICKLES = ("pickle", "cloudpickle", "dill", "joblib", "shelve")
MAX_FILE, MAX_FUNCTION = 500, 60

# Not a path on the web (a letter before the slash) and not one under the user's own home (a tilde).
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|home|root|tmp)/")


def modules() -> dict[str, str]:
    """Source of every module of the library by its dotted name; a package's is its __init__."""
    files = sorted((ROOT / "textdiff").rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): f.read_text(encoding="utf-8") for f in files}


def library(sources: dict[str, str]) -> dict[str, str]:
    """All but `textdiff/__init__.py`, which re-exports names from everywhere."""
    return {name: source for name, source in sources.items() if name != "textdiff.__init__"}


def imports(name: str, source: str, known: set[str]) -> Iterator[str]:
    """Dotted names of the modules that `name` imports; `from a import b` is a.b where that is a module, else a."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, node.module] if node.module else package)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                top = base == "textdiff" and alias.name in LEVEL
                yield inner if top or {inner, f"{inner}.__init__"} & known else base


def part(module: str) -> str:
    """The name under which a module of the library stands in LAYERS: textdiff.process.masking -> process."""
    return module.removeprefix("textdiff").strip(".").split(".")[0]


def core(module: str) -> bool:
    """Of the denoisers only the interface is of the core."""
    path = module.removeprefix("textdiff.").split(".")
    return path[0] in CORE or ".".join(path[:2]) in CORE


def inside(module: str) -> bool:
    return module.split(".")[0] == "textdiff"


def upward(sources: dict[str, str]) -> list[str]:
    complaints = []
    for name, source in library(sources).items():
        if part(name) not in LEVEL:
            complaints.append(f"{name} has no place: add {part(name)!r} to LAYERS in tests/test_architecture.py")
            continue
        for target in filter(inside, imports(name, source, set(sources))):
            if not part(target):
                complaints.append(f"{name} imports the package itself; import the module that defines the name")
            elif part(target) not in LEVEL:
                complaints.append(f"{name} imports {target}, which has no place in LAYERS")
            elif LEVEL[part(target)] > LEVEL[part(name)]:
                complaints.append(f"{name} imports {target}, which is above it")
    return complaints


def leaning(sources: dict[str, str]) -> list[str]:
    allowed = {"torch", *sys.stdlib_module_names}
    arrays = {"textdiff.keys": {"numpy"}}  # randomness is computed on the host
    complaints = []
    for name, source in library(sources).items():
        if core(name):
            for target in imports(name, source, set(sources)):
                if (
                    not core(target)
                    if inside(target)
                    else target.split(".")[0] not in allowed | arrays.get(name, set())
                ):
                    complaints.append(f"{name} is of the core and imports {target}")
    return complaints


def cycles(sources: dict[str, str]) -> list[str]:
    sources = library(sources)
    graph = {}
    for name, source in sources.items():
        found = set(imports(name, source, set(sources)))
        graph[name] = sorted((found | {f"{target}.__init__" for target in found}) & set(sources))
    complaints, done = [], set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            complaints.append(" -> ".join((*path[path.index(name) :], name)))
        elif name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    return complaints


def machine_paths(name: str, text: str) -> list[str]:
    lines = enumerate(text.splitlines(), 1)
    return [f"{name}:{number}: {line.strip()}" for number, line in lines if MACHINE_PATH.search(line)]


def unsafe(name: str, source: str) -> list[str]:
    """Ways to run a stranger's code by loading a stranger's file."""
    complaints = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names) if any(a.name.split(".")[0] in PICKLES for a in names):
                fault = "pickle"
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in PICKLES:
                fault = "pickle"
            case ast.ImportFrom(module="torch", names=names) if any(a.name == "load" for a in names):
                fault = "torch.load"
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                fault = "torch.load"
            case ast.keyword(arg="trust_remote_code", value=ast.Constant(value=True)):
                fault = "trust_remote_code"
            case ast.Dict(keys=keys, values=values) if any(
                isinstance(k, ast.Constant) and k.value == "trust_remote_code" and ast.unparse(v) == "True"
                for k, v in zip(keys, values, strict=True)
            ):
                fault = "trust_remote_code"
            case _:
                continue
        complaints.append(f"{name}: {fault}")
    return complaints


def too_long(name: str, source: str) -> list[str]:
    length = len(source.splitlines())
    complaints = [f"{name}: {length} lines"] if length > MAX_FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                complaints.append(f"{name}: {node.name} has {length} lines")
    return complaints


def texts() -> Iterator[Path]:
    """The source, prose and settings of the checkout; not what .gitignore leaves out, nor an environment."""
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if line.endswith("/")} | {".git"}
    for folder, inner, names in os.walk(ROOT):  # the environment has thousands of files: it is not entered
        inner[:] = sorted(name for name in inner if name not in ignored and not name.endswith(".egg-info"))
        yield from (Path(folder) / n for n in sorted(names) if n.endswith((".py", ".md", ".toml", ".yaml", ".yml")))


def loaded(statement: str, path: Path) -> list[str]:
    """The heavy libraries that a fresh interpreter, started in `path`, has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return sorted(set(HEAVY) & set(result.stdout.split()))


def test_imports_run_downward():
    assert upward(modules()) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("textdiff.rules", "import textdiff.trainer"),
        ("textdiff.rules", "from textdiff.trainer import Trainer"),
        ("textdiff.rules", "from textdiff import trainer"),
        ("textdiff.rules", "from . import trainer"),
        ("textdiff.rules", "from .trainer import Trainer"),
        ("textdiff.rules", "def f():\n    from .trainer import Trainer"),
        ("textdiff.process.masking", "from ..denoiser.base import Denoiser"),
        ("textdiff.process.__init__", "from ..denoiser import base"),
        ("textdiff.posterior", "from textdiff.denoiser import Denoiser"),
        ("textdiff.trainer", "from textdiff import sample"),
        ("textdiff.trainer", "import textdiff"),
        ("textdiff.trainer", "from textdiff.novelty import x"),
        ("textdiff.novelty", "import math"),
    ],
)
def test_an_upward_import_is_seen(name, source):
    assert len(upward({name: source})) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("textdiff.rules", "from .sampler import sample"),
        ("textdiff.process.masking", "from . import base\nfrom .base import Process\nfrom ..keys import Key"),
        ("textdiff.process.__init__", "from .masking import Masking"),
        ("textdiff.cli", "from textdiff import trainer\nfrom textdiff.recipe import Recipe"),
        ("textdiff.__init__", "from textdiff.cli import main"),
    ],
)
def test_a_downward_import_is_allowed(name, source):
    assert upward({name: source, "textdiff.process.base": ""}) == []


ALLOWED = "import math\nimport torch.nn as nn\nfrom ..keys import Key\nfrom ..denoiser.base import Denoiser"


def test_the_core_leans_on_torch_alone():
    assert leaning(modules()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np",
        "import tqdm.auto",
        "def f():\n    import transformers",
        "from ..denoiser import Denoiser",
        "from ..denoiser.parallel import Parallel",
    ],
)
def test_a_core_that_leans_is_seen(source):
    assert len(leaning({"textdiff.process.masking": source})) == 1
    assert leaning({"textdiff.process.masking": ALLOWED}) == []
    assert leaning({"textdiff.data": source}) == []


def test_no_import_cycles():
    assert cycles(modules()) == []


def test_an_import_cycle_is_seen():
    sources = {
        "textdiff.rules": "from .sampler import sample",
        "textdiff.sampler": "from textdiff import udm",
        "textdiff.udm": "def f():\n    from . import rules",
        "textdiff.process.__init__": "from .masking import Masking",
        "textdiff.process.masking": "from textdiff.process import Process",
        "textdiff.gaps": "from .rules import posterior",
    }
    assert sorted(cycles(sources)) == [
        "textdiff.process.__init__ -> textdiff.process.masking -> textdiff.process.__init__",
        "textdiff.rules -> textdiff.sampler -> textdiff.udm -> textdiff.rules",
    ]


def test_no_path_of_one_machine():
    names = {file.name for file in texts()}
    assert {"pyproject.toml", Path(__file__).name, ".pre-commit-config.yaml"} <= names
    assert [fault for f in texts() for fault in machine_paths(str(f.relative_to(ROOT)), f.read_text("utf-8"))] == []


@pytest.mark.parametrize("folder", ["work", "home", "root", "tmp"])
def test_a_path_of_one_machine_is_seen(folder):
    assert machine_paths("x.md", f"first\nsee `/{folder}/me/data`") == [f"x.md:2: see `/{folder}/me/data`"]
    assert machine_paths("x.md", f"see example.org/{folder}/me, ~/{folder}/me, data/{folder}/me") == []


def test_nothing_unpickles_or_runs_remote_code():
    assert [fault for name, source in modules().items() for fault in unsafe(name, source)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "def f(path):\n    return torch.load(path)",
        "from torch import load",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, **{'trust_remote_code': True})",
    ],
)
def test_unpickling_is_seen(source):
    assert len(unsafe("x", source)) == 1
    assert unsafe("x", "from safetensors.torch import load_file\nf(trust_remote_code=False)") == []


def test_files_and_functions_are_short():
    assert [fault for name, source in modules().items() for fault in too_long(name, source)] == []


def test_length_is_seen():
    function = "class C:\n    def f(self):\n" + "        x = 1\n" * MAX_FUNCTION
    assert too_long("x", function) == [f"x: f has {MAX_FUNCTION + 1} lines"]
    assert too_long("x", "x = 1\n" * MAX_FILE) == []
    assert too_long("x", "x = 1\n" * (MAX_FILE + 1)) == [f"x: {MAX_FILE + 1} lines"]


def test_the_package_imports_lazily():
    assert loaded("import textdiff", ROOT) == []


def test_the_core_loads_nothing_heavy():
    """What the source cannot show: importing a module also runs the __init__ of its package."""
    assert loaded("import textdiff.process, textdiff.denoiser.base, textdiff.sampler, textdiff.udm", ROOT) == []


def test_an_eager_package_is_seen(tmp_path):
    (tmp_path / "transformers.py").touch()
    (tmp_path / "eager.py").write_text("import transformers")
    assert loaded("import eager", tmp_path) == ["transformers"]
