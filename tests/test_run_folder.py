"""The folder of a run: whatever a user has there stays, byte for byte; one run at a time."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from textdiff.resuming import compare_settings
from textdiff.run_folder import BOARD, CURVE, LOCK, LOG, RECIPE, STATES, RunFolder
from textdiff.saving import foreign_in, remove_states, verify, write_state

# what a user may have in a folder: names that a run writes, names like them, and others
FILES = [
    "README.md", "config.json", "log.jsonl", "loss.png", "samples.png", "run.json", "run.lock", "recipe.yaml", ".export",
    "model.safetensors", "tokenizer.json", "notes.txt", ".part", "data/a.csv", "tensorboard/mine.txt", "states",
    "tensorboard", "states/a.csv", "states/step-00000003", "states/step-00000003/mine.csv", "states/step-3/b",
    "states/.part-00000003", "states/.part-x/c", "states/step-00000003/manifest.json", ".part/x", ".export/y",
    "states/step-00000003/tokenizer/d", "diffusion_config.json", "events.out.tfevents.1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written need not reach the disk; and nobody else looks at the lock."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr("textdiff.run_folder.PATIENCE", 0.1)


def tensors(value: float = 1.0) -> dict:
    return {"model": {"w": torch.full((2, 2), value)}}


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def a_run(out: Path, *, resume: bool = False, overwrite: bool = False, steps: int = 2) -> None:
    """All that a run writes, in its order, without the training."""
    folder = RunFolder(out)
    folder.check(resume=resume, overwrite=overwrite)
    with folder.held():
        folder.check(resume=resume, overwrite=overwrite, held=True)
        folder.begin(keep=resume)
        with folder.claim(LOG).open("a") as log:
            log.write('{"step": 1}\n')
        folder.claim(CURVE).write_text("a picture")
        folder.write(RECIPE, "kind: text\n")
        (out / BOARD).mkdir(exist_ok=True)
        (out / BOARD / f"events.out.tfevents.1.host.{os.getpid()}.0").write_text("events")
        folder.record_board()
        for step in range(1, steps + 1):
            write_state(out / STATES, step, tensors(), {"step": step}, 1)
        with folder.exported() as part:
            for name in ("README.md", "config.json", "model.safetensors", "vocab.txt"):
                (part / name).write_text(f"of the run: {name}")


def plant(folder: Path, names: list[str], draw: random.Random) -> dict[str, bytes]:
    """The user's files, those of them that fit beside each other."""
    for name in names:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw.randbytes(8))
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            continue
    return content(folder)


def lost(folder: Path, before: dict[str, bytes]) -> list[str]:
    after = content(folder)
    return [name for name in before if after.get(name) != before[name]]


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_no_file_of_a_users_is_lost(flags: dict, tmp_path: Path) -> None:
    """100 random folders of a user's files, with a run before them in half: refused or not, every one is as it was."""
    draw, refused = random.Random(0), 0
    for number in range(100):
        out = tmp_path / str(number)
        if number % 2:
            a_run(out)
        own = set(content(out)) if out.is_dir() else set()
        chosen = [name for name in draw.sample(FILES, draw.randint(1, 4)) if name not in own]
        before = {name: value for name, value in plant(out, chosen, draw).items() if name not in own}
        try:
            a_run(out, **flags)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and str(out) in str(error)
        assert lost(out, before) == [], (number, chosen)
    assert 20 < refused < 100


def test_a_loss_would_be_seen(tmp_path: Path) -> None:
    """Negative control: a run that removes `states` whole, and one that writes over what is there."""
    before = plant(tmp_path, ["states/a.csv", "README.md"], random.Random(0))
    shutil.rmtree(tmp_path / "states")
    (tmp_path / "README.md").write_text("a card")
    assert sorted(lost(tmp_path, before)) == ["README.md", "states/a.csv"]


@pytest.mark.parametrize(
    "name", ["README.md", "recipe.yaml", "log.jsonl", "loss.png", "model.safetensors", "vocab.txt"]
)
@pytest.mark.parametrize("resumed", [False, True])
def test_what_a_user_has_changed_is_the_users(name: str, resumed: bool, tmp_path: Path) -> None:
    """A file that was edited after the run is not written over; without the edit it is the run's, and goes with it."""
    a_run(tmp_path)
    if resumed:
        a_run(tmp_path, resume=True, steps=3)
    with (tmp_path / name).open("a") as file:
        file.write("and my own words")
    for flags in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match=f"{name} was changed since the run wrote it.* move it, or give another"):
            a_run(tmp_path, **flags)
    assert (tmp_path / name).read_text().endswith("my own words")
    (tmp_path / name).rename(tmp_path / "kept")
    a_run(tmp_path, overwrite=True)
    assert (tmp_path / "kept").read_text().endswith("my own words")


def test_an_event_file_that_a_user_has_changed_stays(tmp_path: Path) -> None:
    a_run(tmp_path / "other")
    (other,) = (tmp_path / "other" / BOARD).iterdir()
    other.write_text("my own words")
    folder = RunFolder(tmp_path / "other")
    with folder.held():
        folder.begin(keep=False)
    assert other.read_text() == "my own words" and not (tmp_path / "other" / RECIPE).exists()


def test_what_a_run_did_not_come_to_write_is_not_its(tmp_path: Path) -> None:
    """It claimed the name, and ended before: a file of that name is then a user's. Of one that was killed nobody can say."""
    folder = RunFolder(tmp_path)
    with folder.held():
        folder.begin(keep=False)
        folder.claim(CURVE)
    (tmp_path / CURVE).write_text("mine")
    with pytest.raises(ValueError, match="loss.png was not written by a run"):
        folder.check(overwrite=True)


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    a_run(tmp_path, steps=9)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="already holds a run: --resume goes on with it, --overwrite begins anew"):
        a_run(tmp_path)
    a_run(tmp_path, overwrite=True, steps=2)
    assert [state.name for state in (tmp_path / STATES).iterdir()] == ["step-00000002"]
    assert len(list((tmp_path / BOARD).iterdir())) == 1 and (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_that_comes_while_a_run_trains_is_not_written_over(tmp_path: Path) -> None:
    """The checkpoint then stays where it is whole, and the error says where."""
    folder = RunFolder(tmp_path)
    with folder.held():
        folder.begin(keep=False)
        with pytest.raises(ValueError, match=r"README.md was not written by the run, .* stays in .*\.export-"):
            with folder.exported() as part:
                (part / "README.md").write_text("card")
                (part / "config.json").write_text("config")
                (tmp_path / "README.md").write_text("mine")
    assert (tmp_path / "README.md").read_text() == "mine" and not (tmp_path / "config.json").exists()
    (part,) = tmp_path.glob(".export-*")
    assert content(part) == {"README.md": b"card", "config.json": b"config"}


def test_a_run_of_before_the_list_is_known_by_its_states(tmp_path: Path) -> None:
    """A folder without run.json: its states, log and checkpoint are a run's; a card that is not ours is the user's."""
    a_run(tmp_path)
    (tmp_path / "run.json").unlink()
    (tmp_path / "README.md").write_text("pipeline_tag: textdiff")
    with pytest.raises(ValueError, match="already holds a run"):
        a_run(tmp_path)
    a_run(tmp_path, resume=True)
    (tmp_path / "run.json").unlink()
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(ValueError, match="README.md was not written by a run"):
        a_run(tmp_path, overwrite=True)


def test_a_list_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    """A folder from elsewhere: names that lead out of it are ignored."""
    out, mine = tmp_path / "run", tmp_path / "mine.txt"
    a_run(out)
    mine.write_text("mine")
    for name in ("../mine.txt", str(mine)):
        text = (out / "run.json").read_text().replace('"files": {', f'"files": {{"{name}": null, ')
        (out / "run.json").write_text(text)
    manifest = out / STATES / "step-00000002" / "manifest.json"
    manifest.write_text(f'{{"../../../mine.txt": "x", "{mine}": "y", {manifest.read_text().lstrip()[1:]}')
    a_run(out, overwrite=True)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p.write_text("a file"), "is not a folder"),
        (lambda p: p.symlink_to("nowhere"), "is a link to nothing"),
        (lambda p: os.mkfifo(p), "is not a folder"),
    ],
)
def test_what_cannot_be_a_folder(make: object, reason: str, tmp_path: Path) -> None:
    make(tmp_path / "out")  # type: ignore[operator]
    for path in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(ValueError, match=f"trainer.out .* cannot be a folder: .* {reason}; give another path"):
            RunFolder(path).check()


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    """Found out by trying, and leaving no trace: rights say little to the superuser."""
    with pytest.raises(ValueError, match="cannot be written: /proc"):
        RunFolder("/proc/run").check()
    with pytest.raises(ValueError, match="cannot be a folder"):
        RunFolder(tmp_path / ("x" * 300)).check()
    RunFolder(tmp_path / "a" / "b").check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/", "/../", "//"])
def test_the_root_is_no_folder_of_a_run(path: str) -> None:
    before = sorted(Path("/").iterdir())
    with pytest.raises(ValueError, match=r"trainer.out /+(\.\.)? is the root folder; give a folder of the run's own"):
        RunFolder(path).check()
    assert sorted(Path("/").iterdir()) == before


@pytest.mark.parametrize("name", ["adapter_config.json", "chat_template.json"])
def test_what_would_be_read_with_the_checkpoint_is_in_the_way(name: str, tmp_path: Path) -> None:
    """Of a run's checkpoint, that could not be opened then."""
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"{name} was not written by a run, so it may not lie beside a model; move it"):
        a_run(tmp_path)
    (tmp_path / name).rename(tmp_path / "notes.txt")
    a_run(tmp_path)


@pytest.mark.parametrize("name", ["facts.json", "manifest.json", "tokenizer"])
def test_a_state_that_is_damaged_is_named(name: str, tmp_path: Path) -> None:
    """Where it is the only one; the damage is told, and what can be done."""
    state = write_state(tmp_path / STATES, 2, tensors(), {"step": 2}, 1, lambda part: _put(part / "tokenizer.json"))
    name = "tokenizer/tokenizer.json" if name == "tokenizer" else name
    whole = (state / name).read_bytes()
    (state / name).write_bytes(whole[:1] + bytes([whole[1] ^ 129]) + whole[2:])
    said = "is missing or cannot be read" if name == "manifest.json" else "is not what was written"
    with pytest.raises(
        ValueError, match=f"step-00000002 is damaged .{name} {said}.; copy it again, or begin anew with"
    ):
        RunFolder(tmp_path).check(resume=True)
    (state / name).write_bytes(whole)
    RunFolder(tmp_path).check(resume=True)
    assert {file.stat().st_mode for file in state.iterdir() if file.is_file()} == {
        (state / "facts.json").stat().st_mode
    }


def _put(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("{}")


def test_a_state_with_more_steps_than_are_asked_for_is_told(tmp_path: Path) -> None:
    facts = {"step": 3, "settings": {}}
    with pytest.raises(
        ValueError, match=r"state has 3 steps, more than trainer.steps 2; give --trainer.steps 3 or more"
    ):
        compare_settings(tmp_path / "state", facts, {"trainer.steps": 2})
    compare_settings(tmp_path / "state", facts, {"trainer.steps": 3})


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    a_run(tmp_path / "out")
    assert (tmp_path / "disk" / "README.md").is_file() and (tmp_path / "out").is_symlink()
    shutil.move(tmp_path / "disk" / STATES, tmp_path / "elsewhere")
    (tmp_path / "disk" / STATES).symlink_to("../elsewhere")
    a_run(tmp_path / "out", resume=True, steps=5)
    assert (tmp_path / "elsewhere" / "step-00000005").is_dir()
    a_run(tmp_path / "out", overwrite=True)
    assert (tmp_path / "disk" / STATES).is_symlink()


def test_states_beside_files_of_others(tmp_path: Path) -> None:
    """A state is written beside them, verified, and removed without them."""
    state = write_state(tmp_path, 1, tensors(), {"step": 1}, 1)
    (state / "mine.txt").write_text("mine")
    (state / "model.safetensors").write_bytes(b"damaged")

    def attach(folder: Path) -> None:
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")

    assert write_state(tmp_path, 1, tensors(), {"step": 1}, 1, attach) == state
    assert [entry.name for entry in tmp_path.iterdir()] == [state.name] and verify(state)
    (tmp_path / ".part-00000003" / "tokenizer").mkdir(parents=True)  # as it was left by an earlier version
    assert foreign_in(tmp_path, of_a_run=True) is None
    (tmp_path / ".part-00000007").mkdir()
    (tmp_path / ".part-00000007" / "mine.txt").write_text("mine")
    (tmp_path / ".part-00000002").mkdir()
    write_state(tmp_path, 2, tensors(), {"step": 2}, 1)
    remove_states(tmp_path)
    assert content(tmp_path) == {"step-00000001/mine.txt": b"mine", ".part-00000007/mine.txt": b"mine"}


# ------------------------------------------------------------------------------------------------------------- the lock


def test_one_run_at_a_time(tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path), RunFolder(tmp_path)
    with folder.held():
        for attempt in (other.check, lambda: other.held().__enter__()):
            with pytest.raises(ValueError, match=f"is held by another run .process {os.getpid()}.; wait for it"):
                attempt()
    assert not (tmp_path / LOCK).exists()
    with other.held():
        pass


def test_the_lock_of_a_dead_process_stops_nobody(tmp_path: Path) -> None:
    """A process that ends without a word: its lock goes with it, whatever number stands in the file."""
    if (child := os.fork()) == 0:
        held = RunFolder(tmp_path).held()
        held.__enter__()
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / LOCK).read_text().strip().isdigit()
    RunFolder(tmp_path).check()
    with RunFolder(tmp_path).held():
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("make", [lambda p: p.write_text("mine"), lambda p: p.symlink_to("mine"), lambda p: p.mkdir()])
def test_a_file_of_a_users_that_is_called_as_the_lock(make: object, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    make(tmp_path / LOCK)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"run.lock is not a run's lock"):
        RunFolder(tmp_path).check()
    assert (tmp_path / "mine").read_text() == "mine"
