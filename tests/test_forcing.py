"""What must be written is written: the automata by enumeration, the law of a parallel model, and every kind of model.

False alarms: every statistical test demands p > 1e-6 (chi-square, so many draws as it says); its control fails the same.
"""

from itertools import product

import pytest
import torch
from test_constraints import fit, language, left_to_right
from tiny import KINDS, tiny_checkpoint
from transformers import BertConfig, BertForMaskedLM, pipeline

from textdiff.constraints import Automaton, Constraint
from textdiff.denoiser import Parallel
from textdiff.gaps import Gap
from textdiff.joining import both, conjoined, containing, forced
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.tokens import Specials, Tokens

ALARM = 1e-6


def occurs(string: tuple[int, ...], text: tuple[int, ...]) -> bool:
    return any(text[i : i + len(string)] == string for i in range(len(text) - len(string) + 1))


def all_of(strings: list[tuple[int, ...]], text: tuple[int, ...]) -> bool:
    return all(occurs(string, text) for string in strings)


@pytest.mark.parametrize("string", [(0,), (0, 0, 1), (0, 1, 0, 1), (0, 0, 0), (1, 0, 1, 1, 0)])
def test_a_string_occurs_by_enumeration(string: tuple[int, ...]) -> None:
    a = containing(string, 2)
    for n in range(8):
        assert set(language(a, n, 2)) == {text for text in product(range(2), repeat=n) if occurs(string, text)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "strings", [[(4,)], [(4,), (5,)], [(4, 5), (5, 6)], [(4, 4)], [(4, 5, 4), (5, 4, 5)], [(4,), (4,)]], ids=str
)
def test_forced_ids_by_enumeration(strings: list[tuple[int, ...]]) -> None:
    """Ids 0 to 3 are forbidden. Strings may share letters: 4 5 and 5 6 are both in 4 5 6."""
    a, words = forced(strings, 8, range(4)), (4, 5, 6, 7)
    for n in range(6):
        expected = {text for text in product(words, repeat=n) if all_of(strings, text)}
        assert set(language(a, n, 8)) == expected
    even = Automaton(torch.tensor([[1], [0]]), torch.tensor([True, False]), torch.zeros(8, dtype=torch.int64))
    assert language(conjoined(even, a), 3, 8) == []
    assert set(language(conjoined(a, even), 4, 8)) == set(language(a, 4, 8))


def test_a_product_by_enumeration() -> None:
    one, two = containing((0, 1), 3), containing((1, 2, 1), 3)
    for n in range(6):
        assert set(language(both(one, two), n, 3)) == {*language(one, n, 3)} & {*language(two, n, 3)}


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ([(3,)], "forced id 3 is no text of this model's"),
        ([(4, 8)], "forced id 8 is no text of this model's; give ids of words, below 8"),
        ([(-1,)], "forced id -1"),
        ([()], "an empty string of ids"),
        ([(4, 5), ()], "an empty string of ids"),
    ],
)
def test_ids_that_cannot_be_forced(strings: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forced(strings, 8, range(4))


def test_how_much_can_be_forced() -> None:
    """2^n states for n ids: thirteen are few enough, fifteen are refused."""
    assert len(forced([(i,) for i in range(13)], 20).accept) == 2**13
    with pytest.raises(ValueError, match="more than 20000 states at once; ask for less"):
        forced([(i,) for i in range(15)], 20)


IDS = Specials(pad=0, bos=1, mask=2, gap=3, lengths=(), size=8)  # four words


def model() -> Parallel:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, initializer_range=0.4,
    )  # fmt: skip
    return Parallel(BertForMaskedLM(config).eval(), IDS)


DRAWS = 3000


@pytest.mark.parametrize(
    "strings",
    [[(4,)], [(4, 5)], [(5,), (6, 4)]],
    ids=str,
)
def test_two_gaps_have_the_conditioned_law(strings: list[tuple[int, ...]]) -> None:
    """Two gaps of four words, the first under what is forced and the second under another id: 256 texts each, enumerated.

    3,000 draws. Controls: the model's own law; and, of the first gap, 600 drawn word by word from left to right.
    """
    denoiser, x = model(), Tokens.from_rows([[1, 4, 2, 2, 2, 2, 5, 2, 2, 2, 2]], 0)
    slot = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 2, 2, 2, 2]])
    x = x.with_(fixed=x.ids != 2, slot=slot)
    asked = [strings, [(7,)]]
    constraints = tuple(Constraint(automaton=forced(each, 8, range(4))) for each in asked)
    with torch.inference_mode():
        scores = denoiser.logits(x, x.ids == 2).double().log_softmax(-1).split(4)
        many, t = x[torch.zeros(DRAWS, dtype=torch.long)], torch.ones(DRAWS, dtype=torch.float64)
        drawn = denoiser(many, t).sample(Decode(constraints=constraints), Key.of(0, DRAWS)).x0.ids
        free = Decode(constraints=(Constraint(), Constraint()))
        plain = denoiser(many, t).sample(free, Key.of(0, DRAWS)).x0.ids
    laws = []
    for number, columns in enumerate((slice(2, 6), slice(7, 11))):
        weights = {
            text: float(sum(scores[number][place, word] for place, word in enumerate(text)).exp())
            for text in product(range(4, 8), repeat=4)
            if all_of(asked[number], text)
        }
        law = {text: weight / sum(weights.values()) for text, weight in weights.items()}
        assert len(law) > 3
        assert fit([*map(tuple, drawn[:, columns].tolist())], law) > ALARM
        assert fit([*map(tuple, plain[:, columns].tolist())], law) < ALARM
        laws.append(law)
    words = Key.of(1, DRAWS // 5).uniform(4)
    masked = [left_to_right(constraints[0].automaton, scores[0], torch.full((4,), -1), u) for u in words]
    assert fit(masked, laws[0]) < ALARM


@pytest.fixture(scope="module", params=KINDS)
def fill(request: pytest.FixtureRequest):
    made = tiny_checkpoint(request.param, lengths=16, process="deletion", max_gap=8)
    return pipeline(
        "text-infilling", model=made.model, tokenizer=made.tokenizer, diffusion_config=made.config, device="cpu"
    )


@pytest.mark.parametrize("options", [{}, {"num_steps": 3, "rule": "partial:0.3"}, {"temperature": 0}, {"top_k": 2}])
def test_it_is_in_the_gap_whatever_the_model(fill, options: dict) -> None:
    """Three gaps, of ids, of a string of several tokens, and of what the call asks of all of them."""
    union = tuple(fill.tokenizer("union", add_special_tokens=False)["input_ids"])
    one = fill.tokenizer(" e", add_special_tokens=False)["input_ids"][-1]
    assert len(union) > 1
    page = ["We ", Gap(forced=(union, one)), " on", Gap(2, 16, must=("1787", "78;")), " of ", Gap(must=("xyz",)), "."]
    for result in fill(page, must=["a"], num_return_sequences=3, seed=4, **options):
        ids, strings, word = result["gaps"]
        found = tuple(fill.tokenizer.convert_tokens_to_ids(ids["tokens"]))
        assert "union" in ids["text"] and "e" in ids["text"] and "a" in ids["text"], found
        assert "1787" in strings["text"] and "78;" in strings["text"] and "a" in strings["text"]
        assert 2 <= len(strings["tokens"]) <= 16 and "xyz" in word["text"] and "a" in word["text"]


def test_tokens_are_those_that_were_given(fill) -> None:
    """Ids are tokens, not what they spell: the string in one way of spelling it alone."""
    spelt = [fill.tokenizer.convert_tokens_to_ids(letter) for letter in "pe"]
    (result,) = fill(["We ", Gap(forced=[spelt]), "."], seed=1)
    assert "p\0e" in "\0".join(result["gaps"][0]["tokens"])


@pytest.mark.parametrize(
    ("gap", "message"),
    [
        (Gap(forced=(1,)), "gap 1, after 'We ': forced id 1 is no text of this model's"),
        (Gap(forced=(100_000,)), "forced id 100000 is no text"),
        (Gap(1, 2, forced=((40, 41), 42)), r"nothing of up to 2 tokens fits forced \(\(40, 41\), 42\)"),
        (Gap(1, 1, forced=(40, 41)), r"nothing of exactly 1 tokens fits forced \(40, 41\)"),
        (Gap(max=1, must=("p4x",)), r"nothing of up to 1 tokens fits must \('p4x',\)"),
        (Gap(must=("b",), choices=("a", "c")), "no text keeps choices .*, must .* all at once"),
        (Gap(must=("b",), pattern="a+"), "no text keeps pattern .*, must .* all at once"),
    ],
)
def test_what_cannot_be_written(fill, gap: Gap, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill(["We ", gap, "."])


def test_what_cannot_be_asked(fill) -> None:
    for wrong, message in (
        ({"must": ("",)}, "must be a string with some text"),
        ({"forced": ((),)}, "an empty string of ids"),
    ):
        with pytest.raises(ValueError, match=message):
            Gap(**wrong)
    with pytest.raises(ValueError, match="what the gap must hold must be a list"):
        Gap(must="war")
    for wrong in ("war", [""]):
        with pytest.raises(ValueError, match="must must be a list|must\\[0\\] must be a string"):
            fill("We [GAP].", must=wrong)


def test_with_other_constraints(fill) -> None:
    """A pattern and forced ids; choices that contain a string; banned beside it."""
    one = fill.tokenizer.convert_tokens_to_ids("b")
    (result,) = fill(["We ", Gap(pattern="[ab]{4}", forced=((one, one),)), "."], seed=2)
    assert "bb" in result["gaps"][0]["text"] and {*result["gaps"][0]["text"]} <= {*"ab"}
    for seed in range(4):
        (result,) = fill("We [GAP:yes one|no|no one|one,must=one].", seed=seed, banned=["y"])
        assert result["gaps"][0]["text"] in ("no one", "one")
