"""Counter-based randomness: uniform, independent in all directions it is used in, a function of its purpose alone.

Bounds. Chi-square tests are asserted at p > 1e-6. The columns that are compared have 1,000,000 numbers. A correlation
of n independent pairs is normal with deviation 1/sqrt(n); 4.9 deviations are exceeded, either way, with chance 1e-6.
Controls are sequences with a known fault, which the same criterion has to reject.
"""

import pytest
import torch
from scipy import stats

from textdiff.keys import Key

SAMPLES, COLUMNS = 2000, 500
GOLDEN = 0.6180339887498949


def uniform_p(values: torch.Tensor, cells: int = 256) -> float:
    """The chance of cell counts this uneven under the uniform law on [0, 1)."""
    counts = torch.bincount((values.flatten() * cells).long(), minlength=cells).double()
    return stats.chisquare(counts.numpy()).pvalue


def low_bits(values: torch.Tensor) -> torch.Tensor:
    """What the eight bits from the 2**-44th on say, as numbers on [0, 1): a weak hash shows there."""
    return (values * 2.0**44) % 256 / 256


def pair_p(first: torch.Tensor, second: torch.Tensor, cells: int = 16) -> float:
    """The chance of a table of pairs this uneven if both are uniform and independent."""
    return uniform_p(((first * cells).floor() + second) / cells, cells * cells)


def correlated(first: torch.Tensor, second: torch.Tensor) -> bool:
    table = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))
    return bool(table[0, 1].abs() > 4.9 / first.numel() ** 0.5)


def weyl(samples: int, columns: int) -> torch.Tensor:
    """The control: multiples of the golden ratio, perfectly uniform and perfectly predictable."""
    return (torch.arange(samples)[:, None] * 0.7548776662466927 + torch.arange(columns) * GOLDEN).double() % 1


def grid(seed: int = 0, first: int = 0) -> torch.Tensor:
    return Key.of(seed, torch.arange(first, first + SAMPLES)).uniform(COLUMNS)


# Two uses of one seed between which a dependence would do harm: (name, first, second).
NEIGHBOURS = [
    ("samples", lambda: (grid(), grid(first=1))),
    ("columns", lambda: (grid()[:, :-1], grid()[:, 1:])),
    ("seeds", lambda: (grid(0), grid(1))),
    ("steps", lambda: (Key.of(0, SAMPLES).fold(0).uniform(COLUMNS), Key.of(0, SAMPLES).fold(1).uniform(COLUMNS))),
    ("parent and child", lambda: (grid(), Key.of(0, SAMPLES).fold(0).uniform(COLUMNS))),
    ("order of folds", lambda: tuple(Key.of(0, SAMPLES).fold(a).fold(1 - a).uniform(COLUMNS) for a in (0, 1))),
    ("seed and sample", lambda: (Key.of(0, torch.arange(1, SAMPLES + 1)).uniform(COLUMNS), grid(1))),
]


def test_numbers_are_uniform() -> None:
    for values in (grid(), grid(seed=-5), Key.of(7, SAMPLES).fold(3).fold(10**12).uniform(COLUMNS)):
        # 1e6 numbers, 256 cells, high and low bits: false alarm 6e-6 over the six of them, with fixed seeds
        assert uniform_p(values) > 1e-6
        assert uniform_p(low_bits(values)) > 1e-6


def test_not_uniform_is_noticed() -> None:
    assert uniform_p(grid() ** 1.01) < 1e-6
    assert uniform_p(low_bits(grid().float().double())) < 1e-6  # float32 has no such bits


def test_first_columns_are_uniform_over_samples() -> None:
    """One number per text is what times are drawn from: sample numbers are consecutive, the column is always 0."""
    # 1e6 samples, 256 cells: false alarm 1e-6 each
    assert uniform_p(Key.of(0, 1_000_000).uniform(1)) > 1e-6
    assert uniform_p(Key.of(0, 1_000_000).fold(1).uniform(1)) > 1e-6


@pytest.mark.parametrize("pair", [pytest.param(draw, id=name) for name, draw in NEIGHBOURS])
def test_neighbours_are_independent(pair) -> None:
    first, second = pair()
    # about 1e6 pairs in 16 x 16 cells, and their correlation: false alarm 2e-6
    assert pair_p(first, second) > 1e-6
    assert not correlated(first, second)


def test_dependence_is_noticed() -> None:
    values = weyl(SAMPLES, COLUMNS + 1)
    assert pair_p(values[:, :-1], values[:, 1:]) < 1e-6
    noise = 0.01 * grid() + 0.99 * grid(1)  # a hundredth of the one in the other
    assert correlated(grid(), noise)


def test_rows_of_a_batch_are_uncorrelated() -> None:
    """Between any two of 200 rows, 5000 columns each: no pair of rows shares a stream."""
    table = torch.corrcoef(Key.of(3, 200).uniform(5000)).triu(1)
    # 19,900 pairs; 6.6 deviations have chance 4e-11 each, so 8e-7 over all
    assert table.abs().max() < 6.6 / 5000**0.5
    assert torch.corrcoef(weyl(200, 5000)).triu(1).abs().max() > 6.6 / 5000**0.5


def test_numbers_never_repeat() -> None:
    """Streams of one seed do not run into each other: 4,000,000 numbers of 52 bits have 0.002 equal pairs by chance."""
    key = Key.of(0, 4000)
    numbers = torch.cat([key.uniform(500), key.fold(0).uniform(500)])
    assert len(numbers.unique()) == numbers.numel()


def test_a_column_does_not_depend_on_the_count() -> None:
    key = Key.of(1, 5)
    assert torch.equal(key.uniform(7), key.uniform(100)[:, :7])
    assert torch.equal(key.normal(7), key.normal(100)[:, :7])
    assert key.uniform(0).shape == (5, 0)


def test_a_row_does_not_depend_on_the_batch() -> None:
    numbers = torch.tensor([5, 0, 3])
    batch, whole = Key.of(2, numbers), Key.of(2, 6)
    assert len(batch) == 3
    for use in (lambda key: key, lambda key: key.fold(4), lambda key: key.fold(4).fold(0)):
        assert torch.equal(use(batch).uniform(9), use(whole).uniform(9)[numbers])
        assert torch.equal(use(whole)[numbers].uniform(9), use(batch).uniform(9))


def test_a_key_is_not_used_up() -> None:
    key = Key.of(0, 3)
    first = key.uniform(4)
    key.fold(1).uniform(4)
    assert torch.equal(first, key.uniform(4))


def test_the_stream_is_pinned() -> None:
    """Checkpoints and logged samples are reproduced from seeds: a changed stream is a broken promise, not a detail."""
    first = [0.61062747, 0.60898268, 0.02933880]
    assert Key.of(0, 1).uniform(3)[0].tolist() == pytest.approx(first, abs=1e-8)


def unmix(z: int) -> int:
    """The inverse of SplitMix64's finaliser, by its own equations."""
    word = (1 << 64) - 1

    def unshift(value: int, bits: int) -> int:
        result = value
        for _ in range(64 // bits):
            result = value ^ (result >> bits)
        return result

    z = unshift(z & word, 31)
    z = unshift(z * pow(0x94D049BB133111EB, -1, 1 << 64) & word, 27)
    return unshift(z * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & word, 30)


@pytest.mark.parametrize("bits", [0, (1 << 64) - 1], ids=["lowest", "highest"])
def test_extremes_stay_inside(bits: int) -> None:
    """The open interval holds at both ends of the hash: at 1 a token would outlive t = 1, and a normal be infinite."""
    state = (unmix(unmix(bits)) - 0x9E3779B97F4A7C15) % (1 << 64)
    key = Key(torch.tensor([state - (1 << 64) if state >> 63 else state]))
    assert 0 < float(key.uniform(1)) < 1
    assert key.normal(1).isfinite().all()


def test_normal_moments() -> None:
    x = Key.of(0, SAMPLES).normal(COLUMNS).flatten()
    n = x.numel()
    # n = 1e6. Deviations of the first four moments: sqrt of (1, 2, 15, 96) / n. 5.2 of them: false alarm 8e-7 in all
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - moment) < 5.2 * (spread / n) ** 0.5
    assert uniform_p(torch.special.ndtr(x)) > 1e-6  # the whole law: false alarm 1e-6
    heavier = x * (1 + 0.02 * x**2)
    assert abs(float((heavier**4).mean()) - 3) > 5.2 * (96 / n) ** 0.5
