import json
from pathlib import Path

import pytest

from mnet_det.errors import CheckpointError
from mnet_det.runtime.metadata import ModelMetadata, Quantization, parse_metadata


def test_metadata_survives_the_round_trip(metadata: ModelMetadata) -> None:
    assert parse_metadata(metadata.to_json(), source=Path("a.onnx")) == metadata


def test_files_of_earlier_versions_are_float32(metadata: ModelMetadata) -> None:
    earlier = json.loads(metadata.to_json())
    del earlier["quantization"]
    found = parse_metadata(json.dumps(earlier), source=Path("a.onnx"))
    assert (found.precision, found.quantization) == ("float32", None)


def test_files_from_before_the_scores_of_classes_have_none(metadata: ModelMetadata) -> None:
    earlier = json.loads(metadata.to_json())
    del earlier["class_scores"]
    assert parse_metadata(json.dumps(earlier), source=Path("a.onnx")).class_scores is None


def test_scores_of_classes_survive_the_round_trip(metadata: ModelMetadata) -> None:
    scored = metadata.model_copy(update={"class_scores": (0.1, 1.0)})
    assert parse_metadata(scored.to_json(), source=Path("a.onnx")).class_scores == (0.1, 1.0)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.5], "2 class_names but 1 class_scores"),
        ([0.5, 1.5], r"class_scores \(0\.5, 1\.5\), expected 0 to 1"),
        ([0.5, -0.1], "expected 0 to 1"),
        ([0.5, "NaN"], "expected 0 to 1"),
    ],
)
def test_scores_of_classes_that_cannot_be_are_explained(scores: list, message: str, metadata: ModelMetadata) -> None:
    text = json.dumps(json.loads(metadata.to_json()) | {"class_scores": scores})
    with pytest.raises(CheckpointError, match=f"damaged metadata .*{message}"):
        parse_metadata(text, source=Path("a.onnx"))


def test_an_int8_model_says_what_it_cost(metadata: ModelMetadata) -> None:
    quantization = Quantization(calibration_images=300, scored_images=5000, ap_float32=0.2, ap_int8=0.19)
    int8 = metadata.model_copy(update={"quantization": quantization})
    found = parse_metadata(int8.to_json(), source=Path("a.xml"))
    assert (found, found.precision) == (int8, "int8")
    later = json.loads(int8.to_json())
    later["quantization"]["seconds"] = 12
    assert parse_metadata(json.dumps(later), source=Path("a.xml")) == int8


def test_keys_of_later_versions_are_ignored(metadata: ModelMetadata) -> None:
    later = json.loads(metadata.to_json()) | {"keypoints": 17}
    assert parse_metadata(json.dumps(later), source=Path("a.onnx")) == metadata


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "a.onnx: the model does not say .* expected a file written by `mnet-det export`"),
        ("{", "a.onnx: damaged metadata .*export the model again"),
        ("{}", r"a.onnx: damaged metadata \(name: Field required\)"),
    ],
    ids=["missing", "not JSON", "incomplete"],
)
def test_metadata_that_cannot_be_used_is_explained(text: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_metadata(text, source=Path("a.onnx"))


def test_each_class_needs_its_category_id(metadata: ModelMetadata) -> None:
    text = json.dumps(json.loads(metadata.to_json()) | {"category_ids": [17]})
    with pytest.raises(CheckpointError, match="2 class_names but 1 category_ids"):
        parse_metadata(text, source=Path("a.onnx"))
