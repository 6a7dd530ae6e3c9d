"""`import textdiff` makes its tasks known to `transformers.pipeline` without loading transformers (seconds) by itself.

If transformers' pipelines are there already, the tasks are registered at once; else right after they are imported.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType

_AWAITED = "transformers.pipelines"


def register_when_imported() -> None:
    """Register now, or when transformers.pipelines is imported."""
    if _AWAITED in sys.modules:
        _register()
    elif find_spec("transformers") is not None:
        sys.meta_path.insert(0, _Watch())


def _register() -> None:
    import_module("textdiff.pipelines")  # a no-op where that module is what imports transformers just now


class _Watch(MetaPathFinder):
    """Finds the awaited module as usual, once, and registers after it has run."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register()
