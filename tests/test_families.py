"""Every type of model that transformers maps to masked, seq2seq or causal language modelling fills gaps, or says why not."""

import re

import pytest
import torch
import transformers
from families import AUTO, CAUSAL, MASKED, NOT_BUILT, REFUSED, TELL, TYPES, fillings, is_filled, looks_ahead, tiny
from family_page import MAPPINGS, PAGE, faults, on_page, read

HERE = [f"{mapping} {name}" for mapping, name in TYPES]
KNOWN = on_page()
REASONS = {known: why.reason for known, why in NOT_BUILT.items()}


def test_the_lists_are_those_of_transformers() -> None:
    """Another release may have other types, but not nearly none of those that the page knows: then they were misread."""
    assert MAPPINGS == {auto.__name__: mapping for mapping, auto in AUTO.items()}
    for mapping in AUTO:
        known = {entry for entry in KNOWN if entry.startswith(f"{mapping} ")}
        assert len(known & set(HERE)) > len(known) / 2
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
    page = PAGE.read_text(encoding="utf-8")
    assert not faults(page, transformers.__version__, HERE, REFUSED, REASONS), "run python docs/make_models.py"


def test_another_release_may_have_other_types() -> None:
    """Types that come and go are no fault of the page; with the release that it names, they are."""
    page = PAGE.read_text(encoding="utf-8")
    version, lines = read(page)
    listed = [known for known, _ in lines]
    assert not faults(page, version, listed, REFUSED, REASONS)
    for here in ([*listed, "causal brand_new"], listed[1:], [known for known in listed if known not in REFUSED]):
        assert not faults(page, "99.0.0", here, REFUSED, REASONS)
        assert faults(page, version, here, REFUSED, REASONS)
    assert faults(page, version, listed[::-1], REFUSED, REASONS), "another order"


@pytest.mark.parametrize("same", [True, False], ids=["its own release", "another release"])
def test_a_page_that_was_not_written_anew_is_noticed(same: bool) -> None:
    """The negative control: planted faults, each of which is found whatever is installed."""
    page = PAGE.read_text(encoding="utf-8")
    written, lines = read(page)
    version, here = (written, [known for known, _ in lines]) if same else ("99.0.0", [])
    first = next(iter(REFUSED))
    fewer = {known: why for known, why in REFUSED.items() if known != first}
    for refused, not_built in (
        (REFUSED | {"masked bert": "a reason"}, REASONS),
        (REFUSED | {"causal brand_new": "a reason"}, REASONS),
        (REFUSED | {first: "another reason"}, REASONS),
        (fewer, REASONS),
        (fewer, REASONS | {first: "a reason"}),
        (REFUSED, REASONS | {"masked bert": "a reason"}),
        (REFUSED, {known: "another reason" for known in [*REASONS, "masked bert"]}),
    ):
        assert faults(page, version, here, refused, not_built)
    bert = "| `bert` | `BertForMaskedLM` | Parallel | fills |\n"
    assert bert in page
    for line in (bert.replace("fills", "WRONG"), bert.replace("fills", "refused: a reason"), bert * 2):
        assert faults(page.replace(bert, line), version, here, REFUSED, REASONS)


def case(mapping: str, name: str) -> object:
    """A type to try; one that neither the page nor the lists know came with another release, and is skipped, by name.

    Nobody has looked yet at its sizes, at its tokenizer, or at what is right for it: a failure would say nothing of this
    library, and a run that may end in any way would test nothing. Writing the page with that release makes it known. With
    the release that the page names, a type without a line fails the test of the page.
    """
    new = f"{mapping} {name}" not in {*KNOWN, *REFUSED, *NOT_BUILT}
    reason = "docs/models.md was written with another transformers, and does not know it"
    return pytest.param(mapping, name, id=f"{mapping}-{name}", marks=[pytest.mark.skipif(new, reason=reason)])


@pytest.mark.slow
@pytest.mark.parametrize(("mapping", "name"), [case(mapping, name) for mapping, name in TYPES])
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
