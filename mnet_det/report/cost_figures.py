"""AP against what a network costs, what is kept of the full one, and how training went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from mnet_det.report.figure_style import (
    GREY,
    Label,
    Look,
    group_of,
    label_points,
    legend,
    log_x,
    looks,
    new_figure,
    plain,
    span_scores,
)
from mnet_det.report.paper import SOURCE, TABLE_13, is_coco, kept_by_ours, kept_by_paper, tables_beside
from mnet_det.report.pareto import pareto_front
from mnet_det.report.study import Network, Point, Run, Study


@dataclass(frozen=True)
class Cost:
    """Something that a network costs.

    Attributes:
        key: in JSON and in names of files.
        title: with the unit of `shown`.
        read: the cost in its own unit; None where it is not known.
        unit: how much of it one on the axis is.
    """

    key: str
    title: str
    read: Callable[[Point], float | None]
    unit: float = 1.0

    def shown(self, point: Point) -> float | None:
        """As on an axis."""
        value = self.read(point)
        return None if value is None else value / self.unit


COSTS = (
    Cost("mult_adds", "M multiply-adds", lambda point: point.mult_adds, 1e6),
    Cost("params", "M parameters", lambda point: point.params, 1e6),
    Cost("network_ms", "network, ms", lambda point: None if point.latency is None else point.latency.network_ms.p50),
    Cost("total_ms", "total, ms a frame", lambda point: None if point.latency is None else point.latency.total_ms.p50),
    Cost("file_bytes", "file, MB", lambda point: point.file_bytes, 1e6),
)
DRAWN = ("mult_adds", "params", "total_ms")
"""The costs that have a figure; the page draws all."""
MOST_LABELS = 12
"""Of more points only those on a front surely have a label; the legend says what colours and marks mean."""
PAPER_MARKS = {"SSD300": "D", "Faster R-CNN 300": "^", "Faster R-CNN 600": "v"}


def front(study: Study, cost: Cost) -> tuple[Point, ...]:
    """The points on the Pareto front of mean AP against a cost, cheapest first."""
    known = [(value, point.ap.mean, point) for point in study.scored if point.ap and (value := cost.read(point))]
    on = pareto_front([value for value, _, _ in known], [ap for _, ap, _ in known])
    return tuple(
        point for (_, _, point), is_on in sorted(zip(known, on, strict=True), key=lambda pair: pair[0][:2]) if is_on
    )


def leading(study: Study) -> tuple[Point, ...]:
    """The scored points, or of too many to be told apart those on the front of a cost that has a figure."""
    if len(study.scored) <= MOST_LABELS:
        return study.scored
    fronts = [front(study, cost) for cost in COSTS if cost.key in DRAWN]
    return tuple(point for point in study.scored if any(point in each for each in fronts))


def draw_cost(study: Study, cost: Cost) -> Figure | None:
    """AP against one cost, with the Pareto front; None unless two points have both."""
    points = [point for point in study.scored if cost.read(point)]
    if len(points) < 2:
        return None
    figure, (axes,) = new_figure(height_in=5.2)
    look = looks(study)
    best = front(study, cost)
    axes.plot(
        [cost.shown(point) for point in best],
        [point.ap.mean for point in best if point.ap],
        color=GREY,
        linewidth=1.2,
        drawstyle="steps-post",  # between two points nothing was measured: the cheaper one is what there is
        marker="o",
        markersize=15,
        mfc="none",
        zorder=1,
        label="Pareto front: nothing measured is better at no more cost",
    )
    labels = []
    for point in sorted(points, key=lambda point: point not in best):  # the front has the first choice of places
        x = cost.shown(point)
        assert point.ap is not None
        assert x is not None
        _mark(axes, x, point, look[point.network])
        optional = len(points) > MOST_LABELS and point not in best
        labels.append(Label(x, point.ap.mean, point.label, look[point.network].colour, optional))
    if len(points) > MOST_LABELS:
        _name_looks(axes, points, look)
    theirs = _mark_table_13(axes, cost) if is_coco(study.data.class_names) else []
    axes.margins(x=0.12, y=0.14)
    span_scores(axes)
    log_x(axes)
    axes.set_xlabel(f"{cost.title} (log scale){_where(study, cost)}")
    axes.set_ylabel(f"AP on {study.data.validation_images} validation images")
    legend(figure, axes, columns=2 if len(points) <= MOST_LABELS else 3)
    label_points(figure, axes, [*labels, *theirs])
    plain([axes.xaxis.label])
    return figure


def _name_looks(axes: Any, points: Sequence[Point], look: Mapping[Network, Look]) -> None:
    """What colours and marks mean, for the legend."""
    groups = list(dict.fromkeys(map(group_of, points)))
    widths = {point.network.alpha: look[point.network].colour for point in points}
    marks = {group_of(point): look[point.network].marker for point in points}
    for alpha, colour in sorted(widths.items(), reverse=True):
        axes.plot([], [], "o", color=colour, label=f"colour: α {alpha:g}")
    for group, marker in marks.items() if len(groups) > 1 else ():
        axes.plot([], [], marker, color=GREY, label=f"mark: {_group_words(group, groups)}")


def _mark(axes: Any, x: float, point: Point, look: Look) -> None:
    """A filled mark with its standard deviation."""
    assert point.ap is not None
    axes.errorbar(
        x,
        point.ap.mean,
        yerr=point.ap.sd,
        color=look.colour,
        marker=look.marker,
        markersize=8,
        capsize=4,
        linewidth=1.4,
        zorder=3,
    )


def _where(study: Study, cost: Cost) -> str:
    if not cost.key.endswith("_ms") or study.latency is None:
        return ""
    return f": median, one image at a time, {study.latency.cpu}"


def _mark_table_13(axes: Any, cost: Cost) -> list[Label]:
    """The paper's detectors, hollow; returns the labels to write."""
    if cost.key not in ("mult_adds", "params"):
        return []
    labels = []
    for kind, marker in PAPER_MARKS.items():
        rows = [row for row in TABLE_13 if row.name.startswith(f"{kind},")]
        xs = [float(row.mult_adds) * 1e3 if cost.key == "mult_adds" else float(row.params) for row in rows]
        ys = [float(row.accuracy) / 100 for row in rows]
        name = f"{SOURCE}, Table 13 (COCO AP): {kind}"
        axes.plot(xs, ys, marker, mfc="none", color=GREY, markersize=7, label=name)
        labels += [Label(x, y, row.name.partition(", ")[2], GREY, True) for x, y, row in zip(xs, ys, rows, strict=True)]
    return labels


def draw_kept(study: Study) -> Figure | None:
    """What each point keeps of the full network, beside the paper's classifiers; None without a full one."""
    ours = kept_by_ours(study.points)
    if not ours:
        return None
    figure, (axes,) = new_figure(height_in=5.2)
    look = looks(study)
    groups = list(dict.fromkeys(group_of(point) for point, _ in ours))
    for group in groups:
        chosen = [(kept.mult_adds, kept.score, point) for point, kept in ours if group_of(point) == group]
        members = sorted(chosen, key=lambda member: member[0])
        style = look[members[0][2].network]
        axes.plot(
            [x for x, _, _ in members],
            [y for _, y, _ in members],
            color="#0072b2",
            marker=style.marker,
            linestyle=style.line,
            markersize=8,
            zorder=3,
            label=f"ours: {', '.join(filter(None, (_group_words(group, groups), 'AP on these data')))}",
        )
    labels = [Label(kept.mult_adds, kept.score, kept.name, "#0072b2") for _, kept in ours]
    for (name, table), marker in zip(tables_beside([point for point, _ in ours]).items(), ("o", "s"), strict=False):
        theirs = kept_by_paper(table)
        axes.plot(
            [kept.mult_adds for kept in theirs],
            [kept.score for kept in theirs],
            color="#d55e00" if marker == "o" else "#e69f00",
            marker=marker,
            mfc="white",
            linestyle="--",
            linewidth=1,
            markersize=7,
            label=f"{SOURCE}, {name}: ImageNet top-1, another task",
        )
        labels += [Label(kept.mult_adds, kept.score, kept.name, GREY, True) for kept in theirs[1:]]
    axes.margins(x=0.1, y=0.12)
    span_scores(axes)
    log_x(axes)
    axes.set_xlabel("multiply-adds, of the full network's (log scale)")
    axes.set_ylabel("score, of the full network's")
    legend(figure, axes, columns=1)
    label_points(figure, axes, labels)
    return figure


def _group_words(group: tuple[str, str, float], groups: Sequence[tuple[str, str, float]]) -> str:
    if len(groups) == 1:
        return ""
    kinds = [] if len({other[:2] for other in groups}) == 1 else [f"{group[0]} {group[1]}"]
    return ", ".join([*kinds, f"ρ {group[2]:g}"])


CURVES = {"loss": "training loss", "val_loss": "validation loss", "AP": "AP"}


def draw_training(study: Study) -> Figure | None:
    """Losses and AP by epoch, a line a run; None where no run has written an epoch."""
    runs = [(point, run) for point in study.points for run in point.runs if run.history]
    if not runs:
        return None
    figure, panels = new_figure(height_in=4.6, columns=len(CURVES))
    look = looks(study)
    named = set()
    for point, run in runs:
        for axes, column in zip(panels, CURVES, strict=True):
            xs, ys = _curve(run.history, column)
            label = None if point.network in named or column != "loss" else point.label
            style = look[point.network]
            axes.plot(
                xs,
                ys,
                color=style.colour,
                linestyle=style.line,
                linewidth=1.4,
                alpha=0.9,
                label=label,
                marker="." if len(xs) < 3 else None,
            )
            _end(axes, run, xs, ys, colour=style.colour)
        named.add(point.network)
    for axes, title in zip(panels, CURVES.values(), strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
    span_scores(panels[-1])  # AP's
    legend(figure, panels[0], columns=min(6, len(named)))
    return figure


def _curve(history: Sequence[Mapping[str, float]], column: str) -> tuple[list[float], list[float]]:
    rows = [row for row in history if column in row]
    return [row["epoch"] for row in rows], [row[column] for row in rows]


def _end(axes: Any, run: Run, xs: Sequence[float], ys: Sequence[float], *, colour: str) -> None:
    """A cross where a run that failed stopped."""
    if run.state == "failed" and xs:
        axes.plot(xs[-1], ys[-1], "x", color=colour, markersize=9, markeredgewidth=2)
