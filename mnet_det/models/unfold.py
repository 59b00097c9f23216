"""Batch norm given back to networks in which it was folded into the convolutions, so that they can be trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from mnet_det.models.layers import ConvBNAct


class _Moments:
    """Mean and variance of each channel of what a layer puts out, over all images and places."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Count one output [B, C, H, W] (a forward hook)."""
        values = output.detach().cpu().double()  # on the CPU: Apple's GPUs have no float64
        self.count += values.numel() // values.shape[1]
        self.sum = self.sum + values.sum(dim=(0, 2, 3))
        self.squares = self.squares + values.square().sum(dim=(0, 2, 3))

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count

    @property
    def variance(self) -> Tensor:
        return (self.squares / self.count - self.mean.square()).clamp(min=0)


@torch.no_grad()
def unfold_batch_norm(network: nn.Module, batches: Iterable[Tensor], *, layers: Collection[str]) -> int:
    """Give layers whose batch norm was folded away one that fits their images, and the same outputs as before.

    A folded layer has mean 0 and variance 1. That is right in eval mode only: in train mode, each batch's own
    statistics take their place and the outputs become others. So mean and variance are measured on real images, and
    weight and bias are changed to cancel them. Train-mode outputs on such images are then close to eval-mode ones.

    Args:
        network: left in the mode that it came in.
        batches: uint8 [B, 3, H, W] each, on the network's device; a few dozen images in all.
        layers: names of the `ConvBNAct` to change.

    Returns:
        How many images were looked at.

    Raises:
        ValueError: no images.
    """
    training = network.training
    network.eval()
    moments = {name: _Moments() for name in layers}
    hooks = [network.get_submodule(name).conv.register_forward_hook(moments[name]) for name in layers]  # type: ignore[union-attr]
    images = 0
    try:
        for batch in batches:
            network(batch)
            images += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
        network.train(training)
    if not images:
        raise ValueError("no images to measure batch norm's statistics on")
    for name, measured in moments.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, ConvBNAct)
        _keep_outputs(layer.bn, measured)
    return images


def _keep_outputs(bn: nn.BatchNorm2d, measured: _Moments) -> None:
    """New statistics; weight and bias such that the eval-mode outputs stay.

    The gain is weight / sqrt(variance + eps). Folded, it is 1, and the bias is the convolution's own.
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    weight, bias, mean, variance = (
        tensor.detach().cpu().double() for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    )
    gain = weight / (variance + bn.eps).sqrt()
    shift = bias - gain * mean
    bn.running_mean.copy_(measured.mean)
    bn.running_var.copy_(measured.variance)
    bn.weight.copy_(gain * (measured.variance + bn.eps).sqrt())
    bn.bias.copy_(shift + gain * measured.mean)
