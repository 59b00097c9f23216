"""torchvision's networks cut for detection, against torchvision's own with the same weights."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16

from mnet_det.errors import ConfigError
from mnet_det.models import torchvision_backbones
from mnet_det.models.torchvision_backbones import (
    TORCHVISION_BACKBONES,
    L2Norm,
    LayeredBackbone,
    torchvision_backbone,
    torchvision_classifier,
)

MODEL_NAMES = {"squeezenet": "squeezenet1_1"}
MOBILENETS = ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
# Channels and strides, read off torchvision's sources at width 1.
TAPPED: dict[tuple[str, Any], tuple[tuple[int, ...], tuple[int, ...]]] = {
    ("mobilenet_v2", "ssd"): ((576, 1280), (16, 32)),  # 6 × 96
    ("mobilenet_v2", "fpn"): ((96, 1280), (16, 32)),
    ("mobilenet_v2", "c4"): ((96,), (16,)),
    ("mobilenet_v3_large", "ssd"): ((672, 960), (16, 32)),
    ("mobilenet_v3_large", "fpn"): ((112, 960), (16, 32)),
    ("mobilenet_v3_large", "c4"): ((112,), (16,)),
    ("mobilenet_v3_small", "ssd"): ((288, 576), (16, 32)),
    ("mobilenet_v3_small", "fpn"): ((48, 576), (16, 32)),
    ("mobilenet_v3_small", "c4"): ((48,), (16,)),
    ("vgg16", "ssd"): ((512, 1024), (8, 16)),
    ("vgg16", "fpn"): ((512, 512), (8, 16)),
    ("vgg16", "c4"): ((512,), (16,)),
    ("googlenet", "ssd"): ((832, 1024), (16, 32)),
    ("googlenet", "fpn"): ((832, 1024), (16, 32)),
    ("googlenet", "c4"): ((832,), (16,)),
    ("inception_v3", "ssd"): ((768, 2048), (16, 32)),
    ("inception_v3", "fpn"): ((768, 2048), (16, 32)),
    ("inception_v3", "c4"): ((768,), (16,)),
    ("squeezenet", "ssd"): ((256, 512), (8, 16)),
    ("squeezenet", "fpn"): ((256, 512), (8, 16)),
    ("squeezenet", "c4"): ((512,), (16,)),
}
# Cells by which maps may fall short of the input over the stride: what convolutions and pools without padding cut off.
# Inception V3 loses 5 at stride 4, where it has two pools and four unpadded convolutions behind it.
SHORTFALL = {"googlenet": 1, "squeezenet": 1, "inception_v3": 5}


def strides_of_places(name: str, **settings: Any) -> dict[str, int]:
    """Every place that can be tapped, from the error that lists them."""
    with pytest.raises(ConfigError) as refusal, torch.device("meta"):
        torchvision_backbone(name, taps=("nowhere",), **settings)
    return {place: int(stride) for place, stride in re.findall(r"(\S+) \(stride (\d+)\)", str(refusal.value))}


@functools.cache
def shared_backbone(name: str, **settings: Any) -> LayeredBackbone:
    """For shapes and gradients' presence, which change nothing in it. VGG16 comes without memory for its weights."""
    with torch.device(device_of(name)):
        return torchvision_backbone(name, **settings)


def device_of(name: str) -> str:
    return "meta" if name == "vgg16" else "cpu"  # on meta, batch norm is ten times slower than on the CPU


def randomise_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # else the fresh statistics hide what batch norm does
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def without_classifier(backbone: LayeredBackbone, name: str) -> nn.Module:
    """torchvision's network with the weights of ours, giving what its classifier would get."""
    settings = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        theirs: nn.Module = getattr(torchvision.models, MODEL_NAMES.get(name, name))(**settings)
    setattr(theirs, "classifier" if hasattr(theirs, "features") else "fc", nn.Identity())
    prefix = "features." if hasattr(theirs, "features") else ""
    weights = {prefix + key.removeprefix("layers."): value for key, value in backbone.state_dict().items()}
    theirs.load_state_dict(weights, assign=True)
    return theirs.eval()


@pytest.mark.parametrize("name", TORCHVISION_BACKBONES)
def test_every_map_equals_torchvisions_with_the_same_weights(name: str) -> None:
    torch.manual_seed(0)
    places = [*strides_of_places(name, need="fpn")]
    ours = torchvision_backbone(name, need="fpn", taps=places).eval()
    randomise_statistics(ours)
    theirs = without_classifier(ours, name)
    expected: dict[str, Tensor] = {}
    for place in places:
        layer, _, expansion = place.partition(".")
        module = theirs.get_submodule(f"features.{layer}" if hasattr(theirs, "features") else layer)
        if expansion:
            module = next(iter(next(iter(module.children()))))  # the first part of the block
        module.register_forward_hook(
            lambda _module, _inputs, output, place=place: expected.__setitem__(place, output.clone())
        )
    side = 107 if name == "inception_v3" else 64  # VGG16's pools round up, torchvision's do not
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        maps = ours(images)
        theirs(images)
    for place, features in zip(places, maps, strict=True):
        assert torch.allclose(features, expected[place], atol=1e-5), place


@pytest.mark.parametrize("name", [*MOBILENETS, "googlenet", "inception_v3"])
def test_second_stage_is_the_rest_of_torchvisions_network(name: str) -> None:
    torch.manual_seed(0)
    ours = torchvision_backbone(name, need="c4").eval()
    randomise_statistics(ours)
    theirs = without_classifier(ours, name)
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        (features,) = ours(images)
        vectors = ours.second_stage(features)
        assert torch.allclose(vectors, theirs(images), atol=1e-5)
    assert (ours.roi_side, ours.second_stage_channels) == (14, vectors.shape[1])


def test_vgg16_for_ssd_equals_torchvisions_ssd300_extractor() -> None:
    torch.manual_seed(0)
    ours = torchvision_backbone("vgg16", need="ssd").eval()
    nn.init.uniform_(ours.norms["22"].scale, 10, 30)
    with torch.device("meta"):
        theirs = ssd300_vgg16(weights=None, weights_backbone=None).backbone
    theirs.extra = theirs.extra[:1]  # the later maps are the head's
    renamed = {"layers.fc6.0": "extra.0.7.1", "layers.fc7.0": "extra.0.7.3", "norms.22.scale": "scale_weight"}
    weights = {}
    for key, value in ours.state_dict().items():
        for our_name, their_name in renamed.items():
            key = key.replace(our_name, their_name)
        if key.startswith("layers."):
            _, number, tensor = key.split(".")
            # Their second part begins at pool4, layer 23.
            key = f"features.{number}.{tensor}" if int(number) < 23 else f"extra.0.{int(number) - 23}.{tensor}"
        weights[key] = value
    theirs.load_state_dict(weights, assign=True)
    images = torch.randn(1, 3, 76, 76)  # 76 → 38 → 19 → 10 → 5: the third pool rounds up
    with torch.inference_mode():
        for features, expected in zip(ours(images), theirs(images).values(), strict=True):
            assert torch.allclose(features, expected, atol=1e-5)


def test_vgg16_gives_the_maps_of_the_ssd_paper_at_300() -> None:
    maps = shared_backbone("vgg16", need="ssd")(torch.zeros(1, 3, 300, 300, device="meta"))
    assert [features.shape[1:] for features in maps] == [(512, 38, 38), (1024, 19, 19)]


def test_l2_norm_gives_each_place_the_length_of_its_scale() -> None:
    features = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)  # length 5
    assert L2Norm(2, scale=20.0)(features).flatten().tolist() == pytest.approx([12.0, 16.0])  # 20 × 3/5, 20 × 4/5


def test_vgg16s_second_stage_is_its_two_fully_connected_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_backbones, "VGG16_HIDDEN", 6)
    torch.manual_seed(0)
    backbone = torchvision_backbone("vgg16", need="c4", taps=["4"]).eval()
    weights = backbone.state_dict()
    regions = torch.rand(3, 64, 7, 7) * 10
    hidden = regions.flatten(1) @ weights["layers.classifier.0.weight"].T + weights["layers.classifier.0.bias"]
    expected = hidden.relu() @ weights["layers.classifier.3.weight"].T + weights["layers.classifier.3.bias"]
    assert torch.allclose(backbone.second_stage(regions), expected.relu(), atol=1e-5)
    assert (backbone.roi_side, backbone.second_stage_channels) == (7, 6)


def test_vgg16_for_faster_rcnn_holds_torchvisions_weights_but_the_last_layers() -> None:
    ours = {key: value.shape for key, value in shared_backbone("vgg16", need="c4").state_dict().items()}
    with torch.device("meta"):
        theirs = torchvision.models.vgg16().state_dict()
    last = {"classifier.6.weight", "classifier.6.bias"}
    assert ours == {
        "layers." + key.removeprefix("features."): value.shape for key, value in theirs.items() if key not in last
    }


@pytest.mark.parametrize(
    ("name", "need", "alpha"),
    [
        *((name, "fpn", 1.0) for name in TORCHVISION_BACKBONES),
        ("vgg16", "ssd", 1.0),  # the one network with other layers for SSD
        *((name, "ssd", alpha) for name in MOBILENETS for alpha in (0.35, 1.4)),
    ],
)
def test_declared_channels_and_strides_are_those_of_the_maps(name: str, need: Any, alpha: float) -> None:
    places = strides_of_places(name, alpha=alpha, need=need)
    backbone = shared_backbone(name, alpha=alpha, need=need, taps=(*places,))
    height, width = 81, 98
    maps = backbone(torch.zeros(2, 3, height, width, device=device_of(name)))
    assert backbone.strides == tuple(places.values())
    assert backbone.channels == tuple(features.shape[1] for features in maps)
    for features, stride in zip(maps, backbone.strides, strict=True):
        for cells, side in zip(features.shape[2:], (height, width), strict=True):
            assert 0 <= math.ceil(side / stride) - cells <= SHORTFALL.get(name, 0)


@pytest.mark.parametrize(("name", "need"), TAPPED, ids=lambda part: part)
def test_each_need_taps_the_maps_that_the_papers_name(name: str, need: Any) -> None:
    backbone = shared_backbone(name, need=need)
    assert (backbone.channels, backbone.strides) == TAPPED[name, need]


@pytest.mark.parametrize(("name", "need"), TAPPED, ids=lambda part: part)
def test_every_parameter_gets_a_gradient(name: str, need: Any) -> None:
    backbone = shared_backbone(name, need=need)
    side = backbone.least_side
    maps = backbone(torch.zeros(2, 3, side, side, device=device_of(name)))
    total = sum(features.sum() for features in maps)
    if need == "c4":
        regions = torch.zeros(2, backbone.channels[-1], backbone.roi_side, backbone.roi_side, device=device_of(name))
        total = total + backbone.second_stage(regions).sum()
    gradients = torch.autograd.grad(total, [*backbone.parameters()], allow_unused=True)
    without = [key for (key, _), grad in zip(backbone.named_parameters(), gradients, strict=True) if grad is None]
    assert without == []


@pytest.mark.parametrize(("name", "need"), TAPPED, ids=lambda part: part)
def test_least_side_is_enough_and_where_above_32_needed(name: str, need: Any) -> None:
    backbone = shared_backbone(name, need=need)
    side = backbone.least_side
    assert all(features.numel() for features in backbone(torch.zeros(2, 3, side, side, device=device_of(name))))
    if side > 32:
        with pytest.raises(RuntimeError):
            backbone(torch.zeros(2, 3, side - 1, side - 1))


@pytest.mark.parametrize(
    ("name", "alpha", "channels"),
    [
        ("mobilenet_v2", 0.5, (288, 1280)),  # 6 × 48; the last layer never gets thinner than at 1
        ("mobilenet_v2", 1.4, (816, 1792)),  # 96 × 1.4 = 134.4 → 136, times 6; 1280 × 1.4
        ("mobilenet_v3_large", 0.5, (336, 480)),  # 672 / 2; 6 × 80
        ("mobilenet_v3_small", 0.75, (216, 432)),  # 288 × 0.75; 6 × 72
    ],
)
def test_alpha_scales_the_mobilenets(name: str, alpha: float, channels: tuple[int, ...]) -> None:
    backbone = shared_backbone(name, alpha=alpha)
    assert (backbone.alpha, backbone.channels) == (alpha, channels)


def test_reduced_tail_halves_the_last_layers_of_mobilenet_v3() -> None:
    assert shared_backbone("mobilenet_v3_large", reduced_tail=True).channels == (672, 480)  # 6 × 160 / 2
    assert shared_backbone("mobilenet_v3_small", reduced_tail=True).channels == (288, 288)


def test_a_network_that_ends_at_its_tap_gets_two_separable_blocks() -> None:
    for name, settings in (("squeezenet", {}), ("mobilenet_v2", {"alpha": 0.5, "taps": ("18",)})):
        backbone = shared_backbone(name, need="c4", **settings)
        vectors = backbone.second_stage(torch.zeros(3, backbone.channels[-1], 14, 14))
        assert backbone.roi_side == 14
        assert vectors.shape == (3, backbone.second_stage_channels) == (3, 1024 * backbone.alpha)


def test_depthwise_convolutions_start_by_their_fan_in() -> None:
    torch.manual_seed(0)
    backbone = torchvision_backbone("mobilenet_v3_large")
    depthwise = [module for module in backbone.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert len(depthwise) == 15
    for conv in depthwise[-2:]:  # 960 filters of 5×5: the variance of each weight is 2 / 25
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / 25), rel=0.05)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vgg19", {}, "no 'vgg19'; expected one of mobilenet_v2, "),
        ("vgg16", {"alpha": 0.5}, "model.alpha: vgg16 comes in one width, set 1"),
        ("mobilenet_v2", {"reduced_tail": True}, "mobilenet_v2 comes with one tail, set false"),
        ("mobilenet_v2", {"taps": (13, 99)}, r"mobilenet_v2 has no 99; it has 0 \(stride 2\), 1 \(stride 2\), 2.exp"),
        ("mobilenet_v2", {"taps": (18, 13)}, "in the order of mobilenet_v2"),
        ("mobilenet_v2", {"taps": ("7", "14.expansion")}, "let the last tap be 14 or a later one"),
        ("mobilenet_v2", {"taps": ("14.expansion",), "need": "c4"}, "cannot end inside a block, at 14.expansion"),
        ("vgg16", {"taps": (21, 22)}, "vgg16 has no 21; "),  # its ReLU overwrites it
    ],
    ids=str,
)
def test_what_does_not_exist_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shared_backbone(name, **settings)


def test_second_stage_is_there_only_where_it_was_asked_for() -> None:
    backbone = shared_backbone("mobilenet_v3_small", need="fpn")
    with pytest.raises(NotImplementedError, match="without its second stage"):
        backbone.second_stage(torch.zeros(1, 576, 14, 14))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("mobilenet_v2", 3_504_872),  # torchvision's own counts
        ("mobilenet_v3_large", 5_483_032),
        ("mobilenet_v3_small", 2_542_856),
        ("vgg16", 138_357_544),
        ("googlenet", 6_624_904),
        ("inception_v3", 23_834_568),  # 27,161,264 with the classifier on the way
        ("squeezenet", 1_235_496),
    ],
)
def test_classifier_is_torchvisions_on_uint8_images(name: str, params: int) -> None:
    with torch.device(device_of(name)):
        classifier = torchvision_classifier(name)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == params
    images = torch.zeros(2, 3, 80, 80, dtype=torch.uint8, device=device_of(name))
    assert classifier(images).shape == (2, 1000)


def test_classifier_normalises_its_pixels() -> None:
    torch.manual_seed(0)
    classifier = torchvision_classifier("mobilenet_v3_small", alpha=0.25, num_classes=5).eval()
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    with torch.inference_mode():
        expected = classifier.get_submodule("network")((images.float() - 127.5) / 127.5)
        assert torch.allclose(classifier(images), expected)
