"""Which engine is quicker for a model on this machine: timed once, then remembered in the user's cache."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mnet_det.cache import cache_folder, keep_newest
from mnet_det.doctor import cpu_name, installed_version
from mnet_det.errors import CheckpointError, MissingPackageError, MnetDetError
from mnet_det.files import write_json
from mnet_det.runtime.backends import Backend, ONNXRuntimeBackend, OpenVINOBackend, physical_cores
from mnet_det.runtime.interleave import interleave

ENGINES: Mapping[str, Callable[..., Backend]] = {"openvino": OpenVINOBackend, "onnxruntime": ONNXRuntimeBackend}
MOST_ROUNDS, BUDGET_MS = 15, 1000
"""A small detector takes all the rounds, a slow one as many as fit, and one at least."""
MOST_ANSWERS = 256
REST_S = 0.01
"""Short, as the threads of neither engine spin here when they are done."""


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was chosen."""

    runtime: str
    reason: str


def installed_engines() -> list[str]:
    """Engines that can be had here; OpenVINO always."""
    return ["openvino", *(["onnxruntime"] if importlib.util.find_spec("onnxruntime") is not None else [])]


def choose_runtime(path: Path, *, threads: int | None = None) -> Choice:
    """The quicker of the installed engines for an exported file.

    The answer is kept for this file as it is, number of threads, processor and versions of the engines.

    Args:
        path: an exported `.onnx` file or OpenVINO `.xml`.
        threads: how many the engine is to compute with.

    Raises:
        CheckpointError: no engine can load the file.
    """
    if path.suffix.lower() != ".onnx":
        return Choice("openvino", "the one that reads .xml files")
    if installed_engines() == ["openvino"]:
        return Choice("openvino", "the only one installed")
    answer = cache_folder() / "runtimes" / f"{_key(path, threads)}.json"
    with suppress(OSError, ValueError, TypeError):  # no answer yet, or not one of ours
        known = Choice(**json.loads(answer.read_text(encoding="utf-8")))
        if known.runtime in ENGINES and isinstance(known.reason, str):
            return known
    backends, fault = _load_engines(path, threads)
    if fault is not None:
        return Choice(backends[0].name, f"the other one failed: {fault}")  # not kept: next time it may not
    print(f"timing {' and '.join(ENGINES)} once for {path.name}", file=sys.stderr, flush=True)
    choice = _time_engines(backends)
    with suppress(MnetDetError, OSError):  # a cache that cannot be written costs a second at each start
        write_json(answer, asdict(choice))
        keep_newest(answer.parent.glob("*.json"), MOST_ANSWERS)
    return choice


def _key(path: Path, threads: int | None) -> str:
    engines = [f"{name} {installed_version(name)}" for name in ENGINES]
    file = path.stat()  # its time, not its content: reading all of that would hold up each start
    cores = threads or physical_cores()
    known_by = [str(path.resolve()), file.st_size, file.st_mtime_ns, cores, cpu_name(), *engines]
    return hashlib.sha256(repr(known_by).encode()).hexdigest()


def _load_engines(path: Path, threads: int | None) -> tuple[list[Backend], MnetDetError | None]:
    """The model in each engine, and what was wrong where that failed; at least one works."""
    backends, faults = [], []
    for load in ENGINES.values():
        try:
            backends.append(load(path, threads=threads))
        except (CheckpointError, MissingPackageError) as fault:
            faults.append(fault)
    if not backends:
        raise faults[0]
    return backends, faults[0] if faults else None


def _time_engines(backends: Sequence[Backend]) -> Choice:
    runs = [_network_ms(backend) for backend in backends]
    first_ms = sum(backend.batch * run(0) for backend, run in zip(backends, runs, strict=True))
    rounds = max(1, min(MOST_ROUNDS, int(BUDGET_MS / (2 * first_ms))))  # of two calls each
    found = interleave(runs, rounds=rounds, warmup_rounds=0, unmeasured=1, burst=1, rest_s=REST_S)
    medians = [float(np.median(times_ms)) for times_ms in found]
    (best_ms, best), (other_ms, other) = sorted(zip(medians, (backend.name for backend in backends), strict=True))
    day = datetime.datetime.now(tz=datetime.UTC).date()
    return Choice(best, f"{best_ms:.1f} ms an image, one at a time, against {other_ms:.1f} in {other}, timed on {day}")


def _network_ms(backend: Backend) -> Callable[[int], float]:
    height, width = backend.metadata.input_hw
    images = np.random.default_rng(0).integers(0, 256, (backend.batch, 3, height, width), np.uint8)

    def run(_: int) -> float:
        started = time.perf_counter()
        backend.borrow(images)
        return (time.perf_counter() - started) * 1000 / backend.batch

    return run
