"""The part of `gpu.py` that trains: our loss, all logits, MDLM's, and transformers' own Trainer."""

import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import transformers
from cases import MASK, SPECIAL
from torch import Tensor

from textdiff.denoiser.parallel import Parallel
from textdiff.keys import Key
from textdiff.process.masking import Masking
from textdiff.tokens import Specials, Tokens
from textdiff.tuning import tune
from textdiff.udm import UDM

if TYPE_CHECKING:
    from gpu import Bench


def train(bench: "Bench", name: str, loss: Callable[[Any, Tensor, int], Tensor], ways: tuple[str, ...] = ()) -> None:
    """One step: corrupt, forward under autocast, backward, fused AdamW."""
    size = bench.size
    model = tune(bench.model().train(), *ways)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(SPECIAL, size.vocabulary, (size.batch, size.length), device=bench.device)
    number = [0]

    def step() -> None:
        number[0] += 1
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.device.type == "cuda"):
            value = loss(model, ids, number[0])
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    began = time.perf_counter()
    step()
    bench.wait()
    first = time.perf_counter() - began
    took = bench.seconds(step)
    useful = 3 * size.batch * bench.flops(size.length, size.length / 2)
    bench.put(
        f"train: {name}", tokens_s=round(size.batch * size.length / took), ms=1e3 * took,
        mfu=useful / took / bench.peak, first_s=first, peak_mb=round(bench.peak_bytes(step)),
    )  # fmt: skip


def ours(model: Any, ids: Tensor, number: int) -> Tensor:
    specials = Specials(pad=0, bos=1, mask=MASK, gap=3, size=model.config.vocab_size)
    x0 = Tokens.of(ids, torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool))
    udm = UDM(Masking(specials), Parallel(model, specials).train())
    total, size = udm(x0, Key.of(number, len(ids)).to(ids.device))
    return total / size


def full_logits(model: Any, ids: Tensor, number: int) -> Tensor:
    xt, hidden, weight = corrupted(ids)
    loss = F.cross_entropy(model(input_ids=xt).logits.float().flatten(0, 1), ids.flatten(), reduction="none")
    return (loss.view_as(ids) * hidden * weight).sum() / ids.numel()


def subs(model: Any, ids: Tensor, number: int) -> Tensor:
    """MDLM's: log-probabilities of the whole vocabulary everywhere, carried over where x_t is visible."""
    xt, _, weight = corrupted(ids)
    logits = model(input_ids=xt).logits.float()
    log_prob = logits - logits.logsumexp(-1, keepdim=True)
    carried = torch.full_like(log_prob, -1e6).scatter(-1, xt[..., None], 0.0)
    log_prob = torch.where((xt == MASK)[..., None], log_prob, carried)
    return -(log_prob.gather(-1, ids[..., None])[..., 0] * weight).sum() / ids.numel()


def corrupted(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.arange(len(ids), device=ids.device) / len(ids)
    t = ((torch.rand(1, device=ids.device) + rows) % 1)[:, None] * 0.999 + 1e-3
    hidden = torch.rand(ids.shape, device=ids.device) < t
    return ids.masked_fill(hidden, MASK), hidden, (1 / t).expand_as(ids)


def hf_trainer(bench: "Bench", name: str, model: Any) -> None:
    """transformers' Trainer and its collator, 15 % masked."""
    size, steps, marks = bench.size, bench.steps, []
    rows = torch.randint(SPECIAL, size.vocabulary, (size.batch * steps, size.length))

    class Mark(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            bench.wait()
            marks.append(time.perf_counter())

    def collate(texts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = torch.stack([text["input_ids"] for text in texts])
        hidden = torch.rand(ids.shape) < 0.15
        return {"input_ids": ids.masked_fill(hidden, MASK), "labels": ids.masked_fill(~hidden, -100)}

    options = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=size.batch, max_steps=steps, save_strategy="no",
        report_to="none", disable_tqdm=True, bf16=bench.device.type == "cuda", use_cpu=bench.device.type == "cpu",
        dataloader_num_workers=bench.workers, remove_unused_columns=False,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=options, train_dataset=[{"input_ids": row} for row in rows], data_collator=collate,
        callbacks=[Mark()],
    )  # fmt: skip
    trainer.train()
    half = len(marks) // 2
    took = (marks[-1] - marks[half]) / (len(marks) - 1 - half)
    bench.put(f"train: Trainer, {name}", tokens_s=round(size.batch * size.length / took), ms=1e3 * took)


def modernbert(bench: "Bench") -> Any:
    size = bench.size
    config = transformers.ModernBertConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=size.width * 8 // 3 // 64 * 64,
        max_position_embeddings=size.length, pad_token_id=0, bos_token_id=1, eos_token_id=1, cls_token_id=1,
        sep_token_id=1, sparse_prediction=True,
    )  # fmt: skip
    return transformers.ModernBertForMaskedLM(config)
