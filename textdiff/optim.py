"""The optimisers: AdamW, or Muon for the matrices of the body and AdamW for the rest."""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from textdiff.trainer import TrainerConfig


def optimizers(model: nn.Module, config: "TrainerConfig") -> list[torch.optim.Optimizer]:
    """One optimiser or two. Embeddings, norms and biases do not decay; only the body's matrices go to Muon."""
    bodily, others = split(model)
    adamw = {"betas": (0.9, config.beta2), "fused": True, "lr": config.lr}
    if config.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"trainer.optimizer muon needs torch 2.9, this is {torch.__version__}; use adamw")
        muon = torch.optim.Muon(bodily, lr=config.muon_lr, weight_decay=config.weight_decay)
        return [muon, torch.optim.AdamW(others, weight_decay=0.0, **adamw)]
    groups = [{"params": bodily, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, **adamw)]


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the body, and all other weights (embeddings and head, norms, biases)."""
    embedded = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    vocabulary = max((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=-1)

    def bodily(weight: nn.Parameter) -> bool:
        return weight.ndim == 2 and id(weight) not in embedded and vocabulary not in weight.shape

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [w for w in weights if bodily(w)], [w for w in weights if not bodily(w)]
