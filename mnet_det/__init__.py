"""mnet-det: object detection around MobileNet, from a COCO folder to live detections on a laptop CPU."""

__version__ = "0.1.0"
