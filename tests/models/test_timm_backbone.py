"""timm's networks as backbones, against timm's own forward, and what is refused."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mnet_det.errors import ConfigError, MissingPackageError
from mnet_det.models.timm_backbone import TimmBackbone, timm_backbone


@functools.cache
def shared_backbone(name: str, **settings: Any) -> TimmBackbone:
    """For shapes and gradients' presence, which change nothing in it: building takes longer than running."""
    return timm_backbone(name, **settings)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("mobilenetv1_100", [3, 4]), ("mambaout_femto", [2, 3])],
    ids=["its own feature class", "channels last"],
)
def test_maps_equal_timms_with_the_same_weights(name: str, blocks: list[int]) -> None:
    torch.manual_seed(0)
    ours = timm_backbone(name).eval()
    with torch.device("meta"):
        theirs = timm.create_model(name)
    weights = {key.replace("stages_", "stages."): value for key, value in ours.network.state_dict().items()}
    assert not theirs.load_state_dict(weights, assign=True, strict=False).unexpected_keys
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        modules = theirs.get_submodule("blocks" if name.startswith("mobilenet") else "stages")
        expected = {}
        for number in blocks:
            modules[number].register_forward_hook(
                lambda _module, _inputs, output, number=number: expected.__setitem__(number, output)
            )
        theirs.eval()
        theirs.head = theirs.classifier = nn.Identity()
        theirs.forward_features(images)
        for features, number in zip(ours(images), blocks, strict=True):
            reference = expected[number].permute(0, 3, 1, 2) if name == "mambaout_femto" else expected[number]
            assert torch.allclose(features, reference, atol=1e-5)


@pytest.mark.parametrize("need", ["ssd", "c4"])
@pytest.mark.parametrize("name", ["legacy_xception", "mobilenetv4_conv_small", "resnet18"])
def test_declared_channels_and_strides_are_those_of_the_maps(name: str, need: Any) -> None:
    backbone = shared_backbone(name, need=need)
    side = 64
    maps = backbone(torch.zeros(2, 3, side, side))
    assert backbone.strides == ((16, 32) if need == "ssd" else (16,))
    assert [features.shape[1:] for features in maps] == [
        (channels, side // stride, side // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize("need", ["ssd", "c4"])
@pytest.mark.parametrize("name", ["legacy_xception", "mobilenetv4_conv_small", "resnet18"])
def test_every_parameter_that_trains_gets_a_gradient(name: str, need: Any) -> None:
    backbone = shared_backbone(name, need=need)
    total = sum(features.sum() for features in backbone(torch.zeros(2, 3, 64, 64)))
    if need == "c4":
        total = total + backbone.second_stage(torch.zeros(2, backbone.channels[-1], 14, 14)).sum()
    trained = {key: parameter for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(total, [*trained.values()], allow_unused=True)
    assert [key for key, grad in zip(trained, gradients, strict=True) if grad is None] == []
    frozen = {key for key, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert bool(frozen) == (name == "legacy_xception" and need == "c4")  # timm runs it whole, and taps it inside


def test_blocks_after_the_last_tap_are_cut_off() -> None:
    """timm's own classes for the MobileNets kept them and ran them."""
    assert len(shared_backbone("mobilenetv4_conv_small", need="ssd").network.blocks) == 5
    assert len(shared_backbone("mobilenetv4_conv_small", need="c4").network.blocks) == 3


def test_second_stage_is_two_separable_blocks() -> None:
    backbone = shared_backbone("resnet18", need="c4")
    assert (backbone.roi_side, backbone.second_stage_channels) == (14, 1024)
    assert backbone.second_stage(torch.zeros(3, 256, 14, 14)).shape == (3, 1024)
    with pytest.raises(NotImplementedError, match="without its second stage"):
        shared_backbone("resnet18", need="fpn").second_stage(torch.zeros(3, 512, 14, 14))


def test_taps_are_indices_of_timms_maps() -> None:
    backbone = shared_backbone("resnet18", taps=(1, "2", 3))
    assert (backbone.channels, backbone.strides) == ((64, 128, 256), (4, 8, 16))


def test_least_side_is_larger_for_networks_without_padding() -> None:
    assert shared_backbone("resnet18").least_side == 32
    backbone = shared_backbone("inception_v3", need="c4")
    assert backbone.least_side == 64
    with pytest.raises(RuntimeError):
        backbone(torch.zeros(2, 3, 32, 32))
    (features,) = backbone(torch.zeros(2, 3, 64, 64))
    assert features.shape[2:] == (2, 2)  # 64 → 31 → 29 → 14 → 12 → 5 → 2 without padding, not 64 / 16


def test_weights_are_fetched_only_when_asked_for_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    create = timm.create_model

    def record(name: str, *, pretrained: bool = False, **settings: Any) -> nn.Module:
        asked.append(pretrained)
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", record)
    timm_backbone("test_resnet")
    assert not any(asked)
    timm_backbone("test_resnet", pretrained=True)
    assert sum(asked) == 1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mobilnetv1_100", {}, "timm has no 'mobilnetv1_100'; did you mean mobilenetv1_100"),
        ("resnet18.no_such_tag", {}, "timm has no 'resnet18.no_such_tag'"),
        ("resnet18", {"alpha": 0.5}, "model.alpha: timm:resnet18 has its width in its name, set 1"),
        ("resnet18", {"taps": (9,)}, r"timm:resnet18 has no 9; it has 0 \(stride 2\), 1 \(stride 4\)"),
        ("vit_tiny_patch16_224", {"need": "c4"}, "takes images of 224×224 and no others"),
        (
            "convmixer_768_32",
            {},
            r"gives maps at strides 7; SSD needs 16 and 32 \(model.taps chooses others by index: 31 \(stride 7\)\)"
            "|gives no feature maps",  # in older versions of timm
        ),
    ],
    ids=lambda part: part if isinstance(part, str) and " " not in part else "",
)
def test_what_does_not_exist_or_cannot_work_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shared_backbone(name, **settings)


def test_a_network_without_feature_maps_is_refused_in_timms_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **settings: Any) -> nn.Module:
        raise RuntimeError(f"features_only not implemented for {name}.")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ConfigError, match="timm:resnet18 gives no feature maps: features_only not implemented"):
        timm_backbone("resnet18")


def test_a_missing_timm_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"model\.backbone=timm:resnet18 needs timm: .*install.* timm"):
        timm_backbone("resnet18")


def test_stem_and_its_norm_are_one_block() -> None:
    blocks = shared_backbone("resnet18", need="c4").blocks_in_order
    assert [type(part) for part in blocks[0]] == [nn.Conv2d, nn.BatchNorm2d]
    assert len(blocks) == 5  # stem, three stages, and our second stage
