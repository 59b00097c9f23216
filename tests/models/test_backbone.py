"""Blocks in order: what freezing counts, of every family of backbones."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from mnet_det.config import ModelConfig
from mnet_det.engine.torch_backend import fuse
from mnet_det.models import build_backbone, build_detector
from mnet_det.models.backbone import Backbone

FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "mobilenet_v1": ({"alpha": 0.1}, 14),  # the stem and 13 blocks
    "shallow mobilenet_v1": ({"alpha": 0.1, "shallow": True}, 9),  # five less
    "mobilenet_v1 with a second stage": ({"alpha": 0.1, "head": "faster_rcnn"}, 14),
    "inception_v2": ({"backbone": "inception_v2", "alpha": 0.1}, 13),  # three in the stem, ten blocks
    "mobilenet_v2": ({"backbone": "mobilenet_v2", "alpha": 0.1}, 19),  # features.0…18
    "squeezenet": ({"backbone": "squeezenet"}, 9),  # a convolution and eight fire modules
    "timm's resnet18, second stage": ({"backbone": "timm:resnet18", "head": "faster_rcnn"}, 5),  # stem, 3 stages, ours
}


@functools.cache
def backbone_of(family: str) -> Backbone:
    return build_backbone(ModelConfig.model_validate(FAMILIES[family][0])).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_in_order_have_every_weight_once(family: str) -> None:
    backbone = backbone_of(family)
    assert len(backbone.blocks_in_order) == FAMILIES[family][1]
    found = [id(parameter) for block in backbone.blocks_in_order for parameter in block.parameters()]
    assert len(found) == len(set(found))
    assert set(found) == set(map(id, backbone.parameters()))


@pytest.mark.parametrize("family", ["mobilenet_v1", "inception_v2", "mobilenet_v2", "timm's resnet18, second stage"])
def test_blocks_run_in_their_order(family: str) -> None:
    backbone = backbone_of(family)
    seen: list[int] = []
    hooks = []
    for number, block in enumerate(backbone.blocks_in_order):
        first = next(module for module in block.modules() if isinstance(module, nn.Conv2d))
        hooks.append(first.register_forward_pre_hook(lambda _module, _inputs, number=number: seen.append(number)))
    with torch.inference_mode():
        last = backbone(torch.zeros(1, 3, 64, 64))[-1]
        if backbone.roi_side:
            backbone.second_stage(torch.zeros(1, last.shape[1], backbone.roi_side, backbone.roi_side))
    for hook in hooks:
        hook.remove()
    assert seen == list(range(len(backbone.blocks_in_order)))


def test_compiling_in_place_changes_no_name_and_survives_copies() -> None:
    """The backend that traces without generating code: a C++ compiler would take a minute."""
    torch.manual_seed(0)
    detector = build_detector(ModelConfig(alpha=0.1, base_hw=(64, 64)), num_classes=2).eval()
    names = list(detector.state_dict())
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = detector(images)
        detector.get_submodule("backbone").compile(backend="eager")
        compiled = detector(images)
        assert list(detector.state_dict()) == names
        for copied in (copy.deepcopy(detector), fuse(detector), pickle.loads(pickle.dumps(detector))):
            assert torch.allclose(copied(images).scores, expected.scores, atol=1e-5)
    assert torch.allclose(compiled.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)
