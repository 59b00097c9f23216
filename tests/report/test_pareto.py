"""The Pareto front, by hand."""

from __future__ import annotations

import pytest

from mnet_det.report.pareto import pareto_front


@pytest.mark.parametrize(
    ("costs", "scores", "front"),
    [
        pytest.param([1, 2, 3], [0.1, 0.2, 0.3], [True, True, True], id="each costs more and is better"),
        pytest.param([1, 2, 3], [0.3, 0.2, 0.1], [True, False, False], id="the cheapest is the best"),
        pytest.param([1, 2, 2], [0.1, 0.2, 0.2], [True, True, True], id="equal ones are both on it"),
        pytest.param([1, 2], [0.2, 0.2], [True, False], id="the same score for less beats"),
        pytest.param([2, 2], [0.1, 0.2], [False, True], id="a better score for the same beats"),
        pytest.param([5], [0.0], [True], id="one alone"),
        pytest.param([], [], [], id="none"),
    ],
)
def test_a_point_is_on_the_front_if_nothing_beats_it(
    costs: list[float], scores: list[float], front: list[bool]
) -> None:
    assert pareto_front(costs, scores) == front


def test_every_score_needs_its_cost() -> None:
    with pytest.raises(ValueError, match="zip"):
        pareto_front([1], [])
