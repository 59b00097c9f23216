"""What training minimises, as one module, so that several processes can share its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mnet_det.engine.distributed import World
from mnet_det.models.detector import Detector
from mnet_det.models.distillation import distillation_losses
from mnet_det.models.ssd import SSD
from mnet_det.models.timm_backbone import TimmBackbone
from mnet_det.structures import Target


class Objective(nn.Module):
    """The detector's losses, and those that a teacher adds."""

    def __init__(
        self,
        detector: Detector,
        *,
        teacher: SSD | None = None,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
    ) -> None:
        """The objective of a detector; the weights are those of the teacher's terms."""
        super().__init__()
        self.detector = detector
        self._teacher = (teacher,)  # in a tuple it is no part of this module: it neither learns nor is shared
        self._class_weight = class_weight
        self._box_weight = box_weight

    def forward(self, images: Tensor, targets: Sequence[Target], normalizer: Tensor | None = None) -> dict[str, Tensor]:
        """See `Detector.losses`."""
        (teacher,) = self._teacher
        if teacher is None:
            return self.detector.losses(images, targets, normalizer=normalizer)
        assert isinstance(self.detector, SSD)
        return distillation_losses(
            self.detector,
            teacher,
            images,
            targets,
            normalizer=normalizer,
            class_weight=self._class_weight,
            box_weight=self._box_weight,
        )


def share_batch_norm(detector: Detector) -> Detector:
    """The same detector, whose batch norm looks at the images of all processes."""
    if isinstance(detector.backbone, TimmBackbone):  # its batch norms hold an activation, which torch's would drop
        from timm.layers.norm_act import convert_sync_batchnorm
    else:
        convert_sync_batchnorm = nn.SyncBatchNorm.convert_sync_batchnorm
    shared: Detector = convert_sync_batchnorm(detector)
    return shared


def share_gradients(objective: Objective, world: World, device: torch.device) -> nn.Module:
    """The objective, whose gradients are the means over all processes of `world`."""
    if world.size == 1:
        return objective
    return DistributedDataParallel(objective, device_ids=[device] if device.type == "cuda" else None)


def without_sharing(module: nn.Module) -> AbstractContextManager[None]:
    """Keep this process's gradients to itself, for a part of a batch that is not the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
