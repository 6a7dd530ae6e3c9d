"""The model in the package: small, trained on public-domain English, so that text is filled offline and at once."""

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files("textdiff"))) / "box"


def box() -> str:
    """Its folder. ValueError where the package was installed without it."""
    if not (FOLDER / "model.safetensors").is_file():
        raise ValueError(f"the model in the package is missing from {FOLDER}; install textdiff again, or name a model")
    return str(FOLDER)
