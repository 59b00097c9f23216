import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet_det.errors import CheckpointError, MissingPackageError
from mnet_det.runtime import backends as module
from mnet_det.runtime.backends import (
    Aim,
    Backend,
    ONNXRuntimeBackend,
    OpenVINOBackend,
    import_openvino,
    physical_cores,
    read_metadata,
)
from mnet_det.runtime.metadata import ModelMetadata
from mnet_det.runtime.postprocess import Thresholds

WriteModel = Callable[..., Path]
WHITE = np.full((1, 3, 32, 32), 255, np.uint8)

engines = pytest.mark.parametrize("engine", [OpenVINOBackend, ONNXRuntimeBackend])


@engines
def test_detections_of_the_tiny_model(engine: type[Backend], write_model: WriteModel) -> None:
    """Candidate 1 goes (IoU 0.78 with candidate 0, which scores more); so do the scores below 0.15."""
    (found,) = engine(write_model())(WHITE)
    np.testing.assert_array_equal(found.boxes_xyxy, [[4, 4, 12, 12], [16, 16, 32, 28], [16, 16, 32, 28]])
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.2], rtol=1e-6)
    assert found.labels.tolist() == [0, 1, 0]


@engines
def test_thresholds_of_the_call_replace_the_model_s_own(engine: type[Backend], write_model: WriteModel) -> None:
    (found,) = engine(write_model())(WHITE, Thresholds(score=0.75, nms=0.9, pre_nms=10, max_detections=10))
    np.testing.assert_allclose(found.scores, [0.9, 0.8], rtol=1e-6)


def test_the_engines_agree(write_model: WriteModel) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    path = write_model()
    ours, theirs = OpenVINOBackend(path).candidates(images), ONNXRuntimeBackend(path).candidates(images)
    np.testing.assert_allclose(ours.boxes_xyxy, theirs.boxes_xyxy, rtol=1e-6)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-6)


@engines
@pytest.mark.parametrize(("batch", "images"), [(1, 1), (1, 3), (2, 2), (2, 5), (4, 1)])
def test_any_number_of_images_goes_through_a_static_batch(
    engine: type[Backend], batch: int, images: int, write_model: WriteModel
) -> None:
    """Image i is evenly grey, i + 1 of `images` parts of white, and so are its scores."""
    levels = np.array([255 * (i + 1) // images for i in range(images)], np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (images, 3, 32, 32))
    candidates = engine(write_model(batch=batch)).candidates(pixels)
    assert candidates.boxes_xyxy.shape == (images, 3, 1, 4)
    np.testing.assert_allclose(candidates.scores[:, 0, 0], 0.9 * levels / 255, rtol=1e-5)


@engines
def test_candidates_of_one_call_outlive_the_next(engine: type[Backend], write_model: WriteModel) -> None:
    backend = engine(write_model())
    first = backend.candidates(WHITE)
    backend.candidates(WHITE // 2)
    np.testing.assert_allclose(first.scores[0, 0, 0], 0.9, rtol=1e-6)


@engines
def test_borrowed_candidates_are_the_same(engine: type[Backend], write_model: WriteModel) -> None:
    backend = engine(write_model())
    for ours, theirs in zip(backend.borrow(WHITE), backend.candidates(WHITE), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@engines
@pytest.mark.parametrize("aim", ["latency", "throughput"])
def test_several_callers_get_their_own_answers(engine: Any, aim: Aim, write_model: WriteModel) -> None:
    """A compiled OpenVINO model called directly has one request, and refuses a second caller."""
    backend = engine(write_model(), threads=2, aim=aim)
    assert backend.callers == {"latency": 2, "throughput": 3 if backend.name == "openvino" else 2}[aim]

    def brightest(level: int) -> float:
        return float(backend.candidates(np.full((1, 3, 32, 32), level, np.uint8)).scores.max())

    levels = list(range(0, 256, 5))
    with ThreadPoolExecutor(backend.callers) as callers:
        found = list(callers.map(brightest, levels))
    np.testing.assert_allclose(found, [0.9 * level / 255 for level in levels], rtol=1e-5)


@engines
@pytest.mark.parametrize(
    "images",
    [WHITE.astype(np.float32), WHITE[:, :, :16], WHITE[0], WHITE[:0]],
    ids=["float", "another size", "no batch axis", "no image"],
)
def test_images_of_another_form_are_refused(engine: type[Backend], images: np.ndarray, write_model: WriteModel) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[B, 3, 32, 32\], got"):
        engine(write_model()).candidates(images)


@engines
def test_a_backend_names_itself_its_threads_and_its_model(
    engine: type[Backend], write_model: WriteModel, metadata: ModelMetadata
) -> None:
    backend = engine(write_model(), threads=1)
    assert backend.name == {OpenVINOBackend: "openvino", ONNXRuntimeBackend: "onnxruntime"}[engine]
    assert backend.threads == 1
    assert engine(write_model()).threads >= 1
    assert backend.metadata == metadata


@engines
def test_a_model_without_metadata_is_refused(engine: type[Backend], write_model: WriteModel) -> None:
    with pytest.raises(CheckpointError, match="expected a file written by `mnet-det export`"):
        engine(write_model(text=None))


@engines
@pytest.mark.parametrize("content", [b"", b"hello " * 100, None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_one_line(
    engine: type[Backend],
    content: bytes | None,
    write_model: WriteModel,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(write_model().read_bytes()[:500] if content is None else content)
    with pytest.raises(CheckpointError, match=r"bad\.onnx: not a model that can be loaded") as fault:
        engine(path)
    assert "\n" not in str(fault.value)
    assert capfd.readouterr().err == ""


@engines
def test_a_missing_file_is_named(engine: type[Backend], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.onnx: no such model file"):
        engine(tmp_path / "none.onnx")


def test_onnx_runtime_names_the_files_it_loads(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a.xml: this runtime loads \.onnx files"):
        ONNXRuntimeBackend(tmp_path / "a.xml")


def test_an_openvino_file_keeps_its_metadata(write_model: WriteModel, tmp_path: Path, metadata: ModelMetadata) -> None:
    openvino = import_openvino()
    path = tmp_path / "tiny.xml"
    openvino.save_model(openvino.Core().read_model(write_model()), path, compress_to_fp16=False)
    assert read_metadata(path) == metadata
    np.testing.assert_allclose(OpenVINOBackend(path)(WHITE)[0].scores, [0.9, 0.7, 0.2], rtol=1e-6)


def test_the_second_start_uses_the_cache(write_model: WriteModel, tmp_path: Path) -> None:
    path = write_model()
    first = OpenVINOBackend(path)
    (blob,) = (tmp_path / "cache" / "openvino").glob("*.blob")
    made = blob.stat().st_mtime_ns
    second = OpenVINOBackend(path)
    assert blob.stat().st_mtime_ns == made
    np.testing.assert_array_equal(first.candidates(WHITE).scores, second.candidates(WHITE).scores)


def test_a_cache_that_cannot_be_written_is_done_without(write_model: WriteModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert len(OpenVINOBackend(write_model(), cache_dir=tmp_path / "file" / "cache")(WHITE)[0]) == 3


def test_a_missing_onnx_runtime_gives_the_install_line(
    write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mnet-det\[onnxruntime\]'"):
        ONNXRuntimeBackend(write_model())


def test_cores_are_counted() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


def test_a_detector_runs_without_torch_and_reports_to_nobody(write_model: WriteModel, tmp_path: Path) -> None:
    """`import openvino` alone would send telemetry and leave a folder `intel` in the user's home; ONNX Runtime, which
    `auto` tries too, an identifier and a data base in its cache (since 1.32)."""
    script = """
import json, sys
sys.modules["torch"] = None
import mnet_det.runtime
early = "openvino" in sys.modules
predictor = mnet_det.runtime.load_predictor(sys.argv[1])
import numpy as np
found = len(predictor(np.full((32, 32, 3), 255, np.uint8)))
telemetry = [name for name in sys.modules if name.startswith("openvino_telemetry") and sys.modules[name]]
print(json.dumps({"early": early, "found": found, "telemetry": telemetry}))
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home)}
    child = subprocess.run(
        [sys.executable, "-c", script, str(write_model())], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == {"early": False, "found": 3, "telemetry": []}
    assert list(home.iterdir()) == []


def test_a_compiled_model_that_another_process_rewrites_does_not_crash_this_one(
    write_model: WriteModel, tmp_path: Path
) -> None:
    """OpenVINO mapped the cached file into memory and rewrote it in place: of processes that started together, some
    died of SIGBUS."""
    script = """
import sys
from pathlib import Path
import numpy as np
from mnet_det.runtime.backends import OpenVINOBackend
path, cache = map(Path, sys.argv[1:])
OpenVINOBackend(path, cache_dir=cache)
backend = OpenVINOBackend(path, cache_dir=cache)
for blob in cache.glob("*.blob"):
    blob.write_bytes(b"")
print(backend.candidates(np.full((1, 3, 32, 32), 255, np.uint8)).scores.max())
"""
    words = [sys.executable, "-c", script, str(write_model()), str(tmp_path / "compiled")]
    child = subprocess.run(words, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert float(child.stdout) == pytest.approx(0.9)


def test_the_cache_of_compiled_models_does_not_grow_for_ever(
    write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_COMPILED", 2)
    for batch in (1, 2, 3, 4):
        OpenVINOBackend(write_model(name=f"{batch}.onnx", batch=batch), cache_dir=tmp_path / "compiled")
    assert len(list((tmp_path / "compiled").glob("*.blob"))) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="this system has no SIGCHLD")
def test_a_child_that_ends_after_two_detectors_does_not_crash_the_process(
    write_model: WriteModel, tmp_path: Path
) -> None:
    """Two OpenVINO cores, dropped in the order they were made, left the process without a valid signal stack.

    A loader with workers makes torch handle SIGCHLD; the next child that ended then killed the process.
    """
    script = """
import gc, signal, subprocess, sys
from pathlib import Path
from mnet_det.runtime.backends import OpenVINOBackend
signal.signal(signal.SIGCHLD, lambda *received: None)
first, second = (OpenVINOBackend(Path(sys.argv[1])) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
subprocess.run([sys.executable, "-c", ""])
print("alive")
"""
    child = subprocess.run([sys.executable, "-c", script, str(write_model())], capture_output=True, text=True)
    assert (child.returncode, child.stdout.strip()) == (0, "alive"), child.stderr
