"""A causal language model becomes a mask denoiser: attention opened to both sides, logits read one to the left, LoRA.

Run: python examples/adapt_causal.py HuggingFaceTB/SmolLM2-135M data/sotu runs/adapted
"""

import sys

from textdiff import DiffusionConfig, Recipe, TrainerConfig, infill, load
from textdiff.data import DataConfig
from textdiff.gaps import parse
from textdiff.recipe import ModelConfig


def main(path: str, dataset: str, out: str, steps: int = 200, batch: int = 8) -> list[str]:
    """Adapt the model of a folder or of the hub, save it, load it again, and fill a gap of four tokens in five ways."""
    recipe = Recipe(
        data=DataConfig(dataset, context=32, shortest=8),
        model=ModelConfig(path=path, lora=16),
        diffusion=DiffusionConfig(process="masking", backbone="causal", shift=True, num_steps=4, rule="ranked"),
        trainer=TrainerConfig(out=out, steps=steps, batch=batch, measure_every=0, save_every=0),
        examples=("My fellow [GAP:1], the state of our union is [GAP:1].",),
    )
    recipe.build().run()
    filled = infill([parse("We must [GAP:4] the economy.")], samples=5, steps=4, **load(out).tools())
    return [result.text for result in filled[0]]


if __name__ == "__main__":
    print(*main(*sys.argv[1:4]), sep="\n")
