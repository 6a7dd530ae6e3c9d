"""One pipeline serves many threads, and travels: what a call returns depends on neither its neighbours nor the process."""

import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import pytest
import torch
from stock import PATHS, filler
from tiny import tiny_checkpoint
from transformers import pipeline

from textdiff.denoiser import shared
from textdiff.denoiser.shared import counting
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.sampler import sample
from textdiff.tokens import Tokens

TEXTS = [
    "We [GAP] the United States",
    "wine, red [GAP:2] green: don't stop, [GAP] so it is",
    "yes [GAP:1] no maybe Yes [GAP:yes|no] no yes",
    "We the People of [GAP:1-2] United States, in Order to [GAP] a more perfect Union.",
    "café [GAP:red|green] wine",
]
SEEDS = 100


def requests(path: str) -> list[tuple[str, dict[str, Any]]]:
    """Five texts under a hundred seeds."""
    return [(text, {"seed": seed, "temperature": 1.0, "max_gap": 3}) for seed in range(SEEDS) for text in TEXTS]


def together(call: Any, asked: list[Any], workers: int = 8) -> list[Any]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(call, asked))


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def check_threads(path: str, asked: list[Any]) -> None:
    """Eight threads on one pipeline get the texts, scores, probabilities and numbers of calls that one gets."""
    fill = filler(path)
    config = None if fill.checkpoint is None else fill.checkpoint.config
    write = pipeline("text-diffusion", model=fill.model, tokenizer=fill.tokenizer, diffusion_config=config)

    def call(request: tuple[str, dict[str, Any]]) -> Any:
        text, options = request
        if options["seed"] % 4 == 3:
            return write(text.split(" [")[0], seed=options["seed"], max_new_tokens=3)
        return fill(text, **options)

    alone = [call(request) for request in asked]
    assert together(call, asked) == alone


@pytest.mark.parametrize("path", PATHS)
def test_eight_threads_get_what_one_gets(path: str) -> None:
    check_threads(path, requests(path)[1:20:3])


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS)
def test_five_hundred_requests(path: str) -> None:
    """Five texts under a hundred seeds."""
    check_threads(path, requests(path))


class Open:
    """A lock that is always open."""

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def test_without_the_lock_threads_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same requests, where the model has no lock, raise or return something else."""
    fill = filler("masked, bytes")
    asked = [(f"We {word} [GAP:2] on", {"seed": seed}) for word in "the of and in to".split() for seed in range(6)]
    alone = [fill(text, **options) for text, options in asked]
    monkeypatch.setattr(shared, "lock_of", lambda model: Open())
    monkeypatch.setattr("textdiff.denoiser.base.lock_of", lambda model: Open())

    def call(request: tuple[str, dict[str, Any]]) -> Any:
        try:
            return fill(request[0], **request[1])
        except Exception as error:
            return error

    assert any(together(call, asked) != alone for _ in range(20))


def test_a_call_does_not_depend_on_those_before_it() -> None:
    """To the last bit of every probability, though what was read before could be gone on from."""
    made = tiny_checkpoint("autoregressive", max_gap=3)
    text = "We the people of a more perfect union, of the people [GAP] and [GAP:2] on"

    def opened() -> Any:
        return pipeline("text-infilling", model=made.model, tokenizer=made.tokenizer, diffusion_config=made.config)

    first, fresh = opened(), opened()
    for seed in range(3):
        first(text.replace("people [", "people, people ["), seed=seed)
    assert first(text, seed=9) == fresh(text, seed=9)


def test_loops_that_take_turns_are_loops_of_their_own() -> None:
    """Two runs of the loop over one denoiser, a step of each in turn, end as each does alone."""
    made = tiny_checkpoint("autoregressive", max_gap=3)
    tools = made.tools()
    ids, process, denoiser = made.specials, tools["process"], tools["denoiser"]

    def run(seed: int, rows: list[list[int]]) -> Any:
        x0 = Tokens.from_rows(rows, ids.pad)
        key = Key.of(seed, len(rows))
        return sample(denoiser.session(), process, process.prior(x0, key), steps=4, key=key, decode=Decode(max_gap=3))

    one, two = [[ids.bos, 20, 21, 22, 23]], [[ids.bos, 30, 31], [ids.bos, 40, 41]]
    alone = [[step.x.ids.tolist() for step in run(seed, rows)] for seed, rows in ((1, one), (2, two))]
    mixed = [[step and step.x.ids.tolist() for step in turn] for turn in zip_longest(run(1, one), run(2, two))]
    assert mixed == [list(turn) for turn in zip_longest(*alone)] and len(mixed) > 1


def test_calls_of_other_threads_do_not_count() -> None:
    model = tiny_checkpoint("parallel").model
    ids = torch.tensor([[5, 6]])
    with counting(model) as calls:
        model(input_ids=ids)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: model(input_ids=ids)).result()
        assert calls == [1]


@pytest.mark.parametrize("task", ["text-infilling", "text-diffusion"])
@pytest.mark.parametrize("path", PATHS)
def test_pipelines_travel(path: str, task: str) -> None:
    """To spawned workers, joblib, Spark: the copy fills as the original does."""
    fill = filler(path)
    config = None if fill.checkpoint is None else fill.checkpoint.config
    one = pipeline(task, model=fill.model, tokenizer=fill.tokenizer, diffusion_config=config, seed=3)
    two = pickle.loads(pickle.dumps(one))
    text, options = ("We [GAP:2] on", {}) if task == "text-infilling" else ("We", {"max_new_tokens": 3})
    assert two(text, **options) == one(text, **options) and two.explain() == one.explain()
