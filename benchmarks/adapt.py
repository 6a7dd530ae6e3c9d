"""What a pretrained causal model is worth to a mask denoiser: the bound on fixed validation windows before and after a few
steps, of full training, LoRA, the same architecture drawn at random, and logits read in place.

    OMP_NUM_THREADS=1 python benchmarks/adapt.py full lora random in-place --model-name-or-path HuggingFaceTB/SmolLM2-135M

All other options are those of data/adapt-smollm2.yaml, then of the command line. Prints a row of a table for each.
"""

import sys
import time
from pathlib import Path

import torch

from textdiff.data import windows
from textdiff.evaluation import Bound, bound
from textdiff.lora import trained
from textdiff.recipe import Recipe, read_recipe, spread
from textdiff.tokenizer import specials
from textdiff.trainer import Trainer
from textdiff.udm import UDM

COUNT = 96  # validation windows, spread evenly over the split
VARIANTS = {
    "full": [],
    "lora": ["--model.lora", "16", "--trainer.lr", "0.001"],
    "random": ["--model.no-weights", "--trainer.lr", "0.001"],
    "random-slow": ["--model.no-weights"],
    "in-place": ["--diffusion.no-shift"],
}


def run(name: str, words: list[str]) -> str:
    """One variant, as a row of the table."""
    words = ["--config", "data/adapt-smollm2.yaml", *VARIANTS[name], *words, "--overwrite"]
    recipe = read_recipe(words, "benchmarks/adapt.py")
    assert isinstance(recipe, Recipe)
    recipe.trainer.out = str(Path(recipe.trainer.out) / name)
    data = recipe.prepare()
    held = windows(
        recipe.texts("validation"), data.tokenizer, context=recipe.data.context, shortest=recipe.data.shortest
    )
    rows = [row["ids"] for row in spread(held, COUNT)][:COUNT]
    sizes = [len(data.tokenizer.decode(row[1:]).encode()) for row in rows]
    model, pad = recipe.make_model(data), specials(data.tokenizer).pad
    udm, job = recipe.make_udm(model, data), recipe.make_job(model, data)

    def measure(udm: UDM) -> Bound:
        return bound(udm, rows, sizes, pad=pad, draws=2, batch=16)

    before, count = measure(udm), trained(model)
    print(f"{name} before: {before}, {len(rows)} windows, {sum(map(len, rows)) - len(rows)} tokens", flush=True)
    job.measure = lambda udm: vars(measure(udm))
    began = time.process_time()
    after = Bound(**Trainer(udm, job, recipe.trainer).run())
    cpu = time.process_time() - began
    return (
        f"| {name} | {count:,} | {before.nats:.3f} ± {before.error:.3f} | {after.nats:.3f} ± {after.error:.3f} "
        f"| {before.bits_per_byte:.3f} | {after.bits_per_byte:.3f} | {cpu:.0f} |"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    names = [word for word in sys.argv[1:] if word in VARIANTS]
    rest = [word for word in sys.argv[1:] if word not in VARIANTS]
    table = [
        "| model | weights trained | nats/token before | after | bits/byte before | after | CPU seconds |",
        "|---|" + "---|" * 6,
    ]
    print("\n".join(table + [run(name, rest) for name in names]))
