"""Taking turns: the only fair way to time several things on a machine that other programs use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

Result = TypeVar("Result")

ROUNDS = 20
REST_S = 0.05


def interleave(
    contestants: Sequence[Callable[[int], Result]],
    *,
    rounds: int = ROUNDS,
    warmup_rounds: int = 1,
    burst: int = 3,
    unmeasured: int = 2,
    rest_s: float = REST_S,
) -> list[list[Result]]:
    """Call contestants in turns, so that a noisy moment of the machine meets all of them.

    In each round each of them has one turn: a rest, a few calls that do not count, then those that do. The rest is
    there because the idle threads of OpenMP and OpenBLAS go on spinning for tens of milliseconds after a call, and
    take the cores from whoever runs next; the calls that do not count, because the caches hold another's data. The
    order is shuffled in each round (always alike), so that nobody always follows the same neighbour.

    Args:
        contestants: what to call, each with the running number of its kept calls, from 0; those that do not count
            have the number of the one after them.
        rounds: those that are kept.
        warmup_rounds: those before them, of which nothing is kept.
        burst: kept calls in each turn.
        unmeasured: calls before those in each turn.
        rest_s: how long to sleep before each turn, seconds.

    Returns:
        Of each contestant what its kept calls returned: rounds × burst results.

    Raises:
        ValueError: nothing would be kept.
    """
    if min(rounds, burst) < 1:
        raise ValueError(f"expected at least one round and one kept call in each, got {rounds} and {burst}")
    kept: list[list[Result]] = [[] for _ in contestants]
    shuffle = np.random.default_rng(0)
    for turn in range(warmup_rounds + rounds):
        for index in shuffle.permutation(len(contestants)):
            time.sleep(rest_s)
            numbers = [turn * burst + max(0, call) for call in range(-unmeasured, burst)]
            results = [contestants[index](number) for number in numbers]
            if turn >= warmup_rounds:
                kept[index] += results[unmeasured:]
    return kept
