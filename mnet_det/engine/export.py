"""A checkpoint as a self-contained ONNX file, kept only if it detects what torch detects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch

from mnet_det.config import Config
from mnet_det.data.toy import draw_scene
from mnet_det.engine.checkpoint import open_detector
from mnet_det.engine.torch_backend import TorchBackend, describe_checkpoint, fuse
from mnet_det.errors import ConfigError, DataError, ExportError
from mnet_det.files import whole_file
from mnet_det.images import list_images, read_image
from mnet_det.models.detector import Detector
from mnet_det.preprocess import Preprocessor
from mnet_det.runtime.backends import INPUT_NAME, OUTPUT_NAMES, Backend, OpenVINOBackend
from mnet_det.runtime.metadata import METADATA_KEY, ModelMetadata
from mnet_det.runtime.postprocess import Thresholds
from mnet_det.structures import FloatArray, Image

MAX_BOX_PX = 0.5
MAX_SCORE = 1e-3
"""How far an exported model may be from torch, in network pixels and in probability."""
COMPARED_SCORE = 0.05
"""Boxes of candidates below this are not compared: nobody sees them, and far from any object they are arbitrary."""
COUNTED_SCORE = 0.3
WANTED_DETECTIONS = 20
DRAWN_HW = (480, 640)
MIN_IMAGES, MAX_IMAGES = 8, 64
"""Images are compared until enough detections above 0.3 were; a blank page would agree with anything."""


@dataclass(frozen=True)
class Parity:
    """How an exported model compares with torch.

    Attributes:
        images: how many were compared.
        detections: how many detections above 0.3 torch found in them.
        box_px: the largest difference of a box side, in network pixels.
        score: the largest difference of a probability, over all candidates.
        drawn: whether the images were drawn, the model's own not being at hand.
    """

    images: int
    detections: int
    box_px: float
    score: float
    drawn: bool = False

    def __str__(self) -> str:
        line = (
            f"compared with torch on {self.images} {'drawn ' if self.drawn else ''}images: "
            f"{self.detections} detections above {COUNTED_SCORE}, boxes within {self.box_px:.2g} px, "
            f"scores within {self.score:.1g}"
        )
        if self.detections < WANTED_DETECTIONS:
            line += f" (fewer than {WANTED_DETECTIONS} detections prove little: is the model trained on such images?)"
        return line


def export_onnx(path: Path, out: Path, *, images: Path | None = None, batch: int = 1) -> Parity:
    """Export a checkpoint.

    Args:
        path: the checkpoint, or a published detector.
        out: the ONNX file. It is there afterwards only if the comparison succeeded.
        images: folder of images to compare on; without it the checkpoint's own validation images, and where those
            are not on this machine, drawn scenes.
        batch: images the network takes at a time.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: `out` is no `.onnx` file.
        DataError: `images` holds no image.
        ExportError: the exported model differs from torch.
    """
    if out.suffix.lower() != ".onnx":
        raise ConfigError(f"{out}: expected a name that ends in .onnx")
    checkpoint = open_detector(path)
    metadata = describe_checkpoint(checkpoint, path)
    detector = checkpoint.build()
    compared, drawn = _images_to_compare(checkpoint.config, images)
    with whole_file(out) as temporary:
        write_onnx(detector, metadata, temporary, batch=batch)
        parity = replace(compare(TorchBackend(detector, metadata), OpenVINOBackend(temporary), compared), drawn=drawn)
        if not (parity.box_px <= MAX_BOX_PX and parity.score <= MAX_SCORE):  # so that NaN does not pass
            raise ExportError(
                f"{out}: not kept, the exported model differs from torch: {parity.box_px:.3g} px (at most "
                f"{MAX_BOX_PX}), score {parity.score:.3g} (at most {MAX_SCORE}) on {parity.images} images"
            )
    return parity


def write_onnx(detector: Detector, metadata: ModelMetadata, path: Path, *, batch: int = 1) -> None:
    """Write a detector, batch norm folded, with its metadata; not compared with anything."""
    example = torch.zeros((batch, 3, *metadata.input_hw), dtype=torch.uint8)
    program = torch.onnx.export(
        fuse(detector), (example,), input_names=[INPUT_NAME], output_names=list(OUTPUT_NAMES), verbose=False
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, path)


def compare(reference: Backend, exported: Backend, images: Iterable[Image]) -> Parity:
    """Compare two backends candidate by candidate, in network pixels, until enough detections were compared."""
    preprocess = Preprocessor(reference.metadata.input_hw, mode=reference.metadata.resize)
    seen = detections = 0
    box_px = score = 0.0
    thresholds = Thresholds.of(reference.metadata.model_copy(update={"score": COUNTED_SCORE}))
    for image in images:
        pixels = preprocess(image)[0][None]
        expected, found = reference.candidates(pixels), exported.candidates(pixels)
        score = _worse(score, expected.scores - found.scores)
        visible = expected.scores.max(axis=-1) >= COMPARED_SCORE  # [1, N]
        if visible.any():
            box_px = _worse(box_px, (expected.boxes_xyxy - found.boxes_xyxy)[visible])
        detections += len(reference(pixels, thresholds)[0])
        seen += 1
        if seen >= MAX_IMAGES or (seen >= MIN_IMAGES and detections >= WANTED_DETECTIONS):
            break
    return Parity(seen, detections, box_px, score)


def _worse(largest: float, difference: FloatArray) -> float:
    """The larger of a difference so far and this one; NaN counts as infinite."""
    here = float(np.abs(difference).max())
    return math.inf if math.isnan(here) else max(largest, here)


def _images_to_compare(config: Config, folder: Path | None) -> tuple[Iterator[Image], bool]:
    """Images of `folder`, else of the validation set, else drawn ones; and whether they are drawn."""
    if folder is not None:
        return map(read_image, list_images(folder)), False
    try:
        return _readable(list_images(config.data.images("val"))), False
    except (ConfigError, DataError):
        scenes = (draw_scene(np.random.default_rng(index), image_hw=DRAWN_HW) for index in range(MAX_IMAGES))
        return (scene.image for scene in scenes), True


def _readable(paths: Iterable[Path]) -> Iterator[Image]:
    """Those of a data set's images that can be read; a damaged one is no reason not to export."""
    for path in paths:
        with suppress(DataError):
            yield read_image(path)
