"""Texts read from where they differ from those read before: nothing changes but what is read.

What has to be read is reckoned a second time here, from the states alone (`Reckoning`), and every call of the model's
body is held against it.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import CAUSAL, NAMES, NOT_BUILT, tiny
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from textdiff.denoiser import Autoregressive
from textdiff.denoiser.causal import Causal
from textdiff.denoiser.memory import Memory, cache_name
from textdiff.denoiser.prefix import Prefixes
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process import Deletion, Masking
from textdiff.sampler import sample
from textdiff.tokens import Specials, Tokens

PAD, BOS, MASK, GAP, END, FILL, LENGTH, WORD, SIZE = 0, 1, 2, 3, 4, 5, 6, 12, 40
SPECIALS = Specials(
    pad=PAD, bos=BOS, mask=MASK, gap=GAP, end=END, fill=FILL, lengths=tuple(range(LENGTH, WORD)), size=SIZE
)
PROCESSES = {"deletion": Deletion(SPECIALS), "masking": Masking(SPECIALS), "staged": Deletion(SPECIALS, staged=True)}
ROLES = {"vocab_size": SIZE, "bos_token_id": BOS, "eos_token_id": PAD, "pad_token_id": PAD, "initializer_range": 0.3}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48} | ROLES
LOCAL = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]} | ROLES
MAKES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ROLES)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **ROLES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=8)),
    "gpt-neo": lambda: GPTNeoForCausalLM(GPTNeoConfig(**LOCAL, window_size=20, max_position_embeddings=256)),
}
every_process = pytest.mark.parametrize("process", PROCESSES)


def model(kind: str) -> Any:
    """A tiny random one; its weights are large, so that every word it sees makes a difference."""
    torch.manual_seed(0)
    return MAKES[kind]().eval()


class Without(Prefixes):
    """Nothing is kept."""

    def able(self, length: int) -> bool:
        return False


class Anew(Prefixes):
    """What is kept is forgotten before it is used."""

    def score(self, *given: Any) -> torch.Tensor:
        self.forget()
        return super().score(*given)

    def begin(self, *given: Any) -> Any:
        self.forget()
        return super().begin(*given)


def denoisers(stock: Any) -> dict[str, Autoregressive]:
    made = {name: Autoregressive(stock, SPECIALS, 0.0).eval() for name in ("kept", "without", "anew")}
    made["without"].prefixes, made["anew"].prefixes = Without(stock), Anew(stock)
    return made


def texts() -> Tokens:
    """Two that begin alike, with gaps at the end and within, one of another length, and one twice."""
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(WORD, SIZE, (3, 24), generator=draw).tolist()
    words[1][:12] = words[0][:12]
    rows = [[BOS, *words[0]], [BOS, *words[1]], [BOS, *words[2][:17]], [BOS, *words[0]]]
    x = Tokens.from_rows(rows, PAD)
    fixed = x.valid & (torch.arange(25) < torch.tensor([[9], [14], [10], [9]]))
    fixed[:, 15] = True
    return x.with_(fixed=fixed, sealed=fixed & fixed.roll(-1, 1))


def run(denoiser: Autoregressive, process: str, steps: Any = (6, 3, 5, 1)) -> list[tuple[Any, ...]]:
    """Ids, scores and rows of every step; rows have numbers of steps of their own, so they leave one by one."""
    made, x, key = PROCESSES[process], texts(), Key.of(0, 4)
    decode = Decode(max_gap=4, max_length=40) if False else Decode(max_gap=4)
    found = sample(denoiser, made, made.prior(x, key), steps=torch.tensor(steps), key=key, decode=decode)
    return [(step.rows.tolist(), step.x.ids.tolist(), step.draw.x0.ids.tolist(), step.x.score) for step in found]


def same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    return len(one) == len(other) and all(
        a[:3] == b[:3] and torch.allclose(a[3], b[3], atol=1e-4, rtol=1e-4) for a, b in zip(one, other, strict=True)
    )


@contextmanager
def body(stock: Any) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of all that goes through a model's body, trials aside."""
    seen: list[tuple[int, ...]] = []
    with torch.no_grad():
        assert Prefixes(stock).able(64)
    handle = stock.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[0].shape))
    )
    try:
        yield seen
    finally:
        handle.remove()


# ------------------------------------------------------------------------------------------------------- what is said


@every_process
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_same_is_said_with_memory_and_without(kind: str, process: str) -> None:
    """Texts and scores of a batch whose rows leave, over all steps, and in a second run that finds what the first left."""
    stock, tokens = model(kind), {}
    made, found = denoisers(stock), {}
    for name, denoiser in made.items():
        with body(stock) as seen:
            found[name] = run(denoiser, process)
        tokens[name] = sum(rows * width for rows, width in seen)
    assert same(found["kept"], found["without"]) and same(found["kept"], found["anew"])
    assert tokens["kept"] < 0.8 * tokens["without"]
    assert same(run(made["kept"], process), found["without"])
    rows = [step[0] for step in found["kept"]]
    assert rows[0] == [0, 1, 2, 3] and len({*map(len, rows)}) > 2


def test_scores_that_differ_are_seen() -> None:
    found = run(denoisers(model("llama"))["kept"], "deletion")
    other = [(*step[:3], step[3] + 0.01) for step in found]
    assert not same(found, other)


# ------------------------------------------------------------------------------------------------------- what is read


class Reckoning:
    """What has to be read of each text, from the states alone."""

    def __init__(self) -> None:
        self.held: list[list[tuple[int, int]]] = []
        self.wanted: list[tuple[int, int]] = []

    def sequence(self, ids: list[int]) -> list[tuple[int, int]]:
        """What is fed for a text, and where it stands; of masks in a row there is one."""
        seen = [(word, k) for k, word in enumerate(ids) if word != MASK or not k or ids[k - 1] != MASK]
        return [*seen, (END, len(ids))]

    def read(self, x: Tokens, asked: torch.Tensor | None) -> None:
        rows = [ids[valid].tolist() for ids, valid in zip(x.ids, x.valid, strict=True)]
        fed, most = [self.sequence(ids) for ids in rows], []
        for row, text in enumerate(fed):
            most.append(len(text))
            if asked is not None:  # the markers again, of which the first has to be heard
                text += [(GAP, k) for k in asked[row].nonzero()[:, 0].tolist()]
        starts = [max((common(text, held) for held in self.held), default=0) for text in fed]
        lefts = [len(text) - min(start, end if asked is not None else start) for text, start, end in
                 zip(fed, starts, most, strict=True)]  # fmt: skip
        count = len(rows) if asked is not None else len({tuple(text) for text in fed})
        if max(lefts):
            self.wanted.append((count, max(lefts)))
        self.held = fed


def common(one: list[Any], other: list[Any]) -> int:
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@every_process
def test_all_that_is_read_is_what_follows_the_longest_common_prefix(
    process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, reckoning = model("llama"), Reckoning()
    denoiser, begin, score = denoisers(stock)["kept"], Causal.begin, Causal.score

    def beginning(self: Causal, x: Tokens, room: int) -> Any:
        reckoning.read(x, None)
        return begin(self, x, room)

    def scoring(self: Causal, x: Tokens, fed: Any, where: Any, known: Any, lasting: bool = False) -> Any:
        reckoning.read(x, where)
        return score(self, x, fed, where, known, lasting)

    monkeypatch.setattr(Causal, "begin", beginning)
    monkeypatch.setattr(Causal, "score", scoring)
    with body(stock) as seen:
        run(denoiser, process)
    assert len(reckoning.wanted) >= 4
    # words that are written go through the body one by one
    assert [shape for shape in seen if shape[1] > 1] == [shape for shape in reckoning.wanted if shape[1] > 1]
    assert sum(shape == (1, 1) for shape in reckoning.wanted) <= 1


def test_of_a_blank_page_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, key = denoisers(model("llama"))["kept"], Key.of(0, 4)
    monkeypatch.setattr(Prefixes, "able", lambda self, length: pytest.fail("it was tried out"))
    x = PROCESSES["deletion"].prior(texts().with_(fixed=texts().ids == BOS), key)
    assert len(list(sample(denoiser, PROCESSES["deletion"], x, steps=2, key=key, decode=Decode(max_gap=4)))) == 2


def test_fillings_that_are_compared_are_read_from_their_gap_on() -> None:
    """The text before the first gap is there from when they were written."""
    stock, found, tokens = model("llama"), {}, {}
    for name, denoiser in denoisers(stock).items():
        key, made = Key.of(0, 6), PROCESSES["deletion"]
        x = made.prior(texts()[torch.zeros(6, dtype=torch.int64)], key)
        (step,) = sample(denoiser, made, x, steps=1, key=key, decode=Decode(max_gap=4))
        with torch.inference_mode(), body(stock) as seen:
            found[name] = denoiser.fluency(step.draw.x0)
        tokens[name] = sum(rows * width for rows, width in seen)
    assert len(found["kept"].unique()) > 2
    torch.testing.assert_close(found["kept"], found["without"], atol=1e-4, rtol=1e-4)
    assert tokens["kept"] < 0.75 * tokens["without"]


# ----------------------------------------------------------------------------------------------------------- no stale


@pytest.mark.parametrize("checked", [True, False])
def test_what_other_weights_have_read_is_forgotten(checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = model("llama")
    denoiser = denoisers(stock)["kept"]
    before = run(denoiser, "deletion")
    with torch.no_grad():
        for weight in stock.parameters():
            weight.mul_(0.7)
    if not checked:
        monkeypatch.setattr(Memory, "_check", lambda self, ids: None)
    after, right = run(denoiser, "deletion"), run(denoisers(copy.deepcopy(stock))["without"], "deletion")
    assert not same(before, right)
    assert same(after, right) == checked


def test_who_learns_keeps_nothing() -> None:
    stock = model("llama")
    denoiser = denoisers(stock)["kept"]
    run(denoiser, "deletion")
    assert len(denoiser.prefixes.memory.ids)
    denoiser.train()
    assert not len(denoiser.prefixes.memory.ids)
    run(denoiser, "deletion")
    assert not len(denoiser.prefixes.memory.ids)
    denoiser.eval()
    made, key = PROCESSES["deletion"], Key.of(0, 4)
    denoiser(made.prior(texts(), key), torch.ones(4)).sample(Decode(max_gap=4), key)  # gradients are on
    assert not len(denoiser.prefixes.memory.ids)


def test_texts_that_were_taken_over_are_not_gone_on_with() -> None:
    denoiser, x = denoisers(model("llama"))["kept"], PROCESSES["masking"].prior(texts(), Key.of(0, 4))
    with torch.inference_mode():
        first, one = denoiser.reader.begin(x, 8), torch.ones(4, dtype=torch.int64)
        denoiser.reader.begin(x[:2], 8)
        with pytest.raises(RuntimeError, match="other texts"):
            first.advance(one, one)


# ------------------------------------------------------------------------------------------- models that go the old way


@pytest.mark.parametrize("kind", ["mamba", "mistral", "gpt-neo"])
def test_a_model_that_cannot_goes_the_usual_way(kind: str) -> None:
    stock = model(kind)
    made = denoisers(stock)
    assert same(run(made["kept"], "deletion", 3), run(made["without"], "deletion", 3))
    assert not len(made["kept"].prefixes.memory.ids) or made["kept"].prefixes.able(16)
    with torch.no_grad():
        assert not made["kept"].prefixes.able(64)


def test_a_window_shows_in_longer_texts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of 20 is not seen at 16, where it makes no difference; forced, it does at 25."""
    stock = model("gpt-neo")
    made = denoisers(stock)
    with torch.no_grad():
        assert [made["kept"].prefixes.able(length) for length in (16, 17, 64, 16)] == [True, False, False, True]
    wanted = run(made["without"], "deletion", 3)
    assert same(run(made["kept"], "deletion", 3), wanted)
    monkeypatch.setattr(Prefixes, "able", lambda self, length: True)
    assert not same(run(denoisers(stock)["kept"], "deletion", 3), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES[CAUSAL] if f"{CAUSAL} {name}" not in NOT_BUILT])
def test_every_causal_family_says_the_same(name: str) -> None:
    """Whether it is found able or not."""
    made = denoisers(tiny(name, CAUSAL)[0].eval())
    try:
        wanted = run(made["without"], "deletion", (3, 2, 3, 1))
    except (AttributeError, RuntimeError, ValueError) as error:
        pytest.skip(f"the usual way fails: {error}")
    assert same(run(made["kept"], "deletion", (3, 2, 3, 1)), wanted)


def test_a_cache_is_called_what_the_model_calls_it() -> None:
    """transformers 5.24 renamed it, and will drop the old name."""

    class Older:
        def forward(self, input_ids: Any = None, past_key_values: Any = None) -> None: ...

    class Newer:
        def forward(self, input_ids: Any = None, cache: Any = None) -> None: ...

    assert [cache_name(kind()) for kind in (Older, Newer)] == ["past_key_values", "cache"]
