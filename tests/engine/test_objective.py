"""What several processes share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mnet_det.config import load_config
from mnet_det.engine.objective import share_batch_norm
from mnet_det.models import build_detector


@pytest.mark.parametrize("backbone", ["mobilenet_v1", "timm:mobilenetv3_small_050"])
def test_batch_norm_is_shared_and_the_network_stays_the_same(backbone: str) -> None:
    """timm's batch norms hold the activation that follows; torch's conversion drops it without a word."""
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    config = load_config(None, [f"model.backbone={backbone}", "model.base_hw=[64,64]"])
    detector = build_detector(config.model, num_classes=2).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    names = [name for name, _ in detector.named_parameters()]
    with torch.no_grad():
        before = detector(images)
        shared = share_batch_norm(detector)
        after = shared(images)
    assert shared is detector  # whose parameters the optimiser has
    assert [name for name, _ in detector.named_parameters()] == names
    assert not any(type(module) is nn.BatchNorm2d for module in detector.modules())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in detector.modules())
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
