"""Every type of model that transformers maps to masked, seq2seq or causal language modelling fills gaps, or says why not."""

import re
from pathlib import Path

import pytest
import torch
from families import CAUSAL, MASKED, NOT_BUILT, REFUSED, SEQ2SEQ, TELL, TYPES, fillings, is_filled, looks_ahead, tiny

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
LEAST = {MASKED: 51, SEQ2SEQ: 37, CAUSAL: 189}  # transformers 5.23


def test_the_lists_are_those_of_transformers() -> None:
    """No type is left out, and what is said of a type is said of one that exists."""
    for mapping, least in LEAST.items():
        assert sum(listed == mapping for listed, _ in TYPES) >= least
    assert {*REFUSED, *NOT_BUILT} <= {f"{mapping} {name}" for mapping, name in TYPES}
    assert len(NOT_BUILT) <= 0.01 * len(TYPES)


def test_a_tiny_model_is_tiny_and_the_same_every_time() -> None:
    """Under a million weights, and no global state in which ones."""
    one, tokenizer = tiny("bert", MASKED)
    torch.rand(3)
    other, _ = tiny("bert", MASKED)
    assert sum(weight.numel() for weight in one.parameters()) < 1e6
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert len(tokenizer) < one.config.vocab_size, "the output has rows that are no token: none may be written"


def test_the_probe_can_tell_directions_apart() -> None:
    """The negative control of the column on directions: BERT looks ahead, Llama does not until it is told to."""
    assert looks_ahead(tiny("bert", MASKED)[0])
    llama, _ = tiny("llama", CAUSAL)
    assert not looks_ahead(llama)
    llama.config.is_causal = False
    assert looks_ahead(llama)


def test_the_page_says_of_every_type_what_is_known() -> None:
    """docs/models.md has a line for each; fills, but for those that are refused or not built."""
    said = re.findall(r"^\| `([\w-]+)` \| `\w+` \| \w* \| (fills|refused|not built)", PAGE.read_text(), re.MULTILINE)
    known = [f"{mapping} {name}" for mapping, name in TYPES]
    right = ["refused" if name in REFUSED else "not built" if name in NOT_BUILT else "fills" for name in known]
    assert said == list(zip([name for _, name in TYPES], right, strict=True)), "run python docs/make_models.py"


@pytest.mark.slow
@pytest.mark.parametrize(("mapping", "name"), TYPES, ids=[f"{mapping}-{name}" for mapping, name in TYPES])
def test_every_type(mapping: str, name: str) -> None:
    """The user's words stay, gaps have the lengths asked for, nothing special is written; or the reason is the known one."""
    known = f"{mapping} {name}"
    if known in NOT_BUILT:
        with pytest.raises((ImportError, ValueError), match=re.escape(NOT_BUILT[known].raises)):
            tiny(name, mapping)
        return
    model, tokenizer = tiny(name, mapping)
    if known in REFUSED:
        with pytest.raises(ValueError, match=re.escape(REFUSED[known])) as refused:
            fillings(model, tokenizer)
        assert "\n" not in str(refused.value)
        return
    filled = fillings(model, tokenizer)
    assert is_filled(filled, tokenizer), filled
    assert ("one length at a time" in filled["reason"]) == (mapping == MASKED and name in TELL)
