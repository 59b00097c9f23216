"""The report of a sweep or of a run: figures, Markdown, JSON and a page, written beside what they tell of."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from mnet_det.files import write_json, write_text
from mnet_det.report.advice import (
    Advice,
    advise,
    again_command,
    budget_ms,
    budget_words,
    sentences,
    unsteady_words,
)
from mnet_det.report.class_figures import draw_classes, draw_confusion, draw_precision_recall, draw_sizes
from mnet_det.report.cost_figures import COSTS, DRAWN, draw_cost, draw_kept, draw_training
from mnet_det.report.figure_style import installed_fonts
from mnet_det.report.markdown import how_to_read, write_markdown
from mnet_det.report.page import fill_page
from mnet_det.report.plots import write_figure
from mnet_det.report.study import Study, read_study
from mnet_det.report.summary import page_json, study_json

FIGURES = frozenset(
    (*(f"ap_{key}" for key in DRAWN), "sizes", "classes", "precision_recall", "confusion", "training", "kept")
)
"""All that a report may have."""


@dataclass(frozen=True)
class Report:
    """What was written, and what it comes to.

    Attributes:
        files: report.md, report.html, report.json and the figures.
        advice: for the budget; None without one.
        sentences: the advice in words, if there is a budget; the last one says that times were unsteady, if they were.
    """

    study: Study
    files: tuple[Path, ...]
    advice: Advice | None
    sentences: tuple[str, ...]


def write_report(folder: Path, *, fps: float | None = None, ms: float | None = None) -> Report:
    """Write the report of a sweep's folder, or of a run's, into it.

    Args:
        folder: holds a sweep.json, or a measured.json.
        fps: a budget as frames a second.
        ms: a budget as milliseconds a frame; not both.

    Raises:
        ConfigError: both budgets, or one that is not above 0.
        DataError: the folder is neither a sweep's nor a measured run's, or a file in it is damaged.
        MnetDetError: a file cannot be written.
    """
    limit = budget_ms(fps=fps, ms=ms)
    study = read_study(folder)
    with rc_context({"font.family": installed_fonts()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in letters that no font has
        figures = draw(study)
        for name, figure in figures.items():
            write_figure(folder / f"{name}.png", figure)
    budget = None if limit is None else (limit, fps)
    names = {name: f"{name}.png" for name in figures}
    write_json(folder / "report.json", study_json(study, budget=budget))
    write_text(folder / "report.md", write_markdown(study, figures=names, budget=budget))
    write_page(study, folder / "report.html", fps=None if limit is None else 1000 / limit)
    for name in FIGURES.difference(figures):  # of an earlier report: this one has no numbers for it
        with suppress(OSError):
            (folder / f"{name}.png").unlink(missing_ok=True)
    advice = None if limit is None else advise(study, limit)
    words = [] if advice is None else sentences(advice, budget=budget_words(advice.budget_ms, fps=fps))
    if unsteady := unsteady_words(study):
        words = [*words, f"{unsteady}: `{again_command(study)}`."]
    files = ("report.md", "report.html", "report.json", *names.values())
    return Report(study, tuple(folder / name for name in files), advice, tuple(words))


def write_page(study: Study, path: Path, *, fps: float | None = None) -> None:
    """Write the page alone; `fps` stands in its budget when it is opened.

    Raises:
        MnetDetError: the file cannot be written.
    """
    content = page_json(study) | {"how_to_read": how_to_read(study), "budget_fps": fps}
    write_text(path, fill_page(content, title=study.title))


def draw(study: Study) -> dict[str, Figure]:
    """The figures that the study has numbers for, by name."""
    first = None if study.best is None else study.best.first
    drawn = {
        **{f"ap_{cost.key}": draw_cost(study, cost) for cost in COSTS if cost.key in DRAWN},
        "sizes": draw_sizes(study),
        "classes": draw_classes(study),
        "precision_recall": None if first is None else draw_precision_recall(first),
        "confusion": None if first is None else draw_confusion(first),
        "training": draw_training(study),
        "kept": draw_kept(study),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}
