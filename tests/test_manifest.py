"""What was saved is what is loaded, and saving replaces nothing that an export did not write.

Every way to save, by every kind of model, against every way to open; a flipped byte in each file; a user's files.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from stock import PATHS, filler
from tiny import KINDS, tiny_checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, pipeline

import textdiff
from textdiff.checkpoint import CONFIG_NAME, load
from textdiff.cli import main
from textdiff.manifest import CARD, MANIFEST, digest, foreign_files, is_read, verify_folder, write_folder
from textdiff.pipelines import open_diffusion, open_infilling

TEXT = "We [GAP:2] on."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_checkpoint("autoregressive").save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


OPENERS: dict[str, Callable[[str], Any]] = {
    "load": textdiff.load,
    "open_infilling": open_infilling,
    "open_diffusion": open_diffusion,
    "infilling": lambda folder: pipeline("text-infilling", model=folder),
    "diffusion": lambda folder: pipeline("text-diffusion", model=folder),
}


@pytest.mark.parametrize("opener", OPENERS)
def test_a_flipped_byte_in_any_file_is_found(copy: Path, opener: str, capsys: pytest.CaptureFixture) -> None:
    OPENERS[opener](str(copy))
    names = json.loads((copy / MANIFEST).read_text())["files"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", CONFIG_NAME, CARD} <= {
        *names
    }
    for name in names:
        if name == CARD:
            continue
        content = (copy / name).read_bytes()
        place = len(content) // 2
        (copy / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        # transformers itself may stumble over the file before this library looks at it
        expected = (Exception,) if opener in ("infilling", "diffusion") else (ValueError,)
        with pytest.raises(expected) as caught:
            OPENERS[opener](str(copy))
        if expected == (ValueError,):
            assert f"{name} is not the file that was saved" in str(caught.value)
        (copy / name).write_bytes(content)
    OPENERS[opener](str(copy))


@pytest.mark.parametrize("command", ["infill", "refine", "generate", "score", "evaluate"])
def test_every_command_finds_it(copy: Path, command: str, capsys: pytest.CaptureFixture) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    words = {"infill": [TEXT], "refine": ["We go."], "generate": [], "score": ["We go."], "evaluate": []}[command]
    assert main([command, str(copy), *words]) == 2
    assert "model.safetensors is not the file that was saved" in capsys.readouterr().err


def test_a_missing_file_and_a_damaged_manifest_are_told(copy: Path) -> None:
    (copy / "tokenizer.json").rename(copy / "elsewhere.json")
    with pytest.raises(ValueError, match=r"lacks tokenizer\.json; copy the model again"):
        load(copy)
    (copy / "elsewhere.json").rename(copy / "tokenizer.json")
    (copy / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="diffusion_manifest.json is damaged"):
        load(copy)
    (copy / MANIFEST).unlink()
    load(copy)  # folders without one are loaded as they are


def test_the_card_may_change_and_is_kept(copy: Path) -> None:
    (copy / CARD).write_text("My notes.")
    model = load(copy)
    model.save(copy)
    assert (copy / CARD).read_text() == "My notes." and load(copy)


NAMES = ["model.safetensors", "config.json", "tokenizer.json", CONFIG_NAME, MANIFEST]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_users_file_is_not_replaced(tmp_path: Path, name: str) -> None:
    """Neither in a folder of the user's, nor one that was changed after an export; nothing at all is written then."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=re.escape(f"{name} was not written by textdiff, and saving would replace it")):
        tiny_checkpoint("autoregressive").save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    tiny_checkpoint("autoregressive").save(tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="was not written by textdiff"):
        tiny_checkpoint("parallel").save(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_an_export_may_be_replaced(copy: Path) -> None:
    """By another one, also where an earlier version, which wrote no manifest, made it."""
    tiny_checkpoint("parallel").save(copy)
    assert load(copy).config.denoiser == "parallel"
    (copy / MANIFEST).unlink()
    tiny_checkpoint("autoregressive").save(copy)
    assert load(copy).config.denoiser == "autoregressive" and foreign_files(copy, NAMES[:-1]) == []


ADDED = (
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json", "tokenizer.model",
    "vocab.json", "vocab.txt", "merges.txt", "generation_config.json", "adapter_config.json", "adapter_model.safetensors",
    "model-00001-of-00002.safetensors", "model.safetensors.index.json",
    "processor_config.json", "additional_chat_templates/tool.jinja",
)  # fmt: skip
HARMLESS = (
    "README.md", "LICENSE", "run.json", "log.jsonl", "recipe.yaml", "loss.png", "notes.txt", "results.json",
    ".gitattributes", "states/step-00000002/model.safetensors", "tensorboard/events.out.tfevents.1",
    ".ipynb_checkpoints/a.py",
    "handler.py", "modeling_mine.py", "model.onnx", "model.gguf", "pytorch_model.bin", "tf_model.h5",
)  # fmt: skip


@pytest.mark.parametrize("opener", ["load", "open_infilling", "open_diffusion"])
def test_a_file_that_is_read_and_was_not_saved_is_refused(copy: Path, opener: str) -> None:
    """One at a time, also where the folder was opened before; what no loader reads may stand there."""
    OPENERS[opener](str(copy))
    for name in [name for name in ADDED if name not in json.loads((copy / MANIFEST).read_text())["files"]]:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text('{"mask_token": "a"}')
        with pytest.raises(
            ValueError, match=rf"{re.escape(name)} would be read with the model, and is not in its"
        ) as error:
            OPENERS[opener](str(copy))
        assert "\n" not in str(error.value)
        (copy / name).unlink()
    for name in HARMLESS:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("{}")
    OPENERS[opener](str(copy))
    (copy / MANIFEST).unlink()
    (copy / "special_tokens_map.json").write_text("{}")
    OPENERS[opener](str(copy))  # folders without a manifest are loaded as they are


def test_every_file_that_transformers_names_is_known_to_be_read() -> None:
    """The names in its tokenizers, and those of its constants; controls are files that it does not read."""
    import transformers

    home = Path(transformers.__file__).parent
    names = {
        name
        for file in home.glob("models/*/tokenization_*.py")
        for table in re.findall(r"VOCAB_FILES_NAMES = \{[^}]*\}", file.read_text("utf-8"))
        for name in re.findall(r': "([^"]+)"', table)
    }
    constants = (home / "utils" / "__init__.py").read_text("utf-8")
    names |= {name for name in re.findall(r'^[A-Z_0-9]+ = "([\w.]+\.\w+)"', constants, re.MULTILINE)} - {
        "modelcard.json"
    }
    others = (".bin", ".h5", ".msgpack")  # weights that are passed over where there are safetensors
    assert len(names) > 25 and {name for name in names if not is_read(name) and not name.endswith(others)} == set()
    assert not any(is_read(name) for name in HARMLESS if "/" not in name)


def test_saving_leaves_no_file_that_is_read_with_another_model(copy: Path) -> None:
    """What an earlier export wrote goes, what a user put there is in the way; the permissions are those of the umask."""
    files = json.loads((copy / MANIFEST).read_text())
    (copy / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="vocab.json was not written by textdiff, and would be read with the model"):
        tiny_checkpoint("parallel").save(copy)
    files["files"]["vocab.json"] = digest(copy / "vocab.json")
    (copy / MANIFEST).write_text(json.dumps(files))
    load(copy)
    before = os.umask(0o027)
    try:
        tiny_checkpoint("parallel").save(copy)
    finally:
        os.umask(before)
    assert not (copy / "vocab.json").exists() and load(copy).config.denoiser == "parallel"
    assert {file.stat().st_mode & 0o777 for file in copy.iterdir() if file.is_file()} == {0o640}


@pytest.mark.parametrize("path", ["/", "/..", "//"])
def test_nothing_is_saved_to_the_root(path: str) -> None:
    with pytest.raises(ValueError, match="cannot save to '.*', the root folder; name a folder in it"):
        write_folder(path, lambda part: None)


@pytest.mark.parametrize("path", ["", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="it must be a folder, or a name that is free|must be a path; got ''"):
        write_folder(path, lambda part: None)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_folder_as_it_was(copy: Path) -> None:
    before = {file.name: file.read_bytes() for file in copy.iterdir()}

    def fail(part: Path) -> None:
        (part / "config.json").write_text("{}")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_folder(copy, fail)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    verify_folder(copy)


def strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *strings(item))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("task", ["text-infilling", "text-diffusion"])
def test_saved_by_any_way_of_filling_it_opens_and_fills_alike(tmp_path: Path, path: str, task: str) -> None:
    """By this pipeline, the command line's opener and plain transformers; no code and no path in the folder."""
    fill = filler(path)
    config = None if fill.checkpoint is None else fill.checkpoint.config
    source = pipeline(task, model=fill.model, tokenizer=fill.tokenizer, diffusion_config=config)
    folder = tmp_path / "saved"
    source.save_pretrained(folder)
    assert not list(folder.rglob("*.py"))
    for file in folder.glob("*.json"):
        if file.name in ("config.json", "generation_config.json", "tokenizer_config.json", CONFIG_NAME, MANIFEST):
            values = [*strings(json.loads(file.read_text("utf-8")))]
            assert not any(str(tmp_path) in value or "textdiff/" in value for value in values), file.name
            assert "custom_pipelines" not in values and "auto_map" not in values
    verify_folder(folder)
    again = open_infilling(str(folder))
    assert again.explain() == fill.explain()
    # float32 here, float64 there: the texts of random models may differ, their likelihoods hardly
    if not path.startswith("masked") and path != "both ways":
        assert again.score("We go on")["nats"] == pytest.approx(fill.score("We go on")["nats"], rel=1e-3)


PLANS = {
    "LoRA": ("LoraConfig", {"r": 2, "init_lora_weights": False}),
    "DoRA": ("LoraConfig", {"r": 2, "init_lora_weights": False, "use_dora": True}),
    "LoRA and a whole module": ("LoraConfig", {"r": 2, "init_lora_weights": False, "modules_to_save": ["ln_f"]}),
    "IA3": ("IA3Config", {"feedforward_modules": [], "init_ia3_weights": False}),
    "LoHa": ("LoHaConfig", {"r": 2, "init_weights": False}),
}


@pytest.mark.parametrize("plan", PLANS)
def test_adapters_are_merged_into_what_is_saved(plan: str, tmp_path: Path) -> None:
    """Of every kind that peft merges."""
    peft = pytest.importorskip("peft")
    fill, (name, options) = filler("causal, bytes"), PLANS[plan]
    targets = ["attn.c_proj"] if plan == "LoHa" else ["c_attn"]
    stock = deepcopy(fill.model)
    torch.manual_seed(0)
    if plan == "LoHa":
        stock, targets = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(fill.tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=0, eos_token_id=0,
        )).eval(), ["q_proj"]  # fmt: skip
    model = peft.get_peft_model(stock, getattr(peft, name)(target_modules=targets, **options))
    for name, weight in model.named_parameters():
        if "hada_" in name:
            weight.data.mul_(8)
    for wrapper in model.modules():
        if type(wrapper).__name__ == "ModulesToSaveWrapper":
            wrapper.modules_to_save["default"].weight.data.mul_(1.5)
        for scales in getattr(wrapper, "ia3_l", {}).values():
            scales.data.uniform_(0.2, 3.0)
    adapted = pipeline("text-infilling", model=model.eval(), tokenizer=fill.tokenizer)
    adapted.save_pretrained(tmp_path / "saved")
    again = open_infilling(str(tmp_path / "saved"))
    assert again.score("We go on")["nats"] == pytest.approx(adapted.score("We go on")["nats"], rel=1e-3)
    with model.disable_adapter():
        plain = adapted.score("We go on")["nats"]
    assert abs(plain - again.score("We go on")["nats"]) > 1e-2  # the adapters do something


def test_wrapped_and_derived_models_serve() -> None:
    """A subclass and a compiled model fill as the stock model does."""
    fill = filler("causal, bytes")
    kind = type(fill.model)
    derived = type("Derived", (kind,), {})
    text = fill(TEXT)[0]["generated_text"]
    fill.model.__class__ = derived
    try:
        assert pipeline("text-infilling", model=fill.model, tokenizer=fill.tokenizer)(TEXT)[0]["generated_text"] == text
    finally:
        fill.model.__class__ = kind
    compiled = torch.compile(fill.model)
    opened = pipeline("text-infilling", model=compiled, tokenizer=fill.tokenizer)
    assert opened(TEXT)[0]["generated_text"] == text


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_told(tmp_path: Path, kind: str) -> None:
    made = tiny_checkpoint(kind)
    next(iter(made.model.parameters())).data.view(-1)[0] = float("nan")
    made.save(tmp_path / "model")
    for opener in OPENERS.values():
        with pytest.raises(ValueError, match="weights are not finite: NaN or infinity in"):
            opener(str(tmp_path / "model"))


@pytest.mark.parametrize("task", ["text-infilling", "text-diffusion"])
def test_a_folder_of_adapters_is_saved_whole(task: str, tmp_path: Path) -> None:
    """Opened by transformers, which names weights as peft does when it saves; plain transformers opens what is saved."""
    peft = pytest.importorskip("peft")
    fill = filler("causal, bytes")
    fill.model.save_pretrained(tmp_path / "base")
    fill.tokenizer.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    fill.tokenizer.save_pretrained(tmp_path / "adapter")
    opened = pipeline(task, model=str(tmp_path / "adapter"))
    opened.save_pretrained(tmp_path / "saved")
    _, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    again = pipeline(task, model=str(tmp_path / "saved"))
    assert again.score("We go on")["nats"] == pytest.approx(opened.score("We go on")["nats"], rel=1e-3)
    assert abs(again.score("We go on")["nats"] - fill.score("We go on")["nats"]) > 1e-2  # the adapters do something
