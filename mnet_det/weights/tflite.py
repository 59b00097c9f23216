"""TensorFlow Lite files, float32 or 8-bit: the COCO SSD, MobileNetV1 classifiers and embedding extractors.

A file is read by the shape of its graph, not by its tensors' names, which every converter writes in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mnet_det.config import ModelConfig
from mnet_det.errors import CheckpointError
from mnet_det.models.anchors import AnchorGenerator
from mnet_det.models.layers import RGB, Activation
from mnet_det.models.mobilenet_v1 import BLOCKS
from mnet_det.weights.coco_labels import COCO_LABELS
from mnet_det.weights.published import (
    Kind,
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

BN_EPS = 1e-3
"""TensorFlow's for MobileNet. Folded files do not tell, and any value gives the same outputs."""
FLOAT_INPUT = 127.5
"""Mean and std of float inputs: files do not tell, all of TensorFlow's MobileNets are scaled to -1…1."""
BOX_SCALES = {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}
"""Our box coder's, and those of every published SSD."""
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
        return require_fit(_read(graph, labels, path=path), path=path)
    except (ValueError, IndexError) as error:  # tensors without values, of a kind that is not read, of too few axes
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _read(graph: Graph, labels: Sequence[str] | None, *, path: Path) -> Published:
    strangers = sorted({operator.kind for operator in graph.operators} - KNOWN_KINDS)
    if strangers or len(graph.inputs) != 1:
        what = f"operators {', '.join(strangers)}" if strangers else f"{len(graph.inputs)} inputs"
        raise CheckpointError(f"{path}: not a MobileNetV1 that we know: it has {what}")
    detection = next((operator for operator in graph.operators if operator.kind == DETECTION), None)
    box_heads = [] if detection is None else list(graph.convolutions_into(detection.inputs[0]))
    class_heads = _class_heads(graph, detection)
    trunk = [op for op in graph.operators if op.kind in CONVOLUTIONS and op not in class_heads + box_heads]
    layers = backbone_layers()
    if len(trunk) < len(layers) or len(trunk) % 2 == 0:
        raise CheckpointError(
            f"{path}: not MobileNetV1: {len(trunk)} convolutions before its outputs, expected {len(layers)} (or two "
            "more for each extra map of an SSD)"
        )
    layers += [f"extras.{n}.{part}" for n in range((len(trunk) - len(layers)) // 2) for part in ("reduce", "shrink")]
    _require_chain(graph, trunk, path=path)
    weights: Weights = {}
    for name, operator in zip(layers, trunk, strict=True):
        weight, bias = _filter_and_bias(graph, operator)
        weights |= folded_layer(name, weight, bias, bn_eps=BN_EPS)
    height, width = graph.tensors[graph.inputs[0]].shape[1:3]
    mean, std = _pixel_scaling(graph.tensors[graph.inputs[0]], path=path)
    model = ModelConfig(
        alpha=likely_alpha(len(weights["backbone.blocks.13.pointwise.conv.weight"])),
        base_hw=(height, width),
        padding="same",
        activation=_activation(graph, trunk, path=path),
        pixel_mean=mean,
        pixel_std=std,
        bn_eps=BN_EPS,
    )
    kind: Kind = "backbone"
    classes: list[tuple[int, str]] = []
    labels = labels if labels is not None else graph.labels
    if detection is not None:
        kind = "detector"
        model = model.model_copy(
            update={
                "taps": _taps(graph, trunk, class_heads, path=path),
                "class_loss": "focal" if any(op.kind == "LOGISTIC" for op in graph.operators) else "softmax",
            }
        )
        _require_our_boxes(detection, path=path)
        outputs = int(detection.custom.get("num_classes", 0)) + 1
        classes = foreground(labels, outputs, COCO_LABELS, path=path)
        columns = [0, *(number for number, _ in classes)]
        weights |= _predictors(graph, class_heads, "class_predictors", outputs, columns, path=path)
        weights |= _predictors(graph, box_heads, "box_predictors", 4, [1, 0, 3, 2], path=path)  # yxhw to ours, xywh
        weights["stored_anchors"] = _stored_anchors(graph, detection, class_heads, model, path=path)
    elif class_heads:
        kind = "classifier"
        weight, bias = _filter_and_bias(graph, class_heads[0])
        known = ("background", *imagenet_names())
        classes = foreground(labels, len(bias), known, path=path)
        rows = [number for number, _ in classes]
        weights |= {"classifier.weight": weight.flatten(1)[rows], "classifier.bias": bias[rows]}
    # A detector's ids are the published data's own, ImageNet's classes are counted from 0.
    ids = [number if kind == "detector" else index for index, (number, _) in enumerate(classes)]
    return Published(kind, model, tuple(name for _, name in classes), tuple(ids), weights, folded=True)


def _class_heads(graph: Graph, detection: Operator | None) -> list[Operator]:
    """The convolutions that give class scores: a detector's for each map, a classifier's after the pool."""
    if detection is not None:
        return list(graph.convolutions_into(detection.inputs[1]))
    last = list(graph.convolutions_into(graph.outputs[0]))
    pooled = [graph.producer(operator.inputs[0]) for operator in last]
    return [op for op, source in zip(last, pooled, strict=True) if source is not None and source.kind in POOLS]


def _require_chain(graph: Graph, trunk: Sequence[Operator], *, path: Path) -> None:
    """Each convolution follows the one before it, padded SAME, with MobileNetV1's strides."""
    strides = (*STRIDES, *((1, 2) * ((len(trunk) - len(STRIDES)) // 2)))
    before: Operator | None = None
    for operator, stride in zip(trunk, strides, strict=True):
        name = graph.tensors[operator.inputs[1]].name
        if list(graph.convolutions_into(operator.inputs[0])) != ([] if before is None else [before]):
            raise CheckpointError(f"{path}: not MobileNetV1: {name} does not follow the convolution before it")
        if operator.padding != "SAME" or operator.strides != (stride, stride, 1, 1):
            raise CheckpointError(
                f"{path}: not MobileNetV1: {name} has padding {operator.padding} and strides and dilations "
                f"{operator.strides}, expected SAME and {(stride, stride, 1, 1)}"
            )
        before = operator


def _filter_and_bias(graph: Graph, operator: Operator) -> tuple[Tensor, Tensor]:
    """float32 [C', C / groups, k, k] and [C']."""
    if len(operator.inputs) != 3 or min(operator.inputs) < 0:
        raise ValueError(f"{operator.kind} has inputs {operator.inputs}, expected a map, a filter and a bias")
    values = graph.tensors[operator.inputs[1]].values()
    bias = graph.tensors[operator.inputs[2]].values()
    axes = (3, 0, 1, 2) if operator.kind == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(axes))), torch.from_numpy(bias)


def _pixel_scaling(pixels: GraphTensor, *, path: Path) -> tuple[RGB, RGB]:
    """Mean and std with which uint8 pixels become what the first convolution takes."""
    if pixels.kind == "FLOAT32":
        mean, std = FLOAT_INPUT, FLOAT_INPUT
    elif pixels.kind in ("UINT8", "INT8") and len(pixels.scales) == 1:
        mean = float(pixels.zeros[0]) + (128.0 if pixels.kind == "INT8" else 0.0)
        std = 1 / float(pixels.scales[0])
    else:
        raise CheckpointError(f"{path}: its input is {pixels.kind}, expected FLOAT32 or quantised pixels")
    return (mean, mean, mean), (std, std, std)


def _activation(graph: Graph, trunk: Sequence[Operator], *, path: Path) -> Activation:
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
            raise CheckpointError(f"{path}: not MobileNetV1: {name} has activation {operator.activation}")
    if len(found) > 1:
        raise CheckpointError(f"{path}: some of its layers have ReLU, others ReLU6; our networks have one activation")
    return found.pop()


def _taps(graph: Graph, trunk: Sequence[Operator], heads: Sequence[Operator], *, path: Path) -> tuple[int, ...]:
    """The blocks on which the first predictors stand; the others must stand on the extra maps, one each."""
    sources = [trunk.index(source) for head in heads for source in graph.convolutions_into(head.inputs[0])]
    on_backbone = [position for position in sources if position < len(STRIDES)]
    extras = list(range(len(STRIDES) + 1, len(trunk), 2))
    if sources != [*sorted(set(on_backbone)), *extras] or any(position % 2 for position in on_backbone):
        raise CheckpointError(f"{path}: its predictors do not stand on blocks of MobileNetV1 and on every extra map")
    return tuple(position // 2 for position in on_backbone)


def _require_our_boxes(detection: Operator, *, path: Path) -> None:
    for key, expected in BOX_SCALES.items():
        if detection.custom.get(key) != expected:
            raise CheckpointError(f"{path}: its boxes have {key} {detection.custom.get(key)}, ours {expected}")


def _predictors(
    graph: Graph, heads: Sequence[Operator], name: str, outputs: int, columns: Sequence[int], *, path: Path
) -> Weights:
    """Predictors of one kind, of each anchor's `outputs` rows only `columns` and in that order."""
    weights: Weights = {}
    for number, operator in enumerate(heads):
        weight, bias = _filter_and_bias(graph, operator)
        if len(bias) % outputs:
            raise CheckpointError(
                f"{path}: {graph.tensors[operator.inputs[1]].name} has {len(bias)} outputs, not {outputs} an anchor"
            )
        weights[f"{name}.{number}.weight"] = weight.unflatten(0, (-1, outputs))[:, columns].flatten(0, 1)
        weights[f"{name}.{number}.bias"] = bias.unflatten(0, (-1, outputs))[:, columns].flatten()
    return weights


def _stored_anchors(
    graph: Graph, detection: Operator, heads: Sequence[Operator], model: ModelConfig, *, path: Path
) -> Tensor:
    """float32 [A, 4] xyxy, parts of the input. They must be ours within their rounding, which training takes."""
    tensor = graph.tensors[detection.inputs[2]]
    stored_yxhw = tensor.values()
    shapes = [graph.tensors[operator.outputs[0]].shape for operator in heads]
    generator = AnchorGenerator(num_maps=len(heads), scales=model.anchor_scales)
    ours = generator([(shape[1], shape[2]) for shape in shapes], model.base_hw)
    height, width = model.base_hw
    ours_yxyx = ours[:, [1, 0, 3, 2]] / np.array([height, width, height, width])
    ours_yxhw = np.concatenate([(ours_yxyx[:, :2] + ours_yxyx[:, 2:]) / 2, ours_yxyx[:, 2:] - ours_yxyx[:, :2]], axis=1)
    rounding = float(tensor.scales[0]) / 2 if len(tensor.scales) else 0.0
    furthest = np.abs(ours_yxhw - stored_yxhw).max() if ours_yxhw.shape == stored_yxhw.shape else np.inf
    if furthest > rounding + 1e-4:
        raise CheckpointError(
            f"{path}: its {len(stored_yxhw)} anchors are not ours ({len(ours)} with scales "
            f"{list(model.anchor_scales)}): they differ by {furthest:.3g} of the input, and rounding explains "
            f"{rounding:.2g}"
        )
    centres, half_sizes = stored_yxhw[:, [1, 0]], stored_yxhw[:, [3, 2]] / 2
    return torch.from_numpy(np.concatenate([centres - half_sizes, centres + half_sizes], axis=1).astype(np.float32))
