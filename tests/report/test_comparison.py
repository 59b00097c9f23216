"""What less costs and gives: each point against the largest of its kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mnet_det.report.comparison import Comparison, compare, relative_to
from mnet_det.report.study import Stage, Study, read_study
from mnet_det.report.study_report import write_report


def with_aps(folder: Path, aps: Mapping[str, float]) -> Study:
    """The study with these APs, by a part of the run's name."""
    for part, ap in aps.items():
        (path,) = folder.glob(f"*{part}*/measured.json")
        measured = json.loads(path.read_text())
        path.write_text(json.dumps(measured | {"scores": measured["scores"] | {"AP": ap}}))
    return read_study(folder)


def against(study: Study) -> list[tuple[str, str]]:
    return [(each.point.words, each.largest.words) for each in compare(study)]


def test_half_the_width_against_the_full_one(make_sweep: Callable[..., Path]) -> None:
    """1130 and 316.4 M multiply-adds are 28.0 %, 6.0 and 1.725 M parameters 28.75 %; 31 ms over 10 is 3.1."""
    study = with_aps(make_sweep(alphas=(1.0, 0.5)), {"alpha1-": 0.58, "alpha0.5-": 0.53})
    timed = []
    for point, ms in zip(study.points, (31, 10), strict=True):
        assert point.latency is not None
        timed.append(replace(point, latency=replace(point.latency, total_ms=Stage(ms, ms))))
    (half,) = compare(replace(study, points=tuple(timed)))
    assert half.point.network.alpha == 0.5
    assert half.ap == pytest.approx(-0.05)
    assert half.mult_adds == pytest.approx(0.28)
    assert half.params == pytest.approx(0.2875)
    assert half.times_as_fast == pytest.approx(3.1)
    said = relative_to([half])
    assert said == "Relative to alpha 1, rho 1: AP 0.580 (one seed), 31.0 ms a frame at the median."


@pytest.mark.parametrize(
    ("aps", "words"),
    [
        (((0.50, 0.54), (0.49, 0.53)), "within their spread"),  # sd 0.028 of each, 0.01 between
        (((0.50, 0.54), (0.10, 0.11)), "more than their spread"),
        (((0.50, 0.54), (0.49,)), "one seed of alpha 0.5, rho 1"),
        (((0.50,), (0.49,)), "one seed each"),
    ],
)
def test_what_the_seeds_say_is_told(
    aps: tuple[tuple[float, ...], ...], words: str, make_sweep: Callable[..., Path]
) -> None:
    missing = [(alpha, 1.0, 1) for alpha, known in zip((1.0, 0.5), aps, strict=True) if len(known) == 1]
    folder = make_sweep(alphas=(1.0, 0.5), seeds=(0, 1), open=missing)
    by_name = {
        f"alpha{alpha}-*seed{seed}-": ap
        for alpha, known in zip((1, 0.5), aps, strict=True)
        for seed, ap in enumerate(known)
    }
    (half,) = compare(with_aps(folder, by_name))
    assert half.seeds_words == words


def test_without_the_full_network_the_largest_is_the_measure(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(0.75, 0.5), rhos=(0.8, 0.5))
    assert [largest for _, largest in against(read_study(folder))] == ["alpha 0.75, rho 0.8"] * 3
    next(folder.glob("*alpha0.75-rho0.8*/measured.json")).unlink()
    # (0.88 · 0.5² + 0.12 · 0.5) · 0.8² = 0.18 of the full network's, (0.88 · 0.75² + 0.12 · 0.75) · 0.5² = 0.15
    assert [largest for _, largest in against(read_study(folder))] == ["alpha 0.5, rho 0.8"] * 2


def test_one_point_is_compared_with_nothing(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0,))
    assert compare(read_study(folder)) == ()
    write_report(folder)
    assert "What less costs" not in (folder / "report.md").read_text()
    assert json.loads((folder / "report.json").read_text())["less"] is None


def test_wider_than_full_is_compared_with_the_full_one(make_sweep: Callable[..., Path]) -> None:
    study = read_study(make_sweep(alphas=(1.4, 1.0, 0.5)))
    assert against(study) == [("alpha 1.4, rho 1", "alpha 1, rho 1"), ("alpha 0.5, rho 1", "alpha 1, rho 1")]


def test_each_head_has_its_own_largest(make_sweep: Callable[..., Path]) -> None:
    study = read_study(make_sweep(alphas=(1.0, 0.75, 0.5, 0.25)))
    changed = [
        replace(point, network=replace(point.network, head="ssdlite"), words=f"ssdlite, {point.words}")
        if point.network.alpha in (0.75, 0.25)
        else point
        for point in study.points
    ]
    comparisons = compare(replace(study, points=tuple(changed)))
    assert [each.largest.words for each in comparisons] == ["alpha 1, rho 1", "ssdlite, alpha 0.75, rho 1"]
    assert "; to ssdlite, alpha 0.75, rho 1: AP" in relative_to(comparisons)
    assert relative_to(comparisons).endswith("; each within its head and backbone.")


def test_the_report_says_it_in_numbers(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5), latency=False)
    with_aps(folder, {"alpha1-": 0.58, "alpha0.5-": 0.53})
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "## What less costs and gives" in text
    assert "| alpha 0.5, rho 1 | -0.050 | one seed each | 28.0% | 28.7% | n/a |" in text
    less = json.loads((folder / "report.json").read_text())["less"]
    assert less["relative_to"] == "Relative to alpha 1, rho 1: AP 0.580 (one seed)."
    (row,) = less["points"]
    assert (row["point"], row["largest"], row["times_as_fast"], row["within_spread"]) == (1, 0, None, None)


def test_a_comparison_of_what_is_not_known_is_not_made_up(make_sweep: Callable[..., Path]) -> None:
    study = read_study(make_sweep(alphas=(1.0, 0.5), latency=False))
    full, half = study.points
    (found,) = compare(replace(study, points=(full, replace(half, mult_adds=None, params=None))))
    assert isinstance(found, Comparison)
    assert (found.mult_adds, found.params, found.times_as_fast) == (None, None, None)
