"""Inference engines behind one contract: uint8 network pixels in, candidates and detections out.

An engine is imported when a backend is made, not before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_det.cache import cache_folder
from mnet_det.errors import CheckpointError, MissingPackageError
from mnet_det.runtime.metadata import METADATA_KEY, ModelMetadata, parse_metadata
from mnet_det.runtime.postprocess import Thresholds, postprocess_batch
from mnet_det.structures import Candidates, Detections

INPUT_NAME = "images"
OUTPUT_NAMES = Candidates._fields
"""Names in every exported graph; outputs are addressed by them, never by position."""


class Backend(ABC):
    """One loaded model on one engine.

    Attributes:
        name: the engine: "openvino", "onnxruntime" or "torch".
        metadata: what the model says about itself.
        threads: how many the engine computes with.
    """

    name: str
    metadata: ModelMetadata
    threads: int

    @abstractmethod
    def candidates(self, images: NDArray[np.uint8]) -> Candidates:
        """Run the network.

        Args:
            images: uint8 [B, 3, H, W], RGB network pixels.

        Returns:
            numpy boxes_xyxy float32 [B, N, R, 4] and scores float32 [B, N, K].
        """

    def __call__(self, images: NDArray[np.uint8], thresholds: Thresholds | None = None) -> list[Detections]:
        """Detections of each image, in network pixels; `thresholds` are the model's own unless given."""
        thresholds = thresholds or Thresholds.of(self.metadata)
        return postprocess_batch(self.candidates(images), thresholds)


class _ExportedBackend(Backend):
    """A graph with a static batch. Any number of images goes through it in slices, the last one padded."""

    _batch: int

    @abstractmethod
    def _run(self, images: NDArray[np.uint8]) -> Candidates:
        """Run exactly one batch of the graph's own size."""

    def candidates(self, images: NDArray[np.uint8]) -> Candidates:
        """Run the network on any number of images: see `Backend.candidates`.

        Raises:
            ValueError: not uint8, another size than the network's, or no image. Engines would convert some of these
                in silence.
        """
        input_hw = self.metadata.input_hw
        if images.dtype != np.uint8 or images.shape[1:] != (3, *input_hw) or not len(images):
            raise ValueError(
                f"expected uint8 [B, 3, {input_hw[0]}, {input_hw[1]}], got {images.dtype} {list(images.shape)}"
            )
        missing = -len(images) % self._batch
        padded = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)]) if missing else images
        slices = [self._run(padded[start : start + self._batch]) for start in range(0, len(padded), self._batch)]
        if len(slices) == 1 and not missing:
            return slices[0]
        return Candidates(*(np.concatenate(parts)[: len(images)] for parts in zip(*slices, strict=True)))


class OpenVINOBackend(_ExportedBackend):
    """OpenVINO on the CPU, in float32, tuned for the latency of one image."""

    name = "openvino"

    def __init__(self, path: Path, *, threads: int | None = None, cache_dir: Path | None = None) -> None:
        """Load an exported `.onnx` file or OpenVINO `.xml`.

        Args:
            path: the file.
            threads: how many to compute with; unless given OpenVINO chooses: the physical (performance) cores.
            cache_dir: where compiled models are kept for the next start; in the user's cache unless given.

        Raises:
            CheckpointError: missing, not a model, or not exported by mnet-det.
        """
        model = read_openvino_model(path)
        self.metadata = _openvino_metadata(model, source=path)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # some CPUs would compute in bfloat16
            "CACHE_DIR": _writable(cache_dir or cache_folder() / "openvino"),
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled = _openvino_core().compile_model(model, "CPU", settings)
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        self._batch = int(model.input(INPUT_NAME).shape[0])

    def _run(self, images: NDArray[np.uint8]) -> Candidates:
        outputs = self._compiled({INPUT_NAME: images})
        return Candidates(*(outputs[name] for name in OUTPUT_NAMES))


class ONNXRuntimeBackend(_ExportedBackend):
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load an exported `.onnx` file.

        Args:
            path: the file.
            threads: how many to compute with; physical cores unless given.

        Raises:
            CheckpointError: missing, not an ONNX file, or not exported by mnet-det.
            MissingPackageError: onnxruntime is not installed.
        """
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as faults
        except ImportError:
            raise MissingPackageError(
                "the runtime 'onnxruntime' is not installed: pip install 'mnet-det[onnxruntime]'"
            ) from None
        _require_file(path, ".onnx")
        self.threads = threads or physical_cores()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # errors only
        # Idle threads would spin between two frames, and take the cores from whatever runs then.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (faults.InvalidProtobuf, faults.InvalidArgument, faults.InvalidGraph, faults.Fail) as error:
            raise _unreadable(path, error) from None
        properties = self._session.get_modelmeta().custom_metadata_map
        self.metadata = parse_metadata(properties.get(METADATA_KEY), source=path)
        self._batch = int(self._session.get_inputs()[0].shape[0])

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
    except RuntimeError as error:
        raise _unreadable(path, error) from None


def _openvino_metadata(model: Any, *, source: Path) -> ModelMetadata:
    place = ["framework", METADATA_KEY]  # where OpenVINO keeps an ONNX file's metadata_props
    text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
    return parse_metadata(text, source=source)


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
        raise CheckpointError(f"{path}: no such model file")


def _unreadable(path: Path, reason: object) -> CheckpointError:
    """The engine's reason fills several lines; its last one tells most."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return CheckpointError(f"{path}: not a model that can be loaded ({lines[-1]}); is the file whole?")
