"""timm's MobileNetV1: `mobilenetv1_100`, `mobilenetv1_100h` and `mobilenetv1_125`, `.safetensors` or `.pth`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from mnet_det.config import ModelConfig
from mnet_det.errors import CheckpointError, DownloadError
from mnet_det.models.backbone import Need
from mnet_det.models.mobilenet_v1 import BLOCKS
from mnet_det.models.timm_backbone import timm_backbone
from mnet_det.models.torchvision_backbones import TORCHVISION_BACKBONES
from mnet_det.weights.published import Published, Weights, class_names, likely_alpha, require_fit

BN_EPS = 1e-5
"""torch's default, which timm's MobileNetV1 leaves alone."""
STAGES = (1, 2, 2, 6, 2)
"""Blocks in each of timm's stages; together they are the 13 of Table 1."""


def read_timm(tensors: Mapping[str, Tensor], *, file_name: str = "", labels: Sequence[str] | None = None) -> Published:
    """A state dict of timm's MobileNetV1; pixels are scaled to -1…1, padding is symmetric.

    Args:
        tensors: by timm's names, float32.
        file_name: which may tell the resolution.
        labels: as in `read_published`.

    Raises:
        CheckpointError: tensors of another network.
    """
    names_of = _our_names()
    weights: Weights = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if layer not in names_of:
            raise CheckpointError(
                f"not timm's MobileNetV1: {name} {list(tensor.shape)} is none of its tensors; expected "
                "mobilenetv1_100, mobilenetv1_100h or mobilenetv1_125 of timm, or of torchvision "
                f"{', '.join(TORCHVISION_BACKBONES)}"
            )
        weights[f"{names_of[layer]}.{leaf}"] = tensor
    last = weights.get("backbone.blocks.13.pointwise.conv.weight")
    if last is None:
        raise CheckpointError("not timm's MobileNetV1: its last block (blocks.4.1.conv_pw.weight) is missing")
    names: tuple[str, ...] = ()
    if "classifier.weight" in weights:
        names = class_names(labels, len(weights["classifier.weight"]))
    found = re.search(r"_r(\d{3})(?!\d)", file_name)
    side = int(found[1]) if found else 224
    published = Published(
        kind="classifier" if names else "backbone",
        model=ModelConfig(alpha=likely_alpha(len(last)), base_hw=(side, side), padding="symmetric", bn_eps=BN_EPS),
        class_names=names,
        category_ids=tuple(range(len(names))),
        weights=weights,
        folded=False,
    )
    return require_fit(published)


def fetch_timm(model: ModelConfig) -> Published:
    """The weights that timm itself has for `model.backbone=timm:NAME`, from its hub or its cache.

    Raises:
        ConfigError: see `timm_backbone`.
        DownloadError: no network, or timm has none for this network.
        MissingPackageError: timm is not installed.
    """
    name = model.backbone.removeprefix("timm:")
    need: Need = "c4" if model.head == "faster_rcnn" and not model.fpn else "ssd"
    try:
        backbone = timm_backbone(name, need=need, taps=model.taps, pretrained=True)
    except OSError as error:  # its hub's faults are such too
        raise DownloadError(
            f"timm's weights for {name} are not here and cannot be fetched ({str(error).splitlines()[0]}); is there a "
            "network?"
        ) from None
    except RuntimeError as error:
        raise DownloadError(f"timm has no weights for {name}: {str(error).splitlines()[0]}") from None
    about = cast("dict[str, Any]", backbone.network.pretrained_cfg)
    return Published(
        kind="backbone",
        model=model.model_copy(
            update={
                "pixel_mean": tuple(255 * share for share in about["mean"]),
                "pixel_std": tuple(255 * share for share in about["std"]),
            }
        ),
        class_names=(),
        category_ids=(),
        weights={f"backbone.network.{key}": tensor for key, tensor in backbone.network.state_dict().items()},
        folded=False,
    )


def _our_names() -> dict[str, str]:
    """Our name of each of timm's layers."""
    names = {
        "conv_stem": "backbone.stem.conv",
        "bn1": "backbone.stem.bn",
        "conv_head": "head.conv",
        "bn2": "head.bn",
        "classifier": "classifier",
    }
    numbers = iter(BLOCKS)
    for stage, blocks in enumerate(STAGES):
        for block in range(blocks):
            theirs, ours = f"blocks.{stage}.{block}", f"backbone.blocks.{next(numbers)}"
            names |= {
                f"{theirs}.conv_dw": f"{ours}.depthwise.conv",
                f"{theirs}.bn1": f"{ours}.depthwise.bn",
                f"{theirs}.conv_pw": f"{ours}.pointwise.conv",
                f"{theirs}.bn2": f"{ours}.pointwise.bn",
            }
    return names
