"""TensorFlow Lite files, float32 or 8-bit: the COCO SSD, MobileNetV1 classifiers and embedding extractors.

A file is read by the shape of its graph, not by its tensors' names, which every converter writes in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mnet_det.config import ModelConfig
from mnet_det.errors import CheckpointError
from mnet_det.models.layers import RGB, Activation
from mnet_det.models.mobilenet_v1 import BLOCKS
from mnet_det.weights.published import (
    Published,
    Weights,
    backbone_layers,
    folded_layer,
    foreground,
    imagenet_names,
    likely_alpha,
    require_fit,
)
from mnet_det.weights.tflite_graph import CONVOLUTIONS, DETECTION, Graph, GraphTensor, Operator, read_graph
from mnet_det.weights.tflite_ssd import add_heads

BN_EPS = 1e-3
"""TensorFlow's for MobileNet. Folded files do not tell, and any value gives the same outputs."""
FLOAT_INPUT = 127.5
"""Mean and std of float inputs: files do not tell, all of TensorFlow's MobileNets are scaled to -1…1."""
STRIDES = (2, *(stride for _, block in BLOCKS.items() for stride in (block[1], 1)))
"""Of the 27 convolutions of the backbone."""
POOLS = ("AVERAGE_POOL_2D", "MEAN")
KNOWN_KINDS = {
    *CONVOLUTIONS,
    *POOLS,
    DETECTION,
    *("RESHAPE", "SQUEEZE", "QUANTIZE", "DEQUANTIZE", "CONCATENATION", "LOGISTIC", "SOFTMAX"),
}


def read_tflite(path: Path, *, labels: Sequence[str] | None = None) -> Published:
    """Read a MobileNetV1 network from a TensorFlow Lite file.

    Batch norm is folded in these files and stays so. Of a detector's outputs, the background and those without a class
    are no classes. Its anchors come along as they are stored, rounded to 8 bits, so that published scores are
    reproduced.

    Raises:
        CheckpointError: damaged, or another network.
    """
    graph = read_graph(path)
    try:
        return require_fit(_read(graph, labels if labels is not None else graph.labels))
    except (ValueError, IndexError) as error:  # tensors without values, of a kind that is not read, of too few axes
        raise CheckpointError(f"cannot be read: {error}") from None


def _read(graph: Graph, labels: Sequence[str] | None) -> Published:
    strangers = sorted({operator.kind for operator in graph.operators} - KNOWN_KINDS)
    if strangers or len(graph.inputs) != 1:
        what = f"operators {', '.join(strangers)}" if strangers else f"{len(graph.inputs)} inputs"
        raise CheckpointError(f"not a MobileNetV1 that we know: it has {what}")
    detection = next((operator for operator in graph.operators if operator.kind == DETECTION), None)
    box_heads = [] if detection is None else list(graph.convolutions_into(detection.inputs[0]))
    class_heads = _class_heads(graph, detection)
    trunk = [op for op in graph.operators if op.kind in CONVOLUTIONS and op not in class_heads + box_heads]
    backbone = _read_trunk(graph, trunk)
    if detection is not None:
        return add_heads(backbone, graph, detection, trunk, class_heads, box_heads, labels)
    return _add_classifier(backbone, graph, class_heads[0], labels) if class_heads else backbone


def _read_trunk(graph: Graph, trunk: Sequence[Operator]) -> Published:
    """The backbone, and the extra maps of an SSD: all that lies before the outputs."""
    layers = backbone_layers()
    if len(trunk) < len(layers) or len(trunk) % 2 == 0:
        raise CheckpointError(
            f"not MobileNetV1: {len(trunk)} convolutions before its outputs, expected {len(layers)} (or two more for "
            "each extra map of an SSD)"
        )
    layers += [f"extras.{n}.{part}" for n in range((len(trunk) - len(layers)) // 2) for part in ("reduce", "shrink")]
    _require_chain(graph, trunk)
    weights: Weights = {}
    for name, operator in zip(layers, trunk, strict=True):
        weights |= folded_layer(name, *graph.filter_and_bias(operator), bn_eps=BN_EPS)
    pixels = graph.tensors[graph.inputs[0]]
    height, width = pixels.shape[1:3]
    mean, std = _pixel_scaling(pixels)
    model = ModelConfig(
        alpha=likely_alpha(len(weights["backbone.blocks.13.pointwise.conv.weight"])),
        base_hw=(height, width),
        padding="same",
        activation=_activation(graph, trunk),
        pixel_mean=mean,
        pixel_std=std,
        bn_eps=BN_EPS,
    )
    return Published("backbone", model, (), (), weights, folded=True)


def _add_classifier(backbone: Published, graph: Graph, head: Operator, labels: Sequence[str] | None) -> Published:
    weight, bias = graph.filter_and_bias(head)
    classes = foreground(labels, len(bias), ("background", *imagenet_names()))
    rows = [number for number, _ in classes]
    return replace(
        backbone,
        kind="classifier",
        class_names=tuple(name for _, name in classes),
        category_ids=tuple(range(len(classes))),
        weights={
            **backbone.weights,
            "classifier.weight": weight.flatten(1)[rows],
            "classifier.bias": bias[rows],
        },
    )


def _class_heads(graph: Graph, detection: Operator | None) -> list[Operator]:
    """The convolutions that give class scores: a detector's for each map, a classifier's after the pool."""
    if detection is not None:
        return list(graph.convolutions_into(detection.inputs[1]))
    last = list(graph.convolutions_into(graph.outputs[0]))
    pooled = [graph.producer(operator.inputs[0]) for operator in last]
    return [op for op, source in zip(last, pooled, strict=True) if source is not None and source.kind in POOLS]


def _require_chain(graph: Graph, trunk: Sequence[Operator]) -> None:
    """Each convolution follows the one before it, padded SAME, with MobileNetV1's strides."""
    strides = (*STRIDES, *((1, 2) * ((len(trunk) - len(STRIDES)) // 2)))
    before: Operator | None = None
    for operator, stride in zip(trunk, strides, strict=True):
        name = graph.tensors[operator.inputs[1]].name
        if list(graph.convolutions_into(operator.inputs[0])) != ([] if before is None else [before]):
            raise CheckpointError(f"not MobileNetV1: {name} does not follow the convolution before it")
        if operator.padding != "SAME" or operator.strides != (stride, stride, 1, 1):
            raise CheckpointError(
                f"not MobileNetV1: {name} has padding {operator.padding} and strides and dilations "
                f"{operator.strides}, expected SAME and {(stride, stride, 1, 1)}"
            )
        before = operator


def _pixel_scaling(pixels: GraphTensor) -> tuple[RGB, RGB]:
    """Mean and std with which uint8 pixels become what the first convolution takes."""
    if pixels.kind == "FLOAT32":
        mean, std = FLOAT_INPUT, FLOAT_INPUT
    elif pixels.kind in ("UINT8", "INT8") and len(pixels.scales) == 1:
        mean = float(pixels.zeros[0]) + (128.0 if pixels.kind == "INT8" else 0.0)
        std = 1 / float(pixels.scales[0])
    else:
        raise CheckpointError(f"its input is {pixels.kind}, expected FLOAT32 or quantised pixels")
    return (mean, mean, mean), (std, std, std)


def _activation(graph: Graph, trunk: Sequence[Operator]) -> Activation:
    """The one activation of all layers. Converters leave ReLU6 out where an 8-bit output holds 0…6 and no more."""
    found: set[Literal["relu6", "relu"]] = set()
    for operator in trunk:
        held = graph.tensors[operator.outputs[0]].range()
        if operator.activation == "RELU6" or (held is not None and abs(held[0]) < 0.01 and abs(held[1] - 6) < 0.05):
            found.add("relu6")
        elif operator.activation == "RELU":
            found.add("relu")
        else:
            name = graph.tensors[operator.inputs[1]].name
            raise CheckpointError(f"not MobileNetV1: {name} has activation {operator.activation}")
    if len(found) > 1:
        raise CheckpointError("some of its layers have ReLU, others ReLU6; our networks have one activation")
    return found.pop()
