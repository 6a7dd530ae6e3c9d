"""The training recipe, whole: read it, copy it, change it. `textdiff train` runs the same steps."""

import sys

from textdiff.config import complain, parse
from textdiff.recipe import HELP, SHORT, Recipe
from textdiff.tokenizer import specials
from textdiff.trainer import Trainer


def main(recipe: Recipe) -> None:
    """From texts to a checkpoint."""
    # 1. texts: any Hugging Face data set, with a column of documents
    texts = recipe.texts(recipe.data.split)

    # 2. tokenizer: any, or a byte-level BPE trained on these texts; it gets [MASK], [GAP] and the like
    tokenizer = recipe.make_tokenizer(texts)
    ids = specials(tokenizer)

    # 3. windows: cut at sentences, of varying length, so that no model can count its way to a gap's length
    windows = recipe.make_windows(texts, tokenizer)

    # 4. model: a stock transformer, pretrained, or from scratch and then begun from the windows' bigrams
    model = recipe.make_model(tokenizer, windows)
    print(
        f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer):,} tokens"
    )

    # 5. UDM = process (what is hidden, x_t = F_t(x_0, eps)) + denoiser (the model as q(x_0 | x_t)) + objective
    udm = recipe.make_udm(model, ids)

    # 6. job: windows in, bound and filled samples out, the checkpoint at the end
    job = recipe.make_job(model, tokenizer, windows)

    # 7. train: Accelerate's loop. Ctrl-C saves; --trainer.resume goes on bit for bit
    figures = Trainer(udm, job, recipe.trainer).run()
    print(recipe.trainer.out, figures)


if __name__ == "__main__":
    usage = HELP.replace("textdiff train", "python train.py")
    try:
        main(parse(Recipe, sys.argv[1:], prog="python train.py", description=usage, short=SHORT))
    except (ValueError, OSError) as error:
        sys.exit(complain(error, "train.py"))
    except KeyboardInterrupt as stop:
        print(f"\n{stop}", file=sys.stderr)
        sys.exit(130)
