"""Turns: who is called when, and what is kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from mnet_det.runtime import interleave as module
from mnet_det.runtime.interleave import interleave


class Contestants:
    """Callables that give their call's number back, and a diary of calls and rests."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.diary: list[str | float] = []
        self.calls = [self._named(name) for name in "abcd"[:count]]
        monkeypatch.setattr(module.time, "sleep", self.diary.append)

    def _named(self, name: str) -> Callable[[int], tuple[str, int]]:
        def call(number: int) -> tuple[str, int]:
            self.diary.append(name)
            return name, number

        return call


def test_a_turn_is_a_rest_then_calls_that_are_dropped_then_calls_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls a round are kept, 0 to 2 in the warm-up; each number is given once among them.

    The two before them were numbered too: of a folder of five images, the same two were never measured.
    """
    contestants = Contestants(2, monkeypatch)
    kept = interleave(contestants.calls, rounds=2, rest_s=0.25)
    assert kept == [[(name, number) for number in (3, 4, 5, 6, 7, 8)] for name in "ab"]
    turns = [contestants.diary[start : start + 6] for start in range(0, 36, 6)]
    assert sorted(turns) == sorted([[0.25, *[name] * 5] for name in "ab" for _ in range(3)])


def test_nobody_always_follows_the_same_neighbour_and_the_order_is_always_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    diaries = []
    for _ in range(2):
        contestants = Contestants(4, monkeypatch)
        interleave(contestants.calls, rounds=20, burst=1, unmeasured=0, warmup_rounds=0)
        diaries.append("".join(name for name in contestants.diary if isinstance(name, str)))
    assert diaries[0] == diaries[1]
    assert all(sorted(diaries[0][start : start + 4]) == list("abcd") for start in range(0, 80, 4))
    followers = set(itertools.pairwise(diaries[0]))
    assert followers >= set(itertools.permutations("abcd", 2))


@pytest.mark.parametrize(("rounds", "burst"), [(0, 3), (3, 0)], ids=["no round", "no call"])
def test_nothing_to_keep_is_refused(rounds: int, burst: int) -> None:
    with pytest.raises(ValueError, match="expected at least one round and one kept call in each"):
        interleave([], rounds=rounds, burst=burst)
