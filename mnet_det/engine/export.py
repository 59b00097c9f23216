"""A checkpoint as a self-contained ONNX file or OpenVINO model, kept only if it detects what torch detects."""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch

from mnet_det.config import Config, parse_config
from mnet_det.data.toy import draw_scene
from mnet_det.engine.checkpoint import Checkpoint, open_detector
from mnet_det.engine.torch_backend import TorchBackend, describe_checkpoint, fuse
from mnet_det.errors import ConfigError, DataError, ExportError
from mnet_det.files import whole_file
from mnet_det.images import list_images, read_image
from mnet_det.models.detector import Detector
from mnet_det.preprocess import Preprocessor
from mnet_det.runtime.backends import (
    INPUT_NAME,
    OUTPUT_NAMES,
    Backend,
    OpenVINOBackend,
    import_openvino,
)
from mnet_det.runtime.cache import EXPORTED_SUFFIXES
from mnet_det.runtime.metadata import METADATA_KEY, ModelMetadata
from mnet_det.runtime.postprocess import Thresholds, postprocess_batch
from mnet_det.structures import Candidates, Detections, FloatArray, Image

MAX_BOX_PX = 0.5
MAX_SCORE = 1e-3
"""How far an exported model may be from torch, in network pixels and in probability."""
COMPARED_SCORE = 0.05
"""Boxes of candidates below this are not compared: nobody sees them, and far from any object they are arbitrary."""
COUNTED_SCORE = 0.3
WANTED_DETECTIONS = 20
DRAWN_HW = (480, 640)
MAX_UNPAIRED = 0.01
"""Share of a two-stage detector's detections that may lack a partner. Where two proposals are nearly equal, rounding
decides which one suppresses the other, and what is found there then rests on another region."""
MIN_IMAGES, MAX_IMAGES = 8, 64
"""Images are compared until enough detections above 0.3 were; a blank page would agree with anything."""


@dataclass(frozen=True)
class Parity:
    """How an exported model compares with torch.

    Attributes:
        images: how many were compared.
        detections: how many detections above 0.3 torch found in them.
        box_px: the largest difference of a box side, in network pixels.
        score: the largest difference of a probability.
        paired: detections that a two-stage detector's comparison rests on, of torch and of the export; 0 for SSD, whose
            candidates are compared one by one.
        unpaired: further ones, for which the other has none so close.
        drawn: whether the images were drawn, the model's own not being at hand.
    """

    images: int
    detections: int
    box_px: float
    score: float
    paired: int = 0
    unpaired: int = 0
    drawn: bool = False

    @property
    def holds(self) -> bool:
        """Whether the export may be kept."""
        close = self.box_px <= MAX_BOX_PX and self.score <= MAX_SCORE  # NaN is not
        return close and self.unpaired <= MAX_UNPAIRED * (self.paired + self.unpaired)

    def __str__(self) -> str:
        line = (
            f"compared with torch on {self.images} {'drawn ' if self.drawn else ''}images: "
            f"{self.detections} detections above {COUNTED_SCORE}, boxes within {self.box_px:.2g} px, "
            f"scores within {self.score:.1g}"
        )
        if self.paired or self.unpaired:
            line += f"; {self.unpaired} of {self.paired + self.unpaired} detections have no counterpart so close"
        if self.detections < WANTED_DETECTIONS:
            line += f" (fewer than {WANTED_DETECTIONS} detections prove little: is the model trained on such images?)"
        return line


def export_detector(
    path: Path,
    out: Path,
    *,
    images: Path | None = None,
    batch: int = 1,
    proposals: int | None = None,
    rho: float | None = None,
) -> Parity:
    """Export a checkpoint.

    Args:
        path: the checkpoint, or a published detector.
        out: an `.onnx` file, or the `.xml` of an OpenVINO model, whose weights lie in a `.bin` beside it. It is there
            afterwards only if the comparison succeeded.
        images: folder of images to compare on; without it the checkpoint's own validation images, and where those
            are not on this machine, drawn scenes.
        batch: images the network takes at a time.
        proposals: regions that the second stage of Faster R-CNN looks at, if not as many as the config has.
        rho: resolution multiplier, if not the config's: the same weights on another input size.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: `out` ends in something else, `proposals` for another head, or `rho` makes the input too small.
        DataError: there is no image in `images`, or none that can be read.
        ExportError: the exported model differs from torch.
    """
    if out.suffix not in EXPORTED_SUFFIXES:  # as it stands: OpenVINO writes no .XML
        raise ConfigError(f"{out}: expected a name that ends in {' or '.join(EXPORTED_SUFFIXES)}")
    checkpoint = open_detector(path)
    if proposals is not None or rho is not None:
        checkpoint = _adapted(checkpoint, proposals=proposals, rho=rho)
    metadata = describe_checkpoint(checkpoint, path)
    detector = checkpoint.build()
    compared, drawn = _images_to_compare(checkpoint.config, images)
    write = write_onnx if out.suffix == ".onnx" else write_openvino
    with ExitStack() as files:
        if write is write_openvino:  # its weights' temporary name follows from its own; they are renamed last
            files.enter_context(whole_file(out.with_suffix(".bin")))
        temporary = files.enter_context(whole_file(out))
        write(detector, metadata, temporary, batch=batch)
        # The engine is let go of before the files are renamed: it maps them into memory, which Windows minds.
        parity = replace(
            compare(TorchBackend(detector, metadata), OpenVINOBackend(temporary), compared, batch=batch), drawn=drawn
        )
        if not parity.images:
            raise DataError(f"{images or checkpoint.config.data.images('val')}: none of its images can be read")
        if not parity.holds:
            raise ExportError(
                f"{out.name}: not kept, the exported model differs from torch: {parity.box_px:.3g} px (at most "
                f"{MAX_BOX_PX}), score {parity.score:.3g} (at most {MAX_SCORE}), {parity.unpaired} detections without "
                f"a counterpart so close, on {parity.images} images"
            )
    return parity


def _adapted(checkpoint: Checkpoint, *, proposals: int | None, rho: float | None) -> Checkpoint:
    """The same weights with other settings that need no training."""
    raw = checkpoint.config.model_dump()
    if rho is not None and rho != checkpoint.config.model.rho:
        checkpoint = replace(checkpoint, class_scores=None)  # measured at the other size
    if proposals is not None:
        if raw["model"]["head"] != "faster_rcnn":
            raise ConfigError(
                f"--proposals {proposals}: only Faster R-CNN has proposals, this is {raw['model']['head']}"
            )
        raw["model"]["proposals"] = proposals
    if rho is not None:
        raw["model"]["rho"] = rho
    return replace(checkpoint, config=parse_config(raw, source="export"))


def write_onnx(detector: Detector, metadata: ModelMetadata, path: Path, *, batch: int = 1) -> None:
    """Write a detector, batch norm folded, with its metadata; not compared with anything."""
    example = torch.zeros((batch, 3, *metadata.input_hw), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*create_unbacked_symint", FutureWarning)  # of torchvision's NMS
        program = torch.onnx.export(
            fuse(detector), (example,), input_names=[INPUT_NAME], output_names=list(OUTPUT_NAMES), verbose=False
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, path)


def write_openvino(detector: Detector, metadata: ModelMetadata, path: Path, *, batch: int = 1) -> None:
    """As `write_onnx`, in OpenVINO's form: `path` and, with the suffix `.bin`, its weights in float32.

    Converting does more than reading: it folds constants and joins operations, so that whoever changes the graph, as
    NNCF does, finds biases and ReLU6 for what they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        onnx_file = Path(folder) / "model.onnx"
        write_onnx(detector, metadata, onnx_file, batch=batch)
        openvino = import_openvino()
        logging.getLogger("torch.export").setLevel(logging.ERROR)  # OpenVINO asks it first whether the file is its own
        openvino.save_model(openvino.convert_model(onnx_file), path, compress_to_fp16=False)


def compare(reference: Backend, exported: Backend, images: Iterable[Image], *, batch: int = 1) -> Parity:
    """Compare two backends in network pixels, until enough detections were compared.

    SSD's candidates are compared one by one. A two-stage detector's come in the order of their objectness, where near
    ties change places; what it detects in the end is compared instead.

    Args:
        reference: the one that is right.
        exported: the one to judge.
        images: as many as are needed are taken.
        batch: how many images go through the network together.
    """
    preprocess = Preprocessor(reference.metadata.input_hw, mode=reference.metadata.resize)
    own = Thresholds.of(reference.metadata)
    counted = replace(own, score=COUNTED_SCORE)
    total = Parity(0, 0, 0.0, 0.0)
    images = iter(images)
    while chunk := list(itertools.islice(images, batch)):
        pixels = np.stack([preprocess(image)[0] for image in chunk])
        expected, found = reference.candidates(pixels), exported.candidates(pixels)
        two_stages = reference.metadata.head == "faster_rcnn"
        apart = _detections_apart(expected, found, own) if two_stages else _candidates_apart(expected, found)
        total = Parity(
            images=total.images + len(chunk),
            detections=total.detections + sum(map(len, postprocess_batch(expected, counted))),
            box_px=max(total.box_px, apart.box_px),
            score=max(total.score, apart.score),
            paired=total.paired + apart.paired,
            unpaired=total.unpaired + apart.unpaired,
        )
        if total.images >= MAX_IMAGES or (total.images >= MIN_IMAGES and total.detections >= WANTED_DETECTIONS):
            break
    return total


class _Apart(NamedTuple):
    """How far two backends are apart on a few images; the fields are those of `Parity`."""

    box_px: float
    score: float
    paired: int = 0
    unpaired: int = 0


def _candidates_apart(expected: Candidates, found: Candidates) -> _Apart:
    visible = expected.scores.max(axis=-1) >= COMPARED_SCORE  # [B, N]
    return _Apart(
        box_px=_largest(expected.boxes_xyxy[visible] - found.boxes_xyxy[visible]),
        score=_largest(expected.scores - found.scores),
    )


def _detections_apart(expected: Candidates, found: Candidates, own: Thresholds) -> _Apart:
    # A partner may have a slightly lower score, and be one of a few more that are looked at.
    sure = replace(own, score=COMPARED_SCORE)
    likely = replace(own, score=COMPARED_SCORE - MAX_SCORE, max_detections=2 * own.max_detections)
    pairs = [
        pair
        for one, other in ((expected, found), (found, expected))
        for mine, theirs in zip(postprocess_batch(one, sure), postprocess_batch(other, likely), strict=True)
        for pair in _nearest(mine, theirs)
    ]
    if not pairs:  # nothing to see: the best scores of each class are compared instead
        return _Apart(box_px=0.0, score=_largest(expected.scores.max(axis=1) - found.scores.max(axis=1)))
    close = [pair for pair in pairs if pair[0] <= MAX_BOX_PX and pair[1] <= MAX_SCORE]
    return _Apart(
        box_px=max((box_px for box_px, _ in close), default=0.0),
        score=max((score for _, score in close), default=0.0),
        paired=len(close),
        unpaired=len(pairs) - len(close),
    )


def _nearest(mine: Detections, theirs: Detections) -> list[tuple[float, float]]:
    """Of each of `mine`, how far the nearest of `theirs` with the same label is: box sides in pixels, score."""
    apart = np.abs(mine.boxes_xyxy[:, None] - theirs.boxes_xyxy).max(axis=-1, initial=0.0)  # [N, M]
    apart[mine.labels[:, None] != theirs.labels] = np.inf
    if not len(theirs):
        return [(math.inf, math.inf)] * len(mine)
    best = apart.argmin(axis=1)
    return [
        (float(apart[row, column]), abs(float(mine.scores[row]) - float(theirs.scores[column])))
        for row, column in enumerate(best)
    ]


def _largest(difference: FloatArray) -> float:
    """The largest size of a difference; NaN counts as infinite, and nothing as 0."""
    largest = float(np.abs(difference).max(initial=0.0))
    return math.inf if math.isnan(largest) else largest


def _images_to_compare(config: Config, folder: Path | None) -> tuple[Iterator[Image], bool]:
    """Images of `folder`, else of the validation set, else drawn ones; and whether they are drawn."""
    if folder is not None:
        return readable(list_images(folder)), False
    try:
        return readable(list_images(config.data.images("val"))), False
    except (ConfigError, DataError):
        scenes = (draw_scene(np.random.default_rng(index), image_hw=DRAWN_HW) for index in range(MAX_IMAGES))
        return (scene.image for scene in scenes), True


def readable(paths: Iterable[Path]) -> Iterator[Image]:
    """Those images that can be read; a damaged one is no reason not to export."""
    for path in paths:
        with suppress(DataError):
            yield read_image(path)
