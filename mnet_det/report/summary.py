"""A study as JSON: what report.json holds, and what the page draws from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mnet_det.data.coco import NUMBERS
from mnet_det.report.advice import (
    USUAL_FPS,
    Advice,
    Candidate,
    advise,
    again_command,
    best_at_usual_rates,
    budget_words,
    candidates,
    sentences,
    unsteady_points,
    unsteady_words,
)
from mnet_det.report.comparison import compare, relative_to
from mnet_det.report.cost_figures import COSTS, front
from mnet_det.report.paper import (
    SOURCE,
    TABLE_6,
    TABLE_7,
    TABLE_13,
    PaperRow,
    is_coco,
    kept_by_ours,
    kept_by_paper,
    tables_beside,
)
from mnet_det.report.study import Point, Run, Spread, Study

FORMAT = 1
BUDGET = "{budget}"
"""Where the page puts the budget that was typed."""
CURVE_STEPS = 1000
"""A precision on the page is a whole number of thousandths."""


def study_json(study: Study, *, budget: tuple[float, float | None] | None = None) -> dict[str, Any]:
    """Everything but the curves and confusion matrices, which are in each run's measured.json.

    Args:
        study: what was read.
        budget: milliseconds a frame, and the frames a second that they were given as.
    """
    return {
        "format": FORMAT,
        "title": study.title,
        "command": study.command,
        "words": list(study.words),
        "base": dict(study.base),
        "data": asdict(study.data),
        "timed": _timed(study),
        "points": [_point_json(study, point) for point in study.points],
        "fronts": {cost.key: [study.points.index(point) for point in front(study, cost)] for cost in COSTS},
        "advice": [_advice_json(study, advise(study, 1000 / fps), fps=fps) for fps in USUAL_FPS],
        "budget": None if budget is None else _advice_json(study, advise(study, budget[0]), fps=budget[1]),
        "unsteady": unsteady_json(study),
        "less": less_json(study),
        "kept": kept_json(study),
        "paper": {
            "source": SOURCE,
            "comparable": is_coco(study.data.class_names),
            "table_6": [_paper_json(row, unit=1e6) for row in TABLE_6],
            "table_7": [_paper_json(row, unit=1e6) for row in TABLE_7],
            "table_13": [_paper_json(row, unit=1e9) for row in TABLE_13],
        },
    }


def page_json(study: Study) -> dict[str, Any]:
    """What the page draws: `study_json` rounded, with the curves and confusion matrix of each point's first seed.

    The settings in common are left out: each run's configuration is there as it was written.
    """
    content = _rounded({name: value for name, value in study_json(study).items() if name != "base"})
    for point, drawn in zip(study.points, content["points"], strict=True):
        drawn["detail"] = None if point.first is None else _detail_json(point)
        for run, drawn_run in zip(point.runs, drawn["runs"], strict=True):
            drawn_run["history"] = _history_json(run)
            drawn_run["config"] = run.config
            drawn_run.pop("per_class", None)
    return content | {
        "numbers": list(NUMBERS),
        "costs": [{"key": cost.key, "title": cost.title, "unit": cost.unit} for cost in COSTS],
        "steps": advice_steps(study),
        "same_at_usual_rates": best_at_usual_rates(study),
    }


def advice_steps(study: Study) -> list[dict[str, Any]]:
    """The advice for every budget there is: it changes only where a point's median or 95th percentile lies.

    Each step holds from `from_ms` up to the next one's; the sentences have `BUDGET` in the place of the budget.
    """
    known = candidates(study)
    edges = sorted({0.0} | {ms for each in known for ms in (each.ms, each.latency.total_ms.p95)})
    return [{"from_ms": edge, "sentences": sentences(advise(study, edge), budget=BUDGET)} for edge in edges]


def unsteady_json(study: Study) -> dict[str, Any] | None:
    """Which times were unsteady, and what to do about it; None where none was."""
    if not (words := unsteady_words(study)):
        return None
    points = [study.points.index(point) for point in unsteady_points(study)]
    return {"points": points, "words": words, "command": again_command(study)}


def less_json(study: Study) -> dict[str, Any] | None:
    """What the smaller networks lose and gain; None where there is nothing to compare."""
    comparisons = compare(study)
    if not comparisons:
        return None
    rows = [
        {
            "point": study.points.index(each.point),
            "largest": study.points.index(each.largest),
            "AP": each.ap,
            "within_spread": each.within_spread,
            "seeds": each.seeds_words,
            "mult_adds": each.mult_adds,
            "params": each.params,
            "times_as_fast": each.times_as_fast,
        }
        for each in comparisons
    ]
    return {"relative_to": relative_to(comparisons), "points": rows}


def kept_json(study: Study) -> dict[str, Any] | None:
    """What is kept of the full network, ours and the paper's; None without a full one."""
    ours = kept_by_ours(study.points)
    if not ours:
        return None
    beside = tables_beside([point for point, _ in ours])
    return {
        "ours": [{"point": study.points.index(point)} | asdict(kept) for point, kept in ours],
        "theirs": {name: [asdict(kept) for kept in kept_by_paper(table)] for name, table in beside.items()},
    }


def _timed(study: Study) -> dict[str, Any] | None:
    """How and where latency was measured."""
    if study.latency is None:
        return None
    return {name: value for name, value in asdict(study.latency).items() if name != "rows"}


def _point_json(study: Study, point: Point) -> dict[str, Any]:
    return {
        **asdict(point.network),
        "label": point.label,
        "words": point.words,
        "input_hw": list(point.input_hw),
        "start": point.start,
        "costs": {cost.key: cost.read(point) for cost in COSTS},
        "scores": {name: _spread_json(point.number(name)) for name in NUMBERS},
        "minutes": _spread_json(point.mean(lambda measured: measured.minutes)),
        "classes": {name: _class_json(point, name) for name in study.data.class_names},
        "latency": None if point.latency is None else asdict(point.latency) | {"fps": point.latency.fps},
        "runs": [_run_json(run) for run in point.runs],
    }


def _class_json(point: Point, name: str) -> Any:
    return _spread_json(point.mean(lambda measured: measured.scores.per_class.get(name)))


def _spread_json(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else asdict(spread)


def _run_json(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = {"name": run.name, "seed": run.seed, "state": run.state, "reason": run.reason}
    measured = run.measured
    if measured is None:
        return content
    best = measured.analysis.best_f1
    return content | {
        "epochs": measured.epochs,
        "best_epoch": measured.best_epoch,
        "minutes": measured.minutes,
        "scores": {name: getattr(measured.scores, name) for name in NUMBERS},
        "runtime": measured.scores.runtime,
        "measured_at": measured.measured_at,
        "machine": measured.machine,
        "per_class": {
            name: asdict(scores) | {"best_f1": None if (found := best.get(name)) is None else asdict(found)}
            for name, scores in measured.analysis.per_class.items()
        },
    }


def _advice_json(study: Study, advice: Advice, *, fps: float | None) -> dict[str, Any]:
    def place(candidate: Candidate | None) -> int | None:
        return None if candidate is None else study.points.index(candidate.point)

    return {
        "budget_ms": advice.budget_ms,
        "fps": fps,
        "best": place(advice.best),
        "better": place(advice.better),
        "p95_is_over": advice.p95_is_over,
        "sentences": sentences(advice, budget=budget_words(advice.budget_ms, fps=fps)),
    }


def _paper_json(row: PaperRow, *, unit: float) -> dict[str, Any]:
    return {
        "name": row.name,
        "percent": float(row.accuracy),
        "mult_adds": round(float(row.mult_adds) * unit),
        "params": round(float(row.params) * 1e6),
    }


def _detail_json(point: Point) -> dict[str, Any]:
    """Of the first finished seed."""
    assert point.first is not None
    analysis = point.first.analysis
    best = {name: None if found is None else asdict(found) for name, found in analysis.best_f1.items()}
    classes = {name: asdict(scores) | {"best_f1": best.get(name)} for name, scores in analysis.per_class.items()}
    return {
        "seed": point.first.seed,
        "per_class": _rounded(classes),
        "curves": {iou: _curves_json(curves) for iou, curves in analysis.curves.items()},
        "recall": analysis.recall,
        "confusion": {name: getattr(analysis.confusion, name) for name in ("labels", "iou", "matrix")},
    }


def _curves_json(curves: Mapping[str, Sequence[float] | None]) -> dict[str, list[int]]:
    """Thousandths, without the zeros at the end; classes without a curve are left out."""
    drawn = {}
    for name, curve in curves.items():
        if curve is not None:
            steps = [round(CURVE_STEPS * value) for value in curve]
            reached = max((index for index, value in enumerate(steps) if value), default=-1)
            drawn[name] = steps[: reached + 1]
    return drawn


def _history_json(run: Run) -> dict[str, list[Any]]:
    """Losses and AP by epoch; null where an epoch has none."""
    return {
        name: [None if (value := row.get(name)) is None else float(f"{value:.4g}") for row in run.history]
        for name in ("epoch", "loss", "val_loss", "AP")
    }


def _rounded(content: Any) -> Any:
    """Numbers to six digits after the point, so that what differs stays different; one where they are large."""
    if isinstance(content, float):
        return round(content, 6) if abs(content) < 1000 else round(content, 1)
    if isinstance(content, Mapping):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rounded(value) for value in content]
    return content
