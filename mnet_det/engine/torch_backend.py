"""The runtime's contract on torch itself: to score during training, and to judge exported files by."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.googlenet import BasicConv2d as GoogLeNetConv
from torchvision.models.inception import BasicConv2d as InceptionConv

from mnet_det.config import Config
from mnet_det.engine.checkpoint import Checkpoint, name_of, open_detector
from mnet_det.models.detector import Detector
from mnet_det.models.layers import Conv2dSame
from mnet_det.runtime.backends import Backend
from mnet_det.runtime.metadata import ModelMetadata
from mnet_det.runtime.postprocess import Thresholds
from mnet_det.runtime.predictor import Predictor, check_threads
from mnet_det.structures import Candidates

TINY_WEIGHT = 1e-30
"""Weights smaller than this are set to zero. Weight decay leaves them in dead channels, where nobody can see them, but
below 1.2e-38 float32 is denormal, which slows CPUs down many times. The bound is higher because the products with
small activations are to stay above it too."""


class TorchBackend(Backend):
    """A detector on the device where it lies, in eval mode."""

    name = "torch"

    def __init__(self, detector: Detector, metadata: ModelMetadata, *, threads: int | None = None) -> None:
        self.detector = detector.eval()
        self.metadata = metadata
        if threads is not None:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        self._device = next(detector.parameters()).device

    def candidates(self, images: NDArray[np.uint8]) -> Candidates:
        """See `Backend.candidates`."""
        with torch.inference_mode():
            found = self.detector(torch.from_numpy(images).to(self._device))
        return Candidates(*(tensor.float().cpu().numpy() for tensor in found))


def load_torch_predictor(
    path: Path, *, threads: int | None = None, score: float | tuple[float, ...] | None = None
) -> Predictor:
    """A checkpoint or published weights on torch itself: batch norm folded, channels last.

    Args:
        path: the file.
        threads: how many to compute with; torch's own choice unless given.
        score: the least probability, or one for each class; unless given, the one the model was scored with.

    Raises:
        CheckpointError: not a detector.
        ConfigError: less than one thread, or far more than there are cores.
    """
    check_threads(threads)
    checkpoint = open_detector(path)
    metadata = describe_checkpoint(checkpoint, path)
    backend = TorchBackend(fuse(checkpoint.build()), metadata, threads=threads)
    thresholds = Thresholds.of(metadata)
    return Predictor(backend, thresholds=thresholds if score is None else replace(thresholds, score=score))


def describe_checkpoint(checkpoint: Checkpoint, path: Path) -> ModelMetadata:
    """What a checkpoint says about itself; its file or run folder gives the name."""
    return describe(
        checkpoint.config,
        name=name_of(path),
        class_names=checkpoint.class_names,
        category_ids=checkpoint.category_ids,
        class_scores=checkpoint.class_scores,
    )


def describe(
    config: Config,
    *,
    name: str,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    class_scores: tuple[float, ...] | None = None,
) -> ModelMetadata:
    """What a detector of this config says about itself."""
    return ModelMetadata(
        name=name,
        head=config.model.head,
        backbone=config.model.backbone,
        alpha=config.model.alpha,
        rho=config.model.rho,
        class_names=class_names,
        category_ids=category_ids,
        input_hw=config.model.input_hw,
        resize=config.model.resize,
        score=config.eval.score,
        nms=config.eval.nms,
        pre_nms=config.eval.pre_nms,
        max_detections=config.eval.max_detections,
        class_scores=class_scores,
    )


def fuse(detector: Detector) -> Detector:
    """A copy in eval mode with batch norm folded into the convolution before it; the outputs stay the same.

    Of timm's networks only those parts are folded that are built so; the engines fold the others when they load them.
    Weights below `TINY_WEIGHT` are zero.
    """
    fused: Detector = copy.deepcopy(detector).eval().to(memory_format=torch.channels_last)
    for module in list(fused.modules()):
        if isinstance(module, nn.Sequential | GoogLeNetConv | InceptionConv):  # which run their children in order
            for (conv_name, conv), (bn_name, bn) in itertools.pairwise(list(module.named_children())):
                # No other classes: timm's batch norms hold an activation too, some convolutions change their weights.
                if type(conv) in (nn.Conv2d, Conv2dSame) and type(bn) is nn.BatchNorm2d:
                    setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                    setattr(module, bn_name, nn.Identity())
    _zero_tiny_weights(fused)
    return fused


@torch.no_grad()
def _zero_tiny_weights(network: nn.Module) -> None:
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        if tensor.is_floating_point():
            tensor[tensor.abs() < TINY_WEIGHT] = 0
