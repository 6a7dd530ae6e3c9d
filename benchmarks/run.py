"""What the library's own savings are worth on this machine, as ratios against a named baseline in the same run.

    python benchmarks/run.py [--rounds 7]

First a matrix product says how fast the machine is just now; then baseline and ours take turns, and medians of the paired
ratios are printed. Baseline: the same model and loss with logits at every position, as masked language models are trained.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from textdiff.denoiser.head import logits_at
from textdiff.models import new_model
from textdiff.tokens import Specials

IDS = Specials(pad=0, bos=1, mask=2, gap=3, fill=4, end=5, lengths=tuple(range(6, 71)))


def gemm() -> float:
    """GFLOP/s of a 2048^3 float32 product on all threads."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = min(timed(lambda: a @ b) for _ in range(5))
    return 2 * 2048**3 / best / 1e9


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def heads(
    share: float, preset: str, vocab: int, batch: int, length: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training pass with logits everywhere, and one with logits at the masked share alone."""
    model = new_model("parallel", preset, IDS, vocab, 2048)
    ids = torch.randint(71, vocab, (batch, length))
    where = torch.rand(batch, length) < share
    hidden = ids.masked_fill(where, IDS.mask)
    attention = torch.ones_like(ids)

    def full() -> None:
        logits = model(input_ids=hidden, attention_mask=attention).logits
        labels = ids.masked_fill(~where, -100)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        model.zero_grad()

    def masked() -> None:
        logits = logits_at(model, where, input_ids=hidden, attention_mask=attention)
        torch.nn.functional.cross_entropy(logits, ids[where]).backward()
        model.zero_grad()

    return full, masked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often baseline and ours take turns")
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gemm():.0f} GFLOP/s in a 2048^3 product")
    print("training pass, head at masked positions against head everywhere (baseline time / our time):")
    for preset, vocab, share in (
        ("tiny", 4000, 0.5),
        ("tiny", 4000, 0.15),
        ("tiny", 32000, 0.5),
        ("tiny", 32000, 0.15),
    ):
        full, masked = heads(share, preset, vocab, batch=8, length=64)
        full(), masked()
        ratios = [timed(full) / timed(masked) for _ in range(rounds)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"  {preset}, V={vocab}, {share:.0%} masked: {middle:.2f}x ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
