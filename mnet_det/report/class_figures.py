"""What a study knows of single classes: AP, sizes, precision against recall, and what is taken for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mnet_det.report.cost_figures import leading
from mnet_det.report.figure_style import (
    COLOURS,
    GREY,
    LEAST_SPAN,
    PALE,
    Look,
    contrast,
    ink,
    legend,
    looks,
    new_figure,
    plain,
    short,
)
from mnet_det.report.study import AP_SIZES, BACKGROUND, Analysis, Confusion, Measured, Point, Study

CLASSES_SHOWN = 80
CURVES_SHOWN = 8
"""Classes with a curve of their own; of more, those with the most objects."""
CONFUSED_SHOWN = 20
OTHER = "other"


def classes_by_objects(analysis: Analysis) -> list[str]:
    """Classes that have objects, the most first."""
    counted = [(-scores.objects, name) for name, scores in analysis.per_class.items() if scores.objects]
    return [name for _, name in sorted(counted)]


def draw_classes(study: Study) -> Figure | None:
    """AP of each class that has objects, a mark a point of `leading`; None where nothing is scored."""
    best = study.best
    if best is None or best.first is None:
        return None
    names = classes_by_objects(best.first.analysis)[:CLASSES_SHOWN]
    objects = {name: best.first.analysis.per_class[name].objects for name in names}
    figure, (axes,) = new_figure(height_in=1.6 + max(1.2, len(names) * (0.42 if len(names) <= 20 else 0.22)))
    look = looks(study)
    for point in leading(study):
        known = [
            (ap.mean, ap.sd, place) for place, name in enumerate(names) if (ap := _class_ap(point, name)) is not None
        ]
        axes.errorbar(
            [mean for mean, _, _ in known],
            [place for _, _, place in known],
            xerr=None if any(sd is None for _, sd, _ in known) else [sd for _, sd, _ in known],
            color=look[point.network].colour,
            marker=look[point.network].marker,
            markersize=7 if len(names) <= 20 else 5,
            linestyle="none",
            capsize=2,
            linewidth=1,
            label=point.label,
        )
    ticks = axes.set_yticks(range(len(names)), [f"{short(name)} ({objects[name]})" for name in names], fontsize=9)
    plain([tick.label1 for tick in ticks])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, max(LEAST_SPAN, axes.get_xlim()[1]))
    axes.set_xlabel("AP; in brackets: objects on the validation images")
    legend(figure, axes, columns=4)
    return figure


def _class_ap(point: Point, name: str) -> Any:
    return point.mean(lambda measured: measured.scores.per_class.get(name))


def draw_sizes(study: Study) -> Figure | None:
    """AP of small, medium and large objects, a bar a point; None where nothing is scored."""
    points = study.scored
    if not points:
        return None
    figure, (axes,) = new_figure(height_in=4.2)
    look = looks(study)
    width = 0.8 / len(points)
    hatches = dict(
        zip(dict.fromkeys(look[point.network].marker for point in points), ("", "///", "...", "xx"), strict=False)
    )
    for index, point in enumerate(points):
        _bars(
            axes,
            point,
            look[point.network],
            hatches.get(look[point.network].marker, ""),
            width=width,
            shift=index * width - 0.4,
        )
    axes.set_xticks(range(len(AP_SIZES)), [_size_words(study, name) for name in AP_SIZES])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(top=max(LEAST_SPAN, axes.get_ylim()[1]))
    axes.set_ylabel("AP")
    legend(figure, axes, columns=4)
    return figure


def _bars(axes: Any, point: Point, look: Look, hatch: str, *, width: float, shift: float) -> None:
    spreads = [point.number(name) for name in AP_SIZES]
    known = [(place, spread) for place, spread in enumerate(spreads) if spread is not None]
    sds = [spread.sd for _, spread in known]
    axes.bar(
        [place + shift + width / 2 for place, _ in known],
        [spread.mean for _, spread in known],
        width=0.92 * width,
        yerr=None if any(sd is None for sd in sds) else sds,
        capsize=3,
        color=look.colour,
        hatch=hatch,
        edgecolor="white",
        ecolor="#333333",
        label=point.label,
    )


def _size_words(study: Study, name: str) -> str:
    words = {
        "AP_small": "small: up to 32² pixels",
        "AP_medium": "medium: up to 96²",
        "AP_large": "large: more",
    }[name]
    scored = any(point.number(name) is not None for point in study.scored)
    return words if scored else f"{words}\n(no such objects)"


def draw_precision_recall(measured: Measured) -> Figure | None:
    """Precision against recall at both IoUs: all classes if they are few, else the mean and the most frequent."""
    analysis = measured.analysis
    names = classes_by_objects(analysis)
    if not names or not analysis.curves:
        return None
    figure, panels = new_figure(height_in=5.4, columns=len(analysis.curves))
    for axes, (iou, curves) in zip(panels, analysis.curves.items(), strict=True):
        _draw_curves(axes, analysis.recall, {name: curve for name in names if (curve := curves.get(name)) is not None})
        axes.set_title(f"IoU {iou}", fontsize=10)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("recall")
    panels[0].set_ylabel("precision")
    return figure


def _draw_curves(axes: Any, recall: Sequence[float], curves: Mapping[str, list[float]]) -> None:
    """The first curves and the mean of all, each with its name on it, at a height of its own."""
    drawn = [
        (short(name), curve, colour, 1.3) for (name, curve), colour in zip(curves.items(), _colours(), strict=False)
    ]
    if len(curves) > 1:
        drawn.append((f"mean of {len(curves)}", mean_curve(list(curves.values())), "black", 2.4))
    drawn.sort(key=lambda line: -sum(line[1]))
    heights = np.linspace(0.88, 0.12, len(drawn)) if len(drawn) > 1 else [0.5]
    for (name, curve, colour, width), height in zip(drawn, heights, strict=True):
        xs, ys = _without_tail(recall, curve)
        axes.plot(xs, ys, color=colour, linewidth=width)
        place = next((index for index, value in enumerate(ys) if value <= height), len(ys) - 1)
        note = axes.annotate(
            name,
            (_crossing(xs, ys, place, float(height)), height),
            xytext=(-5, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=ink(colour),
            bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            zorder=5,
        )
        plain([note])


def _crossing(xs: Sequence[float], ys: Sequence[float], place: int, height: float) -> float:
    """Where the line between two places of a curve comes down to a height."""
    if place == 0 or ys[place - 1] <= ys[place]:
        return xs[place]
    share = min(1.0, (ys[place - 1] - height) / (ys[place - 1] - ys[place]))
    return xs[place - 1] + share * (xs[place] - xs[place - 1])


def _colours() -> tuple[str, ...]:
    return (*COLOURS[:-1], GREY, "#8c564b")[:CURVES_SHOWN]  # black is the mean's


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """The mean precision of classes at each recall."""
    return [float(value) for value in np.mean(curves, axis=0)]


def _without_tail(recall: Sequence[float], precision: Sequence[float]) -> tuple[list[float], list[float]]:
    """A curve up to the first of its last zeros: behind it lie recalls that no score reaches."""
    reached = [index for index, value in enumerate(precision) if value > 0]
    end = min(len(precision), (reached[-1] if reached else 0) + 2)
    return list(recall[:end]), list(precision[:end])


@dataclass(frozen=True)
class ShownConfusion:
    """A confusion matrix small enough to look at.

    Attributes:
        labels: the background is last; before it `OTHER`, if classes were summed.
        summed: how many classes are in `OTHER`.
    """

    labels: list[str]
    matrix: list[list[int]]
    summed: int


def shown_confusion(confusion: Confusion, *, most: int = CONFUSED_SHOWN) -> ShownConfusion:
    """All classes, or of many those most confused with others or missed, the rest summed as one."""
    matrix = np.asarray(confusion.matrix)
    count = len(confusion.labels) - 1
    if count <= most:
        return ShownConfusion(list(confusion.labels), matrix.tolist(), 0)
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
    kept = sorted(np.argsort(-wrong[:count], kind="stable")[:most].tolist())
    rest = [index for index in range(count) if index not in kept]
    parts = [[index] for index in kept] + [rest, [count]]
    summed = [[int(matrix[np.ix_(rows, columns)].sum()) for columns in parts] for rows in parts]
    return ShownConfusion([*(confusion.labels[index] for index in kept), OTHER, BACKGROUND], summed, len(rest))


def draw_confusion(measured: Measured) -> Figure | None:
    """What is there against what was detected: colours by share of the row, counts printed; None without counts."""
    shown = shown_confusion(measured.analysis.confusion)
    matrix = np.asarray(shown.matrix, float)
    if not matrix.sum():
        return None
    sums = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, sums, out=np.zeros_like(matrix), where=sums > 0)
    count = len(shown.labels)
    figure, (axes,) = new_figure(height_in=2.6 + 0.36 * count if count > 6 else 4.6)
    axes.grid(visible=False)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(count):
        for column in range(count):
            if matrix[row, column]:
                cell = picture.to_rgba(shares[row, column])
                _count(axes, row, column, int(matrix[row, column]), cell=cell, size=10 if count < 9 else 7)
    names = [short(name) for name in shown.labels]
    if shown.summed:
        names[-2] = f"{OTHER} ({shown.summed})"
    steep = count > 6 or max(map(len, names)) > 14
    across = axes.set_xticks(range(count), names, rotation=45 if steep else 0, ha="right" if steep else "center")
    down = axes.set_yticks(range(count), names)
    plain([tick.label1 for tick in (*across, *down)])
    axes.tick_params(length=0, labelsize=9)
    axes.set_xlabel("detected as (background: missed)")
    axes.set_ylabel("what is there")
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=PALE, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    figure.colorbar(picture, ax=axes, label="share of the row", shrink=0.6)
    return figure


def _count(axes: Any, row: int, column: int, value: int, *, cell: Any, size: float) -> None:
    colour = max(("white", "#1a1e23"), key=lambda letters: contrast(letters, cell))
    axes.text(column, row, str(value), ha="center", va="center", fontsize=size, color=colour)
