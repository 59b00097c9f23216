"""Images a second of `mnet-det eval`, which overlaps reading, preparing and the network, against one after the other.

    python tools/eval_speed.py ssd_mobilenet_v1_0.75_coco --images coco/val2017 --annotations instances_val2017.json

Both ways in turns, on the same images: one image after the other through the engine tuned for latency, as `predict`
does, and as `eval` does it. Scoring itself (COCOeval) is in neither.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnet_det.data.coco import CocoData, read_coco
from mnet_det.engine.evaluate import detect_all, join_classes
from mnet_det.errors import MnetDetError
from mnet_det.runtime import Predictor, load_predictor
from mnet_det.runtime.benchmark import machine
from mnet_det.runtime.interleave import interleave


def one_after_the_other(predictor: Predictor, data: CocoData) -> Callable[[int], float]:
    """A contestant: images a second when each waits for the one before it."""
    return _rate(data, lambda: [predictor(data.image(index)) for index in range(len(data))])


def overlapped(predictor: Predictor, data: CocoData) -> Callable[[int], float]:
    """A contestant: images a second as `eval` runs them."""
    return _rate(data, lambda: list(detect_all(predictor, data)))


def _rate(data: CocoData, run: Callable[[], object]) -> Callable[[int], float]:
    def measure(_: int) -> float:
        started = time.perf_counter()
        run()
        return len(data) / (time.perf_counter() - started)

    return measure


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an exported file, a checkpoint or a published name")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--runtime", default="auto", choices=["auto", "openvino", "onnxruntime"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    try:
        data = read_coco(chosen.annotations, chosen.images)
        data.require_files()
        first = load_predictor(chosen.model, runtime=chosen.runtime, threads=chosen.threads)
        other = load_predictor(chosen.model, runtime=first.runtime, threads=chosen.threads, aim="throughput")
        join_classes(first.class_names, data)
        contestants = [one_after_the_other(first, data), overlapped(other, data)]
        rates = interleave(contestants, rounds=max(1, chosen.rounds), burst=1, unmeasured=0)
    except MnetDetError as error:
        sys.exit(f"error: {error}")
    serial, parallel = (float(np.median(found)) for found in rates)
    print(f"{', '.join(f'{key} {value}' for key, value in machine().items())}")
    print(f"{chosen.model} in {first.runtime}, {first.threads} threads, {len(data)} images, median of {chosen.rounds}")
    print(f"one after the other  {serial:7.1f} images a second")
    print(f"as in `eval`         {parallel:7.1f} images a second, {parallel / serial:.2f} times as many")


if __name__ == "__main__":
    main()
