"""Several results for one text: different ones, the best first."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ROUNDS = 4  # as often samples are drawn for a text whose samples so far are alike


def draw_different(
    draw: Callable[[list[int], int], list[list[T]]],
    texts: int,
    samples: int,
    *,
    name: Callable[[T], str],
    merit: Callable[[T], float],
    expired: Callable[[], bool],
) -> list[list[T]]:
    """Return up to `samples` results of each text, no two of one name, those of the greatest merit first.

    A text gets fewer where there are no others: a choice of two, or the most probable filling. Samples are drawn again, at
    most ROUNDS times in all, as long as that brings new ones and time is left.

    Args:
        draw: (texts, first) -> `samples` results of each of these texts, those numbered from `first` on.
        texts: How many texts there are.
        samples: How many results each is to have.
        name: What two results have in common if they are the same one.
        merit: By what results are compared.
        expired: Whether time is up.
    """
    different: list[dict[str, T]] = [{} for _ in range(texts)]
    wanting = list(range(texts))
    for turn in range(ROUNDS):
        if not wanting or (turn and expired()):
            break
        lacking = []
        for text, results in zip(wanting, draw(wanting, turn * samples), strict=True):
            before = len(different[text])
            for result in results:
                different[text].setdefault(name(result), result)
            if before < len(different[text]) < samples:
                lacking.append(text)
        wanting = lacking
    return [sorted(results.values(), key=merit, reverse=True)[:samples] for results in different]
