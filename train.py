"""The training recipe, whole: read it, copy it, change it. `textdiff train` runs the same steps."""

import sys
from typing import TYPE_CHECKING

from textdiff.launch import run_command

if TYPE_CHECKING:
    from textdiff.recipe import AnyRecipe


def main(recipe: "AnyRecipe") -> None:
    """From a data set to a checkpoint."""
    from textdiff.trainer import Trainer

    # 1. data: any Hugging Face data set. Texts are cut into windows of tokens, by any tokenizer or one trained on them;
    #    images are scaled to [-1, 1], with their classes
    data = recipe.prepare()

    # 2. model: a stock one, pretrained or from scratch; of transformers for texts, of diffusers for images
    model = recipe.make_model(data)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]  # LoRA (--model.lora) trains a part of them
    every, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    print(f"{type(model).__name__}, {every:,} parameters, {trained:,} of them trained, {data}")

    # 3. UDM = process (what is hidden or noised, x_t = F_t(x_0, eps)) + denoiser (the model as q(x_0 | x_t)) + objective
    udm = recipe.make_udm(model, data)

    # 4. job: batches in, a held-out measure and samples out, the checkpoint at the end
    job = recipe.make_job(model, data)

    # 5. train: Accelerate's loop. Ctrl-C saves; --trainer.resume goes on bit for bit
    figures = Trainer(udm, job, recipe.trainer).run()
    print(recipe.trainer.out, figures)


def start() -> None:
    """Read the options and run."""
    from textdiff.recipe import read_recipe  # loads torch: seconds, in which a signal ends in one line, too

    main(read_recipe(sys.argv[1:], prog="python train.py"))


if __name__ == "__main__":
    sys.exit(run_command(start, "train.py"))
