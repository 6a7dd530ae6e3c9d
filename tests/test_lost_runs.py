"""Nothing that was trained is lost: whatever ends a run, its last step is on the disk, and the message says where.

And a run that goes on is the same run, or says what differs.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
from test_trainer import ROOT, assert_same_state, environment, newest, recipe, stop_at, words_of, world  # noqa: F401
from tiny import tiny_checkpoint

from textdiff import launch, resuming, saving
from textdiff.cli import main as cli
from textdiff.config import settings_of
from textdiff.data import DataConfig
from textdiff.launch import Interrupted, Signals, run_command
from textdiff.manifest import digest
from textdiff.pictures.recipe import PictureRecipe
from textdiff.recipe import Recipe, TokenizerConfig, make_pages
from textdiff.report import read_log
from textdiff.trainer import Trainer, TrainerConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the steps."""
    monkeypatch.setattr("textdiff.report.draw", lambda lines, path, words: path.touch())
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Bug(RuntimeError):
    """No error that anybody expects."""


def fail_at(step: int, error: BaseException) -> Callable[[Trainer], None]:
    """The feed fails when it is to give the examples of this step."""

    def plant(trainer: Trainer) -> None:
        feed = trainer.job.feed

        def fed(start: int, rank: int, size: int) -> Iterator[list]:
            for number, examples in enumerate(feed(start, rank, size), start + 1):
                if number == step:
                    raise error
                yield examples

        trainer.job.feed = fed

    return plant


def failing(name: str, error: BaseException) -> Callable[[Trainer], None]:
    """A part of the job fails when it is called."""

    def fault(*args: Any) -> Any:
        raise error

    return lambda trainer: setattr(trainer.job, name, fault)


def collate_at(step: int, error: BaseException) -> Callable[[Trainer], None]:
    def plant(trainer: Trainer) -> None:
        collate = trainer.job.collate

        def collated(*args: Any) -> Any:
            if trainer.step == step - 1:
                raise error
            return collate(*args)

        trainer.job.collate = collated

    return plant


FAULTS = {
    "feed": (fail_at(3, Bug("a bug")), 2, Bug, False),
    "feed of bad rows": (fail_at(3, ValueError("row 7 holds nothing")), 2, ValueError, False),
    "collate": (collate_at(3, Bug("a bug")), 2, Bug, False),
    "memory": (collate_at(4, MemoryError("cannot allocate")), 3, ValueError, False),
    "memory of a GPU": (collate_at(4, torch.OutOfMemoryError("CUDA out of memory")), 3, ValueError, False),
    "exit": (fail_at(3, SystemExit(5)), 2, SystemExit, False),
    "measure": (failing("measure", Bug("a bug")), 4, Bug, True),
    "show": (failing("show", OSError("disk full")), 4, OSError, True),
    "export": (failing("export", OSError("disk full")), 4, OSError, False),
}


QUICK = {"feed", "memory", "measure", "export"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in FAULTS])
def test_whatever_ends_a_run_its_last_step_is_saved(name: str, world: Path, tmp_path: Path) -> None:  # noqa: F811
    """The error keeps its type and says where to go on; what goes on is bit for bit the run without a fault.

    A checkpoint is written even where it cannot be measured or shown.
    """
    plant, step, kind, exported = FAULTS[name]
    trainer = recipe(world, tmp_path / "run", steps=4).build()
    plant(trainer)
    with pytest.raises(kind) as caught:
        trainer.run()
    (note,) = caught.value.__notes__
    state = tmp_path / "run" / "states" / f"step-{step:08d}"
    assert note == f"Trained to step {step}; saved {state}. The same command with --resume goes on."
    assert newest(tmp_path / "run")[1]["step"] == step
    assert (tmp_path / "run" / "model.safetensors").exists() == exported
    if kind is ValueError and "memory" in name:
        assert str(caught.value).startswith("out of memory (") and "raise trainer.accumulate" in str(caught.value)
    if name in ("feed of bad rows", "show"):
        recipe(world, tmp_path / "run", steps=4, resume=True).build().run()
        recipe(world, tmp_path / "whole", steps=4).build().run()
        assert_same_state(tmp_path / "run", tmp_path / "whole")
        assert (tmp_path / "run" / "model.safetensors").exists()


def test_an_error_before_the_first_step_saves_nothing(world: Path, tmp_path: Path) -> None:  # noqa: F811
    trainer = recipe(world, tmp_path / "run", steps=4).build()
    fail_at(1, Bug("a bug"))(trainer)
    with pytest.raises(Bug) as caught:
        trainer.run()
    assert caught.value.__notes__ == ["Trained to step 0; nothing was saved."]
    recipe(world, tmp_path / "run", steps=1).build().run()  # there is nothing to overwrite


def test_a_disk_that_is_full(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:  # noqa: F811
    """At a later save: the state before it is whole, nothing half-written is left, and one line says where it is."""
    real = saving._write

    def full(part: Path, *rest: Any) -> None:
        real(part, *rest)
        if part.name == ".part-00000002":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "_write", full)
    words = words_of(recipe(world, tmp_path / "run", steps=4, save_every=1))
    assert cli(["train", *words]) == 2
    (said,) = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if "textdiff train" in line]
    assert "No space left on device" in said and "the newest state is" in said and "states/step-00000001" in said
    assert [state.name for state in (tmp_path / "run" / "states").iterdir()] == ["step-00000001"]


def test_a_state_comes_before_what_may_fail(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """At a step where all is due, and at the end: the state of the step is there before it is measured."""
    trainer = recipe(world, tmp_path / "run", steps=4, measure_every=2, save_every=2, show_every=2).build()
    measured = []

    def measure(udm: Any) -> dict[str, float]:
        measured.append(newest(tmp_path / "run")[1]["step"])
        return {"nats": 1.0, "error": 0.1, "bits_per_byte": 1.0}

    trainer.job.measure = measure
    trainer.run()
    assert measured == [2, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_saved(value: float, world: Path, tmp_path: Path) -> None:  # noqa: F811
    """Not by a state, not at the end, not on an error; the run stops and says so, and where the last good state is."""
    trainer = recipe(world, tmp_path / "run", steps=6, save_every=2).build()
    turn = trainer._turn

    def spoilt(examples: list) -> None:
        turn(examples)
        if trainer.step == 3:
            next(trainer.udm.parameters()).data[0] = value

    trainer._turn = spoilt  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"not finite") as caught:
        trainer.run()
    assert "lower trainer.lr" in str(caught.value)
    assert "the newest state is" in caught.value.__notes__[0] and "step-00000002" in caught.value.__notes__[0]
    assert [state.name for state in (tmp_path / "run" / "states").iterdir()] == ["step-00000002"]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="not finite before training .*train from another model"):
        Trainer(trainer.udm, trainer.job, TrainerConfig(out=str(tmp_path / "other")))


def test_figures_that_are_not_finite(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """They are null in the log and left out of the card."""
    trainer = recipe(world, tmp_path / "run", steps=1).build()
    trainer.job.measure = lambda udm: {"nats": float("nan"), "error": float("inf"), "bits_per_byte": float("nan")}
    trainer.run()
    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and '"validation/nats": null' in text
    assert (
        "not measured" in (card := (tmp_path / "run" / "README.md").read_text()) and "nan" not in card.split("---")[2]
    )


# -------------------------------------------------------------------------------------------- refused before work begins


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"examples": ("We [GAP:70] on.",)},
            r"examples\[0\] 'We \[GAP:70\] on.': gap 1, after 'We ': a gap of 70 tokens",
        ),
        ({"examples": ("ok [GAP]", "we " * 80 + "[GAP]")}, r"examples\[1\] 'we we .*the model reads 6"),
        ({"examples": ("a [GAP:/[/]",)}, r"examples\[0\]"),
    ],
)
def test_examples_are_prepared_before_training(options: dict, message: str, world: Path, tmp_path: Path) -> None:  # noqa: F811
    made = recipe(world, tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        made.examples = options["examples"]
        made.build()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("process", ["masking", "replacement", "encoder"])
def test_examples_of_a_process_that_says_no_lengths(process: str) -> None:
    """Free gaps get three tokens; a gap of two to six is refused before it would be filled."""
    checkpoint = tiny_checkpoint(process=process, lengths=0)
    (page,) = make_pages(["We [GAP] on."], checkpoint)
    assert sum(element[0] == checkpoint.specials.mask for element in page.row) == 3
    with pytest.raises(
        ValueError, match=r"examples\[1\] 'We \[GAP:2-6\] on.': .*give (each gap its|the) length, as in"
    ):
        make_pages(["[GAP]", "We [GAP:2-6] on."], checkpoint)


def test_nothing_is_loaded_for_a_run_that_cannot_be(world: Path, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    """The folder, the model and the options of a resumed run are looked at before the data set."""

    def loaded(*args: Any) -> None:
        raise AssertionError("the data set was opened")

    recipe(world, tmp_path / "run", steps=1).build().run()
    monkeypatch.setattr(Recipe, "texts", loaded)
    for make, message in [
        (lambda: recipe(world, tmp_path / "run"), "already holds a run"),
        (lambda: recipe(world, tmp_path / "run", resume=True, lr=0.5), "trainer.lr 0.01, not 0.5"),
        (lambda: recipe(world, tmp_path / "x", resume=True), "no training state to resume"),
        (lambda: recipe(world, tmp_path / "x", model="missing"), "cannot be loaded as an autoregressive model"),
        (
            lambda: recipe(world, tmp_path / "x", "parallel", model="autoregressive"),
            "cannot be loaded as a parallel model",
        ),
        (lambda: recipe(world, world / "texts" / "train.jsonl"), "is not a folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            make().prepare()
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------------------------------------------- the same run


def other_value(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "other" if isinstance(value, str | type(None)) else [*value, *value]


@pytest.mark.parametrize("made", [Recipe(), PictureRecipe()], ids=["text", "image"])
def test_every_option_is_compared_as_the_table_says(made: Any) -> None:
    """Fixed ones are refused with both values and the remedy, told ones said, free ones taken without a word."""
    settings, state = settings_of(made), Path("runs/x/states/step-00000004")
    facts = json.loads(json.dumps({"settings": resuming.recorded(settings)}))
    assert resuming.compare_settings(state, facts, settings) == []
    for name, value in settings.items():
        changed = settings | {name: other_value(value)}
        match resuming.CHANGES[name]:
            case "fixed":
                with pytest.raises(
                    ValueError, match=rf"{state} was trained with {name} .*, not .*; give --.*another run"
                ):
                    resuming.compare_settings(state, facts, changed)
            case "told":
                (said,) = resuming.compare_settings(state, facts, changed)
                assert said.startswith(f"{name} was {value} and is ")
            case _:
                assert resuming.compare_settings(state, facts, changed) == []


def test_what_may_change_on_resume(world: Path, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    """Steps, minutes, reports, the folder's and the model's name, samples: and accumulation, which is told."""
    recipe(world, tmp_path / "run", steps=2).build().run()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    shutil.copytree(world / "autoregressive", tmp_path / "model")
    made = recipe(world, tmp_path / "moved", steps=3, minutes=5.0, keep=1, log_every=2, accumulate=2, resume=True)
    made.model.path, made.diffusion.temperature, made.examples = str(tmp_path / "model"), 0.5, ("[GAP]",)
    made.build().run()
    said = capsys.readouterr().out
    assert "trainer.accumulate was 1 and is 2: the steps stay the same up to rounding" in said
    assert newest(tmp_path / "moved")[1]["step"] == 3


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_other_data_make_another_run(streaming: bool, world: Path, tmp_path: Path) -> None:  # noqa: F811
    """A row more, a row less, another word in one row; a copy elsewhere is the same data set."""
    shutil.copytree(world / "texts", tmp_path / "texts")
    file, data = tmp_path / "texts" / "train.jsonl", {"streaming": streaming}
    made = recipe(world, tmp_path / "run", steps=1, data=data)
    made.build().run()
    lines = file.read_text().splitlines(keepends=True)
    changed = {"word": [lines[0].replace("the", "The", 1), *lines[1:]], "less": lines[1:]}
    changed |= {} if streaming else {"more": [*lines, lines[0]]}  # of a stream the first windows are compared
    for other in changed.values():
        file.write_text("".join(other))
        again = recipe(world, tmp_path / "run", steps=2, resume=True, data=data)
        again.data.dataset = str(tmp_path / "texts")
        with pytest.raises(
            ValueError, match="was trained with other windows: .*data.dataset .* then, .* now; give the windows it was"
        ):
            again.build().run()
    file.write_text("".join(lines))
    again.build().run()
    assert newest(tmp_path / "run")[1]["step"] == 2


def learned(tmp_path: Path, texts: list[str], **trainer: Any) -> Recipe:
    """A run from scratch, which learns its tokenizer."""
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Recipe(
        data=DataConfig(str(tmp_path / "texts.jsonl"), context=16, shortest=4, validation_split="train"),
        tokenizer=TokenizerConfig(vocab=300),
        trainer=TrainerConfig(**{"out": str(tmp_path / "run"), "batch": 4, "steps": 1, **trainer}),
        examples=("We [GAP].",),
    )


def test_the_tokenizer_of_a_run_is_never_learned_again(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """After the data have changed it is the run's own that reads, and what differs is the data."""
    texts = ["We the people of a strong union go on. " * 4] * 6
    with pytest.raises(Interrupted):
        stop_at(learned(tmp_path, texts, steps=3).build(), 1).run()
    own = newest(tmp_path / "run")[1]["fingerprints"]["tokenizer"]
    again = learned(tmp_path, ["Zebras quiz vexing wizards with fjord lynxes. " * 4] * 6, steps=3, resume=True)
    assert resuming.fingerprint_of_tokenizer(again.prepare().tokenizer) == own
    with pytest.raises(ValueError, match="was trained with other windows"):
        again.build().run()
    fresh = learned(tmp_path, ["Zebras quiz vexing wizards with fjord lynxes. " * 4] * 6, out=str(tmp_path / "other"))
    assert resuming.fingerprint_of_tokenizer(fresh.prepare().tokenizer) != own
    learned(tmp_path, texts, steps=3, resume=True).build().run()
    assert newest(tmp_path / "run")[1]["step"] == 3


def rewrite(state: Path, change: Callable[[dict], None]) -> None:
    """A state with other facts, and a manifest that vouches for them."""
    facts = json.loads((state / "facts.json").read_text())
    change(facts)
    (state / "facts.json").write_text(json.dumps(facts))
    files = {file.relative_to(state).as_posix(): digest(file) for file in saving._files(state)}
    del files["manifest.json"]
    (state / "manifest.json").write_text(json.dumps(files))


def as_before(state: Path) -> None:
    """A state as versions before this one wrote it."""
    shutil.rmtree(state / "tokenizer")
    rewrite(state, lambda facts: [facts.pop(name) for name in ("settings", "fingerprints", "world")])


@pytest.mark.slow
def test_a_state_of_an_older_version(world: Path, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    """It goes on, and says what is not compared; where its tokenizer was learned and is not there, it is refused."""
    recipe(world, tmp_path / "run", steps=1).build().run()
    as_before(tmp_path / "run" / "states" / "step-00000001")
    with pytest.raises(ValueError, match="trainer.seed 0, not 1; give --trainer.seed 0"):
        recipe(world, tmp_path / "run", steps=2, seed=1, resume=True).build()
    recipe(world, tmp_path / "run", steps=2, resume=True).build().run()
    assert "recorded neither the options nor the data set: only the seed and the shapes" in capsys.readouterr().out
    texts = ["We the people of a strong union go on. " * 4] * 6
    with pytest.raises(Interrupted):
        stop_at(learned(tmp_path, texts, steps=3, out=str(tmp_path / "new")).build(), 1).run()
    as_before(tmp_path / "new" / "states" / "step-00000001")
    with pytest.raises(ValueError, match="older version and does not hold its tokenizer.*by --tokenizer.path"):
        learned(tmp_path, texts, steps=3, out=str(tmp_path / "new"), resume=True).build()


def test_another_number_of_processes_is_told() -> None:
    (said,) = resuming.compare_world({"world": 2}, 1)
    assert said.startswith("2 processes trained it and 1 go on: the steps stay the same up to rounding")
    assert resuming.compare_world({"world": 2}, 2) == resuming.compare_world({}, 2) == []


def test_the_recipe_is_in_the_folder(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """`textdiff train --config` reads it again: refused as it is, going on with --resume, the same run elsewhere."""
    recipe(world, tmp_path / "run", steps=2).build().run()
    file = str(tmp_path / "run" / "recipe.yaml")
    assert cli(["train", "--config", file]) == 2
    assert cli(["train", "--config", file, "--resume"]) == 0
    assert cli(["train", "--config", file, "--out", str(tmp_path / "again")]) == 0
    assert_same_state(tmp_path / "run", tmp_path / "again")


# --------------------------------------------------------------------------------------------------------------- signals


class Running:
    """What is asked to stop."""

    stop, signal, idle, at_once = False, 0, False, False


def send(*numbers: int) -> None:
    for number in numbers:
        signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_and_a_second_ctrl_c_insists(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch.LAUNCHED, raising=False)
    running, before = Running(), signal.getsignal(number)
    with Signals(running):
        send(number)
        assert running.stop and running.signal == number
        send(signal.SIGTERM, signal.SIGHUP)
        with pytest.raises(Interrupted) as caught:
            send(signal.SIGINT, *([signal.SIGINT] if number != signal.SIGINT else []))
        assert caught.value.code == 128 + number and running.at_once
    assert signal.getsignal(number) == before


def test_an_idle_run_is_left_right_away() -> None:
    """While it waits for data, or measures, and nothing is being written."""
    running = Running()
    running.idle = True
    with Signals(running), pytest.raises(Interrupted):
        send(signal.SIGTERM)


def test_under_torchrun_one_ctrl_c_is_two_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch.LAUNCHED, "x")
    with Signals(Running()):
        send(signal.SIGINT, signal.SIGINT)
        with pytest.raises(Interrupted):
            send(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """nohup."""
    before, running = signal.signal(signal.SIGHUP, signal.SIG_IGN), Running()
    try:
        with Signals(running):
            send(signal.SIGHUP)
        assert run_command(lambda: send(signal.SIGHUP), "x") == 0 and not running.stop
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def raises(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: send(signal.SIGINT), 130, "\nx: stopped\n"),
        (lambda: send(signal.SIGTERM), 143, "\nx: stopped by SIGTERM\n"),
        (lambda: send(signal.SIGHUP), 129, "\nx: stopped by SIGHUP\n"),
        (raises(Interrupted("saved", signal.SIGTERM)), 143, "\nx: saved\n"),
        (raises(Interrupted("")), 130, ""),
        (raises(ValueError("a\nb")), 2, "x: a b\n"),
        (raises(OSError(28, "full")), 2, "x: [Errno 28] full\n"),
    ],
)
def test_every_end_is_one_line_and_its_code(command: Any, code: int, said: str, handlers: None, capsys: Any) -> None:
    assert run_command(command, "x") == code
    assert capsys.readouterr().err == said


def test_a_signal_that_an_import_swallows(capsys: Any) -> None:
    """What then fails for it is not what ended the command."""

    def command() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            send(signal.SIGTERM)
        raise ImportError("cannot load module more than once per process")

    assert run_command(command, "x") == 143
    assert capsys.readouterr().err == "\nx: stopped by SIGTERM\n"


@pytest.mark.parametrize("swallowed", ["bare except", "destructor"])
def test_a_signal_that_is_swallowed_stops_the_work_all_the_same(
    swallowed: str, handlers: None, capsys: Any, monkeypatch: Any
) -> None:
    """Where it was swallowed the work goes on, until it is raised again; without that it would go on to its end."""
    monkeypatch.setattr("textdiff.launch.AGAIN", 0.05)

    class Lost:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    def work() -> None:
        if swallowed == "destructor":
            Lost()
        else:
            with contextlib.suppress(BaseException):
                send(signal.SIGTERM)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            time.sleep(0.01)
        raise AssertionError("it was lost")

    assert run_command(work, "x") == 143
    assert capsys.readouterr().err == "\nx: stopped by SIGTERM\n"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_signal_breaks_off_no_cleaning_up(handlers: None, capsys: Any, monkeypatch: Any) -> None:
    """What is on its way up is not raised again, however long what it left takes to put things in order."""
    monkeypatch.setattr("textdiff.launch.AGAIN", 0.01)
    done = []

    def work() -> None:
        try:
            send(signal.SIGINT)
        finally:
            time.sleep(0.2)
            try:
                done.append([][0])
            except IndexError:
                time.sleep(0.1)
                done.append("in order")

    assert run_command(work, "x") == 130 and done == ["in order"]
    assert capsys.readouterr().err == "\nx: stopped\n"


def test_a_signal_in_the_last_measurement(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """All steps are saved; what is left is measured, and exported, when the run goes on."""
    trainer = recipe(world, tmp_path / "run", steps=2).build()
    trainer.job.measure = lambda udm: send(signal.SIGTERM)  # type: ignore[assignment, return-value]
    with pytest.raises(Interrupted, match="stopped at step 2; saved .*step-00000002. The same command") as caught:
        trainer.run()
    assert caught.value.code == 143 and not (tmp_path / "run" / "model.safetensors").exists()
    recipe(world, tmp_path / "run", steps=2, resume=True).build().run()
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_command_ends_as_the_script_does(
    number: int,
    world: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    """`textdiff train`, while it trains and while it starts: the signal's code and one line; no handler is left behind."""
    turn, words = Trainer._turn, words_of(recipe(world, tmp_path / "run", steps=4))

    def stopped(trainer: Trainer, examples: list) -> None:
        if trainer.step == 1:
            send(number)
        turn(trainer, examples)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_turn", stopped)
        assert cli(["train", *words]) == 128 + number
    said = [
        line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line.startswith("textdiff train: ")
    ]
    assert len(said) == 1 and "stopped at step 2; saved" in said[0] and newest(tmp_path / "run")[1]["step"] == 2
    monkeypatch.setattr("textdiff.recipe.read_recipe", lambda *args: send(number))
    assert cli(["train", *words]) == 128 + number
    assert capsys.readouterr().err == f"\ntextdiff train: stopped by {signal.Signals(number).name}\n"
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_does_not_wait_for_a_state(world: Path, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    """Not even while one is written, of which nothing is left."""
    trainer = recipe(world, tmp_path / "run", steps=9, save_every=2).build()
    real = saving._write

    def slow(part: Path, *rest: Any) -> None:
        real(part, *rest)
        if trainer.step > 2:
            send(signal.SIGINT, signal.SIGINT)

    monkeypatch.setattr(saving, "_write", slow)
    with pytest.raises(Interrupted, match="stopped at step 4; the newest state is .*step-00000002. .* from there"):
        trainer.run()
    assert [state.name for state in (tmp_path / "run" / "states").iterdir()] == ["step-00000002"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("wait", [0.3, 2.0, None])
@pytest.mark.parametrize("program", [["train.py"], ["-m", "textdiff", "train"]])
def test_a_signal_at_any_time(number: int, wait: float | None, program: list[str], world: Path, tmp_path: Path) -> None:  # noqa: F811
    """In a process of its own, while it loads, while it prepares, and once it trains."""
    made = recipe(world, tmp_path / "run", steps=100_000)
    process = subprocess.Popen(
        [sys.executable, *program, *words_of(made)],
        cwd=ROOT,
        env=environment(world),
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait is not None:
        time.sleep(wait)
    while wait is None and process.poll() is None and not read_log(tmp_path / "run" / "log.jsonl"):
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=120)[1].replace("\r", "\n")
    assert process.returncode == 128 + number and "Traceback" not in said
    prog = " ".join(["textdiff", "train"] if "-m" in program else program)
    (line,) = [line for line in said.split("\n") if line.startswith(f"{prog}: ")]
    assert ("--resume goes on" in line) == (wait is None) or "stopped" in line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_of_a_torchrun(number: int, world: Path, tmp_path: Path) -> None:  # noqa: F811
    """The terminal signals all processes, torchrun its own once more: the run saves, in one line, without a traceback."""
    made = recipe(world, tmp_path / "run", steps=100_000)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py", *words_of(made)]
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment(world, ACCELERATE_USE_CPU="true"), stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not read_log(tmp_path / "run" / "log.jsonl"):
        time.sleep(0.05)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=120)[1].replace("\r", "\n")
    (line,) = [line for line in said.split("\n") if line.startswith("train.py: ")]
    assert "--resume goes on" in line and newest(tmp_path / "run")[1]["step"] > 0
    assert 'train.py"' not in said.split("Traceback")[-1]  # torchrun's own


# ------------------------------------------------------------------------------------------------- nobody who reads it


class Full(io.StringIO):
    """A stream on a disk that is full."""

    def write(self, text: str = "") -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        self.write()


def left() -> TextIO:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def shut() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


NOBODY: dict[str, Callable[[], Any]] = {
    "left": left,
    "full": Full,
    "shut": shut,
    "closed": lambda: None,
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), "ascii"),
}


@pytest.mark.parametrize("kind", NOBODY)
def test_a_run_that_nobody_listens_to(kind: str, world: Path, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    """Whatever standard output and standard error are, the run is made, also in the place of an older one."""
    out = tmp_path / "größe"
    words = words_of(recipe(world, out, steps=2, measure_every=1, show_every=1, save_every=1))
    for more in ([], ["--trainer.overwrite"]):
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, NOBODY[kind]())
        assert cli(["train", *words, *more]) == 0
        assert newest(out)[1]["step"] == 2 and (out / "model.safetensors").exists()
        shutil.rmtree(out / "states")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_trainer_that_nobody_listens_to(name: str, world: Path, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    """From Python, too; afterwards the streams are those that they were."""
    trainer, stream = recipe(world, tmp_path / "run", steps=2, measure_every=1).build(), Full()
    monkeypatch.setattr(sys, name, stream)
    trainer.run()
    assert newest(tmp_path / "run")[1]["step"] == 2 and getattr(sys, name) is stream


def test_a_pipe_that_breaks_inside_a_run_is_no_reader_who_left(capsys: Any) -> None:
    """It is an error of the run, not the end of what is to be said."""
    assert run_command(raises(BrokenPipeError(32, "Broken pipe")), "x") == 2
    assert capsys.readouterr().err == "x: [Errno 32] Broken pipe\n"
    assert run_command(raises(BrokenPipeError(32, "Broken pipe")), "x", trains=False) == 0
    assert capsys.readouterr().err == ""
