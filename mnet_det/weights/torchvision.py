"""torchvision's ImageNet classifiers of the networks that are backbones here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mnet_det.config import ModelConfig
from mnet_det.models import build_classifier
from mnet_det.weights.published import Published, Weights, class_names, require_tensors

MARKS = {
    "features.18.0.weight": "mobilenet_v2",
    "features.16.0.weight": "mobilenet_v3_large",
    "features.12.0.weight": "mobilenet_v3_small",
    "features.28.weight": "vgg16",
    "inception3a.branch1.conv.weight": "googlenet",
    "Mixed_5b.branch1x1.conv.weight": "inception_v3",
    "features.12.squeeze.weight": "squeezenet",
}
"""A tensor of each network that none of the others has."""
WIDE_LAYERS = {
    "mobilenet_v2": ("features.17.conv.2.weight", 320),
    "mobilenet_v3_large": ("features.13.block.0.0.weight", 672),
    "mobilenet_v3_small": ("features.9.block.0.0.weight", 288),
}
"""A layer whose channels tell the width, whatever the tail, and how many it has at alpha 1."""
LAST_LAYERS = {
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_large": "classifier.3",
    "mobilenet_v3_small": "classifier.3",
    "vgg16": "classifier.6",
    "googlenet": "fc",
    "inception_v3": "fc",
    "squeezenet": "classifier.1",
}
"""The layer with an output a class."""
ONLY_IN_TRAINING = ("aux1.", "aux2.", "AuxLogits.")
"""Classifiers on the way through GoogLeNet and Inception V3."""

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # 255 × (0.485, 0.456, 0.406)
IMAGENET_STD = (58.395, 57.12, 57.375)  # 255 × (0.229, 0.224, 0.225)
HALF_RANGE = (127.5, 127.5, 127.5)
FROM_TENSORFLOW = ("googlenet", "inception_v3")
"""Given ImageNet's mean m and std s, their `transform_input` makes x·s/0.5 + (m - 0.5)/0.5 of it: with
x = (p/255 - m)/s, exactly (p - 127.5)/127.5."""


def torchvision_name(tensors: Mapping[str, Tensor]) -> str | None:
    """Which of torchvision's networks the tensors belong to, by our name; None if to none that we know."""
    return next((name for mark, name in MARKS.items() if mark in tensors), None)


def read_torchvision(tensors: Mapping[str, Tensor], *, labels: Sequence[str] | None = None) -> Published:
    """A classifier's state dict as weights of our backbone, and the last layer under torchvision's own name.

    Args:
        tensors: for which `torchvision_name` knows a network, float32.
        labels: as in `read_published`.

    Raises:
        CheckpointError: not all of that network's tensors, or others too.
    """
    name = torchvision_name(tensors)
    assert name is not None
    theirs = {key: tensor for key, tensor in tensors.items() if not key.startswith(ONLY_IN_TRAINING)}
    last_layer = LAST_LAYERS[name]
    outputs = len(theirs.get(f"{last_layer}.weight", torch.empty(1000)))
    model, expected = _likely(name, theirs, outputs=outputs)
    # Files of old versions of torch lack batch norm's counters.
    theirs = {key: torch.tensor(0) for key in expected if key.endswith(".num_batches_tracked")} | theirs
    require_tensors(theirs, expected, network=f"torchvision's {name}", alpha=model.alpha)
    names = class_names(labels, outputs)
    head = (f"{last_layer}.",) if name == "vgg16" else ("classifier.", "fc.")
    weights = {key if key.startswith(head) else _our_name(key): tensor for key, tensor in theirs.items()}
    return Published(
        kind="classifier",
        model=model,
        class_names=names,
        category_ids=tuple(range(len(names))),
        weights=weights | (dilated_layers(theirs) if name == "vgg16" else {}),
        folded=False,
    )


def _our_name(name: str) -> str:
    """What `LayeredBackbone` calls it."""
    return f"backbone.layers.{name.removeprefix('features.')}"


def _likely(name: str, theirs: Mapping[str, Tensor], *, outputs: int) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """The network of the width and tail that fit, and its tensors; where none fit, the likely ones."""
    side = 299 if name == "inception_v3" else 224
    plain = ModelConfig(
        backbone=name,
        base_hw=(side, side),
        pixel_mean=HALF_RANGE if name in FROM_TENSORFLOW else IMAGENET_MEAN,
        pixel_std=HALF_RANGE if name in FROM_TENSORFLOW else IMAGENET_STD,
    )
    models = [plain.model_copy(update={"alpha": alpha}) for alpha in _likely_alphas(name, theirs)]
    if name.startswith("mobilenet_v3"):
        models = [model.model_copy(update={"reduced_tail": tail}) for model in models for tail in (False, True)]
    for model in models:
        expected = _tensors_of(model, outputs=outputs)
        if all(theirs[key].shape == tensor.shape for key, tensor in expected.items() if key in theirs):
            return model, expected
    return models[0], _tensors_of(models[0], outputs=outputs)


def _likely_alphas(name: str, theirs: Mapping[str, Tensor]) -> list[float]:
    """Hundredths near the width of a layer, the nearest first: channels are rounded to multiples of 8."""
    layer, channels = WIDE_LAYERS.get(name, ("", 0))
    if layer not in theirs:
        return [1.0]
    measured = len(theirs[layer]) / channels
    hundredth = round(100 * measured)
    near = (number / 100 for number in range(max(1, hundredth - 2), hundredth + 3))
    return sorted(near, key=lambda alpha: abs(alpha - measured))


def _tensors_of(model: ModelConfig, *, outputs: int) -> dict[str, Tensor]:
    """What torchvision's classifier holds, without memory for it."""
    with torch.device("meta"):
        state = build_classifier(model, num_classes=outputs).state_dict()
    return {name.removeprefix("network."): tensor for name, tensor in state.items()}


def dilated_layers(theirs: Mapping[str, Tensor]) -> Weights:
    """VGG16's fully connected layers as the convolutions of SSD (Liu et al. 2016, section 3, after Chen et al. 2015).

    Of 4096 units every fourth is kept, and of the first layer's 7×7 inputs every third row and column: 3×3, which
    dilation spreads over the map again.
    """
    first = theirs["classifier.0.weight"].unflatten(1, (512, 7, 7))
    second = theirs["classifier.3.weight"][:, :, None, None]
    return {
        "backbone.layers.fc6.0.weight": first[::4, :, ::3, ::3].contiguous(),
        "backbone.layers.fc6.0.bias": theirs["classifier.0.bias"][::4].contiguous(),
        "backbone.layers.fc7.0.weight": second[::4, ::4].contiguous(),
        "backbone.layers.fc7.0.bias": theirs["classifier.3.bias"][::4].contiguous(),
    }
