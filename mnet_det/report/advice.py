"""Which network to take for a budget of time: from what was measured, and nothing predicted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from mnet_det.errors import ConfigError
from mnet_det.report.study import LatencyRow, Point, Spread, Study

USUAL_FPS = (60.0, 30.0, 15.0, 10.0)
UNSTEADY = 1.5
"""By how much the 95th percentile of a time may exceed its median before the report warns."""


@dataclass(frozen=True)
class Candidate:
    """A point that was scored and timed."""

    point: Point
    ap: Spread
    latency: LatencyRow

    @property
    def ms(self) -> float:
        """Milliseconds a frame: the median of the total."""
        return self.latency.total_ms.p50


@dataclass(frozen=True)
class Advice:
    """What the measured points say about a budget.

    Attributes:
        budget_ms: milliseconds a frame.
        best: the highest mean AP within the budget; the faster one of equals. None if no measured point is within.
        cheaper: the best of those that are faster than `best`.
        better: the fastest of those with more AP than `best`; over the budget.
        fastest: of all; None where nothing was both scored and timed.
        untimed: the highest mean AP of those that were scored and not timed, if it is above that of `best`.
        left_out: how many points of the study were not both scored and timed.
        points: how many points the study has.
        most_sd: the largest standard deviation of AP of a point with several seeds; None without such a point.
    """

    budget_ms: float
    best: Candidate | None
    cheaper: Candidate | None
    better: Candidate | None
    fastest: Candidate | None
    untimed: Point | None
    left_out: int
    points: int
    most_sd: float | None
    cpu: str

    @property
    def p95_is_over(self) -> bool:
        """Whether the slow frames of `best` break the budget that its median keeps."""
        return self.best is not None and self.best.latency.total_ms.p95 > self.budget_ms


def budget_ms(*, fps: float | None, ms: float | None) -> float | None:
    """The budget as milliseconds a frame; None if neither is given.

    Raises:
        ConfigError: both are given, or a number that is not positive.
    """
    if fps is not None and ms is not None:
        raise ConfigError(f"--fps {fps:g} and --ms {ms:g}: both say what a frame may take; give one of them")
    for name, value in (("fps", fps), ("ms", ms)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} {value:g}: expected a number above 0")
    return 1000 / fps if fps is not None else ms


def candidates(study: Study) -> tuple[Candidate, ...]:
    """Points that were both scored and timed, fastest first."""
    known = [
        Candidate(point, point.ap, point.latency)
        for point in study.points
        if point.ap is not None and point.latency is not None
    ]
    return tuple(sorted(known, key=lambda candidate: candidate.ms))


def advise(study: Study, budget_ms: float) -> Advice:
    """What to take within so many milliseconds a frame."""
    known = candidates(study)
    best = _best([candidate for candidate in known if candidate.ms <= budget_ms])
    cheaper = better = None
    if best is not None:
        cheaper = _best([candidate for candidate in known if candidate.ms < best.ms])
        better = next((candidate for candidate in known if candidate.ap.mean > best.ap.mean), None)
    return Advice(
        budget_ms=budget_ms,
        best=best,
        cheaper=cheaper,
        better=better,
        fastest=next(iter(known), None),
        untimed=_untimed(study, best),
        left_out=len(study.points) - len(known),
        points=len(study.points),
        most_sd=max((point.ap.sd for point in study.scored if point.ap and point.ap.sd is not None), default=None),
        cpu="" if study.latency is None else study.latency.cpu,
    )


def _untimed(study: Study, best: Candidate | None) -> Point | None:
    """What may be better than `best`, and nobody knows how fast it is."""
    others = [
        (point.ap.mean, point)
        for point in study.scored
        if point.ap is not None and point.latency is None and (best is None or point.ap.mean > best.ap.mean)
    ]
    return max(others, key=lambda other: other[0], default=(0.0, None))[1]


def within_spread(one: Spread, other: Spread) -> bool | None:
    """Whether means ± one standard deviation overlap; None with one seed of either, when nobody knows."""
    if one.sd is None or other.sd is None:
        return None
    return abs(one.mean - other.mean) <= one.sd + other.sd


def budget_words(budget_ms: float, *, fps: float | None = None) -> str:
    """The budget for a sentence, as it was given: "30 fps (33.3 ms a frame)" or "33.3 ms a frame (30.0 fps)"."""
    if fps is not None:
        return f"{fps:g} fps ({budget_ms:.1f} ms a frame)"
    return f"{budget_ms:g} ms a frame ({1000 / budget_ms:.1f} fps)"


def sentences(advice: Advice, *, budget: str) -> list[str]:
    """The advice in words; `budget` from `budget_words`."""
    if advice.fastest is None:
        return ["No point was both scored and timed, so nothing can be said about a budget."]
    if advice.best is None:
        return [_out_of_reach(advice.fastest, budget=budget, cpu=advice.cpu), *_about_left_out(advice)]
    return [
        _about_best(advice.best, budget=budget, cpu=advice.cpu),
        *([_about_p95(advice.best)] if advice.p95_is_over else []),
        _about_better(advice.best, advice.better, most_sd=advice.most_sd),
        *([] if advice.cheaper is None else _about_cheaper(advice.best, advice.cheaper, most_sd=advice.most_sd)),
        *_about_left_out(advice),
    ]


def best_at_usual_rates(study: Study) -> str:
    """One sentence where the best point of all keeps the fastest of `USUAL_FPS`; empty where it does not."""
    best = _best(candidates(study))
    if best is None or best.ms > 1000 / max(USUAL_FPS):
        return ""
    p95 = best.latency.total_ms.p95
    over = [f"{fps:g}" for fps in USUAL_FPS if p95 > 1000 / fps]
    tail = f", which is over at {_listed(over)} fps" if over else ""
    return (
        f"At {max(USUAL_FPS):g} fps and every slower rate it is {best.point.words}, the best of all measured points: "
        f"{ap_words(best.ap)}, {best.ms:.1f} ms a frame at the median ({best.latency.fps:.1f} fps), "
        f"{p95:.1f} ms at the 95th percentile{tail}."
    )


def unsteady_points(study: Study) -> tuple[Point, ...]:
    """Points whose times something else on the machine has disturbed."""
    return tuple(
        point
        for point in study.points
        if point.latency is not None and point.latency.total_ms.p95 > UNSTEADY * point.latency.total_ms.p50
    )


def unsteady_words(study: Study) -> str:
    """How many times were unsteady, and what to do; what follows it is `again_command`. Empty where none was."""
    unsteady = len(unsteady_points(study))
    if not unsteady:
        return ""
    timed = sum(point.latency is not None for point in study.points)
    return (
        f"The times of {unsteady} of {timed} {'point' if timed == 1 else 'points'} were unsteady (95th percentile "
        f"above {UNSTEADY:g} × the median): measure them again while nothing else runs"
    )


def again_command(study: Study) -> str:
    """What measures the times of a study again."""
    return shlex.join(["mnet-det", "report", str(study.folder), "--again"])


def ap_words(ap: Spread) -> str:
    """AP with its spread: "AP 0.412 ± 0.004 (3 seeds)"."""
    spread = "one seed" if ap.sd is None else f"{ap.seeds} seeds"
    return f"AP {ap.mean:.3f}{'' if ap.sd is None else f' ± {ap.sd:.3f}'} ({spread})"


def threads_words(row: LatencyRow) -> str:
    """How many threads it ran in: "1 thread", "2 threads"."""
    return "1 thread" if row.threads == 1 else f"{row.threads} threads"


def _best(known: Sequence[Candidate]) -> Candidate | None:
    return max(known, key=lambda candidate: (candidate.ap.mean, -candidate.ms), default=None)


def _about_best(best: Candidate, *, budget: str, cpu: str) -> str:
    row = best.latency
    return (
        f"For {budget}, the best measured point is {best.point.words}: {ap_words(best.ap)}, {best.ms:.1f} ms a frame "
        f"at the median, {row.fps:.1f} fps, with {row.runtime} and {threads_words(row)} on {cpu}."
    )


def _about_p95(best: Candidate) -> str:
    return (
        f"Its 95th percentile, {best.latency.total_ms.p95:.1f} ms, is over the budget: one frame in twenty takes that "
        "long or longer."
    )


def _about_better(best: Candidate, better: Candidate | None, *, most_sd: float | None) -> str:
    if better is None:
        return "No point that was scored and timed has a higher AP."
    gain = better.ap.mean - best.ap.mean
    return (
        f"The next better point is {better.point.words}: {gain:+.3f} AP, {better.ms - best.ms:.1f} ms more a frame, "
        f"{better.latency.fps:.1f} fps: over the budget{_doubt(best, better, most_sd=most_sd)}."
    )


def _about_cheaper(best: Candidate, cheaper: Candidate, *, most_sd: float | None) -> list[str]:
    overlaps = within_spread(best.ap, cheaper.ap)
    if overlaps is False:
        return []
    less = (
        f"The best of the faster points, {cheaper.point.words}, has {best.ap.mean - cheaper.ap.mean:.3f} less AP and "
        f"takes {best.ms - cheaper.ms:.1f} ms less a frame"
    )
    if overlaps:
        return [f"{less}: within the spread of the seeds, so it may be as good."]
    return [
        f"{less}; {_single(best, cheaper)} nobody knows whether that is more than the chance of a seed"
        f"{_elsewhere(most_sd)}."
    ]


def _doubt(one: Candidate, other: Candidate, *, most_sd: float | None) -> str:
    overlaps = within_spread(one.ap, other.ap)
    if overlaps is None:
        return f"; {_single(one, other)} the gain may be the chance of a seed{_elsewhere(most_sd)}"
    return "; the gain is within the spread of the seeds" if overlaps else ""


def _single(one: Candidate, other: Candidate) -> str:
    """Which of two has one seed, of which nobody knows the spread."""
    single = [candidate for candidate in (one, other) if candidate.ap.sd is None]
    return "with one seed each," if len(single) == 2 else f"{single[0].point.words} has one seed, so"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _elsewhere(most_sd: float | None) -> str:
    """How large chance is where it is known, to judge a difference by that has one seed of one or both."""
    return "" if most_sd is None else f" (points with several seeds have ± {most_sd:.3f} at most)"


def _out_of_reach(fastest: Candidate, *, budget: str, cpu: str) -> str:
    row = fastest.latency
    return (
        f"No measured point reaches {budget}. The fastest is {fastest.point.words}: {fastest.ms:.1f} ms a frame, "
        f"{row.fps:.1f} fps, {ap_words(fastest.ap)}, with {row.runtime} and {threads_words(row)} on {cpu}. "
        "To know what a smaller alpha or rho has, train and measure it; nothing is predicted here."
    )


def _about_left_out(advice: Advice) -> list[str]:
    """That there are points that could not be weighed; the better ones may be among them."""
    if not advice.left_out:
        return []
    words = f"{advice.left_out} of the {advice.points} points are not weighed: not both scored and timed."
    if advice.untimed is None or advice.untimed.ap is None:
        return [words]
    return [f"{words} Of them, {advice.untimed.words} has {ap_words(advice.untimed.ap)}; its time is not known."]
