"""What the figures of a study share: colours and marks of points, readable log axes, labels that keep apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mnet_det.report.plots import DPI, WIDTH_IN
from mnet_det.report.study import Network, Point, Study

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which the colour-blind tell apart; without their yellow, which is lost on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
GREY = "#59636e"
PALE = "#d5dade"
NAME_LETTERS = 28
"""Of a class's name; the rest is cut, and the tables have it in full."""
OFFSETS = ((9, -11), (9, 5), (-9, 6), (-9, -13), (0, 11), (0, -18), (14, -3), (-14, -3), (16, -24), (-16, 20))
"""Where a label may stand, in points from what it names; the first place that is free is taken."""
NEAR = 6
"""How many of them are so near that an optional label belongs to its place at sight."""


@dataclass(frozen=True)
class Label:
    """A text beside a place on the axes; an optional one is smaller, and left out where there is no room."""

    x: float
    y: float
    text: str
    colour: str
    optional: bool = False


@dataclass(frozen=True)
class Look:
    """How a point is drawn wherever it appears: the colour is its width's, the mark and line its resolution's."""

    colour: str
    marker: str
    line: Any


LEAST_SPAN = 0.05
"""Of scores on an axis: a smaller difference is not drawn as if it were large."""
MARK_PX = 7
"""Half the side of a mark, on the figure."""
FONTS = (
    "DejaVu Sans",
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("PingFang SC", "Hiragino Sans", "Arial Unicode MS", "Noto Sans Devanagari", "Nirmala UI"),
)
"""matplotlib's own, and for names in letters that it lacks those of Linux, Windows and macOS."""


def installed_fonts() -> list[str]:
    """Those of `FONTS` that there are, for matplotlib's `font.family`: each letter is of the first that has it."""
    there = set(get_font_names())
    return [name for name in FONTS if name in there]


def looks(study: Study) -> dict[Network, Look]:
    """The look of each point."""
    alphas = sorted({point.network.alpha for point in study.points}, reverse=True)
    groups = list(dict.fromkeys(group_of(point) for point in study.points))
    return {
        point.network: Look(
            COLOURS[alphas.index(point.network.alpha) % len(COLOURS)],
            MARKERS[groups.index(group_of(point)) % len(MARKERS)],
            LINES[groups.index(group_of(point)) % len(LINES)],
        )
        for point in study.points
    }


def group_of(point: Point) -> tuple[str, str, float]:
    """Points of one group differ in width alone."""
    return point.network.head, point.network.backbone, point.network.rho


def new_figure(*, height_in: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    """A figure as wide as all of ours, with its axes from left to right."""
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color=PALE, linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def span_scores(axes: Any) -> None:
    """An axis of scores that does not magnify differences below `LEAST_SPAN`; it goes no further below 0 for that."""
    low, high = axes.get_ylim()
    lacking = LEAST_SPAN - (high - low)
    if lacking > 0:
        bottom = max(min(low, 0.0), low - lacking / 2)
        axes.set_ylim(bottom, bottom + LEAST_SPAN)


def log_x(axes: Any) -> None:
    """A logarithmic x with plain numbers: at 1, 2 and 5 of each decade, more where there is little, fewer of many."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = high / low
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 12 else (1, 2, 5) if decades < 2000 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def ink(colour: str) -> str:
    """A colour in which small letters are legible on white: as dark as it takes to reach 4.5 to 1 (WCAG 2.1)."""
    mixed = np.asarray(to_rgb(colour))
    while contrast(mixed, (1, 1, 1)) < 4.5:
        mixed = mixed * 0.95
    return to_hex(mixed)


def contrast(one: Any, other: Any) -> float:
    """The contrast of two sRGB colours, 1 to 21: WCAG 2.1, relative luminance."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Any) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def plain(texts: Sequence[Any]) -> None:
    """A dollar sign in a name is no formula."""
    for text in texts:
        text.set_parse_math(False)


def legend(figure: Figure, axes: Any, *, columns: int = 4) -> None:
    """Below the figure, what the axes have named."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        drawn = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        plain(drawn.get_texts())


def short(name: str) -> str:
    """A class's name on one line, cut to what a figure has room for."""
    line = " ".join(name.split())
    return line if len(line) <= NAME_LETTERS else f"{line[: NAME_LETTERS - 1]}…"


def label_points(figure: Figure, axes: Any, labels: Sequence[Label]) -> None:
    """Write each label beside its place, clear of the others and of all the places.

    Where there is no room, a label is left out if it is optional, else it lies on something.
    """
    figure.draw_without_rendering()  # now the axes know where they are
    places = [axes.transData.transform((label.x, label.y)) for label in labels]
    taken = [(x - MARK_PX, y - MARK_PX, x + MARK_PX, y + MARK_PX) for x, y in places]
    frame = axes.get_window_extent()
    for label in labels:
        notes = [_note(axes, label, offset) for offset in (OFFSETS[:NEAR] if label.optional else OFFSETS)]
        extents = [note.get_window_extent().extents for note in notes]
        free = [_is_inside(extent, frame) and not any(_overlap(extent, other) for other in taken) for extent in extents]
        chosen = free.index(True) if any(free) else None if label.optional else 0
        for index, note in enumerate(notes):
            if index != chosen:
                note.remove()
        if chosen is not None:
            taken.append(extents[chosen])


def _note(axes: Any, label: Label, offset: tuple[int, int]) -> Any:
    """The label where `offset` puts it."""
    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right" if offset[0] < 0 else "center",
        fontsize=7.5 if label.optional else 9,
        color=ink(label.colour),
        parse_math=False,
        path_effects=[withStroke(linewidth=3, foreground="white")],  # readable on a line
    )


def _is_inside(extent: Sequence[float], frame: Any) -> bool:
    return extent[0] >= frame.x0 and extent[2] <= frame.x1 and extent[1] >= frame.y0 and extent[3] <= frame.y1


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
