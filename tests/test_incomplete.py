"""A model that lacks weights is refused: transformers would draw them at random, and each run would fill by others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock import bert, gpt2
from transformers import AutoModelForMaskedLM, BertForSequenceClassification, BertLMHeadModel, BertModel, pipeline

from textdiff.cli import main
from textdiff.loading import IncompleteModel


def folder(make: Any, path: Path, keep: Any = None) -> Path:
    """A stock model; with `keep`, only the weights whose name it takes."""
    model, tokenizer = make()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    if keep is not None:
        file = path / "model.safetensors"
        weights = {name: value for name, value in load_file(file).items() if keep(name)}
        save_file(weights, file, {"format": "pt"})
    return path


def headless(cls: Any, path: Path) -> Path:
    """The same encoder with another head, or with none."""
    model, tokenizer = bert()
    cls(model.config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("cls", [BertForSequenceClassification, BertModel])
def test_a_model_without_a_head_is_refused(cls: Any, tmp_path: Path, capsys: Any) -> None:
    path = headless(cls, tmp_path / "model")
    for task in ("text-infilling", "text-diffusion"):
        with pytest.raises(ValueError, match=f"{cls.__name__} cannot fill gaps: it has no language-model head"):
            pipeline(task, model=str(path))
    for words in (["infill", str(path), "a [GAP:1] b"], ["generate", str(path)], ["score", str(path), "a b"]):
        assert main(words) == 2
        assert "it has no language-model head" in capsys.readouterr().err
    one, other = (AutoModelForMaskedLM.from_pretrained(path) for _ in range(2))  # what it would have been filled by
    heads = [model.cls.predictions.transform.dense.weight for model in (one, other)]
    assert not torch.equal(*heads)


@pytest.mark.parametrize("make", [bert, gpt2])
def test_a_model_with_too_few_weights_is_refused(make: Any, tmp_path: Path, capsys: Any) -> None:
    """By the first that it lacks; whole, it serves."""
    path = str(folder(make, tmp_path / "model"))
    assert pipeline("text-infilling", model=path)("a [GAP:1] b")
    cut = str(folder(make, tmp_path / "cut", keep=lambda name: ".0." not in name))
    for task in ("text-infilling", "text-diffusion"):
        with pytest.raises(
            IncompleteModel, match=r"lacks weights that \w+ needs, such as .*\.0\..*; copy the model again"
        ):
            pipeline(task, model=cut)
    assert main(["infill", cut, "a [GAP:1] b"]) == 2
    assert "lacks weights that" in capsys.readouterr().err


def test_a_decoder_opens_as_the_class_that_it_was_saved_as(tmp_path: Path) -> None:
    """Not as the masked model that has the same weights."""
    torch.manual_seed(0)
    model, tokenizer = bert()
    decoder = BertLMHeadModel(type(model.config)(**model.config.to_dict() | {"is_decoder": True})).eval()
    fill = pipeline("text-infilling", model=decoder, tokenizer=tokenizer)
    before = fill("a [GAP:1] b", seed=1)[0]["generated_text"]
    fill.save_pretrained(tmp_path / "model")
    for task in ("text-infilling", "text-diffusion"):
        assert type(pipeline(task, model=str(tmp_path / "model")).model) is BertLMHeadModel
    assert (
        pipeline("text-infilling", model=str(tmp_path / "model"))("a [GAP:1] b", seed=1)[0]["generated_text"] == before
    )


DAMAGES: dict[str, Any] = {
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:1000]),
    "empty": lambda file: file.write_bytes(b""),
    "a pointer of git-lfs": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "no pickle": lambda file: file.rename(file.with_name("pytorch_model.bin")).write_bytes(b"\x80\x04garbage"),
    "config.json is no JSON": lambda file: file.with_name("config.json").write_text("{"),
    "tokenizer.json is no JSON": lambda file: file.with_name("tokenizer.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line(damage: str, tmp_path: Path, capsys: Any) -> None:
    """Whatever safetensors, torch or tokenizers raise over it, and whoever opens the folder."""
    path = folder(bert, tmp_path / "model")
    DAMAGES[damage](path / "model.safetensors")
    (tmp_path / "texts.jsonl").write_text('{"text": "We the People go on."}\n' * 40)
    train = ["train", "--model-name-or-path", str(path), "--dataset", str(tmp_path / "texts.jsonl"), "--steps", "1"]
    train += ["--diffusion.process", "masking", "--data.context", "16", "--data.validation-split", "train"]
    train += ["--out", str(tmp_path / "run")]
    for words in (["infill", str(path), "a [GAP:1] b"], ["score", "--model", str(path), "a b"], train):
        assert main(words) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("textdiff ")]
        assert len(said) == 1 and str(path) in said[0]
    assert not (tmp_path / "run").exists()
