"""The report of a study as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from mnet_det.report.advice import (
    UNSTEADY,
    USUAL_FPS,
    advise,
    again_command,
    best_at_usual_rates,
    budget_words,
    candidates,
    sentences,
    threads_words,
    unsteady_points,
    unsteady_words,
)
from mnet_det.report.class_figures import (
    CLASSES_SHOWN,
    CONFUSED_SHOWN,
    CURVES_SHOWN,
    classes_by_objects,
    shown_confusion,
)
from mnet_det.report.comparison import compare, relative_to
from mnet_det.report.cost_figures import COSTS, front, leading
from mnet_det.report.paper import SOURCE, TABLE_6, TABLE_7, TABLE_13, PaperRow, is_coco, kept_by_ours, tables_beside
from mnet_det.report.study import AP_SIZES, Latency, LatencyRow, Measured, Point, Spread, Study

NONE = "n/a"
MARKS = {"mult_adds": "M", "params": "P", "total_ms": "ms"}
"""Costs whose Pareto front the main table marks, by the mark."""
SCORES = ("AP75", *AP_SIZES, "AR_100")
"""Those that the main table has behind what is asked for first: AP, AP50, times and sizes."""
SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
"""What a backslash takes the meaning from; others mean something at the start of a line only, where no name stands."""


def write_markdown(study: Study, *, figures: Mapping[str, str], budget: tuple[float, float | None] | None) -> str:
    """The whole report.

    Args:
        study: what was read.
        figures: file names by the keys of `study_report.draw`.
        budget: milliseconds a frame, and the frames a second that they were given as.
    """
    parts = [
        [f"# Width study: {escaped(study.title)}" if study.is_sweep else f"# {escaped(study.title)}"],
        _what(study),
        _points(study),
        _advice(study, budget),
        _less(study),
        _cost_figures(study, figures),
        _classes(study, figures),
        _precision_recall(study, figures),
        _confusion(study, figures),
        _training(study, figures),
        _unfinished(study),
        _how_to_read(study),
        _paper(study, figures),
    ]
    return "\n".join("\n".join([*lines, ""]) for lines in parts if lines)


def escaped(text: str) -> str:
    """Text that means nothing to Markdown, HTML or a table, on one line."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return SPECIAL.sub(r"\\\1", line)


def code(text: str) -> str:
    """Text as code, on one line."""
    line = " ".join(text.split())
    ticks = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{ticks}{line}{ticks}" if ticks == "`" else f"{ticks} {line} {ticks}"


def code_cell(text: str) -> str:
    """Code in a table, where a bar would end the cell even there."""
    return code(text).replace("|", "\\|")


def code_block(commands: Sequence[str]) -> list[str]:
    """Commands as a block of code, a line each."""
    lines = [" ".join(command.split()) for command in commands]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}sh", *lines, fence]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, text: Collection[str] = ()) -> list[str]:
    """A table of numbers, but for the first column and those whose heads are in `text`; cells are Markdown already."""
    ruler = [":---" if index == 0 or head in text else "---:" for index, head in enumerate(heads)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows)]


def _what(study: Study) -> list[str]:
    """What was trained, on what, where and when."""
    data = study.data
    done = sum(len(point.finished) for point in study.points)
    planned = sum(len(point.runs) for point in study.points)
    seeds = sorted({run.seed for point in study.points for run in point.runs})
    lines = [
        f"- {_count(len(study.points), 'point')}, {_count(planned, 'run')}, {done} finished; "
        f"seeds: {', '.join(map(str, seeds))}",
        f"- Data: {data.training_images:,} training and {data.validation_images:,} validation images, "
        f"{len(data.class_names)} classes{_files(study)}",
    ]
    measured = [each for point in study.points for each in point.finished]
    if measured:
        epochs = _sorted(str(each.epochs) for each in measured if each.epochs is not None)
        lines += [f"- Epochs: {', '.join(epochs)}"] if epochs else []
        lines.append(f"- Scored with {_words(each.scores.runtime or '' for each in measured)} on {_machines(measured)}")
        dates = sorted(each.measured_at[:10] for each in measured)
        lines.append(
            f"- Measured {dates[0] if dates[0] == dates[-1] else f'{dates[0]} to {dates[-1]}'} with mnet-det "
            f"{_words(each.mnet_det for each in measured)}"
        )
    if study.latency is not None:
        lines.append(f"- Timed on {escaped(study.latency.cpu)}: {escaped(study.latency.images)}{_threshold(study)}")
    if study.command is not None:
        lines += ["", *code_block(study.command.split(" && "))]  # a sweep that was extended has several
    return lines


def _count(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _files(study: Study) -> str:
    files = [code(name) for name in (study.data.train, study.data.val) if name]
    return f" ({', '.join(files)})" if files else ""


def _threshold(study: Study) -> str:
    score = None if study.latency is None else study.latency.score
    return "" if score is None else f", detections with a score of at least {score:g}"


def _sorted(words: Iterable[str]) -> list[str]:
    return sorted(set(words), key=lambda word: (len(word), word))


def _words(words: Iterable[str]) -> str:
    return ", ".join(escaped(word) for word in _sorted(words) if word) or "an unnamed version"


def _machines(measured: Sequence[Measured]) -> str:
    return _words(str(each.machine.get("cpu", "")) for each in measured)


def _points(study: Study) -> list[str]:
    """The main table: a row a point."""
    fronts = {mark: front(study, cost) for cost in COSTS if (mark := MARKS.get(cost.key))}
    heads = ["point", "AP", "AP50", "network ms", "total ms", "fps", "M mult-adds", "M params", "MB", "front"]
    heads += [*map(_head, SCORES), "input", "minutes", "start", "timed with"]
    rows = []
    for point in study.points:
        marks = [mark for mark, on in fronts.items() if any(point.network == other.network for other in on)]
        rows.append([_named(point), *_asked_first(point), " ".join(marks) or "–", *_others(point)])
    several = any(len(point.finished) > 1 for point in study.points)
    return [
        "## Points",
        "",
        *table(heads, rows, text=("front", "start", "timed with")),
        "",
        "AP and AR are 0…1"
        + (
            ": mean ± sample standard deviation over the seeds; one seed where there is no ±"
            if several
            else ", of one seed a point"
        )
        + ". Front: where no other measured point has a higher AP at no more multiply-adds (M), parameters (P) or "
        "total milliseconds (ms), or the same AP for less. Milliseconds are medians / 95th percentiles.",
    ]


def _head(name: str) -> str:
    return name.replace("_", "\\_")


def _named(point: Point) -> str:
    states = [run.state for run in point.runs if run.state != "finished"]
    done = f"{len(point.finished)} of {len(point.runs)} runs finished" if len(point.runs) > 1 else "".join(states)
    note = f" ({done})" if states else ""
    return f"{escaped(point.words)}{note}"


def _asked_first(point: Point) -> list[str]:
    """How good, how fast and how large it is: what a screen shows without scrolling sideways."""
    row = point.latency
    return [
        *(_spread(point.number(name)) for name in ("AP", "AP50")),
        *(_stage(row, stage) for stage in ("network_ms", "total_ms")),
        NONE if row is None else f"{row.fps:.1f}",
        _scaled(point.mult_adds, 1e6, 0),
        _scaled(point.params, 1e6, 2),
        _scaled(point.file_bytes, 1e6, 1),
    ]


def _others(point: Point) -> list[str]:
    row = point.latency
    return [
        *(_spread(point.number(name)) for name in SCORES),
        f"{point.input_hw[1]}x{point.input_hw[0]}",
        _spread(point.mean(lambda measured: measured.minutes), digits=1),
        "random weights" if point.start is None else code_cell(point.start),
        NONE if row is None else f"{escaped(row.runtime)}, {threads_words(row)}",
    ]


def _spread(spread: Spread | None, *, digits: int = 3) -> str:
    if spread is None:
        return NONE
    return f"{spread.mean:.{digits}f}" + ("" if spread.sd is None else f" ± {spread.sd:.{digits}f}")


def _scaled(value: float | None, unit: float, digits: int) -> str:
    return NONE if value is None else f"{value / unit:,.{digits}f}"


def _stage(row: LatencyRow | None, stage: str) -> str:
    return NONE if row is None else f"{getattr(row, stage).p50:.1f} / {getattr(row, stage).p95:.1f}"


def _advice(study: Study, budget: tuple[float, float | None] | None) -> list[str]:
    """For the budget that was given, and a table for usual rates."""
    lines = ["## Which one to take", ""]
    if not candidates(study):
        return [*lines, *sentences(advise(study, 1.0), budget="")]
    if budget is not None:
        ms, fps = budget
        words = sentences(advise(study, ms), budget=budget_words(ms, fps=fps))
        lines += [f"**{escaped(words[0])}** {escaped(' '.join(words[1:]))}".rstrip(), ""]
    if unsteady := unsteady_words(study):
        lines += [f"{escaped(unsteady)}: {code(again_command(study))}.", ""]
    assert study.latency is not None
    return [
        *lines,
        *_rates(study),
        "",
        f"Only measured points, timed on {escaped(study.latency.cpu)}; nothing is predicted for others, or for another "
        "machine.",
    ]


def _rates(study: Study) -> list[str]:
    """The best point by rate; one sentence where it is the same for all."""
    if same := best_at_usual_rates(study):
        return [escaped(same)]
    heads = ["rate", "best measured point", "AP", "ms a frame, p50 / p95", "its fps", "next better point"]
    return table(heads, [_rate(study, fps) for fps in USUAL_FPS], text=("best measured point",))


def _rate(study: Study, fps: float) -> list[str]:
    advice = advise(study, 1000 / fps)
    rate = f"{fps:g} fps ({1000 / fps:.1f} ms)"
    if advice.best is None:
        return [rate, "no measured point is that fast", NONE, NONE, NONE, NONE]
    best, better = advice.best, advice.better
    more = (
        "none"
        if better is None
        else f"{escaped(better.point.words)}: {better.ap.mean - best.ap.mean:+.3f} AP, {better.ms - best.ms:+.1f} ms"
    )
    over = " (p95 is over)" if advice.p95_is_over else ""
    row = best.latency
    return [rate, escaped(best.point.words), _spread(best.ap), _stage(row, "total_ms") + over, f"{row.fps:.1f}", more]


def _less(study: Study) -> list[str]:
    """What the smaller networks lose and gain."""
    comparisons = compare(study)
    if not comparisons:
        return []
    rows = [
        [
            escaped(each.point.words),
            f"{each.ap:+.3f}",
            each.seeds_words,
            _percent(each.mult_adds),
            _percent(each.params),
            NONE if each.times_as_fast is None else f"{each.times_as_fast:.1f}×",
        ]
        for each in comparisons
    ]
    heads = ["point", "AP difference", "seeds", "of the multiply-adds", "of the parameters", "times as fast"]
    return [
        "## What less costs and gives",
        "",
        *table(heads, rows, text=("seeds",)),
        "",
        escaped(relative_to(comparisons)),
    ]


def _percent(part: float | None) -> str:
    return NONE if part is None else f"{part:.1%}"


def _picture(figures: Mapping[str, str], key: str, words: str) -> list[str]:
    return [f"![{words}]({figures[key]})", ""] if key in figures else []


def _cost_figures(study: Study, figures: Mapping[str, str]) -> list[str]:
    drawn = [
        *_picture(figures, "ap_mult_adds", "AP against multiply-adds"),
        *_picture(figures, "ap_params", "AP against parameters"),
        *_picture(figures, "ap_total_ms", "AP against milliseconds a frame"),
        *_picture(figures, "sizes", "AP of small, medium and large objects"),
    ]
    if not drawn:
        return []
    spread = any(point.ap is not None and point.ap.sd is not None for point in study.points)
    return [
        "## AP and cost",
        "",
        *drawn,
        *(["Bars are ± one standard deviation over the seeds; a point without one has one seed."] if spread else []),
    ]


def _classes(study: Study, figures: Mapping[str, str]) -> list[str]:
    """AP by class and point, and the best point's sizes and thresholds."""
    best = study.best
    if best is None or best.first is None:
        return []
    analysis = best.first.analysis
    counted = {name: scores.objects for name, scores in analysis.per_class.items()}
    names = sorted(study.data.class_names, key=lambda name: -counted.get(name, 0))
    rows = [
        [escaped(name), f"{counted.get(name, 0):,}", *(_spread(point.mean(_ap_of(name))) for point in study.scored)]
        for name in names
    ]
    lines = ["## Classes", "", *_picture(figures, "classes", "AP by class")]
    if "classes" in figures and len(classes_by_objects(analysis)) > CLASSES_SHOWN:
        lines += [f"The figure shows the {CLASSES_SHOWN} classes with the most objects.", ""]
    if "classes" in figures and len(leading(study)) < len(study.scored):
        lines += ["The figure shows the points on a Pareto front: the others would hide them.", ""]
    lines += ["AP by class; n/a: no objects of it on the validation images.", ""]
    lines += table(["class", "objects", *(escaped(point.words) for point in study.scored)], rows)
    lines += ["", f"### Sizes and thresholds of {escaped(best.words)}, seed {best.first.seed}", ""]
    rows = [_threshold_row(best.first, name) for name in names]
    heads = ["class", "AP", "AP50", "AP75", *map(_head, AP_SIZES), "score of best F1", "precision", "recall", "F1"]
    lines += table(heads, rows)
    lines += ["", "The score of best F1, at IoU 0.50, was chosen on these very images, so its F1 reads high."]
    return lines


def _ap_of(name: str) -> Callable[[Measured], float | None]:
    return lambda measured: measured.scores.per_class.get(name)


def _threshold_row(measured: Measured, name: str) -> list[str]:
    scores, best = measured.analysis.per_class.get(name), measured.analysis.best_f1.get(name)
    values = [None if scores is None else getattr(scores, key) for key in ("AP", "AP50", "AP75", *AP_SIZES)]
    values += [None if best is None else getattr(best, key) for key in ("score", "precision", "recall", "f1")]
    return [escaped(name), *(NONE if value is None else f"{value:.3f}" for value in values)]


def _precision_recall(study: Study, figures: Mapping[str, str]) -> list[str]:
    if "precision_recall" not in figures or study.best is None or study.best.first is None:
        return []
    count = len(classes_by_objects(study.best.first.analysis))
    which = (
        f"The {CURVES_SHOWN} classes with the most objects, and the mean of all {count}"
        if count > CURVES_SHOWN
        else "Each class"
    )
    return [
        "## Precision and recall",
        "",
        *_picture(figures, "precision_recall", "precision against recall"),
        f"{which}; {escaped(study.best.words)}, seed {study.best.first.seed}. Precision is COCO's: the highest at this "
        "recall or a higher one.",
    ]


def _confusion(study: Study, figures: Mapping[str, str]) -> list[str]:
    best = study.best
    if "confusion" not in figures or best is None or best.first is None:
        return []
    confusion = best.first.analysis.confusion
    shown = shown_confusion(confusion)
    rest = (
        f" Shown are the {CONFUSED_SHOWN} classes with the most confusions; the {shown.summed} others are summed."
        if shown.summed
        else ""
    )
    return [
        "## What is taken for what",
        "",
        *_picture(figures, "confusion", "confusion matrix"),
        f"Counts at IoU {confusion.iou:g}; each class's detections from its score of best F1 on. Rows are what is "
        "there, columns what was detected: the last column was missed, the last row is background taken for an object. "
        f"Colours are shares of a row. {escaped(best.words)}, seed {best.first.seed}.{rest}",
    ]


def _training(study: Study, figures: Mapping[str, str]) -> list[str]:
    if "training" not in figures:
        return []
    failed = any(run.state == "failed" and run.history for point in study.points for run in point.runs)
    words = "One line a run; seeds of a point share a colour and line." + (
        " A cross: the end of one that failed." if failed else ""
    )
    rows = [
        [escaped(point.words), str(each.seed), _or_none(each.epochs), _or_none(each.best_epoch), _minutes(each)]
        for point in study.points
        for each in point.finished
    ]
    done = table(["point", "seed", "epochs", "best epoch", "minutes"], rows) if rows else []
    return ["## Training", "", *_picture(figures, "training", "losses and AP by epoch"), words, "", *done]


def _or_none(value: int | None) -> str:
    return NONE if value is None else str(value)


def _minutes(measured: Measured) -> str:
    return NONE if measured.minutes is None else f"{measured.minutes:.1f}"


def _unfinished(study: Study) -> list[str]:
    if not study.unfinished:
        return []
    rows = [
        [escaped(point.words), str(run.seed), run.state, escaped(run.reason), code_cell(run.name)]
        for point, run in study.unfinished
    ]
    lines = table(["point", "seed", "state", "why", "folder"], rows, text=("state", "why", "folder"))
    return ["## Failed and missing runs", "", *lines]


def _how_to_read(study: Study) -> list[str]:
    return ["## How to read it", "", *(f"- {escaped(line)}" for line in how_to_read(study))]


def how_to_read(study: Study) -> list[str]:
    """What the numbers are not, as sentences in plain text."""
    lines = [
        *_chosen(study),
        "Multiply-adds and parameters are counted, not measured; the file is the exported float32 model.",
    ]
    if len({point.start for point in study.points}) > 1:
        lines.append(
            "The points do not begin from the same weights (column start), so a difference in AP is not one of width "
            "or resolution alone."
        )
    if study.latency is None:
        lines.append("No latency was measured yet, so there are no milliseconds and no advice for a budget.")
    else:
        lines.append(
            f"Latency was measured in turns, in one sitting, one image at a time, on {study.latency.cpu}: "
            "preprocessing, network and postprocessing. Another machine has other times, and may have another order."
        )
        lines += _about_runtimes(study, study.latency)
        lines += _about_unsteady(study)
    return [*lines, *_about_seeds(study)]


def _chosen(study: Study) -> list[str]:
    """What was chosen on the validation images: best.pt, the best of as many as were scored while training.

    Nothing while no run is finished.
    """
    counts = [
        sum("AP" in row for row in run.history)
        for point in study.points
        for run in point.runs
        if run.state == "finished"
    ]
    if not counts:
        return []
    several = sorted(count for count in counts if count > 1)
    best_of = "the best of several validations"
    if several:
        times = f"{several[0]}" if several[0] == several[-1] else f"{several[0]} to {several[-1]}"
        best_of = f"the best of {times} validations"
    here = "on this very list of images"
    if len(several) == len(counts):
        chosen = f"AP is that of best.pt, which is {best_of} {here}: it reads high."
    elif counts.count(1) == len(counts):
        chosen = f"AP is that of best.pt, which was scored once while it trained, {here}."
    elif 0 in counts:  # of some, metrics.csv does not say
        chosen = f"AP is that of best.pt, which was chosen {here}: it reads high where it is {best_of}."
    else:
        chosen = (
            f"AP is that of best.pt: in {len(several)} of {len(counts)} finished runs {best_of} {here}, which reads "
            "high; in the others scored once while it trained."
        )
    return [
        f"{chosen} For a number to publish, score on images that played no part (mnet-det eval).",
        "Scores of best F1 are chosen on the validation images as well.",
    ]


def _about_runtimes(study: Study, latency: Latency) -> list[str]:
    """That scores and times are not of one engine, where they are not."""
    scored = {each.scores.runtime for point in study.points for each in point.finished if each.scores.runtime}
    timed = {row.runtime for row in latency.rows}
    if not scored or scored == timed:
        return []
    return [f"AP was scored with {', '.join(sorted(scored))}, time was taken with {', '.join(sorted(timed))}."]


def _about_unsteady(study: Study) -> list[str]:
    """Which times something else on the machine has disturbed."""
    unsteady = [point.words for point in unsteady_points(study)]
    if not unsteady:
        return []
    return [
        f"The times of {'; '.join(unsteady)} are unsteady: their 95th percentile is more than {UNSTEADY:g} times the "
        "median, as where something else keeps the machine busy. Measure again while nothing else runs."
    ]


def _about_seeds(study: Study) -> list[str]:
    """What a mean over seeds tells of chance."""
    seeds = {len(point.finished) for point in study.points if point.finished}
    if max(seeds, default=0) < 2:
        return ["With one seed a point, small differences may be chance: a second seed would show how large that is."]
    lines = [
        "± is the sample standard deviation over the seeds of a point: what changes with the seed alone, on the same "
        "images. It says nothing about other images."
    ]
    if len(seeds) > 1:
        lines.append(
            f"Points have {min(seeds)} to {max(seeds)} finished seeds: a mean of fewer is less certain, and of one "
            "seed nobody knows how chance has moved it."
        )
    return lines


def _paper(study: Study, figures: Mapping[str, str]) -> list[str]:
    """The paper's own points, beside ours as far as they can be."""
    lines = [f"## The paper's points ({SOURCE})", ""]
    ours = kept_by_ours(study.points)
    if ours:
        lines += _picture(figures, "kept", "what is kept of the full network")
        lines += [
            "What is kept of the full network (alpha 1, rho 1): ours is AP on these data, theirs top-1 accuracy on "
            "ImageNet, which is another task: the shapes can be compared, the numbers cannot.",
            "",
        ]
        rows = [[escaped(point.words), f"{kept.mult_adds:.3f}", f"{kept.score:.3f}"] for point, kept in ours]
        lines += [*table(["ours", "multiply-adds kept", "AP kept"], rows), ""]
    beside = tables_beside(study.points)
    for name, rows_of, what in (("Table 6", TABLE_6, "width"), ("Table 7", TABLE_7, "resolution")):
        if name in beside:
            lines += [f"{name}: {what}; ImageNet classification, not comparable with AP.", ""]
            lines += [*_paper_table(rows_of, score="ImageNet top-1, %", unit="M"), ""]
    if is_coco(study.data.class_names):
        lines += ["Table 13: detectors; COCO AP, marked hollow in the figures. Ours have COCO's 80 classes, too;"]
        lines += ["the images that were scored, and the training, are not the paper's.", ""]
    else:
        lines += ["Table 13: detectors; theirs, on COCO: not comparable with AP on these data.", ""]
    return [*lines, *_paper_table(TABLE_13, score="COCO AP, %", unit="G")]


def _paper_table(rows: Sequence[PaperRow], *, score: str, unit: str) -> list[str]:
    heads = ["theirs", score, f"{unit} multiply-adds", "M parameters"]
    return table(heads, [[escaped(row.name), row.accuracy, row.mult_adds, row.params] for row in rows])
