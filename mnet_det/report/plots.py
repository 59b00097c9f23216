"""Plots as figures without pyplot, so that no window, no display and no global state is needed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mnet_det.files import whole_file
from mnet_det.runtime.benchmark import Benchmark, BenchmarkRow

DPI = 120
WIDTH_IN = 10.0
"""1200 pixels wide."""
LABEL_LETTERS = 40
"""Of a row's name in one line; the rest goes below."""
TITLE_LETTERS = 110
STAGES = {
    "preprocess": ("preprocess_ms", "#e69f00"),
    "network": ("network_ms", "#0072b2"),
    "postprocess": ("postprocess_ms", "#009e73"),
}
"""Where each stage's numbers are, and its colour: three of Okabe and Ito's, which the colour-blind tell apart."""


def draw_bench(machine: Mapping[str, object], measured: Benchmark) -> Figure:
    """A bar for each row, in their order: the stages' medians one after the other, and up to where p95 of all reaches.

    The frames a second stand at its end.
    """
    rows = measured.rows
    labels = [_label(row) for row in rows]
    lines = max(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(WIDTH_IN, 1.5 + len(rows) * (0.25 + 0.16 * lines)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    ends = [0.0] * len(rows)
    for stage, (attribute, colour) in STAGES.items():
        medians = [getattr(row, attribute).p50 for row in rows]
        axes.barh(places, medians, left=ends, height=0.62, color=colour, label=stage)
        ends = [end + median for end, median in zip(ends, medians, strict=True)]
    for place, row, end in zip(places, rows, ends, strict=True):
        _end_bar(axes, row, place=place, end=end)
    axes.set_yticks(places, labels, fontsize=9)
    axes.invert_yaxis()  # the first row on top
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.12 * max(*ends, *(row.total_ms.p95 for row in rows)))  # room for the frames a second
    axes.set_xlabel("milliseconds a frame: medians; the line ends at the 95th percentile of the total")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    title = figure.suptitle(_title(machine, measured), fontsize=11)
    for text in (title, *axes.get_yticklabels()):
        text.set_parse_math(False)  # a dollar sign in a path is no formula
    figure.legend(loc="outside lower center", ncols=len(STAGES), frameon=False)
    return figure


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure in the format of the path's suffix.

    Raises:
        MnetDetError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary)


def _end_bar(axes: Any, row: BenchmarkRow, *, place: int, end: float) -> None:
    """The whisker and the frames a second of one row."""
    whisker = max(row.total_ms.p95, end)
    axes.errorbar(end, place, xerr=[[0], [whisker - end]], color="#333333", capsize=3, linewidth=1)
    axes.annotate(
        f"{row.fps:.0f} fps", (whisker, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
    )


def _label(row: BenchmarkRow) -> str:
    return textwrap.fill(f"{row.model} ·\N{NO-BREAK SPACE}{row.runtime}", LABEL_LETTERS)


def _title(machine: Mapping[str, object], measured: Benchmark) -> str:
    return "\n".join(textwrap.fill(line, TITLE_LETTERS) for line in (str(machine["cpu"]), str(measured)))
