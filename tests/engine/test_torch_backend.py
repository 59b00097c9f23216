"""The torch backend: folding batch norm changes nothing, and it keeps the runtime's contract."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mnet_det.config import load_config
from mnet_det.engine.checkpoint import load_checkpoint, store_class_scores
from mnet_det.engine.torch_backend import TINY_WEIGHT, TorchBackend, describe, fuse, load_torch_predictor
from mnet_det.models import build_detector
from mnet_det.models.detector import Detector
from mnet_det.structures import Image


def scrambled(*words: str) -> Detector:
    """A detector whose batch norms are far from doing nothing, as after training."""
    generator = torch.Generator().manual_seed(0)
    detector = build_detector(load_config(None, ["model.alpha=0.1", *words]).model, num_classes=3)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 2.0),
                (module.bias, -1.0, 1.0),
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.2, 2.0),
            ):
                assert tensor is not None
                with torch.no_grad():
                    tensor.uniform_(low, high, generator=generator)
    return detector.eval()


def noise(count: int, hw: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, *hw), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "words",
    [
        ("model.head=ssd", "model.padding=symmetric"),
        ("model.head=ssd", "model.padding=same", "model.class_loss=focal"),
        ("model.head=ssdlite", "model.padding=symmetric"),
        ("model.head=ssdlite", "model.padding=same"),
    ],
    ids=" ".join,
)
def test_folded_batch_norm_gives_the_same_candidates(words: tuple[str, ...]) -> None:
    detector = scrambled(*words, "model.base_hw=[96,80]")
    images = noise(2, (96, 80))
    with torch.inference_mode():
        expected, found = detector(images), fuse(detector)(images)
    # Softmax scores and boxes of tens of pixels: both well above the tolerance.
    assert expected.scores.std() > 1e-3
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-4, rtol=1e-4)


def test_folding_leaves_no_batch_norm_and_the_detector_as_it_was() -> None:
    detector = scrambled("model.head=ssdlite", "model.base_hw=[64,64]").train()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    fused = fuse(detector)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not fused.training
    assert detector.training
    after = detector.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_tiny_weights_are_zero_and_the_outputs_stay() -> None:
    """A dead channel's weights decay below what a CPU computes with at full speed (pytorch #19651: 50 times slower)."""
    words = ("model.head=ssd", "model.base_hw=[64,64]")
    detector = scrambled(*words)
    weights = dict(detector.named_parameters())
    with torch.no_grad():
        weights["box_predictors.0.weight"][0, 0] = 1e-40  # denormal by itself
        weights["backbone.stem.bn.weight"][0] = 1e-39  # makes all weights of a channel denormal when it is folded
        weights["backbone.stem.conv.weight"][1, 0] = 1e-34  # its products with small activations are denormal
    fused = fuse(detector)
    values = torch.cat([tensor.abs().flatten() for tensor in fused.state_dict().values() if tensor.is_floating_point()])
    assert not ((values > 0) & (values < TINY_WEIGHT)).any()
    assert fused.state_dict()["backbone.stem.conv.weight"][0].abs().max() == 0
    images = noise(1, (64, 64))
    with torch.inference_mode():
        expected, found = detector(images), fused(images)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "backbone", ["mobilenet_v2", "mobilenet_v3_small", "googlenet", "inception_v2", "timm:mobilenetv4_conv_small"]
)
def test_every_backbone_is_folded(backbone: str) -> None:
    alpha = 0.35 if backbone.startswith("mobilenet") else 1
    words = ("model.base_hw=[80,80]", f"model.backbone={backbone}", f"model.alpha={alpha}")
    detector = scrambled(*words).eval().double()  # linear bottlenecks with such statistics magnify what float32 rounds
    fused = fuse(detector)
    left = any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert left == backbone.startswith("timm:")  # its own classes hold an activation too, and stay
    pixels = torch.rand((1, 3, 80, 80), generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        expected, found = detector.backbone(pixels), fused.backbone(pixels)  # type: ignore[operator]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


@pytest.fixture
def images() -> list[Image]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*hw, 3), np.uint8) for hw in ((50, 70), (120, 90), (64, 64))]


def test_a_batch_equals_its_singles(toy_run: Path, images: list[Image]) -> None:
    predictor = load_torch_predictor(toy_run / "best.pt")
    for together, image in zip(predictor.batch(images), images, strict=True):
        alone = predictor(image)
        np.testing.assert_array_equal(together.labels, alone.labels)
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(together.boxes_xyxy, alone.boxes_xyxy, atol=1e-2)


def test_a_checkpoint_predicts_as_the_detector_in_it(toy_run: Path) -> None:
    predictor = load_torch_predictor(toy_run / "best.pt")
    pixels = noise(2, (64, 64))
    with torch.inference_mode():
        boxes_xyxy, scores = load_checkpoint(toy_run / "best.pt").build()(pixels)
    found = predictor.backend.candidates(pixels.numpy())
    assert found.boxes_xyxy.dtype == found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores, scores.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.boxes_xyxy, boxes_xyxy.numpy(), atol=1e-3)


def test_the_threshold_is_the_scored_one_unless_given(toy_run: Path) -> None:
    assert load_torch_predictor(toy_run / "best.pt").thresholds.score == 0.001
    assert load_torch_predictor(toy_run / "best.pt", score=0.5).thresholds.score == 0.5


def test_scores_of_classes_in_the_checkpoint_are_those_to_show_it_with(toy_run: Path, tmp_path: Path) -> None:
    shutil.copy(toy_run / "best.pt", tmp_path / "best.pt")
    assert load_torch_predictor(tmp_path / "best.pt").viewing_score == 0.5
    store_class_scores(tmp_path / "best.pt", {"ring": 0.3})
    predictor = load_torch_predictor(tmp_path / "best.pt")
    assert predictor.viewing_score == (0.5, 0.3, 0.5, 0.5, 0.5, 0.5)
    assert predictor.thresholds.score == 0.001  # scored as before


def test_threads_are_set_and_reported(toy_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1])
    assert load_torch_predictor(toy_run / "best.pt", threads=3).threads == 3
    assert asked == [3]


def test_a_detector_is_put_into_eval_mode() -> None:
    config = load_config(None, ["model.alpha=0.1", "model.base_hw=[64,64]"])
    metadata = describe(config, name="x", class_names=("a", "b", "c"), category_ids=(1, 2, 3))
    assert not TorchBackend(scrambled("model.base_hw=[64,64]").train(), metadata).detector.training


def test_a_model_describes_itself_from_its_settings() -> None:
    words = ["model.rho=0.5", "model.resize=letterbox", "eval.nms=0.45", "eval.max_detections=7"]
    metadata = describe(load_config(None, words), name="x", class_names=("a",), category_ids=(9,))
    assert metadata.input_hw == (150, 150)  # 300 × 0.5
    assert (metadata.resize, metadata.nms, metadata.max_detections) == ("letterbox", 0.45, 7)
    assert (metadata.class_names, metadata.category_ids) == (("a",), (9,))
