"""Untrained gap filling with sentinels and in the middle: the law of what is drawn is the chain rule of the model.

Chi-square tests are asserted at p > 1e-6, their rate of false alarm, and rejected for a planted fault.
"""

from dataclasses import replace

import pytest
import torch
from test_laws import fit
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from writers import (
    BOS,
    EOS,
    GAP,
    MARKS,
    MASK,
    SPECIALS,
    VOCAB,
    WORDS,
    bloom,
    filled,
    fillings,
    gpt2,
    llama,
    opt,
    qwen2,
    state,
    t5,
    tally,
)

from textdiff.constraints import Automaton, Constraint
from textdiff.denoiser import Continuing, FimTokens, Middle, Sentinels, fim_tokens, sentinel_ids
from textdiff.drawing import draw_tokens
from textdiff.keys import Key
from textdiff.posterior import Decode
from textdiff.process import Deletion
from textdiff.sampler import sample

COUNT = 3_000  # texts a law is drawn with
FIM = FimTokens(*MARKS, ends=(EOS,))
HALF = torch.full((1,), 0.5, dtype=torch.float64)


FEW = (3, 4, 5)  # words in the tests that enumerate
FEWER = replace(SPECIALS, banned=(*SPECIALS.banned, *sorted({*WORDS} - {*FEW})))


def sentinels(ids=SPECIALS):
    return Sentinels(t5(), ids, MARKS)


def middle(ids=SPECIALS, model=None):
    return Middle(model or gpt2(), ids, FIM)


BOTH = [pytest.param(sentinels, id="sentinels"), pytest.param(middle, id="middle")]
ALL = [
    *BOTH,
    *(pytest.param(lambda make=make: middle(model=make()), id=make.__name__) for make in (llama, qwen2, bloom, opt)),
]


def draw(denoiser, x, decode=None, seed=0, number=None):
    with torch.inference_mode():
        rows = len(x) if number is None else number
        return denoiser(x, HALF.expand(len(x))).sample(decode or Decode(), Key.of(seed, rows))


def after(denoiser, before, words, gap):
    """p of each word and of the end, from a plain forward: `before` are the words of earlier gaps of [BOS 3 GAP 4 GAP]."""
    if isinstance(denoiser, Sentinels):
        source = torch.tensor([[3, 9, 4, 10, EOS]])
        fed = [0, *(t for k, w in enumerate(before) for t in (MARKS[k], *w)), MARKS[gap], *words]
        logits = denoiser.model(input_ids=source, decoder_input_ids=torch.tensor([fed])).logits[0, -1]
        ends = [EOS, *MARKS]
    else:
        prompt = [9, 3, 10, 4, 11] if gap == 0 else [9, 3, *before[0], 4, 10, 11]
        logits, ends = denoiser.model(input_ids=torch.tensor([[*prompt, *words]])).logits[0, -1], [EOS]
    p = logits.double().exp()
    p = torch.cat([p[list(FEW)], p[ends].sum()[None]])
    return dict(zip((*FEW, None), (p / p.sum()).tolist(), strict=True))


@torch.no_grad()
def chain(denoiser, longest=2):
    """The law of the fillings of [BOS 3 GAP 4 GAP], by enumeration."""

    def contents(before, gap):
        found, todo = {}, [((), 1.0)]
        while todo:
            words, chance = todo.pop()
            if len(words) == longest:
                found[words] = chance
                continue
            step = after(denoiser, before, words, gap)
            found[words] = chance * step[None]
            todo += [((*words, w), chance * step[w]) for w in FEW]
        return found

    first = contents((), 0)
    return {(w, v): p * q for w, p in first.items() for v, q in contents((w,), 1).items()}


@pytest.mark.parametrize("make", BOTH)
def test_the_law_is_the_chain_rule_over_all_gaps(make):
    """3,000 texts, 13 contents for each of two gaps. What is drawn with p squared, or the gaps swapped, is told apart."""
    denoiser, x = make(FEWER), state([[BOS, 3, GAP, 4, GAP]])
    law = chain(denoiser)
    assert abs(sum(law.values()) - 1) < 1e-9 and len(law) == 13**2
    many = x[torch.zeros(COUNT, dtype=torch.long)]
    seen = tally(many, draw(denoiser, many, Decode(max_gap=2)))
    assert fit(seen, law) > 1e-6
    assert fit(seen, {(v, w): p for (w, v), p in law.items()}) < 1e-6
    sharp = tally(many, draw(denoiser, many, Decode(max_gap=2, temperature=0.5)))
    assert fit(sharp, law) < 1e-6


@pytest.mark.parametrize("make", BOTH)
def test_log_prob_is_the_chain_rule_with_the_ends_on_the_left_neighbours(make):
    denoiser = make(FEWER)
    contents = [((3,), ()), ((), (5,)), ((3, 5), (4, 4)), ((), ())]
    x = state([[BOS, 3, GAP, 4, GAP]])[torch.zeros(len(contents), dtype=torch.long)]
    with torch.no_grad():
        score = denoiser(x, HALF.expand(len(x))).log_prob(filled(x, contents))
        for row, (first, second) in enumerate(contents):
            parts, before = [0.0], ()  # BOS
            for gap, words in enumerate((first, second)):
                steps = [after(denoiser, before, words[:k], gap) for k in range(len(words) + 1)]
                parts += [steps[-1][None], *(step[w] for step, w in zip(steps, words, strict=False))]
                before = (words,)
            expected = torch.tensor(parts).log()
            expected[0] = 0
            torch.testing.assert_close(score[row, : len(parts)], expected, atol=1e-4, rtol=0)
            assert not bool(score[row, len(parts) :].any())


@pytest.mark.parametrize("make", BOTH)
def test_words_of_a_known_length_are_scored_given_that_none_is_the_end_and_gradients_flow(make):
    denoiser, x = make(), state([[BOS, 3, MASK, MASK, 4], [BOS, MASK, 5, 6, GAP]])
    guess = draw(denoiser, x, Decode(max_gap=3))
    assert [len(f[0]) for f in fillings(x, guess)] == [2, 1]
    score = denoiser(x, HALF.expand(2)).log_prob(guess)
    word = guess.log_prob != 0
    torch.testing.assert_close(score[word], guess.log_prob[word], atol=1e-4, rtol=0)
    assert score[0].count_nonzero() == 2 and torch.equal(guess.x0.score, guess.log_prob)
    score.sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in denoiser.model.get_output_embeddings().parameters()
    )


ROWS = [
    [BOS, 3, GAP, 4],
    [BOS, GAP, 5, 6, MASK, MASK, 4, GAP],
    [BOS, 3, 4, 5, 6, 7, 8, 3, 4, 5],
    [BOS, GAP],
    [BOS, 3, 4, GAP, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, MASK],
]


@pytest.mark.parametrize("make", [*ALL, pytest.param(lambda: Continuing(gpt2(), SPECIALS), id="continuing")])
def test_the_users_words_stay_and_a_text_does_not_depend_on_its_batch(make):
    denoiser, x = make(), state(ROWS)
    for decode in (Decode(max_gap=5), Decode(max_gap=5, temperature=0), Decode(max_gap=5, top_k=3, top_p=0.8)):
        whole = draw(denoiser, x, decode)
        for row in range(len(x)):
            alone = state([ROWS[row]])  # without its batch mates, and without padding
            with torch.inference_mode():
                one = denoiser(alone, HALF).sample(decode, Key.of(0, len(x))[torch.tensor([row])])
            ids, fixed = (part[row][whole.x0.valid[row]] for part in (whole.x0.ids, whole.x0.fixed))
            assert ids[fixed].tolist() == [t for t in ROWS[row] if t not in (MASK, GAP)]
            assert set(ids[~fixed].tolist()) <= set(WORDS)
            assert ids.tolist() == one.x0.ids[0][one.x0.valid[0]].tolist()
            torch.testing.assert_close(
                whole.log_prob[row][whole.x0.valid[row]], one.log_prob[0][one.x0.valid[0]], atol=1e-4, rtol=0
            )
        assert [[len(w) for w in f] for f in fillings(x, whole)][1][1] == 2


@pytest.mark.parametrize("make", BOTH)
def test_max_gap_and_the_longest_text_hold(make):
    denoiser, x = make(), state([[BOS, 3, GAP, 4, GAP]] * 200)
    for decode, most, total in ((Decode(max_gap=2), 2, 4), (Decode(max_gap=4, longest=7), 2, 2)):
        lengths = [[len(w) for w in f] for f in fillings(x, draw(denoiser, x, decode))]
        assert max(map(max, lengths)) == most and max(map(sum, lengths)) == total


@pytest.mark.parametrize("make", [*BOTH, pytest.param(lambda: Continuing(gpt2(), SPECIALS, 2), id="continuing")])
def test_constraints_hold_and_what_is_written_under_them_is_counted_and_sealed(make):
    """Words 3 and 4 in turn, beginning with 3, an even number of them; 2 to 4 words; a given word inside."""
    step = torch.full((2, VOCAB), -1)
    step[0, 3], step[1, 4] = 1, 0
    turns = Automaton(step, torch.tensor([True, False]))
    decode = Decode(max_gap=6, constraints=(Constraint(2, 5, turns), Constraint(3, 4), Constraint(automaton=turns)))
    x = state([[BOS, 7, GAP, 8, GAP, 5], [BOS, 6, MASK, 4, MASK, MASK, 8]], [[0, 0, 1, 0, 2, 0], [0, 0, 3, 3, 3, 3, 0]])
    x = x[torch.arange(2).repeat_interleave(40)]
    guess = draw(make(), x, decode)
    found = fillings(x, guess)
    assert {f[0] for f in found[:40]} <= {(3, 4), (3, 4, 3, 4)} and {len(f[1]) for f in found[:40]} <= {3, 4}
    assert {f for f in found[40:]} == {((3,), (3, 4))}
    written = ~guess.x0.fixed & guess.x0.valid
    assert bool(guess.x0.counted[written].all() & guess.x0.sealed[guess.x0.valid].all())
    assert torch.equal(written, guess.x0.valid & (guess.x0.slot > 0) & ~guess.x0.fixed)
    with pytest.raises(ValueError, match="shorten the text, or ask for less"):
        draw(make(), x, Decode(max_gap=6, longest=8, constraints=decode.constraints))


@pytest.mark.parametrize("make", [*BOTH, pytest.param(lambda: Continuing(gpt2(), SPECIALS, 2), id="continuing")])
def test_processors_read_the_text_left_of_a_word_and_change_its_scores(make):
    seen = []

    def without_5(ids, scores):
        seen.extend(ids.tolist())
        return scores.index_fill(1, torch.tensor([5]), -torch.inf)

    x = state([[BOS, 3, GAP, 4, GAP], [BOS, 6, 6, MASK, MASK]] * 30)
    guess = draw(make(), x, Decode(max_gap=3, processors=(without_5,)))
    assert 5 not in guess.x0.ids and 5 in draw(make(), x, Decode(max_gap=3)).x0.ids
    texts = [tuple(row[valid][1:].tolist()) for row, valid in zip(guess.x0.ids, guess.x0.valid, strict=True)]
    kept = [text for text in texts if text[:2] == (6, 6)]
    assert all(list(text[:3]) in seen for text in kept) and all(row[0] in (3, 6) and BOS not in row for row in seen)


@pytest.mark.parametrize("make", [*BOTH, pytest.param(lambda: Continuing(gpt2(), SPECIALS, 2), id="continuing")])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_one_loop_fills_a_page_by_deletion(make, steps):
    denoiser = make()
    x = state([[BOS, 3, GAP, 4, GAP, 6], [BOS, 5, MASK, MASK, 6, GAP]], [[0, 0, 1, 0, 0, 0], [0] * 6])
    decode = Decode(max_gap=3, constraints=(Constraint(1, 2),))
    for turn in sample(denoiser, Deletion(SPECIALS), x, steps=steps, key=Key.of(1, 2), decode=decode):
        for row in (turn.rows == 0).nonzero()[:, 0]:
            assert turn.draw.x0.ids[row][turn.draw.x0.fixed[row]].tolist() == [BOS, 3, 4, 6]
            assert 1 <= int((turn.draw.x0.slot[row] == 1).sum()) <= 2
    assert not bool(torch.isin(turn.x.ids[turn.x.valid], torch.tensor([GAP, MASK])).any())


def test_a_gap_ends_with_any_sentinel():
    """3,000 texts. Where only the end of the text ends a gap, another law is drawn."""
    denoiser, x = sentinels(FEWER), state([[BOS, 3, GAP, 4, GAP]])
    law, many = chain(denoiser), x[torch.zeros(COUNT, dtype=torch.long)]
    denoiser.sentinels = (*MARKS[:2], EOS)  # the last one is not asked for
    assert fit(tally(many, draw(denoiser, many, Decode(max_gap=2))), law) < 1e-6


def test_more_gaps_than_sentinels_and_words_in_doubt_are_refused():
    denoiser = sentinels()
    with pytest.raises(ValueError, match="4 gaps, and this model marks 3 at most; fill the text in parts"):
        denoiser(state([[BOS, 3, GAP, 4, GAP, 4, GAP, 5, GAP]]), HALF)
    x = state([[BOS, 3, GAP]])
    with pytest.raises(ValueError, match="does not correct words"):
        denoiser(x.with_(doubtful=x.ids == 3), HALF)
    with pytest.raises(ValueError, match="no sentinels"):
        Sentinels(denoiser.model, SPECIALS, ())


def tokenizer(*names):
    vocabulary = {name: number for number, name in enumerate(("a", "b", "</s>", *names))}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), eos_token="</s>"
    )


def test_the_tokens_of_a_tokenizer_are_found_by_their_names():
    assert sentinel_ids(tokenizer("<extra_id_1>", "<extra_id_0>", "<extra_id_3>")) == (4, 3)
    assert sentinel_ids(tokenizer("▁<extra_id_0>")) == (3,) and sentinel_ids(tokenizer("x")) == ()
    assert fim_tokens(tokenizer("<fim_prefix>", "<fim_suffix>")) is None
    found = fim_tokens(tokenizer("<|fim_middle|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_pad|>", "<|endoftext|>"))
    assert found == FimTokens(4, 5, 3, (2, 7, 6))
    for names in [("▁<PRE>", "▁<SUF>", "▁<MID>"), ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")]:
        assert fim_tokens(tokenizer(*names)) == FimTokens(3, 4, 5, (2,))


def test_a_draw_at_temperature_0_is_the_most_probable_word_of_each_place():
    denoiser, x = middle(), state([[BOS, 3, MASK, MASK, 4]])
    with torch.no_grad():
        words = []
        for _ in range(2):
            logits = denoiser.model(input_ids=torch.tensor([[9, 3, 10, 4, 11, *words]])).logits[0, -1:, list(WORDS)]
            words.append(WORDS[int(draw_tokens(logits, HALF, Decode(temperature=0))[0])])
    assert fillings(x, draw(denoiser, x, Decode(temperature=0))) == [(tuple(words),)]
