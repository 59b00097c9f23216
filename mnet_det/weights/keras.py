"""Keras Applications' MobileNet: `mobilenet_{1_0,7_5,5_0,2_5}_{224,192,160,128}_tf[_no_top].h5`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from mnet_det.config import ModelConfig
from mnet_det.errors import CheckpointError
from mnet_det.models.mobilenet_v1 import BLOCKS
from mnet_det.weights.published import Published, Weights, class_names, likely_alpha, require_fit

BN_EPS = 1e-3
"""Keras' default, which its MobileNet leaves alone."""
BN_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}

Layers = dict[str, dict[str, Tensor]]


def read_keras(path: Path, *, labels: Sequence[str] | None = None) -> Published:
    """Read a weights file in Keras' legacy HDF5 layout, in which all public ones are.

    Keras pads by hand before its strided convolutions, one row and column at the bottom and right. That is
    TensorFlow's SAME wherever their input has an even size, as at each published resolution.

    Raises:
        CheckpointError: not HDF5, or not MobileNet's layers.
    """
    layers = _read_layers(path)
    blocks = {f"backbone.blocks.{number}.depthwise": f"conv_dw_{number}" for number in BLOCKS}
    blocks |= {f"backbone.blocks.{number}.pointwise": f"conv_pw_{number}" for number in BLOCKS}
    weights: Weights = {}
    for ours, theirs in {"backbone.stem": "conv1", **blocks}.items():
        weights |= _convolution(layers, theirs, f"{ours}.conv")
        weights |= _batch_norm(layers, f"{theirs}_bn", f"{ours}.bn")
    names: tuple[str, ...] = ()
    if "conv_preds" in layers:
        top = _convolution(layers, "conv_preds", "classifier")
        weights |= {name: tensor.flatten(1) if tensor.ndim > 1 else tensor for name, tensor in top.items()}
        names = class_names(labels, len(top["classifier.weight"]))
    if layers:
        raise CheckpointError(f"has layers that MobileNet lacks: {', '.join(sorted(layers)[:5])}")
    alpha = likely_alpha(len(weights["backbone.blocks.13.pointwise.conv.weight"]))
    side = _side(path)
    published = Published(
        kind="classifier" if names else "backbone",
        model=ModelConfig(alpha=alpha, base_hw=(side, side), padding="same", bn_eps=BN_EPS),
        class_names=names,
        category_ids=tuple(range(len(names))),
        weights=weights,
        folded=False,
    )
    return require_fit(published)


def _read_layers(path: Path) -> Layers:
    """Arrays of each layer that has any, by the last part of their names: `kernel`, `gamma` …"""
    try:
        with h5py.File(path) as file:
            group = file.get("model_weights", file)  # a whole saved model keeps its weights one level down
            names = map(_text, group.attrs["layer_names"])
            layers = {name: _arrays(group[name]) for name in names}
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:  # as damage has it
        raise CheckpointError(
            f"not weights in Keras' HDF5 layout ({error}); expected a file of Keras Applications, such as "
            "mobilenet_5_0_160_tf.h5"
        ) from None
    return {layer: arrays for layer, arrays in layers.items() if arrays}


def _arrays(layer: h5py.Group) -> dict[str, Tensor]:
    names = [_text(name) for name in layer.attrs["weight_names"]]
    return {
        name.rpartition("/")[2].partition(":")[0]: torch.from_numpy(np.asarray(layer[name], np.float32))
        for name in names
    }


def _convolution(layers: Layers, name: str, ours: str) -> Weights:
    """Take a layer's kernel [k, k, C, C'] (depthwise: [k, k, C, 1]) as ours [C', C, k, k], and its bias if any."""
    arrays = _take(layers, name)
    kernel = arrays.get("depthwise_kernel", arrays.get("kernel"))  # Keras 3 calls both `kernel`
    if kernel is None or kernel.ndim != 4:
        has = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items())
        raise CheckpointError(f"layer {name} has no kernel of four axes, only {has}")
    weight = kernel.permute(2, 3, 0, 1) if name.startswith("conv_dw_") else kernel.permute(3, 2, 0, 1)
    bias = {f"{ours}.bias": arrays["bias"]} if "bias" in arrays else {}
    return {f"{ours}.weight": weight.contiguous()} | bias


def _batch_norm(layers: Layers, name: str, ours: str) -> Weights:
    arrays = _take(layers, name)
    missing = [key for key in BN_NAMES if key not in arrays]
    if missing:
        raise CheckpointError(f"layer {name} has no {missing[0]}")
    tensors = {f"{ours}.{mine}": arrays[theirs] for theirs, mine in BN_NAMES.items()}
    return tensors | {f"{ours}.num_batches_tracked": torch.tensor(0)}


def _take(layers: Layers, name: str) -> dict[str, Tensor]:
    if name not in layers:
        raise CheckpointError(f"not Keras' MobileNet: it has no layer {name}")
    return layers.pop(name)


def _side(path: Path) -> int:
    """The resolution that the file's name tells; the file itself holds none."""
    found = re.search(r"_(\d{3})_tf", path.name)
    return int(found[1]) if found else 224


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
