"""What is asked of a gap is kept, whatever the model: lengths, choices, patterns, words that must not occur.

python examples/infill_constraints.py [MODEL]
"""

import re
import sys

from transformers import pipeline

import textdiff  # noqa: F401  makes the task known

fill = pipeline("text-infilling", model=sys.argv[1] if len(sys.argv) > 1 else None)
text = "In [GAP:name=year,/1[89][0-9][0-9]/] the [GAP:name=who,president|king|queen] of the [GAP:1-2w] said [GAP:3]."
for sequence in fill(text, num_return_sequences=3, temperature=1.0, banned=["war"]):
    named = sequence["named"]
    assert re.fullmatch("1[89][0-9][0-9]", named["year"]) and named["who"] in ("president", "king", "queen")
    assert len(sequence["gaps"][2]["text"].split()) in (1, 2) and len(sequence["gaps"][3]["tokens"]) == 3
    assert "war" not in "".join(gap["text"] for gap in sequence["gaps"])
    print(sequence["generated_text"])
