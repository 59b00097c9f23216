"""One small detector of each head, exported once for all tests that look at exported files: exporting takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mnet_det.config import load_config
from mnet_det.data import open_data
from mnet_det.data.toy import draw_scene
from mnet_det.engine.checkpoint import Checkpoint, save_checkpoint
from mnet_det.engine.export import Parity, export_detector
from mnet_det.models import build_detector
from mnet_det.models.detector import Detector
from mnet_det.structures import Image


@dataclass(frozen=True)
class Exported:
    """A checkpoint and its ONNX file.

    Attributes:
        checkpoint: its settings name the toy data.
        onnx: the file.
        parity: what its export found.
        batch, proposals: what it was exported with.
    """

    checkpoint: Path
    onnx: Path
    parity: Parity
    batch: int = 1
    proposals: int | None = None


@dataclass(frozen=True)
class _Recipe:
    words: tuple[str, ...]
    batch: int = 1
    proposals: int | None = None


TWO_STAGES = ("model.head=faster_rcnn", "model.proposals=20", "model.anchor_sizes=[16,32,64]")
RECIPES = {
    "ssdlite": _Recipe(
        ("model.head=ssdlite", "model.padding=same", "model.class_loss=focal", "model.resize=letterbox"),
        batch=3,
    ),
    "faster_rcnn": _Recipe(TWO_STAGES, batch=2, proposals=7),
    "pyramid": _Recipe((*TWO_STAGES, "model.fpn=true", "model.resize=letterbox")),
}


@pytest.fixture(scope="session")
def exported(
    toy: Path, toy_run: Path, toy_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Exported]:
    """`exported(head)`, made at the first call: SSD of the toy run, the others with random weights."""

    @cache
    def export(head: str) -> Exported:
        if head == "ssd":
            return Exported(toy_run / "best.pt", toy_model, Parity(4, 0, 0.0, 0.0))
        recipe = RECIPES[head]
        folder = tmp_path_factory.mktemp(head)
        checkpoint, onnx = folder / "model.pt", folder / "model.onnx"
        _save_random(checkpoint, toy, recipe)
        parity = export_detector(checkpoint, onnx, batch=recipe.batch, proposals=recipe.proposals)
        return Exported(checkpoint, onnx, parity, recipe.batch, recipe.proposals)

    return export


@pytest.fixture
def scenes() -> list[Image]:
    """Three drawn images that no network has seen, nor its export been compared on."""
    return [draw_scene(np.random.default_rng(100 + index), image_hw=(120, 160)).image for index in range(3)]


def _save_random(path: Path, toy: Path, recipe: _Recipe) -> None:
    config = load_config(None, [f"data.root={toy}", "model.alpha=0.1", "model.base_hw=[64,96]", *recipe.words])
    torch.manual_seed(0)
    detector = build_detector(config.model, num_classes=6)
    _sharpen(detector)
    data = open_data(config.data, "val")
    save_checkpoint(path, Checkpoint(config, data.class_names, data.category_ids, detector.state_dict()))


@torch.no_grad()
def _sharpen(detector: Detector) -> None:
    """Spread the scores, which random predictors give as good as alike, around a half where each is a sigmoid."""
    first_stage = ("rpn.objectness", "rpn.deltas") if hasattr(detector, "rpn") else ()
    for name in (*detector.class_layers, *detector.box_layers, *first_stage):
        layer = detector.get_submodule(name)
        layer.weight.mul_(30)  # type: ignore[operator, union-attr]
        layer.bias.zero_()  # type: ignore[operator, union-attr]
