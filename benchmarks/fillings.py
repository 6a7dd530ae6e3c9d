"""Do fillings fit what follows them? A larger language model, which took no part, reads the sentences.

    OMP_NUM_THREADS=1 python benchmarks/fillings.py --judge HuggingFaceTB/SmolLM2-135M [--model FOLDER]
        [--candidates 1 8 32] [--temperature 0.7]

For every gap: how much more the judge is surprised by the three tokens after the filling than by the same tokens after the
words that were there, in nats a token. Where a filling breaks the grammar, it is there that a reader stumbles. Gaps are of
one to four words in sentences of the State of the Union; lengths are not given.
"""

import argparse
import statistics
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from textdiff.data import load_texts
from textdiff.evaluation import gap_cases
from textdiff.pipelines import open_infilling

AFTER = 3  # tokens
FITS = 1.0  # nats a token


class Judge:
    """Surprise at what follows a gap."""

    def __init__(self, path: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def surprise(self, text: str, end: int) -> float:
        """Nats a token, of the tokens of `text` that begin at or reach beyond character `end`, as far as AFTER of them."""
        found = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        first = sum(stop <= end for _, stop in found["offset_mapping"])
        start = self.tokenizer.bos_token_id or self.tokenizer.eos_token_id
        ids = torch.tensor([[start, *found["input_ids"][: first + AFTER]]])
        law = self.model(ids).logits[0, first:-1].double().log_softmax(-1)
        said = law.gather(1, ids[0, first + 1 :][:, None])
        return -float(said.mean()) if len(said) else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True, help="folder or hub name of a causal language model")
    parser.add_argument("--model", help="what fills: a checkpoint or any language model (the one in the package)")
    parser.add_argument("--dataset", default="data/sotu")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.7])
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = gap_cases(
        list(load_texts(options.dataset, options.split)["text"]),
        options.cases,
        words=(1, 4),
        seed=options.seed,
        longest=160,
    )
    judge, fill = Judge(options.judge), open_infilling(options.model)
    texts = ["".join(part if isinstance(part, str) else case.answer for part in case.parts) for case in cases]
    ends = [len(text) - len(str(case.parts[-1])) for text, case in zip(texts, cases, strict=True)]
    plain = [judge.surprise(text, end) for text, end in zip(texts, ends, strict=True)]
    print(
        f"| candidates | temperature | fits ({len(cases)} gaps) | surprise above the original's, median | words written |"
    )
    print("|---|---|---|---|---|")
    words = statistics.mean(len(case.answer.split()) for case in cases)
    print(f"| the original | | 100% | 0.00 | {words:.2f} |", flush=True)
    for temperature in options.temperature:
        for candidates in options.candidates:
            fill.route = replace(fill.route, candidates=candidates)
            found = [results[0] for results in fill([case.parts for case in cases], temperature=temperature)]
            gaps = [(result["generated_text"], result["gaps"][0]) for result in found]
            excess = [judge.surprise(text, gap["end"]) - base for (text, gap), base in zip(gaps, plain, strict=True)]
            share = sum(value < FITS for value in excess) / len(excess)
            words = statistics.mean(len(gap["text"].split()) for _, gap in gaps)
            print(
                f"| {candidates} | {temperature} | {share:.0%} | {statistics.median(excess):.2f} | {words:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
