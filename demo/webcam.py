"""Live detection with the Python API, in one short page to copy from.

    python demo/webcam.py MODEL [SOURCE]

MODEL is an exported file (.onnx, .xml), a checkpoint or the name of published weights (ssd_mobilenet_v1_0.75_coco),
SOURCE a camera's number (0 unless given), a video file or the address of a stream.
`mnet-det demo` is this with drawing beside the network, meters, a page for the browser, models to switch between,
recording and statistics.
"""

import sys
from contextlib import closing

import cv2

from mnet_det.draw import draw_detections
from mnet_det.errors import MnetDetError
from mnet_det.live.capture import play
from mnet_det.live.recorded import Recorded
from mnet_det.live.source import open_source
from mnet_det.live.window import why_no_window
from mnet_det.runtime import load_predictor

WINDOW = "webcam"


def main(model: str, source: str = "0") -> None:
    """Show a source with its detections until it ends, the window is closed, or Escape or q is pressed."""
    reason = why_no_window()  # asked first, for without a display OpenCV's windows abort the whole program
    if reason is not None:
        sys.exit(f"no window: {reason}; without one, use mnet-det demo --screen browser")
    predictor = load_predictor(model, score=0.5)
    frames = open_source(source)  # of a camera and a stream always the newest one
    if isinstance(frames, Recorded):
        frames = play(frames)  # a file, at its own speed

    cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    with closing(frames):
        while not frames.ended:
            if cv2.waitKey(1) in (ord("q"), 27) or cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:
                break
            frame = frames.read(timeout_s=0.02)
            if frame is not None:
                detections = predictor(frame.image)
                picture = draw_detections(frame.image, detections, predictor.class_names)
                cv2.imshow(WINDOW, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))  # OpenCV's windows want BGR


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit("usage: python demo/webcam.py MODEL [SOURCE]")
    try:
        main(*sys.argv[1:])
    except MnetDetError as error:
        sys.exit(f"error: {error}")
