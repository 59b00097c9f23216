"""MobileNetV1 against timm's, against the paper's tables, and what it declares against what it gives."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from mnet_det.models.layers import Conv2dSame, ConvStyle
from mnet_det.models.mobilenet_v1 import MobileNetV1, MobileNetV1Classifier, scale_channels


def count_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_outputs_equal_timms_mobilenetv1_with_the_same_weights() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("mobilenetv1_100").eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # else the fresh statistics hide what batch norm does
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = MobileNetV1Classifier(MobileNetV1(1.0, taps=(13,), style=ConvStyle(bn_eps=1e-5))).eval()
    names = list(ours.state_dict())
    # Both list stem, blocks and classifier in the order of the data, so the tensors pair up one to one.
    weights = dict(zip(names, theirs.state_dict().values(), strict=True))
    ours.load_state_dict(weights | ours.normalize.state_dict(prefix="normalize."))
    images = torch.randint(0, 256, (2, 3, 97, 128), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.allclose(ours(images), theirs((images.float() - 127.5) / 127.5), atol=1e-4)


@pytest.mark.parametrize(
    ("alpha", "millions"), [(1.0, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)], ids=["1", "0.75", "0.5", "0.25"]
)
def test_parameters_are_those_of_the_papers_table_6(alpha: float, millions: float) -> None:
    classifier = MobileNetV1Classifier(MobileNetV1(alpha, taps=(13,)))
    assert round(count_params(classifier) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("settings", "millions"),
    [({"separable": False}, 29.3), ({"shallow": True}, 2.9)],
    ids=["full convolutions, table 4", "shallow, table 5"],
)
def test_parameters_are_those_of_the_papers_ablations(settings: dict[str, bool], millions: float) -> None:
    with torch.device("meta"):
        classifier = MobileNetV1Classifier(MobileNetV1(1.0, taps=(13,), **settings))
    assert round(count_params(classifier) / 1e6, 1) == millions


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.6, 1.0])
def test_declared_channels_and_strides_are_those_of_the_maps(alpha: float, padding: str) -> None:
    backbone = MobileNetV1(alpha, taps=(3, 5, 11, 13), style=ConvStyle(padding=padding)).eval()  # type: ignore[arg-type]
    height, width = 75, 98
    with torch.inference_mode():
        maps = backbone(torch.zeros(1, 3, height, width))
    assert backbone.strides == (4, 8, 16, 32)
    assert backbone.channels == tuple(features.shape[1] for features in maps)
    for features, stride in zip(maps, backbone.strides, strict=True):
        assert features.shape[2:] == (math.ceil(height / stride), math.ceil(width / stride))


def test_a_tap_that_the_shallow_network_lacks_is_answered_by_the_block_before_it() -> None:
    backbone = MobileNetV1(0.25, taps=(11, 13), shallow=True)
    assert list(backbone.blocks) == ["1", "2", "3", "4", "5", "6", "12", "13"]
    assert (backbone.channels, backbone.strides) == ((128, 256), (16, 32))  # 512 / 4 and 1024 / 4
    assert [features.shape[1] for features in backbone(torch.zeros(2, 3, 64, 64))] == [128, 256]


def test_two_taps_on_one_block_give_two_maps() -> None:
    """The shallow network answers for taps 6 and 11 with block 6: it declared two maps and gave one."""
    backbone = MobileNetV1(0.25, taps=(6, 11), shallow=True).eval()
    first, second = backbone(torch.zeros(1, 3, 64, 64))
    assert len(backbone.channels) == 2
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("channels", "alpha", "scaled"),
    [
        (1024, 0.35, 358),  # 358.4 is rounded down
        (64, 0.99, 63),  # 63.36
        (32, 0.25, 8),
        (32, 0.1, 8),  # 3.2 is below the least
        (512, 1.4, 716),  # 716.8
    ],
)
def test_channels_are_rounded_down_but_never_below_8(channels: int, alpha: float, scaled: int) -> None:
    assert scale_channels(channels, alpha) == scaled


def test_padding_reaches_every_convolution() -> None:
    backbone = MobileNetV1(0.25, style=ConvStyle(padding="same"))
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 1 + 13 * 2
    assert all(isinstance(module, Conv2dSame) for module in convolutions)


def test_batch_norm_settings_reach_every_layer() -> None:
    norms = [
        m
        for m in MobileNetV1(0.25, style=ConvStyle(bn_eps=0.5, bn_momentum=0.25)).modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.5, 0.25)}


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_width_must_be_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be above 0"):
        MobileNetV1(alpha)


@pytest.mark.parametrize("taps", [(), (0,), (14,), (13, 11), (11, 11)], ids=str)
def test_taps_must_be_ascending_block_numbers(taps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascending block numbers from 1 to 13"):
        MobileNetV1(0.25, taps=taps)
