"""Rules by the names that users write: NAME, NAME:NUMBER or NAME:WORD, and @BLOCK where tokens are revealed in blocks.

    posterior   partial:0.3   ranked:margin   threshold:0.9@32

docs/rules.md says of each which paper it is from, and whether a perfect denoiser samples the data under it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from textdiff import remasking, revealing, rules
from textdiff.rules import Rule

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
    """How a rule is made of what stands after the colon ("" for nothing) and of the block, how it is written, whether it has
    blocks."""

    make: Callable[[str, int], Rule]
    usage: str
    blocks: bool = False


def _alone(rule: Rule) -> Callable[[str, int], Rule]:
    def make(argument: str, block: int) -> Rule:
        if argument:
            raise ValueError(f"nothing stands after the colon, not {argument!r}")
        return rule

    return make


def _number(make: Callable[[float], Rule], default: float) -> Callable[[str, int], Rule]:
    return lambda argument, block: make(float(argument or default))


def _whole(make: Callable[[int], Rule], default: int) -> Callable[[str, int], Rule]:
    return lambda argument, block: make(int(argument or default))


def _ordered(argument: str, block: int) -> Rule:
    name = argument or "drawn"
    if name not in ORDERS:
        raise ValueError(f"no order is called {name!r}; there are {', '.join(ORDERS)}")
    return revealing.ranked(ORDERS[name], block)


def _in_blocks(make: Callable[[float, int], Rule], default: float) -> Callable[[str, int], Rule]:
    return lambda argument, block: make(float(argument or default), block)


RULES = {
    "fresh": Entry(_alone(rules.fresh), "fresh"),
    "posterior": Entry(_alone(rules.posterior), "posterior"),
    "partial": Entry(_number(rules.partial, 0.3), "partial:RHO"),
    "remdm-cap": Entry(_number(remasking.capped, 0.02), "remdm-cap:ETA"),
    "remdm-rescale": Entry(_number(remasking.rescaled, 0.05), "remdm-rescale:ETA"),
    "remdm-conf": Entry(_number(remasking.least_sure, 0.05), "remdm-conf:ETA"),
    "remdm-loop": Entry(_number(remasking.looped, 0.05), "remdm-loop:ETA"),
    "forward-backward": Entry(_alone(remasking.forward_backward()), "forward-backward"),
    "gibbs": Entry(_whole(remasking.gibbs, 8), "gibbs:ROUNDS"),
    "mask-predict": Entry(_alone(remasking.mask_predict()), "mask-predict"),
    "doubt": Entry(_number(remasking.doubting, 0.1), "doubt:P"),
    "ranked": Entry(_ordered, f"ranked:{'|'.join(ORDERS)}", True),
    "threshold": Entry(_in_blocks(revealing.threshold, 0.9), "threshold:P", True),
    "budget": Entry(_in_blocks(revealing.within_budget, 0.1), "budget:GAMMA", True),
    "top": Entry(lambda count, block: revealing.most_likely(int(count or 1), block=block), "top:K", True),
    "sde": Entry(_number(rules.sde, 1.0), "sde:ETA"),
    "ode": Entry(_alone(rules.ode), "ode"),
}


def rule_of(name: str) -> Rule:
    """The rule of this name: posterior, partial:0.3, ranked:margin, threshold:0.9@32, ... ValueError for what is none."""
    found = re.fullmatch(r"\s*([a-z-]+)(?::([^@\s]+))?(?:@(\d+))?\s*", name)
    if found is None or found[1] not in RULES:
        raise ValueError(f"unknown rule {name!r}; there are {', '.join(entry.usage for entry in RULES.values())}")
    entry, block = RULES[found[1]], int(found[3] or 0)
    if found[3] and not entry.blocks:
        able = ", ".join(name for name, entry in RULES.items() if entry.blocks)
        raise ValueError(f"rule {name!r} does not reveal in blocks; {able} do")
    try:
        return entry.make(found[2] or "", block)
    except ValueError as error:
        reason = str(error).replace("could not convert string to float:", "no number:")
        raise ValueError(f"rule {name!r}: {reason}; write {entry.usage}{'@BLOCK' if found[3] else ''}") from error
