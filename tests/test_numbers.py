"""Numbers that are no numbers are refused by name, by every rule, process, schedule, step and weight that takes one."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_blocks import SPECIALS as WRITTEN
from test_blocks import model as causal
from test_laws import NAMED, SPECIALS, A, B, bert, data

from textdiff.clocks import steps_of
from textdiff.denoiser import Blocks, Guided, Oracle, Parallel
from textdiff.keys import Key
from textdiff.process import (
    Blur,
    Deletion,
    Edit,
    Masking,
    Mixture,
    PixelMask,
    Replacement,
    VarianceExploding,
)
from textdiff.remasking import capped, doubting, gibbs, least_sure, looped, rescaled
from textdiff.revealing import most_likely, ranked, revealing, threshold, within_budget
from textdiff.rulebook import rule_of
from textdiff.rules import partial, sde
from textdiff.sampler import sample
from textdiff.schedule import Betas, Power, SquaredCosine, Steps
from textdiff.udm import UDM, Objective

WORDS = torch.tensor([A, B])
NONE = [math.nan, math.inf, -math.inf, True, "0.5", None, [0.5], {"a": 1}, b"1"]
MASKING = Masking(SPECIALS)


def run(**options: Any) -> None:
    """The first step of a page of masks."""
    x, key = data([[A, A]]), Key.of(0, 1)
    oracle = Oracle(MASKING, x)
    next(sample(oracle, MASKING, MASKING.prior(x, key), key=key, **{"steps": 1} | options))


REALS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "partial": ("rho", partial),
    "sde": ("scale", sde),
    "threshold": ("threshold", threshold),
    "budget": ("gamma", within_budget),
    "capped": ("eta", capped),
    "rescaled": ("eta", rescaled),
    "least sure": ("eta", least_sure),
    "looped": ("eta", looped),
    "level": ("level", lambda value: looped(0.1, level=value)),
    "begin": ("begin", lambda value: looped(0.1, begin=value)),
    "end": ("end", lambda value: looped(0.1, end=value)),
    "doubting": ("probability", doubting),
    "spans": ("spans", lambda value: Masking(SPECIALS, spans=(1, value))),
    "spans deleted": ("spans", lambda value: Deletion(SPECIALS, spans=(value,))),
    "empty": ("empty", lambda value: Deletion(SPECIALS, empty=value)),
    "masked": ("masked", lambda value: Replacement(SPECIALS, WORDS, masked=value)),
    "kinds": ("kinds", lambda value: Edit(SPECIALS, WORDS, kinds=(value, 0.5, 0.5))),
    "insert": ("insert", lambda value: Edit(SPECIALS, WORDS, insert=value)),
    "weight": ("weight", lambda value: Mixture([(value, MASKING), (1.0, MASKING)], 0)),
    "last weight": ("weight", lambda value: Mixture([(1.0, MASKING), (value, MASKING)], 0)),
    "highest noise": ("highest", lambda value: VarianceExploding(highest=value)),
    "power of noise": ("power", lambda value: VarianceExploding(power=value)),
    "highest blur": ("highest", lambda value: Blur(highest=value)),
    "noise of a mask": ("noise", lambda value: PixelMask(noise=value)),
    "power": ("power", Power),
    "offset": ("offset", SquaredCosine),
    "lowest": ("lowest", lambda value: Betas(lowest=value)),
    "highest": ("highest", lambda value: Betas(highest=value)),
    "values": ("values", lambda value: Steps([1, value, 0])),
    "start": ("start", lambda value: run(start=value)),
    "blank": ("blank", lambda value: Objective(blank=value)),
    "power of times": ("power", lambda value: Objective(power=value)),
    "guidance": ("guidance", lambda value: Guided.of(Parallel(bert(), NAMED), value)),
}
WHOLE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "top": ("count", most_likely),
    "gibbs": ("rounds", gibbs),
    "block of a ranking": ("block", lambda value: ranked(block=value)),
    "block of a choice": ("block", lambda value: revealing(lambda draw, where, key: where, value)),
    "block of a model": ("block", lambda value: Blocks(causal("llama"), WRITTEN, value)),
    "steps of a bound": ("steps", lambda value: Replacement(SPECIALS, WORDS, steps=value)),
    "steps of times": ("steps", lambda value: Objective(steps=value)),
    "draws": (
        "draws",
        lambda value: UDM(MASKING, Oracle(MASKING, data([[A]]))).bound(data([[A]]), Key.of(0, 1), value),
    ),
}
FLAGS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "counts": ("counts", lambda value: Masking(SPECIALS, counts=value)),
    "staged": ("staged", lambda value: Deletion(SPECIALS, staged=value)),
    "staged edits": ("staged", lambda value: Edit(SPECIALS, WORDS, staged=value)),
    "different": ("different", lambda value: Replacement(SPECIALS, WORDS, different=value)),
    "shift": ("shift", lambda value: Blocks(causal("llama"), WRITTEN, 4, value)),
    "weighted": ("weighted", lambda value: Objective(weighted=value)),
}


@pytest.mark.parametrize("name", REALS)
def test_what_is_no_number_is_refused(name: str) -> None:
    named, call = REALS[name]
    for value in NONE:
        with pytest.raises(ValueError, match=rf"{named}\b.* must be a number.*; got "):
            call(value)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_whole_number_is_refused(name: str) -> None:
    named, call = WHOLE[name]
    for value in (*NONE, 1.5, 2.0):
        with pytest.raises(ValueError, match=rf"{named} must be a whole number.*; got "):
            call(value)


@pytest.mark.parametrize("name", FLAGS)
def test_what_is_no_flag_is_refused(name: str) -> None:
    named, call = FLAGS[name]
    for value in (0, 1, "no", "false", None, math.nan):
        with pytest.raises(ValueError, match=f"{named} must be True or False; got "):
            call(value)
    call(True)


@pytest.mark.parametrize("value", ["1, 3", 3, {1, 3}, {1: 3}, None, iter([1])])
def test_what_is_no_list_of_numbers_is_refused(value: Any) -> None:
    for name, call in (
        ("spans", lambda: Masking(SPECIALS, spans=value)),
        ("kinds", lambda: Edit(SPECIALS, WORDS, kinds=value)),
        ("values", lambda: Steps(value)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a list"):
            call()


STEPS = [math.nan, -math.inf, True, "many", None, 2.5, 0, -3, 1e300, [1, math.nan]]


@pytest.mark.parametrize("value", STEPS, ids=str)
def test_steps_that_are_no_number_are_refused(value: Any) -> None:
    """2.5 steps would never end."""
    with pytest.raises(ValueError, match="steps .* not positive|steps must be a whole number"):
        run(steps=value)
    with pytest.raises(ValueError, match="steps .* not positive|steps must be a whole number"):
        run(steps=torch.tensor([2.5]))


@pytest.mark.parametrize(
    "value", [math.nan, -math.inf, True, False, b"3", "nan", "many", 2.5, "2.5", 0, [3], {}, ""], ids=str
)
def test_numbers_of_steps_as_users_give_them(value: Any) -> None:
    with pytest.raises(ValueError, match="num_steps must be a whole number from 1"):
        steps_of(value)


def test_numbers_of_steps_that_are_taken() -> None:
    assert [steps_of(value) for value in (3, 3.0, "3", "inf", math.inf, "auto", None)] == [
        3,
        3,
        3,
        math.inf,
        math.inf,
        "auto",
        None,
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("partial:nan", "rule 'partial:nan': rho must be a number; got nan; write partial:RHO"),
        ("partial:inf", "rule 'partial:inf': rho must be a number; got inf"),
        ("partial:x", "rule 'partial:x': 'x' is not a number; write partial:RHO"),
        ("threshold:nan", "threshold must be a number; got nan; write threshold:P"),
        ("threshold:nan@8", "threshold must be a number; got nan; write threshold:P@BLOCK"),
        ("budget:inf", "gamma must be a number; got inf"),
        ("remdm-cap:nan", "eta must be a number; got nan"),
        ("remdm-loop:-inf", "eta must be a number; got -inf"),
        ("doubt:nan", "probability must be a number; got nan"),
        ("sde:nan", "scale must be a number; got nan"),
        ("top:1.5", "rule 'top:1.5': '1.5' is not a whole number; write top:K"),
        ("top:nan", "'nan' is not a whole number"),
        ("gibbs:inf", "rule 'gibbs:inf': 'inf' is not a whole number; write gibbs:ROUNDS"),
        ("gibbs:2.0", "'2.0' is not a whole number"),
        ("ranked@0", "rule 'ranked@0': a block has one token or more; write ranked:.*@BLOCK"),
        ("top:1@99999999999999999999", "block must be a whole number of at most .*; got 99999999999999999999"),
        ("ranked@1.5", "unknown rule 'ranked@1.5'"),
    ],
)
def test_numbers_in_the_names_of_rules(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule_of(name)


@pytest.mark.parametrize("name", [None, 3, b"posterior", ["posterior"], {"posterior": 1}])
def test_a_name_of_a_rule_is_a_string(name: Any) -> None:
    with pytest.raises(ValueError, match="rule must be a string; got "):
        rule_of(name)
