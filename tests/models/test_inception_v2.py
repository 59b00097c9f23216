"""Inception V2 against what TensorFlow-Slim's own tests say of it, and what it declares against what it gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mnet_det.config import load_config
from mnet_det.models import build_classifier
from mnet_det.models.inception_v2 import BLOCKS, DEFAULT_TAPS, STRIDES, InceptionBlock, InceptionV2
from mnet_det.models.layers import Conv2dSame, ConvStyle, MaxPool2dSame

SAME = ConvStyle(padding="same")


def test_maps_at_224_are_those_of_tensorflow_slims_tests() -> None:
    with torch.device("meta"):
        maps = InceptionV2(taps=tuple(STRIDES), style=SAME).eval()(torch.zeros(1, 3, 224, 224))
    assert {name: tuple(features.shape[1:3]) for name, features in zip(STRIDES, maps, strict=True)} == {
        "Conv2d_1a_7x7": (64, 112),
        "MaxPool_2a_3x3": (64, 56),
        "Conv2d_2b_1x1": (64, 56),
        "Conv2d_2c_3x3": (192, 56),
        "MaxPool_3a_3x3": (192, 28),
        "Mixed_3b": (256, 28),
        "Mixed_3c": (320, 28),
        "Mixed_4a": (576, 14),
        "Mixed_4b": (576, 14),
        "Mixed_4c": (576, 14),
        "Mixed_4d": (576, 14),
        "Mixed_4e": (576, 14),
        "Mixed_5a": (1024, 7),
        "Mixed_5b": (1024, 7),
        "Mixed_5c": (1024, 7),
    }


def test_parameters_are_those_of_tensorflow_slims_test() -> None:
    """Slim counts 10,173,112 variables: weights, three of batch norm for each channel, 64 biases in the stem."""
    with torch.device("meta"):
        backbone = InceptionV2()
    weights = sum(module.weight.numel() for module in backbone.modules() if isinstance(module, nn.Conv2d))
    channels = sum(module.num_features for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))
    assert weights + 3 * (channels - 64) + 64 == 10_173_112
    assert sum(parameter.numel() for parameter in backbone.parameters()) == weights + 2 * channels


def test_the_imagenet_classifier_has_11_2_million_parameters() -> None:
    """10,143,384 weights, a scale and a shift for each of 9,952 channels, 1024 inputs and a bias for 1001 classes."""
    config = load_config(None, ["model.backbone=inception_v2"]).model
    with torch.device("meta"):
        classifier = build_classifier(config, num_classes=1001)
        assert classifier(torch.zeros((2, 3, 64, 64), dtype=torch.uint8)).shape == (2, 1001)
    params = sum(parameter.numel() for parameter in classifier.parameters())
    assert params == 10_143_384 + 2 * 9_952 + 1025 * 1001 == 11_189_313


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.6, 1.4])
def test_declared_channels_and_strides_are_those_of_the_maps(alpha: float, padding: str) -> None:
    backbone = InceptionV2(alpha, taps=tuple(STRIDES), style=ConvStyle(padding=padding)).eval()  # type: ignore[arg-type]
    height, width = 75, 98
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, height, width))
    assert backbone.alpha == alpha
    assert backbone.strides == tuple(STRIDES.values())
    assert backbone.channels == tuple(features.shape[1] for features in maps)
    for features, stride in zip(maps, backbone.strides, strict=True):
        assert features.shape[2:] == (math.ceil(height / stride), math.ceil(width / stride))


@pytest.mark.parametrize(
    ("need", "channels", "strides"),
    [("ssd", (576, 1024), (16, 32)), ("fpn", (576, 1024), (16, 32)), ("c4", (576,), (16,))],
)
def test_each_need_taps_the_maps_of_tensorflows_detectors(
    need: str, channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        backbone = InceptionV2(taps=DEFAULT_TAPS[need], second_stage=need == "c4")  # type: ignore[index]
    assert (backbone.channels, backbone.strides) == (channels, strides)


def test_alpha_scales_every_convolution_but_not_below_16() -> None:
    # 4a: 160 × 0.3 = 48, 96 × 0.3 = 28.8, and its input, 3c: 19.2, 28.8, 28.8 and 19.2, rounded down.
    with torch.device("meta"):
        backbone = InceptionV2(0.3, taps=("Mixed_3b", "Mixed_3c", "Mixed_4a"))
    assert backbone.channels == (19 + 19 + 28 + 16, 19 + 28 + 28 + 19, 48 + 28 + 94)  # 32 × 0.3 = 9.6 → 16


@pytest.mark.parametrize(("alpha", "filters"), [(1.0, 8), (0.25, 5)], ids=["8", "16 channels, 5 filters"])
def test_stem_has_eight_filters_a_colour_but_no_more_than_it_gives_channels(alpha: float, filters: int) -> None:
    stem = InceptionV2(alpha, taps=("Conv2d_1a_7x7",)).layers["Conv2d_1a_7x7"]
    depthwise, pointwise = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    assert depthwise.weight.shape == (3 * filters, 1, 7, 7)
    assert (depthwise.groups, depthwise.stride) == (3, (2, 2))
    assert pointwise.weight.shape == (64 * alpha, 3 * filters, 1, 1)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in stem.modules()) == 1


def test_layers_after_the_last_tap_are_not_built() -> None:
    backbone = InceptionV2(0.25, taps=("Mixed_3b",))
    assert list(backbone.layers) == [*STRIDES][:6]
    with pytest.raises(NotImplementedError, match="without its second stage"):
        backbone.second_stage(torch.zeros(1, backbone.channels[0], 14, 14))


def test_pools_average_everywhere_but_in_4a_5a_and_5c() -> None:
    layers = InceptionV2(0.25).layers
    kinds = {name: type(layers[name].branches[-1][0]) for name in BLOCKS}  # type: ignore[index, union-attr]
    assert {name for name, kind in kinds.items() if kind is nn.MaxPool2d} == {"Mixed_4a", "Mixed_5a", "Mixed_5c"}
    assert {kind for kind in kinds.values() if kind is not nn.MaxPool2d} == {nn.AvgPool2d}


def test_average_is_one_over_what_lies_inside_the_map() -> None:
    """As in TensorFlow: an even map stays even, where zeros around it would darken its edge."""
    block = InceptionBlock(2, BLOCKS["Mixed_3b"], alpha=0.25, style=ConvStyle())
    pool = block.branches[-1][0]  # type: ignore[index]
    assert torch.equal(pool(torch.ones(1, 2, 3, 4)), torch.ones(1, 2, 3, 4))


def test_only_the_last_convolution_of_a_branch_halves_the_map() -> None:
    block = InceptionBlock(8, BLOCKS["Mixed_4a"], alpha=0.25, style=ConvStyle())
    strides = [module.stride[0] for module in block.modules() if isinstance(module, nn.Conv2d)]
    assert strides == [1, 2, 1, 1, 2]


def test_second_stage_is_the_rest_of_the_network_and_the_average() -> None:
    torch.manual_seed(0)
    whole = InceptionV2(0.25, taps=("Mixed_4e", "Mixed_5c")).eval()
    backbone = InceptionV2(0.25, taps=("Mixed_4e",), second_stage=True).eval()
    backbone.load_state_dict(whole.state_dict())
    with torch.inference_mode():
        middle, last = whole(torch.randn(2, 3, 224, 224))
        assert middle.shape[2:] == (backbone.roi_side, backbone.roi_side) == (14, 14)
        vectors = backbone.second_stage(middle)
    assert vectors.shape == (2, backbone.second_stage_channels) == (2, 256)  # 1024 / 4
    assert torch.allclose(vectors, last.mean(dim=(2, 3)), atol=1e-6)


def test_every_parameter_gets_a_gradient() -> None:
    backbone = InceptionV2(0.25, taps=("Mixed_4e",), second_stage=True)
    (features,) = backbone(torch.randn(2, 3, 64, 64))
    backbone.second_stage(features).sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_style_reaches_every_layer() -> None:
    style = ConvStyle(padding="same", activation="relu", bn_eps=0.5, bn_momentum=0.25)
    modules = list(InceptionV2(0.25, style=style).modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 70  # 4 in the stem, 7 in each of eight blocks, 5 in 4a and in 5a
    assert all(isinstance(module, Conv2dSame) for module in convolutions)
    assert sum(isinstance(module, MaxPool2dSame) for module in modules) == 5
    assert not any(isinstance(module, nn.MaxPool2d | nn.ReLU6) for module in modules)
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.5, 0.25)}
    assert len(norms) == len(convolutions) - 1  # none after the stem's depthwise


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0}, "alpha must be above 0, got 0"),
        ({"taps": ()}, "taps must be of Conv2d_1a_7x7, .* in this order, got"),
        ({"taps": ("Mixed_6a",)}, "got .'Mixed_6a'"),
        ({"taps": ("Mixed_5c", "Mixed_4e")}, "in this order, got .'Mixed_5c', 'Mixed_4e'"),
        ({"second_stage": True}, "Mixed_5c is the last: tap an earlier layer"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(settings: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        InceptionV2(**settings)  # type: ignore[arg-type]
