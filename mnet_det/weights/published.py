"""What every reader gives: a published network under our names, checked tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mnet_det.config import ModelConfig
from mnet_det.errors import CheckpointError
from mnet_det.models import build_classifier, build_detector
from mnet_det.models.mobilenet_v1 import BLOCKS, scale_channels

Kind = Literal["detector", "classifier", "backbone"]
Weights = dict[str, Tensor]

NO_NAMES = (
    "has {outputs} outputs and no names for them; give them with `mnet-det weights import … --labels FILE`, one a "
    "line, the background first"
)


@dataclass(frozen=True)
class Published:
    """A network read from a file.

    Attributes:
        kind: a whole detector, an ImageNet classifier, or a backbone without a head.
        model: what the weights need: width, padding, activation, pixel mean and std, batch norm's epsilon.
        class_names: K names in the order of the outputs; none for a backbone.
        category_ids: the published data's own ids, in the same order.
        weights: float32, by our names.
        folded: batch norm is folded into the convolutions: every layer has mean 0 and variance 1.
    """

    kind: Kind
    model: ModelConfig
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    weights: Weights
    folded: bool


def folded_layer(prefix: str, weight: Tensor, bias: Tensor, *, bn_eps: float) -> Weights:
    """A convolution with a bias as our convolution and batch norm: the same outputs in eval mode.

    Args:
        prefix: name of the layer.
        weight: [C', C / groups, k, k].
        bias: [C'].
        bn_eps: batch norm's epsilon; with variance 1, a weight of sqrt(1 + epsilon) cancels it.
    """
    return {
        f"{prefix}.conv.weight": weight,
        f"{prefix}.bn.weight": torch.full_like(bias, math.sqrt(1 + bn_eps)),
        f"{prefix}.bn.bias": bias,
        f"{prefix}.bn.running_mean": torch.zeros_like(bias),
        f"{prefix}.bn.running_var": torch.ones_like(bias),
        f"{prefix}.bn.num_batches_tracked": torch.tensor(0),
    }


def backbone_layers() -> list[str]:
    """Names of MobileNetV1's 27 layers, from the first to the last."""
    blocks = [f"backbone.blocks.{number}.{part}" for number in BLOCKS for part in ("depthwise", "pointwise")]
    return ["backbone.stem", *blocks]


def likely_alpha(last_channels: int) -> float:
    """The width multiplier of a network whose last block has so many channels: the shortest number that gives them."""
    base = BLOCKS[13][0]
    scales = (10**digits for digits in range(8))
    upward = (math.ceil(last_channels * scale / base) / scale for scale in scales)
    return next(alpha for alpha in upward if scale_channels(base, alpha) == last_channels)


def require_fit(published: Published) -> Published:
    """The same, once every tensor is what our network of that config has.

    Raises:
        CheckpointError: the first tensor that differs, with both shapes and the likely alpha.
    """
    require_tensors(published.weights, _expected(published), network="MobileNetV1", alpha=published.model.alpha)
    return published


def require_tensors(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, network: str, alpha: float
) -> None:
    """Refuse weights that are not those of a network: all of them, of the same shapes, finite, and no others.

    Raises:
        CheckpointError: the first tensor that differs, with both shapes and the likely alpha.
    """
    for name, tensor in expected.items():
        came = weights.get(name)
        if came is None or came.shape != tensor.shape:
            has = "nothing for it" if came is None else f"{list(came.shape)}"
            raise CheckpointError(
                f"not {network} as we know it: {name} should be {list(tensor.shape)} at alpha {alpha:.10g} (the likely "
                f"one), the file has {has}"
            )
    strangers = sorted(set(weights) - set(expected) - {"stored_anchors"})
    if strangers:
        raise CheckpointError(f"has tensors that our network does not know: {', '.join(strangers[:5])}")
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{broken[0]} holds numbers that are not finite; is the file damaged?")


def foreground(labels: Sequence[str] | None, outputs: int, known: Sequence[str] | None) -> list[tuple[int, str]]:
    """Output number and name of each class: the background and outputs labelled `???` are none.

    Args:
        labels: of all outputs, or of all but the background.
        outputs: how many there are, background included.
        known: labels to fall back on where their number fits.

    Raises:
        CheckpointError: no labels, or another number of them.
    """
    if labels is None:
        labels = known if known is not None and len(known) == outputs else None
    if labels is None:
        raise CheckpointError(NO_NAMES.format(outputs=outputs))
    if len(labels) == outputs - 1:
        labels = ["background", *labels]
    if len(labels) != outputs:
        raise CheckpointError(f"has {outputs} outputs, the list has {len(labels)} labels")
    named = [(number, name.strip()) for number, name in enumerate(labels)][1:]
    return [(number, name) for number, name in named if name not in ("", "???")]


def class_names(labels: Sequence[str] | None, outputs: int) -> tuple[str, ...]:
    """Names of a classifier's outputs where all are classes; ImageNet's unless given. A background before them goes.

    Raises:
        CheckpointError: another number of labels.
    """
    names = tuple(labels) if labels is not None else imagenet_names()
    names = names[1:] if len(names) == outputs + 1 else names
    if labels is None and len(names) != outputs:
        raise CheckpointError(NO_NAMES.format(outputs=outputs))
    if len(names) != outputs:
        raise CheckpointError(f"has {outputs} classes, the list has {len(names)} labels")
    return names


def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012 in the order that all published classifiers share."""
    from torchvision.models import MobileNet_V2_Weights

    return tuple(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])


def _expected(published: Published) -> Mapping[str, Tensor]:
    num_classes = len(published.class_names)
    if published.kind == "detector":
        return build_detector(published.model, num_classes=num_classes).state_dict()
    head = published.weights.get("head.conv.weight")
    head_channels = None if head is None else len(head)
    network = build_classifier(published.model, num_classes=max(1, num_classes), head_channels=head_channels)
    state = network.state_dict()
    if published.kind == "backbone":
        return {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    return state
