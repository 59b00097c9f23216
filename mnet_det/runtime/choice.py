"""Which engine is quicker for a model on this machine: timed once, then remembered in the user's cache."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from mnet_det.cache import cache_folder
from mnet_det.doctor import cpu_name
from mnet_det.errors import CheckpointError, MnetDetError
from mnet_det.files import write_json
from mnet_det.runtime.backends import Backend, ONNXRuntimeBackend, OpenVINOBackend
from mnet_det.runtime.interleave import interleave

ENGINES: Mapping[str, Callable[..., Backend]] = {"openvino": OpenVINOBackend, "onnxruntime": ONNXRuntimeBackend}
ROUNDS = 5
REST_S = 0.01
"""Short, as the threads of neither engine spin here when they are done."""


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was chosen."""

    runtime: str
    reason: str


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
    if importlib.util.find_spec("onnxruntime") is None:
        return Choice("openvino", "the only one installed")
    answer = cache_folder() / "runtimes" / f"{_key(path, threads)}.json"
    with suppress(OSError, ValueError, TypeError):  # no answer yet, or not one of ours
        known = Choice(**json.loads(answer.read_text(encoding="utf-8")))
        if known.runtime in ENGINES:
            return known
    choice = _time_engines(path, threads)
    with suppress(MnetDetError):  # a cache that cannot be written costs a second at each start
        write_json(answer, asdict(choice))
    return choice


def _key(path: Path, threads: int | None) -> str:
    engines = [f"{name} {metadata.version(name)}" for name in ENGINES]
    file = path.stat()  # its time, not its content: reading all of that would hold up each start
    known_by = [str(path.resolve()), file.st_size, file.st_mtime_ns, threads, cpu_name(), *engines]
    return hashlib.sha256(repr(known_by).encode()).hexdigest()


def _time_engines(path: Path, threads: int | None) -> Choice:
    backends, faults = [], []
    for name, load in ENGINES.items():
        try:
            backends.append(load(path, threads=threads))
        except CheckpointError as fault:
            faults.append((name, fault))
    if not backends:
        raise faults[0][1]
    if faults:
        return Choice(backends[0].name, f"{faults[0][0]} cannot load the model")
    found = interleave([_network_ms(backend) for backend in backends], rounds=ROUNDS, rest_s=REST_S)
    medians = [float(np.median(times_ms)) for times_ms in found]
    (best_ms, best), (other_ms, other) = sorted(zip(medians, (backend.name for backend in backends), strict=True))
    day = datetime.datetime.now(tz=datetime.UTC).date()
    return Choice(best, f"{best_ms:.1f} ms an image against {other_ms:.1f} in {other}, timed on {day}")


def _network_ms(backend: Backend) -> Callable[[int], float]:
    height, width = backend.metadata.input_hw
    images = np.random.default_rng(0).integers(0, 256, (backend.batch, 3, height, width), np.uint8)

    def run(_: int) -> float:
        started = time.perf_counter()
        backend.borrow(images)
        return (time.perf_counter() - started) * 1000 / backend.batch

    return run
