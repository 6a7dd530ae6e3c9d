"""Checkpoints: what is saved is what is loaded, plain transformers opens it, and what is damaged or foreign is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from tiny import KINDS, tiny_checkpoint

from textdiff.card import model_card
from textdiff.checkpoint import CONFIG_NAME, Checkpoint, load, rule_of
from textdiff.filling import infill
from textdiff.gaps import Gap, parse
from textdiff.manifest import MANIFEST
from textdiff.posterior import Decode
from textdiff.recipe import Recipe
from textdiff.tokenizer import encode


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Checkpoint, Path]]]:
    """A tiny checkpoint of each kind, and the folder it was saved to, with its card."""
    folder, result = tmp_path_factory.mktemp("checkpoints"), {}
    for kind in KINDS:
        checkpoint = tiny_checkpoint(kind, temperature=0.7, num_steps=2, max_gap=3)
        facts = {"steps": 3, "seconds": 1, "nats": 4.5, "bits_per_byte": 2.5}
        checkpoint.card = model_card(kind, checkpoint.config, asdict(Recipe()), facts)
        checkpoint.save(folder / kind)
        result[kind] = checkpoint, folder / kind
    yield result


@pytest.fixture
def damaged(made: dict, tmp_path: Path) -> Path:
    """A copy to damage."""
    folder = Path(shutil.copytree(made["parallel"][1], tmp_path / "model"))
    (folder / MANIFEST).unlink()  # as of an earlier version; what one says of damage is in test_manifest
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_is_saved(kind: str, made: dict) -> None:
    """Logits and samples bit for bit; configuration, vocabulary and special ids, too."""
    saved, folder = made[kind]
    loaded = load(folder)
    assert loaded.config == saved.config and loaded.specials == saved.specials
    ids = torch.tensor([encode(saved.tokenizer, "We the people.")])
    more = {"decoder_input_ids": ids} if kind == "seq2seq" else {}
    with torch.no_grad():
        assert torch.equal(saved.model(ids, **more).logits, loaded.model(ids, **more).logits)
    texts = [parse("We [GAP] on [GAP:2]."), [Gap()]]
    options = {"steps": 2, "samples": 3, "decode": Decode(max_gap=3)}
    assert infill(texts, **options, **saved.tools()) == infill(texts, **options, **loaded.tools())


@pytest.mark.parametrize("kind", KINDS)
def test_only_safetensors(kind: str, made: dict) -> None:
    files = {file.name for file in made[kind][1].iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", CONFIG_NAME, "README.md"} <= files
    assert {Path(name).suffix for name in files} == {".safetensors", ".json", ".md"}


def test_saving_again_replaces_and_leaves_other_files(made: dict, damaged: Path) -> None:
    (damaged / "notes.txt").write_text("mine")
    (damaged / "model.safetensors").write_bytes(b"old")
    made["parallel"][0].save(damaged)
    assert (damaged / "notes.txt").read_text() == "mine" and not any(path.is_dir() for path in damaged.iterdir())
    assert load(damaged).config == made["parallel"][0].config


PLAIN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
fill = pipeline("fill-mask", model=sys.argv[1])
found = fill("We the [MASK].", top_k=3)
ids = fill.tokenizer("We the [MASK].")["input_ids"]
assert ids[0] == fill.tokenizer.bos_token_id and ids[-2] == fill.tokenizer.mask_token_id
assert ids[1:-2] == fill.tokenizer("We the", add_special_tokens=False)["input_ids"]  # the space goes with the mask
assert len(found) == 3 and all(0 <= each["score"] <= 1 for each in found), found
causal = AutoModelForCausalLM.from_pretrained(sys.argv[2])
ids = AutoTokenizer.from_pretrained(sys.argv[2])("We the", return_tensors="pt")["input_ids"]
assert causal(ids).logits.isfinite().all()
assert not any(name.split(".")[0] == "textdiff" for name in sys.modules)
print("plain")
"""


def test_plain_transformers_opens_it(made: dict, tmp_path: Path) -> None:
    """In an interpreter that never imports textdiff: fill-mask on the parallel one, a causal model of the other."""
    folders = [str(made[kind][1]) for kind in ("parallel", "autoregressive")]
    result = subprocess.run([sys.executable, "-c", PLAIN, *folders], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.split()[-1] == "plain", result.stderr[-2000:]


def edit(folder: Path, **changes: object) -> None:
    """diffusion_config.json with some values changed."""
    values = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1, "size": 2}, "has unknown keys colour, size; remove them"),
        ({"num_steps": "1"}, "num_steps '1' is not int, as in 1"),
        ({"bidirectional": 1}, "bidirectional 1 is not bool"),
        ({"temperature": None}, "temperature None is not float"),
        ({"format": 2}, "is not of format 1; it needs another version of textdiff"),
        ({"denoiser": "diffuse"}, "unknown denoiser 'diffuse'; there are parallel, autoregressive, seq2seq"),
        ({"process": "blur"}, "unknown process 'blur'; there are masking, deletion, replacement"),
        ({"schedule": "steep"}, "unknown schedule 'steep'; there are linear, cosine"),
        ({"rule": "best"}, "unknown rule 'best'; there are fresh, posterior, partial:RHO"),
        ({"rule": "partial:2"}, "rule 'partial:2': rho 2.0 is not a share in .* write partial:RHO"),
        ({"num_steps": 0}, "num_steps must be a whole number from 1, .*; got 0"),
        ({"temperature": -1.0}, "temperature must be a number of at least 0; got -1.0"),
        ({"top_p": 0.0}, "top_p must be a number above 0, at most 1; got 0.0"),
        ({"max_gap": 0}, "max_gap must be a whole number of at least 1; got 0"),
    ],
)
def test_a_foreign_configuration(changes: dict, message: str, damaged: Path) -> None:
    """One line that names the file, the value and the remedy."""
    edit(damaged, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load(damaged)
    assert "\n" not in str(caught.value) and CONFIG_NAME in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"text"', "{}"])
def test_a_configuration_that_is_none(content: str, damaged: Path) -> None:
    (damaged / CONFIG_NAME).write_text(content)
    with pytest.raises(ValueError, match="is damaged .*copy the checkpoint again|is not of format 1") as caught:
        load(damaged)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_checkpoint(damaged: Path) -> None:
    (damaged / CONFIG_NAME).unlink()
    with pytest.raises(ValueError, match=f"has no {CONFIG_NAME}, so it is not a textdiff model; make one with"):
        load(damaged)
    with pytest.raises(ValueError, match="missing is not a folder; name the folder of a trained model"):
        load(damaged / "missing")
    with pytest.raises(ValueError, match="is not a folder"):
        load(damaged / "config.json")


def cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
def test_a_file_that_is_cut_short(name: str, share: float, damaged: Path) -> None:
    """Whatever is missing of whichever file: one line with the remedy, never other weights."""
    cut(damaged / name, share)
    with pytest.raises(ValueError, match="copy it again") as caught:
        load(damaged)
    assert "\n" not in str(caught.value) and str(damaged) in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_is_missing(name: str, damaged: Path) -> None:
    (damaged / name).unlink()
    with pytest.raises(ValueError) as caught:
        load(damaged)
    assert "\n" not in str(caught.value) and str(damaged) in str(caught.value)


def test_weights_that_are_missing_are_not_drawn_at_random(damaged: Path) -> None:
    """transformers would fill them in and go on."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(damaged / "model.safetensors")
    del tensors[next(name for name in tensors if "layers.0" in name)]
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights"):
        load(damaged)


def test_weights_of_another_shape(made: dict, damaged: Path) -> None:
    values = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(values | {"intermediate_size": 48}))
    with pytest.raises(ValueError, match="copy it again"):
        load(damaged)


@pytest.mark.parametrize("kind", KINDS)
def test_the_card(kind: str, made: dict) -> None:
    """README.md: YAML front matter, how to load it, what it reached."""
    _, front, text = (made[kind][1] / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["library_name"] == "textdiff" and "infilling" in data["tags"]
    assert 'pipeline("text-infilling"' in text and "2.500 bits per byte" in text and f"| denoiser | {kind} |" in text


def test_special_literals_stay_text_after_loading(made: dict) -> None:
    text = "[MASK] <|2|> [END] [FILL] [PAD] "
    for kind in KINDS:
        loaded = load(made[kind][1])
        assert not set(encode(loaded.tokenizer, text)) & set(loaded.specials.not_text)
        result = infill([[text, Gap.of(2)]], **loaded.tools())[0][0]
        assert result.text.startswith(text)


@pytest.mark.parametrize("name", ["fresh", "posterior", "ranked", "partial", "partial:0", "partial:1", "partial:0.3"])
def test_rules_by_name(name: str) -> None:
    assert callable(rule_of(name))
