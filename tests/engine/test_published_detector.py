"""The published COCO detector in every runtime: the same detections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet_det.data.coco import CocoData, read_coco
from mnet_det.engine.export import Parity, export_detector
from mnet_det.engine.torch_backend import load_torch_predictor
from mnet_det.runtime.backends import ONNXRuntimeBackend, OpenVINOBackend
from mnet_det.runtime.predictor import Predictor
from mnet_det.structures import Detections

pytestmark = pytest.mark.shared

MAX_BOX_PX, MAX_SCORE = 0.5, 1e-3
PICTURES = 24


@pytest.fixture(scope="module")
def published(shared: Path) -> Path:
    return shared / "weights" / "ssd_mobilenet_v1_coco_quant.tflite"


@pytest.fixture(scope="module")
def val(shared: Path) -> CocoData:
    coco = shared / "data" / "coco_tiny"
    return read_coco(coco / "annotations" / "instances_val2017.json", coco / "val2017")


@pytest.fixture(scope="module")
def export(published: Path, val: CocoData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Parity]:
    path = tmp_path_factory.mktemp("published") / "model.onnx"
    return path, export_detector(published, path, images=val.folder)


@pytest.fixture(scope="module")
def torch_detections(published: Path, val: CocoData) -> list[Detections]:
    """Of the first pictures; `mnet-det eval` on all eighty gives the same 8000 in each runtime, too."""
    predictor = load_torch_predictor(published)
    return [predictor(val.image(index)) for index in range(PICTURES)]


def unmatched(ours: Detections, theirs: Detections) -> int:
    """How many of ours have no counterpart of their own class within the limits; each of theirs answers once."""
    free = np.ones(len(theirs), bool)
    missing = 0
    for box_xyxy, score, label in zip(ours.boxes_xyxy, ours.scores, ours.labels, strict=True):
        fits = (
            free
            & (theirs.labels == label)
            & (np.abs(theirs.scores - score) <= MAX_SCORE)
            & (np.abs(theirs.boxes_xyxy - box_xyxy).max(axis=1) <= MAX_BOX_PX)
        )
        if fits.any():
            free[fits.argmax()] = False
        else:
            missing += 1
    return missing


@pytest.mark.parametrize("backend", [OpenVINOBackend, ONNXRuntimeBackend])
def test_every_detection_is_found_by_the_other_runtimes(
    backend: Callable[[Path], Any], export: tuple[Path, Parity], torch_detections: list[Detections], val: CocoData
) -> None:
    """All that are scored, a hundred a picture."""
    predictor = Predictor(backend(export[0]))
    for index, ours in enumerate(torch_detections):
        theirs = predictor(val.image(index))
        assert len(ours) == len(theirs) > 0
        assert unmatched(ours, theirs) == 0, val.path(index)


def test_the_export_was_compared_on_the_pictures_that_were_given(export: tuple[Path, Parity]) -> None:
    parity = export[1]
    assert parity.detections >= 20
    assert not parity.drawn
    assert parity.box_px < 0.01
    assert parity.score < 1e-4


def test_the_exported_file_knows_its_classes(export: tuple[Path, Parity], val: CocoData) -> None:
    metadata = OpenVINOBackend(export[0]).metadata
    assert metadata.name == "ssd_mobilenet_v1_coco_quant"
    assert metadata.class_names == val.class_names
    assert metadata.category_ids == val.category_ids
    assert metadata.alpha == 0.75
