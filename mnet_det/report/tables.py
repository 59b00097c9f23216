"""Costs, scores and latencies as tables for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnet_det.catalogue import Entry
from mnet_det.report.study import Spread, Study
from mnet_det.runtime.benchmark import Benchmark, BenchmarkRow, MatrixProduct, StageSummary, g_mult_adds_per_s

if TYPE_CHECKING:
    from mnet_det.models.cost import Cost  # counting needs torch, printing does not


class _Run(Protocol):
    """A training that is planned: see `engine.plan.PlannedRun`."""

    @property
    def name(self) -> str: ...
    @property
    def start(self) -> str | None: ...
    @property
    def mult_adds(self) -> int | None: ...
    @property
    def params(self) -> int | None: ...
    @property
    def fault(self) -> str | None: ...
    @property
    def input_hw(self) -> tuple[int, int]: ...


class _Scores(Protocol):
    """What COCOeval said: see `engine.evaluate.Scores`."""

    @property
    def numbers(self) -> Mapping[str, float | None]: ...
    @property
    def per_class(self) -> Mapping[str, float | None]: ...
    @property
    def images(self) -> int: ...
    @property
    def detections(self) -> int: ...
    @property
    def classes_left_out(self) -> int: ...


def print_cost(console: Console, title: str, cost: Cost) -> None:
    """Every layer, the separable blocks against full convolutions, the kinds of layer, and the sums."""
    layers = _table(f"{title}: layers", "layer", "kind", "output", "multiply-adds", "parameters")
    for layer in cost.layers:
        shape = "x".join(map(str, layer.output))
        layers.add_row(layer.name, layer.kind, shape, f"{layer.mult_adds:,}", f"{layer.params:,}")
    console.print(layers)
    if cost.separable_blocks:
        blocks = _table(
            "separable blocks against full convolutions", "block", "multiply-adds", "full", "ratio", "1/N + 1/D_K²"
        )
        for block in cost.separable_blocks:
            numbers = (
                f"{block.mult_adds:,}",
                f"{block.full_mult_adds:,}",
                f"{block.ratio:.4f}",
                f"{block.formula:.4f}",
            )
            blocks.add_row(block.name, *numbers)
        console.print(blocks)
    kinds = _table("kinds of layer", "kind", "multiply-adds", "share", "weights", "share of weights")
    for name, kind in cost.by_kind.items():
        share = "" if kind.params_share is None else f"{kind.params_share:.2%}"
        kinds.add_row(name, f"{kind.mult_adds:,}", f"{kind.mult_adds_share:.2%}", f"{kind.params:,}", share)
    console.print(kinds)
    if cost.mult_adds_per_proposal:
        second = cost.proposals * cost.mult_adds_per_proposal
        console.print(
            f"the second stage costs {cost.mult_adds_per_proposal / 1e6:,.1f} M multiply-adds for each of the "
            f"{cost.proposals} proposals (model.proposals): {second / 1e9:,.2f} G of {cost.mult_adds / 1e9:,.2f} G",
            highlight=False,
        )
    console.print(
        f"{title}: {cost.mult_adds / 1e6:,.1f} M multiply-adds, {cost.params / 1e6:,.3f} M parameters", highlight=False
    )


def print_scores(console: Console, scores: _Scores) -> None:
    """The twelve numbers, then AP per class, best first; what has no truth to judge by is n/a."""
    console.print(f"{scores.images} images, {scores.detections} detections", highlight=False)
    if scores.classes_left_out:
        left_out = f"{scores.classes_left_out} of the model's classes are not in the data"
        console.print(f"{left_out}: what it found of them is left out", highlight=False)
    numbers = _table("", "COCO", "value")
    for name, value in scores.numbers.items():
        numbers.add_row(name, _number(value))
    console.print(numbers)
    classes = _table("AP per class", "class", "AP")
    for name, value in sorted(
        scores.per_class.items(), key=lambda item: -1 if item[1] is None else item[1], reverse=True
    ):
        classes.add_row(Text(name), _number(value))  # Text: brackets in a name are no markup
    console.print(classes)


def print_plan(console: Console, runs: Sequence[_Run], minutes: Mapping[str, float | None], *, jobs: int) -> None:
    """What a sweep would train, from which weights, and about how long.

    Args:
        console: where it is printed.
        runs: all of the plan.
        minutes: left of each run that is not finished, by its name; None where nobody knows.
        jobs: runs at a time.
    """
    table = _table(
        "plan",
        "run",
        "input",
        "starts from",
        "G multiply-adds",
        "M parameters",
        "minutes, about",
        texts=("starts from",),
        names=[str(run) for run in runs],
    )
    for run in runs:
        table.add_row(
            Text(str(run)),
            f"{run.input_hw[1]}x{run.input_hw[0]}",
            Text(run.start or "random weights"),
            _amount(run.mult_adds, unit=1e9),
            _amount(run.params, unit=1e6),
            _left(run, minutes),
        )
    console.print(table)
    for run in runs:
        if run.fault is not None:
            console.print(f"{run}: {run.fault}", highlight=False, soft_wrap=True)
    known = [left for left in minutes.values() if left is not None]
    total = max(sum(known) / jobs, max(known, default=0.0))  # no sooner than the longest one
    to_do = [run for run in runs if run.fault is None and run.name in minutes]
    untimed = f", {len(to_do) - len(known)} of them not timed" if len(known) < len(to_do) else ""
    console.print(
        f"{len(to_do)} of {len(runs)} runs to do{untimed}, about {total:.1f} min with {jobs} at a time: an "
        "estimate from a few steps of each network, without reading images and measuring",
        highlight=False,
    )


def _left(run: _Run, minutes: Mapping[str, float | None]) -> str:
    if run.fault is not None:
        return "cannot be built"
    if run.name not in minutes:
        return "finished"
    left = minutes[run.name]
    return "not timed" if left is None else f"{max(left, 0.1):.1f}"


def print_study(console: Console, study: Study) -> None:
    """A row a point: what it finds, mean ± standard deviation over its seeds, what it costs, how fast it is."""
    names = [point.words for point in study.points]
    table = _table(
        study.title, "point", "AP", "AP50", "G multiply-adds", "M parameters", "network ms", "fps", "seeds", names=names
    )
    for point in study.points:
        latency = point.latency
        table.add_row(
            Text(point.words),
            _spread(point.number("AP")),
            _spread(point.number("AP50")),
            _amount(point.mult_adds, unit=1e9),
            _amount(point.params, unit=1e6),
            "" if latency is None else f"{latency.network_ms.p50:.1f}",
            "" if latency is None else f"{latency.fps:.1f}",
            f"{len(point.finished)} of {len(point.runs)}",
        )
    console.print(table)
    for point, run in study.unfinished:
        console.print(f"{point.words}, seed {run.seed}: {run.reason}", highlight=False, soft_wrap=True)


def _amount(value: int | None, *, unit: float) -> str:
    return "n/a" if value is None else f"{value / unit:.3g}"


def _spread(value: Spread | None) -> str:
    if value is None:
        return "n/a"
    return f"{value.mean:.3f}" if value.sd is None else f"{value.mean:.3f} ± {value.sd:.3f}"


def print_bench(
    console: Console,
    machine: Mapping[str, object],
    measured: Benchmark,
    *,
    costs: Mapping[str, Cost] | None = None,
) -> None:
    """One row a model and runtime: milliseconds as p50 / p95. Then each model, with its cost where that is known."""
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), highlight=False)
    console.print(_product(measured.product), highlight=False)
    known = costs or {}
    names = [row.model for row in measured.rows] if console.width >= WIDE_ENOUGH else ()
    table = _table(
        f"milliseconds, p50 / p95; {measured}",
        "model",
        "runtime",
        "preprocess",
        "network",
        "of matrix\nproduct",
        "postprocess",
        "total",
        "fps",
        names=names,
    )
    for row in measured.rows:
        cost = known.get(row.model)
        fraction = None if cost is None else measured.product.fraction_of(row, mult_adds=cost.mult_adds)
        table.add_row(
            Text(row.model),
            row.runtime,
            _stage(row.preprocess_ms),
            _stage(row.network_ms),
            "" if fraction is None else f"{fraction:.2f}",
            _stage(row.postprocess_ms),
            _stage(row.total_ms),
            f"{row.fps:.1f}",
        )
    console.print(table)
    models = _table("models", "model", "input", "detections a frame", "G multiply-adds", "M parameters", names=names)
    for name, row in {row.model: row for row in measured.rows}.items():
        cost = known.get(name)
        counts = ("", "") if cost is None else (f"{cost.mult_adds / 1e9:.3g}", f"{cost.params / 1e6:.3g}")
        models.add_row(Text(name), f"{row.input_hw[1]}x{row.input_hw[0]}", f"{row.detections:.1f}", *counts)
    console.print(models)


def bench_json(
    machine: Mapping[str, object], measured: Benchmark, *, costs: Mapping[str, Cost] | None = None
) -> dict[str, Any]:
    """What `mnet-det bench --json` promises, the machine's own limit, and the cost of those whose cost is known."""
    product = measured.product
    return {
        "machine": dict(machine),
        "images": measured.images,
        "frame_hw": measured.frame_hw,
        "score": measured.score,
        "matrix_product": asdict(product) | {"g_mult_adds_per_s": product.g_mult_adds_per_s},
        "rows": [asdict(row) | _costs_of(row, product, (costs or {}).get(row.model)) for row in measured.rows],
    }


def _costs_of(row: BenchmarkRow, product: MatrixProduct, cost: Cost | None) -> dict[str, Any]:
    """What is known of a row's arithmetic; a fraction only of float32."""
    if cost is None:
        return {}
    fraction = product.fraction_of(row, mult_adds=cost.mult_adds)
    known = {
        "mult_adds": cost.mult_adds,
        "params": cost.params,
        "g_mult_adds_per_s": g_mult_adds_per_s(cost.mult_adds, row.network_ms),
    }
    return known if fraction is None else known | {"fraction_of_matrix_product": fraction}


def _product(product: MatrixProduct) -> str:
    threads = "" if product.threads is None else f", {product.threads} threads"
    return (
        f"matrix product {product.size}x{product.size}x{product.size}, float32, by {product.library}{threads}: "
        f"{_stage(product.ms)} ms, {product.g_mult_adds_per_s:.1f} G multiply-adds a second"
    )


UNFOLDED_NAME = 48
"""Letters of a name that are kept on one line, if all else has to fold."""
WIDE_ENOUGH = 140
"""Columns of a terminal in which a table of many columns, the catalogue for one, fits with names unfolded."""


def print_catalogue(console: Console, entries: Sequence[Entry], *, have: Collection[str]) -> None:
    """Published weights, those in `have` marked as cached; below, where each comes from and how it is verified."""
    wide = console.width >= WIDE_ENOUGH
    more = ("what", "published accuracy") if wide else ()
    table = _table(
        "published weights",
        "name",
        "alpha",
        "input",
        "size",
        "cached",
        *more,
        texts=more,
        names=[entry.name for entry in entries],
    )
    for entry in entries:
        size = "n/a" if entry.size is None else f"{entry.size / 1e6:.1f} MB"
        row = (entry.name, f"{entry.alpha:g}", f"{entry.input_hw[1]}x{entry.input_hw[0]}", size)
        words = (_what(entry), entry.accuracy or "none stated") if wide else ()
        table.add_row(*row, "yes" if entry.name in have else "", *words)
    console.print(table)
    for entry in entries:
        lines = [entry.name]
        if not wide:
            lines.append(f"  {_what(entry)}; accuracy: {entry.accuracy or 'none stated'}")
        lines.append(f"  licence {entry.licence}")
        if entry.note:
            lines.append(f"  {entry.note}")
        archive = "" if entry.member is None else " (of the archive)"
        start = f"begins with {entry.sha256_start}, the rest " if entry.sha256_start else ""
        unknown = f"{start}not known; recorded at the first download"
        known = unknown if entry.sha256 is None else f"{entry.sha256}{archive}"
        lines += [f"  sha256 {known}", f"  {entry.url}"]
        if entry.member is not None:
            lines.append(f"  in it: {entry.member}")
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)  # an address can be copied


def catalogue_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Published weights with all that is known of them, for JSON."""
    return [asdict(entry) | {"input_hw": list(entry.input_hw)} for entry in entries]


def _what(entry: Entry) -> str:
    return f"{entry.kind}, {entry.description}"


def _table(title: str, *columns: str, texts: Collection[str] = (), names: Sequence[str] = ()) -> Table:
    """The first column is a name, never cut short; the others are numbers, except those in `texts`.

    Where `names` are given, other columns are folded before a name is, up to a reasonable length.
    """
    table = Table(title=title, title_justify="left")
    name_width = min(max(map(len, (columns[0], *names))), UNFOLDED_NAME) if names else None
    for index, column in enumerate(columns):
        left = index == 0 or column in texts
        width = name_width if index == 0 else None  # with a least width instead, the last columns would be cut off
        table.add_column(column, justify="left" if left else "right", overflow="fold", width=width)
    return table


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _stage(stage: StageSummary) -> str:
    return f"{stage.p50:.1f} / {stage.p95:.1f}"
