"""A folder of trained networks as numbers: a sweep's plan and what became of each run, or one run alone."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from mnet_det.errors import DataError
from mnet_det.sweep_folder import FAILED_FILE, MEASURED_FILE, PLAN_FILE, is_measured

AP_SIZES = ("AP_small", "AP_medium", "AP_large")
BACKGROUND = "background"
State = Literal["finished", "failed", "not done"]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Spread:
    """One number over the seeds of a point.

    Attributes:
        sd: sample standard deviation (n - 1 in the denominator); None with one seed.
        seeds: how many it is the mean of.
    """

    mean: float
    sd: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        sd = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), sd, len(values))


@dataclass(frozen=True)
class Network:
    """What a point of the study is."""

    head: str
    backbone: str
    alpha: float
    rho: float


@dataclass(frozen=True)
class Scores:
    """What `mnet-det eval --json` says: the twelve 0…1, None where COCOeval has nothing to judge."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    AP_small: float | None
    AP_medium: float | None
    AP_large: float | None
    AR_1: float | None
    AR_10: float | None
    AR_100: float | None
    AR_small: float | None
    AR_medium: float | None
    AR_large: float | None
    per_class: dict[str, float | None]
    images: int
    runtime: str | None = None


@dataclass(frozen=True)
class ClassScores:
    """One class: how many objects, and AP as far as there are any."""

    objects: int
    AP: float | None
    AP50: float | None
    AP75: float | None
    AP_small: float | None
    AP_medium: float | None
    AP_large: float | None


@dataclass(frozen=True)
class BestF1:
    """The score from which on a class's detections have the best F1, at IoU 0.50."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """Counts of what is there (rows) by what was detected (columns), the last of each the background.

    Attributes:
        labels: K class names and the background.
        scores: the least score of a detection that counts, by class.
        matrix: [K+1][K+1].
    """

    labels: list[str]
    iou: float
    scores: dict[str, float | None]
    matrix: list[list[int]]


@dataclass(frozen=True)
class Analysis:
    """What lies behind the scores.

    Attributes:
        recall: the 101 recalls of the curves.
        curves: precisions [101] by IoU ("0.50", "0.75") and class; None for a class without objects.
    """

    recall: list[float]
    curves: dict[str, dict[str, list[float] | None]]
    per_class: dict[str, ClassScores]
    best_f1: dict[str, BestF1 | None]
    confusion: Confusion


@dataclass(frozen=True)
class Measured:
    """measured.json of one finished run.

    Attributes:
        key: says which run of a plan it is; None outside a sweep.
        start: weights that it began from; None for random ones.
        minutes: of training; None where nobody took the time.
        file_bytes: of the exported float32 model.
    """

    name: str
    point: Network
    seed: int
    input_hw: tuple[int, int]
    mult_adds: int
    params: int
    scores: Scores
    analysis: Analysis
    training_images: int
    validation_images: int
    class_names: list[str]
    machine: dict[str, Any]
    key: str | None = None
    start: str | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    minutes: float | None = None
    file_bytes: int | None = None
    mnet_det: str = ""
    measured_at: str = ""


@dataclass(frozen=True)
class Stage:
    """Milliseconds: the median and the 95th percentile."""

    p50: float
    p95: float


@dataclass(frozen=True)
class LatencyRow:
    """The times of one point on one machine, one image at a time."""

    name: str
    input_hw: tuple[int, int]
    runtime: str
    threads: int
    preprocess_ms: Stage
    network_ms: Stage
    postprocess_ms: Stage
    total_ms: Stage
    precision: str = "float32"
    detections: float | None = None

    @property
    def fps(self) -> float:
        """Frames a second, one after the other, at the median."""
        return 1000 / self.total_ms.p50


@dataclass(frozen=True)
class Latency:
    """latency.json: every point in turns, in one sitting."""

    machine: dict[str, Any]
    images: str
    rows: list[LatencyRow]
    frame_hw: tuple[int, int] | None = None
    score: float | None = None
    measured_at: str = ""

    @property
    def cpu(self) -> str:
        """Its name."""
        return str(self.machine.get("cpu", "an unnamed CPU"))


@dataclass(frozen=True)
class Run:
    """One training of a point.

    Attributes:
        reason: why it is not finished, with its log's path from the sweep's folder; empty if it is.
        measured: None unless finished.
        history: metrics.csv, a row an epoch; empty cells are left out.
        config: config.yaml as text; empty where there is none.
    """

    name: str
    seed: int
    state: State
    reason: str
    measured: Measured | None
    history: tuple[Mapping[str, float], ...] = ()
    config: str = ""


@dataclass(frozen=True)
class Point:
    """A network of the study with its runs, one a seed.

    Attributes:
        label: for plots, such as "α 0.75 · ρ 1"; says no more than is needed to tell the points of the study apart.
        words: for sentences, such as "alpha 0.75, rho 1".
        start: weights that it begins from; None for random ones.
        latency: None where it was not measured.
    """

    network: Network
    label: str
    words: str
    input_hw: tuple[int, int]
    start: str | None
    runs: tuple[Run, ...]
    mult_adds: int | None
    params: int | None
    latency: LatencyRow | None

    @property
    def finished(self) -> tuple[Measured, ...]:
        """What its finished runs measured, in the order of the seeds."""
        return tuple(run.measured for run in self.runs if run.measured is not None)

    @property
    def first(self) -> Measured | None:
        """Of its first finished seed, whose network the latency is of."""
        return next(iter(self.finished), None)

    @property
    def file_bytes(self) -> int | None:
        """Of the exported model."""
        return None if self.first is None else self.first.file_bytes

    @property
    def ap(self) -> Spread | None:
        """AP over its seeds; None while no run is finished, or where there is nothing to judge."""
        return self.mean(lambda measured: measured.scores.AP)

    def number(self, name: str) -> Spread | None:
        """One of the twelve `NUMBERS` over its seeds."""
        return self.mean(lambda measured: getattr(measured.scores, name))

    def mean(self, read: Callable[[Measured], float | None]) -> Spread | None:
        """Any number over the finished seeds that have it; None if none has."""
        values = [value for measured in self.finished if (value := read(measured)) is not None]
        return Spread.of(values) if values else None


@dataclass(frozen=True)
class Data:
    """What was trained and scored on."""

    training_images: int
    validation_images: int
    class_names: list[str]
    train: str | None = None
    val: str | None = None


@dataclass(frozen=True)
class Study:
    """All of it.

    Attributes:
        title: the recipe's name, or the run's.
        command: what was typed; None for a single run.
        words: settings of the command line.
        base: the resolved settings without those that were swept.
        points: widest and largest first within a head and backbone.
        latency: None where nothing was timed.
    """

    folder: Path
    title: str
    command: str | None
    words: tuple[str, ...]
    base: Mapping[str, Any]
    data: Data
    points: tuple[Point, ...]
    latency: Latency | None

    @property
    def is_sweep(self) -> bool:
        """Else it is one run alone."""
        return self.command is not None

    @property
    def scored(self) -> tuple[Point, ...]:
        """Points that have an AP."""
        return tuple(point for point in self.points if point.ap is not None)

    @property
    def best(self) -> Point | None:
        """The point with the highest mean AP; None while there is none."""
        return max(self.scored, key=lambda point: point.ap.mean if point.ap else 0.0, default=None)

    @property
    def unfinished(self) -> tuple[tuple[Point, Run], ...]:
        """Every run of the plan that failed or is not done."""
        return tuple((point, run) for point in self.points for run in point.runs if run.state != "finished")


@dataclass(frozen=True)
class _Planned:
    """A run of sweep.json."""

    name: str
    key: str
    point: Network
    seed: int
    input_hw: tuple[int, int]
    start: str | None = None
    mult_adds: int | None = None
    params: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class _Plan:
    """sweep.json."""

    title: str
    command: str
    data: Data
    runs: list[_Planned]
    base: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Failure:
    """failed.json."""

    reason: str
    log: str | None = None


def read_study(folder: Path) -> Study:
    """Read a sweep's folder, or the folder of one measured run.

    Only runs of the plan count, whatever else lies in the folder.

    Raises:
        DataError: the folder is neither, or a file in it is damaged.
    """
    if (folder / PLAN_FILE).is_file():
        return _read_sweep(folder)
    if (folder / MEASURED_FILE).is_file():
        return _read_single(folder)
    what = "no such folder" if not folder.is_dir() else "neither a sweep nor a measured run"
    raise DataError(
        f"{folder}: {what}; expected the folder of `mnet-det sweep` (with a sweep.json) or of a run that was measured "
        "(with a measured.json)"
    )


def _read_sweep(folder: Path) -> Study:
    path = folder / PLAN_FILE
    plan = _read(path, _Plan)
    if not plan.runs:
        raise DataError(f"{path}: its plan has no runs")
    if len({run.name for run in plan.runs}) < len(plan.runs):
        raise DataError(f"{path}: two runs of its plan have one name")
    latency = _read_latency(folder)
    rows = {} if latency is None else {row.name: row for row in latency.rows}
    by_network: dict[Network, list[_Planned]] = {}
    for planned in plan.runs:
        by_network.setdefault(planned.point, []).append(planned)
    networks = sorted(by_network, key=lambda network: (network.head, network.backbone, -network.rho, -network.alpha))
    points = []
    for network in networks:
        planned_runs = sorted(by_network[network], key=lambda planned: planned.seed)
        runs = tuple(_read_run(folder / planned.name, planned) for planned in planned_runs)
        row = next((rows[run.name] for run in runs if run.name in rows), None)
        points.append(_point(network, networks, planned_runs[0], runs, row))
    return Study(folder, plan.title, plan.command, tuple(plan.words), plan.base, plan.data, tuple(points), latency)


def _read_single(folder: Path) -> Study:
    measured = _read_measured(folder)
    latency = _read_latency(folder)
    rows = [] if latency is None else latency.rows
    name = measured.name
    run = Run(name, measured.seed, "finished", "", measured, _read_history(folder), _read_config(folder))
    # A folder that was renamed since it was timed still holds its own times, if they are the only ones.
    row = rows[0] if len(rows) == 1 else next((row for row in rows if row.name == name), None)
    data = Data(measured.training_images, measured.validation_images, measured.class_names)
    point = _point(measured.point, [measured.point], measured, (run,), row)
    return Study(folder, name, None, (), {}, data, (point,), latency)


def _point(
    network: Network,
    networks: Sequence[Network],
    described: _Planned | Measured,
    runs: tuple[Run, ...],
    row: LatencyRow | None,
) -> Point:
    """A point; what was measured goes before what was planned."""
    measured = next((run.measured for run in runs if run.measured is not None), None)
    source = described if measured is None else measured
    label, words = _names(network, networks)
    return Point(network, label, words, source.input_hw, source.start, runs, source.mult_adds, source.params, row)


def _names(network: Network, networks: Sequence[Network]) -> tuple[str, str]:
    """Label and words of a network among others."""
    kinds = [
        value
        for attribute in ("head", "backbone")
        if len({getattr(other, attribute) for other in networks}) > 1
        for value in (getattr(network, attribute),)
    ]
    shows_rho = any(other.rho != 1 for other in networks)
    sizes = [f"α {network.alpha:g}", *([f"ρ {network.rho:g}"] if shows_rho else [])]
    return " · ".join(kinds + sizes), ", ".join([*kinds, f"alpha {network.alpha:g}", f"rho {network.rho:g}"])


def _read_run(folder: Path, planned: _Planned) -> Run:
    history, config = _read_history(folder), _read_config(folder)
    state, reason, measured = _state(folder, planned, history)
    return Run(planned.name, planned.seed, state, reason, measured, history, config)


def _state(
    folder: Path, planned: _Planned, history: Sequence[Mapping[str, float]]
) -> tuple[State, str, Measured | None]:
    """Finished, failed or not done, why, and what was measured."""
    if planned.fault is not None:
        return "failed", planned.fault, None
    measured = _read_measured(folder) if (folder / MEASURED_FILE).is_file() else None
    if measured is not None and is_measured(folder, key=planned.key):
        return "finished", "", measured
    if (folder / FAILED_FILE).is_file():
        failure = _read(folder / FAILED_FILE, _Failure)
        where = f" (log: {planned.name}/{failure.log})" if failure.log else ""
        return "failed", failure.reason.removeprefix("failed, ") + where, None  # the state says that it failed
    if measured is not None and measured.key == planned.key:
        return "not done", "its best.pt is gone", None
    if measured is not None:
        return "not done", "its measured.json is of another plan: its key is not the plan's", None
    if history:
        return "not done", f"trained up to epoch {history[-1]['epoch']:g}, not measured yet", None
    return "not done", "not begun, or no epoch is over yet" if folder.is_dir() else "not begun", None


def _read_measured(folder: Path) -> Measured:
    path = folder / MEASURED_FILE
    measured = _read(path, Measured)
    analysis = measured.analysis
    size, points = len(analysis.confusion.labels), len(analysis.recall)
    if [len(row) for row in analysis.confusion.matrix] != [size] * size:
        raise DataError(f"{path}: analysis.confusion.matrix: expected {size} rows of {size} counts, one a label")
    for name, curves in analysis.curves.items():
        if any(curve is not None and len(curve) != points for curve in curves.values()):
            raise DataError(f"{path}: analysis.curves.{name}: expected {points} precisions a class, one a recall")
    return measured


def _read_latency(folder: Path) -> Latency | None:
    path = folder / "latency.json"
    if not path.is_file() or _json(path) is None:
        return None
    latency = _read(path, Latency)
    if any(row.total_ms.p50 <= 0 for row in latency.rows):
        raise DataError(f"{path}: a total_ms.p50 of 0 or less; measure again")
    return latency


def _read_config(folder: Path) -> str:
    path = folder / "config.yaml"
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _read_history(folder: Path) -> tuple[Mapping[str, float], ...]:
    """metrics.csv in numbers; what is no finite number counts as empty."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return ()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: _finite(cell) for name, cell in row.items() if name} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    kept = [{name: value for name, value in row.items() if value is not None} for row in rows]
    if not all("epoch" in row for row in kept):
        raise DataError(f"{path}: a row without the number of its epoch; expected the metrics.csv of `mnet-det train`")
    return tuple(kept)


def _finite(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _read(path: Path, kind: type[Row]) -> Row:
    """A JSON file as a dataclass; keys that it does not know are passed over."""
    try:
        return TypeAdapter(kind).validate_python(_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"{path}: {place}: {first['msg'].lower()}; expected what mnet-det wrote") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # of UTF-8 and of JSON
        raise DataError(f"{path}: damaged, no JSON ({error}); delete it and measure again") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
