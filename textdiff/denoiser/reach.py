"""Whether a causal model can be read block by block, found out by asking it.

Some models build their masks themselves, count positions from elsewhere (ALiBi), or keep states that know no blocks (Mamba):
they would read later words, or go on from a cache as if they had read something else. So, as in `leak`, nothing is believed.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from textdiff.denoiser.blocks import Blocks
from textdiff.leak import FAILURES, ROUNDING, vocabulary
from textdiff.tokens import Specials, Tokens

BLOCK, LENGTH = 4, 8
UNSEEN = ("the words of a block do not see each other", "a block does not see those before it")
_NONE = Specials(-1, -1, -1, -1)  # no token means anything


def fault(model: Any) -> str | None:
    """What is wrong with how a model reads two blocks of four random tokens, None where nothing is. Runs it in eval mode.

    What a model has learned may hide what it can see: attention that is sure of one token gives the others exactly 0. So a
    copy of one that seems not to see is asked again with random weights.
    """
    wrong = _wrong(model)
    return _wrong(_unlearned(model)) if wrong in UNSEEN else wrong


def _unlearned(model: Any) -> Any:
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point() and weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
    return model


@torch.no_grad()
def _wrong(model: Any) -> str | None:
    rows, device, training = vocabulary(model), next(model.parameters()).device, model.training
    # of all that the model knows: of what it has never seen it may say the same
    ids = torch.randint(rows, (3, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
    ids[1, : BLOCK + 1] = ids[0, : BLOCK + 1]  # they differ in the second block, after its first token
    ids[2, BLOCK:] = ids[0, BLOCK:]  # in the first block
    model.eval()
    try:
        logits, apart = _at_once(model, ids), _apart(model, ids)
    finally:
        model.train(training)
    near = ROUNDING * logits.abs().max()

    def same(one: Tensor, other: Tensor) -> bool:
        return bool((one - other).abs().max() <= near)

    if not same(logits[0, :BLOCK], logits[1, :BLOCK]):
        return "a block sees the words of later ones"
    if same(logits[0, BLOCK], logits[1, BLOCK]):
        return UNSEEN[0]
    if same(logits[0, BLOCK], logits[2, BLOCK]):
        return UNSEEN[1]
    # other shapes sum in another order
    if (apart - logits).abs().max() > torch.finfo(model.dtype).eps ** 0.5 * logits.std():
        return "it says something else when it goes on from its keys and values"
    return None


def need_blocks(model: Any) -> None:
    """ValueError for a model that cannot be read block by block."""
    try:
        wrong = fault(model)
    except FAILURES as error:
        wrong = str(error).strip().split("\n")[0]
    if wrong is not None:
        raise ValueError(
            f"{model.config.model_type} cannot be read block by block ({wrong}); use block 0, or another model"
        )


def _at_once(model: Any, ids: Tensor) -> Tensor:
    """Logits (B, L, V), all read in one call as when it learns; nothing is asked of what they mean."""
    everywhere = torch.ones_like(ids).bool()
    said = Blocks(model, _NONE, BLOCK).said(_texts(ids), everywhere, ids)
    return said.view(*ids.shape, -1).float()


def _apart(model: Any, ids: Tensor) -> Tensor:
    """The same, one block after the other, from what is kept of those before."""
    denoiser, x = Blocks(model, _NONE, BLOCK), _texts(ids)
    rows, parts = torch.arange(len(ids), device=ids.device), []
    for number in range(LENGTH // BLOCK):
        where = torch.zeros_like(x.fixed)
        where[:, number * BLOCK : (number + 1) * BLOCK] = True
        (window,) = denoiser.read(ids, x, rows, torch.full_like(rows, number))
        parts.append(torch.cat(list(window.pieces(where))).view(len(ids), BLOCK, -1).float())
    return torch.cat(parts, 1)


def _texts(ids: Tensor) -> Tokens:
    no = torch.zeros_like(ids)
    return Tokens.of(ids, no, no.bool())
