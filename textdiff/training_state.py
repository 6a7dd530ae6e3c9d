"""Weights, optimisers and their average as tensors that a state holds, and back."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from textdiff.ema import Ema
from textdiff.saving import fits, flatten, not_finite, unflatten, without_ties
from textdiff.udm import UDM

REMEDY = "give the options it was trained with"


def gather(
    weights: dict[str, Tensor], udm: UDM, optimizers: list[Any], ema: Ema | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors of a state by file, and the facts that go with them.

    Args:
        weights: The whole state dict of the model, wherever its parts are.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    tensors: dict[str, dict[str, Tensor]] = {"model": without_ties(weights)}
    facts: dict[str, Any] = {}
    for place, optimizer in enumerate(optimizers):
        state = get_optimizer_state_dict(udm, optimizer.optimizer, options=options)
        if state:  # the first process alone gets all of it
            tensors[f"optimizer{place}"], facts[f"optimizer{place}"] = flatten(state)
    if ema:
        tensors["ema"] = ema.state()
    return tensors, facts


def restore(
    state: Path, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any], udm: UDM, optimizers: list[Any],
    ema: Ema | None,
) -> None:  # fmt: skip
    """Put what `gather` returned back.

    Raises:
        ValueError: Where the state is that of another model or other optimisers.
    """
    wanted = {"model", *(f"optimizer{place}" for place in range(len(optimizers))), *(["ema"] if ema else [])}
    if set(tensors) != wanted or not fits(without_ties(udm.state_dict()), tensors["model"]):
        raise ValueError(f"{state} holds another model or optimizer; {REMEDY}")
    udm.load_state_dict(tensors["model"], strict=False)  # of tied weights, one is there
    options = StateDictOptions(full_state_dict=True)
    for place, optimizer in enumerate(optimizers):
        whole = unflatten(tensors[f"optimizer{place}"], facts[f"optimizer{place}"])
        set_optimizer_state_dict(udm, optimizer.optimizer, whole, options=options)
    if ema:
        ema.load(tensors["ema"])


def check_finite(udm: UDM, when: str, remedy: str, tensors: dict[str, dict[str, Tensor]] | None = None) -> None:
    """Refuse weights, and other tensors of a state, that hold NaN or an infinity: they are never saved.

    Raises:
        ValueError: Naming the first of them.
    """
    name = not_finite(dict(udm.named_parameters()))
    for file, content in (tensors or {}).items():
        # buffers of the model may be infinite, as masks are
        name = name or (None if file == "model" else not_finite(content))
    if name is not None:
        raise ValueError(f"the weights are not finite {when} ({name}), so they are not saved; {remedy}")
