"""One of two processes that score a data set together: a program, since each needs a process group of its own.

Started with the folder of the data and its rank; prints, as JSON, what each case came to. Rank 0 scores the first case
alone, too, before the two of them do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch.distributed as dist

from mnet_det.data.coco import read_coco, read_coco_json
from mnet_det.engine.distributed import ALONE, World
from mnet_det.engine.evaluate import score_model
from mnet_det.errors import DataError, MnetDetError
from mnet_det.structures import Detections, Image


class Shifted:
    """A "model" that reads the number of an image off its pixels, and finds its box, that many pixels too far right."""

    class_names = ("even", "odd")
    backend = SimpleNamespace(batch=2, callers=1)

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.fails_at = fails_at

    def batch(self, images: Sequence[Image]) -> list[Detections]:
        numbers = [int(image[0, 0, 0]) // 10 for image in images]
        if self.fails_at in numbers:
            raise DataError(f"the network cannot take image {self.fails_at}")
        return [
            Detections(
                np.array([[2 + number, 2, 14 + number, 14]], np.float32),
                np.array([0.9 - 0.1 * number], np.float32),
                np.array([number % 2]),
            )
            for number in numbers
        ]


def main(folder: Path, rank: int) -> None:
    data, truth = read_coco(folder / "truth.json", folder), read_coco_json(folder / "truth.json")

    def outcome(predictor: Any, world: World, judged_by: dict[str, Any] = truth) -> Any:
        try:
            scores, results = score_model(predictor, data, judged_by, world=world)
        except MnetDetError as error:
            return f"{type(error).__name__}: {error}"
        return [scores.to_json(), scores.detections, results]

    alone = outcome(Shifted(), ALONE) if rank == 0 else None
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    world = World(rank=rank, size=2)
    together = {
        "well": outcome(Shifted(), world),
        "fails on the second": outcome(Shifted(fails_at=3), world),
        "fails on the first as it scores": outcome(Shifted(), world, {**truth, "images": truth["images"][1:]}),
    }
    dist.destroy_process_group()
    print(json.dumps({"alone": alone, "together": together}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
