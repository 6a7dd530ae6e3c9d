"""Pretrained models of every family as denoisers: adapted, saved as stock models, read shifted or in place, with LoRA."""

import importlib.util
import json
import math
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from families import MASKED, TELL
from families import tiny as families_tiny
from safetensors import safe_open
from tiny import tiny_checkpoint
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from textdiff import lora, saving
from textdiff.checkpoint import CONFIG_NAME, Checkpoint, DiffusionConfig, load
from textdiff.cli import main as cli
from textdiff.data import to_tokens
from textdiff.denoiser import Parallel, padding
from textdiff.denoiser.padding import by_length
from textdiff.evaluation import bound
from textdiff.filling import infill
from textdiff.gaps import Gap, parse
from textdiff.keys import Key
from textdiff.leak import looks_ahead, need_bidirectional, need_causal, reads_padding
from textdiff.models import new_rows, pretrained_model, saved_dtype, vocabulary
from textdiff.posterior import Decode
from textdiff.process import Masking
from textdiff.recipe import Recipe, read_recipe
from textdiff.tokenizer import encode, load_tokenizer, prepare_tokenizer, specials, stock_specials
from textdiff.tokens import Tokens
from textdiff.udm import UDM

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOT = Path(__file__).resolve().parent.parent
WORDS = "we the people of a strong union go on with work and hope for peace in every town".split()
OWN = ["<pad>", "<s>", "</s>", "<unk>"]
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ROLES = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}


def texts() -> list[str]:
    draw = random.Random(0)
    return [" ".join(" ".join(draw.choices(WORDS, k=14)).capitalize() + "." for _ in range(4)) for _ in range(8)]


def stock_tokenizer(mask: bool, template: str, **roles: str) -> PreTrainedTokenizerFast:
    """A stranger's tokenizer, which knows nothing of gaps."""
    names = [*OWN, *(["<mask>"] if mask else [])]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own = [AddedToken(name, special=True) for name in names]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts(),
        trainers.BpeTrainer(vocab_size=300, special_tokens=own, initial_alphabet=alphabet, show_progress=False),
    )
    used = [(name, names.index(name)) for name in template.split() if name != "$A"]
    bpe.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    more = {"mask_token": "<mask>"} if mask else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", **more, **roles
    )


def family(name: str, rows: int = 0, **more: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    """A tiny random model of the family, with its tokenizer; `rows` of its vocabulary more than that has entries for."""
    makes = {
        "bert": ("BertForMaskedLM", SMALL | ROLES),
        "t5": (
            "T5ForConditionalGeneration",
            {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
            | {"pad_token_id": 0, "eos_token_id": 2},
        ),
        "llama": ("LlamaForCausalLM", SMALL | ROLES | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        "qwen2": ("Qwen2ForCausalLM", SMALL | ROLES | {"num_key_value_heads": 1, "tie_word_embeddings": False}),
        "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64} | ROLES),
        "stablelm": ("StableLmForCausalLM", SMALL | ROLES | {"num_key_value_heads": 1}),
        "gpt_neo": (
            "GPTNeoForCausalLM",
            {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]} | ROLES,
        ),
        "mpt": ("MptForCausalLM", {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}),
    }
    if name == "bert":
        tokenizer = stock_tokenizer(True, "<s> $A </s>", cls_token="<s>", sep_token="</s>")
    elif name == "t5":
        tokenizer = stock_tokenizer(False, "$A </s>")
    else:
        tokenizer = stock_tokenizer(False, "<s> $A", bos_token="<s>")
    kind, settings = makes[name]
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    config = model_class.config_class(**settings | {"vocab_size": len(tokenizer) + rows} | more)
    return model_class(config).eval(), tokenizer


def save(model: Any, tokenizer: Any, folder: Path, **diffusion: Any) -> Path:
    """As a stranger would; with a diffusion_config.json written by hand where there are values for it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if diffusion:
        (folder / CONFIG_NAME).write_text(json.dumps({"format": 1, **diffusion}))
    return folder


CAUSAL = ("--diffusion.backbone", "causal", "--diffusion.shift")
LOADED = {
    "bert": (),
    "t5": ("--diffusion.denoiser", "seq2seq"),
    "llama": ("--diffusion.denoiser", "autoregressive"),
    "llama both ways": CAUSAL,
    "qwen2 both ways": CAUSAL,
    "gpt2 both ways": ("--diffusion.backbone", "causal", "--diffusion.process", "masking"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a data set and stock models."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "texts").mkdir()
    for split, rows in {"train": texts()[:6], "validation": texts()[6:]}.items():
        (folder / "texts" / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    for name in ("bert", "t5", "llama", "qwen2", "gpt2", "stablelm", "gpt_neo", "mpt"):
        save(*family(name), folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.chdir(folder)
        yield folder


def train(path: str, out: Path, *words: str) -> int:
    """A run of `textdiff train` on the toy texts."""
    options = ["--dataset", "texts", "--data.context", "16", "--data.shortest", "4", "--out", str(out)]
    options += ["--trainer.batch", "4", "--trainer.log-every", "1", "--examples", "We [GAP:2] on."]
    return cli(["train", "--model_name_or_path", path, *options, *words])


def states(out: Path) -> tuple[dict, dict]:
    state, damaged = saving.newest_state(out / "states")
    assert state is not None and not damaged
    tensors, facts = saving.read_state(state)
    return tensors, {name: fact for name, fact in facts.items() if name != "elapsed"}


# ------------------------------------------------------------------------------------------------------- every family


QUICK = {("bert", 0), ("t5", 2), ("llama", 0), ("llama both ways", 2), ("gpt2 both ways", 0)}


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        pytest.param(name, rank, marks=[] if (name, rank) in QUICK else pytest.mark.slow)
        for name in LOADED
        for rank in (0, 2)
    ],
)
def test_two_steps_from_any_pretrained_model(name: str, rank: int, world: Path, tmp_path: Path) -> None:
    """Continued, saved as the stock model it was, opened by plain transformers, and filled with."""
    kind, out = name.split()[0], tmp_path / "run"
    assert train(kind, out, *LOADED[name], "--steps", "2", "--model.lora", str(rank)) == 0
    losses = [json.loads(line).get("loss") for line in (out / "log.jsonl").read_text().splitlines()]
    assert losses[0] < math.log(400) + 1, "a new token that explodes"
    found = load(out)
    before, notes = type(found.model).from_pretrained(out, output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"], "a stock model, without a trace of adapters"
    assert type(found.model).__name__ == type(family(kind)[0]).__name__
    tied = found.model.get_input_embeddings().weight is found.model.get_output_embeddings().weight
    assert tied == (kind != "qwen2") and found.model.get_input_embeddings().num_embeddings == len(found.tokenizer)
    if "both ways" in name:
        config = json.loads((out / "config.json").read_text())
        assert config["is_causal"] is False and config["use_cache"] is False and looks_ahead(before)
    gap = "[GAP:2]" if "gpt2" in name else "[GAP]"
    result = infill([parse(f"We {gap} on.")], decode=Decode(max_gap=4), **found.tools())[0][0]
    assert result.text.startswith("We ") and result.text.endswith(" on.")


def test_another_spelling_and_the_wrong_family(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # tyro wraps its boxes
    words = ["train", "--dataset", "texts", "--out", str(tmp_path / "run")]
    cases = {
        ("--model-name-or-path", "llama"): ["llama cannot be loaded as a parallel model", "backbone causal"],
        ("--model_name_or_path=stablelm", *CAUSAL): ["stablelm stays causal", "denoiser autoregressive"],
        ("--model_name_or_path=bert", *LOADED["llama"]): ["bert sees what follows", "denoiser parallel"],
        (*CAUSAL,): ["backbone causal adapts a pretrained causal model", "--model-name-or-path"],
        ("--diffusion.shift",): ["shift is for backbone causal"],
        (*CAUSAL[:2], *LOADED["llama"]): ["backbone causal is for denoiser parallel, not autoregressive"],
        ("--model.lora", "4"): ["model.lora 4 adapts a pretrained model"],
        ("--model-name-or-path", "bert", "--model.lora", "-1"): ["model.lora must be a whole number from 0", "got -1"],
    }
    for more, named in cases.items():
        assert cli([*words, *more]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert all(part in said for part in named), said
    assert not (tmp_path / "run").exists()


def test_what_was_trained_shifted_is_not_read_in_place(world: Path) -> None:
    folder = save(*family("llama"), world / "shifted", process="masking", backbone="causal", shift=True)
    tokenizer = prepare_tokenizer(load_tokenizer(folder), 4)
    wanted = {"process": "masking", "backbone": "causal"}
    with pytest.raises(ValueError, match="trained with backbone causal and shift True, not causal and False"):
        pretrained_model(DiffusionConfig(**wanted), str(folder), tokenizer)
    assert looks_ahead(pretrained_model(DiffusionConfig(**wanted, shift=True), str(folder), tokenizer))


# --------------------------------------------------------------------------------------------------------- new tokens


def mass_lost(model: Any, known: int) -> float:
    """The largest share of the probability, in nats, that new tokens take from the known ones."""
    ids = torch.randint(4, known, (4, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    return float((logits.logsumexp(-1) - logits[..., :known].logsumexp(-1)).max())


def test_new_tokens_take_no_more_than_their_share() -> None:
    """The mean row takes at most 1/V of what V rows take (Jensen); noise adds a few per cent. transformers' plain start,
    rows around 0, takes nearly all where the known tokens share a direction away from it."""
    model, _ = family("qwen2")
    with torch.no_grad():  # logits that differ by several nats, and share a direction
        hidden = model.model(input_ids=torch.arange(4, 64)[None]).last_hidden_state[0]
        model.lm_head.weight *= 20
        model.lm_head.weight -= 2 * hidden.mean(0) / hidden.mean(0).norm()
    known, count = model.lm_head.weight.shape[0], 30
    model.resize_token_embeddings(known + count, mean_resizing=False)
    control = mass_lost(model, known)
    new_rows(model, known)
    share = math.log1p(count / known)
    assert mass_lost(model, known) < 1.2 * share < control


def test_what_the_model_knows_is_untouched(world: Path) -> None:
    """The first bound of an adapted masked model is that of the model as it was; the known rows stay bit for bit."""
    stock, tokenizer = family("bert")
    ids, rows = stock_specials(tokenizer, stock), [[1, *encode(tokenizer, text)[:30]] for text in texts()]
    sizes = [len(text) for text in texts()]
    before = bound(UDM(Masking(ids), Parallel(stock, ids)), rows, sizes, pad=ids.pad)
    known = len(tokenizer)
    prepared = prepare_tokenizer(load_tokenizer("bert"), 8)
    model = pretrained_model(DiffusionConfig(process="masking"), "bert", prepared, known)
    new = specials(prepared)
    after = bound(UDM(Masking(new), Parallel(model, new)), rows, sizes, pad=new.pad)
    assert abs(after.nats - before.nats) < 1e-5 and before.nats > 1
    for old, part in zip(vocabulary(stock), vocabulary(model), strict=True):
        assert torch.equal(old, part[:known]) and len(part) == len(prepared) > known


def test_a_mask_that_only_the_model_knows_is_kept(tmp_path: Path) -> None:
    """LLaDA: the id is in config.json, its row is trained; the tokenizer's new [MASK] begins with it."""
    model, tokenizer = family("llama", rows=8, mask_token_id=303)
    folder = save(model, tokenizer, tmp_path)
    prepared = prepare_tokenizer(load_tokenizer(folder), 2)
    config = DiffusionConfig(process="masking", backbone="causal")
    adapted = pretrained_model(config, str(folder), prepared, len(tokenizer))
    row = adapted.get_input_embeddings().weight[prepared.mask_token_id]
    assert torch.equal(row, model.get_input_embeddings().weight[303])
    assert adapted.config.mask_token_id == prepared.mask_token_id != 303


# ----------------------------------------------------------------------------------------------- stock masked diffusers

SHAPES = {
    "LLaDA": ("llama", {"backbone": "causal"}, {"is_causal": False, "mask_token_id": 303}),
    "Dream": ("qwen2", {"backbone": "causal", "shift": True}, {"is_causal": False, "mask_token_id": 303}),
    "Dream, still marked causal": ("qwen2", {"backbone": "causal", "shift": True}, {"mask_token_id": 303}),
    "MDLM": ("bert", {}, {}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_checkpoint_that_knows_nothing_of_textdiff(shape: str, tmp_path: Path) -> None:
    """Gaps of known length are filled with entries of the tokenizer alone: of 600 words from 308 rows all but uniform,
    none is of the 8 without an entry (false alarms: 0; a ban that fails is missed with 1e-7)."""
    kind, diffusion, config = SHAPES[shape]
    model, tokenizer = family(kind, rows=8, **config)
    found = load(save(model, tokenizer, tmp_path, denoiser="parallel", process="masking", **diffusion))
    ids = found.specials
    assert ids.size == len(tokenizer) + 8 and ids.gap >= ids.size and ids.lengths == ()
    assert ids.mask == config.get("mask_token_id", tokenizer.mask_token_id) and looks_ahead(found.model)
    assert ids.tail == ((2,) if kind == "bert" else ()) and ids.bos == 1
    assert {*range(len(tokenizer), ids.size)} <= {*ids.not_text}
    results = infill([["We ", Gap.of(3), " on."]], samples=200, steps=2, **found.tools())[0]
    assert all(result.text.startswith("We ") and result.text.endswith(" on.") for result in results)
    tools, x = found.tools(), to_tokens([[1, *[ids.mask] * 3]] * 200, ids.pad)
    x = x.with_(counted=~x.fixed)
    drawn = tools["denoiser"](x, torch.ones(200)).sample(Decode(), Key.of(0, 200)).x0.ids[:, 1:]
    assert not set(drawn.flatten().tolist()) & {*ids.not_text} and len(drawn.unique()) > 100


def test_rows_without_an_entry_are_banned_beside_tokens_for_gaps() -> None:
    """A vocabulary padded to a round number, with a tokenizer that is prepared."""
    model, tokenizer = family("bert", rows=64)
    prepared = prepare_tokenizer(tokenizer, 2)
    ids = Checkpoint(model, prepared, DiffusionConfig()).specials
    assert ids.lengths and ids.size == model.config.vocab_size > len(prepared)
    assert {*range(len(prepared), ids.size)} <= {*ids.not_text} and ids.words.max() < len(prepared)


def state_of(rows: list[list[list[int]]]) -> tuple[Tokens, torch.Tensor]:
    """Rows of documents, and every third token of each asked for, never its first."""
    x = to_tokens(rows, 0)
    where = (torch.arange(x.ids.shape[1])[None] % 3 == 2) & x.valid & ~x.fixed
    return x, where


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_shifted_is_in_place_one_to_the_left(kind: str) -> None:
    """Bit for bit; and not in place, the control."""
    model, tokenizer = family(kind, is_causal=False, use_cache=False)
    ids = stock_specials(tokenizer, model)
    x, where = state_of([[[1, *range(10, 20)]], [[1, *range(30, 36)]]])
    shifted, plain = Parallel(model, ids, shift=True), Parallel(model, ids)
    with torch.no_grad():
        said = shifted.logits(x, where)
        assert torch.equal(said, plain.logits(x, where.roll(-1, 1)))
        assert not torch.equal(said, plain.logits(x, where))
        whole = model(input_ids=x.ids, attention_mask=x.valid.long()).logits
    row, column = where.nonzero().T
    words = ids.words
    assert torch.equal(said[:, words], whole[row, column - 1][:, words])
    with pytest.raises(ValueError, match="nothing of the first token"):
        shifted.logits(x, torch.ones_like(where))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_packed_texts_do_not_see_one_another(kind: str, shift: bool) -> None:
    """Each is read as if it were alone, with positions of its own."""
    model, tokenizer = family(kind, is_causal=False, use_cache=False)
    denoiser = Parallel(model, stock_specials(tokenizer, model), shift)
    one, other = [1, *range(10, 18)], [1, *range(30, 36)]
    with torch.no_grad():
        apart = [denoiser.logits(*state_of([[row]])) for row in (one, other)]
        x = to_tokens([[one, other], [other]], 0)
        where = torch.zeros_like(x.fixed)
        for start, row in ((0, one), (len(one), other)):
            where[0, start : start + len(row)] = state_of([[row]])[1][0]
        together = denoiser.logits(x, where)
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


def test_a_bos_that_the_model_lacks_is_not_fed() -> None:
    """A state begins with one all the same; what is read is the text alone. The mask may be missing as well (T5)."""
    model, tokenizer = family("bert")
    tokenizer.cls_token = tokenizer.bos_token = tokenizer.eos_token = tokenizer.sep_token = None
    ids = stock_specials(tokenizer, model)
    assert ids.bos >= ids.size and ids.mask == tokenizer.mask_token_id
    x, where = state_of([[[ids.bos, *range(10, 20)]], [[ids.bos, *range(30, 36)]]])
    with torch.no_grad():
        said = Parallel(model, ids).logits(x, where)
        alone = model(input_ids=x.ids[:, 1:], attention_mask=x.valid[:, 1:].long()).logits
    assert torch.equal(said[:, ids.words], alone[where[:, 1:]][:, ids.words])
    with pytest.raises(ValueError, match="nothing of the first token"):
        Parallel(model, ids, shift=True).logits(x, where.roll(-1, 1))
    t5 = stock_specials(*reversed(family("t5")))
    assert (
        min(t5.bos, t5.mask, t5.gap, t5.fill, t5.end) >= t5.size
        and len({t5.bos, t5.mask, t5.gap, t5.fill, t5.end}) == 5
    )
    assert t5.tail == (2,) and t5.pad == 0


# ----------------------------------------------------------------------------------------------------------------- leaks


def test_who_looks_ahead() -> None:
    assert looks_ahead(family("bert")[0]) and not looks_ahead(family("bert", is_decoder=True)[0])
    for kind in ("llama", "qwen2", "gpt2"):
        causal, both = family(kind)[0], family(kind, is_causal=False)[0].train()
        assert not looks_ahead(causal) and looks_ahead(both) and both.training
        need_causal(causal)
        need_bidirectional(both)
        with pytest.raises(ValueError, match=f"{kind} sees what follows .*is False.*use denoiser parallel"):
            need_causal(both)
        with pytest.raises(ValueError, match=f"{kind} stays causal"):
            need_bidirectional(causal)


@pytest.mark.parametrize("kind", ["stablelm", "gpt_neo", "mpt"])
def test_models_that_stay_causal_are_refused(kind: str, tmp_path: Path) -> None:
    folder = save(*family(kind), tmp_path, process="masking", backbone="causal")
    with pytest.raises(ValueError, match=f"{kind} (stays causal|cannot be read in both).* use denoiser autoregressive"):
        load(folder)


# ------------------------------------------------------------------------------------------------------------------ LoRA


def test_lora_resumes_bit_for_bit(world: Path, tmp_path: Path) -> None:
    """4 steps are 2 and 2 more; nothing but updates and new tokens has changed, and what is saved is the sum of both."""
    words = (*CAUSAL, "--model.lora", "2", "--trainer.lr", "0.01", "--steps", "4")
    assert train("llama", tmp_path / "whole", *words, "--trainer.save-every", "2") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    (state,) = (tmp_path / "half" / "states").glob("*4")
    shutil.rmtree(state)
    (tmp_path / "half" / "model.safetensors").unlink()
    assert train("llama", tmp_path / "half", *words, "--trainer.save-every", "2", "--resume") == 0
    (one, facts), (other, others) = states(tmp_path / "whole"), states(tmp_path / "half")
    assert facts == others and one.keys() == other.keys()
    assert all(torch.equal(one[part][name], other[part][name]) for part in one for name in one[part])
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "half")]
    assert files[0].read_bytes() == files[1].read_bytes()
    stock, new = family("llama")[0].state_dict(), load(tmp_path / "whole").model.state_dict()
    for name, weight in one["model"].items():
        if name.endswith("base_layer.weight"):
            key = name.removeprefix("denoiser.model.").replace(".token_adapter", "").replace(".base_layer", "")
            assert torch.equal(weight[: len(stock[key])], stock[key]), "frozen"
            assert not torch.equal(new[key][-1], weight[-1]), "trained all the same"
    assert torch.equal(new["model.embed_tokens.weight"][:300], stock["model.embed_tokens.weight"])


@pytest.mark.parametrize("kind", ["bert", "t5", "llama", "qwen2", "gpt2"])
def test_the_merged_model_computes_the_same(kind: str, tmp_path: Path) -> None:
    """With updates that matter; before the first step the adapters change nothing at all."""
    model, tokenizer = family(kind)
    known = len(tokenizer)
    model.resize_token_embeddings(known + 3, mean_resizing=False)
    x = torch.tensor([[1, 20, known, 30, known + 2]])

    def logits(model: Any) -> torch.Tensor:
        more = {"decoder_input_ids": x} if kind == "t5" else {}
        with torch.no_grad():
            return model.eval()(input_ids=x, **more).logits

    first, every = logits(model), sum(weight.numel() for weight in model.parameters())
    lora.add_lora(model, 2, [known, known + 1, known + 2])
    assert torch.equal(logits(model), first) and 0 < lora.trained(model) < every / 4
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape)
    lora.merged(model).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)
    assert (logits(model) - first).abs().max() > 0.1


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r'needs peft; install it by pip install "textdiff\[lora\]"'):
        lora.add_lora(family("llama")[0], 2, [])


def size_of(folder: Path) -> dict[str, int]:
    """How many weights of each precision a checkpoint holds."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        kinds = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
    return {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lora_saves_in_the_precision_of_its_base(dtype: torch.dtype, world: Path, tmp_path: Path) -> None:
    """That of the file, whatever is computed in; also where config.json does not say it."""
    model, tokenizer = family("llama")
    save(model.to(dtype), tokenizer, tmp_path / "base")
    assert train(str(tmp_path / "base"), tmp_path / "lora", *LOADED["llama"], "--steps", "1", "--model.lora", "2") == 0
    kind = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
    assert size_of(tmp_path / "lora").keys() == {kind}
    assert json.loads((tmp_path / "lora" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    load(tmp_path / "lora")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert saved_dtype(str(tmp_path / "base")) == dtype


def test_what_would_not_be_finite_is_saved_wider(tmp_path: Path) -> None:
    model, _ = family("llama")
    lora.add_lora(model, 2, [], torch.float16)
    assert next(lora.merged(model).parameters()).dtype == torch.float16 and model.config.dtype != torch.float16
    model.model.layers[0].mlp.down_proj.base_layer.weight.data[0, 0] = 1e6
    assert next(lora.merged(model).parameters()).dtype == torch.float32


# --------------------------------------------------------------------------------------------------------------- padding


def amplify(model: Any, gain: float) -> Any:
    """Differences grow with every layer of a deep model; here one step makes as much of them."""

    def chaotic(module: Any, args: Any, out: Any) -> Any:
        out.last_hidden_state = (gain * out.last_hidden_state).sin()
        return out

    model.base_model.register_forward_hook(chaotic)
    return model


def apart(model: Any) -> float:
    """What 17 columns of padding change of the logits, by their standard deviation: the probe's longer text."""
    ids = torch.randint(150, 300, (1, 47), generator=torch.Generator().manual_seed(0))
    ids[:, 30:] = 0
    live = (torch.arange(47) < 30).long()[None]
    with torch.no_grad():
        beside = model(input_ids=ids, attention_mask=live).logits[0, :30]
        alone = model(input_ids=ids[:, :30]).logits[0]
    return float((beside - alone).abs().max() / alone.std())


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_rounding_of_a_deep_model_is_no_padding(kind: str) -> None:
    """Differences as large as those of a model of 135 M weights, 5e-4 of the logits' deviation, are its own noise."""
    model = amplify(family(kind, is_causal=False)[0].eval(), 3000)
    assert apart(model) > 4e-4, "the control: more than the square root of the rounding unit"
    assert not reads_padding(model, 0, 64)


@pytest.mark.parametrize("name", sorted(TELL))
def test_padding_is_seen_beside_as_much_rounding(name: str) -> None:
    model, tokenizer = families_tiny(name, MASKED)
    assert reads_padding(amplify(model.float().eval(), 3000), tokenizer.pad_token_id, 128)


def test_only_tensors_of_the_batch_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag, and what has another shape, reach the model as they are."""
    model, _ = family("llama", is_causal=False)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        padding.head, "logits_at", lambda model, where, **inputs: seen.append(inputs) or torch.zeros(1, 3)
    )
    where = torch.tensor([[False, True, False], [True, False, False]])
    cube, other = torch.zeros(2, 3, 5), torch.zeros(1, 1, 3, 3)
    by_length(model, where, torch.tensor([2, 3]), input_ids=torch.zeros(2, 3), use_cache=False, cube=cube, other=other)
    assert [inputs["input_ids"].shape for inputs in seen] == [(1, 2), (1, 3)]
    assert [inputs["cube"].shape for inputs in seen] == [(1, 2, 5), (1, 3, 5)]
    assert all(inputs["use_cache"] is False and inputs["other"] is other for inputs in seen)


# --------------------------------------------------------------------------------------------------------------- example


@pytest.mark.parametrize("tells", [False, True])
def test_the_example(tells: bool, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short, and it runs, also where texts are read by length; what it saves is a causal model that looks both ways."""
    if tells:
        monkeypatch.setattr(padding, "reads_padding", lambda *args: True)
    file = ROOT / "examples" / "adapt_causal.py"
    assert len(file.read_text().splitlines()) < 40
    spec = importlib.util.spec_from_file_location("adapt_causal", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said = module.main("llama", "texts", str(tmp_path / "out"), steps=2, batch=4)
    assert len(said) == 5 and all(text.startswith("We must ") and text.endswith(" the economy.") for text in said)
    assert looks_ahead(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    assert "attention is open to both sides" in (tmp_path / "out" / "README.md").read_text()
    fill = transformers.pipeline("text-infilling", model=str(tmp_path / "out"))
    assert fill("We must [GAP:4] the economy.")[0]["generated_text"].startswith("We must ")


def test_the_recorded_recipe_reads() -> None:
    recipe = read_recipe(["--config", str(ROOT / "data" / "adapt-smollm2.yaml"), "--model.lora", "4"], "train")
    assert isinstance(recipe, Recipe) and recipe.diffusion.shift and recipe.diffusion.backbone == "causal"


def test_a_model_that_has_hardly_learned_to_look_is_seen_to_look() -> None:
    """No difference of its logits shows that it reads what follows, their gradient does; of a causal one that is 0."""
    masked, causal = tiny_checkpoint("parallel").model, tiny_checkpoint("autoregressive").model
    with torch.no_grad():
        for name, weight in masked.named_parameters():
            if "Wo" in name or "o_proj" in name or "attn" in name:
                weight.mul_(1e-3)
    assert looks_ahead(masked) and not looks_ahead(causal)
    before = [weight.grad for weight in masked.parameters()]
    assert before == [None] * len(before)
