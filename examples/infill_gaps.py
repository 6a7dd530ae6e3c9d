"""Fill many gaps of unknown length at once, by the model in the package or by any language model.

python examples/infill_gaps.py [MODEL]
"""

import sys

from transformers import pipeline

import textdiff  # makes the task known

model = sys.argv[1] if len(sys.argv) > 1 else None  # a folder or a hub name; None is the model in the package
fill = pipeline("text-infilling", model=model)
print(fill.explain())

for sequence in fill("We choose to go to the [GAP] in this decade, and [GAP].", num_return_sequences=3):
    print(sequence["generated_text"])
    for gap in sequence["gaps"]:
        print(f"  {gap['start']:3d}-{gap['end']:3d} {gap['text']!r}, log-probability {gap['score']:.1f}")

# the same without any syntax, for texts that nobody has read
(sequence,) = fill(["[GAP] is what I wrote, and ", textdiff.Gap(2, 4, "words"), " is what was missing."])
print(sequence["generated_text"])
