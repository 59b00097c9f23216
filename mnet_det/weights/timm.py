"""timm's MobileNetV1: `mobilenetv1_100`, `mobilenetv1_100h` and `mobilenetv1_125`, `.safetensors` or `.pth`."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mnet_det.config import ModelConfig
from mnet_det.errors import CheckpointError
from mnet_det.models.mobilenet_v1 import BLOCKS
from mnet_det.weights.published import Published, Weights, class_names, likely_alpha, require_fit

BN_EPS = 1e-5
"""torch's default, which timm's MobileNetV1 leaves alone."""
STAGES = (1, 2, 2, 6, 2)
"""Blocks in each of timm's stages; together they are the 13 of Table 1."""
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts keep the weights; the averaged ones first."""


def read_timm(path: Path, *, labels: Sequence[str] | None = None) -> Published:
    """Read a state dict of timm's MobileNetV1; pixels are scaled to -1…1, padding is symmetric.

    Raises:
        CheckpointError: damaged, or tensors of another network.
    """
    tensors = _read_tensors(path)
    names_of = _our_names()
    weights: Weights = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.removeprefix("module.").rpartition(".")
        if layer not in names_of:
            raise CheckpointError(
                f"not timm's MobileNetV1: {name} {list(tensor.shape)} is none of its tensors; expected "
                "mobilenetv1_100, mobilenetv1_100h or mobilenetv1_125"
            )
        weights[f"{names_of[layer]}.{leaf}"] = tensor.float() if tensor.is_floating_point() else tensor
    last = weights.get("backbone.blocks.13.pointwise.conv.weight")
    if last is None:
        raise CheckpointError("not timm's MobileNetV1: its last block (blocks.4.1.conv_pw.weight) is missing")
    names: tuple[str, ...] = ()
    if "classifier.weight" in weights:
        names = class_names(labels, len(weights["classifier.weight"]))
    found = re.search(r"_r(\d{3})(?!\d)", path.name)
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


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's training script saves its arguments too
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot be read ({reason[:120]}); is the file whole?") from None
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError("not a state dict; expected tensors by name, as timm publishes them")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error}); is the file whole?") from None
