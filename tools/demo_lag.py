"""How old the demo's picture is when it is shown: a camera that writes the time into its pixels, and a slow network.

    python tools/demo_lag.py ssd_mobilenet_v1_0.75_coco

The camera is synthetic, 60 frames a second, read through the same thread as a real one; the network is slowed to 100
ms. Of each picture that is shown the time is read back from its pixels. A queue anywhere would make it older and older;
what is right is one inference, and at most one frame's wait for it. Drawing and showing come on top.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
from numpy.typing import NDArray

from mnet_det.errors import MnetDetError
from mnet_det.live.capture import Newest
from mnet_det.live.controls import Command
from mnet_det.live.device import Device
from mnet_det.live.loop import run_demo
from mnet_det.live.pick import pick_screen
from mnet_det.live.screen import Screen, Status
from mnet_det.runtime import Predictor, load_predictor
from mnet_det.runtime.backends import Backend
from mnet_det.runtime.benchmark import machine
from mnet_det.runtime.predictor import Times
from mnet_det.structures import Candidates, Detections, Image

BITS, BLOCK = 48, 8
"""A stamp: microseconds, a bit in each block of so many pixels in the lowest rows, black or white."""


class StampedCamera:
    """What `cv2.VideoCapture` would be, of a camera that never waits for its reader and keeps one picture."""

    def __init__(self, *, fps: float, width: int, height: int) -> None:
        self._interval_s = 1 / fps
        self._start_s = time.perf_counter()
        self._number = 0
        self._picture = np.full((height, width, 3), 90, np.uint8)

    def get(self, key: int) -> float:
        """Its frame rate, whatever is asked."""
        return 1 / self._interval_s

    def grab(self) -> bool:
        """Wait for the next picture; a reader who is late gets the latest at once."""
        elapsed_s = time.perf_counter() - self._start_s
        self._number = max(self._number + 1, int(elapsed_s / self._interval_s))
        time.sleep(max(0.0, self._start_s + self._number * self._interval_s - time.perf_counter()))
        return True

    def retrieve(self) -> tuple[bool, Image]:
        """That picture, with its own time in it, however late it is fetched."""
        return True, stamped(self._picture, self._start_s + self._number * self._interval_s)

    def release(self) -> None:
        """Nothing to let go of."""


class Slowed(Backend):
    """Another backend, that takes at least so long."""

    def __init__(self, backend: Backend, *, network_ms: float) -> None:
        self.name, self.metadata, self.threads = backend.name, backend.metadata, backend.threads
        self._backend = backend
        self._least_s = network_ms / 1000

    def candidates(self, images: NDArray[np.uint8]) -> Candidates:
        """See `Backend.candidates`."""
        started_s = time.perf_counter()
        found = self._backend.candidates(images)
        time.sleep(max(0.0, started_s + self._least_s - time.perf_counter()))
        return found


class Watched(Predictor):
    """Notes how long each inference took, from pixels to detections."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.inferences_ms: list[float] = []

    def timed(
        self, image: Image, *, score: float | tuple[float, ...] | None = None, nms: float | None = None
    ) -> tuple[Detections, Times]:
        """See `Predictor.timed`."""
        detections, times = super().timed(image, score=score, nms=nms)
        self.inferences_ms.append(times.total_ms)
        return detections, times


class StampReader:
    """A screen around another one, that reads the stamps of what was shown."""

    def __init__(self, screen: Screen) -> None:
        self.watched, self.panel, self.wants_pictures = screen.watched, screen.panel, True
        self.shown_s: list[float] = []
        self.lags_ms: list[float] = []
        self.memory_mb: list[float] = []
        self._screen = screen

    @property
    def closed(self) -> bool:
        """Whether the other one is."""
        return self._screen.closed

    def show(self, picture: Image, status: Status) -> None:
        """Show it, then see how old it is."""
        self._screen.show(picture, status)
        now_s = time.perf_counter()
        self.shown_s.append(now_s)
        self.lags_ms.append((now_s - stamp_of(picture)) * 1000)
        self.memory_mb.append(resident_mb())

    def poll(self, status: Status) -> list[Command]:
        """See the other one."""
        return self._screen.poll(status)

    def close(self) -> None:
        """Close the other one."""
        self._screen.close()


def stamped(picture: Image, now_s: float) -> Image:
    """A copy with a time in its lowest rows."""
    bits = int(now_s * 1e6) >> np.arange(BITS) & 1
    picture = picture.copy()
    picture[-BLOCK:, : BITS * BLOCK] = 255 * bits.repeat(BLOCK)[None, :, None]
    return picture


def stamp_of(picture: Image) -> float:
    """The time in a picture, seconds."""
    bits = picture[-BLOCK // 2, BLOCK // 2 : BITS * BLOCK : BLOCK, 1] > 127
    return float((bits.astype(np.int64) << np.arange(BITS)).sum()) / 1e6


def resident_mb() -> float:
    """Memory of this process; not a number where the system has no /proc."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(float(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))
    except OSError:
        return float("nan")


def run(
    predictor: Predictor, screen: Screen, *, seconds: float, fps: float, network_ms: float
) -> tuple[StampReader, float]:
    """Run the demo on the stamped camera; what its pictures said, and how long an inference took, ms (median)."""
    slowed = Watched(Slowed(predictor.backend, network_ms=network_ms))
    feed = Device(
        StampedCamera(fps=fps, width=640, height=480),
        name="stamped camera",
        silence="no picture",
        connect=lambda: None,
        patience_s=5.0,
        longest_back_off_s=1.0,
    )
    reader = StampReader(screen)
    run_demo([slowed], Newest(feed), reader, frames=max(3, round(seconds * 1000 / max(network_ms, 1000 / fps))))
    return reader, float(np.median(slowed.inferences_ms))


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an exported file, a checkpoint or a published name")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--fps", type=float, default=60.0, help="of the camera")
    parser.add_argument("--network-ms", type=float, default=100.0, help="the network takes at least so long")
    parser.add_argument("--screen", default="none", choices=["window", "browser", "none"])
    chosen = parser.parse_args(arguments)
    try:
        predictor = load_predictor(chosen.model, runtime="openvino")
        seen, inference_ms = run(
            predictor,
            pick_screen(chosen.screen),
            seconds=chosen.seconds,
            fps=chosen.fps,
            network_ms=chosen.network_ms,
        )
    except MnetDetError as error:
        sys.exit(f"error: {error}")
    if len(seen.lags_ms) < 3:
        sys.exit(f"error: closed after {len(seen.lags_ms)} pictures; expected at least three")
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{len(seen.lags_ms)} pictures in {seen.shown_s[-1] - seen.shown_s[0]:.1f} s, {chosen.fps:g} frames a second")
    print(
        f"one inference {inference_ms:.1f} ms (the network at least {chosen.network_ms:g}), "
        f"and one frame: {inference_ms + 1000 / chosen.fps:.1f} ms"
    )
    for name, lags_ms in zip(
        ("first third", "second third", "last third"), np.array_split(seen.lags_ms, 3), strict=True
    ):
        median, high = np.percentile(lags_ms, (50, 95))
        print(f"{name:12}  lag {median:6.1f} ms, 95 of 100 below {high:6.1f}, worst {lags_ms.max():6.1f}")
    third = len(seen.memory_mb) // 3
    print(f"memory        {seen.memory_mb[third]:.1f} MB after the first third, {seen.memory_mb[-1]:.1f} MB at the end")


if __name__ == "__main__":
    main()
