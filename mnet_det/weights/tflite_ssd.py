"""What makes a TensorFlow Lite network an SSD: its predictors, its classes and its stored anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mnet_det.config import ModelConfig
from mnet_det.errors import CheckpointError
from mnet_det.models.anchors import AnchorGenerator
from mnet_det.weights.coco_labels import COCO_LABELS
from mnet_det.weights.published import Published, Weights, backbone_layers, foreground
from mnet_det.weights.tflite_graph import Graph, Operator

BACKBONE_LAYERS = len(backbone_layers())
BOX_SCALES = {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}
"""Our box coder's, and those of every published SSD."""
BOX_COLUMNS = (1, 0, 3, 2)
"""Of TensorFlow's deltas (y, x, h, w), those that make ours (x, y, w, h)."""


def add_heads(
    trunk: Published,
    graph: Graph,
    detection: Operator,
    layers: Sequence[Operator],
    class_heads: Sequence[Operator],
    box_heads: Sequence[Operator],
    labels: Sequence[str] | None,
) -> Published:
    """A whole detector.

    Args:
        trunk: backbone and extra maps.
        graph: the file's.
        detection: the operator that decodes and suppresses; its settings and its anchors are the detector's.
        layers: the trunk's convolutions.
        class_heads: the predictors of classes, one for each map.
        box_heads: the predictors of boxes, likewise.
        labels: of the outputs; COCO's unless given.

    Raises:
        CheckpointError: not our SSD, or labels that do not fit.
        ValueError: tensors that hold no values.
    """
    for key, expected in BOX_SCALES.items():
        if detection.custom.get(key) != expected:
            raise CheckpointError(f"its boxes have {key} {detection.custom.get(key)}, ours {expected}")
    outputs = int(detection.custom.get("num_classes", 0)) + 1
    classes = foreground(labels, outputs, COCO_LABELS)
    sigmoid = any(operator.kind == "LOGISTIC" for operator in graph.operators)
    model = trunk.model.model_copy(
        update={"taps": _taps(graph, layers, class_heads), "class_loss": "focal" if sigmoid else "softmax"}
    )
    columns = [0, *(number for number, _ in classes)]  # the background's column stays, our head has one too
    return replace(
        trunk,
        kind="detector",
        model=model,
        class_names=tuple(name for _, name in classes),
        category_ids=tuple(number for number, _ in classes),
        weights={
            **trunk.weights,
            **_predictors(graph, class_heads, "class_predictors", outputs, columns),
            **_predictors(graph, box_heads, "box_predictors", 4, BOX_COLUMNS),
            "stored_anchors": _stored_anchors(graph, detection, class_heads, model),
        },
    )


def _taps(graph: Graph, trunk: Sequence[Operator], heads: Sequence[Operator]) -> tuple[int, ...]:
    """The blocks on which the first predictors stand; the others must stand on the extra maps, one each."""
    sources = [trunk.index(source) for head in heads for source in graph.convolutions_into(head.inputs[0])]
    on_backbone = [position for position in sources if position < BACKBONE_LAYERS]
    extras = list(range(BACKBONE_LAYERS + 1, len(trunk), 2))
    if sources != [*sorted(set(on_backbone)), *extras] or any(position % 2 for position in on_backbone):
        raise CheckpointError("its predictors do not stand on blocks of MobileNetV1 and on every extra map")
    return tuple(position // 2 for position in on_backbone)


def _predictors(graph: Graph, heads: Sequence[Operator], name: str, outputs: int, columns: Sequence[int]) -> Weights:
    """Predictors of one kind, of each anchor's `outputs` rows only `columns` and in that order."""
    weights: Weights = {}
    for number, operator in enumerate(heads):
        weight, bias = graph.filter_and_bias(operator)
        if len(bias) % outputs:
            raise CheckpointError(
                f"{graph.tensors[operator.inputs[1]].name} has {len(bias)} outputs, not {outputs} an anchor"
            )
        weights[f"{name}.{number}.weight"] = weight.unflatten(0, (-1, outputs))[:, columns].flatten(0, 1)
        weights[f"{name}.{number}.bias"] = bias.unflatten(0, (-1, outputs))[:, columns].flatten()
    return weights


def _stored_anchors(graph: Graph, detection: Operator, heads: Sequence[Operator], model: ModelConfig) -> Tensor:
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
            f"its {len(stored_yxhw)} anchors are not ours ({len(ours)} with scales "
            f"{list(model.anchor_scales)}): they differ by {furthest:.3g} of the input, and rounding explains "
            f"{rounding:.2g}"
        )
    centres, half_sizes = stored_yxhw[:, [1, 0]], stored_yxhw[:, [3, 2]] / 2
    return torch.from_numpy(np.concatenate([centres - half_sizes, centres + half_sizes], axis=1).astype(np.float32))
