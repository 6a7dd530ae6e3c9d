"""The training loop: what accumulation, interruption, damage, several processes and NaN must not change.

Every run is a tiny model on a toy corpus through `Recipe`, as a user would make it.
"""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import LlamaConfig, LlamaForCausalLM

from textdiff import launch, saving
from textdiff.checkpoint import Checkpoint, DiffusionConfig
from textdiff.cli import main as cli
from textdiff.config import parse
from textdiff.data import DataConfig, to_tokens, windows
from textdiff.keys import Key
from textdiff.models import SIZES, new_model
from textdiff.optim import optimizers
from textdiff.recipe import ModelConfig, Recipe
from textdiff.report import Report, read_log
from textdiff.tokenizer import load_tokenizer, specials, train_tokenizer
from textdiff.trainer import Interrupted, Trainer, TrainerConfig
from textdiff.udm import Loss

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOT = Path(__file__).resolve().parent.parent
WORDS = "we the people of a strong union go on with work and hope for peace in every town".split()
KINDS = ("autoregressive", "parallel")


def document(draw: random.Random) -> str:
    """Sentences of very different lengths."""
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))).capitalize() + "." for _ in range(6)]
    return " ".join(lines)


def save_model(kind: str, folder: Path, texts: list[str], **changes: Any) -> None:
    """A tiny checkpoint to start from; `changes` go into the model's config.json."""
    tokenizer = train_tokenizer(texts, 300, lengths=16)
    torch.manual_seed(0)
    model = new_model(kind, "tiny", specials(tokenizer), len(tokenizer), 64)
    Checkpoint(model, tokenizer, DiffusionConfig(denoiser=kind)).save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a toy corpus and tiny models, and the data sets' cache."""
    folder, draw = tmp_path_factory.mktemp("world"), random.Random(0)
    corpus = {"train": [document(draw) for _ in range(12)], "validation": [document(draw) for _ in range(2)]}
    (folder / "texts").mkdir()
    for split, texts in corpus.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "texts" / f"{split}.jsonl").write_text(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", replace(SIZES["tiny"], hidden=32, layers=2, heads=2, inner=64))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        for kind in KINDS:
            save_model(kind, folder / kind, corpus["train"])
        save_model("autoregressive", folder / "dropout", corpus["train"], attention_dropout=0.2)
        yield folder


def recipe(world: Path, out: Path, kind: str = "autoregressive", model: str = "", data: dict | None = None,
           **trainer: Any) -> Recipe:  # fmt: skip
    settings = {
        "steps": 3,
        "batch": 8,
        "lr": 1e-2,
        "log_every": 1,
        "measure_every": 0,
        "show_every": 0,
        "save_every": 0,
    }
    return Recipe(
        data=DataConfig(dataset=str(world / "texts"), context=16, shortest=4, **data or {}),
        model=ModelConfig(path=str(world / (model or kind))),
        diffusion=DiffusionConfig(denoiser=kind),
        trainer=TrainerConfig(out=str(out), **settings | trainer),
        examples=("We [GAP] on.",),
    )


def words_of(made: Recipe) -> list[str]:
    """The same run as command-line options."""
    words = [f"--data.dataset={made.data.dataset}", "--data.context=16", "--data.shortest=4"]
    words += [f"--model.path={made.model.path}", f"--diffusion.denoiser={made.diffusion.denoiser}"]
    for name in ("out", "steps", "batch", "lr", "log_every", "measure_every", "show_every", "save_every"):
        words.append(f"--trainer.{name.replace('_', '-')}={getattr(made.trainer, name)}")
    return [*words, "--examples", *made.examples]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.udm.state_dict().items()}


def trained(made: Recipe) -> dict[str, torch.Tensor]:
    """The weights at the end of the run."""
    trainer = made.build()
    trainer.run()
    return weights(trainer)


def newest(out: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    state, damaged = saving.newest_state(out / "states")
    assert state is not None and not damaged
    tensors, facts = saving.read_state(state)
    return tensors, {name: fact for name, fact in facts.items() if name != "elapsed"}


def assert_same_state(one: Path, other: Path) -> None:
    """Bit for bit: weights, optimizer, average, step."""
    (tensors, facts), (others, other_facts) = newest(one), newest(other)
    assert facts == other_facts and tensors.keys() == others.keys()
    for name, content in tensors.items():
        assert content.keys() == others[name].keys() and content
        assert all(torch.equal(value, others[name][key]) for key, value in content.items()), name


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The relative distance of two sets of weights."""
    apart = sum((one[name] - other[name]).double().square().sum() for name in one)
    return float((apart / sum(value.double().square().sum() for value in one.values())).sqrt())


def stop_at(trainer: Trainer, step: int) -> Trainer:
    """As if Ctrl-C came during this step."""
    feed = trainer.job.feed

    def fed(start: int, rank: int, world: int) -> Iterator[list]:
        for number, examples in enumerate(feed(start, rank, world), start + 1):
            trainer.stop = trainer.stop or number == step
            yield examples

    trainer.job.feed = fed
    return trainer


# ------------------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing(kind: str, world: Path, tmp_path: Path) -> None:
    """Micro-batches with different numbers of tokens weigh by their tokens: 1, 2 and 4 of them are the same step."""
    whole = trained(recipe(world, tmp_path / "1", kind))
    for count in (2, 4):
        assert distance(whole, trained(recipe(world, tmp_path / str(count), kind, accumulate=count))) <= 1e-5


def test_the_first_rates_are_no_larger_than_the_peak(world: Path, tmp_path: Path) -> None:
    """A short run has its warmup within its first step; that step must not be larger than lr."""
    recipe(world, tmp_path / "run", steps=3).build().run()
    rates = [line["rate"] for line in read_log(tmp_path / "run" / "log.jsonl") if "rate" in line]
    assert len(rates) == 3 and max(rates) == rates[0] == 1


# ------------------------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 steps with an average of the weights and dropout, saved every 4."""
    AcceleratorState._reset_state(reset_partial_state=True)
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    recipe(world, out, model="dropout", ema=0.9, steps=12, save_every=4, keep=3).build().run()
    return out


@pytest.mark.parametrize(
    "stops",
    [(5,), (3, 7), *(pytest.param(stops, marks=pytest.mark.slow) for stops in [(1,), (11,), (1, 2, 3), (4, 8)])],
)
def test_resume_is_exact(stops: tuple[int, ...], uninterrupted: Path, world: Path, tmp_path: Path) -> None:
    """Stopped at any step and resumed, again and again: the same bits as the run that was never stopped."""
    options = {"model": "dropout", "ema": 0.9, "steps": 12, "save_every": 4}
    for number, step in enumerate(stops):
        trainer = stop_at(recipe(world, tmp_path / "run", resume=number > 0, **options).build(), step)
        with pytest.raises(Interrupted, match=f"stopped at step {step}; saved .*--resume goes on"):
            trainer.run()
        assert newest(tmp_path / "run")[1]["step"] == step
    recipe(world, tmp_path / "run", resume=True, **options).build().run()
    assert_same_state(tmp_path / "run", uninterrupted)
    logged = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    expected = [line for line in read_log(uninterrupted / "log.jsonl") if "loss" in line]
    assert [(line["step"], line["loss"]) for line in logged] == [(line["step"], line["loss"]) for line in expected]


@pytest.mark.parametrize(("since", "counted_from"), [(0, 0.0), (6, 0.5)])
def test_the_time_left_is_that_of_this_run(since: int, counted_from: float, tmp_path: Path) -> None:
    """A run that is gone on from has done a part of the bar in no time."""
    main = SimpleNamespace(is_main_process=True, print=print)
    with Report(tmp_path, main, 1, since) as report:
        for step in (7, 8):
            report.step(step, 1.0, 1.0, 1.0, 1.0, (step - 1) / 12)
        assert report.bar.initial == counted_from and report.bar.n == pytest.approx(7 / 12)


def test_dropout_is_on(uninterrupted: Path, world: Path, tmp_path: Path) -> None:
    """Negative control: the runs above do drop."""
    recipe(world, tmp_path / "run", ema=0.9, steps=12).build().run()
    without, dropped = newest(tmp_path / "run")[0]["model"], newest(uninterrupted)[0]["model"]
    assert distance(without, dropped) > 1e-3


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    recipe(world, tmp_path / "run", model="dropout", ema=0.9, steps=12, resume=True).build().run()
    assert_same_state(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"seed": 1}, "trainer.seed 0, not 1; give --trainer.seed 0, or train it as another run"),
        ({"ema": 0.0}, "trainer.ema 0.9, not 0.0; give --trainer.ema 0.9"),
        ({"optimizer": "muon"}, "trainer.optimizer adamw, not muon"),
        ({"kind": "parallel", "model": "parallel"}, "diffusion.denoiser autoregressive, not parallel"),
        ({"data": {"packed": True}}, "data.packed False, not True; give --data.no-packed"),
        (
            {"batch": 4, "lr": 0.5},
            "trainer.batch 8, not 4, trainer.lr 0.01, not 0.5; give --trainer.batch 8 --trainer.lr",
        ),
        ({"model": "autoregressive"}, "trained with other model: LlamaForCausalLM .* then, LlamaForCausalLM .* now"),
    ],
)
def test_another_run_cannot_be_resumed(
    changes: dict, remedy: str, uninterrupted: Path, world: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    with pytest.raises(ValueError, match=remedy):
        recipe(
            world, tmp_path / "run", **{"model": "dropout", "ema": 0.9, "steps": 12, **changes}, resume=True
        ).build().run()
    assert_same_state(tmp_path / "run", uninterrupted)


def test_nothing_to_resume(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no training state to resume; leave --resume out"):
        recipe(world, tmp_path / "run", resume=True).build().run()
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A real SIGINT in the middle of step 2: exit code 130, the step is finished and saved, and the run resumes."""
    turn, words = Trainer._turn, words_of(recipe(world, tmp_path / "run", steps=4))

    def interrupted(trainer: Trainer, examples: list) -> None:
        if trainer.step == 1:
            signal.raise_signal(signal.SIGINT)
        turn(trainer, examples)

    monkeypatch.setattr(Trainer, "_turn", interrupted)
    assert cli(["train", *words]) == 130
    assert "stopped at step 2" in (said := capsys.readouterr().err) and "--resume" in said
    assert not (tmp_path / "run" / "config.json").exists()
    monkeypatch.undo()
    assert cli(["train", *words, "--trainer.resume"]) == 0
    recipe(world, tmp_path / "whole", steps=4).build().run()
    assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_a_signal_while_ranks_wait_for_each_other_is_not_lost(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after this step was agreed on, so the next one stops."""
    trainer = recipe(world, tmp_path / "run", steps=4).build()
    update = trainer._update

    def interrupted(count: float) -> float:
        if trainer.step == 0:
            signal.raise_signal(signal.SIGTERM)
        return update(count)

    monkeypatch.setattr(trainer, "_update", interrupted)
    with pytest.raises(Interrupted, match="stopped at step 2"):
        trainer.run()


# ------------------------------------------------------------------------------------------------------ states on disk


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.safetensors", truncate), ("optimizer0.safetensors", flip), ("facts.json", flip),
     ("manifest.json", Path.unlink), ("ema.safetensors", Path.unlink)],
)  # fmt: skip
def test_a_damaged_state_is_passed_over(name: str, damage: Any, uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    states = tmp_path / "run" / "states"
    damage(states / "step-00000012" / name)
    assert saving.newest_state(states) == (states / "step-00000008", [states / "step-00000012"])


def test_training_goes_on_from_the_state_before_the_damaged_one(
    uninterrupted: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    flip(tmp_path / "run" / "states" / "step-00000012" / "model.safetensors")
    recipe(world, tmp_path / "run", model="dropout", ema=0.9, steps=12, resume=True).build().run()
    assert "step-00000012 is damaged and was passed over" in capsys.readouterr().out
    assert_same_state(tmp_path / "run", uninterrupted)


def small(step: int) -> tuple[dict, dict]:
    return {"model": {"w": torch.full((4, 4), float(step))}}, {"step": step}


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """The manifest vouches for each byte; in the manifest itself a flip either shows or meant nothing (white space)."""
    state, draw = saving.write_state(tmp_path, 1, *small(1), keep=1), random.Random(0)
    for file in sorted(state.iterdir()):
        content = file.read_bytes()
        for place in draw.choices(range(len(content)), k=60):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
            harmless = file.name == saving.MANIFEST and content[place : place + 1].isspace()
            assert harmless or not saving.verify(state), (file.name, place)
        file.write_bytes(content)
    assert saving.verify(state)


def test_a_crash_before_the_rename_leaves_the_old_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with keep=1: the old state is deleted after the new one has its name. The debris goes with the next save."""
    saving.write_state(tmp_path, 1, *small(1), keep=1)

    def crash(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no space"):
        saving.write_state(tmp_path, 2, *small(2), keep=1)
    monkeypatch.undo()
    assert saving.newest_state(tmp_path) == (tmp_path / "step-00000001", [])
    assert [file.name for file in tmp_path.glob("step-*")] == ["step-00000001"]
    saving.write_state(tmp_path, 3, *small(3), keep=1)
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000003"]


def test_the_newest_states_are_kept(tmp_path: Path) -> None:
    """A damaged state of a step to come does not count, and goes."""
    for step in (1, 2, 9):
        saving.write_state(tmp_path, step, *small(step), keep=2)
    (tmp_path / "step-00000009" / "facts.json").unlink()
    for step in (3, 4):
        saving.write_state(tmp_path, step, *small(step), keep=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_no_pickle_is_written(uninterrupted: Path) -> None:
    states = {file.suffix for file in (uninterrupted / "states").rglob("*") if file.is_file()}
    assert states == {".safetensors", ".json"}
    others = [file for file in uninterrupted.iterdir() if file.is_file()]
    assert {file.suffix for file in others} == {".safetensors", ".json", ".jsonl", ".md", ".png", ".yaml"}


# ------------------------------------------------------------------------------------------- processes, launched wrongly


def environment(world: Path, **more: str) -> dict[str, str]:
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(world / "cache")}
    mine = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    return mine | settings | {"PYTHONPATH": str(ROOT)} | more


def launched(world: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment(world, **more), capture_output=True, text=True, timeout=300
    )


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def test_two_processes_are_one(world: Path, tmp_path: Path) -> None:
    """Two gloo processes make the same steps as one: the losses as logged, and the weights."""
    made = recipe(world, tmp_path / "two", steps=4)
    result = launched(world, *TORCHRUN, "train.py", *words_of(made), ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[:3000]
    whole = trained(recipe(world, tmp_path / "one", steps=4))
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    steps = [(line["loss"], other["loss"]) for line, other in zip(one, two, strict=True) if "loss" in line]
    assert len(steps) == 4
    assert all(abs(loss - other) <= 1e-5 * loss for loss, other in steps)
    for name, value in newest(tmp_path / "two")[0]["model"].items():
        assert torch.allclose(value, whole[name], rtol=0, atol=1e-5), name


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun on CPUs without ACCELERATE_USE_CPU: every process would train by itself."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    launch.check_launch(2)
    with pytest.raises(ValueError, match="2 processes were launched .*ACCELERATE_USE_CPU=true torchrun") as caught:
        launch.check_launch(1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["--num_processes", "2"], ["--num_processes=2"], ["--num-processes", "2"]])
def test_accelerate_launch_cpu_is_refused(words: list[str], tmp_path: Path) -> None:
    """It starts one process whatever it is asked for. Here a script of its name starts the child, as it would."""
    child = "from textdiff.launch import check_launch\ntry: check_launch()\nexcept ValueError as e: print(e)\n"
    (tmp_path / "child.py").write_text(child)
    parent = "import subprocess, sys\nsubprocess.run([sys.executable, sys.argv[-1]])\n"
    (tmp_path / "accelerate").write_text(parent)
    said = launched(
        tmp_path, str(tmp_path / "accelerate"), "launch", "--cpu", *words, str(tmp_path / "child.py")
    ).stdout
    if Path("/proc/self/cmdline").exists():
        assert "started one process, not 2; use ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2" in said
    alone = launched(tmp_path, str(tmp_path / "accelerate"), "launch", "--cpu", str(tmp_path / "child.py")).stdout
    assert alone == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [TORCHRUN, ("-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2")]
)
def test_wrong_launches_end_with_one_line(words: tuple[str, ...], world: Path, tmp_path: Path) -> None:
    if words is not TORCHRUN:
        words = (str(Path(sys.executable).parent / "accelerate"), *words[2:])
    result = launched(world, *words, "train.py", *words_of(recipe(world, tmp_path / "run")))
    assert result.returncode != 0 and not (tmp_path / "run").exists()
    lines = [line for line in result.stderr.splitlines() if "train.py: " in line and "ACCELERATE_USE_CPU=true" in line]
    assert 1 <= len(lines) <= 2  # one of each process
    assert 'File "' not in "".join(result.stderr.split("train.py: ")[:1])


@pytest.mark.slow
def test_ctrl_c_of_a_process(world: Path, tmp_path: Path) -> None:
    """`train.py` in a process of its own: SIGINT once the first step is logged."""
    made = recipe(world, tmp_path / "run", steps=100_000)
    process = subprocess.Popen(
        [sys.executable, "train.py", *words_of(made)],
        cwd=ROOT,
        env=environment(world),
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "run" / "log.jsonl"
    while process.poll() is None and not read_log(log):
        pass
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "--resume goes on" in said and "Traceback" not in said
    step = newest(tmp_path / "run")[1]["step"]
    AcceleratorState._reset_state(reset_partial_state=True)
    options = {"steps": 100_000, "resume": True}
    with pytest.raises(Interrupted):
        stop_at(recipe(world, tmp_path / "run", **options).build(), step + 2).run()
    with pytest.raises(Interrupted):
        stop_at(recipe(world, tmp_path / "whole", steps=100_000).build(), step + 2).run()
    assert_same_state(tmp_path / "run", tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------------- NaN


def poison(trainer: Trainer, steps: range, value: float) -> None:
    """The loss of these steps is not finite."""

    def hook(module: Any, inputs: Any, loss: Loss) -> Loss:
        return Loss(loss.total * value, loss.size) if trainer.step in steps else loss

    trainer.udm.register_forward_hook(hook)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(value: float, world: Path, tmp_path: Path) -> None:
    """Not the weights, not the optimizer, not the average; it is logged as null, and training goes on."""
    trainer = recipe(world, tmp_path / "run", steps=3, save_every=1, keep=3, ema=0.9).build()
    poison(trainer, range(1, 2), value)
    trainer.run()
    states = [saving.read_state(tmp_path / "run" / "states" / f"step-0000000{step}")[0] for step in (1, 2, 3)]
    for name, content in states[0].items():
        assert all(torch.equal(tensor, states[1][name][key]) for key, tensor in content.items()), name
    assert distance(states[1]["model"], states[2]["model"]) > 1e-4
    assert all(bool(t.isfinite().all()) for state in states for content in state.values() for t in content.values())
    losses = [line["loss"] for line in strict_log(tmp_path / "run") if "loss" in line]
    assert losses[1] is None and losses[0] > 0 and losses[2] > 0


def test_ten_in_a_row_are_an_error(world: Path, tmp_path: Path) -> None:
    trainer = recipe(world, tmp_path / "run", steps=20).build()
    poison(trainer, range(3, 20), float("nan"))
    with pytest.raises(ValueError, match="not finite 10 times in a row, at step 12; lower trainer.lr"):
        trainer.run()


# ------------------------------------------------------------------------------------------------------------ variants


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9},
        {"precision": "bf16"},
        {"optimizer": "muon"},
        {"data": {"streaming": True}},
        {"data": {"packed": True}},
        {"data": {"packed": True}, "kind": "parallel"},
        {"kind": "parallel", "precision": "bf16", "ema": 0.5},
    ],
    ids=str,
)
def test_variants_train(options: dict, world: Path, tmp_path: Path) -> None:
    """Three steps, finite losses, other weights, figures at the end."""
    trainer = recipe(world, tmp_path / "run", **options).build()
    before = weights(trainer)
    figures = trainer.run()
    assert distance(before, weights(trainer)) > 1e-3
    losses = [line["loss"] for line in strict_log(tmp_path / "run") if "loss" in line]
    assert len(losses) == 3 and all(0 < loss < 20 for loss in losses)
    assert figures.keys() == {"nats", "error", "bits_per_byte"} and 0 < figures["nats"] < 20


@pytest.mark.slow
def test_compile_trains_the_same(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile's front alone: what is ours is which part is compiled. Its C++ back end takes minutes on a CPU."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain = trained(recipe(world, tmp_path / "plain"))
    assert distance(plain, trained(recipe(world, tmp_path / "run", compile=True))) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"optimizer": "muon"}, {"precision": "bf16"}, {"kind": "parallel"},
                                     {"data": {"streaming": True}}, {"data": {"packed": True}}], ids=str)  # fmt: skip
def test_resume_is_exact_for_variants(options: dict, world: Path, tmp_path: Path) -> None:
    recipe(world, tmp_path / "whole", steps=6, **options).build().run()
    with pytest.raises(Interrupted):
        stop_at(recipe(world, tmp_path / "run", steps=6, **options).build(), 4).run()
    recipe(world, tmp_path / "run", steps=6, resume=True, **options).build().run()
    assert_same_state(tmp_path / "run", tmp_path / "whole")


# -------------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_do_not_see_each_other(kind: str, world: Path, tmp_path: Path) -> None:
    """Other words in the middle one of three documents leave the losses of the other two as they were.

    Negative control: declared one document, without the mask between them, they do not.
    """
    trainer = recipe(world, tmp_path / "run", kind).build()
    udm, names = trainer.udm.train(), specials(load_tokenizer(world / kind))
    pad, bos = names.pad, names.bos
    for weight in udm.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # as drawn for training, a tiny model hardly looks around
    draw = random.Random(0)
    rows = [[[bos, *(draw.randint(100, 250) for _ in range(n))] for n in (6, 7, 8)] for _ in range(8)]
    changed = [[a, [bos, *(draw.randint(100, 250) for _ in b[1:])], c] for a, b, c in rows]
    x0, other = to_tokens(rows, pad), to_tokens(changed, pad)
    key = Key.of(0, len(rows))

    def losses(x: Any) -> torch.Tensor:
        noise, t = udm.process.noise(x, key), torch.full((len(x),), 0.5, dtype=torch.float64)
        xt, truth = udm.process.corrupt(x, noise, t), udm.process.align(x, noise, t)
        return udm.denoiser(xt, t).log_prob(truth)

    outside = x0.valid & (x0.doc != 1)
    with torch.no_grad():
        apart = (losses(x0) - losses(other)).abs()
        assert apart[outside].max() < 1e-5 < 1e-3 < apart[x0.doc == 1].max()
        one = x0.doc.clamp_max(0)
        apart = (losses(x0.with_(doc=one)) - losses(other.with_(doc=one))).abs()
        assert apart[outside].nan_to_num().max() > 1e-3  # nan: here a BOS in mid-text counts as a word that cannot be


# --------------------------------------------------------------------------------------------------- what a run leaves


def strict_log(out: Path) -> list[dict[str, Any]]:
    """log.jsonl by the letter of JSON: no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_a_run_leaves_its_reports(uninterrupted: Path) -> None:
    assert (uninterrupted / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert any(file.stat().st_size > 0 for file in (uninterrupted / "tensorboard").glob("events.*"))
    lines = strict_log(uninterrupted)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert {"loss", "grad_norm", "rate", "tokens_per_s"} <= lines[0].keys()
    assert {"validation/nats", "validation/bits_per_byte"} <= lines[-2].keys() and lines[-1]["samples"]


def test_a_run_is_not_overwritten_unasked(uninterrupted: Path, world: Path, tmp_path: Path) -> None:
    """Nor is anything of it changed. With --trainer.overwrite nothing of the old run can be resumed by mistake."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="already holds a run: --resume goes on .* --overwrite begins"):
        recipe(world, tmp_path / "run").build().run()
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(Interrupted):
        stop_at(recipe(world, tmp_path / "run", overwrite=True).build(), 1).run()
    assert newest(tmp_path / "run")[1]["step"] == 1
    assert [line["step"] for line in strict_log(tmp_path / "run")] == [1]


def test_a_log_that_was_cut_short_is_mended(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "trainer.steps must be a whole number from 1 to 1e\\+09; got 0"),
     ({"batch": 6, "accumulate": 4}, "batch 6 is no multiple"),
     ({"minutes": -1.0}, "trainer.minutes must be a number above 0, at most 1e\\+07; got -1.0"),
     ({"resume": True, "overwrite": True}, "trainer.resume goes on with a run, trainer.overwrite begins anew")],
)  # fmt: skip
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**options)


# ----------------------------------------------------------------------------------------- the recipe, and the streams


def test_train_py_is_the_recipe(world: Path, tmp_path: Path) -> None:
    """The visible script and `Recipe.build` make the same weights from the same options."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = words_of(recipe(world, tmp_path / "script"))
    script.main(parse(Recipe, words, prog="train.py", description=""))
    recipe(world, tmp_path / "built").build().run()
    assert_same_state(tmp_path / "script", tmp_path / "built")


def test_a_stream_goes_on_with_the_right_samples(world: Path, tmp_path: Path) -> None:
    """From any step, in the first epoch or a later one; every sample comes exactly once per epoch."""
    made = recipe(world, tmp_path, data={"streaming": True})
    tokenizer = made.make_tokenizer(None)
    rows = windows(made.texts("train"), tokenizer, context=16, shortest=4)
    size, feed = sum(1 for _ in rows), made.feed(rows)
    batch = made.trainer.batch
    assert size % batch
    steps = list(islice(feed(0, 0, 1), 3 * size // batch))
    numbers = [number for step in steps for number, _ in step]
    assert all(sorted(numbers[i : i + size]) == list(range(size)) for i in (0, size))
    for start in (1, size // batch, size // batch + 1, 2 * size // batch + 3):
        assert list(islice(feed(start, 0, 1), 2)) == steps[start : start + 2]
    halves = [next(feed(1, rank, 2)) for rank in (0, 1)]
    assert sorted(number for half in halves for number, _ in half) == sorted(number for number, _ in steps[1])


@pytest.mark.parametrize("streaming", [False, True])
def test_no_text_is_an_error(streaming: bool, world: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": ""}\n' * 3)
    made = recipe(world, tmp_path / "run", data={"streaming": streaming})
    made.data.dataset = str(tmp_path)
    with pytest.raises(ValueError, match="has no text"):
        made.build().run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_weight_is_stepped_once_and_the_vocabulary_by_its_share(kind: str) -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                                         num_attention_heads=2, tie_word_embeddings=False))  # fmt: skip
    chain = optimizers(model, kind, 0.01, 0.02, embedding_lr=0.25, weight_decay=0.1, beta2=0.98)
    groups = [group for optimizer in chain for group in optimizer.param_groups]
    stepped = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(stepped) == sorted(id(weight) for weight in model.parameters())
    for group in groups:
        for weight in group["params"]:
            spoken = 40 in weight.shape
            assert group["weight_decay"] == (0.1 if weight.ndim == 2 and not spoken else 0.0)
            if kind == "adamw" or spoken:
                assert group["lr"] == (0.0025 if spoken else 0.01)
