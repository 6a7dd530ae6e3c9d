"""What reading its last guess does for a model trained to (`--diffusion.self-conditioning`): same weights, with and without.

    python benchmarks/guessing.py runs/told [--texts 300] [--steps 4 20] [--rules posterior ranked] [--threads 1]

Of windows of the split `test`: nats a hidden token at some times, without a guess, and by how much that falls with one drawn
from the same state; then fillings of 20 hidden tokens at temperature 1, scored with their text by the model in the package,
per filled token. Means and standard errors over texts; differences are of pairs, above 0 where the guess helps.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import pipeline

import textdiff  # noqa: F401  makes the task known
from textdiff.checkpoint import Checkpoint, load
from textdiff.filling import infill
from textdiff.gaps import Gap
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.rulebook import rule_of
from textdiff.tokenizer import encode
from textdiff.tokens import Tokens

WINDOW, SIDE, HIDDEN = 44, 12, 20


def shown(values: Tensor) -> str:
    return f"{float(values.mean()):.3f} ± {float(values.std()) / len(values) ** 0.5:.3f}"


def losses(told: Checkpoint, rows: list[list[int]], times: Sequence[float]) -> None:
    ids, tools = told.specials, told.tools()
    denoiser, process = tools["denoiser"], tools["process"]
    x0, key = Tokens.from_rows([[ids.bos, *row] for row in rows], ids.pad), Key.of(0, len(rows))
    for time in times:
        t = torch.full((len(rows),), time, dtype=torch.float64)
        noise = process.noise(x0, key.fold(0))
        xt, truth = process.corrupt(x0, noise, t), process.align(x0, noise, t)
        guess = denoiser(xt, t).sample(Decode(), key.fold(1)).x0.ids
        hidden = (xt.ids == ids.mask).sum(1)
        none, mine = (-denoiser(xt.with_(guess=g), t).log_prob(truth).sum(1) / hidden for g in (xt.guess, guess))
        print(f"| t = {time:g} | {shown(none)} | {shown(none - mine)} |")


def fillings(told: Checkpoint, rows: list[list[int]], rules: Sequence[str], steps: Sequence[int]) -> None:
    plain = replace(told, config=replace(told.config, self_conditioning=False))
    decode = told.tokenizer.decode
    pages = [[decode(row[:SIDE]), Gap.of(HIDDEN), decode(row[SIDE + HIDDEN :])] for row in rows]
    judge = pipeline("text-infilling")
    for rule in rules:
        for count in steps:
            found = []
            for checkpoint in (plain, told):
                options = {"steps": count, "rule": rule_of(rule), "decode": Decode(), "seed": 1}
                texts = [one[0].text for one in infill(pages, **options, **checkpoint.tools())]
                nats = [score["nats"] for score in judge.score(texts)]
                found.append(torch.tensor(nats, dtype=torch.float64) / HIDDEN)
            print(f"| {rule}, {count} steps | {shown(found[0])} | {shown(found[0] - found[1])} |")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dataset", default="data/sotu")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--times", type=float, nargs="+", default=[0.2, 0.5, 0.8, 1.0])
    parser.add_argument("--rules", nargs="+", default=["posterior", "ranked"])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    told = load(options.model)
    rows = []
    for text in load_dataset(options.dataset, split="test")["text"]:
        words = encode(told.tokenizer, text)
        rows += [words[begin : begin + WINDOW] for begin in range(0, len(words) - WINDOW + 1, WINDOW)]
    rows = rows[: options.texts]
    print(f"{len(rows)} texts\n\n| | without a guess | gain with its own |\n|---|---|---|")
    losses(told, rows, options.times)
    fillings(told, rows, options.rules, options.steps)


if __name__ == "__main__":
    main()
