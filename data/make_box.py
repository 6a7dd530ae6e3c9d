"""Put a trained model into the package, as textdiff/box: half-precision weights, how it fills by default, its card.

python data/make_mix.py FOLDER_OF_ARCHIVES --out runs/mix
OMP_NUM_THREADS=2 textdiff train --config data/box.yaml
python data/make_box.py runs/box
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from textdiff.checkpoint import load

LIMIT = 16_000_000  # bytes of weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of the trained model")
    parser.add_argument("--out", type=Path, default=Path("textdiff/box"), help="folder to write (textdiff/box)")
    parser.add_argument("--card", type=Path, default=Path("data/box-card.md"), help="the model card (data/box-card.md)")
    arguments = parser.parse_args()
    found = load(arguments.run)
    found.model.to(torch.float16)
    found.config = replace(found.config, temperature=0.7, top_p=0.9, max_gap=24, candidates=32)
    found.card = arguments.card.read_text(encoding="utf-8")
    found.save(arguments.out)
    size = (arguments.out / "model.safetensors").stat().st_size
    if size > LIMIT:
        parser.error(f"the weights have {size:,} bytes, more than {LIMIT:,}; train a smaller model")
    config = json.loads((arguments.out / "config.json").read_text())
    print(f"{arguments.out}: {size:,} bytes of weights, {config['model_type']}, vocabulary {config['vocab_size']}")


if __name__ == "__main__":
    main()
