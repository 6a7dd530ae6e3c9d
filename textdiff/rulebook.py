"""Rules by the names that users write: NAME, NAME:NUMBER or NAME:WORD, and @BLOCK where tokens are revealed in blocks.

    posterior   partial:0.3   ranked:margin   threshold:0.9@32

docs/rules.md says of each which paper it is from, and whether a perfect denoiser samples the data under it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from textdiff import remasking, revealing, rules
from textdiff.rules import Rule
from textdiff.validation import check_text

ORDERS = {
    "drawn": revealing.drawn,
    "probability": revealing.probability,
    "margin": revealing.margin,
    "entropy": revealing.certainty,
    "random": revealing.at_random,
    "left": revealing.leftmost,
}


@dataclass(frozen=True)
class Entry:
    """How a rule is written, and made of what stands after the colon (`default` if nothing does) and of the block."""

    usage: str
    make: Callable[[str, int], Rule]
    default: str = ""
    blocks: bool = False


def _alone(rule: Rule) -> Callable[[str, int], Rule]:
    def make(argument: str, block: int) -> Rule:
        if argument:
            raise ValueError(f"nothing stands after the colon, not {argument!r}")
        return rule

    return make


def _number(argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise ValueError(f"{argument!r} is not a number") from None


def _whole(argument: str) -> int:
    try:
        return int(argument)
    except ValueError:
        raise ValueError(f"{argument!r} is not a whole number") from None


def _of_number(make: Callable[[float], Rule]) -> Callable[[str, int], Rule]:
    return lambda argument, block: make(_number(argument))


def _ordered(name: str, block: int) -> Rule:
    if name not in ORDERS:
        raise ValueError(f"no order is called {name!r}; there are {', '.join(ORDERS)}")
    return revealing.ranked(ORDERS[name], block)


RULES = {
    "fresh": Entry("fresh", _alone(rules.fresh)),
    "posterior": Entry("posterior", _alone(rules.posterior)),
    "partial": Entry("partial:RHO", _of_number(rules.partial), "0.3"),
    "remdm-cap": Entry("remdm-cap:ETA", _of_number(remasking.capped), "0.02"),
    "remdm-rescale": Entry("remdm-rescale:ETA", _of_number(remasking.rescaled), "0.05"),
    "remdm-conf": Entry("remdm-conf:ETA", _of_number(remasking.least_sure), "0.05"),
    "remdm-loop": Entry("remdm-loop:ETA", _of_number(remasking.looped), "0.05"),
    "forward-backward": Entry("forward-backward", _alone(remasking.forward_backward())),
    "gibbs": Entry("gibbs:ROUNDS", lambda rounds, block: remasking.gibbs(_whole(rounds)), "8"),
    "mask-predict": Entry("mask-predict", _alone(remasking.mask_predict())),
    "doubt": Entry("doubt:P", _of_number(remasking.doubting), "0.1"),
    "ranked": Entry(f"ranked:{'|'.join(ORDERS)}", _ordered, "drawn", blocks=True),
    "threshold": Entry("threshold:P", lambda least, n: revealing.threshold(_number(least), n), "0.9", blocks=True),
    "budget": Entry("budget:GAMMA", lambda gamma, n: revealing.within_budget(_number(gamma), n), "0.1", blocks=True),
    "top": Entry("top:K", lambda count, n: revealing.most_likely(_whole(count), block=n), "1", blocks=True),
    "sde": Entry("sde:ETA", _of_number(rules.sde), "1"),
    "ode": Entry("ode", _alone(rules.ode)),
}


def rule_of(name: str) -> Rule:
    """The rule of this name: posterior, partial:0.3, ranked:margin, threshold:0.9@32, ... ValueError for what is none."""
    found = re.fullmatch(r"\s*([a-z-]+)(?::([^@\s]+))?(?:@([0-9]{1,99}))?\s*", check_text("rule", name))
    if found is None or found[1] not in RULES:
        raise ValueError(f"unknown rule {name!r}; there are {', '.join(entry.usage for entry in RULES.values())}")
    entry, block = RULES[found[1]], int(found[3] or 0)
    if found[3] and not entry.blocks:
        able = ", ".join(name for name, entry in RULES.items() if entry.blocks)
        raise ValueError(f"rule {name!r} does not reveal in blocks; {able} do")
    try:
        if found[3] and not block:
            raise ValueError("a block has one token or more")
        return entry.make(found[2] or entry.default, block)
    except ValueError as error:
        raise ValueError(f"rule {name!r}: {error}; write {entry.usage}{'@BLOCK' if found[3] else ''}") from error
