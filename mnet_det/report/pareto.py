"""The Pareto front: what nothing else beats at its cost."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[bool]:
    """Which of several things are on the front of low cost and high score.

    One is, if no other has at least its score at no more cost, one of the two strictly better; equal ones are both.

    Raises:
        ValueError: not as many scores as costs.
    """
    pairs = list(zip(costs, scores, strict=True))
    return [not any(_beats(other, pair) for other in pairs) for pair in pairs]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other
