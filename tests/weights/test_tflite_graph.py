"""Graphs that the schema's own classes wrote, numbers worked out by hand, and files with damage."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet_det.errors import CheckpointError
from mnet_det.weights.tflite import read_tflite
from mnet_det.weights.tflite_graph import GraphTensor, read_graph

ELEVEN = [f"class {number}" for number in range(11)]


def stored(
    values: np.ndarray[Any, Any],
    *,
    kind: str,
    scales: tuple[float, ...] = (),
    zeros: tuple[int, ...] = (),
    axis: int = 0,
) -> GraphTensor:
    return GraphTensor(
        name="filter",
        shape=values.shape,
        kind=kind,
        data=values.tobytes(),
        scales=np.array(scales, np.float32),
        zeros=np.array(zeros, np.int64),
        axis=axis,
    )


def test_one_scale_and_zero_point_stand_for_a_whole_uint8_tensor() -> None:
    tensor = stored(np.array([0, 127, 128, 255], np.uint8), kind="UINT8", scales=(0.5,), zeros=(128,))
    assert tensor.values().dtype == np.float32
    assert tensor.values().tolist() == [-64, -0.5, 0, 63.5]  # (q - 128) / 2


def test_int8_numbers_are_signed() -> None:
    tensor = stored(np.array([-128, -1, 127], np.int8), kind="INT8", scales=(0.25,), zeros=(-128,))
    assert tensor.values().tolist() == [0, 31.75, 63.75]  # (q + 128) / 4


@pytest.mark.parametrize(
    ("axis", "expected"),
    [(0, [[1, 2, 3], [40, 50, 60]]), (1, [[1, 20, 300], [4, 50, 600]])],
    ids=["rows", "columns"],
)
def test_each_channel_has_its_own_scale_along_the_axis(axis: int, expected: list[list[int]]) -> None:
    values = np.array([[1, 2, 3], [4, 5, 6]], np.int8)
    scales = (1.0, 10.0, 100.0)[: values.shape[axis]]
    tensor = stored(values, kind="INT8", scales=scales, zeros=(0,) * len(scales), axis=axis)
    assert tensor.values().tolist() == expected


def test_biases_are_32_bit_multiples_of_a_small_step() -> None:
    tensor = stored(np.array([100_000, -3], "<i4"), kind="INT32", scales=(2**-10,), zeros=(0,))
    assert tensor.values().tolist() == [97.65625, -0.0029296875]  # 100000 / 1024, -3 / 1024


def test_floats_and_plain_integers_are_as_they_are_stored() -> None:
    assert stored(np.array([1.5, -2], "<f4"), kind="FLOAT32").values().tolist() == [1.5, -2]
    assert stored(np.array([7], "<i4"), kind="INT32").values().tolist() == [7]


@pytest.mark.parametrize(
    ("tensor", "limits"),
    [
        (stored(np.zeros(0, np.uint8), kind="UINT8", scales=(0.5,), zeros=(10,)), (-5, 122.5)),  # -10 / 2, 245 / 2
        (stored(np.zeros(0, np.int8), kind="INT8", scales=(0.5,), zeros=(-128,)), (0, 127.5)),  # 0 / 2, 255 / 2
        (stored(np.zeros(0, np.int8), kind="INT8", scales=(0.5, 1.0), zeros=(0, 0)), None),
        (stored(np.zeros(0, np.uint8), kind="UINT8"), None),
        (stored(np.zeros(0, np.float32), kind="FLOAT32"), None),
    ],
    ids=["uint8", "int8", "per channel", "not quantised", "float"],
)
def test_range_is_what_the_stored_type_can_hold(tensor: GraphTensor, limits: tuple[float, float] | None) -> None:
    assert tensor.range() == limits


@pytest.mark.parametrize("kind", ["FLOAT32", "STRING"], ids=["no bytes", "a kind that is not read"])
def test_values_that_are_not_there_are_refused(kind: str) -> None:
    tensor = stored(np.zeros(0 if kind == "FLOAT32" else 4, np.uint8), kind=kind)
    with pytest.raises(ValueError, match=f"tensor filter holds {len(tensor.data)} bytes of {kind}"):
        tensor.values()


@pytest.mark.parametrize("form", ["float32", "uint8", "int8"])
def test_filters_and_biases_are_those_that_were_written(
    draw_classifier: Callable[..., Any], tmp_path: Path, form: str
) -> None:
    """uint8 has one scale a tensor, int8 one a channel: along axis 0, and along axis 3 where depthwise."""
    drawn = draw_classifier(0.1, form)
    graph = read_graph(drawn.save(tmp_path / "net.tflite"))
    convolutions = [operator for operator in graph.operators if "CONV" in operator.kind]
    assert [operator.kind for operator in convolutions] == [
        "CONV_2D",
        *["DEPTHWISE_CONV_2D", "CONV_2D"] * 13,
        "CONV_2D",
    ]
    for operator, filters, biases in zip(convolutions, drawn.filters, drawn.biases, strict=True):
        np.testing.assert_allclose(graph.tensors[operator.inputs[1]].values(), filters, rtol=1e-6)
        np.testing.assert_allclose(graph.tensors[operator.inputs[2]].values(), biases, rtol=1e-6, atol=1e-9)


def test_zero_points_that_are_left_out_are_0(draw_classifier: Callable[..., Any], tmp_path: Path) -> None:
    drawn = draw_classifier(0.1, "int8")  # filters and biases have zero point 0 throughout
    whole = read_tflite(drawn.save(tmp_path / "whole.tflite"), labels=ELEVEN)
    for tensor in drawn.model.subgraphs[0].tensors:
        if tensor.quantization is not None and not np.any(tensor.quantization.zeroPoint):
            tensor.quantization.zeroPoint = None
    bare = read_tflite(drawn.save(tmp_path / "bare.tflite"), labels=ELEVEN)
    for name, values in whole.weights.items():
        np.testing.assert_array_equal(bare.weights[name], values, err_msg=name)


def test_operators_say_how_they_are_joined_padded_and_activated(
    draw_classifier: Callable[..., Any], tmp_path: Path
) -> None:
    drawn = draw_classifier(0.1)
    drawn.operators[1].builtinOptions.padding = 1  # VALID
    drawn.operators[1].builtinOptions.dilationHFactor = 3
    drawn.operators[2].builtinOptions.fusedActivationFunction = 1  # RELU
    graph = read_graph(drawn.save(tmp_path / "net.tflite"))
    stem, depthwise, pointwise = graph.operators[:3]
    assert (stem.padding, stem.activation, stem.strides) == ("SAME", "RELU6", (2, 2, 1, 1))
    assert (depthwise.padding, depthwise.strides) == ("VALID", (1, 1, 3, 1))
    assert pointwise.activation == "RELU"
    assert graph.tensors[graph.inputs[0]].shape == (1, 32, 32, 3)
    assert graph.producer(graph.inputs[0]) is None
    assert graph.producer(depthwise.inputs[0]) is stem
    assert graph.producer(depthwise.inputs[1]) is None


def test_convolutions_into_a_joined_tensor_come_in_the_order_of_joining(
    draw_ssd: Callable[..., Any], tmp_path: Path
) -> None:
    graph = read_graph(draw_ssd(0.1).save(tmp_path / "net.tflite"))
    detection = graph.operators[-1]
    assert detection.kind == "TFLite_Detection_PostProcess"
    assert (detection.custom["num_classes"], detection.custom["h_scale"]) == (3, 5.0)
    for raw in detection.inputs[:2]:
        heads = list(graph.convolutions_into(raw))
        assert [graph.tensors[head.outputs[0]].shape[1] for head in heads] == [4, 2, 1, 1, 1, 1]  # 64 / 16, 64 / 32 …
    assert not list(graph.convolutions_into(detection.inputs[2]))


def test_a_list_of_labels_in_the_archive_at_the_end_is_read(
    draw_classifier: Callable[..., Any], tmp_path: Path
) -> None:
    path = draw_classifier(0.1).save(tmp_path / "net.tflite")
    assert read_graph(path).labels is None
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "background\ncat\ndög\n")
    assert read_graph(path).labels == ["background", "cat", "dög"]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.txt", "which of both?")
    assert read_graph(path).labels is None


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"PK\x03\x04 an archive", b"\x00" * 64], ids=["empty", "4", "zip", "zeros"]
)
def test_a_file_without_the_formats_mark_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^not a TensorFlow Lite file$"):
        read_graph(path)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_damaged(draw_classifier: Callable[..., Any], tmp_path: Path, part: float) -> None:
    path = draw_classifier(0.1, "uint8").save(tmp_path / "net.tflite")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"not a TensorFlow Lite file|damaged|cannot be read"):
        read_tflite(path, labels=ELEVEN)


def test_an_operator_that_reads_what_comes_later_is_damage(draw_classifier: Callable[..., Any], tmp_path: Path) -> None:
    """A walk up such a graph went round in circles until Python's stack was full."""
    drawn = draw_classifier(0.1)
    drawn.operators[28].inputs[0] = drawn.operators[29].outputs[0]
    with pytest.raises(CheckpointError, match=r"damaged, .*CONV_2D reads tensor \d+, which nothing before it gives"):
        read_graph(drawn.save(tmp_path / "net.tflite"))


@pytest.mark.parametrize(("inputs", "said"), [(2, r"\(\d+, \d+\)"), (3, r"\(\d+, \d+, -1\)")], ids=["two", "-1"])
def test_a_convolution_without_bias_is_refused(
    draw_classifier: Callable[..., Any], tmp_path: Path, inputs: int, said: str
) -> None:
    """-1 is the format's sign for none; it was taken for Python's last tensor."""
    drawn = draw_classifier(0.1)
    drawn.operators[4].inputs = [*drawn.operators[4].inputs[:2], -1][:inputs]
    with pytest.raises(CheckpointError, match=f"CONV_2D has inputs {said}, expected a map, a filter and a bias"):
        read_tflite(drawn.save(tmp_path / "net.tflite"), labels=ELEVEN)


def test_a_damaged_archive_of_labels_is_damage(draw_classifier: Callable[..., Any], tmp_path: Path) -> None:
    path = draw_classifier(0.1).save(tmp_path / "net.tflite")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "background\ncat\n")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"background\ncat", b"background\ncot"))
    with pytest.raises(CheckpointError, match=r"damaged, .*Bad CRC-32"):
        read_graph(path)


def test_no_flipped_byte_gives_another_error_than_ours(draw_classifier: Callable[..., Any], tmp_path: Path) -> None:
    """flatbuffers checks nothing: a wrong offset becomes any error of Python, or a wrong number."""
    path = draw_classifier(0.1, "uint8").save(tmp_path / "net.tflite")
    content = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    spots = random.integers(len(content) - 10_000, len(content), 80)  # the tables lie behind the weights
    refused = 0
    for spot in spots:
        damaged = content.copy()
        damaged[spot] ^= random.integers(1, 256, dtype=np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            read_tflite(path, labels=ELEVEN)
        except CheckpointError:
            refused += 1
    assert refused > 10  # else the test looks at weights only
