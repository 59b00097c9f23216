"""Advice for a budget, from measured points alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mnet_det.errors import ConfigError
from mnet_det.report.advice import (
    advise,
    again_command,
    best_at_usual_rates,
    budget_ms,
    budget_words,
    sentences,
    threads_words,
    unsteady_words,
    within_spread,
)
from mnet_det.report.study import LatencyRow, Measured, Spread, Stage, Study, read_study


@pytest.fixture
def study(make_sweep: Callable[..., Path]) -> Study:
    """Widths 1, 0.75, 0.5, 0.25 with two seeds each."""
    return read_study(make_sweep(seeds=(0, 1)))


def measured(study: Study, *points: tuple[Sequence[float], float, float]) -> Study:
    """The study with these APs by seed, medians and 95th percentiles instead, widest first."""
    changed = []
    for point, (aps, p50, p95) in zip(study.points, points, strict=False):
        assert point.latency is not None
        runs = [replace(run, measured=_with_ap(run.measured, ap)) for run, ap in zip(point.runs, aps, strict=False)]
        latency: LatencyRow = replace(point.latency, total_ms=Stage(p50, p95))
        changed.append(replace(point, runs=tuple(runs), latency=latency))
    return replace(study, points=tuple(changed))


def _with_ap(measured: Measured | None, ap: float) -> Measured:
    assert measured is not None
    return replace(measured, scores=replace(measured.scores, AP=ap))


def said(study: Study, ms: float) -> str:
    return " ".join(sentences(advise(study, ms), budget=budget_words(ms)))


def test_the_best_point_within_the_budget_is_named_and_the_next_better_one(study: Study) -> None:
    study = measured(study, ((0.51, 0.51), 40, 41), ((0.40, 0.40), 20, 21), ((0.30, 0.30), 10, 11))
    text = said(study, 25)
    assert "For 25 ms a frame (40.0 fps), the best measured point is alpha 0.75, rho 1: AP 0.400 ± 0.000" in text
    assert "20.0 ms a frame at the median, 50.0 fps" in text
    assert "on Example CPU @ 2.00GHz" in text
    assert "alpha 1, rho 1: +0.110 AP, 20.0 ms more a frame, 25.0 fps: over the budget." in text
    assert "faster points" not in text  # 0.1 of AP is more than the seeds' spread of nothing


def test_a_budget_that_is_met_exactly_is_met(study: Study) -> None:
    study = measured(study, ((0.5, 0.5), 40, 41), ((0.4, 0.4), 20, 21))
    best = advise(study, 40).best
    assert best is not None
    assert best.point.network.alpha == 1
    assert advise(study, 40).better is None
    assert "No point that was scored and timed has a higher AP." in said(study, 40)


def test_of_equal_points_the_faster_is_taken(study: Study) -> None:
    best = advise(measured(study, ((0.4, 0.4), 30, 31), ((0.4, 0.4), 20, 21)), 50).best
    assert best is not None
    assert best.ms == 20


def test_out_of_reach_names_the_fastest_and_predicts_nothing(study: Study) -> None:
    study = measured(study, ((0.5, 0.5), 40, 41), ((0.4, 0.4), 20, 21))
    text = said(study, 10)
    assert text.startswith("No measured point reaches 10 ms a frame (100.0 fps). The fastest is alpha 0.75, rho 1")
    assert "train and measure" in text
    assert "nothing is predicted" in text


def test_a_slow_tail_over_the_budget_is_said(study: Study) -> None:
    study = measured(study, ((0.5, 0.5), 30, 36))
    assert "Its 95th percentile, 36.0 ms, is over the budget" in said(study, 33)
    assert "95th" not in said(study, 36)


def test_differences_within_the_spread_of_seeds_are_said(study: Study) -> None:
    # sd of (0.48, 0.52) is 0.028, of (0.47, 0.51) too: 0.01 between the means is less than their sum
    study = measured(study, ((0.48, 0.52), 40, 41), ((0.47, 0.51), 20, 21), ((0.1, 0.1), 10, 11))
    assert "alpha 0.75, rho 1, has 0.010 less AP and takes 20.0 ms less a frame: within the spread" in said(study, 50)
    assert "over the budget; the gain is within the spread of the seeds" in said(study, 30)


def test_with_one_seed_nobody_knows(study: Study) -> None:
    study = measured(study, ((0.5,), 40, 41), ((0.4,), 20, 21))
    assert "AP 0.500 (one seed)" in said(study, 50)
    assert "with one seed each, nobody knows" in said(study, 50)
    assert "with one seed each, the gain may be the chance of a seed" in said(study, 30)


def test_which_of_two_points_has_one_seed_is_said(study: Study) -> None:
    study = measured(study, ((0.5, 0.52), 40, 41), ((0.4,), 20, 21))
    assert "20.0 ms less a frame; alpha 0.75, rho 1 has one seed, so nobody knows whether" in said(study, 50)
    assert "over the budget; alpha 0.75, rho 1 has one seed, so the gain may be the chance of a seed" in said(study, 30)


def test_a_best_point_that_keeps_60_fps_is_said_in_one_sentence(study: Study) -> None:
    study = measured(study, ((0.5, 0.5), 16, 36), ((0.4, 0.4), 8, 9))  # 60 fps are 16.7 ms, 30 fps 33.3, 15 fps 66.7
    said = "At 60 fps and every slower rate it is alpha 1, rho 1, the best of all measured points: "
    times = "16.0 ms a frame at the median (62.5 fps), 36.0 ms at the 95th percentile"
    same = best_at_usual_rates(study)
    assert same == f"{said}AP 0.500 ± 0.000 (2 seeds), {times}, which is over at 60 and 30 fps."
    assert best_at_usual_rates(measured(study, ((0.5, 0.5), 16, 16.5))).endswith("16.5 ms at the 95th percentile.")
    assert best_at_usual_rates(measured(study, ((0.5, 0.5), 17, 18), ((0.4, 0.4), 8, 9))) == ""


def test_unsteady_times_are_counted(study: Study) -> None:
    assert unsteady_words(study) == ""  # 95th percentiles are 1.05 times the medians
    study = measured(study, ((0.5, 0.5), 20, 30), ((0.4, 0.4), 10, 15.1), ((0.3, 0.3), 5, 50))  # the first just not
    assert unsteady_words(study) == (
        "The times of 2 of 3 points were unsteady (95th percentile above 1.5 × the median): measure them again while "
        "nothing else runs"
    )
    assert again_command(replace(study, folder=Path("my runs"))) == "mnet-det report 'my runs' --again"


def test_a_rate_just_missed_does_not_read_as_met(study: Study) -> None:
    study = measured(study, ((0.5, 0.5), 40, 41), ((0.4, 0.4), 16.75, 17))  # 1000 / 16.75 = 59.7
    assert "59.7 fps" in said(study, 1000 / 60)


def test_points_without_a_time_are_said_to_be_left_out(study: Study) -> None:
    study = measured(study, ((0.6, 0.6), 40, 41), ((0.5, 0.5), 20, 21), ((0.4, 0.4), 10, 11))
    assert "not weighed" not in said(study, 25)
    widest, *others = study.points
    untimed = replace(study, points=(replace(widest, latency=None), *others))
    text = said(untimed, 25)
    assert "No point that was scored and timed has a higher AP." in text
    assert "1 of the 3 points are not weighed" in text
    assert "Of them, alpha 1, rho 1 has AP 0.600 ± 0.000 (2 seeds); its time is not known." in text
    assert "alpha 1, rho 1 has AP" in said(untimed, 5)  # out of reach of all that were timed


def test_threads_are_counted_in_words(study: Study) -> None:
    row = study.points[0].latency
    assert row is not None
    assert [threads_words(replace(row, threads=count)) for count in (1, 2)] == ["1 thread", "2 threads"]


def test_chance_elsewhere_is_said_where_one_seed_leaves_it_open(study: Study) -> None:
    # sd of (0.3, 0.32) is 0.02 / sqrt(2) = 0.014
    study = measured(study, ((0.5,), 40, 41), ((0.4,), 20, 21), ((0.3, 0.32), 10, 11))
    assert "the chance of a seed (points with several seeds have ± 0.014 at most)." in said(study, 50)
    assert "the chance of a seed (points with several seeds have ± 0.014 at most)." in said(study, 30)


def test_nothing_timed_is_no_advice(make_sweep: Callable[..., Path]) -> None:
    study = read_study(make_sweep(latency=False))
    assert advise(study, 30).fastest is None
    assert said(study, 30) == "No point was both scored and timed, so nothing can be said about a budget."


@pytest.mark.parametrize(
    ("one", "other", "overlaps"),
    [
        (Spread(0.5, 0.02, 2), Spread(0.47, 0.02, 2), True),
        (Spread(0.5, 0.01, 2), Spread(0.47, 0.01, 2), False),
        (Spread(0.5, None, 1), Spread(0.47, 0.01, 2), None),
    ],
)
def test_means_are_within_the_spread_if_their_bars_overlap(one: Spread, other: Spread, overlaps: bool | None) -> None:
    assert within_spread(one, other) is overlaps


def test_a_budget_is_frames_a_second_or_milliseconds() -> None:
    assert budget_ms(fps=40, ms=None) == 25
    assert budget_ms(fps=None, ms=12.5) == 12.5
    assert budget_ms(fps=None, ms=None) is None
    assert budget_words(25, fps=40) == "40 fps (25.0 ms a frame)"
    with pytest.raises(ConfigError, match="give one of them"):
        budget_ms(fps=30, ms=33)
    for bad in (0, -5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="expected a number above 0"):
            budget_ms(fps=bad, ms=None)
