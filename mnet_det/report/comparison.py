"""What a smaller network costs and gives: each point against the largest one of its head and backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mnet_det.report.advice import ap_words, within_spread
from mnet_det.report.paper import full_network
from mnet_det.report.study import Point, Spread, Study


@dataclass(frozen=True)
class Comparison:
    """A point against the largest one of its kind.

    Attributes:
        ap: mean AP less that of `largest`.
        within_spread: whether that may be the chance of a seed; None with one seed of either, when nobody knows.
        mult_adds: part of the multiply-adds of `largest`; None where they are not known.
        params: part of its parameters.
        times_as_fast: the median total of `largest` over that of `point`; None unless both were timed.
    """

    point: Point
    largest: Point
    ap: float
    within_spread: bool | None
    mult_adds: float | None
    params: float | None
    times_as_fast: float | None

    @property
    def seeds_words(self) -> str:
        """What the seeds say about the difference, for a cell."""
        if self.within_spread is not None:
            return "within their spread" if self.within_spread else "more than their spread"
        single = [point for point in (self.point, self.largest) if point.ap is not None and point.ap.seeds == 1]
        return "one seed each" if len(single) == 2 else f"one seed of {single[0].words}"


def compare(study: Study) -> tuple[Comparison, ...]:
    """Every scored point against the largest of its head and backbone, which itself is left out."""
    return tuple(
        _against(point, point.ap, largest, largest.ap)
        for point in study.scored
        if (largest := largest_of_kind(point, study.scored)) is not point
        and point.ap is not None
        and largest.ap is not None
    )


def largest_of_kind(point: Point, scored: Sequence[Point]) -> Point:
    """The full network (alpha 1, rho 1) of a point's head and backbone; without one that with most multiply-adds.

    The latter has the highest alpha and the highest rho, if one point has both.
    """
    kind = (point.network.head, point.network.backbone)
    same = [other for other in scored if (other.network.head, other.network.backbone) == kind]
    return full_network(point, scored) or max(same, key=lambda other: other.mult_adds or 0)


def relative_to(comparisons: Sequence[Comparison]) -> str:
    """What the numbers are relative to, as one sentence."""
    largest = {each.largest.network: each.largest for each in comparisons}
    words = "; to ".join(_about(point) for point in largest.values())
    return f"Relative to {words}{'; each within its head and backbone' if len(largest) > 1 else ''}."


def _against(point: Point, ap: Spread, largest: Point, largest_ap: Spread) -> Comparison:
    one, other = point.latency, largest.latency
    return Comparison(
        point=point,
        largest=largest,
        ap=ap.mean - largest_ap.mean,
        within_spread=within_spread(ap, largest_ap),
        mult_adds=_part(point.mult_adds, largest.mult_adds),
        params=_part(point.params, largest.params),
        times_as_fast=None if one is None or other is None else other.total_ms.p50 / one.total_ms.p50,
    )


def _part(value: int | None, whole: int | None) -> float | None:
    return value / whole if value is not None and whole else None


def _about(point: Point) -> str:
    assert point.ap is not None
    time = "" if point.latency is None else f", {point.latency.total_ms.p50:.1f} ms a frame at the median"
    return f"{point.words}: {ap_words(point.ap)}{time}"
