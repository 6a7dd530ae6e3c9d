"""Many texts in one run are what each is alone: rows at clocks of their own, the nucleus, candidates read once.

tests/test_infilling_properties.py has the same of whole pipelines.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from stock import PATHS, filler
from test_laws import ANY_LENGTH, FIXED_LENGTH, SPECIALS, data
from torch.nn import Module
from writers import bart, t5

from textdiff.clocks import TOKENS, portions
from textdiff.denoiser import Denoiser, Oracle
from textdiff.denoiser.feeding import Stream, told_positions
from textdiff.drawing import truncate
from textdiff.keys import Key
from textdiff.posterior import Decode, Draw, Posterior
from textdiff.process import Deletion, Masking
from textdiff.rules import Rule, fresh, partial, posterior
from textdiff.sampler import finished, sample
from textdiff.tokens import Tokens, concatenate

TEXTS = [
    "We [GAP] the United States",
    "wine, red [GAP:2] green: don't stop, [GAP] so it is",
    "yes [GAP] no maybe Yes No yes no yes [GAP:1-3]",
    "[GAP:4]; 1787-09, 2024-05 and wine",
    "We the People of [GAP:1] United States, in Order to [GAP] a more perfect Union.",
    "café [GAP:red|green] wine",
]


class Each(Denoiser):
    """The oracle, which reads one time per batch, row by row."""

    def __init__(self, oracle: Oracle) -> None:
        Module.__init__(self)
        self.oracle = oracle

    def forward(self, xt: Tokens, t: torch.Tensor) -> Posterior:
        return _EachPosterior([self.oracle(xt[r : r + 1], t[r : r + 1]) for r in range(len(t))])


class _EachPosterior(Posterior):
    def __init__(self, parts: list[Posterior]) -> None:
        self.parts = parts

    def sample(self, decode: Decode, key: Key) -> Any:
        draws = [part.sample(decode, key[torch.tensor([r])]) for r, part in enumerate(self.parts)]
        x0 = concatenate([draw.x0 for draw in draws], SPECIALS.pad)
        width = max(draw.place.shape[1] for draw in draws)
        place = torch.cat([torch.nn.functional.pad(d.place, (0, width - d.place.shape[1])) for d in draws])
        return Draw(x0, place, x0.score)

    def log_prob(self, truth: Any) -> torch.Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("rule", [posterior, fresh, partial(0.5)])
@pytest.mark.parametrize(("make", "words"), [(Masking, FIXED_LENGTH), (Deletion, ANY_LENGTH)])
def test_rows_at_clocks_of_their_own_go_as_in_a_run_of_their_own(make: Any, words: Any, rule: Rule) -> None:
    """The very tokens of `sample` with each number of steps; with another number of steps some differ."""
    process = make(SPECIALS)
    x0 = data(words)
    denoiser = Each(Oracle(process, x0))
    key, steps = Key.of(3, 24), torch.arange(24) % 4 + 1
    start = process.prior(x0[torch.arange(24) % len(x0)], key.fold(99))
    found = {}
    for rows, x in finished(sample(denoiser, process, start, steps=steps, key=key, rule=rule)):
        assert (steps[rows] == steps[rows[0]]).all()  # those that are done at once
        found |= {row: x.codes()[k] for k, row in enumerate(rows.tolist())}
    assert len(found) == 24
    wrong = 0
    for count in range(1, 5):
        *_, last = sample(denoiser, process, start, steps=count, key=key, rule=rule)
        codes = last.x.codes()
        for row in range(24):
            if steps[row] == count:
                assert found[row] == codes[row]
            else:
                wrong += bool(found[row] != codes[row])
    assert wrong
    with pytest.raises(ValueError, match="steps 0 is not positive"):
        next(sample(denoiser, process, start, steps=steps * 0, key=key))


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999999])
def test_the_nucleus_is_that_of_whole_rows_in_order(share: float) -> None:
    """Rows whose few most probable tokens have the share, and rows, nearly uniform, where a sort of all is needed."""
    torch.manual_seed(0)
    scores = torch.randn(40, 1000, dtype=torch.float64) * torch.linspace(0.01, 8, 40, dtype=torch.float64)[:, None]
    ordered, order = scores.sort(-1, descending=True)
    probability = ordered.softmax(-1)
    outside = probability.cumsum(-1) - probability >= share
    right = scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
    assert torch.equal(truncate(scores, Decode(top_p=share)), right)
    counts = right.isfinite().sum(1)
    assert counts.min() < 256 and (counts.max() > 256 or share == 0.2)  # both ways were gone


def test_portions_are_of_like_size_and_hold_every_row_once() -> None:
    sizes = torch.tensor([700, 3, 4000, 650, 5, 5, 1200, 640, 9])
    doc = torch.where(torch.arange(4000) < sizes[:, None], 0, -1)
    x = Tokens.of(torch.zeros_like(doc), doc, torch.zeros_like(doc, dtype=torch.bool))
    parts = [part.tolist() for part in portions(x, torch.device("cpu"))]
    assert sorted(row for part in parts for row in part) == list(range(9))
    assert all(len(part) == 1 or len(part) * sizes[part].max() <= TOKENS for part in parts)
    assert [int(sizes[row]) for part in parts for row in part] == sorted(sizes.tolist()) and len(parts) > 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5, "candidates": 3}])
def test_one_call_is_many_calls(path: str, options: dict[str, Any]) -> None:
    """Texts with 1 to 4 open tokens that are known and gaps of lengths that are not, so that clocks and sizes differ."""
    fill = filler(path)
    autoregressive = path == "autoregressive"
    options = {name: value for name, value in options.items() if name != "candidates" or autoregressive}
    options |= {"max_gap": 4}
    together = fill(TEXTS, **options)
    for text, result in zip(TEXTS, together, strict=True):
        (alone,) = fill([text], **options)
        assert alone[0]["generated_text"] == result[0]["generated_text"]
        assert alone[0]["score"] == pytest.approx(result[0]["score"], abs=1e-4)


@pytest.mark.parametrize("path", PATHS)
def test_probes_of_a_model_are_not_counted(path: str) -> None:
    """The first call of a new pipeline returns what the second does, `calls` included, though it probes the model."""
    fill = filler.__wrapped__(path)
    texts = [*TEXTS, f"We the People {TEXTS[4] * 2} [GAP:1]"]
    assert fill(texts, batch_size=len(texts)) == fill(texts, batch_size=len(texts))


def test_a_counted_probe_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same comparison where the probe for padding is a call like any other."""
    monkeypatch.setattr("textdiff.denoiser.padding.probing", nullcontext)
    fill = filler.__wrapped__("parallel")
    first, second = (fill(TEXTS, batch_size=len(TEXTS)) for _ in range(2))
    assert [one[0]["calls"] for one in first] != [one[0]["calls"] for one in second]


def test_a_decoder_that_can_be_told_positions_reads_prompts_of_different_lengths_together() -> None:
    """As when each is read alone; relative positions, as T5's, have no module to be told."""
    assert told_positions(t5()) is None
    model = bart().double()
    assert told_positions(model) is not None
    prompts, sources = [[3, 4], [5], [4, 4, 7, 8, 3]], [[3, 4, 5], [6], [7, 8]]
    together = Stream(model, prompts, sources)
    assert len(together.batches) == 1
    together.feed([5, 6, None])
    ahead = together.ahead([[3, 4], [], [6, 7, 8]])
    for row in range(3):
        alone = Stream(model, prompts[row : row + 1], sources[row : row + 1])
        if row < 2:
            alone.feed([5 + row])
            torch.testing.assert_close(together.logits[row], alone.logits[0])
        torch.testing.assert_close(ahead[row], alone.ahead([[[3, 4], [], [6, 7, 8]][row]])[0])
