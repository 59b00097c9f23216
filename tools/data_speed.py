"""Images a second of the training pipeline (decode, augment, collate), from the files and from the resized cache.

    python tools/data_speed.py coco --split val --size 300 --presets flip,ssd --workers 1,2

All of them in turns, round after round, so that a noisy moment of the machine meets all of them. A turn is an epoch
with workers that are up already and have been through one before; the files lie in the system's memory by then, so a
slow disk is in neither figure. The cache is made for the measurement and removed after it. The last row is
`mnet-det check` on the same images, decoding each.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mnet_det.config import DataConfig, Split
from mnet_det.data import open_data
from mnet_det.data.augment import Preset
from mnet_det.data.check import check
from mnet_det.data.coco import CocoData
from mnet_det.data.image_cache import open_cache
from mnet_det.data.loader import EpochBatches, make_loader
from mnet_det.data.pixels import MARGINS, DecodedPixels, Pixels
from mnet_det.errors import MnetDetError
from mnet_det.runtime.benchmark import machine
from mnet_det.runtime.interleave import interleave

Rate = Callable[[int], float]
"""A contestant of `interleave`: images a second of one turn."""


def training_epochs(pixels: Pixels, *, preset: Preset, size: int, workers: int, batch_size: int, repeat: int) -> Rate:
    """A contestant: an epoch that visits each image `repeat` times."""
    batches = EpochBatches(len(pixels.data), batch_size=batch_size, seed=0, passes=repeat)
    loader = make_loader(
        pixels.data,
        batches,
        preset=preset,
        network_hw=(size, size),
        mode="stretch",
        seed=0,
        workers=workers,
        pixels=pixels,
    )

    def measure(epoch: int) -> float:
        batches.epoch = epoch
        started = time.perf_counter()
        images = sum(len(batch.images) for batch in loader)
        return images / (time.perf_counter() - started)

    return measure


def checks(annotations: Path, data: CocoData, *, repeat: int) -> Rate:
    """A contestant: `repeat` times what `mnet-det check` does, the annotations included."""

    def measure(_: int) -> float:
        started = time.perf_counter()
        for _ in range(repeat):
            check(annotations, data.folder)
        return repeat * len(data) / (time.perf_counter() - started)

    return measure


def case(
    data: CocoData, annotations: Path, *, preset: Preset, workers: int, chosen: argparse.Namespace, cache: Path
) -> list[Rate]:
    """Two contestants: training from the files, and from the cache, which is made."""
    network_hw = (chosen.size, chosen.size)
    from_files = DecodedPixels(data, preset=preset, network_hw=network_hw, mode="stretch")
    quiet = Console(quiet=True)
    from_cache = open_cache(data, preset=preset, network_hw=network_hw, mode="stretch", folder=cache, console=quiet)
    settings: dict[str, Any] = {"size": chosen.size, "batch_size": chosen.batch_size, "repeat": chosen.repeat}
    return [training_epochs(pixels, preset=preset, workers=workers, **settings) for pixels in (from_files, from_cache)]


def main(words: list[str] | None = None) -> None:
    """Measure and print."""
    chosen = parse(words)
    split: Split = chosen.split
    cases = [(preset, workers) for preset in chosen.presets for workers in chosen.workers]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:  # Windows: workers still read from it
        try:
            config = DataConfig(root=chosen.root)
            data, annotations = open_data(config, split), config.annotations(split)
            contestants = [
                contestant
                for preset, workers in cases
                for contestant in case(
                    data, annotations, preset=preset, workers=workers, chosen=chosen, cache=Path(cache)
                )
            ]
            contestants.append(checks(annotations, data, repeat=chosen.repeat))
            *training, checking = interleave(contestants, rounds=chosen.rounds, burst=1, unmeasured=0)
        except MnetDetError as error:
            sys.exit(f"error: {error}")
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"python tools/data_speed.py {shlex.join(sys.argv[1:] if words is None else words)}")
    print(
        f"{len(data)} images at {chosen.size}x{chosen.size}, {chosen.repeat} times an epoch, in batches of "
        f"{chosen.batch_size}; images a second, median of {chosen.rounds}"
    )
    print(f"{'preset':8} {'workers':>7} {'plain':>8} {'cached':>8} {'cached / plain':>15}")
    for (preset, workers), plain, cached in zip(cases, training[::2], training[1::2], strict=True):
        ratio = np.median(np.divide(cached, plain))  # of rounds: what slows one of them slows both contestants
        print(f"{preset:8} {workers:7} {np.median(plain):8.1f} {np.median(cached):8.1f} {ratio:15.2f}")
    print(f"{'check':16} {np.median(checking):8.1f}")


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line; lists are one word."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a folder laid out like COCO")
    parser.add_argument("--split", choices=["train", "val"], default="train")
    parser.add_argument("--size", type=_count, default=300, help="pixels of a side of the network's input")
    parser.add_argument("--presets", type=_presets, default=["flip", "ssd"])
    parser.add_argument("--workers", type=_counts, default=[1, 2])
    parser.add_argument("--batch-size", type=_count, default=16)
    parser.add_argument("--repeat", type=_count, default=2, help="how often an epoch visits each image")
    parser.add_argument("--rounds", type=_count, default=10)
    return parser.parse_args(words)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 on")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(word) for word in text.split(",")]


def _presets(text: str) -> list[Preset]:
    chosen = [preset for word in text.split(",") for preset in MARGINS if preset == word]
    if len(chosen) < len(text.split(",")):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected some of {','.join(MARGINS)}")
    return chosen


if __name__ == "__main__":
    main()
