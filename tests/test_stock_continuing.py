"""Any left-to-right model fills gaps: with many particles, its law is the model's own on texts that hold the user's words.

Laws are compared by total variation: each test states how many texts were drawn with how many particles, a bound that
the draw stays under, and what it is over where the algorithm is broken. Seeds are fixed, so no test is a matter of chance.
"""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from writers import BOS, EOS, GAP, MASK, SPECIALS, bart, filled, fillings, gpt2, plain, qwen2, state

from textdiff.constraints import Automaton, Constraint
from textdiff.denoiser import Continuing, continuing
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw

FEW = (3, 4, 5)
IDS = replace(SPECIALS, banned=(*SPECIALS.banned, 6, 7, 8))
PLAIN = replace(SPECIALS, banned=(EOS,), size=6)  # of the model with three words
HALF = torch.full((1,), 0.5, dtype=torch.float64)
COUNT, PARTICLES = 500, 16
SHORT = [(), *((w,) for w in FEW), *itertools.product(FEW, FEW)]  # the contents of a gap of at most two words


@pytest.fixture(autouse=True)
def _many_at_once(monkeypatch):
    monkeypatch.setattr(continuing, "_STREAMS", COUNT * PARTICLES)


def draw(denoiser, x, decode, seed=0):
    with torch.inference_mode():
        return denoiser(x, HALF.expand(len(x))).sample(decode, Key.of(seed, len(x)))


def drawn(denoiser, row, decode, count=COUNT, slots=None):
    """The law of the fillings, as drawn."""
    x = state([row], slots)[torch.zeros(count, dtype=torch.long)]
    return {key: n / count for key, n in Counter(fillings(x, draw(denoiser, x, decode))).items()}


@torch.no_grad()
def chain(model, text, first, ends_too=False, source=None):
    """log p of the text after `first`, from a plain forward; with the end, too, where that is asked."""
    fed = torch.tensor([[*first, *text]])
    inputs = {"input_ids": fed} if source is None else {"input_ids": torch.tensor([source]), "decoder_input_ids": fed}
    law = model(**inputs).logits[0].double().log_softmax(-1)
    score = sum(float(law[len(first) - 1 + k, token]) for k, token in enumerate(text))
    return score + (float(law[-1, EOS]) if ends_too else 0.0)


def exact(score, contents):
    """The law in proportion to exp(score) on these contents."""
    weight = torch.tensor([score(*content) for content in contents], dtype=torch.float64).softmax(0).tolist()
    return dict(zip(contents, weight, strict=True))


def distance(first, second):
    """Total variation."""
    return sum(abs(first.get(key, 0) - second.get(key, 0)) for key in {*first, *second}) / 2


RIGHT = [4, 3, 3, 5]


@pytest.mark.parametrize("window", [8, 2])
def test_one_gap_has_the_models_law_given_the_text_on_both_sides(window, monkeypatch):
    """500 texts, 16 particles, 13 contents: below 0.1; from the left side alone it would be over 0.3."""
    monkeypatch.setattr(continuing, "_WINDOW", window)
    model, row = plain(), [BOS, 3, 5, GAP, *RIGHT]
    law = exact(lambda w: chain(model, [3, 5, *w, *RIGHT], [EOS]), [(w,) for w in SHORT])
    found = drawn(Continuing(model, PLAIN, PARTICLES), row, Decode(max_gap=2))
    assert distance(found, law) < 0.1
    assert distance(found, exact(lambda w: chain(model, [3, 5, *w], [EOS]), [(w,) for w in SHORT])) > 0.3


def test_a_model_with_an_encoder_reads_the_gaps_and_rewrites_the_text():
    """500 texts, 16 particles, one word: below 0.07; with another text before the encoder it is over 0.15."""
    model, row = bart(), [BOS, 3, MASK, 4, 4]
    contents = [((w,),) for w in FEW]
    law = exact(lambda w: chain(model, [3, *w, 4, 4], [EOS], source=[3, MASK, 4, 4, EOS]), contents)
    found = drawn(Continuing(model, IDS, PARTICLES), row, Decode(max_gap=2))
    assert distance(found, law) < 0.07
    other = [exact(lambda w, t=t: chain(model, [3, *w, 4, 4], [EOS], source=[t, EOS]), contents) for t in (5, 7, 8)]
    assert max(distance(found, law) for law in other) > 0.15


def firsts(law):
    """The law of the first gap."""
    total = Counter()
    for (w, _), p in law.items():
        total[w] += p
    return total


def test_two_gaps_have_the_joint_law():
    """500 texts, 16 particles, 13 contents of the first gap: below 0.12; were it drawn without what follows the second,
    0.25, and so it is with one particle."""
    model, row = plain(), [BOS, 3, GAP, 4, GAP, 5, 3]
    law = firsts(exact(lambda w, v: chain(model, [3, *w, 4, *v, 5, 3], [EOS]), [*itertools.product(SHORT, SHORT)]))
    first = exact(lambda w: chain(model, [3, *w, 4], [EOS]), [(w,) for w in SHORT])
    assert distance({w: p for (w,), p in first.items()}, law) > 0.25
    found = [firsts(drawn(Continuing(model, PLAIN, k), row, Decode(max_gap=2))) for k in (1, PARTICLES)]
    assert distance(found[1], law) < 0.12 < 0.2 < distance(found[0], law)


def test_particles_are_not_all_kept_from_one_kind_of_cut():
    """Candidates come in groups, a group a continuation; of equal groups each is to be cut by its own chance.

    16 groups of two cuts alike: one u for all of them would choose the same cut of each, 0 or 16 of the second kind.
    """
    weight = torch.zeros(32, dtype=torch.float64)
    u = Key.of(0, 200).uniform(16)
    counts = torch.tensor([sum(c % 2 for c in continuing._chosen(weight, row, Decode())) for row in u])
    assert 6 < float(counts.double().mean()) < 10 and float(counts.double().std()) < 3
    alike = [sum(c % 2 for c in continuing._chosen(weight, row[:1].expand(16), Decode())) for row in u]
    assert {*alike} == {0, 16}


def test_a_text_that_ends_in_a_gap_ends_where_the_model_ends_it():
    """500 texts, 16 particles, 13 contents: below 0.1; were all lengths alike it would be over 0.2."""
    model, row = plain(), [BOS, 3, GAP]
    contents = [(w,) for w in SHORT]
    law = exact(lambda w: chain(model, [3, *w], [EOS], ends_too=True), contents)
    found = drawn(Continuing(model, PLAIN, PARTICLES), row, Decode(max_gap=2))
    assert distance(found, law) < 0.1
    assert distance(found, exact(lambda w: chain(model, [3, *w], [EOS]), contents)) > 0.2


def test_constraints_restrict_the_law_and_do_not_bend_it():
    """200 texts, 8 particles, words 3 3, 4 5 or 5. Below 0.12; without the weights of the mask it would be over 0.3."""
    step = torch.full((4, 6), -1)
    step[0, 3], step[1, 3], step[0, 4], step[2, 5], step[0, 5] = 1, 3, 2, 3, 3
    automaton = Automaton(step, torch.tensor([False, False, False, True]))
    model, row = plain(), [BOS, 5, GAP, 4, 3]
    contents = [((3, 3),), ((4, 5),), ((5,),)]
    law = exact(lambda w: chain(model, [5, *w, 4, 3], [EOS]), contents)
    decode = Decode(max_gap=4, constraints=(Constraint(automaton=automaton),))
    found = drawn(Continuing(model, PLAIN, 8), row, decode, 200, slots=[[0, 0, 1, 0, 0]])
    assert {*found} <= {*law} and distance(found, law) < 0.12

    def local(w):  # as if the words were drawn from the mask's law, and weighed by the right side alone
        right = chain(model, [5, *w, 4, 3], [EOS]) - chain(model, [5, *w], [EOS])
        return float(torch.tensor([chain(model, [5, c], [EOS]) for c in FEW]).log_softmax(0)[w[0] - 3]) + right

    assert distance(found, exact(local, contents)) > 0.3


def test_a_known_length_is_kept_and_weighed():
    """500 texts, 16 particles, 9 contents: below 0.1; from the left side alone it would be over 0.25."""
    model, row = plain(), [BOS, 3, MASK, MASK, 4, 5, 3]
    contents = [(w,) for w in SHORT if len(w) == 2]
    law = exact(lambda w: chain(model, [3, *w, 4, 5, 3], [EOS]), contents)
    found = drawn(Continuing(model, PLAIN, PARTICLES), row, Decode(max_gap=1))
    assert {*found} <= {*law} and distance(found, law) < 0.1
    assert distance(found, exact(lambda w: chain(model, [3, *w], [EOS]), contents)) > 0.25


def test_log_prob_is_that_of_the_whole_text_by_the_chain_rule():
    x = state([[BOS, 3, GAP, 4, GAP], [BOS, 3, 4, MASK, 5]])
    contents = [((5, 3), (4,)), ((3,),)]
    texts = [[3, 5, 3, 4, 4], [3, 4, 3, 5]]
    sources = [[3, MASK, 4, MASK, EOS], [3, 4, MASK, 5, EOS]]
    for model in (gpt2(), qwen2(), bart()):
        seq2seq = model.config.is_encoder_decoder
        truth = filled(x, contents)
        score = Continuing(model, IDS)(x, HALF.expand(2)).log_prob(truth)
        for row, text in enumerate(texts):
            expected = chain(model, text, [EOS], ends_too=row == 0, source=sources[row] if seq2seq else None)
            assert score[row].sum().item() == pytest.approx(expected, abs=1e-4)
        assert score[1, 4].item() == pytest.approx(
            chain(model, texts[1], [EOS], source=sources[1] if seq2seq else None)
            - chain(model, texts[1][:3], [EOS], source=sources[1] if seq2seq else None), abs=1e-4
        )  # fmt: skip
        score.sum().backward()
        assert model.get_input_embeddings().weight.grad.isfinite().all()


def test_a_state_with_a_bos_of_the_models_own_needs_no_other_first_token():
    ids, model = replace(IDS, bos=EOS, gap=13), gpt2()
    x = state([[EOS, GAP, 4, 5]])
    own = draw(Continuing(model, ids), x, Decode(max_gap=3))
    virtual = state([[BOS, GAP, 4, 5]])
    assert fillings(x, own) == fillings(virtual, draw(Continuing(model, IDS), virtual, Decode(max_gap=3)))


@torch.no_grad()
def best(model, left, right, longest):
    """What is taken at temperature 0: every first word, then what is most probable, cut where word and right side are."""
    score = {(): chain(model, [*left, *right], [EOS])}
    for first in FEW:
        words = [first]
        while len(words) <= longest:
            ahead = chain(model, [*left, *words, *right], [EOS]) - chain(model, [*left, *words], [EOS])
            score[tuple(words)] = chain(model, [*left, first], [EOS]) + ahead
            words.append(max(FEW, key=lambda w: chain(model, [*left, *words, w], [EOS])))
    return max(score, key=score.get)


def test_temperature_0_takes_the_best_cut_whatever_the_seed():
    model = gpt2()
    for right in ([4, 3, 3], [5], [3, 4, 5, 4, 3]):
        x = state([[BOS, 3, GAP, *right]])
        found = {
            fillings(x, draw(Continuing(model, IDS), x, Decode(max_gap=3, temperature=0), seed))[0] for seed in (1, 2)
        }
        assert found == {(best(model, [3], right, 3),)}


def test_what_cannot_be_done_is_said_in_a_line():
    model = gpt2()
    with pytest.raises(ValueError, match="particles 0 is not positive"):
        Continuing(model, IDS, 0)
    model.config.eos_token_id = None
    with pytest.raises(ValueError, match="no end token, so a text cannot end in a gap"):
        Continuing(model, IDS)(state([[BOS, 3, GAP]]), HALF)
    model.config.bos_token_id = None
    with pytest.raises(ValueError, match="begins with a gap and the model has no first token"):
        draw(Continuing(model, IDS), state([[BOS, GAP, 3]]), Decode())
    with pytest.raises(ValueError, match="no mask token, so its encoder cannot be shown a gap"):
        Continuing(bart(), replace(IDS, mask=14))(state([[BOS, GAP, 3]]), HALF)


def test_the_end_of_what_a_model_reads_is_not_passed():
    """Texts of one batch end at different times; none is fed a token at a place that the model has not."""
    model = gpt2(positions=8)
    x = state([[BOS, 3, 4, 5, 3, GAP, 4], [BOS, GAP, 4]])
    denoiser = Continuing(model, IDS)
    guess = draw(denoiser, x, Decode(max_gap=6, longest=denoiser.longest))
    assert int(guess.x0.valid.sum(1).max()) <= 8
    assert isinstance(guess, Draw) and guess.x0.ids[0][guess.x0.fixed[0]].tolist() == [BOS, 3, 4, 5, 3, 4]
