"""Live detection with the Python API, in one short page to copy from.

    python demo/webcam.py MODEL [SOURCE]

MODEL is an exported file (.onnx, .xml), a checkpoint or the name of published weights (ssd_mobilenet_v1_0.75_coco),
SOURCE a camera's number (0 unless given) or a video file.
`mnet-det demo` is this with a camera that never lags, files at their own speed, a page for the browser, models to
switch between, recording and statistics.
"""

import sys

import cv2

from mnet_det.draw import draw_detections
from mnet_det.errors import MnetDetError
from mnet_det.live.window import why_no_window
from mnet_det.runtime import load_predictor

WINDOW = "mnet-det"


def main(model: str, source: str = "0") -> None:
    """Show a source with its detections until it ends, the window is closed, or Escape or q is pressed."""
    reason = why_no_window()  # asked first, for without a display OpenCV's windows abort the whole program
    if reason is not None:
        sys.exit(f"no window: {reason}\nwithout one, use: mnet-det demo {source} --model {model} --record out.mp4")
    predictor = load_predictor(model, score=0.5)
    video = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    if not video.isOpened():
        sys.exit(f"{source}: cannot be opened; mnet-det demo {source} --model {model} says which cameras can")

    while True:
        found, bgr = video.read()
        if not found:
            break
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)  # OpenCV speaks BGR, everything here RGB
        detections = predictor(rgb)
        picture = draw_detections(rgb, detections, predictor.class_names)
        cv2.imshow(WINDOW, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        if cv2.waitKey(1) in (ord("q"), 27) or cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:
            break

    video.release()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python demo/webcam.py MODEL [SOURCE]")
    try:
        main(*sys.argv[1:])
    except MnetDetError as error:
        sys.exit(str(error))
