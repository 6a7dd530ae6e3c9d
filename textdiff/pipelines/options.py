"""The options of the pipelines: which there are, what each may be. What is accepted is used; what is not used is refused."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from textdiff.clocks import steps_of
from textdiff.denoiser.guided import SCHEDULES
from textdiff.rulebook import rule_of
from textdiff.rules import Rule
from textdiff.selecting import SELECTS
from textdiff.validation import (
    check_choice,
    check_flag,
    check_integer,
    check_items,
    check_number,
    check_seed,
    check_streamer,
    check_strings,
    shown,
)

ON_ERROR = ("raise", "return")
DRAWING = ("temperature", "top_k", "top_p", "min_p")
SAMPLING = ("num_return_sequences", "num_steps", "max_time", "rule", "seed", "on_error", *DRAWING)


def check_rule(value: Any) -> Rule:
    """Return a rule from its name or from a `Rule`. ValueError for anything else."""
    if isinstance(value, Rule):
        return value
    if not isinstance(value, str):
        raise ValueError(f'rule must be a name, such as "posterior", or a Rule; got {shown(value)}')
    return rule_of(value)


def check_stops(value: Any) -> tuple[str, ...]:
    """Return the strings that end a text: one string, or a list of them, none empty."""
    return check_strings("stop_strings", [value] if isinstance(value, str) else value)


def _check_processors(value: Any) -> None:
    for processor in check_items("logits_processor", value, example="LogitsProcessorList([...])"):
        if not callable(processor):
            raise ValueError(f"logits_processor must hold functions (ids, scores) -> scores; got {shown(processor)}")


CHECKS: dict[str, Callable[[Any], Any]] = {
    "num_return_sequences": lambda value: check_integer("num_return_sequences", value, least=1, most=10_000),
    "candidates": lambda value: check_integer("candidates", value, least=1, most=4096),
    "select": lambda value: check_choice("select", value, SELECTS),
    "num_steps": steps_of,
    "max_time": lambda value: check_number("max_time", value, above=0),
    "rule": check_rule,
    "guidance": lambda value: check_number("guidance", value, least=0),
    "guidance_schedule": lambda value: check_choice("guidance_schedule", value, SCHEDULES),
    "temperature": lambda value: check_number("temperature", value, least=0),
    "top_k": lambda value: check_integer("top_k", value, least=0),
    "top_p": lambda value: check_number("top_p", value, above=0, most=1),
    "min_p": lambda value: check_number("min_p", value, least=0, most=1),
    "max_gap": lambda value: check_integer("max_gap", value, least=1),
    "max_calls": lambda value: check_integer("max_calls", value, least=0),
    "seed": check_seed,
    "banned": lambda value: check_strings("banned", value),
    "must": lambda value: check_strings("must", value),
    "logits_processor": _check_processors,
    "on_error": lambda value: check_choice("on_error", value, ON_ERROR),
    "draws": lambda value: check_integer("draws", value, least=1),
    "window": lambda value: check_integer("window", value, least=1),
    "max_new_tokens": lambda value: check_integer("max_new_tokens", value, least=1),
    "min_new_tokens": lambda value: check_integer("min_new_tokens", value, least=0),
    "stop_strings": check_stops,
    "return_full_text": lambda value: check_flag("return_full_text", value),
    "streamer": check_streamer,
}


def given_options(options: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the options that are given, each checked; None stands for an option that is not given.

    Args:
        options: What the user passed, by name.
        names: The options that have an effect here.

    Raises:
        ValueError: For an unknown name, with those there are; for a value that an option cannot have.
    """
    unknown = sorted(set(options) - set(names))
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown option {', '.join(unknown)}{hint}; there are {', '.join(sorted(names))}")
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        checked = CHECKS[name](value)
        given[name] = checked if isinstance(checked, int | float) else value  # of numpy's numbers Python's
    return given
