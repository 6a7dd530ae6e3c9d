"""Low-rank adaptation: W + (alpha / r) B A with W frozen (Hu et al., arXiv:2106.09685), by `peft`.

The adapters are put into the stock model in place, so that the denoiser, the trainer and its states see one model, whole;
what is saved is the stock model with B A added to W, which opens without peft.
"""

import sys
from copy import deepcopy
from typing import Any

import torch

from textdiff.validation import check_integer

_OWN = ("lora_", "trainable_tokens")
_WRAPS = (".token_adapter", ".base_layer")


def add_lora(model: Any, rank: int, new: list[int], dtype: torch.dtype | None = None) -> None:
    """Freeze the model and train rank-`rank` updates of its linear layers, and the rows of the tokens `new`, in place.

    B begins at 0: the model is at first what it was. A is drawn from torch's generator.

    Args:
        dtype: The precision that the merged model is saved in, that of the base model's file; None for the model's own.

    Raises:
        ValueError: Without peft, and for a rank below 1.
    """
    check_integer("model.lora", rank, least=1)
    need_peft()
    from peft import LoraConfig, inject_adapter_in_model

    rows = {name: new for name in _tables(model)} if new else None
    plan = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", trainable_token_indices=rows, fan_in_fan_out=_gpt2(model)
    )  # fmt: skip
    inject_adapter_in_model(plan, model)
    model.saved_dtype = dtype


def need_peft() -> None:
    """Refuse adapters without the library.

    Raises:
        ValueError: With the way to get it.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError('model.lora needs peft; install it by pip install "textdiff[lora]", or leave it 0') from error


def merged(model: Any) -> Any:
    """The stock model that computes what a model with adapters does, on the CPU; without adapters the model itself.

    It is to be saved, not run: it has no buffers but those that are saved. Its precision is that of the base model's file,
    unless a weight would not be finite in it.
    """
    if not hasattr(model, "saved_dtype"):  # adapters that were put in by others
        return _unloaded(model)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not _own(name)}
    if len(tensors) == len(model.state_dict()):
        return model
    tensors = {_stock(name): tensor.detach().cpu() for name, tensor in tensors.items()}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "TrainableTokensLayer":
            tensors[_stock(f"{name}.weight")] = module.get_merged_weights(["default"]).detach().cpu()
        elif _lora_layer(module):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + module.get_delta_weight("default").detach().cpu()
    tensors = _narrowed(tensors, getattr(model, "saved_dtype", None))
    with torch.device("meta"):
        stock = type(model)(deepcopy(model.config))  # saving writes its precision there
    stock.load_state_dict(tensors, strict=False, assign=True)
    stock.tie_weights()
    stock.generation_config = getattr(model, "generation_config", None)
    return stock.eval()


def _unloaded(model: Any) -> Any:
    """A copy without the adapters of peft, of any kind, as its own `merge_and_unload` makes it; without any, the model."""
    peft = sys.modules.get("peft")
    if peft is None or not any(_wraps(module) for module in model.modules()):
        return model
    model = deepcopy(model).cpu()
    for name, module in [*model.named_modules()]:
        if _wraps(module) and not any(name.startswith(f"{outer}.") for outer in _wrappers(model)):
            if hasattr(module, "unload_and_optionally_merge_module"):
                stock = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
            else:
                module.merge(safe_merge=True)
                stock = module.get_base_layer()
            model.set_submodule(name, stock)
    for left in ("peft_config", "_hf_peft_config_loaded", "_weight_conversions"):  # these name weights as peft does
        model.__dict__.pop(left, None)
    return model.eval()


def _wrappers(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if _wraps(module)]


def _wraps(module: Any) -> bool:
    return hasattr(module, "base_layer") or hasattr(module, "unload_and_optionally_merge_module")


def _narrowed(tensors: dict[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    if dtype is None:
        return tensors
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return cast if all(bool(torch.isfinite(tensor).all()) for tensor in cast.values()) else tensors


def trained(model: Any) -> int:
    """How many weights are trained."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _tables(model: Any) -> list[str]:
    """The names of embeddings and head; of a tied head peft takes care itself."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    parts = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    return [next(name for name, module in model.named_modules() if module is part) for part in parts]


def _gpt2(model: Any) -> bool:
    """Whether linear layers are written as Conv1D, with their weights transposed."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _lora_layer(module: Any) -> bool:
    return "lora_A" in dict(module.named_children())


def _own(name: str) -> bool:
    return any(part.startswith(_OWN) for part in name.split("."))


def _stock(name: str) -> str:
    for wrap in _WRAPS:
        name = name.replace(wrap, "")
    return name
