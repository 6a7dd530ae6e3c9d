"""Search for the demo's recipe: train a variant for a fixed budget of processor time, print what it learned.

    python benchmarks/recipe.py --kind autoregressive --seconds 100 lr=2e-3 hidden=256
    python benchmarks/recipe.py --kind parallel --seconds 100 spans=1,3,8 weighted=1

The budget is processor time in seconds of two cores, so a neighbour on a shared machine does not shorten it. Every run
appends a line to --log. What was tried, the failures too, is in LOG.md.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from textdiff.data import Batches, load_texts, to_tokens, windows
from textdiff.denoiser import Autoregressive, Parallel
from textdiff.evaluation import bound, gap_cases, gap_score
from textdiff.filling import infill
from textdiff.gaps import Gap
from textdiff.keys import Key
from textdiff.ngram import trigram_nll, unigram_nll
from textdiff.optim import optimizers
from textdiff.posterior import Decode
from textdiff.process import Deletion, Masking
from textdiff.recipe import know_places
from textdiff.spectral import start_from_bigrams, start_from_neighbours
from textdiff.tokenizer import encode, specials, train_tokenizer
from textdiff.tokens import Specials
from textdiff.udm import UDM, Objective

CORES = 2  # a budget of 100 s is 100 s of two cores: 200 s of processor time, whatever the number of threads

DEFAULTS: dict[str, Any] = {
    "vocab": 4000, "context": 64, "shortest": 16, "batch": 16, "lr": 1e-3, "warmup": 0.05, "decay": 0.1,
    "optimizer": "adamw", "beta2": 0.98, "wd": 0.1, "clip": 1.0, "hidden": 256, "layers": 4, "heads": 4, "mlp": 640,
    "spans": "1,2,4,8,16,64", "blank": 0.25, "power": 1.0, "weighted": 0, "context_loss": 1.0, "counted": 0.25,
    "masking": 0, "arch": "llama", "tie": 1, "init": 0.02, "seed": 0, "bidirectional": 0, "muon_lr": 0.02, "drop": 0.0,
    "theta": 10000.0, "local": 0, "bigrams": 0, "embedding_lr": 1.0, "residual_drop": 0.0,
}  # fmt: skip


def settings(pairs: list[str]) -> dict:
    chosen = dict(DEFAULTS)
    for pair in pairs:
        name, value = pair.split("=", 1)
        if name not in chosen:
            raise SystemExit(f"{name!r} is not a setting; there are {', '.join(DEFAULTS)}")
        chosen[name] = type(DEFAULTS[name])(value)
    return chosen


def model_of(kind: str, s: dict, vocab: int, ids: Specials) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, LlamaConfig, ModernBertConfig, Qwen3Config

    common = dict(vocab_size=vocab, hidden_size=s["hidden"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"],
                  intermediate_size=s["mlp"], initializer_range=s["init"], max_position_embeddings=2048,
                  pad_token_id=ids.pad, bos_token_id=ids.bos, eos_token_id=ids.end)  # fmt: skip
    if kind == "parallel":
        rope = {"rope_type": "default", "rope_theta": s["theta"]}
        config = ModernBertConfig(**common, classifier_activation="linear" if s["bigrams"] else "gelu",
                                  cls_token_id=ids.bos, sep_token_id=ids.end, local_attention=s["local"] or 2048,
                                  global_attn_every_n_layers=2 if s["local"] else 1,
                                  rope_parameters={"full_attention": rope, "sliding_attention": rope},
                                  tie_word_embeddings=bool(s["tie"]),
                                  mlp_dropout=s["drop"], attention_dropout=s["drop"])  # fmt: skip
        return AutoModelForMaskedLM.from_config(config)
    family = {"llama": LlamaConfig, "qwen3": Qwen3Config}[s["arch"]]
    config = family(**common, num_key_value_heads=s["heads"], head_dim=s["hidden"] // s["heads"],
                    rope_parameters={"rope_type": "default", "rope_theta": s["theta"]},
                    tie_word_embeddings=bool(s["tie"]))  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def drop_residuals(model: torch.nn.Module, share: float) -> None:
    """Dropout on what each block of a Llama adds to the stream, which transformers' has no option for."""

    def drop(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(output, share, module.training)

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)


def train(udm: UDM, rows: list[list[int]], s: dict, seconds: float, pad: int) -> dict:
    """Fixed processor time; the learning rate follows the share of it that is used up."""
    chain = optimizers(udm, s["optimizer"], s["lr"], s["muon_lr"], embedding_lr=s["embedding_lr"], weight_decay=s["wd"],
                       beta2=s["beta2"])  # fmt: skip
    base = [[group["lr"] for group in o.param_groups] for o in chain]
    batches = Batches(len(rows), s["batch"], s["seed"], lengths=[len(row) for row in rows])
    spent, step, tokens = 0.0, 0, 0
    began = time.process_time()
    udm.train()
    while spent < seconds:
        progress = spent / seconds
        scale = min(progress / s["warmup"], 1.0) if s["warmup"] else 1.0
        scale *= s["decay"] + (1 - s["decay"]) * 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer, lrs in zip(chain, base, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * scale
        numbers = batches.at(step)
        x0 = to_tokens([rows[n] for n in numbers], pad)
        key = Key.of(s["seed"], torch.tensor(numbers)).fold(step)
        loss = udm(know_places(x0, key, s["counted"]), key)
        (loss.total / loss.size).backward()
        torch.nn.utils.clip_grad_norm_(udm.parameters(), s["clip"])
        for optimizer in chain:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + int(x0.valid.sum())
        spent = (time.process_time() - began) / CORES
        if step % 200 == 0:
            print(f"  {spent:5.0f} s  step {step}  loss {float(loss.total / loss.size):.3f}", flush=True)
    return {"steps": step, "tokens": tokens, "tokens_per_s": round(tokens / spent)}


def tools_of(udm: UDM, tokenizer: PreTrainedTokenizerBase, ids: Specials) -> dict:
    """What `infill` needs."""
    return {"denoiser": udm.denoiser, "tokenizer": tokenizer, "specials": ids, "process": Deletion(ids)}


def measure(udm: UDM, kind: str, tokenizer: PreTrainedTokenizerBase, ids: Specials, val: dict) -> dict:
    result = {}
    if kind == "parallel":
        look = UDM(Masking(ids), udm.denoiser)
        b = bound(look, val["rows"], val["sizes"], pad=ids.pad, draws=2)
    else:
        b = bound(UDM(Deletion(ids), udm.denoiser), val["rows"], val["sizes"], pad=ids.pad)
    result |= {"nats": round(b.nats, 4), "bpb": round(b.bits_per_byte, 4)}
    udm.eval()
    for name, words, count in (("one", (1, 1), 400), ("five", (1, 5), 200)):
        cases = gap_cases(val["test"], count, words=words)
        tools = tools_of(udm, tokenizer, ids)
        decode = Decode(temperature=0.0, max_gap=20)
        for known in (False, True):
            texts = [
                [c.left, Gap.of(len(encode(tokenizer, " " + c.answer))) if known else Gap(), c.right] for c in cases
            ]
            filled = [r[0] for i in range(0, count, 50) for r in infill(texts[i : i + 50], decode=decode, **tools)]
            score = gap_score(cases, filled)
            result[f"{name}_{'known' if known else 'unknown'}"] = round(score.exact, 4)
            result[f"{name}_{'known' if known else 'unknown'}_len"] = round(score.length_error, 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["autoregressive", "parallel"], default="autoregressive")
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--log", type=Path, default=Path("runs/recipe.jsonl"))
    parser.add_argument("--ngrams", action="store_true", help="print the n-gram baselines too")
    parser.add_argument("settings", nargs="*", help="name=value; " + ", ".join(DEFAULTS))
    args = parser.parse_args()
    s = settings(args.settings)
    torch.manual_seed(s["seed"])
    texts = {split: list(load_texts("data/sotu", split)["text"]) for split in ("train", "validation", "test")}
    tokenizer = train_tokenizer(texts["train"], s["vocab"], lengths=s["context"])
    ids = specials(tokenizer)
    cuts = {"context": s["context"], "shortest": s["shortest"]}
    rows = windows(texts["train"], tokenizer, **cuts)["ids"][:]
    held = windows(texts["validation"], tokenizer, context=64, shortest=16)["ids"][:]
    held = held[::4]
    val = {"rows": held, "sizes": [len(tokenizer.decode(r[1:]).encode()) for r in held], "test": texts["test"]}
    if args.ngrams:
        for name, score in (("unigram", unigram_nll), ("trigram", trigram_nll)):
            got = score(rows, held, len(tokenizer))
            print(
                name,
                round(got.nats, 4),
                "nats,",
                round(got.nats * got.tokens / math.log(2) / sum(val["sizes"]), 4),
                "bpb",
            )
    model = model_of(args.kind, s, len(tokenizer), ids)
    if s["residual_drop"]:
        drop_residuals(model, s["residual_drop"])
    if s["bigrams"]:
        (start_from_neighbours if args.kind == "parallel" else start_from_bigrams)(model, rows)
    process_type = Masking if s["masking"] else Deletion
    process = process_type(ids, spans=tuple(float(x) for x in s["spans"].split(",")))
    objective = Objective(bool(s["weighted"]), s["blank"], s["power"])
    denoiser = Parallel(model, ids) if args.kind == "parallel" else Autoregressive(
        model, ids, 0.0 if s["bidirectional"] else s["context_loss"], bool(s["bidirectional"]))  # fmt: skip
    udm = UDM(process, denoiser, objective)
    if args.ngrams:
        print(
            "before training",
            bound(
                UDM((Masking if args.kind == "parallel" else Deletion)(ids), denoiser), held, val["sizes"], pad=ids.pad
            ),
        )
    out = train(udm, rows, s, args.seconds, ids.pad)
    out |= measure(udm, args.kind, tokenizer, ids, val)
    changed = {k: v for k, v in s.items() if v != DEFAULTS[k]}
    line = {
        "kind": args.kind,
        "seconds": args.seconds,
        **changed,
        **out,
        "params": sum(p.numel() for p in model.parameters()),
    }
    print(json.dumps(line))
    args.log.parent.mkdir(parents=True, exist_ok=True)
    with args.log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    tools = tools_of(udm, tokenizer, ids)
    for text in (
        ["My fellow ", Gap(), ", the state of our union is ", Gap(), "."],
        ["We must ", Gap(), " the economy."],
        [Gap()],
    ):
        for steps in (1, 8):
            print(steps, [r.text for r in infill([text], steps=steps, samples=2, decode=Decode(top_p=0.9), **tools)[0]])


if __name__ == "__main__":
    main()
