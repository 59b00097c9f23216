"""Inference engines behind one contract: uint8 network pixels in, candidates and detections out.

An engine is imported when a backend is made, not before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnet_det.cache import cache_folder, keep_newest
from mnet_det.errors import CheckpointError, MissingPackageError
from mnet_det.runtime.metadata import METADATA_KEY, OPENVINO_PLACE, ModelMetadata, parse_metadata
from mnet_det.runtime.postprocess import Thresholds, postprocess_batch
from mnet_det.structures import Candidates, Detections

INPUT_NAME = "images"
OUTPUT_NAMES = Candidates._fields
"""Names in every exported graph; outputs are addressed by them, never by position."""
NATIVE_FAILURES = (RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError)
"""What exceptions of C++ come out as; a message that is no UTF-8, such as a damaged name, as a `ValueError`."""
MOST_COMPILED = 32
"""Compiled models that are kept in the cache, each about as large as its weights; OpenVINO itself removes none."""

Aim = Literal["latency", "throughput"]
"""One image as soon as possible, all threads at work on it; or many images, each on a thread of its own."""


class Backend(ABC):
    """One loaded model on one engine.

    Attributes:
        name: the engine: "openvino", "onnxruntime" or "torch".
        metadata: what the model says about itself.
        threads: how many the engine computes with.
        batch: how many images it takes at a time.
        callers: how many threads, each calling with its own images, keep the engine busy.
    """

    name: str
    metadata: ModelMetadata
    threads: int
    batch: int = 1
    callers: int = 1

    @abstractmethod
    def candidates(self, images: NDArray[np.uint8]) -> Candidates:
        """Run the network.

        Args:
            images: uint8 [B, 3, H, W], RGB network pixels.

        Returns:
            numpy boxes_xyxy float32 [B, N, R, 4] and scores float32 [B, N, K].
        """

    def borrow(self, images: NDArray[np.uint8]) -> Candidates:
        """As `candidates`, in memory that this thread's next call may overwrite; it saves the engine a copy."""
        return self.candidates(images)

    def __call__(self, images: NDArray[np.uint8], thresholds: Thresholds | None = None) -> list[Detections]:
        """Detections of each image, in network pixels; `thresholds` are the model's own unless given."""
        thresholds = thresholds or Thresholds.of(self.metadata)
        return postprocess_batch(self.borrow(images), thresholds)


class _ExportedBackend(Backend):
    """A graph with a static batch. Any number of images goes through it in slices, the last one padded."""

    @abstractmethod
    def _run(self, images: NDArray[np.uint8]) -> Candidates:
        """Run exactly one batch of the graph's own size; what it returns may lie in the engine's memory."""

    def candidates(self, images: NDArray[np.uint8]) -> Candidates:
        """See `Backend.candidates`."""
        return Candidates(*map(np.copy, self.borrow(images)))

    def borrow(self, images: NDArray[np.uint8]) -> Candidates:
        """Run the network on any number of images: see `Backend.borrow`.

        Raises:
            ValueError: not uint8, another size than the network's, or no image. Engines would convert some of these
                in silence.
        """
        input_hw = self.metadata.input_hw
        if images.dtype != np.uint8 or images.shape[1:] != (3, *input_hw) or not len(images):
            raise ValueError(
                f"expected uint8 [B, 3, {input_hw[0]}, {input_hw[1]}], got {images.dtype} {list(images.shape)}"
            )
        if len(images) == self.batch:
            return self._run(images)
        missing = -len(images) % self.batch
        padded = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])
        starts = range(0, len(padded), self.batch)
        slices = [Candidates(*map(np.copy, self._run(padded[start : start + self.batch]))) for start in starts]
        return Candidates(*(np.concatenate(parts)[: len(images)] for parts in zip(*slices, strict=True)))


class OpenVINOBackend(_ExportedBackend):
    """OpenVINO on the CPU, in float32 (an int8 model's quantised layers in int8)."""

    name = "openvino"

    def __init__(
        self, path: Path, *, threads: int | None = None, aim: Aim = "latency", cache_dir: Path | None = None
    ) -> None:
        """Load an exported `.onnx` file or OpenVINO `.xml`.

        Args:
            path: the file.
            threads: how many to compute with; unless given OpenVINO chooses: the physical (performance) cores.
            aim: what to be quick at.
            cache_dir: where compiled models are kept for the next start; in the user's cache unless given.

        Raises:
            CheckpointError: missing, not a model, or not exported by mnet-det.
        """
        model = read_openvino_model(path)
        self.metadata = _openvino_metadata(model, source=path)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": aim.upper(),
            "INFERENCE_PRECISION_HINT": "f32",  # some CPUs would compute in bfloat16
            "ENABLE_MMAP": False,  # a process that rewrites a cached file would crash those that have it mapped
            "CACHE_DIR": _writable(cache_dir or cache_folder() / "openvino"),
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled = _compile(model, settings, source=path)
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        # One more than there can be in the engine: it prepares its images meanwhile.
        self.callers = 1 + int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.batch = int(model.input(INPUT_NAME).shape[0])
        self._of_thread = threading.local()  # a request serves one caller at a time

    def _run(self, images: NDArray[np.uint8]) -> Candidates:
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        outputs = self._of_thread.request.infer({INPUT_NAME: images}, share_inputs=True, share_outputs=True)
        return Candidates(*(outputs[name] for name in OUTPUT_NAMES))


class ONNXRuntimeBackend(_ExportedBackend):
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, path: Path, *, threads: int | None = None, aim: Aim = "latency") -> None:
        """Load an exported `.onnx` file.

        Args:
            path: the file.
            threads: how many to compute with; physical cores unless given.
            aim: what to be quick at.

        Raises:
            CheckpointError: missing, not an ONNX file, or not exported by mnet-det.
            MissingPackageError: onnxruntime is not installed, or cannot be imported.
        """
        try:
            onnxruntime = import_onnxruntime()
            from onnxruntime.capi import onnxruntime_pybind11_state as faults
        except ModuleNotFoundError:
            raise MissingPackageError(
                "the runtime 'onnxruntime' is not installed: pip install 'mnet-det[onnxruntime]'"
            ) from None
        except ImportError as error:
            raise MissingPackageError(f"the runtime 'onnxruntime' cannot be imported: {error}") from None
        _require_file(path, ".onnx")
        self.threads = threads or physical_cores()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads if aim == "latency" else 1
        options.log_severity_level = 3  # errors only
        # Idle threads would spin between two frames, and take the cores from whatever runs then.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # It has an exception for each kind of failure, and no base of them.
        kinds = (kind for kind in vars(faults).values() if isinstance(kind, type) and issubclass(kind, Exception))
        failures: tuple[type[Exception], ...] = (*kinds, *NATIVE_FAILURES)
        try:
            self._session = onnxruntime.InferenceSession(
                path,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=False,  # it would print that it tries again, on the same CPU
            )
            properties = self._session.get_modelmeta().custom_metadata_map
            inputs = [_onnx_port(port) for port in self._session.get_inputs()]
            outputs = [_onnx_port(port) for port in self._session.get_outputs()]
        except failures as error:
            raise _unreadable(path, error) from None
        self.metadata = parse_metadata(properties.get(METADATA_KEY), source=path)
        _require_form(inputs, outputs, self.metadata, source=path)
        # One more, as above; but where each caller computes in a thread of its own, no more than there may be.
        self.callers = 2 if aim == "latency" else self.threads
        self.batch = int(self._session.get_inputs()[0].shape[0])

    def _run(self, images: NDArray[np.uint8]) -> Candidates:
        return Candidates(*self._session.run(list(OUTPUT_NAMES), {INPUT_NAME: images}))


def import_openvino() -> Any:
    """The openvino module, without its telemetry.

    `import openvino` alone reports the import to its makers and leaves a folder in the user's home. It falls back to
    a stub where the package that does so cannot be imported. Import it through here everywhere.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes an import fail
    import openvino

    return openvino


def import_onnxruntime() -> Any:
    """The onnxruntime module, without its telemetry.

    Its import alone gives the machine an identifier and a data base in the user's home, and reports to its makers.
    Import it through here everywhere.

    Raises:
        ImportError: it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, when it is first imported
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # which is what Windows goes by
    return onnxruntime


def read_metadata(path: Path) -> ModelMetadata:
    """What an exported `.onnx` or `.xml` file says about itself, without compiling it.

    Raises:
        CheckpointError: missing, not a model, or not exported by mnet-det.
    """
    return _openvino_metadata(read_openvino_model(path), source=path)


def physical_cores() -> int:
    """How many cores this process may use, hyperthreads counted once; where that is unknown, all logical ones."""
    cores = 0
    if sys.platform == "linux":
        cpus = os.sched_getaffinity(0)
        topology = (Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus)
        cores = len({path.read_text(encoding="ascii") for path in topology if path.is_file()}) or len(cpus)
    elif sys.platform == "darwin":
        answer = subprocess.run(["sysctl", "-n", "hw.physicalcpu"], capture_output=True, text=True, check=False)
        cores = int(answer.stdout or 0)
    return cores or os.cpu_count() or 1


@cache
def _openvino_core() -> Any:
    """OpenVINO's root object, one for the process.

    Each one gives the process a signal stack and, at its end, puts back the one it found, which may be gone by then.
    The next signal with a handler, such as torch's for a loader's worker that ends, would then crash the process.
    """
    return import_openvino().Core()


def read_openvino_model(path: Path) -> Any:
    """OpenVINO's own model of an `.onnx` or `.xml` file, not compiled.

    Raises:
        CheckpointError: missing, or not a model.
    """
    _require_file(path, ".onnx", ".xml")
    openvino = import_openvino()
    # Asking the one frontend first: `read_model` alone tries all of them, and each complains on stderr.
    frontend = openvino.frontend.FrontEndManager().load_by_framework("ir" if path.suffix.lower() == ".xml" else "onnx")
    try:
        if not frontend.supported(str(path)):
            raise _unreadable(path, "unknown content")
        return _openvino_core().read_model(path)
    except NATIVE_FAILURES as error:
        raise _unreadable(path, error) from None


def _compile(model: Any, settings: dict[str, Any], *, source: Path) -> Any:
    """Compile, or find the compiled model in the cache, of which the newest `MOST_COMPILED` are kept."""
    try:
        compiled = _openvino_core().compile_model(model, "CPU", settings)
    except NATIVE_FAILURES:  # another process may have taken the cached file away meanwhile
        try:
            return _openvino_core().compile_model(model, "CPU", settings | {"CACHE_DIR": ""})
        except NATIVE_FAILURES as error:
            raise _unreadable(source, error) from None
    if settings["CACHE_DIR"] and not compiled.get_property("LOADED_FROM_CACHE"):
        with suppress(OSError):
            keep_newest(Path(settings["CACHE_DIR"]).glob("*.blob"), MOST_COMPILED)
    return compiled


def _openvino_metadata(model: Any, *, source: Path) -> ModelMetadata:
    try:
        text = model.get_rt_info(OPENVINO_PLACE).astype(str) if model.has_rt_info(OPENVINO_PLACE) else None
        inputs = [_openvino_port(port) for port in model.inputs]
        outputs = [_openvino_port(port) for port in model.outputs]
    except NATIVE_FAILURES as error:
        raise _unreadable(source, error) from None
    metadata = parse_metadata(text, source=source)
    _require_form(inputs, outputs, metadata, source=source)
    return metadata


class _Port(NamedTuple):
    """An input or output of a graph; a size that is left open is -1."""

    name: str
    kind: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.kind} {list(self.shape)}"


def _openvino_port(port: Any) -> _Port:
    names = sorted(port.get_names()) or ["?"]
    name = next((name for name in names if name in (INPUT_NAME, *OUTPUT_NAMES)), names[0])
    kind = port.get_element_type().get_type_name()
    shape = port.get_partial_shape()
    sizes = (size.get_length() if size.is_static else -1 for size in shape) if shape.rank.is_static else ()
    return _Port(name, {"u8": "uint8", "f32": "float32"}.get(kind, kind), tuple(sizes))


def _onnx_port(port: Any) -> _Port:
    kind = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}.get(port.type, port.type)
    return _Port(port.name, kind, tuple(size if isinstance(size, int) else -1 for size in port.shape))


def _require_form(inputs: list[_Port], outputs: list[_Port], metadata: ModelMetadata, *, source: Path) -> None:
    """Refuse a graph of another form than ours, which would fail, or run on wrong pixels, at the first image."""
    found = {port.name: port for port in outputs}
    boxes, scores = (found.get(name, _Port(name, "", ())) for name in OUTPUT_NAMES)
    batch, number, classes = inputs[0].shape[:1] if inputs else (), scores.shape[1:2], len(metadata.class_names)
    fits = (
        inputs == [(INPUT_NAME, "uint8", (*batch, 3, *metadata.input_hw))]
        and scores == ("scores", "float32", (*batch, *number, classes))
        and boxes[1:] in [("float32", (*batch, *number, shared, 4)) for shared in (1, classes)]
        and min(*batch, *number) > 0
    )
    if not fits:
        height, width = metadata.input_hw
        raise CheckpointError(
            f"{source}: expected {INPUT_NAME} uint8 [B, 3, {height}, {width}] in; boxes_xyxy float32 "
            f"[B, N, 1 or {classes}, 4], scores float32 [B, N, {classes}] out; got {', '.join(map(str, inputs))} in; "
            f"{', '.join(map(str, outputs))} out; export the model again with `mnet-det export`"
        )


def _writable(folder: Path) -> str:
    """The folder, made if need be; "" (no caching, to OpenVINO) where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""


def _require_file(path: Path, *suffixes: str) -> None:
    if path.suffix.lower() not in suffixes:
        raise CheckpointError(f"{path}: this runtime loads {' and '.join(suffixes)} files")
    if not path.is_file():
        raise CheckpointError(f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} model file")


def _unreadable(path: Path, reason: object) -> CheckpointError:
    """The engine's reason fills several lines; its last one tells most."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    told = lines[-1].rpartition(f"{path} failed:")[2] if lines else type(reason).__name__
    whole = "is the file whole"
    if path.suffix.lower() == ".xml":
        whole += f", and {path.with_suffix('.bin').name} beside it, of the same export"
    return CheckpointError(f"{path}: not a model that can be loaded ({told}); {whole}?")
