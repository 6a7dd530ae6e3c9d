"""What a causal model saves that reads each state from where it differs from those before, in tokens and in time.

    python benchmarks/prefix.py [--threads 1] [--cases pages ...] [--rounds 5] [--written 1] [--length 256] [--force]

A stock Llama (256 wide, 6 layers, 4 heads, V=8192, random weights: speed does not depend on them) as `Autoregressive`, with
what it has read kept (`denoiser/prefix.py`) and without. Its guesses would be nonsense, so the states are those of a perfect
model: x_t = F_t(x0, eps) of random texts, one eps for all t; the lengths of gaps are guessed anew at every step, with their
true sum. At each step the lengths are asked for, the text is read, and all that is hidden is written, word by word.

pages: all of the text is hidden at first. ends: its last quarter alone is. copies: so, and all rows are of one text.
compared: so, in one step, and 16 fillings are then compared by their fluency.
"reading" is the questions and the reading alone, over all steps; "all" with what is written. Both take turns; ratios
are medians of the rounds', without by with. A trial of the model (`Prefixes.able`) comes once, before, and is not counted.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from blocks import BOS, MASK, SHAPE, VOCABULARY
from machine import arguments, begin, interleaved
from results import write
from transformers import LlamaConfig, LlamaForCausalLM

from textdiff.denoiser import Autoregressive
from textdiff.denoiser.lengths import open_gaps
from textdiff.denoiser.prefix import Prefixes
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process import Deletion, Masking, Process
from textdiff.tokens import Specials, Tokens

GAP, END, FIRST, MOST = 3, 4, 6, 257
SPECIALS = Specials(
    pad=0, bos=BOS, mask=MASK, gap=GAP, end=END, fill=5, lengths=tuple(range(FIRST, FIRST + MOST)), size=VOCABULARY
)
PROCESSES: dict[str, Process] = {"deletion": Deletion(SPECIALS), "masking": Masking(SPECIALS)}
CASES = [("pages", "deletion", 8), ("pages", "deletion", 32), ("pages", "masking", 8)]
CASES += [("ends", "deletion", 8), ("ends", "deletion", 32), ("copies", "deletion", 8), ("compared", "deletion", 1)]
BATCHES = {"pages": (1, 4), "ends": (1, 4), "copies": (4,), "compared": (16,)}


class Without(Prefixes):
    """Nothing is kept."""

    def able(self, length: int) -> bool:
        return False


def texts(case: str, rows: int, length: int) -> Tokens:
    """x0, with what is the user's."""
    ids = torch.randint(FIRST + MOST, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    ids = ids[:1].repeat(rows, 1) if case in ("copies", "compared") else ids
    ids[:, 0] = BOS
    fixed = torch.zeros_like(ids).bool()
    fixed[:, : 1 if case == "pages" else 3 * length // 4] = True
    return Tokens.of(ids, torch.zeros_like(ids), fixed).with_(sealed=fixed & fixed.roll(-1, 1))


def states(process: Process, x0: Tokens, steps: int) -> list[tuple[Tokens, Tokens]]:
    """x_t at every step, and how it is opened to guessed lengths."""
    noise, found = process.noise(x0, Key.of(0, len(x0))), []
    draw = torch.Generator().manual_seed(0)
    for number in range(steps):
        x = process.corrupt(x0, noise, torch.full((len(x0),), 1 - number / steps, dtype=torch.float64))
        gap, counts = x.ids == GAP, torch.ones_like(x.ids) * x.valid
        for row in range(len(x)):
            columns, visible = gap[row].nonzero()[:, 0], int((x.valid[row] & ~gap[row]).sum())
            if len(columns):
                chosen = torch.randint(len(columns), (x0.ids.shape[1] - visible,), generator=draw)
                counts[row, columns] = torch.bincount(chosen, minlength=len(columns))
        found.append((x, open_gaps(x, counts, SPECIALS)[0]))
    return found


def fillings(opened: Tokens) -> Tokens:
    """The texts with random words behind their masks."""
    words = torch.randint(FIRST + MOST, VOCABULARY, opened.ids.shape, generator=torch.Generator().manual_seed(1))
    return opened.with_(ids=torch.where(opened.ids == MASK, words, opened.ids))


def reverse(
    denoiser: Autoregressive, found: list[tuple[Tokens, Tokens]], writes: bool, compares: bool
) -> Callable[[], None]:
    """All that is read in a run, and written if `writes`; and last, if it `compares`, fillings."""
    decode, key = Decode(), Key.of(0, len(found[0][0]))

    @torch.inference_mode()
    def run() -> None:
        denoiser.prefixes.forget()
        for x, opened in found:
            posterior: Any = denoiser(x, torch.ones(len(x), dtype=torch.float64))
            gap, mask = x.ids == GAP, opened.ids == MASK
            if bool(gap.any()):
                posterior.ask(x, gap)
            if writes:
                posterior.write(opened, mask, decode, key.uniform(mask.shape[1]))
            elif bool(mask.any()):
                posterior.reader.begin(opened[mask.any(1)], int(mask.sum(1).max()))
        if compares:
            denoiser.fluency(fillings(found[-1][1]))

    return run


def fed(model: Any, work: Callable[[], None]) -> int:
    """How many tokens go through the model's body, padding counted."""
    seen: list[int] = []
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    try:
        work()
    finally:
        handle.remove()
    return sum(seen)


def measure(
    model: Any, found: list[tuple[Tokens, Tokens]], rounds: int, written: int, compares: bool
) -> dict[str, float]:
    """Tokens, seconds and ratios."""
    denoisers = {
        "with": Autoregressive(model, SPECIALS, 0.0).eval(),
        "without": Autoregressive(model, SPECIALS, 0.0).eval(),
    }
    denoisers["without"].prefixes = Without(model)
    reading = {name: reverse(denoiser, found, False, compares) for name, denoiser in denoisers.items()}
    tokens = {name: fed(model, work) for name, work in reading.items()}
    took = {"reading": interleaved(reading, rounds)}
    if written:
        whole = {name: reverse(denoiser, found, True, compares) for name, denoiser in denoisers.items()}
        took["all"] = interleaved(whole, written, 0)
    cell: dict[str, float] = {f"tokens {name}": count for name, count in tokens.items()}
    for part, seconds in took.items():
        cell |= {f"{part} {name}": statistics.median(times) for name, times in seconds.items()}
        pairs = zip(seconds["without"], seconds["with"], strict=True)
        cell[f"{part} times"] = statistics.median(without / within for without, within in pairs)
    return cell


def main() -> None:
    parser = arguments(__doc__, 5)
    parser.add_argument("--cases", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--written", type=int, default=1, help="rounds of whole runs, with all that is written")
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    machine = begin(options)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=2 * options.length, **SHAPE)
    model, found = LlamaForCausalLM(config).eval(), dict[str, Any]()
    print(
        "\n| case | steps | B | tokens read, without | with | times | reading, s | with | times | all, s | with | times |"
    )
    print("|---" * 12 + "|")
    for case, process, steps in (one for one in CASES if one[0] in options.cases):
        for rows in BATCHES[case]:
            run = states(PROCESSES[process], texts(case, rows, options.length), steps)
            cell = measure(model, run, options.rounds, options.written, case == "compared")
            found[f"{case}, {process}, {steps} steps, B={rows}"] = cell
            times = cell["tokens without"] / cell["tokens with"]
            said = f"| {case}, {process} | {steps} | {rows} | {cell['tokens without']} | {cell['tokens with']} "
            said += f"| {times:.2f} "
            for part in ("reading", "all")[: 1 + bool(options.written)]:
                said += f"| {cell[f'{part} without']:.2f} | {cell[f'{part} with']:.2f} | {cell[f'{part} times']:.2f} "
            print(said + "|", flush=True)
    write(options.out / "prefix.json", {"machine": machine, "found": found})


if __name__ == "__main__":
    main()
