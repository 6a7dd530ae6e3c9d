"""Many texts in one call; one that cannot be filled is told and loses none of the others.

python examples/infill_batch.py [MODEL]
"""

import sys

from transformers import pipeline

import textdiff  # noqa: F401  makes the task known

fill = pipeline("text-infilling", model=sys.argv[1] if len(sys.argv) > 1 else None)
texts = [
    "She was [GAP:1-3w] when she saw him.",
    "The gap of this one is not [GAP closed.",
    "They [GAP] the [GAP:1] of it.",
]
for text, sequences in zip(texts, fill(texts, on_error="return"), strict=True):
    print(f"{text}\n  -> {sequences[0].get('generated_text') or sequences[0]['error']}")

# the same text is filled alike alone and among others
assert fill(texts[0])[0]["generated_text"] == fill(texts, on_error="return")[0][0]["generated_text"]
