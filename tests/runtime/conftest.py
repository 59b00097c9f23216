"""A tiny exported model whose detections can be worked out by hand, and a cache of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mnet_det.runtime.metadata import METADATA_KEY, ModelMetadata

METADATA = ModelMetadata(
    name="tiny",
    head="ssd",
    backbone="mobilenet_v1",
    alpha=0.5,
    rho=1.0,
    class_names=("cat", "naïve dog"),
    category_ids=(17, 18),
    input_hw=(32, 32),
    resize="stretch",
    score=0.15,
    nms=0.6,
    pre_nms=100,
    max_detections=10,
)

# Candidates 0 and 1 overlap: 7 x 8 shared pixels, IoU 56 / (64 + 64 - 56) = 0.78. Candidate 2 stands alone.
BOXES_XYXY = np.array([[4, 4, 12, 12], [5, 4, 13, 12], [16, 16, 32, 28]], np.float32)
SCORES = np.array([[0.9, 0.1], [0.8, 0.05], [0.2, 0.7]], np.float32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_DET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def metadata() -> ModelMetadata:
    return METADATA


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a model that finds the same boxes everywhere; its scores fade with the image's mean brightness."""

    def write(*, name: str = "tiny.onnx", batch: int = 1, text: str | None = METADATA.to_json()) -> Path:
        constants = {
            "boxes": BOXES_XYXY[None, :, None],  # [1, N, 1, 4]
            "base_scores": SCORES[None],  # [1, N, K]
            "zero": np.float32(0),
            "white": np.float32(255),
            "pixel_axes": np.array([1, 2, 3]),
            "last_axis": np.array([3]),
        }
        nodes = [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "pixel_axes"], ["mean"], keepdims=1),  # [B, 1, 1, 1]
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["boxes", "nothing"], ["boxes_xyxy"]),
            helper.make_node("Div", ["mean", "white"], ["brightness"]),
            helper.make_node("Squeeze", ["brightness", "last_axis"], ["factor"]),
            helper.make_node("Mul", ["base_scores", "factor"], ["scores"]),
        ]
        # The outputs stand in the other order than `Candidates` has, which must not matter.
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 3, 32, 32])],
            [
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3, 2]),
                helper.make_tensor_value_info("boxes_xyxy", TensorProto.FLOAT, [batch, 3, 1, 4]),
            ],
            [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        if text is not None:
            helper.set_model_props(model, {METADATA_KEY: text})
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return write
