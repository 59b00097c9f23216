"""What is frozen does not move: neither weights nor statistics, through training and scoring."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from mnet_det.config import ModelConfig, TrainConfig
from mnet_det.engine.freeze import freeze, train_mode
from mnet_det.engine.schedule import build_optimizer
from mnet_det.errors import ConfigError
from mnet_det.models import build_detector
from mnet_det.models.detector import Detector
from mnet_det.structures import Target

TARGET = Target(torch.tensor([[8.0, 8.0, 40.0, 50.0]]), torch.tensor([1]), torch.zeros(0, 4), (64, 64))


def detector(**settings: object) -> Detector:
    torch.manual_seed(0)
    return build_detector(ModelConfig.model_validate({"alpha": 0.1, "base_hw": (64, 64), **settings}), num_classes=2)


def learn(network: Detector) -> dict[str, bool]:
    """One step; returns which part of the state has changed."""
    before = copy.deepcopy(network.state_dict())
    optimizer = build_optimizer(network, TrainConfig(lr=0.1))
    train_mode(network)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.stack(list(network.losses(images, [TARGET, TARGET]).values())).sum().backward()
    optimizer.step()
    return {name: not torch.equal(value, before[name]) for name, value in network.state_dict().items()}


def test_first_blocks_stay_and_the_others_learn() -> None:
    network = detector()
    freeze(network, blocks=3, batch_norm=False)
    changed = learn(network)
    frozen = ("backbone.stem.", "backbone.blocks.1.", "backbone.blocks.2.")
    assert not any(moved for name, moved in changed.items() if name.startswith(frozen))
    assert all(moved for name, moved in changed.items() if not name.startswith(frozen) and "running" in name)
    assert changed["backbone.blocks.3.depthwise.conv.weight"]
    assert changed["class_predictors.0.weight"]


def test_frozen_batch_norm_keeps_statistics_scale_and_shift() -> None:
    network = detector()
    freeze(network, blocks=0, batch_norm=True)
    changed = learn(network)
    assert not any(moved for name, moved in changed.items() if ".bn." in name)
    assert changed["backbone.stem.conv.weight"]


def test_frozen_batch_norm_gives_each_image_what_it_gets_alone() -> None:
    network = detector()
    freeze(network, blocks=0, batch_norm=True)
    train_mode(network)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        together, alone = network(images), network(images[:1])
    assert torch.allclose(together.scores[:1], alone.scores, atol=1e-6)


def test_it_stays_frozen_after_scoring_and_in_copies() -> None:
    network = detector()
    freeze(network, blocks=2, batch_norm=False)
    network.eval()
    for one in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        train_mode(one)
        training = {name: module.training for name, module in one.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert [name for name, learns in training.items() if not learns] == [
            "backbone.stem.bn",
            "backbone.blocks.1.depthwise.bn",
            "backbone.blocks.1.pointwise.bn",
        ]


def test_without_freezing_everything_trains() -> None:
    network = detector().eval()
    freeze(network, blocks=0, batch_norm=False)
    train_mode(network)
    assert all(module.training for module in network.modules())


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.freeze_blocks: got 15, .* has 14 blocks"):
        freeze(detector(), blocks=15, batch_norm=False)


def test_all_blocks_of_the_backbone_can_be_frozen() -> None:
    network = detector()
    freeze(network, blocks=14, batch_norm=False)
    assert not any(parameter.requires_grad for parameter in network.get_submodule("backbone").parameters())
    assert learn(network)["extras.0.reduce.conv.weight"]
