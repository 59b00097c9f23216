"""What of a detector does not learn: the first blocks of its backbone, and batch norm."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnet_det.errors import ConfigError
from mnet_det.models.backbone import Backbone
from mnet_det.models.detector import Detector


def freeze(detector: Detector, *, blocks: int, batch_norm: bool) -> None:
    """Take parameters out of training; before the optimiser is built, which leaves them out, and on every resume.

    Args:
        detector: changed in place, in nothing that is saved.
        blocks: the first of `Backbone.blocks_in_order`, all of their parameters.
        batch_norm: every batch norm of the detector, scale and shift included. `train_mode` keeps its statistics too.

    Raises:
        ConfigError: the backbone has fewer blocks.
    """
    backbone = detector.backbone
    assert isinstance(backbone, Backbone)
    in_order = backbone.blocks_in_order
    if blocks > len(in_order):
        raise ConfigError(f"train.freeze_blocks: got {blocks}, but this backbone has {len(in_order)} blocks")
    frozen: list[nn.Module] = list(in_order[:blocks])
    if batch_norm:
        frozen += [module for module in detector.modules() if isinstance(module, _BatchNorm)]
    for module in frozen:
        module.requires_grad_(False)


def train_mode(detector: Detector) -> None:
    """Training mode, except for what does not learn: a frozen batch norm keeps its statistics and uses them.

    That is every module with parameters of which none takes a gradient, so nothing has to be remembered.
    """
    detector.train()
    for module in detector.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
