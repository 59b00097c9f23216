"""Keeps what is not finite out of the weights, and says which images it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from mnet_det.engine.checkpoint import save_tensors
from mnet_det.engine.distributed import World
from mnet_det.engine.pictures import picture_batch
from mnet_det.errors import MnetDetError
from mnet_det.images import write_image
from mnet_det.models.detector import Detector
from mnet_det.structures import Batch

MOST_SKIPPED = 3
"""Steps in a row that may be skipped; one bad image is bad luck, this many are a run that has diverged."""
ADVICE = (
    "where the loss grew before, a smaller train.lr or train.clip_norm helps; where it did not, look at the boxes of "
    "these images"
)


class Guard:
    """Undoes what a skipped step has done to batch norm's statistics, and gives up after `MOST_SKIPPED` in a row."""

    def __init__(
        self, detector: Detector, *, out: Path, class_names: Sequence[str], world: World, console: Console
    ) -> None:
        self._out = out
        self._class_names = class_names
        self._world = world
        self._console = console
        self._buffers = list(detector.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._in_a_row = 0

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the statistics before a step."""
        torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def undo(self) -> None:
        """Bring them back."""
        torch._foreach_copy_(self._buffers, self._kept)

    def accept(self) -> None:
        """A step was fine."""
        self._in_a_row = 0

    def refuse(self, batches: Sequence[Batch], losses: Sequence[Mapping[str, Tensor]]) -> None:
        """A step is skipped; every process calls this together.

        Args:
            batches: the parts of the batch that went through this process.
            losses: the loss terms of each.

        Raises:
            MnetDetError: too many in a row; the batch is saved in the run folder.
        """
        self.undo()
        self._in_a_row += 1
        bad = [part for part, terms in enumerate(losses) if not _is_finite(terms)]
        told = self._world.gather([_tell(losses[part], batches[part]) for part in bad])
        lines = [line for lines in told for line in lines]
        # Where every loss is finite, a gradient is not, and nobody can say whose.
        image_ids = [image_id for batch in batches for image_id in batch.image_ids]
        others = " and those of the other processes" if self._world.size > 1 else ""
        what = "; ".join(lines) or f"the gradient is not finite on images {image_ids}{others}"
        self._console.print(f"step skipped: {what}", markup=False, highlight=False, soft_wrap=True)
        if self._in_a_row < MOST_SKIPPED:
            return
        first = next((rank for rank, lines in enumerate(told) if lines), 0)
        if self._world.rank == first:
            _save_batch(batches[bad[0] if bad else -1], self._out, self._class_names)
        raise MnetDetError(
            f"{what}: {MOST_SKIPPED} steps in a row; that batch is saved as bad_batch.pt and bad_batch.jpg in "
            f"{self._out}; {ADVICE}"
        )


def _is_finite(losses: Mapping[str, Tensor]) -> bool:
    return bool(torch.isfinite(torch.stack(list(losses.values())).sum()))


def _tell(losses: Mapping[str, Tensor], batch: Batch) -> str:
    terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
    return f"the loss is not finite ({terms}) on images {batch.image_ids}"


def _save_batch(batch: Batch, out: Path, class_names: Sequence[str]) -> None:
    """As tensors that `torch.load(weights_only=True)` reads, and as a picture."""
    batch = batch.to("cpu")
    content = {
        "images": batch.images,
        "image_ids": batch.image_ids,
        "boxes_xyxy": [target.boxes_xyxy.clone() for target in batch.targets],  # else each would bring all the others
        "labels": [target.labels.clone() for target in batch.targets],
        "ignored_xyxy": [target.ignored_xyxy.clone() for target in batch.targets],
    }
    save_tensors(out / "bad_batch.pt", content)
    write_image(out / "bad_batch.jpg", picture_batch(batch, class_names))
