"""Images through the same trainer and commands: data and its errors, training, checkpoint, resume, what is drawn, scores."""

import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from textdiff.checkpoint import kind_of, rule_of
from textdiff.cli import main
from textdiff.images import Images
from textdiff.keys import Key
from textdiff.manifest import MANIFEST
from textdiff.pictures.checkpoint import PictureCheckpoint, PictureConfig, PictureDiffusion, load_checkpoint
from textdiff.pictures.data import PicturesConfig, load_pictures
from textdiff.pictures.recipe import PictureModelConfig, PictureRecipe, measure
from textdiff.pictures.samples import ENLARGED, GAP, in_turn, paint, states
from textdiff.pictures.scores import frechet, learn
from textdiff.report import read_log
from textdiff.trainer import Interrupted, TrainerConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOT = Path(__file__).resolve().parent.parent
CELL = 8 * ENLARGED + GAP


def recipe(out: Path, diffusion: dict | None = None, model: dict | None = None, data: dict | None = None,
           **trainer: Any) -> PictureRecipe:  # fmt: skip
    settings = {
        "steps": 3,
        "batch": 8,
        "log_every": 1,
        "measure_every": 0,
        "show_every": 0,
        "save_every": 0,
        "ema": 0.9,
    }
    return PictureRecipe(
        data=PicturesConfig(**data or {}),
        model=PictureModelConfig(**{"channels": (8, 16), **(model or {})}),
        diffusion=PictureDiffusion(**{"num_steps": 2, **(diffusion or {})}),
        trainer=TrainerConfig(out=str(out), **settings | trainer),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two image models, hot and cold, trained for three steps; and data sets."""
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        recipe(folder / "hot").build().run()
        AcceleratorState._reset_state(reset_partial_state=True)
        cold = {"process": "blur", "predict": "x0", "loss": "l1", "noise": 0.05, "rule": "fresh", "highest": 8.0}
        made = recipe(folder / "cold", cold)
        made.variance = 4
        made.build().run()
        write_idx(folder / "idx")
        yield folder


def write_idx(folder: Path, label: int = 2) -> None:
    """Six images of 8 x 8 in each split, of the classes 0 to 2, as the files of Fashion-MNIST."""
    folder.mkdir()
    for split in ("train", "t10k"):
        values = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
        labels = np.array([0, 1, 2, 0, 1, label], dtype=np.uint8)
        for name, array in (("images-idx3", values), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def run(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    monkeypatch.chdir(world)
    monkeypatch.setenv("COLUMNS", "300")

    def call(*words: str) -> tuple[int, str]:
        code = main(words)
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return call


# ----------------------------------------------------------------------------------------------------------------- data


def test_the_digits_are_split_once_and_for_all() -> None:
    """1,437 and 360, every class in both; 0 is -1 and 16 is 1; no image of one split is in the other."""
    train, test = (load_pictures(PicturesConfig(), split) for split in ("train", "test"))
    assert train.values.shape == (1437, 1, 8, 8) and test.values.shape == (360, 1, 8, 8)
    assert train.names == test.names == tuple("0123456789")
    assert all(abs(int((test.label == digit).sum()) - 36) <= 1 for digit in range(10))
    batch = train.batch()
    assert batch.pixels.dtype == torch.float32 and batch.label.dtype == torch.int64
    assert float(batch.pixels.min()) == -1 and float(batch.pixels.max()) == 1
    assert len(torch.cat([train.values, test.values]).unique(dim=0)) == 1797  # all of them differ
    grey, spread = train.greys()
    assert grey == pytest.approx([float(batch.pixels.mean())], abs=1e-6)
    assert spread == pytest.approx([float(batch.pixels.mean((1, 2, 3)).std(correction=0))], abs=1e-6)


def test_a_folder_of_idx_files(world: Path) -> None:
    found = load_pictures(PicturesConfig(str(world / "idx")), "test")
    expected = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    assert torch.equal(found.values[:, 0], torch.from_numpy(expected)) and found.label.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.names == ("0", "1", "2") and found.top == 255
    wide = load_pictures(PicturesConfig(str(world / "idx"), size=4, mode="RGB", label_column=None), "test")
    assert wide.values.shape == (6, 3, 4, 4) and wide.names == () and wide.label.tolist() == [-1] * 6


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: (f / "train-labels-idx1-ubyte.gz").unlink(), "no file train-labels-idx1-ubyte or"),
        (lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip"), "is cut short or damaged"),
        (
            lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes((f / "t10k-labels-idx1-ubyte.gz").read_bytes()),
            "no IDX file of bytes in 3 dimensions",
        ),
        (
            lambda f: (f / "train-labels-idx1-ubyte.gz").write_bytes(
                gzip.compress(gzip.decompress((f / "train-labels-idx1-ubyte.gz").read_bytes())[:-1])
            ),
            r"says it holds \[6\], but has 5 values",
        ),
    ],
)
def test_broken_idx_files(change: Any, named: str, tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    change(tmp_path / "idx")
    with pytest.raises(ValueError, match=named):
        load_pictures(PicturesConfig(str(tmp_path / "idx")), "train")


def picture(mode: str, size: tuple[int, int], value: int) -> Image.Image:
    return Image.new(mode, size, value if mode == "L" else (value,) * len(mode))


def hugging_face(folder: Path, images: list[Image.Image], labels: list[int]) -> str:
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    folder.mkdir()
    datasets.Dataset.from_dict({"picture": images, "kind": labels}, features=features).to_parquet(
        str(folder / "train.parquet")
    )
    return str(folder)


def test_a_hugging_face_data_set(world: Path, tmp_path: Path) -> None:
    images = [picture("RGB", (6, 4), 0), picture("RGB", (6, 4), 255)]
    where = hugging_face(tmp_path / "set", images, [1, 0])
    columns = {"image_column": "picture", "label_column": "kind"}
    found = load_pictures(PicturesConfig(where, **columns), "train")
    assert found.values.shape == (2, 3, 4, 6) and found.names == ("cat", "dog") and found.label.tolist() == [1, 0]
    assert found.batch([1]).pixels.unique().tolist() == [1.0] and found.batch([0]).pixels.unique().tolist() == [-1.0]
    assert load_pictures(PicturesConfig(where, **columns, size=2, mode="L"), "train").values.shape == (2, 1, 2, 2)
    with pytest.raises(ValueError, match="no column 'image' in .*set data.image_column to one of picture, kind"):
        load_pictures(PicturesConfig(where), "train")
    with pytest.raises(ValueError, match="not an image; set data.image_column"):
        load_pictures(PicturesConfig(where, image_column="kind", label_column=None), "train")


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [
        ([("L", (4, 4)), ("L", (5, 4))], [0, 1], "image 1 of .* is 5 x 4 .* the first is 4 x 4 .*give data.size"),
        ([("L", (4, 4)), ("RGB", (4, 4))], [0, 1], "image 1 .*with 3 channels.*give data.mode"),
        ([("RGBA", (4, 4))], [0], "image 0 of .* is of mode RGBA; give data.mode L"),
        ([("L", (4, 4))], [-1], "label -1 at image 0 of 'train', which is none of its 2 classes"),
    ],
)
def test_images_that_do_not_fit(images: list, labels: list, named: str, world: Path, tmp_path: Path) -> None:
    where = hugging_face(tmp_path / "set", [picture(mode, size, 9) for mode, size in images], labels)
    with pytest.raises(ValueError, match=named) as caught:
        load_pictures(PicturesConfig(where, image_column="picture", label_column="kind"), "train")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- training


def test_trained_and_loaded(world: Path) -> None:
    """A stock diffusers model, a configuration that reads back the same, a card; the report speaks of images."""
    checkpoint = load_checkpoint(world / "cold")
    stock = UNet2DModel.from_pretrained(world / "cold")
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, checkpoint.model.state_dict()[name]), name
    config = checkpoint.config
    assert config.names == list("0123456789") and len(config.variance) == 5 and kind_of(world / "cold") == "image"
    checkpoint.save(world / "again")
    assert PictureConfig.read(world / "again" / "diffusion_config.json") == config
    assert 'UNet2DModel.from_pretrained("' in (world / "cold" / "README.md").read_text()
    assert {"loss.png", "samples.png", "model_index.json"} & {file.name for file in (world / "cold").iterdir()} == {
        "loss.png",
        "samples.png",
    }
    lines = read_log(world / "cold" / "log.jsonl")
    assert "values_per_s" in lines[0] and "tokens_per_s" not in lines[0]
    assert {"validation/loss", "validation/squared_error"} <= lines[-2].keys()
    assert lines[-1]["samples"][0].startswith(f"{world / 'cold' / 'samples.png'}: 50 samples")


def test_resume_is_exact(tmp_path: Path) -> None:
    """Stopped at step 2 of 4 and resumed: the same bits as the run that was never stopped."""
    recipe(tmp_path / "whole", steps=4).build().run()
    trainer = recipe(tmp_path / "run", steps=4).build()
    feed = trainer.job.feed

    def stopped(start: int, rank: int, world: int) -> Iterator[list]:
        for number, examples in enumerate(feed(start, rank, world), start + 1):
            trainer.stop = number == 2
            yield examples

    trainer.job.feed = stopped
    with pytest.raises(Interrupted, match="stopped at step 2"):
        trainer.run()
    recipe(tmp_path / "run", steps=4, resume=True).build().run()
    one, other = (UNet2DModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


FINGERPRINTS = """
import diffusers, tiny, transformers
from textdiff.resuming import fingerprint_of_model, fingerprint_of_tokenizer
made = tiny.tiny_checkpoint("parallel")
print(fingerprint_of_tokenizer(made.tokenizer), fingerprint_of_model(made.model))
small = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)
print(fingerprint_of_model(transformers.GPT2LMHeadModel(small)))
print(fingerprint_of_model(diffusers.UNet2DModel(8, block_out_channels=(8, 8, 8, 8), norm_num_groups=4)))
print(fingerprint_of_model(diffusers.DiTTransformer2DModel(1, 8, 4, num_layers=1, sample_size=8, patch_size=2)))
"""


def test_a_run_is_known_again_in_another_process() -> None:
    """What a state records of models and tokenizers is the same in every process: `hash` differs, and so do sets."""
    found = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "tests")}
        run_ = subprocess.run(
            [sys.executable, "-c", FINGERPRINTS], env=environment, capture_output=True, text=True, check=True
        )
        found.add(run_.stdout)
    assert len(found) == 1 and len(found.pop().splitlines()) == 4


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """One or two micro-batches: the same loss and norm of the gradient, up to the rounding of float32 (1e-5)."""
    lines = []
    for count in (1, 2):
        recipe(tmp_path / str(count), accumulate=count, steps=1).build().run()
        lines.append(read_log(tmp_path / str(count) / "log.jsonl")[0])
    for name in ("loss", "grad_norm"):
        assert lines[0][name] == pytest.approx(lines[1][name], rel=1e-5)


def test_a_perfect_guess_has_no_error() -> None:
    """measure: a model that says nothing (0) for v has the squared error of A x_t, one that is right has none."""
    made = recipe(Path("unused"), {"predict": "x0", "process": "vp"})
    data = made.prepare()
    udm, held = made.make_udm(made.make_model(data), data), data.held.batch(slice(8))
    udm.denoiser.ask = lambda model, pixels, t, label: held.pixels
    assert measure(held, udm) == {"loss": 0.0, "squared_error": 0.0}
    udm.denoiser.ask = lambda model, pixels, t, label: torch.zeros_like(pixels)
    found = measure(held, udm)
    assert found["squared_error"] == pytest.approx(float(held.pixels.square().mean()), rel=1e-5)
    assert found["loss"] == pytest.approx(found["squared_error"] / 2, rel=1e-5)


@pytest.mark.parametrize("process", ["ve", "pixelation", "pixel-mask"])
def test_other_processes_train(process: str, tmp_path: Path) -> None:
    predict = "v" if process == "ve" else "x0"
    figures = recipe(tmp_path / "run", {"process": process, "predict": predict}, steps=1).build().run()
    assert all(math.isfinite(value) and value > 0 for value in figures.values())


def test_a_transformer_trains(tmp_path: Path) -> None:
    made = recipe(tmp_path / "run", model={"family": "dit", "channels": (32,), "layers": 1}, steps=1)
    made.build().run()
    assert load_checkpoint(tmp_path / "run").config.model == "DiTTransformer2DModel"
    made = recipe(tmp_path / "more", model={"path": str(tmp_path / "run")}, steps=1)
    assert type(made.make_model(made.prepare())).__name__ == "DiTTransformer2DModel"


# --------------------------------------------------------------------------------------------------------------- images


def test_generate_writes_pictures(run: Any, world: Path) -> None:
    """Rows are classes, ten columns; the strip has two rows per image; the same seed draws the same."""
    code, said = run("generate", "hot", "--out", "out", "--rule", "sde:1")
    assert code == 0 and "wrote out/grid.png (100 images, 2 steps, rule sde:1)" in said
    assert Image.open("out/grid.png").size == (10 * CELL, 10 * CELL)
    assert Image.open("out/strip.png").size == (3 * CELL, 8 * CELL + 3 * 3 * GAP)
    code, said = run("generate", "cold", "--label", "3", "--num-return-sequences", "12", "--out", "b", "--json")
    assert code == 0 and Image.open("b/grid.png").size == (10 * CELL, 2 * CELL)
    first = Path("b/grid.png").read_bytes()
    run("generate", "cold", "--label", "3", "--num-return-sequences", "12", "--out", "b")
    assert Path("b/grid.png").read_bytes() == first
    run("generate", "cold", "--label", "3", "--num-return-sequences", "12", "--out", "b", "--seed", "1")
    assert Path("b/grid.png").read_bytes() != first


def test_generate_writes_over_its_own_pictures_alone(run: Any, world: Path) -> None:
    """A picture of the user's, or what is no picture, is refused before anything is drawn."""
    words = ("generate", "hot", "--num-return-sequences", "1", "--out", "mine")
    for name, make in {
        "grid.png": lambda path: picture("L", (4, 4), 9).save(path),
        "strip.png": lambda path: path.write_text("no picture"),
    }.items():
        (world / "mine").mkdir(exist_ok=True)
        file = world / "mine" / name
        make(file)
        before = file.read_bytes()
        code, said = run(*words)
        assert (
            code == 2
            and f"mine/{name} was not written by textdiff, or was changed since, and would be replaced; move it" in said
        )
        assert file.read_bytes() == before and [entry.name for entry in (world / "mine").iterdir()] == [name]
        file.unlink()
    assert run(*words)[0] == 0 and run(*words)[0] == 0
    grid = world / "mine" / "grid.png"
    with Image.open(grid) as picture_:  # drawn over by the user, with a program that keeps what is said in it
        said_in, changed = PngInfo(), picture_.copy()
        for name, value in picture_.info.items():
            said_in.add_text(name, value)
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(grid, pnginfo=said_in)
    before = grid.read_bytes()
    code, said = run(*words)
    assert code == 2 and "mine/grid.png was not written by textdiff" in said and grid.read_bytes() == before
    for out, named in {
        "hot/model.txt": "",
        "idx/train-labels-idx1-ubyte.gz": "is not a folder",
        "": "--out is empty",
    }.items():
        if named:
            code, said = run(*words[:-1], out)
            assert code == 2 and named in said


def test_a_run_on_images_keeps_what_is_there(tmp_path: Path) -> None:
    """The same folder, states, recipe and refusals as of a run on texts."""
    (tmp_path / "samples.png").write_text("mine")
    with pytest.raises(ValueError, match="samples.png was not written by a run, so it is not written over"):
        recipe(tmp_path).prepare()
    out = tmp_path / "run"
    recipe(out, steps=1).build().run()
    assert (out / "recipe.yaml").read_text().count("kind: image") == 1
    with pytest.raises(ValueError, match="already holds a run"):
        recipe(out).prepare()
    with pytest.raises(ValueError, match="model.channels 8 16, not 8 8; give --model.channels 8 16"):
        recipe(out, model={"channels": (8, 8)}, resume=True).prepare()
    write_idx(tmp_path / "idx")
    with pytest.raises(ValueError, match="was trained with other images: 1,437 images, .* then, 6 images, .* now"):
        recipe(out, data={"dataset": str(tmp_path / "idx")}, resume=True, steps=2).build().run()
    trainer = recipe(out, resume=True, steps=2).build()
    trainer.job.measure = lambda udm: 1 / 0  # type: ignore[assignment, return-value]
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.run()
    assert (
        caught.value.__notes__[0].startswith("Trained to step 2; saved")
        and "not measured" in (out / "README.md").read_text()
    )


def test_images_that_cannot_be_opened(world: Path, tmp_path: Path) -> None:
    """A file that is no image, a null, and a split that is not there: in one line, the last before images are read."""
    folder = tmp_path / "set"
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    for name, rows in {"broken": [{"bytes": b"no image", "path": None}], "null": [None]}.items():
        datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(str(folder / f"{name}.parquet"))
        config = PicturesConfig(str(folder / f"{name}.parquet"), label_column=None)
        with pytest.raises(
            ValueError, match="image 0 of .* cannot be read|row 0 of 'image' .* is of type NoneType"
        ) as caught:
            load_pictures(config, "train")
        assert "\n" not in str(caught.value)
    made = recipe(tmp_path / "run", data={"dataset": str(folder / "null.parquet"), "label_column": None})
    with pytest.raises(ValueError, match="no split 'test' in .*: it has train"):
        made.prepare()


def test_the_strip_ends_in_the_sample(world: Path) -> None:
    """The states are those of the painted images, whatever else is painted beside them."""
    checkpoint = load_checkpoint(world / "hot")
    denoiser, options = (
        checkpoint.config.build_denoiser(checkpoint.model),
        {"steps": 3, "seed": 5, "rule": rule_of("ode")},
    )
    painted = paint(checkpoint.config, denoiser, in_turn(6, 10), **options)
    found = states(checkpoint.config, denoiser, in_turn(2, 10), **options)
    assert [float(step.s[0]) for step in found] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert torch.allclose(found[-1].x.pixels, painted.pixels[:2], atol=1e-5)


def test_cold_processes_start_from_drawn_greys(world: Path) -> None:
    """Means of 4,000 starts: mean and deviation within 5 standard errors of the images'; constant up to the noise."""
    config = load_checkpoint(world / "cold").config
    labels = torch.zeros(4000, dtype=torch.int64)
    config.diffusion.noise = 0.0
    still = config.start(labels, Key.of(0, 4000)).pixels
    assert float(still.flatten(1).std(1).max()) < 1e-6
    means = still.mean((1, 2, 3)).double()
    assert abs(float(means.mean()) - config.grey[0]) < 5 * config.spread[0] / 4000**0.5
    assert abs(float(means.std()) - config.spread[0]) < 5 * config.spread[0] / 8000**0.5
    config.diffusion.noise = 0.05
    noisy = config.start(labels, Key.of(0, 4000)).pixels
    assert float((noisy - still).std()) == pytest.approx(0.05, rel=0.02)


# --------------------------------------------------------------------------------------------------------------- scores


def test_frechet() -> None:
    """Of N(0, 1)^3 and N(m, 4)^3 it is |m|^2 + 3: 200,000 draws, tolerance 0.05. Of a set and itself it is 0."""
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(200_000, 3, generator=draw, dtype=torch.float64)
    other = 2 * torch.randn(200_000, 3, generator=draw, dtype=torch.float64) + torch.tensor([1.0, 0, 2])
    assert frechet(one, other) == pytest.approx(5 + 3, abs=0.05)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_the_judge_knows_real_digits_and_not_noise() -> None:
    """Real test digits are named in 95 of 100 cases and lie near the training ones; noise is neither."""
    train, test = (load_pictures(PicturesConfig(), split) for split in ("train", "test"))
    judge = learn(train, test)
    real = judge.figures(judge.test, judge.test_label)
    assert real["recognised"] >= 0.95 and real["frechet"] < 1e-6
    noise = torch.rand(360, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    false = judge.figures(noise, judge.test_label)
    assert false["recognised"] < 0.3 and false["frechet"] > 5 and false["nearest"] > 2 * real["nearest"]
    copies = judge.figures(judge.train[:100], train.label[:100])
    assert copies["nearest"] < 1e-3


def test_evaluate(run: Any) -> None:
    """A row of real images, then one per model and rule; as JSON the same rows."""
    words = ("evaluate", "hot", "cold", "--samples", "40", "--rules", "posterior@2", "--rules", "fresh@1")
    code, said = run(*words)
    assert code == 0 and said.count("| hot |") == said.count("| cold |") == 2 and "| real images |" in said
    code, said = run(*words, "--json")
    rows = json.JSONDecoder().raw_decode(said)[0]
    assert [row["model"] for row in rows] == ["real images", "hot", "hot", "cold", "cold"]
    assert rows[0]["recognised"] >= 0.95 and rows[0]["frechet"] < rows[1]["frechet"]


# ------------------------------------------------------------------------------------------------------------ bad input

IMAGE = ("train", "--kind", "image", "--out", "new")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train", "--kind", "sound"), ["unknown kind 'sound'", "text, image"]),
        (("train", "--kind"), ["unknown kind ''"]),
        ((*IMAGE, "--diffusion.process", "frost"), ["frost", "pixelation"]),
        ((*IMAGE, "--diffusion.process", "blur"), ["predict eps needs a Gaussian process, blur is none; give x0"]),
        ((*IMAGE, "--diffusion.noise", "0.1"), ["noise 0.1 is for cold processes"]),
        ((*IMAGE, "--diffusion.highest", "9"), ["highest 9.0 is of ve and blur, not of vp"]),
        ((*IMAGE, "--diffusion.process", "ve", "--diffusion.highest", "9"), ["highest 9.0 leaves images visible"]),
        ((*IMAGE, "--diffusion.rule", "ranked"), ["has no noise per token to deal out"]),
        ((*IMAGE, "--diffusion.rule", "sde:x"), ["rule 'sde:x': 'x' is not a number", "write sde:ETA"]),
        (
            (*IMAGE, "--diffusion.process", "blur", "--diffusion.predict", "x0", "--diffusion.rule", "ode"),
            ["Blur is no Gaussian process, so it has no SDE"],
        ),
        ((*IMAGE, "--trainer.compile"), ["trainer.compile is for models of transformers"]),
        ((*IMAGE, "--diffusion.num-steps", "0"), ["diffusion.num_steps must be a whole number from 1", "got 0"]),
        ((*IMAGE, "--dataset", "nowhere/"), ["no folder nowhere/"]),
        ((*IMAGE, "--data.split", "dev"), ["no split 'dev' in digits: it has train, test"]),
        ((*IMAGE, "--model.channels", "8", "8", "8", "8", "8"), ["8 x 8 cannot be halved 4 times", "data.size"]),
        ((*IMAGE, "--model.channels", "12"), ["not all multiples of 8"]),
        ((*IMAGE, "--model.family", "dit", "--data.label-column", "None"), ["it needs classes"]),
        ((*IMAGE, "--model.path", "idx"), ["idx is no model of pixels"]),
        ((*IMAGE, "--dataset", "idx", "--model.path", "hot", "--data.size", "4"), ["(1, 4, 4)", "(1, 8, 8)"]),
        (("generate", "hot", "--label", "x"), ["no class 'x'", "0, 1, 2"]),
        (("generate", "hot", "--prompt", "My"), ["--prompt", "model of images"]),
        (("generate", "hot", "--temperature", "0"), ["temperature 0.0 is for texts"]),
        (("generate", "hot", "--num-steps", "0"), ["num_steps must be a whole number from 1", "got 0"]),
        (
            ("generate", "hot", "--num-return-sequences", "0"),
            ["num_return_sequences must be a whole number from 1 to", "got 0"],
        ),
        (
            ("generate", "hot", "--num-return-sequences", "1000000000"),
            ["num_return_sequences must be a whole number from 1 to", "got 1000000000"],
        ),
        (
            ("evaluate", "hot", "--samples", "1000000000"),
            ["samples must be a whole number from 1 to", "got 1000000000"],
        ),
        (("evaluate", "hot", "--gaps", "3"), ["--gaps 3: the models are of images; leave it out"]),
        (("evaluate", "hot", "--text-column", "x"), ["--text-column x: the models are of images; leave it out"]),
        (("generate", "cold", "--rule", "sde:1"), ["Blur is no Gaussian process"]),
        (("infill", "hot", "a [GAP]"), ["is of a model of images, not of texts"]),
        (("evaluate", "hot", "--rules", "posterior"), ["write RULE@STEPS, such as posterior@50"]),
        (("evaluate", "hot", "--dataset", "idx"), ["3 classes, 6 images", "more than 32"]),
        (("evaluate", "hot", "--samples", "9"), ["samples 9 are too few"]),
    ],
    ids=lambda value: " ".join(value)[-50:] if isinstance(value, tuple) else "",
)
def test_bad_input(words: tuple[str, ...], named: list[str], run: Any, world: Path) -> None:
    """Exit code 2, the value and the remedy, before anything is trained or written."""
    code, said = run(*words)
    assert code == 2, said
    assert all(part in said for part in named), said
    assert "Traceback" not in said and not (world / "new").exists() and not (world / "samples").exists()


def test_labels_of_the_other_split_out_of_range(tmp_path: Path) -> None:
    """A class that the training split has not is found out before training."""
    write_idx(tmp_path / "idx", label=1)
    other = np.array([0, 1, 7, 0, 1, 2], dtype=np.uint8)
    head = bytes((0, 0, 8, 1)) + (6).to_bytes(4, "big")
    (tmp_path / "idx" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + other.tobytes()))
    with pytest.raises(ValueError, match="label 7 of 'test' is none of the 3 classes of 'train'"):
        recipe(tmp_path / "run", data={"dataset": str(tmp_path / "idx")}).build()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"colour": 1}, "unknown keys colour"),
        ({"kind": "text"}, "is of a model of texts, not of images"),
        ({"model": "Evil"}, "unknown model 'Evil'"),
        ({"grey": []}, "grey must have a number for each of the 1 channels"),
        ({"height": 0}, "height must be a whole number of at least 1; got 0"),
        ({"diffusion": None}, "no section 'diffusion'"),
        ({"diffusion": {"process": "blur"}}, "predict eps needs a Gaussian process"),
        ({"diffusion": {"process": "frost"}}, "diffusion.process must be one of vp, ve.*; got 'frost'"),
        ({"diffusion": {"schedule": "linear", "process": "ve"}}, "schedule linear is of vp"),
        ({"diffusion": {"clip": 1}}, "diffusion.clip must be True or False; got 1"),
        ({"format": 9}, "not of format 1"),
    ],
)
def test_a_foreign_configuration(changes: dict, named: str, world: Path, tmp_path: Path) -> None:
    values = json.loads((world / "hot" / "diffusion_config.json").read_text())
    (tmp_path / "file.json").write_text(json.dumps(values | changes))
    with pytest.raises(ValueError, match=named) as caught:
        PictureConfig.read(tmp_path / "file.json")
    assert "\n" not in str(caught.value)


def test_weights_that_are_cut_short(world: Path, tmp_path: Path) -> None:
    checkpoint: PictureCheckpoint = load_checkpoint(world / "hot")
    checkpoint.save(tmp_path / "short")
    weights = tmp_path / "short" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not the file that was saved"):
        load_checkpoint(tmp_path / "short")
    (tmp_path / "short" / MANIFEST).unlink()
    with pytest.raises(ValueError, match="short is cut short or damaged"):
        load_checkpoint(tmp_path / "short")


# ------------------------------------------------------------------------------------------------------------ the whole


@pytest.mark.slow
def test_train_py_generate_and_evaluate(tmp_path: Path) -> None:
    """`train.py` with the embedded file, in a process of its own; what it saves is drawn and recognised above chance.

    150 steps of batch 64; 200 samples. Chance is 0.1, its standard error 0.02: the bound 0.25 lies 7 of them above it.
    """
    words = [
        "--config",
        "data/digits.yaml",
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "150",
        "--trainer.show-every",
        "0",
    ]
    result = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "UNet2DModel" in result.stdout and "1,437 images of 1 x 8 x 8, 10 classes" in result.stdout
    assert main(["generate", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--num-steps", "10"]) == 0
    checkpoint = load_checkpoint(tmp_path / "run")
    config, labels = checkpoint.config, in_turn(200, 10)
    denoiser = config.build_denoiser(checkpoint.model)
    painted: Images = paint(config, denoiser, labels, steps=10, rule=rule_of("posterior"), seed=0)
    judge = learn(*(load_pictures(PicturesConfig(), split) for split in ("train", "test")))
    assert judge.figures(painted.pixels.flatten(1), labels)["recognised"] > 0.25
