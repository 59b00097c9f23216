"""Measure our runtimes beside OpenCV DNN, LiteRT and torchvision's SSD: the same weights, interleaved in one run.

    .venv/bin/python tools/compare_peers.py
    .venv/bin/python tools/compare_peers.py --images ../shared/data/coco_tiny/val2017 --markdown --json peers.json

Before anything is measured, what each detects is compared with what our network detects in torch; the last column says
how far it agrees. Takes a minute or two.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import itertools
import math
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import ssd as torchvision_ssd
from torchvision.transforms.functional import to_tensor

from mnet_det.catalogue import DEFAULT_DETECTOR, find_detector
from mnet_det.config import Config, ModelConfig, load_config
from mnet_det.doctor import installed_version
from mnet_det.engine.bench import CLASSES, MOST_IMAGES, Frames, bench_images, drawn_frames, read_frames
from mnet_det.engine.checkpoint import Checkpoint, open_detector, save_checkpoint
from mnet_det.engine.export import MAX_BOX_PX, MAX_SCORE, MAX_UNPAIRED, write_onnx, write_openvino
from mnet_det.engine.quantize import quantize, save_model
from mnet_det.engine.torch_backend import describe_checkpoint, load_torch_predictor
from mnet_det.errors import MissingPackageError, MnetDetError
from mnet_det.files import write_json
from mnet_det.models import build_detector
from mnet_det.models.detector import Detector
from mnet_det.models.ssd import SSD
from mnet_det.preprocess import Preprocessor, plan_resize, resize_pixels
from mnet_det.runtime import Predictor, load_predictor
from mnet_det.runtime.backends import OUTPUT_NAMES, physical_cores, read_openvino_model
from mnet_det.runtime.benchmark import StageSummary, machine
from mnet_det.runtime.interleave import interleave
from mnet_det.runtime.metadata import ModelMetadata, Quantization
from mnet_det.runtime.postprocess import Thresholds, postprocess
from mnet_det.runtime.predictor import Times
from mnet_det.structures import Detections, Image

MAX_CHECKED = 8
"""Frames that detections are compared on."""
ENLARGED_HW = (2, 4)
"""How many times the frames to compare on are as high and as wide as the network's input. Every pixel is repeated, so
that any bilinear resize gives the same pixels back. They differ so that height and width cannot be mixed up unseen."""
SEED = 0
LOGIT_SPREAD = 4.0
SEEN_OBJECTS = 20
"""Of random weights: standard deviation of the logits, and anchors with a score of 0.5 or more in a frame. A
trained network's scores are as sparse; to sort and suppress thousands of random ones would be no fair measure."""
LEAST_WIDTH = 120
"""Columns in which no number is cut short; a file or a pipe counts as 80."""


class Contestant(Protocol):
    """What our `Predictor` is, and what the peers below are made to be."""

    def timed(self, image: Image, *, score: float | None = None) -> tuple[Detections, Times]:
        """Detect in one image, in its own pixels, and say how long each stage took."""
        ...


class Skipped(Exception):  # noqa: N818  # not a fault
    """A peer that cannot take part; the text says why."""


@dataclass(frozen=True)
class Network:
    """What is run everywhere.

    Attributes:
        title: as printed.
        file: what torch reads: a checkpoint or a published file.
        onnx: its export.
        detector: with batch norm as it is.
        metadata: as in the export.
        thresholds: the same for all.
        threads: likewise.
    """

    title: str
    file: Path
    onnx: Path
    detector: Detector
    metadata: ModelMetadata
    thresholds: Thresholds
    threads: int


@dataclass(frozen=True)
class Tolerance:
    """How near a peer's detections must be to ours to count as the same network.

    Attributes:
        score: the largest difference of two scores.
        box_px: of two sides of a box, in network pixels.
        least: the score from which on each detection must have a partner.
        unpaired: share of them that may lack one.
        one_way: whether only the peer's must have one, since it gives no more than a few.
    """

    score: float = MAX_SCORE
    box_px: float = MAX_BOX_PX
    least: float = 0.05
    unpaired: float = MAX_UNPAIRED
    one_way: bool = False


FLOAT32 = Tolerance()
EIGHT_BITS = Tolerance(score=0.15, box_px=15, least=0.3, unpaired=0.1)


@dataclass(frozen=True)
class Agreement:
    """How many detections were looked at, and how many of them the other network has too."""

    compared: int
    paired: int
    holds: bool

    def __str__(self) -> str:
        if not self.compared:
            return "nothing to compare"
        return f"{'' if self.holds else 'NO: '}{self.paired} of {self.compared}"


@dataclass(frozen=True)
class Entry:
    """One row of a table before it is measured.

    Attributes:
        name: of the runtime.
        package: whose version is named.
        make: loads a network, or raises `Skipped` or `MissingPackageError`.
        note: what a reader of its numbers should know.
        tolerance: for its detections.
        ours: whether it is one of our runtimes in float32.
    """

    name: str
    package: str
    make: Callable[[Network], Contestant]
    note: str = ""
    tolerance: Tolerance = FLOAT32
    ours: bool = False

    @property
    def version(self) -> str:
        """Of its package."""
        return installed_version(self.package) or ""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        entry: what was measured.
        agreement: of its detections with ours.
        stages: `preprocess_ms`, `network_ms`, `postprocess_ms` and `total_ms`.
    """

    entry: Entry
    agreement: Agreement
    stages: Mapping[str, StageSummary]


@dataclass(frozen=True)
class Comparison:
    """A table.

    Attributes:
        network: what was run.
        detections: in a measured frame, on average.
        rows: ours first.
        skipped: why others are missing, by name.
    """

    network: Network
    detections: float
    rows: Sequence[Row]
    skipped: Mapping[str, str]

    def ratio(self, row: Row, stage: str) -> float:
        """How many times as long a row's median is as that of our float32 runtime that is quickest from end to end."""
        quickest = min((ours for ours in self.rows if ours.entry.ours), key=lambda ours: ours.stages["total_ms"].p50)
        return row.stages[stage].p50 / quickest.stages[stage].p50


class OpenCVDNN:
    """OpenCV's own network engine with our export, its `blobFromImage` before and our postprocessing after it."""

    def __init__(self, network: Network) -> None:
        self._input_hw = network.metadata.input_hw
        self._thresholds = network.thresholds
        if network.metadata.resize != "stretch":
            raise Skipped("its blobFromImage does not pad below and right")
        try:
            self._net = cv2.dnn.readNetFromONNX(str(network.onnx))
            self.timed(np.zeros((*self._input_hw, 3), np.uint8))
        except cv2.error as error:
            raise Skipped(f"cannot run this network: {error.err}") from None

    def timed(self, image: Image, *, score: float | None = None) -> tuple[Detections, Times]:
        """See `Contestant.timed`."""
        started = time.perf_counter()
        height, width = self._input_hw
        blob = cv2.dnn.blobFromImage(image, size=(width, height), ddepth=cv2.CV_8U)
        preprocessed = time.perf_counter()
        self._net.setInput(blob)
        boxes_xyxy, scores = self._net.forward(list(OUTPUT_NAMES))
        computed = time.perf_counter()
        detections = postprocess(
            boxes_xyxy[0], scores[0], self._thresholds if score is None else replace(self._thresholds, score=score)
        )
        detections = plan_resize((image.shape[0], image.shape[1]), self._input_hw, "stretch").undo(detections)
        return detections, _times(started, preprocessed, computed, time.perf_counter())


class LiteRT:
    """TensorFlow's engine with the file as it was published. Its last operator decodes and suppresses."""

    def __init__(self, network: Network) -> None:
        if network.file.suffix.lower() != ".tflite":
            raise Skipped("it runs .tflite files only, and there is none of this network")
        try:
            engine = importlib.import_module("ai_edge_litert.interpreter")
        except ImportError:
            raise Skipped("ai-edge-litert is not installed") from None
        self._interpreter = engine.Interpreter(str(network.file), num_threads=network.threads)
        self._interpreter.allocate_tensors()
        self._input: dict[str, Any] = self._interpreter.get_input_details()[0]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]
        if self._input["dtype"] != np.uint8 or len(self._outputs) != 4:
            raise Skipped("expected a file with 8-bit input and its own postprocessing")
        self._score = network.thresholds.score
        self._labels = np.full(max(network.metadata.category_ids) + 1, -1)
        self._labels[list(network.metadata.category_ids)] = np.arange(len(network.metadata.category_ids))

    def timed(self, image: Image, *, score: float | None = None) -> tuple[Detections, Times]:
        """See `Contestant.timed`."""
        started = time.perf_counter()
        _, height, width, _ = self._input["shape"]
        pixels = cv2.resize(image, (int(width), int(height)), interpolation=cv2.INTER_LINEAR)
        preprocessed = time.perf_counter()
        self._interpreter.set_tensor(self._input["index"], pixels[None])
        self._interpreter.invoke()
        boxes_yxyx, classes, scores, _ = (self._interpreter.get_tensor(index)[0] for index in self._outputs)
        computed = time.perf_counter()
        labels = self._labels[classes.astype(np.int64) + 1]  # which begin after the background
        limits = np.array([image.shape[1], image.shape[0]] * 2, np.float32)
        boxes_xyxy = np.clip(boxes_yxyx[:, [1, 0, 3, 2]] * limits, 0, limits)
        seen = (scores >= (self._score if score is None else score)) & (labels >= 0)
        detections = Detections(boxes_xyxy, scores, labels)[seen]
        return detections, _times(started, preprocessed, computed, time.perf_counter())


class TorchvisionSSD:
    """torchvision's SSD, eager, around our layers with batch norm not folded; the rest is its own."""

    def __init__(self, network: Network) -> None:
        detector, settings = network.detector, network.thresholds
        if not isinstance(detector, SSD) or network.metadata.resize != "stretch":
            raise Skipped("it has no such head or resize")
        if detector.class_loss != "softmax":
            raise Skipped("it takes a softmax over the classes, these weights are made for sigmoids")
        height, width = network.metadata.input_hw
        mean, std = ((values / 255).flatten().tolist() for values in (detector.normalize.mean, detector.normalize.std))
        self._score = settings.score
        self._model = torchvision_ssd.SSD(
            backbone=_Maps(detector),
            anchor_generator=_Anchors(detector, network.metadata.input_hw),
            size=(width, height),
            num_classes=detector.num_classes + 1,
            image_mean=mean,
            image_std=std,
            head=_Predictors(detector),
            nms_thresh=settings.nms,
            detections_per_img=settings.max_detections,
            topk_candidates=settings.pre_nms,
        ).eval()
        self._stamps: list[float] = []
        self._model.backbone.register_forward_pre_hook(self._stamp)
        self._model.head.register_forward_hook(self._stamp)

    def timed(self, image: Image, *, score: float | None = None) -> tuple[Detections, Times]:
        """See `Contestant.timed`."""
        self._model.score_thresh = self._score if score is None else score
        self._stamps = []
        started = time.perf_counter()
        with torch.inference_mode():
            found = self._model([to_tensor(image)])[0]
        boxes_xyxy, scores, labels = (found[key].numpy() for key in ("boxes", "scores", "labels"))
        detections = Detections(boxes_xyxy, scores, labels - 1)  # 0 is its background
        return detections, _times(started, *self._stamps, time.perf_counter())

    def _stamp(self, *_: object) -> None:
        self._stamps.append(time.perf_counter())


class _Maps(nn.Module):
    """Our backbone and extra maps, as torchvision's SSD wants them."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.backbone, self.extras = detector.backbone, detector.extras

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Normalised images [B, 3, H, W] to all maps, by number."""
        maps = self.backbone(images)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return OrderedDict((str(number), features) for number, features in enumerate(maps))


class _Predictors(nn.Module):
    """Our predictors in torchvision's own frame."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.classes = torchvision_ssd.SSDScoringHead(detector.class_predictors, detector.num_classes + 1)
        self.boxes = torchvision_ssd.SSDScoringHead(detector.box_predictors, 4)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Deltas [B, A, 4] and logits [B, A, K + 1]."""
        return {"bbox_regression": self.boxes(maps), "cls_logits": self.classes(maps)}


class _Anchors(nn.Module):
    """Our anchors: the boxes that our detector decodes from deltas of 0."""

    def __init__(self, detector: SSD, input_hw: tuple[int, int]) -> None:
        super().__init__()
        without_deltas = copy.deepcopy(detector).eval()
        with torch.no_grad():
            for parameter in without_deltas.box_predictors.parameters():
                parameter.zero_()
            found = without_deltas(torch.zeros((1, 3, *input_hw), dtype=torch.uint8))
        self._anchors: Tensor = found.boxes_xyxy[0, :, 0]  # [A, 4]

    def forward(self, images: Any, maps: list[Tensor]) -> list[Tensor]:
        """The anchors [A, 4] of each image."""
        return [self._anchors] * len(images.image_sizes)


def load_ours(runtime: str, network: Network) -> Predictor:
    """One of our runtimes."""
    score = network.thresholds.score
    if runtime == "torch":
        return load_torch_predictor(network.file, threads=network.threads, score=score)
    return load_predictor(network.onnx, runtime=runtime, threads=network.threads, score=score)


REFERENCE = Entry("mnet-det, torch", "torch", functools.partial(load_ours, "torch"), ours=True)
"""Whose detections the others must have."""
ENTRIES = (
    Entry("mnet-det, OpenVINO", "openvino", functools.partial(load_ours, "openvino"), ours=True),
    Entry("mnet-det, ONNX Runtime", "onnxruntime", functools.partial(load_ours, "onnxruntime"), ours=True),
    REFERENCE,
    Entry(
        "OpenCV DNN",
        "opencv-python",
        OpenCVDNN,
        "our exported file, whole, between its own blobFromImage and our postprocessing.",
    ),
    Entry(
        "LiteRT, 8-bit file",
        "ai-edge-litert",
        LiteRT,
        "the file as it was published. Network includes suppression, which is in the file, and leaves 10 detections at "
        "most, of one class a box; only those are looked for among ours. It has 91 outputs an anchor, ours only those "
        "that mean something.",
        replace(EIGHT_BITS, one_way=True),
    ),
    Entry(
        "torchvision's SSD, eager",
        "torchvision",
        TorchvisionSSD,
        "its SSD with our backbone, extra maps, anchors and predictors, batch norm not folded, in inference mode; "
        "resize, decoding and suppression are its own. Network is backbone and predictors. It clips boxes before it "
        "suppresses, ours are clipped last; that decides about a few boxes over the edge.",
        replace(FLOAT32, unpaired=0.05),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the tables, and write them."""
    arguments = _parse(argv)
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    try:
        frames = drawn_frames() if arguments.images is None else read_frames(arguments.images)
        comparisons = run(arguments, frames.images)
        print_all(console, arguments, frames, comparisons)
        if arguments.json is not None:
            write_json(arguments.json, as_json(arguments, frames, comparisons))
    except MnetDetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure our runtimes beside OpenCV DNN, LiteRT and torchvision's SSD.",
        epilog="Example: .venv/bin/python tools/compare_peers.py --alpha 1.0 0.25 --rounds 40",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        metavar="MODEL",
        help=f"published detectors or checkpoints ({DEFAULT_DETECTOR}, unless --alpha is given)",
    )
    parser.add_argument(
        "--alpha",
        nargs="+",
        type=_positive(float),
        metavar="ALPHA",
        help="widths of SSD300 with random weights (1.0, unless --model is given)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help=f"pictures to look at, the first {MOST_IMAGES} (drawn scenes of 640x480)",
    )
    parser.add_argument(
        "--threads", type=_positive(int), default=physical_cores(), metavar="N", help="for all (%(default)s: the cores)"
    )
    parser.add_argument(
        "--rounds", type=_positive(int), default=20, metavar="N", help="each a few frames (%(default)s)"
    )
    parser.add_argument("--score", type=_score, default=0.5, metavar="T", help="of a detection, at least (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument("--markdown", action="store_true", help="print them as GitHub's Markdown")
    arguments = parser.parse_args(argv)
    if arguments.model is None and arguments.alpha is None:
        arguments.model, arguments.alpha = [DEFAULT_DETECTOR], [1.0]
    return arguments


def run(arguments: argparse.Namespace, frames: Sequence[Image]) -> list[Comparison]:
    """Compare on every network.

    Raises:
        MnetDetError: a model that cannot be used.
    """
    cv2.setNumThreads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        entries = (int8_entry(frames), *ENTRIES)
        return [
            compare(network, entries, frames, rounds=arguments.rounds)
            for network in open_networks(arguments, Path(folder), frames)
        ]


def open_networks(arguments: argparse.Namespace, folder: Path, frames: Sequence[Image]) -> Iterator[Network]:
    """The networks that the command line names, exported into `folder`.

    Raises:
        MnetDetError: not a detector, or one that cannot be fetched.
    """
    for number, model in enumerate(arguments.model or ()):
        onnx = folder / f"model_{number}.onnx"
        yield open_network(find_detector(model), model, onnx, score=arguments.score, threads=arguments.threads)
    for number, alpha in enumerate(arguments.alpha or ()):
        file = folder / f"random_{number}.pt"
        save_checkpoint(file, random_checkpoint(load_config(None, [f"model.alpha={alpha}"]), frames))
        onnx, name = file.with_suffix(".onnx"), "random weights"
        yield open_network(file, name, onnx, score=arguments.score, threads=arguments.threads)


def open_network(file: Path, name: str, onnx: Path, *, score: float, threads: int) -> Network:
    """Read a detector and export it.

    Args:
        file: a checkpoint, or a published file.
        name: what it is called in the title.
        onnx: where to write the export.
        score: the least probability of a detection.
        threads: to compute with.

    Raises:
        CheckpointError: not a detector.
    """
    checkpoint = open_detector(file)
    detector, described = checkpoint.build(), describe_checkpoint(checkpoint, file)
    write_onnx(detector, described, onnx)
    return Network(
        title=_title(checkpoint.config.model, name, classes=detector.num_classes),
        file=file,
        onnx=onnx,
        detector=detector,
        metadata=described,
        thresholds=replace(Thresholds.of(described), score=score),
        threads=threads,
    )


def random_checkpoint(config: Config, frames: Sequence[Image]) -> Checkpoint:
    """An SSD with random weights, always the same but for the background's, which suit the frames: see below."""
    torch.manual_seed(SEED)
    detector = build_detector(config.model, num_classes=CLASSES)
    assert isinstance(detector, SSD)
    preprocess = Preprocessor(config.model.input_hw, mode=config.model.resize)
    scenes, seen = (
        torch.from_numpy(np.stack([preprocess(image)[0] for image in images])) for images in (bench_images(), frames)
    )
    settle_batch_norm(detector, scenes)
    make_sparse(detector, seen)
    names = tuple(f"class {number}" for number in range(CLASSES))
    return Checkpoint(config, names, tuple(range(CLASSES)), detector.state_dict())


@torch.no_grad()
def settle_batch_norm(detector: Detector, images: Tensor) -> None:
    """Give batch norm the statistics of images uint8 [B, 3, H, W], without which they would look alike, in place."""
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # of the newest batch
    detector.train()(images)
    detector.eval()


@torch.no_grad()
def make_sparse(detector: SSD, images: Tensor) -> None:
    """Spread the logits and raise the background's until only `SEEN_OBJECTS` an image score 0.5 or more, in place.

    Args:
        detector: with the softmax loss and predictors of one convolution.
        images: uint8 [B, 3, H, W].
    """
    maps = _Maps(detector)(detector.normalize(images))
    logits = _Predictors(detector)(list(maps.values()))["cls_logits"][..., 1:].double()  # [B, A, K]
    gain = LOGIT_SPREAD / logits.std()
    exponentials = (gain * logits).exp()
    # A class has half of the softmax where it outweighs all others and the background together.
    room = 2 * exponentials.amax(dim=-1) - exponentials.sum(dim=-1)  # [B, A]
    background = room.flatten().topk(SEEN_OBJECTS * len(images)).values[-1].log()
    for predictor in detector.class_predictors:
        assert isinstance(predictor, nn.Conv2d)
        assert predictor.bias is not None
        predictor.weight *= gain
        predictor.weight.view(-1, detector.num_classes + 1, predictor.in_channels)[:, 0] = 0  # of [S, K + 1, C]
        predictor.bias.view(-1, detector.num_classes + 1)[:, 0] = background


def int8_entry(frames: Sequence[Image]) -> Entry:
    """The row of our network in 8 bits, which the frames themselves are the calibration for."""

    def make(network: Network) -> Predictor:
        float32 = network.onnx.with_name(f"{network.onnx.stem}_float32.xml")
        write_openvino(network.detector, network.metadata, float32)
        preprocess = Preprocessor(network.metadata.input_hw, mode=network.metadata.resize)
        pixels = np.stack([preprocess(frame)[0] for frame in frames])
        made = network.metadata.model_copy(update={"quantization": Quantization(calibration_images=len(pixels))})
        file = network.onnx.with_name(f"{network.onnx.stem}_int8.xml")
        save_model(quantize(read_openvino_model(float32), pixels), made, file)
        return load_predictor(file, runtime="openvino", threads=network.threads, score=network.thresholds.score)

    return Entry(
        "mnet-det, OpenVINO, int8",
        "openvino",
        make,
        "as `mnet-det export --format openvino-int8` makes it, calibrated on the frames that are measured. Random "
        "weights magnify what it rounds: their detections are others, their time is not.",
        EIGHT_BITS,
    )


def compare(network: Network, entries: Sequence[Entry], frames: Sequence[Image], *, rounds: int) -> Comparison:
    """Check that all detect the same things, then measure them in turn.

    Args:
        network: what to run.
        entries: on what; `REFERENCE` among them.
        frames: RGB uint8 [H, W, 3], taken in turn.
        rounds: how often each has its turn.

    Raises:
        MnetDetError: a model that cannot be loaded.
    """
    contestants, skipped = load_all(network, entries)
    reference = contestants[REFERENCE]
    checked = [enlarge(frame, network.metadata.input_hw) for frame in frames[:MAX_CHECKED]]
    agreements = [agree(reference, other, checked, entry.tolerance) for entry, other in contestants.items()]
    runs = [functools.partial(_run, contestant, frames) for contestant in contestants.values()]
    taken = interleave(runs, rounds=rounds)
    return Comparison(
        network=network,
        detections=float(np.mean([len(reference.timed(frame)[0]) for frame in frames])),
        rows=[
            Row(entry, agreement, _stages(times))
            for entry, agreement, times in zip(contestants, agreements, taken, strict=True)
        ],
        skipped=skipped,
    )


def load_all(network: Network, entries: Sequence[Entry]) -> tuple[dict[Entry, Contestant], dict[str, str]]:
    """Those that can take part, and why the others cannot, by name."""
    contestants: dict[Entry, Contestant] = {}
    skipped = {}
    for entry in entries:
        try:
            contestants[entry] = entry.make(network)
        except (Skipped, MissingPackageError) as reason:
            skipped[entry.name] = str(reason)
    return contestants, skipped


def enlarge(frame: Image, input_hw: tuple[int, int]) -> Image:
    """A frame of `ENLARGED_HW` times the network's input."""
    pixels = resize_pixels(frame, plan_resize((frame.shape[0], frame.shape[1]), input_hw, "stretch"))
    enlarged: Image = np.repeat(np.repeat(pixels, ENLARGED_HW[0], axis=0), ENLARGED_HW[1], axis=1)
    return enlarged


def agree(reference: Contestant, other: Contestant, frames: Sequence[Image], tolerance: Tolerance) -> Agreement:
    """How many detections both have, in frames that `enlarge` gave."""
    lower = tolerance.least - tolerance.score  # a partner may have a slightly lower score
    compared = paired = 0
    for frame in frames:
        expected, found = (contestant.timed(frame, score=lower)[0] for contestant in (reference, other))
        for mine, theirs in ((found, expected), (expected, found))[: 1 if tolerance.one_way else 2]:
            paired_here = _have_partners(mine, theirs, tolerance)[mine.scores >= tolerance.least]
            compared += len(paired_here)
            paired += int(paired_here.sum())
    return Agreement(compared, paired, holds=compared > 0 and paired >= (1 - tolerance.unpaired) * compared)


def _have_partners(mine: Detections, theirs: Detections, tolerance: Tolerance) -> NDArray[np.bool_]:
    """Whether each of `mine` is among `theirs`: bool [N]."""
    height, width = ENLARGED_HW
    apart_px = np.abs(mine.boxes_xyxy[:, None] - theirs.boxes_xyxy) / np.array([width, height] * 2)  # [N, M, 4]
    near = (
        (apart_px.max(axis=-1, initial=0) <= tolerance.box_px)
        & (np.abs(mine.scores[:, None] - theirs.scores) <= tolerance.score)
        & (mine.labels[:, None] == theirs.labels)
    )
    partners: NDArray[np.bool_] = near.any(axis=1)
    return partners


def print_all(
    console: Console, arguments: argparse.Namespace, frames: Frames, comparisons: Sequence[Comparison]
) -> None:
    """The machine, a table for each network, and what to know when reading them."""
    whole = arguments.markdown
    run_on = (machine()["cpu"], f"{arguments.threads} threads", frames.what, f"{arguments.rounds} rounds")
    _say(console, ", ".join(map(str, run_on)), whole=whole)
    for comparison in comparisons:
        print_table(console, comparison, markdown=arguments.markdown)
    for note in notes(comparisons):
        _say(console, f"- {note}", whole=whole)


def print_table(console: Console, comparison: Comparison, *, markdown: bool) -> None:
    """Medians and 95th percentiles, how many times as long as ours each takes, and who was skipped."""
    grid = Table(box=MARKDOWN if markdown else SIMPLE_HEAD, pad_edge=markdown)
    grid.add_column("runtime", no_wrap=True)
    for column in ("network ms", "p95", "to ours", "end to end ms", "p95", "to ours", "same detections"):
        grid.add_column(column, justify="right", no_wrap=True)
    for row in comparison.rows:
        cells = []
        for stage in ("network_ms", "total_ms"):
            summary = row.stages[stage]
            cells += [f"{summary.p50:.1f}", f"{summary.p95:.1f}", f"{comparison.ratio(row, stage):.2f}"]
        agreement = "the reference" if row.entry is REFERENCE else str(row.agreement)
        grid.add_row(f"{row.entry.name} {row.entry.version}", *cells, agreement)
    console.print(f"\n{'### ' if markdown else ''}{comparison.network.title}", highlight=False, style="bold")
    _say(console, _described(comparison), whole=markdown)
    console.print(grid, highlight=False)
    for name, reason in comparison.skipped.items():
        _say(console, f"skipped: {name} ({reason})", whole=markdown)


def notes(comparisons: Sequence[Comparison]) -> list[str]:
    """What to know when reading the tables."""
    measured = {row.entry.name: row.entry.note for comparison in comparisons for row in comparison.rows}
    return [
        "All have the same threads, frames and thresholds, and run in turn, a few frames each, one at a time, resting "
        "between. End to end is from RGB pixels in memory to detections in those pixels. To ours: the median over that "
        "of our quickest runtime in float32.",
        f"Same detections: of those with a score of {FLOAT32.least} or more, how many have a counterpart in ours on "
        f"torch, or the other way round: the same class, within {FLOAT32.box_px} px of the network's input and a "
        f"score of {FLOAT32.score} (8 bits: from {EIGHT_BITS.least} on, {EIGHT_BITS.box_px} px, {EIGHT_BITS.score}).",
        *(f"{name}: {note}" for name, note in measured.items() if note),
    ]


def as_json(arguments: argparse.Namespace, frames: Frames, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The tables for JSON, in full numbers, milliseconds."""
    return {
        "machine": machine(),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "score": arguments.score,
        "images": frames.what,
        "frame_hw": frames.frame_hw,
        "networks": [
            {
                "network": comparison.network.title,
                "detections_per_frame": comparison.detections,
                "rows": [
                    {
                        "runtime": row.entry.name,
                        "version": row.entry.version,
                        **{stage: asdict(summary) for stage, summary in row.stages.items()},
                        "network_ratio": comparison.ratio(row, "network_ms"),
                        "total_ratio": comparison.ratio(row, "total_ms"),
                        "same_detections": asdict(row.agreement),
                    }
                    for row in comparison.rows
                ],
                "skipped": dict(comparison.skipped),
            }
            for comparison in comparisons
        ],
        "notes": notes(comparisons),
    }


def _run(contestant: Contestant, frames: Sequence[Image], turn: int) -> Times:
    return contestant.timed(frames[turn % len(frames)])[1]


def _stages(times: Sequence[Times]) -> dict[str, StageSummary]:
    names = ("preprocess_ms", "network_ms", "postprocess_ms", "total_ms")
    return {name: StageSummary.of([getattr(taken, name) for taken in times]) for name in names}


def _times(*stamps: float) -> Times:
    """From four moments in seconds."""
    return Times(*((end - start) * 1000 for start, end in itertools.pairwise(stamps)))


def _title(model: ModelConfig, name: str, *, classes: int) -> str:
    height, width = model.input_hw
    return f"{model.head} alpha {model.alpha:g}, {width}x{height}, {classes} classes: {name}"


def _described(comparison: Comparison) -> str:
    wanted = comparison.network.thresholds
    return (
        f"{comparison.detections:.1f} detections a frame, of score {wanted.score:g} or more, suppressed above IoU "
        f"{wanted.nms:g} within a class, {wanted.max_detections} at most"
    )


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(word: str) -> float:
        with suppress(ValueError):
            value = kind(word)
            if 0 < value < math.inf:
                return value
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {word}")

    return parse


def _score(word: str) -> float:
    value = float(word)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1, got {word}")
    return value


def _say(console: Console, text: str, *, whole: bool) -> None:
    """A paragraph; `whole` keeps it on one line."""
    console.print(text, highlight=False, markup=False, soft_wrap=whole)


if __name__ == "__main__":
    sys.exit(main())
