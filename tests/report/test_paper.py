"""The paper's points, and when ours can stand beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mnet_det.report.paper import TABLE_6, TABLE_7, is_coco, kept_by_ours, kept_by_paper, tables_beside
from mnet_det.report.study import read_study
from mnet_det.weights.coco_labels import COCO_LABELS


def test_half_the_width_keeps_nine_tenths_of_the_accuracy() -> None:
    half = kept_by_paper(TABLE_6)[2]
    assert half.name == "α 0.5"
    assert half.mult_adds == pytest.approx(149 / 569)
    assert half.score == pytest.approx(63.7 / 70.6)


def test_resolutions_are_named_by_their_rho() -> None:
    assert [kept.name for kept in kept_by_paper(TABLE_7)] == ["α 1", "ρ 0.86", "ρ 0.71", "ρ 0.57"]


def test_ours_are_relative_to_the_full_network(make_sweep: Callable[..., Path]) -> None:
    points = read_study(make_sweep(alphas=(1.0, 0.5))).points
    kept = [kept for _, kept in kept_by_ours(points)]
    full, half = points
    assert full.ap is not None
    assert half.ap is not None
    assert (kept[0].mult_adds, kept[0].score) == (1, 1)
    assert kept[1].score == pytest.approx(half.ap.mean / full.ap.mean)


@pytest.mark.parametrize(
    "fields",
    [
        {"alphas": (0.75, 0.5)},
        {"alphas": (1.0, 0.5), "rhos": (0.64,)},
        {"alphas": (1.0,)},
        {"alphas": (1.0, 0.5), "failed": ((1.0, 1.0, 0),)},
    ],
    ids=["no full width", "no full resolution", "nothing but the full network", "the full network failed"],
)
def test_without_a_full_network_nothing_is_kept_of_it(
    fields: dict[str, object], make_sweep: Callable[..., Path]
) -> None:
    assert kept_by_ours(read_study(make_sweep(**fields)).points) == ()


def test_tables_stand_beside_what_they_shrink(make_sweep: Callable[..., Path]) -> None:
    assert list(tables_beside(read_study(make_sweep()).points)) == ["Table 6"]
    assert list(tables_beside(read_study(make_sweep(alphas=(1.0,), rhos=(1.0, 0.5))).points)) == ["Table 7"]


def test_only_the_80_names_of_coco_are_coco() -> None:
    names = [name for name in COCO_LABELS if name != "???"]
    assert is_coco(names[::-1])
    assert not is_coco(names[:-1])
    assert not is_coco([*names[:-1], "thing"])
