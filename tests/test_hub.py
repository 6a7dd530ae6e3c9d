"""Checkpoints for others: complete folders with their card, and the hub, of which only the calls are looked at."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from tiny import KINDS, tiny_checkpoint
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from textdiff.card import likelihood_kind, model_card, renamed
from textdiff.checkpoint import CONFIG_NAME, Checkpoint, DiffusionConfig, load
from textdiff.hub import came_with, push, save
from textdiff.recipe import Recipe

FACTS = {"steps": 7, "seconds": 3.5, "nats": 4.25, "error": 0.1, "bits_per_byte": 2.5}
FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", CONFIG_NAME, "README.md"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        save(tiny_checkpoint(kind, max_gap=4), folder / kind, kind)
    return {kind: folder / kind for kind in KINDS}


def parts(card: str) -> tuple[dict[str, Any], str]:
    """The front matter and the text of a card."""
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_complete(kind: str, folders: dict, tmp_path: Path) -> None:
    """What a pipeline saves opens again, by this library and by plain transformers, without trust; the same texts."""
    write = pipeline("text-diffusion", model=str(folders[kind]))
    write.save_pretrained(tmp_path / "again")
    names = {file.name for file in (tmp_path / "again").iterdir()}
    assert names >= FILES and not [name for name in names if name.endswith((".py", ".bin", ".pkl", ".pt"))]
    again = pipeline("text-diffusion", model=str(tmp_path / "again"))
    assert again("We ", seed=3, num_steps=2) == write("We ", seed=3, num_steps=2)
    fill = pipeline("text-infilling", model=str(tmp_path / "again"))
    assert fill("We [GAP]")[0]["generated_text"].startswith("We ")
    if kind == "parallel":
        plain = pipeline("fill-mask", model=str(tmp_path / "again"))
        assert {"score", "token_str"} <= plain("We [MASK].")[0].keys()
    else:
        model = {"autoregressive": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}[kind]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again")
        opened = model.from_pretrained(tmp_path / "again")
        assert opened.generate(
            **tokenizer("We", return_tensors="pt", return_token_type_ids=False), max_new_tokens=2
        ).shape


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_names_each_fact(kind: str) -> None:
    """Process, schedule, decoding, data, what was reached and of what kind it is, and how to load."""
    recipe = asdict(Recipe())
    config = DiffusionConfig(denoiser=kind, schedule="cosine", num_steps=5, rule="ranked")
    front, text = parts(model_card("me/model", config, recipe, FACTS))
    assert front["library_name"] == "textdiff" and {"text-diffusion", "infilling"} <= {*front["tags"]}
    assert front["pipeline_tag"] == {"parallel": "fill-mask"}.get(kind, "text-generation")
    facts = [
        f"| denoiser | {kind} |", "| process | deletion, cosine schedule |", "5 steps by the rule ranked, temperature 1",
        f"`{recipe['data']['dataset']}`, split `{recipe['data']['split']}`", "4.250 nats per token, 2.500 bits per byte",
        f"validation ({likelihood_kind(config)})", "| 7, 3.5 |", 'pipeline("text-infilling", model="me/model")',
        'pipeline("text-diffusion", model="me/model")', "import textdiff",
        {"parallel": "fill-mask", "autoregressive": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}[kind],
    ]  # fmt: skip
    assert [fact for fact in facts if fact not in text] == []
    front, text = parts(model_card("me/model", config))
    assert (
        "trained on" not in text and f"| likelihood | {likelihood_kind(config)}; `textdiff score` measures it |" in text
    )


def test_what_the_likelihood_is() -> None:
    """As `DiffusionConfig.likelihood` has it, for every process."""
    for name, config in {
        "deletion": {}, "masking": {}, "replacement": {}, "edit": {}, "encoder": {}, "deletion+masking": {},
    }.items():  # fmt: skip
        checkpoint = tiny_checkpoint("parallel", process=name, **config)
        assert (
            likelihood_kind(checkpoint.config) == checkpoint.config.likelihood(checkpoint.specials, checkpoint.model)[1]
        )
    assert likelihood_kind(DiffusionConfig(denoiser="autoregressive")) == "exact, in one step"


def test_models_that_keep_lengths_say_so() -> None:
    text = parts(model_card("m", DiffusionConfig(process="replacement")))[1]
    assert "gaps of known length" in text and "[GAP:2]" in text and "[GAP]" not in text


def test_a_card_that_is_there_is_kept(folders: dict, tmp_path: Path) -> None:
    """With the name that the model now has; other cards as they are."""
    checkpoint = load(folders["parallel"])
    assert came_with(str(folders["parallel"])).startswith("---") and came_with(str(tmp_path)) == came_with("") == ""
    (folders["parallel"] / "README.md").write_text(came_with(str(folders["parallel"])) + "\nMine, model.\n")
    save(checkpoint, tmp_path / "copy", "me/copy")
    card = came_with(str(tmp_path / "copy"))
    assert card.endswith("\nMine, model.\n") and "\n# me/copy\n" in card and card.count('model="me/copy"') == 2
    assert 'model="parallel"' not in card and "\n# parallel\n" not in card
    assert renamed("# parallel\nWords.", "x") == "# parallel\nWords."


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the hub was asked, with the files that an upload found."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class Address(str):
        repo_id = "me/model"

    class Api:
        def __init__(self, token: Any = None) -> None:
            asked.append(("token", {"token": token}))

        def create_repo(self, repo_id: str, **options: Any) -> Address:
            asked.append(("create", {"repo_id": repo_id, **options}))
            return Address("https://hub/me/model")

        def upload_folder(self, *, folder_path: str, **options: Any) -> SimpleNamespace:
            files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
            asked.append(("upload", {"folder": Path(folder_path), "files": files, **options}))
            return SimpleNamespace()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return asked


def test_push(hub: list, folders: dict, tmp_path: Path) -> None:
    """The repository is made, then everything is uploaded with a card of the full name; nothing stays behind."""
    address = push(
        partial(save, load(folders["autoregressive"])), "model", private=True, token="t", commit_message="First"
    )
    assert address == "https://hub/me/model"
    assert [name for name, _ in hub] == ["token", "create", "upload"] and hub[0][1] == {"token": "t"}
    assert hub[1][1] == {"repo_id": "model", "private": True, "exist_ok": True}
    upload = hub[2][1]
    assert upload["repo_id"] == "me/model" and upload["commit_message"] == "First" and not upload["create_pr"]
    assert {*upload["files"]} >= FILES and not upload["folder"].exists()
    assert b'model="me/model"' in upload["files"]["README.md"]
    for name, content in upload["files"].items():
        (tmp_path / name).write_bytes(content)
    assert isinstance(load(tmp_path), Checkpoint)


def test_pipelines_push(hub: list, folders: dict, tmp_path: Path) -> None:
    write = pipeline("text-diffusion", model=str(folders["seq2seq"]))
    assert write.push_to_hub("me/model") == "https://hub/me/model"
    write.save_pretrained(tmp_path / "model", push_to_hub=True, private=True)
    assert [name for name, _ in hub] == ["token", "create", "upload"] * 2
    assert hub[4][1] == {"repo_id": "model", "private": True, "exist_ok": True} and (tmp_path / "model").is_dir()


def test_bad_input(hub: list, folders: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a/b/c' is no name of a repository; write NAME or USER/NAME"):
        push(partial(save, load(folders["parallel"])), "a/b/c")
    with pytest.raises(ValueError, match="unknown option colour"):
        pipeline("text-diffusion", model=str(folders["parallel"])).save_pretrained(tmp_path / "x", colour=1)
    assert hub == []
