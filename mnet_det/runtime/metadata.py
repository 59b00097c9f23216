"""What an exported model says about itself, so that nothing is needed beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mnet_det.errors import CheckpointError
from mnet_det.preprocess import ResizeMode

METADATA_KEY = "mnet_det"
"""The one key of an ONNX file's `metadata_props` that holds the JSON."""
OPENVINO_PLACE = ["framework", METADATA_KEY]
"""Where OpenVINO keeps an ONNX file's `metadata_props` in its own `rt_info`, and so where its own files have it too."""


class Quantization(BaseModel):
    """How a model came to int8, and what that cost.

    Attributes:
        calibration_images: the images that the ranges of its activations were measured on.
        scored_images: the images that AP was measured on, by the same code before and after; 0 if it was not.
        ap_float32, ap_int8: that AP, 0…1.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    calibration_images: int
    scored_images: int = 0
    ap_float32: float | None = None
    ap_int8: float | None = None


class ModelMetadata(BaseModel):
    """One exported model. Keys it does not know are ignored, so that files of later versions still load.

    Attributes:
        class_names: K names; labels index them.
        category_ids: the data's own ids, in the order of `class_names`.
        input_hw: height and width of the network's input, pixels.
        score, nms, pre_nms, max_detections: the thresholds it was scored with, as in `EvalConfig`.
        class_scores: K least probabilities to show its detections with, 0…1: those of the best F1 that was measured,
            of an int8 model those of the float32 one that it was made from; None if nobody did.
        quantization: of an int8 model.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    head: str
    backbone: str
    alpha: float
    rho: float
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    input_hw: tuple[int, int]
    resize: ResizeMode
    score: float
    nms: float
    pre_nms: int
    max_detections: int
    class_scores: tuple[float, ...] | None = None
    quantization: Quantization | None = None

    @property
    def precision(self) -> Literal["float32", "int8"]:
        """What its convolutions compute in."""
        return "float32" if self.quantization is None else "int8"

    @model_validator(mode="after")
    def _classes_have_ids(self) -> ModelMetadata:
        if len(self.class_names) != len(self.category_ids):
            raise ValueError(f"{len(self.class_names)} class_names but {len(self.category_ids)} category_ids")
        return self

    @model_validator(mode="after")
    def _classes_have_scores(self) -> ModelMetadata:
        if self.class_scores is None:
            return self
        if len(self.class_names) != len(self.class_scores):
            raise ValueError(f"{len(self.class_names)} class_names but {len(self.class_scores)} class_scores")
        if not all(0 <= score <= 1 for score in self.class_scores):  # NaN is not
            raise ValueError(f"class_scores {self.class_scores}, expected 0 to 1")
        return self

    def to_json(self) -> str:
        """The text to store under `METADATA_KEY`."""
        return self.model_dump_json()


def parse_metadata(text: str | None, *, source: Path) -> ModelMetadata:
    """Read the text stored under `METADATA_KEY`; None means that the key is missing.

    Raises:
        CheckpointError: the model carries no metadata, or not of this kind.
    """
    if text is None:
        raise CheckpointError(
            f"{source}: the model does not say what its classes and input are; expected a file written by "
            f"`mnet-det export` (metadata key '{METADATA_KEY}')"
        )
    try:
        return ModelMetadata.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"]) or "all of it"
        raise CheckpointError(
            f"{source}: damaged metadata ({place}: {fault['msg']}); export the model again with `mnet-det export`"
        ) from None
