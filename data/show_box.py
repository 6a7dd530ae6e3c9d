"""Thirty gaps in sentences that the model in the package has not seen, taken as they come, and what it writes there.

    python data/show_box.py [--dataset data/sotu] [--split test] [--count 30] [--seed 0]

The gaps are of one to four words of unknown length in the State of the Union of 2014 to 2021; one filling each, as the
pipeline writes it by default. Prints a Markdown table with an empty column for the reader's verdict.
"""

import argparse

from textdiff.data import load_texts
from textdiff.evaluation import gap_cases
from textdiff.pipelines import open_infilling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="data/sotu")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    texts = list(load_texts(arguments.dataset, arguments.split)["text"])
    cases = gap_cases(texts, arguments.count, words=(1, 4), seed=arguments.seed, longest=160)
    print("| | filled text | was | reads |\n|---|---|---|---|")
    for number, (case, sequences) in enumerate(zip(cases, open_infilling()([c.parts for c in cases]), strict=True), 1):
        text, (gap,) = sequences[0]["generated_text"], sequences[0]["gaps"]
        begin, end = gap["start"], gap["end"]
        print(f"| {number} | {text[:begin]}**{text[begin:end]}**{text[end:]} | {case.answer} | |")


if __name__ == "__main__":
    main()
