"""Rules that hide again what was revealed: ReMDM's schedules, correctors, Mask-Predict, doubt.

A visible token is hidden again with chance sigma, and a hidden one stays so with (beta_s - sigma alpha_t) / beta_t: the
share of tokens that are hidden at s is then beta_s, whatever sigma (Wang et al., "Remasking discrete diffusion models with
inference-time scaling", arXiv:2503.00307; sigma = 0 is the posterior). Where sigma does not look at the words this keeps
Su's law, for processes that give each token a noise of its own (not `Process.tied`).
"""

import math
from collections.abc import Callable
from functools import partial as bind

import torch
from torch import Tensor

from textdiff.keys import Key
from textdiff.posterior import Draw
from textdiff.process.base import Noise, Process, State
from textdiff.rules import Rule, Times, evenly
from textdiff.validation import check_integer, check_number

# (alpha_t (B, 1), alpha_s (B, 1), the guess, which of its tokens x_t shows (B, M)) -> (B, 1) or (B, M)
Sigma = Callable[[Tensor, Tensor, Draw, Tensor], Tensor]


def remasking(sigma: Sigma, times: Times = evenly, ordered: bool = True) -> Rule:
    """Hide visible tokens again with chance sigma, at most (1 - alpha_s) / alpha_t, and reveal as many more."""
    return Rule(bind(_remasking, sigma), times=times, ordered=ordered)


def _remasking(sigma: Sigma, process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    beta_t, beta_s = process.beta(t)[:, None], process.beta(s)[:, None]
    if process.tied:
        raise ValueError(
            f"{type(process).__name__} ties tokens together, by spans or counts, so none can be hidden again by itself; use "
            "posterior, partial or forward-backward"
        )
    noise, hidden = process.infer(xt, draw, t, key.fold(0)), process.hidden(xt, draw)
    again = sigma(1 - beta_t, 1 - beta_s, draw, draw.x0.valid & ~draw.x0.fixed & ~hidden).clamp(0, 1)
    stays = ((beta_s - again * (1 - beta_t)) / beta_t.clamp_min(1e-300)).clamp(0, 1)
    hide = key.fold(1).uniform(hidden.shape[1]) < torch.where(hidden, stays, again)
    return process.deal(noise, draw.x0, hide, s, key.fold(2))


def _most(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """The largest sigma under which enough tokens can be revealed."""
    return ((1 - alpha_s) / alpha_t.clamp_min(1e-300)).clamp_max(1.0)


def capped(eta: float) -> Rule:
    """ReMDM-cap: sigma is eta, or the most that is possible where that is less."""
    _check_share("eta", eta)
    return remasking(lambda at, as_, draw, visible: _most(at, as_).clamp_max(eta))


def rescaled(eta: float) -> Rule:
    """ReMDM-rescale: a share eta of the most that is possible."""
    _check_share("eta", eta)
    return remasking(lambda at, as_, draw, visible: eta * _most(at, as_))


def least_sure(eta: float) -> Rule:
    """ReMDM-conf: of ReMDM-rescale's sigma each visible token its share by softmax of -p, p its probability when it was
    drawn. It looks at the words: a heuristic.
    """
    _check_share("eta", eta)

    def sigma(alpha_t: Tensor, alpha_s: Tensor, draw: Draw, visible: Tensor) -> Tensor:
        doubt = (-draw.x0.score.double().exp()).masked_fill(~visible, -math.inf).softmax(1).nan_to_num(0.0)
        return eta * _most(alpha_t, alpha_s) * doubt * visible.sum(1, keepdim=True)

    return remasking(sigma, ordered=False)


def looped(eta: float, level: float = 0.1, begin: float = 0.45, end: float = 0.95) -> Rule:
    """ReMDM-loop: down to a share `level` of hidden tokens in the first steps; stay there from the share `begin` of all
    steps until `end`, hiding eta of the most that is possible again each time; then on to the data.
    """
    _check_share("eta", eta)
    check_number("level", level, above=0, most=1)
    if not 0 < check_number("begin", begin) <= check_number("end", end) < 1:
        raise ValueError(f"begin and end must be shares of the steps, 0 < begin <= end < 1; got {begin} and {end}")

    def times(number: Tensor, steps: Tensor) -> Tensor:
        done = number / steps
        before, after = 1 - (1 - level) * done / begin, level * (1 - done) / (1 - end)
        return torch.where(done < begin, before, torch.where(done < end, level, after))

    def sigma(alpha_t: Tensor, alpha_s: Tensor, draw: Draw, visible: Tensor) -> Tensor:
        return eta * _most(alpha_t, alpha_s) * (alpha_s == alpha_t)

    return remasking(sigma, times)


def _markov(process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    """The noise that explains x_t, drawn anew wherever it is known but not seen: what comes next hangs on x_t alone.

    To an s before t this is the posterior. To one after t it is what the process does on its way there, whichever it is:
    hidden stays hidden, and the noise that corrupts what x_t shows is drawn now.
    """
    process.beta(t)  # of tokens
    return process.infer(xt.with_(eps=torch.full_like(xt.eps, -1.0)), draw, t, key)


def forward_backward() -> Rule:
    """Predictor and corrector: to each time, forward by one step as the process does, and back (Campbell et al.,
    arXiv:2205.14987). Of three steps one is forward and calls no model.
    """

    def times(number: Tensor, steps: Tensor) -> Tensor:
        levels, level = 1 + ((steps - 1) / 3).ceil(), 1 + ((number - 1) / 3).ceil()
        forward = ((number - 1) % 3 == 2) & (number < steps)
        return torch.where(number >= steps, 0.0, 1 - (level - forward.long()) / levels)

    return Rule(_markov, times=times)


def gibbs(rounds: int) -> Rule:
    """The posterior, and then `rounds` times: hide one token, chosen at random, and draw it given all others.

    Leave-one-out conditionals have the data as their stationary law. Two steps a round, one of which calls no model. For
    processes that show what is hidden, not those that have every word in doubt.
    """
    if check_integer("rounds", rounds) < 1:
        raise ValueError(f"{rounds} rounds correct nothing; give 1 or more, or take the posterior rule")

    def times(number: Tensor, steps: Tensor) -> Tensor:
        first = steps - 2 * rounds
        if float(first.min()) < 1:
            raise ValueError(
                f"{steps.min():g} steps are too few for gibbs:{rounds}, which takes two a round and one before; give at "
                f"least {2 * rounds + 1}"
            )
        return torch.where(number <= first, 1 - number / first, ((number - first) % 2) / 2)

    return Rule(_one_again, times=times, ordered=False)


def _one_again(process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    hidden, words = process.hidden(xt, draw), process.reads(draw)
    if words is None or bool(words.any()):
        raise ValueError(
            f"{type(process).__name__} has every word in doubt, so none can be drawn given all others; use posterior, "
            "partial or forward-backward"
        )
    noise, free = process.infer(xt, draw, t, key.fold(0)), draw.x0.valid & ~draw.x0.fixed
    chosen = key.fold(1).uniform(free.shape[1]).masked_fill(~free, -1.0)
    one = free & (chosen == chosen.amax(1, keepdim=True))
    again = process.deal(noise, draw.x0, hidden | one, s, key.fold(2))
    return process.blend(noise, again, (s > t)[:, None].double(), key.fold(3))


def mask_predict() -> Rule:
    """All words are drawn; of all n that are the model's the least probable beta_s n are hidden again, new ones or old
    (Ghazvininejad et al., arXiv:1904.09324). It looks at the words: a heuristic.
    """
    return Rule(_mask_predict, ordered=False)


def _mask_predict(process: Process, xt: State, draw: Draw, t: Tensor, s: Tensor, key: Key) -> Noise:
    draw, share = draw.drawn(), process.beta(s)
    noise, free = process.infer(xt, draw, t, key.fold(0)), draw.x0.valid & ~draw.x0.fixed
    count = (share * free.sum(1)).round().long()[:, None]
    order = draw.x0.score.double().masked_fill(~free, math.inf).argsort(dim=1, stable=True)
    column = torch.arange(order.shape[1], device=order.device).expand_as(order)
    hide = (torch.empty_like(order).scatter(1, order, column) < count) & free
    return process.deal(noise, draw.x0, hide, s, key.fold(1))


def doubting(least: float) -> Rule:
    """The posterior; and visible tokens that were less probable than `least` when they were drawn are hidden again, with
    chance beta_s. It looks at the words: a heuristic.
    """
    _check_share("probability", least)

    def sigma(alpha_t: Tensor, alpha_s: Tensor, draw: Draw, visible: Tensor) -> Tensor:
        return (1 - alpha_s) * (draw.x0.score < (math.log(least) if least else -math.inf)) * visible

    return remasking(sigma, ordered=False)


def _check_share(name: str, value: float) -> None:
    if not 0 <= check_number(name, value) <= 1:
        raise ValueError(f"{name} {value} is not a share in [0, 1]; 0 hides nothing again")
