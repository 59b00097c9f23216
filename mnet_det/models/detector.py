"""What every detector head answers to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from mnet_det.structures import Candidates, Target


class Detector(nn.Module, ABC):
    """Two verbs. What comes back depends on which is called; at `self.training` only batch norm and dropout look."""

    num_classes: int
    """K, foreground classes."""

    class_layers: tuple[str, ...]
    """Names of the layers whose rows stand for classes: those of one anchor after another, background first in each."""

    box_layers: tuple[str, ...] = ()
    """Names of the layers with four rows for each class, and none for the background."""

    @abstractmethod
    def forward(self, images: Tensor) -> Candidates:
        """uint8 [B, 3, H, W] to every scored box; the very graph that is exported."""

    @abstractmethod
    def losses(
        self, images: Tensor, targets: Sequence[Target], *, normalizer: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Named loss terms (float32 scalars) of uint8 [B, 3, H, W]; their sum is what training minimises.

        Each is a sum over the batch, divided by `normalizer`; by the batch's own unless given.
        """

    @abstractmethod
    def normalizer(self, targets: Sequence[Target], *, image_hw: tuple[int, int]) -> Tensor:
        """What the loss terms of a batch are divided by, a float32 scalar; of several batches, the sum.

        Parts of a batch that all divide by the sum of their normalizers give the gradient of the whole batch.
        """
