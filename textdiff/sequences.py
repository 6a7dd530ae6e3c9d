"""Several results for one text: different ones, the best first."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ROUNDS = 4  # as often as many samples are drawn as are wanted, for a text whose samples so far are alike
AT_ONCE = 64  # samples of one text


def draw_different(
    draw: Callable[[list[int], int, int], list[list[T]]],
    texts: int,
    samples: int,
    *,
    name: Callable[[T], str],
    merit: Callable[[T], float],
    expired: Callable[[], bool],
    least: int = 0,
) -> list[list[T]]:
    """Return up to `samples` results of each text, no two of one name, those of the greatest merit first.

    A text gets fewer where drawing on brings no others: a choice of two, or the most probable filling. Samples are drawn
    again, at most ROUNDS times as many in all, as long as that brings new ones and time is left.

    Args:
        draw: (texts, first, count) -> `count` results of each of these texts, those numbered from `first` on.
        texts: How many texts there are.
        samples: How many results each is to have.
        name: What two results have in common if they are the same one.
        merit: By what results are compared.
        expired: Whether time is up.
        least: How many turns are taken whether or not the last brought something new, as where each asks for less.
    """
    different: list[dict[str, T]] = [{} for _ in range(texts)]
    wanting = list(range(texts))
    first = turn = 0
    while first < ROUNDS * samples and wanting and not (first and expired()):
        count = min(samples, AT_ONCE, ROUNDS * samples - first)
        lacking = []
        for text, results in zip(wanting, draw(wanting, first, count), strict=True):
            before = len(different[text])
            for result in results:
                different[text].setdefault(name(result), result)
            if len(different[text]) < samples and (before < len(different[text]) or turn + 1 < least):
                lacking.append(text)
        wanting, first, turn = lacking, first + count, turn + 1
    return [sorted(results.values(), key=merit, reverse=True)[:samples] for results in different]
