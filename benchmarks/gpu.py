"""One GPU, one call of ten minutes: its ceilings, sampling by this library and by the published recipes, training.

    python benchmarks/gpu.py [--tiny] [--budget 540] [--out runs/bench]

Stock models with random weights: BERT of 12 layers, width 768, 1024 tokens, 50304 ids; 16-bit weights to sample,
autocast to train. A section begins only while its time is left. Results go to gpu.json as they come. --tiny is for a look
at the program on a CPU.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import recipes
import torch
import transformers
from cases import MASK, SPECIAL, Shape, Stage, ours_ancestral, ours_greedy, ours_ranked
from gpu_training import full_logits, hf_trainer, modernbert, ours, subs, train
from torch import Tensor, nn

from textdiff.denoiser.parallel import Parallel
from textdiff.tokens import Specials, Tokens
from textdiff.tuning import tune


class Size(NamedTuple):
    """Of the models, and of a batch that is trained on."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    vocabulary: int = 50304
    length: int = 1024
    batch: int = 32


TINY = Size(64, 2, 2, 512, 64, 4)
WAYS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "ours, compiled": ("compile",),
    "ours, graphs": ("graphs",),
    "ours, compiled, graphs": ("compile", "graphs"),
}


class Bench:
    """What is measured, on which device, and how much time is left."""

    def __init__(self, size: Size, budget: float, out: Path) -> None:
        self.size, self.out, self.ends = size, out, time.monotonic() + budget
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.found["device"] = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.peak = 1.0  # FLOP/s
        self.steps, self.workers = (4, 0) if size is TINY else (20, 4)  # of transformers' Trainer

    def put(self, name: str, **facts: Any) -> None:
        """Note, print and keep."""
        facts = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
        self.found[name] = facts
        print(f"{name:46s}", ", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "gpu.json").write_text(json.dumps(self.found, indent=1) + "\n")

    def section(self, needs: float, name: str, work: Callable[[], None]) -> None:
        """One that needs so many seconds. What fails is noted, and the next goes on."""
        if self.ends - time.monotonic() < needs:
            return self.put(name, skipped="no time left")
        try:
            work()
        except Exception as error:
            self.put(name, failed=repr(error)[:300])
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], Any], rounds: int = 8, warm: int = 3) -> float:
        """The median of some calls, with nothing left to do on the device."""
        found = []
        for _ in range(warm + rounds):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - began)
        return statistics.median(found[warm:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self, work: Callable[[], Any]) -> float:
        """MB held at most, beyond what was there."""
        if self.device.type != "cuda":
            work()
            return 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def model(self, **options: Any) -> Any:
        """The masked language model; specials are never said."""
        torch.manual_seed(0)
        size = self.size
        model = transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=size.vocabulary, hidden_size=size.width, num_hidden_layers=size.layers,
                num_attention_heads=size.heads, intermediate_size=4 * size.width,
                max_position_embeddings=size.length, type_vocab_size=1, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, **options,
            )
        )  # fmt: skip
        with torch.no_grad():
            model.get_output_embeddings().bias[:SPECIAL] = -1e4
        return model.to(self.device)

    def flops(self, length: float, head: float) -> float:
        """Of one text read forward, with `head` of its places asked for a word."""
        width, layers = self.size.width, self.size.layers
        return layers * length * (24 * width**2 + 4 * length * width) + 2 * head * width * self.size.vocabulary


# ---- Ceilings ---------------------------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> None:
    side = 256 if bench.size is TINY else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
    bench.peak = 2 * side**3 / bench.seconds(lambda: a @ b, 20)
    x = torch.randn(2**16 if bench.size is TINY else 2**30, device=bench.device)
    y = torch.empty_like(x)
    copied = 2 * x.numel() * 4 / bench.seconds(lambda: y.copy_(x))
    bench.put("ceilings", gemm_tflops=bench.peak / 1e12, copy_gb_s=copied / 1e9)


# ---- Sampling ---------------------------------------------------------------------------------------------------------


def stage_of(bench: Bench, shape: Shape, model: Any) -> Stage:
    """All masks; the states of ours on the host, as `Parallel.home` has it, the recipes' ids on the device."""
    specials = Specials(pad=0, bos=1, mask=MASK, gap=3, size=shape.vocabulary)
    size = (shape.batch, shape.length)
    fixed = torch.rand(size, generator=torch.Generator().manual_seed(1)).argsort(1) >= shape.masks
    ids = torch.randint(SPECIAL, shape.vocabulary, size)
    texts = Tokens.of(ids, torch.zeros_like(ids), fixed)
    denoiser = Parallel(model, specials).eval()
    return Stage(model, denoiser, specials, texts, ids.masked_fill(~fixed, MASK).to(bench.device), shape)


def calls_of(model: Any, work: Callable[[], Any]) -> int:
    calls = [0]
    handle = model.base_model.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    work()
    handle.remove()
    return calls[0]


def sampling(bench: Bench, shape: Shape) -> None:
    model = bench.model().to(bench.dtype).eval()
    stage = stage_of(bench, shape, model)
    name = f"B={shape.batch} N={shape.steps}" + (" infilling" if shape.infill else "")
    once = 1 if shape.steps > 64 else 3
    written = shape.batch * shape.masks
    hidden = shape.batch * shape.length * bench.size.width * 2 / 1e6

    def report(what: str, work: Callable[[], Any], call: float | None = None, rounds: int = once) -> None:
        took = bench.seconds(work, rounds, 1)
        facts = {"tokens_s": round(written / took), "seconds": took, "calls": calls_of(model, work)}
        if call:
            facts["times_calls"] = took / (facts["calls"] * call)
        bench.put(f"{name}: {what}", **facts, peak_mb=round(bench.peak_bytes(work)), hidden_mb=round(hidden, 1))

    with torch.inference_mode():
        body, whole = (
            bench.seconds(work, 20) for work in (lambda: model.base_model(stage.ids), lambda: model(stage.ids))
        )
    share = shape.batch * bench.flops(shape.length, 0) / body / bench.peak
    bench.put(f"{name}: a call", body_ms=1e3 * body, with_all_logits_ms=1e3 * whole, of_gemm_peak=share)
    report("full-width float32 recipe (MDLM's)", partial(wide, stage, torch.float32), rounds=1 if once == 1 else 2)
    report("surest first, float64 recipe (LLaDA's)", partial(recipes.llada, model, stage.ids, shape.steps, MASK,
           temperature=1.0), rounds=1)  # fmt: skip
    for what, ways in WAYS.items():
        if "graphs" in ways and bench.device.type != "cuda":
            continue
        model = tune(bench.model().to(bench.dtype).eval(), *ways)
        own = replace(stage, model=model, denoiser=Parallel(model, stage.specials).eval())
        began = time.perf_counter()
        with torch.inference_mode():
            call = bench.seconds(lambda model=model: model.base_model(input_ids=stage.ids), 20)
        first = time.perf_counter() - began
        ours_ancestral(own)  # every batch size of a run is compiled, or recorded
        bench.put(f"{name}: a call, {what}", body_ms=1e3 * call, first_and_20_s=first)
        report(what, partial(ours_ancestral, own), call)
    report("ours, compiled, graphs: surest first", partial(ours_ranked, own), call)
    report("ours, compiled, graphs: greedy", partial(ours_greedy, own), call)


class _Wide(nn.Module):
    """A model whose logits are of another number type, as the published program has them."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, **inputs: Tensor) -> Any:
        output = self.model(**inputs)
        output.logits = output.logits.to(self.dtype)
        return output


def wide(stage: Stage, dtype: torch.dtype) -> Tensor:
    return recipes.mdlm(_Wide(stage.model, dtype), stage.ids, stage.shape.steps, MASK)


def generate(bench: Bench, batch: int) -> None:
    size = bench.size
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=size.vocabulary, n_embd=size.width, n_layer=size.layers, n_head=size.heads,
            n_positions=size.length + 8, bos_token_id=0, eos_token_id=None, pad_token_id=0,
        )
    ).to(bench.device, bench.dtype).eval()  # fmt: skip
    ids = torch.full((batch, 1), 5, device=bench.device)
    new = 16 if size is TINY else 256

    def work() -> Any:
        return model.generate(ids, do_sample=True, top_k=0, max_new_tokens=new, min_new_tokens=new)

    took = bench.seconds(work, 2, 1)
    bench.put(f"GPT-2 generate B={batch}, {new} new", tokens_s=round(batch * new / took), ms_a_step=1e3 * took / new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models, for a look at the program")
    parser.add_argument("--budget", type=float, default=540, help="seconds after which no section begins")
    parser.add_argument("--threads", type=int, help="of the host; torch's own number where left out")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of gpu.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    torch.set_float32_matmul_precision("high")
    bench = Bench(TINY if options.tiny else Size(), options.budget, options.out)
    size, began = bench.size, time.monotonic()
    print(", ".join(f"{key} {value}" for key, value in bench.found.items()), flush=True)
    bench.section(0, "ceilings", lambda: ceilings(bench))

    def samples(*points: tuple[int, int, bool]) -> None:
        for batch, steps, infill in [(2, 8, False)] if options.tiny else points:
            shape = Shape(batch, size.length, steps, infill, size.vocabulary)
            bench.section(20 if batch == 1 else 40, f"B={batch} N={steps}", partial(sampling, bench, shape))

    samples((1, 64, False), (16, 64, False))
    for batch in (2,) if options.tiny else (1, 16, 64):
        bench.section(12, f"generate {batch}", partial(generate, bench, batch))
    for name, loss, ways in (
        ("ours", ours, ()), ("ours, compiled", ours, ("compile",)), ("all logits", full_logits, ()),
        ("SUBS (MDLM's)", subs, ()),
    ):  # fmt: skip
        bench.section(12, f"train: {name}", partial(train, bench, name, loss, ways))
    bench.section(20, "train: Trainer, BERT", lambda: hf_trainer(bench, "BERT", bench.model()))
    bench.section(20, "train: Trainer, ModernBERT", lambda: hf_trainer(bench, "ModernBERT sparse", modernbert(bench)))
    if not options.tiny:
        samples((16, 64, True), (16, 256, False))
    bench.put("seconds", all=time.monotonic() - began)


if __name__ == "__main__":
    main()
