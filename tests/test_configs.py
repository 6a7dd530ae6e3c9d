"""Options: each has a type and a range, refused by name outside it, whether Python, the command line or a file gives it."""

import math
import types
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest

from textdiff.checkpoint import DiffusionConfig
from textdiff.cli import main
from textdiff.config import as_yaml, parse_one_of, settings_of
from textdiff.data import DataConfig
from textdiff.effects import ALWAYS, EFFECTS, ELSEWHERE, check_effects
from textdiff.keys import Key
from textdiff.options import PATH, Range, annotations, bare
from textdiff.pictures.checkpoint import PictureDiffusion
from textdiff.pictures.data import PicturesConfig
from textdiff.pictures.recipe import PictureModelConfig, PictureRecipe
from textdiff.recipe import ModelConfig, NoiseConfig, Recipe, TokenizerConfig, read_recipe
from textdiff.resuming import CHANGES
from textdiff.trainer import TrainerConfig
from textdiff.udm import Objective

SECTIONS = {
    "data": DataConfig, "tokenizer": TokenizerConfig, "model": ModelConfig, "noise": NoiseConfig, "objective": Objective,
    "trainer": TrainerConfig, "data of images": PicturesConfig, "model of images": PictureModelConfig,
    "diffusion of images": PictureDiffusion,
}  # fmt: skip
ODD = (object(), b"bytes", {"a": 1}, {1}, math.nan, math.inf, -math.inf, 1j)


def plain(hint: Any) -> tuple[Any, Range, tuple]:
    """The type of an option without None, its range, and what else is annotated."""
    kind, extras = bare(hint)
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not types.NoneType)
    return kind, next((extra for extra in extras if isinstance(extra, Range)), Range()), extras


def wrong(hint: Any) -> list[Any]:
    """Values that an option must refuse, by its annotation alone."""
    kind, limits, extras = plain(hint)
    optional = types.NoneType in get_args(bare(hint)[0])
    values: list[Any] = [*ODD, *([] if optional else [None])]
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        odd = [[value] for value in (None, [1], math.nan)] if inner is not str else [[None], [1], [""]]
        return [*values, "abc", 3, *odd, *([[limits.least - 1]] if limits.least is not None else [])]
    if get_origin(kind) is Literal:
        return [*values, "nonsense", "", True, 0, ["a"]]
    if kind is bool:
        return [*values, 0, 1, "no", "yes", []]
    if kind is str:
        return [*values, 3, True, "", "  ", ["a"], *(["a\0b"] if PATH in extras else [])]
    low = limits.above if limits.above is not None else None if limits.least is None else limits.least - 1
    high = limits.below if limits.below is not None else None if limits.most is None else limits.most + 1
    assert low is not None and high is not None, "a number without both limits"
    return [*values, "1", True, [1], low, high, *([1.5] if kind is int else [])]


CASES = [
    (section, name, value)
    for section, config in SECTIONS.items()
    for name, hint in annotations(config).items()
    for value in wrong(hint)
]


@pytest.mark.parametrize(("section", "name"), sorted({(section, name) for section, name, _ in CASES}))
def test_every_option_refuses_what_it_cannot_be(section: str, name: str) -> None:
    """By its name: None, NaN, infinities, another type, too small, too large. And it takes its default."""
    config = SECTIONS[section]
    for value in [v for s, n, v in CASES if (s, n) == (section, name)]:
        with pytest.raises(ValueError, match=rf"^{section.split()[0]}\.{name}(\[0\])? must .*; got ") as caught:
            config(**{name: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    default = config() if config is not PictureDiffusion else config(process="blur", predict="x0", highest=8.0)
    assert type(default)(**{entry.name: getattr(default, entry.name) for entry in fields(default)}) == default


def test_every_number_has_limits() -> None:
    """Negative control: an option without limits, or without a type, is noticed by the test above."""
    with pytest.raises(AssertionError, match="without both limits"):
        wrong(float)
    assert wrong(int | None if False else annotations(TrainerConfig)["lr"])[-1] == 1001


@pytest.mark.parametrize("name", ["masked", "temperature", "top_p", "num_steps", "max_gap", "edits"])
def test_the_recipe_looks_at_what_is_not_a_number_in_the_diffusion(name: str) -> None:
    value: Any = (math.nan, 0.5, 0.25, 0.1) if name == "edits" else math.nan
    with pytest.raises(ValueError, match=name):
        config = DiffusionConfig(
            process="replacement" if name == "masked" else "edit" if name == "edits" else "deletion"
        )
        setattr(config, name, value)
        Recipe(diffusion=config)


def test_numbers_become_numbers_of_the_options_type() -> None:
    import numpy as np

    config = TrainerConfig(lr=1, batch=np.int64(8), out=Path("~/x"))
    assert type(config.lr) is float and type(config.batch) is int and config.out == str(Path.home() / "x")
    assert DataConfig(dataset=Path("~/d")).dataset == str(Path.home() / "d")
    assert NoiseConfig(spans=[1, 2]).spans == (1.0, 2.0)  # type: ignore[arg-type]


def test_options_that_need_each_other() -> None:
    for make, message in [
        (lambda: DataConfig(context=8, shortest=9), "data.shortest 9 is more than data.context 8; give at most 8"),
        (lambda: ModelConfig(lora=4), "model.lora 4 adapts a pretrained model"),
        (lambda: ModelConfig(weights=False), "model.weights is for a pretrained model"),
        (lambda: NoiseConfig(spans=()), "noise.spans must have at least one length"),
        (
            lambda: Recipe(examples=("no gap",)),
            r"examples\[0\]: no gap in 'no gap'; mark the missing text with \[GAP\]",
        ),
        (lambda: Recipe(examples=("a [GAP", "b")), r"examples\[0\]: unclosed gap"),
        (lambda: Recipe(examples="a [GAP]"), "examples must be a list"),
        (
            lambda: Recipe(data=DataConfig(context=4096), tokenizer=TokenizerConfig(vocab=4000)),
            "tokenizer.vocab 4000 is too small: 256 bytes and 4103 special tokens .4097 of them for the lengths.* need 4359",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    Recipe(data=DataConfig(context=4096))  # the default grows
    masks = DiffusionConfig(process="masking")
    Recipe(data=DataConfig(context=4096), tokenizer=TokenizerConfig(vocab=300), diffusion=masks)  # needs none


@pytest.mark.parametrize("recipe", [Recipe(), PictureRecipe()], ids=["text", "image"])
def test_the_table_of_changes_has_every_option(recipe: Any) -> None:
    """An option that is new has to say whether a resumed run may change it."""
    assert settings_of(recipe).keys() <= CHANGES.keys()
    both = settings_of(Recipe()).keys() | settings_of(PictureRecipe()).keys()
    assert CHANGES.keys() == both


# ----------------------------------------------------------------------------------------------------------------- files


def read(tmp_path: Path, content: str | bytes, *words: str) -> Any:
    file = tmp_path / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_recipe(["--config", str(file), *words], "textdiff train")


@pytest.mark.parametrize(
    ("content", "path", "value"),
    [
        ("trainer: {precision: no}", "trainer.precision", "no"),
        ("trainer: {lr: 1e-3}", "trainer.lr", 1e-3),
        ("trainer: {lr: 5E-4}", "trainer.lr", 5e-4),
        ("trainer: {lr: 1}", "trainer.lr", 1.0),
        ("trainer: {steps: 100_000}", "trainer.steps", 100_000),
        ("trainer: {minutes: null}", "trainer.minutes", None),
        ("trainer: {minutes: None}", "trainer.minutes", None),
        ("trainer:\n  minutes:\n", "trainer.minutes", None),
        ("data: {streaming: yes, packed: Off}", "data.streaming", True),
        ("data: {split: 2024-01-01}", "data.split", "2024-01-01"),
        ("data: {config: 20220301}", "data.config", "20220301"),
        ("data: {config: 1.50}", "data.config", "1.50"),
        ("data: {text_column: no}", "data.text_column", "no"),
        ("data: {text_column: '5'}", "data.text_column", "5"),
        ("data: {text-column: Überschrift ü}", "data.text_column", "Überschrift ü"),
        ("examples: ['--flag [GAP]', '- [GAP]', \"\\u00e9 [GAP]\"]", "examples", ("--flag [GAP]", "- [GAP]", "é [GAP]")),
        ("examples: ['yes [GAP]']\nmodel:\ndata: {}\n", "examples", ("yes [GAP]",)),
        ("examples: []", "examples", ()),
        ("noise: {spans: [1, 2.5, 1e1]}", "noise.spans", (1.0, 2.5, 10.0)),
        ("trainer.lr: 0.5", "trainer.lr", 0.5),
        ("base: &b {lr: 0.5}\n" * 0 + "trainer: {<<: {lr: 0.5, steps: 3}, steps: 4}", "trainer.steps", 4),
        ("trainer: &t {lr: 0.5}", "trainer.lr", 0.5),
        ("\ufefftrainer: {lr: 0.5}", "trainer.lr", 0.5),
        ("trainer: {lr: 0.5} # ä\n", "trainer.lr", 0.5),
        ("trainer: {out: ~/runs/x}", "trainer.out", str(Path.home() / "runs/x")),
        ("data: {dataset: ~/d.jsonl}", "data.dataset", str(Path.home() / "d.jsonl")),
        ("model: {path: ~/m}", "model.path", str(Path.home() / "m")),
        ("tokenizer: {path: ~/t}", "tokenizer.path", str(Path.home() / "t")),
        ("diffusion: {process: masking, num-steps: 8}", "diffusion.num_steps", 8),
        ("diffusion: {process: edit, edits: [0.5, 0.25, 0.25, 0]}", "diffusion.edits", (0.5, 0.25, 0.25, 0.0)),
    ],
)  # fmt: skip
def test_a_file_means_what_it_says(content: str, path: str, value: Any, tmp_path: Path) -> None:
    section, _, name = path.rpartition(".")
    recipe = read(tmp_path, content)
    found = getattr(getattr(recipe, section) if section else recipe, name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("trainer: {lr: fast}", "line 1: trainer.lr must be a number above 0, at most 1000; got 'fast'"),
        ("trainer:\n  lr: .nan", "line 2: trainer.lr must be a number .*; got nan"),
        ("trainer:\n  lr: -.inf", "line 2: trainer.lr must be .*; got -inf"),
        ("trainer: {lr: 1e999}", "trainer.lr must be .*; got inf"),
        ("trainer: {lr: '0.1'}", "trainer.lr must be a number .*; got '0.1'"),
        ("trainer: {lr: true}", "trainer.lr must be a number .*; got 'true'"),
        ("trainer: {lr: [0.1]}", r"trainer.lr must be a number .*; got \['0.1'\]"),
        ("trainer: {lr: }", "trainer.lr must be a number .*; got None"),
        ("trainer: {lr: -1}", "trainer.lr must be a number above 0.*; got -1"),
        ("trainer: {steps: 1e3}", "trainer.steps must be a whole number .*; got '1e3'"),
        ("trainer: {steps: 8.0}", "trainer.steps must be a whole number .*; got '8.0'"),
        ("trainer: {steps: 010}", "trainer.steps must be a whole number .*; got '010'"),
        ("trainer: {minutes: 1:30}", "trainer.minutes must be a number .*; got '1:30'"),
        ("trainer: {steps: " + "9" * 5000 + "}", "trainer.steps|digits"),
        ("trainer: {precision: off}", "trainer.precision must be one of no, bf16; got 'off'"),
        ("trainer: {compile: 1}", "trainer.compile must be True or False; got '1'"),
        ("trainer: {compile: 'yes'}", "trainer.compile must be True or False; got 'yes'"),
        ("trainer: {out: ''}", "trainer.out must be a path; got ''"),
        ("trainer: {out: ~}", "trainer.out must be a string; got None"),
        ("data: {split: null}", "data.split must be a string; got None"),
        ("examples: one [GAP]", "examples must be a list, .*; got 'one .GAP.'"),
        ("examples: [null]", r"examples\[0\] must be a string; got None"),
        ("noise: {spans: 3}", "noise.spans must be a list, .*; got '3'"),
        ("noise: {spans: [1, two]}", r"noise.spans\[1\] must be a number .*; got 'two'"),
        ("diffusion: {edits: [1, 0]}", "diffusion.edits must have 4 entries"),
        ("trainer: {colour: red}", "line 1: unknown option trainer.colour; there are trainer.out, trainer.steps"),
        ("trainer: {learning-rate: 1}", "unknown option trainer.learning_rate"),
        ("trainer: {warm-up: 0.1}", "unknown option trainer.warm_up; did you mean trainer.warmup?"),
        ("out: runs/x", "unknown option out; did you mean trainer.out?"),
        ("model: {dataset: x}", "unknown option model.dataset; did you mean data.dataset?"),
        ("training: {lr: 0.1}", "unknown option training.lr; did you mean trainer.lr?"),
        ("trainer: 5", "trainer is a section and needs options in it, such as trainer.out"),
        ("trainer: {lr: {a: 1}}", "unknown option trainer.lr.a"),
        ("trainer: {lr: 0.1, lr: 0.2}", "trainer.lr is given twice; keep one of them"),
        ("data: {text-column: a, text_column: b}", "data.text_column is given twice"),
        ("trainer: {lr: 0.1}\ntrainer: {steps: 3}", "line 2: trainer is given twice"),
        ("trainer: {lr: 0.1}\ntrainer.lr: 0.2", "line 2: trainer.lr is given twice"),
        ("trainer: {lr: !!python/name:os.system x}", "trainer.lr has the tag tag:yaml.org,2002:python/name:os.system"),
        ("trainer: {lr: !mine 1}", "trainer.lr has the tag !mine"),
        ("? [a]\n: 1", "a key must be the name of an option"),
        ("trainer: {<<: 5}", "<< must name a section"),
        ("trainer: &t\n  <<: *t\n", "<< must name a section"),
        ("a: {b: {c: {d: {e: 1}}}}", "is nested too deeply"),
        ("[" * 1500, "nested too deeply|not YAML"),
        ("trainer:\n\tlr: 1", "line 2 is not YAML: found character"),
        ("trainer: {lr: [", "line 1 is not YAML"),
        ("a: 1\n---\nb: 2", "line 2 is not YAML: .*another document|line 2 is not YAML"),
        ("trainer: {lr: \x00}", "is not YAML"),
        ("", "must hold sections such as 'trainer:' with options in them; it holds nothing"),
        ("# nothing\n", "it holds nothing"),
        ("- 1\n- 2", "it holds a list"),
        ("hello", "it holds a single value"),
        (b"trainer: {out: caf\xe9}", "is not UTF-8"),
        (b"\xff\xfet\x00", "is not UTF-8"),
        ("kind: sound", "unknown kind 'sound'; there are text, image"),
        ("kind: [text]", "kind must be a string"),
        ("kind: image\ntokenizer: {vocab: 300}", "unknown option tokenizer.vocab"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused_by_file_and_key(content: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert str(tmp_path / "run.yaml") in str(caught.value) or "kind" in str(caught.value)


def test_a_file_of_merges_within_merges_is_read_in_no_time(tmp_path: Path) -> None:
    """Aliases can stand for 10^9 nodes in a few lines; none is made more than once for an option."""
    lines = ["a0: &a0 {x: 1}", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 10))]
    with pytest.raises(ValueError, match="unknown option a0.x"):
        read(tmp_path, "\n".join(lines))


def test_later_words_win(tmp_path: Path) -> None:
    """The command line over the files, a later file over an earlier one, option by option."""
    (tmp_path / "more.yaml").write_text("trainer: {lr: 0.3, batch: 4}\n")
    content = "trainer: {lr: 0.1, steps: 7}\nexamples: ['a [GAP]']"
    recipe = read(tmp_path, content, f"--config={tmp_path / 'more.yaml'}", "--trainer.batch", "2", "--steps", "9")
    trainer = recipe.trainer
    assert (trainer.lr, trainer.batch, trainer.steps, recipe.examples) == (0.3, 2, 9, ("a [GAP]",))


def test_what_goes_together_is_judged_with_the_command_line(tmp_path: Path) -> None:
    """A file that is not a whole recipe by itself."""
    recipe = read(tmp_path, "kind: image\ndiffusion: {process: blur}", "--diffusion.predict", "x0")
    assert isinstance(recipe, PictureRecipe) and recipe.diffusion.process == "blur"


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(
            data=DataConfig("~/d's [v2]: x.jsonl", config="None", text_column="no", context=128, packed=True),
            model=ModelConfig(path="~/ü", lora=3),
            diffusion=DiffusionConfig(process="deletion+edit", staged=True, edits=(0.5, 0.25, 0.25, 0.0)),
            noise=NoiseConfig((1e-3 + 1, 1e5), 1.0),
            trainer=TrainerConfig(out="runs/a: b #c", lr=1e-7, minutes=0.1, precision="no"),
            examples=("--flag [GAP]", "- a: 'b' \"c\" # [GAP]\n\n two\ttabs", "é☃ [GAP]", "null [GAP]", "yes [GAP]"),
        ),
        PictureRecipe(diffusion=PictureDiffusion(process="blur", predict="x0", highest=2.5), variance=3),
    ],
    ids=["default", "odd", "image"],
)
def test_a_recipe_is_written_and_read_back(recipe: Any, tmp_path: Path) -> None:
    kind = "image" if isinstance(recipe, PictureRecipe) else "text"
    assert read(tmp_path, as_yaml(settings_of(recipe), kind, "A comment")) == recipe


def test_what_is_told_once_is_not_written(tmp_path: Path) -> None:
    for name in ("resume", "overwrite"):
        assert name not in as_yaml(settings_of(Recipe(trainer=TrainerConfig(**{name: True}))), "text", "")


def test_the_command_line_refuses_by_name_too(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """NaN and its kin, empty paths, and files that are not there; nothing is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    for words, named in {
        ("--trainer.lr", "nan"): "trainer.lr must be a number above 0",
        ("--trainer.clip", "inf"): "trainer.clip must be a number above 0",
        ("--trainer.ema", "1.5"): "trainer.ema must be a number from 0 to 1; got 1.5",
        ("--trainer.ema", "1"): "trainer.ema must be a number below 1; got 1.0",
        ("--trainer.weight-decay", "-1"): "trainer.weight_decay must be a number from 0",
        ("--trainer.warmup", "-0.1"): "trainer.warmup must be a number from 0 to 1; got -0.1",
        ("--noise.counted", "2"): "noise.counted must be a number from 0 to 1; got 2.0",
        ("--objective.power", "nan"): "objective.power must be a number",
        ("--out", ""): "trainer.out must be a path; got ''",
        ("--dataset", " "): "data.dataset must be a path; got ' '",
        ("--config", "nowhere.yaml"): "nowhere.yaml is not a file",
        ("--config", str(tmp_path)): "is not a file; --config takes a YAML file",
        ("--config", ""): "--config must be a path; got ''",
    }.items():
        assert main(["train", *words]) == 2
        assert named in " ".join(capsys.readouterr().err.split()), words
    assert list(tmp_path.iterdir()) == []


def test_other_commands_read_files_too(tmp_path: Path) -> None:
    """A section without a name of its own has its options outside, as on the command line."""
    from textdiff.commands import Infill

    (tmp_path / "f.yaml").write_text("json: true\ntop-k: 5\nmust: [a]\n")
    made = parse_one_of({"x": Infill}, ["--config", str(tmp_path / "f.yaml"), "We [GAP]."], prog="x", description="")
    assert made.json and made.sampling.top_k == 5 and made.must == ("a",) and made.words == ("We [GAP].",)
    assert all(not is_dataclass(value) or value is made.sampling for value in vars(made).values())


# ------------------------------------------------------------------------------------------------- options without effect

# option -> another value, options with which it has an effect, and with which it has none
HEEDED: dict[str, dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]] = {
    "text": {
        "data.packed": (True, {}, {"trainer.batch": 4, "trainer.accumulate": 4}),
        "tokenizer.vocab": (400, {}, {"tokenizer.path": "t"}),
        "model.preset": ("mini", {}, {"model.path": "m"}),
        "model.start": ("random", {}, {"diffusion.denoiser": "seq2seq"}),
        "model.context": (0.5, {"diffusion.denoiser": "autoregressive"}, {}),
        "diffusion.edits": ((0.1, 0.1, 0.8, 0.1), {"diffusion.process": "masking+edit"}, {}),
        "diffusion.bidirectional": (True, {"diffusion.denoiser": "autoregressive"}, {}),
        "diffusion.candidates": (4, {"diffusion.denoiser": "autoregressive"}, {"diffusion.denoiser": "seq2seq"}),
        "noise.spans": ((4.0,), {"diffusion.process": "masking"}, {"diffusion.process": "replacement"}),
        "noise.counted": (0.1, {"diffusion.process": "edit"}, {"diffusion.process": "masking"}),
        "objective.weighted": (True, {"diffusion.process": "masking"}, {}),
        "objective.power": (2.0, {}, {"objective.blank": 1.0}),
        "objective.blank": (0.5, {}, {"objective.steps": 1}),
        "objective.steps": (4, {}, {"objective.blank": 1.0}),
        "trainer.muon_lr": (0.5, {"trainer.optimizer": "muon"}, {}),
        "trainer.floor": (0.5, {}, {"trainer.warmup": 1.0}),
        "trainer.show_every": (5, {}, {"examples": ()}),
    },
    "image": {
        "data.config": ("x", {"data.dataset": "user/images"}, {}),
        "data.image_column": ("x", {"data.dataset": "user/images"}, {}),
        "model.family": ("dit", {}, {"model.path": "m"}),
        "model.channels": ((32,), {}, {"model.path": "m"}),
        "model.layers": (2, {}, {"model.path": "m"}),
        "model.dropout": (0.1, {}, {"model.path": "m"}),
        "model.attention": (False, {}, {"model.family": "dit"}),
        "objective.weighted": (True, None, {}),  # type: ignore[dict-item]
        "objective.power": (2.0, {}, {"objective.blank": 1.0}),
        "objective.blank": (0.5, {}, {"objective.steps": 1}),
        "objective.steps": (4, {}, {"objective.blank": 1.0}),
        "trainer.muon_lr": (0.5, {"trainer.optimizer": "muon"}, {}),
        "trainer.floor": (0.5, {}, {"trainer.warmup": 1.0}),
    },
}
NUMBERS = ("model.context", "diffusion.edits", "diffusion.bidirectional", "noise.spans", "noise.counted",
           "objective.weighted", "objective.power", "objective.blank", "objective.steps")  # fmt: skip


def with_options(kind: str, options: dict[str, Any]) -> Any:
    """A run with these options, by their dotted names."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        section, _, option = name.rpartition(".")
        sections.setdefault(section, {})[option] = value
    whole: dict[str, Any] = sections.pop("", {})
    make = Recipe if kind == "text" else PictureRecipe
    plain = make()
    return make(**whole, **{name: replace(getattr(plain, name), **values) for name, values in sections.items()})


def test_it_is_known_of_every_option_when_it_has_an_effect() -> None:
    for kind, recipe in {"text": Recipe(), "image": PictureRecipe()}.items():
        tables = (ALWAYS[kind], ELSEWHERE[kind], {*EFFECTS[kind]})
        assert set.union(*tables) == {*settings_of(recipe)} and sum(map(len, tables)) == len(settings_of(recipe))
        assert {*EFFECTS[kind]} == {*HEEDED[kind]}
        check_effects(recipe, kind)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in HEEDED.items() for name in table])
def test_an_option_without_effect_is_refused(kind: str, name: str) -> None:
    """By its name, value and what it is for; not where it has an effect, nor on resume, when nothing may change."""
    value, works, idle = HEEDED[kind][name]
    with pytest.raises(
        ValueError, match=rf"^{name} .* has no effect in this run: it is for .*; leave it out$"
    ) as caught:
        check_effects(with_options(kind, {name: value, **idle}), kind)
    assert "\n" not in str(caught.value)
    if works is not None:
        check_effects(with_options(kind, {name: value, **works}), kind)
    check_effects(with_options(kind, idle), kind)
    check_effects(with_options(kind, {name: value, **idle, "trainer.resume": True}), kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_refused_would_change_no_number(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loss of a batch is the same to the bit, and another one where the option is heeded."""
    monkeypatch.setattr("textdiff.recipe.check_effects", lambda recipe, kind: None)
    (tmp_path / "t.jsonl").write_text("".join(f'{{"text": "We go on with {n} of them, and on."}}\n' for n in range(40)))
    value, works, idle = HEEDED["text"][name]
    small = {"data.dataset": str(tmp_path / "t.jsonl"), "data.context": 16, "tokenizer.vocab": 320, "model.start": "random",
             "trainer.out": str(tmp_path / "out")}  # fmt: skip

    def loss(options: dict[str, Any]) -> float:
        made = with_options("text", small | options)
        data = made.prepare()
        job = made.make_job(model := made.make_model(data), data)
        x0, key = job.collate(data.rows["ids"][:8], Key.of(3, 8))
        return float(made.make_udm(model, data)(x0, key).total)

    assert loss(idle) == loss({name: value, **idle})
    assert loss(works) != loss({name: value, **works})


def test_candidates_need_a_model_that_compares_texts(tmp_path: Path) -> None:
    """Refused before anything is read or made, from Python and from the command line; context 0 goes with bidirectional."""
    recipe = Recipe(diffusion=DiffusionConfig(candidates=4), trainer=TrainerConfig(out=str(tmp_path / "out")))
    with pytest.raises(
        ValueError, match="diffusion.candidates 4 has no effect in this run: .* cannot compare whole texts"
    ):
        recipe.build()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"noise.spans 4.0 has no effect"):
        read_recipe(["--diffusion.process", "replacement", "--noise.spans", "4"], "train")
    with pytest.raises(ValueError, match=r"model.attention False has no effect"):
        read_recipe(["--kind", "image", "--model.family", "dit", "--model.no-attention"], "train")
    both = {"diffusion.denoiser": "autoregressive", "diffusion.bidirectional": True}
    check_effects(with_options("text", both | {"model.context": 0.0}), "text")
    with pytest.raises(ValueError, match=r"model.context 0.5 has no effect"):
        check_effects(with_options("text", both | {"model.context": 0.5}), "text")


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[1] / "data").glob("*.yaml")), ids=lambda file: file.stem
)
def test_the_recipes_that_are_given_have_no_idle_option(file: Path) -> None:
    read_recipe(["--config", str(file)], "train")
