"""Frames a second of `mnet-det demo` beside what the stages of `mnet-det bench` predict for the same model and frames.

    python tools/demo_speed.py ssd_mobilenet_v1_0.75_coco clip.mp4

In turns: the stages alone, one frame after the other from memory (preprocessing, network, postprocessing: a second
divided by the sum of their medians), and the demo over the same frames as `--no-drop --screen none` runs it, decoding
included. A ratio of 1 means that decoding and everything else the demo does costs nothing. Then how long it takes from
a viewer's wish for another model (here the same one, loaded twice) to its first picture.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

from mnet_det.errors import MnetDetError
from mnet_det.live.controls import Command
from mnet_det.live.loop import run_demo
from mnet_det.live.recorded import Recorded
from mnet_det.live.screen import NoScreen, Status
from mnet_det.live.source import open_source
from mnet_det.runtime import Predictor, load_predictor
from mnet_det.runtime.benchmark import machine
from mnet_det.runtime.interleave import interleave
from mnet_det.structures import Image

SCORE = 0.5
LEAST_FRAMES = 20


def stages_alone(predictor: Predictor, frames: list[Image]) -> Callable[[int], float]:
    """A contestant: frames a second by the medians of the stages."""

    def measure(_: int) -> float:
        times = [predictor.timed(frame, score=SCORE)[1] for frame in frames]
        stages = np.array([(time.preprocess_ms, time.network_ms, time.postprocess_ms) for time in times])
        return 1000 / float(np.median(stages, axis=0).sum())

    return measure


def whole_demo(predictor: Predictor, clip: str, count: int) -> Callable[[int], float]:
    """A contestant: frames a second of the demo."""

    def measure(_: int) -> float:
        stats = run_demo([predictor], open_source(clip), NoScreen(), score=SCORE, frames=count, no_drop=True)
        assert stats.fps is not None
        return stats.fps

    return measure


class Switcher(NoScreen):
    """A viewer who wants the next model with every tenth picture; `waits_ms`: how long it took."""

    wants_pictures = True

    def __init__(self) -> None:
        self.waits_ms: list[float] = []
        self._pictures = 0
        self._asked: tuple[int, float] | None = None

    def show(self, picture: Image, status: Status) -> None:
        """See whether the picture is the other model's."""
        self._pictures += 1
        if self._asked is not None and status.model != self._asked[0]:
            self.waits_ms.append((time.perf_counter() - self._asked[1]) * 1000)
            self._asked = None

    def poll(self, status: Status) -> list[Command]:
        """Ask for the next model."""
        if not self._pictures or self._pictures % 10 or self._asked is not None:
            return []
        self._asked = status.model, time.perf_counter()
        return [Command("next_model")]


def switches_ms(models: list[Predictor], clip: str, count: int) -> list[float]:
    """How long each switch took, from the wish to the first picture."""
    viewer = Switcher()
    run_demo(models, open_source(clip), viewer, score=SCORE, frames=count, no_drop=True)
    return viewer.waits_ms


def read_frames(clip: str, count: int) -> list[Image]:
    """The first frames of a clip."""
    source = open_source(clip)
    frames: list[Image] = []
    try:
        if not isinstance(source, Recorded):
            raise MnetDetError(f"{clip}: a live source never gives the same frames twice; expected a video file")
        while len(frames) < count and source.next_s() is not None and (image := source.take()) is not None:
            frames.append(image)
    finally:
        source.close()
    if len(frames) < LEAST_FRAMES:
        raise MnetDetError(f"{clip}: {len(frames)} frames; expected at least {LEAST_FRAMES}")
    return frames


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an exported file, a checkpoint or a published name")
    parser.add_argument("clip", help="a video file")
    parser.add_argument("--frames", type=int, default=200, help="how many of its frames, from the first")
    parser.add_argument("--runtime", default="auto", choices=["auto", "openvino", "onnxruntime"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args(arguments)
    try:
        predictor = load_predictor(chosen.model, runtime=chosen.runtime, threads=chosen.threads)
        frames = read_frames(chosen.clip, chosen.frames)
        contestants = [stages_alone(predictor, frames), whole_demo(predictor, chosen.clip, len(frames))]
        rates = interleave(contestants, rounds=max(1, chosen.rounds), burst=1, unmeasured=0)
        again = load_predictor(chosen.model, runtime=predictor.runtime, threads=chosen.threads)
        waits_ms = switches_ms([predictor, again], chosen.clip, len(frames))
    except MnetDetError as error:
        sys.exit(f"error: {error}")
    predicted, reached = (float(np.median(found)) for found in rates)
    height, width = frames[0].shape[:2]
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{chosen.model} in {predictor.runtime}, {predictor.threads} threads")
    print(f"{len(frames)} frames of {width}x{height}, median of {max(1, chosen.rounds)} turns")
    print(f"stages alone  {predicted:7.1f} frames a second")
    print(f"demo          {reached:7.1f} frames a second, {reached / predicted:.2f} of that")
    print(f"model switch  {np.median(waits_ms):7.1f} ms, the slowest of {len(waits_ms)} took {max(waits_ms):.1f}")


if __name__ == "__main__":
    main()
