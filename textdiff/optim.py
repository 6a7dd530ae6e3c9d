"""The optimisers: AdamW, or Muon for the matrices of the body and AdamW for the rest."""

from typing import Any, NamedTuple

import torch
from torch import nn


class Parts(NamedTuple):
    """The weights of a model: the matrices of its body, those of its vocabulary (embeddings and head), and the rest."""

    body: list[nn.Parameter]
    vocabulary: list[nn.Parameter]
    rest: list[nn.Parameter]


def optimizers(
    model: nn.Module, kind: str, lr: float, muon_lr: float, *, embedding_lr: float = 1.0, weight_decay: float, beta2: float
) -> list[torch.optim.Optimizer]:  # fmt: skip
    """One optimiser or two. Only the body's matrices decay, and only they go to Muon.

    embedding_lr: the vocabulary's share of lr.
    """
    parts = split(model)
    adamw: dict[str, Any] = {"betas": (0.9, beta2), "fused": True, "lr": lr}
    groups = [
        {"params": parts.vocabulary, "weight_decay": 0.0, "lr": lr * embedding_lr},
        {"params": parts.rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # LoRA trains no biases; states of empty groups do not load
    if kind == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"trainer.optimizer muon needs torch 2.9, this is {torch.__version__}; use adamw")
        muon = torch.optim.Muon(parts.body, lr=muon_lr, weight_decay=weight_decay)
        return [muon, torch.optim.AdamW(groups, **adamw)] if groups else [muon]
    return [torch.optim.AdamW([{"params": parts.body, "weight_decay": weight_decay}, *groups], **adamw)]


def split(model: nn.Module) -> Parts:
    """Every weight that is trained, in one of the parts."""
    embedded = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    size = max((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=-1)
    parts = Parts([], [], [])
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            # peft keeps the rows of new tokens apart
            own = id(weight) in embedded or size in weight.shape or "trainable_tokens" in name
            spoken = weight.ndim == 2 and own
            (parts.vocabulary if spoken else parts.body if weight.ndim == 2 else parts.rest).append(weight)
    return parts
