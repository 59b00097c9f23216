"""A checkpoint as an int8 OpenVINO model, through NNCF's post-training quantisation, with the AP that it cost."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnet_det.config import Config
from mnet_det.data import open_data
from mnet_det.data.coco import CocoData, read_coco
from mnet_det.doctor import install_line
from mnet_det.engine.checkpoint import open_detector
from mnet_det.engine.evaluate import evaluate, join_classes
from mnet_det.engine.export import Parity, export_detector, readable
from mnet_det.errors import ConfigError, DataError, MissingPackageError
from mnet_det.files import whole_file
from mnet_det.images import list_images
from mnet_det.preprocess import Preprocessor
from mnet_det.runtime.backends import INPUT_NAME, OpenVINOBackend, import_openvino, read_metadata, read_openvino_model
from mnet_det.runtime.metadata import OPENVINO_PLACE, ModelMetadata, Quantization
from mnet_det.runtime.predictor import Predictor

MAX_CALIBRATION_IMAGES = 300
"""NNCF's own default; more change little and take longer."""
MAX_DROP = 0.01
"""Of AP, before a user is warned."""
LEAST_AP = 0.01
"""Below this there is hardly anything to lose."""
LAYERS = frozenset({"Convolution", "GroupConvolution", "MatMul"})
"""OpenVINO's names of the operations where a network's time goes, and which int8 makes quicker."""


@dataclass(frozen=True)
class Int8Export:
    """What an int8 export came to.

    Attributes:
        parity: how the float32 model that it was made from compares with torch.
        quantization: what the file says about it.
    """

    parity: Parity
    quantization: Quantization

    @property
    def drop(self) -> float | None:
        """How much AP was lost, if it was measured."""
        before, after = self.quantization.ap_float32, self.quantization.ap_int8
        return None if before is None or after is None else before - after

    @property
    def finds(self) -> bool:
        """Whether the float32 model found enough for its AP to be worth comparing."""
        return (self.quantization.ap_float32 or 0) >= LEAST_AP

    def __str__(self) -> str:
        line = f"int8, calibrated on {self.quantization.calibration_images} images: "
        if self.drop is None and self.quantization.scored_images:
            return f"{line}AP was not measured, nothing is marked in the {self.quantization.scored_images} images"
        if self.drop is None:
            return (
                f"{line}AP was not measured, the model's own validation images are not here; to have it measured, "
                "give --images DIR --annotations FILE"
            )
        proof = " (which proves little: is the model trained on such images?)" if not self.finds else ""
        return (
            f"{line}AP {self.quantization.ap_float32:.3f} before, {self.quantization.ap_int8:.3f} after, on "
            f"{self.quantization.scored_images} images{proof}"
        )


def export_int8(
    path: Path,
    out: Path,
    *,
    calibration: Path | None = None,
    images: Path | None = None,
    annotations: Path | None = None,
    batch: int = 1,
    proposals: int | None = None,
    rho: float | None = None,
    note: Callable[[str], object] = lambda line: None,
) -> Int8Export:
    """Export a checkpoint in int8: as float32, compared with torch as every export is, then quantised.

    Pixel normalisation, box decoding and scores stay float32. AP is measured before and after.

    Args:
        path: the checkpoint, or a published detector.
        out: the `.xml` of an OpenVINO model, whose weights lie in a `.bin` beside it.
        calibration: folder of images like those that the model will see. Without it the checkpoint's own training
            images, and where those are not on this machine, its validation images.
        images: folder of the images to measure AP on, with `annotations`; without them the checkpoint's own
            validation set, and where that is not on this machine, AP is not measured.
        annotations: COCO JSON.
        batch: images the network takes at a time.
        proposals: see `export_detector`.
        rho: see `export_detector`.
        note: is told how far it is.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: `out` ends in something else, or there are no images to calibrate on.
        DataError: a folder or an annotation file cannot be used.
        ExportError: the float32 model differs from torch.
        MissingPackageError: NNCF is not installed.
    """
    if out.suffix != ".xml":
        raise ConfigError(f"{out}: expected a name that ends in .xml")
    _import_nncf()  # before time goes into the rest
    checkpoint = open_detector(path)
    paths = _spread(_images_to_calibrate(checkpoint.config, calibration))
    scored = _data_to_score(checkpoint.config, images, annotations)
    if scored is not None:
        join_classes(checkpoint.class_names, scored[0])
    # Windows keeps a file that an engine has mapped into memory.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        before = Path(folder) / "float32" / out.name  # out may be called int8.xml, too
        note("exporting in float32, to compare with torch")
        parity = export_detector(path, before, images=calibration, batch=batch, proposals=proposals, rho=rho)
        metadata = read_metadata(before)
        pixels = _read_pixels(paths, metadata)
        unreadable = f", {len(paths) - len(pixels)} cannot be read" if len(pixels) < len(paths) else ""
        note(f"calibrating on {len(pixels)} images{unreadable}")
        model = quantize(read_openvino_model(before), pixels)
        after = Path(folder) / "int8.xml"
        save_model(model, metadata, after)
        quantization = Quantization(calibration_images=len(pixels))
        if scored is not None:
            data, file = scored
            note(f"measuring AP before and after on {len(data)} images")
            quantization = Quantization(
                calibration_images=len(pixels),
                scored_images=len(data),
                ap_float32=_measure_ap(before, data, file),
                ap_int8=_measure_ap(after, data, file),
            )
        with ExitStack() as files:
            files.enter_context(whole_file(out.with_suffix(".bin")))  # as in `export_detector`
            temporary = files.enter_context(whole_file(out))
            save_model(model, metadata.model_copy(update={"quantization": quantization}), temporary)
    return Int8Export(parity, quantization)


def quantize(model: Any, pixels: NDArray[np.uint8]) -> Any:
    """OpenVINO's float32 model with its layers in int8.

    Args:
        model: as `write_openvino` wrote it; stays as it is.
        pixels: uint8 [M, 3, H, W], to measure the ranges of activations on.

    Raises:
        MissingPackageError: NNCF is not installed.
    """
    nncf = _import_nncf()
    batch = int(model.input(INPUT_NAME).shape[0])
    rows = np.arange(-(-len(pixels) // batch) * batch) % len(pixels)  # the last batch is filled with the first images
    samples = [{INPUT_NAME: pixels[part]} for part in rows.reshape(-1, batch)]
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            subset_size=len(samples),
            preset=nncf.QuantizationPreset.MIXED,  # activations may be asymmetric, which costs no time
            ignored_scope=nncf.IgnoredScope(names=float_operations(model)),
        )


def float_operations(model: Any) -> list[str]:
    """Names of the operations to leave in float32: all but those that lie between one layer and another.

    So pixel normalisation, before the first layer, is left out, and all that comes after the last ones: scores and box
    decoding. Proposals lie between two layers, but not as features: RoIAlign only cuts features out where they say.
    Everything on the way to its boxes is left out too.
    """
    operations = model.get_ordered_ops()
    after: set[str] = set()  # a layer
    for operation in operations:
        if operation.get_type_name() in LAYERS or after.intersection(_sources(operation)):
            after.add(operation.get_friendly_name())
    before: set[str] = set()
    for operation in reversed(operations):
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        if kind in LAYERS or name in before:
            before.add(name)
            sources = list(_sources(operation))
            before.update(sources[:1] if kind == "ROIAlign" else sources)
    ends = ("Parameter", "Constant", "Result")
    return [
        operation.get_friendly_name()
        for operation in operations
        if operation.get_type_name() not in ends and operation.get_friendly_name() not in after & before
    ]


def _sources(operation: Any) -> Iterator[str]:
    """Names of the operations that another takes its inputs from, in their order."""
    return (port.get_source_output().get_node().get_friendly_name() for port in operation.inputs())


def _import_nncf() -> Any:
    """NNCF without its telemetry, which OpenVINO has in common with it, and without its log lines."""
    import_openvino()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns where there is no CUDA
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"int8 needs the package {error.name}, which is not installed: {install_line('int8')}"
        ) from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def _images_to_calibrate(config: Config, folder: Path | None) -> list[Path]:
    """Images of `folder`, else of the training set, else of the validation set."""
    if folder is not None:
        return list_images(folder)
    for split in ("train", "val"):
        with contextlib.suppress(ConfigError, DataError):
            return list_images(config.data.images(split))
    raise ConfigError(
        "int8 needs images to calibrate on, and the model's own are not here: give --calibration DIR, a folder of a "
        f"hundred images or so (at most {MAX_CALIBRATION_IMAGES} are used) like those that it will see"
    )


def _spread(paths: list[Path]) -> list[Path]:
    """At most `MAX_CALIBRATION_IMAGES` of them, evenly from the first to the last."""
    count = min(len(paths), MAX_CALIBRATION_IMAGES)
    return [paths[index] for index in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def _read_pixels(paths: list[Path], metadata: ModelMetadata) -> NDArray[np.uint8]:
    """uint8 [M, 3, H, W], the network pixels of the images that can be read."""
    preprocess = Preprocessor(metadata.input_hw, mode=metadata.resize)
    pixels = [preprocess(image)[0] for image in readable(paths)]
    if not pixels:
        raise DataError(f"{paths[0].parent}: none of {len(paths)} images to calibrate on can be read")
    return np.stack(pixels)


def _data_to_score(config: Config, images: Path | None, annotations: Path | None) -> tuple[CocoData, Path] | None:
    """The data that are named, else the checkpoint's own validation set if it is on this machine."""
    if images is not None and annotations is not None:
        data = read_coco(annotations, images)
        data.require_files()
        return data, annotations
    try:
        return open_data(config.data, "val"), config.data.annotations("val")
    except (ConfigError, DataError):
        return None


def _measure_ap(file: Path, data: CocoData, annotations: Path) -> float | None:
    backend = OpenVINOBackend(file, aim="throughput", cache_dir=file.parent / "compiled")
    return evaluate(Predictor(backend), data, annotations)[0].numbers["AP"]  # None where nothing is marked


def save_model(model: Any, metadata: ModelMetadata, path: Path) -> None:
    """Write OpenVINO's model, with what it says about itself, to `path` and, with the suffix `.bin`, beside it."""
    model.set_rt_info(metadata.to_json(), OPENVINO_PLACE)
    import_openvino().save_model(model, path, compress_to_fp16=False)
