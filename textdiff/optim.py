"""The optimisers: AdamW, or Muon for the matrices of the body and AdamW for the rest."""

from typing import Any

import torch
from torch import nn


def optimizers(
    model: nn.Module, kind: str, lr: float, muon_lr: float, *, weight_decay: float, beta2: float
) -> list[torch.optim.Optimizer]:
    """One optimiser or two. Embeddings, norms and biases do not decay; only the body's matrices go to Muon."""
    bodily, others = split(model)
    adamw: dict[str, Any] = {"betas": (0.9, beta2), "fused": True, "lr": lr}
    if kind == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"trainer.optimizer muon needs torch 2.9, this is {torch.__version__}; use adamw")
        muon = torch.optim.Muon(bodily, lr=muon_lr, weight_decay=weight_decay)
        return [muon, torch.optim.AdamW(others, weight_decay=0.0, **adamw)]
    groups = [{"params": bodily, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, **adamw)]


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the body, and all other weights (embeddings and head, norms, biases)."""
    embedded = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    vocabulary = max((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=-1)

    def bodily(weight: nn.Parameter) -> bool:
        return weight.ndim == 2 and id(weight) not in embedded and vocabulary not in weight.shape

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [w for w in weights if bodily(w)], [w for w in weights if not bodily(w)]
