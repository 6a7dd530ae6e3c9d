"""What a user asks of a gap, in tokens: a `Gap` -> a `Constraint`.

Lengths, one automaton for all strings (of bytes, read token by token), and for forced ids one of tokens: it keeps all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from textdiff.automata import LONG, compile_gap, text_automaton
from textdiff.constraints import Automaton, Constraint
from textdiff.gaps import Gap
from textdiff.joining import alternatives, conjoined, forced
from textdiff.spelling import tokens_per_word
from textdiff.tokens import Specials

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spell = Callable[[str], list[int]]


def constraint_of(
    gap: Gap, tokenizer: "PreTrainedTokenizerBase", specials: Specials, lead: str, *, banned: tuple[str, ...] = (),
    must: tuple[str, ...] = (), spaced: bool = False, longest: int | None = None, spell: Spell | None = None,
) -> Constraint | None:  # fmt: skip
    """What is asked of a gap, in tokens; None for nothing.

    banned, must: strings that no gap may contain, and that every one has to, beside its own. spaced: a gap after a space
    begins with the token of a new word, and has its length decided once. lead: see `spelling.lead_of`. spell: the tokens of
    a choice, as the tokenizer spells it there; a choice is then written in these alone, where they keep what is asked.
    ValueError where no number of tokens that the model reads, `longest` of them, fits.
    """
    words = (gap.min or 0, gap.max) if gap.unit == "words" else None
    must = (*gap.must, *must)
    strings = bool(gap.choices or gap.pattern is not None or words or banned or must)
    if gap.free and not strings and not spaced:
        return None  # any text, which later steps may change in length
    automaton, mute = None, tuple(specials.not_text)
    if strings:
        compiled = partial(
            compile_gap, tokenizer, specials.size, pattern=gap.pattern, words=words, banned=banned, must=must, lead=lead,
            forbidden=mute,
        )  # fmt: skip
        automaton = compiled(choices=gap.choices)
        if automaton is not None and gap.choices and spell is not None and not gap.forced:
            automaton = _as_spelt(automaton, gap.choices, spell, compiled, specials.size)
    elif spaced and lead:
        automaton = text_automaton(tokenizer, specials.size, mute, lead)
    if gap.forced:
        own = forced([(f,) if isinstance(f, int) else f for f in gap.forced], specials.size, mute)
        automaton = own if automaton is None else conjoined(automaton, own)
    least = 1 if gap.free and spaced else 0  # a model that has to be asked for each length is not asked for none
    low, high = (gap.min or least, gap.max) if gap.unit == "tokens" else (0, None)
    whole = tokens_per_word(tokenizer, specials.size) * gap.max if words and gap.max else None
    constraint = Constraint(low, high, automaton, whole)
    _check_length(gap, constraint, must, longest)
    return constraint


def _as_spelt(
    automaton: Automaton, choices: Sequence[str], spell: Spell, compiled: Callable[..., object], size: int
) -> Automaton:
    """The choices in the tokens that `spell` says; in any tokens, as `automaton` has them, where one can be had so alone.

    A model that decides how many tokens a gap has before it says which would else write "220" as " ", "2", "20".
    """
    spelt, others = list[list[int]](), list[str]()
    for choice in dict.fromkeys(choices):
        try:
            ids = spell(choice)
        except ValueError:  # the tokenizer reads no text in it
            ids = None
        if ids is not None and automaton.accepts(ids):
            spelt.append(ids)
        else:
            others.append(choice)
    if others:
        try:
            compiled(choices=others)
        except ValueError:  # they are not to be had at all: banned, or without what must be there
            return alternatives(spelt, size)
        return automaton
    return alternatives(spelt, size)


def _check_length(gap: Gap, constraint: Constraint, must: tuple[str, ...], longest: int | None) -> None:
    """ValueError where no number of tokens that the model reads fits what is asked."""
    most = min(gap.length or longest or LONG, LONG if constraint.high is None else constraint.high)
    if constraint.automaton is None or constraint.lengths(most):
        return
    asked = {"choices": gap.choices, "pattern": gap.pattern, "must": must, "forced": gap.forced}
    said = [f"{name} {value!r}" for name, value in asked.items() if value not in (None, ())]
    what = f"exactly {most} tokens" if gap.length else f"up to {most} tokens"
    raise ValueError(f"nothing of {what} fits {' and '.join(said) or gap}; ask for what this model can write")
